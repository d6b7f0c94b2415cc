"""A JSON array as JSON lines, an element a line, while memory holds a few megabytes of it, or one element."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import RawIOBase
from typing import Any, BinaryIO

import msgspec

from nightmill.errors import InputError

_BLOCK_BYTES = 1 << 20
_BLANK = b" \t\r\n"
# An object without others in it, a text (also one that goes on in the next block), or what may begin or end an element.
_TOKEN = re.compile(
    rb"""\{(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+\}|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]""",
    re.DOTALL,
)
_DEEPER, _BACK, _COMMA = b"[{", b"]}", b","[0]
_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
_compact = msgspec.json.format


class ArrayLines(RawIOBase):
    """Reads a file that begins with the ``[`` of an array; texts among its elements become ``{"text": …}``.

    Raises:
        InputError: it is no JSON array.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._blocks = _blocks(file, name)
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        while not self._held:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._held = memoryview(block)
        there = memoryview(into)
        count = min(len(there), len(self._held))
        there[:count], self._held = self._held[:count], self._held[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _blocks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines, about a megabyte of them at a time."""
    head = b""
    while b"[" not in head and (more := file.read(_BLOCK_BYTES)):
        head += more
    before, _, text = head.partition(b"[")
    offset, is_first, is_over = len(before) + 1, True, False
    while not is_over:
        end, is_over = _end_of_elements(text)
        if end >= 0:
            lines = _lines(text[:end], name, offset, is_first=is_first)
            text, offset, is_first = text[end + 1 :], offset + end + 1, False
            if lines:
                yield lines
        if is_over:
            break
        more = file.read(max(_BLOCK_BYTES, len(text)))  # twice as much, where one element is long
        if not more:
            raise _no_array(name, "it ends before its array does")
        text += more
    while text:
        if text.strip(_BLANK):
            raise _no_array(name, f"something follows its array, at byte {offset:,}")
        text = file.read(_BLOCK_BYTES)


def _end_of_elements(text: bytes) -> tuple[int, bool]:
    """Where the last whole element of ``text`` ends (-1: none does), and whether the array ends there."""
    depth, end = 0, -1
    for token in _TOKEN.finditer(text):
        at, after = token.span()
        if after - at > 1:
            continue
        sign = text[at]
        if sign == _COMMA:
            end = at if depth == 0 else end
        elif sign in _DEEPER:
            depth += 1
        elif sign in _BACK:
            depth -= 1
            if depth < 0:
                return at, True
    return end, False


def _lines(elements: bytes, name: str, offset: int, *, is_first: bool) -> bytes:
    try:
        # Behind another one, so that a comma with nothing behind it is what it is: a mistake.
        found = _decode(b"[" + elements + b"]") if is_first else _decode(b"[0," + elements + b"]")[1:]
        return b"".join(map(_line, map(bytes, found)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_array(name, f"from byte {offset:,} on: {error}") from error


def _line(element: bytes) -> bytes:
    return b'{"text":' + element + b"}\n" if element.startswith(b'"') else _compact(element, indent=-1) + b"\n"


def _no_array(name: str, why: str) -> InputError:
    return InputError(
        f"{name} is no JSON document of rows",
        why=why,
        fix="write an array of texts or objects; for one object a line, call it .jsonl",
    )
