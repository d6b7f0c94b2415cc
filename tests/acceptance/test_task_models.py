"""Built-in tasks on the models that people use: what a model does not take gives way, what a user says does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

import nightmill as nm
from nightmill import errors
from nightmill.simulator import SimulatorConfig, in_thread
from nightmill.tasks import known_tasks

MODELS = (
    *("openai/gpt-5-mini", "openai/gpt-4o-mini", "openai/gpt-6-sol", "openai/o4-mini"),
    *("anthropic/claude-haiku-4-5", "anthropic/claude-opus-4-8", "anthropic/claude-haiku-5-5"),
    *("anthropic/claude-sonnet-5-5", "anthropic/claude-opus-5-5", "anthropic/claude-fable-5-2"),
    *("gemini/gemini-2.5-flash", "gemini/gemini-3.8-flash"),
)
TASKS = [each.name for each in known_tasks() if each.load().endpoint == "chat"]
THINKERS = ("gpt-5-mini", "o4-mini", "claude-haiku-5-5", "gemini-2.5-flash")


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nm.Mill]:
    folder = tmp_path_factory.mktemp("home")
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url, pytest.MonkeyPatch.context() as patch:
        env = Place(folder, url).env | {
            "ANTHROPIC_API_KEY": "sk-ant-test", "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
            "GEMINI_API_KEY": "gm-test", "GEMINI_BASE_URL": url.removesuffix("/v1"),
        }  # fmt: skip
        for name, value in env.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        with nm.Mill() as mill:
            yield mill


@pytest.mark.req("X5", "D2")
@pytest.mark.parametrize("model", MODELS)
def test_every_built_in_task_runs_on_every_model(mill: nm.Mill, model: str) -> None:
    """No parameter of a task of ours keeps it from a model, and every answer fits the task's schema."""
    for task in TASKS:
        job = mill.run([{"text": "candle"}], task=task, model=model)
        assert (job.state, job.counts["succeeded"]) == ("completed", 1), (task, job.failures())


@pytest.mark.req("D2")
@pytest.mark.parametrize("model", [each for each in MODELS if each.endswith(THINKERS)])
def test_a_built_in_cap_leaves_room_to_think(mill: nm.Mill, model: str) -> None:
    """Where thoughts count against the output cap, that of a task of ours is raised, and the quote says so."""
    quote = mill.quote([{"text": "lamp"}], task="define", model=model)
    assert _cap(quote.first_request) == 8_000
    assert any("output cap 8,000 instead of 800" in note for note in quote.notes)
    asked = mill.quote([{"text": "lamp"}], task="define", model=model, max_output=700)
    assert _cap(asked.first_request) == 700


@pytest.mark.req("X5", "X2")
@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-haiku-4-5", "claude-haiku-5-5"])
def test_what_a_provider_says_of_tools_by_itself_is_held(mill: nm.Mill, model: str) -> None:
    """Tokens that are billed though nobody wrote them are part of the most that a job can cost."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    asked = {"prompt": "{{ text }}", "model": f"anthropic/{model}", "schema": schema, "max_output": 20}
    at_most = mill.quote([{"text": "x"}], **asked).at_most_usd
    job = mill.run([{"text": "x"}], **asked)
    assert job.counts["succeeded"] == 1
    assert 0 < job.spent <= at_most


@pytest.mark.req("D2")
def test_what_a_user_says_is_refused_where_a_model_does_not_take_it(mill: nm.Mill, tmp_path: Path) -> None:
    """A temperature in an option, or in a task file of the user's own, is never dropped."""
    with pytest.raises(errors.CannotCarry, match="takes no temperature"):
        mill.quote([{"text": "x"}], task="define", model="openai/gpt-5-mini", temperature=0.5)
    own = tmp_path / "own.toml"
    own.write_text('prompt = "{{ text }}"\ntemperature = 0.5\n')
    with pytest.raises(errors.CannotCarry, match="takes no temperature"):
        mill.quote([{"text": "x"}], task=own, model="openai/gpt-5-mini")


def _cap(body: dict[str, Any]) -> Any:
    sent = body.get("body") or body.get("params") or body.get("request") or body
    config = sent.get("generationConfig", sent)
    return config.get("maxOutputTokens") or config.get("max_tokens") or config.get("max_completion_tokens")
