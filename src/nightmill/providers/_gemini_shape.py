"""The Gemini wire shape of answers: the lines of result files, what is in them, and how ours are written.

A line is ``{"key": custom_id, "response": GenerateContentResponse | "error": google.rpc.Status}``; that of a
live call has its HTTP status beside it. Nothing here sends anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

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

_UNSTATED = Usage(0, 0, estimated=True)  # billed, and not a word of how much

# What the numbers of google.rpc.Code are called.
_CODES = dict(
    enumerate(
        (
            *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
            *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
            *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
        )
    )
)
_BAD_REQUEST = frozenset(
    ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION", "OUT_OF_RANGE",
     "UNIMPLEMENTED", "UNAUTHENTICATED")
)  # fmt: skip
_ENDED = frozenset((None, "", "STOP", "FINISH_REASON_UNSPECIFIED"))
_WITHHELD = frozenset(
    ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY",
     "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR")
)  # fmt: skip
_BROKE_OFF = frozenset(("OTHER", "IMAGE_OTHER"))  # the model stopped and does not say why


# -- result lines ------------------------------------------------------------------------------


class _OfPrompt(msgspec.Struct, gc=False, rename="camel"):
    modality: str = ""
    token_count: Tokens = 0


class _Usage(msgspec.Struct, gc=False, rename="camel"):
    prompt_token_count: Tokens
    candidates_token_count: Tokens = 0
    thoughts_token_count: Tokens = 0
    cached_content_token_count: Tokens = 0
    tool_use_prompt_token_count: Tokens = 0
    total_token_count: Tokens = 0
    prompt_tokens_details: list[_OfPrompt] | None = None
    cache_tokens_details: list[_OfPrompt] | None = None

    @property
    def heard(self) -> int:
        return sum([each.token_count for each in self.prompt_tokens_details or () if each.modality == "AUDIO"])

    @property
    def heard_before(self) -> int:
        return sum([each.token_count for each in self.cache_tokens_details or () if each.modality == "AUDIO"])

    @property
    def sent(self) -> int:
        return self.prompt_token_count + self.tool_use_prompt_token_count

    @property
    def written(self) -> int:
        """What is billed as output; at least what the total has beyond the prompt."""
        said = self.candidates_token_count + self.thoughts_token_count
        return max(said, self.total_token_count - self.sent)


class _Part(msgspec.Struct, gc=False, rename="camel"):
    text: str
    thought: None = None


class _Content(msgspec.Struct, gc=False, rename="camel"):
    parts: tuple[_Part]


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content
    finish_reason: Literal["STOP"]


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: None = None


class _Body(msgspec.Struct, gc=False, rename="camel"):
    candidates: tuple[_Candidate]
    usage_metadata: _Usage | None = None
    model_version: str | None = None
    prompt_feedback: _Feedback | None = None
    error: None = None


class _Line(msgspec.Struct, gc=False):
    """A line with a plain, complete answer: nearly all of them. Any other shape is a ValidationError."""

    key: str
    response: _Body
    error: None = None
    status_code: Literal[200] | None = None
    duration_s: float | None = None


class _Values(msgspec.Struct, gc=False):
    values: msgspec.Raw  # its digits as they came


class _Vector(msgspec.Struct, gc=False, rename="camel"):
    embedding: _Values
    token_count: Tokens | None = None
    usage_metadata: _Usage | None = None


class _VectorLine(msgspec.Struct, gc=False):
    key: str
    response: _Vector
    error: None = None
    status_code: Literal[200] | None = None
    duration_s: float | None = None


class _Shape(msgspec.Struct, gc=False, rename="camel"):
    """The parts that tell an answer; all else is skipped over."""

    candidates: list[msgspec.Raw] | None = None
    prompt_feedback: dict[str, msgspec.Raw] | None = None
    embedding: dict[str, msgspec.Raw] | None = None
    usage_metadata: dict[str, msgspec.Raw] | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_lines = msgspec.json.Decoder(_Line).decode_lines
_decode_vector = msgspec.json.Decoder(_VectorLine).decode
_decode_shape = msgspec.json.Decoder(_Shape).decode


def decode_line(line: bytes) -> Answer:
    """One line of a result file, or of `reply_line`.

    Raises:
        ValueError: it is not a result line: malformed, cut, or without a key.
    """
    try:
        plain = _decode_line(line)
    except msgspec.ValidationError:
        return _decode_embedding(line) or _decode_any(line)
    except NOT_STRICT:
        return _decode_any(line)
    body = plain.response
    (candidate,) = body.candidates
    text = candidate.content.parts[0].text
    if not text or text.isspace():
        return _decode_any(line)
    usage = None if body.usage_metadata is None else _plain_usage(body.usage_metadata)
    return Answer(plain.key, Succeeded(text, usage, candidate.finish_reason, body.model_version), plain.duration_s)


def decode_plain(lines: Sequence[bytes]) -> PlainAnswers | None:
    """What `decode_line` says of lines that are all plain, complete answers with usage; None for others."""
    plain = decoded_together(_decode_lines, lines)
    if plain is None:
        return None
    bodies = [line.response for line in plain]
    candidates = [body.candidates[0] for body in bodies]
    texts = [candidate.content.parts[0].text for candidate in candidates]
    usages = [body.usage_metadata for body in bodies if body.usage_metadata]
    if len(usages) < len(plain) or not all(texts) or any(map(str.isspace, texts)):
        return None
    if any(usage.heard for usage in usages):
        return None
    return PlainAnswers(
        [line.key for line in plain],
        texts,
        [body.model_version for body in bodies],
        [candidate.finish_reason for candidate in candidates],
        [line.duration_s for line in plain],
        [usage.sent for usage in usages],
        [usage.written for usage in usages],
        [usage.cached_content_token_count for usage in usages],
        [0] * len(plain),
    )


def _plain_usage(said: _Usage) -> Usage:
    return Usage(
        said.sent, said.written, said.cached_content_token_count, audio_tokens=said.heard,
        cached_audio_tokens=said.heard_before,
    )  # fmt: skip


def _decode_embedding(line: bytes) -> Answer | None:
    """A line with a vector; None for any other."""
    try:
        plain = _decode_vector(line)
    except NOT_STRICT:
        return None
    vector, values = plain.response, bytes(plain.response.embedding.values)
    if values[:1] != b"[" or values == b"[]":
        return None
    usage = None if vector.usage_metadata is None else _plain_usage(vector.usage_metadata)
    if usage is None and vector.token_count is not None:
        usage = Usage(vector.token_count, 0)
    return Answer(plain.key, Succeeded(f"[{values.decode()}]", usage, None, None), plain.duration_s)


def _decode_any(line: bytes) -> Answer:
    """The tolerant way in: every shape that is documented, and those not seen yet."""
    whole = load_json(line)
    if not isinstance(whole, dict) or not isinstance(whole.get("key"), str):
        raise ValueError("not a result line: no object with a key")
    return Answer(whole["key"], _line_outcome(whole), seconds(whole.get("duration_s")))


def _line_outcome(whole: dict[str, Any]) -> Outcome:
    response, status = whole.get("response"), whole.get("status_code")
    if whole.get("error"):
        failed = _failed(whole["error"], None)
        return msgspec.structs.replace(failed, usage=usage_of(response)) if isinstance(response, dict) else failed
    response = load_inner(response)
    if type(status) is int and not 200 <= status < 300:
        return _failed(error_in(response) or response, status)
    if response is None:
        return Failed(FailureKind.SERVER_ERROR, "the line has neither a response nor an error")
    return body_outcome(response)


def body_outcome(body: Any) -> Outcome:
    """The outcome of a 2xx body. One that ended well is billed, whatever its answer is worth."""
    outcome = _unpriced_outcome(body)
    if isinstance(outcome, Failed) and outcome.usage is None and not error_in(body):
        return msgspec.structs.replace(outcome, usage=_UNSTATED)
    return outcome


def _unpriced_outcome(body: Any) -> Outcome:
    if not isinstance(body, dict):
        return Failed(FailureKind.SERVER_ERROR, f"a success without an answer in it: {shorten(str(body), 200)}")
    if error := error_in(body):
        return _failed(error, None)
    if isinstance(body.get("embedding"), dict):
        return Failed(FailureKind.EMPTY, "the embedding is missing from the answer", usage_of(body))
    usage, model = usage_of(body), body.get("modelVersion")
    model = model if isinstance(model, str) else None
    feedback = body.get("promptFeedback")
    blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
    given = body.get("candidates")
    candidates = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    if blocked and not any(_said(each).text for each in candidates):
        message = f"the prompt was blocked: {shorten(str(blocked), 80)}"
        return Failed(FailureKind.CONTENT_FILTER, message, usage, None, shorten(str(blocked), 80), model)
    if given is None and feedback is None and usage is None:
        return Failed(FailureKind.SERVER_ERROR, f"a success without an answer in it: {shorten(str(body), 200)}")
    return _best(candidates, usage, model)


class _Said(NamedTuple):
    """What a candidate says."""

    text: str
    calls: str | None = None  # functions it calls, as JSON


def _best(candidates: Sequence[dict[str, Any]], usage: Usage | None, model: str | None) -> Outcome:
    """Of several candidates the first that is complete counts, else the first that says something; all are kept."""
    said = [_said(each) for each in candidates]
    outcomes = [
        _judge(what, each, usage, model) for what, each in zip(said, candidates, strict=True)
    ] or [Failed(FailureKind.EMPTY, "the answer has no candidate", usage, None, None, model)]  # fmt: skip
    if len(outcomes) == 1:
        return outcomes[0]
    good = next((outcome for outcome in outcomes if isinstance(outcome, Succeeded)), None)
    if good is None:
        return next((outcome for outcome in outcomes if outcome.text), outcomes[0])
    return msgspec.structs.replace(good, parsed=json_text([each.text or each.calls for each in said]))


def _judge(said: _Said, candidate: Mapping[str, Any], usage: Usage | None, model: str | None) -> Outcome:
    """Succeeded, or the kind of paid failure this answer is."""
    finish = candidate.get("finishReason")
    finish = shorten(finish, 80) if isinstance(finish, str) else None
    why, text = candidate.get("finishMessage"), said.text or said.calls or ""
    because = f": {shorten(why, 300)}" if isinstance(why, str) and why else ""
    if finish in _WITHHELD:
        message = f"withheld by the provider's filter ({finish}){because}"
        return Failed(FailureKind.CONTENT_FILTER, message, usage, text or None, finish, model)
    if finish == "MAX_TOKENS":
        message = "cut at the output cap" if text else "the output cap was used up before any text"
        return Failed(FailureKind.TRUNCATED, message, usage, text or None, finish, model)
    if finish in _BROKE_OFF:
        return Failed(FailureKind.SERVER_ERROR, f"the model broke off: {finish}{because}", usage, text, finish, model)
    if finish not in _ENDED:
        message = f"the model stopped: {finish}{because}"
        return Failed(FailureKind.INVALID_OUTPUT, message, usage, text or None, finish, model)
    if not text or text.isspace():
        return Failed(FailureKind.EMPTY, "the answer has no text", usage, text or None, finish, model)
    return Succeeded(text, usage, finish, model, said.calls)


def _said(candidate: Mapping[str, Any]) -> _Said:
    content = candidate.get("content")
    given = content.get("parts") if isinstance(content, dict) else None
    parts = [part for part in given if isinstance(part, dict)] if isinstance(given, list) else []
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str) and not part.get("thought")]
    calls = [part["functionCall"] for part in parts if isinstance(part.get("functionCall"), dict)]
    return _Said("".join(texts), json_text([_as_tool_call(i, call) for i, call in enumerate(calls)]) if calls else None)


def _as_tool_call(i: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """A function call in the words that requests are written in, so that it can be answered in them."""
    function = {"name": str(call.get("name") or ""), "arguments": json_text(call.get("args") or {})}
    return {"id": str(call.get("id") or f"call_{i}"), "type": "function", "function": function}


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The usage of a body; None if there is none that makes sense."""
    said = body.get("usageMetadata")
    if not isinstance(said, dict) or not is_count(said.get("promptTokenCount")):
        return None
    named = {name: count(said.get(field)) for name, field in _USAGE_FIELDS.items()}
    prompt, cached = _by_modality(said.get("promptTokensDetails")), _by_modality(said.get("cacheTokensDetails"))
    return _plain_usage(_Usage(**named, prompt_tokens_details=prompt, cache_tokens_details=cached))


def _by_modality(parts: Any) -> list[_OfPrompt]:
    told = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [_OfPrompt(str(part.get("modality")), count(part.get("tokenCount"))) for part in told]


_USAGE_FIELDS = dict(zip(_Usage.__struct_fields__, _Usage.__struct_encode_fields__, strict=True))
del _USAGE_FIELDS["prompt_tokens_details"], _USAGE_FIELDS["cache_tokens_details"]


# -- errors ------------------------------------------------------------------------------------


def error_in(body: Any) -> dict[str, Any] | None:
    """The error object of a body in Gemini's own error shape; None for anyone else's."""
    if isinstance(body, list) and len(body) == 1:  # some of its front ends wrap it so
        body = body[0]
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    return error if isinstance(error.get("status"), str) or type(error.get("code")) is int else None


def own_error(body: bytes) -> dict[str, Any] | None:
    """`error_in` of the bytes of a body."""
    try:
        return error_in(load_json(body))
    except ValueError:
        return None


def word_of(error: Mapping[str, Any]) -> str:
    """The status word of an error: ``RESOURCE_EXHAUSTED``; empty where it tells none."""
    status, code = error.get("status"), error.get("code")
    if isinstance(status, str) and status:
        return shorten(status, 80)
    return _CODES.get(code, "") if type(code) is int else ""


def _failed(error: Any, status: int | None) -> Failed:
    """``status``: of the HTTP answer, where there was one."""
    if not isinstance(error, dict):
        message = shorten(str(error), 200) if error is not None else f"status {status}"
        return Failed(_kind_of_status(status) if status is not None else FailureKind.SERVER_ERROR, message)
    word, code = word_of(error), error.get("code")
    if status is None and not word and type(code) is int and 400 <= code < 600:
        status = code
    kind = _kind_of_status(status) if status is not None else _kind_of_word(word)
    text = ": ".join(filter(None, (word, shorten(str(error.get("message") or ""), 500))))
    return Failed(kind, text or "no reason given")


def _kind_of_status(status: int) -> FailureKind:
    if status == 429:
        return FailureKind.RATE_LIMIT
    return FailureKind.BAD_REQUEST if 400 <= status < 500 and status not in (408, 409) else FailureKind.SERVER_ERROR


def _kind_of_word(word: str) -> FailureKind:
    if word == "RESOURCE_EXHAUSTED":
        return FailureKind.RATE_LIMIT
    if word == "CANCELLED":
        return FailureKind.CANCELLED
    return FailureKind.BAD_REQUEST if word in _BAD_REQUEST else FailureKind.SERVER_ERROR


# -- what we write -----------------------------------------------------------------------------


def reply_line(custom_id: str, reply: LiveReply, duration_s: float) -> bytes:
    """``reply`` as a line of a result file with its status and ``duration_s``; `decode_line` reads it back."""
    body = on_one_line(reply.body)
    return b'{"key":%b,"response":%b,"status_code":%d,"duration_s":%b}\n' % (
        encode(custom_id), body, reply.status, encode(duration_s),
    )  # fmt: skip


def error_body(message: str) -> bytes:
    """An error in this shape, for what no server wrote."""
    return encode({"error": {"code": 400, "message": scrub(message), "status": "INVALID_ARGUMENT"}})


def is_own(status: int, body: bytes) -> bool:
    """Whether ``body`` is in Gemini's own shape: an answer where ``status`` is a success, else an error."""
    if not 200 <= status < 300:
        return own_error(body) is not None
    try:
        shape = _decode_shape(body)
    except NOT_STRICT:
        return _holds_answer(body)
    told = (shape.candidates, shape.prompt_feedback, shape.embedding, shape.usage_metadata)
    return any(each is not None for each in told) or own_error(body) is not None


def _holds_answer(body: bytes) -> bool:
    """The tolerant look, for JSON as it is really sent."""
    try:
        whole = load_json(body)
    except ValueError:
        return False
    return isinstance(whole, dict) and (isinstance(whole.get("candidates"), list) or error_in(whole) is not None)


class GeminiLines:
    """The part of a provider that reads and writes lines in this shape."""

    def line_pieces(self, url: str) -> tuple[bytes, bytes, bytes]:
        return b'{"key":', b',"request":', b"}\n"

    decode = staticmethod(decode_line)
    decode_plain = staticmethod(decode_plain)
    reply_line = staticmethod(reply_line)
    error_body = staticmethod(error_body)

    def is_own(self, reply: LiveReply) -> bool:
        return is_own(reply.status, reply.body)
