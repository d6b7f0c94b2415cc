"""Everything that is true of SQLite alone: pragmas, the transaction, the clock, who is alive."""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from nightmill.errors import Conflict

BUSY_TIMEOUT_MS = 60_000
_BUSY_S = 0.01  # between two tries where SQLite itself does not wait
_OURS = frozenset({"meta", "jobs", "shards"})
_BROKEN = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
_numbers = itertools.count(1)
_ours_alive: set[str] = set()  # workers of this process: each open ledger is one


def engine(path: Path) -> Engine:
    """An engine whose every commit is on disk; `begin` begins its transactions."""
    made = create_engine(URL.create("sqlite", database=str(path)))  # a path may hold what means something in a URL

    @event.listens_for(made, "connect")
    def _connect(dbapi: Any, _record: Any) -> None:
        dbapi.isolation_level = None  # the driver begins nothing by itself
        dbapi.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        _refuse_foreign(dbapi, path)
        _use_wal(dbapi)
        dbapi.execute("PRAGMA synchronous = FULL")

    return made


def begin(connection: Connection, *, reads: bool = False) -> None:
    """Begin a transaction that writes at once, or one that ``reads``: it neither waits for writers nor stops them.

    Said outright, since an event of SQLAlchemy's for it makes each statement a fifth dearer.
    """
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _use_wal(dbapi: Any) -> None:
    """Where several processes begin a ledger at once, SQLite refuses all but one without waiting: ask again."""
    until = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            dbapi.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > until:
                raise
            time.sleep(_BUSY_S)
        else:
            return


def _refuse_foreign(dbapi: Any, path: Path) -> None:
    """Leave somebody else's database as it is. Raises Conflict."""
    tables = {name for (name,) in dbapi.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables >= _OURS:
        some = ", ".join(sorted(tables)[:5])
        raise Conflict(
            f"{path} is no ledger of nightmill",
            why=f"it is a database with other tables: {some}",
            fix="move that file away, or set NIGHTMILL_HOME to another folder",
        )


def is_broken(error: object) -> bool:
    """Whether the driver's error says that the file is no sound database."""
    return str(getattr(error, "sqlite_errorname", "")).startswith(_BROKEN)


def soundness(connection: Any) -> tuple[str, str]:
    """``ok`` or what is wrong inside the file, and how it keeps its journal: ``wal`` is meant."""
    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
    return str(found), str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())


def log_bytes(path: Path) -> int:
    """Of the write-ahead log beside the database; it is emptied as processes end."""
    log = path.with_name(path.name + "-wal")
    return log.stat().st_size if log.exists() else 0


def handed(path: Path) -> int:
    """How many shards this home handed over: as many as the note beside the database has bytes; 0 without one.

    A database that was put back from a backup counts fewer, also where it came back in place.
    """
    try:
        return _note(path).stat().st_size
    except FileNotFoundError:
        return 0


def note_handed(path: Path, count: int) -> None:
    """Let the note have ``count`` bytes at least: one write that never shortens it, and no lock to stand still in."""
    fd = os.open(_note(path), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.lseek(fd, count - 1, os.SEEK_SET)
        os.write(fd, b".")
    finally:
        os.close(fd)


def _note(path: Path) -> Path:
    return path.with_name(path.name + "-handovers")


def moment() -> float:
    """Seconds since boot, suspended time included: no jump of the wall clock moves it."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def boot_id() -> str:
    """Changes with every boot, when moments begin again from zero."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: the boot's time, to ten minutes, serves
        return f"boot-{round((time.time() - time.monotonic()) / 600)}"


def me() -> str:
    """A worker of this process, so that another on the same host can tell whether it still exists."""
    started = f"{_start_time(os.getpid())}.{next(_numbers)}"
    worker = "/".join((boot_id(), _pid_namespace(), str(os.getpid()), started))
    _ours_alive.add(worker)
    return worker


def end(worker: str) -> None:
    """A worker of this process ends, and the process goes on."""
    _ours_alive.discard(worker)


def is_dead(owner: str) -> bool:
    """True only when the worker certainly no longer exists; a stopped process is alive."""
    boot, namespace, pid, started = owner.split("/")
    if boot != boot_id():
        return True
    if namespace != _pid_namespace():
        return False  # another container: its lease has to run out
    if _start_time(int(pid)) != started.partition(".")[0]:
        return True
    return int(pid) == os.getpid() and owner not in _ours_alive


def _start_time(pid: int) -> str:
    """The start time of a live process in clock ticks; empty when there is none."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "0"
