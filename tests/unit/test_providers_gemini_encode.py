"""Canonical requests in Gemini's words, judged by the types of Google's own client."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.errors import CannotCarry
from nightmill.plan import Compiled, Parameters
from nightmill.providers import Encoded, Provider
from nightmill.providers.resolve import resolve
from nightmill.tasks import bind, prompt_task

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ping ✓ \r\n\u2028 😀"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "e", "strict": True, "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}


def gemini(model: str = "gemini-2.5-flash") -> Provider:
    return resolve(f"gemini/{model}", env={"GEMINI_API_KEY": "k"})


def encode(request: dict[str, Any], *user_set: str, model: str = "gemini-2.5-flash") -> tuple[dict[str, Any], Encoded]:
    encoded = gemini(model).encode(request, frozenset(user_set))
    return json.loads(encoded.body), encoded


def judged(body: dict[str, Any]) -> types.GenerationConfig:
    """Google's client knows every key there is; its generation config."""
    assert body.keys() <= {"contents", "systemInstruction", "generationConfig", "tools", "toolConfig"}
    for content in body["contents"]:
        types.Content.model_validate(content)
    for tool in body.get("tools", []):
        types.Tool.model_validate(tool)
    types.Content.model_validate(body.get("systemInstruction", {}))
    types.ToolConfig.model_validate(body.get("toolConfig", {}))
    return types.GenerationConfig.model_validate(body["generationConfig"])


def test_everything_that_can_be_said_is_said_in_geminis_words() -> None:
    """Prompt, cap, sampling, schema, stops and choices arrive, each where Google's client looks for it."""
    request = {
        "messages": MESSAGES, "max_completion_tokens": 64, "temperature": 0.3, "top_p": 0.9, "stop": ["END"],
        "n": 3, "seed": 7, "presence_penalty": 0.1, "frequency_penalty": 0.2, "response_format": FORMAT,
    }  # fmt: skip
    body, encoded = encode(request, *request)
    config = judged(body)
    assert (config.max_output_tokens, config.temperature, config.top_p, config.seed) == (64, 0.3, 0.9, 7)
    assert (config.stop_sequences, config.candidate_count) == (["END"], 3)
    assert (config.response_mime_type, config.response_json_schema) == ("application/json", SCHEMA)
    assert body["contents"] == [{"role": "user", "parts": [{"text": MESSAGES[1]["content"]}]}]
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert encoded.url == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert encoded.cap_tokens == 3 * 64
    assert encoded.notes == ()
    assert b"\n" not in encoded.body


def test_a_conversation_with_tools_keeps_its_turns() -> None:
    """Calls and what they found stand where they were said; answers of one turn stand together."""
    calls = [
        {"id": c, "type": "function", "function": {"name": "look", "arguments": f'{{"a":"{c}"}}'}} for c in ("x", "y")
    ]
    chat = [
        *MESSAGES, {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "x", "content": '{"seen":1}'},
        {"role": "tool", "tool_call_id": "y", "content": "nothing"},
    ]  # fmt: skip
    body, _ = encode({"messages": chat, "tools": [TOOL], "tool_choice": "required"}, "messages", "tools", "tool_choice")
    judged(body)
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
    said, *called = body["contents"][1]["parts"]
    assert said == {"text": "I look."}
    assert [each["functionCall"]["args"] for each in called] == [{"a": "x"}, {"a": "y"}]
    found = [each["functionResponse"]["response"] for each in body["contents"][2]["parts"]]
    assert found == [{"seen": 1}, {"result": "nothing"}]
    assert body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == SCHEMA
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


@pytest.mark.parametrize(
    ("choice", "config"),
    [("auto", {"mode": "AUTO"}), ("none", {"mode": "NONE"}),
     ({"type": "function", "function": {"name": "look"}}, {"mode": "ANY", "allowedFunctionNames": ["look"]})],
)  # fmt: skip
def test_which_tool_may_be_called_is_said(choice: Any, config: dict[str, Any]) -> None:
    """Any, none, or the one that is named."""
    body, _ = encode({"messages": MESSAGES, "tools": [TOOL], "tool_choice": choice}, "tools", "tool_choice")
    judged(body)
    assert body["toolConfig"] == {"functionCallingConfig": config}


@pytest.mark.parametrize(
    ("model", "effort", "cap", "thinking"),
    [
        ("gemini-2.0-flash", None, 2_000, None),
        ("gemini-2.5-flash-lite", None, 2_000, None),
        ("gemini-2.5-flash", None, 8_000, None),
        ("gemini-2.5-flash", "none", 2_000, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "low", 8_000, {"thinkingBudget": 1_024}),
        ("gemini-2.5-flash-lite", "high", 2_000, {"thinkingBudget": 24_576}),
        ("gemini-3.8-flash", None, 8_000, None),
        ("gemini-3.1-pro-preview", "high", 8_000, {"thinkingLevel": "high"}),
    ],
)
def test_the_cap_leaves_room_for_thoughts(
    model: str, effort: str | None, cap: int, thinking: dict[str, Any] | None
) -> None:
    """Ours is raised for models that think first, and told; what a request says itself is sent as it is."""
    request = {"messages": MESSAGES, "max_completion_tokens": 2_000, "temperature": 0.3, "reasoning_effort": effort}
    body, encoded = encode(request, "reasoning_effort", model=model)
    assert judged(body).max_output_tokens == encoded.cap_tokens == cap
    assert body["generationConfig"].get("thinkingConfig") == thinking
    assert len(encoded.notes) == (cap == 8_000)
    asked, _ = encode(request, "max_completion_tokens", "reasoning_effort", model=model)
    assert judged(asked).max_output_tokens == 2_000


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"user": "me"}, "user"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"stream": True}, "stream"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ["1", "2", "3", "4", "5", "6"]}, "6 stop sequences"),
        ({"n": 0}, "n is 0"),
        ({"reasoning_effort": "immense"}, "reasoning_effort 'immense'"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "the tool web_search"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": IMAGE}, "image_url"),
        ({"messages": [{"role": "system", "content": "only"}]}, "asks nothing"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "late"}]}, "system message"),
        ({"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "x", "content": "1"}]}, "answers to nothing"),
        ({"messages": [{"role": "user", "content": "x", "name": "Al"}]}, "name of a message"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "narrator"),
        ({"messages": [{"role": "user", "content": None}]}, "empty"),
        ({"messages": ["x"]}, "no object"),
        ({"model": "gemini-9"}, "gemini-9"),
        ({"input": "x", "messages": None, "max_output_tokens": 5}, "/v1/responses"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_a_reason(said: dict[str, Any], what: str) -> None:
    """Of what a user asked for nothing is dropped in silence, and nothing is sent that costs nobody knows what."""
    request = {"messages": MESSAGES, **said}
    with pytest.raises(CannotCarry) as refused:
        encode({key: value for key, value in request.items() if value is not None or key != "messages"}, *said)
    assert what in refused.value.what
    assert refused.value.why
    assert refused.value.fix


@pytest.mark.parametrize("model", ["gemini-2.5-flash-image", "gemini-2.5-pro-preview-tts", "imagen-4"])
def test_models_that_answer_with_more_than_text_are_refused(model: str) -> None:
    """Images and speech have prices of their own: no budget would hold."""
    with pytest.raises(CannotCarry, match="no model for text"):
        encode({"messages": MESSAGES}, model=model)


def test_defaults_that_have_no_word_are_left_out_and_told() -> None:
    """What nobody asked for stops nothing; what says what is so anyhow needs no word at all."""
    _, encoded = encode({"messages": MESSAGES, "max_completion_tokens": 9_000, "verbosity": "low", "store": False})
    assert encoded.notes == ("verbosity low left out: gemini-2.5-flash takes none",)


def test_an_embedding_is_one_text() -> None:
    """The text, and how many dimensions; several texts in one request are several rows."""
    model = "gemini-embedding-001"
    body, encoded = encode(
        {"input": ["hello"], "dimensions": 64, "encoding_format": "float"}, "dimensions", model=model
    )
    assert body == {"content": {"parts": [{"text": "hello"}]}, "outputDimensionality": 64}
    assert (encoded.url, encoded.inputs) == (f"/v1beta/models/{model}:embedContent", 1)
    for given_input in (["a", "b"], [1, 2], ""):
        with pytest.raises(CannotCarry):
            encode({"input": given_input}, "input", model=model)


words = st.text(min_size=1, max_size=30).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_spliced_bodies_are_the_rendered_ones(rows: list[tuple[str, str]]) -> None:
    """A template compiled by markers gives the bytes that encoding each row gives."""
    task = bind(prompt_task("Of {{ a }} and {{ b }}:\n{{ a }}"), ["key", "a", "b"], {})
    compiled = Compiled(gemini(), task, Parameters(max_output=9, schema=SCHEMA))
    assert compiled.is_spliced
    batch = pa.record_batch({"key": ["k"] * len(rows), "a": [a for a, _ in rows], "b": [b for _, b in rows]})
    bodies = compiled.bodies(batch, range(len(rows)))
    compiled.check(batch, 0, bodies)
    said = [json.loads(body)["contents"][0]["parts"][0]["text"] for body in bodies]
    assert said == [f"Of {a} and {b}:\n{a}" for a, b in rows]
