"""A JSON Schema, said in the words that a provider binds answers by.

What a provider has no word for is told to the model in a description, so that it is known though it binds nothing: the
answers that fit are then a few more. They are never others: whoever fits what is sent without anything told fits the
schema as it was given. Where that cannot be (`Unfit`), the schema is sent in another way. Answers are held to the whole
schema as they come in, whichever way it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_ALWAYS = frozenset({"type", "enum", "const", "title", "description"})
_UNSAID = frozenset(  # what binds nothing, or only where something else is said
    {"$schema", "$id", "$comment", "$anchor", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"discriminator", "additionalProperties", "required", "definitions"}
)
_SHAPES = ("anyOf", "oneOf", "allOf")
_LOOKS_AROUND = ("(?", "\\b", "\\B", "\\1")  # of patterns: what only engines that go back can do
_NUMBERS = frozenset({"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})


class Unfit(ValueError):
    """Why answers cannot be bound to a schema, in the words of a note."""


@dataclass(frozen=True, slots=True)
class Words:
    """What of JSON Schema one way of binding answers takes."""

    keys: frozenset[str]  # beside those that every way takes
    formats: frozenset[str] = frozenset()
    closed: bool = True  # objects have the properties that they name, and no others; every part says what it is
    all_required: bool = False  # objects have all of their properties
    lists_types: bool = True  # a type may be one of several
    recursive: bool = True  # a part may hold itself
    few_items: bool = False  # a list's least length is 0 or 1
    most_depth: int = 0  # of objects and lists in each other; 0: any
    most_properties: int = 0  # all together; 0: any
    most_values: int = 0  # of one enum; 0: any


# Source: OpenAI's guide to structured outputs. In strict mode every object lists all its properties as required and
# takes no others, and a schema outside the subset is refused with a 400.
OPENAI_STRICT = Words(
    _NUMBERS | {"pattern", "format", "minItems", "maxItems"}, _FORMATS - {"uri"}, all_required=True,
    most_depth=10, most_properties=5_000, most_values=1_000,
)  # fmt: skip
# Source: Anthropic's guide to structured outputs, and what its official client leaves of a schema.
ANTHROPIC_FORMAT = Words(
    frozenset({"format", "minItems"}), _FORMATS, lists_types=False, recursive=False, few_items=True
)  # fmt: skip
# Source: the description of responseJsonSchema in Gemini's reference.
GEMINI_JSON = Words(
    frozenset({"format", "minimum", "maximum", "minItems", "maxItems", "prefixItems"}),
    frozenset({"date-time", "date", "time"}), closed=False, recursive=False,
)  # fmt: skip


@dataclass(slots=True)
class Fitted:
    """A schema to be sent, and which words of the given one are told in its descriptions instead."""

    schema: dict[str, Any]
    told: set[str] = field(default_factory=set)

    @property
    def note(self) -> str | None:
        if not self.told:
            return None
        return f"the schema binds answers without {', '.join(sorted(self.told))}: answers are held to all of it here"


def fit(schema: Mapping[str, Any], words: Words) -> Fitted:
    """``schema`` in ``words``; itself it stays as it is.

    Raises:
        Unfit: it cannot be said in them, or only by asking for what it leaves open.
    """
    fitter = _Fitter(schema, words)
    top = fitter.flat(schema)
    if top.get("type") != "object" or not top.keys().isdisjoint(_SHAPES):
        raise Unfit("the whole is not one kind of object")
    made = fitter.part(top)
    defs = fitter.defs_used(made)
    if not words.recursive and (name := _in_itself(defs)):
        raise Unfit(f"{name} may hold itself")
    if defs:
        made["$defs"] = defs
    _check_size(made, words)
    return Fitted(made, fitter.told)


def is_one_object(schema: Mapping[str, Any]) -> bool:
    """Whether the whole is an object, and said so at once: what every way of binding answers wants."""
    return schema.get("type") == "object" and schema.keys().isdisjoint((*_SHAPES, "not", "enum", "$ref"))


def told_in_prompt(messages: Sequence[Any], schema: Any) -> list[Any]:
    """``messages`` with the wish for an answer by ``schema`` behind what the system says."""
    told = json.dumps(schema, ensure_ascii=False)
    kind = "object" if isinstance(schema, Mapping) and schema.get("type") == "object" else "value"
    text = f"Answer with one JSON {kind} and nothing else. It must fit this JSON Schema: {told}"
    first = messages[0] if messages else None
    if isinstance(first, Mapping) and first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


class _Fitter:
    """One schema on its way into other words."""

    def __init__(self, schema: Mapping[str, Any], words: Words) -> None:
        self._words = words
        self.told: set[str] = set()
        self._defs = MappingProxyType({**schema.get("definitions", {}), **schema.get("$defs", {})})
        self._made: dict[str, Any] = {}

    def part(self, given: Any) -> dict[str, Any]:
        schema = self.flat(given)
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        words = self._words
        if "allOf" in schema:
            raise Unfit("it says allOf, and more than one thing in it")
        if words.closed and not schema.keys() & {"type", "enum", "const", *_SHAPES}:
            raise Unfit("a part may be anything")
        if isinstance(schema.get("type"), list) and not words.lists_types:
            return self.part(_by_type(schema))
        made = {key: schema[key] for key in ("title", "description") if key in schema}
        made |= self._values(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                made["anyOf"] = [self.part(each) for each in schema[key]]
        kinds = _kinds(schema)
        if "object" in kinds:
            made |= self._object(schema)
        if "array" in kinds:
            made |= self._array(schema)
        self._add_rest(schema, made)
        return made

    def defs_used(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """The definitions that ``made`` refers to, and those that they do."""
        found: dict[str, Any] = {}
        left = list(_references(made))
        while left:
            name = left.pop()
            if name not in found:
                found[name] = self._made[name]
                left += _references(found[name])
        return found

    def flat(self, given: Any) -> Mapping[str, Any]:
        """A part without a reference that says more than one, and without an allOf of one."""
        if given is True and not self._words.closed:
            return {}
        if not isinstance(given, Mapping):
            raise Unfit("a part may be anything" if given is True else "a part may be nothing")
        schema = {key: value for key, value in given.items() if key not in ("$defs", "definitions")}
        for _ in range(len(self._defs) + 2):
            if "$ref" in schema and len(schema.keys() - _UNSAID - {"title"}) > 1:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**self._named(schema["$ref"]), **rest}
            elif len(schema.get("allOf", ())) == 1 and isinstance(schema["allOf"][0], Mapping):
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                if rest.keys() & schema["allOf"][0].keys() - {"title", "description"}:
                    raise Unfit("it says allOf beside the same words")
                schema = {**schema["allOf"][0], **rest}
            else:
                return schema
        raise Unfit("a reference leads to itself")

    def _named(self, reference: Any) -> Mapping[str, Any]:
        found = self._defs.get(_name_of(reference))
        if not isinstance(found, Mapping):
            raise Unfit(f"{reference} refers to something else than a name in $defs")
        return found

    def _reference(self, reference: Any) -> dict[str, Any]:
        name, target = _name_of(reference), self._named(reference)
        if name not in self._made:
            self._made[name] = {}  # it may hold itself
            self._made[name] = self.part(target)
        return {"$ref": f"#/$defs/{name}"}

    def _values(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """What a part is: its type, or the values it may have; both where every part has to say its type."""
        made: dict[str, Any] = {}
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None and any(isinstance(value, Mapping | list) for value in values):
            raise Unfit("it has an enum of objects or lists")
        if "type" in schema:
            made["type"] = schema["type"]
        elif values is not None:
            kinds = list(dict.fromkeys(map(_kind_of, values)))
            if len(kinds) == 1 or self._words.lists_types:
                made["type"] = kinds[0] if len(kinds) == 1 else kinds
        if values is not None:
            made["enum"] = list(values)
        return made

    def _object(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        named = schema.get("properties", {})
        required = list(schema.get("required", ()))
        more = schema.get("additionalProperties", bool(schema.keys() & {"patternProperties"}) or None)
        made: dict[str, Any] = {"properties": {name: self.part(part) for name, part in named.items()}}
        if not self._words.closed:
            made |= {} if required == [] else {"required": required}
            if more is not None:
                made["additionalProperties"] = more if isinstance(more, bool) else self.part(more)
            return made if named else {key: value for key, value in made.items() if key != "properties"}
        if more not in (None, False) or (not named and more is None):
            raise Unfit("an object takes more properties than it names")
        if unnamed := [name for name in required if name not in named]:
            raise Unfit(f"{unnamed[0]} is required, but not described")
        if self._words.all_required:
            for name in named.keys() - set(required):
                if not self._may_stand(named[name]):
                    raise Unfit(f"{name} may be left out")
            required = list(named)
        return {**made, "required": required, "additionalProperties": False}

    def _may_stand(self, part: Any) -> bool:
        """Whether a property that may be left out can as well be there: null says so, or a value that stands for it."""
        if isinstance(part, Mapping) and "default" in part:
            return True
        return self._takes_null(part, len(self._defs) + 1)

    def _takes_null(self, part: Any, depth: int) -> bool:
        if not isinstance(part, Mapping) or depth < 0:
            return False
        if "$ref" in part:
            return self._takes_null(self._named(part["$ref"]), depth - 1)
        if "enum" in part or "const" in part:
            return None in part.get("enum", [part.get("const", 0)])
        kinds = part.get("type", ())
        if kinds == "null" or (isinstance(kinds, list) and "null" in kinds):
            return True
        return any(self._takes_null(each, depth - 1) for key in ("anyOf", "oneOf") for each in part.get(key, ()))

    def _array(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if "prefixItems" in schema:
            if "prefixItems" not in self._words.keys:
                raise Unfit("it says prefixItems")
            made["prefixItems"] = [self.part(each) for each in schema["prefixItems"]]
        if schema.get("items", True) is not True or self._words.closed:
            made["items"] = self.part(schema.get("items", True))
        return made

    def _add_rest(self, schema: Mapping[str, Any], made: dict[str, Any]) -> None:
        """Words that bind further: those that are taken, and the others in the description."""
        done = _ALWAYS | _UNSAID | {"properties", "items", "prefixItems", "anyOf", "oneOf", "allOf"}
        told: dict[str, Any] = {}
        for key, value in schema.items():
            if key not in done:
                (made if self._takes(key, value) else told)[key] = value
        if told:
            self.told |= told.keys()
            says = json.dumps(told, ensure_ascii=False)
            made["description"] = f"{made['description']} {says}" if made.get("description") else says

    def _takes(self, key: str, value: Any) -> bool:
        if key not in self._words.keys:
            return False
        match key:
            case "format":
                return value in self._words.formats
            case "pattern":
                return not any(each in value for each in _LOOKS_AROUND)
            case "minItems":
                return not self._words.few_items or value in (0, 1)
        return True


def _name_of(reference: Any) -> str:
    text = str(reference)
    return next((text.removeprefix(at) for at in ("#/$defs/", "#/definitions/") if text.startswith(at)), "")


def _kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a part says, or that its words are about."""
    said = schema.get("type")
    if said is not None:
        return frozenset((said,) if isinstance(said, str) else said)
    return frozenset(
        kind
        for kind, keys in (("object", ("properties", "required")), ("array", ("items", "prefixItems")))
        if any(key in schema for key in keys)
    )


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
    return "string"


_OF_KIND = MappingProxyType(
    {
        "object": frozenset({"properties", "required", "additionalProperties", "patternProperties", "minProperties"}),
        "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"}),
        "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
        "number": _NUMBERS,
        "integer": _NUMBERS,
    }
)


def _by_type(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A part of several types as a choice of parts of one type each."""
    if "enum" in schema or "const" in schema or not schema.keys().isdisjoint(_SHAPES):
        values = schema.get("enum", [schema.get("const")])
        if not schema.keys().isdisjoint(_SHAPES):
            raise Unfit("a part has several types and a choice")
        return {key: value for key, value in schema.items() if key not in ("type", "const")} | {"enum": values}
    of_some = frozenset().union(*_OF_KIND.values())
    choice = [
        {"type": kind, **{key: value for key, value in schema.items() if key in _OF_KIND.get(kind, ())}}
        for kind in schema["type"]
    ]
    return {key: value for key, value in schema.items() if key not in of_some | {"type"}} | {"anyOf": choice}


def _parts(schema: Any) -> Iterator[Any]:
    """The parts right under a made part."""
    for key in ("properties", "$defs"):
        yield from schema.get(key, {}).values()
    for key in (*_SHAPES, "prefixItems"):
        yield from schema.get(key, ())
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield schema[key]


def _references(schema: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        yield _name_of(schema["$ref"])
    for part in _parts(schema):
        yield from _references(part)


def _in_itself(defs: Mapping[str, Any]) -> str | None:
    """A definition that leads back to itself, if there is one."""
    reach = {name: set(_references(body)) for name, body in defs.items()}
    for name in defs:
        seen, left = set[str](), list(reach[name])
        while left:
            each = left.pop()
            if each not in seen:
                seen.add(each)
                left += reach.get(each, ())
        if name in seen:
            return name
    return None


def _check_size(made: Mapping[str, Any], words: Words) -> None:
    """Raises Unfit: it is larger than this way takes."""
    properties = 0
    left: list[tuple[Any, int]] = [(made, 1)]
    while left:
        schema, depth = left.pop()
        properties += len(schema.get("properties", ()))
        if words.most_depth and depth > words.most_depth:
            raise Unfit(f"its parts are nested more than {words.most_depth} deep")
        if words.most_values and len(schema.get("enum", ())) > words.most_values:
            raise Unfit(f"it has an enum of more than {words.most_values:,} values")
        deeper = depth + bool(schema.get("properties") or schema.get("items"))
        left += [(part, deeper) for part in _parts(schema)]
    if words.most_properties and properties > words.most_properties:
        raise Unfit(f"it has more than {words.most_properties:,} properties")
