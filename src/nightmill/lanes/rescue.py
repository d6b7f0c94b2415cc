"""Keeping a job's deadline: what `deadline.decide` is told, and which rows go live by its word.

What is said of batches here holds for the flex lane: its calls under way are waited for, as a cancel is.
Rows are taken back from a batch by cancelling it, and go live once it has ended: then it is certain which of them
were answered, and none is paid for twice. Rows that wait to be handed over go live at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from nightmill.config import Timing
from nightmill.errors import ProviderError
from nightmill.lanes import Desk, Everything, Work, can_be_cut
from nightmill.lanes.deadline import Decision, Pace, RowsLeft, decide, live_s, turns_at
from nightmill.ledger import Ledger, NewShard, Shard
from nightmill.plan.cutting import LIVE_ROWS
from nightmill.providers import BatchProvider
from nightmill.types import Lane, ShardState

log = logging.getLogger(__name__)

LEARNED_S = 30 * 86_400.0  # what is older says nothing of today
LEAST_SEEN = 5  # batches that were measured, before what was measured counts
_LEAST_ROWS = 50  # of a job that live calls are measured by: with fewer they hardly begin
_ASSUMED_RATE = (
    4.0  # live rows a second, where none were measured and nothing is said: sixteen at once, four seconds each
)
_ASSUMED_FLEX_RATE = 0.25  # rows a second of the flex lane, where none were measured: sixteen at once, a minute each
_MOST_ASSUMED = 64.0  # ... where much is allowed: as many as go out at once, four seconds each
_BREATH_S = 0.05  # between two looks at the least
_LOOK_S = 30.0  # ... and at the most, while calls of the flex lane are made
_WAITS = "the cancel for the deadline has not come through"
_STAYS = "the batch is not cancelled for the deadline"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed. There has to be one."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def rate_of(
    ledger: Ledger, account: str, model: str, most_live: float, *, lane: Lane, since: float
) -> tuple[float, bool]:
    """Rows a second that a model answers in a live lane, as far as this ledger has seen, and whether that is a guess.

    ``most_live``: rows a second that limits of live calls allow; the limits alone, where none were measured.
    """
    rates = ledger.live_rates(account, model, since=since, least=_LEAST_ROWS, lane=lane)
    assumed = _MOST_ASSUMED if math.isfinite(most_live) else _ASSUMED_RATE
    usual = quantile(rates, 0.5) if rates else _ASSUMED_FLEX_RATE if lane is Lane.FLEX else assumed
    return min(most_live, usual), not rates


def pace_of(
    ledger: Ledger, account: str, model: str, most_live: float, *, lane: Lane, since: float, timing: Timing
) -> Pace:
    """How fast things go with a model, as far as this ledger has seen: settings count until cancels were.

    ``lane``: the one that is waited for. Calls of the flex lane end as late as they may.
    """
    rate, is_guess = rate_of(ledger, account, model, most_live, lane=Lane.LIVE, since=since)
    if lane is Lane.FLEX:
        return Pace(rate, timing.flex_timeout_s, timing.collect_s, is_guess)
    cancels = ledger.cancel_times(account, since=since)
    cancel_p95_s = quantile(cancels, 0.95) if len(cancels) >= LEAST_SEEN else timing.cancel_s
    return Pace(rate, cancel_p95_s, timing.collect_s + timing.poll_s, is_guess)  # an end is seen at the next poll


def pace(desk: Desk, work: Work) -> Pace:
    """How fast the job goes, as far as is known. On the ledger's thread."""
    account, since = work.provider.account.id, desk.wall() - LEARNED_S
    return pace_of(
        desk.ledger, account, work.provider.model, work.most_live, lane=work.sheet.lane, since=since,
        timing=desk.timing,
    )  # fmt: skip


def outlook(desk: Desk, work: Work, *, but: str | None = None, left_here: int = 0) -> tuple[Decision, float]:
    """Whether one more batch of the job may be waited for; and seconds until the answer is another, if nothing changes.

    ``but``: a shard of which more is known than the ledger says: ``left_here`` of its requests have no answer.
    On the ledger's thread.
    """
    if work.deadline is None:
        return Decision.WAIT, math.inf
    batch, live = desk.ledger.rows_left(work.job_id, but=but, hands_back=_hands_back(work))
    left, now, known = RowsLeft(batch + left_here, live), desk.wall(), pace(desk, work)
    return decide(now, work.deadline, left, known), turns_at(now, work.deadline, left, known) - now


def _must(desk: Desk, work: Work, left_here: int) -> Callable[[int, int], bool]:
    """What says, of rows left in other batches and live, whether ``left_here`` more cannot be waited for."""
    now, known, deadline = desk.wall(), pace(desk, work), work.deadline
    return lambda batch, live: (
        deadline is not None and decide(now, deadline, RowsLeft(batch + left_here, live), known) is Decision.CANCEL
    )


def _hands_back(work: Work) -> bool:
    return not isinstance(work.provider, BatchProvider) or work.provider.hands_back_partial


async def mind(
    desk: Desk, work: Work, provider: BatchProvider, shard: Shard, answered: int | None
) -> tuple[float, str | None]:
    """Cancel a batch of which ``answered`` requests have an answer, where the rest has to run live.

    ``answered`` None: the provider does not say. Seconds after which this is to be asked again at the latest, and what
    the shard waits for, if that is worth saying.
    """
    sub, left = shard.current, max(0, shard.count - (answered or 0))
    if sub.cancel_asked:
        if not sub.cancel_heard:  # whoever noted it may not have lived to ask
            await _cancel(desk, provider, shard)
        return desk.timing.poll_s, await _tell_if_late(desk, work, shard, left)
    if not left:
        return desk.timing.poll_max_s, await _tell_it_has_not_ended(desk, work, shard)
    decision, in_s = await desk.book(outlook, desk, work, but=shard.tag, left_here=left)
    if decision is Decision.WAIT:
        return max(in_s, _BREATH_S), None
    if answered != 0 and not provider.hands_back_partial:
        return desk.timing.poll_s, await _tell_it_stays(desk, shard, answered)
    if not await desk.book(_take_back, desk, work, shard, left):  # another worker took back enough meanwhile
        return _BREATH_S, None
    log.info("shard %s: batch %s is cancelled for the deadline: %d requests left", shard.tag, sub.batch_id, left)
    await _cancel(desk, provider, shard)
    return desk.timing.poll_s, None


def _take_back(desk: Desk, work: Work, shard: Shard, left: int) -> bool:
    return desk.ledger.take_back(shard, _must(desk, work, left), hands_back=_hands_back(work))


async def _cancel(desk: Desk, provider: BatchProvider, shard: Shard) -> None:
    """Ask for the cancel of a batch that is taken back. Where it is not heard it is asked for at the next poll."""
    sub = shard.current
    try:
        await provider.cancel(sub.batch_id or "")
    except ProviderError as error:
        log.warning("shard %s: batch %s is not cancelled yet: %s", shard.tag, sub.batch_id, error.logged)
        return
    at = desk.wall() + provider.clock_skew_s()
    await desk.book(desk.ledger.note_cancel_asked, shard, [sub.n], at=at)


async def _tell_it_has_not_ended(desk: Desk, work: Work, shard: Shard) -> str | None:
    """Say, once, that a batch with an answer to every row is too late: a cancel might lose some of them."""
    known = await desk.book(pace, desk, work)
    if work.deadline is None or desk.wall() + known.collect_s <= work.deadline:
        return None
    if not (shard.reason or "").startswith(_STAYS):
        text = (
            f"batch {shard.current.batch_id} has answered every row and has not ended: it is waited for, since a "
            "cancel might lose answers that are paid for; its rows are late"
        )
        await desk.book(desk.ledger.alert, shard.job_id, shard.tag, "deadline", text)
    return f"{_STAYS}: it has answered every row"


async def _tell_it_stays(desk: Desk, shard: Shard, answered: int | None) -> str:
    """Say, once, that a batch is not taken back: what it has answered would be lost with it, and paid for again."""
    if not (shard.reason or "").startswith(_STAYS):
        some = "may have answered rows" if answered is None else f"has answered {answered:,} of {shard.count:,} rows"
        text = (
            f"batch {shard.current.batch_id} {some} and would hand back none of them if it were cancelled: it is "
            "waited for, since they would be paid for twice; its rows may be late"
        )
        await desk.book(desk.ledger.alert, shard.job_id, shard.tag, "deadline", text)
    return f"{_STAYS}: what it has answered would be paid for twice"


async def _tell_if_late(desk: Desk, work: Work, shard: Shard, left: int) -> str | None:
    """Say, once, that a cancel takes too long: what a batch may still answer is not sent live beside it."""
    known = await desk.book(pace, desk, work)
    if work.deadline is None or not left or desk.wall() + known.collect_s + live_s(left, known) <= work.deadline:
        return None
    if not (shard.reason or "").startswith(_WAITS):
        text = (
            f"batch {shard.current.batch_id} was cancelled for the deadline and has not ended: its {left:,} open rows "
            "run live when it has, and not before, since they would be paid for twice; they may be late"
        )
        await desk.book(desk.ledger.alert, shard.job_id, shard.tag, "deadline", text)
    return f"{_WAITS}: its rows would be paid for twice"


async def waits_for_flex(desk: Desk, work: Work, shard: Shard, left: int) -> float:
    """Seconds for which ``left`` rows of a flex shard may be sent in that lane before this is asked again; 0: no more.

    What is not sent then goes live once the calls under way have ended: what they answer would be paid for twice.
    """
    decision, in_s = await desk.book(outlook, desk, work, but=shard.tag, left_here=left)
    return 0.0 if decision is Decision.CANCEL else min(max(in_s, _BREATH_S), _LOOK_S)


async def taken_live(desk: Desk, work: Work, shard: Shard) -> bool:
    """Whether a planned batch or flex shard had to go live instead: then live shards have taken its place."""
    if work.deadline is None or shard.state is not ShardState.PLANNED or not can_be_cut(shard):
        return False
    if (await desk.book(outlook, desk, work))[0] is Decision.WAIT:
        return False
    new = await asyncio.to_thread(work.scissors.again, shard, Everything(), most=LIVE_ROWS, lane=Lane.LIVE)
    if not await desk.book(_recut, desk, work, shard, new):
        return False
    log.info("shard %s: %d requests go live for the deadline", shard.tag, shard.count)
    return True


def _recut(desk: Desk, work: Work, shard: Shard, new: Sequence[NewShard]) -> bool:
    return desk.ledger.recut(shard, new, must=_must(desk, work, 0), hands_back=_hands_back(work))


async def rest_goes_live(desk: Desk, work: Work, shard: Shard) -> bool:
    """Whether what a batch that has ended left over is to run live, or what comes of a flex shard."""
    if work.deadline is None or shard.lane not in (Lane.BATCH, Lane.FLEX) or shard.settled_before:
        return False
    if shard.lane is Lane.FLEX:
        return (await desk.book(outlook, desk, work, but=shard.tag))[0] is Decision.CANCEL
    sub = shard.current
    if sub.taken_back and not shard.cancel_requested and shard.job_stopped != "min_valid":
        return True
    had = (sub.completed or 0) if sub.output_file or _hands_back(work) else 0
    left = max(0, shard.count - had)
    return (await desk.book(outlook, desk, work, but=shard.tag, left_here=left))[0] is Decision.CANCEL
