"""Answers as objects of the caller's own class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import msgspec

from nightmill.api.values import Result
from nightmill.errors import UsageError

T = TypeVar("T")


def objects_in(results: Iterable[Result], kind: type[T]) -> Iterator[T | None]:
    """What each result's answer is as a ``kind``; None where a row has no answer that fits its schema.

    Raises:
        UsageError: an answer is no ``kind``, which asks for more than the schema that it was held to.
    """
    made = _maker(kind)
    for result in results:
        if not result.success or result.parsed is None:
            yield None
            continue
        try:
            found = made(result.parsed)
        except (ValueError, TypeError) as error:  # those of Pydantic, msgspec, and checks of the class itself
            raise UsageError(
                f"the answer to row {result.index} is no {kind.__name__}",
                why=" ".join(str(error).split()),
                fix="take it from `result.parsed`, or loosen the class",
            ) from error
        yield found


def _maker(kind: type[T]) -> Callable[[Any], T]:
    validate: Callable[[Any], T] | None = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate
    if hasattr(kind, "__pydantic_validator__") or ("pydantic" in sys.modules and not _is_plain(kind)):
        from pydantic import TypeAdapter

        return cast(Callable[[Any], T], TypeAdapter(kind).validate_python)
    return lambda value: msgspec.convert(value, kind)


def _is_plain(kind: type) -> bool:
    """Whether all that it holds is of the kinds that msgspec knows."""
    try:
        msgspec.json.Decoder(kind)
        msgspec.json.schema(kind)
    except TypeError:
        return False
    return True
