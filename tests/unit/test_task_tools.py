"""What a task says of tools and choices, in each endpoint's words, judged by OpenAI's types and its document."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

from nightmill.plan import Compiled, Parameters
from nightmill.providers.openai import OpenAI
from nightmill.tasks import Task, bind
from nightmill.types import Endpoint

pytestmark = pytest.mark.req("X13")

DATA = Path(__file__).parents[1] / "data"
TOOLS = [
    {"name": "look"},
    {"name": "book", "description": "Book.", "strict": True, "parameters": {
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}},
]  # fmt: skip
TYPES: dict[str, Any] = {"chat": CompletionCreateParamsNonStreaming, "responses": ResponseCreateParamsNonStreaming}


@functools.cache
def judge(name: str) -> Any:
    document = json.loads((DATA / "openai-openapi-2026-08-21.json").read_text())
    return jsonschema_rs.validator_for({**document, "$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize("choice", [None, "auto", "required", "book"])
@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_tools_are_said_as_each_endpoint_has_them(endpoint: Endpoint, choice: str | None) -> None:
    """A tool that says nothing of strictness is not strict anywhere; a choice by name is that tool."""
    task = Task("t", endpoint, prompt="{{ text }}", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    compiled = Compiled(OpenAI("gpt-4o-mini", key="k"), bind(task, ["text"]), Parameters())
    (body,) = compiled.bodies(pa.record_batch({"text": ["x"]}), [0])
    TypeAdapter(TYPES[endpoint]).validate_json(body)
    said = json.loads(body)
    assert (said["parallel_tool_calls"], "tool_choice" in said) == (False, choice is not None)
    if endpoint == "chat":
        judge("CreateChatCompletionRequest").validate(said)
        assert [tool["function"] for tool in said["tools"]] == TOOLS
        named = {"type": "function", "function": {"name": "book"}}
    else:
        for tool in said["tools"]:
            judge("FunctionTool").validate(tool)
        assert [(tool["name"], tool["strict"]) for tool in said["tools"]] == [("look", False), ("book", True)]
        named = {"type": "function", "name": "book"}
    assert said.get("tool_choice") == (named if choice == "book" else choice)


def test_choices_are_held_at_their_number() -> None:
    """Three answers may cost three times the cap; one is what there is without asking."""
    of = [
        Compiled(
            OpenAI("gpt-4o-mini", key="k"), bind(Task("t", prompt="{{ text }}", choices=n), ["text"]), Parameters()
        )
        for n in (None, 1, 3)
    ]
    assert [each.cap_tokens for each in of] == [2000, 2000, 6000]
