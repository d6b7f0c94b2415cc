"""The first rows of a large job go out before all others, and a job whose answers are bad stops before the rest."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Done, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X3")

SCHEMA = {
    "type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"],
    "additionalProperties": False,
}  # fmt: skip
ASKED = ("--prompt", "{{ text }}", "--model", MODEL, "--max-output", "60", "--schema", "score.json", "--yes", "--json")
BAD = "wrong_schema_answers"


def server(*faults: dict[str, Any], enqueued_tokens: int | None = None) -> AbstractContextManager[str]:
    """A provider whose batches take a minute, a tenth of a second of ours."""
    return in_thread(SimulatorConfig(speed=600.0, faults=faults, enqueued_tokens=enqueued_tokens))


def place_at(folder: Path, url: str) -> Place:
    place = Place(folder, url)
    (folder / "score.json").write_text(json.dumps(SCHEMA))
    return place


def run(place: Place, rows: int, *arguments: str) -> Done:
    return place.run("run", place.rows(rows, f"{place.folder.name} {{}}"), *ASKED, *arguments)


def is_billed(place: Place, found: dict[str, Any]) -> bool:
    """Whether what was booked is what the provider bills, to the nano-dollar, and no row ran twice."""
    bill = place.invoice()
    return not bill["executed_more_than_once"] and round(found["spent_usd"] * 1e9) == bill["total_nanos"]


def test_the_first_rows_of_a_large_job_go_live_and_update_its_quote(tmp_path: Path) -> None:
    """With more than 500 rows 20 go out first, live; what a row really takes is shown beside the quote; 500 do not."""
    with server() as url:
        place = place_at(tmp_path, url)
        done = run(place, 501, "--out", "r.jsonl")
        assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, 501, True), done.err
        assert [row["lane"] for row in place.results("r.jsonl")] == ["live"] * 20 + ["batch"] * 481
        canary = done.json["canary"]
        assert (canary["rows"], canary["valid"], canary["stopped"]) == (20, 20, None)
        assert canary["row_tokens_in"] > 0
        assert canary["row_tokens_out"] > 0
        assert canary["quoted_usd"] == done.json["estimated_usd"]
        assert canary["expected_usd"] == pytest.approx(done.json["spent_usd"], rel=0.1)
        assert is_billed(place, done.json)
        assert "the first 20 rows go out before all others, live" in done.err
        assert "first 20 rows: valid 20 (100 %)" in done.err
        assert "first 20 rows: valid 20 (100 %)" in place.run("show", "@last").out
        small = run(place, 500, "--new", "--no-cache", "--out", "small.jsonl")
        assert {row["lane"] for row in place.results("small.jsonl")} == {"batch"}
        assert "canary" not in small.json


def test_rows_that_are_not_sent_are_no_canary(tmp_path: Path) -> None:
    """Only rows that are sent count: duplicates and rows answered before make no job large, nor a canary small."""
    with server() as url:
        place = place_at(tmp_path, url)
        first = run(place, 30, "--lane", "batch")
        assert first.code == 0, first.err
        rows = [f"{tmp_path.name} {i}" for i in range(530)] + [f"{tmp_path.name} 7"] * 100
        (tmp_path / "more.txt").write_text("\n".join(rows) + "\n")
        same = place.run("run", "more.txt", *ASKED, "--limit", "530")
        assert (same.code, same.json["cached"], "canary" in same.json) == (0, 30, False), same.err
        (tmp_path / "more.txt").write_text("\n".join([*rows, *(f"other {i}" for i in range(501))]) + "\n")
        more = place.run("run", "more.txt", *ASKED, "--out", "more.jsonl")
        assert (more.code, more.json["canary"]["rows"]) == (0, 20), more.err
        lanes = [row["lane"] for row in place.results("more.jsonl")]
        assert lanes[630:652] == ["live"] * 20 + ["batch"] * 2


def test_bad_first_rows_stop_the_job_before_the_rest_and_a_person_may_insist(tmp_path: Path) -> None:
    """Below --min-valid nothing else is sent (exit 5); the same command stops again, `resume` goes on."""
    with server({"fault": BAD, "count": 5, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        done = run(place, 40, "--canary", "20", "--min-valid", "90%", "--lane", "auto")
        assert (done.code, done.json["status"], done.json["stopped"]) == (5, "paused", "min_valid"), done.err
        assert (done.json["canary"]["valid"], done.json["canary"]["valid_share"]) == (15, 0.75)
        (why, rows), *_ = done.json["canary"]["failures"].items()
        assert (why.startswith("invalid_output: "), rows) == (True, 5)
        assert (done.json["sent"], done.json["pending"]) == (20, 20)
        assert is_billed(place, done.json)
        assert done.json["error"]["code"] == "bad_answers"
        assert f"nightmill resume {done.json['job_id']}" in done.json["error"]["fix"]
        again = run(place, 40, "--canary", "20", "--min-valid", "90%")
        assert (again.code, again.json["sent"]) == (5, 20), again.err
        lower = run(place, 40, "--min-valid", "0.7")
        assert (lower.code, lower.json["sent"], lower.json["succeeded"]) == (3, 40, 35), lower.err
        assert is_billed(place, lower.json)


def test_resume_goes_on_whatever_the_first_rows_were(tmp_path: Path) -> None:
    """Without a floor a job stops where no first row has a valid answer; resumed it runs to its end."""
    with server({"fault": BAD, "count": 3, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        done = run(place, 12, "--canary", "3")
        assert (done.code, done.json["stopped"], done.json["sent"]) == (5, "canary", 3), done.err
        assert "none of the first 3 rows has a valid answer" in done.json["error"]["why"]
        shown = place.run("show", "@last")
        assert "stopped: by its first rows" in shown.out
        on = place.run("resume", "--json")
        assert (on.code, on.json["succeeded"], on.json["failed"]) == (3, 9, 3), on.err
        assert is_billed(place, on.json)


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_job_whose_answers_turn_bad_half_way_stops_before_it_spends_the_rest(tmp_path: Path, lane: str) -> None:
    """From row 300 of 2,000 on all answers are bad: within a window of them nothing more is sent; spent is billed."""
    with server({"fault": BAD, "from_row": 300}, enqueued_tokens=7_000) as url:  # two batches at once
        place = place_at(tmp_path, url)
        more = ("--lane", "live", "--concurrency", "8") if lane == "live" else ("--batch-size", "250")
        done = run(place, 2_000, "--min-valid", "0.9", *more)
        found = done.json
        assert (done.code, found["status"], found["stopped"]) == (5, "paused", "min_valid"), done.err
        assert "--min-valid asks for 90%" in found["error"]["why"]
        assert (found["canary"]["valid"], adds_up(found)) == (20, True)
        assert is_billed(place, found)
        most = 300 + 200 + 32 if lane == "live" else 20 + 5 * 250
        assert place.invoice()["executed_rows"] < most
        place.ask("faults", "DELETE")
        on = place.run("resume", "--json")
        assert on.code == 3, on.err
        assert (on.json["pending"], adds_up(on.json), on.json["sent"]) == (0, True, 2_000)
        assert is_billed(place, on.json)
