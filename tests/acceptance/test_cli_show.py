"""`show`: one job closely, one row closely, what happened, and what it cost against what was quoted."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

RUN = ("--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch", "--max-output", "400", "--yes")


def _simulator(*faults: dict[str, object]) -> SimulatorConfig:
    return SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=faults)


@pytest.mark.req("X12")
def test_quote_and_bill_stand_side_by_side(tmp_path: Path) -> None:
    """`show` tells what was quoted, what was spent, and the difference, to the nano in ``--json``."""
    with in_thread(_simulator()) as url:
        place = Place(tmp_path, url)
        assert place.run("run", place.rows(6), *RUN).code == 0
        shown = place.run("show", "@last", "--json").json
        assert round(shown["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
        off = round((shown["spent_usd"] - shown["estimated_usd"]) * 1e9)
        assert off != 0
        assert round(shown["difference_usd"] * 1e9) == off
        said = place.run("show", "@last").out
        assert ("more than quoted" if off > 0 else "less than quoted") in said
        assert "at most" in said


@pytest.mark.req("D3")
def test_a_job_tells_when_it_began_and_ended(tmp_path: Path) -> None:
    """`show --json` has both times in UTC, as its results in a .json document have."""
    place = Place(tmp_path)
    assert place.run("run", place.rows(2), "--model", "python:funcs.upper", "--out", "r.json").code == 0
    shown = place.run("show", "@last", "--json").json
    told = json.loads((place.folder / "r.json").read_text())["job"]
    for name in ("started_at", "completed_at"):
        assert shown[name].endswith("+00:00")
        assert dt.datetime.fromisoformat(told[name]).replace(microsecond=0) == dt.datetime.fromisoformat(shown[name])


@pytest.mark.req("X12")
def test_a_job_tells_what_happened_to_it(tmp_path: Path) -> None:
    """`show --log` lists holds, settlements, shards and alerts by time; its settled money is the provider's bill."""
    with in_thread(_simulator({"fault": "missing_lines", "count": 1, "times": 1})) as url:
        place = Place(tmp_path, url)
        assert place.run("run", place.rows(6), *RUN).code == 0
        log = place.run("show", "@last", "--log", "--json").json
        kinds = [event["event"] for event in log["events"]]
        assert (kinds[0], kinds[-1]) == ("created", "finished")
        assert kinds.count("hold") == kinds.count("settled") == 2  # the row that was missing went out again
        times = [event["at"] for event in log["events"]]
        assert times == sorted(times)
        paid = sum(event["usd"] for event in log["events"] if event["event"] in ("settle", "unproven"))
        assert round(paid * 1e9) == round(place.run("show", "@last", "--json").json["spent_usd"] * 1e9)
        assert "finished" in place.run("show", "@last", "--log").out
        assert place.run("show", "@last", "--log", "--failures").code == 2


@pytest.mark.req("D4")
def test_a_row_tells_where_it_ran(tmp_path: Path) -> None:
    """`show --row N` gives prompt, answer, cost and attempt, and every shard and batch that the row was in."""
    with in_thread(_simulator({"fault": "row_errors", "count": 1, "times": 1})) as url:
        place = Place(tmp_path, url)
        assert place.run("run", place.rows(4), *RUN).code == 0
        rows = [place.run("show", "@last", "--row", str(n), "--json").json for n in range(4)]
        again = [row for row in rows if len(row["tries"]) == 2]
        assert len(again) == 1
        assert again[0]["attempt"] == 2
        for row in rows:
            assert row["prompt"] == f"Say row {row['index']}"
            assert row["cost_usd"] > 0
            assert (row["tries"][-1]["shard"], row["tries"][-1]["batches"]) == (row["shard"], [row["batch_id"]])
        said = place.run("show", "@last", "--row", str(again[0]["index"])).out
        assert said.count("was in shard") == 2
        beyond = place.run("show", "@last", "--row", "4")
        assert (beyond.code, "rows 0 to 3" in beyond.err) == (2, True)


@pytest.mark.req("C5")
def test_a_pause_is_heard_and_a_resume_goes_on(tmp_path: Path) -> None:
    """`pause` stops a live run in another process, calls in hand finished; `resume` sends the rest, none twice."""
    place = Place(tmp_path)
    running = place.start("run", place.rows(30), "--prompt", "{{ text }}", "--model", "python:funcs.gated",
                          "--concurrency", "2", "--json")  # fmt: skip
    running.answered(10)
    paused = place.run("pause", "@last", "--json")
    assert (paused.code, paused.json["status"], paused.json["stopped"]) == (0, "paused", "paused"), paused.err
    log = place.home / "logs" / "nightmill.log"
    running.until(lambda _: "nothing new is sent" in log.read_text())
    (place.folder / "gate").touch()
    stopped = running.end()
    assert (stopped.code, stopped.json["error"]["code"]) == (1, "paused"), stopped.err
    assert 0 < stopped.json["pending"] < 30
    assert f"nightmill resume {stopped.json['job_id']}" in stopped.err
    assert place.run("pause", "@last").code == 0
    done = place.run("resume", "@last", "--json")
    assert (done.code, done.json["succeeded"]) == (0, 30), done.err
    assert sorted(place.calls()) == sorted(f"row {i}" for i in range(30))
    assert place.run("pause", "@last", "--json").json["error"]["code"] == "conflict"


@pytest.mark.req("X12")
def test_a_pause_leaves_what_is_at_the_provider(tmp_path: Path) -> None:
    """A paused job creates no batch any more; those that are out are brought in all the same, and paid for once."""
    with in_thread(_simulator()) as url:
        place = Place(tmp_path, url, toml="[providers.openai]\nlimits = { batch_requests = 1 }\n")
        with (place.folder / "nightmill.toml").open("a") as settings:  # a doubt is over soon
            settings.write("lease_s = 8.0\nrequest_timeout_s = 2.0\ncreate_timeout_s = 2.0\nmargin_s = 0.2\n")
        killed = {"NIGHTMILL_KILL_AT": "ledger.note_created.committed"}  # eight of twelve shards are in hand at most
        place.env |= killed
        assert place.run("run", place.rows(12), *RUN).code < 0
        for name in killed:
            del place.env[name]
        assert place.run("pause", "@last").code == 0
        looked = place.run("watch", "@last", "--exit-status", "--json")
        assert (looked.code, looked.json["error"]["code"]) == (1, "paused"), looked.err
        out = sum(event["event"] == "create" for event in place.log())
        assert 1 <= out <= 8
        assert (looked.json["succeeded"], looked.json["pending"]) == (out, 12 - out)
        done = place.run("resume", "@last", "--json")
        assert (done.code, done.json["succeeded"]) == (0, 12), done.err
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
        assert place.invoice()["executed_more_than_once"] == 0


def test_an_ambiguous_prefix_names_the_candidates(tmp_path: Path) -> None:
    """A prefix that two jobs begin with is refused with both of them; a name or a longer prefix finds one."""
    place = Place(tmp_path)
    for text, name in (("a {}", "one"), ("b {}", "two")):
        found = place.run("run", place.rows(2, text), "--prompt", "{{ text }}", "--model", "python:funcs.upper",
                          "--name", name, "--json")  # fmt: skip
        assert found.code == 0, found.err
    jobs = place.run("jobs", "--json").json["jobs"]
    refused = place.run("show", jobs[0]["job_id"][:4], "--json").json["error"]
    assert all(f"{job['job_id']} ({job['name']})" in refused["why"] for job in jobs)
    assert place.run("show", "one", "--json").json["job_id"] == jobs[1]["job_id"]
    assert place.run("show", "@last", "--json").json["name"] == "two"


@pytest.mark.req("B2")
def test_jobs_are_listed_by_state_and_never_cut_in_silence(tmp_path: Path) -> None:
    """`jobs` shows the newest, says when there are more, and takes only those in a state."""
    place = Place(tmp_path)
    assert "there is no job yet" in place.run("show", "@last").err
    for n in (1, 2, 3):
        run = ("run", place.rows(n), "--prompt", "{{ text }}", "--model", "python:funcs.upper")
        assert place.run(*run).code == 0
    some = place.run("jobs", "--limit", "2")
    assert (len(some.out.splitlines()), "nightmill jobs --all" in some.err) == (3, True)
    assert [job["rows"] for job in place.run("jobs", "--all", "--limit", "2", "--json").json["jobs"]] == [3, 2, 1]
    assert len(place.run("jobs", "--state", "completed", "--state", "paused", "--json").json["jobs"]) == 3
    assert place.run("jobs", "--state", "paused", "--json").json["jobs"] == []
    assert place.run("jobs", "--state", "paused").out == "no job is paused\n"
