"""A terminal on which a command runs in the foreground, rendered as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import pyte
import warm
from cli_kit import SECONDS, Place

_ENDS = (b"\x1b[J", b"[y/N] ")  # of a panel that is drawn, and of a question
_CODES = re.compile(r"\x1b\[[\d;]*[A-Za-z]|\r")


class Screen:
    """So many columns and lines; what scrolled away is kept. Use it as a context manager."""

    def __init__(self, place: Place, columns: int, lines: int = 50, **env: str) -> None:
        self._place = place
        self._env = {k: v for k, v in place.env.items() if k != "COLUMNS"} | env
        self._ours, self._theirs = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._thread = ThreadPoolExecutor(1)
        self.raw = b""
        self._set_size(columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def lines(self) -> list[str]:
        """The screen, line by line, without what is blank at the end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def line(self, part: str) -> str:
        """The one line with ``part`` in it."""
        found = [line for line in self.lines if part in line]
        assert len(found) == 1, (part, self.lines)
        return found[0]

    def start(self, *arguments: str) -> Future[int]:
        """Run ``nightmill`` here; its exit code, in the end."""
        place, tty = self._place, os.ttyname(self._theirs)
        return self._thread.submit(warm.run_in_terminal, arguments, place.folder, self._env, SECONDS, tty)

    def run(self, *arguments: str) -> int:
        """Run it to its end; the exit code."""
        return self.end(self.start(*arguments))

    def until(self, part: str, *, count: int = 1) -> None:
        """Look on until ``part`` was written so many times, and what it is part of is whole."""
        self._look_until(lambda: self.raw.count(part.encode()) >= count and self.raw.endswith(_ENDS))

    def end(self, running: Future[int]) -> int:
        while not running.done():
            self._look(0.05)
        while self._look(0.0):
            pass
        return running.result()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def resize(self, columns: int) -> None:
        """Another width. A panel that was on its way is shown at the width that it was drawn for."""
        wider = columns > self.screen.columns
        if wider:
            self.screen.resize(columns=columns)
        self._set_size(columns)
        if not wider:
            self._look_until(lambda: self.raw.endswith(_ENDS) and self._drawn_last() <= columns)
            self.screen.resize(columns=columns)

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, line by line, as it did at first."""
        wanted = termios.ECHO | termios.ICANON
        return termios.tcgetattr(self._theirs)[3] & wanted == wanted

    def _look_until(self, seen: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not seen():
            assert time.monotonic() < end, "\n".join(self.lines)
            self._look(0.1)

    def _drawn_last(self) -> int:
        """Columns of the widest line of the last panel that is whole."""
        panel = self.raw.split(_ENDS[0])[-2].decode()
        return max(len(_CODES.sub("", line)) for line in panel.split("\n"))

    def _set_size(self, columns: int) -> None:
        size = struct.pack("HHHH", self.screen.lines, columns, 0, 0)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def _look(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        some = os.read(self._ours, 65_536)
        self.raw += some
        self._stream.feed(some)
        return True
