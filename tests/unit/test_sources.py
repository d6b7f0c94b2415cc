from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.errors import InputError
from nightmill.sources import BATCH_ROWS, Source, decode_row_values, delimited, jsonlines, open_source
from nightmill.sources.taken import Taken, cut, rechunk

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(source: Source) -> list[dict[str, object]]:
    return [row for batch in source.batches() for row in batch.to_pylist()]


def values(source: Source, column: str) -> list[object]:
    field = source.schema.field(column)
    return [value for batch in source.batches() for value in decode_row_values(batch.column(column), field)]


def refused(*inputs: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        rows(open_source(inputs, **options))  # type: ignore[arg-type]
    assert caught.value.what
    assert caught.value.why
    assert caught.value.fix
    return caught.value


# -- any source --


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 17))
@QUICK
def test_rechunking_keeps_every_row_in_order(sizes: list[int], size: int) -> None:
    """Whatever sizes batches arrive in, they leave full, in order, with nothing lost, bad rows told of."""
    numbers = iter(range(sum(sizes)))
    arriving = []
    for n in sizes:
        some = [next(numbers) for _ in range(n)]
        bad = {row: str(number) for row, number in enumerate(some) if number % 3 == 0}
        arriving.append(Taken(pa.record_batch({"n": pa.array(some, pa.int64())}), bad=bad))
    for limit in (None, sum(sizes) // 2):
        leaving = list(rechunk(cut(arriving, limit), size))
        all_numbers = [n for some in leaving for n in some.batch.column("n").to_pylist()]
        assert all_numbers == list(range(sum(sizes) if limit is None else limit))
        assert all(some.batch.num_rows == size for some in leaving[:-1])
        assert all(0 < some.batch.num_rows <= size for some in leaving if limit != 0)
        marked = [some.batch.column("n")[row].as_py() for some in leaving for row in some.bad]
        assert marked == [n for n in all_numbers if n % 3 == 0]
        assert all(str(some.batch.column("n")[row]) == why for some in leaving for row, why in some.bad.items())


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
@given(st.sets(st.integers(0, 12_000), min_size=1, max_size=40))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bad_rows_keep_their_place(tmp_path: Path, name: str, places: set[int]) -> None:
    """Bad lines anywhere, in any block and batch: each is one row without values, named by its line."""
    good = {"a.csv": b"t%d,x", "a.jsonl": b'{"text":"t%d"}', "a.txt": b"t%d"}[name]
    bad = {"a.csv": b"t,x,y", "a.jsonl": b"{]", "a.txt": b"\xff"}[name]
    header = [b"text,more"] if name == "a.csv" else []
    lines = [bad if n in places else good % n for n in range(12_001)]
    path = write(tmp_path / name, b"\n".join([*header, *lines]))
    told: dict[int, str] = {}
    texts: list[object] = []
    for whole in (True, False):
        told.clear()
        texts.clear()
        for some in open_source([path], skip_bad=True, whole=whole).taken():
            told.update((len(texts) + row, why) for row, why in some.bad.items())
            texts += some.batch.column("text").to_pylist()
            assert not some.texts or some.texts["text"] == some.batch.column("text").to_pylist()
        assert texts == [None if n in places else f"t{n}" for n in range(12_001)]
        assert told.keys() == places
        assert all(f"{name}:{n + 1 + len(header)}: " in why for n, why in told.items())


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_batches_are_full_and_can_be_read_again(tmp_path: Path, name: str) -> None:
    """Every batch but the last holds exactly BATCH_ROWS rows, on the second reading too."""
    count = 2 * BATCH_ROWS + 7
    lines = {
        "a.csv": ["text", *(f"t{n}" for n in range(count))],
        "a.jsonl": [json.dumps({"text": f"t{n}"}) for n in range(count)],
        "a.txt": [f"t{n}" for n in range(count)],
    }[name]
    source = open_source([write(tmp_path / name, "\n".join(lines))])
    for _ in range(2):
        assert [batch.num_rows for batch in source.batches()] == [BATCH_ROWS, BATCH_ROWS, 7]
    assert values(source, "text") == [f"t{n}" for n in range(count)]


def test_several_inputs_are_one(tmp_path: Path) -> None:
    """Inputs are read one after the other, and the row index runs on."""
    one = write(tmp_path / "1.csv", "a,b\n1,2\n3,4\n")
    two = write(tmp_path / "2.csv", "b,a\n6,5\n")
    assert rows(open_source([one, two])) == [
        {"key": "0", "a": "1", "b": "2"},
        {"key": "1", "a": "3", "b": "4"},
        {"key": "2", "a": "5", "b": "6"},
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [("1.csv", "2.csv"), ("1.jsonl", "2.jsonl"), ("1.csv", "2.jsonl")],
)
def test_unlike_inputs_are_refused(tmp_path: Path, first: str, second: str) -> None:
    """Inputs with other columns are refused, naming the file and the columns."""
    content = {".csv": "a,{c}\n1,2\n", ".jsonl": '{{"a": "1", "{c}": "2"}}\n'}
    paths = [
        write(tmp_path / name, content[Path(name).suffix].format(c=column))
        for name, column in ((first, "b"), (second, "c"))
    ]
    error = refused(*paths)
    assert second in error.what
    assert "lacks b" in error.why
    assert "adds c" in error.why


@pytest.mark.parametrize("limit", [1, 3, 4, 99])
def test_limit_counts_over_all_inputs(tmp_path: Path, limit: int) -> None:
    """A limit takes the first rows of the whole, not of each input."""
    paths = [write(tmp_path / f"{n}.jsonl", '{"n": 1}\n{"n": 2}\n') for n in range(2)]
    assert len(rows(open_source(paths, limit=limit))) == min(limit, 4)


@pytest.mark.parametrize(
    ("header", "key", "expected"),
    [
        ("id,text", None, "7"),
        ("custom_id,text", None, "7"),
        ("custom_id,id", None, "t"),
        ("other,text", None, "0"),
        ("other,text", "text", "t"),
        ("id,key", None, "t"),
    ],
)
def test_keys(tmp_path: Path, header: str, key: str | None, expected: str) -> None:
    """Keys come from the column asked for, else from one called key, id or custom_id, else the index."""
    source = open_source([write(tmp_path / "a.csv", header + "\n7,t\n")], key=key)
    (row,) = rows(source)
    assert row["key"] == expected


def test_there_is_one_column_called_key(tmp_path: Path) -> None:
    """A data column called key is the key column; asking for another one is refused."""
    path = write(tmp_path / "a.jsonl", '{"id": 1, "key": 5}\n')
    (batch,) = open_source([path]).batches()
    assert batch.schema.names == ["key", "id"]
    assert batch.to_pylist() == [{"key": "5", "id": 1}]
    assert "called key" in refused(path, key="id").why


def test_a_key_column_that_is_not_there(tmp_path: Path) -> None:
    """A misspelt key column is refused with the nearest name."""
    assert "text" in refused(write(tmp_path / "a.csv", "text\nx\n"), key="txt").fix


def test_a_row_without_a_key_gets_its_index(tmp_path: Path) -> None:
    """No row is left without a key."""
    path = write(tmp_path / "a.jsonl", '{"id": null}\n{"id": 1.5}\n{"id": 2.0}\n')
    assert [row["key"] for row in rows(open_source([path]))] == ["0", "1.5", "2.0"]


def test_a_key_among_other_types_is_the_text_it_was(tmp_path: Path) -> None:
    """A column of numbers and texts gives the texts as keys without JSON's quotes, to the key and to a prompt."""
    for name in ("id", "key"):
        path = write(
            tmp_path / f"{name}.jsonl", "".join(f'{{"{name}": {v}}}\n' for v in ("7", '"A\u00e9"', "null", "[1]"))
        )
        assert [row["key"] for row in rows(open_source([path]))] == ["7", "Aé", "2", "[1]"]


def test_json_values_and_plain_text_are_unlike(tmp_path: Path) -> None:
    """A column of mixed JSON is no column of text: one would be read as the other."""
    mixed = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": [1]}\n')
    plain = write(tmp_path / "b.csv", "text\nb\n")
    for inputs in ([mixed, plain], [plain, mixed]):
        with pytest.raises(InputError, match="other columns") as caught:
            open_source(inputs)
        assert "another type: text" in caught.value.why
    more = write(tmp_path / "c.jsonl", '{"text": "c"}\n')
    assert values(open_source([more, mixed]), "text") == ["c", "a", [1]]


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    """What is missing, empty or of no known kind says so and says what to do."""
    write(tmp_path / "words.txt", "a\n")
    assert "words.txt" in refused(tmp_path / "word.txt").fix
    assert "empty" in refused(write(tmp_path / "none.csv", "")).what
    assert ".jsonl" in refused(write(tmp_path / "a.docx", "x")).fix
    assert "limit" in refused(tmp_path / "words.txt", limit=0).what
    assert "no input" in refused().what


# -- csv --


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
@QUICK
def test_csv_fields_come_back_as_they_were(tmp_path: Path, table: list[tuple[str, str]]) -> None:
    """Any text that CSV can quote arrives unchanged: commas, quotes, line ends, NULL, blanks."""
    lines = [",".join('"' + field.replace('"', '""') + '"' for field in row) for row in table]
    path = write(tmp_path / "a.csv", "\ufeffa,b\n" + "\n".join(lines) + "\n")
    assert [(row["a"], row["b"]) for row in rows(open_source([path]))] == table


def test_csv_keeps_text_that_looks_like_something_else(tmp_path: Path) -> None:
    """Numbers, NULL and empty fields stay text: nothing is guessed, nothing becomes null."""
    path = write(tmp_path / "a.csv", "a,b\n007,NULL\n,NaN\n")
    assert [tuple(row.values())[1:] for row in rows(open_source([path]))] == [("007", "NULL"), ("", "NaN")]


def test_ragged_rows_are_named(tmp_path: Path) -> None:
    """The first five ragged rows are named by line, counting line ends inside of quotes."""
    body = 'x,"two\nlines"\n' + "1\n" * 6 + "a,b,c\n"
    error = refused(write(tmp_path / "a.csv", "a,b\n" + body))
    assert [number for number in range(1, 12) if f"a.csv:{number}:" in error.why] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("megabytes", [2, 9])
def test_csv_fields_longer_than_a_block(tmp_path: Path, megabytes: int) -> None:
    """A field of several megabytes is read, and no row around it is lost or repeated."""
    long = "x" * (megabytes << 20)
    path = write(tmp_path / "a.csv", "n,t\n" + "".join(f"{n},short\n" for n in range(200_000)) + f"-1,{long}\n-2,end\n")
    source = open_source([path])
    assert values(source, "n") == [*(str(n) for n in range(200_000)), "-1", "-2"]


@pytest.mark.parametrize("rows_after", [1, 400_000])
def test_an_unclosed_quote_is_refused(tmp_path: Path, rows_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that is never closed must not swallow the rest of the file silently."""
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", (1 << 20, 2 << 20))
    error = refused(write(tmp_path / "a.csv", 'n,t\n1,ok\n2,"oops\n' + "3,more\n" * rows_after))
    assert "never closed" in error.what
    assert "line 3" in error.why


def test_quotes_inside_of_plain_fields(tmp_path: Path) -> None:
    """A quote that does not open a field is a character like any other, also an odd number of them."""
    path = write(tmp_path / "a.csv", '\n\na,b\r\n5" pipe,x\r\n\r\n6,y"z\r\n7,8"\r\n')
    assert [(row["a"], row["b"]) for row in rows(open_source([path]))] == [('5" pipe', "x"), ("6", 'y"z'), ("7", '8"')]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n", "no rows"),
        ("a,b\n\n\n", "no rows"),
        ("a,a\n1,2\n", "twice"),
        ("a,,c\n1,2,3\n", "without a name"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_csv_files_that_are_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    """Headers that cannot be used, no rows, and other encodings are refused in words."""
    assert says in refused(write(tmp_path / "a.csv", content)).what


def test_not_utf8_says_where(tmp_path: Path) -> None:
    """The line and the byte offset of the first bad byte are named."""
    for name in ("a.csv", "a.txt"):
        error = refused(write(tmp_path / name, b"t\nok\nab\xe9c\n"))
        assert "line 3, byte offset 7" in error.why
        assert "--encoding latin-1" in error.fix


# -- jsonl --

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


NAMES = st.sampled_from(["a", "b", 'a "quoted" name', "C:\\x", "two\nlines"])


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=3), min_size=1, max_size=6))
@QUICK
def test_jsonl_values_come_back_as_they_were(tmp_path: Path, table: list[dict[str, object]]) -> None:
    """Whatever JSON a row holds, nested or mixed, decode_row_values gives it back; missing is null."""
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in table))
    columns = list(dict.fromkeys(name for row in table for name in row))
    if not columns:
        assert "no columns" in refused(path).what
        return
    source = open_source([path])
    assert source.schema.names == columns
    for column in columns:
        got = values(source, column)
        said = [row.get(column) for row in table]
        assert (got, list(map(type, got))) == (said, list(map(type, said))), column


@pytest.mark.parametrize(
    ("cells", "expected", "is_json"),
    [
        (["a", None], pa.string(), False),
        ([1, None, 2**63 - 1], pa.int64(), False),
        ([1, 2**63], pa.string(), True),
        ([0.5, None, 2.0], pa.float64(), False),
        ([1, 1.5], pa.string(), True),
        ([True, False], pa.bool_(), False),
        ([True, 1], pa.string(), True),
        (["a", 1], pa.string(), True),
        ([[1]], pa.string(), True),
        ([None], pa.string(), False),
    ],
)
def test_jsonl_types(tmp_path: Path, cells: list[object], expected: pa.DataType, is_json: bool) -> None:
    """A column has the type that holds all its values exactly, else it is JSON text."""
    source = open_source([write(tmp_path / "a.ndjson", "\n".join(json.dumps({"c": cell}) for cell in cells))])
    field = source.schema.field("c")
    assert (field.type, jsonlines.is_json(field)) == (expected, is_json)
    assert values(source, "c") == cells


def test_bad_jsonl_lines_are_named(tmp_path: Path) -> None:
    """The first five lines that are no rows are named with the reason; blank lines count."""
    bad = [b"[1]", b'{"a": 1', b'{"a": "\\ud800"}', b'{"a": "\xff"}', b'{"a": 1} {"a": 2}', b"nothing"]
    error = refused(write(tmp_path / "a.jsonl", b'\n{"a": 1}\n\n' + b"\n".join(bad)))
    assert [number for number in range(1, 12) if f"a.jsonl:{number}:" in error.why] == [4, 5, 6, 7, 8]
    for reason in ("array", "surrogate", "UTF-8"):
        assert reason in error.why


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1\n, "b": 2}\n{"c": 3} {"d": 4}\n',
        '{"a": {}\n}\n{"b": 1}\n',
        '{"a":\n{"b": 1}}\n{"a": 1} {"a": 2}',
    ],
)
def test_an_object_over_several_lines_is_refused(tmp_path: Path, content: str) -> None:
    """Lines are never joined, even where the number of objects would fit the number of lines."""
    assert "a.jsonl:1:" in refused(write(tmp_path / "a.jsonl", content)).why


def test_jsonl_lines_longer_than_a_block(tmp_path: Path) -> None:
    """A line longer than a block is one row, and line numbers after it are right."""
    long = json.dumps({"t": "x" * (3 << 20)})
    path = write(tmp_path / "a.jsonl", f'{{"t": "a"}}\r\n{long}\n{{"t": "b"}}')
    assert [len(str(value)) for value in values(open_source([path]), "t")] == [1, 3 << 20, 1]
    assert "a.jsonl:4:" in refused(write(path, path.read_bytes() + b"\nx")).why


def test_jsonl_with_only_blank_lines_is_refused(tmp_path: Path) -> None:
    """A file without a row says so."""
    assert "no rows" in refused(write(tmp_path / "a.jsonl", "\n  \n")).what


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_files_that_change_while_they_are_read(tmp_path: Path, name: str) -> None:
    """A file that went away or changed its types after planning looked at it is told, not guessed at."""
    path = write(tmp_path / name, '{"a": 1}\n{"a": 2}\n')
    source = open_source([path])
    if name == "a.jsonl":
        write(path, '{"a": "x"}\n')
        with pytest.raises(InputError, match="changed while it was read"):
            rows(source)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        rows(source)


# -- txt --


def test_a_row_a_line(tmp_path: Path) -> None:
    """Blank lines and comments are skipped, blanks around a line cut off, line numbers kept."""
    path = write(tmp_path / "a.txt", "\ufeff# head\n\n  a b \r\n  # note\nc # d\n\u2028e")
    source = open_source([path])
    assert source.kind == "line"
    assert rows(source) == [
        {"key": "a b", "text": "a b", "line": 3},
        {"key": "c # d", "text": "c # d", "line": 5},
        {"key": "e", "text": "e", "line": 6},
    ]


def test_a_row_a_file(tmp_path: Path) -> None:
    """A whole file is one row, byte for byte, with its name and path; the path is the key."""
    text = "# not a comment here\n\n  x \r\n"
    paths = [write(tmp_path / name, text) for name in ("one.txt", "two.txt")]
    source = open_source(paths, rows="file")
    assert source.kind == "file"
    assert rows(source)[1] == {"key": str(paths[1]), "text": text, "name": "two", "path": str(paths[1])}


def test_text_without_a_row_is_refused(tmp_path: Path) -> None:
    """A file of comments or of blanks has nothing to run."""
    assert "no rows" in refused(write(tmp_path / "a.txt", "# a\n\n")).what
    assert "empty" in refused(write(tmp_path / "b.txt", " \n"), rows="file").what


# -- samples --


def _sampled(path: Path, size: int, **more: Any) -> list[int]:
    """The numbers of the rows that a sample takes."""
    source = open_source([path], sample=size, **more)
    return [int(key) for batch in source.batches() for key in batch.column("key").to_pylist()]


def test_a_sample_is_exact_in_order_and_the_same_each_time(tmp_path: Path) -> None:
    """So many rows, in input order, under their numbers in the input; another seed or input gives others."""
    count = BATCH_ROWS + 1_000
    path = write(tmp_path / "a.csv", "n\n" + "".join(f"{i}\n" for i in range(count)))
    taken = _sampled(path, 700)
    assert len(taken) == 700
    assert taken == sorted(set(taken))
    assert taken[-1] > BATCH_ROWS
    assert taken == _sampled(path, 700)
    source = open_source([path], sample=700)
    assert list(map(int, values(source, "n"))) == taken
    assert source.places([0, 699]) == [f"{path}:{taken[0] + 2}", f"{path}:{taken[-1] + 2}"]
    others = [_sampled(path, 700, seed=0), _sampled(path, 700, seed=1)]
    write(path, path.read_text() + "more\n")
    others.append(_sampled(path, 700))
    assert len({tuple(each) for each in (taken, *others)}) == 4
    assert max(_sampled(path, 5, limit=10)) < 10
    assert _sampled(path, count * 2) == list(range(count + 1))


def test_every_row_is_as_likely_to_be_in_a_sample(tmp_path: Path) -> None:
    """Over many seeds each row is taken about equally often."""
    path = write(tmp_path / "a.csv", "n\n" + "".join(f"{i}\n" for i in range(20)))
    often = [0] * 20
    for seed in range(400):
        for row in _sampled(path, 5, seed=seed):
            often[row] += 1
    assert sum(often) == 2_000
    assert min(often) > 65  # 100 on average; four standard deviations are 35
    assert max(often) < 135


def test_bad_rows_of_a_sample_are_told_by_their_place(tmp_path: Path) -> None:
    """A sample of everything has the bad rows where they are."""
    path = write(tmp_path / "a.jsonl", '{"n": 1}\nnonsense\n{"n": 3}\n')
    ((_, _, bad),) = open_source([path], sample=9, skip_bad=True).taken()
    assert list(bad) == [1]
    assert f"{path}:2" in bad[1]


@pytest.mark.req("X8")
def test_a_line_without_an_end_is_not_taken_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large array that is called JSON lines is refused after so many bytes, with the way to read it."""
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(jsonlines, "_LONGEST_BYTES", 1 << 20)
    path = write(tmp_path / "a.jsonl", json.dumps([{"text": f"row {n}"} for n in range(60_000)]))
    error = refused(path)
    assert error.what == f"{path}: a line is longer than 1 MB"
    assert sum(batch.num_rows for batch in open_source([f"json:{path}"]).batches()) == 60_000
