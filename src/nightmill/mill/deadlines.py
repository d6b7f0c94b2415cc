"""When a plan would be done, lane by lane, and what of it there is no time for in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nightmill.lanes.deadline import Decision, Pace, RowsLeft, decide, live_s, rows_in_turn
from nightmill.lanes.rescue import LEARNED_S, LEAST_SEEN, pace_of, quantile, rate_of
from nightmill.mill.home import Home, most_live
from nightmill.providers import Provider
from nightmill.types import Lane

if TYPE_CHECKING:
    from nightmill.mill.planning import Prepared


def pace(home: Home, prepared: Prepared, provider: Provider) -> Pace:
    """How fast a job like this one would go, as far as this home has seen."""
    return _pace(home, prepared.spec, provider, _tokens_each(prepared))


def _pace(home: Home, spec: Mapping[str, Any], provider: Provider, tokens: int) -> Pace:
    return pace_of(
        home.ledger, provider.account.id, provider.model, _most_live(home, spec, provider, tokens),
        lane=Lane(spec["lane"]), since=home.desk.wall() - LEARNED_S, timing=home.settings.timing,
    )  # fmt: skip


def _tokens_each(prepared: Prepared) -> int:
    quote, sent = prepared.quote, [shard for shard in prepared.plan.shards if shard.lane is not Lane.CACHE]
    return (sum(s.cap_tokens for s in sent) + quote.input_tokens) // max(1, quote.requests)


def _most_live(home: Home, spec: Mapping[str, Any], provider: Provider, tokens: int) -> float:
    given = home.limits_of(provider)
    return most_live(spec["rpm"] or given.get("rpm"), spec["tpm"] or given.get("tpm"), spec["concurrency"], tokens)


def _rate(home: Home, prepared: Prepared, provider: Provider, lane: Lane) -> float:
    """Rows a second that a live lane would answer."""
    most = _most_live(home, prepared.spec, provider, _tokens_each(prepared))
    since = home.desk.wall() - LEARNED_S
    return rate_of(home.ledger, provider.account.id, provider.model, most, lane=lane, since=since)[0]


def hurries(home: Home, prepared: Prepared) -> bool:
    """Whether a plan in batches had better be another: there is no time for them, or rather for flex than for them."""
    if not prepared.quote.requests or prepared.spec["deadline"] is None or prepared.lane is not Lane.BATCH:
        return False
    provider = home.provider(prepared.model, sends=False)
    return _goes_live(home, prepared) or (
        _batches_are_late(home, prepared, provider) and flex_is_in_time(home, prepared, prepared.model, provider)
    )


def lane_in_a_hurry(home: Home, prepared: Prepared, model: str, provider: Provider) -> Lane:
    """In which lane ``model`` does what was planned in batches, where that hurries."""
    if flex_is_in_time(home, prepared, model, provider):
        return Lane.FLEX
    return Lane.LIVE if _goes_live(home, prepared) else Lane.BATCH


def _goes_live(home: Home, prepared: Prepared) -> bool:
    """Whether every row would have to go live at once to be in time."""
    return live_at_once(home, prepared) >= prepared.quote.requests


def _batches_are_late(home: Home, prepared: Prepared, provider: Provider) -> bool:
    """Whether half of the model's batches, as far as enough were measured, took longer than there is time."""
    now = home.desk.wall()
    seen = home.ledger.batch_times(provider.model, since=now - LEARNED_S)
    return len(seen) >= LEAST_SEEN and bool(now + quantile(seen, 0.5) > prepared.spec["deadline"])


def flex_is_in_time(home: Home, prepared: Prepared, model: str, provider: Provider) -> bool:
    """Whether all of a plan would be answered in the flex lane of ``model`` in time, and for less than live."""
    flex, deadline = home.flex_sheet(model, provider), prepared.spec["deadline"]
    if flex is None or prepared.vectors is not None or not home.sheet(model, Lane.LIVE).dearer_than(flex):
        return False
    timing = home.settings.timing
    known = Pace(_rate(home, prepared, provider, Lane.FLEX), timing.flex_timeout_s, timing.collect_s)
    took_s = live_s(prepared.quote.requests, known)
    return bool(home.desk.wall() + took_s + known.turn_s <= deadline)  # from a turn before it what is left goes live


def batch_rows(home: Home, spec: Mapping[str, Any], provider: Provider, cap_tokens: int) -> int:
    """Most rows of a batch under a deadline: batches are taken back whole, and no faster than live calls go."""
    return rows_in_turn(_pace(home, spec, provider, cap_tokens))


def live_at_once(home: Home, prepared: Prepared) -> int:
    """How many requests of a plan have no time to wait for a batch, or for flex, at all."""
    deadline = prepared.spec["deadline"]
    if deadline is None or prepared.lane is Lane.LIVE:
        return 0
    known, now, live = pace(home, prepared, home.provider(prepared.model, sends=False)), home.desk.wall(), 0
    for shard in prepared.plan.shards:
        if shard.lane is prepared.lane:
            left = RowsLeft(prepared.quote.requests - live, live)
            if decide(now, deadline, left, known) is Decision.WAIT:
                break
            live += shard.count
    return live


def priced(prepared: Prepared, at_once: int) -> Prepared:
    """The plan with the regular price for the requests that run live ``at_once``."""
    quote = prepared.quote
    more = quote.list_price_nanos - quote.expected_nanos
    if not at_once or more <= 0:
        return prepared
    quote = replace(quote, expected_nanos=quote.expected_nanos - (-more * at_once // quote.requests))
    return replace(prepared, plan=replace(prepared.plan, quote=quote))


def notes(home: Home, prepared: Prepared, at_once: int) -> list[str]:
    """What whoever looks at the price should know of the deadline, where ``at_once`` requests run live at once."""
    if prepared.spec["deadline"] is None:
        return []
    found = []
    if at_once:
        what = "flex" if prepared.lane is Lane.FLEX else "batches"
        found.append(f"too little time for {what}: {at_once:,} requests run live at once, at the regular price")
    known = pace(home, prepared, home.provider(prepared.model, sends=False))
    if known.is_guess:
        rate = f"reckoned at {known.live_rate:.3g} rows a second"
        found.append(f"live calls of {prepared.model} were not measured here yet: {rate} (--rpm says what is allowed)")
    if prepared.lane is Lane.FLEX:
        found.append("what the flex lane has not answered in time runs live, at the regular price")
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
    took = prepared.quote.requests / _rate(home, prepared, provider, lane)
    return (now + took, now + took), None
