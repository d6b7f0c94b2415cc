"""What Gemini's format bills: every answer by its own usage, as the price list has it, and half of it in a batch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from gemini_kit import MODEL, ask, generate, lines, request, results, run
from simulator_kit import fast, invoice

from nightmill.simulator import in_thread

_PRO = "gemini-3.1-pro-preview"


def _nanos(model: str, usage: dict[str, Any], *, batch: bool) -> int:
    """The price of one answer in nano-dollars, from the usage that Google's convention gives it."""
    from genai_prices import Usage, calc_price

    price = calc_price(
        Usage(
            input_tokens=usage["promptTokenCount"],
            cache_read_tokens=usage.get("cachedContentTokenCount", 0),
            output_tokens=usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0),
        ),
        model_ref=model,
        provider_id="google",
        price_context={"processing": "batch"} if batch else None,
    )
    return int(Fraction(price.total_price) * 10**9 + Fraction(1, 2))


@pytest.mark.req("X11")
def test_live_answers_are_billed_by_their_usage() -> None:
    """Thoughts cost what candidates cost, and what was cached costs less."""
    system = {"parts": [{"text": "be a brief miller " * 400}]}
    with in_thread(fast()) as url:
        total, cached = 0, 0
        for i in range(8):
            body = {**request(f"row {i}", thinkingConfig={"thinkingBudget": -1}), "systemInstruction": system}
            usage = ask(url, "POST", f"/v1beta/models/{MODEL}:generateContent", body).json()["usageMetadata"]
            assert usage["thoughtsTokenCount"] > 0
            assert usage["totalTokenCount"] == sum(
                usage[name] for name in ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
            )
            cached += "cachedContentTokenCount" in usage
            total += _nanos(MODEL, usage, batch=False)
        assert 0 < cached < 8
        assert invoice(url)["live_nanos"] == total


def test_a_batch_costs_half() -> None:
    """Row by row, and what failed costs nothing."""
    with in_thread(fast()) as url:
        batch = run(url, lines(20))
        usages = [item["response"]["usageMetadata"] for item in results(url, batch)]
        billed = invoice(url)
        assert billed["batch_nanos"] == sum(_nanos(MODEL, usage, batch=True) for usage in usages)
        assert billed["batches"][batch["name"]] == {"nanos": billed["batch_nanos"], "executed": 20}
        live = [generate(url, f"row number {i}").json()["usageMetadata"] for i in range(20)]
        assert live == usages
        assert abs(invoice(url)["live_nanos"] - 2 * billed["batch_nanos"]) <= 20


def test_a_long_prompt_pays_the_dearer_tier() -> None:
    """The tier holds for the whole request, and for that request alone."""
    with in_thread(fast()) as url:
        usages = [generate(url, text, model=_PRO).json()["usageMetadata"] for text in ("short", "x" * 4 * 200_001)]
        assert invoice(url)["live_nanos"] == sum(_nanos(_PRO, usage, batch=False) for usage in usages)
        dear = usages[1]["promptTokenCount"] * 4000 + usages[1]["candidatesTokenCount"] * 18_000
        assert _nanos(_PRO, usages[1], batch=False) == dear
