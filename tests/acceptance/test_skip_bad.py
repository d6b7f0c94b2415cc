"""Rows that are none: refused before anything is spent, or counted as invalid."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import Place, adds_up

UPPER = ("--prompt", "say {{ text }}", "--model", "python:funcs.upper", "--json")
BAD = {
    "a.jsonl": (
        (
            b'{"text": "one"}\n{"text": \n\n{"text": "two"}\n[1]\n{"text": "\xff"}\n{"text": "\\ud800"}\n'
            b'{"text": ""}\n{"text": "end"}\n'
        ),
        ["one", None, "two", None, None, None, None, "end"],
        {
            1: "a.jsonl:2: ",
            3: "a.jsonl:5: a JSON array",
            4: "a.jsonl:6: not UTF-8",
            5: "a.jsonl:7: a lone",
            6: "no text",
        },
    ),
    "a.csv": (
        b'id,text\n1,one\n2\n\n3,"two\nlines"\n4,\xff\n5,\n6,a,b\n7,end\n',
        ["one", None, "two\nlines", None, None, None, "end"],
        {1: "a.csv:3: 1 fields", 3: "a.csv:7: not UTF-8", 4: "no text", 5: "a.csv:9: 3 fields"},
    ),
    "a.txt": (b"one\n\xff\n# no row\nend\n", ["one", None, "end"], {1: "a.txt:2: not UTF-8"}),
}


@pytest.mark.req("X4")
@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_counted_and_told_and_the_rest_runs(tmp_path: Path, name: str) -> None:
    """Without --skip-bad nothing is sent; with it every bad row has its place, its reason and no cost."""
    data, texts, reasons = BAD[name]
    place = Place(tmp_path)
    (place.folder / name).write_bytes(data)
    refused = place.run("run", name, *UPPER)
    assert refused.code == 2, refused.err
    assert place.calls() == []
    done = place.run("run", name, *UPPER, "--skip-bad", "--out", "o.jsonl", "--out", "o.csv")
    assert done.code == 3, done.err
    assert adds_up(done.json)
    assert (done.json["rows"], done.json["invalid"], done.json["failed"]) == (len(texts), len(reasons), 0)
    results = place.results("o.jsonl")
    assert [row["index"] for row in results] == list(range(len(texts)))
    assert [row["response"] for row in results] == [text and f"SAY {text}".upper() for text in texts]
    assert [row["prompt"] for row in results] == [text and f"say {text}" for text in texts]
    for index, reason in reasons.items():
        assert results[index]["error"].startswith(reason)
        assert results[index]["error_kind"] == "invalid_input"
    assert sorted(place.calls()) == sorted(line for text in texts if text for line in f"say {text}".splitlines())


def test_invalid_rows_are_never_sent_again(tmp_path: Path) -> None:
    """A retry finds nothing to do, the same command again is served from the cache, and show tells them."""
    place = Place(tmp_path)
    (place.folder / "a.jsonl").write_bytes(BAD["a.jsonl"][0])
    first = place.run("run", "a.jsonl", *UPPER, "--skip-bad")
    calls = len(place.calls())
    job = first.json["job_id"]
    retried = place.run("retry", job, "--json")
    assert (retried.code, retried.json["invalid"]) == (0, 5)
    assert "no failed rows; 5 invalid rows can only be put right in the input" in retried.err
    shown = place.run("show", job, "--failures")
    assert "a.jsonl:5" in shown.out
    again = place.run("run", "a.jsonl", *UPPER, "--skip-bad")
    assert (again.json["invalid"], again.json["cached"], len(place.calls())) == (5, 3, calls)


def test_a_row_of_which_no_request_can_be_made_is_invalid(tmp_path: Path) -> None:
    """A template that a row does not fit, and a chat that is none, concern that row alone."""
    place = Place(tmp_path)
    (place.folder / "a.jsonl").write_text('{"n": 2}\n{"n": 0}\n{"n": 4}\n')
    done = place.run("run", "a.jsonl", "--prompt", "{{ 12 // n }}", "--model", "python:funcs.upper", "--json",
                     "--skip-bad", "--out", "o.jsonl")  # fmt: skip
    assert (done.code, done.json["invalid"], done.json["succeeded"]) == (3, 1, 2), done.err
    assert [row["response"] for row in place.results("o.jsonl")] == ["6", None, "3"]
    (place.folder / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n{"messages": "hi"}\n')
    done = place.run("run", "b.jsonl", "--model", "python:funcs.upper", "--json", "--skip-bad", "--out", "p.jsonl")
    assert (done.code, done.json["invalid"], done.json["succeeded"]) == (3, 1, 1), done.err


def test_an_input_of_bad_rows_alone_is_refused(tmp_path: Path) -> None:
    """There is nothing to send: what is wrong with the first is said."""
    place = Place(tmp_path)
    (place.folder / "a.csv").write_text("text\n" + '""\n' * 3)
    done = place.run("run", "a.csv", *UPPER, "--skip-bad")
    assert done.code == 2
    assert "no row is fit to be sent" in done.err
    assert "a.csv:2: no text" in done.err
    assert list((place.home / "jobs").iterdir()) == []


def test_files_that_cannot_be_read_are_rows_of_their_own(tmp_path: Path) -> None:
    """In a folder of files one that is empty or not UTF-8 is a bad row; the others run."""
    place = Place(tmp_path)
    for name, data in {"a.txt": b"one", "b.txt": b"", "c.txt": b"\xff", "d.txt": b"end"}.items():
        (place.folder / "docs").mkdir(exist_ok=True)
        (place.folder / "docs" / name).write_bytes(data)
    assert place.run("run", "docs", "--rows", "file", *UPPER).code == 2
    done = place.run("run", "docs", "--rows", "file", *UPPER, "--skip-bad", "--out", "o.jsonl")
    assert (done.code, done.json["invalid"]) == (3, 2), done.err
    results = place.results("o.jsonl")
    assert [row["response"] for row in results] == ["SAY ONE", None, None, "SAY END"]
    assert "empty" in results[1]["error"]
    assert "UTF-8" in results[2]["error"]
