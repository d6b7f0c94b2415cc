"""What is in the making: a hidden name beside the target, held while its writer lives, removed when it was killed."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_HEX = "[0-9a-f]" * 8


def hidden_name(path: Path) -> Path:
    """A new name beside ``path`` for what is to take its place; such names that killed writers left are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_HEX}.tmp"):
        with _held(left) as is_ours:
            if is_ours:
                _remove(left)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def hold(path: Path) -> contextlib.ExitStack:
    """Tell other processes that ``path`` is being written, until what comes back is closed."""
    holding = contextlib.ExitStack()
    holding.enter_context(_held(path))
    return holding


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether this process holds ``path`` for as long as the block lasts; the system ends it with the process."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # gone, or nobody may read it
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another holds it, or nothing can be held there
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
