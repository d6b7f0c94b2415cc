"""Vectors: packed from what servers say, shown without a look at each number."""

from __future__ import annotations

import base64
import json
import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.sinks.vectors import SizesDiffer, arrow_type, as_json, lists, matrix, packed, size_in, sizes_in

pytestmark = pytest.mark.req("X9")

NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)


def column(*vectors: list[float] | None) -> pa.Array:
    return pa.array([v and struct.pack(f"<{len(v)}f", *v) for v in vectors], pa.binary())


@settings(max_examples=60)
@given(st.lists(st.none() | NUMBERS, max_size=6), st.integers(0, 6))
def test_vectors_come_back_as_they_were_from_every_form(rows: list[list[float] | None], skip: int) -> None:
    """Numbers and base64 give the same bytes; lists of a fixed size, of any size, and JSON give the numbers back."""
    for row in filter(None, rows):
        plain = base64.b64encode(struct.pack("<3f", *row)).decode()
        assert packed(json.dumps([row])) == packed(json.dumps([plain])) == struct.pack("<3f", *row)
    whole = column(*rows)
    cut, left = whole.slice(skip), rows[skip:]
    for size in (3, None):
        found = lists(cut, size)
        found.validate(full=True)
        assert (found.type, found.to_pylist()) == (arrow_type(size), left)
    texts = as_json(cut).to_pylist()
    assert [text and [struct.unpack("<f", struct.pack("<f", n))[0] for n in json.loads(text)] for text in texts] == left


@pytest.mark.parametrize(
    "text",
    ["[]", "[[]]", "[[1],[2]]", '["AAAA"]', '["AAAAAAA=","AAAAAAA="]', '["?"]', '[""]', "[[1e999]]", "no", '[["1"]]'],
)
def test_what_is_not_one_vector_is_told(text: str) -> None:
    """An answer without a vector, with several, or with something else in its place is no embedding."""
    with pytest.raises(ValueError, match=r"vector|base64|array"):
        packed(text)


def test_sizes_are_known_by_their_bytes() -> None:
    """The first size, all sizes, and that a column of a fixed size takes no other."""
    batches = [pa.record_batch([each], names=["embedding"]) for each in (column(None), column([1.0, 2.0], [1.0], None))]
    assert (size_in(batches), sizes_in(batches)) == (2, {1, 2})
    assert (size_in(batches[:1]), sizes_in(batches[:1])) == (None, set())
    with pytest.raises(SizesDiffer):
        lists(column([1.0, 2.0], [1.0]), 2)


def test_what_is_no_number_is_null_in_json() -> None:
    """JSON has neither NaN nor infinity."""
    assert as_json(column([1.5, float("nan"), float("-inf")])).to_pylist() == ["[1.5,null,null]"]


def test_a_matrix_is_the_memory_of_the_column() -> None:
    """Without a null nothing is copied; with one its row is NaN and all others are as they were."""
    whole = lists(column([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), 2).slice(1)
    found = matrix(whole)
    assert found.tolist() == [[3.0, 4.0], [5.0, 6.0]]
    assert found.__array_interface__["data"][0] == whole.flatten().buffers()[1].address + 8
    gaps = matrix(lists(column([1.0, 2.0], None, [5.0, 6.0]), 2).slice(1))
    assert str(gaps.tolist()) == "[[nan, nan], [5.0, 6.0]]"
