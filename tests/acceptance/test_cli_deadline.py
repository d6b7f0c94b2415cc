"""A deadline: half price where there is time, live where there is none left, and each row paid for once."""

from __future__ import annotations

import datetime as dt
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from cli_kit import MODEL, Done, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X3")

HURRY = "cancel_s = 1.0\ncollect_s = 0.5\n"  # of ours; the provider's clock runs a hundred times faster
ASKED = ("--prompt", "{{ text }}", "--model", MODEL, "--max-output", "100", "--out", "r.jsonl", "--yes", "--force")


def server(batch_s: float, latency_s: float = 0.0) -> AbstractContextManager[str]:
    """A provider whose batches take so many of its seconds, and answer row by row."""
    return in_thread(
        SimulatorConfig(speed=100.0, batch_s=batch_s, cancel_s=20.0, latency_s=latency_s, answer_sigma=0.0)
    )


def place_at(folder: Path, url: str) -> Place:
    place = Place(folder, url)
    settings = folder / "nightmill.toml"
    settings.write_text(settings.read_text() + HURRY)
    return place


def run(place: Place, rows: int, *arguments: str) -> Done:
    """Other options of the same name, given later, count instead."""
    return place.run("run", place.rows(rows, f"{place.folder.name} {{}}"), *ASKED, "--json", *arguments)


def lanes(place: Place) -> dict[str, int]:
    rows = [row["lane"] for row in place.results("r.jsonl")]
    return {lane: rows.count(lane) for lane in ("batch", "live")}


def is_paid_once(place: Place, done: Done) -> bool:
    """Whether what was booked is what is billed, to the nano-dollar, and no row ran twice."""
    bill = place.invoice()
    return not bill["executed_more_than_once"] and round(done.json["spent_usd"] * 1e9) == bill["total_nanos"]


@pytest.mark.req("E8")
@pytest.mark.parametrize("model", [MODEL, pytest.param("anthropic/claude-haiku-4-5", marks=pytest.mark.again)])
def test_what_a_slow_batch_has_not_done_in_time_is_finished_live(tmp_path: Path, model: str) -> None:
    """Every row is answered by the deadline, those of the batch stay, none runs twice, spent is what is billed."""
    with server(batch_s=2000.0) as url:
        place = place_at(tmp_path, url)
        place.env |= {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": url.removesuffix("/v1")}
        began = time.time()
        done = run(place, 16, "--by", "12s", "--model", model)
        assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, 16, True), done.err
        went = lanes(place)
        assert went["batch"] > 0, done.err
        assert went["live"] > 0, done.err
        assert is_paid_once(place, done)
        assert dt.datetime.fromisoformat(done.json["deadline"]).timestamp() == pytest.approx(began + 12, abs=5)
        assert (done.json["lane"], done.json["rescued"], done.json["unproven_usd"]) == ("batch", went["live"], 0)
        assert 0 < done.json["rescued_usd"] < done.json["spent_usd"] <= done.json["at_most_usd"]
        assert "in time" in done.err
        assert f"{went['live']} rows went live for it" in done.err
        shown = place.run("show", "@last")
        assert f"{went['live']} rows went live for it" in shown.out
        assert [event["event"] for event in place.log()].count("cancel") == 1


def gemini_at(folder: Path, url: str) -> Place:
    """A place whose models are Google's, where a cancelled batch hands nothing back."""
    place = place_at(folder, url)
    place.env |= {"GEMINI_API_KEY": "AIza-test", "GEMINI_BASE_URL": url.removesuffix("/v1")}
    return place


def test_what_would_be_lost_with_a_batch_is_not_paid_for_twice(tmp_path: Path) -> None:
    """Where a cancelled batch hands nothing back one that has answered rows is waited for, and told of."""
    with server(batch_s=1200.0) as url:
        place = gemini_at(tmp_path, url)
        done = run(place, 16, "--by", "10s", "--model", "gemini/gemini-2.5-flash-lite")
        assert (done.code, lanes(place), done.json["rescued"]) == (0, {"batch": 16, "live": 0}, 0), done.err
        assert is_paid_once(place, done)
        assert "cancel" not in [event["event"] for event in place.log()]
        assert "they would be paid for twice" in done.err


def test_a_batch_that_has_answered_nothing_goes_live_as_a_whole(tmp_path: Path) -> None:
    """... while one that has not begun is taken back, and all of it runs live in time."""
    with server(batch_s=1e6) as url:
        place = gemini_at(tmp_path, url)
        done = run(place, 16, "--by", "8s", "--model", "gemini/gemini-2.5-flash-lite")
        assert (done.code, lanes(place), done.json["rescued"]) == (0, {"batch": 0, "live": 16}, 16), done.err
        assert is_paid_once(place, done)
        assert "in time" in done.err


def test_a_batch_that_is_quick_enough_is_left_alone(tmp_path: Path) -> None:
    """With time to spare all rows cost half, and nothing is cancelled."""
    with server(batch_s=50.0) as url:
        place = place_at(tmp_path, url)
        done = run(place, 12, "--by", "1h")
        assert (done.code, lanes(place), done.json["rescued"]) == (0, {"batch": 12, "live": 0}, 0), done.err
        assert is_paid_once(place, done)
        assert "cancel" not in [event["event"] for event in place.log()]
        assert "went live" not in done.err


def test_batches_under_a_deadline_are_small_enough_to_be_taken_back_one_by_one(tmp_path: Path) -> None:
    """Of 2,500 rows one batch would have to go live whole; a size that was named stays."""
    with server(batch_s=50.0) as url:
        place = place_at(tmp_path, url)
        assert shards(run(place, 2500, "--dry-run", "--canary", "0")) == 1
        assert shards(run(place, 2500, "--dry-run", "--canary", "0", "--by", "9h")) == 3
        assert shards(run(place, 2500, "--dry-run", "--canary", "0", "--by", "9h", "--batch-size", "5000")) == 1


def shards(done: Done) -> int:
    found = re.search(r"([\d,]+) (?:batch|shard)", done.err)
    assert found is not None, done.err
    return int(found[1])


def test_where_there_is_no_time_for_a_batch_none_is_made(tmp_path: Path) -> None:
    """The price that is asked for is the live one, and no batch is begun that would be cancelled at once."""
    with server(batch_s=50.0) as url:
        place = place_at(tmp_path, url)
        done = run(place, 12, "--by", "2s")
        assert (done.code, done.json["lane"], lanes(place)) == (0, "live", {"batch": 0, "live": 12}), done.err
        assert is_paid_once(place, done)
        assert "too little time for batches" in done.err
        assert "reckoned at 4 rows a second" in done.err
        assert "create" not in [event["event"] for event in place.log()]
        told = run(place, 11, "--by", "2s", "--lane", "batch", "--new", "--no-cache", "--dry-run").json
        assert told["estimated_usd"] == told["list_price_usd"] > 0  # of what runs live the live price
        asked = run(place, 11, "--by", "2s", "--lane", "batch", "--new", "--no-cache")  # a lane that was named stays
        assert (asked.code, asked.json["lane"], asked.json["rescued"]) == (0, "batch", 11), asked.err
        assert "11 requests run live at once" in asked.err
        assert "create" not in [event["event"] for event in place.log()]


def test_the_quote_says_both_prices_and_when_each_lane_is_done(tmp_path: Path) -> None:
    """Both lanes with their times, the worst case that of running everything live; and what is known is learned."""
    with server(batch_s=10.0) as url:
        place = place_at(tmp_path, url)
        told = run(place, 12, "--by", "1h", "--dry-run")
        assert re.search(r"lane +expected +at most +done by", told.err), told.err
        assert re.search(r"batch .* at the latest +◀ chosen", told.err), told.err
        assert re.search(r"live .*≈ ", told.err), told.err
        assert "what batches have not answered in time runs live" in told.err
        half = run(place, 12, "--dry-run")
        assert told.json["estimated_usd"] == half.json["estimated_usd"]
        assert told.json["at_most_usd"] == pytest.approx(2 * half.json["at_most_usd"], rel=1e-3)
        assert "deadline" not in half.json
        for _ in range(5):
            assert run(place, 11, "--new", "--no-cache").code == 0
        assert re.search(r"batch .*≈ \d\d:\d\d", run(place, 12, "--by", "1h", "--dry-run").err)


def test_an_unfinished_job_keeps_the_deadline_it_was_begun_with(tmp_path: Path) -> None:
    """The same command goes on with it, whatever the clock says by now; another deadline is refused, by name."""
    with server(batch_s=1e6) as url:
        place = place_at(tmp_path, url)
        rows = place.rows(12)
        handed = place.run("run", rows, *ASKED[:6], "--yes", "--json", "--by", "2h", "--detach")
        assert handed.code == 0, handed.err
        assert "be back by" in handed.err
        other = place.run("run", rows, *ASKED[:6], "--yes", "--json", "--by", "3h", "--detach")
        assert other.code != 0
        assert handed.json["job_id"] in other.json["error"]["message"]
        assert "--by" in other.json["error"]["message"]
        assert "--new" in other.json["error"]["fix"]
        again = place.run("run", rows, *ASKED[:6], "--yes", "--json", "--by", "2h", "--detach")
        assert (again.code, again.json["deadline"]) == (0, handed.json["deadline"]), again.err
        plain = place.run("run", rows, *ASKED[:6], "--yes", "--json", "--detach")
        assert (plain.code, plain.json["deadline"]) == (0, handed.json["deadline"]), plain.err


def test_who_hands_over_too_late_for_batches_stays_until_the_rows_are_answered_live(tmp_path: Path) -> None:
    """There is nothing to come back for: live calls end with the process that makes them."""
    with server(batch_s=50.0, latency_s=3.0) as url:
        place = place_at(tmp_path, url)
        done = place.run("run", place.rows(40), *ASKED[:6], "--yes", "--json", "--by", "3s", "--detach",
                         "--concurrency", "2", "--batch-size", "30")  # fmt: skip
        assert (done.code, done.json["succeeded"], done.json["rescued"]) == (0, 40, 40), done.err
        assert is_paid_once(place, done)


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("2020-01-01T08:00", "is past"),
        ("0h", "no time at all"),
        ("25:00", "no deadline"),
        ("tomorrow", "no deadline"),
        ("", "no deadline"),
        ("-3h", "no deadline"),
        ("2027-02-31T08:00", "no deadline"),
        ("99999999999999d", "far away"),
    ],
)
def test_a_deadline_that_is_none_is_refused_before_anything_is_spent(tmp_path: Path, by: str, says: str) -> None:
    """What is past, or no time, is told with what would be one; nothing is planned, sent or kept."""
    place = Place(tmp_path, "http://127.0.0.1:9/v1")
    done = place.run("run", place.rows(3), *ASKED, "--json", f"--by={by}")
    assert (done.code, says in done.json["error"]["message"]) == (2, True), done.err
    assert done.json["error"]["fix"]
    assert place.run("jobs", "--json").json == {"jobs": []}
