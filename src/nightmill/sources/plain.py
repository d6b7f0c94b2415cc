"""Plain text: a row a line, or a row a file. Also what every text format shares: UTF-8 and its complaints."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from nightmill.errors import InputError
from nightmill.files import GROUP_ROWS

_LINES_SCHEMA = pa.schema([("text", pa.string()), ("line", pa.int64())])
_FILE_SCHEMA = pa.schema([("text", pa.string()), ("name", pa.string()), ("path", pa.string())])


@dataclass(frozen=True, slots=True)
class LinePart:
    """One row a line; blank lines, and lines whose first visible character is ``#``, are skipped."""

    path: Path
    name: str

    @property
    def schema(self) -> pa.Schema:
        return _LINES_SCHEMA

    def batches(self) -> Iterator[pa.RecordBatch]:
        texts: list[str] = []
        numbers: list[int] = []
        for number, text in _lines(self.path, self.name):
            texts.append(text)
            numbers.append(number)
            if len(texts) == GROUP_ROWS:
                yield pa.record_batch([texts, numbers], schema=_LINES_SCHEMA)
                texts, numbers = [], []
        if texts:
            yield pa.record_batch([texts, numbers], schema=_LINES_SCHEMA)

    def lines(self) -> Iterator[int]:
        """The line of each row."""
        return (number for number, _ in _lines(self.path, self.name))


@dataclass(frozen=True, slots=True)
class FilePart:
    """One row: the whole file, byte for byte but for a byte order mark."""

    path: Path
    name: str

    @property
    def schema(self) -> pa.Schema:
        return _FILE_SCHEMA

    def batches(self) -> Iterator[pa.RecordBatch]:
        data = self.path.read_bytes().removeprefix(codecs.BOM_UTF8)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, self.name) from error
        if not text.strip():
            raise InputError(f"{self.name} is empty", why="it holds only blanks", fix="check what wrote it")
        yield pa.record_batch([[text], [self.path.stem], [self.name]], schema=_FILE_SCHEMA)

    def lines(self) -> Iterator[int]:
        """One row, which has no line."""
        yield 0


def open_lines(path: Path, name: str) -> LinePart:
    """A file of lines. Raises InputError when no line is a row."""
    if next(_lines(path, name), None) is None:
        raise InputError(
            f"{name} holds no rows",
            why="every line is blank or starts with #",
            fix="put one item on each line",
        )
    return LinePart(path, name)


def open_file(path: Path, name: str) -> FilePart:
    return FilePart(path, name)


def not_utf8(path: Path, name: str) -> InputError:
    """What to tell the user about a file that is not UTF-8: where, and how to get out of it."""
    where, offset = "", 0
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number}, byte offset {offset + error.start}: byte 0x{line[error.start]:02x}"
                break
            offset += len(line)
    encoding = "UTF-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "ISO-8859-1"
    return InputError(
        f"{name} is not UTF-8",
        why=f"{where or 'its bytes'} cannot be decoded, and only UTF-8 is read",
        fix=f"convert it, for example: iconv -f {encoding} -t UTF-8 {name} > converted{path.suffix}",
    )


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise not_utf8(path, name) from error
            if text and not text.startswith("#"):
                yield number, text
