"""Interrupted, killed, out of money, looked at, cancelled: a job goes on, and its numbers stay true."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from cli_kit import COMMAND, MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "answer_sigma": 0.0}
GATED = ("--prompt", "{{ text }}", "--model", "python:funcs.gated", "--concurrency", "2")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.req("C5")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_what_is_in_hand_and_the_same_command_goes_on(place: Place, number: signal.Signals) -> None:
    """A first Ctrl-C or SIGTERM waits for calls under way, writes what there is, says how to resume; no call is
    made twice."""
    command = ("run", place.rows(30), *GATED, "--out", "r.jsonl", "--json")
    running = place.start(*command)
    running.answered(10)
    assert place.run("show", "@last", "--json").json["attended"] is True
    running.signal(number)
    note = running.until(lambda event: event["event"] == "note")
    assert note["text"].startswith("stopping: 2 in hand")
    (place.folder / "gate").touch()
    stopped = running.end()
    assert stopped.code == 130
    assert stopped.json["stopped"] == "interrupted"
    assert (stopped.json["succeeded"], stopped.json["pending"]) == (12, 18)
    assert f"nightmill resume {stopped.json['job_id']}" in stopped.err
    assert len(place.results("r.jsonl")) == 12
    shown = place.run("show", "@last").out
    assert f"nobody works on it now\n  next: nightmill resume {stopped.json['job_id']}" in shown
    done = place.run(*command)
    assert done.code == 0, done.err
    assert "12 of 30 rows are done" in done.err
    assert done.json["job_id"] == stopped.json["job_id"]
    assert sorted(place.calls()) == sorted(f"row {i}" for i in range(30))
    assert [row["response"] for row in place.results("r.jsonl")] == [f"ROW {i}" for i in range(30)]


@pytest.mark.req("C5")
def test_resume_brings_files_up_to_date_that_nobody_changed(place: Place) -> None:
    """What an interrupted run wrote in part is whole once `resume` is done; a file that a person
    changed since stays."""
    running = place.start(
        "run", place.rows(30), *GATED, "--out", "r.jsonl", "--out", "r.csv", "--out", "mine.jsonl", "--csv-raw"
    )
    running.answered(10)
    running.signal(signal.SIGINT)
    running.until(lambda event: event["event"] == "note")
    (place.folder / "gate").touch()
    assert running.end().code == 130
    assert len(place.results("r.jsonl")) == 12
    (place.folder / "mine.jsonl").write_text('{"mine": true}\n', encoding="utf-8")
    done = place.run("resume", "@last")
    assert done.code == 0, done.err
    assert [row["response"] for row in place.results("r.jsonl")] == [f"ROW {i}" for i in range(30)]
    assert len((place.folder / "r.csv").read_text(encoding="utf-8").splitlines()) == 31
    assert place.results("mine.jsonl") == [{"mine": True}]
    assert [Path(line).name for line in done.out.splitlines()] == ["r.jsonl", "r.csv"]


@pytest.mark.req("C5")
def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """Stopped at once, only what was in flight is sent again, and what we booked covers the provider's bill."""
    with in_thread(SimulatorConfig(speed=1.0, latency_s=0.2, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        command = ("run", place.rows(40), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "live",
                   "--concurrency", "4", "--yes", "--json")  # fmt: skip
        running = place.start(*command)
        running.answered(4)
        running.signal(signal.SIGINT)
        running.until(lambda event: event["event"] == "note")
        running.signal(signal.SIGINT)
        stopped = running.end()
        assert stopped.code == 130
        assert stopped.json["error"]["fix"] == f"nightmill resume {stopped.json['job_id']}"
        done = place.run(*command)
        assert (done.code, done.json["succeeded"]) == (0, 40), done.err
        invoice = place.invoice()
        assert invoice["distinct_rows"] == 40
        assert invoice["executed_rows"] <= 44
        assert round(done.json["spent_usd"] * 1e9) >= invoice["total_nanos"]


@pytest.mark.req("D4")
def test_killed_it_is_listed_with_its_progress_and_keeps_every_result(place: Place) -> None:
    """After kill -9 `resume --list` shows how far it got; resuming repeats at most the calls in flight; a line that
    was damaged is left out, asked again, and told of."""
    running = place.start("run", place.rows(30), *GATED)
    running.answered(10)
    running.signal(signal.SIGKILL)
    running.end()
    listed = place.run("resume", "--list", "--json").json["jobs"]
    assert [(job["succeeded"], job["pending"]) for job in listed] == [(10, 20)]
    shown = place.run("run", "in.txt", *GATED, "--dry-run").err
    assert "done before 10" in shown
    assert "remaining 20" in shown
    journal = next((place.home / "jobs").glob("*/wire/*.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    answer = next(i for i, line in enumerate(lines) if b"ROW 3" in line)
    lines[answer] = lines[answer][: len(lines[answer]) // 2] + b"\n"
    journal.write_bytes(b"".join(lines))
    (place.folder / "gate").touch()
    done = place.run("resume", "--json")
    assert (done.code, done.json["succeeded"]) == (0, 30), done.err
    assert "that nobody can read, left out: 1" in " ".join(done.err.split())
    repeated = len(place.calls()) - 30
    assert repeated <= 3  # two in flight, one damaged
    assert place.calls().count("row 3") == 2


@pytest.mark.req("A3", "X2")
@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_budget_stops_work_before_it_is_crossed(tmp_path: Path, lane: str) -> None:
    """Out of money a job pauses with exit 4, never a nano over its limit; with more money it goes on."""
    with in_thread(SimulatorConfig(**FAST, answer_tokens=200)) as url:
        place = Place(tmp_path, url)
        name = place.rows(12)
        spend = ("run", name, "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", lane, "--max-output", "400",
                 "--yes", "--json")  # fmt: skip
        whole = place.run(*spend, "--dry-run").json
        budget = f"{whole['estimated_usd'] * 1.01 / 3 * 2:.9f}"
        refused = place.run(*spend, "--budget", budget)
        assert refused.code == 4
        assert place.log() == []
        # Told to expect short answers, the plan passes; the bill then runs into the limit.
        (place.folder / "short.toml").write_text('prompt = "Say {{ text }}"\nexpect = 1\nmax_output = 400\n')
        task = [("--task", "./short.toml") if a == "--prompt" else (a,) for a in spend if a != "Say {{ text }}"]
        command = [a for part in task for a in part]
        paused = place.run(*command, "--budget", budget)
        assert (paused.code, paused.json["stopped"]) == (4, "budget"), paused.err
        assert adds_up(paused.json)
        assert paused.json["pending"] > 0
        job, spent = paused.json["job_id"], paused.json["spent_usd"]
        assert spent <= float(budget)
        assert round(spent * 1e9) == place.invoice()["total_nanos"]
        left = place.run("results", job)
        assert (left.code, len(left.out.splitlines())) == (4, paused.json["succeeded"]), left.err
        raised = place.run("budget", "set", "1", "--job", job, "--json")
        assert raised.json["limits"][0] == {
            "scope": f"job:{job}", "cap_usd": 1.0, "spent_usd": spent, "held_usd": 0.0, "free_usd": 1.0 - spent,
        }  # fmt: skip
        done = place.run("resume", job, "--json")
        assert (done.code, done.json["succeeded"]) == (0, 12), done.err
        ledger = place.run("budget", "--json").json
        assert ledger == place.run("budget", "show", "--json").json
        assert round(ledger["spent"] * 1e9) == place.invoice()["total_nanos"]
        assert ledger["calls"] == 12


def test_watch_looks_on_and_takes_over(place: Place) -> None:
    """While a run lives `watch` only looks; when the run is dead `watch` is the worker."""
    running = place.start("run", place.rows(20), *GATED)
    running.answered(10)
    watching = place.start("watch", "@last", "--exit-status")
    watching.answered(10)
    running.signal(signal.SIGKILL)
    running.end()
    (place.folder / "gate").touch()
    done = watching.end()
    assert done.code == 0, done.err
    assert len(place.calls()) <= 22
    assert place.run("jobs", "--json").json["jobs"][0]["succeeded"] == 20


# Asked for its one row, it waits until another job has ended, and deletes that.
DELETES = """
import os, pathlib, time
from nightmill.config import load_settings
from nightmill.mill import opened

def other(messages, **params):
    with opened(load_settings(pathlib.Path.cwd(), os.environ)) as mill:
        while not (ended := [job for job in mill.jobs() if job.finished_at]):
            time.sleep(0.01)
        mill.delete(ended[0])
    return "done"
"""


def test_a_job_deleted_meanwhile_hides_no_other(place: Place) -> None:
    """Of several jobs that are gone on with one is deleted by another process: the others' ends are told all the
    same."""
    (place.folder / "deletes.py").write_text(DELETES)
    place.env["NIGHTMILL_KILL_AT"] = "ledger.publish_plan.committed"
    for rows, model in ((3, "funcs.upper"), (1, "deletes.other")):
        assert place.run("run", place.rows(rows), "--prompt", "{{ text }}", "--model", f"python:{model}").code < 0
    del place.env["NIGHTMILL_KILL_AT"]
    kept, deleted = (job["job_id"] for job in place.run("jobs", "--json").json["jobs"])
    done = place.run("resume", "--json")
    assert done.code == 0, done.err
    assert [(job["job_id"], job["status"]) for job in done.json["jobs"]] == [(kept, "completed")]
    assert f"job {deleted}\n  was deleted meanwhile" in done.err


def test_cancel_collects_what_was_done(tmp_path: Path) -> None:
    """`cancel` ends a batch at the provider, keeps what it had done, and its rows add up."""
    with in_thread(SimulatorConfig(speed=20.0, batch_s=4000.0, answer_sigma=0.0, cancel_s=1.0)) as url:
        place = Place(tmp_path, url)
        running = place.start("run", place.rows(12), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch",
                              "--yes", "--json")  # fmt: skip
        running.until(lambda event: event.get("phase", "").startswith("waiting"))
        running.signal(signal.SIGINT)
        stopped = running.end()
        assert stopped.code == 130
        assert "goes on there" in stopped.err
        unasked = place.run("cancel", "@last")
        assert (unasked.code, "add --yes" in unasked.err) == (2, True)
        done = place.run("cancel", "@last", "--yes", "--json")
        assert (done.code, done.json["status"]) == (0, "cancelled"), done.err
        assert "error" not in done.json
        assert "error:" not in done.err
        assert adds_up(done.json)
        assert done.json["cancelled"] > 0
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
        shown = place.run("show", "@last", "--json").json
        assert shown["shards"][0]["submissions"][0]["batch_id"].startswith("batch_")


@pytest.mark.req("D4")
@pytest.mark.parametrize("file", ["rows.parquet", "shards/*.jsonl"])
def test_a_damaged_file_is_named_and_hides_no_other_job(place: Place, file: str) -> None:
    """Jobs are listed with their progress and the others go on; of the damaged one nothing more is sent, its file is
    named, with what to do."""
    for name in ("whole", "damaged"):
        running = place.start("run", place.rows(20, name + " {}", f"{name}.txt"), *GATED, "--name", name)
        running.answered(10)
        running.signal(signal.SIGKILL)
        running.end()
    jobs = {job["name"]: job["job_id"] for job in place.run("jobs", "--json").json["jobs"]}
    (damaged,) = (place.home / "jobs" / jobs["damaged"]).glob(file)
    data = damaged.read_bytes()
    damaged.write_bytes(b"\xff" * len(data))
    listed = place.run("resume", "--list", "--json").json["jobs"]
    assert [(job["job_id"], job["succeeded"]) for job in listed] == [(jobs["damaged"], 10), (jobs["whole"], 10)]
    (place.folder / "gate").touch()
    refused = place.run("resume", "damaged", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "store"), refused.err
    assert damaged.relative_to(place.home).as_posix() in refused.json["error"]["message"]
    assert "backup" in refused.json["error"]["fix"]
    assert place.run("resume", "whole").code == 0
    damaged.write_bytes(data)  # from the backup
    assert place.run("resume", "damaged").code == 0
    assert place.run("show", "damaged", "--json").json["succeeded"] == 20


def test_a_closed_pipe_ends_in_silence(place: Place) -> None:
    """`nightmill results JOB | head -1` prints one line and no complaint."""
    assert place.run("run", place.rows(400), "--prompt", "{{ text }} " + "long " * 200, "--model",
                     "python:funcs.upper", "--progress", "none").code == 0  # fmt: skip
    line = f"{' '.join(COMMAND)} results @last | head -1"
    done = subprocess.run(
        ["bash", "-c", line], check=False, cwd=place.folder, env=place.env, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["index"] == 0
    assert done.stderr == ""


def test_the_simulator_says_what_to_export(place: Place) -> None:
    """`simulate` prints lines for a shell; with them `run` and `doctor` talk to it, until Ctrl-C."""
    process = subprocess.Popen([*COMMAND, "simulate", "--speed", "1000"], cwd=place.folder, env=place.env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    with process:
        assert process.stdout is not None
        exports = list(iter(process.stdout.readline, "export BATCH_CHECK_INTERVAL=1\n"))
        assert exports.pop(0).startswith("# simulator at http://127.0.0.1:")
        place.env.update(line.removeprefix("export ").strip().split("=", 1) for line in exports)
        assert place.env["GEMINI_BASE_URL"] + "/v1" == place.env["OPENAI_BASE_URL"]
        doctor = place.run("doctor", "--json")
        assert (doctor.code, doctor.json["ok"]) == (0, True), doctor.out
        assert {"name": "clock", "state": "ok", "text": "agrees with the provider's", "fix": ""} in doctor.json[
            "checks"
        ]
        for model in (MODEL, "anthropic/claude-haiku-4-5"):
            done = place.run("run", place.rows(3), "--prompt", "{{ text }}", "--model", model, "--yes")
            assert done.code == 0, done.err
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    broken = place.run("doctor", "--json")
    assert broken.code == 1
    assert "sk-simulated" not in broken.out


@pytest.mark.parametrize("faults", ['{"fault": "upload_500"}', '["upload_500"]', "3"])
def test_a_faults_file_that_holds_no_list_of_faults_is_refused(place: Place, faults: str) -> None:
    """What a faults file has to hold is said, by example."""
    (place.folder / "faults.json").write_text(faults)
    done = place.run("simulate", "--faults", "faults.json")
    assert done.code == 2
    assert 'for example [{"fault": "upload_500", "times": 1}]' in done.err


def test_logs_and_screens_hold_no_key_and_no_prompt(place: Place) -> None:
    """The log tells what was worked on, with neither prompts nor keys, in a home only its owner reads."""
    place.env["OPENAI_API_KEY"] = "sk-very-secret"
    assert place.run("run", place.rows(3, "private {}"), "--prompt", "{{ text }}", "--model",
                     "python:funcs.upper").code == 0  # fmt: skip
    log = (place.home / "logs" / "nightmill.log").read_text()
    assert "is completed: 3 of 3 rows ok" in log
    assert "private" not in log
    assert "secret" not in log
    assert place.home.stat().st_mode & 0o077 == 0
