"""A shard's life in verbs. Each compares state and epoch, sets, and returns after its commit.

A verb that finds another epoch raises `LeaseLost`: the shard is somebody else's now.
Every verb that ends a step also gives the lease back, so that a step and its end are one commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Connection, Float, and_, bindparam, case, delete, func, insert, select, update

from nightmill.errors import LeaseLost
from nightmill.ledger import money
from nightmill.ledger._creating import create_denial
from nightmill.ledger._database import Database, wall
from nightmill.ledger._rows import (
    insert_files,
    insert_shards,
    loaded,
    loading,
    note_models,
    of_batch,
    raise_alerts,
    shards_called,
)
from nightmill.ledger.pace import rows_left_in
from nightmill.ledger.records import (
    Booking,
    Denied,
    NewShard,
    Settlement,
    Shard,
    StoredFile,
    Submission,
    SubmissionState,
)
from nightmill.ledger.schema import TAKEN_BACK, files, jobs, quotas, shards, submissions
from nightmill.types import SHARD_MOVES, FailureKind, FileRef, JobState, Lane, ShardState

Must: TypeAlias = Callable[[int, int], bool]  # whether it has to be, with so many rows left in batches and live
_FREE = {"owner": None, "lease_until": 0.0}
_IN_FLIGHT = (
    ShardState.SUBMITTING,
    ShardState.IN_DOUBT,
    ShardState.WAITING,
    ShardState.SENDING,
    ShardState.COLLECTING,
)


def pause_job(connection: Connection, job_id: str, reason: str, stopped: str | None = None) -> None:
    open_ = jobs.c.state.in_((JobState.PENDING, JobState.RUNNING))
    paused = {"state": JobState.PAUSED, "reason": reason, "stopped": unless_cancelled(stopped)}
    connection.execute(update(jobs).where(jobs.c.id == job_id, open_).values(**paused))


def unless_cancelled(stopped: str | None) -> Any:
    """``stopped`` for a job that goes on some day; one that was cancelled stays so."""
    return case((jobs.c.cancel_requested == 1, jobs.c.stopped), else_=stopped)


# Statements that go out for every shard are put together once: that takes longer than the database does.
_SUBMIT = insert(submissions)
_SEAL = (
    update(files)
    .where(files.c.path == bindparam("at"))
    .values(size_bytes=bindparam("bytes", type_=BigInteger), digest=bindparam("sum"))
)
_RUN = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), jobs.c.state.in_((JobState.PENDING, JobState.RUNNING)),
           jobs.c.cancel_requested == 0)
    .values(state=JobState.RUNNING, started_at=func.coalesce(jobs.c.started_at, bindparam("at", type_=Float)))
    .returning(jobs.c.id)
)  # fmt: skip


@cache
def _move(*names: str) -> Any:
    """Set the columns ``names`` to parameters called ``new_...`` where ``the_tag``, ``_epoch`` and ``_state`` agree."""
    return (
        update(shards)
        .where(
            shards.c.tag == bindparam("the_tag"),
            shards.c.epoch == bindparam("the_epoch"),
            shards.c.state == bindparam("the_state"),
        )
        .values({name: bindparam(f"new_{name}") for name in names})
        .returning(shards.c.tag)
    )


_HELD = select(func.count()).where(submissions.c.tag == bindparam("the_tag"), submissions.c.hold_nanos > 0)
_BOOKED = select(
    submissions.c.hold_nanos, submissions.c.spent_nanos, submissions.c.unproven_nanos, submissions.c.scopes
).where(submissions.c.tag == bindparam("the_tag"), submissions.c.n == bindparam("the_n"))


@cache
def _change(*names: str) -> Any:
    """Set the columns ``names`` of one submission to parameters called ``new_...``."""
    return (
        update(submissions)
        .where(submissions.c.tag == bindparam("the_tag"), submissions.c.n == bindparam("the_n"))
        .values({name: bindparam(f"new_{name}") for name in names})
    )


def _in_flight(connection: Connection, job_id: str) -> int:
    which = and_(shards.c.job_id == job_id, shards.c.state.in_(_IN_FLIGHT))
    return int(connection.execute(select(func.count()).select_from(shards).where(which)).scalar_one())


class ShardVerbs(Database):
    """Sending, doubting, waiting, collecting, settling."""

    def release(self, shard: Shard, *, due_in_s: float = 0.0, reason: str | None = None) -> None:
        """Give a shard back as it is, due again in a while."""
        with self._write("release") as connection:
            self._step(connection, shard, due=self.moment() + due_in_s, reason=reason)

    def shard(self, tag: str) -> Shard | None:
        with self._read() as connection:
            found = shards_called(connection, [tag])
        return found[0] if found else None

    def submission_of(self, batch_id: str) -> str | None:
        """The name of the submission that has this batch; None: no shard has it."""
        with self._read() as connection:
            return of_batch(connection, batch_id)

    def shards_of(self, job_id: str, *states: ShardState) -> list[Shard]:
        """The job's shards in order, all or those in ``states``."""
        which = shards.c.job_id == job_id
        with self._read() as connection:
            return loaded(connection, loading(and_(which, shards.c.state.in_(states)) if states else which), {})

    def _step(self, connection: Connection, shard: Shard, to: ShardState | None = None, **values: Any) -> None:
        """Move a shard that is still ours, and give the lease back unless told to keep it."""
        keep = values.pop("keep_lease", False)
        if to is not None:
            if to not in SHARD_MOVES[shard.state]:
                raise ValueError(f"{shard.tag}: {shard.state} -> {to} is no legal move")
            values["state"] = to
        if not keep:
            values |= _FREE
        elif not values:
            values["epoch"] = shard.epoch
        this = {"the_tag": shard.tag, "the_epoch": shard.epoch, "the_state": shard.state}
        new = {f"new_{name}": value for name, value in values.items()}
        if connection.execute(_move(*values), this | new).first() is None:
            raise LeaseLost(f"shard {shard.tag} is another worker's now")

    # -- handing over --------------------------------------------------------------------------

    def note_intent(
        self,
        shard: Shard,
        *,
        to: ShardState,
        account: str,
        model: str,
        price: str,
        hold_nanos: int,
        scopes: Sequence[str],
        intent_at: float,
        journal: StoredFile | None = None,
        alone: bool = False,
    ) -> Shard | Denied:
        """Step 1 of handing over: state, submission number, account, price sheet and the hold, at once.

        ``to`` is SUBMITTING (batch) or SENDING (live). The lease is kept; the shard as it is now
        comes back. A denial changes nothing. ``alone``: a batch carries nothing of ours there, so that no other
        create of the account may be under way or in doubt before its last look, and none in doubt be as large.

        Raises:
            LeaseLost: another worker has it, or its job was paused or cancelled since it was claimed.
        """
        n = 1 + max((s.n for s in shard.submissions), default=shard.submission)  # a stray has a number too
        state = SubmissionState.OPEN if to is ShardState.SUBMITTING else SubmissionState.CREATED
        with self._write("note_intent") as connection:
            self._step(connection, shard, to, submission=n, price=price, looks=0, fenced=0, reads=0,
                       reason=None, keep_lease=True)  # fmt: skip
            if not self._job_runs(connection, shard.job_id):
                connection.rollback()
                ready: Shard | Denied | None = None
            elif denied := (create_denial(connection, shard, account) if alone else None) or self._denied(
                connection, shard, account, model, scopes, hold_nanos
            ):
                ready = replace(denied, beside=_in_flight(connection, shard.job_id) - 1)
                connection.rollback()
            else:
                new = {
                    "tag": shard.tag, "n": n, "job_id": shard.job_id, "state": state, "account": account,
                    "batch_model": model, "scopes": json.dumps(list(scopes)), "hold_nanos": hold_nanos,
                    "intent_at": intent_at,
                }  # fmt: skip
                connection.execute(_SUBMIT, new)
                if journal is not None:
                    insert_files(connection, shard.job_id, [journal])
                money.record(connection, "hold", hold_nanos, job_id=shard.job_id, tag=shard.tag, n=n)
                handed = self._count_handed(connection)
                submitted = Submission(shard.tag, n, state, account, hold_nanos, 0, 0, intent_at, batch_model=model)
                ready = replace(
                    shard, state=to, submission=n, price=price, looks=0, fenced=False, reads=0, reason=None,
                    job_state=JobState.RUNNING, submissions=(*shard.submissions, submitted),
                    files=shard.files if journal is None else (*shard.files, journal),
                )  # fmt: skip
        if ready is None:
            self.release(shard)
            raise LeaseLost(f"job {shard.job_id} was paused or cancelled meanwhile")
        if isinstance(ready, Shard):
            self._note_handed(handed)
        return ready

    def _denied(
        self, connection: Connection, shard: Shard, account: str, model: str, scopes: Sequence[str], nanos: int
    ) -> Denied | None:
        return self._enqueued_denial(connection, shard, account, model) or money.hold(connection, scopes, nanos)

    def _enqueued_denial(self, connection: Connection, shard: Shard, account: str, model: str) -> Denied | None:
        """A learned cap on enqueued tokens holds back what would pass it, never the only shard."""
        if shard.lane is not Lane.BATCH:
            return None
        this = and_(quotas.c.account == account, quotas.c.model == model)
        cap = connection.execute(select(quotas.c.enqueued_cap).where(this)).scalar()
        if cap is None:
            return None
        mine = and_(submissions.c.tag == shards.c.tag, submissions.c.n == shards.c.submission)
        there = and_(submissions.c.account == account, submissions.c.batch_model == model)
        enqueued = connection.execute(
            select(func.coalesce(func.sum(shards.c.input_tokens), 0))
            .join(submissions, mine)
            .where(there, shards.c.state.in_(_IN_FLIGHT[:3]), shards.c.tag != shard.tag)
        ).scalar_one()
        if enqueued and enqueued + shard.input_tokens > cap:
            return Denied("enqueued tokens", shard.input_tokens, max(0, cap - enqueued))
        return None

    def _job_runs(self, connection: Connection, job_id: str) -> bool:
        """The job is under way now; False when it was paused or cancelled, and nothing more may be sent."""
        return connection.execute(_RUN, {"job_id": job_id, "at": wall()}).first() is not None

    def note_upload(self, shard: Shard, n: int, file_id: str, *, at: float, not_ours: Sequence[str] = ()) -> None:
        """Step 2a: the input file is there, since ``at`` (unix seconds, provider's clock).

        Only after this commit may a create be sent: whatever it makes is younger than ``at``, and none of the
        batches ``not_ours``, which were there before.
        """
        with self._write("note_upload") as connection:
            self._step(connection, shard, keep_lease=True)
            others = json.dumps(list(not_ours)) if not_ours else None
            self._update_submission(connection, shard.tag, n, file_id=file_id, intent_at=at, not_ours=others)

    def note_created(
        self, shard: Shard, n: int, batch_id: str, *, status: str, due_in_s: float, looks: int = 0,
        likely: str | None = None, sought_until: float | None = None,
    ) -> bool:  # fmt: skip
        """Step 3: the provider has it, and this is its id (created now, or adopted after ``looks`` looks).

        ``likely`` says why it is taken for the shard's where nothing proves that yet: the submission stays
        unconfirmed. False, and nothing is written: another submission has that batch.
        """
        with self._write("note_created") as connection:
            if likely and of_batch(connection, batch_id):
                connection.rollback()
                return False
            due = self.moment() + due_in_s
            self._step(connection, shard, ShardState.WAITING, due=due, waits=0, looks=looks, reason=likely)
            more = {} if sought_until is None else {"sought_until": sought_until}
            self._update_submission(
                connection, shard.tag, n, state=SubmissionState.CREATED, batch_id=batch_id, status=status, ended=0,
                unconfirmed=int(likely is not None), **more,
            )  # fmt: skip
        return True

    def note_not_sent(
        self, shard: Shard, n: int, *, due_in_s: float, reason: str, refused: bool = False,
        sure: bool = True, pause: str | None = None,
    ) -> None:  # fmt: skip
        """The provider does not have it: the hold is released and the shard is planned again.

        ``sure`` is False after looks that found nothing: the submission is looked for once more
        before the shard settles. ``pause`` pauses the job with that reason.
        """
        state = SubmissionState.GONE if sure else SubmissionState.ABSENT
        with self._write("note_not_sent") as connection:
            counted = {"refusals": shard.refusals + 1} if refused else {"waits": shard.waits + 1}
            self._step(connection, shard, ShardState.PLANNED, due=self.moment() + due_in_s, reason=reason, **counted)
            self._release_hold(connection, shard.tag, n, state)
            if pause:
                pause_job(connection, shard.job_id, pause)

    def _release_hold(self, connection: Connection, tag: str, n: int, state: SubmissionState) -> None:
        held, job_id = connection.execute(
            select(submissions.c.hold_nanos, submissions.c.job_id).where(submissions.c.tag == tag, submissions.c.n == n)
        ).one()
        money.move(connection, money.scopes_of(connection, tag, n), held=-held)
        money.record(connection, "release", held, job_id=job_id, tag=tag, n=n)
        self._update_submission(connection, tag, n, state=state, hold_nanos=0, ended=1)

    def _update_submission(self, connection: Connection, tag: str, n: int, **values: Any) -> None:
        new = {f"new_{name}": value for name, value in values.items()}
        connection.execute(_change(*values), {"the_tag": tag, "the_n": n} | new)

    # -- in doubt ------------------------------------------------------------------------------

    def note_doubt(self, shard: Shard, *, due: float, reason: str) -> None:
        """A create may have been accepted; look for it, first at the moment ``due``."""
        with self._write("note_doubt") as connection:
            self._step(connection, shard, ShardState.IN_DOUBT, due=due, looks=0, fenced=0, reason=reason)

    def note_look(
        self, shard: Shard, *, looks: int, fenced: bool, due: float, reason: str | None = None,
        sought_until: float | None = None, alert: str | None = None,
    ) -> None:  # fmt: skip
        """A complete look found nothing, or a fence was put up; the next look is at ``due``.

        ``sought_until``: it was the last one before which no other batch may be created (unix seconds,
        provider's clock). ``alert``: what a person should know of this doubt.
        """
        with self._write("note_look") as connection:
            self._step(connection, shard, due=due, looks=looks, fenced=int(fenced), reason=reason)
            if sought_until is not None:
                self._update_submission(connection, shard.tag, shard.submission, sought_until=sought_until)
            if alert:
                raise_alerts(connection, shard.job_id, shard.tag, [("in_doubt", alert)])

    def note_terms(
        self, shard: Shard, *, account: str, model: str, price: str, hold_nanos: int, scopes: Sequence[str]
    ) -> None:
        """A submission made after the backup that this ledger was restored from exists: hold its worst case.

        It is out already, so that no limit refuses it.
        """
        with self._write("note_terms") as connection:
            self._step(connection, shard, price=price, keep_lease=True)
            self._update_submission(connection, shard.tag, shard.submission, account=account, batch_model=model,
                                    hold_nanos=hold_nanos, scopes=json.dumps(list(scopes)))  # fmt: skip
            money.hold_anyway(connection, scopes, hold_nanos)
            money.record(connection, "hold", hold_nanos, job_id=shard.job_id, tag=shard.tag, n=shard.submission)

    def note_stray(self, shard: Shard, batch_id: str, *, status: str, account: str) -> None:
        """Another batch of this shard turned up: it is collected and booked too, as a submission of its own."""
        with self._write("note_stray") as connection:
            self._step(connection, shard, keep_lease=True)
            self._add_stray(connection, shard, batch_id, status, account)
            text = f"batch {batch_id} also ran shard {shard.tag}; its cost is booked beside the first"
            raise_alerts(connection, shard.job_id, shard.tag, [("second_batch", text)])

    def _add_stray(self, connection: Connection, shard: Shard, batch_id: str, status: str, account: str) -> None:
        highest = select(func.max(submissions.c.n)).where(submissions.c.tag == shard.tag)
        n = connection.execute(highest).scalar_one() + 1
        scopes = money.scopes_of(connection, shard.tag, shard.submission)
        connection.execute(
            insert(submissions).values(
                tag=shard.tag, n=n, job_id=shard.job_id, state=SubmissionState.CREATED, account=account,
                scopes=json.dumps(scopes), intent_at=wall(), batch_id=batch_id, status=status,
            )
        )  # fmt: skip

    def revive(self, shard: Shard, n: int, batch_id: str, *, status: str) -> None:
        """A submission thought absent did exist: it is collected and booked too."""
        with self._write("revive") as connection:
            self._step(connection, shard, keep_lease=True)
            self._update_submission(connection, shard.tag, n, state=SubmissionState.CREATED, batch_id=batch_id,
                                    status=status, ended=0)  # fmt: skip
            text = f"batch {batch_id} of shard {shard.tag} turned up late; its cost is booked beside the other"
            raise_alerts(connection, shard.job_id, shard.tag, [("second_batch", text)])

    def confirm_absent(self, shard: Shard, ns: Sequence[int]) -> None:
        """The last look before settling found none of these submissions."""
        with self._write("confirm_absent") as connection:
            self._step(connection, shard, keep_lease=True)
            for n in ns:
                self._update_submission(connection, shard.tag, n, state=SubmissionState.LOST)

    def write_off(self, shard: Shard) -> None:
        """The user gives up on a shard in doubt: its hold becomes unproven spend, its rows are missing."""
        if shard.state is not ShardState.IN_DOUBT:
            raise ValueError(f"{shard.tag} cannot be written off: it is {shard.state}")
        with self._write("write_off") as connection:
            for sub in shard.submissions:
                if sub.n == shard.submission or sub.state is SubmissionState.CREATED:
                    held = sub.hold_nanos or shard.current.hold_nanos  # a stray has none: it may cost as much
                    self._book(connection, shard, Booking(sub.n, held, held, 0))
            self._step(connection, shard, ShardState.SETTLED, missing=shard.count, settled_at=wall(),
                       reason="written off by the user")  # fmt: skip

    # -- waiting and collecting ----------------------------------------------------------------

    def note_polled(
        self, shard: Shard, views: Sequence[tuple[int, dict[str, Any]]], *, due_in_s: float, done: bool,
        reason: str | None = None,
    ) -> None:  # fmt: skip
        """What polling saw of each submission; ``done`` when all have ended: on to collecting.

        ``reason``: what it waits for, where that is worth saying.
        """
        with self._write("note_polled") as connection:
            to = ShardState.COLLECTING if done else None
            said = {} if reason is None else {"reason": reason}
            self._step(connection, shard, to, due=self.moment() + due_in_s, reads=0, **said)
            for n, values in views:
                self._update_submission(connection, shard.tag, n, **values)

    def note_cancel_asked(self, shard: Shard, ns: Sequence[int], *, at: float | None = None) -> None:
        """The provider was asked to cancel these submissions' batches, at ``at`` (unix seconds, provider's clock)."""
        with self._write("note_cancel_asked") as connection:
            self._step(connection, shard, keep_lease=True)
            why = case((submissions.c.cancel_asked == 0, 1), else_=submissions.c.cancel_asked)
            these = and_(submissions.c.tag == shard.tag, submissions.c.n.in_(ns))
            connection.execute(update(submissions).where(these).values(cancel_asked=why, cancel_at=at))

    def take_back(self, shard: Shard, must: Must, *, hands_back: bool) -> bool:
        """Say that the shard's batch is to be cancelled, so that its open rows run live, if that still has to be.

        ``must`` is told `rows_left` of the other shards, as it is at this very moment: of workers that look
        at the same time each sees what those before it took back. False: it need not be; nothing was written.
        """
        with self._write("take_back") as connection:
            if not must(*rows_left_in(connection, shard.job_id, shard.tag, hands_back=hands_back)):
                return False
            self._step(connection, shard, keep_lease=True)
            self._update_submission(connection, shard.tag, shard.submission, cancel_asked=TAKEN_BACK)
        return True

    def note_fetched(
        self, shard: Shard, read: int, stored: Sequence[StoredFile], views: Sequence[tuple[int, dict[str, Any]]] = ()
    ) -> Shard:
        """Result files were read to the end, for the ``read``-th time, and lie in the store."""
        with self._write("note_fetched") as connection:
            self._step(connection, shard, reads=read, reread=0, keep_lease=True)
            insert_files(connection, shard.job_id, stored)
            for n, values in views:
                self._update_submission(connection, shard.tag, n, **values)
            return shards_called(connection, [shard.tag])[0]

    def note_reread(self, shard: Shard, *, due_in_s: float) -> None:
        """Requests have no line and nothing explains it: the files are to be read once more."""
        with self._write("note_reread") as connection:
            self._step(connection, shard, reread=1, due=self.moment() + due_in_s)

    def back_to_waiting(self, shard: Shard) -> None:
        """Another batch of this shard turned up before it settled: poll again until all have ended."""
        with self._write("back_to_waiting") as connection:
            self._step(connection, shard, ShardState.WAITING, due=self.moment(), reads=0, reread=0)

    # -- live ----------------------------------------------------------------------------------

    def book_resend(self, shard: Shard, nanos: int) -> Denied | None:
        """An earlier send may have been billed: book it as unproven and hold as much again, at once."""
        with self._write("book_resend") as connection:
            self._step(connection, shard, keep_lease=True)
            scopes = money.scopes_of(connection, shard.tag, shard.submission)
            if denied := money.hold(connection, scopes, nanos):
                connection.rollback()
                return denied
            money.move(connection, scopes, held=-nanos, spent=nanos)
            this = and_(submissions.c.tag == shard.tag, submissions.c.n == shard.submission)
            connection.execute(
                update(submissions)
                .where(this)
                .values(spent_nanos=submissions.c.spent_nanos + nanos,
                        unproven_nanos=submissions.c.unproven_nanos + nanos)
            )  # fmt: skip
            money.record(connection, "unproven", nanos, job_id=shard.job_id, tag=shard.tag, n=shard.submission)
        return None

    def note_sent_all(self, shard: Shard, journals: Sequence[FileRef] = ()) -> Shard:
        """Live: every row has its outcome in the journals, which are synced. The lease is kept.

        ``journals`` are sealed: what a worker that lost the shard writes after that does not count.
        """
        due = self.moment()
        with self._write("note_sent_all") as connection:
            self._step(connection, shard, ShardState.COLLECTING, due=due, keep_lease=True)
            for ref in journals:
                connection.execute(_SEAL, {"at": ref.path, "bytes": ref.size_bytes, "sum": ref.digest})
        sealed = {ref.path: ref for ref in journals}
        stored = tuple(replace(file, ref=sealed.get(file.ref.path, file.ref)) for file in shard.files)
        return replace(shard, state=ShardState.COLLECTING, due=due, files=stored)

    def open_journal(self, shard: Shard, journal: StoredFile, *, account: str | None = None) -> Shard:
        """A journal is about to be written: later workers must know where it lies. The shard with it comes back.

        ``account``: with whose key its calls are made from now on.
        """
        with self._write("open_journal") as connection:
            self._step(connection, shard, keep_lease=True)
            insert_files(connection, shard.job_id, [journal])
            if account is not None:
                self._update_submission(connection, shard.tag, shard.submission, account=account)
        return replace(shard, files=(*shard.files, journal))

    # -- settling ------------------------------------------------------------------------------

    def settle(self, shard: Shard, done: Settlement) -> None:
        """Every request has an outcome and every cent is booked; what is left over becomes new shards.

        Raises:
            ValueError: the settlement does not add up; nothing was written.
        """
        if sum(new.count for new in done.leftovers) != done.resent.total:
            raise ValueError(f"{shard.tag}: {done.resent.total} requests go out again, but not that many are left over")
        with self._write("settle") as connection:
            c, r = done.counts, done.resent
            self._step(
                connection, shard, ShardState.SETTLED,
                succeeded=c.succeeded, failed=c.failed, missing=c.missing, expired=c.expired, cancelled=c.cancelled,
                resent_failed=r.failed, resent_missing=r.missing, resent_expired=r.expired,
                extra_answers=done.extra_answers, unknown_ids=done.unknown_ids, repaired=done.repaired,
                tokens_in=done.tokens_in, tokens_out=done.tokens_out, tokens_cached=done.tokens_cached,
                tokens_written=done.tokens_written, caching_nanos=done.caching_nanos,
                list_nanos=done.list_nanos, failures=json.dumps(done.failures), settled_at=wall(), reason=done.reason,
            )  # fmt: skip
            for booking in done.bookings:
                self._book(connection, shard, booking)
            self._nothing_held(connection, shard)
            insert_shards(connection, shard.job_id, done.leftovers, self.moment())
            insert_files(connection, shard.job_id, done.files)
            note_models(connection, shard, done.models)
            raise_alerts(connection, shard.job_id, shard.tag, done.alerts)

    def _nothing_held(self, connection: Connection, shard: Shard) -> None:
        if connection.execute(_HELD, {"the_tag": shard.tag}).scalar_one():
            raise ValueError(f"{shard.tag} would settle with money still held")

    def _book(self, connection: Connection, shard: Shard, booking: Booking) -> None:
        """Exact spend in place of the hold and of whatever was booked before."""
        if not 0 <= booking.unproven_nanos <= booking.spent_nanos:
            raise ValueError(f"{shard.tag}.{booking.n}: {booking} cannot be")
        row = connection.execute(_BOOKED, {"the_tag": shard.tag, "the_n": booking.n}).one()
        spent = booking.spent_nanos - row.spent_nanos
        money.move(connection, json.loads(row.scopes), held=-row.hold_nanos, spent=spent)
        self._update_submission(
            connection, shard.tag, booking.n, state=SubmissionState.BOOKED, hold_nanos=0, ended=1,
            spent_nanos=booking.spent_nanos, unproven_nanos=booking.unproven_nanos,
        )  # fmt: skip
        about: dict[str, Any] = {"job_id": shard.job_id, "tag": shard.tag, "n": booking.n}
        proven = booking.spent_nanos - booking.unproven_nanos - (row.spent_nanos - row.unproven_nanos)
        money.record(connection, "settle", proven, calls=booking.calls, **about)
        if more := booking.unproven_nanos - row.unproven_nanos:  # what was booked on the way is recorded already
            money.record(connection, "unproven", more, **about)

    def drop_planned(self, job_id: str) -> int:
        """A cancelled or stopped job: what was promised to nobody is settled as cancelled.

        A shard with a submission that was not found stays until it was looked for once more.
        """
        lost = select(submissions.c.tag).where(
            submissions.c.tag == shards.c.tag, submissions.c.state == SubmissionState.ABSENT
        )
        idle = and_(shards.c.job_id == job_id, shards.c.state == ShardState.PLANNED, ~lost.exists(),
                    shards.c.lane != Lane.CACHE, shards.c.lease_until <= self.moment())  # fmt: skip
        # What waits on a later step of the ladder was answered, and stays as it was answered.
        count, is_first = shards.c["count"], shards.c.rung == 0
        done = {
            "state": ShardState.SETTLED, "settled_at": wall(), "cancelled": case((is_first, count), else_=0),
            "failed": case((is_first, 0), else_=count),
        }  # fmt: skip
        which = (shards.c.tag, shards.c.rung, count)
        with self._write("drop_planned") as connection:
            dropped = connection.execute(update(shards).where(idle).values(**done).returning(*which)).all()
            for tag, rung, rows in dropped:
                if rung:
                    said = update(shards).where(shards.c.tag == tag).values(failures=still_invalid(rows))
                    connection.execute(said)
        return len(dropped)

    def recut(
        self, shard: Shard, halves: Sequence[NewShard], *, must: Must | None = None, hands_back: bool = True
    ) -> bool:
        """A planned shard that fits no limit, or has no time for a batch, goes out in smaller ones.

        ``must``, as in `take_back`, where it need not be any more: then False, and nothing was written.

        Raises:
            ValueError: the smaller ones do not hold what it held.
        """
        if shard.state is not ShardState.PLANNED or sum(half.count for half in halves) != shard.count:
            raise ValueError(f"{shard.tag} cannot be cut so: its requests would be lost, doubled or sent again")
        with self._write("recut") as connection:
            if must and not must(*rows_left_in(connection, shard.job_id, None, hands_back=hands_back)):
                return False
            self._step(connection, shard, keep_lease=True)
            connection.execute(delete(shards).where(shards.c.tag == shard.tag))
            insert_shards(connection, shard.job_id, halves, self.moment())
        return True

    def in_flight(self, job_id: str) -> int:
        """How many shards of the job may be costing money now."""
        with self._read() as connection:
            return _in_flight(connection, job_id)

    def alert(self, job_id: str, tag: str | None, kind: str, text: str) -> None:
        """Something a person should look at."""
        with self._write("alert") as connection:
            raise_alerts(connection, job_id, tag, [(kind, text)])

    def to_collect(self, job_id: str) -> int:
        """How many shards of the job wait for the provider or for collecting, whatever the job's state."""
        states = (ShardState.SUBMITTING, ShardState.IN_DOUBT, ShardState.WAITING, ShardState.COLLECTING)
        which = and_(shards.c.job_id == job_id, shards.c.state.in_(states))
        with self._read() as connection:
            return int(connection.execute(select(func.count()).select_from(shards).where(which)).scalar_one())


def still_invalid(rows: int) -> str:
    """The failures of so many rows that a further step of their ladder did not come to."""
    return json.dumps({FailureKind.INVALID_OUTPUT.value: rows})
