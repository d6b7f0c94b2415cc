"""Any order of verbs by two workers: the money and the requests always add up."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_kit import ROWS, Backend, check_money, everything, intend, new_shard, publish

from nightmill.errors import LeaseLost
from nightmill.ledger import Booking, Counts, Denied, Ledger, Settlement, Shard, SubmissionState
from nightmill.types import JobState, Lane, ShardState

CAP = 700
SELDOM = st.sampled_from([False] * 5 + [True])
SHARDS = 4


class Verbs(RuleBasedStateMachine):
    """Two workers on a batch job and a live job, with leases that are sometimes taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        backend = Backend(f"sqlite:{self.folder / 'ledger.db'}")
        self.one = backend.open()
        boot, namespace, pid, started = self.one.me.split("/")
        self.two = backend.open("/".join((boot, namespace + "9", pid, started)))
        self.held: list[tuple[Ledger, Shard]] = []
        self.stale: list[tuple[Ledger, Shard]] = []
        self.beyond = False  # money that no limit could refuse: strays, answers dearer than their worst case

    @initialize()
    def begin(self) -> None:
        self.one.ensure_budget(CAP, None, None)
        publish(self.one, "batch", shards=SHARDS)
        publish(self.one, "live", shards=SHARDS, lane=Lane.LIVE)

    def teardown(self) -> None:
        self.one.close()
        self.two.close()
        shutil.rmtree(self.folder)

    # -- taking and giving back

    @rule(
        second=st.booleans(), lane=st.sampled_from([Lane.BATCH, Lane.LIVE]), lost=st.sampled_from([False] * 5 + [True])
    )
    def claim(self, second: bool, lane: Lane, lost: bool) -> None:
        by = self.two if second else self.one
        for shard in by.claim_due(lane=lane, limit=1, lease_s=-1.0 if lost else 1e6):
            self.stale += [(who, old) for who, old in self.held if old.tag == shard.tag]
            self.held = [(who, old) for who, old in self.held if old.tag != shard.tag]
            self.held.append((by, shard))

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def write_with_a_lost_lease(self, data: st.DataObject) -> None:
        by, shard = data.draw(st.sampled_from(self.stale))
        before = everything(by)
        for verb in (lambda: by.release(shard), lambda: by.open_journal(shard, None)):  # type: ignore[arg-type]
            with pytest.raises(LeaseLost):
                verb()
        assert everything(by) == before

    def _take(self, data: st.DataObject, *states: ShardState) -> tuple[Ledger, Shard] | None:
        ready = [pair for pair in self.held if pair[1].state in states]
        if not ready:
            return None
        pair = data.draw(st.sampled_from(ready))
        self.held.remove(pair)
        return pair

    def _with(self, data: st.DataObject, do: Callable[[Ledger, Shard], Shard | None], *states: ShardState) -> None:
        """Let the holder of a shard in one of ``states`` do something; it may keep the shard."""
        taken = self._take(data, *states)
        if taken is None:
            return
        by, shard = taken
        kept = do(by, shard)
        if kept is not None:
            self.held.append((by, kept))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._with(data, lambda by, shard: by.release(shard), *ShardState)

    # -- handing over

    @rule(data=st.data(), nanos=st.sampled_from([0, 1, 90, 200, CAP + 1]))
    def hand_over(self, data: st.DataObject, nanos: int) -> None:
        def do(by: Ledger, shard: Shard) -> Shard | None:
            try:
                ready = intend(by, shard, nanos)
            except LeaseLost:
                job = by.find_job(shard.job_id)
                assert job.cancel_requested or job.state is JobState.PAUSED
                return None
            return shard if isinstance(ready, Denied) else ready

        self._with(data, do, ShardState.PLANNED)

    @rule(data=st.data())
    def created(self, data: st.DataObject) -> None:
        def do(by: Ledger, shard: Shard) -> None:
            assert by.note_created(shard, shard.submission, f"b{shard.tag}", status="x", due_in_s=0.0)

        self._with(data, do, ShardState.SUBMITTING, ShardState.IN_DOUBT)

    @rule(data=st.data(), sure=st.booleans(), refused=st.booleans())
    def not_sent(self, data: st.DataObject, sure: bool, refused: bool) -> None:
        self._with(data, lambda by, s: by.note_not_sent(s, s.submission, due_in_s=0.0, reason="r", sure=sure,
                                                        refused=refused),
                   ShardState.SUBMITTING, ShardState.IN_DOUBT, ShardState.WAITING)  # fmt: skip

    @rule(data=st.data())
    def doubt(self, data: st.DataObject) -> None:
        self._with(data, lambda by, s: by.note_doubt(s, due=0.0, reason="r"), ShardState.SUBMITTING)

    @rule(data=st.data())
    def stray(self, data: st.DataObject) -> None:
        def do(by: Ledger, shard: Shard) -> None:
            by.note_stray(shard, "stray", status="x", account="acc")
            by.note_created(shard, shard.submission, "b", status="x", due_in_s=0.0)
            self.beyond = True

        self._with(data, do, ShardState.IN_DOUBT)

    @rule(data=st.data())
    def write_off(self, data: st.DataObject) -> None:
        self._with(data, lambda by, shard: by.write_off(shard), ShardState.IN_DOUBT)

    # -- waiting, collecting, sending

    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        def do(by: Ledger, shard: Shard) -> None:
            seen = [(s.n, {"ended": 1}) for s in shard.submissions if s.batch_id]
            by.note_polled(shard, seen, due_in_s=0.0, done=True)

        self._with(data, do, ShardState.WAITING)

    @rule(data=st.data())
    def turned_up(self, data: st.DataObject) -> None:
        def do(by: Ledger, shard: Shard) -> Shard | None:
            absent = [s.n for s in shard.submissions if s.state is SubmissionState.ABSENT]
            if not absent:
                return shard
            by.revive(shard, absent[0], "late", status="x")
            by.back_to_waiting(shard)
            self.beyond = True
            return None

        self._with(data, do, ShardState.COLLECTING)

    @rule(data=st.data(), nanos=st.integers(1, 60))
    def resend(self, data: st.DataObject, nanos: int) -> None:
        def do(by: Ledger, shard: Shard) -> Shard:
            by.book_resend(shard, nanos)
            return shard

        self._with(data, do, ShardState.SENDING)

    @rule(data=st.data())
    def sent_all(self, data: st.DataObject) -> None:
        self._with(data, lambda by, shard: by.note_sent_all(shard), ShardState.SENDING)

    @rule(data=st.data(), share=st.integers(0, 100), dear=st.booleans())
    def settle(self, data: st.DataObject, share: int, dear: bool) -> None:
        def do(by: Ledger, shard: Shard) -> None:
            again = data.draw(st.integers(0, shard.count))
            bookings = []
            for sub in shard.submissions:
                most = sub.hold_nanos + by_now(by, sub.tag, sub.n)
                if most or sub.batch_id:
                    spent = most * share // 100 + (17 if dear else 0)
                    bookings.append(Booking(sub.n, spent, spent // 3, 1))
            self.beyond = self.beyond or dear
            left = (
                new_shard(f"{shard.job_id}-{by.take_seqs(shard.job_id, 1)}", lane=shard.lane, count=again, attempt=2),
            )
            by.settle(shard, Settlement(
                counts=Counts(succeeded=shard.count - again, failed=again), bookings=tuple(bookings),
                resent=Counts(failed=again), leftovers=left if again else ()))  # fmt: skip

        self._with(data, do, ShardState.COLLECTING)

    @rule(data=st.data())
    def recut(self, data: st.DataObject) -> None:
        def do(by: Ledger, shard: Shard) -> Shard | None:
            if shard.count < 2:
                return shard
            first = by.take_seqs(shard.job_id, 2)
            sizes = (shard.count // 2, shard.count - shard.count // 2)
            by.recut(shard, [new_shard(f"{shard.job_id}-{first + i}", lane=shard.lane, count=n, attempt=shard.attempt)
                             for i, n in enumerate(sizes)])  # fmt: skip
            return None

        self._with(data, do, ShardState.PLANNED)

    # -- steering

    @rule(job=st.sampled_from(["batch", "live"]))
    def pause(self, job: str) -> None:
        self.two.pause(job, "r")

    @rule(job=st.sampled_from(["batch", "live"]))
    def resume(self, job: str) -> None:
        self.one.resume(job)

    @precondition(lambda self: not any(self.one.find_job(job).cancel_requested for job in ("batch", "live")))
    @rule(job=st.sampled_from(["batch", "live"]), seldom=st.integers(0, 9))
    def cancel(self, job: str, seldom: int) -> None:
        if seldom == 0:
            self.one.request_cancel(job)
            self.one.drop_planned(job)
            held = {s.tag: s for s in self.one.shards_of(job, ShardState.SETTLED)}
            self.held = [(who, s) for who, s in self.held if s.tag not in held]

    # -- what always holds

    @invariant()
    def money_adds_up(self) -> None:
        check_money(self.one)
        if not self.beyond:
            assert all(limit.free_nanos is None or limit.free_nanos >= 0 for limit in self.one.limits())

    @invariant()
    def requests_add_up(self) -> None:
        for job in self.one.jobs():
            tally = self.one.tally(job.id)
            assert tally.counts.total + tally.open == SHARDS * ROWS
            assert 0 <= tally.sent <= SHARDS * ROWS
            assert sum(tally.states.values()) == len(self.one.shards_of(job.id))

    @invariant()
    def what_is_settled_holds_nothing(self) -> None:
        for job in self.one.jobs():
            for shard in self.one.shards_of(job.id):
                held = sum(s.hold_nanos for s in shard.submissions)
                assert not held or shard.state not in (ShardState.SETTLED, ShardState.PLANNED)


def by_now(ledger: Ledger, tag: str, n: int) -> int:
    """What is booked for a submission already."""
    shard = ledger.shard(tag)
    assert shard is not None
    return next(s.spent_nanos for s in shard.submissions if s.n == n)


TestVerbs = Verbs.TestCase
TestVerbs.__doc__ = "Whatever verbs are called in whatever order, limits, submissions and tallies agree."
TestVerbs.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
