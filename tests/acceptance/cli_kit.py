"""What the tests of the command line share: a folder with a home of its own, real processes, a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm

# A shell's background job ignores Ctrl-C, and so would every command that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMAND = [sys.executable, "-m", "nightmill"]
SECONDS = 60  # most a process may take here
_ELSEWHERE = ("CI", "NO_COLOR", "BATCH_CHECK_INTERVAL")  # of the machine the tests run on; they change what is shown
MODEL = "openai/gpt-4o-mini"
QUICK = """
[timing]
poll_s = 0.05
poll_max_s = 0.2
list_lag_s = 0.1
looks_s = [0.0, 0.1, 0.2]
reread_s = 0.1
backoff_first_s = 0.01
backoff_cap_s = 0.1
limit_wait_s = 0.2
"""
_TELLS_ITS_PEAK = """
import pathlib, sys
from nightmill.cli import main
code = main()
status = pathlib.Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1], file=sys.stderr)
sys.exit(code)
"""
# A model in Python: it logs every call, fails where told, and waits at a gate where told.
FUNCTIONS = '''
import json, os, pathlib, time

def _note(text):
    with open("calls.log", "a") as log:
        log.write(text + "\\n")

def upper(messages, **params):
    text = messages[-1]["content"]
    _note(text)
    return text.upper()

def timed(messages, **params):
    _note(repr(time.monotonic()))
    return "done"

def picky(messages, **params):
    text = messages[-1]["content"]
    _note(text)
    if "bad" in text and not pathlib.Path("mended").exists():
        raise ValueError(f"cannot do {text}")
    return text.upper()

def gated(messages, **params):
    """The first ten answers come at once, the others when the gate is open."""
    text = messages[-1]["content"]
    _note(text)
    while int(text.split()[-1]) >= 10 and not pathlib.Path("gate").exists():
        time.sleep(0.01)
    return text.upper()

def define(messages, **params):
    word = messages[-1]["content"].rpartition("word ")[2].strip('".')
    _note(word)
    return json.dumps({
        "part_of_speech": "noun", "definitions": [f"What people mean when they say {word}."],
        "examples": [f"She said {word} twice."], "etymology": "Of unknown origin.", "synonyms": ["thing"],
    })
'''


@dataclass(frozen=True, slots=True)
class Done:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Running:
    """A process under way, whose progress can be waited for."""

    def __init__(self, process: warm.Piped) -> None:
        self._process = process
        self._told: list[str] = []
        # What a test waits for in vain ends it, and is not left behind.
        self._watch = threading.Timer(3 * SECONDS, process.send_signal, [signal.SIGKILL])
        self._watch.daemon = True
        self._watch.start()

    def until(self, seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read progress objects from stderr until one is as wanted; that one."""
        for line in self._process.stderr:
            self._told.append(line)
            if line.startswith("{") and seen(event := json.loads(line)):
                return event
        raise AssertionError("it ended before that:\n" + "".join(self._told))

    def answered(self, least: int) -> None:
        self.until(lambda event: event["event"] == "progress" and event["succeeded"] >= least)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> Done:
        code, out, err = self._process.end(SECONDS)
        self._watch.cancel()
        return Done(code, out, "".join(self._told) + err)


class Place:
    """A working folder with a home, a few functions to call as models, and perhaps a simulator to talk to."""

    def __init__(self, folder: Path, url: str | None = None, *, toml: str = "") -> None:
        self.folder, self.home, self.url = folder, folder / "home", url
        (folder / "funcs.py").write_text(FUNCTIONS)
        (folder / "nightmill.toml").write_text(toml + QUICK)
        kept = {
            k: v for k, v in os.environ.items() if k not in _ELSEWHERE and not k.endswith(("_API_KEY", "_BASE_URL"))
        }
        self.env = {**kept, "NIGHTMILL_HOME": str(self.home), "COLUMNS": "100", "TERM": "xterm", "PYTHONPATH": ""}
        if url is not None:
            self.env |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url}

    def rows(self, count: int, text: str = "row {}", name: str = "in.txt") -> str:
        """An input of one row a line; its name."""
        (self.folder / name).write_text("\n".join(text.format(i) for i in range(count)) + "\n")
        return name

    def run(self, *arguments: str, seconds: float = SECONDS, stdin: bytes | None = None) -> Done:
        """To its end, with ``stdin`` piped into it where there is one."""
        return Done(*warm.run(arguments, self.folder, self.env, seconds, stdin))

    def run_cold(self, *arguments: str, stdin: bytes = b"") -> Done:
        """In an interpreter of its own, with ``stdin`` piped into it."""
        done = subprocess.run(
            [*COMMAND, *arguments], check=False, cwd=self.folder, env=self.env, capture_output=True, input=stdin,
            timeout=SECONDS,
        )  # fmt: skip
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def peak_mb(self, *arguments: str) -> float:
        """The most memory that a command which succeeds has resident, in an interpreter of its own. Linux alone.

        Not ``ru_maxrss``: a process inherits that from the one that started it.
        """
        command = [sys.executable, "-c", _TELLS_ITS_PEAK, *arguments]
        done = subprocess.run(command, check=True, cwd=self.folder, env=self.env, capture_output=True, timeout=SECONDS)
        return int(done.stderr.split()[-1]) / 1024

    def start(self, *arguments: str) -> Running:
        """With progress as JSON lines, to be waited for."""
        return Running(warm.Piped((*arguments, "--progress", "json"), self.folder, self.env))

    def typed(self, answer: str | signal.Signals, *arguments: str, at: str = "[y/N] ") -> Done:
        """Run in a terminal; type ``answer`` once it shows ``at``, or send that signal. All it shows is in ``out``."""

        def act(terminal: int, process: warm.Started) -> None:
            if isinstance(answer, str):
                os.write(terminal, answer.encode())
            else:
                process.send_signal(answer)

        return self.watched(at, act, *arguments)

    def watched(self, mark: str, act: Callable[[int, warm.Started], None], *arguments: str) -> Done:
        """Run in a terminal and ``act`` once, when ``mark`` is shown. All it shows is in ``out``."""
        ours, theirs = pty.openpty()
        process = warm.Started(arguments, self.folder, self.env, terminal=os.ttyname(theirs))
        shown, acted = b"", False
        ends_by = time.monotonic() + SECONDS
        while (code := process.poll()) is None or select.select([ours], [], [], 0.0)[0]:
            if code is None and time.monotonic() > ends_by:
                process.send_signal(signal.SIGKILL)
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 65_536)
            if not acted and mark.encode() in shown:
                acted = True
                act(ours, process)
        os.close(theirs)
        os.close(ours)
        return Done(code, shown.decode(), "")

    def calls(self) -> list[str]:
        """What the functions of funcs.py were asked, call by call."""
        log = self.folder / "calls.log"
        return log.read_text().splitlines() if log.exists() else []

    def results(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def invoice(self) -> dict[str, Any]:
        """What the simulated provider would bill."""
        found: dict[str, Any] = self.ask("invoice")
        return found

    def log(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("log")
        return found

    def ask(self, what: str, method: str = "GET", body: Any = None) -> Any:
        """What the simulator itself says, or is told by another method."""
        assert self.url is not None
        url = f"{self.url.removesuffix('/v1')}/simulator/{what}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, method=method, data=data)) as answer:
            return json.load(answer)


def adds_up(found: dict[str, Any]) -> bool:
    """Whether a job's rows are the sum of how they ended."""
    ends = ("invalid", "succeeded", "failed", "missing", "expired", "cancelled", "pending")
    return found["rows"] == sum(found[name] for name in ends)
