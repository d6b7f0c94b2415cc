"""Canonical requests in Anthropic's words, judged by Anthropic's own types."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from anthropic.types import TextBlockParam, ToolResultBlockParam, ToolUseBlockParam
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.messages.batch_create_params import BatchCreateParams
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from nightmill.errors import CannotCarry
from nightmill.plan import Compiled, Parameters, content_of
from nightmill.pricing import estimate_tokens
from nightmill.providers import BatchProvider, Encoded, LiveProvider, OpenBatches, UntaggedBatches
from nightmill.providers.resolve import resolve
from nightmill.tasks import Task, bind

HAIKU, SONNET_5 = "claude-haiku-4-5", "claude-sonnet-5"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ping ✓ \r\n\u2028 😀"}]
DEFAULTS = {"temperature": 0.3, "max_completion_tokens": 2000}
ENTRY = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 1}, "of": {"$ref": "#/$defs/W"}},
    "required": ["n"], "$defs": {"W": {"type": "object", "properties": {"w": {"type": "string", "maxLength": 9}}}},
}  # fmt: skip
SCHEMA = {"type": "json_schema", "json_schema": {"name": "e", "strict": True, "schema": ENTRY}}
BODY, CREATE = TypeAdapter(MessageCreateParamsNonStreaming), TypeAdapter(BatchCreateParams)
BLOCKS = TypeAdapter(list[TextBlockParam | ToolUseBlockParam | ToolResultBlockParam])
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}


def provider(model: str) -> Any:
    return resolve(f"anthropic/{model}", env={"ANTHROPIC_API_KEY": "k"})


def encode(model: str, request: dict[str, Any], *user_set: str) -> tuple[dict[str, Any], Encoded]:
    encoded = provider(model).encode(request, frozenset(user_set))
    return json.loads(encoded.body), encoded


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [*messages] or MESSAGES, **DEFAULTS, **more}


def judged(body: bytes) -> list[Any]:
    """The turns of a body as Anthropic's client types it; raises where anything in it does not fit."""
    whole = BODY.validate_json(body)
    list(whole.get("tools", ()))  # checked only as they are gone through, like the turns
    for turn in json.loads(body)["messages"]:
        if not isinstance(turn["content"], str):
            BLOCKS.validate_python(turn["content"])
    return [{"role": turn["role"]} for turn in whole["messages"]]


def test_both_lanes_are_offered_and_no_batch_carries_a_tag() -> None:
    """It answers live and in batches of 100,000, which are known by time and size alone, and show no requests."""
    made = provider(HAIKU)
    assert isinstance(made, LiveProvider)
    assert isinstance(made, BatchProvider)
    assert isinstance(made, UntaggedBatches)
    assert not isinstance(made, OpenBatches)
    assert made.limits.batch_requests == 100_000
    assert 255_000_000 < made.limits.batch_bytes < 256_000_000
    assert made.limits.window_s == 86_400


@pytest.mark.parametrize("model", [HAIKU, "claude-opus-4-8", SONNET_5, "claude-3-haiku"])
@pytest.mark.parametrize("more", [{}, {"response_format": SCHEMA}, {"tools": [TOOL], "stop": "END", "user": "u"}])
def test_bodies_satisfy_the_official_types(model: str, more: dict[str, Any]) -> None:
    """What leaves is a Messages body by Anthropic's own client: instructions apart, and an explicit cap."""
    body, encoded = encode(model, chat(**more), *more)
    assert encoded.url == "/v1/messages"
    assert b"\n" not in encoded.body
    assert judged(encoded.body) == [{"role": "user"}]
    assert (body["system"], body["messages"]) == ("Be brief.", [MESSAGES[1]])
    assert body["model"] == model
    assert body["max_tokens"] == encoded.cap_tokens > 0


def test_a_conversation_keeps_its_turns_and_its_tools() -> None:
    """Turns, parts, calls and what tools gave back stand as they were, several results in one turn."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    turns = [
        {"role": "developer", "content": "One."},
        {"role": "system", "content": [{"type": "text", "text": "Two."}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "tool", "tool_call_id": "c2", "content": "seen too"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "and?"},
    ]
    choice = {"tool_choice": {"type": "function", "function": {"name": "look"}}, "parallel_tool_calls": False}
    body, encoded = encode(HAIKU, chat(*turns, tools=[TOOL], **choice), "tools", *choice)
    judged(encoded.body)
    assert body["system"] == "One.\n\nTwo."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    used, given_back = body["messages"][1]["content"], body["messages"][2]["content"]
    assert used[0] == {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "x"}}
    assert [(b["type"], b["tool_use_id"], b["content"]) for b in given_back] == [
        ("tool_result", "c1", "seen"), ("tool_result", "c2", "seen too")]  # fmt: skip
    assert body["tools"] == [{"name": "look", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "tool", "name": "look", "disable_parallel_tool_use": True}


def test_our_temperature_is_left_out_with_a_note_and_the_users_goes() -> None:
    """The API may have dropped sampling: our default is not worth a refusal, the user's word is."""
    body, encoded = encode(HAIKU, chat())
    assert "temperature" not in body
    assert any("temperature 0.3 left out" in note for note in encoded.notes)
    assert encode(HAIKU, chat(temperature=0.7), "temperature")[0]["temperature"] == 0.7
    assert encode(HAIKU, {**chat(top_p=0.5), "temperature": None}, "top_p")[0]["top_p"] == 0.5


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (HAIKU, True), ("claude-haiku-4-5-20251001", True), ("claude-opus-4-20250514", True), ("claude-opus-4-6", True),
        ("claude-3-5-haiku-latest", True), ("claude-2.1", True), ("of-somebody-else", True), ("claude-opus-4-7", False),
        ("claude-opus-4-8", False), (SONNET_5, False), ("claude-fable-5-2", False), ("claude-opus-4-10", False),
    ],
)  # fmt: skip
def test_models_that_take_no_temperature_are_known_by_name(model: str, takes: bool) -> None:
    """From 4.7 on they take none: a user's own is refused, and 1, which they use, may be said."""
    assert "temperature" not in encode(model, chat(temperature=1), "temperature")[0]
    if takes:
        assert encode(model, chat(temperature=0.2), "temperature")[0]["temperature"] == 0.2
        return
    with pytest.raises(CannotCarry, match="takes no temperature"):
        encode(model, chat(temperature=0.2), "temperature")


@pytest.mark.parametrize(
    ("model", "more", "cap"),
    [
        (HAIKU, {}, 2000), ("claude-opus-4-8", {}, 2000), (SONNET_5, {}, 8000),
        (SONNET_5, {"thinking": {"type": "disabled"}}, 2000), (HAIKU, {"thinking": {"type": "adaptive"}}, 8000),
        (SONNET_5, {"max_completion_tokens": 50}, 50), (SONNET_5, {"max_tokens": 60}, 60),
    ],
)  # fmt: skip
def test_the_cap_leaves_room_for_thoughts(model: str, more: dict[str, Any], cap: int) -> None:
    """Thinking counts as output: ours is raised where a model thinks, the user's stays, and it is told exactly."""
    request = {
        key: value for key, value in chat().items() if "max_tokens" not in more or key != "max_completion_tokens"
    }
    body, encoded = encode(model, {**request, **more}, *more)
    assert (body["max_tokens"], encoded.cap_tokens) == (cap, cap)
    assert body.get("thinking") == more.get("thinking")


def test_an_answer_to_a_schema_is_a_forced_tool_or_an_output_format() -> None:
    """A model that does not think is given a tool with the schema whole; one that thinks cannot be forced."""
    forced, _ = encode(HAIKU, chat(response_format=SCHEMA), "response_format")
    assert forced["tools"][0]["input_schema"] == ENTRY
    assert forced["tool_choice"] == {"type": "tool", "name": forced["tools"][0]["name"]}
    bound, encoded = encode(SONNET_5, chat(response_format=SCHEMA), "response_format")
    assert "tools" not in bound
    sent = bound["output_config"]["format"]["schema"]
    assert sent["properties"]["n"] == {"type": "integer", "description": '{"minimum": 1}'}
    assert sent["$defs"]["W"]["properties"]["w"]["type"] == "string"
    assert sent["additionalProperties"] is sent["$defs"]["W"]["additionalProperties"] is False
    assert any("without maxLength, minimum" in note for note in encoded.notes)


REFUSED = [
    ({"stream": True}, "stream"),
    ({"n": 2}, "n is not carried"),
    ({"logprobs": True}, "logprobs"),
    ({"seed": 3}, "seed"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"functions": []}, "functions"),
    ({"max_output_tokens": 9}, "max_output_tokens"),
    ({"temperature": 1.5}, "temperature is 1.5"),
    ({"temperature": 0.5, "top_p": 0.5}, "both a temperature and a top_p"),
    ({"stop": [" "]}, "stop is"),
    ({"user": 5}, "user is 5"),
    ({"thinking": "hard"}, "thinking is"),
    ({"tools": [{"type": "web_search"}]}, "the tool web_search"),
    ({"tools": [{"type": "function", "function": {"name": "nightmill_answer"}}]}, "nightmill_answer"),
    ({"tools": [TOOL], "tool_choice": "some"}, "tool_choice"),
    ({"tools": [TOOL], "response_format": SCHEMA}, "both tools and a schema"),
    ({"response_format": {"type": "json_object"}}, "response_format json_object"),
    ({"max_completion_tokens": 0}, "max_completion_tokens is 0"),
    ({"model": "claude-opus-5"}, "names the model"),
    ({"messages": []}, "no messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "no message of the user"),
    ({"messages": [*MESSAGES, {"role": "system", "content": "late"}]}, "after the first turn"),
    ({"messages": [{"role": "function", "content": "x"}]}, "role 'function'"),
    ({"messages": ["x"]}, "role None"),
    ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "name of a message"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]}, "part text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[1]"}}]}]}, "arguments"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "written as JSON"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_what_cannot_be_carried_is_refused_before_it_costs_anything(more: dict[str, Any], said: str) -> None:
    """With a reason and a way out; nothing that the user asked for is dropped unsaid."""
    with pytest.raises(CannotCarry) as caught:
        encode(HAIKU, {"messages": MESSAGES, **more}, *more)
    assert said in caught.value.what
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize("request_", [{"input": "embed this"}, {"input": "answer this", "max_output_tokens": 9}])
def test_there_are_no_embeddings_and_no_responses(request_: dict[str, Any]) -> None:
    """Both are refused by name."""
    with pytest.raises(CannotCarry, match=r"makes no embeddings|has no /v1/responses"):
        encode(HAIKU, request_, *request_)


def tokens_of(model: str, body: bytes) -> int:
    """About as many input tokens as a quote counts for a body."""
    return estimate_tokens(content_of(body)) + provider(model).weigh(body).beside


@pytest.mark.parametrize(("model", "asked"), [(HAIKU, {"response_format": SCHEMA}), (SONNET_5, {"tools": [TOOL]})])
def test_what_is_said_of_tools_is_expected_to_cost(model: str, asked: dict[str, Any]) -> None:
    """As many tokens as Anthropic's table has, about: a quote without them says a fraction of what is billed."""
    (_, plain), (_, more) = (encode(model, chat(**each)) for each in ({}, asked))
    added = tokens_of(model, more.body) - tokens_of(model, plain.body)
    assert 290 <= added <= 804 + 100
    assert tokens_of(model, encode(model, chat({"role": "user", "content": '"tools":'}))[1].body) < 50


def test_what_only_says_what_happens_anyhow_may_be_said() -> None:
    """Values that change nothing are no reason to refuse a row, and do not travel."""
    usual = {"n": 1, "logprobs": False, "presence_penalty": 0, "service_tier": "auto", "store": False, "stop": None}
    assert encode(HAIKU, chat(**usual), *usual)[0] == encode(HAIKU, chat())[0]


def test_a_default_of_ours_that_has_no_name_there_is_left_out_with_a_note() -> None:
    """Only what the user set is refused."""
    _, encoded = encode(HAIKU, chat(seed=3))
    assert any(note.startswith("seed left out") for note in encoded.notes)


def test_the_lines_of_a_shard_are_the_requests_of_a_create() -> None:
    """Joined by commas they are what Anthropic's client would send, with our ids."""
    made = provider(HAIKU)
    before, between, after = made.line_pieces("/v1/messages")
    lines = [before + b'"t-1-%d"' % n + between + made.encode(chat()).body + after for n in range(2)]
    body = b'{"requests":[' + b",".join(line.strip() for line in lines) + b"]}"
    sent = CREATE.validate_json(body)["requests"]
    assert [request["custom_id"] for request in sent] == ["t-1-0", "t-1-1"]


texts = st.text(min_size=1, max_size=30).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=4),
    system=st.sampled_from([None, "Be {{ a }}.", "Brief"]),
    model=st.sampled_from([HAIKU, SONNET_5]),
    schema=st.sampled_from([None, ENTRY]),
)
def test_spliced_bodies_are_those_that_rendering_gives(
    rows: list[tuple[str, str]], system: str | None, model: str, schema: dict[str, Any] | None
) -> None:
    """Whatever the values are, joined pieces and full rendering agree to the byte."""
    task = Task("t", system=system, prompt="Say {{ a }} {{ b }}!")
    fast = Compiled(provider(model), bind(task, ["key", "a", "b"], {}), Parameters(schema=schema))
    assert fast.is_spliced
    batch = pa.record_batch({"key": ["k"] * len(rows), "a": [a for a, _ in rows], "b": [b for _, b in rows]})
    bodies = fast.bodies(batch, range(len(rows)))
    fast.check(batch, 0, bodies)
    assert [json.loads(body)["messages"][-1]["content"] for body in bodies] == [f"Say {a} {b}!" for a, b in rows]
