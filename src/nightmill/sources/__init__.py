"""Sources: any input becomes a stream of Arrow record batches in bounded memory.

`open_source` looks at the inputs, learns their columns and complains about what it can see;
`Source.batches` reads the rows, in input order, exactly `BATCH_ROWS` to a batch but the last.
What is wrong further down in a file is an `InputError` while the batches are read: nothing has
been spent by then, since planning reads every row before anything is sent.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from nightmill.errors import InputError
from nightmill.files import GROUP_ROWS
from nightmill.sources import columnar, delimited, documents, jsonlines, plain
from nightmill.sources.inputs import Input, find_inputs, folders_taken
from nightmill.sources.jsonlines import JSON_MARK, is_json
from nightmill.sources.sampling import Sample, sample_of
from nightmill.sources.taken import Taken, cut, digest_batch, rechunk

__all__ = [
    "BATCH_ROWS",
    "JSON_MARK",
    "KEY",
    "Source",
    "Taken",
    "decode_row_values",
    "digest_batch",
    "folders_taken",
    "is_json",
    "open_source",
]

BATCH_ROWS = GROUP_ROWS
KEY = "key"
_NONE: Mapping[str, Path] = MappingProxyType({})
_KEY_COLUMNS = (KEY, "id", "custom_id")

Kind = Literal["rows", "line", "file"]


_FilePart = plain.FilePart | plain.MediaPart  # a row each
_Part = jsonlines.JsonlPart | delimited.CsvPart | columnar.ColumnarPart | plain.LinePart | _FilePart
"""One input, opened: its columns are known, its rows are read when asked for."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that can be read as often as wanted.

    ``schema`` holds the data columns only. A data column that is itself called ``key`` is the key
    column: it is text, comes first, and is part of ``schema``; in every other source the batches
    have one column more than ``schema``, ``key``, in front.
    """

    schema: pa.Schema
    kind: Kind
    names: tuple[str, ...]  # the files, as the user wrote them or below the folder that they named
    key_column: str | None  # the data column that gives the keys, if one does
    limit: int | None  # most rows that are read
    parts: tuple[_Part, ...]
    sample: Sample | None = None  # of the rows that are read, which of them are taken

    @property
    def has_keys(self) -> bool:
        """Whether keys come from the input; else they are the rows' indexes."""
        return self._key_from is not None

    @property
    def is_media(self) -> bool:
        """Whether each row is a file that is no text: its ``path`` says which."""
        return all(isinstance(part, plain.MediaPart) for part in self.parts)

    @property
    def root(self) -> str:
        """The folder below which all inputs were found, absolute."""
        return os.path.commonpath([os.path.abspath(part.input.base) for part in self.parts])

    @property
    def _key_from(self) -> str | None:
        return self.key_column or {"line": "text", "file": "path"}.get(self.kind)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows from the beginning, ``key`` column first.

        Raises:
            InputError: a row is bad, named by file and line.
        """
        return (some.batch for some in self.taken())

    def taken(self) -> Iterator[Taken]:
        """`batches`, each with what is known beside."""
        rows = self._read_rows()
        first = 0
        for some in rows if self.sample is None else rechunk(self.sample.pick(rows), BATCH_ROWS):
            yield some
            first += some.batch.num_rows
        if first == 0:
            raise InputError(
                f"{', '.join(self.names)}: no rows", why="there is nothing to run", fix="name an input that has rows"
            )

    def _read_rows(self) -> Iterator[Taken]:
        """The rows up to the limit, each with its key: where nothing else gives one, its number in the input."""
        first = 0
        for batch, texts, bad in rechunk(cut(self._data(), self.limit), BATCH_ROWS):
            yield Taken(self._with_key(batch, first), self._with_key_texts(batch, texts), bad)
            first += batch.num_rows

    def places(self, rows: Sequence[int]) -> list[str]:
        """Where rows begin, as file:line (a row that is a file: the file); reads the inputs again, up to there."""
        found: dict[int, str] = {}
        last = max(rows, default=-1)
        lines = ((part.input.name, line) for part in self.parts for line in part.lines())
        taken = lines if self.sample is None else self.sample.those(lines)
        for row, (name, line) in enumerate(islice(taken, last + 1)):
            if row in rows:
                found[row] = f"{name}:{line}" if line else name
        return [found.get(row, f"row {row}") for row in rows]

    def _data(self) -> Iterator[Taken]:
        columns = [name for part in self.parts[:1] for name in part.schema.names]
        for part in self.parts:
            with part.input.explained():
                for batch, texts, bad in _read(part):
                    yield Taken(batch.select(columns), texts, bad)

    def _with_key(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        column = self._key_from
        keys = _numbers(first, batch) if column is None else self._texts(batch.column(column), column)
        if keys.null_count:
            keys = pc.coalesce(keys, _numbers(first, batch))  # so that no row is without a key
        data = self.schema.names
        if data[0] == KEY:
            data = data[1:]
        fields = [pa.field(KEY, pa.string()), *(self.schema.field(name) for name in data)]
        return pa.record_batch([keys, *(batch.column(name) for name in data)], schema=pa.schema(fields))

    def _with_key_texts(
        self, batch: pa.RecordBatch, texts: Mapping[str, Sequence[str | None]]
    ) -> Mapping[str, Sequence[str | None]]:
        given = self._key_from
        if given is None or given not in texts or batch.column(given).null_count:
            return texts
        return {**texts, KEY: texts[given]}

    def _texts(self, values: pa.Array, column: str) -> pa.Array:
        field = self.parts[0].schema.field(column)
        if is_json(field):  # a text among other values is itself, without the quotes of its JSON
            decoded = zip(decode_row_values(values, field), values.to_pylist(), strict=True)
            return pa.array([value if isinstance(value, str) else text for value, text in decoded], pa.string())
        return _as_text(values)


def open_source(
    inputs: Sequence[str | Path],
    *,
    rows: Literal["file", "line"] | None = None,
    key: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
    given: Mapping[str, Path] = _NONE,
    whole: bool = True,
) -> Source:
    """Open one or more inputs as one source; several are read one after the other.

    ``rows`` says what a row of a ``.txt`` file is (``None`` means a line) and is ignored for
    everything else. Keys come from the column ``key``, else from a column called ``key``, ``id``
    or ``custom_id``, else they are the line, the path or the row's index.

    ``sample`` takes so many of the rows at random, of the first ``limit`` where that is given. They stay in
    order, and the same input gives the same ones, unless a ``seed`` says otherwise. It reads the input once.

    ``given`` are inputs that lie in a file of another name.

    With ``skip_bad`` what cannot be read as a row is a row without values, told by `Source.taken`.

    Unless ``whole``, columns and types may come from the beginning of an input, which is twice as
    fast. What does not fit further down is then an InputError while the batches are read, and what
    is refused here may be fine: open it whole to know.

    Raises:
        InputError: an input is missing, empty, of no supported kind, or unlike the others.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} rows", why="it leaves nothing to run", fix="give a limit of 1 or more")
    parts = _open_parts(
        find_inputs(inputs, encoding=encoding, given=given), rows or "line", limit, skip_bad=skip_bad, whole=whole
    )
    _check_alike(parts)
    schema = parts[0].schema
    key_column = _choose_key(schema.names, key, plain_text=_kind(parts) != "rows")
    if KEY in schema.names:
        others = [field for field in schema if field.name != KEY]
        schema = pa.schema([pa.field(KEY, pa.string()), *others])
    source = Source(schema, _kind(parts), tuple(part.input.name for part in parts), key_column, limit, tuple(parts))
    return source if sample is None else replace(source, sample=sample_of(source.taken(), sample, seed))


def decode_row_values(column: pa.Array, field: pa.Field) -> list[Any]:
    """The column as Python values; cells of a JSON column are decoded."""
    values: list[Any] = column.to_pylist()
    if not is_json(field):
        return values
    decode = msgspec.json.Decoder().decode
    return [None if value is None else decode(value) for value in values]


def _open_parts(
    inputs: Sequence[Input], rows: Literal["file", "line"], limit: int | None, *, skip_bad: bool, whole: bool
) -> list[_Part]:
    for each in inputs:
        if not (each.format == "txt" and rows == "file"):  # there an empty file is one bad row
            each.check_has_bytes()
    inputs = [documents.as_lines(each) if each.format == "json" else each for each in inputs]
    jsonl = [each for each in inputs if each.format == "jsonl"]
    learned = iter(jsonlines.open_jsonl(jsonl, limit, skip_bad=skip_bad, whole=whole) if jsonl else ())
    parts: list[_Part] = []
    for each in inputs:
        with each.explained():
            match each.format:
                case "csv":
                    parts.append(delimited.open_csv(each, skip_bad=skip_bad))
                case "txt":
                    part = plain.open_lines if rows == "line" else plain.FilePart
                    parts.append(part(each, skip_bad=skip_bad))
                case "media":
                    parts.append(plain.MediaPart(each))
                case "parquet" | "arrow":
                    parts.append(columnar.open_columnar(each, skip_bad=skip_bad))
                case _:
                    parts.append(next(learned))
    return parts


def _kind(parts: Sequence[_Part]) -> Kind:
    kinds: set[Kind] = {
        "line" if isinstance(part, plain.LinePart) else "file" if isinstance(part, _FilePart) else "rows"
        for part in parts
    }
    return kinds.pop() if len(kinds) == 1 else "rows"


def _check_alike(parts: Sequence[_Part]) -> None:
    first = _types(parts[0])
    for part in parts[1:]:
        other = _types(part)
        if other == first:
            continue
        missing = [name for name in first if name not in other]
        extra = [name for name in other if name not in first]
        why = "; ".join(
            f"{label} {', '.join(names)}"
            for label, names in (
                ("it lacks", missing),
                ("it adds", extra),
                ("of another type:", [name for name in first if name in other and first[name] != other[name]]),
            )
            if names
        )
        raise InputError(
            f"{part.input.name} has other columns than {parts[0].input.name}",
            why=why,
            fix="run them one by one, or give them the same columns",
        )


def _types(part: _Part) -> dict[str, tuple[pa.DataType, bool]]:
    return {field.name: (field.type, is_json(field)) for field in part.schema}


def _choose_key(columns: Sequence[str], key: str | None, *, plain_text: bool) -> str | None:
    if key is None:
        return None if plain_text else next((name for name in _KEY_COLUMNS if name in columns), None)
    if key not in columns:
        near = difflib.get_close_matches(key, columns, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"no column {key} to take keys from",
            why="the columns are " + ", ".join(columns),
            fix=f"{hint}name one of them",
        )
    if KEY in columns and key != KEY:
        raise InputError(
            f"keys cannot come from {key}",
            why=f"a column is itself called {KEY}, and results have one column of that name",
            fix=f"rename the column {KEY}, or leave the option out to use it",
        )
    return key


def _numbers(first: int, batch: pa.RecordBatch) -> pa.Array:
    """The rows' indexes as text."""
    return pa.array(range(first, first + batch.num_rows), pa.int64()).cast(pa.string())


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        column = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def _read(part: _Part) -> Iterator[Taken]:
    return part.taken(BATCH_ROWS) if isinstance(part, jsonlines.JsonlPart) else part.taken()
