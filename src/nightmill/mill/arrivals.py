"""Arrivals: results of a job as they come, each once, whoever works on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from nightmill.collect.results import RANGE_ROWS
from nightmill.engine import JobKit, results_of
from nightmill.files import GROUP_ROWS
from nightmill.ledger import Job, Shard
from nightmill.mill import reading
from nightmill.mill.home import Home
from nightmill.types import ShardState
from nightmill.wire import BAD, ROWS, TWINS, WIRE


class Arrivals:
    """Says at every look which results are new since the last one; the first tells all there are.

    A row's result is told when it is final. Only those parts of the job are read again from whose
    shards something came; memory is a byte a row.
    """

    def __init__(self, home: Home, job: Job) -> None:
        self._home, self._id = home, job.id
        self._told = bytearray(job.rows)
        self._read: dict[str, int] = {}  # by shard: what had come of it when it was read last
        self._kit: JobKit | None = None

    def look(self) -> Iterator[pa.RecordBatch]:
        """Results that are new, of `RESULT_SCHEMA`, in input order. Blocks; call it on a thread. Raises StoreError."""
        job = self._home.job(self._id)
        if job.finished_at is not None:
            if 0 in self._told:
                yield from self._new(reading.results(self._home, job))
            return
        shards = self._home.ledger.shards_of(job.id)
        ranges = list(self._ranges(self._touched(shards)))
        if not ranges:
            return
        self._kit = self._kit or self._home.open_kit(job.id)
        files = self._home.ledger.files_of(job.id, ROWS, TWINS, BAD)
        results = results_of(self._home.store, self._kit, shards, files)
        for first, end in ranges:
            yield from self._new(results.batches(first, min(end, len(self._told))))

    def _new(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = batch.column("index").to_pylist()
            new = [not self._told[row] for row in rows]
            for row in rows:
                self._told[row] = 1
            if any(new):
                yield batch.filter(pa.array(new))

    def _touched(self, shards: Iterable[Shard]) -> set[int]:
        """Row groups of which something may have come since they were read, and something is still open."""
        groups: set[int] = set()
        for shard in shards:
            came = self._came(shard)
            if came and came != self._read.get(shard.tag):
                self._read[shard.tag] = came
                groups.update(range(shard.first // GROUP_ROWS, shard.last // GROUP_ROWS + 1))
        return {n for n in groups if self._told.find(0, n * GROUP_ROWS, (n + 1) * GROUP_ROWS) >= 0}

    def _came(self, shard: Shard) -> int:
        """A number that grows when something came of a shard; 0: nothing."""
        size = 0
        for file in shard.files:
            if file.kind in WIRE:
                with contextlib.suppress(FileNotFoundError):  # a journal not begun yet, or a file packed just now
                    size += self._home.store.path(file.ref.path).stat().st_size
        return 2 * size + (shard.state is ShardState.SETTLED)  # rows that failed are final only then

    @staticmethod
    def _ranges(groups: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Neighbours together, as far as a reader takes them."""
        first = end = -1
        for start in (group * GROUP_ROWS for group in sorted(groups)):
            if start == end and end - first < RANGE_ROWS:
                end += GROUP_ROWS
                continue
            if end > 0:
                yield first, end
            first, end = start, start + GROUP_ROWS
        if end > 0:
            yield first, end
