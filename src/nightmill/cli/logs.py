"""The log: one line an event, in a file of the home and, where LOG_LEVEL asks for it, on the screen.

A line holds the UTC time, process, level, module and what happened, with ids of jobs and shards; never
a prompt, an answer or a key. Several processes write to one file: a line is one write at its end, and
whoever finds the file full moves it aside.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from nightmill.cli import present

try:
    import fcntl
except ImportError:  # Windows: one process moves files aside as well as it can
    fcntl = None  # type: ignore[assignment]

_FILE_BYTES, _OLD_FILES = 5_000_000, 5
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SHORTEST_SECRET = 6  # characters; anything shorter is in many a word
_MOST_FRAMES = 12


def start_log(home: Path, level: str, env: Mapping[str, str], console: Callable[[str], None] | None = None) -> Path:
    """Log into ``home``, and to ``console`` where there is one; the file. Values of keys in ``env`` never get there."""
    folder = home / "logs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [_Shared(folder / "nightmill.log")]
    if console is not None:
        handlers.append(_Console(console))
    root = logging.getLogger("nightmill")
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    line = _Line(env)
    for handler in handlers:
        handler.setFormatter(line)
        root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False
    return folder / "nightmill.log"


@contextmanager
def warnings_said(say: Callable[[str], None]) -> Iterator[None]:
    """While the block lasts, warnings that go into no log are said: Python alone would write them to stderr raw."""
    console = _Console(say)
    console.setLevel(logging.WARNING)
    logging.getLogger().addHandler(console)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(console)


class _Line(logging.Formatter):
    """One line an event. Of an error there is where it happened, not what it says: that may quote a row."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__()
        named = {value for name, value in env.items() if name.upper().endswith(_SECRET_NAMES)}
        self._secrets = sorted((s for s in named if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {_place(record.exc_info[1])}"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        when = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
        return f"{when} {record.process} {record.levelname} {record.name} {present.one_line(text)}"


def _place(error: BaseException) -> str:
    """``KeyError at x.py:12 f < y.py:3 g``, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[: -_MOST_FRAMES - 1 : -1]
    return f"{type(error).__name__} at " + " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)


class _Shared(logging.Handler):
    """A file that never grows far beyond its size, and its elders, a few of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._fd: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        try:
            if _is_full(self._current(), len(line)):
                self._move_aside(len(line))
            os.write(self._current(), line)
        except OSError:  # on a full disk the log is what one can do without
            return

    def close(self) -> None:
        self._drop()
        super().close()

    def _current(self) -> int:
        """The file that has the name now: another process may have moved ours aside."""
        if self._fd is not None and not self._is_current(self._fd):
            self._drop()
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return self._fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except OSError:
            return False

    def _move_aside(self, more: int) -> None:
        """``.log`` becomes ``.log.1``, that ``.log.2``, and the last one goes; unless another process just did it."""
        fd = self._current()
        try:
            if fcntl is not None:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed when the file is closed
            if self._is_current(fd) and _is_full(fd, more):
                names = [self._path, *(self._path.with_name(f"{self._path.name}.{n + 1}") for n in range(_OLD_FILES))]
                for young, old in reversed(list(pairwise(names))):
                    if young.exists():
                        os.replace(young, old)
            elif fcntl is not None:  # another process just did: the next one that finds this file full can
                fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError:  # somebody else is at it: this line may still go into the full file
            return

    def _drop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _is_full(fd: int, more: int) -> bool:
    """Whether ``more`` bytes would take the file beyond its size."""
    return os.fstat(fd).st_size + more > _FILE_BYTES


class _Console(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(self.format(record))
        except (OSError, ValueError):  # nobody reads any more: what is running matters more
            return
