"""The columns of a result: as they arrive, and as every output format shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from nightmill.sinks import vectors as vectors_
from nightmill.sinks.vectors import EMBEDDING, Vectors
from nightmill.types import NANOS_PER_USD

RESULT_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("success", pa.bool_()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("duration", pa.float64()),  # seconds
        ("error", pa.string()),
        ("error_kind", pa.string()),
        ("finish_reason", pa.string()),
        ("parsed", pa.string()),  # JSON text
        (EMBEDDING, pa.binary()),  # of jobs that ask for embeddings, in place of the response; see `vectors`
        ("model", pa.string()),
        ("provider", pa.string()),
        ("lane", pa.string()),
        ("tokens_cached", pa.int64()),
        ("cost_nanos", pa.int64()),
        ("cost_estimated", pa.bool_()),
        ("attempt", pa.int64()),
        ("shard", pa.string()),
        ("batch_id", pa.string()),
    ]
)
"""What `write` takes: one row a result, in input order; columns of the input may stand beside (`input_column`)."""

PARSED, COST, COST_USD = "parsed", "cost_nanos", "cost_usd"

_INT64 = range(-(2**63), 2**63)
_Kind = Literal["string", "integer", "number", "boolean", "json"]
_ARROW = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "json": pa.string(),
}
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Property:
    """A top-level property of the task's schema, and the table column that shows it."""

    name: str
    column: str
    kind: _Kind


def output_names(*, embeds: bool = False) -> list[str]:
    """Column names of an output that keeps ``parsed`` whole, in order; with those of embeddings where it ``embeds``."""
    names = [name for name in RESULT_SCHEMA.names if embeds or name != EMBEDDING]
    return [COST_USD if name == COST else name for name in names]


def input_column(name: str) -> str:
    """What a column of the input is called beside results."""
    return f"input.{name}"


def properties(schema: Mapping[str, Any] | None) -> tuple[Property, ...]:
    """One for each top-level property of ``schema``; a name that is taken gets ``parsed_`` in front."""
    found = _resolve(schema or {}, schema or {}).get("properties", {})
    taken = set(output_names())
    result: list[Property] = []
    for name, body in found.items():
        column = name
        while column in taken or (column != name and column in found):
            column = f"parsed_{column}"
        taken.add(column)
        result.append(Property(name, column, _kind(body, schema or {})))
    return tuple(result)


def table_schema(shown: tuple[Property, ...], vectors: Vectors | None = None) -> pa.Schema:
    """Columns of a table output: ``parsed`` gives way to one column a property, if there are any.

    Only a job that embeds has a column for ``vectors``.
    """
    fields: list[pa.Field] = []
    for column in RESULT_SCHEMA:
        if column.name == COST:
            fields.append(pa.field(COST_USD, pa.float64()))
        elif column.name == PARSED and shown:
            fields.extend(pa.field(each.column, _ARROW[each.kind]) for each in shown)
        elif column.name == EMBEDDING:
            fields.extend([pa.field(EMBEDDING, vectors_.arrow_type(vectors.size))] if vectors else [])
        else:
            fields.append(column)
    return pa.schema(fields)


def as_table(
    batch: pa.RecordBatch, shown: tuple[Property, ...], schema: pa.Schema, vectors: Vectors | None = None
) -> pa.RecordBatch:
    """``batch`` of `RESULT_SCHEMA` in the columns of `table_schema`; vectors are not copied. Raises SizesDiffer."""
    arrays: list[pa.Array] = []
    for name in RESULT_SCHEMA.names:
        column = batch.column(name)
        if name == COST:
            arrays.append(usd_column(column))
        elif name == PARSED and shown:
            arrays.extend(_property_columns(column, shown))
        elif name == EMBEDDING:
            arrays.extend([vectors_.lists(column, vectors.size)] if vectors else [])
        else:
            arrays.append(column)
    return pa.record_batch(arrays, schema=schema)


def usd_column(nanos: pa.Array) -> pa.Array:
    """Nano-dollars as dollars."""
    return pc.divide(nanos.cast(pa.float64(), safe=False), float(NANOS_PER_USD))


def _property_columns(parsed: pa.Array, shown: tuple[Property, ...]) -> list[pa.Array]:
    decode = msgspec.json.Decoder().decode
    answers = [None if text is None else decode(text) for text in parsed.to_pylist()]
    # An answer that is no object has no properties to show; `response` still holds it.
    rows = [answer if isinstance(answer, dict) else {} for answer in answers]
    return [pa.array([_cell(row.get(each.name), each.kind) for row in rows], _ARROW[each.kind]) for each in shown]


def _cell(value: Any, kind: _Kind) -> Any:
    """``value`` for a column of ``kind``; null where the column cannot hold it (`response` does)."""
    if value is None:
        return None
    match kind:
        case "json":
            return _encode(value).decode()
        case "string":
            return value if isinstance(value, str) else None
        case "boolean":
            return value if isinstance(value, bool) else None
        case "number":
            return float(value) if type(value) in (int, float) and abs(value) < 1e308 else None
        case "integer":
            # JSON Schema counts 3.0 among the integers.
            whole = int(value) if type(value) is int or (type(value) is float and value.is_integer()) else None
            return whole if whole is not None and whole in _INT64 else None


def _kind(body: Any, root: Mapping[str, Any]) -> _Kind:
    body = _resolve(body, root)
    choices = [_resolve(each, root) for each in body.get("anyOf", body.get("oneOf", ()))] or [body]
    kinds = {kind for choice in choices for kind in _kinds(choice)} - {"null"}
    if len(kinds) != 1:
        return "number" if kinds == {"integer", "number"} else "json"
    match kinds.pop():
        case "string":
            return "string"
        case "integer":
            return "integer"
        case "number":
            return "number"
        case "boolean":
            return "boolean"
    return "json"


def _kinds(body: Mapping[str, Any]) -> set[str]:
    """The JSON types that a subschema allows; ``any`` when it does not say."""
    if "type" in body:
        named = body["type"]
        return set(named) if isinstance(named, list) else {named}
    values = body.get("enum", [body["const"]] if "const" in body else [])
    words = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {words.get(type(value), "any") for value in values} or {"any"}


def _resolve(body: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """``body`` with a reference into the schema itself followed; {} for anything else."""
    for _ in range(16):  # references may go in a circle
        if not isinstance(body, Mapping):
            return {}
        reference = body.get("$ref")
        if not isinstance(reference, str):
            return body
        if not reference.startswith("#"):
            return {}
        target: Any = root
        for step in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            name = step.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, Mapping) else None
        body = target
    return {}
