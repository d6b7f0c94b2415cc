"""A canonical request, fitted to a server and its model: what it calls things, and what it does not take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nightmill.errors import CannotCarry
from nightmill.providers import OWN_SCHEMA, Encoded, Request, endpoint_of
from nightmill.providers._media import PARTS, check_media, fit_size, takes_of
from nightmill.providers._openai_requests import cap_of, carried, inputs_of, json_line, refuse_responses, whole_of
from nightmill.providers._schemas import OPENAI_STRICT, Unfit, fit, is_one_object, told_in_prompt
from nightmill.providers.servers import Server

DEFAULT_CAP = 2_000
REASONING_CAP = 8_000  # thinking is billed as output and counts against the cap

# What makes a request cost more than its own bytes and its output cap tell.
_BOUNDLESS = (
    *("previous_response_id", "conversation", "prompt", "background", "context_management"),
    *("web_search_options", "audio", "plugins", "models", "search_parameters", "data_sources"),
)
_SEARCHES = re.compile("search-(preview|api)|deep-research")  # models that search by themselves, billed by the search
_TIERS = (None, "auto", "default", "flex", "on_demand")  # any other may be dearer than the list price
_NOT_SHORTENED = "text-embedding-ada-002"
_OWN_TOOLS = ("function", "custom")  # of the caller; any other runs at the provider, which bills each use
_TEXT_ITEMS = (
    *("message", "reasoning", "function_call", "function_call_output"),
    *("custom_tool_call", "custom_tool_call_output"),
)
_TEXT_PARTS = ("text", "refusal", "input_text", "output_text", "reasoning_text")
_SAMPLING = ("temperature", "top_p")
_CHAT_ONLY = (
    *_SAMPLING,
    "max_completion_tokens",
    "max_tokens",
    "response_format",
    "tools",
    "tool_choice",
    "reasoning_effort",
    "stop",
    "seed",
    "n",
    "logprobs",
    "presence_penalty",
    "frequency_penalty",
)


def fitted(server: Server, name: str, model: str, context: int, request: Request, user_set: frozenset[str]) -> Encoded:
    """See `Provider.encode`; ``context`` is the most tokens of prompt and answer together, 0 where that is unknown."""
    body = carried(name, model, request, user_set)
    notes: list[str] = []
    endpoint = endpoint_of(body)
    if endpoint == "embeddings":
        _fit_embeddings(server, model, body, notes, user_set)
        return Encoded(server.batch_url + "/embeddings", json_line(body), tuple(notes), inputs=inputs_of(body))
    if _SEARCHES.search(model):
        why = "each search is billed beside its tokens, so that no budget would hold"
        raise CannotCarry(f"{name}/{model} searches by itself", why=why, fix="choose another model")
    takes = takes_of(server.media, context)
    check_media(takes, model, body.get("messages", body.get("input")))
    _refuse_boundless(body)
    thinks = not takes_sampling(server.thinks_first, model, _effort(body))
    if endpoint == "responses":
        if not server.responses:
            refuse_responses(f"{name}/{model}", body)
        _refuse_chat_words(body)
        fit_cap(model, body, notes, user_set, thinks=thinks, context=context, field="max_output_tokens")
        if thinks:
            _drop_sampling(model, body, notes, user_set)
        _fit_schema(server, body, notes, user_set)
        whole = fit_size(takes, model, json_line(body))
        return Encoded(server.batch_url + "/responses", whole, tuple(notes), cap_of(body))
    if not isinstance(body.get("messages"), list | tuple) or not body["messages"]:
        why = "a model answers to messages"
        raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")
    fit_cap(model, body, notes, user_set, thinks=thinks, context=context)
    if thinks:
        _drop_sampling(model, body, notes, user_set)
    _fit_schema(server, body, notes, user_set)
    cap_tokens = cap_of(body)
    body[server.max_tokens_field] = body.pop("max_completion_tokens")
    whole = fit_size(takes, model, json_line(body))
    return Encoded(server.batch_url + "/chat/completions", whole, tuple(notes), cap_tokens)


def takes_sampling(thinks_first: str, model: str, effort: object = None) -> bool:
    """Whether ``model`` takes temperature and top_p: models that reason, called as ``thinks_first`` says, do not.

    They do where their name says ``chat`` (``gpt-5-chat-latest``) or the request turns reasoning off
    (``reasoning_effort: none``). A fine-tuned ``ft:MODEL:...`` is what its MODEL is.
    """
    base = model.removeprefix("ft:").split(":", 1)[0]
    return not thinks_first or effort == "none" or "chat" in base or not re.match(thinks_first, base)


def fit_cap(
    model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str], *, thinks: bool, context: int,
    field: str = "max_completion_tokens",
) -> None:  # fmt: skip
    """Leave ``body`` with the cap to send; ours is raised for models that think first, and leaves the prompt room."""
    asked = not user_set.isdisjoint((field, "max_tokens"))
    cap = whole_of(body, field, DEFAULT_CAP)
    if not asked and thinks and cap < REASONING_CAP:
        notes.append(f"output cap {REASONING_CAP:,} instead of {cap:,}: {model} thinks first, and that counts")
        cap = REASONING_CAP
    if not asked and 0 < context < 2 * cap:
        notes.append(f"output cap {context // 2:,} instead of {cap:,}: {model} takes {context:,} tokens in all")
        cap = max(1, context // 2)
    body[field] = cap


def _effort(body: Mapping[str, Any]) -> object:
    """How hard the model is to think, where the body says it."""
    reasoning = body.get("reasoning")
    return reasoning.get("effort") if isinstance(reasoning, dict) else body.get("reasoning_effort")


def _refuse_boundless(body: Mapping[str, Any]) -> None:
    """A request may be sent only if the most that it can cost is known before.

    Raises:
        CannotCarry: it takes in what does not stand in it, or pays for more than tokens of text.
    """
    named = [name for name in _BOUNDLESS if body.get(name) not in (None, False)]
    if body.get("service_tier") not in _TIERS:
        named.append(f"service_tier {body['service_tier']}")
    if body.get("modalities") not in (None, ["text"]):
        named.append(f"modalities {body['modalities']}")
    kept = body.get("prompt_cache_options")
    if isinstance(kept, dict) and kept.get("ttl") not in (None, "30m"):
        named.append(f"a prompt cache of {kept['ttl']}")
    tools = body.get("tools")
    kinds = [_kind(tool) for tool in tools] if isinstance(tools, list) else []
    named += [f"the tool {kind}" for kind in kinds if kind not in _OWN_TOOLS]
    asked = body.get("messages", body.get("input"))
    for item in asked if isinstance(asked, list | tuple) else ():
        named += _beside_text(item) if isinstance(item, Mapping) else []
    if named:
        why = "what it costs cannot be known before it is sent, so that no budget would hold"
        raise CannotCarry(f"{named[0]} is not carried", why=why, fix="take it out of the request")


def _refuse_chat_words(body: Mapping[str, Any]) -> None:
    """Raises CannotCarry: its cap, or its number of choices, is none at the responses endpoint."""
    if whole_of(body, "n", 1) > 1:
        why = "/v1/responses gives one answer"
        raise CannotCarry(f"{body['n']} choices are not carried", why=why, fix="leave n out, or ask chat completions")
    if body.get("max_completion_tokens") is not None:
        why = "/v1/responses is capped by max_output_tokens, and by nothing else"
        raise CannotCarry("the request has a cap of chat completions", why=why, fix="call it max_output_tokens")


def _beside_text(item: Mapping[str, Any]) -> list[str]:
    """What a message, or another item of what is asked, has beside text."""
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    found = [] if kind in _TEXT_ITEMS else [f"the item {kind}"]
    found += ["audio in a message"] if item.get("audio") else []
    for parts, may_be in ((item.get("content"), (*_TEXT_PARTS, *PARTS)), (item.get("output"), _TEXT_PARTS)):
        kinds = [_kind(part) for part in parts if isinstance(part, Mapping)] if isinstance(parts, list | tuple) else []
        found += [f"the part {kind}" for kind in kinds if kind not in may_be]
    return found


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None


def _drop_sampling(model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    for name in _SAMPLING:
        if name not in body or body[name] == 1:  # 1 is what these models use, and may be said
            continue
        if name in user_set:
            raise CannotCarry(
                f"{model} takes no {name}",
                why="it is a reasoning model",
                fix=f"leave {name} out or say 1, which is what it uses, or choose a model that takes it",
            )
        notes.append(f"{name} {body.pop(name)} left out: {model} takes none")


def _fit_schema(server: Server, body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    """How the answer is bound to a schema. What a row says itself is sent as it is."""
    field = "text" if "text" in body else "response_format"
    asked = body.get(field)
    named = _named(asked)
    if named is None or not isinstance(asked, Mapping):
        return
    schema = named.get("schema")
    if server.schema != "json_schema" and field == "response_format":
        body["messages"] = told_in_prompt(body["messages"], schema)
        if server.schema == "json_object":
            body[field] = {"type": "json_object"}
        else:
            del body[field]
        notes.append("the schema is said in the prompt: the server cannot be bound to one")
    elif server.strict and OWN_SCHEMA in user_set and isinstance(schema, Mapping):
        _bind(body, field, named, notes)


def _named(asked: Any) -> Mapping[str, Any] | None:
    """The name and schema of what a request wants, at either endpoint; None where it wants no schema."""
    if not isinstance(asked, Mapping):
        return None
    form = asked.get("format", asked)
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return None
    named = form.get("json_schema", form)
    return named if isinstance(named, Mapping) else {"schema": named}


def _bind(body: dict[str, Any], field: str, named: Mapping[str, Any], notes: list[str]) -> None:
    """Bind answers to a schema of the user's as closely as OpenAI can."""
    schema = named["schema"]
    try:
        fitted_schema = fit(schema, OPENAI_STRICT)
    except Unfit as unfit:
        if is_one_object(schema):
            notes.append(f"the schema is sent, but does not bind answers: {unfit}; they are held to all of it here")
            return
        key = "input" if field == "text" else "messages"
        asked = body[key] if isinstance(body[key], list | tuple) else [{"role": "user", "content": body[key]}]
        body[key] = told_in_prompt(asked, schema)
        del body[field]
        notes.append(f"the schema is said in the prompt: {unfit}, and answers are bound to one only")
        return
    notes += [fitted_schema.note] if fitted_schema.note else []
    made = {**named, "schema": fitted_schema.schema, "strict": True}
    body[field] = {"format": made} if field == "text" else {"type": "json_schema", "json_schema": made}


def _fit_embeddings(
    server: Server, model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str]
) -> None:
    if "encoding_format" not in user_set and not server.base64:  # how the vectors travel: nothing to tell of
        body.pop("encoding_format", None)
    if model == _NOT_SHORTENED and body.get("dimensions") is not None:
        why = "its vectors have 1,536 numbers, and no other size"
        raise CannotCarry(f"{model} takes no dimensions", why=why, fix="leave dimensions out, or choose a later model")
    for name in _CHAT_ONLY:
        if name not in body:
            continue
        if name in user_set:
            why = "the answer is a vector, not text"
            raise CannotCarry(f"embeddings take no {name}", why=why, fix=f"leave {name} out")
        notes.append(f"{name} {body.pop(name)} left out: embeddings take none")
