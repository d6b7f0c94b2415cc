"""CSV: every column is text, exactly as written; an empty field is an empty string, never null.

Arrow reads the file; where it stumbles, Python's own csv module reads it again, slowly, only to
say in which line the trouble is.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from typing import TextIO

import pyarrow as pa
import pyarrow.csv as arrow_csv

from nightmill.errors import InputError
from nightmill.files import GROUP_ROWS
from nightmill.sources.inputs import OR_SKIP_ROWS, Input
from nightmill.sources.plain import not_utf8
from nightmill.sources.taken import Taken

_BLOCK_BYTES = (1 << 20, 4 << 20, 16 << 20, 64 << 20)  # tried in turn: a row has to fit into a block
_SHOWN = 5  # bad rows named in an error
_OTHER_MARKS = {";": "a semicolon", "\t": "a tab"}  # what spreadsheets write between fields in place of a comma


class _TooLong(Exception):
    """A row does not fit into a block."""


@dataclass(frozen=True, slots=True)
class CsvPart:
    input: Input
    schema: pa.Schema
    skip_bad: bool = False

    @property
    def name(self) -> str:
        return self.input.name

    def taken(self) -> Iterator[Taken]:
        done = 0
        for block_bytes in _BLOCK_BYTES:
            try:
                for batch in _skip(self._read(block_bytes), done):
                    yield Taken(batch)
                    done += batch.num_rows
            except _TooLong:
                continue
            except InputError:
                if not self.skip_bad:
                    raise
                self._check_quotes()  # what one takes in cannot be told from what it does not
                yield from self._one_by_one(done)
                return
            self._check_quotes()
            return
        self._check_quotes()
        raise InputError(
            f"{self.name}: a row is longer than {_BLOCK_BYTES[-1] >> 20} MB",
            why="a row has to fit into memory",
            fix="look for a quote that is never closed, or shorten the row",
        )

    def _one_by_one(self, done: int) -> Iterator[Taken]:
        """The rows after the first ``done``, bad ones among them."""
        width = len(self.schema)
        records = islice(self._records(), done, None)
        while some := list(islice(records, GROUP_ROWS)):
            bad = {i: f"{self.name}:{line}: {odd}" for i, (line, row) in enumerate(some) if (odd := _odd(row, width))}
            rows = [[None] * width if i in bad else row for i, (_, row) in enumerate(some)]
            columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
            yield Taken(pa.record_batch(columns, schema=self.schema), bad=bad)

    def lines(self) -> Iterator[int]:
        """The line in which each row begins."""
        return (line for line, _ in self._records())

    def _read(self, block_bytes: int) -> Iterator[pa.RecordBatch]:
        bad: list[arrow_csv.InvalidRow] = []

        def note(row: arrow_csv.InvalidRow) -> str:
            bad.append(row)
            return "skip"

        try:
            reader = arrow_csv.open_csv(
                self.input.path if self.input.is_plain else self.input.open(),
                read_options=arrow_csv.ReadOptions(block_size=block_bytes),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={field.name: field.type for field in self.schema}, strings_can_be_null=False
                ),
            )
            if reader.schema != self.schema:
                raise InputError(
                    f"{self.name}: the header cannot be read",
                    why=f"it reads as {reader.schema.names} and as {self.schema.names}",
                    fix="write the header as plain names in the first line",
                )
            for batch in reader:
                if bad:
                    break
                yield batch
        except pa.ArrowInvalid as error:
            if "straddl" in str(error):
                raise _TooLong from error
            if "UTF8" in str(error):
                raise not_utf8(self.input) from error
            raise InputError(f"{self.name} cannot be read as CSV", why=str(error), fix="check the file") from error
        if bad:
            raise self._ragged(bad)

    def _ragged(self, bad: list[arrow_csv.InvalidRow]) -> InputError:
        width = len(self.schema)
        shown = [
            f"{self.name}:{line}: {len(row)} fields"
            for line, row in islice(((line, row) for line, row in self._records() if len(row) != width), _SHOWN)
        ] or [f"{self.name}: {row.actual_columns} fields in {row.text[:80]!r}" for row in bad[:_SHOWN]]
        return InputError(
            f"{self.name}: rows with more or fewer fields than the header",
            why=f"the header has {width}: " + "; ".join(shown),
            fix=f"quote fields that hold a comma or a line end, and fill up short rows; {OR_SKIP_ROWS}",
        )

    def _open(self) -> TextIO:
        return TextIOWrapper(self.input.open(), encoding="utf-8-sig", newline="", errors="surrogateescape")

    def _check_quotes(self) -> None:
        """Refuse a quote that is never closed: it swallows every row after it without a word."""
        with self.input.open() as file:
            quotes = sum(chunk.count(b'"') for chunk in iter(lambda: file.read(1 << 20), b""))
        if quotes % 2 == 0:
            return
        line = 1
        with _long_fields(), self._open() as file:
            reader = csv.reader(file, strict=True)
            try:
                for _ in reader:
                    line = reader.line_num + 1
            except csv.Error as error:
                if "unexpected end" not in str(error):
                    return  # text after a closing quote: odd, but every field is known
                raise InputError(
                    f"{self.name}: a quote is never closed",
                    why=f"it opens in the row that begins in line {line} and takes in the rest of the file",
                    fix="close the quote, or write a quote inside a field twice",
                ) from error

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Data rows and the lines they begin in; blank lines are no rows."""
        with _long_fields(), self._open() as file:
            reader = csv.reader(file)
            begins, header = 1, True
            for row in reader:
                if row and not header:
                    yield begins, row
                header = header and not row
                begins = reader.line_num + 1


def open_csv(source: Input, *, skip_bad: bool) -> CsvPart:
    """Read the header and see that a row follows. Raises InputError."""
    name = source.name
    try:
        errors = "surrogateescape" if skip_bad else "strict"
        with TextIOWrapper(source.open(), encoding="utf-8-sig", newline="", errors=errors) as file:
            header = next((row for row in csv.reader(file) if row), [])
            has_rows = any(line.strip("\r\n") for line in file)
    except UnicodeDecodeError as error:
        raise not_utf8(source) from error
    except csv.Error as error:
        raise InputError(f"{name}: the header cannot be read", why=str(error), fix="check the first line") from error
    if not header or not has_rows:
        raise InputError(f"{name} holds no rows", why="nothing follows the header line", fix="check what wrote it")
    other = next((mark for mark in _OTHER_MARKS if mark in header[0]), None)
    if len(header) == 1 and other:
        raise InputError(
            f"{name}: the fields are not separated by commas",
            why=f"the header is one field with {_OTHER_MARKS[other]} in it: {header[0]!r}",
            fix="save it with commas between the fields; if it has a single column, take the mark out of its name",
        )
    unnamed = [str(number) for number, column in enumerate(header, 1) if not column.strip()]
    if unnamed:
        raise InputError(
            f"{name}: columns without a name",
            why=f"column {', '.join(unnamed)} of the header is empty",
            fix="name every column in the first line",
        )
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise InputError(
            f"{name}: column names that occur twice",
            why=", ".join(twice),
            fix="give every column its own name",
        )
    return CsvPart(source, pa.schema([(column, pa.string()) for column in header]), skip_bad)


def _odd(row: list[str], width: int) -> str:
    """What is wrong with a record; nothing mostly."""
    if len(row) != width:
        return f"{len(row)} fields, and the header has {width}"
    return "" if all(map(_is_utf8, row)) else "not UTF-8"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _skip(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if rows >= batch.num_rows:
            rows -= batch.num_rows
            continue
        yield batch.slice(rows)
        rows = 0


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length; its limit is one for the whole process."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
