"""The simulator's invoice: what the provider would charge, kept apart from any client's own sums."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from nightmill.simulator.formats import Reply


@dataclass(frozen=True, slots=True)
class Rate:
    """Nano-dollars a token, as integers over one denominator, from ``above`` input tokens on."""

    above: int
    input: int
    output: int
    cached: int  # of the input, read from a cache
    written: int  # of the input, written to a short-lived cache
    written_long: int  # of the input, written to a long-lived one
    audio: int  # of the input
    cached_audio: int  # of the input, read from a cache
    image: int
    video: int
    per: int


@dataclass(frozen=True, slots=True)
class RateCard:
    """The rates of one model in one lane; the dearer tiers come last."""

    rates: tuple[Rate, ...]

    def nanos(
        self,
        input_tokens: int,
        output_tokens: int,
        *,
        cached: int = 0,
        written: int = 0,
        written_long: int = 0,
        audio: int = 0,
        cached_audio: int = 0,
        image: int = 0,
        video: int = 0,
    ) -> int:
        """The price of one request in nano-dollars, rounded half up once. A tier holds for the whole request.

        Args:
            input_tokens: the whole prompt; the others but ``output_tokens`` are parts of it. What a cache had or got is
                none of the media that cost something else than text, but for ``cached_audio``, which is a part of
                ``cached`` and not of ``audio``.
        """
        rate = self.rates[0]
        for tier in self.rates[1:]:
            if input_tokens > tier.above:
                rate = tier
        exact = (
            (input_tokens - cached - written - written_long) * rate.input
            + cached * rate.cached
            + written * rate.written
            + written_long * rate.written_long
            + output_tokens * rate.output
            + audio * (rate.audio - rate.input)
            + cached_audio * (rate.cached_audio - rate.cached)
            + image * (rate.image - rate.input)
            + video * (rate.video - rate.input)
        )
        return (2 * exact + rate.per) // (2 * rate.per)


FREE = RateCard((Rate(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),))


_MOST_MODELS = 10_000  # to remember: a client may ask for any name


class Catalogue:
    """Which models of a provider exist and what they cost, straight from genai-prices."""

    def __init__(self, extra: tuple[str, ...] = (), provider: str = "openai") -> None:
        self._extra, self._provider = frozenset(extra), provider
        self._cards: dict[tuple[str, bool, str], RateCard | None] = {}
        self._contexts: dict[str, int] = {}

    def knows(self, model: str) -> bool:
        """Whether a request to ``model`` can be answered."""
        return self.card(model, batch=False) is not None

    def has_tier(self, model: str, tier: str) -> bool:
        """Whether the model has live prices of their own in a service tier."""
        if model in self._extra:
            return True
        priced = _priced(self._provider, model, {})
        wanted, now = {"service_tier": tier}, datetime.now(UTC)
        return priced is not None and any(
            variant.when == wanted and (variant.constraint is None or variant.constraint.active(now))
            for variant in priced.model.price_variants or ()
        )

    def card(self, model: str, *, batch: bool, tier: str = "") -> RateCard | None:
        """The model's rates, in a service tier of live calls if one is named; None for a model that does not exist."""
        key = (model, batch, tier)
        if key not in self._cards:
            if len(self._cards) > _MOST_MODELS:
                self._cards.clear()
            self._cards[key] = FREE if model in self._extra else _resolve(self._provider, model, batch, tier)
        return self._cards[key]

    def context(self, model: str) -> int:
        """Tokens that fit into a model; 0 where nobody says."""
        if model not in self._contexts:
            if len(self._contexts) > _MOST_MODELS:
                self._contexts.clear()
            self._contexts[model] = 0 if model in self._extra else _context_of(self._provider, model)
        return self._contexts[model]

    def nanos(self, reply: Reply, *, batch: bool) -> int:
        """What one answered request costs."""
        card = self.card(reply.model, batch=batch, tier=reply.tier) or FREE
        return card.nanos(
            reply.input_tokens,
            reply.output_tokens,
            cached=reply.cached_tokens,
            written=reply.written_tokens,
            written_long=reply.written_long_tokens,
            audio=reply.audio_tokens - reply.cached_audio_tokens,
            cached_audio=reply.cached_audio_tokens,
            image=reply.image_tokens,
            video=reply.video_tokens,
        )

    def names(self) -> list[str]:
        """Every model, sorted."""
        from genai_prices.data_snapshot import get_snapshot

        known = {m.id for p in get_snapshot().providers if p.id == self._provider for m in p.models}
        return sorted(known | self._extra)


def _context_of(provider: str, model: str) -> int:
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return 0
    return found.context_window or 0


def _priced(provider: str, model: str, context: dict[str, str]) -> Any:
    """What genai-prices says of one call; None for a model that it does not know."""
    from genai_prices import Usage, calc_price

    try:
        return calc_price(
            Usage(input_tokens=1, output_tokens=1), model_ref=model, provider_id=provider, price_context=context
        )
    except LookupError:
        return None


def _resolve(provider: str, model: str, batch: bool, tier: str) -> RateCard | None:
    context = {"processing": "batch"} if batch else {"service_tier": tier} if tier else {}
    priced = _priced(provider, model, context)
    if priced is None:
        return None
    price = priced.model_price
    steps = [_steps(column) for column in (price.input_mtok, price.output_mtok)]
    steps.append(_steps(price.cache_read_mtok) if price.cache_read_mtok is not None else steps[0])
    steps.append(_steps(price.cache_write_mtok) if price.cache_write_mtok is not None else steps[0])
    steps.append(_steps(price.cache_write_1h_mtok) if price.cache_write_1h_mtok is not None else steps[3])
    for kind in ("audio", "image", "video"):
        own = getattr(price, f"input_{kind}_mtok", None)
        steps.append(steps[0] if own is None else _steps(own))
    heard_before = price.cache_audio_read_mtok
    steps.append(steps[2] if heard_before is None else _steps(heard_before))
    rates = []
    for above in sorted(set().union(*steps)):
        # 1 $ a million tokens = 1000 nano-dollars a token
        costs = [Fraction(step[max(s for s in step if s <= above)]) * 1000 for step in steps]
        per = math.lcm(*(cost.denominator for cost in costs))
        each, output, cached, written, written_long, audio, image, video, cached_audio = (
            int(cost * per) for cost in costs
        )
        rates.append(Rate(above, each, output, cached, written, written_long, audio, cached_audio, image, video, per))
    return RateCard(tuple(rates))


def _steps(column: Any) -> dict[int, Decimal]:
    """Tokens above which a price holds, and the price in dollars a million tokens."""
    from genai_prices.types import TieredPrices

    if isinstance(column, TieredPrices):
        return {0: column.base, **{tier.start: tier.price for tier in column.tiers}}
    return {0: column or Decimal(0)}


@dataclass(slots=True)
class Tally:
    """What one batch, or one call, ran and cost."""

    nanos: int = 0
    executed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of the input
    completed: int = 0
    failed: int = 0
    not_run: int = 0  # the batch was over before
    keys: list[bytes] = field(default_factory=list)  # who each executed row was; at most 32 bytes each


class Invoice:
    """Everything billed so far. Rows that failed, expired or were cancelled are free."""

    def __init__(self, count_rows: int) -> None:
        self._count_rows = count_rows
        self._seen: set[bytes] | None = set()
        self._again: set[bytes] = set()
        self._batches: dict[str, dict[str, int]] = {}
        self._live_nanos = self._live_calls = self._executed = 0
        self._keys: Counter[str] = Counter()

    def book_batch(self, batch_id: str, tally: Tally, key: str) -> None:
        """Bill a batch that has ended to the key it was made with."""
        self._keys[key] += tally.nanos
        self._batches[batch_id] = {"nanos": tally.nanos, "executed": tally.executed}
        self._executed += tally.executed
        for row in tally.keys:
            self._identify(b"b" + row)

    def book_live(self, nanos: int, digest: bytes, key: str) -> None:
        """Bill one live call, known by its digest."""
        self._keys[key] += nanos
        self._live_nanos += nanos
        self._live_calls += 1
        self._executed += 1
        self._identify(b"l" + digest)

    def _identify(self, key: bytes) -> None:
        if self._seen is None:
            return
        if key in self._seen:
            self._again.add(key)
            return
        self._seen.add(key)
        if len(self._seen) > self._count_rows:
            self._seen, self._again = None, set()

    @property
    def counting(self) -> bool:
        """Whether rows are still told apart."""
        return self._seen is not None

    def view(self) -> dict[str, Any]:
        """The invoice as JSON. Distinct rows are null once there were too many to remember."""
        batch_nanos = sum(batch["nanos"] for batch in self._batches.values())
        return {
            "total_nanos": batch_nanos + self._live_nanos,
            "batch_nanos": batch_nanos,
            "live_nanos": self._live_nanos,
            "keys": {key: {"nanos": nanos} for key, nanos in self._keys.items()},
            "batches": self._batches,
            "live_calls": self._live_calls,
            "executed_rows": self._executed,
            "distinct_rows": None if self._seen is None else len(self._seen),
            "executed_more_than_once": None if self._seen is None else len(self._again),
        }


def summed(views: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One invoice over those of several providers, with each of them under its name in ``providers``."""
    bills = list(views.values())
    made: dict[str, Any] = {}
    for key in bills[0]:
        values = [bill[key] for bill in bills]
        if key == "batches":
            made[key] = {batch_id: batch for value in values for batch_id, batch in value.items()}
        elif key == "keys":
            names = dict.fromkeys(name for value in values for name in value)
            made[key] = {name: {"nanos": sum(v[name]["nanos"] for v in values if name in v)} for name in names}
        else:
            made[key] = None if None in values else sum(values)
    return {**made, "providers": dict(views)}
