"""What a request costs, at most and exactly, and how many tokens a text probably has.

A `PriceSheet` is resolved once per model and lane, pinned, and then multiplied in integers:
prices are exact rationals, and the cost of a request is rounded half-up to nanos once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from nightmill.errors import UnknownPrice, UsageError
from nightmill.types import NANOS_PER_USD, Lane, Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

FRAMING_TOKENS: Final = 16
"""Input tokens a provider may add to a request around its content (roles, separators, priming)."""

OLD_PRICES_DAYS: Final = 90
"""A price list whose newest price began longer ago than that may have missed some."""

_FREE_UNLESS_PRICED = ("local/", "python:")
_VARIANTS: Final[Mapping[Lane, dict[str, str]]] = MappingProxyType(
    {Lane.BATCH: {"processing": "batch"}, Lane.FLEX: {"service_tier": "flex"}}
)
_NOTHING: Mapping[str, Mapping[str, object]] = MappingProxyType({})
_ZERO = Fraction(0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-dollars per token, for requests with more than ``above_tokens`` input tokens."""

    input: Fraction
    cached_input: Fraction
    cache_write: Fraction
    output: Fraction
    request: Fraction = _ZERO  # nano-dollars per request, whatever its size
    audio: Fraction | None = None  # of fresh input that is sound; None: as other input
    cached_audio: Fraction | None = None  # of cached input that is sound; None: as other cached input
    above_tokens: int = field(default=0, kw_only=True)

    def exceeds(self, other: Rates) -> bool:
        """Whether any rate is higher than the other's."""
        return any(mine > theirs for mine, theirs in zip(self.all, other.all, strict=True))

    @property
    def all(self) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction, Fraction, Fraction]:
        """Fresh input, cached input, cache write, output, per request, sound, and cached sound."""
        sound = self.input if self.audio is None else self.audio
        cached_sound = self.cached_input if self.cached_audio is None else self.cached_audio
        return self.input, self.cached_input, self.cache_write, self.output, self.request, sound, cached_sound


_Meters = tuple[tuple[int, tuple[int, int, int, int, int, int, int]], ...]


@dataclass(frozen=True, slots=True)
class PriceSheet:
    """The price of one model in one lane, with where it comes from."""

    model: str  # "P/M"
    lane: Lane
    source: str  # e.g. "genai-prices 0.2.3", "nightmill.toml", "given as free"
    date: str  # ISO day for which the price was looked up
    batch_known: bool  # False: a batch, but only the standard price is known, and used
    tiers: tuple[Rates, ...]  # by rising above_tokens, the first 0; a tier applies to the whole request
    framing_tokens: int = FRAMING_TOKENS  # most input tokens of a request beside its content
    regular: tuple[Rates, ...] = ()  # flex: of an answer that was given in the regular tier; none: ``tiers`` are of all
    _scale: int = field(default=2, init=False, repr=False, compare=False)
    # The tiers from the highest down: where each begins, and its rates times _scale.
    _meters: _Meters = field(default=(), init=False, repr=False, compare=False)
    _regular_meters: _Meters = field(default=(), init=False, repr=False, compare=False)
    _dearest: tuple[int, int, int] = field(default=(0, 0, 0), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for tiers in (self.tiers, self.regular or self.tiers):
            starts = [tier.above_tokens for tier in tiers]
            if not starts or starts[0] != 0 or starts != sorted(set(starts)):
                raise ValueError(f"tiers must rise from 0, got {starts}")
        every = (*self.tiers, *self.regular)
        if any(rate < 0 for tier in every for rate in tier.all):
            raise ValueError("a rate is negative")
        # Even, so that adding half of it before the floor division rounds half-up exactly.
        scale = 2 * math.lcm(*(rate.denominator for tier in every for rate in tier.all))
        meters = [(tier.above_tokens, tuple(int(rate * scale) for rate in tier.all)) for tier in every]
        highest = [max(rates) for rates in zip(*(rates for _, rates in meters), strict=True)]
        own, regular = meters[: len(self.tiers)], meters[len(self.tiers) :]
        object.__setattr__(self, "_scale", scale)
        object.__setattr__(self, "_meters", tuple(reversed(own)))
        object.__setattr__(self, "_regular_meters", tuple(reversed(regular or own)))
        object.__setattr__(self, "_dearest", (max(highest[:3]), highest[3], highest[4]))

    @property
    def is_free(self) -> bool:
        return not any(self._dearest)

    @property
    def only_reads(self) -> bool:
        """Whether what goes out has a price and what comes back has none: a model for embeddings."""
        return not self.is_free and not any(tier.output for tier in self.tiers)

    def rates(self, input_tokens: int) -> Rates:
        """The rates that apply to a request of that many input tokens."""
        return _reached(self.tiers, input_tokens)

    def cost(self, usage: Usage) -> int:
        """What one request costs, in nanos, rounded half-up once."""
        tokens = usage.input_tokens
        meters = self._meters if usage.flex else self._regular_meters
        for above, meter in meters:  # noqa: B007 - the last one is the base, which always applies
            if tokens > above:
                break
        fresh_rate, cached_rate, write_rate, output_rate, request_rate, audio_rate, cached_audio_rate = meter
        total = request_rate + usage.output_tokens * output_rate
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        if cached or written:
            total += cached * cached_rate + written * write_rate
            # Parts that add up to more than the whole are a provider's slip, not a refund.
            tokens = max(tokens - cached - written, 0)
        if usage.audio_tokens:
            kept = min(usage.cached_audio_tokens, cached)
            heard = max(0, min(usage.audio_tokens - kept, tokens))
            total += heard * audio_rate + kept * (cached_audio_rate - cached_rate)
            tokens -= heard
        scale = self._scale
        return (total + tokens * fresh_rate + scale // 2) // scale

    def total(self, usages: Sequence[Usage]) -> int:
        """The summed `cost` of many requests, each rounded by itself."""
        if len(self._meters) > 1 or self.regular:
            return sum(map(self.cost, usages))
        (_, (fresh_rate, _, _, output_rate, request_rate, _, _)), scale = self._meters[0], self._scale
        base = request_rate + scale // 2
        total = 0
        for usage in usages:
            if usage.cached_tokens or usage.cache_write_tokens or usage.audio_tokens:
                total += self.cost(usage)
            else:
                total += (base + usage.output_tokens * output_rate + usage.input_tokens * fresh_rate) // scale
        return total

    def costs(
        self, inputs: Sequence[int], outputs: Sequence[int], cached: Sequence[int] = (), written: Sequence[int] = ()
    ) -> list[int]:
        """`cost` of many requests whose tokens come in columns, nothing cached where these are empty.

        Which tier answered them is in none.
        """
        if len(self._meters) > 1 or self.regular or any(cached) or any(written):
            rows = zip(inputs, outputs, cached or repeat(0), written or repeat(0), strict=False)
            return [self.cost(Usage(*tokens)) for tokens in rows]
        (_, (fresh_rate, _, _, output_rate, request_rate, _, _)), scale = self._meters[0], self._scale
        base = request_rate + scale // 2
        return [(base + o * output_rate + i * fresh_rate) // scale for i, o in zip(inputs, outputs, strict=True)]

    def sum_of_costs(
        self, inputs: Sequence[int], outputs: Sequence[int], cached: Sequence[int] = (), written: Sequence[int] = ()
    ) -> int:
        """The sum of `costs`."""
        fresh_rate, _, _, output_rate, request_rate, *_ = self._meters[-1][1]
        is_whole = not (fresh_rate % self._scale or output_rate % self._scale or request_rate % self._scale)
        is_one = len(self._meters) == 1 and not self.regular
        if is_whole and is_one and not any(cached) and not any(written):  # nothing to round
            total = len(inputs) * request_rate + sum(outputs) * output_rate + sum(inputs) * fresh_rate
            return total // self._scale
        return sum(self.costs(inputs, outputs, cached, written))

    def of_totals(self, usage: Usage, requests: int) -> tuple[int, int] | None:
        """The least and the most, in nanos, that ``requests`` requests cost whose tokens are ``usage`` together.

        Each is rounded by itself, hence two numbers. None: the price depends on what each of them was, how large, or
        how much of it sound.
        """
        only = self.rates(0).all
        if len(self._meters) > 1 or only[5:] != only[:2]:
            return None
        (_, (fresh_rate, cached_rate, write_rate, output_rate, request_rate, *_)), scale = self._meters[0], self._scale
        fresh = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
        total = requests * request_rate + fresh * fresh_rate + usage.output_tokens * output_rate
        total += usage.cached_tokens * cached_rate + usage.cache_write_tokens * write_rate
        is_whole = not any(rate % scale for rate in self._meters[0][1])
        slack = 0 if is_whole else requests * (scale // 2)
        return -((slack - total) // scale), (total + slack) // scale

    def worst(self, content_bytes: int, requests: int, output_cap_tokens: int) -> int:
        """An upper bound, in nanos, on the summed `cost` of ``requests`` requests.

        Holds for any split of ``content_bytes`` UTF-8 bytes of content and ``output_cap_tokens`` tokens of output
        caps among them, since a token is at least one byte, and a request adds at most `framing_tokens`. Sound counts
        there as so much more text as it costs more.
        """
        input_rate, output_rate, request_rate = self._dearest
        if not (input_rate or output_rate or request_rate):
            return 0
        tokens = content_bytes + requests * self.framing_tokens
        scaled = tokens * input_rate + output_cap_tokens * output_rate + requests * request_rate
        return -(-scaled // self._scale) + requests  # each cost may have been rounded up

    def dearer_than(self, other: PriceSheet) -> bool:
        """Whether some request would cost more by this sheet than by the other."""
        if self.regular and _exceed(self.regular, other.regular or other.tiers):
            return True
        return _exceed(self.tiers, other.tiers)

    def to_json(self) -> str:
        """Exact: rates are strings such as ``"250"`` or ``"1/3"``."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return msgspec.json.encode(kept, enc_hook=str).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> PriceSheet:
        """The inverse of `to_json`. Raises ValueError on anything else."""
        return _read_sheet(text)


_read_sheet = msgspec.json.Decoder(PriceSheet, dec_hook=lambda kind, value: kind(value)).decode


def _reached(tiers: Sequence[Rates], input_tokens: int) -> Rates:
    return next((tier for tier in reversed(tiers) if input_tokens > tier.above_tokens), tiers[0])


def _exceed(ours: Sequence[Rates], theirs: Sequence[Rates]) -> bool:
    """Whether some request costs more at these rates than at the others."""
    starts = {tier.above_tokens for tier in (*ours, *theirs)}
    return any(_reached(ours, start + 1).exceeds(_reached(theirs, start + 1)) for start in starts)


# -- where a price comes from


def price_sheet(
    model_ref: str, lane: Lane, *, at: datetime, overrides: Mapping[str, Mapping[str, object]],
    providers: Mapping[str, Mapping[str, object]] = _NOTHING, runs_here: bool = False,
) -> PriceSheet:  # fmt: skip
    """The price of ``model_ref`` ("P/M") in ``lane`` for a request made at ``at`` (aware).

    ``overrides`` are the ``[models."P/M"]`` tables, ``providers`` the ``[providers.P]`` tables; a
    ``price`` there wins over everything, the model's own first. A model that ``runs_here``, on
    hardware of the user's own, costs nothing unless they price it.

    Raises:
        UnknownPrice: nobody knows the price.
        UsageError: the ``price`` given is not one.
    """
    date = at.astimezone(UTC).date().isoformat()
    if lane is Lane.CACHE:
        return _free(model_ref, lane, "paid for by an earlier job", date)
    of_all = providers.get(model_ref.partition("/")[0], {}).get("price")
    given = overrides.get(model_ref, {}).get("price", of_all)
    if given == "free":
        return _free(model_ref, lane, "given as free", date)
    if given is not None:
        rates, batch_known = _given_rates(model_ref, lane, given)
        regular = (_given_rates(model_ref, Lane.LIVE, given)[0],) if lane is Lane.FLEX else ()
        return PriceSheet(model_ref, lane, "nightmill.toml", date, batch_known, (rates,), regular=regular)
    if runs_here or model_ref.startswith(_FREE_UNLESS_PRICED):
        return _free(model_ref, lane, "runs here, free unless priced", date)
    return _listed(model_ref, lane, at, date)


def _free(model_ref: str, lane: Lane, source: str, date: str) -> PriceSheet:
    return PriceSheet(model_ref, lane, source, date, True, (Rates(_ZERO, _ZERO, _ZERO, _ZERO),))


def _given_rates(model_ref: str, lane: Lane, given: object) -> tuple[Rates, bool]:
    """The rates of a user's price table, and whether they are meant for this lane."""
    beside = {f"{tier}_{side}" for tier in ("batch", "flex") for side in ("input", "output")}
    known = {"input", "output", "cached_input", "cache_write"} | beside
    if not isinstance(given, Mapping) or not {"input", "output"} <= given.keys() <= known:
        raise _bad_price(model_ref, f"it is {given!r}")
    price = {str(name): _given_rate(model_ref, str(name), value) for name, value in given.items()}
    fresh, output = price["input"], price["output"]
    is_known = True
    if lane in (Lane.BATCH, Lane.FLEX):
        # A side that costs nothing needs no price of its own: embeddings have no output.
        is_known = all(f"{lane}_{side}" in price or not price[side] for side in ("input", "output"))
        fresh, output = price.get(f"{lane}_input", fresh), price.get(f"{lane}_output", output)
    if lane is Lane.FLEX and not is_known:
        raise _no_flex_price(model_ref, "its price in nightmill.toml names no flex_input and flex_output")
    cached, written = price.get("cached_input", fresh), price.get("cache_write", fresh)
    return Rates(fresh, cached, written, output), is_known


def _given_rate(model_ref: str, name: str, value: object) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise _bad_price(model_ref, f"{name} is {value!r}")
    try:
        usd_per_million = Decimal(str(value))
    except InvalidOperation:
        raise _bad_price(model_ref, f"{name} is {value!r}") from None
    if not usd_per_million.is_finite() or usd_per_million < 0:
        raise _bad_price(model_ref, f"{name} is {value!r}")
    return _per_unit(usd_per_million, 1_000_000)


def _bad_price(model_ref: str, why: str) -> UsageError:
    return UsageError(f"the price of {model_ref} is not a price", why=why, fix=_how_to_price(model_ref))


def _how_to_price(model_ref: str) -> str:
    return (
        "put this into nightmill.toml, with your own numbers in USD per 1M tokens:\n"
        f'[models."{model_ref}"]\n'
        "price = { input = 1.00, output = 4.00 }\n"
        "(also cached_input, cache_write, batch_input, batch_output, flex_input, flex_output), or, if it costs "
        "nothing:\n"
        f'[models."{model_ref}"]\n'
        'price = "free"'
    )


def _per_unit(usd: Decimal, units: int) -> Fraction:
    return Fraction(usd) * NANOS_PER_USD / units


# -- the catalogue


def _listed(model_ref: str, lane: Lane, at: datetime, date: str) -> PriceSheet:
    """The catalogue's price. Imported here: it takes most of a second."""
    import genai_prices

    provider, model = _find(model_ref)
    context = _VARIANTS.get(lane)
    # The catalogue applies variants only to a provider's own models, not to borrowed ones.
    if context and not (any(model is own for own in provider.models) and _has_variant(model, context, at)):
        if lane is Lane.FLEX:
            raise _no_flex_price(model_ref, "the price catalogue has none for it")
        context = None
    priced = [_tiers(model.get_prices(moment, context)) for moment in _moments(model, at)]
    tiers = _dearest([tiers for tiers in priced if tiers])
    if not tiers:
        raise _unknown(model_ref, "the price catalogue has no price per token for it")
    batch_known = lane is not Lane.BATCH or context is not None
    regular = _listed(model_ref, Lane.LIVE, at, date).tiers if lane is Lane.FLEX else ()
    source = f"genai-prices {genai_prices.__version__}"
    if len(priced) > 1:
        source += ", the dearest hour of the day"
    return PriceSheet(model_ref, lane, source, date, batch_known, tiers, regular=regular)


def listed_context(model_ref: str) -> int:
    """Most tokens of a prompt and its answer together, by the price catalogue; 0 where it does not say."""
    try:
        _, model = _find(model_ref)
    except UnknownPrice:
        return 0
    return model.context_window or 0


def newest_price(at: datetime) -> tuple[str, date]:
    """The catalogue, and the last day up to ``at`` on which it lets a price begin: it is no older than that."""
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import ModelPrice, StartDateConstraint

    today, newest = at.astimezone(UTC).date(), date.min
    for model in (model for provider in get_snapshot().providers for model in provider.models):
        prices = [] if isinstance(model.prices, ModelPrice) else [each.constraint for each in model.prices]
        starts = (c.start_date for c in prices if isinstance(c, StartDateConstraint) and c.start_date <= today)
        newest = max((newest, *starts))
    return f"genai-prices {genai_prices.__version__}", newest


def _find(model_ref: str) -> tuple[Provider, ModelInfo]:
    from genai_prices.data_snapshot import get_snapshot

    name, _, model_name = model_ref.partition("/")
    try:
        snapshot = get_snapshot()
        provider = snapshot.find_provider(None, name, None)
        # The catalogue takes any name that contains a provider's: "my-proxy-to-X" would be priced as X.
        if name.lower() not in _names(provider):
            raise _unknown(model_ref, f"the price catalogue does not know a provider named {name}")
    except LookupError as error:
        raise _unknown(model_ref, "the price catalogue does not list it") from error
    try:
        return snapshot.find_provider_model(model_name, provider, None, None)
    except LookupError as error:
        near = difflib.get_close_matches(model_name, [model.id for model in provider.models], n=1)
        hint = f"did you mean {name}/{near[0]}? If not, " if near else ""
        raise _unknown(model_ref, "the price catalogue does not list it", hint) from error


def _names(provider: Provider) -> set[str]:
    """The names a provider goes by, in full."""
    names, clauses = {provider.id}, [provider.provider_match]
    while clauses:
        clause = clauses.pop()
        for value in vars(clause).values() if clause else ():
            if isinstance(value, str):
                names.add(value.lower())
            else:
                clauses.extend(value)
    return names


def _unknown(model_ref: str, why: str, hint: str = "") -> UnknownPrice:
    return UnknownPrice(f"the price of {model_ref} is unknown", why=why, fix=hint + _how_to_price(model_ref))


def _no_flex_price(model_ref: str, why: str) -> UnknownPrice:
    own = f'[models."{model_ref}"]\nprice = {{ input = 1.00, output = 4.00, flex_input = 0.50, flex_output = 2.00 }}'
    fix = f"use --lane batch or --lane live; or, if it has that lane, put its price into nightmill.toml:\n{own}"
    return UnknownPrice(f"the flex price of {model_ref} is unknown", why=why, fix=fix)


def _moments(model: ModelInfo, at: datetime) -> list[datetime]:
    """The moments whose prices may apply to a request sent on the day of ``at``.

    One, unless the price changes with the time of day: then nobody knows at which hour a request
    will run, and a budget holds only if the dearest counts.
    """
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    if isinstance(model.prices, ModelPrice):
        return [at]
    limits = [c.constraint for c in model.prices if isinstance(c.constraint, TimeOfDateConstraint)]
    day = at.astimezone(UTC).date()
    edges = [edge for limit in limits for edge in (limit.start_time, limit.end_time)]
    return [at, *(datetime.combine(day, edge, edge.tzinfo or UTC) for edge in edges)]


def _has_variant(model: ModelInfo, context: Mapping[str, str], at: datetime) -> bool:
    """Whether it has a price of its own for such requests: where it has none, the catalogue gives the regular one."""
    return any(
        variant.when == context
        and (variant.constraint is None or variant.constraint.active(at))
        and variant.prices.input_mtok is not None
        for variant in model.price_variants or ()
    )


def _tiers(price: ModelPrice) -> tuple[Rates, ...]:
    """The catalogue's price as rates, tier by tier; empty when it names none for input tokens.

    Its parts without a price of their own count as what they are part of. A tier's price is for
    the whole request, from the first input token above its start.
    """
    from genai_prices.types import TieredPrices

    if price.input_mtok is None:
        return ()
    parts = (price.cache_read_mtok, price.cache_write_mtok, price.output_mtok)
    of_sound = (price.input_audio_mtok, price.cache_audio_read_mtok)
    columns = (price.input_mtok, *parts, price.requests_kcount, *of_sound)
    starts = {tier.start for column in columns if isinstance(column, TieredPrices) for tier in column.tiers}

    def rate(column: Decimal | TieredPrices, start: int, units: int) -> Fraction:
        if isinstance(column, TieredPrices):
            reached = [tier.price for tier in column.tiers if tier.start <= start]
            column = reached[-1] if reached else column.base
        return _per_unit(column, units)

    def rates(start: int) -> Rates:
        fresh = rate(price.input_mtok or Decimal(0), start, 1_000_000)
        cached, written, output = (
            absent if column is None else rate(column, start, 1_000_000)
            for column, absent in zip(parts, (fresh, fresh, _ZERO), strict=True)
        )
        sound = (None if column is None else rate(column, start, 1_000_000) for column in of_sound)
        each = rate(price.requests_kcount or Decimal(0), start, 1_000)
        return Rates(fresh, cached, written, output, each, *sound, above_tokens=start)

    return tuple(rates(start) for start in sorted(starts | {0}))


def _dearest(priced: Sequence[tuple[Rates, ...]]) -> tuple[Rates, ...]:
    """Tiers that are, rate by rate, the highest of several."""
    if len(priced) < 2:
        return priced[0] if priced else ()

    def reached(tiers: tuple[Rates, ...], start: int) -> Rates:
        return [tier for tier in tiers if tier.above_tokens <= start][-1]

    def highest(start: int) -> Rates:
        rows = [reached(tiers, start).all for tiers in priced]
        return Rates(*map(max, zip(*rows, strict=True)), above_tokens=start)

    return tuple(map(highest, sorted({tier.above_tokens for tiers in priced for tier in tiers})))


# -- tokens, without a tokenizer

# Thousandths of a token per character, by class; fitted to a current vocabulary (mean error 6 %).
_WEIGHTS: Final = {
    b"l": 80,  # ASCII letter
    b"d": 730,  # digit
    b"s": 130,  # space, tab
    b"n": 1000,  # newline
    b"p": 470,  # other ASCII
    b"a": 880,  # accented Latin
    b"c": 270,  # Cyrillic
    b"h": 750,  # Hangul
    b"k": 755,  # Han, kana, full width
    b"o": 370,  # all other
}
_WORD_WEIGHT: Final = 620  # per run of ASCII letters


def _classes() -> bytes:
    """For each UTF-8 byte the class of the character it begins; ``-`` for the bytes that follow.

    The first byte tells the script well enough: D0-D3 is Cyrillic, E4-E9 Han, EB-ED Hangul.
    """
    table = bytearray(b"p" * 128 + b"-" * 64 + b"o" * 64)
    for kind, members in (
        (b"l", [*range(0x41, 0x5B), *range(0x61, 0x7B)]),
        (b"d", range(0x30, 0x3A)),
        (b"s", b" \t"),
        (b"n", b"\n"),
        (b"a", range(0xC2, 0xCA)),
        (b"c", range(0xD0, 0xD4)),
        (b"k", [*range(0xE3, 0xEA), 0xEF]),
        (b"h", range(0xEA, 0xEE)),
    ):
        for byte in members:
            table[byte] = kind[0]
    return bytes(table)


_CLASSES: Final = _classes()


def estimate_tokens(text: str) -> int:
    """About how many tokens ``text`` has; never more than its UTF-8 bytes, 0 only if it is empty."""
    return _estimate(text.encode("utf-8", "surrogatepass"))


def _estimate(data: bytes) -> int:
    classed = data.translate(_CLASSES)
    words = classed.count(b"l") and 1 + _inner_words(classed)
    total = words * _WORD_WEIGHT + sum(classed.count(kind) * weight for kind, weight in _WEIGHTS.items())
    return -(-total // 1000)


_LETTERS_ONLY: Final = bytes(ord("l") if byte == ord("l") else ord(" ") for byte in range(256))


def _inner_words(classed: bytes) -> int:
    """Runs of letters after the first run."""
    return classed.translate(_LETTERS_ONLY).strip().count(b" l")


@dataclass(slots=True)
class TokenFit:
    """Input tokens of requests by their size, as some tell that were looked at.

    They lie on the line that fits best, by least squares: so many tokens for each request (a schema adds some, bytes of
    JSON that are not billed take some off), so many for each byte. Requests of one size do not tell the two apart;
    then all is counted by the byte.
    """

    _requests: int = 0
    _bytes: int = 0
    _tokens: int = 0
    _squares: int = 0
    _products: int = 0
    _least: int | None = None  # tokens of a request

    def add(self, size_bytes: int, tokens: int, *, stands_for: int = 1) -> None:
        """One more request that was looked at, for so many like it."""
        self._requests += stands_for
        self._bytes += stands_for * size_bytes
        self._tokens += stands_for * tokens
        self._squares += stands_for * size_bytes**2
        self._products += stands_for * size_bytes * tokens
        self._least = tokens if self._least is None else min(tokens, self._least)

    def of(self, requests: Fraction | int, size_bytes: Fraction | int) -> Fraction:
        """The tokens of so many requests that have so many bytes together; 0 where none was looked at."""
        if self._least is None:
            return Fraction(0)
        by_byte = Fraction(self._tokens, max(1, self._bytes))
        if spread := self._requests * self._squares - self._bytes**2:
            by_byte = max(Fraction(0), Fraction(self._requests * self._products - self._bytes * self._tokens, spread))
        by_request = (self._tokens - by_byte * self._bytes) / self._requests
        return max(by_request * requests + by_byte * size_bytes, Fraction(self._least) * requests)
