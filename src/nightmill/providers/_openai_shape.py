"""The OpenAI wire shape: result lines, error bodies, rate headers, batch objects.

Shared by every provider that speaks it, also by those without HTTP, whose answers are written in
the same shape. Nothing here sends anything.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from nightmill.errors import CannotCarry, Limited, ProviderError, Refused, Uncertain
from nightmill.providers import BatchView, LiveReply, PlainAnswers, RateHint, Request
from nightmill.providers._http import Reply, retry_after_s, shorten
from nightmill.types import Answer, Failed, FailureKind, Outcome, Succeeded, Usage

log = logging.getLogger(__name__)

METADATA_KEY = "nightmill"
OUT_OF_MONEY = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "enforced_spend_limit_reached",
        "spend_limit_reached",
        "spending_limit_reached",
    }
)
MODEL_ERROR = "model_error"  # our own code for a model that runs in this process and failed

_ABOUT_JOB = frozenset(
    {"model_not_found", "mismatched_model", "model_mismatch", "invalid_url", "url_mismatch", "unsupported_model"}
)
_ABOUT_ACCOUNT = ("api_key", "auth", "permission", "quota", "billing", "account", "organization", "spend_limit")
_REQUEST_ERRORS = ("invalid", "missing_", "context_length", "unsupported", "bad_request", "string_above", "unknown_p")
_FILTERED = frozenset({"content_filter", "content_policy_violation"})
_CAP = re.compile(r"limit:?\s*([\d][\d,_.]*)\s*enqueued", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|d|h|m|s)")
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_encode = msgspec.json.encode
_UNSTATED = Usage(0, 0, estimated=True)  # billed, and not a word of how much


# -- result lines ------------------------------------------------------------------------------


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


_NO_DETAILS = _Details()


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Message(msgspec.Struct, gc=False):
    content: str
    refusal: Literal[""] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: Literal["stop"] | None = None


class _Body(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    model: str | None = None
    usage: _Usage | None = None


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


_NOT_STRICT = (msgspec.DecodeError, ValueError, RecursionError)  # ValueError: bytes that are not UTF-8
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_lines = msgspec.json.Decoder(_Line).decode_lines
_decode_shape = msgspec.json.Decoder(_Shape).decode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode  # one whole JSON text; does not look whether it is UTF-8
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
    except _NOT_STRICT:
        return _decode_any(line)
    body = plain.response.body
    choice = body.choices[0]
    text = choice.message.content
    if not text or text.isspace():
        return _decode_any(line)
    said, usage = body.usage, None
    if said is not None:  # as in `_plain_usage`, without a call for every line
        details = said.prompt_tokens_details
        cached = details.cached_tokens or 0 if details else 0
        written = details.cache_write_tokens or 0 if details else 0
        usage = Usage(said.prompt_tokens, said.completion_tokens, cached, written)
    return Answer(plain.custom_id, Succeeded(text, usage, choice.finish_reason, body.model), plain.duration_s)


def decode_plain(lines: Sequence[bytes]) -> PlainAnswers | None:
    """What `decode_line` says of lines that are all plain, complete chat answers with usage; None for others."""
    try:
        plain = _decode_lines(b"".join(lines))
    except _NOT_STRICT:
        return None
    if len(plain) != len(lines) or {line[:1] for line in lines} != {b"{"}:
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
        [usage.completion_tokens for usage in usages],
        [each.cached_tokens or 0 for each in details],
        [each.cache_write_tokens or 0 for each in details],
    )


def _decode_embeddings(line: bytes) -> Answer | None:
    """A line with nothing but vectors in its body; None for any other."""
    try:
        plain = _decode_vectors(line)
    except _NOT_STRICT:
        return None
    body = plain.response.body
    vectors = [bytes(item.embedding) for item in sorted(body.data, key=lambda item: item.index)]
    if not 200 <= plain.response.status_code < 300 or not all(vector[:1] in b'["' for vector in vectors):
        return None
    if not vectors or b"[]" in vectors or b'""' in vectors:
        return None
    text = f"[{b','.join(vectors).decode()}]"
    return Answer(plain.custom_id, Succeeded(text, _plain_usage(body.usage), None, body.model), plain.duration_s)


def _plain_usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    if details is None:
        return Usage(usage.prompt_tokens, usage.completion_tokens)
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        details.cached_tokens or 0,
        details.cache_write_tokens or 0,
    )


def _decode_any(line: bytes) -> Answer:
    """The tolerant way in: every shape seen in the wild, and those not seen yet."""
    whole = load_json(line)
    if not isinstance(whole, dict) or not isinstance(whole.get("custom_id"), str):
        raise ValueError("not a result line: no object with a custom_id")
    duration = whole.get("duration_s")
    return Answer(
        scrub(whole["custom_id"]),
        _line_outcome(whole.get("response"), whole.get("error")),
        float(duration) if isinstance(duration, int | float) else None,
    )


def load_json(data: bytes | str) -> Any:
    """JSON as it is really sent: NaN, lone surrogate escapes and stray bytes do not lose an answer.

    Raises:
        ValueError: it is not JSON even so.
    """
    try:
        return msgspec.json.decode(data)
    except _NOT_STRICT:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    try:
        return json.loads(text.lstrip("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def scrub(text: str) -> str:
    """``text`` with each lone surrogate replaced, so that it can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _line_outcome(response: Any, error: Any) -> Outcome:
    if error:
        failed = _failed(_facts(error), status=None)
        paid = response.get("body") if isinstance(response, dict) else None
        return msgspec.structs.replace(failed, usage=usage_of(paid)) if isinstance(paid, dict) else failed
    if not isinstance(response, dict):
        return Failed(FailureKind.SERVER_ERROR, "the line has neither a response nor an error")
    status, body = response.get("status_code"), response.get("body")
    if not isinstance(status, int):
        return Failed(FailureKind.SERVER_ERROR, "the response has no status")
    if isinstance(body, str):
        body = _inner(body)
    if 200 <= status < 300:
        return _billed(body_outcome(body), body)
    return _failed(_facts(body.get("error") if isinstance(body, dict) else body), status=status)


def _billed(outcome: Outcome, body: Any) -> Outcome:
    """A call that ended well is billed, whatever its answer is worth; one that the provider calls failed is not."""
    if not isinstance(outcome, Failed) or outcome.usage is not None or (isinstance(body, dict) and body.get("error")):
        return outcome
    return msgspec.structs.replace(outcome, usage=_UNSTATED)


def _inner(body: str) -> Any:
    """A body that had to travel as a string, read once more; text that is no JSON stays text."""
    try:
        return load_json(body)
    except ValueError:
        return body


def body_outcome(body: Any) -> Outcome:
    """The outcome of a 2xx body: chat completion, embeddings or response object."""
    if isinstance(body, dict):
        if isinstance(body.get("choices"), list):
            return _chat_outcome(body)
        if isinstance(body.get("data"), list):
            return _embedding_outcome(body)
        if isinstance(body.get("output"), list):
            return _response_outcome(body)
        if body.get("error"):
            return _failed(_facts(body["error"]), status=None)
    return Failed(FailureKind.SERVER_ERROR, f"a success without an answer in it: {shorten(str(body), 200)}")


def _chat_outcome(body: dict[str, Any]) -> Outcome:
    choices = [choice for choice in body["choices"] if isinstance(choice, dict)]
    said = [(choice, *_said(choice)) for choice in choices]
    choice, text, refusal = next((entry for entry in said if entry[1]), said[0] if said else ({}, "", ""))
    return _judge(text, refusal, choice.get("finish_reason"), usage_of(body), body.get("model"))


def _judge(text: str, refusal: str, finish: Any, usage: Usage | None, model: Any) -> Outcome:
    """Succeeded, or the kind of paid failure this answer is."""
    finish = scrub(finish) if isinstance(finish, str) else None
    model = scrub(model) if isinstance(model, str) else None
    text, refusal = scrub(text), scrub(refusal)
    if refusal:
        return Failed(FailureKind.CONTENT_FILTER, "the model refused", usage, refusal, finish, model)
    if finish == "content_filter":
        message = "withheld by the provider's content filter"
        return Failed(FailureKind.CONTENT_FILTER, message, usage, text or None, finish, model)
    if finish == "length":
        message = "cut at the output cap" if text else "the output cap was used up before any text"
        return Failed(FailureKind.TRUNCATED, message, usage, text or None, finish, model)
    if not text or text.isspace():
        return Failed(FailureKind.EMPTY, "the answer has no text", usage, text or None, finish, model)
    return Succeeded(text, usage, finish, model)


def _said(choice: dict[str, Any]) -> tuple[str, str]:
    """``(text, refusal)`` of a choice; tool calls without text are the text, as JSON."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return "", ""
    text, refusal = _parts(message.get("content"))
    if isinstance(message.get("refusal"), str):
        refusal = message["refusal"] or refusal
    calls = message.get("tool_calls") or message.get("function_call")
    if not text and calls:
        text = json.dumps(calls, ensure_ascii=False, separators=(",", ":"))
    return text, refusal


def _parts(content: Any) -> tuple[str, str]:
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
    items.sort(key=lambda item: _count(item.get("index")))
    text = json.dumps([item["embedding"] for item in items], separators=(",", ":"))
    model = body.get("model")
    return _judge(text if items else "", "", None, usage_of(body), model)


def _response_outcome(body: dict[str, Any]) -> Outcome:
    said = [_parts(item.get("content")) for item in body["output"] if isinstance(item, dict)]
    if body.get("status") == "failed":
        return msgspec.structs.replace(_failed(_facts(body.get("error")), status=None), usage=usage_of(body))
    finish: Any = "stop"
    if body.get("status") == "incomplete":
        details = body.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        finish = "content_filter" if reason == "content_filter" else "length"
    text, refusal = "".join(part[0] for part in said), "".join(part[1] for part in said)
    return _judge(text, refusal, finish, usage_of(body), body.get("model"))


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The usage block of a body, of chat, embeddings or response object; None if there is none."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    sent = usage.get("prompt_tokens", usage.get("input_tokens"))
    if not isinstance(sent, int):
        return None
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    details = details if isinstance(details, dict) else {}
    return Usage(
        sent,
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
        _count(details.get("cached_tokens")),
        _count(details.get("cache_write_tokens")),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _failed(facts: tuple[str, str], *, status: int | None) -> Failed:
    code, message = facts
    kind = _kind_of_code(code) if status is None else _kind_of_status(status, code)
    text = ": ".join(part for part in (code, message) if part)
    return Failed(kind, text or (f"status {status}" if status is not None else "no reason given"))


def _kind_of_code(code: str) -> FailureKind:
    if code == "batch_expired":
        return FailureKind.EXPIRED
    if code == "batch_cancelled":
        return FailureKind.CANCELLED
    if code in _FILTERED:
        return FailureKind.CONTENT_FILTER
    if code == "rate_limit_exceeded":
        return FailureKind.RATE_LIMIT
    if code.startswith(_REQUEST_ERRORS) or code in _ABOUT_JOB:
        return FailureKind.BAD_REQUEST
    return FailureKind.SERVER_ERROR


def _kind_of_status(status: int, code: str) -> FailureKind:
    if status == 429:
        return FailureKind.RATE_LIMIT
    if 400 <= status < 500 and status not in (408, 409):
        return FailureKind.CONTENT_FILTER if code in _FILTERED else FailureKind.BAD_REQUEST
    return FailureKind.MODEL_ERROR if code == MODEL_ERROR else FailureKind.SERVER_ERROR


def _facts(error: Any) -> tuple[str, str]:
    """``(code, message)`` of an error object, each on one line; the type stands in for a missing code."""
    if isinstance(error, dict):
        code = error.get("code") or error.get("type") or ""
        return shorten(str(code), 80), shorten(str(error.get("message") or ""), 500)
    return "", shorten(str(error), 200) if error is not None else ""


# -- what we write -----------------------------------------------------------------------------


def carried(name: str, model: str, request: Request, user_set: frozenset[str]) -> dict[str, Any]:
    """The request as a body for ``model``.

    ``max_tokens`` becomes ``max_completion_tokens``; our defaults that are None are not sent.

    Raises:
        CannotCarry: it streams, names another model, or caps its output twice.
    """
    if request.get("stream"):
        raise CannotCarry("stream is not carried", why="answers are kept whole", fix="leave stream out")
    asked = request.get("model")
    if "model" in user_set and asked not in (None, model, f"{name}/{model}"):
        raise CannotCarry(
            f"the request names the model {asked}",
            why=f"all requests of a job go to {name}/{model}",
            fix="leave model out of the rows, or run them as a job of their own",
        )
    kept = {key: value for key, value in request.items() if value is not None or key in user_set}
    body: dict[str, Any] = {**kept, "model": model}
    body.pop("stream", None)
    body.pop("stream_options", None)
    old = body.pop("max_tokens", None)
    if old is not None:
        if "max_tokens" in user_set and "max_completion_tokens" not in user_set:
            body["max_completion_tokens"] = old
        elif body.setdefault("max_completion_tokens", old) != old and "max_tokens" in user_set:
            why = "max_tokens and max_completion_tokens say different numbers"
            raise CannotCarry("the request has two output caps", why=why, fix="leave max_tokens out")
    return body


def json_line(body: Mapping[str, Any]) -> bytes:
    """``body`` as JSON on one line.

    Raises:
        CannotCarry: it holds what JSON in UTF-8 cannot say.
    """
    try:
        return _encode(body)
    except (TypeError, ValueError) as exc:
        why = shorten(str(exc), 200)
        raise CannotCarry("the request cannot be written as JSON", why=why, fix="correct the row or the task") from exc


def cap_of(body: Mapping[str, Any]) -> int:
    """Most output tokens that ``body`` can be billed for: its cap, for every choice it asks for."""
    return int(body.get("max_completion_tokens") or 0) * int(body.get("n") or 1)


def inputs_of(body: Mapping[str, Any]) -> int:
    """How many texts ``body`` asks to embed."""
    given = body["input"]
    return len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1


def line_pieces(url: str) -> tuple[bytes, bytes, bytes]:
    """The fixed parts of a shard line, newline included: before the custom_id, before the body, the end."""
    return b'{"custom_id":', b',"method":"POST","url":' + _encode(url) + b',"body":', b"}\n"


def reply_line(custom_id: str, reply: LiveReply, duration_s: float) -> bytes:
    """``reply`` as a line of an output file with ``duration_s``; `decode_line` reads it back."""
    body = reply.body
    try:
        body.decode()
        _check_json(body)
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    except _NOT_STRICT:
        body = _encode(body.decode("utf-8", "replace"))
    request_id = reply.request_id if reply.request_id.isascii() else scrub(reply.request_id)
    return (
        b'{"id":null,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null,"duration_s":%b}\n'
    ) % (_encode(custom_id), reply.status, _encode(request_id), body, _encode(duration_s))


def error_body(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> bytes:
    """An error in this shape, for what no server wrote."""
    return _encode({"error": {"message": scrub(message), "type": kind, "param": None, "code": code}})


class OpenAILines:
    """The part of a provider that reads and writes lines in this shape."""

    self_hosted = False

    def line_pieces(self, url: str) -> tuple[bytes, bytes, bytes]:
        return line_pieces(url)

    decode = staticmethod(decode_line)  # called for every answer: one frame less
    decode_plain = staticmethod(decode_plain)

    def reply_line(self, custom_id: str, reply: LiveReply, duration_s: float) -> bytes:
        return reply_line(custom_id, reply, duration_s)

    def error_body(self, message: str) -> bytes:
        return error_body(message)

    def is_own(self, reply: LiveReply) -> bool:
        return is_own(reply.status, reply.body)


# -- refusals and limits -----------------------------------------------------------------------


def own_error(body: bytes) -> dict[str, Any] | None:
    """The error object of a body in the provider's own error shape; None for anyone else's."""
    try:
        whole = load_json(body)
    except ValueError:
        return None
    error = whole.get("error") if isinstance(whole, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def is_own(status: int, body: bytes) -> bool:
    """Whether ``body`` is in the provider's own shape: an answer where ``status`` is a success, else an error."""
    if not 200 <= status < 300:
        return own_error(body) is not None
    try:
        shape = _decode_shape(body)
    except _NOT_STRICT:
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


def failure(op: str, reply: Reply, now: float) -> ProviderError:
    """What an answer that is no clean success means; to be raised by the caller.

    `Refused` and `Limited` only on the provider's own word; everything else is `Uncertain`.
    """
    error = own_error(reply.body)
    code, message = _facts(error)
    status = reply.status
    if code in OUT_OF_MONEY:
        return _refused(op, status, code, message, scope="account")
    if code == "token_limit_exceeded" or "nqueued token limit" in message:
        return _enqueued_limit(code, message)
    if status == 429:
        after = retry_after_s(reply.headers, now)
        return Limited(f"{op}: asked to wait", why=message or "status 429", after_s=after)
    if error is not None and status in (400, 401, 403, 404, 413, 422):
        return _refused(op, status, code, message, scope=_scope(status, error))
    seen = message or shorten(reply.body[:1000].decode("utf-8", "replace"), 200) or "an empty body"
    return Uncertain(f"{op}: an answer that cannot be trusted", why=f"status {status}: {seen}")


def _scope(status: int, error: Mapping[str, Any]) -> str:
    code = str(error.get("code") or "")
    if status in (401, 403) or any(word in code for word in _ABOUT_ACCOUNT):
        return "account"
    if code in _ABOUT_JOB or error.get("param") == "model":
        return "job"
    if status == 404:
        gone = re.search(r"no (such |)(file|batch)", str(error["message"]), re.IGNORECASE)
        return "shard" if gone else "job"
    return "shard"


_FIXES = {
    "account": "check the key, its project and its billing",
    "job": "check the model's name and the base URL",
}


def _refused(op: str, status: int, code: str, message: str, *, scope: str, line: int | None = None) -> Refused:
    return Refused(
        f"{op}: refused" + (f" ({code})" if code else ""),
        why=message,
        fix=_FIXES.get(scope, ""),
        status=status,
        provider_code=code,
        scope=scope,
        line=line,
    )


def _enqueued_limit(code: str, message: str) -> Limited:
    found = _CAP.search(message)
    digits = re.sub(r"\D", "", found[1]) if found else ""
    return Limited(
        "the enqueued-token limit is reached",
        why=message or code,
        fix="it is tried again when open batches have ended",
        enqueued_tokens_cap=int(digits) if digits else None,
    )


# -- rate headers ------------------------------------------------------------------------------


def rate_hint(headers: Mapping[str, str], now: float) -> RateHint | None:
    """What the headers of an answer say about the quota; None if nothing."""
    if _HINTS.isdisjoint(headers):
        return None
    hint = RateHint(
        limit_requests=_whole(headers.get("x-ratelimit-limit-requests")),
        limit_tokens=_whole(headers.get("x-ratelimit-limit-tokens")),
        remaining_requests=_whole(headers.get("x-ratelimit-remaining-requests")),
        remaining_tokens=_whole(headers.get("x-ratelimit-remaining-tokens")),
        reset_requests_s=duration_s(headers.get("x-ratelimit-reset-requests")),
        reset_tokens_s=duration_s(headers.get("x-ratelimit-reset-tokens")),
        retry_after_s=retry_after_s(headers, now),
    )
    return None if hint == _NO_HINT else hint


_NO_HINT = RateHint()
_HINTS = frozenset(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
) | {"retry-after", "retry-after-ms"}


@lru_cache(maxsize=1024)  # asked with every answer, and mostly the same few
def duration_s(text: str | None) -> float | None:
    """Seconds of a duration such as ``8.64s``, ``14ms``, ``6m0s`` or a plain number; None if it is none."""
    if not text:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else None


def _whole(text: str | None) -> int | None:
    return int(text) if text and len(text) <= 15 and text.isascii() and text.isdigit() else None


def must_stop(status: int, body: bytes) -> bool:
    """True when no call of this job will pass until someone acts: key, quota, spend limit, model or endpoint."""
    if status in (401, 403, 404):
        return True
    return 400 <= status < 500 and _facts(own_error(body))[0] in OUT_OF_MONEY


# -- batch objects -----------------------------------------------------------------------------

_PHASES = {
    "validating": "running",
    "in_progress": "running",
    "finalizing": "running",
    "cancelling": "cancelling",
    "completed": "ended",
    "expired": "ended",
    "cancelled": "ended",
    "failed": "failed",
}


def batch_view(batch: Mapping[str, Any]) -> BatchView:
    """A batch object. Its ``id`` and ``status`` must be texts; anything else may be missing."""
    status = batch["status"]
    phase = _PHASES.get(status)
    if phase is None:
        log.warning("batch %s has an unknown status; taken as running", batch["id"])
        phase = "running"
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    output, ran = _text(batch.get("output_file_id")), _count(counts.get("completed"))
    if phase == "failed" and (output or ran):
        phase = "ended"  # something ran after all: what there is was paid for and is collected
    metadata = batch.get("metadata")
    return BatchView(
        id=batch["id"],
        status=status,
        phase=phase,
        created_at=_moment(batch.get("created_at")),
        total=_count_or_none(counts.get("total")),
        completed=_count_or_none(counts.get("completed")),
        failed=_count_or_none(counts.get("failed")),
        output_file=output,
        error_file=_text(batch.get("error_file_id")),
        submission=_text(metadata.get(METADATA_KEY)) if isinstance(metadata, dict) else None,
        input_file=_text(batch.get("input_file_id")),
        refusal=_why_failed(batch.get("errors")) if phase == "failed" else None,
        model=_text(batch.get("model")),
    )


def _why_failed(errors: Any) -> Limited | Refused:
    data = errors.get("data") if isinstance(errors, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    first = entries[0] if entries else {}
    code, message = _facts(first)
    if code == "token_limit_exceeded" or "nqueued token limit" in message:
        return _enqueued_limit(code, message)
    line = first.get("line")
    line = line if isinstance(line, int) and line > 0 else None
    scope = _scope(0, {**first, "message": message})
    if scope == "shard" and line is not None:
        scope = "line"
    return _refused("validation", 0, code, message or "no reason given", scope=scope, line=line)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _moment(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _count_or_none(value: Any) -> int | None:
    return value if isinstance(value, int) else None
