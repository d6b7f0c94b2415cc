"""Batches that end before all their rows ran: paid answers stay, only the rest goes out again."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import Done, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = [pytest.mark.req("X1"), pytest.mark.req("E1")]

ROWS = 12
OPENAI, ANTHROPIC, GEMINI = "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash-lite"
KEPT = {OPENAI: 6, ANTHROPIC: 6, GEMINI: 0}  # Gemini hands nothing back of a batch that did not succeed


def place_for(folder: Path, url: str) -> Place:
    place, bare = Place(folder, url), url.removesuffix("/v1")
    place.env |= {"ANTHROPIC_BASE_URL": bare, "ANTHROPIC_API_KEY": "sk-simulated"}
    place.env |= {"GEMINI_BASE_URL": bare, "GEMINI_API_KEY": "sk-simulated"}
    return place


def run(place: Place, model: str) -> Done:
    return place.run(
        "run", place.rows(ROWS), "--prompt", "Say {{ text }}", "--model", model, "--lane", "batch", "--out", "r.jsonl",
        "--yes", "--json",
    )  # fmt: skip


def is_answered_and_paid_once(place: Place, done: Done, kept: int) -> None:
    """All rows have an answer, ``kept`` of them the first batch's, none ran twice, and the books are the bill's."""
    bill, rows = place.invoice(), place.results("r.jsonl")
    assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, ROWS, True), done.err
    assert (bill["executed_rows"], bill["executed_more_than_once"]) == (ROWS, 0)
    proven = round((done.json["spent_usd"] - done.json["unproven_usd"]) * 1e9)
    assert proven == bill["total_nanos"] > 0
    first = min(row["batch_id"] for row in rows if row["shard"].endswith("-0")) if kept else None
    assert sum(row["batch_id"] == first for row in rows) == kept
    assert len(bill["batches"]) == 2


@pytest.mark.parametrize(
    ("fault", "model"),
    [
        *(("expire_at", model) for model in (OPENAI, ANTHROPIC, GEMINI)),
        *(("fail_at", model) for model in (OPENAI, GEMINI)),  # one of Anthropic's does not fail as a whole
    ],
)
def test_a_batch_that_ends_early_by_itself(tmp_path: Path, fault: str, model: str) -> None:
    """Expired or failed with half of its rows done."""
    faults = [{"fault": fault, "fraction": 0.5, "times": 1}]
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=faults)) as url:
        place = place_for(tmp_path, url)
        is_answered_and_paid_once(place, run(place, model), KEPT[model])
