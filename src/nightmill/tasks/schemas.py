"""Output schemas: where they come from, whether they are sound, and whether an answer fits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import jsonschema_rs
import msgspec

from nightmill.errors import TaskError
from nightmill.tasks.importing import import_name

_SHOWN = 160  # characters of what is said of a place
_COUNTED = 10  # errors of an answer that are counted


def load_schema(spec: str | Path | type | Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema from a ``.json`` file, ``module:Class``, a class, or a schema itself, as JSON or as it is.

    A class is a Pydantic model, a dataclass, a TypedDict or a msgspec Struct; a module is found
    on the import path, with the working folder first.

    Raises:
        TaskError: it cannot be found, is no JSON Schema, or refers to another file or address.
    """
    match spec:
        case Mapping():
            return check_schema(dict(spec), "the schema")
        case type():
            return check_schema(_from_class(spec, spec.__name__), spec.__name__)
    text = str(spec)
    if isinstance(spec, str) and text.lstrip().startswith("{"):
        return check_schema(_decoded(text.encode(), "the schema"), "the schema")
    if not isinstance(spec, Path) and ":" in text and not text.lower().endswith(".json"):
        return check_schema(_from_class(import_name(text, "schema class"), text), text)
    return check_schema(_from_file(Path(spec)), text)


def check_schema(schema: Any, name: str) -> dict[str, Any]:
    """``schema`` itself, if it is a sound JSON Schema that needs nothing from outside; else TaskError."""
    if not isinstance(schema, dict):
        raise TaskError(f"{name} is no JSON Schema", why="it is not an object", fix='write {"type": "object", …}')
    _validator(schema, name)
    return schema


def check_answer(schema: Mapping[str, Any]) -> Callable[[str], tuple[Any | None, str | None]]:
    """A function from an answer's text to ``(value, None)``, or to ``(None, what is wrong with it)``.

    Strict: the answer is the JSON, with nothing around it but blanks; formats count. What is wrong is told of one
    place, in few words: a value that is long is not repeated.
    """
    validator = _validator(dict(schema), "the schema")
    decode = msgspec.json.Decoder().decode

    def check(text: str) -> tuple[Any | None, str | None]:
        try:
            value = decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return None, f"not JSON: {error}"
        try:
            return (value, None) if validator.is_valid(value) else (None, _told(schema, validator, value))
        except ValueError as error:  # deeper than the validator goes
            return None, f"$: {error}"

    return check


def _told(schema: Mapping[str, Any], validator: jsonschema_rs.Validator, value: Any) -> str:
    """The first thing that is wrong with ``value``, and how many there are."""
    errors = list(islice(validator.iter_errors(value), _COUNTED))
    inner = _innermost(errors[0])
    message = inner.message
    if len(message) > _SHOWN:  # it quotes the value
        blind = _validator(dict(schema), "the schema", mask="it")
        message = _innermost(next(blind.iter_errors(value))).message
    message = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"
    more = f" (and {len(errors) - 1} more)" if 1 < len(errors) < _COUNTED else ""
    return f"{_json_path(inner.instance_path)}: {message}{more or (' (and more)' if len(errors) == _COUNTED else '')}"


def _innermost(error: jsonschema_rs.ValidationError) -> jsonschema_rs.ValidationError:
    """Of a value that is none of several kinds: what keeps it from the kind that it comes closest to."""
    while branches := [branch for branch in getattr(error.kind, "context", ()) if branch]:
        closest = max(branches, key=lambda branch: max(len(each.instance_path) for each in branch))
        deepest = max(closest, key=lambda each: len(each.instance_path))
        if len(deepest.instance_path) <= len(error.instance_path):
            return error
        error = deepest
    return error


def _validator(schema: dict[str, Any], name: str, mask: str | None = None) -> jsonschema_rs.Validator:
    """For the draft that the schema names, else 2020-12."""
    try:
        return jsonschema_rs.validator_for(schema, retriever=_refuse_remote, validate_formats=True, mask=mask)
    except jsonschema_rs.ValidationError as error:
        where = _json_path(error.instance_path)
        raise TaskError(
            f"{name} is no valid JSON Schema", why=f"{where}: {error.message[:_SHOWN]}", fix="correct the schema"
        ) from error


def _refuse_remote(uri: str) -> Any:
    raise ValueError(f"nothing outside the schema is fetched ({uri}): copy it into $defs")


def _json_path(path: list[str | int]) -> str:
    return "$" + "".join(map(_json_step, path))


def _json_step(step: str | int) -> str:
    if isinstance(step, str) and step.isidentifier():
        return f".{step}"
    return f"[{step}]" if isinstance(step, int) else f"[{json.dumps(step, ensure_ascii=False)}]"


def _from_file(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"{path}: the schema cannot be read",
            why=error.strerror or str(error),
            fix="name a .json file with a JSON Schema, or module:Class",
        ) from error
    return _decoded(data, str(path))


def _decoded(data: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise TaskError(f"{name} is no JSON", why=str(error), fix="correct it") from error


def _from_class(found: object, name: str) -> Any:
    if isinstance(found, Mapping):
        return dict(found)
    if not isinstance(found, type):
        raise TaskError(
            f"{name} gives no schema",
            why=f"it is a {type(found).__name__}, not a class",
            fix="name a Pydantic model, a dataclass or a TypedDict, or a .json file",
        )
    try:
        return _inline_root(_described(found))
    except (TypeError, RuntimeError, RecursionError) as error:  # the first two are Pydantic's and msgspec's own
        raise TaskError(
            f"{name} gives no schema",
            why=next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__),
            fix="name a Pydantic model, a dataclass or a TypedDict whose fields have types that JSON has",
        ) from error


def _described(kind: type) -> dict[str, Any]:
    """The schema of a class, by whoever knows it: Pydantic its own, and those that hold some of them."""
    if hasattr(kind, "model_json_schema"):
        return cast(dict[str, Any], kind.model_json_schema())
    if not hasattr(kind, "__pydantic_validator__"):
        try:
            return msgspec.json.schema(kind)
        except TypeError:
            if "pydantic" not in sys.modules:
                raise
    from pydantic import TypeAdapter

    return TypeAdapter(kind).json_schema()


def _inline_root(schema: dict[str, Any]) -> dict[str, Any]:
    """Put the class itself at the top: providers want an object there, not a reference to one."""
    reference = schema.get("$ref", "")
    definitions = schema.get("$defs", {})
    root = definitions.get(reference.removeprefix("#/$defs/"))
    if root is None:
        return schema
    # A class that refers to itself is still needed under its own name.
    kept = {name: body for name, body in definitions.items() if body is not root or _refers(definitions, reference)}
    return {**root, "$defs": kept} if kept else dict(root)


def _refers(value: Any, reference: str) -> bool:
    if isinstance(value, dict):
        return value.get("$ref") == reference or any(_refers(part, reference) for part in value.values())
    return isinstance(value, list) and any(_refers(part, reference) for part in value)
