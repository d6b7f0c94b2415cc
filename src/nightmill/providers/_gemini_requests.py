"""A canonical request in Gemini's words: what of it can be carried, how it is written, what it may cost at most."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nightmill.errors import CannotCarry
from nightmill.media import Medium, kind_of_mime
from nightmill.providers import Encoded, Request, endpoint_of
from nightmill.providers._media import GEMINI, admit, base64_of, fit_size, largest_apart, medium_of, name_apart
from nightmill.providers._openai_requests import carried, json_line, refuse_responses, whole_of
from nightmill.providers._schemas import GEMINI_JSON, Unfit, fit, told_in_prompt

DEFAULT_CAP = 2_000
THINKING_CAP = 8_000  # thoughts are billed as output and count against the cap

_THINKS_FIRST = re.compile(r"gemini-(2\.5-(pro|flash)(?!-lite)|[3-9](?![0-9]))")
_BUDGETS = re.compile(r"gemini-2\.5-")  # told how hard to think as a number of tokens; later models by a word
_BUDGET_TOKENS = {"none": 0, "minimal": 1_024, "low": 1_024, "medium": 8_192, "high": 24_576}
_LEVELS = ("minimal", "low", "medium", "high")
_BEYOND_TEXT = re.compile(r"-(image|tts|audio|live|computer-use|robotics)\b|deep-research|imagen|veo|lyria")
_PLAIN = {
    "temperature": "temperature",
    "top_p": "topP",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_NO_MEANING: Mapping[str, tuple[object, ...]] = {  # what says no more than is so anyhow
    "service_tier": ("auto", "default"),
    "store": (False,),
    "logprobs": (False,),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "encoding_format": ("float", "base64"),  # how the vectors travel: there they are always numbers
}
_MOST_STOPS = 5
_FILES = "https://generativelanguage.googleapis.com/v1beta/files/"  # what files are called, wherever they are asked for
_NAMED_BYTES = 200  # more than a part takes that only names its medium
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_MESSAGE_KEYS = frozenset(("role", "content", "tool_calls", "tool_call_id", "refusal"))
_SYSTEM = ("system", "developer")


def model_path(model: str) -> str:
    """``models/NAME``, unless the name says whose it is itself (``tunedModels/NAME``)."""
    return quote(model if "/" in model else f"models/{model}", safe="/")


def encoded(name: str, model: str, request: Request, user_set: frozenset[str], most_bytes: int = 0) -> Encoded:
    """See `Provider.encode`. The cap counts for every candidate, thoughts included.

    Args:
        most_bytes: of a request; what goes beyond it is uploaded apart. 0: what Google says.
    """
    asked = carried(name, model, request, user_set)
    del asked["model"]
    refuse_responses(f"{name}/{model}", asked)
    if _BEYOND_TEXT.search(model):
        why = "what it answers with beside text has prices of its own, so that no budget would hold"
        raise CannotCarry(f"{name}/{model} is no model for text", why=why, fix="choose another model")
    if endpoint_of(asked) == "embeddings":
        return _embedding(model, asked, user_set)
    notes: list[str] = []
    bound = _answer_format(asked, notes)
    body, said = _told(asked.pop("messages", None), model), asked
    config = _sampling(model, said, notes, user_set) | bound
    if thinking := _thinking(model, said.pop("reasoning_effort", None)):
        config["thinkingConfig"] = thinking
    body["generationConfig"] = config
    body |= _tools(said)
    _leave_out(model, said, notes, user_set)
    cap_tokens = config["maxOutputTokens"] * config.get("candidateCount", 1)
    apart = _without_large_media(model, body, most_bytes or GEMINI.request_bytes)
    whole = fit_size(GEMINI, model, json_line(body), most_bytes)
    return Encoded(f"/v1beta/{model_path(model)}:generateContent", whole, tuple(notes), cap_tokens, apart=apart)


def _without_large_media(model: str, body: dict[str, Any], most_bytes: int) -> dict[str, bytes]:
    """Where ``body`` would be too large, let it only name its largest media; these by their digests."""
    inside = [part for turn in body["contents"] for part in turn["parts"] if "inlineData" in part]
    lengths = [len(part["inlineData"]["data"]) for part in inside]
    if sum(lengths) < most_bytes // 2:
        return {}
    held = [part["inlineData"] for part in inside]
    texts = [inline.pop("data") for inline in held]
    room = most_bytes - len(json_line(body)) - _NAMED_BYTES * len(inside)
    apart: dict[str, bytes] = {}
    gone = set(largest_apart(lengths, room))
    for number, (part, inline, text) in enumerate(zip(inside, held, texts, strict=True)):
        if number in gone:
            data, mime = base64.b64decode(text), inline["mimeType"]
            medium = Medium(kind_of_mime(mime) or "pdf", mime, data)
            name, digest = name_apart(medium, GEMINI.tokens(model, medium))
            del part["inlineData"]
            part["fileData"] = {"mimeType": mime, "fileUri": _FILES + name}
            apart[digest] = data
        else:
            inline["data"] = text
    return apart


# -- what is said ------------------------------------------------------------------------------


def _told(messages: Any, model: str) -> dict[str, Any]:
    """``contents`` and ``systemInstruction``: turns of the two roles there are, what the system is told before them."""
    if not isinstance(messages, list | tuple) or not messages:
        why = "a model answers to messages"
        raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    functions: dict[str, str] = {}  # what a tool call's id was for
    for message in messages:
        role, parts = _turn(message, functions, model)
        if role in _SYSTEM:
            if turns:
                why = "its system instruction stands before the conversation"
                raise CannotCarry("a system message in between is not carried", why=why, fix="put it first")
            system += parts
        elif turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        else:
            turns.append({"role": role, "parts": parts})
    if not turns:
        why = "there are system messages only, and it answers to a user"
        raise CannotCarry("the request asks nothing", why=why, fix="add a message of the role user")
    return {"contents": turns} | ({"systemInstruction": {"parts": system}} if system else {})


def _turn(message: Any, functions: dict[str, str], model: str) -> tuple[str, list[dict[str, Any]]]:
    """Role and parts of one message."""
    if not isinstance(message, Mapping):
        raise CannotCarry("a message is no object", why=f"it is {str(message)[:80]!r}", fix="correct the row")
    more = [key for key, value in message.items() if key not in _MESSAGE_KEYS and value not in (None, "", [])]
    if more:
        raise CannotCarry(f"{more[0]} of a message is not carried", why="Gemini has no such thing", fix="leave it out")
    role = message.get("role")
    parts = _texts(message.get("content"), model if role == "user" else "")
    if role == "tool":
        return "user", [_function_response(message, parts, functions)]
    if role == "assistant":
        parts += _texts(message.get("refusal")) + _function_calls(message.get("tool_calls"), functions)
    elif role not in ("user", *_SYSTEM):
        raise CannotCarry(f"a message of the role {role!r} is not carried", why="nobody knows it", fix="correct it")
    if not parts:
        raise CannotCarry("a message is empty", why="it has no content", fix="correct the row")
    return ("model" if role == "assistant" else str(role)), parts


def _texts(content: Any, model: str = "") -> list[dict[str, Any]]:
    """The parts of what is said; media only where a ``model`` is named that may take them."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list | tuple):
        raise CannotCarry("a message is no text", why=f"its content is {str(content)[:80]!r}", fix="correct the row")
    texts: list[dict[str, Any]] = []
    for part in content:
        medium = medium_of(part) if model and isinstance(part, Mapping) else None
        if medium is not None:
            admit(GEMINI, model, medium)
            texts.append({"inlineData": {"mimeType": medium.mime, "data": base64_of(medium)}})
            continue
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            why = "what it costs cannot be known before it is sent, so that no budget would hold"
            raise CannotCarry(f"the part {kind} is not carried", why=why, fix="take it out of the request")
        texts.append({"text": text})
    return texts


def _function_calls(calls: Any, functions: dict[str, str]) -> list[dict[str, Any]]:
    parts = []
    for call in calls or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise CannotCarry("a tool call names no function", why=f"it is {str(call)[:80]!r}", fix="correct the row")
        functions[str(call.get("id"))] = function["name"]
        args = _object(function.get("arguments"))
        if args is None:
            why = f"they are {str(function.get('arguments'))[:80]!r}"
            raise CannotCarry("the arguments of a tool call are no object", why=why, fix="correct the row")
        parts.append({"functionCall": {"name": function["name"], "args": args}})
    return parts


def _function_response(
    message: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], functions: Mapping[str, str]
) -> dict[str, Any]:
    name = functions.get(str(message.get("tool_call_id")))
    if name is None:
        why = "no tool call before it has its tool_call_id"
        raise CannotCarry("a tool message answers to nothing", why=why, fix="correct the row")
    text = "".join(part["text"] for part in parts)
    found = _object(text)
    return {"functionResponse": {"name": name, "response": {"result": text} if found is None else found}}


def _object(text: Any) -> dict[str, Any] | None:
    """The JSON object that a text is; None for any other."""
    if text in (None, ""):
        return {}
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


# -- how it is to be answered --------------------------------------------------------------------


def _sampling(model: str, said: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> dict[str, Any]:
    """The generation config, its cap always explicit. Takes what it carries out of ``said``."""
    cap = whole_of(said, "max_completion_tokens", DEFAULT_CAP)
    asked = not user_set.isdisjoint(("max_completion_tokens", "max_tokens"))
    if not asked and cap < THINKING_CAP and thinks_first(model, said.get("reasoning_effort")):
        notes.append(f"output cap {THINKING_CAP:,} instead of {cap:,}: {model} thinks first, and that counts")
        cap = THINKING_CAP
    said.pop("max_completion_tokens", None)
    config: dict[str, Any] = {"maxOutputTokens": cap}
    config |= {theirs: said.pop(ours) for ours, theirs in _PLAIN.items() if ours in said}
    if (choices := whole_of(said, "n", 1)) > 1:
        config["candidateCount"] = choices
    said.pop("n", None)
    stop = said.pop("stop", None)
    if stop:
        stops = [stop] if isinstance(stop, str) else list(stop)
        if len(stops) > _MOST_STOPS:
            why = f"it takes {_MOST_STOPS} at most"
            raise CannotCarry(f"{len(stops)} stop sequences are not carried", why=why, fix="give fewer")
        config["stopSequences"] = stops
    return config


def thinks_first(model: str, effort: object = None) -> bool:
    """Whether ``model`` thinks before it answers, unless the request turns that off."""
    return effort != "none" and _THINKS_FIRST.match(model.rpartition("/")[2]) is not None


def _thinking(model: str, effort: Any) -> dict[str, Any]:
    if effort is None:
        return {}
    base = model.rpartition("/")[2]
    if _BUDGETS.match(base) and effort in _BUDGET_TOKENS:
        if effort == "none" and "pro" in base:
            why, fix = "this model always thinks", "say minimal, or choose a flash model"
            raise CannotCarry("reasoning_effort none is not carried", why=why, fix=fix)
        return {"thinkingBudget": _BUDGET_TOKENS[effort]}
    if thinks_first(base) and effort in _LEVELS:
        return {"thinkingLevel": effort}
    raise CannotCarry(f"reasoning_effort {effort!r} is not carried", why=f"{model} has no such", fix="leave it out")


def _answer_format(body: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """How the answer is bound; takes ``response_format`` out of ``body``, and tells there what cannot be bound."""
    asked = body.pop("response_format", None)
    kind = asked.get("type") if isinstance(asked, Mapping) else asked
    if kind in (None, "text"):
        return {}
    found: dict[str, Any] = {"responseMimeType": "application/json"}
    if kind == "json_object":
        return found
    named = asked.get("json_schema") if kind == "json_schema" else None
    if not isinstance(named, Mapping) or not isinstance(named.get("schema"), Mapping):
        why = "it is neither text, json_object nor a json_schema"
        raise CannotCarry("the response_format is not carried", why=why, fix="correct it")
    try:
        fitted = fit(named["schema"], GEMINI_JSON)
    except Unfit as unfit:
        body["messages"] = told_in_prompt(body.get("messages") or (), named["schema"])
        notes.append(f"the schema is said in the prompt: {unfit}, and answers are bound to one only")
        return found
    notes += [fitted.note] if fitted.note else []
    return {**found, "responseJsonSchema": fitted.schema}


def _tools(said: dict[str, Any]) -> dict[str, Any]:
    """``tools`` and ``toolConfig``: functions of the caller, and nothing that runs at the provider."""
    tools, choice = said.pop("tools", None), said.pop("tool_choice", None)
    found: dict[str, Any] = {}
    if tools:
        found["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in tools]}]
    if choice is None:
        return found
    function = choice.get("function") if isinstance(choice, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        config = {"mode": "ANY", "allowedFunctionNames": [function["name"]]}
    elif isinstance(choice, str) and choice in _MODES:
        config = {"mode": _MODES[choice]}
    else:
        raise CannotCarry("the tool_choice is not carried", why=f"it is {str(choice)[:80]!r}", fix="correct it")
    return found | {"toolConfig": {"functionCallingConfig": config}}


def _declaration(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        why = "what it costs cannot be known before it is sent, so that no budget would hold"
        raise CannotCarry(f"the tool {kind} is not carried", why=why, fix="take it out of the request")
    kept = {key: function[key] for key in ("name", "description") if function.get(key) is not None}
    schema = function.get("parameters")
    return kept if schema is None else {**kept, "parametersJsonSchema": schema}


# -- embeddings, and what is left -----------------------------------------------------------------


def _embedding(model: str, asked: dict[str, Any], user_set: frozenset[str]) -> Encoded:
    given, notes = asked.pop("input"), list[str]()
    text = given[0] if isinstance(given, list | tuple) and len(given) == 1 else given
    if not isinstance(text, str) or not text:
        why = "a request embeds one text"
        raise CannotCarry("the input is not carried", why=why, fix="give each text a row of its own")
    body: dict[str, Any] = {"content": {"parts": [{"text": text}]}}
    if asked.get("dimensions") is not None:
        body["outputDimensionality"] = whole_of(asked, "dimensions", 1)
    asked.pop("dimensions", None)
    _leave_out(model, asked, notes, user_set)
    return Encoded(f"/v1beta/{model_path(model)}:embedContent", json_line(body), tuple(notes), inputs=1)


def _leave_out(model: str, said: Mapping[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    """What nobody carried: of the user's it is refused, of ours it is told."""
    for name, value in said.items():
        if value is None or value in _NO_MEANING.get(name, ()):
            continue
        if name in user_set:
            raise CannotCarry(f"{name} is not carried", why=f"{model} has nothing like it", fix=f"leave {name} out")
        notes.append(f"{name} {value} left out: {model} takes none")
