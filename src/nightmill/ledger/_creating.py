"""Which create may go out where batches carry nothing of ours: one at a time, and none of a size that is in doubt."""

from __future__ import annotations

from sqlalchemy import Connection, and_, or_, select

from nightmill.ledger.records import CREATE_LOCK, SAME_SIZE, Denied, Shard
from nightmill.ledger.schema import jobs, shards, submissions
from nightmill.types import Lane, ShardState

_CURRENT = and_(submissions.c.tag == shards.c.tag, submissions.c.n == shards.c.submission)


def create_denial(connection: Connection, shard: Shard, account: str) -> Denied | None:
    """Why no batch of ``shard`` may be created now on an account where batches carry nothing of ours.

    Keys of one workspace see the same batches, hence whatever the key. After a restore nobody knows the account, nor,
    of a step further up a ladder, the provider.
    """
    whose = submissions.c.account.startswith(account.rpartition("|")[0] + "|", autoescape=True)
    may_be_here = or_(jobs.c.model.startswith(account.partition("|")[0] + "/", autoescape=True), shards.c.rung > 0)
    restored = and_(submissions.c.account == "", may_be_here)
    open_ = or_(shards.c.state.in_((ShardState.SUBMITTING, ShardState.IN_DOUBT)), submissions.c.unconfirmed == 1)
    others = connection.execute(
        select(shards.c.tag, shards.c.state, shards.c["count"], submissions.c.sought_until)
        .join(submissions, _CURRENT)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(shards.c.lane == Lane.BATCH, shards.c.tag != shard.tag, open_, or_(whose, restored))
        .order_by(shards.c.tag)
    ).all()
    for tag, state, _, sought_until in others:
        if state == ShardState.SUBMITTING or (state == ShardState.IN_DOUBT and sought_until is None):
            return Denied(CREATE_LOCK, 0, 0, by=tag)
    return next((Denied(SAME_SIZE, 0, 0, by=tag) for tag, _, count, _ in others if count == shard.count), None)
