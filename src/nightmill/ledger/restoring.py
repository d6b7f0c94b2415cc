"""After a backup was put back, or a copy was made: what may have been sent since is in doubt."""

from __future__ import annotations

from sqlalchemy import Connection, and_, insert, select, update

from nightmill.ledger.records import EPOCHS_SINCE_A_BACKUP, SubmissionState
from nightmill.ledger.schema import jobs, shards, submissions
from nightmill.types import LIVE_LANES, JobState, Lane, ShardState

_SEQS_SINCE_A_BACKUP = 1_000_000
_RESTORED = (
    "the ledger was put back from a backup or copied, and rows may have been sent live since then: "
    "answers whose journals lie in the home are used, others are sent and paid again when you resume"
)
_FREE = {"owner": None, "lease_until": 0.0}


def doubt_after_restore(connection: Connection) -> None:
    """A restored ledger: every shard that is not settled may have gone out since the backup.

    A batch can be looked for. What went out live cannot: such jobs are paused for a person to see.
    Shard numbers given since then are not known either, so that new ones begin far above.
    """
    connection.execute(update(jobs).values(next_seq=jobs.c.next_seq + _SEQS_SINCE_A_BACKUP))
    open_batch = and_(shards.c.lane == Lane.BATCH, shards.c.state != ShardState.SETTLED)
    unsent = and_(open_batch, shards.c.state == ShardState.PLANNED)
    columns = (shards.c.tag, shards.c.submission, shards.c.job_id, jobs.c.created_at)
    for tag, n, job_id, created_at in connection.execute(
        select(*columns).join(jobs, jobs.c.id == shards.c.job_id).where(unsent)
    ):
        connection.execute(
            insert(submissions).values(tag=tag, n=n + 1, job_id=job_id, state=SubmissionState.OPEN, account="",
                                       scopes="[]", intent_at=created_at)
        )  # fmt: skip
    connection.execute(update(shards).where(unsent).values(submission=shards.c.submission + 1))
    doubtful = shards.c.state.in_((ShardState.PLANNED, ShardState.SUBMITTING, ShardState.IN_DOUBT))
    begun_again = {"looks": 0, "fenced": 0, "due": 0.0, "epoch": shards.c.epoch + 1, **_FREE}
    connection.execute(
        update(shards).where(and_(open_batch, doubtful)).values(state=ShardState.IN_DOUBT, **begun_again)
    )
    _pause_live(connection)


def _pause_live(connection: Connection) -> None:
    """Live shards keep their state; their next journals have names that no earlier worker can have used."""
    open_live = and_(shards.c.lane.in_(LIVE_LANES), shards.c.state.in_((ShardState.PLANNED, ShardState.SENDING)))
    runs = and_(jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)), jobs.c.cancel_requested == 0)
    mine = select(shards.c.tag).where(shards.c.job_id == jobs.c.id, open_live)
    connection.execute(
        update(jobs).where(runs, mine.exists()).values(state=JobState.PAUSED, reason=_RESTORED, stopped=None)
    )
    far = shards.c.epoch + EPOCHS_SINCE_A_BACKUP
    connection.execute(update(shards).where(open_live).values(epoch=far, due=0.0, **_FREE))
