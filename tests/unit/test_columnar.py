"""Parquet and Arrow files as rows."""

from __future__ import annotations

import datetime as dt
import decimal
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
