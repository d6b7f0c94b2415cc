"""The OpenAI wire shape of answers: the lines of result files, what is in them, and how ours are written.

Shared by every provider that speaks it, also by those without HTTP, whose answers are written in
the same shape. Nothing here sends anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from nightmill.providers import LiveReply, PlainAnswers
from nightmill.providers._http import shorten
from nightmill.providers._json import (
    NOT_STRICT,
    Tokens,
    count,
    decoded_together,
    encode,
    is_count,
    json_text,
    load_inner,
    load_json,
    on_one_line,
    scrub,
    seconds,
)
from nightmill.types import Answer, Failed, FailureKind, Outcome, Succeeded, Usage

_FLEX = "flex"  # the tier that an answer says it is of
MODEL_ERROR = "model_error"  # our own code for a model that runs in this process and failed
FILTERED = frozenset({"content_filter", "content_policy_violation"})

ABOUT_JOB = frozenset(
    {"model_not_found", "mismatched_model", "model_mismatch", "invalid_url", "url_mismatch", "unsupported_model"}
)
_REQUEST_ERRORS = ("invalid", "missing_", "context_length", "unsupported", "bad_request", "string_above", "unknown_p")
_CALLS = frozenset({"function_call", "custom_tool_call"})
_BROKE_OFF = frozenset({"error", "abort", "insufficient_system_resource"})  # the server gave up on the way

_UNSTATED = Usage(0, 0, estimated=True)  # billed, and not a word of how much


# -- result lines ------------------------------------------------------------------------------


_Nothing = Annotated[int, msgspec.Meta(ge=0, le=0)]


class _Details(msgspec.Struct, gc=False):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    audio_tokens: _Nothing | None = None  # an answer to sound is none of the plain ones: it has prices of its own


_NO_DETAILS = _Details()


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Tokens
    completion_tokens: Tokens = 0
    total_tokens: Tokens | None = None
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: Tokens | None = None  # where a server has no details


class _Message(msgspec.Struct, gc=False):
    content: str
    refusal: Literal[""] | None = None
    tool_calls: tuple[()] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: Literal["stop"] | None = None


class _Body(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    model: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: Literal[200]
    body: _Body


class _Shape(msgspec.Struct, gc=False):
    """The parts that tell an answer; all else is skipped over."""

    choices: list[msgspec.Raw] | None = None
    data: list[msgspec.Raw] | None = None
    output: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct, gc=False):
    """A line with a plain, complete chat answer: nearly all of them. Any other shape is a ValidationError."""

    custom_id: str
    response: _Response
    error: None = None
    duration_s: float | None = None


class _Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw  # its digits as they came; copied into the text before the line goes
    index: int = 0


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]
    model: str | None = None
    usage: _Usage | None = None


class _VectorResponse(msgspec.Struct, gc=False):
    status_code: int
    body: _Vectors


class _VectorLine(msgspec.Struct, gc=False):
    custom_id: str
    response: _VectorResponse
    error: None = None
    duration_s: float | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_lines = msgspec.json.Decoder(_Line).decode_lines
_decode_shape = msgspec.json.Decoder(_Shape).decode
_decode_vectors = msgspec.json.Decoder(_VectorLine).decode


def decode_line(line: bytes) -> Answer:
    """One line of an output or error file, or of `reply_line`.

    Raises:
        ValueError: it is not a result line: malformed, cut, or without a custom_id.
    """
    try:
        plain = _decode_line(line)
    except msgspec.ValidationError:
        return _decode_embeddings(line) or _decode_any(line)
    except NOT_STRICT:
        return _decode_any(line)
    body = plain.response.body
    choice = body.choices[0]
    text = choice.message.content
    if not text or text.isspace():
        return _decode_any(line)
    usage = None if body.usage is None else _plain_usage(body.usage, flex=body.service_tier == _FLEX)
    return Answer(plain.custom_id, Succeeded(text, usage, choice.finish_reason, body.model), plain.duration_s)


def decode_plain(lines: Sequence[bytes]) -> PlainAnswers | None:
    """What `decode_line` says of lines that are all plain, complete chat answers with usage; None for others."""
    plain = decoded_together(_decode_lines, lines)
    if plain is None:
        return None
    bodies = [line.response.body for line in plain]
    choices = [body.choices[0] for body in bodies]
    texts = [choice.message.content for choice in choices]
    usages = [body.usage for body in bodies if body.usage]
    if len(usages) < len(plain) or not all(texts) or any(map(str.isspace, texts)):
        return None
    details = [usage.prompt_tokens_details or _NO_DETAILS for usage in usages]
    return PlainAnswers(
        [line.custom_id for line in plain],
        texts,
        [body.model for body in bodies],
        [choice.finish_reason for choice in choices],
        [line.duration_s for line in plain],
        [usage.prompt_tokens for usage in usages],
        [
            beside if (beside := (u.total_tokens or 0) - u.prompt_tokens) > u.completion_tokens else u.completion_tokens
            for u in usages
        ],
        [d.cached_tokens or u.prompt_cache_hit_tokens or 0 for d, u in zip(details, usages, strict=True)],
        [each.cache_write_tokens or 0 for each in details],
    )


def _decode_embeddings(line: bytes) -> Answer | None:
    """A line with nothing but vectors in its body; None for any other."""
    try:
        plain = _decode_vectors(line)
    except NOT_STRICT:
        return None
    body = plain.response.body
    vectors = [bytes(item.embedding) for item in sorted(body.data, key=lambda item: item.index)]
    if not 200 <= plain.response.status_code < 300 or not all(vector[:1] in b'["' for vector in vectors):
        return None
    if not vectors or b"[]" in vectors or b'""' in vectors:
        return None
    text = f"[{b','.join(vectors).decode()}]"
    usage = None if body.usage is None else _plain_usage(body.usage)
    return Answer(plain.custom_id, Succeeded(text, usage, None, body.model), plain.duration_s)


def _plain_usage(said: _Usage, *, flex: bool = False) -> Usage:
    sent, written = said.prompt_tokens, max(said.completion_tokens, (said.total_tokens or 0) - said.prompt_tokens)
    details = said.prompt_tokens_details or _NO_DETAILS
    cached = details.cached_tokens or said.prompt_cache_hit_tokens or 0
    return Usage(sent, written, cached, details.cache_write_tokens or 0, flex=flex)


def _decode_any(line: bytes) -> Answer:
    """The tolerant way in: every shape seen in the wild, and those not seen yet."""
    whole = load_json(line)
    if not isinstance(whole, dict) or not isinstance(whole.get("custom_id"), str):
        raise ValueError("not a result line: no object with a custom_id")
    return Answer(
        whole["custom_id"],
        _line_outcome(whole.get("response"), whole.get("error")),
        seconds(whole.get("duration_s")),
    )


def _line_outcome(response: Any, error: Any) -> Outcome:
    if error:
        failed = _failed(facts(error), status=None)
        paid = response.get("body") if isinstance(response, dict) else None
        return msgspec.structs.replace(failed, usage=usage_of(paid)) if isinstance(paid, dict) else failed
    if not isinstance(response, dict):
        return Failed(FailureKind.SERVER_ERROR, "the line has neither a response nor an error")
    status, body = response.get("status_code"), response.get("body")
    if not isinstance(status, int):
        return Failed(FailureKind.SERVER_ERROR, "the response has no status")
    body = load_inner(body)
    if 200 <= status < 300:
        return _billed(body_outcome(body), body)
    return _failed(facts(_error_in(body)), status=status)


def _error_in(body: Any) -> Any:
    """What a body with a status of failure says of it: its error, or the body itself where servers have no such key."""
    if not isinstance(body, dict):
        return body
    return body.get("error") or (body if isinstance(body.get("message"), str) else body.get("detail"))


def _billed(outcome: Outcome, body: Any) -> Outcome:
    """A call that ended well is billed, whatever its answer is worth; one that the provider calls failed is not."""
    if not isinstance(outcome, Failed) or outcome.usage is not None or (isinstance(body, dict) and body.get("error")):
        return outcome
    return msgspec.structs.replace(outcome, usage=_UNSTATED)


def body_outcome(body: Any) -> Outcome:
    """The outcome of a 2xx body: chat completion, embeddings or response object."""
    if isinstance(body, dict):
        if isinstance(body.get("choices"), list):
            return _chat_outcome(body)
        if isinstance(body.get("data"), list):
            return _embedding_outcome(body)
        if isinstance(body.get("output"), list):
            return _response_outcome(body)
        if error := body.get("error"):
            return _failed(facts(error), status=status_in(error))
    return Failed(FailureKind.SERVER_ERROR, f"a success without an answer in it: {shorten(str(body), 200)}")


def status_in(error: Any) -> int | None:
    """The status that an error tells in place of a code, where it tells one."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


class _Said(NamedTuple):
    """What a choice, or a response, says."""

    text: str
    refusal: str = ""
    calls: str | None = None  # tools it calls, as JSON


_NOTHING = _Said("")


def _chat_outcome(body: dict[str, Any]) -> Outcome:
    """Of several choices the first that is complete counts, else the first that says something; all are kept."""
    usage, model = usage_of(body), body.get("model")
    choices = [choice for choice in body["choices"] if isinstance(choice, dict)]
    said = [_said(choice) for choice in choices]
    outcomes = [
        _judge(each, choice.get("finish_reason"), usage, model) for each, choice in zip(said, choices, strict=True)
    ] or [_judge(_NOTHING, None, usage, model)]
    if len(outcomes) == 1:
        return outcomes[0]
    good = next((outcome for outcome in outcomes if isinstance(outcome, Succeeded)), None)
    if good is None:
        return next((outcome for outcome in outcomes if outcome.text), outcomes[0])
    every = [each.text or each.calls or each.refusal for each in said]
    return msgspec.structs.replace(good, parsed=json_text(every))


def _judge(said: _Said, finish: Any, usage: Usage | None, model: Any) -> Outcome:
    """Succeeded, or the kind of paid failure this answer is. Tools that are called are an answer: their JSON."""
    finish = finish if isinstance(finish, str) else None
    model = model if isinstance(model, str) else None
    text = said.text or said.calls or ""
    if said.refusal:
        return Failed(FailureKind.CONTENT_FILTER, "the model refused", usage, said.refusal, finish, model)
    if finish == "content_filter":
        message = "withheld by the provider's content filter"
        return Failed(FailureKind.CONTENT_FILTER, message, usage, text or None, finish, model)
    if finish in _BROKE_OFF:
        return Failed(FailureKind.SERVER_ERROR, f"the server broke off: {finish}", usage, text or None, finish, model)
    if finish == "length":
        message = "cut at the output cap" if text else "the output cap was used up before any text"
        return Failed(FailureKind.TRUNCATED, message, usage, text or None, finish, model)
    if not text or text.isspace():
        return Failed(FailureKind.EMPTY, "the answer has no text", usage, text or None, finish, model)
    return Succeeded(text, usage, finish, model, said.calls)


def _said(choice: dict[str, Any]) -> _Said:
    message = choice.get("message")
    if not isinstance(message, dict):
        return _NOTHING
    text, refusal = parts_of(message.get("content"))
    if isinstance(message.get("refusal"), str):
        refusal = message["refusal"] or refusal
    calls, older = message.get("tool_calls"), message.get("function_call")
    if not calls and isinstance(older, dict):
        calls = [{"type": "function", "function": older}]
    return _Said(text, refusal, json_text(calls) if calls else None)


def parts_of(content: Any) -> tuple[str, str]:
    """The text of a content, whole or in parts, and what of it is a refusal."""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        return "", ""
    parts = [part for part in content if isinstance(part, dict)]
    text = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return text, "".join(part["refusal"] for part in parts if isinstance(part.get("refusal"), str))


def _embedding_outcome(body: dict[str, Any]) -> Outcome:
    items = [item for item in body["data"] if isinstance(item, dict)]
    whole = all(isinstance(item.get("embedding"), list | str) and item["embedding"] for item in items)
    if len(items) < len(body["data"]) or not whole:
        return Failed(FailureKind.EMPTY, "an embedding is missing from the answer", usage_of(body))
    items.sort(key=lambda item: count(item.get("index")))
    text = json.dumps([item["embedding"] for item in items], separators=(",", ":"))
    return _judge(_Said(text if items else ""), None, usage_of(body), body.get("model"))


def _response_outcome(body: dict[str, Any]) -> Outcome:
    status = body.get("status")
    if status in ("failed", "cancelled"):
        return msgspec.structs.replace(_failed(facts(body.get("error")), status=None), usage=usage_of(body))
    if status in ("queued", "in_progress"):
        return Failed(FailureKind.SERVER_ERROR, f"the response is {status}: its answer is not in it")
    items = [item for item in body["output"] if isinstance(item, dict)]
    said = [parts_of(item.get("content")) for item in items if item.get("type", "message") == "message"]
    calls = [_as_tool_call(item) for item in items if item.get("type") in _CALLS]
    finish: Any = "tool_calls" if calls else "stop"
    if status == "incomplete":
        details = body.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        finish = "content_filter" if reason == "content_filter" else "length"
    text, refusal = "".join(part[0] for part in said), "".join(part[1] for part in said)
    return _judge(_Said(text, refusal, json_text(calls) if calls else None), finish, usage_of(body), body.get("model"))


def _as_tool_call(item: Mapping[str, Any]) -> dict[str, Any]:
    """A call in a response as chat completions say it, so that whoever reads answers knows one form."""
    named = {"id": item.get("call_id") or item.get("id"), "name": item.get("name")}
    if item["type"] == "custom_tool_call":
        return {"id": named["id"], "type": "custom", "custom": {"name": named["name"], "input": item.get("input")}}
    function = {"name": named["name"], "arguments": item.get("arguments")}
    return {"id": named["id"], "type": "function", "function": function}


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The usage block of a body, of chat, embeddings or response object; None if there is none that makes sense."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    sent = usage.get("prompt_tokens", usage.get("input_tokens"))
    written = usage.get("completion_tokens", usage.get("output_tokens")) or 0
    if not (is_count(sent) and is_count(written)):
        return None
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    details = details if isinstance(details, dict) else {}
    return Usage(
        sent,
        max(written, count(usage.get("total_tokens")) - sent),  # some servers leave out what was only thought
        count(details.get("cached_tokens")) or count(usage.get("prompt_cache_hit_tokens")),
        count(details.get("cache_write_tokens")),
        audio_tokens=count(details.get("audio_tokens")),
        flex=body.get("service_tier") == _FLEX,
    )


def _failed(said: tuple[str, str], *, status: int | None) -> Failed:
    code, message = said
    kind = _kind_of_code(code) if status is None else _kind_of_status(status, code)
    text = ": ".join(part for part in (code, message) if part)
    return Failed(kind, text or (f"status {status}" if status is not None else "no reason given"))


def _kind_of_code(code: str) -> FailureKind:
    if code == "batch_expired":
        return FailureKind.EXPIRED
    if code == "batch_cancelled":
        return FailureKind.CANCELLED
    if code in FILTERED:
        return FailureKind.CONTENT_FILTER
    if code == "rate_limit_exceeded":
        return FailureKind.RATE_LIMIT
    if code.startswith(_REQUEST_ERRORS) or code in ABOUT_JOB:
        return FailureKind.BAD_REQUEST
    return FailureKind.SERVER_ERROR


def _kind_of_status(status: int, code: str) -> FailureKind:
    if status == 429:
        return FailureKind.RATE_LIMIT
    if 400 <= status < 500 and status not in (408, 409):
        return FailureKind.CONTENT_FILTER if code in FILTERED else FailureKind.BAD_REQUEST
    return FailureKind.MODEL_ERROR if code == MODEL_ERROR else FailureKind.SERVER_ERROR


def facts(error: Any) -> tuple[str, str]:
    """``(code, message)`` of an error object, each on one line.

    The type stands in for a code that is missing, or only the status once more.
    """
    if isinstance(error, dict):
        code = error.get("code")
        if not isinstance(code, str) or not code or code.isdigit():
            code = error.get("type") or ""
        if isinstance(error.get("metadata"), dict) and "flagged_input" in error["metadata"]:
            code = "content_filter"
        return shorten(str(code), 80), shorten(str(error.get("message") or ""), 500)
    return "", shorten(str(error), 200) if error is not None else ""


# -- what we write -----------------------------------------------------------------------------


def line_pieces(url: str) -> tuple[bytes, bytes, bytes]:
    """The fixed parts of a shard line, newline included: before the custom_id, before the body, the end."""
    return b'{"custom_id":', b',"method":"POST","url":' + encode(url) + b',"body":', b"}\n"


def reply_line(custom_id: str, reply: LiveReply, duration_s: float) -> bytes:
    """``reply`` as a line of an output file with ``duration_s``; `decode_line` reads it back."""
    body = on_one_line(reply.body)
    request_id = reply.request_id if reply.request_id.isascii() else scrub(reply.request_id)
    return (
        b'{"id":null,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null,"duration_s":%b}\n'
    ) % (encode(custom_id), reply.status, encode(request_id), body, encode(duration_s))


def error_body(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> bytes:
    """An error in this shape, for what no server wrote."""
    return encode({"error": {"message": scrub(message), "type": kind, "param": None, "code": code}})


class OpenAILines:
    """The part of a provider that reads and writes lines in this shape."""

    self_hosted = False

    line_pieces = staticmethod(line_pieces)
    decode = staticmethod(decode_line)
    decode_plain = staticmethod(decode_plain)
    reply_line = staticmethod(reply_line)
    error_body = staticmethod(error_body)

    def is_own(self, reply: LiveReply) -> bool:
        return is_own(reply.status, reply.body)


def own_error(body: bytes, *, plain: bool = False) -> dict[str, Any] | None:
    """The error object of a body in the provider's own error shape; None for anyone else's.

    With ``plain`` a text will do for an object: servers that people run themselves answer so.
    """
    try:
        whole = load_json(body)
    except ValueError:
        return None
    if not isinstance(whole, dict):
        return None
    error = whole if whole.get("object") == "error" else whole.get("error")
    if plain and isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def is_own(status: int, body: bytes, *, plain: bool = False) -> bool:
    """Whether ``body`` is in the provider's own shape: an answer where ``status`` is a success, else an error."""
    if not 200 <= status < 300:
        return own_error(body, plain=plain) is not None
    try:
        shape = _decode_shape(body)
    except NOT_STRICT:
        return _holds_answer(body)
    return shape.choices is not None or shape.data is not None or shape.output is not None or bool(own_error(body))


def _holds_answer(body: bytes) -> bool:
    """The tolerant look, for JSON as it is really sent."""
    try:
        whole = load_json(body)
    except ValueError:
        return False
    return isinstance(whole, dict) and (
        any(isinstance(whole.get(key), list) for key in ("choices", "data", "output")) or bool(whole.get("error"))
    )
