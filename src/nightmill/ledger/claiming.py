"""Claiming: which shards may be worked on, and who has them under a lease."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Float, Integer, and_, bindparam, case, func, or_, select, true, update

from nightmill.errors import LeaseLost
from nightmill.ledger._database import Database
from nightmill.ledger._rows import shards_called
from nightmill.ledger.canary import first_rows_first
from nightmill.ledger.records import Shard
from nightmill.ledger.schema import jobs, shards
from nightmill.types import JobState, Lane, ShardState

# Statements that go out for every shard are put together once: that takes longer than the database does.
_SOME_JOBS: Any = bindparam("job_ids", expanding=True)
_SOME_TAGS: Any = bindparam("tags", expanding=True)


@cache
def workable(*, of_all: bool) -> Any:
    """Shards that a worker may take when they are due. Needs a join with jobs, and ``job_ids`` unless ``of_all``.

    A paused job's planned and half-sent shards stay where they are, and so does all that comes after a canary that
    nobody has looked at yet; what may already have cost money is always collected.
    """
    ready = or_(
        shards.c.state.in_((ShardState.SUBMITTING, ShardState.IN_DOUBT, ShardState.WAITING, ShardState.COLLECTING)),
        and_(jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)), first_rows_first()),
        jobs.c.cancel_requested == 1,
    )
    mine = true() if of_all else shards.c.job_id.in_(_SOME_JOBS)
    return and_(shards.c.state != ShardState.SETTLED, ready, mine)


@cache
def _due(*, of_all: bool) -> Any:
    """Workable shards of ``lane`` that are due at ``now``."""
    return and_(
        workable(of_all=of_all), shards.c.lane == bindparam("lane"), shards.c.due <= bindparam("now", type_=Float)
    )


@cache
def _owners(*, of_all: bool) -> Any:
    return select(shards.c.owner).join(jobs, jobs.c.id == shards.c.job_id).where(_due(of_all=of_all)).distinct()


@cache
def _free(*, of_all: bool) -> Any:
    """Tags of due shards that nobody works on, at most ``most``; what is in flight comes first."""
    first_in_flight = case((shards.c.state == ShardState.PLANNED, 1), else_=0)
    return (
        select(shards.c.tag)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(_due(of_all=of_all), shards.c.lease_until <= bindparam("now", type_=Float))
        .order_by(first_in_flight, jobs.c.created_at, shards.c.seq)
        .limit(bindparam("most", type_=Integer))
        .with_for_update(skip_locked=True, of=shards)
    )


@cache
def _outlook(*, of_all: bool) -> Any:
    """By lane and owner, the first moment at which a shard is due and out of its lease, and the first it is due."""
    free = case((shards.c.lease_until > shards.c.due, shards.c.lease_until), else_=shards.c.due)
    return (
        select(shards.c.lane, shards.c.owner, func.min(free), func.min(shards.c.due))
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(workable(of_all=of_all))
        .group_by(shards.c.lane, shards.c.owner)
    )


_TAKE = (
    update(shards)
    .where(shards.c.tag.in_(_SOME_TAGS))
    .values(owner=bindparam("me"), epoch=shards.c.epoch + 1, lease_until=bindparam("until"),
            lease_was_until=shards.c.lease_until)
    .returning(shards.c.tag)
)  # fmt: skip


class ClaimVerbs(Database):
    """Taking shards under a lease, and keeping it; `ShardVerbs` give it back."""

    def claim_due(
        self, *, lane: Lane, limit: int, lease_s: float, job_ids: Collection[str] | None = None
    ) -> list[Shard]:
        """Take up to ``limit`` due shards of a lane under a lease with a new epoch."""
        now, of_all = self.moment(), job_ids is None
        due = {"lane": lane, "now": now} | ({} if job_ids is None else {"job_ids": list(job_ids)})
        with self._read() as connection:  # looking costs no write transaction
            owners = connection.execute(_owners(of_all=of_all), due).scalars().all()
        if not owners:
            return []
        dead = [o for o in owners if o and o != self.me and self.is_dead(o)]
        if not dead and None not in owners:
            with self._read() as connection:
                if connection.execute(_free(of_all=of_all), due | {"most": 1}).first() is None:
                    return []
        with self._write("claim_due") as connection:
            if dead:  # the end of a dead worker's lease counts as the moment its death was seen
                gone = and_(shards.c.owner.in_(dead), shards.c.lease_until > now)
                connection.execute(update(shards).where(gone).values(lease_until=now))
            # Locked, so that the update takes just these.
            chosen = list(connection.execute(_free(of_all=of_all), due | {"most": limit}).scalars())
            if not chosen:
                return []
            taken = {"tags": chosen, "me": self.me, "until": now + lease_s}
            return shards_called(connection, list(connection.execute(_TAKE, taken).scalars()))

    def claim_one(self, tag: str, lease_s: float) -> Shard:
        """Take one shard whatever it is due, for a person's decision. Raises LeaseLost if somebody works on it."""
        now = self.moment()
        with self._write("claim_one") as connection:
            owner = connection.execute(select(shards.c.owner).where(shards.c.tag == tag)).scalar()
            free = shards.c.lease_until <= now
            if owner and self.is_dead(owner):
                free = or_(free, shards.c.owner == owner)
            taken = (
                update(shards)
                .where(shards.c.tag == tag, free)
                .values(owner=self.me, epoch=shards.c.epoch + 1, lease_until=now + lease_s, lease_was_until=now)
            )
            if connection.execute(taken.returning(shards.c.tag)).first() is None:
                raise LeaseLost(f"shard {tag} is being worked on", fix="try again in a while")
            return shards_called(connection, [tag])[0]

    def renew(self, held: Sequence[Shard], lease_s: float) -> set[str]:
        """Extend the leases that are still ours; the tags that are."""
        until = self.moment() + lease_s
        with self._write("renew") as connection:
            still = (
                update(shards)
                .where(shards.c.tag.in_([s.tag for s in held]), shards.c.owner == self.me)
                .values(lease_until=until)
                .returning(shards.c.tag, shards.c.epoch)
            )
            ours: dict[str, int] = dict(connection.execute(still).all())
        return {s.tag for s in held if ours.get(s.tag) == s.epoch}

    def outlook(self, job_ids: Collection[str] | None = None) -> dict[Lane, float]:
        """By lane, the earliest moment at which one of its shards can be claimed; it may be past.

        A shard that somebody works on can be when its lease ends, or at once when its owner is dead.
        """
        which = {} if job_ids is None else {"job_ids": list(job_ids)}
        with self._read() as connection:
            rows = connection.execute(_outlook(of_all=job_ids is None), which).all()
        first: dict[Lane, float] = {}
        for lane, owner, free, due in rows:
            at = due if owner and owner != self.me and self.is_dead(owner) else free
            first[Lane(lane)] = min(at, first.get(Lane(lane), at))
        return first
