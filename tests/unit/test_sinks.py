from __future__ import annotations

import csv
import io
import json
import os
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.errors import StoreError, UsageError
from nightmill.sinks import RESULT_SCHEMA, About, Target, parse_target, write_all
from nightmill.sinks.exports import note_writing

COLUMNS = [
    *("index", "key", "prompt", "response", "success", "tokens_in", "tokens_out", "duration", "error"),
    *("error_kind", "finish_reason", "parsed", "model", "provider", "lane", "tokens_cached"),
    *("cost_usd", "cost_estimated", "attempt", "shard", "batch_id"),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
ODD = TEXT | st.sampled_from(
    ["", "=1+1", "+1", "-1.5e3", "@a", "\tx", "\r", "-", "a,b", 'say "x"', "two\nlines", "\r\n", "\x00", "'", "\u2028"]
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "score": {"type": ["integer", "null"]},
        "weight": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "sure": {"type": "boolean"},
        "tags": {"type": "array"},
        "kind": {"$ref": "#/$defs/kind"},
        "model": {"type": "string"},
        "any": {},
    },
    "$defs": {"kind": {"enum": ["a", "b"]}},
}


def result(index: int = 0, **given: Any) -> dict[str, Any]:
    return dict.fromkeys(RESULT_SCHEMA.names) | {"index": index, "success": True, "cost_nanos": 0} | given


def batches(*rows: dict[str, Any], size: int = 3) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(list(rows[start : start + size]), schema=RESULT_SCHEMA)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


# -- what is written --


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.parquet"])
def test_columns_and_their_order(tmp_path: Path, name: str) -> None:
    """Every format has the documented columns in the documented order."""
    path = tmp_path / name
    assert write_all([parse_target(str(path))], batches(result(cost_nanos=1_234_567))) == 1
    match path.suffix:
        case ".jsonl":
            columns = list(read_jsonl(path)[0])
        case ".csv":
            columns = path.read_text().splitlines()[0].split(",")
        case _:
            columns = pq.read_schema(path).names
    assert columns == COLUMNS


@given(st.lists(st.tuples(ODD, st.none() | ODD), max_size=7))
@QUICK
def test_jsonl_and_parquet_keep_every_text(tmp_path: Path, texts: list[tuple[str, str | None]]) -> None:
    """Any text, and null beside it, comes back from jsonl and parquet as it was, in order."""
    rows = [result(n, key=key, response=response) for n, (key, response) in enumerate(texts)]
    targets = [Target("jsonl", tmp_path / "r.jsonl"), Target("parquet", tmp_path / "r.parquet")]
    assert write_all(targets, batches(*rows)) == len(rows)
    for back in (read_jsonl(targets[0].path), pq.read_table(targets[1].path).to_pylist()):
        assert [(row["key"], row["response"]) for row in back] == texts


@given(st.lists(st.tuples(ODD, st.none() | ODD), max_size=7), st.booleans())
@QUICK
def test_csv_keeps_every_text_but_for_the_guard(
    tmp_path: Path, texts: list[tuple[str, str | None]], csv_raw: bool
) -> None:
    """Any text comes back from CSV, with a quote in front where a spreadsheet would see a formula."""
    path = tmp_path / "r.csv"
    rows = [result(n, key=key, response=response) for n, (key, response) in enumerate(texts)]
    write_all([Target("csv", path)], batches(*rows), csv_raw=csv_raw)
    back = [(row["key"], row["response"]) for row in read_csv(path)]
    assert back == [(guarded(key, csv_raw), guarded(response or "", csv_raw)) for key, response in texts]


def guarded(text: str, csv_raw: bool) -> str:
    if csv_raw or not text or text[0] not in "=+-@\t\r":
        return text
    plain = text.isascii() and "_" not in text and text == text.strip()
    try:
        number = plain and text.lower().strip("+-") not in ("inf", "infinity", "nan") and float(text) is not None
    except ValueError:
        number = False
    return text if number else "'" + text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "+1"),
        ("-1.5e-3", "-1.5e-3"),
        ("-.5", "-.5"),
        ("-1\n=cmd()", "'-1\n=cmd()"),
        ("-1\n", "'-1\n"),
        ("+", "'+"),
        ("-inf", "'-inf"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        (" =1", " =1"),
        ("a=1", "a=1"),
    ],
)
def test_the_csv_guard(tmp_path: Path, text: str, written: str) -> None:
    """Text that a spreadsheet would run gets a leading quote; numbers do not."""
    write_all([Target("csv", tmp_path / "r.csv")], batches(result(response=text)))
    assert read_csv(tmp_path / "r.csv")[0]["response"] == written


def test_the_csv_guard_covers_names_and_properties(tmp_path: Path) -> None:
    """Column names that come from a schema, and the values under them, are guarded too."""
    schema = {"type": "object", "properties": {"=a": {"type": "string"}}}
    write_all([Target("csv", tmp_path / "r.csv")], batches(result(parsed='{"=a":"=b"}')), about=About(schema=schema))
    assert read_csv(tmp_path / "r.csv")[0]["'=a"] == "'=b"


def test_numbers_booleans_and_nulls_in_csv(tmp_path: Path) -> None:
    """CSV tells null (nothing) from an empty text (two quotes)."""
    row = result(7, key="", tokens_in=3, duration=0.25, success=False, cost_nanos=1_234_567)
    write_all([Target("csv", tmp_path / "r.csv")], batches(row))
    line = (tmp_path / "r.csv").read_text().splitlines()[1]
    assert line.startswith('7,"",,,false,3,,0.25,')
    assert read_csv(tmp_path / "r.csv")[0]["cost_usd"] == "0.001234567"


def test_parsed_is_nested_in_jsonl(tmp_path: Path) -> None:
    """In jsonl a parsed answer is the value itself, every digit kept, on one line."""
    texts = ['{\n "a": [1,\r\n 12345678901234567890123]}', '"x\\ny"', "3", None]
    write_all(
        [Target("jsonl", tmp_path / "r.jsonl")], batches(*(result(n, parsed=text) for n, text in enumerate(texts)))
    )
    assert [row["parsed"] for row in read_jsonl(tmp_path / "r.jsonl")] == [
        {"a": [1, 12345678901234567890123]},
        "x\ny",
        3,
        None,
    ]


ANSWER = {
    "label": "gut, ja",
    "score": 2,
    "weight": 1,
    "sure": True,
    "tags": ["a", {"b": None}],
    "kind": "a",
    "model": "T",
    "any": 1.5,
}


def test_parsed_is_typed_columns_in_parquet(tmp_path: Path) -> None:
    """In parquet each property of the schema is a column of its type; nested ones are JSON text."""
    path = tmp_path / "r.parquet"
    rows = [result(0, parsed=json.dumps(ANSWER), model="m"), result(1), result(2, parsed="[1]")]
    write_all([Target("parquet", path)], batches(*rows), about=About(schema=SCHEMA))
    table = pq.read_table(path)
    shown = ["label", "score", "weight", "sure", "tags", "kind", "parsed_model", "any"]
    assert table.schema.names == COLUMNS[:11] + shown + COLUMNS[12:]
    types = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string(), pa.string(), pa.string()]
    assert [table.schema.field(name).type for name in shown] == types
    first, *others = [[row[name] for name in shown] for row in table.to_pylist()]
    assert first == ["gut, ja", 2, 1.0, True, '["a",{"b":null}]', "a", "T", "1.5"]
    assert others == [[None] * 8] * 2
    assert table.column("model").to_pylist() == ["m", None, None]


def test_parsed_is_columns_in_csv(tmp_path: Path) -> None:
    """In CSV each property of the schema is a column too."""
    write_all(
        [Target("csv", tmp_path / "r.csv")], batches(result(parsed=json.dumps(ANSWER))), about=About(schema=SCHEMA)
    )
    (row,) = read_csv(tmp_path / "r.csv")
    assert [row[name] for name in ("label", "score", "sure", "tags", "parsed_model")] == [
        "gut, ja",
        "2",
        "true",
        '["a",{"b":null}]',
        "T",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(sorted(ANSWER)), JSON))
@QUICK
def test_values_that_do_not_fit_a_column_stop_nothing(tmp_path: Path, answer: dict[str, object]) -> None:
    """Whatever JSON stands where a typed value is expected, the export goes through."""
    for name in ("r.parquet", "r.csv"):
        assert (
            write_all(
                [parse_target(str(tmp_path / name))],
                batches(result(parsed=json.dumps(answer))),
                about=About(schema=SCHEMA),
            )
            == 1
        )
    (row,) = pq.read_table(tmp_path / "r.parquet").to_pylist()
    tags = answer.get("tags")
    assert (None if row["tags"] is None else json.loads(row["tags"])) == tags
    label = answer.get("label")
    assert row["label"] == (label if isinstance(label, str) else None)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"properties": {"a": {"$ref": "#/properties/a"}}}, {"$ref": "x"}])
def test_odd_schemas_stop_nothing(tmp_path: Path, schema: dict[str, Any]) -> None:
    """References that lead nowhere or in a circle do not hang or fail an export."""
    assert (
        write_all([Target("csv", tmp_path / "r.csv")], batches(result(parsed='{"a": 1}')), about=About(schema=schema))
        == 1
    )


def test_parquet_row_groups(tmp_path: Path) -> None:
    """Small batches are gathered, so that a file of many rows has few row groups."""
    rows = [result(n) for n in range(12_000)]
    write_all([Target("parquet", tmp_path / "r.parquet")], batches(*rows, size=100))
    metadata = pq.read_metadata(tmp_path / "r.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [5000, 5000, 2000]


# -- how it is written --


def failing() -> Iterator[pa.RecordBatch]:
    yield from batches(*(result(n) for n in range(9)))
    raise RuntimeError("the source broke")


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.parquet"])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, name: str) -> None:
    """When results break off, an existing file is untouched and no temporary file is left."""
    (tmp_path / name).write_text("before")
    with pytest.raises(RuntimeError, match="the source broke"):
        write_all([parse_target(str(tmp_path / name)), Target("csv", tmp_path / "new.csv")], failing())
    assert (tmp_path / name).read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, format_: Any) -> None:
    """A full disk is a StoreError that says so, and the other targets are not touched."""
    other = tmp_path / "other.csv"
    rows = (result(n, response="x" * 1000) for n in range(3000))
    with pytest.raises(StoreError) as caught:
        write_all([Target(format_, Path("/dev/full")), Target("csv", other)], batches(*rows))
    assert "No space left" in caught.value.why
    assert "free some space" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_files_that_cannot_be_kept(tmp_path: Path) -> None:
    """Where the job's folder is gone or full, nothing has been replaced, and the error is told as any other."""
    target = Target("csv", tmp_path / "r.csv")
    note = partial(note_writing, folder=tmp_path / "gone", whole=True, csv_raw=False)
    with pytest.raises(StoreError, match="exports"):
        write_all([target], batches(result()), on_written=note)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    """A folder is refused before any result is read."""
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(StoreError) as caught:
        write_all([Target("csv", tmp_path / "r.csv")], failing())
    assert "folder" in caught.value.fix
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        write_all([Target("csv", tmp_path / "file" / "r.csv")], failing())


def test_two_outputs_in_one_file(tmp_path: Path) -> None:
    """An output must not replace another one of the same run."""
    with pytest.raises(UsageError, match="twice"):
        write_all([Target("csv", tmp_path / "r"), Target("jsonl", tmp_path / "x" / ".." / "r")], failing())


def test_folders_are_made_and_links_kept(tmp_path: Path) -> None:
    """Missing folders are created; a link keeps pointing to the file that gets the results."""
    write_all([Target("csv", tmp_path / "a" / "b" / "r.csv")], batches(result()))
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    link.symlink_to(real)
    write_all([Target("csv", link)], batches(result()))
    assert link.is_symlink()
    assert len(read_csv(real)) == 1


def test_results_have_the_usual_permissions(tmp_path: Path) -> None:
    """A result file is as readable as any file the user makes, not private like a temporary one."""
    before = os.umask(0o022)
    try:
        write_all([Target("csv", tmp_path / "r.csv")], batches(result()))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "r.csv").stat().st_mode) == 0o644


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """A pipe is not replaced by a file: the reader at its other end gets the results."""
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_all([Target("jsonl", pipe)], batches(result(4)))
    reader.join()
    assert json.loads(got[0])["index"] == 4


def test_no_results(tmp_path: Path) -> None:
    """A job without results gives files that are valid and empty."""
    targets = [parse_target(str(tmp_path / name)) for name in ("r.jsonl", "r.csv", "r.parquet")]
    assert write_all(targets, iter(())) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == b""
    assert (tmp_path / "r.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 0


# -- targets --


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("out.jsonl", Target("jsonl", Path("out.jsonl"))),
        ("a/out.NDJSON", Target("jsonl", Path("a/out.NDJSON"))),
        ("csv:out.txt", Target("csv", Path("out.txt"))),
        ("CSV:a:b.csv", Target("csv", Path("a:b.csv"))),
        ("parquet:/dev/stdout", Target("parquet", Path("/dev/stdout"))),
        ("C:\\out.csv", Target("csv", Path("C:\\out.csv"))),
    ],
)
def test_targets(spec: str, expected: Target) -> None:
    """The suffix says the format, or a word and a colon before the path."""
    assert parse_target(spec) == expected


@pytest.mark.parametrize("spec", ["out", "out.docx", "yaml:out.csv", "csv:", "s3://bucket/out.csv", ""])
def test_targets_that_are_refused(spec: str) -> None:
    """An unknown format is refused with what there is."""
    with pytest.raises(UsageError) as caught:
        parse_target(spec)
    assert "parquet" in caught.value.fix
