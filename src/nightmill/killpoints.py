"""Where a crash hurts: named points that the crash tests enumerate and kill at.

`reach` does nothing unless a test armed it through the environment, before the process began:

    NIGHTMILL_KILL_AT="ledger.note_intent.committed"     kill -9 ourselves the first time it is reached
    NIGHTMILL_KILL_AT="http.create.answered:3"           ... the third time
    NIGHTMILL_KILL_HOW="stop"                            SIGSTOP instead of SIGKILL
    NIGHTMILL_KILL_LOG=/path                             append the name of each point, each time it is reached
"""

from __future__ import annotations

import os
import signal
import sys

_AT, _, _nth = os.environ.get("NIGHTMILL_KILL_AT", "").partition(":")
_HOW = signal.SIGKILL
if os.environ.get("NIGHTMILL_KILL_HOW") == "stop" and sys.platform != "win32":
    _HOW = signal.SIGSTOP
_LOG = os.environ.get("NIGHTMILL_KILL_LOG", "")
_left = int(_nth or 1)

armed = bool(_AT or _LOG)


def reach(point: str) -> None:
    """Say that execution is at ``point``; returns at once unless a crash test armed this process."""
    if armed:
        _reach(point)


def _reach(point: str) -> None:
    global _left
    if _LOG:
        with open(_LOG, "a", encoding="utf-8") as log:
            log.write(point + "\n")
    if point == _AT:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), _HOW)
