"""The simulator's invoice: what the provider would charge, kept apart from any client's own sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class Rate:
    """Nano-dollars a token, as integers over one denominator, from ``above`` input tokens on."""

    above: int
    input: int
    output: int
    per: int

    def nanos(self, input_tokens: int, output_tokens: int) -> int:
        """The price of one request, rounded half up once."""
        exact = input_tokens * self.input + output_tokens * self.output
        return (2 * exact + self.per) // (2 * self.per)


@dataclass(frozen=True, slots=True)
class RateCard:
    """The rates of one model in one lane; the dearer tiers come last."""

    rates: tuple[Rate, ...]

    def nanos(self, input_tokens: int, output_tokens: int) -> int:
        """The price of one request in nano-dollars. A tier holds for the whole request."""
        rate = self.rates[0]
        for tier in self.rates[1:]:
            if input_tokens > tier.above:
                rate = tier
        return rate.nanos(input_tokens, output_tokens)


FREE = RateCard((Rate(0, 0, 0, 1),))


class Catalogue:
    """Which models exist and what they cost, straight from genai-prices."""

    def __init__(self, extra: tuple[str, ...] = ()) -> None:
        self._extra = frozenset(extra)
        self._cards: dict[tuple[str, bool], RateCard | None] = {}

    def knows(self, model: str) -> bool:
        """Whether a request to ``model`` can be answered."""
        return self.card(model, batch=False) is not None

    def card(self, model: str, *, batch: bool) -> RateCard | None:
        """The model's rates; None for a model that does not exist."""
        key = (model, batch)
        if key not in self._cards:
            if len(self._cards) > 10_000:  # a client may ask for any name
                self._cards.clear()
            self._cards[key] = FREE if model in self._extra else _resolve(model, batch)
        return self._cards[key]

    def names(self) -> list[str]:
        """Every model, sorted."""
        from genai_prices.data_snapshot import get_snapshot

        known = {m.id for p in get_snapshot().providers if p.id == "openai" for m in p.models}
        return sorted(known | self._extra)


def _resolve(model: str, batch: bool) -> RateCard | None:
    from genai_prices import Usage, calc_price
    from genai_prices.types import TieredPrices

    context = {"processing": "batch"} if batch else None
    try:
        price = calc_price(
            Usage(input_tokens=1, output_tokens=1), model_ref=model, provider_id="openai", price_context=context
        ).model_price
    except LookupError:
        return None
    steps: list[dict[int, Decimal]] = []  # per column: {tokens above which it holds: dollars a million tokens}
    for column in (price.input_mtok, price.output_mtok):
        if isinstance(column, TieredPrices):
            steps.append({0: column.base, **{tier.start: tier.price for tier in column.tiers}})
        else:
            steps.append({0: column or Decimal(0)})
    rates = []
    for above in sorted(steps[0].keys() | steps[1].keys()):
        # 1 $ a million tokens = 1000 nano-dollars a token
        cost_in, cost_out = (Fraction(step[max(s for s in step if s <= above)]) * 1000 for step in steps)
        per = cost_in.denominator * cost_out.denominator
        rates.append(Rate(above, int(cost_in * per), int(cost_out * per), per))
    return RateCard(tuple(rates))


@dataclass(slots=True)
class Tally:
    """What one batch, or one call, ran and cost."""

    nanos: int = 0
    executed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    completed: int = 0
    failed: int = 0
    keys: list[bytes] = field(default_factory=list)  # who each executed row was; at most 32 bytes each


class Invoice:
    """Everything billed so far. Rows that failed, expired or were cancelled are free."""

    def __init__(self, count_rows: int) -> None:
        self._count_rows = count_rows
        self._seen: set[bytes] | None = set()
        self._again: set[bytes] = set()
        self._batches: dict[str, dict[str, int]] = {}
        self._live_nanos = self._live_calls = self._executed = 0

    def book_batch(self, batch_id: str, tally: Tally) -> None:
        """Bill a batch that has ended."""
        self._batches[batch_id] = {"nanos": tally.nanos, "executed": tally.executed}
        self._executed += tally.executed
        for key in tally.keys:
            self._identify(b"b" + key)

    def book_live(self, nanos: int, key: bytes) -> None:
        """Bill one live call."""
        self._live_nanos += nanos
        self._live_calls += 1
        self._executed += 1
        self._identify(b"l" + key)

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
            "batches": self._batches,
            "live_calls": self._live_calls,
            "executed_rows": self._executed,
            "distinct_rows": None if self._seen is None else len(self._seen),
            "executed_more_than_once": None if self._seen is None else len(self._again),
        }
