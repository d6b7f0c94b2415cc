"""Prices: equal to the catalogue's to the nano, never above the hold, never a guess."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import genai_prices
import pytest
from genai_prices import data_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nightmill.errors import UnknownPrice, UsageError
from nightmill.pricing import (
    FRAMING_TOKENS,
    PriceSheet,
    Rates,
    estimate_tokens,
    price_sheet,
)
from nightmill.types import Lane, Usage

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def listed(model: str, lane: Lane = Lane.LIVE, at: datetime = NOON) -> PriceSheet:
    return price_sheet(model, lane, at=at, overrides={})


def priced(price: object, lane: Lane = Lane.LIVE) -> PriceSheet:
    overrides: Mapping[str, Mapping[str, object]] = {"lan/model": {"price": price, "context": 8192}}
    return price_sheet("lan/model", lane, at=NOON, overrides=overrides)


def flat(*rates: int | str) -> PriceSheet:
    return PriceSheet("p/m", Lane.LIVE, "here", "2026-11-21", True, (Rates(*map(Fraction, rates)),))


# -- against the catalogue


def catalogue_nanos(provider: str, model: str, lane: Lane, usage: Usage, at: datetime) -> int:
    theirs = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
    )
    context = {Lane.BATCH: {"processing": "batch"}, Lane.FLEX: {"service_tier": "flex"}}.get(lane)
    price = genai_prices.calc_price(
        theirs, model, provider_id=provider, genai_request_timestamp=at, price_context=context
    )
    return int((price.total_price * 10**9).quantize(Decimal(1), ROUND_HALF_UP))


def is_listed(provider: str, model: str) -> bool:
    try:
        data_snapshot.get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return False
    return True


def usages(sheet: PriceSheet, rng: random.Random) -> list[Usage]:
    """Usages at, just below and just above every tier, with parts cached and written."""
    edges = [tier.above_tokens + step for tier in sheet.tiers for step in (0, 1, 2)]
    totals = [*edges, rng.randrange(1, 500), rng.randrange(1_000_000)]
    found = []
    for total in totals:
        cached = rng.choice((0, rng.randint(0, total)))
        written = rng.choice((0, rng.randint(0, total - cached)))
        found.append(Usage(total, rng.choice((0, 1, rng.randrange(100_000))), cached, written))
    return found


@pytest.mark.parametrize(("ours", "theirs"), [("openai", "openai"), ("anthropic", "anthropic"), ("gemini", "google")])
@pytest.mark.parametrize("at", [NOON, datetime(2026, 9, 1, tzinfo=UTC), datetime(2027, 6, 1, 23, tzinfo=UTC)])
def test_cost_equals_the_catalogue_to_the_nano(ours: str, theirs: str, at: datetime) -> None:
    """Every listed model, in both lanes, before and after prices change: the same nanos."""
    rng = random.Random(f"{ours}{at}")
    provider = data_snapshot.find_provider_by_id(data_snapshot.get_snapshot().providers, theirs)
    assert provider is not None
    compared = tiered = 0
    for model in provider.models:
        for lane in (Lane.BATCH, Lane.LIVE):
            try:
                sheet = listed(f"{ours}/{model.id}", lane, at)
            except UnknownPrice:
                assert not is_listed(theirs, model.id) or model.get_prices(at).input_mtok is None
                continue
            tiered += len(sheet.tiers) > 1
            for usage in usages(sheet, rng):
                compared += 1
                expected = catalogue_nanos(theirs, model.id, lane, usage, at)
                assert sheet.cost(usage) == expected, (model.id, lane, usage)
    assert compared > 150
    assert tiered


@pytest.mark.parametrize("lane", [Lane.BATCH, Lane.LIVE])
def test_a_borrowed_price_is_the_standard_one_and_marked(lane: Lane) -> None:
    """A model resold by another provider has the price of its maker, but not the batch price."""
    usage = Usage(1000, 100, 10)
    sheet = listed("azure/claude-haiku-4-5", lane)
    assert sheet.cost(usage) == catalogue_nanos("azure", "claude-haiku-4-5", lane, usage, NOON)
    assert sheet.tiers == listed("anthropic/claude-haiku-4-5").tiers
    assert sheet.batch_known == (lane is Lane.LIVE)


def test_a_tier_is_for_the_whole_request_and_only_above_its_threshold() -> None:
    """At the threshold the low price holds; one token more and every token costs the high one."""
    sheet = listed("gemini/gemini-2.5-pro")
    assert [tier.above_tokens for tier in sheet.tiers] == [0, 200_000]
    low, high = sheet.tiers
    assert sheet.cost(Usage(200_000, 10)) == 200_000 * low.input + 10 * low.output
    assert sheet.cost(Usage(200_001, 10)) == 200_001 * high.input + 10 * high.output
    assert sheet.rates(200_000) == low
    assert sheet.rates(200_001) == high


def test_batch_is_half_and_says_whether_it_is_known() -> None:
    """A batch price is used where there is one; where there is none, the standard one, marked."""
    live, batch = listed("openai/gpt-5-mini"), listed("openai/gpt-5-mini", Lane.BATCH)
    assert live.tiers == flat(250, 25, 250, 2000).tiers
    assert batch.tiers == flat(125, "25/2", 125, 1000).tiers
    assert batch.batch_known
    unknown = listed("openai/text-embedding-3-small", Lane.BATCH)
    assert not unknown.batch_known
    assert unknown.tiers == listed("openai/text-embedding-3-small").tiers
    before = listed("openai/gpt-5-mini", Lane.BATCH, datetime(2026, 10, 1, tzinfo=UTC))
    assert not before.batch_known
    assert before.tiers == live.tiers


def test_flex_has_both_prices_and_an_answer_says_which_is_its() -> None:
    """What says flex costs what the catalogue says of that tier, all else the live price; holds count the dearer."""
    live, flex = listed("openai/gpt-5-mini"), listed("openai/gpt-5-mini", Lane.FLEX)
    usage = Usage(1000, 100, 10)
    assert flex.cost(replace(usage, flex=True)) == catalogue_nanos("openai", "gpt-5-mini", Lane.FLEX, usage, NOON)
    assert flex.cost(usage) == live.cost(usage) == flex.total([usage]) == flex.costs([1000], [100], [10], [0])[0]
    assert flex.sum_of_costs([1000], [100], [0], [0]) == live.cost(Usage(1000, 100))
    assert flex.worst(1000, 10, 500) == live.worst(1000, 10, 500)
    assert PriceSheet.from_json(flex.to_json()) == flex
    assert live.dearer_than(flex)
    assert not flex.dearer_than(live)
    dearer = PriceSheet(
        "p/m", Lane.FLEX, "here", "2026-11-21", True, flex.tiers, regular=flat(251, 25, 250, 2000).tiers
    )
    assert dearer.dearer_than(flex)
    assert not flex.dearer_than(dearer)


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "azure/gpt-5-mini"])
def test_without_a_flex_price_there_is_none_and_not_the_regular_one(model: str) -> None:
    """The catalogue is silent where it knows none: that is no price, and what to do is said."""
    with pytest.raises(UnknownPrice, match="flex price") as refused:
        listed(model, Lane.FLEX)
    assert "--lane live" in refused.value.fix


def test_a_users_flex_price() -> None:
    """Two more numbers; with half of them, or none, the lane has no price, unless a side costs nothing."""
    sheet = priced({"input": 2, "output": 8, "flex_input": 1, "flex_output": 3}, Lane.FLEX)
    assert (sheet.tiers, sheet.regular) == (flat(1000, 1000, 1000, 3000).tiers, flat(2000, 2000, 2000, 8000).tiers)
    assert priced({"input": 2, "output": 0, "flex_input": 1}, Lane.FLEX).tiers == flat(1000, 1000, 1000, 0).tiers
    assert priced("free", Lane.FLEX).is_free
    for short in ({"input": 2, "output": 8}, {"input": 2, "output": 8, "flex_input": 1}):
        with pytest.raises(UnknownPrice, match="flex price"):
            priced(short, Lane.FLEX)


def test_a_source_and_a_date_come_with_every_price() -> None:
    """A price can be traced: which catalogue, which day."""
    sheet = listed("openai/gpt-5-mini")
    assert sheet.source == f"genai-prices {genai_prices.__version__}"
    assert sheet.date == "2026-11-21"


@pytest.mark.parametrize("hour", [0, 3, 9, 20])
def test_a_price_that_changes_by_the_hour_counts_at_its_dearest(hour: int) -> None:
    """Nobody knows at which hour a request will run, so a budget reckons with the worst hour."""
    at = NOON.replace(hour=hour)
    usage = Usage(12_345, 678, 1_000)
    hours = [NOON.replace(hour=h, minute=m) for h in range(24) for m in (0, 29, 30, 31, 59)]
    dearest = max(catalogue_nanos("deepseek", "deepseek-chat", Lane.LIVE, usage, moment) for moment in hours)
    sheet = listed("deepseek/deepseek-chat", at=at)
    assert sheet.cost(usage) == dearest
    assert "dearest hour" in sheet.source


def test_a_fee_per_request_is_counted() -> None:
    """A model that charges by the request as well is not priced by its tokens alone."""
    usage = Usage(100, 10)
    sheet = listed("perplexity/sonar")
    assert sheet.cost(usage) == catalogue_nanos("perplexity", "sonar", Lane.LIVE, usage, NOON)
    assert sheet.cost(usage) > 12_000_000
    assert sheet.worst(100, 1, 10) >= sheet.cost(usage)


# -- what nobody knows


@pytest.mark.parametrize(
    "model", ["openai/no-such-model", "lan/model", "my-openai-proxy/gpt-5-mini", "groq/whisper-large-v3", "nonsense"]
)
def test_an_unknown_price_is_refused_with_the_lines_to_add(model: str) -> None:
    """No guess: neither for a strange model, nor for a name that merely contains a known one."""
    with pytest.raises(UnknownPrice) as caught:
        listed(model)
    assert model in caught.value.what
    assert caught.value.why
    head = f'[models."{model}"]'
    for lines in caught.value.fix.split(head)[1:]:
        setting = next(line for line in lines.splitlines() if line.startswith("price"))
        overrides = tomllib.loads(f"{head}\n{setting}")["models"]
        price_sheet(model, Lane.LIVE, at=NOON, overrides=overrides)
    assert caught.value.fix.count(head) == 2


def test_a_model_name_that_is_nearly_right_is_corrected() -> None:
    """A typo in a model's name is told as a typo before anybody writes a price for it."""
    with pytest.raises(UnknownPrice) as caught:
        listed("openai/gpt-4.1-nanoo")
    assert caught.value.fix.startswith("did you mean openai/gpt-4.1-nano? If not, put this into nightmill.toml")


# -- what the user says


def test_a_users_price_wins_and_is_exact() -> None:
    """0.1 dollars are a tenth of a dollar, not the nearest binary fraction; the catalogue is not asked."""
    for tenth in (0.1, "0.1", Decimal("0.1")):
        overrides = {"openai/gpt-5-mini": {"price": {"input": tenth, "output": 3, "cached_input": "0.01"}}}
        sheet = price_sheet("openai/gpt-5-mini", Lane.LIVE, at=NOON, overrides=overrides)
        assert sheet.source == "nightmill.toml"
        assert sheet.tiers == (Rates(Fraction(100), Fraction(10), Fraction(100), Fraction(3000)),)


def test_a_users_batch_price() -> None:
    """Both sides given: used and known. Else the standard price stands in, and is marked."""
    both = {"input": 2, "output": 8, "batch_input": 1, "batch_output": 4}
    assert priced(both, Lane.LIVE).tiers[0].output == 8000
    batch = priced(both, Lane.BATCH)
    assert batch.batch_known
    assert batch.tiers == flat(1000, 1000, 1000, 4000).tiers
    none = priced({"input": 2, "output": 8}, Lane.BATCH)
    assert not none.batch_known
    assert none.tiers == flat(2000, 2000, 2000, 8000).tiers
    assert not priced({"input": 2, "output": 8, "batch_input": 1}, Lane.BATCH).batch_known
    assert priced({"input": 2, "output": 0, "batch_input": 1}, Lane.BATCH).batch_known
    assert priced({"input": 2, "output": 8}, Lane.LIVE).batch_known


@pytest.mark.parametrize(
    "price",
    [
        "cheap",
        3,
        {},
        {"input": 1},
        {"input": 1, "output": 1, "inptu": 1},
        {"input": -1, "output": 1},
        {"input": "one", "output": 1},
        {"input": float("nan"), "output": 1},
        {"input": "Infinity", "output": 1},
        {"input": True, "output": 1},
        {"input": None, "output": 1},
    ],
)
def test_a_price_that_is_none_is_refused(price: object) -> None:
    """A slip of the pen in a price is an error, not a price of zero."""
    with pytest.raises(UsageError) as caught:
        priced(price)
    assert "price = " in caught.value.fix


def test_what_is_free() -> None:
    """Local models and functions are free unless priced; so is what the user calls free; so is the cache."""
    for sheet in (priced("free"), listed("local/smollm2-135m"), listed("python:pkg.fn"), listed("any/x", Lane.CACHE)):
        assert sheet.is_free
        assert sheet.cost(Usage(10**9, 10**9, 5, 5)) == 0
        assert sheet.worst(10**9, 10**6, 10**9) == 0
    assert priced("free").source == "given as free"
    paid = {"local/big": {"price": {"input": 1, "output": 1}}}
    assert not price_sheet("local/big", Lane.LIVE, at=NOON, overrides=paid).is_free
    unpriced = {"local/big": {"context": 4096}}
    assert price_sheet("local/big", Lane.LIVE, at=NOON, overrides=unpriced).is_free


# -- arithmetic

rationals = st.fractions(min_value=0, max_value=10**6, max_denominator=1000)


@st.composite
def sheets(draw: st.DrawFn) -> PriceSheet:
    starts = [0, *sorted(draw(st.sets(st.integers(1, 3000), max_size=3)))]
    tiers = tuple(Rates(*(draw(rationals) for _ in range(7)), above_tokens=start) for start in starts)
    other = (Rates(*(draw(rationals) for _ in range(7))),)
    regular = draw(st.sampled_from(((), other)))
    return PriceSheet("p/m", Lane.BATCH, "here", "2026-11-21", True, tiers, regular=regular)


@st.composite
def any_usage(draw: st.DrawFn, most_input: int = 5000, *, sound: bool = False) -> Usage:
    total = draw(st.integers(0, most_input))
    cached = draw(st.integers(0, total))
    written = draw(st.integers(0, total - cached))
    fresh, before = (draw(st.integers(0, most)) if sound else 0 for most in (total - cached - written, cached))
    return Usage(
        total, draw(st.integers(0, 5000)), cached, written, audio_tokens=fresh + before, cached_audio_tokens=before,
        flex=draw(st.booleans()),
    )  # fmt: skip


@settings(deadline=None)
@given(sheets(), any_usage(sound=True))
def test_cost_is_the_exact_sum_rounded_half_up_once(sheet: PriceSheet, usage: Usage) -> None:
    """Integers on the hot path give what rational arithmetic gives."""
    tiers = sheet.tiers if usage.flex or not sheet.regular else sheet.regular
    tier = [t for t in tiers if usage.input_tokens > t.above_tokens or not t.above_tokens][-1]
    before = usage.cached_audio_tokens
    heard = usage.audio_tokens - before
    fresh = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens - heard
    counts = (fresh, usage.cached_tokens - before, usage.cache_write_tokens, usage.output_tokens, 1, heard, before)
    exact = sum(rate * count for rate, count in zip(tier.all, counts, strict=True))
    assert sheet.cost(usage) == (exact + Fraction(1, 2)).__floor__()


@settings(deadline=None)
@given(sheets(), st.lists(any_usage(), max_size=5), st.booleans())
def test_many_costs_are_the_costs_of_each(sheet: PriceSheet, usages: list[Usage], fresh: bool) -> None:
    """In columns, in a sum or one by one: the same nanos, with and without cached tokens, tiers and odd rates."""
    if fresh:
        usages = [Usage(usage.input_tokens, usage.output_tokens) for usage in usages]
    usages = [replace(usage, flex=False) for usage in usages]  # no column says it
    columns = [[getattr(usage, name) for usage in usages] for name in Usage.__struct_fields__[:4]]
    each = [sheet.cost(usage) for usage in usages]
    assert sheet.costs(*columns) == each
    assert sheet.sum_of_costs(*columns) == sheet.total(usages) == sum(each)
    even = flat(3, 1, 2, 7)
    assert even.sum_of_costs(*columns) == sum(map(even.cost, usages))


@settings(deadline=None)
@given(sheets(), st.lists(any_usage(), max_size=5))
def test_the_sum_of_costs_lies_within_what_the_totals_allow(sheet: PriceSheet, parts: list[Usage]) -> None:
    """From the sums of tokens alone the bill is known to within the rounding of each; not in tiers, nor with sound."""
    whole = Usage(
        sum(u.input_tokens for u in parts), sum(u.output_tokens for u in parts), sum(u.cached_tokens for u in parts),
        sum(u.cache_write_tokens for u in parts),
    )  # fmt: skip
    sheet = PriceSheet("p/m", Lane.BATCH, "here", "2026-11-21", True, sheet.tiers)
    bounds = sheet.of_totals(whole, len(parts))
    if len(sheet.tiers) > 1 or sheet.tiers[0].all[5:] != sheet.tiers[0].all[:2]:
        assert bounds is None
        return
    assert bounds is not None
    least, most = bounds
    assert least <= sheet.total(parts) <= most
    assert most - least <= len(parts)


def test_half_a_nano_is_rounded_up() -> None:
    """Half-up, not to even."""
    assert [flat("1/2", 0, 0, 0).cost(Usage(n, 0)) for n in range(6)] == [0, 1, 1, 2, 2, 3]


def test_parts_larger_than_the_whole_are_no_refund() -> None:
    """A provider that reports more cached tokens than input is booked for those, never below."""
    assert flat(10, 1, 2, 0).cost(Usage(5, 0, cached_tokens=100, cache_write_tokens=7)) == 114


@settings(deadline=None)
@given(sheets(), st.lists(st.tuples(any_usage(), st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_no_split_of_the_content_costs_more_than_the_worst(
    sheet: PriceSheet, requests: list[tuple[Usage, int, int]]
) -> None:
    """The hold covers the bill, however bytes, tiers, cache parts and caps fall on the requests."""
    content = sum(max(u.input_tokens - FRAMING_TOKENS, 0) + spare for u, spare, _ in requests)
    caps = sum(u.output_tokens + spare for u, _, spare in requests)
    bill = sum(sheet.cost(u) for u, _, _ in requests)
    assert bill <= sheet.worst(content, len(requests), caps)


def test_the_worst_is_not_wildly_above_the_dearest_bill() -> None:
    """The bound is tight but for rounding: money is not held for nothing."""
    sheet = flat(250, 25, 300, 2000)
    bill = 10 * sheet.cost(Usage(100 + FRAMING_TOKENS, 50, 0, 100 + FRAMING_TOKENS))
    assert sheet.worst(1000, 10, 500) == bill + 10


@settings(deadline=None)
@given(sheets())
def test_a_pinned_sheet_survives_json_exactly(sheet: PriceSheet) -> None:
    """What was held is settled at the very same price, thirds of a nano included."""
    again = PriceSheet.from_json(sheet.to_json())
    assert again == sheet
    usage = Usage(2500, 77, 300, 200)
    assert again.cost(usage) == sheet.cost(usage)
    assert again.worst(999, 3, 77) == sheet.worst(999, 3, 77)


def test_a_broken_pinned_sheet_is_an_error() -> None:
    """A sheet that cannot be read is never read as another price."""
    good = flat(1, 2, 3, 4).to_json()
    for bad in ("", "{}", good.replace('"1"', '"one"'), good.replace('"1"', '"-1"'), good.replace('"live"', '"x"')):
        with pytest.raises(ValueError, match=r".+"):
            PriceSheet.from_json(bad)


@pytest.mark.parametrize("starts", [(), (5,), (0, 9, 3), (0, 0)])
def test_tiers_must_rise_from_zero(starts: tuple[int, ...]) -> None:
    """A gap or a disorder in the tiers is refused, since it would hide a price."""
    one = Fraction(1)
    tiers = tuple(Rates(one, one, one, one, above_tokens=start) for start in starts)
    with pytest.raises(ValueError, match="tiers"):
        PriceSheet("p/m", Lane.LIVE, "here", "2026-11-21", True, tiers)


def test_dearer_means_some_request_costs_more() -> None:
    """One higher rate, in any tier, makes a sheet dearer; a lower one does not make up for it."""
    base = flat(10, 1, 12, 40)
    assert not base.dearer_than(base)
    assert flat(10, 2, 12, 40).dearer_than(base)
    assert flat(1, 1, 1, 41).dearer_than(base)
    assert not flat(9, 1, 12, 40).dearer_than(base)
    high = Rates(*map(Fraction, (20, 1, 12, 40)), above_tokens=1000)
    tiered = PriceSheet("p/m", Lane.LIVE, "here", "2026-11-21", True, (*base.tiers, high))
    assert tiered.dearer_than(base)
    assert not base.dearer_than(tiered)


# -- tokens


@settings(deadline=None)
@given(st.text())
def test_an_estimate_is_never_above_the_bytes(text: str) -> None:
    """Byte-level vocabularies never use more than a token a byte; an estimate claims no more."""
    size = len(text.encode())
    assert estimate_tokens(text) <= size
    assert (estimate_tokens(text) == 0) == (size == 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("word", 4 * 0.08 + 0.62),
        ("two words", 8 * 0.08 + 2 * 0.62 + 0.13),
        ("a1b\n\tc.", 3 * 0.08 + 3 * 0.62 + 0.73 + 1.0 + 0.13 + 0.47),
        ("naïve", 4 * 0.08 + 2 * 0.62 + 0.88),
        ("Привет", 6 * 0.27),
        ("안녕하세요", 5 * 0.75),
        ("你好かなＡ", 5 * 0.755),
        ("नमस्ते", 6 * 0.37),
        ("😀", 0.37),
    ],
)
def test_each_kind_of_character_has_its_weight(text: str, expected: float) -> None:
    """The linear model: repeated often enough that rounding does not hide a wrong weight."""
    assert estimate_tokens((text + ".") * 1000) == pytest.approx((expected + 0.47) * 1000, abs=1)


def test_lone_surrogates_do_not_stop_an_estimate() -> None:
    """Bad text is refused elsewhere, with its line; here it only has a length."""
    assert estimate_tokens("a\ud800b") >= 1
