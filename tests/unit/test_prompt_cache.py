"""Marks for the caches of prompts: where they stand, when they pay, and that they change nothing but the bill."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.plan import Prefix
from nightmill.pricing import PriceSheet, Rates
from nightmill.providers._anthropic_caching import least_cached, marked, unmarked
from nightmill.providers._anthropic_requests import encoded
from nightmill.types import Lane, Usage

_TEXTS = st.text(min_size=1, max_size=40)
_CONTROL = {"type": "ephemeral"}


def body_of(**request: Any) -> bytes:
    chat = {"messages": [{"role": "user", "content": "x"}], **request}
    return encoded("anthropic", "claude-haiku-4-5", chat, frozenset(request)).body


@given(
    system=st.none() | _TEXTS, shots=st.lists(st.tuples(_TEXTS, _TEXTS), max_size=2), last=_TEXTS, tool=st.booleans()
)
def test_a_mark_comes_off_to_the_byte(system: str | None, shots: list[tuple[str, str]], last: str, tool: bool) -> None:
    """The digest of a request, and with it every cached answer, is the same with a mark and without."""
    chat = [{"role": "system", "content": system}] if system else []
    chat += [
        {"role": role, "content": text} for two in shots for role, text in zip(("user", "assistant"), two, strict=True)
    ]
    chat += [{"role": "user", "content": last}]
    tools = [{"type": "function", "function": {"name": "n", "parameters": {"type": "object"}}}] if tool else None
    body = body_of(messages=chat, tools=tools)
    for turns in (None, 0, 2 * len(shots)):
        found = marked(body, turns)
        assert unmarked(found.body) == body
        assert (found.body == body) == (not found.text)
        assert found.body.count(b'"cache_control":{') <= 1
    assert unmarked(body) == body


def test_the_mark_stands_at_the_end_of_what_is_shared() -> None:
    """Behind the last example, else the system text, else the last tool; one mark is enough for all before it."""
    tools = [{"type": "function", "function": {"name": name}} for name in "ab"]
    chat = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "x"},
    ]  # fmt: skip
    body = body_of(messages=chat, tools=tools)
    by_turns = {turns: json.loads(marked(body, turns).body) for turns in (None, 0, 2)}
    assert by_turns[2]["messages"][1]["content"] == [{"type": "text", "text": "a", "cache_control": _CONTROL}]
    assert by_turns[0]["system"] == [{"type": "text", "text": "s", "cache_control": _CONTROL}]
    assert [tool.get("cache_control") for tool in by_turns[None]["tools"]] == [None, _CONTROL]


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-opus-5", 512), ("claude-sonnet-4-5-20250929", 1024), ("claude-sonnet-4-6", 1024),
        ("claude-opus-4-1", 1024), ("claude-opus-4-8", 1024), ("claude-opus-4-7", 2048),
        ("claude-3-5-haiku-latest", 2048),
        ("claude-opus-4-5", 4096), ("claude-opus-4-6", 4096), ("claude-haiku-4-5", 4096), ("claude-opus-5-5", 4096),
        ("claude-sonnet-9", 4096),
    ],
)  # fmt: skip
def test_the_least_that_is_cached_by_model(model: str, tokens: int) -> None:
    """As Anthropic says of each; of a model that it says nothing of, the most of all."""
    assert least_cached(model) == tokens


def sheet(cached: str, written: str) -> PriceSheet:
    rates = Rates(Fraction(1000), Fraction(cached), Fraction(written), Fraction(5000))
    return PriceSheet("anthropic/m", Lane.BATCH, "test", "2026-11-01", True, (rates,))


@pytest.mark.parametrize(
    ("rows", "burst", "cached", "written", "pays"),
    [
        (10, 0, "100", "1250", True),  # 30 % of hits: 0.3 x 0.1 + 0.7 x 1.25 = 0.905
        (9, 0, "100", "1250", False),
        (1000, 0, "100", "2000", False),  # 1.43
        (1000, 0, "1000", "1000", False),  # nobody knows a price of the cache
        (12, 8, "100", "1250", True),  # a third finds it: 0.867
        (12, 10, "100", "1250", False),  # a sixth: 1.058
        (100, 256, "100", "1250", False),
    ],
)
def test_when_it_pays(rows: int, burst: int, cached: str, written: str, pays: bool) -> None:
    """Only where what is read outweighs what is written, by the prices of the lane, and rows are enough."""
    assert Prefix(3_000, burst).pays(rows, sheet(cached, written)) is pays


@given(read=st.integers(0, 500), written=st.integers(0, 500), fresh=st.integers(0, 500), output=st.integers(0, 50))
def test_no_use_of_a_cache_exceeds_the_hold(read: int, written: int, fresh: int, output: int) -> None:
    """A request of so many bytes is held at the dearest of fresh, read and written, whatever comes of it."""
    prices = sheet("100", "1250")
    total = read + written + fresh
    assert prices.cost(Usage(total, output, read, written)) <= prices.worst(total, 1, output)


@pytest.mark.parametrize("price", ["5m", "1h"])
def test_what_a_user_marks_himself_is_refused(price: str) -> None:
    """An hour's cache costs twice the input, and the price list has one price: no hold would cover it."""
    from nightmill.errors import CannotCarry

    control = {"type": "ephemeral", "ttl": price}
    tool = {"type": "function", "function": {"name": "n"}, "cache_control": control}
    part = [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": control}]}]
    whole = [{"role": "user", "content": "x", "cache_control": control}]
    for request in ({"tools": [tool]}, {"messages": part}, {"messages": whole}, {"cache_control": control}):
        with pytest.raises(CannotCarry):
            body_of(**request)
