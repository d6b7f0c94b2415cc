"""What the tests of bad input share: a home with a past, what is in it, and disks that can be filled."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place

# Runs the command line with a wall clock that jumps by SHIFT_S when execution reaches SHIFT_AT.
_JUMPING_CLOCK = """
import os, sys, time
shift, at = 0.0, os.environ["SHIFT_AT"]
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + shift
time.time_ns = lambda: real_ns() + int(shift * 1e9)
from nightmill import killpoints
def reached(point):
    global shift
    if point == at:
        shift = float(os.environ["SHIFT_S"])
        os.close(os.open("jumped", os.O_CREAT))
killpoints.armed, killpoints._reach = True, reached
from nightmill.cli import main
sys.exit(main())
"""
_LIMITED_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from nightmill.cli import main
sys.exit(main())
"""


def with_jumping_clock(place: Place, shift_s: float, at: str, *arguments: str) -> Done:
    """Run with a clock that jumps; checked to have jumped."""
    place.env |= {"SHIFT_S": str(shift_s), "SHIFT_AT": at}
    done = _run(place, [sys.executable, "-c", _JUMPING_CLOCK, *arguments])
    assert (place.folder / "jumped").exists(), done.err
    return done


def with_small_files(place: Place, most_bytes: int, *arguments: str) -> Done:
    """Run where no file may grow beyond ``most_bytes``."""
    return _run(place, [sys.executable, "-c", _LIMITED_FILES, str(most_bytes), *arguments])


def _run(place: Place, command: list[str]) -> Done:
    done = subprocess.run(
        command, check=False, cwd=place.folder, env=place.env, capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def contents(home: Path) -> dict[str, Any]:
    """Every row of every table of a home's ledger, and every file beside it but the log."""
    ledger = home / "nightmill.db"
    found: dict[str, Any] = {}
    if ledger.is_file():
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            found |= {name: sorted(map(repr, db.execute(f"SELECT * FROM {name}"))) for name in sorted(tables)}
    kept = [p for p in home.rglob("*") if p.is_file() and not p.name.startswith("nightmill.")]
    found["files"] = sorted((str(p.relative_to(home)), p.stat().st_size) for p in kept)
    found["jobs"] = sorted(p.name for p in home.glob("jobs/*"))
    return found


def explained(done: Done, code: int, *facts: str) -> None:
    """The process ended with ``code`` and said what went wrong, why, and what to do, with these facts in it."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    for label in ("error: ", "  why: ", "  fix: "):
        assert any(line.startswith(label) and line != label.rstrip() for line in done.err.splitlines()), done.err
    for fact in facts:
        assert fact in done.err, done.err


def one_object(done: Done, code: str | None = None) -> dict[str, str]:
    """stdout is exactly one JSON object; its error, all four parts of it said."""
    lines = done.out.splitlines()
    assert len(lines) == 1, done.out
    error: dict[str, str] = json.loads(lines[0])["error"]
    assert set(error) == {"code", "message", "why", "fix"}
    assert all(error.values()), error
    assert code is None or error["code"] == code
    return error


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of ``size`` at ``folder``, where this system lets us mount one; skips where not."""
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("NEEDS ROOT: a disk has to be mounted to be full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free on the disk of ``folder``; the file to remove to free it again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return filler
