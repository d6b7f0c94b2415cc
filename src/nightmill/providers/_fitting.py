"""A canonical request, fitted to a server and its model: what it calls things, and what it does not take."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nightmill.errors import CannotCarry
from nightmill.providers import Encoded, Request
from nightmill.providers._openai_shape import cap_of, carried, inputs_of, json_line
from nightmill.providers.servers import Server

DEFAULT_CAP = 2_000
REASONING_CAP = 8_000  # thinking is billed as output and counts against the cap

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
    if "input" in body and "messages" not in body:
        _fit_embeddings(body, notes, user_set)
        return Encoded(server.batch_url + "/embeddings", json_line(body), tuple(notes), inputs=inputs_of(body))
    if not isinstance(body.get("messages"), list | tuple) or not body["messages"]:
        why = "a model answers to messages"
        raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")
    thinks = not takes_sampling(server.thinks_first, model, body.get("reasoning_effort"))
    _fit_cap(model, body, notes, user_set, thinks=thinks, context=context)
    if thinks:
        _drop_sampling(model, body, notes, user_set)
    _fit_schema(server, body, notes)
    cap_tokens = cap_of(body)
    body[server.max_tokens_field] = body.pop("max_completion_tokens")
    return Encoded(server.batch_url + "/chat/completions", json_line(body), tuple(notes), cap_tokens)


def takes_sampling(thinks_first: str, model: str, effort: object = None) -> bool:
    """Whether ``model`` takes temperature and top_p: models that reason, called as ``thinks_first`` says, do not.

    They do where their name says ``chat`` (``gpt-5-chat-latest``) or the request turns reasoning off
    (``reasoning_effort: none``). A fine-tuned ``ft:MODEL:...`` is what its MODEL is.
    """
    base = model.removeprefix("ft:").split(":", 1)[0]
    return not thinks_first or effort == "none" or "chat" in base or not re.match(thinks_first, base)


def _fit_cap(
    model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str], *, thinks: bool, context: int
) -> None:
    """Leave ``body`` with the cap to send; ours is raised for models that think first, and leaves the prompt room."""
    asked = not user_set.isdisjoint(("max_completion_tokens", "max_tokens"))
    cap = body.get("max_completion_tokens")
    if cap is None:
        cap = DEFAULT_CAP
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        why = "it must be a whole number above 0"
        raise CannotCarry(f"max_completion_tokens is {cap!r}", why=why, fix="give --max-output such a number")
    if not asked and thinks and cap < REASONING_CAP:
        notes.append(f"output cap {REASONING_CAP:,} instead of {cap:,}: {model} thinks first, and that counts")
        cap = REASONING_CAP
    if not asked and 0 < context < 2 * cap:
        notes.append(f"output cap {context // 2:,} instead of {cap:,}: {model} takes {context:,} tokens in all")
        cap = max(1, context // 2)
    body["max_completion_tokens"] = cap


def _drop_sampling(model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    for name in _SAMPLING:
        if name not in body or body[name] == 1:  # 1 is what these models use, and may be said
            continue
        if name in user_set:
            raise CannotCarry(
                f"{model} takes no {name}",
                why="it is a reasoning model",
                fix=f"leave {name} out, or choose a model that takes it",
            )
        notes.append(f"{name} {body.pop(name)} left out: {model} takes none")


def _fit_schema(server: Server, body: dict[str, Any], notes: list[str]) -> None:
    """Where the server cannot be bound to a schema, the model is told it; answers are checked against it anyhow."""
    asked = body.get("response_format")
    if server.schema == "json_schema" or not isinstance(asked, Mapping) or asked.get("type") != "json_schema":
        return
    schema = asked.get("json_schema")
    told = json.dumps(schema.get("schema") if isinstance(schema, Mapping) else schema, ensure_ascii=False)
    text = f"Answer with one JSON object and nothing else. It must fit this JSON Schema: {told}"
    messages = list(body["messages"])
    first = messages[0] if isinstance(messages[0], Mapping) else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        messages[0] = {**first, "content": f"{first['content']}\n\n{text}"}
    else:
        messages.insert(0, {"role": "system", "content": text})
    body["messages"] = messages
    if server.schema == "json_object":
        body["response_format"] = {"type": "json_object"}
    else:
        del body["response_format"]
    notes.append("the schema is said in the prompt: the server cannot be bound to one")


def _fit_embeddings(body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    for name in _CHAT_ONLY:
        if name not in body:
            continue
        if name in user_set:
            why = "the answer is a vector, not text"
            raise CannotCarry(f"embeddings take no {name}", why=why, fix=f"leave {name} out")
        notes.append(f"{name} {body.pop(name)} left out: embeddings take none")
