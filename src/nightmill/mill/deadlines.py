"""When a plan would be done, lane by lane, and what of it there is no time for in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nightmill.lanes.deadline import Decision, Pace, RowsLeft, decide, rows_in_turn
from nightmill.lanes.rescue import LEARNED_S, LEAST_SEEN, pace_of, quantile
from nightmill.mill.home import Home, most_live
from nightmill.providers import Provider
from nightmill.types import Lane

if TYPE_CHECKING:
    from nightmill.mill.planning import Prepared


def pace(home: Home, prepared: Prepared, provider: Provider) -> Pace:
    """How fast a job like this one would go, as far as this home has seen."""
    quote = prepared.quote
    sent = [shard for shard in prepared.plan.shards if shard.lane is not Lane.CACHE]
    tokens = (sum(s.cap_tokens for s in sent) + quote.input_tokens) // max(1, quote.requests)
    return _pace(home, prepared.spec, provider, tokens)


def _pace(home: Home, spec: Mapping[str, Any], provider: Provider, tokens: int) -> Pace:
    timing, given = home.settings.timing, home.limits_of(provider)
    most = most_live(spec["rpm"] or given.get("rpm"), spec["tpm"] or given.get("tpm"), spec["concurrency"], tokens)
    return pace_of(
        home.ledger, provider.account.id, provider.model, most, since=home.desk.wall() - LEARNED_S,
        cancel_s=timing.cancel_s, collect_s=timing.collect_s + timing.poll_s,
    )  # fmt: skip


def batch_rows(home: Home, spec: Mapping[str, Any], provider: Provider, cap_tokens: int) -> int:
    """Most rows of a batch under a deadline: batches are taken back whole, and no faster than live calls go."""
    return rows_in_turn(_pace(home, spec, provider, cap_tokens))


def live_at_once(home: Home, prepared: Prepared) -> int:
    """How many requests of a plan have no time to wait for a batch at all."""
    deadline = prepared.spec["deadline"]
    if deadline is None or prepared.lane is not Lane.BATCH:
        return 0
    known, now, live = pace(home, prepared, home.provider(prepared.model, sends=False)), home.desk.wall(), 0
    for shard in prepared.plan.shards:
        if shard.lane is Lane.BATCH:
            left = RowsLeft(prepared.quote.requests - live, live)
            if decide(now, deadline, left, known) is Decision.WAIT:
                break
            live += shard.count
    return live


def notes(home: Home, prepared: Prepared) -> list[str]:
    """What whoever looks at the price should know of the deadline."""
    if prepared.spec["deadline"] is None:
        return []
    found = []
    if at_once := live_at_once(home, prepared):
        found.append(f"too little time for batches: {at_once:,} requests run live at once, at the regular price")
    known = pace(home, prepared, home.provider(prepared.model, sends=False))
    if known.is_guess:
        rate = f"reckoned at {known.live_rate:.3g} rows a second"
        found.append(f"live calls of {prepared.model} were not measured here yet: {rate} (--rpm says what is allowed)")
    return found


def done_by(
    home: Home, prepared: Prepared, provider: Provider, lane: Lane
) -> tuple[tuple[float, float] | None, float | None]:
    """When the plan would be done in ``lane``, begun now, in unix seconds: in half and in nine of ten cases.

    Where too few batches of the model were measured, when they have ended at the latest instead. Live calls that were
    never measured are taken to be slow.
    """
    now = home.desk.wall()
    if lane is Lane.BATCH:
        seen = home.ledger.batch_times(provider.model, since=now - LEARNED_S)
        if len(seen) < LEAST_SEEN:
            return None, now + provider.limits.window_s
        return (now + quantile(seen, 0.5), now + quantile(seen, 0.9)), None
    took = prepared.quote.requests / pace(home, prepared, provider).live_rate
    return (now + took, now + took), None
