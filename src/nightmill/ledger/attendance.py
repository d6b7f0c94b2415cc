"""Who is at work on a job: what a second command needs to know before it joins in."""

from __future__ import annotations

from sqlalchemy import and_, case, func, or_, select

from nightmill.ledger._database import Database
from nightmill.ledger.canary import first_rows_first, of_canary
from nightmill.ledger.claiming import workable
from nightmill.ledger.schema import jobs, shards, workers
from nightmill.types import JobState, Lane, ShardState


class AttendanceVerbs(Database):
    """Looks only; takes nothing."""

    def attended(self, job_id: str, *, overdue_s: float) -> bool:
        """Whether another live worker is at this job: it holds a part of it, or lets none lie overdue."""
        now = self.moment()
        held = and_(shards.c.job_id == job_id, shards.c.lease_until > now)
        closing = and_(jobs.c.id == job_id, jobs.c.lease_until > now)
        free = and_(workable(of_all=True), shards.c.job_id == job_id, shards.c.lease_until <= now)
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

    def is_handed_over(self, job_id: str) -> bool:
        """Whether all of the job that can go out now is out, and something of it is still to come back.

        Rows that a deadline made go live are out when they are answered. What waits for a canary in a batch cannot go;
        what waits for a live one, or for a look at it, will in a moment.
        """
        runs = and_(jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)), jobs.c.cancel_requested == 0)
        planned = and_(shards.c.state == ShardState.PLANNED, shards.c.due <= self.moment())
        ready = and_(or_(and_(planned, first_rows_first()), shards.c.state == ShardState.SENDING), runs)
        to_do = case((or_(ready, shards.c.state == ShardState.SUBMITTING), 1), else_=0)
        which = and_(shards.c.job_id == job_id, shards.c.state != ShardState.SETTLED)
        behind = case((and_(shards.c.state == ShardState.PLANNED, ~first_rows_first(), runs), 1), else_=0)
        in_batches = case((and_(of_canary(), shards.c.lane == Lane.BATCH), 1), else_=0)
        sums = select(func.count(), func.sum(to_do), func.sum(behind), func.sum(in_batches))
        with self._read() as connection:
            row = connection.execute(sums.select_from(shards).join(jobs, jobs.c.id == shards.c.job_id).where(which))
            unsettled, left, waiting, canary = row.one()
        return bool(unsettled) and not left and (not waiting or bool(canary))
