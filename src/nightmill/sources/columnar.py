"""Parquet and Arrow files: columns of any type become text, numbers, truth values, or JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightmill.errors import InputError
from nightmill.files import GROUP_ROWS
from nightmill.sources.inputs import Input
from nightmill.sources.jsonlines import JSON_MARK
from nightmill.sources.taken import Taken

_BUFFER_BYTES = 1 << 20
_encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class ColumnarPart:
    """A file that holds columns. ``schema``: as its rows come out."""

    input: Input
    schema: pa.Schema

    def taken(self) -> Iterator[Taken]:
        with _explained(self.input):
            for batch in _read(self.input):
                columns = [convert(column, field) for column, field in zip(batch.columns, self.schema, strict=True)]
                yield Taken(pa.record_batch(columns, schema=self.schema))

    def lines(self) -> Iterator[int]:
        """The rows' numbers, the first being 1: there are no lines."""
        with _explained(self.input):
            count = sum(batch.num_rows for batch in _read(self.input))
        yield from range(1, count + 1)


def open_columnar(source: Input) -> ColumnarPart:
    """Learn the columns. Raises InputError: it is no such file, is packed, or has no rows or columns."""
    if source.packing:
        raise InputError(
            f"{source.name} is packed", why="such a file is not read from its beginning", fix="unpack it first"
        )
    with _explained(source):
        schema = _schema(source)
        if not schema.names:
            raise InputError(f"{source.name} has no columns", why="there is nothing in it", fix="check what wrote it")
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise InputError(
                f"{source.name}: column names that occur twice",
                why=", ".join(twice),
                fix="give every column its own name",
            )
        if next((batch for batch in _read(source) if batch.num_rows), None) is None:
            raise InputError(f"{source.name} holds no rows", why="its columns are empty", fix="check what wrote it")
    return ColumnarPart(source, plain_schema(schema))


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The types that rows of such columns have with us."""
    return pa.schema([_plain(field) for field in schema])


def convert(column: pa.Array, field: pa.Field) -> pa.Array:
    """``column`` as one of type ``field``, which `plain_schema` gave for it."""
    kind = column.type
    if kind == field.type and field.metadata is None:
        return column
    if pa.types.is_dictionary(kind):
        return convert(column.dictionary_decode(), field)
    if _is_binary(kind):
        return pa.array([_in_ascii(value) for value in column.to_pylist()], pa.string())
    if field.metadata:
        return pa.array(
            [None if value is None else _encode(value).decode() for value in column.to_pylist()], pa.string()
        )
    return pc.cast(column, field.type)


def _plain(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_boolean(kind):
        return pa.field(field.name, pa.bool_())
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.field(field.name, pa.int64())
    if pa.types.is_floating(kind):
        return pa.field(field.name, pa.float64())
    if pa.types.is_nested(kind):
        return pa.field(field.name, pa.string(), metadata=JSON_MARK)
    return pa.field(field.name, pa.string())  # text, dates and times, decimals, large numbers, bytes


def _is_binary(kind: pa.DataType) -> bool:
    tests: tuple[Callable[[Any], bool], ...] = (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _in_ascii(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _schema(source: Input) -> pa.Schema:
    if source.format == "parquet":
        with pq.ParquetFile(source.path) as file:
            return file.schema_arrow
    with _arrow(source) as reader:
        return reader.schema


def _read(source: Input) -> Iterator[pa.RecordBatch]:
    if source.format == "parquet":
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            yield from file.iter_batches(GROUP_ROWS)
        return
    with _arrow(source) as reader:
        if isinstance(reader, pa.RecordBatchFileReader):
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from reader


@contextmanager
def _arrow(source: Input) -> Iterator[pa.RecordBatchFileReader | pa.RecordBatchStreamReader]:
    """An Arrow file, in the format for files or that for streams."""
    with pa.memory_map(str(source.path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_stream(file)
        with reader:
            yield reader


@contextmanager
def _explained(source: Input) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(
            f"{source.name} cannot be read as {source.format.capitalize()}", why=str(error), fix="check what wrote it"
        ) from error
