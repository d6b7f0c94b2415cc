"""What the simulator takes for a request in Gemini's format, and for an upload's file name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nightmill.simulator.gemini import reading, showing, uploads
from nightmill.simulator.gemini.errors import GeminiError


def _read(body: Any) -> reading.Generate:
    return reading.read(msgspec.json.encode(body), reading.Generate)


def test_both_spellings_mean_the_same() -> None:
    """camelCase and snake_case, numbers as strings, and nulls, as protobuf's JSON allows."""
    camel = _read(
        {
            "contents": [{"parts": [{"text": "x"}], "role": "user"}],
            "systemInstruction": {"parts": [{"text": "s"}]},
            "generationConfig": {"maxOutputTokens": 5, "thinkingConfig": {"thinkingBudget": 0}},
        }
    )
    snake = _read(
        {
            "contents": [{"parts": [{"text": "x"}], "role": "user"}],
            "system_instruction": {"parts": [{"text": "s"}], "role": None},
            "generation_config": {"max_output_tokens": "5", "thinking_config": {"thinking_budget": 0}},
        }
    )
    assert camel == snake
    reading.check(snake)


def test_the_callers_own_names_are_left_alone() -> None:
    """Property names of a schema and arguments of a call are no fields, however they are spelt."""
    schema = {"type": "object", "properties": {"first_name": {"type": "string"}}, "required": ["first_name"]}
    asked = _read(
        {
            "contents": [{"parts": [{"function_call": {"name": "f", "args": {"a_b": 1}}}]}],
            "generation_config": {"response_mime_type": "application/json", "response_json_schema": schema},
        }
    )
    assert reading.schema_of(asked.generation_config) == schema
    called = asked.contents[0].parts[0].function_call
    assert called is not None
    assert called["args"] == {"a_b": 1}


def test_a_request_inside_a_line_is_read_in_either_spelling() -> None:
    """A line, and an inline request, keep their request as it came."""
    for body in ({"key": "k", "request": {"a_b": 1}}, {"key": "k", "request": {"a_b": 1}, "metadata": None}):
        assert msgspec.json.decode(reading.read(msgspec.json.encode(body), reading.Line).request) == {"a_b": 1}
    wanted = {"batch": {"display_name": "d", "input_config": {"requests": {"requests": [{"request": {"x_y": 1}}]}}}}
    batch = reading.read(msgspec.json.encode(wanted), reading.Create).batch
    assert batch is not None
    assert batch.input_config is not None
    assert batch.input_config.requests is not None
    assert msgspec.json.decode(batch.input_config.requests.requests[0].request) == {"x_y": 1}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "x"}, 'Unknown name "prompt"'),
        ({"contents": [{"parts": [{"txt": "x"}]}]}, 'Unknown name "txt" at \'contents'),
        ({"contents": "x"}, "Invalid value at 'contents'"),
        ([], "Invalid value at"),
    ],
)
def test_what_is_no_request_is_refused(body: Any, says: str) -> None:
    """The field that is wrong is named, and the status is 400."""
    with pytest.raises(GeminiError, match=says) as refused:
        _read(body)
    assert (refused.value.status, refused.value.word) == (400, "INVALID_ARGUMENT")


_TEXT = [{"parts": [{"text": "x"}]}]


@pytest.mark.parametrize(
    "body",
    [
        {"contents": []},
        {"contents": [{"parts": []}]},
        {"contents": [{"parts": [{}]}]},
        {"contents": [{"parts": [{"text": "x", "inlineData": {"mimeType": "a/b", "data": ""}}]}]},
        {"contents": [{"parts": [{"text": "x"}], "role": "system"}]},
        {"contents": _TEXT, "generationConfig": {"temperature": 3}},
        {"contents": _TEXT, "generationConfig": {"maxOutputTokens": 0}},
        {"contents": _TEXT, "generationConfig": {"responseSchema": {"type": "OBJECT"}}},
        {"contents": _TEXT, "generationConfig": {"responseMimeType": "text/html"}},
        {"contents": _TEXT, "cachedContent": "cachedContents/none"},
    ],
)
def test_what_no_model_can_answer_is_refused(body: Any) -> None:
    """Well-formed, and still a 400."""
    asked = _read(body)
    with pytest.raises(GeminiError) as refused:
        reading.check(asked)
    assert refused.value.status == 400


def test_googles_schema_as_json_schema() -> None:
    """Types in capitals, nullable, bounds as strings, both spellings of a keyword."""
    given = {
        "type": "OBJECT",
        "properties": {
            "any_of": {"anyOf": [{"type": "STRING", "format": "enum", "enum": ["a"]}, {"type": "INTEGER"}]},
            "many": {"type": "ARRAY", "items": {"type": "NUMBER", "nullable": True}, "min_items": "2"},
        },
        "propertyOrdering": ["many", "any_of"],
    }
    assert reading.plain_schema(given) == {
        "type": "object",
        "properties": {
            "any_of": {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer"}]},
            "many": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 2},
        },
    }


@pytest.mark.parametrize("name", ["files/a", "files/0-a", "files/" + "a" * 40, "plain"])
def test_names_a_file_may_have(name: str) -> None:
    """Up to 40 lowercase letters, digits and dashes."""
    assert uploads.check_name(name) == name.removeprefix("files/")


@pytest.mark.parametrize(
    "name", ["files/", "files/A", "files/-a", "files/a-", "files/a_b", "files/" + "a" * 41, "files/é"]
)
def test_names_a_file_may_not_have(name: str) -> None:
    """Everything else is a 400."""
    with pytest.raises(GeminiError) as refused:
        uploads.check_name(name)
    assert refused.value.status == 400


def test_pages_follow_the_last_item_shown() -> None:
    """What is added in front while someone pages shows nothing twice and hides nothing."""
    names = ["c", "b", "a"]
    first, token = showing.page(names, names, size="2", token=None, default=50, most=100)
    names.insert(0, "d")
    second, end = showing.page(names, names, size="2", token=token, default=50, most=100)
    assert (first, second, end) == (["c", "b"], ["a"], None)
    for size, wrong in (("x", None), (None, "no token")):
        with pytest.raises(GeminiError):
            showing.page(names, names, size=size, token=wrong, default=50, most=100)


def test_counts_are_strings_and_zeroes_are_left_out() -> None:
    """As protobuf's JSON writes 64-bit integers."""
    assert showing.stats(5, 3, 0) == {"requestCount": "5", "successfulRequestCount": "3", "pendingRequestCount": "2"}
