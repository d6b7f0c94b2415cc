"""One connection pool, one way to write: a verb opens a transaction and returns after its commit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import BigInteger, Connection, Text, cast, insert, select, update
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError

from nightmill.errors import Conflict, StoreError
from nightmill.killpoints import reach
from nightmill.ledger import _sqlite, schema
from nightmill.ledger.schema import meta

_ONE_MORE_HANDED = (
    update(meta)
    .where(meta.c.key == "handed")
    .values(value=cast(cast(meta.c.value, BigInteger) + 1, Text))
    .returning(meta.c.value)
)


def wall() -> float:
    """Unix seconds by the wall clock, written down for people and providers; what waits goes by `Database.moment`."""
    return time.time()


class Database:
    """The ledger's connection to SQLite; every verb is built on `_write` and `_read`.

    Raises:
        StoreError: the database cannot be opened or written (disk full, folder unwritable).
        Conflict: it was made by a newer nightmill.
    """

    def __init__(self, path: Path) -> None:
        self._engine = _sqlite.engine(path)
        self._path = path
        self.me = self._worker = _sqlite.me()
        self.copied = False  # this ledger was restored or copied: unsettled work is in doubt
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """This worker ends: what it held is free at once."""
        _sqlite.end(self._worker)
        self._engine.dispose()

    def moment(self) -> float:
        """Now, in seconds on the clock that leases and due times are kept in."""
        return _sqlite.moment()

    def is_dead(self, owner: str) -> bool:
        """True only when the worker behind ``owner`` certainly no longer exists."""
        return _sqlite.is_dead(owner)

    @contextmanager
    def _write(self, verb: str) -> Iterator[Connection]:
        with self._writing() as connection:
            yield connection
            reach(f"ledger.{verb}.committing")
        reach(f"ledger.{verb}.committed")

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """One snapshot for all that is read inside, so that sums and their parts agree."""
        with self._explained(), self._engine.connect() as connection:
            _sqlite.begin(connection, reads=True)
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._explained(), self._engine.connect() as connection, connection.begin():
            _sqlite.begin(connection)
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            if isinstance(error, (IntegrityError, DataError, ProgrammingError)):
                raise  # ours to answer for, not the disk's
            raise self._unusable(str(error.orig), broken=_sqlite.is_broken(error.orig)) from error
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error

    def _unusable(self, why: str, *, broken: bool = False) -> StoreError:
        fix = "free some space or make the folder writable, then run the same command again; nothing was lost"
        if broken:
            fix = "put it back from a backup, or set NIGHTMILL_HOME to another folder; the file was left as it is"
        return StoreError(f"cannot use the ledger {self._path}", why=why, fix=fix)

    def _prepare(self) -> None:
        with self._writing() as connection:
            schema.metadata.create_all(connection)
            known = dict(connection.execute(select(meta.c.key, meta.c.value)).all())
            if not known:
                self._begin_ledger(connection)
                return
            if int(known["revision"]) > schema.REVISION:
                raise Conflict(
                    f"the ledger {self._path} was made by a newer nightmill",
                    why=f"its revision is {known['revision']}; this program knows {schema.REVISION}",
                    fix="upgrade nightmill, or point NIGHTMILL_HOME at another folder",
                )
            if int(known["revision"]) < schema.REVISION:
                self._bring_up_to_date(connection)
            behind = int(known.get("handed", 0)) < _sqlite.handed(self._path)
            self.copied = behind or known["incarnation"] != self._incarnation()
            if known["boot"] != _sqlite.boot_id():
                self._after_boot(connection)
            if self.copied:
                self._doubt_everything(connection)

    def _bring_up_to_date(self, connection: Connection) -> None:
        """Made by an older program: in one transaction it is as ours, which that program then refuses."""
        from nightmill.ledger.migrating import add_columns

        add_columns(connection)
        connection.execute(update(meta).where(meta.c.key == "revision").values(value=str(schema.REVISION)))

    def _begin_ledger(self, connection: Connection) -> None:
        facts = {
            "revision": str(schema.REVISION),
            "incarnation": self._incarnation(),
            "boot": _sqlite.boot_id(),
            "created_at": str(wall()),
            "handed": str(_sqlite.handed(self._path)),
        }
        connection.execute(insert(meta), [{"key": k, "value": v} for k, v in facts.items()])

    def _incarnation(self) -> str:
        """Marks this very database file on this very disk; a copy differs."""
        return str(self._path.stat().st_ino)

    def _after_boot(self, connection: Connection) -> None:
        """Moments begin again at every boot: all leases are over, everything is due.

        How long ago a look or a read was, nobody knows any more: looks and reads begin again.
        """
        over = {"lease_until": 0.0, "lease_was_until": 0.0, "owner": None}
        connection.execute(update(schema.shards).values(due=0.0, looks=0, fenced=0, reads=0, reread=0, **over))
        connection.execute(update(schema.jobs).values(owner=None, lease_until=0.0))
        connection.execute(update(schema.quotas).values(cool_until=0.0))
        connection.execute(schema.workers.delete())
        connection.execute(update(meta).where(meta.c.key == "boot").values(value=_sqlite.boot_id()))

    def _doubt_everything(self, connection: Connection) -> None:
        """A restored ledger may be behind the world: whatever could have been sent since is in doubt."""
        from nightmill.ledger.restoring import doubt_after_restore

        doubt_after_restore(connection)
        connection.execute(update(meta).where(meta.c.key == "incarnation").values(value=self._incarnation()))
        self._set_handed(connection, _sqlite.handed(self._path))

    def _count_handed(self, connection: Connection) -> int:
        """One more shard is handed over; `_note_handed` says so outside the database, after the commit."""
        return int(connection.execute(_ONE_MORE_HANDED).scalar_one())

    def _set_handed(self, connection: Connection, count: int) -> None:
        connection.execute(update(meta).where(meta.c.key == "handed").values(value=str(count)))

    def _note_handed(self, count: int) -> None:
        with self._explained():
            _sqlite.note_handed(self._path, count)
