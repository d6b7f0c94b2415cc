"""The truth about one shard: every request ends in exactly one of five ways, every cent is booked.

``sent = succeeded + failed + missing + expired + cancelled``; extra answers and unknown ids stand
beside. First success wins, in file order, output before error; the usage of every answer is paid.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from nightmill.ledger import Booking, Counts, Shard, Submission, SubmissionState
from nightmill.plan import CLIMBS, Said
from nightmill.pricing import PriceSheet
from nightmill.providers import BatchProvider, PlainAnswers, Provider
from nightmill.store import Store
from nightmill.tasks import Repaired
from nightmill.types import ATTEMPTS, RETRYABLE, Failed, FailureKind, Lane, Outcome, Succeeded, Usage, usd
from nightmill.wire import JOURNAL, body_of, bunches, chosen, is_sent_mark, read_mark, sent_id, shard_lines

log = logging.getLogger(__name__)

Check = Callable[[str], "tuple[object, str | None]"]

SUCCEEDED = "succeeded"
_UNEXPECTED, _OPEN, _SUCCEEDED = 0, 1, 2
_KINDS = tuple(FailureKind)
_EXPIRIES = 3  # a row that expired in so many submissions is final
_MISSINGS = 1  # a row that is missing is sent so many times more
_MOST_DIGITS = 18  # of a row's number
_FEW = 16  # lines that are decoded in one go where one of a bunch is no plain answer
_AT_ONCE_BYTES = 4 << 20  # of a live journal that is held whole; answers may be large
_CODE = {kind: 3 + i for i, kind in enumerate(_KINDS)}
_CLIMBING = frozenset(_CODE[kind] for kind in CLIMBS)


class BodySizes:
    """What each request's body in a shard weighs (its bytes, if it has no media), read when first asked for."""

    def __init__(self, store: Store, shard: Shard, provider: Provider) -> None:
        self._store, self._shard, self._provider = store, shard, provider
        self._sizes: array[int] | None = None

    def __getitem__(self, index: int) -> int:
        if self._sizes is None:
            self._sizes = array("q", bytes(8 * (self._shard.last - self._shard.first + 1)))
            for row, line in shard_lines(self._store, self._shard):
                self._sizes[row - self._shard.first] = self._provider.weigh(body_of(line)).most
        return self._sizes[index - self._shard.first]

    def tokens(self, index: int) -> int:
        """About as many tokens, at four bytes each."""
        return -(-self[index] // 4)


def is_unstated(outcome: Outcome) -> bool:
    """Whether an answer was billed without a word of how much."""
    usage = outcome.usage
    return isinstance(outcome, Succeeded) if usage is None else usage.estimated


def estimated(outcome: Outcome, input_tokens: int, cap_tokens: int) -> Usage:
    """Usage where the provider gave none: four bytes a token, the last resort.

    What came of a failure is not all that was billed, so it counts as if its cap had been used up.
    """
    said = -(-len((outcome.text or "").encode()) // 4)
    return Usage(input_tokens, said if isinstance(outcome, Succeeded) else max(said, cap_tokens), estimated=True)


@dataclass(slots=True)
class Accounting:
    """What the lines of one shard add up to."""

    shard: Shard
    seen: bytearray  # by row - first: not of this shard, open, succeeded, or a failure's code
    lines: dict[int, int] = field(default_factory=dict)  # good lines by submission
    answered: dict[int, int] = field(default_factory=dict)  # lines with an answer by submission
    again: dict[int, int] = field(default_factory=dict)  # of the good lines, those beyond one a row
    beside: dict[int, int] = field(default_factory=dict)  # of the answered ones, those beyond one a row
    spent: dict[int, int] = field(default_factory=dict)  # nanos by submission, proven
    repeated: dict[int, int] = field(default_factory=dict)  # nanos of lines that say the same again: billed or not
    list_nanos: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_written: int = 0  # to a provider's cache
    caching_nanos: int = 0  # what its caches took off what was paid
    extra_answers: int = 0
    differing: int = 0
    unknown_ids: int = 0
    garbled: int = 0
    models: set[str] = field(default_factory=set)
    unproven_rows: list[int] = field(default_factory=list)  # live: one entry a send that may have been billed
    unanswered: FailureKind = FailureKind.MISSING  # what a request without any line is
    repaired: set[int] = field(default_factory=set)  # places whose answer is as repair made it
    said: dict[int, Said] | None = None  # by row: what does not fit the schema, where that is to be kept
    tries: Counter[int] = field(default_factory=Counter)  # flex: by row, those that came to an end

    def word(self, index: int) -> str:
        """How the request of row ``index`` ended: ``succeeded``, or the kind of its failure."""
        code = self.seen[index - self.shard.first]
        if code == _SUCCEEDED:
            return SUCCEEDED
        kind = self.unanswered if code == _OPEN else _KINDS[code - _CODE[_KINDS[0]]]
        if kind is FailureKind.CANCELLED and not self.shard.cancel_requested:  # somebody else did: as good as expired
            kind = FailureKind.EXPIRED
        return kind.value

    def differing_from(self, before: Accounting) -> list[int]:
        """Rows that end otherwise here than in another accounting of the same shard."""
        pairs = zip(before.seen, self.seen, strict=True)
        return [self.shard.first + i for i, (was, now) in enumerate(pairs) if was != now]

    def rows(self, *codes: int) -> Iterator[int]:
        wanted = set(codes)
        first = self.shard.first
        return (first + i for i, code in enumerate(self.seen) if code in wanted)

    def rows_that(self, *kinds: FailureKind) -> Iterator[int]:
        """Rows whose request ended so, those without any line included where that is what they are."""
        return self.rows(*(_CODE[kind] for kind in kinds), *((_OPEN,) if self.unanswered in kinds else ()))

    def climbing(self) -> dict[int, Said]:
        """Rows whose answer another step of the ladder may better, and what they were answered."""
        said = self.said or {}
        return {row: said[row] for row in self.rows(*_CLIMBING) if row in said}

    def kind_of(self, row: int) -> FailureKind:
        """How the request of a row failed that did, with a line."""
        return _KINDS[self.seen[row - self.shard.first] - _CODE[_KINDS[0]]]

    def count(self, kind: FailureKind) -> int:
        return self.seen.count(_CODE[kind]) + (self.open if kind is self.unanswered else 0)

    @property
    def succeeded(self) -> int:
        return self.seen.count(_SUCCEEDED)

    @property
    def open(self) -> int:
        """Requests without any line."""
        return self.seen.count(_OPEN)

    def failed_kinds(self) -> dict[FailureKind, int]:
        apart = (FailureKind.EXPIRED, FailureKind.CANCELLED, FailureKind.MISSING)
        return {kind: n for kind in _KINDS if kind not in apart and (n := self.count(kind))}


def account(
    store: Store, shard: Shard, provider: Provider, sheet: PriceSheet, list_sheet: PriceSheet, check: Check | None,
    *, keep_said: bool = False,
) -> Accounting:  # fmt: skip
    """Read every result line of ``shard`` and add up what it says.

    ``keep_said``: also what answers that do not fit the schema said, in memory: at most what came back for the shard.
    """
    acc = Accounting(shard, _expected(store, shard), unanswered=unanswered_in(shard, provider))
    acc.said = {} if keep_said else None
    sizes = BodySizes(store, shard, provider)
    hashes = array("q", bytes(8 * len(acc.seen)))
    n, earlier = -1, b""
    for file in chosen(shard.files):
        pending: set[str] = set()
        lost: list[str] = []
        if file.n != n:  # another submission of the shard: it may have run the same rows
            n, earlier = file.n, b"" if n < 0 else bytes(acc.seen)
        reader = _Reader(acc, provider, sheet, list_sheet, check, sizes, hashes, n, earlier)
        if file.kind == JOURNAL:
            reader.read_journal(bunches(store, file), pending, lost)
        else:
            for some in bunches(store, file):
                reader.read(some)
        for custom_id in (*pending, *lost):
            if (index := index_of(custom_id, shard)) is not None:
                acc.unproven_rows.append(index)
                _note_lost(acc, index - shard.first)
    return acc


def unanswered_in(shard: Shard, provider: Provider) -> FailureKind:
    """What a request is that no batch of the shard has a line for: missing, unless each of them handed nothing back.

    A batch beside the shard's own was cancelled by us: that is no word of how its own ended.
    """
    if shard.lane.is_live:  # never sent
        return FailureKind.CANCELLED
    if shard.lane is not Lane.BATCH or not isinstance(provider, BatchProvider):
        return FailureKind.MISSING
    ended = [sub for sub in shard.submissions if sub.batch_id and sub.state is not SubmissionState.GONE]
    kinds = {provider.unanswered(sub.status or "") for sub in ended} or {FailureKind.MISSING}
    order = (FailureKind.MISSING, FailureKind.EXPIRED, FailureKind.CANCELLED)
    return next(kind for kind in order if kind in kinds)


def _note_lost(acc: Accounting, place: int) -> None:
    if acc.shard.lane is Lane.FLEX:
        acc.tries[acc.shard.first + place] += 1
    if acc.seen[place] == _OPEN:
        acc.seen[place] = _CODE[FailureKind.TIMEOUT]


def _expected(store: Store, shard: Shard) -> bytearray:
    width = shard.last - shard.first + 1
    if width == shard.count:
        return bytearray([_OPEN]) * width
    seen = bytearray(width)
    for index, _ in shard_lines(store, shard):
        seen[index - shard.first] = _OPEN
    return seen


def index_of(custom_id: str, shard: Shard) -> int | None:
    """The row whose request has that name; None for a name that is not of ``shard``."""
    tag, _, index = custom_id.rpartition("-")
    return int(index) if tag == shard.tag and is_row(index) else None


def is_row(digits: str | bytes) -> bool:
    """Whether it is a row's number; `int` refuses what has thousands of digits."""
    return digits.isdigit() and digits.isascii() and len(digits) <= _MOST_DIGITS


class _Reader:
    """Adds the lines of one submission's files to an accounting. The hot loop of collecting."""

    def __init__(
        self, acc: Accounting, provider: Provider, sheet: PriceSheet, list_sheet: PriceSheet,
        check: Check | None, sizes: BodySizes, hashes: array[int], n: int, earlier: bytes,
    ) -> None:  # fmt: skip
        self.acc, self.n = acc, n
        self._earlier = earlier  # `seen` as the submissions before left it; empty for the first
        self._also_here: set[int] = set()  # places that an earlier submission had a line for, and this one too
        self._provider, self._check, self._sizes, self._hashes = provider, check, sizes, hashes
        self._sheet, self._list_sheet = sheet, list_sheet
        self._cached = acc.shard.lane is Lane.CACHE
        self._cap = acc.shard.cap_tokens // acc.shard.count
        self._usages: list[Usage] = []  # to be paid, many at once

    def read(self, lines: list[bytes]) -> None:
        """Add lines: all at once if they are plain answers, else those in between, at last each by itself."""
        if self._check is not None or self._sheet.regular:  # then each answer says by which tier it was given
            self.read_each(lines)
            return
        answers = self._provider.decode_plain(lines)
        if answers is not None and self._take_all(answers):
            return
        if len(lines) <= _FEW:
            self.read_each(lines)
            return
        for start in range(0, len(lines), _FEW):
            self.read(lines[start : start + _FEW])

    def _take_all(self, answers: PlainAnswers) -> bool:
        """`_take` for the first answers of so many rows; False, and nothing is taken, if they are anything else."""
        acc, n, seen, hashes, prefix = self.acc, self.n, self.acc.seen, self._hashes, self.acc.shard.tag + "-"
        skip, first = len(prefix), acc.shard.first
        digits = [custom_id[skip:] for custom_id in answers.custom_ids if custom_id.startswith(prefix)]
        if len(digits) < len(answers.custom_ids) or not all(map(is_row, digits)):
            return False
        places = [int(index) - first for index in digits]
        if min(places) < 0 or max(places) >= len(seen) or len(set(places)) < len(places):
            return False
        if {seen[place] for place in places} != {_OPEN}:
            return False
        for place, said in zip(places, map(hash, answers.texts), strict=True):
            seen[place] = _SUCCEEDED
            hashes[place] = said
        acc.models.update(model for model in set(answers.models) if model)
        acc.lines[n] = acc.lines.get(n, 0) + len(places)
        acc.answered[n] = acc.answered.get(n, 0) + len(places)
        fresh = (answers.input_tokens, answers.output_tokens)
        caches = (answers.cached_tokens, answers.cache_write_tokens)
        is_cached = any(answers.cached_tokens) or any(answers.cache_write_tokens)
        acc.list_nanos += self._list_sheet.sum_of_costs(*fresh)
        if not self._cached:
            acc.calls += len(places)
            acc.tokens_in += sum(answers.input_tokens)
            acc.tokens_out += sum(answers.output_tokens)
            acc.tokens_cached += sum(answers.cached_tokens)
            spent = self._sheet.sum_of_costs(*fresh, *caches) if is_cached else self._sheet.sum_of_costs(*fresh)
            acc.spent[n] = acc.spent.get(n, 0) + spent
            if is_cached:
                acc.tokens_written += sum(answers.cache_write_tokens)
                acc.caching_nanos += self._sheet.sum_of_costs(*fresh) - spent
        return True

    def read_journal(self, lists: Iterator[list[bytes]], pending: set[str], lost: list[str]) -> None:
        """Add the answers of a live journal and note its marks: all at once if it is short, and each row plain."""
        every, size = list[bytes](), 0
        while size <= _AT_ONCE_BYTES and (some := next(lists, None)) is not None:
            every += some
            size += sum(map(len, some))
        one_by_one = size > _AT_ONCE_BYTES or self._check is not None or self._sheet.regular
        if one_by_one or not self._take_journal(every, pending):
            stream = chain(every, chain.from_iterable(lists))
            self.read_each((line for line in stream if not read_mark(line, pending, lost)), pending)

    def _take_journal(self, every: list[bytes], pending: set[str]) -> bool:
        """A whole journal in which every row was sent once, and answered plainly or not; False, and nothing is taken,
        if it is any other."""
        marks = [line for line in every if is_sent_mark(line)]
        sent = set(map(sent_id, marks))
        if len(sent) < len(marks):
            return False
        plain = self._provider.decode_plain([line for line in every if not is_sent_mark(line)])
        if plain is None or not self._take_all(plain):
            return False
        pending.update(sent.difference(plain.custom_ids))
        return True

    def read_each(self, stream: Iterable[bytes], pending: set[str] | None = None) -> None:
        """Add lines one by one. ``pending``: the marks of a live journal that answers end."""
        acc, seen, decode = self.acc, self.acc.seen, self._provider.decode
        first, width, prefix = acc.shard.first, len(acc.seen), acc.shard.tag + "-"
        skip, good = len(prefix), 0
        for line in stream:
            try:
                answer = decode(line)
            except ValueError:
                if line.strip():
                    acc.garbled += 1
                continue
            custom_id, outcome = answer.custom_id, answer.outcome
            if pending is not None:
                pending.discard(custom_id)
            digits = custom_id[skip:]
            place = int(digits) - first if is_row(digits) and custom_id.startswith(prefix) else -1
            if not 0 <= place < width or not seen[place]:
                self._unknown(outcome)
                continue
            good += 1
            self._take(place, outcome)
        self._settle()
        acc.lines[self.n] = acc.lines.get(self.n, 0) + good

    def _take(self, place: int, outcome: Outcome) -> None:
        acc, before = self.acc, self.acc.seen[place]
        text, usage = outcome.text or "", outcome.usage
        if acc.shard.lane is Lane.FLEX:
            acc.tries[acc.shard.first + place] += 1
        code, fault, is_repaired = self._judged(outcome)
        if is_unstated(outcome):
            usage = estimated(outcome, self._sizes.tokens(acc.shard.first + place), self._cap)
        if outcome.model:
            acc.models.add(outcome.model)
        says_it_again = before == code and self._hashes[place] == hash(text)
        is_first = before == _OPEN or self._is_first_here(place)
        if before == _OPEN:
            acc.seen[place] = code
            self._hashes[place] = hash(text)
        else:
            self._again(place, code, before, text)
        if is_repaired and before != _SUCCEEDED:
            acc.repaired.add(place)
        if acc.said is not None and code in _CLIMBING:
            acc.said[acc.shard.first + place] = Said(text, fault)
        if not is_first:
            acc.again[self.n] = acc.again.get(self.n, 0) + 1
        if usage is not None:
            self._pay(usage, is_first=is_first, says_it_again=says_it_again)

    def _judged(self, outcome: Outcome) -> tuple[int, str, bool]:
        """The code of an outcome, what is wrong with its answer, and whether it is right only since repair."""
        if isinstance(outcome, Failed):
            return _CODE[outcome.kind], outcome.message, False
        if self._check is None:
            return _SUCCEEDED, "", False
        value, fault = self._check(outcome.text)
        if fault is not None:
            return _CODE[FailureKind.INVALID_OUTPUT], fault, False
        return _SUCCEEDED, "", isinstance(value, Repaired)

    def _is_first_here(self, place: int) -> bool:
        """Whether a row that has a line has it from another submission of the shard."""
        if not self._earlier or self._earlier[place] == _OPEN or place in self._also_here:
            return False
        self._also_here.add(place)
        return True

    def _pay(self, usage: Usage, *, is_first: bool, says_it_again: bool) -> None:
        """An answer costs what it says; the same line twice in one batch may have been billed once only."""
        acc, n = self.acc, self.n
        if says_it_again and not is_first and acc.shard.lane is Lane.BATCH:
            acc.repeated[n] = acc.repeated.get(n, 0) + self._sheet.cost(usage)
            return
        if not is_first:
            acc.beside[n] = acc.beside.get(n, 0) + 1
        self._usages.append(usage)

    def _again(self, place: int, code: int, before: int, text: str) -> None:
        """Another line for a row that has one: in a live journal a later try, else an extra answer."""
        acc = self.acc
        if not acc.shard.lane.is_live or before == _SUCCEEDED:
            acc.extra_answers += 1
            if before == code == _SUCCEEDED and self._hashes[place] != hash(text):
                acc.differing += 1
        if before != _SUCCEEDED and (code == _SUCCEEDED or acc.shard.lane.is_live):
            acc.seen[place] = code
            self._hashes[place] = hash(text)

    def _settle(self) -> None:
        """Pay for the answers read since the last time."""
        acc, usages = self.acc, self._usages
        if not usages:
            return
        acc.answered[self.n] = acc.answered.get(self.n, 0) + len(usages)
        fresh = [usage.fresh for usage in usages]
        acc.list_nanos += self._list_sheet.total(fresh)
        if not self._cached:
            acc.calls += len(usages)
            acc.tokens_in += sum([usage.input_tokens for usage in usages])
            acc.tokens_out += sum([usage.output_tokens for usage in usages])
            cached, written = (
                sum([getattr(u, name) for u in usages]) for name in ("cached_tokens", "cache_write_tokens")
            )
            acc.tokens_cached += cached
            acc.tokens_written += written
            spent = self._sheet.total(usages)
            acc.caching_nanos += self._sheet.total(fresh) - spent if cached or written else 0
            acc.spent[self.n] = acc.spent.get(self.n, 0) + spent
        usages.clear()

    def _unknown(self, outcome: Outcome) -> None:
        """An id that is not of this shard: kept on disk, counted, and paid for if it has usage."""
        acc = self.acc
        acc.unknown_ids += 1
        if outcome.usage is not None and not outcome.usage.estimated:
            acc.beside[self.n] = acc.beside.get(self.n, 0) + 1
            self._usages.append(outcome.usage)


def bookings(acc: Accounting, sheet: PriceSheet, sizes: BodySizes) -> tuple[Booking, ...]:
    """What each submission of the shard cost, and what nobody can prove it did not."""
    shard, made = acc.shard, []
    cap = shard.cap_tokens // shard.count
    for sub in shard.submissions:
        if sub.state is SubmissionState.GONE:
            continue
        if sub.hold_nanos == 0 and sub.spent_nanos == 0 and sub.n not in acc.lines and sub.batch_id is None:
            continue
        proven = acc.spent.get(sub.n, 0)
        if shard.lane is Lane.BATCH:
            doubtful = without_answer(acc, sub, sizes)
        else:
            doubtful = acc.unproven_rows if sub.n == shard.submission else []
        unproven = sheet.worst(sum(sizes[i] for i in doubtful), len(doubtful), cap * len(doubtful)) if doubtful else 0
        most = sub.hold_nanos
        if sub.state is SubmissionState.BOOKED:  # its hold is gone: it was this
            most = sheet.worst(shard.content_bytes, shard.count, shard.cap_tokens)
        room = most - proven
        if shard.lane is Lane.BATCH and most and room >= 0:
            unproven = min(unproven, room)
        unproven += acc.repeated.get(sub.n, 0)
        calls = acc.calls if sub.n == shard.submission else 0
        made.append(Booking(sub.n, proven + unproven, unproven, calls))
    return tuple(made)


def without_answer(acc: Accounting, sub: Submission, sizes: BodySizes) -> list[int]:
    """Rows that a batch may have run though it brought no answer: no more than its own totals leave room for.

    Where nobody knows which rows they are, they are the largest.
    """
    n = sub.n
    lacking = acc.shard.count - acc.lines.get(n, 0) + acc.again.get(n, 0) if sub.batch_id else 0
    if sub.completed is not None:
        lacking = min(lacking, sub.completed - acc.answered.get(n, 0) + acc.beside.get(n, 0))
    if lacking <= 0:
        return []
    others = any(line_n != n for line_n in acc.lines)
    rows = acc.rows(_OPEN, *(_SUCCEEDED, *_CODE.values()) if others else ())
    return sorted(rows, key=sizes.__getitem__, reverse=True)[:lacking]


def alerts_of(acc: Accounting) -> list[tuple[str, str]]:
    """``(kind, text)`` of what a person should look at."""
    found, shard = [], acc.shard
    if acc.differing:
        found.append(("answers_differ", f"requests of {shard.tag} answered twice, differently: {acc.differing:,}"))
    if acc.unknown_ids:
        found.append(("unknown_ids", f"lines for {shard.tag} that name requests it did not hold: {acc.unknown_ids:,}"))
    if acc.garbled:
        found.append(("unreadable_lines", f"lines for {shard.tag} that nobody can read, left out: {acc.garbled:,}"))
    over = sum(acc.spent.values()) - sum(s.hold_nanos + s.unproven_nanos for s in shard.submissions)
    if over > 0 and any(s.hold_nanos for s in shard.submissions):
        found.append(("over_worst_case", f"{shard.tag} cost ${usd(over):.9f} more than its worst case"))
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a shard's requests ended, and which of them go out again."""

    counts: Counts
    resend: dict[str, list[int]]  # "failed", "expired", "missing" -> row indexes, those that climb the ladder not
    failures: dict[str, int]  # final failures by kind


def verdict(acc: Accounting, *, stopping: bool, urgent: bool = False, climbed: Collection[int] = ()) -> Verdict:
    """Decide what is final.

    ``stopping``: the job was cancelled or stopped, nothing goes out again. ``urgent``: rows go out live, where none
    expires. ``climbed``: rows with an answer that does not fit, which are asked again on the next step of the ladder.
    """
    shard = acc.shard
    kinds = acc.failed_kinds()
    expired, cancelled = acc.count(FailureKind.EXPIRED), acc.count(FailureKind.CANCELLED)
    missing = acc.count(FailureKind.MISSING)
    resend: dict[str, list[int]] = {}
    if not stopping:
        again = [_CODE[kind] for kind in kinds if kind in RETRYABLE]
        if again and shard.lane is Lane.BATCH and shard.attempt < ATTEMPTS:
            resend["failed"] = list(acc.rows(*again))
        elif again and shard.lane is Lane.FLEX:  # cut short by a deadline: the tries that are left are live ones
            resend["failed"] = [row for row in acc.rows(*again) if acc.tries[row] <= ATTEMPTS - shard.attempt]
        if (urgent or shard.lane is Lane.FLEX or shard.expiries + 1 < _EXPIRIES) and expired + cancelled:
            resend["expired"] = list(acc.rows_that(FailureKind.EXPIRED, FailureKind.CANCELLED))
        if shard.missings < _MISSINGS and missing:
            resend["missing"] = list(acc.rows_that(FailureKind.MISSING))
    if not stopping:  # somebody cancelled the batch elsewhere: as good as expired
        expired, cancelled = expired + cancelled, 0
    counts = Counts(acc.succeeded, sum(kinds.values()), missing, expired, cancelled)
    final = Counter({kind.value: n for kind, n in kinds.items()})
    final -= Counter(acc.kind_of(row).value for row in (*climbed, *resend.get("failed", ())))
    return Verdict(counts, {k: v for k, v in resend.items() if v}, dict(final))
