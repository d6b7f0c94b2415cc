"""Output schemas: where they come from, whether they are sound, and whether an answer fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec

from nightmill.errors import TaskError
from nightmill.tasks.importing import import_name

_SHOWN = 300  # characters of a validator's message, which quotes the whole value


def load_schema(spec: str | Path | type | Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema from a ``.json`` file, ``module:Class``, a class, or a schema itself.

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

    Strict: the answer is the JSON, with nothing around it but blanks.
    """
    validator = _validator(dict(schema), "the schema")
    decode = msgspec.json.Decoder().decode

    def check(text: str) -> tuple[Any | None, str | None]:
        try:
            value = decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return None, f"not JSON: {error}"
        if validator.is_valid(value):
            return value, None
        first = next(validator.iter_errors(value))
        message = first.message if len(first.message) <= _SHOWN else first.message[:_SHOWN] + "…"
        return None, f"{_json_path(first.instance_path)}: {message}"

    return check


def _validator(schema: dict[str, Any], name: str) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(schema, retriever=_refuse_remote)
    except jsonschema_rs.ValidationError as error:
        where = _json_path(error.instance_path)
        raise TaskError(
            f"{name} is no valid JSON Schema", why=f"{where}: {error.message[:_SHOWN]}", fix="correct the schema"
        ) from error


def _refuse_remote(uri: str) -> Any:
    raise ValueError(f"nothing outside the schema is fetched ({uri}): copy it into $defs")


def _json_path(path: list[str | int]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _from_file(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"{path}: the schema cannot be read",
            why=error.strerror or str(error),
            fix="name a .json file with a JSON Schema, or module:Class",
        ) from error
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise TaskError(f"{path} is no JSON", why=str(error), fix="correct the file") from error


def _from_class(found: object, name: str) -> Any:
    if isinstance(found, Mapping):
        return dict(found)
    if not isinstance(found, type):
        raise TaskError(
            f"{name} gives no schema",
            why=f"it is a {type(found).__name__}, not a class",
            fix="name a Pydantic model, a dataclass or a TypedDict, or a .json file",
        )
    if hasattr(found, "model_json_schema"):
        return _inline_root(found.model_json_schema())
    try:
        return _inline_root(msgspec.json.schema(found))
    except TypeError as error:
        raise TaskError(
            f"{name} gives no schema",
            why=str(error).splitlines()[-1],
            fix="name a Pydantic model, a dataclass or a TypedDict whose fields have types that JSON has",
        ) from error


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
