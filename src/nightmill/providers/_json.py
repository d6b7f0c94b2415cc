"""JSON as servers really send it, whatever it says: read tolerantly, kept on one line, decoded many at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeGuard, TypeVar

import msgspec

NOT_STRICT = (msgspec.DecodeError, ValueError, RecursionError)  # ValueError: bytes that are not UTF-8

_MOST_TOKENS = 1 << 36  # of a whole batch with the longest prompts there are; more, or less than none, is a slip
_MOST_SECONDS = 1e12
Tokens = Annotated[int, msgspec.Meta(ge=0, le=_MOST_TOKENS)]
Line = TypeVar("Line")

encode = msgspec.json.encode
_check = msgspec.json.Decoder(msgspec.Raw).decode  # one whole JSON text; does not look whether it is UTF-8


def load_json(data: bytes | str) -> Any:
    """JSON as it is really sent: NaN, lone surrogate escapes and stray bytes do not lose an answer.

    No text in it has lone surrogates: nothing that keeps texts could take them.

    Raises:
        ValueError: it is not JSON even so.
    """
    try:
        return msgspec.json.decode(data)
    except NOT_STRICT:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    try:
        whole = json.loads(text.lstrip("\ufeff"))
        return json.loads(scrub(json_text(whole)))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def load_inner(body: Any) -> Any:
    """A body that had to travel as a string, read once more; anything else, and text that is no JSON, as it is."""
    if not isinstance(body, str):
        return body
    try:
        return load_json(body)
    except ValueError:
        return body


def json_text(value: Any) -> str:
    """JSON without needless blanks, in the letters it was written with."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def scrub(text: str) -> str:
    """``text`` with each lone surrogate replaced, so that it can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def on_one_line(body: bytes) -> bytes:
    """A body as JSON without line breaks; what is no JSON becomes a string."""
    try:
        body.decode()
        _check(body)
    except NOT_STRICT:
        return encode(body.decode("utf-8", "replace"))
    return body.replace(b"\r", b" ").replace(b"\n", b" ")


def decoded_together(decode_lines: Callable[[bytes], list[Line]], lines: Sequence[bytes]) -> list[Line] | None:
    """Each of ``lines``, all at once; None where one of them is anything but what ``decode_lines`` takes."""
    try:
        decoded = decode_lines(b"".join(lines))
    except NOT_STRICT:
        return None
    return decoded if len(decoded) == len(lines) and {line[:1] for line in lines} == {b"{"} else None


def count(value: Any) -> int:
    """A number of tokens or rows, or 0 for anything else."""
    return value if is_count(value) else 0


def is_count(value: Any) -> TypeGuard[int]:
    """Whether it is a number that tokens or rows can have."""
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def seconds(value: Any) -> float | None:
    """Seconds, also since 1970; None for what cannot be that."""
    return float(value) if isinstance(value, int | float) and 0 <= value < _MOST_SECONDS else None
