"""Results by row range, in input order: outcomes joined to the rows as they were taken.

One range is read with flat memory: where its lines lie is noted first (a few dozen bytes a row),
then 5,000 rows at a time are decoded. The same reader serves finished jobs, whose ranges are
written once as Parquet, and open ones, whose answers so far are read straight from the wire files.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from nightmill import wire
from nightmill.answers import AnswerCache, digest
from nightmill.collect.accounting import BodySizes, Check, estimated, is_unstated
from nightmill.errors import StoreError
from nightmill.files import GROUP_ROWS
from nightmill.ledger import Shard, StoredFile, SubmissionState
from nightmill.plan import Compiled
from nightmill.pricing import PriceSheet
from nightmill.providers import Provider
from nightmill.sinks.columns import RESULT_SCHEMA
from nightmill.store import Store, Writer
from nightmill.types import Failed, FailureKind, Lane, ShardState, Succeeded, Usage

log = logging.getLogger(__name__)

RANGE_ROWS = 50_000
_KEPT_BYTES = 24 << 20
_TWIN = struct.Struct("<qq")
_WENT_OUT = (SubmissionState.CREATED, SubmissionState.BOOKED)
_APART = (FailureKind.MISSING, FailureKind.EXPIRED, FailureKind.CANCELLED)


@dataclass(slots=True)
class RowCounts:
    """How rows ended, duplicates and cached rows under their outcome."""

    succeeded: int = 0
    failed: int = 0
    missing: int = 0
    expired: int = 0
    cancelled: int = 0
    pending: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, outcome: Succeeded | Failed | None) -> None:
        if isinstance(outcome, Succeeded):
            self.succeeded += 1
        elif outcome is None:
            self.pending += 1
        elif outcome.kind in _APART:
            setattr(self, outcome.kind.value, getattr(self, outcome.kind.value) + 1)
        else:
            self.failed += 1
            self.failures[outcome.kind.value] = self.failures.get(outcome.kind.value, 0) + 1


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Everything of a job that results are made from."""

    rows: StoredFile
    twins: StoredFile | None
    shards: Sequence[Shard]  # all, by number
    sheets: Mapping[str, PriceSheet]  # by shard tag, where a price was pinned


@dataclass(frozen=True, slots=True)
class _WireFile:
    """An open file of result lines, with what its lines have in common."""

    raw: FileIO
    number: int  # of the shard
    shard: Shard
    attempt: int
    batch_id: str | None
    sheet: PriceSheet | None


_Place = tuple[_WireFile, int, int]
"""Where one result line lies: file, offset, length."""


class _Row(msgspec.Struct, frozen=True, gc=False):
    """What is known of one row: its outcome and what all its lines cost together."""

    outcome: Succeeded | Failed | None  # None: still open
    shard: Shard | None = None
    batch_id: str | None = None
    usage: Usage | None = None
    cost_nanos: int = 0
    attempt: int = 0
    duration_s: float | None = None
    line: bytes = b""


class Results:
    """Reads the results of one job. ``check`` validates answers, ``compiled`` gives the prompts."""

    def __init__(
        self, store: Store, files: JobFiles, provider: Provider, compiled: Compiled, check: Check | None
    ) -> None:
        self._store, self._files, self._provider, self._compiled, self._check = store, files, provider, compiled, check
        self._wire = [(i, wire.chosen(s.files)) for i, s in enumerate(files.shards)]
        self._sizes = [BodySizes(store, s) for s in files.shards]
        self.counts = RowCounts()
        self._kept: list[tuple[bytes, bytes]] = []  # good answers by digest, on their way to the cache
        self._kept_bytes = 0

    @property
    def rows(self) -> int:
        return self._files.rows.last + 1

    def ranges(self) -> Iterator[tuple[int, int]]:
        """``(first, end)`` of each row range of the job."""
        return ((a, min(a + RANGE_ROWS, self.rows)) for a in range(0, self.rows, RANGE_ROWS))

    def batches(
        self, first: int, end: int, *, keep: AnswerCache | None = None, salt: bytes = b""
    ) -> Iterator[pa.RecordBatch]:
        """The results of rows ``first`` to ``end`` in input order; open rows are left out.

        With ``keep`` every new good answer goes into the cache. Adds to `counts`.
        """
        twins = self.twins(first, end)
        wanted = set(twins.values()) - set(range(first, end))
        with ExitStack() as stack:
            reader, sent = _RangeReader(self, stack, first, end, wanted), _Sent(self._store)
            source = pq.ParquetFile(stack.enter_context(self._store.open(self._files.rows.ref)), pre_buffer=False)
            for start in range(first, end, GROUP_ROWS):
                batch = _row_group(source, start)
                rows = [reader.row(twins.get(start + i, start + i)) for i in range(batch.num_rows)]
                if keep is not None:
                    self._keep(keep, salt, sent, start, rows, twins)
                yield self._table(batch, start, rows, twins)
            if keep is not None:
                self._put_kept(keep)

    def write(self, folder: str, first: int, end: int, n: int, **keep: Any) -> StoredFile:
        """One range as a Parquet file, row groups of 5,000."""
        path = f"{folder}/results/{first}.{n}.parquet"
        with self._store.create(path) as out, _parquet(out) as writer:
            for batch in self.batches(first, end, **keep):
                writer.write_batch(batch)
        return StoredFile(out.ref, wire.RESULTS, n=n, first=first, last=end - 1)

    # -- rows ----------------------------------------------------------------------------------

    def twins(self, first: int, end: int) -> dict[int, int]:
        """Duplicate rows of the range and the row whose outcome each shares."""
        file = self._files.twins
        if file is None:
            return {}
        with self._store.open(file.ref) as stream:
            low, high = 0, file.ref.size_bytes // _TWIN.size
            while low < high:
                middle = (low + high) // 2
                stream.seek(middle * _TWIN.size)
                low, high = (middle + 1, high) if _TWIN.unpack(stream.read(_TWIN.size))[0] < first else (low, middle)
            stream.seek(low * _TWIN.size)
            found = {}
            while (record := stream.read(_TWIN.size)) and (pair := _TWIN.unpack(record))[0] < end:
                found[pair[0]] = pair[1]
        return found

    def _keep(
        self, cache: AnswerCache, salt: bytes, sent: _Sent, start: int, rows: list[_Row], twins: Mapping[int, int],
    ) -> None:  # fmt: skip
        """Good answers for the cache, written many at once: each time costs it a look at all it has."""
        for index, row in enumerate(rows, start):
            if not row.line or index in twins or row.shard is None or row.shard.lane is Lane.CACHE:
                continue
            if body := sent.body(row.shard, index):
                self._kept.append((digest(salt, body), row.line.strip()))
                self._kept_bytes += len(row.line)
        if self._kept_bytes >= _KEPT_BYTES:
            self._put_kept(cache)

    def _put_kept(self, cache: AnswerCache) -> None:
        cache.put_many(self._kept)
        self._kept.clear()
        self._kept_bytes = 0

    def _table(self, batch: pa.RecordBatch, start: int, rows: list[_Row], twins: Mapping[int, int]) -> pa.RecordBatch:
        prompts = self._compiled.prompts(batch, start)
        keys = batch.column("key").to_pylist()
        provider, has_schema = self._provider.name, self._check is not None
        out = []
        for index, (key, prompt, row) in enumerate(zip(keys, prompts, rows, strict=True), start):
            self.counts.add(row.outcome)
            if row.outcome is not None:
                out.append(_record(index, key, prompt, row, provider, has_schema, is_twin=index in twins))
        columns = list(zip(*out, strict=True)) if out else [()] * len(RESULT_SCHEMA)
        arrays = [pa.array(c, t) for c, t in zip(columns, RESULT_SCHEMA.types, strict=True)]
        return pa.record_batch(arrays, schema=RESULT_SCHEMA)


def read_built(
    store: Store, file: StoredFile, first: int, end: int, again: Callable[[], Results]
) -> Iterator[pa.RecordBatch]:
    """Row groups of a built range with rows from ``first`` up to ``end``.

    From where the file is damaged on they are made anew, by ``again``'s reader, of what came back.
    """
    start = file.first
    try:
        with store.open(file.ref) as stream:
            parquet = pq.ParquetFile(stream, pre_buffer=False)
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                batches = parquet.read_row_group(group).to_batches() if start < end and start + rows > first else []
                start += rows
                yield from batches
    except (StoreError, pa.ArrowException, OSError) as error:
        log.warning("%s is damaged (%s); its rows are read from what came back", file.ref.path, error)
        yield from again().batches(start - start % GROUP_ROWS, file.last + 1)


def _parquet(out: Writer) -> pq.ParquetWriter:
    repeated = ["model", "provider", "lane", "shard", "batch_id", "finish_reason", "error_kind"]
    file = pa.PythonFile(out, mode="w")
    return pq.ParquetWriter(
        file, RESULT_SCHEMA, compression="zstd", use_dictionary=repeated, write_statistics=["index"]
    )


def _row_group(source: pq.ParquetFile, start: int) -> pa.RecordBatch:
    table = source.read_row_group(start // GROUP_ROWS)
    return table.combine_chunks().to_batches()[0]


def _record(
    index: int, key: str | None, prompt: str, row: _Row, provider: str, has_schema: bool, *, is_twin: bool
) -> tuple[Any, ...]:
    outcome, shard, usage, is_good = row.outcome, row.shard, row.usage, False
    text = finish_reason = model = error = kind = None
    if outcome is not None:
        text, finish_reason, model = outcome.text, outcome.finish_reason, outcome.model
        if isinstance(outcome, Succeeded):
            is_good = True
        else:
            error, kind = outcome.message, outcome.kind
    tokens = (usage.input_tokens, usage.output_tokens, usage.cached_tokens) if usage else (None, None, None)
    return (
        index, key, prompt, text, is_good, tokens[0], tokens[1], row.duration_s, error, kind, finish_reason,
        text if is_good and has_schema else None, model, provider, shard.lane if shard else None, tokens[2],
        0 if is_twin else row.cost_nanos, bool(usage and usage.estimated), row.attempt, shard.tag if shard else None,
        row.batch_id,
    )  # fmt: skip


class _Sent:
    """The bodies that went out, from the shards' own files: a retry may have asked otherwise than the job did."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._streams: dict[str, Iterator[tuple[int, bytes]]] = {}

    def body(self, shard: Shard, index: int) -> bytes:
        """What row ``index`` was asked; empty when that is not known. Rows of a shard come by rising index."""
        stream = self._streams.get(shard.tag)
        if stream is None:
            stream = self._streams[shard.tag] = wire.shard_lines(self._store, shard)
        try:
            return next((wire.body_of(line) for row, line in stream if row == index), b"")
        except StoreError as error:
            log.warning("answers of %s are not kept for other jobs: %s", shard.tag, error)
            return b""


class _RangeReader:
    """Outcomes of the rows of one range (and of the rows elsewhere that share theirs)."""

    def __init__(self, results: Results, stack: ExitStack, first: int, end: int, others: set[int]) -> None:
        self._results, self._others, self._first, self._end = results, others, first, end
        self._places: dict[int, list[_Place]] = {}
        self._open_rows: set[int] = set()
        self._unanswered: set[int] = set()  # live: marked as sent, by the newest mark
        self._unsent: dict[int, int] | None = None  # row -> shard number, read when first needed
        self._shards = results._files.shards
        spread = (min(others, default=first), max(others, default=end - 1))
        self._lowest, self._highest = min(first, spread[0]), max(end - 1, spread[1])
        for number, files in results._wire:
            shard = self._shards[number]
            if shard.last < self._lowest or shard.first > self._highest:
                continue
            for file in files:
                self._note_places(stack, number, file)
            if shard.state is not ShardState.SETTLED:
                self._open_rows.update(i for i, _ in wire.shard_lines(results._store, shard) if self._wants(i))

    def _wants(self, index: int) -> bool:
        return self._first <= index < self._end or index in self._others

    def _note_places(self, stack: ExitStack, number: int, file: StoredFile) -> None:
        """Remember where the lines of the rows we want lie in one file."""
        results, shard = self._results, self._shards[number]
        stream = stack.enter_context(wire.open_wire(results._store, file))
        batch_id = next((s.batch_id for s in shard.submissions if s.n == file.n), None)
        attempt = 1 if shard.lane is Lane.LIVE else shard.attempt
        sheet = results._files.sheets.get(shard.tag)
        here = _WireFile(stream.raw, number, shard, attempt, batch_id, sheet)
        mark, offset, is_journal = b'"' + shard.tag.encode() + b"-", 0, file.kind == wire.JOURNAL
        skip, first, end, others, places = len(mark), self._first, self._end, self._others, self._places
        counts = wire.end_of(file)
        pending: set[str] = set()
        lost: list[str] = []
        for line in stream:
            at, length = line.find(mark), len(line)
            if offset + length > counts:
                break
            if is_journal and 0 <= at < 12:
                if line.endswith(b"\n"):
                    wire.read_mark(line, pending, lost)
            elif at >= 0 and not (is_journal and not line.endswith(b"\n")):
                digits = line[at + skip : line.find(b'"', at + skip)]
                if digits.isdigit() and (first <= (index := int(digits)) < end or index in others):
                    if index in places:
                        places[index].append((here, offset, length))
                    else:
                        places[index] = [(here, offset, length)]
            offset += length
        self._unanswered.update(int(custom_id.rpartition("-")[2]) for custom_id in (*pending, *lost))

    def row(self, index: int) -> _Row:
        """First success wins, in order of shards and files; else what the newest shard's accounting counted."""
        best: _Row | None = None
        cost = answers = 0
        for place in self._places.get(index, ()):
            row = self._read(index, place)
            if row is None:
                continue
            cost += row.cost_nanos
            answers += 1
            if best is None or _wins(row, best):
                best = row
        if best is not None and (isinstance(best.outcome, Succeeded) or index not in self._open_rows):
            if answers == 1:
                return best
            is_live = best.shard is not None and best.shard.lane is Lane.LIVE
            attempt = answers if is_live else best.attempt
            return msgspec.structs.replace(best, cost_nanos=cost, attempt=attempt)
        if index in self._open_rows:
            return _Row(None)
        return self._without_line(index)

    def _read(self, index: int, place: _Place) -> _Row | None:
        file, offset, length = place
        results, shard = self._results, file.shard
        file.raw.seek(offset)
        line = file.raw.read(length)  # unbuffered: the next line wanted lies elsewhere
        try:
            answer = results._provider.decode(line)
        except ValueError:
            return None
        outcome = answer.outcome
        usage = outcome.usage
        if is_unstated(outcome):
            usage = estimated(outcome, results._sizes[file.number].tokens(index), shard.cap_tokens // shard.count)
        if isinstance(outcome, Succeeded) and results._check is not None:
            outcome = _checked(outcome, usage, results._check)
        cost = file.sheet.cost(usage) if file.sheet and usage else 0
        kept = line if isinstance(outcome, Succeeded) else b""
        return _Row(outcome, shard, file.batch_id, usage, cost, file.attempt, answer.duration_s, kept)

    def _without_line(self, index: int) -> _Row:
        """A row that no result line names: the provider lost it, or it was never sent."""
        if self._unsent is None:
            self._unsent = {}
            for number, shard in enumerate(self._shards):
                if shard.lane is not Lane.CACHE and shard.last >= self._lowest and shard.first <= self._highest:
                    self._unsent.update((i, number) for i, _ in wire.shard_lines(self._results._store, shard))
        number = self._unsent.get(index, -1)
        newest = self._shards[number] if number >= 0 else None
        if index in self._unanswered:
            return _Row(Failed(FailureKind.TIMEOUT, "sent, and no answer came that could be trusted"), newest)
        if newest is None or newest.lane is Lane.LIVE or not any(s.state in _WENT_OUT for s in newest.submissions):
            return _Row(Failed(FailureKind.CANCELLED, "not sent: the job was cancelled or stopped"), newest)
        return _Row(Failed(FailureKind.MISSING, "the provider ended the batch without a line for it"), newest)


def _wins(row: _Row, best: _Row) -> bool:
    """Whether a later line stands instead of an earlier one: the same rule as in the accounting of a shard."""
    if isinstance(best.outcome, Succeeded):
        return False
    is_try = row.shard is not best.shard or (row.shard is not None and row.shard.lane is Lane.LIVE)
    return is_try or isinstance(row.outcome, Succeeded)


def _checked(outcome: Succeeded, usage: Usage | None, check: Check) -> Succeeded | Failed:
    error = check(outcome.text)[1]
    if error is None:
        return outcome
    return Failed(FailureKind.INVALID_OUTPUT, error, usage, outcome.text, outcome.finish_reason, outcome.model)
