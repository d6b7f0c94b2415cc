"""`results` of a job that is not finished: it works where nobody else does, and takes what there is elsewhere."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cli_kit import MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

GATED = ("--prompt", "{{ text }}", "--model", "python:funcs.gated", "--concurrency", "2")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def killed(place: Place) -> None:
    """A job of twenty rows whose worker died when ten were answered."""
    running = place.start("run", place.rows(20), *GATED)
    running.answered(10)
    running.signal(signal.SIGKILL)
    running.end()


def test_results_of_a_job_without_a_worker_are_worked_for(place: Place) -> None:
    """Where the worker died, `results` finishes the job first; what it says is on stderr, what it gives on stdout."""
    killed(place)
    (place.folder / "gate").touch()
    done = place.run("results", "@last")
    assert done.code == 0, done.err
    assert [json.loads(line)["response"] for line in done.out.splitlines()] == [f"ROW {i}" for i in range(20)]
    assert "10 of 20 rows are still open" in done.err
    assert "20 ok" in done.err
    assert len(place.calls()) <= 22


def test_results_interrupted_are_those_so_far(place: Place) -> None:
    """Ctrl-C while `results` works ends with exit 130, what there is so far in the file, and the way to go on."""
    killed(place)
    working = place.start("results", "@last", "--out", "r.jsonl", "--json")
    working.until(lambda event: event["event"] == "progress")
    working.signal(signal.SIGINT)
    working.until(lambda event: event["event"] == "note")
    (place.folder / "gate").touch()
    stopped = working.end()
    assert stopped.code == 130, stopped.err
    assert stopped.json["error"]["code"] == stopped.json["stopped"] == "interrupted"
    assert f"nightmill resume {stopped.json['job_id']}" in stopped.err
    assert stopped.json["written"] == stopped.json["succeeded"] == len(place.results("r.jsonl"))
    assert 10 <= stopped.json["written"] < 20
    again = place.run("results", "@last", "--out", "r.jsonl", "--json")
    assert (again.code, again.json["written"], len(place.results("r.jsonl"))) == (0, 20, 20), again.err


def test_results_of_a_job_that_another_process_works_on_are_those_so_far(place: Place) -> None:
    """While a worker lives `results` takes what there is and ends; it makes no call of its own."""
    running = place.start("run", place.rows(20), *GATED)
    running.answered(10)
    taken = place.run("results", "@last")
    assert taken.code == 0, taken.err
    assert len(taken.out.splitlines()) == 10
    assert "running in another process: 10 of 20 rows are still open" in taken.err
    (place.folder / "gate").touch()
    assert running.end().code == 0
    assert sorted(place.calls()) == sorted(f"row {i}" for i in range(20))


def test_results_collect_a_batch_that_was_left_at_the_provider(tmp_path: Path) -> None:
    """A batch whose worker left is waited for and collected; nothing is sent twice, and the sums are the bill."""
    with in_thread(SimulatorConfig(speed=1000.0, batch_s=600.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        running = place.start("run", place.rows(12), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch",
                              "--yes", "--json")  # fmt: skip
        running.until(lambda event: event.get("phase", "").startswith("waiting"))
        running.signal(signal.SIGINT)
        assert running.end().code == 130
        done = place.run("results", "@last", "--out", "r.jsonl", "--json")
        assert (done.code, done.json["written"]) == (0, 12), done.err
        assert adds_up(done.json)
        invoice = place.invoice()
        assert invoice["executed_rows"] == invoice["distinct_rows"] == 12
        assert round(done.json["spent_usd"] * 1e9) == invoice["total_nanos"]
