"""A list of words: what it will cost, how far it is, and a checkpoint that anybody can read."""

from __future__ import annotations

import datetime as dt
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

GATED = ("--prompt", "{{ text }}", "--model", "python:funcs.gated", "--concurrency", "2")
KEYS = ["job_id", "processed_words", "failed_words", "start_time", "total_cost", "total_tokens", "timestamp"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def checkpoint(place: Place, name: str = "c.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.folder / name).read_text())
    return found


@pytest.mark.req("C4", "D4")
def test_a_checkpoint_is_kept_up_to_date_and_killing_loses_nothing(place: Place) -> None:
    """While a job runs the file says which words are done; killed, it is whole, and the same file serves to resume,
    though nothing is read from it: what goes on is the job."""
    # Shards share the calls: one more at once than wait at the gate, and no order of shards holds up the first rows.
    command = ("run", place.rows(20), *GATED[:-1], "12", "--batch-size", "6", "--checkpoint", "c.json")
    running = place.start(*command, "--out", "r.jsonl")
    running.until(lambda _: (place.folder / "c.json").exists() and len(checkpoint(place)["processed_words"]) >= 10)
    running.signal(signal.SIGKILL)
    running.end()
    sent = len(place.calls())
    found = checkpoint(place)
    assert list(found) == KEYS
    assert found["processed_words"] == [f"row {i}" for i in range(10)]
    assert (found["failed_words"], found["total_tokens"] > 0) == ({}, True)
    times = [dt.datetime.fromisoformat(found[name]) for name in ("start_time", "timestamp")]
    assert times == sorted(times)
    assert times[0].utcoffset() == dt.timedelta(0)
    (place.folder / "gate").touch()
    found["processed_words"] = ["of no account"]
    (place.folder / "c.json").write_text(json.dumps(found))
    resumed = place.run("resume", "@last", "--checkpoint", "c.json")
    assert resumed.code == 0, resumed.err
    assert checkpoint(place)["processed_words"] == [f"row {i}" for i in range(20)]
    assert len(place.calls()) == sent + 10  # none that was answered
    place.run("results", "@last", "--out", "r.jsonl")
    assert len({row["shard"] for row in place.results("r.jsonl")}) == 4  # of at most six rows each


@pytest.mark.req("C4", "C6")
def test_a_checkpoint_holds_failures_duplicates_and_what_it_cost(tmp_path: Path) -> None:
    """Failed words stand with their reasons until a retry answers them; cost and tokens are those of the job."""
    with in_thread(
        SimulatorConfig(speed=1000.0, faults=[{"fault": "row_errors", "count": 1, "status": 400, "times": 1}])
    ) as url:
        place = Place(tmp_path, url)
        (tmp_path / "in.txt").write_text("murmur\nlagoon\nmurmur\n")
        done = place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch", "--yes",
                         "--checkpoint", "c.json", "--json", "--progress", "none")  # fmt: skip
        found = checkpoint(place)
        assert found["job_id"] == done.json["job_id"]
        assert len(found["failed_words"]) == 1, done.err
        assert all(found["failed_words"].values())
        assert sorted({*found["processed_words"], *found["failed_words"]}) == ["lagoon", "murmur"]
        assert not {*found["processed_words"]} & {*found["failed_words"]}
        assert found["total_cost"] == done.json["spent_usd"] > 0
        assert found["total_tokens"] == done.json["tokens_in"] + done.json["tokens_out"]
        assert place.run("retry", "@last", "--yes", "--checkpoint", "c.json").code == 0
    found = checkpoint(place)
    assert (found["processed_words"], found["failed_words"]) == (["murmur", "lagoon", "murmur"], {})


@pytest.mark.req("C4")
def test_a_checkpoint_replaces_no_file_of_others(place: Place) -> None:
    """A file that is no checkpoint of this job is refused before anything is sent, unless --force; an empty one and
    that of the same command are fine."""
    command = ("run", place.rows(2), "--prompt", "{{ text }}", "--model", "python:funcs.upper", "--checkpoint")
    (place.folder / "mine.json").write_text('{"processed_words": ["precious"]}')
    (place.folder / "folder").mkdir()
    for name in ("mine.json", "folder", "in.txt", "/dev/null"):
        refused = place.run(*command, name)
        assert (refused.code, name in refused.err) == (2, True)
    assert place.calls() == []
    (place.folder / "c.json").touch()
    assert place.run(*command, "c.json").code == 0
    assert place.run(*command, "c.json").code == 0
    assert place.run(*command, "mine.json", "--force").code == 0
    assert checkpoint(place, "mine.json")["processed_words"] == ["row 0", "row 1"]
    other = place.run("run", "in.txt", "--prompt", "Other {{ text }}", *command[4:], "c.json")
    assert (other.code, "c.json exists" in other.err) == (2, True)


@pytest.mark.req("C2", "B5")
def test_the_panel_before_running_says_what_it_costs_and_what_is_done(tmp_path: Path) -> None:
    """Regular cost, batch cost, savings and percent, tokens, how many are done and remain; then a question."""
    with in_thread(SimulatorConfig(speed=1000.0)) as url:
        place = Place(tmp_path, url)
        command = ("run", place.rows(12), "--prompt", "Define {{ text }}", "--model", MODEL, "--lane", "batch")
        asked = place.typed("n\n", *command)
        assert asked.code == 1
        for words in ("regular cost $0.0", "batch cost $0.0", "saves ≈ $0.0", "(50 %)", "tokens ≈ ", " in, ", " out",
                      "done before 0 · remaining 12", "Send 12 requests, at most $0.0"):  # fmt: skip
            assert words in asked.out
        assert place.log() == []
        assert place.run(*command, "--limit", "5", "--yes").code == 0
        rest = place.run(*command, "--dry-run")
    assert "done before 5 · remaining 7" in rest.err


@pytest.mark.req("C3")
def test_the_screen_while_running(place: Place) -> None:
    """A bar with item, count, percent, elapsed and ETA, and a table: total, processed, failed, success rate, items a
    minute, tokens, cost, elapsed, ETA."""
    place.rows(12)
    (place.folder / "in.txt").write_text("".join(f"row {i}\n" for i in range(12)))
    done = place.watched("10/12", lambda *_: (place.folder / "gate").touch(), "run", "in.txt", *GATED)
    assert done.code == 0, done.out
    screens = done.out.split("\x1b[J")
    busy = next(screen for screen in screens if "10/12" in screen)
    assert "83 %" in busy
    assert "ETA 0:0" in busy
    assert "row 9" in busy or "row 8" in busy  # the item that was answered last
    for words in ("total 12", "processed 10", "ok 10", "failed 0", "success 100 %", " a minute", "elapsed 0:0",
                  "tokens ", "spent $0.00"):  # fmt: skip
        assert words in busy
    assert "12/12" in screens[-2]  # after it comes the report
