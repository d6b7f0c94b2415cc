"""Parquet and Arrow files as rows."""

from __future__ import annotations

import datetime as dt
import decimal
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from nightmill.errors import InputError
from nightmill.sources import decode_row_values, open_source


def stream(table: pa.Table, path: str) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS: dict[str, Callable[[pa.Table, str], Any]] = {
    "a.parquet": lambda table, path: pq.write_table(table, path, row_group_size=2),
    "a.feather": lambda table, path: pyarrow.feather.write_feather(table, path, chunksize=2),
    "a.arrow": stream,
}
TABLE = pa.table(
    {
        "id": pa.array(["a", "b", "c"], pa.large_string()),
        "kind": pa.array(["x", None, "x"]).dictionary_encode(),
        "n": pa.array([1, None, 3], pa.int8()),
        "huge": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "real": pa.array([0.5, None, 2], pa.float32()),
        "yes": pa.array([True, None, False]),
        "day": pa.array([dt.date(2026, 11, 22), None, None]),
        "at": pa.array([dt.datetime(2026, 11, 22, 1, 2, 3, tzinfo=dt.UTC), None, None], pa.timestamp("us", "UTC")),
        "price": pa.array([decimal.Decimal("1.20"), None, None], pa.decimal128(9, 2)),
        "tags": pa.array([["p", "q"], [], None]),
        "more": pa.array([{"a": 1, "b": dt.date(2026, 1, 2)}, None, {"a": None, "b": None}]),
        "bytes": pa.array([b"\x00\xff", None, b""]),
        "nothing": pa.nulls(3),
    }
)


def values(path: Path, **options: Any) -> dict[str, list[Any]]:
    source = open_source([path], **options)
    found: dict[str, list[Any]] = {name: [] for name in ("key", *source.schema.names)}
    for batch in source.batches():
        for name in found:
            found[name] += decode_row_values(batch.column(name), batch.schema.field(name))
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_columns_of_every_type(tmp_path: Path, name: str) -> None:
    """Text, numbers and truth values stay what they are; all else is text as one would write it, or JSON."""
    WRITERS[name](TABLE, str(tmp_path / name))
    assert values(tmp_path / name) == {
        "key": ["a", "b", "c"], "id": ["a", "b", "c"], "kind": ["x", None, "x"], "n": [1, None, 3],
        "huge": ["18446744073709551615", "0", None], "real": [0.5, None, 2.0], "yes": [True, None, False],
        "day": ["2026-11-22", None, None], "at": ["2026-11-22 01:02:03.000000Z", None, None],
        "price": ["1.20", None, None], "tags": [["p", "q"], [], None],
        "more": [{"a": 1, "b": "2026-01-02"}, None, {"a": None, "b": None}], "bytes": ["AP8=", None, ""],
        "nothing": [None, None, None],
    }  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    """No rows, no columns, packed, cut short, no such file at all: refused by name."""
    path = tmp_path / name
    for empty in (TABLE.slice(0, 0), pa.table({})):
        WRITERS[name](empty, str(path))
        with pytest.raises(InputError, match=r"holds no rows|has no columns"):
            values(path)
    WRITERS[name](TABLE, str(path))
    whole = path.read_bytes()
    for broken in (b"id,text\n1,2\n", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read as") as caught:
            values(path)
        assert caught.value.fix
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(whole)
    with pytest.raises(InputError):
        values(packed)


ODD = {
    "took": pa.array([dt.timedelta(days=1, seconds=2), None]),
    "took_ns": pa.array([dt.timedelta(days=-1), None], pa.duration("ns")),
    "id_": pa.array([bytes(range(16)), None], pa.uuid()),
    "box": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int64(), [2]), pa.array([[1, 2], None], pa.list_(pa.int64(), 2))
    ),
    "times": pa.array([[dt.datetime(2026, 1, 2, tzinfo=dt.UTC)], None], pa.list_(pa.timestamp("ns"))),
    "deep": pa.array([{"a": [{"b": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}]}, None], pa.struct(
        [("a", pa.list_(pa.struct([("b", pa.timestamp("ns"))])))]
    )),
    "by_name": pa.array([[("x", dt.timedelta(1))], None], pa.map_(pa.string(), pa.duration("ns"))),
}  # fmt: skip


@pytest.mark.req("X4")
def test_types_that_only_other_tools_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UUIDs, tensors, durations and times to the nanosecond are read, the same whether pandas is there or not."""
    path = tmp_path / "a.arrow"
    stream(pa.table(ODD), str(path))
    monkeypatch.setattr("sys.meta_path", [_NoPandas(), *sys.meta_path])
    found = values(path)
    assert {name: column[0] for name, column in found.items() if name in ODD} == {
        "took": "P1DT2S",
        "took_ns": "-P1D",
        "id_": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "box": [1, 2],
        "times": ["2026-01-02 00:00:00.000000000"],
        "deep": {"a": [{"b": "2026-01-02 00:00:00.000000000"}]},
        "by_name": [["x", "P1D"]],
    }
    assert all(column[1] is None for name, column in found.items() if name in ODD)


@pytest.mark.req("X4")
@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_not_utf8(tmp_path: Path, nested: bool) -> None:
    """Other tools write any bytes as text: such rows are named, or skipped when that is wanted."""
    offsets = pa.py_buffer(struct.pack("<3i", 0, 2, 4))
    column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab\xffb")])
    if nested:
        column = pa.ListArray.from_arrays([0, 1, 2], column)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(InputError, match="not UTF-8") as caught:
        values(path)
    assert caught.value.why == f"{path}:2: not UTF-8"
    (some,) = open_source([path], skip_bad=True).taken()
    assert some.bad == {1: f"{path}:2: not UTF-8"}
    assert decode_row_values(some.batch.column("text"), some.batch.schema.field("text")) == [
        ["ab"] if nested else "ab",
        None,
    ]


@pytest.mark.req("X8")
def test_a_table_that_is_one_batch_is_read_in_pieces(tmp_path: Path) -> None:
    """A frame that was written in one go never is in memory as Python's objects, but some rows at a time."""
    path = tmp_path / "a.arrow"
    rows = 20_000
    table = pa.table({"tags": pa.array([[f"{i}" * 20] for i in range(rows)])})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    source = open_source([path])
    tracemalloc.start()
    try:
        assert sum(batch.num_rows for batch in source.batches()) == rows
        assert tracemalloc.get_traced_memory()[1] < 3_500_000
    finally:
        tracemalloc.stop()


class _NoPandas:
    """Makes pandas impossible to import."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "pandas":
            raise ImportError(name)
