"""Batches that carry nothing of ours: what is found out of one by its time, its size, and the ids in its results."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, and_, select, update

from nightmill.ledger._rows import raise_alerts
from nightmill.ledger.records import Shard, SubmissionState
from nightmill.ledger.schema import shards, submissions
from nightmill.ledger.shards import ShardVerbs
from nightmill.types import ShardState

_SOUGHT = (SubmissionState.OPEN, SubmissionState.ABSENT, SubmissionState.LOST)
# Whoever submits must not be disturbed; whoever looks for it, or is about to settle without it, begins anew.
_TO_BE_TOLD = (ShardState.IN_DOUBT, ShardState.PLANNED, ShardState.WAITING, ShardState.COLLECTING)


class UntaggedVerbs(ShardVerbs):
    """What is found out of a batch by its time, its size, and at last by the ids in its results."""

    def taken(self, batch_ids: Collection[str]) -> dict[str, str]:
        """Of these batches those that a submission has, with its name."""
        some = submissions.c.batch_id.in_(list(batch_ids))
        with self._read() as connection:
            rows = connection.execute(select(submissions.c.batch_id, submissions.c.tag, submissions.c.n).where(some))
            return {batch_id: f"{tag}.{n}" for batch_id, tag, n in rows}

    def exclude(self, tag: str, n: int, batch_ids: Sequence[str]) -> None:
        """These batches are certainly not that submission's. No lease is needed: it stays true for ever."""
        with self._write("exclude") as connection:
            _exclude(connection, tag, n, batch_ids)

    def back_to_doubt(self, shard: Shard, *, due: float, reason: str, alert: str) -> None:
        """The batch that was taken for the shard's is not proven by its results, and never will be: its hold stays."""
        with self._write("back_to_doubt") as connection:
            self._step(connection, shard, ShardState.IN_DOUBT, due=due, reads=0, reread=0, reason=reason)
            sub = shard.current
            _exclude(connection, shard.tag, sub.n, [sub.batch_id] if sub.batch_id else [])
            self._update_submission(
                connection, shard.tag, sub.n, state=SubmissionState.OPEN, batch_id=None, unconfirmed=0, ended=0,
                status=None, total=None, completed=None, failed=None, output_file=None, error_file=None,
            )  # fmt: skip
            raise_alerts(connection, shard.job_id, shard.tag, [("not_ours", alert)])

    def note_answered(self, tag: str, n: int, batch_id: str, *, status: str) -> bool:
        """The create of a submission was answered after its worker had lost the lease: whoever looks next has the id.

        False: nobody looks for it any more, or its batch was found.
        """
        this = and_(submissions.c.tag == tag, submissions.c.n == n, submissions.c.batch_id.is_(None),
                    submissions.c.state.in_(_SOUGHT))  # fmt: skip
        told = update(submissions).where(this).values(batch_id=batch_id, status=status).returning(submissions.c.tag)
        holders = and_(shards.c.tag == tag, shards.c.state.in_(_TO_BE_TOLD))
        anew = {"epoch": shards.c.epoch + 1, "owner": None, "lease_until": 0.0, "due": self.moment()}
        with self._write("note_answered") as connection:
            if connection.execute(told).first() is None:
                return False
            connection.execute(update(shards).where(holders).values(**anew))
        return True


def _exclude(connection: Connection, tag: str, n: int, batch_ids: Sequence[str]) -> None:
    this = and_(submissions.c.tag == tag, submissions.c.n == n)
    known = connection.execute(select(submissions.c.not_ours).where(this)).scalar()
    every = list(dict.fromkeys([*json.loads(known or "[]"), *batch_ids]))
    connection.execute(update(submissions).where(this).values(not_ours=json.dumps(every)))
