"""Whatever the rows come in: files of every kind, folders, patterns, pipes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from cli_kit import Place

UPPER = ("--model", "python:funcs.upper", "--out", "o.jsonl")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.req("A1")
def test_a_task_over_folders_patterns_and_files(place: Place) -> None:
    """One request a file, sorted by path, keyed by the path as the user would write it."""
    for name in (
        "docs/b.txt",
        "docs/sub/a.txt",
        "docs/.hidden.txt",
        "docs/x.png",
        "more/1.txt",
        "more/2.txt",
        "one.txt",
    ):
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the text of {name}")
    done = place.run(
        "run", "docs", "more/*.txt", "one.txt", "--rows", "file", "--prompt", "{{ name }}: {{ text }}", *UPPER
    )
    assert done.code == 0, done.err
    assert "5 rows, one a file" in done.err
    results = place.results("o.jsonl")
    keys = ["docs/b.txt", "docs/sub/a.txt", "more/1.txt", "more/2.txt", "one.txt"]
    assert [row["key"] for row in results] == keys
    assert [row["response"] for row in results] == [f"{Path(key).stem}: the text of {key}".upper() for key in keys]


@pytest.mark.req("B1")
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"sections": s}, lambda s: {"sections": [{"title": "HR", "prompts": s["HR"]}]}]
)
def test_prompts_in_sections(place: Place, wrap: object) -> None:
    """A sectioned document runs as it is: each prompt a request, keyed SECTION/NAME."""
    sections = {"HR": {"data_extraction_prompt": "Extract: é", "design_specification_prompt": "Design"}}
    (place.folder / "p.json").write_text(json.dumps(wrap(sections)))  # type: ignore[operator]
    done = place.run("run", "p.json", *UPPER)
    assert done.code == 0, done.err
    found = {row["key"]: row["response"] for row in place.results("o.jsonl")}
    assert found == {"HR/data_extraction_prompt": "EXTRACT: É", "HR/design_specification_prompt": "DESIGN"}


@pytest.mark.req("D1")
@pytest.mark.parametrize(
    ("name", "data"),
    [("-", b"# three\none\n\ntwo\n"), ("-", b'{"text":"one"}\n{"text":"two"}\n'), ("-", b'["one", "two"]'),
     ("csv:-", b"text\none\ntwo\n"), ("p.json", b'{"prompts": ["one", "two"]}'), ("p.txt", b"#\none\ntwo\n")],
)  # fmt: skip
def test_prompts_from_files_and_pipes(place: Place, name: str, data: bytes) -> None:
    """Lines, JSON lines, arrays and CSV come in by stdin as they do from files."""
    is_piped = name.endswith("-")
    if not is_piped:
        (place.folder / name).write_bytes(data)
    done = place.run_cold("run", name, *UPPER, stdin=data if is_piped else b"")
    assert done.code == 0, done.err
    assert [row["response"] for row in place.results("o.jsonl")] == ["ONE", "TWO"]
    assert "2 rows" in done.err


@pytest.mark.req("X4")
def test_files_of_every_kind_give_the_same_rows(place: Place) -> None:
    """CSV, JSON lines, JSON, Parquet, Arrow, packed or not, in any encoding: the same rows, the same answers."""
    rows = [{"id": "k1", "text": "één"}, {"id": "k2", "text": "zwei"}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, place.folder / "a.parquet")
    with pa.ipc.new_file(str(place.folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (place.folder / "a.json").write_text(json.dumps(rows, indent=2))
    (place.folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (place.folder / "a.ndjson.zst").write_bytes(zstandard.compress(lines))
    (place.folder / "a.csv").write_bytes("id,text\nk1,één\nk2,zwei\n".encode("latin-1"))
    for name in ("a.parquet", "a.arrow", "a.json", "a.jsonl.gz", "a.ndjson.zst", "a.csv"):
        more = ("--encoding", "latin-1") if name == "a.csv" else ()
        done = place.run("run", name, "--prompt", "{{ text }}", *UPPER, "--force", *more)
        assert done.code == 0, done.err
        assert [(row["key"], row["response"]) for row in place.results("o.jsonl")] == [("k1", "ÉÉN"), ("k2", "ZWEI")]
    assert place.calls() == ["één", "zwei"]  # equal rows are answered once, whatever they came in


def test_a_pipe_and_a_question(place: Place) -> None:
    """With rows on stdin nobody can be asked: money needs --yes."""
    done = place.run_cold("run", "-", "--model", "openai/gpt-4o-mini", stdin=b"hi\n")
    assert done.code == 2
    assert "--yes" in done.err or "OPENAI_API_KEY" in done.err


def test_an_output_may_not_be_one_of_the_files_of_a_folder(place: Place) -> None:
    """Inputs are never replaced, whether they were named or found."""
    (place.folder / "docs").mkdir()
    (place.folder / "docs" / "a.csv").write_text("text\nhi\n")
    done = place.run(
        "run", "docs", "--prompt", "{{ text }}", "--model", "python:funcs.upper", "--out", "docs/a.csv", "--force"
    )
    assert done.code == 2
    assert "is an input" in done.err
