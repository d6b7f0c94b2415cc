"""Which commands are the same job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightmill.config import load_settings
from nightmill.mill import Mill, RunOptions

# As programs with ledgers of revision 1 wrote them, for the rows below.
AS_EVER: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"prompt": "Say {{ text }}"}, "16cd5cb007cfec7f100dc6999d4daf7b"),
    "no prompt": ({}, "a7425e604568225e7e904f15f88066f6"),
    "capped": ({"prompt": "x {{ text }}", "limit": 2, "max_output": 50}, "c4f381b1c770392e533da47f0236701b"),
    "built-in, by line": ({"task": "define"}, "06fb2d27833e60facefdc3450adab37b"),
    "built-in, by file": ({"task": "summarize"}, "e9314dbb6b10e9590d95233ca3896d50"),
}
REPHRASE_CAP = 2000  # what the task itself says


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def fingerprint(folder: Path, model: str = "openai/gpt-4o-mini", **asked: Any) -> str:
    (folder / "in.txt").write_text("word\nother\nthird\n")
    env = {"NIGHTMILL_HOME": str(folder / "home"), "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    mill = Mill(load_settings(folder, env))
    try:
        options = RunOptions(("in.txt",), model=model, lane="batch", **asked)
        return mill.prepare(options).plan.fingerprint
    finally:
        mill.close()


@pytest.mark.parametrize("name", AS_EVER)
def test_the_same_command_is_the_same_job_for_older_programs(tmp_path: Path, name: str) -> None:
    """What an older program began and the same command goes on with is not begun, and paid, once more."""
    asked, known = AS_EVER[name]
    assert fingerprint(tmp_path, **asked) == known


@pytest.mark.parametrize("more", [{"choices": 2}, {"repair": False}, {"reask": 1}])
def test_what_is_asked_for_beside_makes_another_job(tmp_path: Path, more: dict[str, Any]) -> None:
    """What older programs did not know counts as soon as it is used."""
    task = tmp_path / "mine.toml"
    told = [f"{name} = {str(value).lower()}\n" for name, value in more.items()]
    plain = 'prompt = "Say {{ text }}"\n'
    plain += 'schema = { type = "object", properties = { a = { type = "string" } }, required = ["a"] }\n'
    task.write_text(plain)
    before = fingerprint(tmp_path, task=str(task))
    task.write_text("".join([plain, *told]))
    assert fingerprint(tmp_path, task=str(task)) != before


@pytest.mark.parametrize(("model", "is_same"), [("openai/gpt-4o-mini", True), ("openai/gpt-5-mini", False)])
def test_a_number_is_the_users_or_the_tasks_where_that_matters(tmp_path: Path, model: str, is_same: bool) -> None:
    """A task of ours gives way where a model that thinks needs more room, a user does not: then these are two jobs."""
    own = fingerprint(tmp_path, model, task="rephrase")
    assert (fingerprint(tmp_path, model, task="rephrase", max_output=REPHRASE_CAP) == own) is is_same
