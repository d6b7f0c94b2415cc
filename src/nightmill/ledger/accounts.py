"""What this ledger and a provider's account know of each other: batches made elsewhere, and what a provider's own
totals prove."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from nightmill.errors import Conflict
from nightmill.ledger import money
from nightmill.ledger._database import wall
from nightmill.ledger._rows import insert_files, insert_shards, of_batch
from nightmill.ledger.records import ForeignBatch, KnownBatch, NewShard, StoredFile, SubmissionState
from nightmill.ledger.schema import jobs, shards, submissions
from nightmill.ledger.shards import ShardVerbs
from nightmill.types import JobState, Quote, ShardState


class AccountVerbs(ShardVerbs):
    """Taking in what was made elsewhere; holding what we booked against what a provider says."""

    def adopt_batch(
        self, job_id: str, batch: ForeignBatch, shard: NewShard, *, model: str, name: str | None, fingerprint: str,
        task_digest: str, spec: dict[str, Any], quote: Quote, files: Sequence[StoredFile], price: str,
        hold_nanos: int, scopes: Sequence[str],
    ) -> str | None:  # fmt: skip
        """A batch that runs already becomes a job of one shard, in one transaction; no limit refuses its hold.

        The name of the submission that has it, where one has: then nothing is written.

        Raises:
            Conflict: the plan ``job_id`` is gone, or an unfinished job has the name.
        """
        mine = and_(jobs.c.id == job_id, jobs.c.state == JobState.PLANNING, jobs.c.owner == self.me)
        now = wall()
        try:
            with self._write("adopt_batch") as connection:
                if known := of_batch(connection, batch.id):
                    connection.rollback()
                    return known
                became = update(jobs).where(mine).values(
                    state=JobState.RUNNING, name=name, fingerprint=fingerprint, task_digest=task_digest, model=model,
                    spec=json.dumps(spec), quote=msgspec.json.encode(quote).decode(), rows=shard.count, owner=None,
                    next_seq=shard.seq + 1, started_at=now,
                )  # fmt: skip
                if connection.execute(became.returning(jobs.c.id)).first() is None:
                    raise Conflict(f"the plan {job_id} is gone", why="it was given up", fix="adopt the batch again")
                insert_shards(connection, job_id, [shard], self.moment())
                waits = {"state": ShardState.WAITING, "submission": 1, "price": price}
                connection.execute(update(shards).where(shards.c.tag == shard.tag).values(**waits))
                connection.execute(
                    insert(submissions).values(
                        tag=shard.tag, n=1, job_id=job_id, state=SubmissionState.CREATED, account=batch.account,
                        scopes=json.dumps(list(scopes)), hold_nanos=hold_nanos, intent_at=batch.created_at,
                        batch_id=batch.id, batch_model=batch.model, status=batch.status,
                    )
                )  # fmt: skip
                insert_files(connection, job_id, files)
                money.hold_anyway(connection, scopes, hold_nanos)
                money.record(
                    connection, "hold", hold_nanos, job_id=job_id, tag=shard.tag, n=1, note=f"adopted {batch.id}"
                )
        except IntegrityError as error:
            raise Conflict(
                f"the name {name} is that of another unfinished job", why="a name means one job while it lives",
                fix="give another --name",
            ) from error  # fmt: skip
        return None

    def known_batches(self, provider: str) -> dict[str, KnownBatch]:
        """Every batch of the provider that this ledger has, deleted jobs' too, by its id, whichever account made it."""
        sub, shard = submissions.c, shards.c
        columns = (sub.tag, sub.n, sub.job_id, sub.account, sub.batch_id, sub.status, sub.ended, sub.spent_nanos,
                   sub.unproven_nanos, sub.hold_nanos, sub.intent_at, shard.state, shard.price,
                   sub.unconfirmed, sub.state.label("booked"))  # fmt: skip
        which = and_(sub.batch_id.is_not(None), sub.account.startswith(f"{provider}|", autoescape=True))
        with self._read() as connection:
            whose = select(*columns).join(shards, shard.tag == sub.tag, isouter=True)
            found = connection.execute(whose.where(which)).all()
        return {
            row.batch_id: KnownBatch(
                row.batch_id, row.account, row.job_id, row.tag, row.n, ShardState(row.state) if row.state else None,
                row.booked == SubmissionState.BOOKED, row.status, row.spent_nanos, row.unproven_nanos,
                row.hold_nanos, row.intent_at, row.price, bool(row.unconfirmed),
            )
            for row in found
        }  # fmt: skip

    def prove(self, batch: KnownBatch, spent_nanos: int, *, note: str) -> bool:
        """The provider's own totals say what a settled batch cost: that is booked in place of what nobody could prove.

        False, and nothing is written: the books changed since ``batch`` was read.

        Raises:
            ValueError: it is less than was proven by answers.
        """
        if spent_nanos < batch.proven_nanos:
            raise ValueError(f"{batch.tag}.{batch.n}: answers cost {batch.proven_nanos}, not {spent_nanos}")
        same = and_(
            submissions.c.tag == batch.tag, submissions.c.n == batch.n, submissions.c.state == SubmissionState.BOOKED,
            submissions.c.spent_nanos == batch.spent_nanos, submissions.c.unproven_nanos == batch.unproven_nanos,
        )  # fmt: skip
        settled = select(shards.c.tag).where(shards.c.tag == batch.tag, shards.c.state == ShardState.SETTLED)
        with self._write("prove") as connection:
            booked = update(submissions).where(same, settled.exists()).values(spent_nanos=spent_nanos, unproven_nanos=0)
            if connection.execute(booked.returning(submissions.c.tag)).first() is None:
                connection.rollback()
                return False
            scopes = money.scopes_of(connection, batch.tag, batch.n)
            money.move(connection, scopes, spent=spent_nanos - batch.spent_nanos)
            about: dict[str, Any] = {"job_id": batch.job_id, "tag": batch.tag, "n": batch.n, "note": note}
            money.record(connection, "settle", spent_nanos - batch.proven_nanos, **about)
            money.record(connection, "unproven", -batch.unproven_nanos, **about)
        return True
