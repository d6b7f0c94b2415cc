"""The canary, and the watch: what the first rows of a job showed, and whether answers are as good as they must be.

A canary is decided about by whoever finds it settled and undecided, from what the ledger holds, and the decision is
written once, together with the pause that it may mean. So nothing is lost with a worker that dies in between: the
rest of the job stays where it is until another has decided. The watch, too, goes by what has settled, and in the live
lane by rows as they end as well.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from nightmill.collect.accounting import Check
from nightmill.collect.sampling import RowUse, Sample, sample
from nightmill.lanes import Desk, Work
from nightmill.ledger import Canary, CanarySums, Job, Shard
from nightmill.pricing import PriceSheet, TokenFit
from nightmill.types import Lane, ShardState, Usage, usd

log = logging.getLogger(__name__)

WINDOW = 200  # rows that ended last, as far as they are looked at apart from all others
LEAST_ROWS = 20  # fewer say nothing
_DEVIATIONS = 4.0  # standard ones: chance alone does that once in ten thousand times
_NAMED = 3  # reasons in a sentence


def is_too_bad(valid: int, rows: int, least: float) -> bool:
    """Whether so few valid answers are not chance where a share of ``least`` is asked for."""
    room = _DEVIATIONS * math.sqrt(rows * least * (1 - least))
    return rows >= LEAST_ROWS and valid < rows * least - room


@dataclass(slots=True)
class Watch:
    """Live rows of one job as they end, the last `WINDOW` of them."""

    ended: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    tripped: bool = False  # nothing more is sent
    told: bool = False  # and the ledger says so

    def add(self, *, valid: bool, least: float) -> None:
        """A row has ended."""
        self.ended.append(valid)
        self.tripped = self.tripped or is_too_bad(sum(self.ended), len(self.ended), least)

    def reset(self) -> None:
        """Somebody let the job go on."""
        self.ended.clear()
        self.tripped = self.told = False


def least_valid(job: Job) -> float | None:
    """The share of valid answers that the user asks for, if any."""
    found: float | None = job.spec.get("min_valid")
    return found


async def watch(desk: Desk, job_id: str, seen: Watch) -> float | None:
    """Stop a job whose answers, settled or just ended, are too bad; the share of valid ones that is asked for, if any.

    Asked before anything is sent, too: whoever settled the last of them may not have lived to stop it.
    """
    job = await desk.book(desk.ledger.find_job, job_id)
    if seen.told and job.stopped is None:
        seen.reset()
    least = least_valid(job)
    if least is None or (job.canary_last is not None and job.canary is None):  # the latter is decided about first
        seen.reset()
        return least
    reason = ""
    if seen.tripped:
        reason = _too_bad(sum(seen.ended), len(seen.ended), least, "last")
    else:
        now = await desk.book(desk.ledger.valid_so_far, job_id, WINDOW)
        if is_too_bad(now.last_valid, now.last_rows, least):
            reason = _too_bad(now.last_valid, now.last_rows, least, "last")
        elif is_too_bad(now.valid, now.rows, least):
            reason = _too_bad(now.valid, now.rows, least, "first")
    if reason:
        seen.tripped = True
        if await desk.book(desk.ledger.stop_for_answers, job_id, reason):
            log.warning("job %s: stopped by its answers", job_id)
        seen.told = True
    return least


def _too_bad(valid: int, rows: int, least: float, which: str) -> str:
    return f"of the {which} {rows:,} answers {share(valid, rows)} are valid; --min-valid asks for {least * 100:g}%"


def share(valid: int, rows: int) -> str:
    """``17 (85 %)``; rounded down, so that 100 % means all."""
    return f"{valid:,} ({valid * 100 // rows if rows else 0} %)"


async def mind(desk: Desk, job_id: str, check: Check | None, work_on: Callable[[int], Work]) -> bool:
    """Decide about a canary that has settled; False where there is nothing to decide, or somebody did.

    ``work_on``: the job as a step of its ladder sees it; there it asks others, at their prices.
    """
    sums = await desk.book(desk.ledger.canary_sums, job_id)
    if sums is None:
        return False
    job = await desk.book(desk.ledger.find_job, job_id)
    shards = await desk.book(desk.ledger.shards_of, job_id)
    first = [shard for shard in shards if is_of(job, shard)]
    works = {rung: work_on(rung) for rung in {0, *(shard.rung for shard in first)}}
    seen = await asyncio.to_thread(sample, desk.store, lambda shard: works[shard.rung].provider, check, first)
    found = judged(job, sums, shards, works, seen)
    stopped, reason = verdict(job, found, await desk.book(free_nanos, desk, job_id), least_valid(job))
    found = replace(found, stopped=stopped, reason=reason)
    is_ours = await desk.book(desk.ledger.note_canary, job_id, found)
    if is_ours:
        log.info("job %s: canary: %d of %d valid, %s", job_id, found.valid, found.rows, stopped or "the rest goes out")
    return is_ours


def is_of(job: Job, shard: Shard) -> bool:
    """Whether a shard holds nothing but first rows of its job."""
    return job.canary_last is not None and shard.last <= job.canary_last and shard.lane is not Lane.CACHE


def free_nanos(desk: Desk, job_id: str) -> int | None:
    """What the tightest limit has left for a job; None: there is none. On the ledger's thread."""
    limits = desk.ledger.limits(desk.scopes(job_id))
    return min((limit.free_nanos for limit in limits if limit.free_nanos is not None), default=None)


def judged(job: Job, sums: CanarySums, shards: list[Shard], works: Mapping[int, Work], seen: Sample) -> Canary:
    """What the first rows tell of all: the rest is taken to be like them, at the prices of its own lane.

    ``works``: the job as each step of its ladder sees it that the first rows came to.
    """
    rest = [shard for shard in shards if shard.state is not ShardState.SETTLED and shard.lane is not Lane.CACHE]
    rows, left, size = sums.valid + sums.failed, sum(s.count for s in rest), sum(s.content_bytes for s in rest)
    held = works[0].held or works[0].sheet
    at_most = sum(held.worst(shard.content_bytes, shard.count, shard.cap_tokens) for shard in rest)
    tokens_in, tokens_out, alike, to_come = 0, 0, 0, 0
    for rung, used in seen.by_rung.items():
        came, sheet = Fraction(len(used), max(1, rows)), works[rung].sheet
        now, then = _sum_of(used), _more_like(used, came * left, came * size)
        alike, cost = alike + _cost_of_all(sheet, now), _cost_of_all(sheet, then)
        to_come += cost if rung else min(cost, at_most)
        tokens_in, tokens_out = tokens_in + now.tokens_in, tokens_out + now.tokens_out
    if not tokens_in and job.quote is not None:  # nobody told: what was expected stands
        alike, to_come = (job.quote.expected_nanos * count // max(1, job.quote.requests) for count in (rows, left))
    spent = sums.spent_nanos
    row_in, row_out = (round(tokens / max(1, rows)) for tokens in (tokens_in, tokens_out))
    return Canary(
        rows, sums.valid, seen.why, row_in, row_out, alike // max(1, rows), spent, spent + to_come, spent + at_most
    )


@dataclass(frozen=True, slots=True)
class _Sum:
    rows: int
    tokens_in: int
    tokens_out: int


def _sum_of(used: Sequence[RowUse]) -> _Sum:
    return _Sum(len(used), sum(row.tokens_in for row in used), sum(row.tokens_out for row in used))


def _more_like(used: Sequence[RowUse], rows: Fraction, size: Fraction) -> _Sum:
    """What ``rows`` rows of ``size`` bytes together take, going by some that were asked.

    As many tokens come back for each; what goes out is as `TokenFit` tells.
    """
    told, fit = _sum_of(used), TokenFit()
    for row in used:
        fit.add(row.size, row.tokens_in)
    return _Sum(round(rows), round(fit.of(rows, size)), round(Fraction(told.tokens_out, len(used)) * rows))


def _cost_of_all(sheet: PriceSheet, used: _Sum) -> int:
    """What rows of these tokens together cost in the lane of ``sheet``, each at the price of one its size."""
    rows = max(1, used.rows)
    (tokens_in, more_in), (tokens_out, more_out) = divmod(used.tokens_in, rows), divmod(used.tokens_out, rows)
    least, one_in, one_out = (
        sheet.cost(Usage(tokens_in + more, tokens_out + longer, flex=True)) for more, longer in ((0, 0), (1, 0), (0, 1))
    )
    return least * rows + (one_in - least) * more_in + (one_out - least) * more_out


def verdict(job: Job, found: Canary, free: int | None, least: float | None) -> tuple[str | None, str]:
    """Why the job pauses, in a word and for people; None: it goes on."""
    named = "; ".join(f"{rows:,} {text}" for text, rows in list(found.why.items())[:_NAMED])
    if found.rows and not found.valid:
        return "canary", f"none of the first {found.rows:,} rows has a valid answer: {named}"
    if found.rows and least is not None and found.valid / found.rows < least:  # 7 of 25 are 28 %: 7 < 0.28 * 25
        told = f"of the first {found.rows:,} rows {share(found.valid, found.rows)} have a valid answer; --min-valid "
        return "min_valid", f"{told}asks for {least * 100:g}%: {named}"
    if job.quote is None or found.expected_nanos <= job.quote.expected_nanos:
        return None, ""
    rest = found.expected_nanos - found.spent_nanos
    dearer = f"by its first {found.rows:,} rows the job will probably cost ${usd(found.expected_nanos):.6f}"
    if free is not None and rest > free:
        return "budget", f"{dearer}, of which ${usd(rest):.6f} are to come, and the budget has ${usd(free):.6f} free"
    if found.expected_nanos > agreed_nanos(job):
        return "budget", f"{dearer}, and you agreed to ${usd(agreed_nanos(job)):.6f} at most"
    return None, ""


def agreed_nanos(job: Job) -> int:
    """The most that a job was said to cost, with every further step of its ladder, before somebody said yes."""
    further: int = job.spec.get("next_at_most_nanos", 0)
    return (job.quote.at_most_nanos if job.quote else 0) + further
