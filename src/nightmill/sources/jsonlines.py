"""JSON lines: one object a line. The columns are learned from every line, or from those at the beginning.

Who learned from the beginning only must be ready for an `InputError` while the rows are read: then
the columns are others, or a line is bad, and only a look at every line tells what is the matter.

Blocks of lines are decoded in one call where their outline proves that each line is one object;
only other blocks, and blocks with an error, are looked at line by line.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from nightmill.errors import InputError
from nightmill.sources.inputs import OR_SKIP_ROWS, Input
from nightmill.sources.taken import Taken, between

_BLOCK_BYTES = 1 << 20
_LONGEST_BYTES = 64 << 20  # of a line
_SHOWN = 5
_BLANK = b" \t\r\n"
_NOT_ROWS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
JSON_MARK = {b"nightmill": b"json"}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_ESCAPED = re.compile(r'[\\"\x00-\x1f]')

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode

Row = dict[str, Any]


class _Bad(NamedTuple):
    """A line that is no row."""

    row: int  # of the block, where it would be one
    line: int  # of the block, the first being 0
    reason: str


def is_json(column: pa.Field) -> bool:
    """Whether cells of the column hold JSON text of what was in the input."""
    return bool(column.metadata) and column.metadata.get(b"nightmill") == b"json"


@dataclass(frozen=True, slots=True)
class JsonlPart:
    input: Input
    schema: pa.Schema
    learned: Mapping[str, _Learned] | None  # at the beginning; None: from every line
    skip_bad: bool = False

    @property
    def name(self) -> str:
        return self.input.name

    def taken(self, size: int) -> Iterator[Taken]:
        """The rows, ``size`` to a batch but the last. Raises InputError."""
        texts = [(i, column.name) for i, column in enumerate(self.schema) if _is_text(column)]
        held: list[list[Any]] = [[] for _ in self.schema]
        bad: dict[int, str] = {}
        for columns, odd in self._columns():
            bad.update((len(held[0]) + row, why) for row, why in odd.items())
            for values, new in zip(held, columns, strict=True):
                values.extend(new)
            while len(held[0]) >= size:
                full = [values[:size] for values in held]
                yield Taken(self._convert(full), {name: full[i] for i, name in texts}, between(bad, 0, size))
                for values in held:
                    del values[:size]
                bad = between(bad, size, size + len(held[0]))
        if held[0]:
            yield Taken(self._convert(held), bad=bad)

    def lines(self) -> Iterator[int]:
        """The line of each row."""
        with self.input.open() as file:
            yield from (number for number, line in enumerate(file, 1) if line.strip(_BLANK))

    def _columns(self) -> Iterator[tuple[list[list[Any]], dict[int, str]]]:
        """The values of each column, block by block, and what is wrong with bad rows of the block."""
        names, is_known = self.schema.names, self.learned is None
        shape = _Shape(names, {column.name for column in self.schema if _is_text(column)})
        learned = {name: replace(seen, types=set(seen.types)) for name, seen in (self.learned or {}).items()}
        lines = _LineCount() if self.skip_bad else None
        for offset, block in _blocks(self.input):
            columns, odd = shape.columns(block, is_proven=is_known and not self.skip_bad), dict[int, str]()
            if columns is None:
                rows, bad = _rows(block)
                if bad and lines is None:
                    raise _refusal(self.name, _numbered(self.input, offset, bad))
                odd = {each.row: f"{self.name}:{lines.before + each.line}: {each.reason}" for each in bad if lines}
                columns = [[row.get(name) for row in rows] for name in names]
                if not is_known:
                    _learn(rows, learned)
            elif not is_known:
                _learn_columns(columns, learned)
            if not is_known and not _schema(learned).equals(self.schema, check_metadata=True):
                raise InputError(
                    f"{self.name} has other columns further down",
                    why="only its beginning was looked at",
                    fix="look at all of it",
                )
            yield columns, odd
            if lines is not None:
                lines.add(block)

    def _convert(self, columns: list[list[Any]]) -> pa.RecordBatch:
        try:
            arrays = [_column(values, column) for values, column in zip(columns, self.schema, strict=True)]
            return pa.record_batch(arrays, schema=self.schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise InputError(
                f"{self.name} changed while it was read",
                why=f"a value no longer has the type that its column had: {error}",
                fix="run again when nothing writes to it",
            ) from error


class _LineCount:
    """Counts the lines of a file, block by block; ``before``: the number of the next block's first line."""

    def __init__(self) -> None:
        self.before = 1

    def add(self, block: bytes) -> None:
        self.before += block.count(b"\n")


class _Shape:
    """Decodes blocks of rows with known columns straight into those columns: twice as fast as by dicts.

    A struct has no fields whose names JSON would escape: such rows are of no shape.
    """

    def __init__(self, names: Sequence[str], texts: Container[str]) -> None:
        fields = {f"f{i}": name for i, name in enumerate(names)}
        kinds = [(f, str | None if name in texts else Any, None) for f, name in fields.items()]
        self._getters = [attrgetter(f) for f in fields]
        self._decode: Callable[[bytes], list[Any]] | None = None
        if not any(_ESCAPED.search(name) for name in names):
            row = msgspec.defstruct("Row", kinds, rename=fields, forbid_unknown_fields=True, gc=False)
            self._decode = msgspec.json.Decoder(row).decode_lines

    def columns(self, block: bytes, *, is_proven: bool = False) -> list[list[Any]] | None:
        """The values of each column, None where a row has none; None if a row is of another shape.

        ``is_proven``: the block was read before, and no line held two objects.
        """
        text = block.strip(_BLANK)
        lines = text.count(b"\n") + 1 if is_proven else _lines(text)
        if lines is None or self._decode is None:
            return None
        try:
            rows = self._decode(text)
        except _NOT_ROWS:
            return None
        return [list(map(getter, rows)) for getter in self._getters] if len(rows) == lines else None


def _is_text(column: pa.Field) -> bool:
    return bool(column.type == pa.string()) and not is_json(column)


@dataclass(slots=True)
class _Learned:
    """What has been seen of one column."""

    types: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0

    @property
    def is_text(self) -> bool:
        return str in self.types and self.types <= {str, type(None)}

    def widen(self, values: list[Any]) -> None:
        """Take note of the numbers among ``values``."""
        numbers = [value for value in values if type(value) is int]
        self.least = min(self.least, min(numbers, default=0))
        self.most = max(self.most, max(numbers, default=0))

    def arrow(self, name: str) -> pa.Field:
        match self.types - {type(None)}:
            case kinds if kinds <= {str}:
                return pa.field(name, pa.string())
            case kinds if kinds == {bool}:
                return pa.field(name, pa.bool_())
            case kinds if kinds == {int} and self.least >= _INT64_MIN and self.most <= _INT64_MAX:
                return pa.field(name, pa.int64())
            case kinds if kinds == {float}:
                return pa.field(name, pa.float64())
        return pa.field(name, pa.string(), metadata=JSON_MARK)


def open_jsonl(files: Sequence[Input], limit: int | None, *, skip_bad: bool, whole: bool) -> list[JsonlPart]:
    """Check every line (up to ``limit`` rows over all files) and learn one schema for all files.

    Unless ``whole``, or with a limit, the beginning of each file has to do; the rest is held
    against it while the rows are read.

    Raises:
        InputError: lines that are no JSON objects, the first five by file and line; files with
            other columns than the first; no rows.
    """
    learned: dict[str, _Learned] = {}
    left, is_all = limit, True
    parts: list[Input] = []
    for source in files:
        if left is not None and left <= 0:
            break
        seen: dict[str, _Learned] = {}
        with source.explained():
            count, is_read = _learn_file(source, seen, left, skip_bad=skip_bad, whole=whole or limit is not None)
        is_all = is_all and is_read
        if count == 0:
            raise InputError(f"{source.name} holds no rows", why="every line is blank", fix="check what wrote it")
        if parts and seen.keys() != learned.keys():
            raise _unlike(source.name, parts[0].name, seen, learned)
        for column, new in seen.items():
            have = learned.setdefault(column, _Learned())
            have.types |= new.types
            have.least, have.most = min(have.least, new.least), max(have.most, new.most)
        left = None if left is None else left - count
        parts.append(source)
    if not learned:
        raise InputError(f"{files[0].name} has no columns", why="every object is empty", fix="check what wrote it")
    # Files past the limit are never read, so they take the columns of those that are.
    return [JsonlPart(source, _schema(learned), None if is_all else learned, skip_bad) for source in files]


def _schema(learned: Mapping[str, _Learned]) -> pa.Schema:
    return pa.schema([column.arrow(name) for name, column in learned.items()])


def _learn_file(
    source: Input, learned: dict[str, _Learned], left: int | None, *, skip_bad: bool, whole: bool
) -> tuple[int, bool]:
    """How many rows were read, and whether those are all that count."""
    count, bad = 0, list[tuple[int, str]]()
    shape: _Shape | None = None
    for offset, block in _blocks(source):
        if count and not whole:
            return count, False
        if shape is not None and (columns := shape.columns(block)):
            _learn_columns(columns, learned)
            count += len(columns[0])
            continue
        rows, odd = _rows(block)
        if odd and not skip_bad:
            bad.extend(_numbered(source, offset, odd))
            if len(bad) >= _SHOWN:
                break
            continue
        rows = rows if left is None else rows[: left - count]
        _learn(rows, learned)
        count += len(rows)
        if left is not None and count >= left:
            break
        if left is None and learned:
            texts = {column for column, seen in learned.items() if seen.is_text}
            shape = _Shape(list(learned), texts)
    if bad:
        raise _refusal(source.name, bad)
    return count, True


def _learn(rows: list[Row], learned: dict[str, _Learned]) -> None:
    # A signature for every row, each distinct one looked at once: rows mostly look alike.
    for names, types in dict.fromkeys((tuple(row), tuple(map(type, row.values()))) for row in rows):
        for name, kind in zip(names, types, strict=True):
            learned.setdefault(name, _Learned()).types.add(kind)
    for name, column in learned.items():
        if int in column.types:
            column.widen([row.get(name) for row in rows])


def _learn_columns(columns: list[list[Any]], learned: dict[str, _Learned]) -> None:
    for values, column in zip(columns, learned.values(), strict=True):
        if not column.is_text:  # else the shape has proven that it still is
            column.types.update(map(type, values))
            if int in column.types:
                column.widen(values)


def _column(values: list[Any], column: pa.Field) -> pa.Array:
    if is_json(column):
        values = [None if value is None else _encode(value).decode() for value in values]
    return pa.array(values, column.type)


def _blocks(source: Input) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with where it begins. Raises InputError: a line would fill the memory."""
    with source.open() as file:
        offset = 0
        while block := file.read(_BLOCK_BYTES):
            block += (rest := file.readline(_LONGEST_BYTES))
            if len(rest) == _LONGEST_BYTES:
                raise InputError(
                    f"{source.name}: a line is longer than {_LONGEST_BYTES >> 20} MB",
                    why="a row has to fit into memory",
                    fix=f"write one object on each line; a JSON array is read as json:{source.name}",
                )
            if offset == 0 and block.startswith(codecs.BOM_UTF8):
                offset, block = len(codecs.BOM_UTF8), block[len(codecs.BOM_UTF8) :]
            yield offset, block
            offset += len(block)


def _numbered(source: Input, offset: int, bad: list[_Bad]) -> list[tuple[int, str]]:
    """Lines of a block that begins at ``offset`` as lines of the file, the first being 1."""
    before, left = 1, offset
    with source.open() as file:
        while left and (chunk := file.read(min(_BLOCK_BYTES, left))):
            before += chunk.count(b"\n")
            left -= len(chunk)
    return [(before + each.line, each.reason) for each in bad]


def _lines(text: bytes) -> int | None:
    """How many lines ``text`` has, if each of them is an object at most; None if that is not plain to see."""
    # Inside one JSON value a "}" is never followed by a "{", so when every line ends and begins
    # like that, no object spans lines, and as many objects as lines means one in each.
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return None
    lines = text.count(b"\n") + 1
    joints = text.count(b"}\n{") + (text.count(b"}\r\n{") if b"\r" in text else 0)
    return lines if joints == lines - 1 else None


def _rows(block: bytes) -> tuple[list[Row], list[_Bad]]:
    """The rows of a block. One without values stands for each line that is none."""
    text = block.strip(_BLANK)
    leading = block[: len(block) - len(block.lstrip(_BLANK))].count(b"\n") if text else 0
    if (lines := _lines(text)) is not None:
        try:
            rows: list[Row] = _decoder.decode_lines(text)
        except _NOT_ROWS:
            rows = []
        if len(rows) == lines:
            return rows, []
    return _rows_one_by_one(leading, text)


def _rows_one_by_one(first_line: int, text: bytes) -> tuple[list[Row], list[_Bad]]:
    rows: list[Row] = []
    bad: list[_Bad] = []
    for number, line in enumerate(text.split(b"\n"), first_line):
        if not line.strip():
            continue
        row = _row(line)
        if not isinstance(row, dict):
            bad.append(_Bad(len(rows), number, row))
            row = {}
        rows.append(row)
    return rows, bad


def _row(line: bytes) -> Row | str:
    """The row, or the reason why there is none."""
    try:
        value = _decoder.decode(line)
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason}); only UTF-8 is read"
    except RecursionError:
        return "nested too deeply"
    except msgspec.DecodeError as error:
        return _lone_surrogate(line) or str(error)
    return value if isinstance(value, dict) else f"a JSON {_json_word(value)}, not an object"


def _lone_surrogate(line: bytes) -> str:
    if b"\\ud" not in line and b"\\uD" not in line:
        return ""
    import json  # the standard library's decoder takes what ours refuses, and so can tell why

    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "a lone surrogate (half a character, as \\ud800), which no UTF-8 text can hold"
    except ValueError:
        pass
    return ""


def _json_word(value: object) -> str:
    words = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
    return words.get(type(value), "null")


def _refusal(name: str, bad: list[tuple[int, str]]) -> InputError:
    shown = "; ".join(f"{name}:{line}: {reason}" for line, reason in bad[:_SHOWN])
    fix = f"write one JSON object on each line, in UTF-8; {OR_SKIP_ROWS}"
    return InputError(f"{name}: lines that are no JSON objects", why=shown, fix=fix)


def _unlike(name: str, first: str, seen: dict[str, _Learned], learned: dict[str, _Learned]) -> InputError:
    missing = [column for column in learned if column not in seen]
    extra = [column for column in seen if column not in learned]
    why = [f"it lacks {', '.join(missing)}"] if missing else []
    why += [f"it adds {', '.join(extra)}"] if extra else []
    return InputError(
        f"{name} has other columns than {first}",
        why="; ".join(why),
        fix="run them one by one, or give them the same columns",
    )
