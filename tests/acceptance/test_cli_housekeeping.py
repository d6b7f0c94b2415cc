"""`delete` and `gc`: what may go, what never does, and what is left when they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X12")
DAY_S = 86_400
UPPER = ("--prompt", "{{ text }}", "--model", "python:funcs.upper", "--yes")
BATCH = ("--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch", "--yes")
FAST = {"speed": 1000.0, "answer_sigma": 0.0}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def aged(path: Path, days: float) -> Path:
    """``path``, last touched so long ago."""
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))
    return path


def lives(place: Place) -> set[str]:
    return {folder.name for folder in (place.home / "jobs").iterdir()}


def finished_days_ago(place: Place, job_id: str, days: float) -> None:
    """Let a job have ended so long ago."""
    then = time.time() - days * DAY_S
    with contextlib.closing(sqlite3.connect(place.home / "nightmill.db")) as ledger, ledger:
        ledger.execute("UPDATE jobs SET finished_at = ? WHERE id = ?", (then, job_id))
    for file in (place.home / "jobs" / job_id).rglob("*"):
        aged(file, days)


def test_a_deleted_job_leaves_the_books_and_the_cache(tmp_path: Path) -> None:
    """`delete` removes a job and its files; the budget says the same as before, and its answers are still free."""
    with in_thread(SimulatorConfig(**FAST)) as url:
        place = Place(tmp_path, url)
        command = ("run", place.rows(6), *BATCH, "--json")
        job = place.run(*command).json["job_id"]
        before = place.run("budget", "--json").json
        unasked = place.run("delete", job)
        assert (unasked.code, "add --yes" in unasked.err) == (2, True)
        assert lives(place) == {job}
        done = place.run("delete", job, "--yes", "--json")
        assert (done.code, done.json["deleted"]) == (0, True), done.err
        assert done.json["bytes"] > 0
        assert lives(place) == set()
        assert place.run("show", job).code == 2
        assert place.run("jobs", "--json").json["jobs"] == []
        assert place.run("budget", "--json").json == before
        assert round(before["spent"] * 1e9) == place.invoice()["total_nanos"]
        again = place.run(*command)
        assert (again.code, again.json["cached"], again.json["spent_usd"]) == (0, 6, 0.0), again.err


@pytest.mark.req("X12")
def test_answers_are_deleted_by_typing_their_name(place: Place) -> None:
    """A yes that the fingers know is not enough for what cannot be had again: the job's name or id is typed."""
    assert place.run("run", place.rows(3), *UPPER, "--name", "Nightly").code == 0
    for typed in ("y\n", "\n"):
        declined = place.typed(typed, "delete", "@last", at="to delete it:")
        assert (declined.code, "the answers to 3 rows" in declined.out, len(lives(place))) == (1, True, 1)
    assert place.typed("nightly\n", "delete", "@last", at="to delete it:").code == 0
    assert lives(place) == set()


def test_an_unfinished_job_is_not_deleted(tmp_path: Path) -> None:
    """`delete` of a job that may still cost money says how to finish or end it, and leaves it as it is."""
    place = Place(tmp_path)
    place.env["NIGHTMILL_KILL_AT"] = "ledger.publish_plan.committed"
    assert place.run("run", place.rows(3), *UPPER).code < 0
    del place.env["NIGHTMILL_KILL_AT"]
    refused = place.run("delete", "@last", "--yes", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (2, "conflict")
    assert "nightmill cancel" in refused.json["error"]["fix"]
    assert place.run("resume", "@last").code == 0


def test_a_deletion_that_was_killed_is_completed(place: Place) -> None:
    """Killed after the ledger forgot the job, the same command removes its files, and no other job of that name."""
    jobs = []
    for text in ("a {}", "b {}"):
        done = place.run("run", place.rows(3, text), *UPPER, "--name", "nightly", "--json")
        jobs.append(done.json["job_id"])
    place.env["NIGHTMILL_KILL_AT"] = "ledger.delete_job.committed"
    assert place.run("delete", "nightly", "--yes").code < 0
    del place.env["NIGHTMILL_KILL_AT"]
    assert lives(place) == set(jobs)
    assert [job["job_id"] for job in place.run("jobs", "--json").json["jobs"]] == jobs[:1]
    done = place.run("delete", "nightly", "--yes", "--json")
    assert (done.code, done.json["job_id"]) == (0, jobs[1]), done.err
    assert lives(place) == set(jobs[:1])


def test_a_newer_job_is_not_taken_for_one_whose_deletion_was_killed(place: Place) -> None:
    """What a killed deletion left is not in the way of deleting a job that came after it, by name or as @last."""
    jobs = []
    for text in ("a {}", "b {}", "c {}"):
        done = place.run("run", place.rows(3, text), *UPPER, "--name", "nightly", "--json")
        jobs.append(done.json["job_id"])
        if len(jobs) == 1:
            place.env["NIGHTMILL_KILL_AT"] = "ledger.delete_job.committed"
            assert place.run("delete", "nightly", "--yes").code < 0
            del place.env["NIGHTMILL_KILL_AT"]
    for called, job in (("nightly", jobs[2]), ("@last", jobs[1]), ("nightly", jobs[0])):
        done = place.run("delete", called, "--yes", "--json")
        assert (done.code, done.json["job_id"]) == (0, job), done.err
    assert lives(place) == set()


def test_gc_removes_what_nothing_names_and_nothing_young(place: Place) -> None:
    """Old files without a name go, and it is said before which and how large; young ones and named ones stay."""
    job = place.run("run", place.rows(3), *UPPER, "--json").json["job_id"]
    folder = place.home / "jobs" / job
    for file in list(folder.rglob("*")):
        aged(file, 90)
    (folder / "results" / "0.77.parquet").write_bytes(b"x" * 1000)
    (folder / "wire" / "young").write_bytes(b"x")
    aged(folder / "results" / "0.77.parquet", 31)
    stray = place.home / "jobs" / "20200101-aaaa"
    (stray / "wire").mkdir(parents=True)
    (stray / "wire" / "w").write_bytes(b"y" * 10)
    for path in (stray / "wire" / "w", stray / "wire", stray):
        aged(path, 40)
    assert place.run("gc", "--older-than", "29d").code == 2
    told = place.run("gc", "--dry-run", "--json").json
    assert {(w["path"], w["bytes"]) for w in told["removed"]} == {
        (f"jobs/{job}/results/0.77.parquet", 1000), ("jobs/20200101-aaaa", 10),
    }  # fmt: skip
    assert stray.exists()
    assert place.run("gc", "--older-than", "12w", "--json").json["removed"] == []
    unasked = place.run("gc", "--json")
    assert (unasked.code, unasked.json["error"]["fix"]) == (2, "add --yes")
    declined = place.typed("n\n", "gc")
    assert (declined.code, "0.77.parquet" in declined.out, stray.exists()) == (1, True, True)
    done = place.run("gc", "--yes", "--json").json
    assert (done["removed"], done["bytes"], done["dry_run"]) == (told["removed"], 1010, False)
    assert not stray.exists()
    assert (folder / "wire" / "young").exists()
    assert len(place.run("results", job).out.splitlines()) == 3
    assert place.run("gc").out == "0 files removed, 0 bytes\n"


def test_gc_never_touches_what_is_unfinished(place: Place) -> None:
    """A job that was left half done a year ago keeps every file, named or not, under the strictest rules."""
    (place.folder / "nightmill.toml").write_text("[retention]\njobs_days = 30\nwire_days = 30\n")
    running = place.start("run", place.rows(20), "--prompt", "{{ text }}", "--model", "python:funcs.gated")
    running.answered(10)
    running.signal(signal.SIGKILL)
    running.end()
    (folder,) = (place.home / "jobs").iterdir()
    (folder / "wire" / "nameless").write_bytes(b"x")
    files = [aged(file, 365) for file in folder.rglob("*")]
    assert place.run("gc", "--yes", "--json").json["removed"] == []
    assert all(file.exists() for file in files)


def test_the_settings_say_what_may_go(place: Place) -> None:
    """After wire_days answers as they came go and results stay; after jobs_days the job goes and its money stays."""
    job = place.run("run", place.rows(3), *UPPER, "--json").json["job_id"]
    finished_days_ago(place, job, 50)
    assert place.run("gc", "--yes", "--json").json["removed"] == []
    settings = place.folder / "nightmill.toml"
    settings.write_text("[retention]\nwire_days = 45\n")
    done = place.run("gc", "--yes", "--json").json
    assert [w["path"] for w in done["removed"]] == [f"jobs/{job}/wire"]
    assert done["bytes"] > 0
    assert [p for p in (place.home / "jobs" / job / "wire").rglob("*") if p.is_file()] == []
    assert len(place.run("results", job).out.splitlines()) == 3
    refused = place.run("retry", job, "--yes", "--json").json
    assert "wire_days" in refused["error"]["why"]
    settings.write_text("[retention]\njobs_days = 45\n")
    done = place.run("gc", "--yes", "--json").json
    assert [(w["what"], w["path"]) for w in done["removed"]] == [("job", f"jobs/{job}")]
    assert place.run("jobs", "--json").json["jobs"] == []
    assert place.run("budget", "--json").json["calls"] == 3
    settings.write_text("[retention]\njobs_days = 29\n")
    assert place.run("gc").code == 2


def test_files_at_the_provider_go_only_when_told_and_only_when_nothing_can_come(tmp_path: Path) -> None:
    """Kept unless the settings say otherwise; then those of settled batches go, never those of rows still missing."""
    faults = ({"fault": "late_output_file", "lag_s": 1e7},)
    with in_thread(SimulatorConfig(**FAST, faults=faults)) as url:
        place = Place(tmp_path, url)
        waits = (place.folder / "nightmill.toml").read_text()
        missing = place.run("run", place.rows(3), *BATCH, "--json").json
        assert missing["missing"] == 3
        place.ask("faults", "DELETE")
        assert place.run("run", place.rows(2, "b {}"), *BATCH).code == 0
        assert place.run("gc", "--yes", "--json").json["provider_files"] == 0
        (place.folder / "nightmill.toml").write_text('[retention]\nprovider_files = "delete"\n' + waits)
        deletes = sum(event["event"] == "delete" for event in place.log())
        assert place.run("gc", "--dry-run", "--json").json["provider_files"] == 2
        assert place.run("gc", "--yes", "--json").json["provider_files"] == 2  # what the second batch read and wrote
        assert sum(event["event"] == "delete" for event in place.log()) == deletes + 2
        assert place.run("gc", "--yes", "--json").json["provider_files"] == 0
        assert place.run("run", place.rows(2, "c {}"), *BATCH).code == 0
        assert sum(event["event"] == "delete" for event in place.log()) == deletes + 4  # as soon as it is done
