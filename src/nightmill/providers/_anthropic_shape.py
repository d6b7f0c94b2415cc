"""The Anthropic wire shape of answers: the lines of result files, what is in them, and how ours are written.

Nothing here sends anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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

ANSWER_TOOL = "nightmill_answer"  # a tool that is forced on the model: what it is called with is the answer

_CUT = {
    "max_tokens": "cut at the output cap",
    "model_context_window_exceeded": "cut where the model's context ended",
    "pause_turn": "the model paused its turn",
}
_RETRIED = {  # by error.type; any other that is known is refused again
    "rate_limit_error": FailureKind.RATE_LIMIT,
    "timeout_error": FailureKind.SERVER_ERROR,
    "api_error": FailureKind.SERVER_ERROR,
    "overloaded_error": FailureKind.SERVER_ERROR,
    "conflict_error": FailureKind.SERVER_ERROR,
}
_REFUSED = frozenset(
    {
        *("invalid_request_error", "authentication_error", "billing_error", "permission_error"),
        *("not_found_error", "request_too_large"),
    }
)
_UNSTATED = Usage(0, 0, estimated=True)  # billed, and not a word of how much


# -- result lines ------------------------------------------------------------------------------


class _Text(msgspec.Struct, tag="text", gc=False):
    text: str


class _Thinking(msgspec.Struct, tag="thinking", gc=False):
    pass


class _Hidden(msgspec.Struct, tag="redacted_thinking", gc=False):
    pass


class _Given(msgspec.Struct, tag="tool_use", gc=False):
    """The answer as the input of `ANSWER_TOOL`; tools of the user's own are left to the tolerant way in."""

    name: Literal["nightmill_answer"]
    input: msgspec.Raw


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Tokens  # neither read from the cache nor written to it
    output_tokens: Tokens
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Text | _Thinking | _Hidden | _Given]
    usage: _Usage
    model: str | None = None
    stop_reason: Literal["end_turn", "stop_sequence", "tool_use"] | None = None


class _Result(msgspec.Struct, gc=False):
    type: Literal["succeeded"]
    message: _Message


class _Line(msgspec.Struct, gc=False):
    """A line with a plain, complete answer: nearly all of them. Any other shape is a ValidationError."""

    custom_id: str
    result: _Result
    duration_s: float | None = None
    status_code: Literal[200] | None = None  # of a live call


class _Shape(msgspec.Struct, gc=False):
    """The parts that tell an answer; all else is skipped over."""

    content: list[msgspec.Raw]
    type: Literal["message"]


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_lines = msgspec.json.Decoder(_Line).decode_lines
_decode_shape = msgspec.json.Decoder(_Shape).decode


def decode_line(line: bytes) -> Answer:
    """One line of a result file, or of `reply_line`.

    Raises:
        ValueError: it is not a result line: malformed, cut, or without a custom_id.
    """
    try:
        plain = _decode_line(line)
    except NOT_STRICT:
        return _decode_any(line)
    message = plain.result.message
    text = _text(message)
    if not text or text.isspace():
        return _decode_any(line)
    outcome = Succeeded(text, Usage(*_tokens(message.usage)), message.stop_reason, message.model)
    return Answer(plain.custom_id, outcome, plain.duration_s)


def decode_plain(lines: Sequence[bytes]) -> PlainAnswers | None:
    """What `decode_line` says of lines that are all plain, complete answers; None for others."""
    plain = decoded_together(_decode_lines, lines)
    if plain is None:
        return None
    messages = [line.result.message for line in plain]
    texts = list(map(_text, messages))
    if not all(texts) or any(map(str.isspace, texts)):
        return None
    usages = [message.usage for message in messages]
    cached = [usage.cache_read_input_tokens or 0 for usage in usages]
    written = [usage.cache_creation_input_tokens or 0 for usage in usages]
    return PlainAnswers(
        [line.custom_id for line in plain],
        texts,
        [message.model for message in messages],
        [message.stop_reason for message in messages],
        [line.duration_s for line in plain],
        [usage.input_tokens + c + w for usage, c, w in zip(usages, cached, written, strict=True)],
        [usage.output_tokens for usage in usages],
        cached,
        written,
    )


def _text(message: _Message) -> str:
    content = message.content
    if len(content) == 1 and type(content[0]) is _Text:
        return content[0].text
    for block in content:
        if type(block) is _Given:
            return bytes(block.input).decode()
    return "".join([block.text for block in content if type(block) is _Text])


def _tokens(said: _Usage) -> tuple[int, int, int, int]:
    """Input with all that was cached, output, read from the cache, written to it."""
    cached, written = said.cache_read_input_tokens or 0, said.cache_creation_input_tokens or 0
    return said.input_tokens + cached + written, said.output_tokens, cached, written


def _decode_any(line: bytes) -> Answer:
    """The tolerant way in: shapes that are rare, and those not seen yet."""
    whole = load_json(line)
    if not isinstance(whole, dict) or not isinstance(whole.get("custom_id"), str):
        raise ValueError("not a result line: no object with a custom_id")
    status = whole.get("status_code")
    outcome = _outcome(whole.get("result"), status if isinstance(status, int) else None)
    return Answer(whole["custom_id"], outcome, seconds(whole.get("duration_s")))


def _outcome(result: Any, status: int | None) -> Outcome:
    result = result if isinstance(result, dict) else {}
    match result.get("type"):
        case "succeeded":
            return _billed(message_outcome(load_inner(result.get("message"))))
        case "errored":
            return _failed(load_inner(result.get("error")), None if status is None or 200 <= status < 300 else status)
        case "canceled":
            return Failed(FailureKind.CANCELLED, "canceled: it was not run")
        case "expired":
            return Failed(FailureKind.EXPIRED, "expired: the batch's window closed before it ran")
        case other:
            return Failed(FailureKind.SERVER_ERROR, f"a result of an unknown type: {shorten(str(other), 80)}")


def _billed(outcome: Outcome) -> Outcome:
    """A call that ended well is billed, whatever its answer is worth."""
    if not isinstance(outcome, Failed) or outcome.usage is not None:
        return outcome
    return msgspec.structs.replace(outcome, usage=_UNSTATED)


def message_outcome(body: Any) -> Outcome:
    """The outcome of a message: what it says, or which paid failure it is."""
    content = body.get("content") if isinstance(body, dict) else None
    if not isinstance(content, list):
        return Failed(FailureKind.SERVER_ERROR, f"a success without an answer in it: {shorten(str(body), 200)}")
    usage = usage_of(body)
    model, finish = (value if isinstance(value := body.get(key), str) else None for key in ("model", "stop_reason"))
    blocks = [block for block in content if isinstance(block, dict)]
    text = "".join(b["text"] for b in blocks if b.get("type") == "text" and isinstance(b.get("text"), str))
    used = [block for block in blocks if block.get("type") == "tool_use"]
    given = next((block.get("input") for block in used if block.get("name") == ANSWER_TOOL), None)
    text = text if given is None else json_text(given)
    calls = json_text([_call(block) for block in used]) if used and given is None else None
    said = text or calls or ""
    if finish == "refusal":
        return Failed(FailureKind.CONTENT_FILTER, _why_refused(body), usage, said or None, finish, model)
    if finish in _CUT:
        why = _CUT[finish] if said else "the output cap was used up before any text"
        return Failed(FailureKind.TRUNCATED, why, usage, said or None, finish, model)
    if not said or said.isspace():
        return Failed(FailureKind.EMPTY, "the answer has no text", usage, said or None, finish, model)
    return Succeeded(said, usage, finish, model, calls)


def _why_refused(body: Mapping[str, Any]) -> str:
    details = body.get("stop_details")
    told = details.get("explanation") or details.get("category") if isinstance(details, dict) else None
    return f"the model refused: {shorten(str(told), 300)}" if told else "the model refused"


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    """A tool that the model calls, as chat completions say it."""
    function = {"name": block.get("name"), "arguments": json_text(block.get("input"))}
    return {"id": block.get("id"), "type": "function", "function": function}


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The usage block of a message; None if there is none that makes sense."""
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    fresh, written = usage.get("input_tokens"), usage.get("output_tokens")
    if not (is_count(fresh) and is_count(written)):
        return None
    cached, kept = count(usage.get("cache_read_input_tokens")), count(usage.get("cache_creation_input_tokens"))
    return Usage(fresh + cached + kept, written, cached, kept)


def _failed(error: Any, status: int | None) -> Failed:
    kind, message, _ = facts(error)
    failure = _kind_of_type(kind) if status is None else _kind_of_status(status)
    text = ": ".join(part for part in (kind, message) if part)
    return Failed(failure, text or (f"status {status}" if status is not None else "no reason given"))


def _kind_of_type(kind: str) -> FailureKind:
    return FailureKind.BAD_REQUEST if kind in _REFUSED else _RETRIED.get(kind, FailureKind.SERVER_ERROR)


def _kind_of_status(status: int) -> FailureKind:
    if status == 429:
        return FailureKind.RATE_LIMIT
    refused = 400 <= status < 500 and status not in (408, 409)
    return FailureKind.BAD_REQUEST if refused else FailureKind.SERVER_ERROR


def facts(error: Any) -> tuple[str, str, str]:
    """``(type, message, code)`` of an error, each on one line; in batches it lies within another.

    The code is that of its details, such as ``enforced_spend_limit_reached``.
    """
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        return "", shorten(str(error), 200) if error is not None else "", ""
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else ""
    kind, message = error.get("type") or "", error.get("message") or ""
    return shorten(str(kind), 80), shorten(str(message), 500), shorten(str(code or ""), 80)


# -- what we write -----------------------------------------------------------------------------


def line_pieces(url: str) -> tuple[bytes, bytes, bytes]:
    """The fixed parts of a shard line, newline included. A batch asks one endpoint, which no line names."""
    return b'{"custom_id":', b',"params":', b"}\n"


def reply_line(custom_id: str, reply: LiveReply, duration_s: float) -> bytes:
    """``reply`` as a line of a result file with ``duration_s`` and ``status_code``; `decode_line` reads it back."""
    body = on_one_line(reply.body)
    ran = 200 <= reply.status < 300 and own_error(reply.body) is None
    result = (b"succeeded", b"message") if ran else (b"errored", b"error")
    request_id = reply.request_id if reply.request_id.isascii() else scrub(reply.request_id)
    return (b'{"custom_id":%b,"result":{"type":"%b","%b":%b},"status_code":%d,"request_id":%b,"duration_s":%b}\n') % (
        encode(custom_id),
        *result,
        body,
        reply.status,
        encode(request_id),
        encode(duration_s),
    )


def error_body(message: str) -> bytes:
    """An error in this shape, for what no server wrote."""
    return encode({"type": "error", "error": {"type": "invalid_request_error", "message": scrub(message)}})


def own_error(body: bytes) -> dict[str, Any] | None:
    """The error object of a body in Anthropic's own error shape; None for anyone else's."""
    if b'"error"' not in body:
        return None
    try:
        whole = load_json(body)
    except ValueError:
        return None
    error = whole.get("error") if isinstance(whole, dict) and whole.get("type") == "error" else None
    is_own = isinstance(error, dict) and all(isinstance(error.get(key), str) for key in ("type", "message"))
    return error if is_own else None


def is_own(status: int, body: bytes) -> bool:
    """Whether ``body`` is in Anthropic's own shape: a message where ``status`` is a success, else an error."""
    if not 200 <= status < 300:
        return own_error(body) is not None
    try:
        _decode_shape(body)
    except NOT_STRICT:
        return _holds_message(body) or own_error(body) is not None
    return True


def _holds_message(body: bytes) -> bool:
    """The tolerant look, for JSON as it is really sent."""
    try:
        whole = load_json(body)
    except ValueError:
        return False
    return isinstance(whole, dict) and whole.get("type") == "message" and isinstance(whole.get("content"), list)


class AnthropicLines:
    """The part of a provider that reads and writes lines in this shape."""

    line_pieces = staticmethod(line_pieces)
    decode = staticmethod(decode_line)
    decode_plain = staticmethod(decode_plain)
    reply_line = staticmethod(reply_line)
    error_body = staticmethod(error_body)

    def is_own(self, reply: LiveReply) -> bool:
        return is_own(reply.status, reply.body)
