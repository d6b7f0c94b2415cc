"""Whatever the rows come in: files of every kind, folders, patterns, pipes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

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


@pytest.mark.req("A1", "A2")
def test_files_of_any_name_through_a_provider(tmp_path: Path) -> None:
    """Names in any script, with blanks and signs, the same in two folders: each keeps its answer and its place. A dry
    run before that makes no home and asks nobody; a file that cannot be read is told with two ways out."""
    names = ["über uns.txt", "a b/c  d.txt", "日本語/ü.txt", "x/same.txt", "y/same.txt", "q'u\"o & $(x).txt", "[b].txt"]
    for name in names:
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the text of {name}")
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        command = ("run", "docs", "--task", "summarize", "--model", MODEL, "--yes", "--out", "out/", "--json")
        dry = place.run(*command, "--dry-run")
        assert (dry.code, dry.json["status"], dry.json["rows"]) == (0, "dry_run", len(names)), dry.err
        assert (place.home.exists(), (tmp_path / "out").exists(), place.log()) == (False, False, [])
        done = place.run(*command)
        assert (done.code, done.json["succeeded"]) == (0, len(names)), done.err
        metas = {name: json.loads((tmp_path / f"out/{name}.meta.json").read_text()) for name in names}
        assert all(
            (tmp_path / "out" / name).read_text() and meta["path"] == f"docs/{name}" for name, meta in metas.items()
        )
        assert len({(tmp_path / "out" / name).read_text() for name in names}) == len(names)
        assert round(sum(meta["cost_usd"] for meta in metas.values()) * 1e9) == place.invoice()["total_nanos"]
        asked = place.invoice()
        for name, data in (("latin.txt", "Grüße".encode("latin-1")), ("empty.txt", b"")):
            (tmp_path / "docs" / name).write_bytes(data)
            refused = place.run(*command, "--force")
            assert (refused.code, name in refused.json["error"]["message"]) == (2, True)
            assert "--skip-bad" in refused.json["error"]["fix"]
        assert place.invoice() == asked
        skipped = place.run(*command, "--force", "--skip-bad")
        assert (skipped.code, skipped.json["invalid"], skipped.json["cached"]) == (3, 2, len(names)), skipped.err
        assert "nightmill retry" not in skipped.err
        assert json.loads((tmp_path / "out/latin.txt.meta.json").read_text())["status"] == "failed"
        assert place.invoice() == asked


@pytest.mark.req("A1", "B9")
@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such name")
def test_a_name_that_is_no_text_is_told(place: Place) -> None:
    """A file name in another encoding than UTF-8, as old archives have them, is an input to mend, not a crash."""
    (place.folder / "docs").mkdir()
    Path(os.fsdecode(os.fsencode(place.folder / "docs") + b"/caf\xe9.txt")).write_text("x")
    done = place.run("run", "docs", "--rows", "file", "--prompt", "{{ text }}", *UPPER, "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "bad_input"), done.err
    assert "not UTF-8" in done.json["error"]["message"]
    assert done.json["error"]["fix"] == "rename it"


@pytest.mark.req("B1")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"sections": s},
        lambda s: {"sections": [{"title": "HR", "prompts": s["HR"]}]},
        lambda s: {"sections": [{"name": "HR", **s["HR"]}]},
        lambda s: {"sections": [{"section": "HR", **s["HR"]}]},
    ],
    ids=["bare", "sections", "title", "name", "section"],
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
    done = place.run("run", name, *UPPER, stdin=data if is_piped else None)
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
    assert sorted(place.calls()) == ["zwei", "één"]  # equal rows are answered once, whatever they came in


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
    assert "in the input docs" in done.err


def _peak_mb(place: Place, rows: int) -> float:
    """Of a whole job over so many rows that ask ten things, with its results in three files."""
    text = "".join(f"k{n},{n % 10} {'x' * 200}\n" for n in range(rows))
    (place.folder / f"{rows}.csv").write_text("id,text\n" + text)
    outs = [part for name in ("a.csv", "a.jsonl", "a.parquet") for part in ("--out", f"{rows}/{name}")]
    (place.folder / str(rows)).mkdir()
    peak = place.peak_mb("run", f"{rows}.csv", "--prompt", "{{ text }}", "--model", "python:funcs.upper", *outs)
    assert pq.read_metadata(place.folder / str(rows) / "a.parquet").num_rows == rows
    return peak


@pytest.mark.req("X8")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_ten_times_the_rows_take_no_more_memory(place: Place) -> None:
    """From a CSV to three files of results memory holds a little of a job at a time, however long it is."""
    less, more = (_peak_mb(place, count) for count in (10_000, 100_000))
    assert more < 1.25 * less, (less, more)
