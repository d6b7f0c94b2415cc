"""A batch that was made elsewhere becomes a job's files: its requests are the rows, its input file the one shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from nightmill import wire
from nightmill.errors import InputError
from nightmill.files import GROUP_ROWS
from nightmill.ledger import NewShard, StoredFile
from nightmill.plan.cutting import Bounds, Cutter, four_bytes_a_token
from nightmill.pricing import PriceSheet
from nightmill.providers import OpenBatches, SentRequest
from nightmill.store import Store
from nightmill.types import FileRef, Lane

UNCAPPED_TOKENS = 16_384  # what a request may answer that names no cap: the most that current models give at once
_SCHEMA = pa.schema([("key", pa.string()), ("prompt", pa.string()), ("body", pa.string())])


@dataclass(frozen=True, slots=True)
class TakenIn:
    """The files of an adopted batch, written and synced; the ledger does not know them yet."""

    shard: NewShard
    files: tuple[StoredFile, ...]


def first_request(store: Store, sent: FileRef, provider: OpenBatches) -> SentRequest:
    """The first request of an input file. Raises InputError: there is none."""
    return next(_requests(store, sent, provider))


def take_in(store: Store, folder: str, tag: str, sent: FileRef, provider: OpenBatches, sheet: PriceSheet) -> TakenIn:
    """Rows and shard of the input file ``sent``. One pass, flat memory.

    Raises:
        InputError: a line is no request, or asks another model than the first.
    """
    first = first_request(store, sent, provider)
    cutter = Cutter(
        store, folder, Lane.BATCH, Bounds(1 << 62, 0, None), sheet, 0, provider.line_pieces(first.url),
        lambda: tag, four_bytes_a_token,
    )  # fmt: skip
    rows = caps = 0
    try:
        with (
            store.create(f"{folder}/rows.parquet") as out,
            pq.ParquetWriter(
                pa.PythonFile(out, mode="w"), _SCHEMA, use_dictionary=False, write_statistics=False
            ) as writer,
        ):
            for some in _grouped(_requests(store, sent, provider)):
                _check_model(first, some)
                columns = ([r.custom_id for r in some], [r.prompt for r in some], [r.body.decode() for r in some])
                arrays = [pa.array(column, pa.string()) for column in columns]
                writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
                cutter.add(range(rows, rows + len(some)), [r.body for r in some])
                rows += len(some)
                caps += sum(UNCAPPED_TOKENS if r.cap_tokens is None else r.cap_tokens for r in some)
    except BaseException:
        cutter.abort()
        raise
    (shard,) = cutter.close()
    files = (StoredFile(out.ref, wire.ROWS, first=0, last=rows - 1), StoredFile(sent, wire.FOREIGN, tag))
    return TakenIn(replace(shard, cap_tokens=caps), files)


def _requests(store: Store, sent: FileRef, provider: OpenBatches) -> Iterator[SentRequest]:
    is_empty = True
    with store.open(sent) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            is_empty = False
            try:
                yield provider.decode_request(line)
            except ValueError as error:
                what, fix = f"line {number} of the batch's input file is no request", "adopt a batch that ran"
                raise InputError(what, why=str(error), fix=fix) from error
    if is_empty:
        raise InputError("the batch's input file is empty", why="it holds no request", fix="there is nothing to adopt")


def _grouped(requests: Iterable[SentRequest]) -> Iterator[list[SentRequest]]:
    stream = iter(requests)
    while some := list(islice(stream, GROUP_ROWS)):
        yield some


def _check_model(first: SentRequest, some: Iterable[SentRequest]) -> None:
    other = next((request for request in some if request.model != first.model), None)
    if other is not None:
        raise InputError(
            f"the batch asks {first.model} and {other.model}", why="one job has one model, and one price",
            fix="fetch its results by hand; nothing was changed",
        )  # fmt: skip
