"""Gemini from the command line against the simulator, which bills for itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("D2")

MODEL = "gemini/gemini-2.5-flash"
SCHEMA = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}


def _place(folder: Path, url: str) -> Place:
    place = Place(folder, url)
    place.env |= {"GEMINI_API_KEY": "gm-test", "GEMINI_BASE_URL": url.removesuffix("/v1")}
    return place


@pytest.mark.parametrize(("lane", "bound"), [("batch", False), ("live", False), ("batch", True), ("live", True)])
def test_what_is_spent_is_what_the_simulator_bills(tmp_path: Path, lane: str, bound: bool) -> None:
    """To the nano, in each lane, bound to a schema or not."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.2)) as url:
        place = _place(tmp_path, url)
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        done = place.run(
            "run", place.rows(7), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", lane, "--out", "r.jsonl",
            "--json", "--yes", *(["--schema", "schema.json"] if bound else []),
        )  # fmt: skip
        assert done.code == 0, done.err
        assert (done.json["succeeded"], done.json["unproven_usd"]) == (7, 0)
        billed = place.invoice()
        assert round(done.json["spent_usd"] * 1e9) == billed["total_nanos"] > 0
        assert billed["providers"]["gemini"]["executed_rows"] == 7
        if bound:
            assert all(isinstance(row["parsed"]["mood"], str) for row in place.results("r.jsonl"))


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "create_accepted_then_500", "times": 1},
        {"fault": "create_accepted_then_timeout", "delay_s": 0.01, "times": 1},
        {"fault": "create_repeated", "times": 1},
        {"fault": "create_dropped_before", "times": 1},
        {"fault": "enqueued_limit_now", "times": 1},
        {"fault": "upload_500", "times": 1},
        {"fault": "expire_at", "fraction": 0.6, "times": 1},
        {"fault": "row_errors", "count": 2, "times": 1},
        {"fault": "missing_lines", "count": 2, "times": 1},
        {"fault": "duplicate_lines", "count": 2, "differ": True},
        {"fault": "unknown_lines", "count": 2},
        {"fault": "truncated_last_line", "times": 1},
        {"fault": "late_output_file", "lag_s": 300, "times": 1},
        {"fault": "null_counts"},
        {"fault": "status_unknown_word"},
        {"fault": "pretty_printed_bodies"},
        {"fault": "shuffled_rows"},
        {"fault": "poll_500", "times": 2},
    ],
    ids=lambda fault: fault["fault"],
)
def test_troubles_of_a_batch_cost_no_row_and_no_cent(tmp_path: Path, fault: dict[str, Any]) -> None:
    """Each row is answered in the end, and what was paid is what was billed or held as unproven."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=[fault])) as url:
        place = _place(tmp_path, url)
        done = place.run("run", place.rows(6), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch",
                         "--out", "r.jsonl", "--json", "--yes", "--batch-size", "6")  # fmt: skip
        assert done.code == 0, done.err
        assert done.json["succeeded"] == 6
        proven = done.json["spent_usd"] - done.json["unproven_usd"]
        billed = place.invoice()["total_nanos"]
        assert round(proven * 1e9) <= billed <= round(done.json["spent_usd"] * 1e9)


def test_a_batch_refused_as_a_whole_costs_nothing_beside_one_that_was_not_found(tmp_path: Path) -> None:
    """What was sought in vain may still turn up; of what the provider refused, nobody doubts that it never ran."""
    faults = [{"fault": "create_dropped_before", "times": 1}, {"fault": "enqueued_limit_later", "limit": 5, "times": 1}]
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=faults)) as url:
        place = _place(tmp_path, url)
        done = place.run("run", place.rows(6), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch",
                         "--json", "--yes", "--batch-size", "6")  # fmt: skip
        assert (done.code, done.json["succeeded"], done.json["unproven_usd"]) == (0, 6, 0), done.err
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
        statuses = [sub["status"] for shard in place.run("show", "@last", "--json").json["shards"]
                    for sub in shard["submissions"]]  # fmt: skip
        assert "BATCH_STATE_FAILED" in statuses
