"""JSON instances that fit a JSON Schema, chosen by a seed: what a model with structured output would say.

Covers what structured outputs allow: object, array, string, number, integer, boolean, null, enum, const, bounds,
anyOf, oneOf, allOf, $ref and nullable type lists. Strings stay short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")
_FORMATS = {
    "date-time": "2026-01-15T12:00:00Z",
    "date": "2026-01-15",
    "time": "12:00:00Z",
    "duration": "P1D",
    "email": "miller@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "uri": "https://example.com/",
}
_MAX_DEPTH = 12  # below this only what is required, and the shortest of everything


class Unsatisfiable(ValueError):
    """The schema is one this generator has no instance for."""


def _described(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a description ends with as JSON: words that bind nothing here, and that a model does as well as it can."""
    text = schema.get("description")
    if not isinstance(text, str) or not text.endswith("}") or '{"' not in text:
        return {}
    try:
        said = msgspec.json.decode(text[text.index('{"') :])
    except msgspec.DecodeError:
        return {}
    return said if isinstance(said, Mapping) else {}


class _Maker:
    def __init__(self, root: Mapping[str, Any], seed: int) -> None:
        self._root = root
        self._state = seed or 1

    def below(self, bound: int) -> int:
        """The next pseudo-random number under ``bound`` (a 64-bit LCG: cheap and the same everywhere)."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self._state >> 33) % bound

    def make(self, schema: Any, depth: int) -> Any:
        if schema is True or schema == {}:
            return _WORDS[self.below(len(_WORDS))]
        if not isinstance(schema, Mapping):
            raise Unsatisfiable(f"no instance fits {schema!r}")
        if depth > 4 * _MAX_DEPTH:
            raise Unsatisfiable("the schema requires itself without end")
        schema = self._flat(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][self.below(len(schema["enum"]))]
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._branch(schema, word, depth)
        return self._typed(schema, depth)

    def _flat(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """``schema`` with its $ref followed and its allOf folded in."""
        hops = 0
        while "$ref" in schema:
            hops += 1
            if hops > 64:
                raise Unsatisfiable("a $ref leads back to itself")
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            schema = {**self._follow(schema["$ref"]), **rest}
        for part in [self._flat(part) for part in schema.get("allOf", ())]:
            folded = {**schema, **part}
            folded["properties"] = {**schema.get("properties", {}), **part.get("properties", {})}
            folded["required"] = [*schema.get("required", ()), *part.get("required", ())]
            schema = {k: v for k, v in folded.items() if k != "allOf" and v not in ({}, [])}
        return {**_described(schema), **schema}

    def _follow(self, ref: str) -> Mapping[str, Any]:
        at: Any = self._root
        pointer = ref.removeprefix("#").strip("/")
        steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")] if pointer else []
        for step in steps:
            try:
                at = at[int(step)] if isinstance(at, list) else at[step]
            except (KeyError, ValueError, IndexError, TypeError):
                raise Unsatisfiable(f"$ref {ref!r} leads nowhere") from None
        if not isinstance(at, Mapping):
            raise Unsatisfiable(f"$ref {ref!r} is no schema")
        return at

    def _branch(self, schema: Mapping[str, Any], word: str, depth: int) -> Any:
        branches = schema[word]
        first = self.below(len(branches))
        if depth > _MAX_DEPTH:  # the last resort out of a recursive schema is usually null
            first = next((i for i, b in enumerate(branches) if isinstance(b, Mapping) and b.get("type") == "null"), 0)
        rest = {k: v for k, v in schema.items() if k != word}
        for turn in range(len(branches)):
            branch = branches[(first + turn) % len(branches)]
            try:
                return self.make({**rest, **branch} if isinstance(branch, Mapping) else branch, depth + 1)
            except Unsatisfiable:
                continue
        raise Unsatisfiable(f"no branch of {word} can be made")

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[self.below(len(kind))] if depth <= _MAX_DEPTH or "null" not in kind else "null"
        if kind is None:
            kind = next((k for word, k in _IMPLIED.items() if word in schema), "string")
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean":
                return bool(self.below(2))
            case "null":
                return None
        raise Unsatisfiable(f"unknown type {kind!r}")

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        properties = schema.get("properties", {})
        made: dict[str, Any] = {}
        for name, part in properties.items():
            if name in required:
                made[name] = self.make(part, depth + 1)
            elif depth < _MAX_DEPTH // 3:
                try:
                    made[name] = self.make(part, depth + 1)
                except Unsatisfiable:
                    continue
        extra = schema.get("additionalProperties", True)
        for name in required - properties.keys():
            made[name] = self.make(extra, depth + 1)
        while len(made) < schema.get("minProperties", 0):
            made[f"key{len(made)}"] = self.make(extra, depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 3)))
        size = least if depth > _MAX_DEPTH // 2 else least + self.below(min(most, least + 3) - least + 1)
        heads = schema.get("prefixItems", [])
        made: list[Any] = []
        for _ in range(40 * (size + 1)):
            if len(made) >= size:
                return made
            part = heads[len(made)] if len(made) < len(heads) else schema.get("items", True)
            item = self.make(part, depth + 1)
            if not (schema.get("uniqueItems") and item in made):
                made.append(item)
        if len(made) >= least:
            return made
        raise Unsatisfiable("not enough different items")

    def _string(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            raise Unsatisfiable(f"strings by pattern {schema['pattern']!r} are not made here")
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        least = int(schema.get("minLength", 0))
        most = int(schema.get("maxLength", max(least, 24)))
        text = _WORDS[self.below(len(_WORDS))]
        while len(text) < least:
            text += " " + _WORDS[self.below(len(_WORDS))]
        return text[:most]

    def _integer(self, schema: Mapping[str, Any]) -> int:
        step = schema.get("multipleOf", 1)
        if step != int(step):
            step = 1
        low, high = self._bounds(schema, int(step))
        return low + int(step) * self.below((high - low) // int(step) + 1)

    def _bounds(self, schema: Mapping[str, Any], step: int) -> tuple[int, int]:
        lows = [math.ceil(schema["minimum"])] if "minimum" in schema else []
        if "exclusiveMinimum" in schema:
            lows.append(math.floor(schema["exclusiveMinimum"]) + 1)
        highs = [math.floor(schema["maximum"])] if "maximum" in schema else []
        if "exclusiveMaximum" in schema:
            highs.append(math.ceil(schema["exclusiveMaximum"]) - 1)
        low = max(lows) if lows else (min(highs) - 100 * step if highs else 0)
        low = -(-low // step) * step
        high = min(highs) if highs else low + 100 * step
        if low > high:
            raise Unsatisfiable(f"nothing between {low} and {high}")
        return low, high

    def _number(self, schema: Mapping[str, Any]) -> float | int:
        if "multipleOf" in schema:
            step = schema["multipleOf"]
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            made = (math.floor(low / step) + 1) * step
            if made > schema.get("maximum", made) or made >= schema.get("exclusiveMaximum", math.inf):
                raise Unsatisfiable(f"no multiple of {step} fits")
            return float(made) if isinstance(made, float) else int(made)
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            low = 0 if high is None else high - 100
        if high is None:
            high = low + 100
        share = (1 + self.below(998)) / 1000  # strictly inside, so exclusive bounds hold too
        made = low + (high - low) * share
        if low > high or (low == high and ("exclusiveMinimum" in schema or "exclusiveMaximum" in schema)):
            raise Unsatisfiable(f"nothing between {low} and {high}")
        return float(made)


_IMPLIED = {
    "properties": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minimum": "number",
    "maximum": "number",
}


def instance(schema: Mapping[str, Any], seed: int) -> Any:
    """A JSON value valid for ``schema``; the same for the same seed.

    Raises:
        Unsatisfiable: the schema asks for something outside what is listed above.
    """
    return _Maker(schema, seed).make(schema, 0)
