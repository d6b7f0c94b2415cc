"""The ladder's steps in numbers, and their end where money runs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, case, func, select, update

from nightmill.ledger._database import wall
from nightmill.ledger._rows import raise_alerts
from nightmill.ledger.records import Shard
from nightmill.ledger.schema import alerts, shards, submissions
from nightmill.ledger.shards import ShardVerbs, still_invalid
from nightmill.types import ShardState

STOPPED = "ladder_stopped"  # the kind of the alert that money ran out for a step


@dataclass(frozen=True, slots=True)
class StepTally:
    """One rung of a job's ladder: rows, and money in nano-dollars."""

    rung: int  # 0: the first ask
    rows: int  # that came to it
    valid: int  # of those, answered by the schema, repaired ones included
    repaired: int  # of the valid ones, put right by local repair
    open: int  # still without an outcome on this rung
    spent_nanos: int


class LadderVerbs(ShardVerbs):
    """Looking at steps, and leaving rows as they are."""

    def steps_of(self, job_id: str) -> list[StepTally]:
        """The rungs that rows of the job came to, in order; no file is read."""
        s = shards.c
        is_first = and_(s.attempt == 1, s.expiries == 0, s.missings == 0, s.splits == 0)
        sums = (
            func.sum(case((is_first, s["count"]), else_=0)), func.sum(s.succeeded), func.sum(s.repaired),
            func.sum(case((s.state != ShardState.SETTLED, s["count"]), else_=0)),
        )  # fmt: skip
        spent = (
            select(s.rung, func.sum(submissions.c.spent_nanos))
            .join(shards, s.tag == submissions.c.tag)
            .where(s.job_id == job_id)
            .group_by(s.rung)
        )
        with self._read() as connection:
            paid = {int(rung): int(nanos or 0) for rung, nanos in connection.execute(spent)}
            rows = connection.execute(select(s.rung, *sums).where(s.job_id == job_id).group_by(s.rung)).all()
        numbers = sorted([int(n) for n in row] for row in rows)
        return [
            StepTally(rung, asked, valid, repaired, still_open, paid.get(rung, 0))
            for rung, asked, valid, repaired, still_open in numbers
        ]

    def give_up(self, shard: Shard, reason: str) -> None:
        """No money for this step of the ladder: its rows stay as the step before left them, said in an alert.

        With it go the shards of the same rung that wait to be handed over: they would fare alike.
        """
        beside = and_(shards.c.job_id == shard.job_id, shards.c.rung == shard.rung, shards.c.tag != shard.tag,
                      shards.c.state == ShardState.PLANNED, shards.c.submission == 0,
                      shards.c.lease_until <= self.moment())  # fmt: skip
        with self._write("give_up") as connection:
            done: dict[str, Any] = {"failed": shard.count, "failures": still_invalid(shard.count)}
            self._step(connection, shard, ShardState.SETTLED, settled_at=wall(), reason=reason, **done)
            for tag, count in connection.execute(select(shards.c.tag, shards.c["count"]).where(beside)).all():
                connection.execute(
                    update(shards).where(shards.c.tag == tag).values(
                        state=ShardState.SETTLED, failed=count, failures=still_invalid(count), settled_at=wall(),
                        reason=reason, epoch=shards.c.epoch + 1,
                    )
                )  # fmt: skip
            told = select(alerts.c.id).where(alerts.c.job_id == shard.job_id, alerts.c.kind == STOPPED)
            if connection.execute(told.limit(1)).first() is None:  # once is enough
                text = f"not every answer that does not fit the schema is asked for again: {reason}"
                raise_alerts(connection, shard.job_id, shard.tag, [(STOPPED, text)])
