"""Tools and several choices: carried to each provider in its own words, or refused; calls read alike from all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X13")

OPENAI, ANTHROPIC, GEMINI = "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"
BOOK = {"type": "object", "properties": {"seats": {"type": "integer"}}, "required": ["seats"]}
TASK = """
prompt = "Book for {{ text }}"
tool_choice = "required"

[[tools]]
name = "book"
description = "Book seats."
parameters = { type = "object", properties = { seats = { type = "integer" } }, required = ["seats"] }
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with in_thread(SimulatorConfig(speed=1000.0, batch_s=20.0, answer_sigma=0.0)) as url:
        place, root = Place(tmp_path, url), url.removesuffix("/v1")
        place.env |= {"ANTHROPIC_API_KEY": "sk-ant", "ANTHROPIC_BASE_URL": root, "GEMINI_API_KEY": "g",
                      "GEMINI_BASE_URL": root}  # fmt: skip
        yield place


def _run(place: Place, text: str, model: str, *more: str) -> Done:
    (place.folder / "t.toml").write_text(text)
    rows = place.rows(2)
    return place.run("run", rows, "--task", "t.toml", "--model", model, "--yes", "--json", "--out", "o.jsonl", *more)


def _rows(place: Place, done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"] > 0
    return place.results("o.jsonl")


@pytest.mark.parametrize("lane", ["batch", "live"])
@pytest.mark.parametrize("endpoint", ["chat", "responses"])
@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC, GEMINI])
def test_calls_read_alike_whoever_answers(place: Place, model: str, endpoint: str, lane: str) -> None:
    """A task's tool is called, and its call has one form: an id, a name, arguments as JSON that fit its parameters."""
    done = _run(place, f'endpoint = "{endpoint}"\n{TASK}', model, "--lane", lane)
    if endpoint == "responses" and model != OPENAI:
        assert (done.code, done.json["error"]["code"]) == (2, "cannot_carry")
        return
    for row in _rows(place, done):
        (call,) = row["parsed"]
        assert json.loads(row["response"]) == row["parsed"]
        assert call.keys() == {"id", "type", "function"}
        assert (call["type"], call["function"]["name"], bool(call["id"])) == ("function", "book", True)
        assert isinstance(json.loads(call["function"]["arguments"])["seats"], int)


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC, GEMINI])
def test_requests_with_tools_are_rows_for_every_provider(place: Place, model: str) -> None:
    """A request as chat completions write it, with the tool it insists on, goes to each provider in its own words."""
    body = {
        "messages": [{"role": "user", "content": "two seats"}], "max_completion_tokens": 300,
        "tools": [{"type": "function", "function": {"name": "book", "parameters": BOOK}}],
        "tool_choice": {"type": "function", "function": {"name": "book"}},
    }  # fmt: skip
    (place.folder / "in.jsonl").write_text(json.dumps({"custom_id": "a", "body": body}) + "\n")
    done = place.run("run", "in.jsonl", "--model", model, "--yes", "--json", "--out", "o.jsonl")
    (row,) = _rows(place, done)
    assert row["parsed"][0]["function"]["name"] == "book"


@pytest.mark.parametrize("model", [OPENAI, GEMINI])
def test_several_choices_are_all_kept(place: Place, model: str) -> None:
    """Three answers to a row: the first is its response, all of them stand in parsed, and all are paid."""
    for row in _rows(place, _run(place, 'prompt = "Say {{ text }}"\nchoices = 3\n', model, "--lane", "live")):
        assert (len(row["parsed"]), row["parsed"][0]) == (3, row["response"])


@pytest.mark.parametrize(
    ("model", "text", "why"),
    [
        (ANTHROPIC, 'prompt = "{{ text }}"\nchoices = 2\n', "n is not carried"),
        (OPENAI, 'endpoint = "responses"\nprompt = "{{ text }}"\nchoices = 2\n', "2 choices are not carried"),
        (GEMINI, f"parallel_tool_calls = false\n{TASK}", "parallel_tool_calls is not carried"),
        (OPENAI, 'prompt = "{{ text }}"\ntool_choice = "auto"\n', "has no tools"),
        (OPENAI, f'{TASK}[[tools]]\nname = "book"\n', "a name of its own"),
        (OPENAI, TASK.replace("required", "other", 1), "tool_choice = 'other'"),
        (OPENAI, TASK + '[schema]\ntype = "object"\n', "both tools and a schema"),
        (OPENAI, TASK.replace('type = "object"', 'type = "objet"'), "parameters of book"),
        (OPENAI, f'endpoint = "embeddings"\n{TASK}', "asks for embeddings"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_the_reason(place: Place, model: str, text: str, why: str) -> None:
    """Nothing that a task says of tools and choices is dropped, or sent to be refused row by row."""
    done = _run(place, text, model)
    assert (done.code, place.invoice()["total_nanos"]) == (2, 0)
    assert why in done.err
