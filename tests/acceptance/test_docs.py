"""The documents are run: every command of every page, from top to bottom, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import QUICK

from nightmill.simulator import SimulatorConfig, in_thread

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "```console\n$ " in page.read_text())
LINKS = [
    (page, link)
    for page in sorted(DOCS.rglob("*.md"))
    for link in re.findall(r"\]\(([^)h#][^)#]*)(?:#[^)]*)?\)", page.read_text())
]


def commands(page: Path) -> Iterator[tuple[str, int]]:
    """Each command of a page's console blocks, and the exit code that its comment promises; 0 without one."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, comment = line.strip().partition("  # ")
            promised = re.match(r"exit (\d+)", comment)
            yield command, int(promised[1]) if promised else 0


def script(page: Path) -> str:
    """One shell session: whatever ends otherwise than the page says ends it, and is named."""
    lines = ['quit() { echo "$1 ended with $2" >&2; exit 99; }']
    for command, code in commands(page):
        said = command.replace("'", "'\\''")
        lines += [command, "code=$?", f"[ $code -eq {code} ] || quit '{said}' $code"]
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_does_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """A reader who types what the page says gets through it."""
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "nightmill.toml").write_text(QUICK)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with in_thread(SimulatorConfig(speed=1000, batch_s=10)) as url:
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path),
            "NIGHTMILL_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", script(page)], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=110, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.stem} {link}" for page, link in LINKS])
def test_links_lead_somewhere(page: Path, link: str) -> None:
    """Every file a page points to is there."""
    assert (page.parent / link).exists()


def test_the_reference_is_what_the_code_says() -> None:
    """docs/reference.md was written from the commands, settings and columns as they are now."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.req("A8")
def test_the_examples_for_python_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who types docs/python.md into one notebook, from top to bottom, gets through it."""
    (tmp_path / "nightmill.toml").write_text(QUICK)
    (tmp_path / "reviews.csv").write_text("id,text\n1,Late and wet.\n2,Wonderful!\n")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len(blocks) > 5
    monkeypatch.chdir(tmp_path)
    with in_thread(SimulatorConfig(speed=1000, answer_sigma=0.0)) as url:
        for name, value in (("NIGHTMILL_HOME", "home"), ("OPENAI_API_KEY", "sk-test"), ("OPENAI_BASE_URL", url)):
            monkeypatch.setenv(name, value)
        names: dict[str, object] = {"__name__": "__main__"}
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), names)
    assert len((tmp_path / "words.jsonl").read_text().splitlines()) == 2
