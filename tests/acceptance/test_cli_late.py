"""Answers that come after a job has ended: whichever command a person comes back with takes them in."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

ROWS = 6
HELD_BACK_S = 1e5  # provider seconds: not before `_forward`
RUN = ("run", "in.txt", "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch", "--yes")


def _simulator(*faults: dict[str, Any]) -> SimulatorConfig:
    return SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=faults)


def _late(name: str, **parameters: Any) -> dict[str, Any]:
    return {"fault": name, "lag_s": HELD_BACK_S, **parameters}


def _forward(place: Place) -> None:
    """What was held back shows."""
    assert place.url is not None
    url = f"{place.url.removesuffix('/v1')}/simulator/forward"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"1e6", method="POST")) as answer:
        answer.read()


def _creates(place: Place) -> int:
    return sum(event["event"] == "create" for event in place.log())


@pytest.mark.parametrize(
    "command",
    [("watch", "@last", "--exit-status"), ("resume", "@last"), ("results", "@last", "--out", "r.jsonl"), RUN],
    ids=lambda command: command[0],
)
def test_coming_back_to_a_job_takes_in_what_came_late(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Every row was missing when the job ended; its answers came since: no row is sent, the bill is met to the cent."""
    with in_thread(_simulator(_late("late_output_file"))) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        first = place.run(*RUN, "--json").json
        assert (first["missing"], first["unproven_usd"]) == (ROWS, first["spent_usd"])
        before = _creates(place)
        _forward(place)
        done = place.run(*command, "--json")
        assert done.code == 0, done.err
        assert f"answers came after job {first['job_id']} had ended" in done.err
        assert (done.json["job_id"], done.json["succeeded"], done.json["missing"]) == (first["job_id"], ROWS, 0)
        assert adds_up(done.json)
        assert _creates(place) == before
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
        assert done.json["unproven_usd"] == 0
        assert place.run("show", "@last", "--json").json["status"] == "completed"


def test_a_retry_looks_before_it_sends(tmp_path: Path) -> None:
    """Rows whose answers came since are paid already: `retry` sends none of them, and says how to take them in."""
    with in_thread(_simulator(_late("late_output_file"))) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        job = place.run(*RUN, "--json").json["job_id"]
        before = _creates(place)
        _forward(place)
        refused = place.run("retry", job, "--yes", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (2, "conflict"), refused.err
        assert f"nightmill resume {job}" in refused.json["error"]["fix"]
        done = place.run("resume", job, "--json")
        assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
        assert _creates(place) == before


def test_watching_an_ended_job_of_which_nothing_came_says_how_it_ended(tmp_path: Path) -> None:
    """Rows are missing and nothing came since: `watch` tells how the job stands and ends, sending nothing."""
    with in_thread(_simulator(_late("late_output_file"))) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        assert place.run(*RUN).code == 3
        before = _creates(place)
        done = place.run("watch", "@last", "--json")
        assert done.code == 0, done.err
        assert (done.json["status"], done.json["missing"]) == ("failed", ROWS)
        assert _creates(place) == before


def test_a_provider_that_cannot_tell_keeps_nobody_from_the_results(tmp_path: Path) -> None:
    """Where late answers cannot be looked for, one is told so, and what there is comes all the same."""
    with in_thread(_simulator(_late("late_output_file"))) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        assert place.run(*RUN).code == 3
        del place.env["OPENAI_API_KEY"]
        done = place.run("results", "@last")
        assert done.code == 0, done.err
        assert "could not look for late answers" in done.err
        assert [json.loads(line)["error_kind"] for line in done.out.splitlines()] == ["missing"] * ROWS
