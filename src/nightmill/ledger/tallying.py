"""A job in numbers, from the sums of its shards: no file is read.

Whoever follows a job asks several times a second, so what is asked is put together once in a process.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, func, select

from nightmill.ledger._database import Database
from nightmill.ledger.canary import of_canary
from nightmill.ledger.records import Counts, SubmissionState, Tally
from nightmill.ledger.schema import jobs, shards, submissions
from nightmill.types import LIVE_LANES, Lane, ShardState

_OUT = (SubmissionState.OPEN, SubmissionState.CREATED, SubmissionState.BOOKED)  # handed over, as far as is known
_SUMMED = (
    "succeeded", "failed", "missing", "expired", "cancelled", "resent_failed", "resent_missing", "resent_expired",
    "extra_answers", "unknown_ids", "tokens_in", "tokens_out", "tokens_cached", "tokens_written", "caching_nanos",
)  # fmt: skip
_PAID = ("spent_nanos", "unproven_nanos", "hold_nanos")


class TallyVerbs(Database):
    """Where a job stands."""

    def tally(self, job_id: str) -> Tally:
        """The job in numbers."""
        ask, this = _questions(), {"job_id": job_id}
        with self._read() as connection:
            total = connection.execute(ask.sums, this).one()._mapping
            states = connection.execute(ask.states, this).all()
            spent, unproven, held = connection.execute(ask.paid, this).one()
            sent = connection.execute(ask.handed_over, this).scalar_one()
            rescued = connection.execute(ask.rescued, this).scalar_one()
            rescued_nanos = connection.execute(ask.rescued_paid, this).scalar_one()
            failures: Counter[str] = Counter()
            for (text,) in connection.execute(ask.failures, this):
                failures.update(json.loads(text))
        t = {name: int(total[name]) for name in (*_SUMMED, "list_nanos")}
        final = Counts(t["succeeded"], t["failed"] - t["resent_failed"], t["missing"] - t["resent_missing"],
                       t["expired"] - t["resent_expired"], t["cancelled"])  # fmt: skip
        return Tally(
            counts=final, sent=int(sent), open=sum(int(n) for state, _, n in states if state != ShardState.SETTLED),
            extra_answers=t["extra_answers"], unknown_ids=t["unknown_ids"], tokens_in=t["tokens_in"],
            tokens_out=t["tokens_out"], tokens_cached=t["tokens_cached"], spent_nanos=int(spent),
            unproven_nanos=int(unproven), held_nanos=int(held), list_nanos=t["list_nanos"], failures=dict(failures),
            states={state: int(n) for state, n, _ in states}, rescued=int(rescued), rescued_nanos=int(rescued_nanos),
            tokens_written=t["tokens_written"], caching_nanos=t["caching_nanos"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Questions:
    """What is asked of the shards and submissions of the job ``:job_id``."""

    sums: Select[Any]
    states: Select[Any]
    paid: Select[Any]
    handed_over: Select[Any]  # rows asked for the first time
    rescued: Select[Any]  # requests in live shards of a job in another lane: a deadline makes such, a canary too
    rescued_paid: Select[Any]
    failures: Select[Any]


@cache
def _questions() -> _Questions:
    this: ColumnElement[Any] = bindparam("job_id")
    mine = shards.c.job_id == this
    paid_for = case((shards.c.lane == Lane.CACHE, 0), else_=shards.c.list_nanos)
    went_out = select(submissions.c.tag).where(submissions.c.tag == shards.c.tag, submissions.c.state.in_(_OUT))
    unsent = case((shards.c.lane.in_(LIVE_LANES), shards.c.cancelled), else_=0)  # a batch goes out whole
    is_first = and_(shards.c.attempt == 1, shards.c.expiries == 0, shards.c.missings == 0, shards.c.splits == 0,
                    shards.c.rung == 0)  # fmt: skip
    went_live = and_(mine, shards.c.lane == Lane.LIVE, jobs.c.id == this, jobs.c.lane != Lane.LIVE,
                     shards.c.rung == 0, ~of_canary())  # fmt: skip
    live_submissions = submissions.join(shards, submissions.c.tag == shards.c.tag).join(jobs, went_live)
    return _Questions(
        sums=select(*(_sum(shards.c[name]).label(name) for name in _SUMMED), _sum(paid_for).label("list_nanos")).where(
            mine
        ),
        states=select(shards.c.state, func.count(), func.sum(shards.c["count"])).where(mine).group_by(shards.c.state),
        paid=select(*(_sum(submissions.c[name]) for name in _PAID)).where(submissions.c.job_id == this),
        handed_over=select(_sum(shards.c["count"] - unsent)).where(mine, is_first, went_out.exists()),
        rescued=select(_sum(shards.c["count"])).select_from(shards.join(jobs, went_live)),
        rescued_paid=select(_sum(submissions.c.spent_nanos)).select_from(live_submissions),
        failures=select(shards.c.failures).where(mine, shards.c.failures.is_not(None)),
    )


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)
