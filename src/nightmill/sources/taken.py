"""Rows as every reader hands them on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from nightmill.errors import InputError

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Taken(NamedTuple):
    """Rows, and what is known of them beside.

    ``texts``: the values of text columns where those are at hand; Arrow makes them anew each time.
    ``bad``: rows of the batch that are none, all null, and what is wrong with each, file and line first.
    """

    batch: pa.RecordBatch
    texts: Mapping[str, Sequence[str | None]] = _NOTHING
    bad: Mapping[int, str] = _NOTHING

    def some(self, rows: Sequence[int]) -> Taken:
        """Those ``rows`` only, by rising number."""
        place = {row: i for i, row in enumerate(rows)}
        bad = {place[row]: why for row, why in self.bad.items() if row in place}
        return Taken(self.batch.take(pa.array(rows, pa.int64())), bad=bad)

    def head(self, rows: int) -> Taken:
        """The first ``rows``."""
        return Taken(self.batch.slice(0, rows), bad={row: why for row, why in self.bad.items() if row < rows})


def cut(taken: Iterable[Taken], limit: int | None) -> Iterator[Taken]:
    """The first ``limit`` rows, or all."""
    left = limit
    for some in taken:
        if left is None or some.batch.num_rows < left:
            yield some
            left = None if left is None else left - some.batch.num_rows
            continue
        yield some.head(left)
        return


def rechunk(taken: Iterable[Taken], size: int) -> Iterator[Taken]:
    """The same rows in batches of exactly ``size``, the last one excepted."""
    held: list[pa.RecordBatch] = []
    bad: dict[int, str] = {}
    count = 0
    for some in taken:
        if count == 0 and some.batch.num_rows == size:
            yield some
            continue
        bad.update((count + row, why) for row, why in some.bad.items())
        held.append(some.batch)
        count += some.batch.num_rows
        if count < size:
            continue
        table = pa.Table.from_batches(held)
        full = count - count % size
        for start in range(0, full, size):
            yield Taken(_one_batch(table.slice(start, size)), bad=between(bad, start, start + size))
        # Combined, so that the rest does not keep the whole block it was cut from alive.
        rest = table.slice(full).combine_chunks()
        held, bad, count = rest.to_batches(), between(bad, full, count), rest.num_rows
    if count:
        yield Taken(_one_batch(pa.Table.from_batches(held)), bad=bad)


def digest_batch(into: hashlib._Hash, batch: pa.RecordBatch) -> None:
    """Feed names and values of a batch, the same bytes for the same rows whatever their memory layout."""
    into.update(msgspec.json.encode(batch.schema.names))
    for column in batch.columns:
        flat = pa.concat_arrays([column, column.slice(0, 0)]) if column.offset else column
        if pa.types.is_string(flat.type) and not flat.null_count:
            _, offsets, data = flat.buffers()
            into.update(memoryview(offsets)[: 4 * (len(flat) + 1)])
            into.update(memoryview(data)[: memoryview(offsets).cast("i")[len(flat)]] if data else b"")
        else:
            into.update(msgspec.json.encode(flat.to_pylist()))


def between(bad: Mapping[int, str], first: int, end: int) -> dict[int, str]:
    """Those of the rows from ``first`` up to ``end``, counted from ``first``."""
    return {row - first: why for row, why in bad.items() if first <= row < end}


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) != 1:
        raise InputError(
            "rows are too large",
            why=f"{table.num_rows} rows hold more than 2 GB in one column",
            fix="split the largest values",
        )
    return batches[0]
