"""The batch workflow as a user goes through it, step by step, each a process of its own."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from cli_kit import MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread


@pytest.mark.req("B2")
def test_submit_then_watch_then_fetch(tmp_path: Path) -> None:
    """A batch handed over by one process is followed by a second and its results fetched by a third."""
    with in_thread(SimulatorConfig(speed=20.0, batch_s=40.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        submitting = place.start("run", place.rows(12), "--prompt", "Say {{ text }}", "--model", MODEL,
                                 "--lane", "batch", "--yes", "--json")  # fmt: skip
        submitting.until(lambda event: event.get("phase", "").startswith("waiting"))
        submitting.signal(signal.SIGINT)
        assert submitting.end().code == 130
        (listed,) = place.run("jobs", "--json").json["jobs"]
        assert (listed["status"], listed["pending"], listed["sent"]) == ("running", 12, 12)

        watched = place.run("watch", listed["job_id"], "--exit-status", "--json")
        assert watched.code == 0, watched.err
        assert adds_up(watched.json)
        assert watched.json["succeeded"] == 12

        fetched = place.run("results", listed["job_id"], "--out", "r.jsonl")
        assert (fetched.code, fetched.out) == (0, "r.jsonl\n"), fetched.err
        rows = place.results("r.jsonl")
        assert [row["prompt"] for row in rows] == [f"Say row {n}" for n in range(12)]
        assert all(row["success"] and row["batch_id"].startswith("batch_") for row in rows)
        streamed = place.run("results", listed["job_id"])
        assert [json.loads(line) for line in streamed.out.splitlines()] == rows

        asked = Counter(entry["event"] for entry in place.log())
        assert asked["upload"] == asked["create"] == 1
        assert round(watched.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]


@pytest.mark.req("D2")
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_any_python_function_is_a_model(tmp_path: Path, kind: str) -> None:
    """A function on the import path answers the rows, plain or async, with no key, no network and no cost."""
    place = Place(tmp_path)
    (tmp_path / "mine.py").write_text(
        f'{kind} backwards(messages, **params):\n    return messages[-1]["content"][::-1]\n'
    )
    done = place.run("run", place.rows(3), "--prompt", "{{ text }}", "--model", "python:mine.backwards",
                     "--out", "r.jsonl", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert [row["response"] for row in place.results("r.jsonl")] == ["0 wor", "1 wor", "2 wor"]
    assert (done.json["succeeded"], done.json["spent_usd"]) == (3, 0)
