"""How the ledger itself is: sound or not, how large, and who holds what."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from nightmill.ledger import _sqlite
from nightmill.ledger._database import Database
from nightmill.ledger.schema import jobs, shards
from nightmill.types import JobState


@dataclass(frozen=True, slots=True)
class Health:
    """A ledger looked at closely."""

    sound: str  # "ok", or what is wrong inside
    journal: str  # "wal" is meant
    size_bytes: int
    log_bytes: int  # of the write-ahead log, beside it
    stale: int  # leases whose owner is dead: whoever works next takes them
    running: tuple[str, ...]  # jobs that are under way, by what the ledger says


class HealthVerbs(Database):
    """Looks only."""

    def health(self) -> Health:
        """Look through the whole file. Raises StoreError."""
        under_way = select(jobs.c.id).where(jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)))
        held = select(shards.c.owner).where(shards.c.lease_until > self.moment())
        with self._read() as connection:
            sound, journal = _sqlite.soundness(connection)
            owners = list(connection.execute(held).scalars())
            running = tuple(connection.execute(under_way.order_by(jobs.c.id)).scalars())
        stale = sum(bool(owner) and self.is_dead(owner) for owner in owners)
        sizes = self._path.stat().st_size, _sqlite.log_bytes(self._path)
        return Health(sound, journal, *sizes, stale, running)
