"""Embeddings: a vector of 32-bit floats a row, as it is kept and as outputs show it.

Kept are its bytes, little-endian: no number is looked at by itself on the way into a table, and tables, Arrow and
NumPy see the same bytes.
"""

from __future__ import annotations

import binascii
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import numpy

EMBEDDING = "embedding"
FLOAT_BYTES = 4
_decode = msgspec.json.Decoder(tuple[list[float]]).decode
_decode_packed = msgspec.json.Decoder(tuple[str]).decode


@dataclass(frozen=True, slots=True)
class Vectors:
    """What the vectors of a job are like. ``size``: how many numbers each has; None: they differ, or there is none."""

    size: int | None = None


class SizesDiffer(Exception):
    """A vector is not as long as those before it, so that no column of a fixed size holds them all."""


def packed(text: str) -> bytes:
    """The bytes of the one vector in a JSON array, which says it as numbers or as base64 of its bytes.

    Raises:
        ValueError: there is no vector, there are several, or it is none.
    """
    if text.startswith('["'):
        try:
            found = binascii.a2b_base64(_decode_packed(text)[0], strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"the vector is no base64: {error}") from None
        if not found or len(found) % FLOAT_BYTES:
            raise ValueError(f"the vector has {len(found)} bytes, and a number has {FLOAT_BYTES}")
        return found
    try:
        numbers = array("f", _decode(text)[0])
    except (msgspec.DecodeError, OverflowError) as error:
        raise ValueError(f"no vector: {error}") from None
    if not numbers:
        raise ValueError("the vector is empty")
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def size_in(batches: Iterable[pa.RecordBatch]) -> int | None:
    """How many numbers the first vector has; None where there is none. Reads up to it."""
    for batch in batches:
        lengths = pc.drop_null(pc.binary_length(batch.column(EMBEDDING)))
        if len(lengths):
            return int(lengths[0].as_py()) // FLOAT_BYTES
    return None


def sizes_in(batches: Iterable[pa.RecordBatch]) -> set[int]:
    """How many numbers the vectors have."""
    lengths = (pc.unique(pc.drop_null(pc.binary_length(batch.column(EMBEDDING)))) for batch in batches)
    return {length // FLOAT_BYTES for some in lengths for length in some.to_pylist()}


def arrow_type(size: int | None) -> pa.DataType:
    """What a column of vectors is: of a fixed size where all are as long, else of lists."""
    return pa.list_(pa.float32(), size) if size else pa.list_(pa.float32())


def lists(column: pa.Array, size: int | None) -> pa.Array:
    """The vectors of a column of bytes as `arrow_type` has them; null stays null.

    Raises:
        SizesDiffer: one is not ``size`` numbers long.
    """
    if not size:
        return _of_any_size(column)
    lengths = pc.unique(pc.drop_null(pc.binary_length(column)))
    if lengths.to_pylist() not in ([], [size * FLOAT_BYTES]):
        raise SizesDiffer
    if not len(column):
        return pa.array([], arrow_type(size))
    same = column.cast(pa.binary(size * FLOAT_BYTES))
    numbers = pa.Array.from_buffers(pa.float32(), (same.offset + len(same)) * size, [None, same.buffers()[1]])
    return pa.Array.from_buffers(
        arrow_type(size), len(same), [same.buffers()[0]], same.null_count, same.offset, [numbers]
    )


def _of_any_size(column: pa.Array) -> pa.Array:
    whole = pa.concat_arrays([column])  # from its own first byte on
    starts = pa.Array.from_buffers(pa.int32(), len(whole) + 1, [None, whole.buffers()[1]], offset=whole.offset)
    data = whole.buffers()[2]
    count = 0 if data is None else data.size // FLOAT_BYTES
    numbers = pa.Array.from_buffers(pa.float32(), count, [None, data]) if count else pa.array([], pa.float32())
    offsets = pc.divide(starts, FLOAT_BYTES)
    return pa.ListArray.from_arrays(offsets, numbers, mask=whole.is_null() if whole.null_count else None)


def as_json(column: pa.Array) -> pa.Array:
    """The vectors of a column of bytes as JSON: each number in the fewest digits that are this 32-bit float's alone."""
    vectors = _of_any_size(column)
    numbers = vectors.values
    digits = pc.if_else(pc.is_finite(numbers), numbers.cast(pa.string()), "null")
    mask = column.is_null() if column.null_count else None
    texts = pa.ListArray.from_arrays(vectors.offsets, digits, mask=mask)
    return pc.binary_join_element_wise("[", pc.binary_join(texts, ","), "]", "")


def matrix(column: pa.FixedSizeListArray) -> numpy.ndarray:
    """Rows by numbers; a null is a row of NaN. Where there is none, it is the column's own memory."""
    size, numbers = column.type.list_size, column.flatten() if not column.null_count else column.values
    whole: numpy.ndarray = numbers.to_numpy(zero_copy_only=True).reshape(-1, size)
    if column.null_count:
        whole = whole[column.offset : column.offset + len(column)].copy()
        whole[column.is_null().to_numpy(zero_copy_only=False)] = float("nan")
    return whole
