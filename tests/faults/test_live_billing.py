"""What a live call may have cost, where the answer does not say: never nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, house

from nightmill.providers import LiveReply
from nightmill.providers.openai import OpenAI
from nightmill.types import JobState

ROWS = 4
BODIES = {
    "a gateway's JSON": (504, b'{"message": "Endpoint request timed out"}'),
    "a bare error text": (502, b'{"error": "upstream connect error"}'),
    "a success without an answer": (200, b"{}"),
    "an answer cut short": (200, b'{"choices": [{"mess'),
}


def in_its_place(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> None:
    """The first call runs, and something on the way back puts its own words in place of the answer."""
    real, left = OpenAI.send, [None]

    async def send(self: OpenAI, url: str, sent: bytes, *, timeout_s: float) -> LiveReply:
        reply = await real(self, url, sent, timeout_s=timeout_s)
        if left:
            left.pop()
            return LiveReply(status, body)
        return reply

    monkeypatch.setattr(OpenAI, "send", send)


def never_less_than_billed(h: House, **options: Any) -> tuple[int, int]:
    """``(spent, unproven)`` of a finished live job, after comparing it with the invoice."""
    job = h.run(h.submit(ROWS, "live", **options))
    assert job.state is JobState.COMPLETED
    tally = h.tally(job)
    assert h.invoice()["total_nanos"] <= tally.spent_nanos
    assert sum(row["cost_nanos"] for row in h.results(job)) == tally.spent_nanos - tally.unproven_nanos
    return tally.spent_nanos, tally.unproven_nanos


@pytest.mark.parametrize("what", BODIES)
def test_words_that_are_not_the_providers_prove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """JSON or not: a call that somebody else answered for may be billed, is booked apart and asked again."""
    in_its_place(monkeypatch, *BODIES[what])
    with house(tmp_path) as h:
        _, unproven = never_less_than_billed(h)
        assert unproven > 0
        assert h.invoice()["executed_rows"] == ROWS + 1


@pytest.mark.parametrize("lane", ["live", "batch"])
@pytest.mark.parametrize("name", ["truncated_answers", "empty_answers", "refusal_answers"])
def test_a_useless_answer_without_usage_was_billed(tmp_path: Path, lane: str, name: str) -> None:
    """Cut, empty or refused, and no word of its tokens: booked as if the cap had been used up, and marked."""
    with house(tmp_path, {"fault": "usage_missing", "fraction": 1.0}, {"fault": name, "count": 2}) as h:
        job = h.run(h.submit(ROWS, lane))
        assert h.fired()["usage_missing"] > 0
        assert h.fired()[name] > 0
        tally = h.tally(job)
        assert tally.counts.failed == 2
        assert h.invoice()["total_nanos"] <= tally.spent_nanos
        results = h.results(job)
        assert sum(row["cost_nanos"] for row in results) == tally.spent_nanos
        assert all(row["cost_nanos"] and row["cost_estimated"] for row in results if not row["success"])
        assert all(row["tokens_out"] == 400 for row in results if not row["success"])


def test_a_measured_mean_is_never_above_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was measured before, no answer is expected to be longer than it may be."""
    with house(tmp_path) as h:
        monkeypatch.setattr(type(h.mill.ledger), "mean_output_tokens", lambda *_: 5_000)
        job = h.submit(ROWS, "live")
        assert job.quote is not None
        assert job.quote.output_tokens == ROWS * 400
