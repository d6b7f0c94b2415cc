"""Processes that start warm: forks of one that has imported everything and run nothing.

Nine tenths of a short command's time are the interpreter's start and imports. A fork is a process
like any other, with a folder, environment, streams and an end of its own; what starts cold is
proven by the tests that start it cold.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NoReturn


def run(arguments: tuple[str, ...], folder: Path, env: dict[str, str], seconds: float) -> tuple[int, str, str]:
    """``nightmill`` with these arguments: exit code, stdout, stderr. Raises TimeoutError, the process being killed."""
    with tempfile.TemporaryDirectory() as box:
        streams = [Path(box, name) for name in ("out", "err")]
        asked = {"arguments": [os.fsencode(a).hex() for a in arguments], "folder": str(folder), "env": env,
                 "seconds": seconds, "streams": list(map(str, streams))}  # fmt: skip
        code = _nursery().ask(asked)
        if code is None:
            raise TimeoutError(f"nightmill {' '.join(arguments)} took more than {seconds} s")
        out, err = (stream.read_bytes().decode() for stream in streams)
    return code, out, err


def run_in_terminal(arguments: tuple[str, ...], folder: Path, env: dict[str, str], seconds: float, tty: str) -> int:
    """The same in the foreground of a terminal of its own; the exit code."""
    asked = {"arguments": [os.fsencode(a).hex() for a in arguments], "folder": str(folder), "env": env,
             "seconds": seconds, "terminal": tty}  # fmt: skip
    code = _nursery().ask(asked)
    if code is None:
        raise TimeoutError(f"nightmill {' '.join(arguments)} took more than {seconds} s")
    return code


class _Nursery:
    def __init__(self) -> None:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        self._process = subprocess.Popen([sys.executable, __file__], text=True, **pipes)
        atexit.register(self._end)

    def ask(self, asked: dict[str, Any]) -> int | None:
        """The exit code of a process forked as asked; None: it took too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code: int | None = json.loads(self._process.stdout.readline())
        return code

    def _end(self) -> None:
        self._process.communicate()


@cache
def _nursery() -> _Nursery:
    return _Nursery()


# -- in the process that forks ---------------------------------------------------------------------


def _serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(asked)
        signal.signal(signal.SIGALRM, lambda *_, child=child: os.kill(child, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, asked["seconds"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        late = signal.setitimer(signal.ITIMER_REAL, 0)[0] == 0
        print(json.dumps(None if late else code), flush=True)


def _become(asked: dict[str, Any]) -> NoReturn:
    """Take on folder, environment and streams, run the command, and end as it ends."""
    from nightmill.cli import main

    streams = [(0, os.devnull, os.O_RDONLY)]
    if "terminal" in asked:
        os.setsid()  # so that the terminal opened first is ours, and its Ctrl-C too
        streams = [(n, asked["terminal"], os.O_RDWR) for n in range(3)]
    else:
        streams += [(n, path, os.O_WRONLY | os.O_CREAT) for n, path in enumerate(asked["streams"], 1)]
    for number, path, how in streams:
        opened = os.open(path, how)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
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

    import click
    import genai_prices  # noqa: F401
    import pandas  # noqa: F401 (pyarrow looks for it when it makes its first array)
    import pyarrow.pandas_compat  # noqa: F401
    import rich.live  # noqa: F401

    import nightmill.mill
    import nightmill.providers.function
    import nightmill.providers.openai  # noqa: F401
    from nightmill.cli import _COMMANDS, _group

    for name in _COMMANDS:
        _group.get_command(click.Context(_group), name)


if __name__ == "__main__":
    atexit.register(_end_at_once)  # the first that is registered is the last that is called
    _import_everything()
    gc.freeze()  # else every fork walks, and so copies, all that was imported when it ends
    _serve()
