"""`nightmill run` as a user meets it: processes, files, money, exit codes."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path

import pytest
from cli_kit import MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "answer_sigma": 0.0}
KEYS = [
    "job_id", "status", "stopped", "rows", "invalid", "pending", "cached", "duplicates", "sent",
    "succeeded", "failed", "missing", "expired", "cancelled", "extra_answers", "unknown_ids", "lane", "model",
    "tokens_in", "tokens_out", "spent_usd", "unproven_usd", "estimated_usd", "at_most_usd", "list_price_usd",
    "saved_usd", "duration_s", "out",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.req("C1")
def test_a_word_list_becomes_entries_in_order(place: Place) -> None:
    """`define` over words.txt gives one checked entry a word, in input order, in every format asked for."""
    (place.folder / "words.txt").write_text("# a comment\nmurmur\n\nlagoon\nhalcyon\n")
    done = place.run("run", "words.txt", "--task", "define", "--model", "python:funcs.define",
                     "--out", "d.jsonl", "--out", "d.csv")  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == "d.jsonl\nd.csv\n"
    entries = place.results("d.jsonl")
    assert [e["key"] for e in entries] == ["murmur", "lagoon", "halcyon"]
    assert [e["parsed"]["definitions"][0].split()[-1] for e in entries] == ["murmur.", "lagoon.", "halcyon."]
    with (place.folder / "d.csv").open() as file:
        assert [row["part_of_speech"] for row in csv.DictReader(file)] == ["noun"] * 3


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.req("C1", "D2")
def test_a_local_model_defines_words(place: Place) -> None:
    """The demo's model, on this machine and without a key, writes entries that fit the schema."""
    (place.folder / "words.txt").write_text("murmur\nlagoon\nhalcyon\n")
    done = place.run("run", "words.txt", "--task", "define", "--model", "local/smollm2-135m", "--limit", "1",
                     "--out", "d.jsonl", "--json", seconds=360)  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["succeeded"] == 1
    assert {"part_of_speech", "definitions", "examples", "etymology", "synonyms"} == set(
        place.results("d.jsonl")[0]["parsed"]
    )


@pytest.mark.req("C6")
def test_failed_rows_stop_nothing_and_are_retried_alone(place: Place) -> None:
    """Rows that fail are listed with their reason, and `retry` sends them, and only them, again; the file with all
    results is then up to date, one with a part of them stays."""
    (place.folder / "in.txt").write_text("one\nbad two\nthree\nbad four\nbad two\n")
    done = place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", "python:funcs.picky", "--json",
                     "--out", "all.jsonl")  # fmt: skip
    assert done.code == 3
    assert (done.json["succeeded"], done.json["failed"], done.json["sent"]) == (2, 3, 4)
    job = done.json["job_id"]
    failures = place.run("show", job, "--failures", "--json").json["failures"]
    assert [(f["index"], f["error_kind"]) for f in failures] == [(i, "model_error") for i in (1, 3, 4)]
    assert "cannot do bad two" in failures[0]["error"]
    place.run("results", job, "--failed", "--out", "failed.jsonl")
    (place.folder / "mended").touch()
    before = len(place.calls())
    again = place.run("retry", job, "--json")
    assert again.code == 0, again.err
    assert (again.json["succeeded"], again.json["failed"], again.json["sent"]) == (5, 0, 4)
    assert adds_up(again.json)
    assert sorted(place.calls()[before:]) == ["bad four", "bad two"]  # the duplicate shares its twin's answer
    assert place.run("results", job, "--rows", "4-4").out.count("BAD TWO") == 1
    assert [row["success"] for row in place.results("all.jsonl")] == [True] * 5
    assert [row["success"] for row in place.results("failed.jsonl")] == [False] * 3


@pytest.mark.req("A5")
def test_usage_that_is_missing_is_estimated_and_marked(tmp_path: Path) -> None:
    """Where the provider gives no usage, cost is an estimate and says so, in the file and on screen."""
    with in_thread(SimulatorConfig(**FAST, faults=[{"fault": "usage_missing", "count": 2}])) as url:
        place = Place(tmp_path, url)
        done = place.run("run", place.rows(6), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch",
                         "--yes", "--out", "r.jsonl")  # fmt: skip
    assert done.code == 0, done.err
    results = place.results("r.jsonl")
    estimated = [row for row in results if row["cost_estimated"]]
    assert len(estimated) == 2
    assert all(row["tokens_in"] > 0 and row["tokens_out"] > 0 and row["cost_usd"] > 0 for row in estimated)
    assert "est. $" in done.err


@pytest.mark.req("A6")
@pytest.mark.parametrize("flag", [("--rpm", "1200"), ("--tpm", "96000")], ids=["rpm", "tpm"])
def test_a_cap_on_the_rate_is_kept(place: Place, flag: tuple[str, str]) -> None:
    """However fast the machine, calls go out no denser than --rpm or --tpm allow."""
    done = place.run("run", place.rows(21), "--prompt", "Say {{ text }}", "--model", "python:funcs.timed",
                     "--max-output", "80", "--concurrency", "21", *flag)  # fmt: skip
    assert done.code == 0, done.err
    times = [float(time) for time in place.calls()]
    assert len(times) == 21
    # 20 gaps of 1/20 s; by tokens each call counts at least its cap of 80, of 1,600 a second.
    assert max(times) - min(times) >= 20 * 0.05 * 0.9


@pytest.mark.req("X6")
@pytest.mark.parametrize("lane", ["batch", "live"])
def test_nothing_is_paid_twice(tmp_path: Path, lane: str) -> None:
    """Equal rows run once, a finished job's answers serve the next one, and both can be switched off."""
    with in_thread(SimulatorConfig(**FAST)) as url:
        place = Place(tmp_path, url)
        (tmp_path / "in.txt").write_text("same\nother\nsame\nthird\n")
        command = ("run", "in.txt", "--prompt", "{{ text }}", "--model", MODEL, "--lane", lane, "--yes", "--json")
        first = place.run(*command)
        assert (first.code, first.json["sent"], first.json["duplicates"]) == (0, 3, 1), first.err
        assert (first.json["succeeded"], first.json["rows"]) == (4, 4)
        again = place.run(*command)
        assert (again.code, again.json["sent"], again.json["cached"]) == (0, 0, 3), again.err
        assert (again.json["succeeded"], again.json["spent_usd"]) == (4, 0.0)
        assert place.invoice()["executed_rows"] == 3
        texts = [place.run("results", f"{job}").out for job in (first.json["job_id"], again.json["job_id"])]
        answers = [[json.loads(line)["response"] for line in text.splitlines()] for text in texts]
        assert answers[0] == answers[1]
        fresh = place.run(*command, "--no-cache")
        assert fresh.json["sent"] == 3
        apart = place.run(*command, "--no-cache", "--no-dedupe")
        assert (apart.json["sent"], apart.json["duplicates"]) == (4, 0)
        spent = sum(run.json["spent_usd"] for run in (first, again, fresh, apart))
        assert round(spent * 1e9) == place.invoice()["total_nanos"]


@pytest.mark.req("A2")
def test_a_dry_run_leaves_no_trace(tmp_path: Path) -> None:
    """--dry-run prices everything, shows the first request, asks nobody, and creates nothing."""
    with in_thread(SimulatorConfig(**FAST)) as url:
        place = Place(tmp_path, url)
        name = place.rows(20)
        before = sorted(p.name for p in tmp_path.iterdir())
        done = place.run("run", name, "--prompt", "Say {{ text }}", "--model", MODEL, "--dry-run", "--json",
                         "--out", "r.jsonl")  # fmt: skip
        assert done.code == 0, done.err
        assert (done.json["status"], done.json["rows"], done.json["pending"]) == ("dry_run", 20, 20)
        assert done.json["at_most_usd"] > done.json["estimated_usd"] > 0
        assert done.json["first_request"]["body"]["messages"][-1]["content"] == "Say row 0"
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before
        assert place.log() == []


def test_of_a_huge_first_request_the_beginning_is_shown_and_its_length(place: Place) -> None:
    """A screen is not flooded, and nobody takes the beginning for all of it."""
    row = place.rows(1, "word " * 50_000)
    told = place.run("run", row, "--prompt", "{{ text }}", "--model", MODEL, "--dry-run").err
    assert "word word" in told
    assert len(told) < 10_000
    assert re.search(r" … \(250,\d\d\d characters in all\)", told)


def test_a_dry_run_over_budget_says_so_and_is_fine(tmp_path: Path) -> None:
    """What would be refused is told by a dry run, with exit 0; the run itself is refused with exit 4."""
    with in_thread(SimulatorConfig(**FAST)) as url:
        place = Place(tmp_path, url)
        command = ("run", place.rows(20), "--prompt", "Say {{ text }}", "--model", MODEL, "--budget", "0.0001")
        told = place.run(*command, "--dry-run", "--json")
        assert (told.code, told.json["affordable"]) == (0, False)
        assert "it would be refused" in told.err
        refused = place.run(*command, "--yes", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (4, "over_budget")
        assert refused.json["rows"] == 20
        assert place.run("jobs", "--json").json == {"jobs": []}
        assert list((place.home / "jobs").iterdir()) == []
        assert place.log() == []


def test_json_is_one_object_with_the_promised_keys(place: Place) -> None:
    """--json prints exactly one object with the documented keys, and its rows add up."""
    done = place.run("run", place.rows(3), "--prompt", "{{ text }}", "--model", "python:funcs.upper", "--json")
    assert list(done.json) == KEYS
    assert adds_up(done.json)
    wrong = place.run("run", "nowhere.txt", "--prompt", "{{ text }}", "--model", "python:funcs.upper", "--json")
    assert wrong.code == 2
    assert set(wrong.json["error"]) == {"code", "message", "why", "fix"}


def test_money_needs_a_yes(tmp_path: Path) -> None:
    """Without a terminal --yes is demanded; a typed no keeps nothing, a typed y sends."""
    with in_thread(SimulatorConfig(**FAST)) as url:
        place = Place(tmp_path, url)
        command = ("run", place.rows(2), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "live")
        unasked = place.run(*command)
        assert unasked.code == 2
        assert "add --yes" in unasked.err
        declined = place.typed("n\n", *command)
        assert declined.code == 1
        assert "nothing was spent" in declined.out
        for number in (signal.SIGINT, signal.SIGTERM):
            assert place.typed(number, *command).code == 130
        assert place.log() == []
        assert list((place.home / "jobs").iterdir()) == []
        agreed = place.typed("y\n", *command)
        assert agreed.code == 0, agreed.out
        assert re.search(r"Ctrl-C finishes what is in hand and stops · back with: nightmill resume \w{14}", agreed.out)
        assert place.invoice()["executed_rows"] == 2


def test_files_of_others_are_not_replaced(place: Place) -> None:
    """An existing output is refused before anything runs, unless --force; an input always."""
    name = place.rows(2)
    command = ("run", name, "--prompt", "{{ text }}", "--model", "python:funcs.upper")
    (place.folder / "mine.jsonl").write_text("precious")
    refused = place.run(*command, "--out", "mine.jsonl")
    assert refused.code == 2
    assert "--force" in refused.err
    assert (place.folder / "mine.jsonl").read_text() == "precious"
    twice = place.run(*command, "--out", "a.jsonl", "--out", "./a.jsonl")
    assert twice.code == 2
    (place.folder / "in.csv").write_text("text\na\n")
    own = place.run("run", "in.csv", "--prompt", "{{ text }}", "--model", "python:funcs.upper", "--out", "in.csv",
                    "--force")  # fmt: skip
    assert own.code == 2
    assert place.calls() == []
    forced = place.run(*command, "--out", "mine.jsonl", "--force")
    assert forced.code == 0, forced.err
    assert len(place.results("mine.jsonl")) == 2
    assert place.run(*command, "--out", "mine.jsonl").code == 0  # what the same command wrote is nobody else's
    (place.folder / "mine.jsonl").write_text("edited since")
    assert place.run(*command, "--out", "mine.jsonl").code == 2


@pytest.mark.req("D5")
@pytest.mark.parametrize(
    ("rule", "code", "at_least", "at_most"),
    [("continue", 3, 10, 10), ("stop", 5, 1, 4), ("threshold:4", 5, 4, 7), ("threshold:30%", 5, 3, 6)],
)
def test_a_strategy_for_errors(place: Place, rule: str, code: int, at_least: int, at_most: int) -> None:
    """continue, stop, threshold:N and threshold:N% end a run with so many failed rows, and the exit code says it."""
    place.rows(10, "bad {}")
    done = place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", "python:funcs.picky", "--on-error", rule,
                     "--concurrency", "1", "--batch-size", "1", "--json")  # fmt: skip
    assert done.code == code, done.err
    assert at_least <= done.json["failed"] <= at_most
    assert adds_up(done.json)
    assert done.json["cancelled"] == 10 - done.json["failed"]
    assert (done.json["stopped"] == "on_error") == (code == 5)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--budget", "-1"), ("--budget", "nan"), ("--temperature", "-0.1"), ("--temperature", "inf"),
        ("--limit", "0"), ("--limit", "2.5"), ("--rpm", "0"), ("--tpm", "nan"), ("--concurrency", "-2"),
        ("--on-error", "threshold:0"), ("--on-error", "threshold:101%"), ("--on-error", "sometimes"),
        ("--max-output", "x"), ("--batch-size", "0"), ("--set", "tone"), ("--out", "x.doc"), ("--lane", "fast"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_at_the_edge(place: Place, flag: str, value: str) -> None:
    """A value that means nothing is exit 2 with a message that names it, before anything is read."""
    done = place.run("run", "nowhere.txt", "--prompt", "x", "--model", "python:funcs.upper", flag, value)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert value in done.err
    assert not place.home.exists()


def test_a_mistyped_flag_or_command_is_told_its_neighbour(place: Place) -> None:
    """An unknown flag or command is exit 2 and names the nearest one."""
    assert "--prompt" in place.run("run", "in.txt", "--promt", "x").err
    done = place.run("resutls", "@last")
    assert (done.code, "did you mean nightmill results?" in done.err) == (2, True)
