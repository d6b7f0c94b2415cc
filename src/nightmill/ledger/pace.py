"""How fast things went so far, and how much is left: what a deadline is kept by."""

from __future__ import annotations

from sqlalchemy import Connection, and_, case, func, or_, select

from nightmill.ledger._database import Database
from nightmill.ledger.schema import shards, submissions
from nightmill.types import Lane, ShardState

_MOST = 1000  # of the newest batches that are looked at
_JOBS = 5  # of the newest jobs with live calls


def rows_left_in(connection: Connection, job_id: str, but: str | None, *, hands_back: bool) -> tuple[int, int]:
    """See `PaceVerbs.rows_left`."""
    said = func.coalesce(submissions.c.completed, 0) + func.coalesce(submissions.c.failed, 0)
    told = said if hands_back else case((submissions.c.output_file.is_not(None), said), else_=0)
    there = shards.c.state.in_((ShardState.WAITING, ShardState.COLLECTING))
    count = shards.c["count"]
    left = case((and_(there, told < count), count - told), (there, 0), else_=count)
    # What was refused as a whole may go into a batch again, though that one was to be cancelled.
    stays = or_(func.coalesce(submissions.c.cancel_asked, 0) == 0, shards.c.state == ShardState.PLANNED)
    waits = and_(shards.c.lane.in_((Lane.BATCH, Lane.FLEX)), shards.c.state != ShardState.COLLECTING, stays)
    sums = select(
        func.coalesce(func.sum(case((waits, left), else_=0)), 0),
        func.coalesce(func.sum(case((waits, 0), else_=left)), 0),
    ).select_from(
        shards.outerjoin(submissions, and_(submissions.c.tag == shards.c.tag,
                                           submissions.c.n == shards.c.submission))
    )  # fmt: skip
    which = and_(shards.c.job_id == job_id, shards.c.state != ShardState.SETTLED, shards.c.lane != Lane.CACHE)
    batch, live = connection.execute(sums.where(which, shards.c.tag != (but or ""))).one()
    return int(batch), int(live)


class PaceVerbs(Database):
    """Looks only."""

    def rows_left(self, job_id: str, *, but: str | None = None, hands_back: bool = True) -> tuple[int, int]:
        """Requests of a job without an answer, as far as providers have said; those of the shard ``but`` left out.

        First those that are, or will be, in a batch that is waited for, or in the flex lane; then those that run live,
        and those in batches that are being cancelled or have ended. ``hands_back``: what a batch has answered is had
        however it ends; if not, it counts as left until there is a file of it.
        """
        with self._read() as connection:
            return rows_left_in(connection, job_id, but, hands_back=hands_back)

    def batch_times(self, model: str, *, since: float) -> list[float]:
        """Seconds from upload to end of the newest batches of a model (without its provider) that nobody cancelled.

        ``since``: handed over after that, unix seconds.
        """
        s = submissions.c
        took = select(s.ended_at - s.intent_at).where(
            s.batch_model == model, s.batch_id.is_not(None), s.ended_at.is_not(None), s.cancel_asked == 0,
            s.intent_at >= since,
        )  # fmt: skip
        with self._read() as connection:
            found = connection.execute(took.order_by(s.intent_at.desc()).limit(_MOST)).scalars()
            return [max(0.0, float(seconds)) for seconds in found]

    def cancel_times(self, account: str, *, since: float) -> list[float]:
        """Seconds from asking for a cancel to the end of the newest batches of an account that we cancelled.

        One that had ended before tells nothing.
        """
        s = submissions.c
        took = select(s.ended_at - s.cancel_at).where(
            s.account == account, s.ended_at > s.cancel_at, s.cancel_at >= since
        )
        with self._read() as connection:
            found = connection.execute(took.order_by(s.cancel_at.desc()).limit(_MOST)).scalars()
            return [max(0.0, float(seconds)) for seconds in found]

    def live_rates(self, account: str, model: str, *, since: float, least: int, lane: Lane = Lane.LIVE) -> list[float]:
        """Rows a second of the newest jobs that ran at least ``least`` rows in a live lane, by account and model."""
        s = submissions.c
        rows = func.sum(shards.c["count"])
        took = func.max(shards.c.settled_at) - func.min(s.intent_at)
        jobs = (
            select(rows, took)
            .join(shards, shards.c.tag == s.tag)
            .where(shards.c.lane == lane, shards.c.settled_at.is_not(None), s.account == account,
                   s.batch_model == model, s.intent_at >= since)
            .group_by(shards.c.job_id)
            .having(rows >= least)
            .order_by(func.max(s.intent_at).desc())
            .limit(_JOBS)
        )  # fmt: skip
        with self._read() as connection:
            return [int(count) / max(float(seconds), 0.001) for count, seconds in connection.execute(jobs)]
