"""Planning: rows become requests, a quote, and shards on disk, in one pass and flat memory.

    source ─► rows.parquet (the input as taken)
          └─► bodies ─► digests ─► duplicates, cached answers
                    └─► shards ─► quote

Nothing here talks to a provider or writes to the ledger. A dry run runs this very code in a
folder that is thrown away.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import struct
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from nightmill import wire
from nightmill.answers import AnswerCache, Deduper, Folding, digests, salt
from nightmill.errors import CannotCarry, InputError, UsageError
from nightmill.files import GROUP_ROWS
from nightmill.ledger import NewShard, Shard, StoredFile
from nightmill.plan._behind import Behind, at_once
from nightmill.plan.asking import asked
from nightmill.plan.attaching import PACK, Pack, Packer, portions
from nightmill.plan.badrows import BadRows, bad_rows
from nightmill.plan.compiling import Compiled, Parameters, Said, content_of, endpoint_at, endpoint_of_body
from nightmill.plan.cutting import LIVE_BYTES, Bounds, Cutter, bounds, four_bytes_a_token
from nightmill.plan.first import First, FirstCutter
from nightmill.plan.keys import KeyWatch
from nightmill.plan.ladder import CLIMBS, Climb, Ladder, Rung, cut_rows
from nightmill.plan.prefixes import Prefix, burst_of, measured
from nightmill.pricing import PriceSheet, TokenFit
from nightmill.providers import FlexProvider, Provider
from nightmill.sources import KEY, Source, Taken, digest_batch
from nightmill.sources.inputs import OR_SKIP_ROWS
from nightmill.store import Store, Writer, digest_text, new_digest
from nightmill.tasks import TaskFunction
from nightmill.types import Lane, Quote, Usage, usd

__all__ = [
    "CLIMBS",
    "Bounds",
    "Climb",
    "Compiled",
    "Cutter",
    "First",
    "Ladder",
    "Order",
    "Parameters",
    "Plan",
    "Prefix",
    "Rung",
    "Said",
    "Scissors",
    "bad_rows",
    "bounds",
    "burst_of",
    "content_of",
    "cut_rows",
    "endpoint_at",
    "endpoint_of_body",
    "first_bodies",
    "four_bytes_a_token",
    "make_plan",
    "measured",
    "with_waves",
]

_SAMPLED_ROWS, _LONGEST_ROWS = 20, 2  # of every 5,000, for the token estimate: any, and the longest
_SHOWN = 5  # bad rows named in an error
_SNAPSHOT_BYTES = 4 << 20
_TWIN = struct.Struct("<qq")


@dataclass(frozen=True, slots=True)
class Order:
    """What to plan: everything is resolved, nothing is read yet."""

    source: Source
    provider: Provider
    compiled: Compiled
    lane: Lane
    sheet: PriceSheet
    list_sheet: PriceSheet  # the live standard price
    bounds: Bounds
    expect_tokens: int  # output tokens of a typical answer
    skip_bad: bool = False
    dedupe: bool = True
    cache: AnswerCache | None = None
    fingerprint_extra: tuple[str, ...] = ()
    function: TaskFunction | None = None  # what makes the requests of the rows, where the task is one
    held: PriceSheet | None = None  # what holds are counted by, where that is another sheet
    first: First | None = None  # rows that go out before all others, where there are many
    media: tuple[str, ...] = ()  # the columns that hold media
    candidates: tuple[str, ...] = ()  # the models that one was chosen from, each with its host; none: one was named
    prefix: Prefix | None = None  # what every request has cached
    steps: tuple[bytes, ...] = ()  # of the ladder, after which answers of earlier jobs count, too


_Attach = Callable[[Iterator[Taken]], Iterator[Taken]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What came of it; the files exist, the ledger does not know them yet."""

    job_id: str
    rows: int
    invalid: int  # rows of which no request can be made
    duplicates: int
    cached: int
    shards: tuple[NewShard, ...]
    files: tuple[StoredFile, ...]
    quote: Quote
    fingerprint: str
    first_request: bytes  # the first line that would be sent; empty when nothing is
    canary_last: int | None = None  # rows up to this one go out before all others; None: none do
    longest_tokens: int = 0  # of the longest request, about, where one of several models is to be chosen
    longest_weight: int = 0  # ... and at most


def make_plan(order: Order, store: Store, job_id: str) -> Plan:
    """Read the source once and write everything a job consists of under its folder.

    Raises:
        InputError, TaskError, CannotCarry, StoreError: nothing of the job is left then but files
        in its folder, which the caller drops.
    """
    return _Planner(order, store, job_id).run()


class _Planner:
    def __init__(self, order: Order, store: Store, job_id: str) -> None:
        self._order, self._store, self._job_id = order, store, job_id
        self._folder = store.job_folder(job_id)
        provider = order.provider
        self._salt = salt(provider.name, provider.model, provider.account.host)
        self._fit = TokenFit()
        self._longest = b""
        self._rows = 0
        self._rows_digest = new_digest()
        self._seqs = 0
        self._canary_last: int | None = None
        self._keys = KeyWatch()
        self._bad = BadRows(store, self._folder)

    def run(self) -> Plan:
        try:
            return self._run()
        except UsageError as error:
            if error.row is not None:
                error.at(self._order.source.places([error.row])[0])
            raise

    def _run(self) -> Plan:
        deduper = Deduper(self._store.path(f"{self._folder}/folding"))
        with self._packing() as (attach, packed):
            rows_file, shards = self._read_rows(deduper, attach)
        folding = deduper.finish(self._order.cache, dedupe=self._order.dedupe, steps=self._order.steps)
        files = [rows_file, *packed, *self._write_twins(folding), *filter(None, [self._bad.file()])]
        if folding.duplicates or folding.cached:
            shards = self._without_skipped(shards, folding, files)
        folding.close()
        self._store.drop_folder(f"{self._folder}/folding")
        compiled = self._order.compiled
        return Plan(
            self._job_id, self._rows, self._bad.count, folding.duplicates,
            sum(s.count for s in shards if s.lane is Lane.CACHE),
            tuple(shards), tuple(files), self._quote(shards), self._fingerprint(),
            self._first_request(shards), self._canary_last,
            sum(compiled.about_tokens(self._longest)) if self._longest else 0,
            compiled.weighs(self._longest) if self._longest else 0,
        )  # fmt: skip

    @contextmanager
    def _packing(self) -> Iterator[tuple[_Attach, list[StoredFile]]]:
        """What adds their media to rows, and the file that these lie in, once the block has ended."""
        order, packed = self._order, list[StoredFile]()
        pack = order.compiled.pack = Pack(self._store, self._folder)
        if not order.media:
            yield _as_they_are, packed
            return
        with self._store.create(f"{self._folder}/{PACK}") as out:
            yield Packer(order.media, order.compiled.columns, order.source.root, out, pack).attached, packed
        packed.append(StoredFile(out.ref, wire.MEDIA))

    # -- one pass over the rows ----------------------------------------------------------------

    def _read_rows(self, deduper: Deduper, attach: _Attach) -> tuple[StoredFile, list[NewShard]]:
        """Snapshot, encode, digest and cut every batch of the source, with what ``attach`` adds to it."""
        behind = Behind()
        cutter = self._cutter(behind.do)
        taken = self._order.source.taken()
        if self._order.function is not None:
            taken = asked(taken, self._order.function)
        beginning = next(taken := attach(taken))
        path = f"{self._folder}/rows.parquet"
        try:
            with self._bad, self._store.create(path) as out, _snapshot(out, beginning.batch.schema) as writer, behind:
                for some in chain([beginning], taken):
                    blanks = self._order.compiled.blanks(some.batch)
                    if blanks and not self._order.skip_bad:
                        self._refuse_blanks(some, taken)
                    behind.do(self._keep, writer, some.batch)
                    self._take(some, blanks, cutter, deduper)
                cutter.finish()
                behind.wait()
        except BaseException:
            cutter.abort()
            raise
        if self._bad.count == self._rows:
            self._refuse_all()
        self._canary_last = cutter.last
        return StoredFile(out.ref, wire.ROWS, first=0, last=self._rows - 1), cutter.close()

    def _refuse_all(self) -> NoReturn:
        bad = bad_rows(self._store, self._bad.file(), 0, _SHOWN)
        places = self._order.source.places(list(bad))
        why = "; ".join(
            why if place in why else f"{place}: {why}" for place, why in zip(places, bad.values(), strict=True)
        )
        raise InputError("no row is fit to be sent", why=why, fix="correct the input; nothing was sent")

    def _refuse_blanks(self, beginning: Taken, taken: Iterator[Taken]) -> NoReturn:
        """Name the first rows, from this batch on, that lack a value, and count them all."""
        first, count, shown = self._rows, 0, list[tuple[int, str]]()
        for some in chain([beginning], taken):
            blanks = self._order.compiled.blanks(some.batch)
            count += len(blanks)
            reasons = [(first + i, some.bad.get(i, f"no {', '.join(names)}")) for i, names in blanks.items()]
            shown += reasons[: _SHOWN - len(shown)]
            first += some.batch.num_rows
        places = self._order.source.places([row for row, _ in shown])
        named = "; ".join(f"{place}: {why}" for place, (_, why) in zip(places, shown, strict=True))
        more = f"; and {count - len(shown):,} more" if count > len(shown) else ""
        if (function := self._order.function) is not None:
            what, fix = f"rows of which {function.name} makes no request", "correct the function or the rows"
        else:
            what, fix = "rows without a value that the task needs", "fill them in or take them out of the input"
        raise InputError(what, why=named + more, fix=f"{fix}; {OR_SKIP_ROWS}; nothing was sent")

    def _keep(self, writer: pq.ParquetWriter, batch: pa.RecordBatch) -> None:
        writer.write_batch(batch)
        digest_batch(self._rows_digest, batch)

    def _take(self, some: Taken, blanks: Mapping[int, Sequence[str]], cutter: FirstCutter, deduper: Deduper) -> None:
        first = self._rows
        self._rows += some.batch.num_rows
        if self._order.source.has_keys:
            self._keys.add(some.texts.get(KEY) or some.batch.column(KEY).to_pylist())
        bad = {first + row: f"no {', '.join(names)}" for row, names in blanks.items()}
        bad.update((first + row, why) for row, why in some.bad.items())
        indexes, rows = _good(some, first, bad)
        for good, portion in portions(indexes, rows):
            self._send(good, portion, bad, cutter, deduper)
        if bad:
            self._bad.add(bad)

    def _send(
        self, indexes: Sequence[int], rows: Taken, bad: dict[int, str], cutter: FirstCutter, deduper: Deduper
    ) -> None:
        """Encode rows and cut them; those of which no request can be made are noted as ``bad``."""
        compiled = self._order.compiled
        bodies = compiled.bodies(rows.batch, indexes, rows.texts, bad if self._order.skip_bad else None)
        if indexes and indexes[0] == 0 and compiled.is_spliced:
            compiled.check(rows.batch, 0, bodies)
        if self._order.lane is Lane.FLEX:
            self._check_tier(indexes, bodies, bad)
        if self._order.skip_bad:
            bad.update(cutter.too_large(indexes, bodies))
        if bad:
            bodies = [body for index, body in zip(indexes, bodies, strict=True) if index not in bad]
            indexes = [index for index in indexes if index not in bad]
        self._sample(bodies)
        if self._order.candidates:
            self._longest = max([self._longest, *bodies], key=compiled.weighs)
        deduper.add_many(indexes, digests(self._salt, compiled.unmarked(bodies)))
        cutter.add(indexes, bodies, cap_tokens=compiled.cap_tokens, inputs=compiled.inputs)

    def _check_tier(self, indexes: Sequence[int], bodies: Sequence[bytes], bad: dict[int, str]) -> None:
        """Note what cannot be sent in the flex lane. Raises CannotCarry of a ``row`` where that is not asked for."""
        provider = self._order.provider
        if not isinstance(provider, FlexProvider):
            raise TypeError(f"{provider.name} has no flex lane")
        for index, body in zip(indexes, bodies, strict=True):
            if index not in bad:
                try:
                    provider.in_flex(self._order.compiled.url, body)
                except CannotCarry as error:
                    if not self._order.skip_bad:
                        error.row = index
                        raise
                    bad[index] = f"{error.what}: {error.why}"

    def _sample(self, bodies: Sequence[bytes]) -> None:
        """Learn how many tokens requests have, by what they weigh, from a few rows of each batch.

        Its longest are among them, and stand for themselves alone: a few of these may have most of all tokens.
        """
        compiled, step = self._order.compiled, max(1, len(bodies) // _SAMPLED_ROWS)
        sizes = list(map(len, bodies))
        longest = set(heapq.nlargest(_LONGEST_ROWS, range(len(bodies)), key=sizes.__getitem__))
        for row in {*range(0, len(bodies), step), *longest}:
            tokens = sum(compiled.about_tokens(bodies[row]))
            self._fit.add(compiled.weighs(bodies[row]), tokens, stands_for=1 if row in longest else step)

    def _tokens(self, weight: int, requests: int) -> int:
        """About as many input tokens as so many requests of that weight have together."""
        return math.ceil(self._fit.of(requests, weight))

    # -- duplicates and cached answers ---------------------------------------------------------

    def _write_twins(self, folding: Folding) -> list[StoredFile]:
        """Which row shares which row's answer, by rising row."""
        if not folding.duplicates:
            return []
        with self._store.create(f"{self._folder}/twins.bin") as out:
            for row, twin in folding.duplicate_pairs():
                out.write(_TWIN.pack(row, twin))
        return [StoredFile(out.ref, wire.TWINS)]

    def _without_skipped(self, shards: list[NewShard], folding: Folding, files: list[StoredFile]) -> list[NewShard]:
        """Cut again, without the rows that need not be sent; the first cut's files go."""
        cached, lost = self._write_cached(folding)
        if cached is not None:
            files.append(StoredFile(cached.file, wire.CACHED, cached.tag, first=cached.first, last=cached.last))
        cutter = self._cutter()
        for shard in shards:
            with self._store.open(shard.file) as stream:
                for chunk in _chunks(wire.split_lines(stream, shard.tag)):
                    kept = [(i, wire.body_of(line)) for i, line in chunk if i in lost or not folding.skips(i)]
                    if kept:
                        cap, inputs = shard.cap_tokens // shard.count, self._order.compiled.inputs
                        cutter.add([i for i, _ in kept], [body for _, body in kept], cap_tokens=cap, inputs=inputs)
            self._store.path(shard.file.path).unlink()
        cut = cutter.close()
        self._canary_last = cutter.last
        return ([cached] if cached else []) + cut

    def _write_cached(self, folding: Folding) -> tuple[NewShard | None, set[int]]:
        """Copy the cached answers into the job, so that losing the cache costs nothing; which were gone."""
        cache = self._order.cache
        lost: set[int] = set()
        if not folding.cached or cache is None:
            return None, lost
        tag, decode = self._next_tag(), self._order.provider.decode
        first = last = -1
        count = 0
        with self._store.create(f"{self._folder}/wire/cached.{tag}.jsonl") as out:
            for row, hit in folding.cached_hits():
                line = cache.read(hit)
                if line is not None:
                    line = _renamed(line, decode(line).custom_id, f"{tag}-{row}")
                if line is None:
                    lost.add(row)
                    continue
                out.write(line + b"\n")
                first = row if first < 0 else first
                last, count = row, count + 1
        if not count:
            return None, lost
        seq = int(tag.rpartition("-")[2])
        return NewShard(tag, seq, Lane.CACHE, first, last, count, 0, 0, 0, out.ref), lost

    # -- the whole ----------------------------------------------------------------------------

    def _cutter(self, do: Callable[..., None] = at_once) -> FirstCutter:
        order, first = self._order, self._order.first

        def cutter(lane: Lane, bounds: Bounds, sheet: PriceSheet) -> Cutter:
            pieces = order.provider.line_pieces(order.compiled.url)
            return Cutter(self._store, self._folder, lane, bounds, sheet, 0, pieces, self._next_tag, self._tokens, do,
                          order.compiled.weighs)  # fmt: skip

        rest = cutter(order.lane, order.bounds, order.held or order.sheet)
        return FirstCutter(rest, cutter(first.lane, first.bounds, first.sheet) if first else None, first)

    def _next_tag(self) -> str:
        self._seqs += 1
        return f"{self._job_id}-{self._seqs - 1}"

    def _quote(self, shards: Sequence[NewShard]) -> Quote:
        order = self._order
        sent = [s for s in shards if s.lane is not Lane.CACHE]
        requests = sum(s.count for s in sent)
        tokens_in = self._tokens(sum(s.content_bytes for s in sent), requests)
        expected = min(order.expect_tokens, max((s.cap_tokens // s.count for s in sent), default=0))
        each = Usage(-(-tokens_in // max(1, requests)), expected, flex=True)
        ahead = sum(s.count for s in sent if s.lane is not order.lane)  # a canary, live
        at_most = sum(
            (order.held or order.sheet if s.lane is order.lane else order.list_sheet).worst(
                s.content_bytes, s.count, s.cap_tokens
            )
            for s in sent
        )
        cost = order.sheet.cost(each) * (requests - ahead) + order.list_sheet.cost(each) * ahead
        notes = list(order.compiled.notes)
        if order.prefix is not None:
            cost += self._cached(order.prefix, each, requests - ahead, ahead, notes)
        if not order.sheet.batch_known:
            notes.append("the batch price is not known: counted at the standard price")
        if repeated := self._keys.repeated():
            notes.append(f"rows with the key of an earlier row: {repeated:,}; all are kept")
        source = f"{order.sheet.source}, {order.sheet.date}"
        return Quote(order.lane, requests, tokens_in, expected * requests, cost,
                     at_most, order.list_sheet.cost(each) * requests, 1, source, tuple(notes))  # fmt: skip

    def _cached(self, prefix: Prefix, each: Usage, requests: int, ahead: int, notes: list[str]) -> int:
        """What caching is expected to add to the cost, less than nothing where it saves; says so in ``notes``."""
        hits = prefix.hits(requests)
        order = self._order
        more = (order.sheet.cost(prefix.of(each, hits)) - order.sheet.cost(each)) * requests
        more += (order.list_sheet.cost(prefix.of(each, Fraction(0))) - order.list_sheet.cost(each)) * ahead
        whence = "measured" if prefix.measured is not None else "expected" if prefix.burst else "the least documented"
        does = f"saves about ${usd(-more):.6f}" if more < 0 else f"costs about ${usd(more):.6f}"
        notes.append(
            f"prompt cache: all prompts begin with the same {prefix.tokens:,} tokens or so, which is cached; "
            f"{float(hits):.0%} of requests find it ({whence}): {does}"
        )
        return more

    def _fingerprint(self) -> str:
        order = self._order
        whole = hashlib.blake2b(digest_size=16)
        by_whom = order.candidates or (order.provider.name, order.provider.model, order.provider.account.host)
        whole.update(msgspec.json.encode([digest_text(self._rows_digest), *by_whom, *order.fingerprint_extra]))
        whole.update(order.compiled.asked_text if order.candidates else order.compiled.digest_text)
        return whole.hexdigest()

    def _first_request(self, shards: Sequence[NewShard]) -> bytes:
        for shard in shards:
            if shard.lane is not Lane.CACHE:
                with self._store.open(shard.file) as stream:
                    return stream.readline()
        return b""


def first_bodies(order: Order, rows: pa.RecordBatch) -> list[bytes]:
    """The bodies of some rows of the source as they were read; those that lack a value are left out.

    Raises:
        InputError, TaskError, CannotCarry, StoreError: of a row no request can be made.
    """
    compiled = order.compiled
    with tempfile.TemporaryDirectory(prefix="nightmill-look-", ignore_cleanup_errors=True) as folder:
        taken, store = Taken(rows), Store(Path(folder))
        pack = compiled.pack = Pack(store, "look")
        if order.media:
            with store.create(f"look/{PACK}") as out:
                packer = Packer(order.media, compiled.columns, order.source.root, out, pack)
                taken = next(packer.attached(iter([taken])))
        blank = compiled.blanks(taken.batch)
        whole = taken.batch.take(pa.array([i for i in range(taken.batch.num_rows) if i not in blank], pa.int64()))
        return compiled.bodies(whole, range(whole.num_rows), None, {} if order.skip_bad else None)


def _as_they_are(taken: Iterator[Taken]) -> Iterator[Taken]:
    return taken


def _good(some: Taken, first: int, bad: Container[int]) -> tuple[Sequence[int], Taken]:
    """The rows that are not ``bad``, and their indexes; the first of all being ``first``."""
    every = range(first, first + some.batch.num_rows)
    good = [index - first for index in every if index not in bad] if bad else every
    if len(good) == len(every):
        return every, some
    texts = {name: [values[row] for row in good] for name, values in some.texts.items()}
    return [first + row for row in good], Taken(some.batch.take(pa.array(good, pa.int64())), texts)


@contextmanager
def _snapshot(out: Writer, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Values of rows hardly repeat and are never searched: no dictionaries, no statistics; a quick compression.

    It is written a few megabytes at a time: the thread that writes has to wait for the interpreter each time.
    """
    file = pa.BufferedOutputStream(pa.PythonFile(out, mode="w"), _SNAPSHOT_BYTES)
    try:
        with pq.ParquetWriter(
            file, schema, compression="snappy", use_dictionary=False, write_statistics=False
        ) as writer:
            yield writer
        file.flush()
    finally:
        with suppress(OSError):  # it writes what is left, and the disk may be the trouble
            file.close()


def _chunks(lines: Iterator[tuple[int, bytes]], size: int = GROUP_ROWS) -> Iterator[list[tuple[int, bytes]]]:
    chunk: list[tuple[int, bytes]] = []
    for item in lines:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _renamed(line: bytes, old: str, new: str) -> bytes | None:
    """A result line under another custom_id; None where its own cannot be found in it."""
    name = b'"%b"' % old.encode()
    if name not in line:
        try:
            line = msgspec.json.encode(msgspec.json.decode(line))  # it was written in escapes
        except msgspec.DecodeError:
            return None
    return line.replace(name, b'"%b"' % new.encode(), 1) if name in line else None


@dataclass(frozen=True, slots=True)
class Scissors:
    """Cuts requests that were in one shard into new shards, with tags of their own."""

    store: Store
    provider: Provider
    url: str  # endpoint of the requests
    sheet: PriceSheet
    take_seqs: Callable[[int], int]  # reserves shard numbers in the ledger; the first of them

    def again(self, shard: Shard, rows: Container[int], *, most: int = 0, lane: Lane | None = None) -> list[NewShard]:
        """The requests of ``rows`` in shards of at most ``most`` requests (0: all in one), in ``lane`` or as they were.

        What happened to the rows before stays with the new shards.
        """

        def tokens(weight: int, _: int) -> int:
            return -(-weight * shard.input_tokens // max(1, shard.content_bytes))

        def tag() -> str:
            return f"{shard.job_id}-{self.take_seqs(1)}"

        bounds = Bounds(most or shard.count, LIVE_BYTES if lane is Lane.LIVE else 0, None)
        cutter = Cutter(
            self.store, self.store.job_folder(shard.job_id), lane or shard.lane, bounds,
            self.sheet, shard.cap_tokens // shard.count, self.provider.line_pieces(self.url), tag, tokens,
            weigh=lambda body: self.provider.weigh(body).most,
        )  # fmt: skip
        for chunk in _chunks(item for item in wire.shard_lines(self.store, shard) if item[0] in rows):
            cutter.add([i for i, _ in chunk], [wire.body_of(line) for _, line in chunk])
        history: dict[str, Any] = {"attempt": shard.attempt, "expiries": shard.expiries, "missings": shard.missings,
                   "splits": shard.splits, "rung": shard.rung}  # fmt: skip
        return [replace(new, **history) for new in cutter.close()]


def with_waves(quote: Quote, free_nanos: int | None) -> Quote:
    """The quote with the rounds of holding and settling that ``free_nanos`` forces."""
    if free_nanos is None or quote.at_most_nanos <= max(free_nanos, 0) or free_nanos <= 0:
        return quote
    return replace(quote, waves=min(quote.requests, -(-quote.at_most_nanos // free_nanos)))
