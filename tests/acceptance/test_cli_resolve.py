"""What a person ends: a doubt, by each of the three decisions, and the patience with calls in hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, QUICK, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

ROWS = 12
# The create is heard and its answer lost; no page of the list can be read, so that nobody finds out.
UNSURE = [{"fault": "create_accepted_then_500", "times": 1}, {"fault": "list_page_500"}]


@pytest.fixture
def unsure(tmp_path: Path) -> Iterator[Place]:
    """A job whose one shard is in doubt, and whose worker was stopped; the provider is well again."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=UNSURE)) as url:
        place = Place(tmp_path, url)
        running = place.start("run", place.rows(ROWS), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane",
                              "batch", "--yes", "--json")  # fmt: skip
        running.until(lambda event: event.get("phase", "").startswith("looking for a batch"))
        running.signal(signal.SIGINT)
        stopped = running.end()
        assert (stopped.code, stopped.json["pending"]) == (130, ROWS)
        place.ask("faults", "DELETE")
        yield place


def doubtful(place: Place) -> str:
    """The tag of the shard in doubt, as `show` tells it, with the command that ends it."""
    shown = place.run("show", "@last", "--json").json
    (shard,) = shown["shards"]
    assert shard["state"] == "in_doubt"
    assert f"nightmill resolve {shard['shard']} --adopt ID" in place.run("show", "@last").out
    return str(shard["shard"])


def resolved(place: Place, tag: str, *decision: str) -> dict[str, Any]:
    """What the command says of the job; a second decision comes too late."""
    done = place.run("resolve", tag, *decision, "--json")
    assert (done.code, done.json["shard"]) == (0, tag), done.err
    assert "next: nightmill resume" in done.err
    again = place.run("resolve", tag, *decision, "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "conflict")
    assert "is not in doubt" in again.json["error"]["message"]
    return done.json


def test_a_doubt_ends_with_a_decision_and_no_other_word(unsure: Place) -> None:
    """None of the three decisions, two of them, or a shard that is not: refused, and the doubt stays."""
    tag = doubtful(unsure)
    for arguments in ([tag], [tag, "--resend", "--write-off"], ["nothing-0", "--resend"]):
        done = unsure.run("resolve", *arguments, "--json")
        assert done.code == 2, done.err
        assert done.json["error"]["fix"]
    assert doubtful(unsure) == tag


def test_a_batch_that_is_not_there_cannot_be_adopted(unsure: Place) -> None:
    """A mistyped id is told as such, with what to do, and the shard stays in doubt."""
    tag = doubtful(unsure)
    done = unsure.run("resolve", tag, "--adopt", "batch_none")
    assert done.code == 2
    assert "batch_none cannot be adopted" in done.err
    assert "--write-off" in done.err
    assert doubtful(unsure) == tag


@pytest.mark.req("X1")
def test_an_adopted_batch_is_collected(unsure: Place) -> None:
    """--adopt: the batch that a person found is the shard's; every row once, spent as billed."""
    (batch,) = (event["batch_id"] for event in unsure.log() if event["event"] == "create")
    resolved(unsure, doubtful(unsure), "--adopt", batch)
    done = unsure.run("resume", "--json")
    assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
    invoice = unsure.invoice()
    assert invoice["executed_rows"] == ROWS
    assert round(done.json["spent_usd"] * 1e9) == invoice["total_nanos"]


@pytest.mark.req("X1")
def test_a_shard_sent_again_books_both_batches(unsure: Place) -> None:
    """--resend: the rows go out again; that the first batch was there after all is found, told and booked."""
    resolved(unsure, doubtful(unsure), "--resend")
    done = unsure.run("resume", "--json")
    assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
    assert adds_up(done.json)
    assert round(done.json["spent_usd"] * 1e9) == unsure.invoice()["total_nanos"]
    assert "second_batch" in [alert["kind"] for alert in unsure.run("show", "@last", "--json").json["alerts"]]


@pytest.mark.req("X1")
def test_a_shard_written_off_counts_as_spent_until_its_batch_turns_up(unsure: Place) -> None:
    """--write-off: its hold is unproven spend that covers the bill, its rows are missing; what turns up after all
    is taken in, and spent is what was billed."""
    written_off = resolved(unsure, doubtful(unsure), "--write-off")
    assert (written_off["missing"], written_off["pending"]) == (ROWS, 0)
    assert adds_up(written_off)
    assert written_off["spent_usd"] == written_off["unproven_usd"]
    assert round(written_off["spent_usd"] * 1e9) >= unsure.invoice()["total_nanos"]
    assert unsure.run("budget", "--json").json["held"] == 0.0
    done = unsure.run("resume", "--json")
    assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
    assert round(done.json["spent_usd"] * 1e9) == unsure.invoice()["total_nanos"]


@pytest.mark.req("X1", "X12")
def test_where_no_file_can_be_deleted_only_a_person_sends_again(tmp_path: Path) -> None:
    """A create that got lost could still arrive as long as its file is there: that it is not listed proves nothing.
    The hold stays, an alert says what to do, nothing is sent; after --resend every row runs once."""
    faults = [{"fault": "create_500_before", "times": 1}, {"fault": "delete_405"}]
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=faults)) as url:
        place = Place(tmp_path, url)
        running = place.start("run", place.rows(ROWS), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane",
                              "batch", "--yes", "--json")  # fmt: skip
        running.until(lambda event: "deletes no files" in event.get("trouble", ""))
        running.signal(signal.SIGINT)
        assert running.end().json["pending"] == ROWS
        tag = doubtful(place)
        assert f"alert: shard {tag} is in doubt" in place.run("show", "@last").out
        assert place.run("budget", "--json").json["held"] > 0
        assert [event["status"] for event in place.log() if event["event"] == "create"] == [500]
        resolved(place, tag, "--resend")
        done = place.run("resume", "--json")
        assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
        assert place.invoice()["executed_rows"] == ROWS
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]


@pytest.mark.req("C5")
def test_calls_that_do_not_end_are_given_up_when_patience_is_over(tmp_path: Path) -> None:
    """After one Ctrl-C, and `stop_grace_s`, calls still in hand are let go: they are booked, and sent again later."""
    hung = [{"fault": "live_timeout", "times": 2}]
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=hung)) as url:
        place = Place(tmp_path, url)
        (tmp_path / "nightmill.toml").write_text(QUICK + "stop_grace_s = 0.3\n")
        command = ("run", place.rows(ROWS), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "live",
                   "--concurrency", "2", "--yes", "--json")  # fmt: skip
        running = place.start(*command)
        while place.invoice()["executed_rows"] < 2:
            pass  # both calls have run, and will never be answered
        running.signal(signal.SIGINT)
        stopped = running.end()
        assert (stopped.code, stopped.json["pending"]) == (130, ROWS), stopped.err
        done = place.run(*command)
        assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
        invoice = place.invoice()
        assert (invoice["distinct_rows"], invoice["executed_rows"]) == (ROWS, ROWS + 2)
        assert round(done.json["spent_usd"] * 1e9) >= invoice["total_nanos"]
