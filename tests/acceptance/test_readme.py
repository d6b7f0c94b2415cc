"""The README is run: every command in it, as it stands there."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nightmill.simulator import SimulatorConfig, in_thread

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).parent / "nightmill")


def blocks() -> list[list[str]]:
    """The commands of each console block, without their prompt and comment."""
    found = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [
        [line[2:].split("  #")[0].strip() for line in block.splitlines() if line.startswith("$ ")] for block in found
    ]


def run(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of the README, in a folder and a home of its own."""
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NIGHTMILL_HOME": str(folder / "home"), "HOME": str(folder), **env}
    line = command.replace("nightmill/.venv/bin/nightmill", COMMAND)
    return subprocess.run(
        ["bash", "-c", line], check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def test_three_commands_lead_to_answers(tmp_path: Path) -> None:
    """A clone, a make target that exists, and one run that answers every row of a CSV without a key."""
    clone, demo, ask = blocks()[0]
    assert (clone, demo) == ("git clone ADDRESS nightmill", "make -C nightmill demo")
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (make_rows,) = blocks()[1]
    run(make_rows, tmp_path)
    done = run(ask, tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert [(row["index"], row["key"], row["success"]) for row in answers] == [("0", "1", "true"), ("1", "2", "true")]
    assert all(row["response"] for row in answers)


def test_the_same_with_a_hosted_model(tmp_path: Path) -> None:
    """The second example runs as written after the first, against a provider here; it only has to be said yes to."""
    (make_rows,), (_, ask, show) = blocks()[1], blocks()[2]
    run(make_rows, tmp_path)
    (tmp_path / "answers.csv").write_text("what the first example left")
    with in_thread(SimulatorConfig(speed=1000)) as url:
        env = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url}
        unanswered = run(ask, tmp_path, **env)
        assert unanswered.returncode == 2
        assert "--yes" in unanswered.stderr
        done = run(ask + " --yes", tmp_path, **env)
        shown = run(show, tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "hosted.csv"
    assert "2 of 2 ok" in shown.stdout


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", (ROOT / "README.md").read_text()))
def test_links_lead_somewhere(link: str) -> None:
    """Every file the README points to is there."""
    assert (ROOT / link).exists()
