"""Rows of which no request can be made, on disk: which, and why."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from nightmill import wire
from nightmill.files import GROUP_ROWS
from nightmill.ledger import StoredFile
from nightmill.store import Store, Writer

_SCHEMA = pa.schema([("index", pa.int64()), ("why", pa.string())])


class BadRows:
    """Takes bad rows by rising index while its block lasts; then `file` is what holds them, if there were any."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._path = store, f"{folder}/bad.parquet"
        self._stack = ExitStack()
        self._out: Writer | None = None
        self._writer: pq.ParquetWriter | None = None
        self._held: list[tuple[int, str]] = []
        self.count = 0

    def add(self, bad: Mapping[int, str]) -> None:
        """Rows by index, and what is wrong with each."""
        self._held += sorted(bad.items())
        self.count += len(bad)
        if len(self._held) >= GROUP_ROWS:
            self._write()

    def file(self) -> StoredFile | None:
        return StoredFile(self._out.ref, wire.BAD) if self._out is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held and error is None:
            self._write()
        self._stack.__exit__(kind, error, trace)

    def _write(self) -> None:
        if self._writer is None:
            self._out = self._stack.enter_context(self._store.create(self._path))
            file = pa.PythonFile(self._out, mode="w")
            self._writer = self._stack.enter_context(pq.ParquetWriter(file, _SCHEMA, compression="zstd"))
        indexes, reasons = zip(*self._held, strict=True)
        columns = [pa.array(indexes, pa.int64()), pa.array(reasons, pa.string())]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._held.clear()


def bad_rows(store: Store, file: StoredFile | None, first: int, end: int) -> dict[int, str]:
    """Those from ``first`` up to ``end``. Raises StoreError."""
    found: dict[int, str] = {}
    if file is None:
        return found
    with store.open(file.ref) as stream:
        parquet = pq.ParquetFile(stream)
        for number in range(parquet.num_row_groups):
            span = parquet.metadata.row_group(number).column(0).statistics
            if span.max >= first and span.min < end:
                indexes, reasons = parquet.read_row_group(number, use_threads=False).columns
                pairs = zip(indexes.to_pylist(), reasons.to_pylist(), strict=True)
                found.update((index, why) for index, why in pairs if first <= index < end)
    return found
