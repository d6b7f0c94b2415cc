"""A job's life in verbs, from a plan in the making to its last row."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from nightmill.errors import Conflict
from nightmill.ledger import money
from nightmill.ledger._database import Database, wall
from nightmill.ledger._rows import insert_files, insert_shards, stored_file
from nightmill.ledger.records import (
    BAD_ANSWERS,
    Canary,
    Job,
    NewShard,
    Outside,
    StoredFile,
)
from nightmill.ledger.schema import alerts, entries, files, jobs, limits, shards, submissions
from nightmill.ledger.shards import pause_job, unless_cancelled
from nightmill.types import UNFINISHED, JobState, Lane, Quote, ShardState

_OPEN = tuple(UNFINISHED)
_MOST_CANDIDATES = 8  # of an ambiguous prefix that are named
_read_quote = msgspec.json.Decoder(Quote).decode
_read_canary = msgspec.json.Decoder(Canary).decode


def _job(row: Any) -> Job:
    r = row._mapping
    plain = ("id", "name", "reason", "stopped", "model", "rows", "invalid", "duplicates", "cached",
             "created_at", "started_at", "finished_at", "epoch", "canary_last")  # fmt: skip
    return Job(
        state=JobState(r["state"]), lane=Lane(r["lane"]), fingerprint=r["fingerprint"] or "",
        spec=json.loads(r["spec"]), quote=_read_quote(r["quote"]) if r["quote"] else None,
        canary=_read_canary(r["canary"]) if r["canary"] else None,
        counts=json.loads(r["counts"]) if r["counts"] else None, cancel_requested=bool(r["cancel_requested"]),
        **{name: r[name] for name in plain},
    )  # fmt: skip


def _claimed(job: Job) -> Any:
    """The job is still as the worker that claimed it for finishing saw it."""
    return and_(jobs.c.id == job.id, jobs.c.epoch == job.epoch, jobs.c.state.in_(_OPEN))


class JobVerbs(Database):
    """Planning, finding, pausing, cancelling, finishing jobs."""

    # -- planning ------------------------------------------------------------------------------

    def begin_plan(self, job_id: str, *, model: str, lane: Lane) -> list[str]:
        """A plan is in the making under a lease that ends with this process.

        Returns the ids of plans whose planner died: they are dropped here, and their folders may go.
        """
        with self._write("begin_plan") as connection:
            planning = select(jobs.c.id, jobs.c.owner).where(jobs.c.state == JobState.PLANNING)
            dead = [i for i, owner in connection.execute(planning) if owner is None or self.is_dead(owner)]
            connection.execute(delete(jobs).where(jobs.c.id.in_(dead)))
            connection.execute(
                insert(jobs).values(id=job_id, state=JobState.PLANNING, model=model, lane=lane, spec="{}",
                                    created_at=wall(), owner=self.me)
            )  # fmt: skip
        return dead

    def is_planned(self, job_id: str) -> bool:
        """A plan in the making has this id, and no job yet."""
        with self._read() as connection:
            plan = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.state == JobState.PLANNING)
            return connection.execute(plan).first() is not None

    def abandon_plan(self, job_id: str) -> None:
        """The plan came to nothing; no trace stays."""
        with self._write("abandon_plan") as connection:
            connection.execute(delete(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.PLANNING))

    def publish_plan(
        self,
        job_id: str,
        *,
        name: str | None,
        fingerprint: str,
        task_digest: str,
        spec: dict[str, Any],
        quote: Quote,
        rows: int,
        duplicates: int,
        cached: int,
        shards: Sequence[NewShard],
        files: Sequence[StoredFile],
        invalid: int = 0,
        budget_nanos: int | None = None,
        canary_last: int | None = None,
    ) -> Job:
        """The plan becomes a job, whole, in one transaction.

        Raises:
            Conflict: an unfinished job has this fingerprint (`find_unfinished` tells which) or name.
        """
        mine = and_(jobs.c.id == job_id, jobs.c.state == JobState.PLANNING, jobs.c.owner == self.me)
        try:
            with self._write("publish_plan") as connection:
                published = connection.execute(
                    update(jobs).where(mine).values(
                        state=JobState.PENDING, name=name, fingerprint=fingerprint, task_digest=task_digest,
                        spec=json.dumps(spec), quote=msgspec.json.encode(quote).decode(), rows=rows,
                        invalid=invalid, duplicates=duplicates, cached=cached, owner=None,
                        canary_last=canary_last,
                        next_seq=max((s.seq for s in shards), default=-1) + 1,
                    ).returning(jobs.c.id)
                ).first()  # fmt: skip
                if published is None:
                    raise Conflict(f"the plan {job_id} is gone", why="it was given up", fix="plan it again")
                self._refuse_overtaken(connection, job_id, fingerprint)
                insert_shards(connection, job_id, shards, self.moment())
                insert_files(connection, job_id, files)
                if budget_nanos is not None:
                    connection.execute(insert(limits).values(scope=f"job:{job_id}", cap_nanos=budget_nanos))
        except IntegrityError as error:
            raise Conflict(
                "a job like this one is unfinished already",
                why="its name or its fingerprint (rows, task, model, options) is that of an unfinished job",
                fix="run the same command again to go on with it, or give another --name, or --new",
            ) from error
        return self.find_job(job_id)

    def _refuse_overtaken(self, connection: Connection, job_id: str, fingerprint: str) -> None:
        """A job like this one that ended after this plan was begun answered rows that the plan would pay for again."""
        begun = select(jobs.c.created_at).where(jobs.c.id == job_id).scalar_subquery()
        like = and_(jobs.c.fingerprint == fingerprint, jobs.c.id != job_id, jobs.c.finished_at >= begun)
        other = connection.execute(select(jobs.c.id).where(like).limit(1)).scalar()
        gone = select(entries.c.job_id, entries.c.note).where(entries.c.kind == money.DELETED, entries.c.at >= begun)
        for deleted, note in connection.execute(gone):  # what it answered was paid for all the same
            other = deleted if json.loads(note)["fingerprint"] == fingerprint else other
        if other is not None:
            raise Conflict(
                f"job {other} did the same meanwhile",
                why="it ended after this plan was begun, and its answers are not in the plan",
                fix="run the same command again: what was answered costs nothing then",
            )

    def extend(
        self, job: Job, new: Sequence[NewShard], stored: Sequence[StoredFile], *, spec: dict[str, Any] | None = None
    ) -> None:
        """More shards for a finished or running job (a retry); a finished one is running again.

        Raises:
            Conflict: the job changed since ``job`` was read, or one like it is unfinished.
        """
        values: dict[str, Any] = {"state": JobState.RUNNING, "finished_at": None, "counts": None, "stopped": None,
                                  "reason": None, "cancel_requested": 0}  # fmt: skip
        if spec is not None:
            values["spec"] = json.dumps(spec)
        same = and_(jobs.c.id == job.id, jobs.c.epoch == job.epoch, jobs.c.state != JobState.PLANNING)
        try:
            with self._write("extend") as connection:
                taken = update(jobs).where(same).values(epoch=jobs.c.epoch + 1, **values).returning(jobs.c.id)
                if connection.execute(taken).first() is None:
                    raise Conflict("the job changed meanwhile", why="another command works on it", fix="try again")
                insert_shards(connection, job.id, new, self.moment())
                insert_files(connection, job.id, stored)
        except IntegrityError as error:
            raise Conflict(
                f"job {job.id} cannot go on beside a newer one",
                why="an unfinished job has its name or its fingerprint (rows, task, model, options)",
                fix="finish or cancel that job first",
            ) from error

    def take_seqs(self, job_id: str, count: int) -> int:
        """Reserve ``count`` shard numbers; the first of them. A number is never given twice."""
        with self._write("take_seqs") as connection:
            last: int = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id)
                .values(next_seq=jobs.c.next_seq + count)
                .returning(jobs.c.next_seq)
            ).scalar_one()
        return last - count

    # -- finding -------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job | None:
        with self._read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
        return _job(row) if row else None

    def jobs(self, *, states: Collection[JobState] | None = None, limit: int | None = None) -> list[Job]:
        """Visible jobs, newest first."""
        which = jobs.c.state != JobState.PLANNING
        if states is not None:
            which = and_(which, jobs.c.state.in_(list(states)))
        with self._read() as connection:
            rows = connection.execute(select(jobs).where(which).order_by(jobs.c.id.desc()).limit(limit)).all()
        return [_job(row) for row in rows]

    def find_job(self, text: str) -> Job:
        """By id, name, unambiguous prefix of an id (4 or more), or ``@last``.

        Raises:
            Conflict: nothing, or more than one, goes by ``text``.
        """
        visible = jobs.c.state != JobState.PLANNING
        like = jobs.c.id.startswith(text, autoescape=True) if len(text) >= 4 else jobs.c.id == text
        which = visible if text == "@last" else and_(visible, or_(like, jobs.c.name == text))
        with self._read() as connection:
            rows = connection.execute(select(jobs).where(which).order_by(jobs.c.id.desc()).limit(50)).all()
        found = [_job(row) for row in rows]
        exact = [j for j in found if j.id == text] or [j for j in found if j.name == text]
        if text == "@last" or exact:
            found = (exact or found)[:1]
        if len(found) == 1:
            return found[0]
        why = "a job is named by its id, an unambiguous prefix of it (4 or more), its name, or @last"
        if not found and text == "@last":
            raise Conflict("there is no job yet", why="@last is the newest one", fix="nightmill run --help")
        if not found:
            raise Conflict(f"no job goes by {text!r}", why=why, fix="nightmill jobs lists them")
        some = [f"{j.id} ({j.name})" if j.name else j.id for j in found[:_MOST_CANDIDATES]]
        more = ["and others"] if len(found) > len(some) else []
        raise Conflict(
            f"more than one job begins with {text!r}", why=", ".join(some + more), fix="give more of the id, or a name"
        )

    def sending(self, job_ids: Collection[str]) -> set[str]:
        """Those of the jobs of which something new may be sent."""
        free = and_(jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)), jobs.c.cancel_requested == 0)
        with self._read() as connection:
            return set(connection.execute(select(jobs.c.id).where(jobs.c.id.in_(list(job_ids)), free)).scalars())

    def find_unfinished(self, fingerprint: str) -> Job | None:
        with self._read() as connection:
            which = and_(jobs.c.fingerprint == fingerprint, jobs.c.state.in_(_OPEN))
            row = connection.execute(select(jobs).where(which)).first()
        return _job(row) if row else None

    def find_ended(self, fingerprint: str) -> Job | None:
        """The newest finished job with this fingerprint."""
        which = and_(jobs.c.fingerprint == fingerprint, jobs.c.finished_at.is_not(None))
        with self._read() as connection:
            row = connection.execute(select(jobs).where(which).order_by(jobs.c.id.desc()).limit(1)).first()
        return _job(row) if row else None

    def find_unfinished_name(self, name: str) -> Job | None:
        with self._read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.name == name, jobs.c.state.in_(_OPEN))).first()
        return _job(row) if row else None

    def files_of(self, job_id: str, *kinds: str) -> list[StoredFile]:
        """Files the ledger holds for a job, by first row, then shard, submission and read."""
        order = (files.c.first, files.c.tag, files.c.n, files.c.read, files.c.path)
        with self._read() as connection:
            which = and_(files.c.job_id == job_id, files.c.kind.in_(kinds))
            return [stored_file(row) for row in connection.execute(select(files).where(which).order_by(*order))]

    def alerts_of(self, job_id: str) -> list[tuple[str, str | None, str]]:
        """``(kind, shard tag, text)`` of what should be looked at by a person, oldest first."""
        columns = (alerts.c.kind, alerts.c.tag, alerts.c.text)
        with self._read() as connection:
            rows = connection.execute(select(*columns).where(alerts.c.job_id == job_id).order_by(alerts.c.id))
            return [tuple(row) for row in rows]

    def mean_output_tokens(self, model: str, task_digest: str) -> int | None:
        """How long answers of this task and model were so far, in tokens; None before the first.

        Those of a further step of a ladder are none: another model may have written them, or after another question.
        """
        same = and_(jobs.c.model == model, jobs.c.task_digest == task_digest, shards.c.rung == 0)
        written = select(func.sum(shards.c.tokens_out)).join(jobs, jobs.c.id == shards.c.job_id).where(same)
        # Every answer that was paid for, also the useless ones: their tokens are in the sum.
        answers = select(func.sum(entries.c.calls)).join(shards, shards.c.tag == entries.c.tag)
        answers = answers.join(jobs, jobs.c.id == shards.c.job_id).where(same)
        with self._read() as connection:
            tokens, calls = connection.execute(written).scalar(), connection.execute(answers).scalar()
        return -(-int(tokens) // int(calls)) if tokens and calls else None

    def cached_so_far(self, model: str, task_digest: str, lane: Lane) -> tuple[int, int]:
        """Tokens of this task and model that were read from the provider's cache in that lane, and written to it."""
        sums = (func.coalesce(func.sum(shards.c[name]), 0) for name in ("tokens_cached", "tokens_written"))
        of_all = select(*sums).join(jobs, jobs.c.id == shards.c.job_id)
        same = and_(jobs.c.model == model, jobs.c.task_digest == task_digest, shards.c.lane == lane)
        with self._read() as connection:
            read, written = connection.execute(of_all.where(same)).one()
        return int(read), int(written)

    def revise(self, job_id: str, changes: dict[str, Any], *, name: str | None = None) -> None:
        """The user goes on at other terms: parts of the job's spec, its label. Raises Conflict: the label is taken."""
        this = jobs.c.id == job_id
        try:
            with self._write("revise") as connection:
                spec = json.loads(connection.execute(select(jobs.c.spec).where(this)).scalar_one())
                values = {"spec": json.dumps(spec | changes)} | ({"name": name} if name else {})
                connection.execute(update(jobs).where(this).values(**values))
        except IntegrityError as error:
            raise Conflict(
                f"the name {name} is that of another unfinished job", why="a name means one job while it lives",
                fix="give another --name, or finish or cancel that job first",
            ) from error  # fmt: skip

    # -- steering ------------------------------------------------------------------------------

    def pause(self, job_id: str, reason: str, *, stopped: str | None = None) -> None:
        """Nothing new is sent until `resume`; what is in flight is still collected."""
        with self._write("pause") as connection:
            pause_job(connection, job_id, reason, stopped)

    def resume(self, job_id: str) -> None:
        """A paused job goes on; its waiting shards are due at once."""
        with self._write("resume") as connection:
            paused = and_(jobs.c.id == job_id, jobs.c.state == JobState.PAUSED)
            runs = {"state": JobState.RUNNING, "reason": None, "stopped": unless_cancelled(None)}
            connection.execute(update(jobs).where(paused).values(**runs))
            waiting = shards.c.state.in_((ShardState.PLANNED, ShardState.SENDING))
            connection.execute(update(shards).where(shards.c.job_id == job_id, waiting).values(due=0.0))

    def request_cancel(self, job_id: str, *, stopped: str = "cancelled") -> None:
        """Claim nothing more; open batches are cancelled, then collected. Asking again changes nothing."""
        with self._write("request_cancel") as connection:
            open_ = and_(jobs.c.id == job_id, jobs.c.state.in_(_OPEN), jobs.c.cancel_requested == 0)
            asked = update(jobs).where(open_).values(cancel_requested=1, stopped=stopped).returning(jobs.c.id)
            if connection.execute(asked).first() is None:
                return
            # Not the others: a look or a second read sooner than planned would prove nothing.
            waiting = shards.c.state.in_((ShardState.PLANNED, ShardState.SENDING, ShardState.WAITING))
            connection.execute(update(shards).where(shards.c.job_id == job_id, waiting).values(due=0.0))

    # -- finishing -----------------------------------------------------------------------------

    def claim_finish(self, job_id: str, lease_s: float) -> Job | None:
        """The right to build the results of a job whose shards are all settled, for one worker.

        Its epoch is new with every claim; `renew_finish` keeps it, `finish` or `give_back_finish` ends it.
        """
        now = self.moment()
        unsettled = select(shards.c.tag).where(shards.c.job_id == job_id, shards.c.state != ShardState.SETTLED)
        ripe = and_(jobs.c.id == job_id, jobs.c.state.in_(_OPEN), ~unsettled.exists())
        with self._read() as connection:
            owner = connection.execute(select(jobs.c.owner, jobs.c.lease_until).where(ripe)).first()
        if owner is None:
            return None
        dead = owner.owner is not None and owner.owner != self.me and self.is_dead(owner.owner)
        if owner.lease_until > now and not dead:
            return None
        with self._write("claim_finish") as connection:
            free = jobs.c.lease_until <= now
            if dead:
                free = or_(free, jobs.c.owner == owner.owner)
            taken = (
                update(jobs).where(ripe, free).values(owner=self.me, epoch=jobs.c.epoch + 1, lease_until=now + lease_s)
            )
            if connection.execute(taken.returning(jobs.c.id)).first() is None:
                return None
            return _job(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())

    def renew_finish(self, job: Job, lease_s: float) -> bool:
        """Building takes long: keep the right. False when another worker has it now."""
        with self._write("renew_finish") as connection:
            still = update(jobs).where(_claimed(job)).values(lease_until=self.moment() + lease_s)
            return connection.execute(still.returning(jobs.c.id)).first() is not None

    def give_back_finish(self, job: Job) -> None:
        """Building failed: whoever tries next need not wait for the lease to end."""
        with self._write("give_back_finish") as connection:
            connection.execute(update(jobs).where(_claimed(job)).values(owner=None, lease_until=0.0))

    def finish(
        self,
        job: Job,
        state: JobState,
        *,
        counts: dict[str, int],
        results: Sequence[StoredFile],
        packed: Sequence[tuple[str, StoredFile]] = (),
        superseded: Sequence[str] = (),
    ) -> bool:
        """The job is over: its results are switched to, its final row counts are stored.

        ``packed`` are files that replace the one at a path; ``superseded`` are paths of readings
        that a fuller one stands in for. False when another worker has the job now.
        """
        with self._write("finish") as connection:
            over = (
                update(jobs)
                .where(_claimed(job))
                .values(state=state, counts=json.dumps(counts), finished_at=wall(), owner=None, lease_until=0.0,
                        reason=None, stopped=case((jobs.c.stopped.in_(BAD_ANSWERS), None), else_=jobs.c.stopped))
                .returning(jobs.c.id)
            )  # fmt: skip
            if connection.execute(over).first() is None:
                return False
            self._switch_results(connection, job.id, results)
            for path, file in packed:
                connection.execute(delete(files).where(files.c.path == path))
                insert_files(connection, job.id, [file])
            connection.execute(update(files).where(files.c.path.in_(superseded)).values(kind="superseded"))
        return True

    def _switch_results(self, connection: Connection, job_id: str, results: Sequence[StoredFile]) -> None:
        firsts = [f.first for f in results]
        old = and_(files.c.job_id == job_id, files.c.kind == "results", files.c.first.in_(firsts))
        connection.execute(delete(files).where(old))
        insert_files(connection, job_id, results)

    # -- counting ------------------------------------------------------------------------------

    def outside(self, job_id: str) -> Outside:
        """What the job's open shards wait for, as far as somebody has said."""
        still_open = and_(shards.c.job_id == job_id, shards.c.state != ShardState.SETTLED)
        batches = and_(submissions.c.tag == shards.c.tag, submissions.c.n == shards.c.submission)
        with self._read() as connection:
            told = and_(still_open, shards.c.reason.is_not(None), shards.c.owner.is_(None))
            reason = connection.execute(select(shards.c.reason).where(told).order_by(shards.c.due).limit(1)).scalar()
            waiting = and_(
                still_open, shards.c.state == ShardState.WAITING, batches, submissions.c.completed.is_not(None)
            )
            sums = (func.coalesce(func.sum(column), 0) for column in (submissions.c.completed, shards.c["count"]))
            done, total = connection.execute(select(*sums).where(waiting)).one()
        return Outside(reason or "", int(done), int(total))
