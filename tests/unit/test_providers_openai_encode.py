"""Canonical requests in OpenAI's words, judged by OpenAI's own types and schemas."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest
from openai.types import EmbeddingCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from nightmill.errors import CannotCarry
from nightmill.providers import BatchProvider, Encoded, LiveProvider
from nightmill.providers._fitting import takes_sampling
from nightmill.providers.openai import OpenAI
from nightmill.providers.servers import SERVERS

SCHEMAS = Path(__file__).parents[1] / "data" / "wire" / "openai_schemas.json"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ping ✓ \r\n\u2028 😀"}]
DEFAULTS = {"temperature": 0.3, "max_completion_tokens": 2000}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "e", "strict": True, "schema": {"type": "object", "properties": {}}},
}


def encode(model: str, request: dict, *user_set: str) -> tuple[dict, Encoded]:
    encoded = OpenAI(model, key="k").encode(request, frozenset(user_set))
    return json.loads(encoded.body), encoded


@pytest.fixture(scope="module")
def schema():
    document = json.loads(SCHEMAS.read_text())

    def validator(name: str):
        return jsonschema_rs.validator_for({**document, "$ref": f"#/components/schemas/{name}"})

    return validator


def test_openai_offers_both_lanes():
    """OpenAI keeps the promises of a batch provider and of a live provider."""
    provider = OpenAI("gpt-4o-mini", key="k")
    assert isinstance(provider, BatchProvider)
    assert isinstance(provider, LiveProvider)
    limits = provider.limits
    assert (limits.batch_requests, limits.batch_bytes, limits.batch_inputs) == (50_000, 209_715_200, 50_000)


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini", "o4-mini"])
def test_chat_bodies_satisfy_the_official_types_and_schema(model, schema):
    """What leaves is a chat request by OpenAI's SDK and by its OpenAPI document."""
    body, encoded = encode(model, {"messages": MESSAGES, "response_format": SCHEMA, **DEFAULTS, "seed": 3})
    assert encoded.url == "/v1/chat/completions"
    assert b"\n" not in encoded.body
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_json(encoded.body)
    schema("CreateChatCompletionRequest").validate(body)
    assert body["messages"] == MESSAGES
    assert body["model"] == model


def test_embedding_bodies_satisfy_the_official_types_and_schema(schema):
    """A request with input and no messages goes to the embeddings endpoint, without chat defaults."""
    body, encoded = encode("text-embedding-3-small", {"input": ["a", "b"], **DEFAULTS})
    assert encoded.url == "/v1/embeddings"
    TypeAdapter(EmbeddingCreateParams).validate_json(encoded.body)
    schema("CreateEmbeddingRequest").validate(body)
    assert body == {"model": "text-embedding-3-small", "input": ["a", "b"]}
    assert len(encoded.notes) == 2


def test_every_chat_body_has_an_explicit_cap():
    """Without a cap nobody could say what a request costs at most."""
    assert encode("gpt-4o-mini", {"messages": MESSAGES})[0]["max_completion_tokens"] == 2000
    assert encode("gpt-4o-mini", {"messages": MESSAGES, "max_completion_tokens": None})[0]["max_completion_tokens"]


def test_defaults_that_a_reasoning_model_does_not_take_are_left_out_with_a_note():
    """Temperature goes, the cap is raised so that thinking does not eat the answer, and both are said."""
    body, encoded = encode("gpt-5-mini", {"messages": MESSAGES, **DEFAULTS})
    assert "temperature" not in body
    assert body["max_completion_tokens"] == 8000
    assert any("temperature" in note for note in encoded.notes)
    assert any("8,000" in note for note in encoded.notes)


def test_defaults_that_a_model_takes_stay():
    """A model without reasoning gets our defaults, and there is nothing to note."""
    body, encoded = encode("gpt-4.1-mini", {"messages": MESSAGES, **DEFAULTS})
    assert (body["temperature"], body["max_completion_tokens"]) == (0.3, 2000)
    assert encoded.notes == ()


def test_what_the_user_set_is_refused_never_dropped():
    """A temperature the user asked for is not silently lost; the user's cap is kept as it is."""
    with pytest.raises(CannotCarry, match="takes no temperature"):
        encode("o4-mini", {"messages": MESSAGES, "temperature": 0.3}, "temperature")
    body, _ = encode("o4-mini", {"messages": MESSAGES, "max_completion_tokens": 50}, "max_completion_tokens")
    assert body["max_completion_tokens"] == 50
    with pytest.raises(CannotCarry, match="embeddings take no temperature"):
        encode("text-embedding-3-small", {"input": "a", "temperature": 0.3}, "temperature")


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": MESSAGES, "stream": True},
        {"messages": []},
        {},
        {"messages": MESSAGES, "max_completion_tokens": 0},
        {"messages": MESSAGES, "max_completion_tokens": "many"},
        {"messages": MESSAGES, "max_tokens": 5, "max_completion_tokens": 6},
        {"messages": MESSAGES, "model": "gpt-4o"},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": {1, 2}.union}]},
    ],
)
def test_what_cannot_be_carried_is_refused_with_a_reason(request_):
    """Streams, empty requests, senseless caps, foreign models and unwritable text do not leave."""
    with pytest.raises(CannotCarry):
        encode("gpt-4o-mini", request_, *request_)


def part(**said: object) -> dict:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, said]}]}


RESPONSE = {"input": "x", "max_output_tokens": 9}


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (part(type="file", file={"file_id": "file-1"}), "file"),
        (part(type="input_audio", input_audio={"data": "", "format": "wav"}), "input_audio"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "audio"),
        ({"messages": MESSAGES, "modalities": ["image", "text"]}, "modalities"),
        ({"messages": MESSAGES, "models": ["gpt-4o"]}, "models"),
        ({"messages": MESSAGES, "service_tier": "priority"}, "service_tier priority"),
        (RESPONSE | {"service_tier": "ultrafast"}, "service_tier ultrafast"),
        (RESPONSE | {"prompt_cache_options": {"ttl": "12h"}}, "a prompt cache of 12h"),
        (RESPONSE | {"input": [{"id": "msg_1"}]}, "item_reference"),
        (RESPONSE | {"input": [{"type": "image_generation_call", "id": "i", "result": ""}]}, "image_generation_call"),
        (RESPONSE | {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
         "input_image"),
        (RESPONSE | {"tools": [{"type": "web_search"}]}, "web_search"),
    ],
)  # fmt: skip
def test_what_costs_more_than_its_text_and_cap_is_refused(request_, named):
    """No hold would bound it: media, what is kept at the provider, dearer tiers, tools that run there."""
    with pytest.raises(CannotCarry, match=named):
        encode("gpt-5-mini", request_, *request_)


@pytest.mark.parametrize(
    "request_",
    [
        part(type="text", text="it"),
        {"messages": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [], "audio": None},
                      {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "9"}]}],
         "service_tier": "flex", "modalities": ["text"], "tools": [{"type": "function", "function": {"name": "f"}}]},
        RESPONSE | {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                              {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "e"},
                              {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                              {"type": "function_call_output", "call_id": "c", "output": "9"}],
                    "prompt_cache_options": {"mode": "explicit"}},
    ],
)  # fmt: skip
def test_text_tools_and_earlier_turns_are_carried(request_):
    """Whatever stands in the request itself as text is bounded by its bytes, and leaves untouched."""
    body, _ = encode("gpt-5-mini", request_, *request_)
    assert body.items() >= request_.items()


def test_the_old_name_of_the_cap_is_understood():
    """A passthrough body with max_tokens goes out with max_completion_tokens and the same value."""
    body, _ = encode("gpt-5-mini", {"messages": MESSAGES, "max_tokens": 77}, "max_tokens")
    assert body["max_completion_tokens"] == 77
    assert "max_tokens" not in body


def test_the_model_may_be_named_in_the_row():
    """A row that names the job's own model, with or without the provider, is no contradiction."""
    for name in ("gpt-4o-mini", "openai/gpt-4o-mini"):
        assert encode("gpt-4o-mini", {"messages": MESSAGES, "model": name}, "model")[0]["model"] == "gpt-4o-mini"


def test_encoding_leaves_the_request_alone():
    """The caller's dict is not changed: it is encoded again for every row."""
    request = {"messages": MESSAGES, **DEFAULTS, "max_tokens": None, "stream": False}
    before = json.dumps(request)
    encode("gpt-5-mini", request)
    assert json.dumps(request) == before


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("gpt-4o-mini", True),
        ("gpt-4.1", True),
        ("gpt-5-chat-latest", True),
        ("gpt-5", False),
        ("gpt-5.2-mini", False),
        ("gpt-6-luna", False),
        ("o1", False),
        ("o3-mini", False),
        ("o4-mini-2025-04-16", False),
        ("ft:o4-mini:acme::abc", False),
        ("ft:gpt-4o-mini:acme:o3:abc", True),
        ("gpt-50", True),
        ("omni-moderation", True),
    ],
)
def test_reasoning_models_are_known_by_name(model, takes):
    """The rule for sampling parameters holds for families, snapshots and fine-tunes."""
    assert takes_sampling(SERVERS["openai"].thinks_first, model) is takes


def test_turning_reasoning_off_brings_sampling_back():
    """With reasoning_effort none a temperature is carried."""
    request = {"messages": MESSAGES, "temperature": 0.2, "reasoning_effort": "none"}
    assert encode("gpt-5.2", request, "temperature", "reasoning_effort")[0]["temperature"] == 0.2


def test_a_shard_line_is_a_batch_input_line():
    """The pieces around custom_id and body make the documented input line."""
    provider = OpenAI("gpt-6-luna", key="k")
    sample = json.loads((SCHEMAS.parent / "openai_input_chat.jsonl").read_text())
    encoded = provider.encode(sample["body"], frozenset(sample["body"]))
    before, between, after = provider.line_pieces(encoded.url)
    line = before + b'"r-1"' + between + encoded.body + after
    assert json.loads(line) == sample
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1


def test_the_account_names_the_key_by_fingerprint_only():
    """Two keys are two accounts, and no key can be read from one."""
    one, two = (OpenAI("m", key=key, organization="o", project="p").account for key in ("sk-one", "sk-two"))
    assert one.id != two.id
    assert "sk-" not in repr(one)
    assert one.host == "api.openai.com"


@pytest.mark.parametrize("model", ["gpt-4o-mini-search-preview", "gpt-5-search-api", "o4-mini-deep-research"])
def test_models_that_search_by_themselves_are_refused(model):
    """Each search is billed beside the tokens, so that no hold would cover a request."""
    with pytest.raises(CannotCarry, match="searches by itself"):
        encode(model, {"messages": MESSAGES, "max_completion_tokens": 9})
