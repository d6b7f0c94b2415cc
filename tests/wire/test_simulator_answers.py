"""The simulator's parts that need no socket: instances of schemas, answers, prices."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema_rs
import pytest
from genai_prices import Usage, calc_price
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_kit import CHAT, DATA, MODEL, chat_body

from nightmill.simulator.answering import Model
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.config import Clock, SimulatorConfig
from nightmill.simulator.instances import Unsatisfiable, instance
from nightmill.simulator.openai.answering import Answers, prompt_tokens
from nightmill.simulator.openai.http_live import duration

CATALOGUE = Catalogue(extra=("house-model",))

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}, "ok": {"type": "boolean"}},
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    "bounds": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 3, "maximum": 4},
            "b": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
            "c": {"type": "string", "minLength": 30, "maxLength": 31},
            "d": {"type": "integer", "exclusiveMinimum": -2, "exclusiveMaximum": 0},
            "e": {"type": "integer", "multipleOf": 7, "minimum": 15},
            "f": {"type": "number", "maximum": -5},
            "g": {"type": "integer", "maximum": -5},
            "h": {"type": "number", "minimum": 2, "maximum": 2},
            "i": {"type": "number", "multipleOf": 0.5, "minimum": 1.1, "maximum": 1.6},
        },
        "required": list("abcdefghi"),
    },
    "arrays": {
        "type": "array",
        "items": {"enum": ["red", "green", 3, None, {"x": 1}]},
        "minItems": 2,
        "maxItems": 5,
        "uniqueItems": True,
    },
    "tuple": {"type": "array", "prefixItems": [{"const": "v1"}, {"type": "integer"}], "minItems": 2, "maxItems": 2},
    "choices": {
        "anyOf": [{"type": "string", "format": "date"}, {"type": "null"}, {"$ref": "#/$defs/n"}],
        "$defs": {"n": {"type": "number"}},
    },
    "one of": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "all of": {
        "allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["b"]}]
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "children", "next"],
                "additionalProperties": False,
            }
        },
    },
    "root ref": {
        "type": "object",
        "properties": {"more": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["more"],
    },
    "formats": {
        "type": "object",
        "properties": {f: {"type": "string", "format": f} for f in ("date-time", "email", "uuid", "ipv4", "time")},
        "required": ["date-time", "email", "uuid", "ipv4", "time"],
    },
    "dictionary": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    "no type": {"properties": {"a": {"minimum": 4}}, "required": ["a"]},
    "anything": {},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_instances_fit_their_schema(name: str) -> None:
    """Whatever the seed, the made instance is valid by a validator we did not write, and stays short."""
    schema = SCHEMAS[name]
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    for seed in range(200):
        made = instance(schema, seed)
        assert validator.is_valid(made), made
        assert len(json.dumps(made)) < 50_000
        assert instance(schema, seed) == made


_LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-9, 9).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 4}),
    st.integers(-9, 9).map(lambda low: {"type": "number", "exclusiveMinimum": low, "maximum": low + 0.25}),
    st.integers(0, 30).map(lambda least: {"type": "string", "minLength": least, "maxLength": least + 2}),
    st.lists(st.text(max_size=5) | st.integers(), min_size=1, max_size=4).map(lambda values: {"enum": values}),
)


def _bigger(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        parts.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 3}),
        st.lists(parts, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.dictionaries(st.sampled_from("abcd"), parts, max_size=4).map(
            lambda p: {"type": "object", "properties": p, "required": sorted(p), "additionalProperties": False}
        ),
    )


@settings(max_examples=150, deadline=None)
@given(schema=st.recursive(_LEAVES, _bigger, max_leaves=12), seed=st.integers(0, 2**64 - 1))
def test_instances_fit_any_schema(schema: dict[str, Any], seed: int) -> None:
    """Schemas of all the supported parts, put together any way, get a valid instance."""
    assert jsonschema_rs.validator_for(schema).is_valid(instance(schema, seed))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a+$"},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
        {"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2},
        {"type": "soup"},
    ],
    ids=str,
)
def test_a_schema_without_an_instance_is_said_so(schema: dict[str, Any]) -> None:
    """What cannot be made raises, and is a 400 on the wire: never an invalid instance."""
    with pytest.raises(Unsatisfiable):
        instance(schema, 1)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    reply = Answers(Model(SimulatorConfig()), CATALOGUE).answer(CHAT, _raw(response_format=form), created=1)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "invalid_json_schema")


def _raw(text: str = "hello", **more: Any) -> bytes:
    return json.dumps(chat_body(text, **more)).encode()


def _choice(raw: bytes, config: SimulatorConfig | None = None, **how: Any) -> dict[str, Any]:
    reply = Answers(Model(config or SimulatorConfig()), CATALOGUE).answer(CHAT, raw, created=1, **how)
    return dict(json.loads(reply.body)["choices"][0])


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), cap=st.integers(1, 80))
@settings(max_examples=100, deadline=None)
def test_caps_and_counts_hold_for_any_text(text: str, cap: int) -> None:
    """Prompt tokens stay under the bytes plus framing, output under the cap, and `length` means cut."""
    raw = _raw(text, max_tokens=cap)
    reply = Answers(Model(SimulatorConfig(answer_tokens=40)), CATALOGUE).answer(CHAT, raw, created=1)
    usage, choice = json.loads(reply.body)["usage"], json.loads(reply.body)["choices"][0]
    assert usage["prompt_tokens"] == prompt_tokens(CHAT, raw) <= len(text.encode()) + 3
    assert usage["completion_tokens"] == -(-len(choice["message"]["content"].encode()) // 4) <= cap
    if choice["finish_reason"] == "length":
        assert usage["completion_tokens"] == cap
    else:
        assert choice["message"]["content"].endswith(".")


def test_lengths_follow_the_configuration() -> None:
    """The median length is the configured one; without spread every answer is equally long."""

    def tokens(config: SimulatorConfig) -> list[int]:
        return [-(-len(_choice(_raw(str(i)), config)["message"]["content"]) // 4) for i in range(400)]

    assert 90 <= median(tokens(SimulatorConfig(answer_tokens=100))) <= 110
    assert len(set(tokens(SimulatorConfig(answer_tokens=100)))) > 50
    assert set(tokens(SimulatorConfig(answer_tokens=100, answer_sigma=0.0))) <= {99, 100}


def test_answers_differ_by_body_and_not_by_time() -> None:
    """Texts depend on the body's bytes alone."""
    texts = {_choice(_raw(str(i)))["message"]["content"] for i in range(500)}
    assert len(texts) == 500
    model = Answers(Model(SimulatorConfig()), CATALOGUE)
    one, two = (json.loads(model.answer(CHAT, _raw(), created=when).body) for when in (1, 2))
    assert one.pop("created") != two.pop("created")
    assert one == two


def test_recorded_request_lines_are_answered() -> None:
    """The documented sample lines are requests the simulator accepts."""
    model = Answers(Model(SimulatorConfig()), CATALOGUE)
    for name in ("openai_input_chat.jsonl", "openai_input_embeddings.jsonl"):
        for raw in Path(DATA / "wire" / name).read_bytes().splitlines():
            item = json.loads(raw)
            assert model.answer(item["url"], json.dumps(item["body"]).encode(), created=1).status == 200


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("model", ["gpt-5-mini", MODEL, "gpt-5.4", "gpt-6-luna", "o3", "text-embedding-3-small"])
@pytest.mark.parametrize("tokens", [(1, 1), (17, 0), (1234, 567), (272_000, 1), (272_001, 1), (900_000, 33_333)])
def test_prices_are_those_of_the_catalogue(model: str, batch: bool, tokens: tuple[int, int]) -> None:
    """Resolved rates give what genai-prices gives for the same request, tiers included, rounded half up once."""
    card = CATALOGUE.card(model, batch=batch)
    assert card is not None
    price = calc_price(
        Usage(input_tokens=tokens[0], output_tokens=0 if model.startswith("text") else tokens[1]),
        model_ref=model,
        provider_id="openai",
        price_context={"processing": "batch"} if batch else None,
    ).total_price
    exact = int((price * Decimal(10**9)).quantize(Decimal(1), ROUND_HALF_UP))
    assert card.nanos(*tokens) == exact


def test_a_batch_is_half_price() -> None:
    """The batch context is one the catalogue knows: a typo there would silently be the full price."""
    batch, live = (CATALOGUE.card("gpt-5-mini", batch=lane) for lane in (True, False))
    assert batch is not None
    assert live is not None
    assert 2 * batch.nanos(1000, 1000) == live.nanos(1000, 1000) > 0


def test_extra_models_are_free_and_others_unknown() -> None:
    """A configured model exists and costs nothing; one nobody knows does not exist."""
    card = CATALOGUE.card("house-model", batch=True)
    assert card is not None
    assert card.nanos(10**6, 10**6) == 0
    assert not CATALOGUE.knows("gpt-none")
    assert "house-model" in CATALOGUE.names()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.014, "14ms"), (8.64, "8.64s"), (59.0, "59s"), (360, "6m0s"), (3725, "62m5s")]
)
def test_durations_are_written_as_the_provider_does(seconds: float, text: str) -> None:
    """Reset headers look like 14ms, 8.64s, 6m0s."""
    assert duration(seconds) == text


def test_provider_seconds_are_compressed_and_stamps_are_not() -> None:
    """Speed shortens waits; time stamps stay on the wall clock, moved by the skew alone."""
    clock = Clock(speed=1000, skew_s=7200)
    assert clock.real_s(60) == pytest.approx(0.06)
    assert 7100 < clock.unix() - Clock().unix() < 7300
    with pytest.raises(ValueError, match="speed"):
        Clock(speed=0)
