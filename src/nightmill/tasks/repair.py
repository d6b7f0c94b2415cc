"""Local repair: an answer that does not fit its schema, put right on this machine, if nothing has to be made up for it.

Fences and prose around the JSON are cut away first; then json-repair closes quotes and brackets, and drops commas too
many. What comes out is held to the schema like any answer.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from nightmill.errors import UsageError

CheckAnswer = Callable[[str], "tuple[Any | None, str | None]"]

_FENCED = re.compile(r"```[a-zA-Z]*\s*(.*?)```", re.DOTALL)
_MOST_CHARS = 1 << 20  # of an answer: what is longer is no answer that a bracket is missing in


@dataclass(frozen=True, slots=True)
class Repaired:
    """The value of an answer that fits the schema only since it was repaired."""

    json: str


def require_repair() -> None:
    """Raises UsageError where the library that repairs is not installed."""
    if importlib.util.find_spec("json_repair") is None:
        raise UsageError(
            "--repair needs json-repair",
            why="it is not installed here",
            fix='pip install "nightmill[repair]", or leave --repair out; nothing was sent',
        )


def repairing(check: CheckAnswer) -> CheckAnswer:
    """``check``, and where it finds something wrong the same of what repair makes of the answer.

    A repaired answer's value is `Repaired`; what is wrong is always what is wrong with the answer as it came.
    """

    def checked(text: str) -> tuple[Any | None, str | None]:
        value, wrong = check(text)
        if wrong is not None and len(text) <= _MOST_CHARS:
            for candidate in _candidates(text):
                if check(candidate)[1] is None:
                    return Repaired(candidate), None
        return value, wrong

    return checked


def _candidates(text: str) -> Iterator[str]:
    """What the JSON in ``text`` may be, the least changed first."""
    for fenced in _FENCED.findall(text):
        yield fenced.strip()
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return
    inner = text[min(starts) :]
    yield inner[: max(inner.rfind("}"), inner.rfind("]")) + 1]
    value = _mended(inner)
    if isinstance(value, dict | list) and not _makes_up(value, text):
        yield msgspec.json.encode(value).decode()


def _mended(text: str) -> Any:
    import json_repair

    try:
        return json_repair.loads(text, skip_json_loads=True)
    except Exception:  # a foreign parser on text of any kind: what it stumbles over is not repaired
        return None


def _makes_up(value: Any, text: str) -> bool:
    """Whether a text in ``value`` does not stand in the answer: it was put in so that there is one."""
    if isinstance(value, dict):
        return any(_makes_up(part, text) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(_makes_up(part, text) for part in value)
    if value == "":
        return '""' not in text and "''" not in text
    if isinstance(value, str):
        return value not in text and msgspec.json.encode(value)[1:-1].decode() not in text
    return False
