"""What happened to a job, in the order of time: money, shards, alerts, beginning and end."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from nightmill.ledger._database import Database
from nightmill.ledger.schema import alerts, entries, jobs, shards


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job.

    ``kind`` is ``created``, ``started``, ``finished``, ``settled``, ``alert``, or that of a movement of money:
    ``hold``, ``release``, ``settle``, ``unproven``.
    """

    at: float  # unix seconds
    kind: str
    submission: str | None = None  # "<shard tag>.<n>", or a shard's tag
    nanos: int | None = None
    calls: int = 0
    text: str = ""


class HistoryVerbs(Database):
    """Looks only."""

    def history_of(self, job_id: str) -> list[Event]:
        """Everything that is known to have happened to a job, oldest first."""
        mine = jobs.c.id == job_id
        money = (entries.c.at, entries.c.kind, entries.c.tag, entries.c.n, entries.c.nanos, entries.c.calls)
        with self._read() as connection:
            about = connection.execute(
                select(jobs.c.created_at, jobs.c.started_at, jobs.c.finished_at, jobs.c.state).where(mine)
            ).one()
            booked = connection.execute(select(*money).where(entries.c.job_id == job_id).order_by(entries.c.id)).all()
            told = connection.execute(
                select(alerts.c.at, alerts.c.tag, alerts.c.text).where(alerts.c.job_id == job_id).order_by(alerts.c.id)
            ).all()
            over = connection.execute(
                select(shards.c.settled_at, shards.c.tag, shards.c["count"], shards.c.succeeded, shards.c.reason).where(
                    shards.c.job_id == job_id, shards.c.settled_at.is_not(None)
                )
            ).all()
        found = [Event(about.created_at, "created")]
        found += [Event(about.started_at, "started")] if about.started_at else []
        found += [Event(at, kind, f"{tag}.{n}", nanos, calls) for at, kind, tag, n, nanos, calls in booked]
        found += [Event(at, "alert", tag, text=text) for at, tag, text in told]
        found += [Event(at, "settled", tag, text=_ended(count, ok, why)) for at, tag, count, ok, why in over]
        found += [Event(about.finished_at, "finished", text=about.state)] if about.finished_at else []
        return sorted(found, key=lambda event: event.at)


def _ended(count: int, succeeded: int, reason: str | None) -> str:
    return f"{succeeded:,} of {count:,} requests ok" + (f": {reason}" if reason else "")
