"""Progress of a job on stderr: a redrawn panel, a line now and then, JSON lines, or nothing.

We choose the renderer ourselves: a bar only where a person watches, lines in logs and in CI.
Progress never fails a run: when its stream goes away, it falls silent and the work goes on.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

from nightmill.cli import present
from nightmill.cli.present import ProgressView
from nightmill.types import usd

Mode = Literal["auto", "bar", "plain", "json", "none"]

_REDRAW_S = 0.1  # the bar, at most so often
_PLAIN_S = 60.0  # a line at least so often while there are updates
_JSON_S = 1.0  # an object at most so often, except at changes of phase
_STEP = 10  # percent between two plain lines
_END_OF_LINE, _BELOW = "\x1b[K", "\x1b[J"  # erase from the cursor on
_GREEN, _RESET = "\x1b[32m", "\x1b[0m"


class _Renderer(Protocol):
    def update(self, view: ProgressView) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Progress:
    """Shows a job's progress on ``stream`` in the way that ``mode`` and ``env`` ask for.

    ``auto`` is a bar on a terminal that is not ``TERM=dumb`` and not in CI, else plain lines;
    ``bar`` is one on any terminal that can move its cursor, else plain lines too. ``clock`` gives
    seconds that only rise; ``size`` the terminal's columns and lines.
    """

    def __init__(
        self,
        mode: Mode,
        stream: TextIO,
        env: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[], os.terminal_size] | None = None,
    ) -> None:
        out = _Out(stream)
        self._lock = threading.Lock()  # what is noted may come from any thread
        self.mode = chosen_mode(mode, stream, env)
        self._renderer: _Renderer = _Silent()
        if self.mode == "bar":
            self._renderer = _Bar(out, clock, size or (lambda: _size(stream, env)), env)
        elif self.mode == "plain":
            self._renderer = _Plain(out, clock)
        elif self.mode == "json":
            self._renderer = _Json(out, clock)

    def update(self, view: ProgressView) -> None:
        """Show ``view``, now or when it is due; the last one is always shown by `close`."""
        with self._lock:
            self._renderer.update(view)

    def note(self, text: str) -> None:
        """Say something beside the progress: a warning, a pause, what Ctrl-C does."""
        with self._lock:
            self._renderer.note(text)

    def close(self) -> None:
        """Show the last state and give the terminal back as it was. May be called twice."""
        with self._lock:
            self._renderer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def chosen_mode(mode: Mode, stream: TextIO, env: Mapping[str, str]) -> Mode:
    """What ``mode`` comes to on this stream; never ``auto``."""
    if mode not in ("auto", "bar"):
        return mode
    watched = stream.isatty() and env.get("TERM", "") != "dumb"
    in_ci = env.get("CI", "").lower() not in ("", "0", "false")
    return "bar" if watched and (mode == "bar" or not in_ci) else "plain"


def _size(stream: TextIO, env: Mapping[str, str]) -> os.terminal_size:
    """Columns and lines; what nobody knows is 80 and 24."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    told = env.get("COLUMNS", "")
    return os.terminal_size((int(told) if told.isdecimal() and int(told) else columns or 80, lines or 24))


class _Out:
    """A text stream that may lack characters and may go away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self.unicode = self._encoding.lower().replace("-", "").startswith("utf")

    def write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding))
            self._stream.flush()
        except (OSError, ValueError):  # closed, or the terminal is gone: what is running matters more
            self._stream = None


class _Silent:
    def update(self, view: ProgressView) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Bar:
    """A few lines at the bottom of a terminal, drawn over in place. The cursor is never hidden, so never lost."""

    def __init__(
        self, out: _Out, clock: Callable[[], float], size: Callable[[], os.terminal_size], env: Mapping[str, str]
    ) -> None:
        self._out, self._clock, self._size = out, clock, size
        coloured = not env.get("NO_COLOR")
        self._paint = (lambda text: f"{_GREEN}{text}{_RESET}" if text else "") if coloured else (lambda text: text)
        # Most terminals break lines that were written before anew when they become narrower.
        self._reflows = "XTERM_VERSION" not in env and env.get("TERM") != "linux"
        self._view: ProgressView | None = None
        self._drawn_at: float | None = None
        self._drawn: list[int] = []  # cells of each line on the screen

    def update(self, view: ProgressView) -> None:
        before = self._view
        self._view = view
        moved_on = before is None or (view.phase, view.trouble) != (before.phase, before.trouble)
        if moved_on or self._drawn_at is None or self._clock() - self._drawn_at >= _REDRAW_S:
            self._draw()

    def note(self, text: str) -> None:
        self._out.write(f"{self._home()}{present.show(text)}{_END_OF_LINE}\n{_BELOW}")
        self._drawn = []
        if self._view is not None:
            self._draw()

    def close(self) -> None:
        if self._view is not None:
            self._view = replace(self._view, leave=())  # there is nothing to leave any more
            self._draw()
            self._view = None
            self._drawn = []

    def _home(self) -> str:
        """Go to where the panel began."""
        columns = self._size().columns
        lines = sum(max(1, -(-cells // columns)) for cells in self._drawn) if self._reflows else len(self._drawn)
        return f"\x1b[{lines}F" if lines else ""

    def _draw(self) -> None:
        """One write, over what is there: nothing is blank in between. What was typed meanwhile goes."""
        if self._view is None:
            return
        columns, lines = self._size()
        # One column stays free: a full line would wrap on some terminals and upset the count.
        width, unicode = max(20, columns - 1), self._out.unicode
        first = present.bar_line(self._view, width=width, unicode=unicode)
        painted = present.bar_line(self._view, width=width, unicode=unicode, paint=self._paint)
        rest = present.status_table(self._view, width=width, unicode=unicode).split("\n")[: max(0, lines - 2)]
        body = "".join(f"{line}{_END_OF_LINE}\n" for line in (painted, *rest))
        self._out.write(f"{self._home()}{body}{_BELOW}")
        self._drawn = [present.cells_of(line) for line in (first, *rest)]
        self._drawn_at = self._clock()


class _Lines(ABC):
    """What is shown line by line: a view when it is due, and the last one at the end."""

    def __init__(self, out: _Out, clock: Callable[[], float]) -> None:
        self._out, self._clock = out, clock
        self._view: ProgressView | None = None
        self._shown: ProgressView | None = None
        self._told = ""  # the trouble told last: a limit that comes and goes is told once
        self._shown_at = 0.0

    def update(self, view: ProgressView) -> None:
        self._view = view
        shown = self._shown
        moved_on = shown is None or view.phase != shown.phase or view.trouble not in ("", self._told)
        if moved_on or shown is None or self._is_due(view, shown, self._clock() - self._shown_at):
            self._write(view)

    def note(self, text: str) -> None:
        self._out.write(self._note_line(text) + "\n")

    def close(self) -> None:
        if self._view is not None and self._view != self._shown:
            self._write(self._view)

    def _write(self, view: ProgressView) -> None:
        self._shown, self._shown_at = view, self._clock()
        self._told = view.trouble or self._told
        self._out.write(self._line(view) + "\n")

    @abstractmethod
    def _is_due(self, view: ProgressView, shown: ProgressView, silent_s: float) -> bool: ...

    @abstractmethod
    def _line(self, view: ProgressView) -> str: ...

    @abstractmethod
    def _note_line(self, text: str) -> str: ...


class _Plain(_Lines):
    """One line at the start, at every tenth, every minute, at changes of phase, and at the end."""

    def _is_due(self, view: ProgressView, shown: ProgressView, silent_s: float) -> bool:
        return _step(view) > _step(shown) or silent_s >= _PLAIN_S

    def _line(self, view: ProgressView) -> str:
        return present.plain_line(view, unicode=self._out.unicode)

    def _note_line(self, text: str) -> str:
        return present.show(text)


def _step(view: ProgressView) -> int:
    return view.processed * 100 // view.total // _STEP if view.total else 0


class _Json(_Lines):
    """One object a line, for programs."""

    def _is_due(self, view: ProgressView, shown: ProgressView, silent_s: float) -> bool:
        return silent_s >= _JSON_S

    def _line(self, view: ProgressView) -> str:
        return json.dumps(progress_object(view))

    def _note_line(self, text: str) -> str:
        return json.dumps({"event": "note", "text": text})


def progress_object(view: ProgressView) -> dict[str, object]:
    """``view`` as one JSON object: counts, dollars as numbers, seconds."""
    return {
        "event": "progress",
        "job_id": view.job_id,
        "phase": view.phase,
        "trouble": view.trouble,
        "total": view.total,
        "processed": view.processed,
        "succeeded": view.ok,
        "failed": view.failed,
        "missing": view.missing,
        "expired": view.expired,
        "cancelled": view.cancelled,
        "failures": dict(view.kinds),
        "tokens_in": view.tokens_in,
        "tokens_out": view.tokens_out,
        "spent_usd": usd(view.spent_nanos),
        "held_usd": usd(view.held_nanos),
        "list_price_usd": usd(view.list_nanos),
        "saved_usd": usd(view.saved_nanos),
        "per_minute": _finite(view.per_minute),
        "elapsed_s": view.elapsed_s,
        "eta_s": _finite(view.eta_s),
    }


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None
