"""Parquet and Arrow files: columns of any type become text, numbers, truth values, or JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterator
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
_SHOWN = 5  # bad rows named in an error
_encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class ColumnarPart:
    """A file that holds columns. ``schema``: as its rows come out."""

    input: Input
    schema: pa.Schema
    skip_bad: bool = False

    def taken(self) -> Iterator[Taken]:
        first = 1
        with _explained(self.input):
            for batch in _read(self.input):
                bad = {row: f"{self.input.name}:{first + row}: not UTF-8" for row in _not_utf8(batch)}
                if bad and not self.skip_bad:
                    raise _refusal(self.input, list(bad.values()))
                columns = _without(batch, bad).columns
                columns = [convert(column, field) for column, field in zip(columns, self.schema, strict=True)]
                yield Taken(pa.record_batch(columns, schema=self.schema), bad=bad)
                first += len(batch)

    def lines(self) -> Iterator[int]:
        """The rows' numbers, the first being 1: there are no lines."""
        with _explained(self.input):
            count = sum(batch.num_rows for batch in _read(self.input))
        yield from range(1, count + 1)


def open_columnar(source: Input, *, skip_bad: bool) -> ColumnarPart:
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
    return ColumnarPart(source, plain_schema(schema), skip_bad)


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
    if kind == pa.uuid():
        return _texts(str, column)
    if isinstance(kind, pa.BaseExtensionType):
        return convert(column.storage, field)
    if _is_binary(kind):
        return _texts(lambda value: base64.b64encode(value).decode(), column)
    if field.metadata:
        coarse = _coarse(kind)
        column = column if coarse == kind else pc.cast(column, coarse, safe=False)
        return _texts(lambda value: _encode(value).decode(), column)
    if pa.types.is_duration(kind):  # as in JSON: P1DT2S
        return _texts(lambda value: _encode(value).decode()[1:-1], pc.cast(column, pa.duration("us"), safe=False))
    return pc.cast(column, field.type)


def _plain(field: pa.Field) -> pa.Field:
    kind = _bare(field.type)
    if pa.types.is_boolean(kind):
        return pa.field(field.name, pa.bool_())
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.field(field.name, pa.int64())
    if pa.types.is_floating(kind):
        return pa.field(field.name, pa.float64())
    if pa.types.is_nested(kind):
        return pa.field(field.name, pa.string(), metadata=JSON_MARK)
    return pa.field(field.name, pa.string())  # text, dates and times, decimals, large numbers, bytes


def _bare(kind: pa.DataType) -> pa.DataType:
    """What values are of that type, however they are stored and whatever they mean to others."""
    if pa.types.is_dictionary(kind):
        return _bare(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and kind != pa.uuid():
        return _bare(kind.storage_type)
    return kind


def _coarse(kind: pa.DataType) -> pa.DataType:
    """A nested type with no times in it that are finer than Python's: text, or microseconds of a duration."""
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if getattr(kind, "unit", None) == "ns":
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_coarse(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_coarse(kind.key_type), _coarse(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_coarse(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_coarse(kind.value_type))
    return pa.list_(_coarse(kind.value_type)) if pa.types.is_list(kind) else kind


def _texts(text: Callable[[Any], str], column: pa.Array) -> pa.Array:
    return pa.array([None if value is None else text(value) for value in column.to_pylist()], pa.string())


def _is_binary(kind: pa.DataType) -> bool:
    tests: tuple[Callable[[Any], bool], ...] = (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _not_utf8(batch: pa.RecordBatch) -> list[int]:
    """Rows with text that is none. Raises ArrowInvalid: the batch is damaged in another way."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        return [row for row in range(len(batch)) if not _is_text(batch.slice(row, 1))]
    return []


def _without(batch: pa.RecordBatch, rows: Collection[int]) -> pa.RecordBatch:
    """The batch with nothing in these rows."""
    return batch.take(pa.array([None if i in rows else i for i in range(len(batch))], pa.int64())) if rows else batch


def _is_text(row: pa.RecordBatch) -> bool:
    try:
        row.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _refusal(source: Input, rows: list[str]) -> InputError:
    more = f"; and {len(rows) - _SHOWN:,} more near them" if len(rows) > _SHOWN else ""
    return InputError(
        f"{source.name}: text that is not UTF-8",
        why="; ".join(rows[:_SHOWN]) + more,
        fix="write it anew with the text decoded, or leave such rows out with --skip-bad",
    )


def _schema(source: Input) -> pa.Schema:
    if source.format == "parquet":
        with pq.ParquetFile(source.path) as file:
            return file.schema_arrow
    with _arrow(source) as reader:
        return reader.schema


def _read(source: Input) -> Iterator[pa.RecordBatch]:
    """Up to `GROUP_ROWS` rows at a time."""
    if source.format == "parquet":
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            yield from file.iter_batches(GROUP_ROWS)
        return
    with _arrow(source) as reader:
        is_file = isinstance(reader, pa.RecordBatchFileReader)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            for start in range(0, len(batch), GROUP_ROWS):  # a whole table may be one batch
                yield batch.slice(start, GROUP_ROWS)


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
