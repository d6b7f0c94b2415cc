"""What was saved, and what was booked held against the provider's own totals."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

ROWS = 6
BATCH = ("--model", MODEL, "--lane", "batch", "--yes", "--json")


def simulator(*faults: dict[str, Any], **more: Any) -> SimulatorConfig:
    return SimulatorConfig(**{"speed": 1000.0, "answer_sigma": 0.0, "faults": list(faults), **more})


IN_NANOS, OUT_NANOS = 150, 600  # a token of the model, live


def nanos(dollars: float) -> int:
    return round(dollars * 1e9)


@pytest.mark.req("B5")
def test_what_was_saved_is_split_and_adds_up(tmp_path: Path) -> None:
    """Against each row sent live: half by the batch, all of the cached and the equal rows; paid is what was billed."""
    with in_thread(simulator()) as url:
        place = Place(tmp_path, url)
        (tmp_path / "in.txt").write_text("".join(f"row {i % 4}\n" for i in range(ROWS)))  # two are equal to others
        run = ("run", "in.txt", "--prompt", "Say {{ text }}", *BATCH)
        quote = place.run(*run, "--dry-run").json
        assert quote["saved_usd"] == pytest.approx(quote["list_price_usd"] - quote["estimated_usd"], abs=1e-9)
        first, second = place.run(*run, "--out", "1.jsonl").json, place.run(*run, "--out", "2.jsonl").json
        live = [
            [IN_NANOS * row["tokens_in"] + OUT_NANOS * row["tokens_out"] for row in place.results(name)]
            for name in ("1.jsonl", "2.jsonl")
        ]
        saved = place.run("savings", "--json").json
        again, began = saved["jobs"]
        assert (began["job_id"], again["job_id"]) == (first["job_id"], second["job_id"])
        assert [nanos(job["real_time_usd"]) for job in (began, again)] == [sum(costs) for costs in live]
        assert [job["paid_usd"] for job in (began, again)] == [first["spent_usd"], 0.0]
        assert nanos(began["by"]["batch_usd"]) == sum(live[0][:4]) - nanos(first["spent_usd"])
        assert nanos(again["by"]["cache_usd"]) == sum(live[1][:4])
        assert [nanos(job["by"]["duplicates_usd"]) for job in (began, again)] == [sum(costs[4:]) for costs in live]
        for each in (saved, began, again):
            assert nanos(each["saved_usd"]) == nanos(each["real_time_usd"]) - nanos(each["paid_usd"])
            assert nanos(each["saved_usd"]) == sum(map(nanos, each["by"].values()))
        assert nanos(saved["paid_usd"]) == place.invoice()["total_nanos"]
        assert first["saved_usd"] == began["by"]["batch_usd"]
        assert second["saved_usd"] == 0.0
        shown = place.run("savings", first["job_id"])
        assert first["job_id"] in shown.out
        assert place.run("savings", first["job_id"], "--json").json == began


@pytest.mark.req("B5", "X12")
def test_what_deleted_jobs_saved_stays_in_the_totals(tmp_path: Path) -> None:
    """Deleting a job changes no sum of all time: paid stays what was billed, by the cent, and all parts stay."""
    with in_thread(simulator({"fault": "missing_lines", "count": 1, "times": 1})) as url:
        place = Place(tmp_path, url)
        (tmp_path / "in.txt").write_text("".join(f"row {i % 4}\n" for i in range(ROWS)))
        for _ in range(2):  # the second is served from the cache, where it can be
            place.run("run", "in.txt", "--prompt", "Say {{ text }}", *BATCH)
        before = place.run("savings", "--json").json
        assert (before["by"]["cache_usd"], before["by"]["unproven_usd"]) > (0, -1)
        for kept in before["jobs"]:
            assert place.run("delete", kept["job_id"], "--yes").code == 0
        after = place.run("savings", "--json").json
        assert after.pop("jobs") == []
        assert after.pop("deleted_jobs") == after
        assert after == {name: before[name] for name in after}
        assert after["paid_usd"] == place.run("budget", "--json").json["spent"]
        assert "deleted jobs" in place.run("savings").out


@pytest.mark.req("B5")
def test_money_that_nobody_can_prove_is_no_saving(tmp_path: Path) -> None:
    """What is booked for a lost answer lowers what was saved, as a part of its own."""
    with in_thread(simulator({"fault": "missing_lines", "count": 2, "times": 1})) as url:
        place = Place(tmp_path, url)
        done = place.run("run", place.rows(ROWS), "--prompt", "Say {{ text }}", *BATCH).json
        saved = place.run("savings", "@last", "--json").json
        assert saved["by"]["unproven_usd"] == -done["unproven_usd"] < 0
        assert (saved["paid_usd"], saved["saved_usd"]) == (done["spent_usd"], done["saved_usd"])


@pytest.mark.req("X12")
def test_books_that_agree_are_equal(tmp_path: Path) -> None:
    """Every batch of ours at the price it was sent at, to the nano; what others made there is left out."""
    with in_thread(simulator()) as url:
        place = Place(tmp_path, url)
        done = place.run("run", place.rows(ROWS), "--prompt", "Say {{ text }}", "--batch-size", "3", *BATCH).json
        found = place.run("reconcile", "--json")
        assert found.code == 0, found.err
        assert [batch["match"] for batch in found.json["batches"]] == ["equal", "equal"]
        assert (found.json["compared"], found.json["difference_usd"]) == (2, 0.0)
        assert found.json["ours_usd"] == done["spent_usd"]
        assert round(found.json["theirs_usd"] * 1e9) == place.invoice()["total_nanos"]
        assert "equal" in place.run("reconcile", "openai").out


@pytest.mark.req("X12")
@pytest.mark.parametrize("fault", ["missing_lines", "duplicate_lines"])
def test_what_nobody_could_prove_is_settled_by_the_totals(tmp_path: Path, fault: str) -> None:
    """A line that is lost, or came twice: unproven until the provider's totals say what it cost; then to the cent."""
    with in_thread(simulator({"fault": fault, "count": 2, "times": 1})) as url:
        place = Place(tmp_path, url)
        done = place.run("run", place.rows(ROWS), "--prompt", "Say {{ text }}", *BATCH).json
        assert done["unproven_usd"] > 0
        found = place.run("reconcile", "--json")
        assert found.code == 0, found.err
        assert "settled" in [batch["match"] for batch in found.json["batches"]]
        now = place.run("show", "@last", "--json").json
        assert now["unproven_usd"] == 0
        assert round(now["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
        assert place.run("budget", "--json").json["spent"] == now["spent_usd"]
        again = place.run("reconcile", "--json").json
        assert {batch["match"] for batch in again["batches"]} == {"equal"}


def test_a_difference_that_nothing_explains_is_told_and_left(tmp_path: Path) -> None:
    """The books say a cent more than the provider, and no money is in doubt: exit 1, and nothing is changed."""
    with in_thread(simulator()) as url:
        place = Place(tmp_path, url)
        place.run("run", place.rows(ROWS), "--prompt", "Say {{ text }}", *BATCH)
        with contextlib.closing(sqlite3.connect(place.home / "nightmill.db")) as ledger, ledger:
            ledger.execute("UPDATE submissions SET spent_nanos = spent_nanos + 10000000")
        spent = place.run("show", "@last", "--json").json["spent_usd"]
        found = place.run("reconcile", "--json")
        assert (found.code, found.json["error"]["code"]) == (1, "differs"), found.err
        assert found.json["difference_usd"] == -0.01
        assert found.json["ours_usd"] == spent
        assert place.run("show", "@last", "--json").json["spent_usd"] == spent


@pytest.mark.req("X12")
def test_the_batch_of_a_deleted_job_stays_ours(tmp_path: Path) -> None:
    """What it cost is in the books, so nobody is told that others made it; its price went with the job."""
    with in_thread(simulator()) as url:
        place = Place(tmp_path, url)
        done = place.run("run", place.rows(ROWS), "--prompt", "Say {{ text }}", *BATCH).json
        assert place.run("delete", "@last", "--yes").code == 0
        (listed,) = place.run("batches", "--json").json["batches"]
        assert (listed["ours"], listed["job_id"], listed["shard_state"]) == (True, done["job_id"], "deleted")
        found = place.run("reconcile", "--json")
        (batch,) = found.json["batches"]
        assert (found.code, found.json["not_ours"], batch["match"]) == (0, 0, "deleted")
        assert batch["ours_usd"] == done["spent_usd"]


def test_a_batch_that_is_looked_for_is_no_difference(tmp_path: Path) -> None:
    """Its creation was never answered, and the next look will find it: not over yet, and nothing is wrong."""
    with in_thread(simulator({"fault": "create_accepted_then_500", "times": 1})) as url:
        place = Place(tmp_path, url)
        settings = tmp_path / "nightmill.toml"
        settings.write_text(settings.read_text().replace("looks_s = [0.0, 0.1, 0.2]", "looks_s = [600.0]"))
        left = place.run("run", place.rows(ROWS), "--prompt", "Say {{ text }}", *BATCH, "--detach").json
        assert left["rows_in_doubt"] == ROWS
        found = place.run("reconcile", "--json")
        (batch,) = found.json["batches"]
        assert (found.code, batch["match"], batch["shard"].startswith(left["job_id"])) == (0, "open", True)
