"""The same promises over another wire: what is asked of Anthropic's format, in both lanes, adds up to its bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("D2")

MODEL = "anthropic/claude-haiku-4-5"
ROWS = 12


def _place(folder: Path, url: str) -> Place:
    place = Place(folder, url)
    place.env |= {"ANTHROPIC_BASE_URL": url.removesuffix("/v1"), "ANTHROPIC_API_KEY": "sk-ant-simulated"}
    return place


def _run(place: Place, lane: str, *more: str) -> Any:
    done = place.run(
        "run",
        place.rows(ROWS),
        "--prompt",
        "Say {{ text }}",
        "--model",
        MODEL,
        "--lane",
        lane,
        "--yes",
        "--json",
        *more,
    )
    assert adds_up(done.json), done.err
    return done.json


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_spend_is_the_invoice(tmp_path: Path, lane: str) -> None:
    """Every row succeeds, runs once, and costs what the provider's bill says."""
    with in_thread(SimulatorConfig(speed=1000.0)) as url:
        place = _place(tmp_path, url)
        found = _run(place, lane)
        assert (found["succeeded"], found["lane"]) == (ROWS, lane)
        bill = place.invoice()
        assert bill["providers"]["anthropic"]["executed_rows"] == ROWS == bill["executed_rows"]
        assert bill["executed_more_than_once"] == 0
        assert round(found["spent_usd"] * 1e9) == bill["total_nanos"] > 0


@pytest.mark.parametrize(
    "faults",
    [
        [{"fault": "row_errors", "count": 3, "status": 529, "times": 1}],
        [{"fault": "expire_at", "fraction": 0.5, "times": 1}],
        [{"fault": "enqueued_limit_now", "times": 1}],
        [{"fault": "shuffled_rows"}, {"fault": "unknown_lines"}, {"fault": "duplicate_lines", "differ": True}],
        [{"fault": "truncated_last_line", "times": 1}, {"fault": "short_body", "after": 1, "times": 1}],
        [{"fault": "status_unknown_word"}, {"fault": "poll_500", "times": 2}, {"fault": "absent_file_ids"}],
    ],
    ids=lambda faults: faults[0]["fault"],
)
def test_batches_come_through_trouble(tmp_path: Path, faults: list[dict[str, Any]]) -> None:
    """What is transient is done again, what is odd is accounted for, and not a cent is lost sight of."""
    with in_thread(SimulatorConfig(speed=1000.0, faults=faults)) as url:
        place = _place(tmp_path, url)
        found = _run(place, "batch")
        assert found["succeeded"] == ROWS
        assert round(found["spent_usd"] * 1e9) == place.invoice()["total_nanos"]


@pytest.mark.parametrize("fault", ["create_accepted_then_timeout", "create_accepted_then_500"])
def test_a_create_whose_answer_is_lost_is_found_again(tmp_path: Path, fault: str) -> None:
    """The batch that was made all the same is taken up, known by its time and its number of requests."""
    with in_thread(SimulatorConfig(speed=1000.0, faults=[{"fault": fault, "times": 1, "delay_s": 0}])) as url:
        place = _place(tmp_path, url)
        found = _run(place, "batch")
        assert found["succeeded"] == ROWS
        bill = place.invoice()
        assert (len(bill["batches"]), bill["executed_more_than_once"]) == (1, 0)
        assert round(found["spent_usd"] * 1e9) == bill["total_nanos"]
