"""Rows that are objects of Python: taken down into a file once, since planning reads them more than once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from nightmill.errors import InputError, StoreError

TEXT = "text"  # the column of rows that are texts


class ArrowStream(Protocol):
    """A table that hands itself on as Arrow: of polars, pandas, pyarrow, DuckDB and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Row = str | Mapping[str, Any]
Source = str | os.PathLike[str] | Sequence[os.PathLike[str]] | Iterable[Row] | ArrowStream


@dataclass(frozen=True, slots=True)
class Taken:
    """What to run over: names of inputs, and the files of those that lie elsewhere than they are called."""

    inputs: tuple[str, ...]
    given: Mapping[str, Path]


@contextmanager
def taken(source: Source, limit: int | None = None) -> Iterator[Taken]:
    """``source`` as inputs, while the block lasts; of rows no more than ``limit`` are looked at.

    Raises:
        InputError: it holds no rows, or something that is none.
        StoreError: there is no room for the rows.
    """
    paths = _paths(source)
    if paths is not None:
        yield Taken(paths, {})
        return
    _refuse_others(source)
    name = type(source).__name__
    table = _as_arrow(source)
    format_ = "jsonl" if table is None else "arrow"
    with tempfile.NamedTemporaryFile(prefix="nightmill-rows-") as file:
        count = _write_rows(file, source, limit, name) if table is None else _write_arrow(file, table, limit)
        if not count:
            raise InputError(f"{name}: no rows", why="there is nothing to run", fix="give at least one row")
        yield Taken((f"{format_}:{name}",), {name: Path(file.name)})


def _paths(source: Source) -> tuple[str, ...] | None:
    """The files that are named: by a text, a path, or a list of paths; None: these are rows."""
    if isinstance(source, (str, os.PathLike)):
        return (os.fspath(source),)
    if not isinstance(source, (list, tuple)) or not source:
        return None
    if all(isinstance(each, os.PathLike) for each in source):
        return tuple(os.fspath(each) for each in source)
    if all(isinstance(each, str) and os.path.isfile(each) for each in source):
        raise InputError(
            "a list of names of files",
            why="texts in a list are rows, and each of these would be sent as it stands",
            fix="give paths: [pathlib.Path(name) for name in names]",
        )
    return None


def _refuse_others(source: object) -> None:
    what = f"no rows in this: {type(source).__name__}"
    if isinstance(source, (Mapping, bytes, bytearray)):
        raise InputError(what, why="it is one thing, not many", fix="give a list of texts or of dicts")
    if isinstance(source, AsyncIterable):
        raise InputError(what, why="rows are read on a thread", fix="collect them first: [row async for row in rows]")
    if not isinstance(source, Iterable) and not hasattr(source, "__arrow_c_stream__"):
        fix = "give a file's name, a list or generator of texts or dicts, or a table"
        raise InputError(what, why="it can neither be iterated nor read as Arrow", fix=fix)


# -- tables ----------------------------------------------------------------------------------------


def _as_arrow(source: Any) -> pa.RecordBatchReader | None:
    """A reader of the table that ``source`` is; None: it is no table."""
    if isinstance(source, pa.RecordBatchReader):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source]).to_reader()
    if isinstance(source, pa.Array):
        return pa.table({TEXT: source}).to_reader()
    try:
        if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
            return pa.Table.from_pandas(source, preserve_index=False).to_reader()  # by itself it adds its index
        if not hasattr(source, "__arrow_c_stream__"):
            return None
        try:
            return pa.RecordBatchReader.from_stream(source)
        except pa.ArrowException:  # one column without a name
            return pa.table({TEXT: pa.chunked_array(source)}).to_reader()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        fix = "give every column one type, and a name of its own"
        raise InputError(f"{type(source).__name__}: cannot be read as Arrow", why=str(error), fix=fix) from error


def _write_arrow(file: Any, table: pa.RecordBatchReader, limit: int | None) -> int:
    count = 0
    with _room(file.name), pa.ipc.new_stream(file, table.schema) as writer:
        for batch in table:
            some = batch if limit is None else batch.slice(0, limit - count)
            writer.write_batch(some)
            count += some.num_rows
            if count == limit:
                break
    file.flush()
    return count


# -- rows one by one -------------------------------------------------------------------------------


def _write_rows(file: Any, rows: Any, limit: int | None, name: str) -> int:
    """One JSON object a line, while memory holds one row."""
    encoder = msgspec.json.Encoder(enc_hook=_plain)
    count = 0
    for count, row in enumerate(islice(rows, limit), 1):
        line = _encoded(encoder, row, f"{name}:{count}")
        with _room(file.name):
            file.write(line + b"\n")
    with _room(file.name):
        file.flush()
    return count


def _encoded(encoder: msgspec.json.Encoder, row: Any, place: str) -> bytes:
    if isinstance(row, str):
        row = {TEXT: row}
    elif not isinstance(row, Mapping):
        raise InputError(
            "rows that are neither texts nor dicts",
            why=f"{place}: of type {type(row).__name__}",
            fix="give a list of texts, or of dicts with the same keys",
        )
    try:
        return encoder.encode(dict(row))
    except UnicodeEncodeError:  # half a character: told like one in a file, with its place
        return json.dumps(dict(row), default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        fix = "use texts as keys, and values that JSON has"
        raise InputError("a row that JSON cannot hold", why=f"{place}: {error}", fix=fix) from error


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and others as Python's; what is nothing that JSON has as its text."""
    plain = getattr(value, "tolist", None)
    return plain() if callable(plain) else str(value)


@contextmanager
def _room(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{os.path.dirname(path)}: {error.strerror or error}"
        raise StoreError("the rows cannot be kept", why=why, fix="free some space, or set TMPDIR") from error
