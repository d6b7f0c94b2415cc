"""What a plan would cost, lane by lane and model by model, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightmill.config import Settings
from nightmill.mill import deadlines
from nightmill.mill.home import Home
from nightmill.pricing import PriceSheet, listed_context
from nightmill.providers import BatchProvider, Limits, LiveProvider, Provider
from nightmill.providers.resolve import lacking_key, runs_here
from nightmill.types import Lane, Usage

if TYPE_CHECKING:
    from nightmill.mill.planning import Prepared


@dataclass(frozen=True, slots=True)
class LaneCost:
    """What a plan would cost in one lane."""

    lane: Lane
    expected_nanos: int
    at_most_nanos: int
    done_by: tuple[float, float] | None = None  # unix seconds: half, and nine of ten, such batches have ended by then
    latest: float | None = None  # ... or when it has ended at the latest, where too few were measured


@dataclass(frozen=True, slots=True)
class Judged:
    """One of several models that may do a job, and whether it can."""

    model: str
    why_not: str = ""  # it does not: in words; empty where it can
    lane: Lane | None = None  # the one it would do it in; None where that is not known
    expect_tokens: int = 0  # output tokens of a typical answer of its
    cap_tokens: int = 0  # most output tokens of one; 0: each request says it itself


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model beside the others, with what it would cost. Amounts are in nano-dollars."""

    model: str
    chosen: bool
    why_not: str = ""  # it cannot do the job: in words
    lane: Lane | None = None  # the one it would do it in
    costs: tuple[LaneCost, ...] = ()  # in each lane that it has; none where it cannot do the job
    quality: float | None = None  # 0 to 100, as the settings say
    context: int = 0  # most tokens of a prompt and its answer together; 0: not known
    lacks: str = ""  # the variable that has to hold a key before anything is sent

    @property
    def cost(self) -> LaneCost | None:
        """In its lane."""
        return next((cost for cost in self.costs if cost.lane == self.lane), None)


def quality_of(settings: Settings, model: str) -> float | None:
    """What the user's settings say a model is worth, 0 to 100."""
    said = settings.models.get(model, {}).get("quality")
    return float(said) if isinstance(said, int | float) else None


def context_of(settings: Settings, model: str, limits: Limits) -> int:
    """Most tokens of a prompt and its answer together; 0: nobody says."""
    said = settings.models.get(model, {}).get("context")
    if isinstance(said, int) and said:
        return said
    if limits.context or runs_here(model, settings.env, settings.providers):
        return limits.context
    return listed_context(model)


def compare(home: Home, prepared: Prepared) -> tuple[Candidate, ...]:
    """Each model that was asked for, in the user's order, with what the plan would cost with it."""
    judged = prepared.judged or (Judged(prepared.model, lane=prepared.lane),)
    return tuple(_candidate(home, prepared, each) for each in judged)


def _candidate(home: Home, prepared: Prepared, judged: Judged) -> Candidate:
    settings, model = home.settings, judged.model
    chosen, quality = model == prepared.model, quality_of(settings, model)
    if judged.why_not and not chosen:
        return Candidate(model, chosen, judged.why_not, judged.lane, quality=quality)
    provider = home.provider(model, sends=False)
    costs = _lane_costs(home, prepared) if chosen else _costs_of_other(home, prepared, provider, judged)
    context = context_of(settings, model, provider.limits)
    lacks = lacking_key(model, settings.env, settings.providers)
    return Candidate(model, chosen, judged.why_not, judged.lane, tuple(costs), quality, context, lacks)


def _lane_costs(home: Home, prepared: Prepared) -> list[LaneCost]:
    """Of the plan itself, in each lane that its model has, batch first."""
    quote, provider = prepared.quote, home.provider(prepared.model, sends=False)
    requests = quote.requests
    each = Usage(-(-quote.input_tokens // max(1, requests)), quote.output_tokens // max(1, requests), flex=True)
    costs = []
    for lane in _lanes(home, prepared, prepared.model, provider, prepared.lane):
        if lane is prepared.lane:
            when = deadlines.done_by(home, prepared, provider, lane)
            costs.append(LaneCost(lane, quote.expected_nanos, quote.at_most_nanos, *when))
        else:
            costs.append(_cost(home, prepared, provider, lane, home.sheet(prepared.model, lane), each, requests))
    return costs


def _costs_of_other(home: Home, prepared: Prepared, provider: Provider, judged: Judged) -> list[LaneCost]:
    """Of the plan with a model that it was not made for, which has answered none of its rows before."""
    cap, requests = judged.cap_tokens, requests_of(prepared)
    each = usage_of(prepared, judged.expect_tokens, cap)
    return [
        _cost(home, prepared, provider, lane, home.sheet(judged.model, lane), each, requests, cap)
        for lane in _lanes(home, prepared, judged.model, provider, judged.lane)
    ]


def requests_of(prepared: Prepared) -> int:
    """How many requests another model would be sent: those, too, that this one has answered before."""
    return prepared.quote.requests + prepared.plan.cached


def usage_of(prepared: Prepared, expect_tokens: int, cap_tokens: int) -> Usage:
    """A typical request of the plan, with a typical answer of another model; its cap is the plan's where it is 0."""
    sent = [shard for shard in prepared.plan.shards if shard.lane is not Lane.CACHE]
    most = max((shard.cap_tokens // shard.count for shard in sent), default=0)
    quote = prepared.quote
    if not sent:  # all is answered, by this one
        return Usage(prepared.plan.longest_tokens, expect_tokens, flex=True)
    return Usage(-(-quote.input_tokens // max(1, quote.requests)), min(expect_tokens, cap_tokens or most), flex=True)


def _lanes(home: Home, prepared: Prepared, model: str, provider: Provider, own: Lane | None) -> list[Lane]:
    has: Mapping[Lane, bool] = {
        Lane.BATCH: isinstance(provider, BatchProvider),
        Lane.LIVE: isinstance(provider, LiveProvider),
        Lane.FLEX: prepared.vectors is None and home.flex_sheet(model, provider) is not None,
    }
    return [lane for lane, there in has.items() if there or lane is own]


def _cost(
    home: Home, prepared: Prepared, provider: Provider, lane: Lane, sheet: PriceSheet, each: Usage, requests: int,
    cap_tokens: int = 0,
) -> LaneCost:  # fmt: skip
    when = deadlines.done_by(home, prepared, provider, lane)
    return LaneCost(lane, sheet.cost(each) * requests, _at_most(prepared, sheet, requests, cap_tokens), *when)


def _at_most(prepared: Prepared, sheet: PriceSheet, requests: int, cap_tokens: int) -> int:
    """With answers of ``cap_tokens`` each, or as the plan has them (0); what it does not send, at the longest."""
    sent = [shard for shard in prepared.plan.shards if shard.lane is not Lane.CACHE]
    more = max(0, requests - sum(shard.count for shard in sent))
    cap = cap_tokens or max((shard.cap_tokens // shard.count for shard in sent), default=0)
    most = sum(sheet.worst(s.content_bytes, s.count, s.count * cap_tokens or s.cap_tokens) for s in sent)
    return most + sheet.worst(more * prepared.plan.longest_weight, more, more * cap)
