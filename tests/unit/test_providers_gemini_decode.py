"""What Gemini's result lines mean, beside Google's own types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.genai import types

from nightmill.providers import LiveReply
from nightmill.providers._gemini_shape import decode_line, decode_plain, error_body, reply_line
from nightmill.types import Failed, FailureKind, Succeeded, Usage

SAMPLES = Path(__file__).parents[1] / "data" / "wire" / "gemini_output.jsonl"
USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}
PAID = Usage(7, 3)


def candidate(*parts: Any, finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0, **more}
    return said if finish is None else {**said, "finishReason": finish}


def outcome_of(response: Any = None, **line: Any) -> Any:
    whole = {"key": "t-1", **({} if response is None else {"response": response}), **line}
    answer = decode_line(json.dumps(whole).encode() + b"\n")
    assert answer.custom_id == "t-1"
    return answer.outcome


def test_the_samples_say_what_googles_types_read() -> None:
    """Text, finish, model and what is billed: thoughts are output."""
    answered, refused = SAMPLES.read_bytes().splitlines()
    official = types.GenerateContentResponse.model_validate(json.loads(answered)["response"])
    usage = official.usage_metadata
    assert usage is not None
    outcome = decode_line(answered).outcome
    assert isinstance(outcome, Succeeded)
    assert (outcome.text, outcome.finish_reason, outcome.model) == (official.text, "STOP", official.model_version)
    written = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
    assert outcome.usage == Usage(usage.prompt_token_count or 0, written)
    failed = decode_line(refused).outcome
    assert (failed.kind, failed.message, failed.usage) == (
        FailureKind.BAD_REQUEST, "INVALID_ARGUMENT: Invalid request", None)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (USAGE, PAID),
        ({**USAGE, "thoughtsTokenCount": 5, "totalTokenCount": 15}, Usage(7, 8)),
        ({**USAGE, "cachedContentTokenCount": 4}, Usage(7, 3, cached_tokens=4)),
        ({**USAGE, "toolUsePromptTokenCount": 2, "totalTokenCount": 12}, Usage(9, 3)),
        ({"promptTokenCount": 7, "totalTokenCount": 30}, Usage(7, 23)),  # what only the total tells
        ({"promptTokenCount": 7}, Usage(7, 0)),
    ],
)
def test_usage_is_what_is_billed(said: dict[str, int], usage: Usage) -> None:
    """One line at a time and many at once count the same, and so does a line of an odd shape."""
    body = {"candidates": [candidate({"text": "yes"})], "usageMetadata": said}
    assert outcome_of(body).usage == usage
    assert outcome_of({**body, "candidates": [candidate({"text": "ye"}, {"text": "s"})]}).usage == usage
    line = json.dumps({"key": "t-1", "response": body}).encode()
    many = decode_plain([line + b"\n", line])
    assert many is not None
    assert Usage(many.input_tokens[1], many.output_tokens[1], many.cached_tokens[1]) == usage


def test_sound_is_counted_apart_cached_or_not() -> None:
    """It has prices of its own, of which no column of many lines could tell."""
    prompt, cached = (
        [{"modality": "TEXT", "tokenCount": 1}, {"modality": "AUDIO", "tokenCount": heard}] for heard in (6, 3)
    )
    said = {**USAGE, "cachedContentTokenCount": 4, "promptTokensDetails": prompt, "cacheTokensDetails": cached}
    body = {"candidates": [candidate({"text": "yes"})], "usageMetadata": said}
    usage = Usage(7, 3, cached_tokens=4, audio_tokens=6, cached_audio_tokens=3)
    assert outcome_of(body).usage == usage
    assert outcome_of({**body, "candidates": [candidate({"text": "ye"}, {"text": "s"})]}).usage == usage
    assert decode_plain([json.dumps({"key": "t-1", "response": body}).encode()]) is None


@pytest.mark.parametrize(
    "said", [None, {}, {"candidatesTokenCount": 3}, {"promptTokenCount": -1}, {"promptTokenCount": "7"}]
)
def test_usage_that_makes_no_sense_is_none(said: Any) -> None:
    """It is estimated then, and never zero."""
    outcome = outcome_of({"candidates": [candidate({"text": "yes"})], "usageMetadata": said})
    assert isinstance(outcome, Succeeded)
    assert outcome.usage is None
    empty = outcome_of({"candidates": [], "usageMetadata": said})
    assert empty.usage == Usage(0, 0, estimated=True)


WITHHELD, CUT = FailureKind.CONTENT_FILTER, FailureKind.TRUNCATED


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ({"candidates": [candidate({"text": "half"}, finish="MAX_TOKENS")]}, CUT, "half"),
        ({"candidates": [{"finishReason": "MAX_TOKENS", "index": 0}]}, CUT, None),
        ({"candidates": [candidate({"text": "oh", "thought": True}, finish="MAX_TOKENS")]}, CUT, None),
        ({"candidates": [candidate({"text": "bits"}, finish="SAFETY")]}, WITHHELD, "bits"),
        ({"candidates": [{"finishReason": "RECITATION"}]}, WITHHELD, None),
        ({"candidates": [{"finishReason": "PROHIBITED_CONTENT"}]}, WITHHELD, None),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, WITHHELD, None),
        ({"candidates": [], "promptFeedback": {"blockReason": "OTHER"}}, WITHHELD, None),
        ({"candidates": []}, FailureKind.EMPTY, None),
        ({}, FailureKind.EMPTY, None),
        ({"candidates": [candidate()]}, FailureKind.EMPTY, None),
        ({"candidates": [candidate({"text": "only thought", "thought": True})]}, FailureKind.EMPTY, None),
        ({"candidates": [candidate({"text": " \n"})]}, FailureKind.EMPTY, " \n"),
        ({"candidates": [candidate({"text": "x"}, finish="OTHER")]}, FailureKind.SERVER_ERROR, "x"),
        ({"candidates": [candidate(finish="MALFORMED_FUNCTION_CALL")]}, FailureKind.INVALID_OUTPUT, None),
        ({"candidates": [candidate({"text": "x"}, finish="NEW_WORD")]}, FailureKind.INVALID_OUTPUT, "x"),
    ],
)
def test_a_paid_answer_that_is_none_has_its_kind(body: dict[str, Any], kind: FailureKind, text: str | None) -> None:
    """Cut, withheld, empty or broken off: its tokens are paid, and its text is kept."""
    outcome = outcome_of({**body, "usageMetadata": USAGE})
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.usage, outcome.text) == (kind, PAID, text)
    assert outcome.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 3, "message": "m"}, FailureKind.BAD_REQUEST),
        ({"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}, FailureKind.BAD_REQUEST),
        ({"code": 400, "message": "m"}, FailureKind.BAD_REQUEST),
        ({"code": 8, "message": "m"}, FailureKind.RATE_LIMIT),
        ({"code": 429, "message": "m"}, FailureKind.RATE_LIMIT),
        ({"code": 1, "message": "m"}, FailureKind.CANCELLED),
        ({"code": 4, "message": "m"}, FailureKind.SERVER_ERROR),
        ({"code": 13, "message": "m"}, FailureKind.SERVER_ERROR),
        ({"code": 503, "message": "m"}, FailureKind.SERVER_ERROR),
        ({"message": "m"}, FailureKind.SERVER_ERROR),
        ("m", FailureKind.SERVER_ERROR),
    ],
)
def test_an_error_of_a_line_has_its_kind_and_costs_nothing(error: Any, kind: FailureKind) -> None:
    """By google.rpc's number, by its word, or by an HTTP status."""
    outcome = outcome_of(error=error)
    assert (outcome.kind, outcome.usage) == (kind, None)
    assert outcome.message.endswith("m")


def test_a_line_without_either_is_a_failure_that_cost_nothing() -> None:
    """The row ends, and is tried again."""
    assert outcome_of() == Failed(FailureKind.SERVER_ERROR, "the line has neither a response nor an error")


def test_functions_that_are_called_are_an_answer() -> None:
    """In the words that requests are written in, so that they can be answered in them."""
    call = {"functionCall": {"name": "look", "args": {"a": "é"}}}
    outcome = outcome_of({"candidates": [candidate({**call, "thoughtSignature": "c2ln"})], "usageMetadata": USAGE})
    assert isinstance(outcome, Succeeded)
    (called,) = json.loads(outcome.text)
    assert called == {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"a":"é"}'}}
    assert outcome.parsed == outcome.text
    told = outcome_of({"candidates": [candidate({"text": "I look."}, call)], "usageMetadata": USAGE})
    assert (told.text, json.loads(told.parsed)[0]["function"]["name"]) == ("I look.", "look")


def test_of_several_candidates_the_first_complete_one_counts() -> None:
    """All texts are kept beside it; without a complete one the row failed as the first that says something did."""
    cut, good = candidate({"text": "cu"}, finish="MAX_TOKENS"), candidate({"text": "good"})
    outcome = outcome_of({"candidates": [cut, good], "usageMetadata": USAGE})
    assert (outcome.text, json.loads(outcome.parsed), outcome.usage) == ("good", ["cu", "good"], PAID)
    failed = outcome_of({"candidates": [candidate(finish="SAFETY"), cut], "usageMetadata": USAGE})
    assert (failed.kind, failed.text) == (CUT, "cu")


def test_a_vector_keeps_its_digits() -> None:
    """As they came, in a list of one, with what is told of tokens."""
    line = b'{"key":"t-1","response":{"embedding":{"values":[0.10,-1e-7]},"tokenCount":4}}\n'
    outcome = decode_line(line).outcome
    assert (outcome.text, outcome.usage) == ("[[0.10,-1e-7]]", Usage(4, 0))
    live = reply_line(
        "t-1", LiveReply(200, b'{"embedding":{"values":[1]},"usageMetadata":{"promptTokenCount":9}}'), 1.0
    )
    assert decode_line(live).outcome.usage == Usage(9, 0)
    assert outcome_of({"embedding": {"values": []}}).kind is FailureKind.EMPTY
    assert outcome_of({"embedding": {"values": [1]}}).usage is None


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (LiveReply(429, error_body("m")), FailureKind.RATE_LIMIT),
        (LiveReply(400, error_body("m")), FailureKind.BAD_REQUEST),
        (LiveReply(200, b'{"error":{"code":503,"message":"m","status":"UNAVAILABLE"}}'), FailureKind.SERVER_ERROR),
        (
            LiveReply(400, b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]'),
            FailureKind.BAD_REQUEST,
        ),
        (LiveReply(502, b"m"), FailureKind.SERVER_ERROR),
    ],
)
def test_a_live_refusal_cost_nothing(reply: LiveReply, kind: FailureKind) -> None:
    """Its kind is that of its status, and what was said is told."""
    outcome = decode_line(reply_line("t-1", reply, 0.1)).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.usage) == (kind, None)
    assert outcome.message.endswith("m")
