"""A canonical request, written as a Messages body of Anthropic's: what has another name there, and what is not taken.

Facts of models are those of 2026-11: up to the families 4.6 a model takes one of temperature and top_p and thinks
only when asked to; from 4.7 on it takes neither; from 5 on it thinks unless told not to, and then no tool can be
forced on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nightmill.errors import CannotCarry
from nightmill.media import Medium
from nightmill.providers import Encoded, Request, endpoint_of
from nightmill.providers._anthropic_shape import ANSWER_TOOL
from nightmill.providers._fitting import fit_cap
from nightmill.providers._media import ANTHROPIC, admit, base64_of, fit_size, medium_of
from nightmill.providers._openai_requests import carried, json_line, refuse_responses
from nightmill.providers._schemas import ANTHROPIC_FORMAT, Unfit, fit, is_one_object, told_in_prompt

URL = "/v1/messages"

_OLD = r"claude-(instant|v?[123](?![0-9])|4-|(opus|sonnet|haiku)-(3|4(?![0-9])))"  # all before the family 5
_SAMPLED = r"claude-(instant|v?[123](?![0-9])|4-|(opus|sonnet|haiku)-(3|4(-([0-6]|[0-9]{8}|latest)([-@]|$)|@|$)))"
_AS_USUAL: Mapping[str, tuple[Any, ...]] = {  # what may be said, since it is what happens anyhow
    "n": (1,), "logprobs": (False,), "presence_penalty": (0,), "frequency_penalty": (0,), "store": (False,),
    "logit_bias": ({},), "modalities": (["text"],), "service_tier": ("auto", "default"), "metadata": ({},),
    "top_logprobs": (0,),
}  # fmt: skip
_OWN = ("model", "messages", "max_completion_tokens")
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


def encoded(name: str, model: str, request: Request, user_set: frozenset[str]) -> Encoded:
    """See `Provider.encode`."""
    body = carried(name, model, request, user_set)
    endpoint = endpoint_of(body)
    if endpoint == "responses":
        refuse_responses(f"{name}/{model}", body)
    if endpoint == "embeddings":
        why = "there is no endpoint for embeddings"
        raise CannotCarry(f"{name} makes no embeddings", why=why, fix="choose an embedding model of another provider")
    notes: list[str] = []
    thinks = _thinks(model, body)
    fit_cap(model, body, notes, user_set, thinks=thinks, context=0)
    schema: dict[str, Any] = {}
    _check_chat(body)
    _add_schema(body, schema, notes, thinks=thinks)
    system, messages = _conversation(body)
    out: dict[str, Any] = {"model": model, "max_tokens": body["max_completion_tokens"]}
    if system:
        out["system"] = "\n\n".join(system)
    out["messages"] = messages
    _add_sampling(model, body, out, notes, user_set)
    _add_stops(body, out)
    _add_tools(body, out)
    out |= schema
    _add_user(body, out)
    _refuse_rest(name, body, notes, user_set)
    return Encoded(URL, fit_size(ANTHROPIC, model, json_line(out)), tuple(notes), out["max_tokens"])


def _thinks(model: str, body: Mapping[str, Any]) -> bool:
    """Whether the answer begins with thinking, which counts as output."""
    asked = body.get("thinking")
    if isinstance(asked, Mapping):
        return asked.get("type") != "disabled"
    return model.startswith("claude-") and re.match(_OLD, model) is None


# -- what is asked -----------------------------------------------------------------------------


def _check_chat(body: Mapping[str, Any]) -> None:
    chat = body.get("messages")
    if not isinstance(chat, list | tuple) or not chat:
        why = "a model answers to messages"
        raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")


def _conversation(body: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The system's texts, and the turns: what tools gave goes into turns of the user's."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in body["messages"]:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in ("system", "developer"):
            if turns:
                why = "instructions stand before the conversation, and moved there they would mean something else"
                raise CannotCarry(f"a {role} message after the first turn", why=why, fix="put it first")
            system.append("".join(_texts(message)))
        elif role == "user":
            turns.append({"role": "user", "content": _content(message, str(body["model"]))})
        elif role == "assistant":
            turns.append({"role": "assistant", "content": _said(message)})
        elif role == "tool":
            _add_given(turns, message)
        else:
            why = "there are system, developer, user, assistant and tool"
            raise CannotCarry(f"a message of the role {role!r}", why=why, fix="correct the role")
        _refuse_beside(message)
    if not turns:
        why = "there is nothing but instructions in it"
        raise CannotCarry("the request has no message of the user's", why=why, fix="add one")
    return system, turns


_OF_MESSAGE = frozenset({"role", "content", "tool_calls", "tool_call_id"})


def _refuse_beside(message: Mapping[str, Any]) -> None:
    extra = [key for key, value in message.items() if key not in _OF_MESSAGE and value is not None]
    if extra:
        why = "a turn is its role and its content, and nothing of a request is dropped unsaid"
        raise CannotCarry(f"{extra[0]} of a message is not carried", why=why, fix=f"leave {extra[0]} out")


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a message, in order. Raises CannotCarry: it has anything else."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
        return
    for part in content if isinstance(content, list | tuple) else () if content is None else (content,):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in ("text", "refusal") or not isinstance(text, str) or len(part) > 2:
            why = "what it costs cannot be known before it is sent, so that no budget would hold"
            raise CannotCarry(f"the part {kind} of a message is not carried", why=why, fix="send text only")
        yield text


def _content(message: Mapping[str, Any], model: str = "") -> str | list[dict[str, Any]]:
    """What a message says; media only where a ``model`` is named that may take them."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not model or not isinstance(content, list | tuple):
        return [{"type": "text", "text": text} for text in _texts(message)]
    blocks: list[dict[str, Any]] = []
    for part in content:
        medium = medium_of(part) if isinstance(part, Mapping) else None
        if medium is None:
            blocks += [{"type": "text", "text": text} for text in _texts({"content": [part]})]
        else:
            blocks.append(_block(admit(ANTHROPIC, model, medium)))
    return blocks


def _block(medium: Medium) -> dict[str, Any]:
    source = {"type": "url", "url": medium.url}
    if medium.data is not None:
        source = {"type": "base64", "media_type": medium.mime, "data": base64_of(medium)}
    return {"type": "image" if medium.kind == "image" else "document", "source": source}


def _said(message: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    """A turn of the model's own: its words, and the tools it called."""
    calls = message.get("tool_calls") or ()
    if not calls:
        return _content(message)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text} for text in _texts(message) if text]
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            why = "the model calls functions that the request describes"
            raise CannotCarry("a tool call that is no function's", why=why, fix="correct tool_calls")
        given = _arguments(function.get("arguments"))
        blocks.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given})
    return blocks


def _arguments(text: Any) -> dict[str, Any]:
    try:
        given = json.loads(text) if isinstance(text, str) and text.strip() else text or {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        why = f"they are {str(text)[:80]!r}, and here they are a JSON object"
        raise CannotCarry("the arguments of a tool call are not carried", why=why, fix="correct the arguments")
    return given


def _add_given(turns: list[dict[str, Any]], message: Mapping[str, Any]) -> None:
    """What a tool gave. What several gave in turn stands in one turn."""
    block = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": _content(message)}
    last = turns[-1]["content"] if turns and turns[-1]["role"] == "user" else None
    if isinstance(last, list) and last and last[-1]["type"] == "tool_result":
        last.append(block)
    else:
        turns.append({"role": "user", "content": [block]})


# -- how it is to be answered ------------------------------------------------------------------


def _add_sampling(
    model: str, body: Mapping[str, Any], out: dict[str, Any], notes: list[str], user_set: frozenset[str]
) -> None:
    """Temperature or top_p where the user asks for it, and the model takes it; 1 is what there is without.

    Newer versions of the API may have dropped both, so that our own default is not worth a refusal.
    """
    takes = not model.startswith("claude-") or re.match(_SAMPLED, model) is not None
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None or value == 1:
            continue
        if name not in user_set:
            notes.append(f"{name} {value} left out: it is sent to {model} only where it is asked for")
        elif not takes:
            fix = f"leave {name} out or say 1, which is what it uses, or choose a model that takes it"
            raise CannotCarry(f"{model} takes no {name}", why="its family has no sampling to set", fix=fix)
        elif type(value) not in (int, float) or not 0 <= value <= 1:
            raise CannotCarry(f"{name} is {value!r}", why="it is a number from 0 to 1 here", fix=f"correct {name}")
        else:
            out[name] = value
    if "temperature" in out and "top_p" in out:
        why = "its models take one of them"
        raise CannotCarry("both a temperature and a top_p", why=why, fix="leave top_p out")


def _add_stops(body: Mapping[str, Any], out: dict[str, Any]) -> None:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if not stops:
        return
    if not isinstance(stops, list | tuple) or not all(isinstance(each, str) and each.strip() for each in stops):
        why = "each is a text that is more than white space"
        raise CannotCarry(f"stop is {stop!r}", why=why, fix="correct stop")
    out["stop_sequences"] = list(stops)


def _add_tools(body: Mapping[str, Any], out: dict[str, Any]) -> None:
    tools = body.get("tools")
    if tools:
        out["tools"] = [_tool(tool) for tool in tools]
        _add_choice(body, out)


def _tool(tool: Any) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    function = tool.get("function") if kind == "function" else None
    if not isinstance(function, Mapping):
        why = "tools that run at the provider are billed by use, so that no budget would hold"
        raise CannotCarry(f"the tool {kind} is not carried", why=why, fix="describe a function of your own")
    if "cache_control" in tool or "cache_control" in function:
        why = "what of a prompt is cached, and that it pays, is seen to here"
        raise CannotCarry("cache_control of a tool is not carried", why=why, fix="leave cache_control out")
    name = function.get("name")
    if name == ANSWER_TOOL:
        raise CannotCarry(f"a tool called {name}", why="answers to a schema are told by that name", fix="rename it")
    made: dict[str, Any] = {"name": name}
    if function.get("description"):
        made["description"] = function["description"]
    made["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict"):
        made["strict"] = True
    return made


def _add_choice(body: Mapping[str, Any], out: dict[str, Any]) -> None:
    asked = body.get("tool_choice")
    function = asked.get("function") if isinstance(asked, Mapping) else None
    choice: dict[str, Any] | None = None
    if isinstance(function, Mapping):
        choice = {"type": "tool", "name": function.get("name")}
    elif asked is not None:
        if not isinstance(asked, str) or asked not in _CHOICES:
            why = "it is auto, none, required or a function"
            raise CannotCarry(f"tool_choice is {asked!r}", why=why, fix="correct tool_choice")
        choice = {"type": _CHOICES[asked]}
    if body.get("parallel_tool_calls") is False and choice != {"type": "none"}:
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice:
        out["tool_choice"] = choice


def _add_user(body: Mapping[str, Any], out: dict[str, Any]) -> None:
    """Whom it is for, and how to think: what has a name of its own there."""
    for key, kind, made in (("user", str, "metadata"), ("thinking", Mapping, "thinking")):
        value = body.get(key)
        if value is None:
            continue
        if not isinstance(value, kind):
            raise CannotCarry(f"{key} is {value!r}", why=f"it is no {kind.__name__.lower()}", fix=f"correct {key}")
        out[made] = {"user_id": value} if key == "user" else value


# -- answers to a schema -----------------------------------------------------------------------


def _add_schema(body: dict[str, Any], out: dict[str, Any], notes: list[str], *, thinks: bool) -> None:
    """Bind the answer to a schema: by a tool that is forced on the model, or, while it thinks, by its output format.

    A schema that neither takes is told in the prompt: then ``body`` has it in its messages, and ``out`` nothing.
    """
    asked = body.get("response_format")
    kind = asked.get("type") if isinstance(asked, Mapping) else None
    if not isinstance(asked, Mapping) or kind == "text":
        return
    named = asked.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        why = "a model is bound to a JSON Schema, or not at all"
        raise CannotCarry(f"response_format {kind} is not carried", why=why, fix="give a json_schema")
    if schema.keys().isdisjoint(("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")):
        schema = {"type": "object", **schema}
    if thinks:
        try:
            fitted = fit(schema, ANTHROPIC_FORMAT)
        except Unfit as unfit:
            _tell(body, schema, notes, str(unfit))
            return
        notes += [fitted.note] if fitted.note else []
        out["output_config"] = {"format": {"type": "json_schema", "schema": fitted.schema}}
        return
    if not is_one_object(schema):
        _tell(body, schema, notes, "the whole is not one kind of object")
        return
    if body.get("tools"):
        why = "an answer to a schema is a forced tool there, so that no other could be called"
        raise CannotCarry("both tools and a schema", why=why, fix="leave one of them out")
    out["tools"] = [{"name": ANSWER_TOOL, "description": "Give the answer with this.", "input_schema": schema}]
    out["tool_choice"] = {"type": "tool", "name": ANSWER_TOOL}


def _tell(body: dict[str, Any], schema: Mapping[str, Any], notes: list[str], why: str) -> None:
    body["messages"] = told_in_prompt(body["messages"], schema)
    notes.append(f"the schema is said in the prompt: {why}, and answers are bound to one only")


# -- what is left ------------------------------------------------------------------------------

_CARRIED = frozenset(
    {
        *_OWN,
        *("temperature", "top_p", "stop", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
        *("user", "thinking"),
    }
)


def _refuse_rest(name: str, body: Mapping[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    """Nothing that the user asked for is dropped unsaid. Raises CannotCarry."""
    for key, value in body.items():
        if key in _CARRIED or value is None or value in _AS_USUAL.get(key, ()):
            continue
        if key in user_set or key in _AS_USUAL:
            why = f"the Messages API of {name} has nothing like it"
            raise CannotCarry(f"{key} is not carried", why=why, fix=f"leave {key} out")
        notes.append(f"{key} left out: the Messages API of {name} has nothing like it")
