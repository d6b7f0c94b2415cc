"""Each step of a batch alone: hand over and leave, look at what there is, fetch results later."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import openai
import pytest
from cli_kit import MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

ROWS = 6
RUN = ("run", "in.txt", "--prompt", "Say {{ text }}", "--model", MODEL, "--yes", "--json")
SLOW_S = 1500.0  # provider seconds of a batch: long enough that nobody sees its end on the way out


def creates(place: Place) -> int:
    return sum(event["event"] == "create" and bool(event["batch_id"]) for event in place.log())


@pytest.mark.req("B2")
def test_each_step_alone(tmp_path: Path) -> None:
    """Submit and leave, list, look at the provider, fetch: each by a process of its own, every row sent once."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, batch_s=SLOW_S)) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        formatted = place.run(*RUN, "--dry-run", "--detach").json
        assert formatted["first_request"]["body"]["messages"][-1]["content"] == "Say row 0"
        left = place.run(*RUN, "--detach")
        assert left.code == 0, left.err
        assert (left.json["status"], left.json["lane"], left.json["detached"]) == ("running", "batch", True)
        assert (left.json["rows_at_provider"], left.json["rows_left"], left.json["pending"]) == (ROWS, 0, ROWS)
        assert left.json["done_by"] < left.json["collect_by"]
        assert f"nightmill results {left.json['job_id']}" in left.err
        (job,) = place.run("jobs", "--json").json["jobs"]
        assert (job["job_id"], job["status"]) == (left.json["job_id"], "running")
        (there,) = place.run("batches", "openai", "--json").json["batches"]
        assert ([there["batch_id"]], there["shard_state"]) == (left.json["batches"], "waiting")
        done = place.run("results", "@last", "--out", "r.jsonl", "--json")
        assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
        assert adds_up(done.json)
        assert [row["success"] for row in place.results("r.jsonl")] == [True] * ROWS
        assert creates(place) == 1
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]


@pytest.mark.req("B2")
def test_what_does_not_fit_stays_and_is_told(tmp_path: Path) -> None:
    """The provider takes one of two batches now: the other's rows wait, and go out when somebody comes back."""
    full = [{"fault": "enqueued_limit_now", "limit": 2_000_000, "times": 1}]
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, batch_s=SLOW_S, faults=full)) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        toml = tmp_path / "nightmill.toml"
        toml.write_text(toml.read_text().replace("limit_wait_s = 0.2", "limit_wait_s = 5.0"))
        left = place.run(*RUN, "--detach", "--batch-size", "3")
        assert left.code == 0, left.err
        assert (left.json["rows_at_provider"], left.json["rows_left"], len(left.json["batches"])) == (3, 3, 1)
        assert "still to send: 3 rows, waiting" in left.err
        done = place.run("watch", "@last", "--exit-status", "--json")
        assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
        assert creates(place) == 2


@pytest.mark.req("B2")
def test_the_batch_file_alone(tmp_path: Path) -> None:
    """A dry run can keep what would be sent: files that a provider takes as they are; nothing is sent for it."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        keep = ("--dry-run", "--lane", "batch", "--batch-size", "4", "--save-requests", "requests")
        assert place.run(*RUN, *keep).code == 0
        assert creates(place) == 0
        files = sorted((tmp_path / "requests").iterdir())
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert [line["body"]["messages"][-1]["content"] for line in lines] == [f"Say row {i}" for i in range(ROWS)]
        with openai.OpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
            sent = client.files.create(file=files[0], purpose="batch")
            made = client.batches.create(
                input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        done = place.run("adopt", f"openai/{made.id}", "--json")
        assert (done.code, done.json["succeeded"]) == (0, 4), done.err
        refused = place.run(*RUN, *keep)
        assert (refused.code, "no empty folder" in refused.json["error"]["message"]) == (2, True)
        assert place.run(*RUN, "--save-requests", "other").code == 2


def test_a_job_that_ends_on_the_way_out_is_told_as_ended(tmp_path: Path) -> None:
    """Everything comes from the cache: nothing is handed over, the job is completed, and that is what is said."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        assert place.run(*RUN, "--lane", "batch").code == 0
        again = place.run(*RUN, "--detach")
        assert (again.code, again.json["status"], again.json["cached"]) == (0, "completed", ROWS), again.err
        assert "detached" not in again.json


@pytest.mark.parametrize("flags", [("--lane", "live"), ("--out", "r.jsonl")], ids=lambda flags: flags[0])
def test_what_needs_this_process_cannot_be_left(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Live calls and output files end with the process: refused before anything is planned."""
    place = Place(tmp_path, "http://127.0.0.1:9/v1")
    place.rows(ROWS)
    refused = place.run(*RUN, "--detach", *flags)
    assert (refused.code, refused.json["error"]["code"]) == (2, "usage")
    assert place.run("jobs", "--json").json["jobs"] == []


@pytest.mark.parametrize(
    ("model", "days"), [(MODEL, 30), ("anthropic/claude-haiku-4-5", 29), ("gemini/gemini-2.5-flash", 42)]
)
def test_results_are_called_for_before_their_provider_drops_them(tmp_path: Path, model: str, days: int) -> None:
    """Each provider keeps them for so long; in the last week `jobs` and `show` say so, until they are collected."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, batch_s=SLOW_S)) as url:
        place, base = Place(tmp_path, url), url.removesuffix("/v1")
        place.env |= {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": base}
        place.env |= {"GEMINI_API_KEY": "sk-test", "GEMINI_BASE_URL": base}
        place.rows(ROWS)
        left = place.run(*RUN, "--model", model, "--detach")
        assert left.code == 0, left.err
        left_s = (dt.datetime.fromisoformat(left.json["collect_by"]) - dt.datetime.now(dt.UTC)).total_seconds()
        assert abs(left_s - days * 86_400) < 60
        assert "alert" not in place.run("jobs").err
        until = grown_older(place, days - 6) + dt.timedelta(days=days)
        told = f"the results of a batch are kept until {until.date()} and are not collected yet"
        assert told in " ".join(place.run("jobs").err.split())
        shown = place.run("show", "@last", "--json").json
        assert [(alert["kind"], told in alert["text"]) for alert in shown["alerts"]] == [("lapsing", True)]
        grown_older(place, 7)
        assert "results of a batch were kept until" in " ".join(place.run("jobs").err.split())
        assert place.run("resume", "--json").code == 0
        assert "alert" not in place.run("jobs").err


def test_live_calls_have_no_results_that_a_provider_keeps(tmp_path: Path) -> None:
    """What was answered live is here: killed before it was counted, nobody is told to fetch it, however old it is."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        place.rows(ROWS)
        place.env["NIGHTMILL_KILL_AT"] = "ledger.note_sent_all.committed"
        assert place.run(*RUN, "--lane", "live").code < 0
        del place.env["NIGHTMILL_KILL_AT"]
        grown_older(place, 29)
        assert [shard["state"] for shard in place.run("show", "@last", "--json").json["shards"]] == ["collecting"]
        assert "alert" not in place.run("jobs").err


def grown_older(place: Place, days: int) -> dt.datetime:
    """Let so many days pass since the batch was made; when that was, then."""
    with closing(sqlite3.connect(place.home / "nightmill.db")) as ledger, ledger:
        ledger.execute("UPDATE submissions SET intent_at = intent_at - ?", (days * 86_400.0,))
        ((at,),) = ledger.execute("SELECT intent_at FROM submissions")
    return dt.datetime.fromtimestamp(at, dt.UTC)
