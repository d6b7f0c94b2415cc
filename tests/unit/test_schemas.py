"""A schema in the words of each provider: what fits those fits the schema, and each provider's own rules are kept."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import jsonschema_rs
import pytest
from anthropic.lib._parse._transform import transform_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib._pydantic import _ensure_strict_json_schema

from nightmill.errors import UsageError
from nightmill.providers._schemas import ANTHROPIC_FORMAT, GEMINI_JSON, OPENAI_STRICT, Unfit, Words, fit
from nightmill.providers.openai import OpenAI
from nightmill.simulator.instances import Unsatisfiable, instance
from nightmill.simulator.openai.strict import check

pytestmark = pytest.mark.req("X5")

WAYS = {"openai": OPENAI_STRICT, "anthropic": ANTHROPIC_FORMAT, "gemini": GEMINI_JSON}
TEXT = {"type": "string"}
NAMED = {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


# -- any schema, and the rules of others ------------------------------------------------------

_NOTE = st.fixed_dictionaries({}, optional={"description": st.sampled_from(["a word", ""]), "title": st.just("T")})
_LEAF = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(10, 20),
            "format": st.sampled_from(["date"]),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={"minimum": st.integers(-5, 5), "maximum": st.integers(6, 20), "default": st.just(7)},
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "x"}, {"enum": ["a", "b", None]}, {"enum": [1]}]),
    st.sampled_from([{"type": ["string", "null"]}, {"$ref": "#/$defs/D"}, {"$ref": "#/$defs/D", "description": "d"}]),
    st.sampled_from([True, {}, {"type": "object"}, {"type": "array"}]),
)


def _wider(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from("abcd"), parts, max_size=3)
    objects = st.builds(_object, named, st.sets(st.sampled_from("abcd")), st.sampled_from([None, None, False, True]))
    lists = st.builds(
        lambda items, more: {"type": "array", "items": items, **more}, parts,
        st.fixed_dictionaries({}, optional={"minItems": st.integers(0, 2), "maxItems": st.integers(2, 4)}),
    )  # fmt: skip
    choices = st.builds(
        lambda key, each: {key: each}, st.sampled_from(["anyOf", "allOf"]), st.lists(parts, min_size=1, max_size=2)
    )
    return st.builds(lambda made, note: {**note, **made}, st.one_of(objects, lists, choices), _NOTE)


def _object(named: dict[str, Any], required: set[str], more: bool | None) -> dict[str, Any]:
    made = {"type": "object", "properties": named, "required": sorted(required & named.keys())}
    return made if more is None else {**made, "additionalProperties": more}


SCHEMAS = st.builds(
    lambda named, required, target: {**_object(named, required, None), "$defs": {"D": target}},
    st.dictionaries(st.sampled_from("abcd"), st.recursive(_LEAF, _wider, max_leaves=8), min_size=1, max_size=3),
    st.sets(st.sampled_from("abcd"), min_size=2),
    st.recursive(_LEAF, _wider, max_leaves=3).filter(lambda part: "$ref" not in json.dumps(part)),
)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, way=st.sampled_from(sorted(WAYS)), seed=st.integers(1, 1_000))
def test_an_answer_to_what_is_sent_is_one_to_what_was_given(schema: dict[str, Any], way: str, seed: int) -> None:
    """Whoever keeps what a provider binds, and what its descriptions tell, keeps the user's own schema."""
    before = copy.deepcopy(schema)
    try:
        fitted = fit(schema, WAYS[way])
        answer = instance(fitted.schema, seed)
    except (Unfit, Unsatisfiable):
        return
    finally:
        assert schema == before
    assert jsonschema_rs.is_valid(schema, answer), (fitted.schema, answer)
    assert json.loads(json.dumps(fitted.schema)) == fitted.schema


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS)
def test_strict_schemas_keep_the_rules_of_the_official_client(schema: dict[str, Any]) -> None:
    """OpenAI's own client would change nothing of what is sent as strict, and a strict server takes it."""
    try:
        made = fit(schema, OPENAI_STRICT).schema
    except Unfit:
        return
    assert _ensure_strict_json_schema(copy.deepcopy(made), path=(), root=copy.deepcopy(made)) == made
    check(made)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS)
def test_output_formats_keep_the_rules_of_the_official_client(schema: dict[str, Any]) -> None:
    """Anthropic's own client would leave out nothing of what is sent as an output format."""
    try:
        made = fit(schema, ANTHROPIC_FORMAT).schema
    except Unfit:
        return
    assert _bare(transform_schema(copy.deepcopy(made))) == _bare(made)


def _bare(schema: Any) -> Any:
    """Without the type of what has an enum, which that client leaves out, and the order of what is in any."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _bare(value) for key, value in schema.items()}
    return {key: value for key, value in kept.items() if not (key == "type" and "enum" in kept)}


# -- single rules -----------------------------------------------------------------------------


def test_objects_are_closed_at_every_depth() -> None:
    """Objects in lists, choices and definitions are closed, too."""
    given_ = of(l={"type": "array", "items": NAMED}, c={"anyOf": [NAMED, {"type": "null"}]}, r={"$ref": "#/$defs/D"})
    made = fit({**given_, "$defs": {"D": NAMED, "Unused": {"not": {}}}}, OPENAI_STRICT).schema
    closed = {**NAMED, "additionalProperties": False}
    assert made["additionalProperties"] is False
    assert made["properties"]["l"]["items"] == closed
    assert made["properties"]["c"]["anyOf"][0] == closed
    assert made["$defs"] == {"D": closed}


@pytest.mark.parametrize(
    "part",
    [{"anyOf": [TEXT, {"type": "null"}], "default": None}, {"type": ["string", "null"]}, {**TEXT, "default": "x"},
     {"enum": ["a", None]}, {"$ref": "#/$defs/N"}],
)  # fmt: skip
def test_what_may_be_left_out_is_required_where_the_schema_has_a_value_for_that(part: dict[str, Any]) -> None:
    """Null, or a default: a strict answer says it, and that is an answer to the schema as it was given."""
    schema = {**of(a=TEXT), "$defs": {"N": {"type": ["integer", "null"]}}}
    schema["properties"]["b"] = part
    made = fit(schema, OPENAI_STRICT).schema
    assert made["required"] == ["a", "b"]
    assert fit(schema, ANTHROPIC_FORMAT).schema["required"] == ["a"]
    assert jsonschema_rs.is_valid(schema, instance(made, 5))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({**NAMED, "required": []}, "a may be left out"),
        ({**NAMED, "additionalProperties": True}, "more properties"),
        (of(a={"type": "object", "additionalProperties": TEXT}), "more properties"),
        (of(a={}), "may be anything"),
        (of(a=False), "may be nothing"),
        (of(a={"type": "array"}), "may be anything"),
        (of(a={"type": "array", "prefixItems": [TEXT], "items": TEXT}), "prefixItems"),
        (of(a={"allOf": [NAMED, NAMED]}), "allOf"),
        (of(a={"$ref": "other.json"}), "something else than a name"),
        (of(a={"enum": [{"x": 1}]}), "enum of objects"),
        ({**NAMED, "required": ["a", "z"]}, "z is required"),
        ({"type": "array", "items": TEXT}, "not one kind of object"),
        ({"anyOf": [NAMED, NAMED]}, "not one kind of object"),
        (of(a={"enum": list(range(1_001))}), "more than 1,000 values"),
    ],
)
def test_what_strict_mode_would_change_or_refuse_is_told_apart(schema: dict[str, Any], why: str) -> None:
    """A schema that would mean something else, or be refused, is not said to be strict, for a reason."""
    with pytest.raises(Unfit, match=why):
        fit(schema, OPENAI_STRICT)


def test_deep_schemas_are_told_apart() -> None:
    """Strict schemas are ten deep at most."""
    deep: dict[str, Any] = TEXT
    for _ in range(11):
        deep = of(a=deep)
    with pytest.raises(Unfit, match="deep"):
        fit(deep, OPENAI_STRICT)
    assert fit(deep, GEMINI_JSON).schema


TREE = {
    "type": "object", "properties": {"name": TEXT, "below": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
    "required": ["name", "below"],
}  # fmt: skip


def test_what_holds_itself_is_bound_where_that_is_taken() -> None:
    """OpenAI takes a tree; the others are told of it in the prompt."""
    schema = {**TREE, "$defs": {"Tree": TREE}}
    made = fit(schema, OPENAI_STRICT).schema
    assert made["$defs"]["Tree"]["properties"]["below"]["items"] == {"$ref": "#/$defs/Tree"}
    for words in (ANTHROPIC_FORMAT, GEMINI_JSON):
        with pytest.raises(Unfit, match="Tree may hold itself"):
            fit(schema, words)


@pytest.mark.parametrize(
    ("words", "told"),
    [(OPENAI_STRICT, {"maxLength", "uniqueItems"}),
     (ANTHROPIC_FORMAT, {"maxLength", "maxItems", "uniqueItems", "minimum"}),
     (GEMINI_JSON, {"maxLength", "uniqueItems"})],
    ids=list(WAYS),
)  # fmt: skip
def test_what_cannot_be_bound_is_told(words: Words, told: set[str]) -> None:
    """What a provider has no word for stands in the description, and the note says so."""
    listed = {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 3, "uniqueItems": True}
    fitted = fit(of(word={**TEXT, "maxLength": 9, "description": "One."}, n=listed), words)
    assert fitted.told == told
    assert fitted.schema["properties"]["word"] == {**TEXT, "description": 'One. {"maxLength": 9}'}
    assert fitted.note
    assert all(word in fitted.note for word in told)


# -- as requests ------------------------------------------------------------------------------


def sent(
    field: str, schema: dict[str, Any], *user_set: str, **more: Any
) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
    """The format of a request to OpenAI with that schema, the notes, and the whole."""
    form = {"type": "json_schema", "name": "n", "schema": schema, **more}
    asks: dict[str, Any] = {"input": "x", "max_output_tokens": 50, "text": {"format": form}}
    if field == "response_format":
        chat = [{"role": "user", "content": "x"}]
        named = {key: value for key, value in form.items() if key != "type"}
        asks = {"messages": chat, field: {"type": "json_schema", "json_schema": named}}
    encoded = OpenAI("gpt-4o-mini", key="k").encode(asks, frozenset({field, *user_set}))
    body = json.loads(encoded.body)
    found = body.get(field, {})
    return cast(Any, found.get("json_schema") or found.get("format")), encoded.notes, body


@pytest.mark.parametrize("field", ["response_format", "text"])
def test_a_schema_of_the_users_is_bound_as_closely_as_can_be(field: str) -> None:
    """Strict where that says the same; else as it is with a note; else in the prompt."""
    bound, notes, _ = sent(field, NAMED, "schema")
    assert (bound["strict"], bound["schema"]["additionalProperties"]) == (True, False)
    assert not any("schema" in note for note in notes)
    open_ = {**NAMED, "required": []}
    loose, notes, _ = sent(field, open_, "schema")
    assert "strict" not in loose
    assert loose["schema"] == open_
    assert any("a may be left out" in note for note in notes)
    none, notes, body = sent(field, {"type": "array", "items": TEXT}, "schema")
    assert none is None
    assert '"items": {"type": "string"}' in json.dumps(body).replace('\\"', '"')
    assert any("said in the prompt" in note for note in notes)


@pytest.mark.parametrize("field", ["response_format", "text"])
@pytest.mark.parametrize("more", [{}, {"strict": True}, {"strict": False}])
def test_the_format_of_a_row_that_is_a_request_is_sent_as_it_is(field: str, more: dict[str, Any]) -> None:
    """Also where it says nothing of how strict it is."""
    kept, _, _ = sent(field, {**NAMED, "required": []}, **more)
    assert {key: kept.get(key) for key in ("schema", "strict")} == {
        "schema": {**NAMED, "required": []}, "strict": more.get("strict"),
    }  # fmt: skip


def test_an_unknown_model_is_no_reason_to_fall_silent() -> None:
    """A request without messages is refused before its schema is looked at."""
    with pytest.raises(UsageError):
        OpenAI("gpt-4o-mini", key="k").encode({"messages": []}, frozenset({"schema"}))
