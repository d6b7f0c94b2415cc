"""Structured answers from end to end: a class goes in, its objects come out, at every provider and in each lane."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest
from cli_kit import Place

import nightmill as nm
from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X5")

MODELS = (
    *("openai/gpt-4o-mini", "openai/gpt-5-mini", "anthropic/claude-haiku-4-5", "anthropic/claude-sonnet-5-5"),
    "gemini/gemini-2.5-flash",
)


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=40)
    role: str | None = None


class Review(pydantic.BaseModel):
    mood: Mood
    people: list[Person] = pydantic.Field(max_length=2)
    best: Person | None = pydantic.Field(default=None, description="Whom it praises.")
    stars: int = pydantic.Field(ge=1, le=5)


def _environment(folder: Path, url: str) -> dict[str, str]:
    root = url.removesuffix("/v1")
    return Place(folder, url).env | {
        "ANTHROPIC_API_KEY": "sk-ant-test", "ANTHROPIC_BASE_URL": root, "GEMINI_API_KEY": "gm-test",
        "GEMINI_BASE_URL": root,
    }  # fmt: skip


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nm.Mill]:
    folder = tmp_path_factory.mktemp("home")
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in _environment(folder, url).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        with nm.Mill() as mill:
            yield mill


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lane", ["live", "batch"])
def test_answers_come_back_as_objects(mill: nm.Mill, model: str, lane: str) -> None:
    """Nested models, enums, bounds and fields that may be null, whichever way the provider binds answers."""
    job = mill.run([f"one {lane}", f"two {lane}"], prompt="Review: {{ text }}", model=model, lane=lane, schema=Review)
    assert job.counts["succeeded"] == 2, job.failures()
    found = list(job.objects(Review))
    assert all(isinstance(each, Review) for each in found)
    assert all(isinstance(each.mood, Mood) and len(each.people) <= 2 for each in found if each)


@pytest.mark.parametrize(
    ("model", "bound"),
    [
        ("openai/gpt-4o-mini", lambda body: body["body"]["response_format"]["json_schema"]["strict"]),
        ("anthropic/claude-haiku-4-5", lambda body: body["params"]["tool_choice"]["type"] == "tool"),
        ("anthropic/claude-sonnet-5-5", lambda body: body["params"]["output_config"]["format"]["schema"]),
        ("gemini/gemini-2.5-flash", lambda body: body["request"]["generationConfig"]["responseJsonSchema"]),
    ],
)
def test_each_provider_binds_answers_in_its_own_way(mill: nm.Mill, model: str, bound: object) -> None:
    """Strict, a forced tool, an output format or a response schema; what is not bound is noted."""
    quote = mill.quote(["x"], prompt="Review {{ text }}", model=model, schema=Review)
    assert callable(bound)
    assert bound(quote.first_request)
    assert any("maxLength" in note for note in quote.notes) is (model != "anthropic/claude-haiku-4-5")


def test_answers_that_do_not_fit_are_failed_rows_with_a_place(tmp_path: Path) -> None:
    """From the command line: the reason is short, the text is kept, the cost is told."""
    fault = {"fault": "wrong_schema_answers", "count": 1, "times": 1}
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=[fault])) as url:
        place = Place(tmp_path, url)
        schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": []})
        done = place.run("run", place.rows(6), "--prompt", "Say {{ text }}", "--model", "openai/gpt-4o-mini", "--lane",
                         "batch", "--schema", schema, "--out", "r.jsonl", "--json", "--yes")  # fmt: skip
        assert (done.code, done.json["failed"], done.json["succeeded"]) == (3, 1, 5)
        assert "does not bind answers: n may be left out" in done.err
        failed = next(row for row in place.results("r.jsonl") if not row["success"])
        assert failed["error_kind"] == "invalid_output"
        assert failed["error"].startswith("$: ")
        assert failed["response"]
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
