"""Plain text: a row a line, or a row a file. Also what every text format shares: UTF-8 and its complaints."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from nightmill.errors import InputError
from nightmill.files import GROUP_ROWS
from nightmill.sources.inputs import Input
from nightmill.sources.taken import Taken

_OR_SKIP = "--skip-bad counts such files as invalid, and sends the rest"
_LINES_SCHEMA = pa.schema([("text", pa.string()), ("line", pa.int64())])
_FILE_SCHEMA = pa.schema([("text", pa.string()), ("name", pa.string()), ("path", pa.string())])
_MEDIA_SCHEMA = pa.schema([("name", pa.string()), ("path", pa.string())])


@dataclass(frozen=True, slots=True)
class LinePart:
    """One row a line; blank lines, and lines whose first visible character is ``#``, are skipped."""

    input: Input
    skip_bad: bool = False

    @property
    def schema(self) -> pa.Schema:
        return _LINES_SCHEMA

    def taken(self) -> Iterator[Taken]:
        rows = self._lines()
        while some := list(islice(rows, GROUP_ROWS)):
            numbers, texts = [number for number, _ in some], [text for _, text in some]
            missing = (i for i, text in enumerate(texts) if text is None)
            bad = {i: f"{self.input.name}:{numbers[i]}: not UTF-8" for i in missing}
            yield Taken(pa.record_batch([texts, numbers], schema=_LINES_SCHEMA), bad=bad)

    def lines(self) -> Iterator[int]:
        """The line of each row."""
        return (number for number, _ in self._lines())

    def _lines(self) -> Iterator[tuple[int, str | None]]:
        """Number and text of each row; None for text that cannot be read."""
        with self.input.open() as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode().strip()
                except UnicodeDecodeError as error:
                    if not self.skip_bad:
                        raise not_utf8(self.input) from error
                    yield number, None
                    continue
                if text and not text.startswith("#"):
                    yield number, text


@dataclass(frozen=True, slots=True)
class FilePart:
    """One row: the whole file, byte for byte but for a byte order mark."""

    input: Input
    skip_bad: bool = False

    @property
    def schema(self) -> pa.Schema:
        return _FILE_SCHEMA

    def taken(self) -> Iterator[Taken]:
        text: str | None
        try:
            text, bad = self._text(), dict[int, str]()
        except InputError as error:
            if not self.skip_bad:
                raise
            text, bad = None, {0: f"{error.what}: {error.why}"}
        yield Taken(pa.record_batch([[text], [self.input.stem], [self.input.name]], schema=_FILE_SCHEMA), bad=bad)

    def lines(self) -> Iterator[int]:
        """One row, which has no line."""
        yield 0

    def _text(self) -> str:
        with self.input.open() as file:
            data = file.read().removeprefix(codecs.BOM_UTF8)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            told = not_utf8(self.input)
            raise InputError(told.what, why=told.why, fix=f"{told.fix}; {_OR_SKIP}") from error
        if not text.strip():
            why = "it holds only blanks" if text else "it holds no bytes"
            raise InputError(f"{self.input.name} is empty", why=why, fix=f"check what wrote it; {_OR_SKIP}")
        return text


@dataclass(frozen=True, slots=True)
class MediaPart:
    """One row: an image, a PDF, a sound or a film, by its name and where it lies. Nothing of it is read here."""

    input: Input

    @property
    def schema(self) -> pa.Schema:
        return _MEDIA_SCHEMA

    def taken(self) -> Iterator[Taken]:
        yield Taken(pa.record_batch([[self.input.stem], [self.input.name]], schema=_MEDIA_SCHEMA))

    def lines(self) -> Iterator[int]:
        """One row, which has no line."""
        yield 0


def open_lines(source: Input, *, skip_bad: bool) -> LinePart:
    """A file of lines. Raises InputError when no line is a row."""
    part = LinePart(source, skip_bad)
    if next(part.lines(), None) is None:
        raise InputError(
            f"{source.name} holds no rows",
            why="every line is blank or starts with #",
            fix="put one item on each line",
        )
    return part


def not_utf8(source: Input) -> InputError:
    """What to tell the user about a file that is not UTF-8: where, and how to get out of it."""
    where, offset = "", 0
    with source.open() as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                head = line[:2]
            try:
                line.decode()
            except UnicodeDecodeError as error:
                where = f"line {number}, byte offset {offset + error.start}: byte 0x{line[error.start]:02x}"
                break
            offset += len(line)
    encoding = "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
    return InputError(
        f"{source.name} is not UTF-8",
        why=f"{where or 'its bytes'} cannot be decoded",
        fix=f"say how it is written, for example: --encoding {encoding}",
    )
