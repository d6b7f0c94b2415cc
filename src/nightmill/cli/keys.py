"""The keyboard while a panel is shown: keys are not echoed into it, and may be heard."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import termios
except ImportError:  # Windows: keys are echoed, and not heard
    termios = None  # type: ignore[assignment]


@contextmanager
def unechoed(*, heard: bool) -> Iterator[int | None]:
    """While the block lasts keys typed at stdin are not echoed; the terminal is as before afterwards.

    ``heard``: each key can be read at once, from the descriptor that is given. None: stdin is no terminal of
    ours, and nothing was changed. Ctrl-C and Ctrl-Z work as ever.
    """
    terminal = sys.stdin.fileno() if termios is not None and _is_ours() else None
    if terminal is None:
        yield None
        return
    before = termios.tcgetattr(terminal)
    changed = list(before)
    changed[3] &= ~(termios.ECHO | (termios.ICANON if heard else 0))
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    try:
        yield terminal if heard else None
    finally:
        if _is_ours():  # in the background, setting it would stop us
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def _is_ours() -> bool:
    """Whether stdin is a terminal and we are in its foreground."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal; closed; none there
        return False
