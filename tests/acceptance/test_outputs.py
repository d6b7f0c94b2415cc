"""Where results go: documents, sections, a folder with a file for each input file, several at once."""

from __future__ import annotations

import csv
import datetime as dt
import json
import signal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

UPPER = ("--model", "python:funcs.upper")
PICKY = ("--model", "python:funcs.picky")
D6 = ["index", "prompt", "response", "success", "tokens_in", "tokens_out", "duration", "error"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def document(place: Place, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.folder / name).read_text())
    return found


def utc(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    assert moment.utcoffset() == dt.timedelta(0)
    return moment


@pytest.mark.req("D3", "D6")
def test_a_job_as_one_json_document_and_as_csv(place: Place) -> None:
    """`.json` holds the job, its results in order and their sum; CSV the same rows, known columns in known order."""
    (place.folder / "in.txt").write_text("one\nbad two\n=three\n")
    done = place.run(
        "run", "in.txt", "--prompt", "Say {{ text }}", *PICKY, "--out", "r.json", "--out", "r.csv", "--out", "x.jsonl",
        "--json",
    )  # fmt: skip
    assert done.code == 3, done.err
    assert done.json["out"] == ["r.json", "r.csv", "x.jsonl"]
    found = document(place, "r.json")
    assert list(found) == ["job", "results", "summary"]
    job = found["job"]
    assert utc(job.pop("started_at")) <= utc(job.pop("completed_at")) <= dt.datetime.now(dt.UTC)
    assert job == {
        "job_id": done.json["job_id"], "model": "python:funcs.picky", "prompts": ["Say {{ text }}"], "total": 3,
        "completed": 2, "failed": 1, "status": "completed",
    }  # fmt: skip
    assert found["summary"] == {"total": 3, "completed": 2, "failed": 1, "success_rate": 2 / 3}
    assert found["results"] == place.results("x.jsonl")
    assert set(D6) <= set(found["results"][0])
    assert [(row["index"], row["prompt"], row["response"], row["success"]) for row in found["results"]] == [
        (0, "Say one", "SAY ONE", True), (1, "Say bad two", None, False), (2, "Say =three", "SAY =THREE", True)
    ]  # fmt: skip
    assert "cannot do Say bad two" in found["results"][1]["error"]
    with (place.folder / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name in D6] == [name for name in list(rows[0])[:9] if name != "key"] == D6
    assert [row["success"] for row in rows] == ["true", "false", "true"]


@pytest.mark.req("D6")
def test_csv_is_safe_in_a_spreadsheet_unless_it_is_wanted_raw(place: Place) -> None:
    """Text that a spreadsheet would run as a formula gets a quote in front; --csv-raw leaves it as it is."""
    (place.folder / "in.txt").write_text("=1+1\n")
    ran = place.run("run", "in.txt", "--prompt", "{{ text }}", *UPPER, "--out", "safe.csv")
    assert ran.code == 0, ran.err
    raw = place.run("results", "@last", "--format", "csv", "--csv-raw", "--out", "raw.csv", "--out", "all.json")
    assert raw.code == 0, raw.err
    for name, prompt in (("safe.csv", "'=1+1"), ("raw.csv", "=1+1")):
        with (place.folder / name).open(newline="") as file:
            assert [row["prompt"] for row in csv.DictReader(file)] == [prompt]
    assert document(place, "all.json")["results"][0]["prompt"] == "=1+1"
    assert json.loads(place.run("results", "@last", "--format", "json").out) == document(place, "all.json")


@pytest.mark.req("B3")
def test_answers_by_section(place: Place) -> None:
    """A sectioned document comes back in its sections: response, usage and model of each prompt, or its error."""
    names = ("data_extraction_prompt", "design_specification_prompt", "content_optimization_prompt")
    asked = {section: {name: f"{section} {name}" for name in names} for section in ("HR", "Sales/EU", "bad")}
    (place.folder / "p.json").write_text(json.dumps(asked))
    done = place.run("run", "p.json", *PICKY, "--out", "sections:r.json", "--on-error", "continue")
    assert done.code == 3, done.err
    found = document(place, "r.json")
    assert list(found) == ["total_results", "results_by_section", "timestamp"]
    assert found["total_results"] == 9
    assert utc(found["timestamp"]) <= dt.datetime.now(dt.UTC)
    by_section = found["results_by_section"]
    assert {section: list(prompts) for section, prompts in by_section.items()} == {
        section: [*names] for section in asked
    }
    entry = by_section["Sales/EU"][names[0]]
    assert set(entry) == {"response", "usage", "model"}
    assert entry["response"] == f"Sales/EU {names[0]}".upper()
    assert entry["model"] == "funcs.picky"
    assert entry["usage"]["total_tokens"] == entry["usage"]["prompt_tokens"] + entry["usage"]["completion_tokens"] > 0
    failed = by_section["bad"][names[2]]
    assert failed["response"] is None
    assert "cannot do bad" in failed["error"]
    again = place.run("results", "@last", "--format", "sections")
    assert json.loads(again.out)["results_by_section"] == by_section


@pytest.mark.req("B3")
def test_sections_are_refused_where_there_are_none(place: Place) -> None:
    """Before anything is sent, and for a job that ran: an input without sections cannot be grouped by them."""
    command = ("run", place.rows(2), "--prompt", "{{ text }}", *UPPER)
    for refused in (
        place.run(*command, "--out", "sections:r.json"),
        place.run(*command, "--dry-run", "--out", "sections:r.json"),
    ):
        assert refused.code == 2
        assert "the input has no sections" in refused.err
    assert place.calls() == []
    place.run(*command)
    for more in (("--out", "sections:r.json"), ("--format", "sections")):
        assert place.run("results", "@last", *more).code == 2
    assert not (place.folder / "r.json").exists()


def texts(place: Place, **files: str) -> None:
    for name, text in files.items():
        path = place.folder / "docs" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(text)


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


FILES = ("run", "docs", "--rows", "file", "--prompt", "{{ text }}")


@pytest.mark.req("A1")
def test_a_file_for_each_input_file(place: Place) -> None:
    """DIR/ gets one file per input, folders kept, and beside each what it took; a row that failed has only that, and
    its answer as soon as a retry brings one."""
    texts(place, a="one", sub__a="two", sub__deep__c="bad three")
    done = place.run(*FILES, *PICKY, "--out", "out/", "--out", "r.jsonl")
    assert done.code == 3, done.err
    assert done.out == "out\nr.jsonl\n"
    out = place.folder / "out"
    whole = ["a.txt", "a.txt.meta.json", "sub/a.txt", "sub/a.txt.meta.json", "sub/deep/c.txt.meta.json"]
    assert below(out) == whole
    assert ((out / "a.txt").read_text(), (out / "sub/a.txt").read_text()) == ("ONE", "TWO")
    for row in place.results("r.jsonl"):
        meta = document(place, f"out/{row['key'].removeprefix('docs/')}.meta.json")
        assert meta["path"] == row["key"]
        assert meta["status"] == ("completed" if row["success"] else "failed")
        for name in ("model", "tokens_in", "tokens_out", "cost_usd", "duration", "error"):
            assert meta[name] == row[name]
    (place.folder / "mended").touch()
    assert place.run("retry", "@last").code == 0
    assert below(out) == sorted([*whole, "sub/deep/c.txt"])
    assert document(place, "out/sub/deep/c.txt.meta.json")["status"] == "completed"


@pytest.mark.req("A1")
def test_a_folder_of_others_is_not_written_over(place: Place) -> None:
    """A file that no job wrote, or that somebody changed, is refused without --force and spared by `retry`; what the
    same command wrote before is replaced, and an input never."""
    texts(place, a="one", b="bad two")
    out = place.folder / "out"
    out.mkdir()
    (out / "b.txt").write_text("precious")
    refused = place.run(*FILES, *PICKY, "--out", "out")
    assert (refused.code, "out/b.txt exists" in refused.err, place.calls()) == (2, True, [])
    (out / "b.txt").unlink()
    assert place.run(*FILES, *PICKY, "--out", "out").code == 3
    assert place.run(*FILES, *PICKY, "--out", "out").code == 3
    (out / "a.txt").write_text("edited")
    (place.folder / "mended").touch()
    assert place.run("retry", "@last").code == 0
    assert ((out / "a.txt").read_text(), (out / "b.txt").read_text()) == ("edited", "BAD TWO")
    assert place.run("results", "@last", "--out", "out/").code == 2
    assert place.run("results", "@last", "--out", "out/", "--force").code == 0
    assert (out / "a.txt").read_text() == "ONE"
    for inside in ("docs/", "docs/out/", "docs/r.jsonl"):
        own = place.run(*FILES, *PICKY, "--out", inside, "--force")
        assert (own.code, "lies in the input docs" in own.err) == (2, True)
    single = place.run("run", "docs/a.txt", *FILES[2:], *PICKY, "--out", "docs/", "--force")
    assert (single.code, "is an input" in single.err) == (2, True)
    lines = place.run("run", place.rows(2), "--prompt", "{{ text }}", *UPPER, "--out", "out/")
    assert (lines.code, "--rows file" in lines.err) == (2, True)


@pytest.mark.req("A1", "C5")
def test_an_interrupted_run_leaves_whole_files_of_what_is_done(place: Place) -> None:
    """Ctrl-C writes the answers there are, each whole; `resume` adds the others to the folder and the document."""
    texts(place, **{f"n{i:02d}": f"row {i}" for i in range(16)})
    running = place.start(
        *FILES, "--model", "python:funcs.gated", "--concurrency", "2", "--out", "out/", "--out", "r.json"
    )
    running.answered(10)
    running.signal(signal.SIGINT)
    running.until(lambda event: event["event"] == "note")
    (place.folder / "gate").touch()
    assert running.end().code == 130
    partly = [name for name in below(place.folder / "out") if not name.endswith(".meta.json")]
    found = document(place, "r.json")
    assert len(partly) == len(found["results"]) == found["summary"]["total"] == found["job"]["completed"] == 12
    assert (found["job"]["total"], found["job"]["status"], found["job"]["completed_at"]) == (16, "running", None)
    assert place.run("resume").code == 0
    whole = {f"n{i:02d}.txt": f"ROW {i}" for i in range(16)}
    assert {name: (place.folder / "out" / name).read_text() for name in whole} == whole
    assert document(place, "r.json")["summary"] == {"total": 16, "completed": 16, "failed": 0, "success_rate": 1.0}


@pytest.mark.req("A1", "X1")
@pytest.mark.parametrize(
    "point", ["sinks.written", "sinks.published:1", pytest.param("sinks.published:3", marks=pytest.mark.again)]
)
def test_killed_while_it_publishes(place: Place, point: str) -> None:
    """kill -9 as results go into their places, twice: no answer is there that its .meta.json does not tell of, and the
    same command, without --force, leaves all of it; no row that was answered is asked again."""
    texts(place, a="one", sub__a="two", sub__deep__c="bad three", ä="vier")
    command = (*FILES, *PICKY, "--out", "r.jsonl", "--out", "out/")
    names = ["a.txt", "sub/a.txt", "sub/deep/c.txt", "ä.txt"]
    place.env["NIGHTMILL_KILL_AT"] = point
    for _ in range(2):
        killed = place.run(*command)
        assert killed.code == -signal.SIGKILL, killed.err
        for name in names:
            answer = place.folder / "out" / name
            if answer.exists():
                assert document(place, f"out/{name}.meta.json")["sha256"] == sha256(answer.read_bytes()).hexdigest()
        if (place.folder / "r.jsonl").exists():
            assert len(place.results("r.jsonl")) == 4
        (place.folder / "mended").touch()
    del place.env["NIGHTMILL_KILL_AT"]
    done = place.run(*command)
    assert done.code == 0, done.err
    out = place.folder / "out"
    assert [(out / name).read_text() for name in names] == ["ONE", "TWO", "BAD THREE", "VIER"]
    assert below(out) == sorted([*names, *(f"{name}.meta.json" for name in names)])
    assert sorted(path.name for path in place.folder.glob(".*")) == []
    assert [row["success"] for row in place.results("r.jsonl")] == [True] * 4
    assert sorted(call for call in place.calls() if call != "bad three") == ["one", "two", "vier"]
    (out / "a.txt").write_text("mine")
    assert place.run(*command).code == 2
