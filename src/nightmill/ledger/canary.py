"""The first rows of a job: nothing else of it is claimed until they have ended and were looked at; and what all
answers so far were like.

`first_rows_first` is a condition on the rows of jobs and shards themselves, so that claiming costs what it did.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import msgspec
from sqlalchemy import and_, case, func, or_, select, update

from nightmill.ledger._database import Database
from nightmill.ledger.records import Canary, CanarySums, SoFarValid
from nightmill.ledger.schema import jobs, shards, submissions
from nightmill.ledger.shards import pause_job
from nightmill.types import JobState, Lane, ShardState

_MOST_RECENT = 256  # settled shards that are looked at


def first_rows_first() -> Any:
    """A planned shard may go out: its job's canary was looked at, or it is of it, or nothing of it is sent."""
    return or_(
        jobs.c.canary_last.is_(None),
        jobs.c.canary.is_not(None),
        shards.c.last <= jobs.c.canary_last,
        shards.c.lane == Lane.CACHE,
    )


def of_canary() -> Any:
    """Shards with none but rows of their job's canary, parts of earlier ones included. Needs a join with jobs."""
    return and_(shards.c.last <= func.coalesce(jobs.c.canary_last, -1), shards.c.lane != Lane.CACHE)


class CanaryVerbs(Database):
    """What the first rows of a job showed, and what to do about it."""

    def canary_sums(self, job_id: str) -> CanarySums | None:
        """What the canary of a job came to, once all of it has settled and nobody has decided about it."""
        wants = and_(jobs.c.id == job_id, jobs.c.canary_last.is_not(None), jobs.c.canary.is_(None))
        mine = and_(shards.c.job_id == jobs.c.id, of_canary())
        names = ("succeeded", "failed", "missing", "expired", "resent_failed", "resent_missing", "resent_expired")
        is_open = case((shards.c.state == ShardState.SETTLED, 0), else_=1)
        sums = select(func.count(), func.coalesce(func.sum(is_open), 0),
                      *(func.coalesce(func.sum(shards.c[name]), 0).label(name) for name in names))  # fmt: skip
        spent = select(func.coalesce(func.sum(submissions.c.spent_nanos), 0)).select_from(
            jobs.join(shards, mine).join(submissions, submissions.c.tag == shards.c.tag)
        )
        with self._read() as connection:
            row = connection.execute(sums.select_from(jobs.join(shards, mine)).where(wants)).one()
            if not row[0] or row[1]:
                return None
            nanos = int(connection.execute(spent.where(wants)).scalar_one())
        said = {name: int(row._mapping[name]) for name in names}
        lost = sum(said[name] - said[f"resent_{name}"] for name in ("failed", "missing", "expired"))
        return CanarySums(said["succeeded"], lost, nanos)

    def note_canary(self, job_id: str, found: Canary) -> bool:
        """Somebody looked at the canary: the rest of the job may go out, or the job pauses in the same transaction.

        False: another worker was first, or the job is paused for another reason; nothing was changed.
        """
        undecided = and_(jobs.c.id == job_id, jobs.c.canary.is_(None), jobs.c.canary_last.is_not(None),
                         jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)))  # fmt: skip
        told = update(jobs).where(undecided).values(canary=msgspec.json.encode(found).decode())
        with self._write("note_canary") as connection:
            if connection.execute(told.returning(jobs.c.id)).first() is None:
                return False
            if found.stopped is not None:
                pause_job(connection, job_id, found.reason, found.stopped)
        return True

    def decide_anew(self, job_id: str) -> None:
        """The same command again, perhaps on other terms: whether a canary that stopped the job still does."""
        with self._write("decide_anew") as connection:
            stopped = and_(jobs.c.id == job_id, jobs.c.canary.is_not(None))
            connection.execute(update(jobs).where(stopped).values(canary=None))

    def canary_stands(self, job_id: str, found: Canary) -> None:
        """A person insists: what the canary showed is kept, and stops nothing any more."""
        with self._write("canary_stands") as connection:
            kept = msgspec.json.encode(found).decode()
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(canary=kept))

    def valid_so_far(self, job_id: str, window: int) -> SoFarValid:
        """How many of the rows that have ended in settled shards have a valid answer, all and the last ``window``.

        Rows that were never answered say nothing of answers. Those that went out again count with the shard that they
        were in first, once all of them have ended: alone they are a choice of the worst.
        """
        s = shards.c
        mine = and_(s.job_id == job_id, s.lane != Lane.CACHE)
        settled = and_(mine, s.state == ShardState.SETTLED)
        ended = s.succeeded + s.failed - s.resent_failed
        is_first = and_(s.attempt == 1, s.expiries == 0, s.missings == 0, s.splits == 0, s.rung == 0)
        again = s.resent_failed + s.resent_missing + s.resent_expired
        newest = select(s.first, s.last, ended, s.succeeded, again).where(settled, is_first)
        newest = newest.order_by(s.settled_at.desc(), s.seq.desc()).limit(_MOST_RECENT)
        parts = select(s.first, s.last, ended, s.succeeded, s.state).where(mine, ~is_first).order_by(s.first)
        total = select(func.coalesce(func.sum(ended), 0), func.coalesce(func.sum(s.succeeded), 0))
        with self._read() as connection:
            rows, valid = connection.execute(total.where(settled)).one()
            firsts = connection.execute(newest).all()
            later = connection.execute(parts).all() if any(resent for *_, resent in firsts) else []
        last_rows = last_valid = 0
        starts = [part.first for part in later]
        for first, last, some, good, resent in firsts:
            own = [part for part in later[bisect_left(starts, first) : bisect_right(starts, last)] if part.last <= last]
            if resent and (not own or any(part.state != ShardState.SETTLED for part in own)):
                continue
            last_rows += int(some) + sum(int(part[2]) for part in own)
            last_valid += int(good) + sum(int(part.succeeded) for part in own)
            if last_rows >= window:
                break
        return SoFarValid(int(rows), int(valid), last_rows, last_valid)

    def stop_for_answers(self, job_id: str, reason: str) -> bool:
        """Answers are too bad: the job pauses, and its batches are due, to be cancelled. False: it is not running."""
        running = and_(jobs.c.id == job_id, jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)),
                       jobs.c.cancel_requested == 0)  # fmt: skip
        paused = update(jobs).where(running).values(state=JobState.PAUSED, reason=reason, stopped="min_valid")
        with self._write("stop_for_answers") as connection:
            if connection.execute(paused.returning(jobs.c.id)).first() is None:
                return False
            waiting = and_(shards.c.job_id == job_id, shards.c.state == ShardState.WAITING)
            connection.execute(update(shards).where(waiting).values(due=0.0))
        return True
