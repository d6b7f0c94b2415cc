"""What OpenAI refuses of a schema that is said to be strict.

Source: OpenAI's guide to structured outputs, and the words of its refusals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightmill.simulator.openai.wire import ApiError

_TAKEN = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"),
        *("description", "title", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "minItems", "maxItems"),
    }
)
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")


def check(schema: Any) -> None:
    """Raises ApiError: it is outside of what strict answers can be bound to."""
    if not isinstance(schema, Mapping) or schema.get("type") != "object" or "anyOf" in schema:
        raise _refusal((), "schema must be a JSON Schema of 'type: \"object\"'")
    _check(schema, ())


def _check(schema: Any, place: tuple[str, ...]) -> None:
    if not isinstance(schema, Mapping) or not schema.keys() & {"type", "anyOf", "$ref"}:
        raise _refusal(place, "schema must have a 'type' key")
    if "$ref" in schema and len(schema) > 1 and place:
        raise _refusal(place, "$ref cannot have keywords beside it")
    for key in schema:
        if key not in _TAKEN or (key == "format" and schema[key] not in _FORMATS):
            raise _refusal(place, f"'{key}' is not permitted")
    kinds = schema.get("type", ())
    if "object" in kinds:
        _check_object(schema, place)
    if "array" in kinds:
        if "items" not in schema:
            raise _refusal(place, "array schema missing items")
        _check(schema["items"], (*place, "items"))
    for number, part in enumerate(schema.get("anyOf", ())):
        _check(part, (*place, "anyOf", str(number)))
    for name, part in schema.get("$defs", {}).items():
        _check(part, (*place, "$defs", name))


def _check_object(schema: Mapping[str, Any], place: tuple[str, ...]) -> None:
    if schema.get("additionalProperties") is not False:
        raise _refusal(place, "'additionalProperties' is required to be supplied and to be false")
    named = schema.get("properties", {})
    if set(schema.get("required", ())) != set(named):
        raise _refusal(place, "'required' is required to be an array including every key in properties")
    for name, part in named.items():
        _check(part, (*place, "properties", name))


def _refusal(place: tuple[str, ...], why: str) -> ApiError:
    message = f"Invalid schema for response_format: In context={place!r}, {why}."
    return ApiError(400, message, param="response_format", code="invalid_json_schema")
