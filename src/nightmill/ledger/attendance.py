"""Who is at work on a job: what a second command needs to know before it joins in."""

from __future__ import annotations

from sqlalchemy import and_, func, select

from nightmill.ledger._database import Database
from nightmill.ledger.schema import jobs, shards, workers
from nightmill.ledger.shards import _workable


class AttendanceVerbs(Database):
    """Looks only; takes nothing."""

    def attended(self, job_id: str, *, overdue_s: float) -> bool:
        """Whether another live worker is at this job: it holds a part of it, or lets none lie overdue."""
        now = self.moment()
        held = and_(shards.c.job_id == job_id, shards.c.lease_until > now)
        closing = and_(jobs.c.id == job_id, jobs.c.lease_until > now)
        free = and_(_workable(of_all=True), shards.c.job_id == job_id, shards.c.lease_until <= now)
        with self._read() as connection:
            holders = [
                *connection.execute(select(shards.c.owner).where(held)).scalars(),
                *connection.execute(select(jobs.c.owner).where(closing)).scalars(),
            ]
            alive = connection.execute(select(workers.c.owner).where(workers.c.seen_until > now)).scalars().all()
            earliest = select(func.min(shards.c.due)).join(jobs, jobs.c.id == shards.c.job_id).where(free)
            due: float | None = connection.execute(earliest).scalar()
        if any(self._is_another(owner) for owner in holders):
            return True
        return due is not None and now - due < overdue_s and any(self._is_another(owner) for owner in alive)

    def _is_another(self, owner: str | None) -> bool:
        return owner is not None and owner != self.me and not self.is_dead(owner)
