"""What comes after a shard had settled: the shard is open again, and the books change by what is new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, select, update
from sqlalchemy.exc import IntegrityError

from nightmill.errors import Conflict
from nightmill.ledger._database import wall
from nightmill.ledger._rows import insert_files, note_models, raise_alerts
from nightmill.ledger.records import CAME_LATE, Job, Late, LateSettlement, Moved, Shard, SubmissionState
from nightmill.ledger.schema import files, jobs, shards
from nightmill.ledger.shards import ShardVerbs
from nightmill.types import UNFINISHED, FailureKind, JobState, ShardState

_COLUMNS = ("succeeded", "missing", "expired", "cancelled")
# A dropped shard counts its rows as cancelled; whether a cancel was ours, then "cancelled", or somebody else's,
# then "expired", may be seen otherwise now than when the shard settled.
_INSTEAD = {"missing": "cancelled", "cancelled": "expired", "expired": "cancelled"}


class LateVerbs(ShardVerbs):
    """Opening settled shards again, and settling them anew."""

    def reopen(self, job: Job, found: Sequence[Late]) -> bool:
        """What turned up late is collected like the rest; a job that had ended runs again. Nothing is sent.

        False, and nothing is written: the job changed since ``job`` was read.

        Raises:
            Conflict: an unfinished job has the name or the fingerprint of this one, which had ended.
            LeaseLost: a shard is not as it was.
        """
        values: dict[str, Any] = {"owner": None, "lease_until": 0.0, "epoch": jobs.c.epoch + 1}
        if job.state not in UNFINISHED:
            values |= {"state": JobState.RUNNING, "finished_at": None, "counts": None, "reason": None}
        same = and_(jobs.c.id == job.id, jobs.c.epoch == job.epoch, jobs.c.state == job.state)
        try:
            with self._write("reopen") as connection:
                taken = update(jobs).where(same).values(**values).returning(jobs.c.id)
                if connection.execute(taken).first() is None:
                    return False
                for late in found:
                    self._reopen_shard(connection, late)
        except IntegrityError as error:
            raise Conflict(
                f"late answers of job {job.id} cannot be taken in beside a newer job",
                why="an unfinished job has its name or its fingerprint (rows, task, model, options)",
                fix="finish or cancel that job first",
            ) from error
        return True

    def _reopen_shard(self, connection: Connection, late: Late) -> None:
        shard = late.shard
        to = ShardState.WAITING if late.batches else ShardState.COLLECTING
        reads = 1 if late.files else max(2, shard.reads)
        self._step(connection, shard, state=to, due=self.moment(), reads=reads, reread=0)
        for batch in late.batches:
            if batch.n is None:
                self._add_stray(connection, shard, batch.id, batch.status, batch.account)
            else:
                self._update_submission(connection, shard.tag, batch.n, state=SubmissionState.CREATED, ended=0,
                                        cancel_asked=0, batch_id=batch.id, status=batch.status)  # fmt: skip
            text = f"batch {batch.id} of shard {shard.tag} turned up after the shard had settled; it is collected too"
            raise_alerts(connection, shard.job_id, shard.tag, [("second_batch", text)])
        insert_files(connection, shard.job_id, late.files)
        for n, values in late.seen:
            self._update_submission(connection, shard.tag, n, **values)
        if late.files:
            text = f"result files of shard {shard.tag} came after it had settled"
            raise_alerts(connection, shard.job_id, shard.tag, [("late_answers", text)])

    def settle_late(self, shard: Shard, done: LateSettlement) -> None:
        """Book what came late, and count the rows that it answers."""
        with self._write("settle_late") as connection:
            self._step(connection, shard, ShardState.SETTLED, settled_at=wall(), reason=None)
            names = ("extra_answers", "unknown_ids", "tokens_in", "tokens_out", "tokens_cached", "tokens_written",
                     "caching_nanos", "list_nanos")  # fmt: skip
            more = {name: shards.c[name] + getattr(done, name) for name in names}
            connection.execute(update(shards).where(shards.c.tag == shard.tag).values(**more))
            for booking in done.bookings:
                self._book(connection, shard, booking)
            self._nothing_held(connection, shard)
            for tag in sorted({moved.tag for moved in done.moved}):
                _count_anew(connection, tag, [moved for moved in done.moved if moved.tag == tag])
            came = and_(files.c.tag == shard.tag, files.c.read == CAME_LATE)
            connection.execute(update(files).where(came).values(read=shard.reads + 1))
            note_models(connection, shard, done.models)
            raise_alerts(connection, shard.job_id, shard.tag, done.alerts)


def _count_anew(connection: Connection, tag: str, moved: Sequence[Moved]) -> None:
    """Count requests of a shard under their new outcomes."""
    row = connection.execute(select(shards).where(shards.c.tag == tag)).one()._mapping
    counts = {name: row[name] for name in (*_COLUMNS, "failed")}
    failures: dict[str, int] = json.loads(row["failures"] or "{}")
    for move in moved:
        kind, before, after = move.before, _column(move.before), _column(move.after)
        if not counts[before]:
            before = _INSTEAD.get(before, before)
        if not counts[before]:  # a further step of the ladder that nobody took
            kind, before = FailureKind.INVALID_OUTPUT.value, "failed"
        counts[before] -= 1
        counts[after] += 1
        if failures.get(kind):
            failures[kind] -= 1
        if after == "failed":
            failures[move.after] = failures.get(move.after, 0) + 1
    left = json.dumps({kind: n for kind, n in failures.items() if n})
    connection.execute(update(shards).where(shards.c.tag == tag).values(**counts, failures=left))


def _column(outcome: str) -> str:
    return outcome if outcome in _COLUMNS else "failed"
