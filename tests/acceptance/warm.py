"""Processes that start warm: forks of one that has imported everything and run nothing.

Nine tenths of a short command's time are the interpreter's start and imports. A fork is a process
like any other, with a folder, environment, streams and an end of its own; what starts cold is
proven by the tests that start it cold.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NoReturn


def run(
    arguments: tuple[str, ...], folder: Path, env: dict[str, str], seconds: float, stdin: bytes | None = None
) -> tuple[int, str, str]:
    """``nightmill`` with these arguments: exit code, stdout, stderr. Raises TimeoutError, the process being killed.

    Args:
        stdin: piped into it, no more than a pipe holds; None: there is none.
    """
    with tempfile.TemporaryDirectory() as box:
        source, *told = (Path(box, name) for name in ("in", "out", "err"))
        if stdin is None:
            source = Path(os.devnull)
        else:
            os.mkfifo(source)
        started = Started(arguments, folder, env, streams=[str(source), *map(str, told)])
        if stdin is not None:
            source.write_bytes(stdin)
        code = started.wait(seconds)
        out, err = (stream.read_bytes().decode() for stream in told)
    return code, out, err


def run_in_terminal(arguments: tuple[str, ...], folder: Path, env: dict[str, str], seconds: float, tty: str) -> int:
    """The same in the foreground of a terminal of its own; the exit code."""
    return Started(arguments, folder, env, terminal=tty).wait(seconds)


class Started:
    """A process that was just forked.

    Args:
        where: ``streams``, the paths that it reads and writes as stdin, stdout and stderr; or ``terminal``.
    """

    def __init__(self, arguments: tuple[str, ...], folder: Path, env: dict[str, str], **where: Any) -> None:
        self._what = f"nightmill {' '.join(arguments)}"
        self._code: int | None = None
        self._looking = threading.Lock()  # whoever ends what takes too long looks, too
        with tempfile.TemporaryDirectory() as box:
            end = os.path.join(box, "end")
            os.mkfifo(end)
            self._end = os.open(end, os.O_RDWR)  # never without a reader, so nobody waits to write there
            words = [os.fsencode(argument).hex() for argument in arguments]
            self.pid = _nursery().ask({"arguments": words, "folder": str(folder), "env": env, "end": end, **where})

    def poll(self, seconds: float = 0.0) -> int | None:
        """The exit code, once it has ended, for which it is waited that long."""
        with self._looking:
            if self._code is None and select.select([self._end], [], [], seconds)[0]:
                self._code = int(os.read(self._end, 20))
                os.close(self._end)
            return self._code

    def wait(self, seconds: float) -> int:
        """The exit code. Raises TimeoutError, the process being killed."""
        code = self.poll(seconds)
        if code is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f"{self._what} took more than {seconds} s")
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Piped(Started):
    """One whose stdout and stderr are read while it works."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, env: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory() as box:
            pipes = [os.path.join(box, name) for name in ("out", "err")]
            for pipe in pipes:
                os.mkfifo(pipe)
            super().__init__(arguments, folder, env, streams=[os.devnull, *pipes])
            # in the order in which the other end opens them
            self.stdout, self.stderr = (os.fdopen(os.open(pipe, os.O_RDONLY), encoding="utf-8") for pipe in pipes)

    def end(self, seconds: float) -> tuple[int, str, str]:
        """The exit code, and what it wrote that was not read yet. Raises TimeoutError, the process being killed."""
        late = threading.Timer(seconds, self.send_signal, [signal.SIGKILL])
        late.start()
        with self.stdout, self.stderr, ThreadPoolExecutor(1) as other:
            out, err = other.submit(self.stdout.read), self.stderr.read()
            told = out.result(), err
        code = self.wait(seconds)
        if late.finished.is_set():
            raise TimeoutError(f"{self._what} took more than {seconds} s")
        late.cancel()
        return code, *told


class _Nursery:
    def __init__(self) -> None:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        self._process = subprocess.Popen([sys.executable, __file__], text=True, **pipes)
        self._lock = threading.Lock()
        atexit.register(self._process.communicate)

    def ask(self, asked: dict[str, Any]) -> int:
        """The id of a process forked as asked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


@cache
def _nursery() -> _Nursery:
    return _Nursery()


# -- in the process that forks ---------------------------------------------------------------------


def _serve() -> None:
    ends: dict[int, int] = {}  # where the end of each process is told
    signal.signal(signal.SIGCHLD, lambda *_: _tell(ends))
    for line in sys.stdin:
        asked = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            _become(asked)
        ends[child] = os.open(asked["end"], os.O_WRONLY)
        print(child, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    for child in ends:  # whoever asked has ended
        os.kill(child, signal.SIGKILL)


def _tell(ends: dict[int, int]) -> None:
    """Say how those ended that have."""
    while ends:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        end = ends.pop(child)
        os.write(end, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(end)


def _become(asked: dict[str, Any]) -> NoReturn:
    """Take on folder, environment and streams, run the command, and end as it ends."""
    from nightmill import killpoints
    from nightmill.cli import main

    if "terminal" in asked:
        os.setsid()  # so that the terminal opened first is ours, and its Ctrl-C too
        streams = [(asked["terminal"], os.O_RDWR)] * 3
    else:
        written = os.O_WRONLY | os.O_CREAT
        streams = list(zip(asked["streams"], (os.O_RDONLY, written, written), strict=True))
    for number, (path, how) in enumerate(streams):
        opened = os.open(path, how)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)  # the one there was waits for the next request
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    importlib.reload(killpoints)  # reads the environment anew
    sys.path[0] = asked["folder"]
    sys.argv = ["nightmill", *(os.fsdecode(bytes.fromhex(argument)) for argument in asked["arguments"])]
    _ends_with.append(main())
    sys.exit(_ends_with[0])


_ends_with: list[int] = []


def _end_at_once() -> None:
    """The last thing of a command: to free what was forked, page by page, would take longer than it ran."""
    if _ends_with:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_ends_with[0])


def _import_everything() -> None:
    import asyncio  # noqa: F401
    import encodings.utf_8_sig  # noqa: F401

    import click
    import pandas  # noqa: F401 (pyarrow looks for it when it makes its first array)
    import pyarrow.pandas_compat  # noqa: F401
    import rich.live  # noqa: F401
    from genai_prices.data_snapshot import get_snapshot

    import nightmill.mill
    import nightmill.providers.anthropic
    import nightmill.providers.function
    import nightmill.providers.gemini
    import nightmill.providers.openai  # noqa: F401
    from nightmill.cli import _COMMANDS, _group

    get_snapshot()
    for name in _COMMANDS:
        _group.get_command(click.Context(_group), name)


if __name__ == "__main__":
    atexit.register(_end_at_once)  # the first that is registered is the last that is called
    _import_everything()
    gc.freeze()  # else every fork walks, and so copies, all that was imported when it ends
    _serve()
