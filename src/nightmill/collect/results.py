"""Results by row range, in input order: outcomes joined to the rows as they were taken.

One range is read with flat memory: where its lines lie is noted first (twenty bytes a row), then 5,000
rows at a time are decoded. Rows that stand side by side and were each answered once, plainly, in one
file, go together, as columns; all others go one by one. The same reader serves finished jobs, whose ranges are
written once as Parquet, and open ones, whose answers so far are read straight from the wire files.
"""

from __future__ import annotations

import logging
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader, FileIO
from itertools import accumulate, chain
from operator import add
from typing import Any, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from nightmill import wire
from nightmill.answers import AnswerCache, digests, later
from nightmill.collect.accounting import (
    BodySizes,
    Check,
    estimated,
    index_of,
    is_row,
    is_unstated,
    unanswered_in,
)
from nightmill.errors import StoreError
from nightmill.files import GROUP_ROWS
from nightmill.ledger import Shard, StoredFile, SubmissionState
from nightmill.plan import Compiled, bad_rows
from nightmill.pricing import PriceSheet
from nightmill.providers import PlainAnswers, Provider
from nightmill.sinks.columns import RESULT_SCHEMA
from nightmill.sinks.vectors import packed
from nightmill.store import Store, Writer
from nightmill.tasks import Repaired
from nightmill.types import Failed, FailureKind, Lane, ShardState, Succeeded, Usage

log = logging.getLogger(__name__)

RANGE_ROWS = 50_000
_KEPT_BYTES = 24 << 20
_TOGETHER, _FEW = 256, 16  # rows that are decoded in one go, at first and when one of those is no plain answer
_TOGETHER_BYTES = 4 << 20
_MOST_OPEN = 64  # wire files of a range
_NO_LINE, _SEVERAL = -1, -2  # instead of a file's number
_TWIN = struct.Struct("<qq")
_WENT_OUT = (SubmissionState.CREATED, SubmissionState.BOOKED)
_UNANSWERED = {
    FailureKind.MISSING: "the provider ended the batch without a line for it",
    FailureKind.EXPIRED: "the batch expired, and hands nothing back",
    FailureKind.CANCELLED: "the batch was cancelled, and hands nothing back",
}
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
    invalid: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    folded_list_nanos: int = 0  # what duplicates would have cost, had each been sent live

    def add(self, outcome: Succeeded | Failed | None) -> None:
        if isinstance(outcome, Succeeded):
            self.succeeded += 1
        elif outcome is None:
            self.pending += 1
        elif outcome.kind is FailureKind.INVALID_INPUT:
            self.invalid += 1
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
    bad: StoredFile | None  # rows of which no request could be made
    shards: Sequence[Shard]  # all, by number
    sheets: Mapping[str, PriceSheet]  # by shard tag, where a price was pinned
    list_sheet: PriceSheet | None = None  # the live standard price, where what was saved is to be counted


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where good answers are kept for later jobs, and as answers to what."""

    cache: AnswerCache
    salt: bytes
    steps: Mapping[int, bytes] = field(default_factory=dict)  # of the ladder, as `Ladder.kept_steps` tells them


@dataclass(frozen=True, slots=True)
class _WireFile:
    """A file of result lines, with what its lines have in common."""

    stored: StoredFile
    number: int  # of the shard
    shard: Shard
    attempt: int
    batch_id: str | None
    sheet: PriceSheet | None


_Place = tuple[_WireFile, int, int]
"""Where one result line lies: file, offset, length."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows side by side, from ``first`` on, each with one line in ``file`` that is a plain answer."""

    first: int
    file: _WireFile
    answers: PlainAnswers
    costs: list[int]  # nanos
    lines: list[bytes]


class _Row(msgspec.Struct, frozen=True, gc=False):
    """What is known of one row: its outcome and what all its lines cost together."""

    index: int
    outcome: Succeeded | Failed | None  # None: still open
    shard: Shard | None = None
    batch_id: str | None = None
    usage: Usage | None = None
    cost_nanos: int = 0
    attempt: int = 0
    duration_s: float | None = None
    line: bytes = b""
    is_repaired: bool = False  # its value is as repair made it, and not what its text says


class Results:
    """Reads the results of one job. ``check`` validates answers, ``compiled`` gives the prompts."""

    def __init__(
        self, store: Store, files: JobFiles, provider: Provider, compiled: Compiled, check: Check | None,
        others: Mapping[int, Provider] | None = None,
    ) -> None:  # fmt: skip
        """``others``: by rung of the job's ladder, who answered there, where that is another than ``provider``."""
        self._others = others or {}
        self._store, self._files, self._provider, self._compiled, self._check = store, files, provider, compiled, check
        self._has_schema = check is not None and not compiled.embeds
        self._wire = [(i, wire.chosen(s.files)) for i, s in enumerate(files.shards)]
        self._sizes = [BodySizes(store, s, self.provider_of(s)) for s in files.shards]
        self.counts = RowCounts()
        self._kept: list[tuple[bytes, bytes]] = []  # good answers by digest, on their way to the cache
        self._kept_bytes = 0

    @property
    def rows(self) -> int:
        return self._files.rows.last + 1

    def provider_of(self, shard: Shard) -> Provider:
        """Who answered the requests of ``shard``, or is to."""
        return self._others.get(shard.rung, self._provider)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """``(first, end)`` of each row range of the job."""
        return ((a, min(a + RANGE_ROWS, self.rows)) for a in range(0, self.rows, RANGE_ROWS))

    def batches(self, first: int, end: int, *, keep: Keeping | None = None) -> Iterator[pa.RecordBatch]:
        """The results of rows ``first`` to ``end`` in input order; open rows are left out.

        With ``keep`` every new good answer goes into the cache. Adds to `counts`.
        """
        twins, bad = self.twins(first, end), bad_rows(self._store, self._files.bad, first, end)
        with ExitStack() as stack:
            reader, sent = _RangeReader(self, stack, first, end, twins, bad), _Sent(self._store, self._files.shards)
            rows_file = stack.enter_context(self._store.open(self._files.rows.ref))
            with _damage_told(self._files.rows):
                source = pq.ParquetFile(rows_file, pre_buffer=False)
            for start in range(first, end, GROUP_ROWS):
                with _damage_told(self._files.rows):
                    batch = _row_group(source, start)
                table = _Table(self.provider_of, has_schema=self._has_schema, embeds=self._compiled.embeds)
                for rows in reader.outcomes(start, start + batch.num_rows):
                    if isinstance(rows, _Run):
                        self.counts.succeeded += len(rows.lines)
                        table.add_run(rows)
                    else:
                        self._count(rows, is_twin=rows.index in twins)
                        table.add_row(rows, is_twin=rows.index in twins)
                    if keep is not None:
                        self._keep(keep, sent, rows, twins)
                yield table.made(batch, start, self._prompts(batch, start, bad))
            if keep is not None:
                self._put_kept(keep.cache)

    def write(self, folder: str, first: int, end: int, n: int, keep: Keeping | None = None) -> StoredFile:
        """One range as a Parquet file, row groups of 5,000."""
        path = f"{folder}/results/{first}.{n}.parquet"
        with self._store.create(path) as out, _parquet(out) as writer:
            for batch in self.batches(first, end, keep=keep):
                writer.write_batch(batch)
        return StoredFile(out.ref, wire.RESULTS, n=n, first=first, last=end - 1)

    # -- rows ----------------------------------------------------------------------------------

    def _count(self, row: _Row, *, is_twin: bool) -> None:
        self.counts.add(row.outcome)
        if is_twin and row.usage is not None and self._files.list_sheet is not None:
            self.counts.folded_list_nanos += self._files.list_sheet.cost(row.usage.fresh)

    def _prompts(self, batch: pa.RecordBatch, start: int, bad: Container[int]) -> pa.Array:
        """What each row asks; nothing where no request could be made."""
        good = [row for row in range(batch.num_rows) if start + row not in bad] if bad else []
        if len(good) in (0, batch.num_rows):
            return self._compiled.prompts(batch) if not bad or good else pa.nulls(batch.num_rows, pa.string())
        prompts = self._compiled.prompts(batch.take(pa.array(good, pa.int64())))
        place = {row: i for i, row in enumerate(good)}
        return prompts.take(pa.array([place.get(row) for row in range(batch.num_rows)], pa.int64()))

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

    def _keep(self, to: Keeping, sent: _Sent, rows: _Run | _Row, twins: Mapping[int, int]) -> None:
        """Good answers for the cache, written many at once: each time costs it a look at all it has.

        They are kept as answers to what was asked first. What only fitted on a further step is so for jobs with the
        same steps alone: another would have nothing from it but that it does not ask.
        """
        if isinstance(rows, _Run):
            shard, lines, first, is_repaired = rows.file.shard, rows.lines, rows.first, False
        elif rows.line and rows.shard is not None and rows.index not in twins:
            shard, lines, first, is_repaired = rows.shard, [rows.line], rows.index, rows.is_repaired
        else:
            return
        step = to.steps.get(shard.rung) if shard.rung or is_repaired else b""
        if shard.lane is Lane.CACHE or step is None:
            return
        if shard.rung:
            bodies = [body for row in range(first, first + len(lines)) for body in sent.asked_first(shard, row)]
        else:
            bodies = sent.bodies(shard, range(first, first + len(lines)))
        if len(bodies) == len(lines):
            keys = digests(to.salt, self._compiled.unmarked(bodies))
            keys = [later(key, step) for key in keys] if step else keys
            self._kept += zip(keys, [line.strip() for line in lines], strict=True)
            self._kept_bytes += sum(map(len, lines))
        if self._kept_bytes >= _KEPT_BYTES:
            self._put_kept(to.cache)

    def _put_kept(self, cache: AnswerCache) -> None:
        cache.put_many(self._kept)
        self._kept.clear()
        self._kept_bytes = 0


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
                batches = (
                    parquet.read_row_group(group, use_threads=False).to_batches()
                    if start < end and start + rows > first
                    else []
                )
                start += rows
                yield from batches
    except (StoreError, pa.ArrowException, OSError) as error:
        log.warning("%s is damaged (%s); its rows are read from what came back", file.ref.path, type(error).__name__)
        yield from again().batches(start - start % GROUP_ROWS, file.last + 1)


def _parquet(out: Writer) -> pq.ParquetWriter:
    repeated = ["model", "provider", "lane", "shard", "batch_id", "finish_reason", "error_kind"]
    file = pa.PythonFile(out, mode="w")
    return pq.ParquetWriter(
        file, RESULT_SCHEMA, compression="zstd", use_dictionary=repeated, write_statistics=["index"]
    )


@contextmanager
def _damage_told(file: StoredFile) -> Iterator[None]:
    """Raises StoreError for what cannot be read, and for nothing else."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"a file of this job is damaged: {file.ref.path}",
            why=str(error).strip(),
            fix="put the home folder back from a backup; what came back is kept, and nothing more is sent",
        ) from error


def _row_group(source: pq.ParquetFile, start: int) -> pa.RecordBatch:
    table = source.read_row_group(start // GROUP_ROWS, use_threads=False)
    return table.combine_chunks().to_batches()[0]


class _Table:
    """A result table in the making, column by column; keys and prompts come from the rows themselves."""

    def __init__(self, provider_of: Callable[[Shard], Provider], *, has_schema: bool, embeds: bool) -> None:
        self._provider_of, self._has_schema, self._embeds = provider_of, has_schema, embeds
        self._columns: dict[str, list[Any]] = {name: [] for name in RESULT_SCHEMA.names}

    def add_run(self, run: _Run) -> None:
        answers, file, n = run.answers, run.file, len(run.lines)
        nothing: list[None] = [None] * n
        self._extend(
            index=range(run.first, run.first + n), response=answers.texts, success=[True] * n,
            tokens_in=answers.input_tokens, tokens_out=answers.output_tokens, duration=answers.durations_s,
            error=nothing, error_kind=nothing, finish_reason=answers.finish_reasons,
            parsed=answers.texts if self._has_schema else nothing, embedding=nothing, model=answers.models,
            provider=[self._provider_of(file.shard).name] * n, lane=[file.shard.lane] * n,
            tokens_cached=answers.cached_tokens,
            cost_nanos=run.costs, cost_estimated=[False] * n, attempt=[file.attempt] * n,
            shard=[file.shard.tag] * n, batch_id=[file.batch_id] * n,
        )  # fmt: skip

    def add_row(self, row: _Row, *, is_twin: bool) -> None:
        """A row that is still open is left out; one that shares another's answer costs nothing."""
        outcome, shard, usage = row.outcome, row.shard, row.usage
        if outcome is None:
            return
        is_good = isinstance(outcome, Succeeded)
        error, kind = (None, None) if isinstance(outcome, Succeeded) else (outcome.message, outcome.kind)
        tokens = (usage.input_tokens, usage.output_tokens, usage.cached_tokens) if usage else (None, None, None)
        is_text = self._has_schema and not row.is_repaired
        parsed = (outcome.text if is_text else outcome.parsed) if isinstance(outcome, Succeeded) else None
        vector = packed(outcome.text) if self._embeds and isinstance(outcome, Succeeded) else None
        self._extend(
            index=[row.index], response=[None if vector else outcome.text], success=[is_good], tokens_in=[tokens[0]],
            tokens_out=[tokens[1]], duration=[row.duration_s], error=[error], error_kind=[kind],
            finish_reason=[outcome.finish_reason], parsed=[parsed], embedding=[vector],
            model=[outcome.model], provider=[self._provider_of(shard).name if shard else None],
            lane=[shard.lane if shard else None],
            tokens_cached=[tokens[2]], cost_nanos=[0 if is_twin else row.cost_nanos],
            cost_estimated=[bool(usage and usage.estimated)], attempt=[row.attempt],
            shard=[shard.tag if shard else None], batch_id=[row.batch_id],
        )  # fmt: skip

    def _extend(self, **columns: Iterable[Any]) -> None:
        for name, values in columns.items():
            self._columns[name].extend(values)

    def made(self, batch: pa.RecordBatch, start: int, prompts: pa.Array) -> pa.RecordBatch:
        """The table of what was added; ``batch`` and ``prompts`` are the rows from ``start`` on."""
        given = {"key": batch.column("key"), "prompt": prompts}
        if len(index := self._columns["index"]) < batch.num_rows:
            chosen = pa.array([i - start for i in index], pa.int64())
            given = {name: column.take(chosen) for name, column in given.items()}
        arrays = [given.get(f.name) or pa.array(self._columns[f.name], f.type) for f in RESULT_SCHEMA]
        return pa.record_batch(arrays, schema=RESULT_SCHEMA)


class _Sent:
    """The bodies that went out, from the shards' own files: a retry may have asked otherwise than the job did."""

    def __init__(self, store: Store, shards: Iterable[Shard]) -> None:
        self._store, self._shards = store, shards
        self._streams: dict[str, tuple[int, Iterator[tuple[int, bytes]]]] = {}  # by shard, with its last row
        self._ahead: dict[str, tuple[int, bytes]] = {}  # by shard, what was read of it before it was asked for

    @cached_property
    def _first(self) -> list[Shard]:
        """Shards of first asks, by their first row."""
        asked_first = (shard for shard in self._shards if not shard.rung and shard.lane is not Lane.CACHE)
        return sorted(asked_first, key=lambda shard: shard.first)

    @cached_property
    def _reach(self) -> list[int]:
        """Of each of these, the last row of any up to it."""
        return list(accumulate((shard.last for shard in self._first), max))

    def bodies(self, shard: Shard, rows: range) -> list[bytes]:
        """What those rows were asked; fewer when that is not known. Rows of a shard come by rising index."""
        if shard.tag not in self._streams:  # shards that end before these rows are not asked for any more
            self._streams = {tag: kept for tag, kept in self._streams.items() if kept[0] >= rows.start}
            self._streams[shard.tag] = shard.last, wire.shard_lines(self._store, shard)
        found: list[bytes] = []
        try:
            ahead = [self._ahead.pop(shard.tag)] if shard.tag in self._ahead else []
            for row, line in chain(ahead, self._streams[shard.tag][1]):
                if row in rows:
                    found.append(wire.body_of(line))
                elif row > rows[-1]:
                    self._ahead[shard.tag] = row, line
                if row >= rows[-1]:
                    break
        except StoreError as error:
            log.warning("shard %s: its answers are not kept for other jobs: %s", shard.tag, error.logged)
        return found

    def asked_first(self, shard: Shard, row: int) -> list[bytes]:
        """What a row of a later rung was asked first: the newest such body before; none where it is not known."""
        at, found = bisect_right(self._first, row, key=lambda each: each.first), list[Shard]()
        while at and self._reach[at - 1] >= row:
            at -= 1
            if self._first[at].last >= row and self._first[at].seq < shard.seq:
                found.append(self._first[at])
        newest_first = sorted(found, key=lambda each: each.seq, reverse=True)
        return next(filter(None, (self.bodies(each, range(row, row + 1)) for each in newest_first)), [])


class _Streams:
    """Wire files to read anywhere in. The last used are kept open; there may be more than a process may open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[str, BufferedReader[FileIO]] = {}  # by path, the last used last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()

    def open(self, file: StoredFile) -> BufferedReader[FileIO]:
        """The file, open until some others were used."""
        stream = self._open.pop(file.ref.path, None) or wire.open_wire(self._store, file)
        self._open[file.ref.path] = stream
        if len(self._open) > _MOST_OPEN:
            self._open.pop(next(iter(self._open))).close()
        return stream

    def read(self, file: StoredFile, offset: int, length: int) -> bytes:
        """Unbuffered: what is wanted next lies elsewhere."""
        raw = self.open(file).raw
        raw.seek(offset)
        return raw.read(length)


class _RangeReader:
    """Outcomes of the rows of one range (and of the rows elsewhere that share theirs)."""

    def __init__(
        self, results: Results, stack: ExitStack, first: int, end: int, twins: Mapping[int, int], bad: Mapping[int, str]
    ) -> None:
        self._results, self._first, self._end, self._twins, self._bad = results, first, end, twins, bad
        self._streams = stack.enter_context(_Streams(results._store))
        self._others = others = {twin for twin in twins.values() if not first <= twin < end}
        # Where the one line of a row of the range lies; `_more` has the rows with several, and the others.
        self._files: list[_WireFile] = []
        self._numbers = array("i", [_NO_LINE]) * (end - first)
        self._offsets, self._lengths = array("q", bytes(8 * (end - first))), array("q", bytes(8 * (end - first)))
        self._more: dict[int, list[_Place]] = {}
        self._open_rows: set[int] = set()
        self._unanswered: set[int] = set()  # live: marked as sent, by the newest mark
        self._unsent: dict[int, int] | None = None  # row -> shard number, read when first needed
        self._ends: dict[str, FailureKind] = {}  # by shard, what its rows without a line are; asked when first needed
        self._shards = results._files.shards
        spread = (min(others, default=first), max(others, default=end - 1))
        self._lowest, self._highest = min(first, spread[0]), max(end - 1, spread[1])
        for number, files in results._wire:
            shard = self._shards[number]
            if shard.last < self._lowest or shard.first > self._highest:
                continue
            for file in files:
                self._note_places(number, file)
            if shard.state is not ShardState.SETTLED:
                self._open_rows.update(i for i, _ in wire.shard_lines(results._store, shard) if self._wants(i))

    def _wants(self, index: int) -> bool:
        return self._first <= index < self._end or index in self._others

    def _note_places(self, number: int, file: StoredFile) -> None:
        """Remember where the lines of the rows we want lie in one file."""
        results, shard = self._results, self._shards[number]
        stream = self._streams.open(file)
        batch_id = next((s.batch_id for s in shard.submissions if s.n == file.n), None)
        attempt = 1 if shard.lane.is_live else shard.attempt
        sheet = results._files.sheets.get(shard.tag)
        self._files.append(_WireFile(file, number, shard, attempt, batch_id, sheet))
        mark, offset, is_journal = b'"' + shard.tag.encode() + b"-", 0, file.kind == wire.JOURNAL
        skip, first, end, others, numbers = len(mark), self._first, self._end, self._others, self._numbers
        here, offsets, lengths = len(self._files) - 1, self._offsets, self._lengths
        counts = wire.end_of(file)
        pending: set[str] = set()
        lost: list[str] = []
        for line in stream:
            at, length = line.find(mark), len(line)
            if offset + length > counts:
                break
            if is_journal and wire.is_mark(line):
                if line.endswith(b"\n"):
                    wire.read_mark(line, pending, lost)
            elif not (is_journal and not line.endswith(b"\n")):
                digits = line[at + skip : line.find(b'"', at + skip)] if at >= 0 else b""
                index = int(digits) if is_row(digits) else self._decoded_index(line, shard)
                if first <= index < end and numbers[index - first] == _NO_LINE:
                    numbers[index - first], offsets[index - first], lengths[index - first] = here, offset, length
                elif first <= index < end or index in others:
                    self._note_another(index, (self._files[here], offset, length))
            offset += length
        self._unanswered.update(int(custom_id.rpartition("-")[2]) for custom_id in (*pending, *lost))

    def _decoded_index(self, line: bytes, shard: Shard) -> int:
        """The row of a line in which the request's name is not spelled out: JSON may write any letter as an escape."""
        try:
            index = index_of(self._results.provider_of(shard).decode(line).custom_id, shard)
        except ValueError:
            return -1
        return -1 if index is None else index

    def _note_another(self, index: int, place: _Place) -> None:
        if index not in self._more:
            self._more[index] = self._places(index)
            if self._first <= index < self._end:
                self._numbers[index - self._first] = _SEVERAL
        self._more[index].append(place)

    def _places(self, index: int) -> list[_Place]:
        """Where the lines of a row lie."""
        if index in self._more:
            return self._more[index]
        i = index - self._first
        if not 0 <= i < len(self._numbers) or self._numbers[i] == _NO_LINE:
            return []
        return [(self._files[self._numbers[i]], self._offsets[i], self._lengths[i])]

    def outcomes(self, index: int, end: int) -> Iterator[_Run | _Row]:
        """What is known of the rows from ``index`` up to ``end``, in order."""
        while index < end:
            stop = self._alike(index, min(end, index + _TOGETHER))
            if stop > index:
                yield from self._some(index, stop)
            else:
                stop = index + 1
                yield self._row(index)
            index = stop

    def _alike(self, index: int, end: int) -> int:
        """Up to where, from ``index`` on, rows have one line each, all in the same file."""
        few = slice(index - self._first, end - self._first)
        numbers = self._numbers[few]
        if numbers[0] < 0:
            return index
        if sum(self._lengths[few]) > _TOGETHER_BYTES and len(numbers) > 1:
            return self._alike(index, (index + end) // 2)
        if numbers == numbers[:1] * len(numbers):
            return end
        return index + next(i for i, number in enumerate(numbers) if number != numbers[0])

    def _some(self, index: int, end: int) -> Iterator[_Run | _Row]:
        """Rows with one line each in the same file: all at once, else those in between, at last each by itself."""
        run = self._run(index, end)
        if run is not None:
            yield run
        elif end - index <= _FEW:
            yield from map(self._row, range(index, end))
        else:
            for start in range(index, end, _FEW):
                yield from self._some(start, min(start + _FEW, end))

    def _run(self, index: int, end: int) -> _Run | None:
        file, lines = self._lines(index, end)
        if file.sheet and file.sheet.regular:  # what each costs is for itself to say
            return None
        found, check = self._results.provider_of(file.shard).decode_plain(lines), self._results._check
        if found is None or (check is not None and not all(map(_is_plain, map(check, found.texts)))):
            return None
        tokens = (found.input_tokens, found.output_tokens, found.cached_tokens, found.cache_write_tokens)
        return _Run(index, file, found, file.sheet.costs(*tokens) if file.sheet else [0] * len(lines), lines)

    def _lines(self, index: int, end: int) -> tuple[_WireFile, list[bytes]]:
        """The lines of rows that have one each, in the same file: one read if they lie close together."""
        few = slice(index - self._first, end - self._first)
        file, offsets, lengths = self._files[self._numbers[few.start]], self._offsets[few], self._lengths[few]
        low, high = min(offsets), max(map(add, offsets, lengths))
        if high - low <= 2 * sum(lengths):
            data = self._streams.read(file.stored, low, high - low)
            return file, [data[at - low : at - low + n] for at, n in zip(offsets, lengths, strict=True)]
        return file, [self._streams.read(file.stored, at, n) for at, n in zip(offsets, lengths, strict=True)]

    def _row(self, index: int) -> _Row:
        """One row; one that shares another's answer has that row's."""
        twin = self._twins.get(index, index)
        row = self.row(twin)
        return row if twin == index else msgspec.structs.replace(row, index=index)

    def row(self, index: int) -> _Row:
        """First success wins, in order of shards and files; else what the newest shard's accounting counted."""
        best: _Row | None = None
        cost = answers = 0
        for place in self._places(index):
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
            counts_lines = best.shard is not None and (best.shard.lane.is_live or best.shard.rung > 0)
            attempt = answers if counts_lines else best.attempt
            return msgspec.structs.replace(best, cost_nanos=cost, attempt=attempt)
        if index in self._open_rows:
            return _Row(index, None)
        return self._without_line(index)

    def _read(self, index: int, place: _Place) -> _Row | None:
        file, offset, length = place
        results, shard = self._results, file.shard
        line = self._streams.read(file.stored, offset, length)
        try:
            answer = results.provider_of(shard).decode(line)
        except ValueError:
            return None
        outcome = answer.outcome
        usage = outcome.usage
        if is_unstated(outcome):
            usage = estimated(outcome, results._sizes[file.number].tokens(index), shard.cap_tokens // shard.count)
        is_repaired = False
        if isinstance(outcome, Succeeded) and results._check is not None:
            outcome, is_repaired = _checked(outcome, usage, results._check)
        cost = file.sheet.cost(usage) if file.sheet and usage else 0
        kept = line if isinstance(outcome, Succeeded) else b""
        found = (shard, file.batch_id, usage, cost, file.attempt, answer.duration_s, kept, is_repaired)
        return _Row(index, outcome, *found)

    def _without_line(self, index: int) -> _Row:
        """A row that no result line names: the provider lost it, or it was never sent."""
        if self._unsent is None:
            self._unsent = {}
            for number, shard in enumerate(self._shards):
                if shard.lane is not Lane.CACHE and shard.last >= self._lowest and shard.first <= self._highest:
                    self._unsent.update((i, number) for i, _ in wire.shard_lines(self._results._store, shard))
        number = self._unsent.get(index, -1)
        newest = self._shards[number] if number >= 0 else None
        if index in self._bad:
            return _Row(index, Failed(FailureKind.INVALID_INPUT, self._bad[index]))
        if index in self._unanswered:
            return _Row(index, Failed(FailureKind.TIMEOUT, "sent, and no answer came that could be trusted"), newest)
        if newest is None or newest.lane.is_live or not any(s.state in _WENT_OUT for s in newest.submissions):
            return _Row(index, Failed(FailureKind.CANCELLED, "not sent: the job was cancelled or stopped"), newest)
        if not any(s.batch_id for s in newest.submissions):
            return _Row(index, Failed(FailureKind.MISSING, "written off: nobody knows whether it ran"), newest)
        kind = self._ends.get(newest.tag)
        if kind is None:
            kind = self._ends[newest.tag] = unanswered_in(newest, self._results.provider_of(newest))
        return _Row(index, Failed(kind, _UNANSWERED[kind]), newest)


def _wins(row: _Row, best: _Row) -> bool:
    """Whether a later line stands instead of an earlier one: the same rule as in the accounting of a shard."""
    if isinstance(best.outcome, Succeeded):
        return False
    is_try = row.shard is not best.shard or (row.shard is not None and row.shard.lane.is_live)
    return is_try or isinstance(row.outcome, Succeeded)


def _is_plain(checked: tuple[object, str | None]) -> bool:
    """Whether an answer fits the schema as it is."""
    value, error = checked
    return error is None and not isinstance(value, Repaired)


def _checked(outcome: Succeeded, usage: Usage | None, check: Check) -> tuple[Succeeded | Failed, bool]:
    """The outcome as the schema has it, and whether its value had to be repaired."""
    value, error = check(outcome.text)
    if error is not None:
        kind = FailureKind.INVALID_OUTPUT
        return Failed(kind, error, usage, outcome.text, outcome.finish_reason, outcome.model), False
    if isinstance(value, Repaired):
        return msgspec.structs.replace(outcome, parsed=value.json), True
    return outcome, False
