"""The documents are run: every block of every page, from top to bottom, as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from cli_kit import QUICK

from nightmill.config import load_settings
from nightmill.simulator import SimulatorConfig, in_thread

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALL = sorted(DOCS.rglob("*.md"))
PAGES = [page for page in ALL if "```console\n$ " in page.read_text()]
LINKS = [(page, link) for page in ALL for link in re.findall(r"\]\(([^)h#][^)#]*)(?:#[^)]*)?\)", page.read_text())]
SECONDS = 100  # most that one command may take


@dataclass(frozen=True, slots=True)
class Step:
    """A command, or a piece of Python, and the exit code that the page promises."""

    text: str
    code: int = 0
    is_python: bool = False


def steps(page: Path) -> list[Step]:
    """What a reader of the page types. A comment `# exit 3` promises a code, 0 without one."""
    found = []
    for language, block in re.findall(r"```(console|python)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "python":
            found.append(Step(block, is_python=True))
            continue
        for line in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, comment = line.strip().partition("  # ")
            promised = re.match(r"exit (\d+)", comment)
            found.append(Step(command, int(promised[1]) if promised else 0))
    return found


@dataclass(slots=True)
class Reader:
    """Somebody in a folder of their own, who types what a page says and looks how it ends."""

    folder: Path
    env: dict[str, str]
    simulator: subprocess.Popen[str] | None = None

    def type(self, step: Step) -> None:
        if step.text.startswith("nightmill simulate"):
            self.rehearse(step.text)
            return
        code, told = self._ended(step)
        assert code == step.code, f"{step.text}\nended with {code}\n{told[-3000:]}"

    def rehearse(self, command: str) -> None:
        """Leave the simulator running, and type into this shell what it says is to be typed."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.simulator = subprocess.Popen(shlex.split(command), cwd=self.folder, env=self.env, text=True, **streams)
        assert self.simulator.stdout is not None
        told: dict[str, str] = {}
        while not {"OPENAI_BASE_URL", "OPENAI_API_KEY"} <= told.keys():
            line = self.simulator.stdout.readline()
            assert line, f"{command} told no address or no key"
            name, is_export, value = line.removeprefix("export ").strip().partition("=")
            told |= {name: value} if is_export else {}
        self.env |= told

    def end(self) -> None:
        if self.simulator is not None:
            self.simulator.terminate()
            self.simulator.communicate(timeout=SECONDS)

    def _ended(self, step: Step) -> tuple[int, str]:
        """The exit code, and what was told. A plain nightmill command needs no shell, and starts warm."""
        given, words = plain(step)
        if words:
            code, out, err = warm.run(tuple(words), self.folder, self.env | given, SECONDS)
            return code, f"{out}\n{err}"
        command = [sys.executable, "-c", step.text] if step.is_python else ["bash", "-c", step.text]
        done = subprocess.run(
            command, check=False, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
        )  # fmt: skip
        return done.returncode, done.stdout


def plain(step: Step) -> tuple[dict[str, str], list[str]]:
    """The variables before a nightmill command, and its arguments, where nothing of it is left to the shell.

    No arguments: it is something else.
    """
    if step.is_python or not re.match(r"([A-Z_]+=\S+ )*nightmill ", step.text) or re.search(r"[\n$]", step.text):
        return {}, []
    words = shlex.shlex(step.text, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found = list(words)
    if any(set(word) <= set("|&;<>()") for word in found if word):
        return {}, []
    at = found.index("nightmill")
    return dict(word.split("=", 1) for word in found[:at]), found[at + 1 :]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_does_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """A reader who types what the page says gets through it."""
    (tmp_path / "nightmill.toml").write_text(QUICK)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with in_thread(SimulatorConfig(speed=1000, batch_s=10)) as url:
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path),
            "NIGHTMILL_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url,
        }  # fmt: skip
        if page.stem == "tutorial":  # which promises that it needs no key
            del environment["OPENAI_API_KEY"], environment["OPENAI_BASE_URL"]
        reader = Reader(tmp_path, environment)
        try:
            for step in steps(page):
                reader.type(step)
        finally:
            reader.end()


@pytest.mark.parametrize(
    ("name", "block"),
    [
        (f"{page.stem}-{number}", block)
        for page in ALL
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL))
    ],
)
def test_settings_are_understood(name: str, block: str, tmp_path: Path) -> None:
    """What a page says may stand in nightmill.toml may stand there; an unknown key would be refused."""
    (tmp_path / "nightmill.toml").write_text(block)
    load_settings(tmp_path, {"NIGHTMILL_HOME": str(tmp_path / "home")})
    assert tomllib.loads(block), name


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


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (`.*?) \|.*\| (`.*) \|$", (DOCS / "design.md").read_text(), re.MULTILINE)
)
def test_the_design_names_what_is_there(row: tuple[str, str]) -> None:
    """Each room that docs/design.md tells of exists, and defines the verbs that it names."""
    places, verbs = (re.findall(r"`([\w./]+)`", cell) for cell in row)
    files = [file for place in places for file in _modules(ROOT / "src" / "nightmill" / place)]
    code = "\n".join(file.read_text() for file in files)
    assert not [verb for verb in verbs if not re.search(rf"^ *(async )?(def|class) {verb}\b", code, re.MULTILINE)]


def _modules(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))
