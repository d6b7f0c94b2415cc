"""The first rows of a large job go out before all others, and a job whose answers are bad stops before the rest."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Done, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X3")

SCHEMA = {
    "type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"],
    "additionalProperties": False,
}  # fmt: skip
ASKED = ("--prompt", "{{ text }}", "--model", MODEL, "--max-output", "60", "--schema", "score.json", "--yes", "--json")
BAD = "wrong_schema_answers"


def server(*faults: dict[str, Any], enqueued_tokens: int | None = None) -> AbstractContextManager[str]:
    """A provider whose batches take a minute, a tenth of a second of ours."""
    return in_thread(SimulatorConfig(speed=600.0, faults=faults, enqueued_tokens=enqueued_tokens))


def place_at(folder: Path, url: str) -> Place:
    place = Place(folder, url)
    (folder / "score.json").write_text(json.dumps(SCHEMA))
    return place


def run(place: Place, rows: int, *arguments: str) -> Done:
    return place.run("run", place.rows(rows, f"{place.folder.name} {{}}"), *ASKED, *arguments)


def is_billed(place: Place, found: dict[str, Any]) -> bool:
    """Whether what was booked is what the provider bills, to the nano-dollar, and no row ran twice."""
    bill = place.invoice()
    return not bill["executed_more_than_once"] and round(found["spent_usd"] * 1e9) == bill["total_nanos"]


def test_the_first_rows_of_a_large_job_go_live_and_update_its_quote(tmp_path: Path) -> None:
    """With more than 500 rows 20 go out first, live; what a row really takes is shown beside the quote; 500 do not."""
    with server() as url:
        place = place_at(tmp_path, url)
        done = run(place, 501, "--out", "r.jsonl")
        assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, 501, True), done.err
        assert [row["lane"] for row in place.results("r.jsonl")] == ["live"] * 20 + ["batch"] * 481
        canary = done.json["canary"]
        assert (canary["rows"], canary["valid"], canary["stopped"]) == (20, 20, None)
        assert canary["row_tokens_in"] > 0
        assert canary["row_tokens_out"] > 0
        assert canary["quoted_usd"] == done.json["estimated_usd"]
        assert canary["expected_usd"] == pytest.approx(done.json["spent_usd"], rel=0.1)
        assert is_billed(place, done.json)
        assert "the first 20 rows go out before all others, live" in done.err
        assert "  first 20 rows: valid 20 (100 %)" in done.err
        assert "    expected $" in done.err
        assert "first 20 rows: valid 20 (100 %)" in place.run("show", "@last").out
        small = run(place, 500, "--new", "--no-cache", "--out", "small.jsonl")
        assert {row["lane"] for row in place.results("small.jsonl")} == {"batch"}
        assert "canary" not in small.json


def test_rows_that_are_not_sent_are_no_canary(tmp_path: Path) -> None:
    """Only rows that are sent count: duplicates and rows answered before make no job large, nor a canary small."""
    with server() as url:
        place = place_at(tmp_path, url)
        first = run(place, 30, "--lane", "batch")
        assert first.code == 0, first.err
        rows = [f"{tmp_path.name} {i}" for i in range(530)] + [f"{tmp_path.name} 7"] * 100
        (tmp_path / "more.txt").write_text("\n".join(rows) + "\n")
        same = place.run("run", "more.txt", *ASKED, "--limit", "530")
        assert (same.code, same.json["cached"], "canary" in same.json) == (0, 30, False), same.err
        (tmp_path / "more.txt").write_text("\n".join([*rows, *(f"other {i}" for i in range(501))]) + "\n")
        more = place.run("run", "more.txt", *ASKED, "--out", "more.jsonl")
        assert (more.code, more.json["canary"]["rows"]) == (0, 20), more.err
        lanes = [row["lane"] for row in place.results("more.jsonl")]
        assert lanes[630:652] == ["live"] * 20 + ["batch"] * 2


def test_bad_first_rows_stop_the_job_before_the_rest_and_a_person_may_insist(tmp_path: Path) -> None:
    """Below --min-valid nothing else is sent (exit 5); the same command stops again, `resume` goes on."""
    with server({"fault": BAD, "count": 5, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        done = run(place, 40, "--canary", "20", "--min-valid", "90%", "--lane", "auto")
        assert (done.code, done.json["status"], done.json["stopped"]) == (5, "paused", "min_valid"), done.err
        assert (done.json["canary"]["valid"], done.json["canary"]["valid_share"]) == (15, 0.75)
        (why, rows), *_ = done.json["canary"]["failures"].items()
        assert (why.startswith("invalid_output: "), rows) == (True, 5)
        assert (done.json["sent"], done.json["pending"]) == (20, 20)
        assert is_billed(place, done.json)
        assert done.json["error"]["code"] == "bad_answers"
        assert f"nightmill resume {done.json['job_id']}" in done.json["error"]["fix"]
        again = run(place, 40, "--canary", "20", "--min-valid", "90%")
        assert (again.code, again.json["sent"]) == (5, 20), again.err
        lower = run(place, 40, "--min-valid", "0.7")
        assert (lower.code, lower.json["sent"], lower.json["succeeded"]) == (3, 40, 35), lower.err
        assert is_billed(place, lower.json)


def test_first_rows_that_are_all_bad_stop_the_job_once(tmp_path: Path) -> None:
    """The first rows are decided about as such, not by the watch over all answers: whoever resumes is asked once."""
    with server({"fault": BAD, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        done = run(place, 60, "--canary", "25", "--min-valid", "0.5")
        assert (done.code, done.json["stopped"], done.json["sent"]) == (5, "canary", 25), done.err
        on = place.run("resume", "--json")
        assert (on.code, on.json["succeeded"]) == (3, 35), on.err


def test_resume_goes_on_whatever_the_first_rows_were(tmp_path: Path) -> None:
    """Without a floor a job stops where no first row has a valid answer; resumed it runs to its end."""
    with server({"fault": BAD, "count": 3, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        done = run(place, 12, "--canary", "3")
        assert (done.code, done.json["stopped"], done.json["sent"]) == (5, "canary", 3), done.err
        assert "none of the first 3 rows has a valid answer" in done.json["error"]["why"]
        shown = place.run("show", "@last")
        assert "stopped: by its first rows" in shown.out
        assert "    3 invalid_output: " in shown.out
        on = place.run("resume", "--json")
        assert (on.code, on.json["succeeded"], on.json["failed"]) == (3, 9, 3), on.err
        assert "first 3 rows" not in on.err  # that was told
        assert is_billed(place, on.json)


@pytest.mark.parametrize("lane", ["batch", pytest.param("live", marks=pytest.mark.again)])
def test_a_job_whose_answers_turn_bad_half_way_stops_before_it_spends_the_rest(tmp_path: Path, lane: str) -> None:
    """From row 300 of 2,000 on all answers are bad: within a window of them nothing more is sent; spent is billed."""
    with server({"fault": BAD, "from_row": 300}, enqueued_tokens=7_000) as url:  # two batches at once
        place = place_at(tmp_path, url)
        more = ("--lane", "live", "--concurrency", "8") if lane == "live" else ("--batch-size", "250")
        done = run(place, 2_000, "--min-valid", "0.9", *more)
        found = done.json
        assert (done.code, found["status"], found["stopped"]) == (5, "paused", "min_valid"), done.err
        assert "--min-valid asks for 90%" in found["error"]["why"]
        assert (found["canary"]["valid"], adds_up(found)) == (20, True)
        assert is_billed(place, found)
        most = 300 + 200 + 32 if lane == "live" else 20 + 6 * 250  # one may end, and one go out, as another is read
        assert place.invoice()["executed_rows"] <= most
        place.ask("faults", "DELETE")
        on = place.run("resume", "--json")
        assert on.code == 3, on.err
        assert (on.json["pending"], adds_up(on.json), on.json["sent"]) == (0, True, 2_000)
        assert is_billed(place, on.json)


def test_batches_under_way_are_cancelled_when_answers_are_too_bad(tmp_path: Path) -> None:
    """One that would never end is ended; what it has not done is not paid, and goes out when the job is resumed."""
    stuck = {"fault": "never_finishes", "after": 1, "times": 1}
    with server({"fault": BAD, "fraction": 0.5, "on": "batch"}, stuck) as url:
        place = place_at(tmp_path, url)
        done = run(place, 60, "--canary", "0", "--min-valid", "0.9", "--batch-size", "30")
        assert [event["event"] for event in place.log()].count("cancel") == 1
        assert (done.code, done.json["pending"] > 0) in {(5, True), (3, False)}, done.err
        assert is_billed(place, done.json)
        place.ask("faults", "DELETE")
        on = place.run("resume", "@last", "--json") if done.code == 5 else done
        assert (on.code, on.json["pending"], adds_up(on.json)) == (3, 0, True), on.err
        assert is_billed(place, on.json)


def test_whoever_detaches_waits_for_live_first_rows(tmp_path: Path) -> None:
    """They are answered and looked at before the rest is handed over; bad ones end it with 5, and nothing is sent."""
    with server() as url:
        place = place_at(tmp_path, url)
        left = run(place, 40, "--canary", "5", "--detach")
        assert (left.code, left.json["canary"]["valid"], left.json["rows_left"]) == (0, 5, 0), left.err
        done = place.run("results", "@last", "--out", "r.jsonl", "--json")
        assert [row["lane"] for row in place.results("r.jsonl")] == ["live"] * 5 + ["batch"] * 35, done.err
    with server({"fault": BAD, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        bad = run(place, 41, "--canary", "5", "--detach", "--no-cache")
        assert (bad.code, bad.json["status"], bad.json["sent"]) == (5, "paused", 5), bad.err


def test_first_rows_in_a_batch_leave_the_rest_to_whoever_comes_back(tmp_path: Path) -> None:
    """Asked for batches, first rows are one; who detaches is told what is left, and coming back sends it."""
    with in_thread(SimulatorConfig(speed=600.0, batch_s=1_200.0)) as url:
        place = place_at(tmp_path, url)
        left = run(place, 40, "--canary", "5", "--detach", "--lane", "batch")
        assert (left.code, left.json["rows_at_provider"], left.json["rows_left"]) == (0, 5, 35), left.err
        assert left.json["canary"] is None
        assert "still to send: 35 rows, by whoever comes back when the first rows are answered" in left.err
        done = place.run("results", "@last", "--out", "r.jsonl", "--json")
        assert (done.code, done.json["canary"]["valid"]) == (0, 5), done.err
        assert {row["lane"] for row in place.results("r.jsonl")} == {"batch"}
        assert is_billed(place, done.json)


def test_first_rows_of_a_job_with_a_deadline_go_live(tmp_path: Path) -> None:
    """There is no time for a batch of their own; they are not counted among the rows rescued for the deadline."""
    with server() as url:
        place = place_at(tmp_path, url)
        done = run(place, 40, "--canary", "5", "--by", "2h", "--lane", "batch", "--out", "r.jsonl")
        assert (done.code, done.json["rescued"], done.json["canary"]["valid"]) == (0, 0, 5), done.err
        assert [row["lane"] for row in place.results("r.jsonl")] == ["live"] * 5 + ["batch"] * 35
        assert is_billed(place, done.json)


def test_rows_that_cost_more_than_there_is_pause_the_job_with_four(tmp_path: Path) -> None:
    """Where a row takes more than the quote said, and the money would not do, a person decides before it is spent."""
    with server() as url:
        place = place_at(tmp_path, url)
        (tmp_path / "short.toml").write_text('prompt = "Say {{ text }}"\nexpect = 1\nmax_output = 400\n')
        rows = place.rows(200, "a line to speak of {}")
        asked = ("run", rows, "--task", "short.toml", "--model", MODEL, "--yes", "--json", "--canary", "10")
        done = place.run(*asked, "--budget", "0.0015")
        assert (done.code, done.json["stopped"], done.json["sent"]) == (4, "budget", 10), done.err
        canary = done.json["canary"]
        assert canary["quoted_usd"] < 0.0015 < canary["expected_usd"]
        assert "by its first 10 rows the job will probably cost $0.00" in done.json["error"]["why"]
        same = place.run(*asked)
        assert (same.code, same.json["sent"]) == (4, 10), same.err
        richer = place.run(*asked, "--budget", "1")
        assert (richer.code, richer.json["succeeded"]) == (0, 200), richer.err
        assert is_billed(place, richer.json)


def test_two_processes_decide_about_first_rows_once(tmp_path: Path) -> None:
    """Started twice at once, the job's first rows run once, and nothing else before they were looked at."""
    with server() as url:
        place = place_at(tmp_path, url)
        asked = ("run", place.rows(60, "a {}"), *ASKED, "--canary", "5", "--batch-size", "20")
        first = place.start(*asked)
        second = place.run(*asked)
        one = first.end()
        assert (one.code, second.code) == (0, 0), one.err + second.err
        bill = place.invoice()
        assert (bill["live_calls"], len(bill["batches"]), bill["executed_more_than_once"]) == (5, 3, 0)


def test_settings_say_it_for_all_jobs(tmp_path: Path) -> None:
    """[defaults] canary and min_valid hold where nothing else is said, a share as a number or in percent."""
    with server({"fault": BAD, "count": 2, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        settings = tmp_path / "nightmill.toml"
        settings.write_text('[defaults]\ncanary = 10\nmin_valid = "85%"\n' + settings.read_text())
        done = run(place, 501)
        assert (done.code, done.json["canary"]["rows"], done.json["canary"]["valid"]) == (5, 10, 8), done.err
        assert "asks for 85%" in done.json["error"]["why"]
        settings.write_text(settings.read_text().replace('"85%"', "0.8"))
        done = run(place, 501, "--new", "--no-cache")
        assert (done.code, done.json["canary"]["valid"]) == (0, 10), done.err
        settings.write_text(settings.read_text().replace("min_valid = 0.8", "min_valid = 8"))
        wrong = run(place, 501)
        assert (wrong.code, "a share above 0, such as 0.9 or 90%" in wrong.err) == (2, True)


@pytest.mark.parametrize("said", [("--min-valid", "0"), ("--min-valid", "101%"), ("--canary", "-1")])
def test_what_is_no_share_or_number_is_refused(tmp_path: Path, said: tuple[str, str]) -> None:
    """Before anything is planned, with what it should have been."""
    place = Place(tmp_path)
    done = place.run("run", place.rows(2), "--prompt", "{{ text }}", "--model", "python:funcs.upper", *said)
    assert done.code == 2
    assert said[0] in done.err


def test_first_rows_that_are_mended_are_valid(tmp_path: Path) -> None:
    """What a ladder was asked for belongs to an answer: first rows are decided about when its steps are done."""
    with server({"fault": BAD, "count": 5, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        done = run(place, 40, "--canary", "20", "--min-valid", "0.9", "--reask", "1", "--no-cache")
        assert (done.code, done.json["canary"]["valid"], done.json["canary"]["failures"]) == (0, 20, {}), done.err
        assert (done.json["succeeded"], done.json["sent"]) == (40, 40)
        assert is_billed(place, done.json)


def test_first_rows_that_another_providers_model_mends_are_told_as_valid(tmp_path: Path) -> None:
    """Each answer is read as its own provider writes it: no reason is told for a row that is valid in the end."""
    with server({"fault": BAD, "count": 2, "on": "live"}) as url:
        place = place_at(tmp_path, url)
        place.env |= {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": url.removesuffix("/v1")}
        models = ("--model", f"{MODEL},anthropic/claude-haiku-4-5", "--lane", "live", "--concurrency", "1")
        done = run(place, 40, "--canary", "20", "--min-valid", "0.95", *models)
        assert (done.code, done.json["canary"]["valid"], done.json["canary"]["failures"]) == (0, 20, {}), done.err
        assert is_billed(place, done.json)
