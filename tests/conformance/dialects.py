"""How each provider's wire says the same things, for the tests that every provider has to pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightmill.providers import Provider
from nightmill.providers.function import Function
from nightmill.providers.local import Local
from nightmill.providers.resolve import resolve

Own = tuple[int, bytes, bool]  # status, body, whether it is the provider's own


@dataclass(frozen=True)
class Dialect:
    """One wire format, in small."""

    answer: Callable[[str, str, bool], dict[str, Any]]  # text, "stop" | "length" | "content_filter", with usage?
    stop: str  # its word for an answer that is complete
    asked: Callable[[dict[str, Any]], tuple[str, int]]  # last text and output cap of a body
    sent: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]  # custom_id and body of a shard line
    own: Sequence[Own]


def _openai_answer(text: str, finish: str, with_usage: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    answer: dict[str, Any] = {"id": "c", "object": "chat.completion", "model": "snapshot"}
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {**answer, "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 2}}} if with_usage else answer


OPENAI = Dialect(
    _openai_answer,
    "stop",
    lambda body: (body["messages"][-1]["content"], body["max_completion_tokens"]),
    lambda line: (line["custom_id"], line["body"]),
    (
        (200, json.dumps(_openai_answer("yes", "stop", True)).encode(), True),
        (200, b'{"choices": [], "score": NaN}', True),
        (200, b'{"data": []}', True),
        (200, b'{"error": {"message": "no"}}', True),
        (200, b'{"choices": [', False),
        (503, b'{"error": {"message": "overloaded", "type": "server_error"}}', True),
    ),
)


def _anthropic_answer(text: str, finish: str, with_usage: bool) -> dict[str, Any]:
    word = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}[finish]
    answer: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "snapshot"}
    answer |= {"content": [{"type": "text", "text": text}] if text else [], "stop_reason": word}
    usage = {"input_tokens": 5, "output_tokens": 3, "cache_read_input_tokens": 2, "cache_creation_input_tokens": None}
    return {**answer, "usage": usage} if with_usage else answer


ANTHROPIC = Dialect(
    _anthropic_answer,
    "end_turn",
    lambda body: (body["messages"][-1]["content"], body["max_tokens"]),
    lambda line: (line["custom_id"], line["params"]),
    (
        (200, json.dumps(_anthropic_answer("yes", "stop", True)).encode(), True),
        (200, b'{"type": "message", "content": [], "score": NaN}', True),
        (200, b'{"type": "error", "error": {"type": "api_error", "message": "no"}}', True),
        (200, b'{"content": []}', False),
        (200, b'{"type": "message", "content": [', False),
        (529, b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}', True),
        (503, b'{"error": {"message": "a gateway in other words", "type": "server_error"}}', False),
    ),
)


def _gemini_answer(text: str, finish: str, with_usage: bool) -> dict[str, Any]:
    word = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}[finish]
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": word, "index": 0}
    answer = {"candidates": [candidate], "modelVersion": "snapshot", "responseId": "r"}
    counts = {"promptTokenCount": 7, "cachedContentTokenCount": 2, "candidatesTokenCount": 1, "thoughtsTokenCount": 2}
    return {**answer, "usageMetadata": {**counts, "totalTokenCount": 10}} if with_usage else answer


GEMINI = Dialect(
    _gemini_answer,
    "STOP",
    lambda body: (body["contents"][-1]["parts"][-1]["text"], body["generationConfig"]["maxOutputTokens"]),
    lambda line: (line["key"], line["request"]),
    (
        (200, json.dumps(_gemini_answer("yes", "stop", True)).encode(), True),
        (200, b'{"candidates": [], "score": NaN}', True),
        (200, b'{"promptFeedback": {"blockReason": "SAFETY"}}', True),
        (200, b'{"embedding": {"values": [0.1]}}', True),
        (200, b'{"error": {"code": 13, "message": "no", "status": "INTERNAL"}}', True),
        (200, b'{"candidates": [', False),
        (503, b'{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}', True),
        (503, b'[{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}]', True),
        (503, b'{"error": {"message": "a gateway in other words", "type": "server_error"}}', False),
    ),
)


def _python(messages: Sequence[Mapping[str, Any]], temperature: float = 0.0) -> str:
    return f"{messages[-1]['content']} {temperature}"


def _openai() -> Provider:
    env = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    return resolve("openai/gpt-4o-mini", env=env, model_paths={})


def _anthropic() -> Provider:
    return resolve("anthropic/claude-haiku-4-5", env={"ANTHROPIC_API_KEY": "sk-secret"}, model_paths={})


def _gemini() -> Provider:
    return resolve("gemini/gemini-2.5-flash", env={"GEMINI_API_KEY": "sk-secret"}, model_paths={})


MAKERS: Mapping[str, tuple[Callable[[], Provider], Dialect]] = {
    "openai": (_openai, OPENAI),
    "anthropic": (_anthropic, ANTHROPIC),
    "gemini": (_gemini, GEMINI),
    "local": (lambda: Local("tiny", Path("tiny.gguf")), OPENAI),
    "python": (lambda: Function("m.f", _python), OPENAI),
}
