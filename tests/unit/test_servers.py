"""Servers as data: what a table of the settings makes of them, and what they are sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from nightmill.errors import UnknownPrice, UsageError
from nightmill.pricing import price_sheet
from nightmill.providers import BatchProvider, Limits, LiveProvider, LiveReply
from nightmill.providers.resolve import offers, resolve, runs_here
from nightmill.providers.servers import SERVERS, configured
from nightmill.types import Failed, FailureKind, Lane, Usage

MESSAGES = [{"role": "user", "content": "hello"}]
NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEYS = {key: "k" for server in SERVERS.values() for key in server.keys} | {
    "AZURE_OPENAI_ENDPOINT": "https://me.openai.azure.com/"
}


def made(name: str, table: dict[str, object] | None = None, model: str = "m") -> Any:
    return resolve(f"{name}/{model}", env=KEYS, tables={name: table} if table is not None else {})


@pytest.mark.parametrize("name", SERVERS)
def test_every_known_server_answers_live_and_some_in_batches(name: str) -> None:
    """A name and a key are all it takes; what a provider can do shows in which protocol it has."""
    provider = made(name)
    assert isinstance(provider, LiveProvider)
    assert isinstance(provider, BatchProvider) is (name in ("openai", "anthropic", "gemini", "azure", "groq"))
    assert provider.account.base_url.startswith(("https://", "http://127.0.0.1:"))
    body = json.loads(provider.encode({"messages": MESSAGES, "max_completion_tokens": 7}).body)
    said = body.get("generationConfig", body)
    assert {said.get(name) for name in ("max_tokens", "max_completion_tokens", "maxOutputTokens")} == {7, None}


@pytest.mark.parametrize("endpoint", ["https://me.example", "https://me.example/", "https://me.example/openai/v1/"])
def test_the_address_of_a_resource_is_completed(endpoint: str) -> None:
    """Azure's endpoint is given with and without its path; both lead to the same place."""
    env = {"AZURE_OPENAI_ENDPOINT": endpoint, "AZURE_OPENAI_API_KEY": "k"}
    assert resolve("azure/m", env=env).account.base_url == "https://me.example/openai/v1"


def test_an_address_that_is_missing_is_asked_for() -> None:
    """Azure has an address for each resource: it is refused without one, and says which variable."""
    with pytest.raises(UsageError) as caught:
        resolve("azure/m", env={"AZURE_OPENAI_API_KEY": "k"})
    assert "AZURE_OPENAI_ENDPOINT" in caught.value.fix
    (azure,) = (offer for offer in offers({}) if offer.name == "azure")
    assert azure.lacks == "set AZURE_OPENAI_API_KEY and set AZURE_OPENAI_ENDPOINT"


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("acme", {"batch": True}, "gives no base_url"),
        ("acme", {"base_url": "localhost:8000"}, "is no address"),
        ("acme", {"like": "nobody", "base_url": "http://127.0.0.1:9"}, "like = 'nobody'"),
        ("a/b", {"base_url": "http://127.0.0.1:9"}, "cannot be part of a model's name"),
        ("gemini", {"max_tokens_field": "max_tokens", "window": "24h"}, "max_tokens_field and window would have no"),
        ("mine", {"like": "gemini", "responses": True}, "responses would have no effect"),
    ],
)
def test_a_table_that_leads_nowhere_is_refused(name: str, table: dict[str, object], said: str) -> None:
    """What is wrong with it is said, with a way out, whichever model is asked for."""
    with pytest.raises(UsageError) as caught:
        resolve("openai/m", env=KEYS, tables={name: table})
    assert said in caught.value.what
    assert caught.value.why
    assert caught.value.fix


def test_a_table_changes_only_what_it_says() -> None:
    """Batches are switched on and off, the window counts as patience too, and the rest stays as it was."""
    groq = configured("groq", {"window": "7d"})
    assert (groq.window, groq.limits.window_s, groq.base_url) == ("7d", 7 * 86_400, SERVERS["groq"].base_url)
    assert configured("groq", {"batch": False}).limits.batch_requests == 0
    assert configured("vllm", {"batch": True}).limits.batch_requests == 50_000
    assert configured("openai", {"batch": True}).limits == SERVERS["openai"].limits
    mine = configured("mine", {"like": "ollama"})
    assert (mine.max_tokens_field, mine.base_url) == ("max_tokens", SERVERS["ollama"].base_url)


@pytest.mark.parametrize(
    ("ref", "tables", "free"),
    [
        ("ollama/llama3.2", {}, True),
        ("ollama/gpt-oss:120b-cloud", {}, False),
        ("ollama/glm:cloud", {}, False),
        ("vllm/m", {"vllm": {"base_url": "http://10.0.0.5:8000/v1"}}, True),
        ("vllm/m", {"vllm": {"base_url": "https://gpu.example.com/v1"}}, False),
        ("gpu/m", {"gpu": {"like": "vllm", "base_url": "http://gpu-box:8000/v1"}}, True),
        ("gate/m", {"gate": {"base_url": "http://127.0.0.1:4000/v1"}}, False),
        ("openai/m", {}, False),
        ("nobody/m", {}, False),
        ("local/m", {}, True),
    ],
)
def test_only_what_runs_on_ones_own_hardware_is_free(
    ref: str, tables: dict[str, dict[str, object]], free: bool
) -> None:
    """A gateway on this machine may pass calls on to somebody who bills for them: it needs a price."""
    assert runs_here(ref, {}, tables) is free


def test_a_price_of_the_provider_is_that_of_its_models() -> None:
    """The model's own price goes before the provider's, and that before what runs here for nothing."""
    of_all = {"gpu": {"price": {"input": 1, "output": 2}}}
    own = {"gpu/a": {"price": {"input": 3, "output": 4}}}

    def cost(ref: str, **how: Any) -> int:
        return price_sheet(ref, Lane.LIVE, at=NOW, **({"overrides": {}} | how)).cost(Usage(1, 1))

    assert cost("gpu/a", overrides=own, providers=of_all) == 7_000
    assert cost("gpu/b", overrides=own, providers=of_all, runs_here=True) == 3_000
    assert cost("gpu/b", runs_here=True) == 0
    with pytest.raises(UnknownPrice):
        cost("gpu/b")


def test_a_small_context_leaves_room_for_the_prompt() -> None:
    """Our cap is half of what prompt and answer may have together; one that was asked for is sent as it is."""
    provider = made("vllm")
    provider.limits = Limits(context=2048)
    ours = provider.encode({"messages": MESSAGES, "max_completion_tokens": 2000})
    assert (json.loads(ours.body)["max_completion_tokens"], ours.cap_tokens) == (1024, 1024)
    assert "1,024 instead of 2,000" in ours.notes[0]
    asked = provider.encode({"messages": MESSAGES, "max_completion_tokens": 2000}, frozenset({"max_completion_tokens"}))
    assert (asked.cap_tokens, asked.notes) == (2000, ())


@pytest.mark.parametrize("first", [[], [{"role": "system", "content": "Be kind."}]])
def test_a_schema_is_said_where_it_cannot_be_bound(first: list[dict[str, str]]) -> None:
    """It joins what the system is told already, and nothing is said of it where the server takes it."""
    schema = {"type": "object", "properties": {"é": {"type": "string"}}}
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    request = {"messages": [*first, *MESSAGES], "response_format": format_}
    told = json.loads(made("deepseek").encode(request, frozenset({"response_format"})).body)
    assert [message["role"] for message in told["messages"]] == ["system", "user"]
    assert told["messages"][0]["content"].endswith(json.dumps(schema, ensure_ascii=False))
    assert told["messages"][0]["content"].startswith("Be kind." if first else "Answer with one JSON object")
    assert told["response_format"] == {"type": "json_object"}
    bound = json.loads(made("ollama").encode(request, frozenset({"response_format"})).body)
    assert (bound["messages"], bound["response_format"]) == (request["messages"], format_)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Usage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45}, Usage(10, 35)),  # thinking left out
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 0}, Usage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 6}, Usage(10, 5, 6)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None}, Usage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {}, "queue_time": 0.1}, Usage(10, 5)),
    ],
)
def test_usage_is_what_is_billed_however_it_is_told(usage: dict[str, Any], counted: Usage) -> None:
    """One line at a time and many at once, plain answers and odd ones count the same."""
    provider = made("vllm")
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    line = provider.reply_line("x-1", LiveReply(200, json.dumps({"choices": [choice], "usage": usage}).encode()), 0.1)
    odd = provider.reply_line(
        "x-1", LiveReply(200, json.dumps({"choices": [choice | {"finish_reason": 1}], "usage": usage}).encode()), 0.1
    )
    assert provider.decode(line).outcome.usage == counted
    assert provider.decode(odd).outcome.usage == counted
    many = provider.decode_plain([line])
    assert many is not None
    found = Usage(many.input_tokens[0], many.output_tokens[0], many.cached_tokens[0], many.cache_write_tokens[0])
    assert found == counted


REFUSED, SERVER, LIMIT = FailureKind.BAD_REQUEST, FailureKind.SERVER_ERROR, FailureKind.RATE_LIMIT
FLAT = {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"error": FLAT}, REFUSED, "BadRequestError: no"),
        (400, FLAT, REFUSED, "BadRequestError: no"),
        (400, {"error": "a plain text"}, REFUSED, "a plain text"),
        (422, {"detail": [{"msg": "field required"}]}, REFUSED, "[{'msg': 'field required'}]"),
        (404, {"detail": "Not Found"}, REFUSED, "Not Found"),
        (200, {"error": {"message": "Provider returned error", "code": 502}}, SERVER, "Provider returned error"),
        (200, {"error": {"message": "slow down", "code": 429}}, LIMIT, "slow down"),
        (429, {"error": {"message": "wait", "code": "429"}}, LIMIT, "wait"),
    ],
)
def test_errors_are_read_in_each_servers_own_shape(
    status: int, body: dict[str, Any], kind: FailureKind, message: str
) -> None:
    """What it says reaches the user, and none of these is taken for an answer that was paid for."""
    provider = made("openrouter")
    outcome = provider.decode(provider.reply_line("x-1", LiveReply(status, json.dumps(body).encode()), 0.1)).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.message, outcome.usage) == (kind, message, None)
