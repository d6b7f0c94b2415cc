"""Leases: one worker a shard, free again when its worker is gone, and not before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from ledger_kit import LEASE_S, Backend, Worker, bring, claim, done, everything, intend, intended, new_shard, publish
from sqlalchemy import select

from nightmill.errors import LeaseLost
from nightmill.ledger import Ledger, Shard, StoredFile, schema
from nightmill.ledger.shards import pause_job
from nightmill.types import Lane, ShardState


def elsewhere(ledger: Ledger) -> str:
    """A process of this host in another pid namespace: nobody here can tell whether it lives."""
    boot, namespace, pid, started = ledger.me.split("/")
    return "/".join((boot, namespace + "9", pid, started))


@pytest.fixture
def other(backend: Backend, ledger: Ledger) -> Iterator[Ledger]:
    """Another worker, which must be taken for alive."""
    opened = backend.open(elsewhere(ledger))
    yield opened
    opened.close()


def test_a_shard_is_claimed_once(ledger: Ledger, other: Ledger) -> None:
    """Two workers never work on the same shard."""
    publish(ledger, shards=3)
    mine = ledger.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S)
    theirs = other.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S)
    assert [s.tag for s in mine] == ["job1-0", "job1-1"]
    assert [s.tag for s in theirs] == ["job1-2"]
    assert ledger.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S) == []
    assert other.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S) == []


def test_only_due_shards_of_the_lane_and_the_jobs_are_claimed(ledger: Ledger) -> None:
    """A worker gets what it asked for: its lane, its jobs, what is due, oldest job first."""
    publish(ledger, "job1", lane=Lane.LIVE)
    publish(ledger, "job2", shards=2)
    publish(ledger, "job3")
    first = claim(ledger)
    ledger.release(first, due_in_s=1000.0)
    got = ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S, job_ids=["job2"])
    assert [s.tag for s in got] == ["job2-1"]
    assert claim(ledger).tag == "job3-0"
    assert claim(ledger, Lane.LIVE).tag == "job1-0"


def test_what_is_in_flight_comes_before_what_is_planned(ledger: Ledger) -> None:
    """Money that is held is looked after before more is held."""
    publish(ledger, shards=2)
    intended_one = intended(ledger, claim(ledger))
    ledger.note_created(intended_one, 1, "b", status="s", due_in_s=0.0)
    publish(ledger, "job0", shards=1)
    assert claim(ledger).state is ShardState.WAITING


def test_an_expired_lease_is_free_and_fences_the_old_holder(ledger: Ledger, other: Ledger) -> None:
    """Whoever lost a lease can write nothing; the new holder knows when the old lease ended."""
    publish(ledger)
    old = bring(other, ShardState.SUBMITTING, lease_s=-1.0)
    new = claim(ledger)
    assert new.epoch == old.epoch + 1
    assert new.lease_was_until == old.lease_until
    before = everything(ledger)
    with pytest.raises(LeaseLost):
        other.note_created(old, 1, "b", status="s", due_in_s=0.0)
    assert everything(ledger) == before
    assert other.renew([old], LEASE_S) == set()
    assert ledger.renew([new], LEASE_S) == {new.tag}


half = [new_shard("job1-8", count=5), new_shard("job1-9", first=5, count=5)]
journal = StoredFile(half[0].file, "journal", "job1-0", 1)
VERBS: list[tuple[str, ShardState, Callable[[Ledger, Shard], object]]] = [
    ("release", ShardState.PLANNED, lambda to, s: to.release(s)),
    ("recut", ShardState.PLANNED, lambda to, s: to.recut(s, half)),
    ("note_intent", ShardState.PLANNED, intend),
    ("note_upload", ShardState.SUBMITTING, lambda to, s: to.note_upload(s, 1, "f", at=1.0)),
    ("note_created", ShardState.SUBMITTING, lambda to, s: to.note_created(s, 1, "b", status="x", due_in_s=0.0)),
    ("note_not_sent", ShardState.SUBMITTING, lambda to, s: to.note_not_sent(s, 1, due_in_s=0.0, reason="r", pause="p")),
    ("note_doubt", ShardState.SUBMITTING, lambda to, s: to.note_doubt(s, due=0.0, reason="r")),
    ("note_look", ShardState.IN_DOUBT, lambda to, s: to.note_look(s, looks=1, fenced=True, due=0.0)),
    ("note_terms", ShardState.IN_DOUBT, lambda to, s: to.note_terms(
        s, account="a", model="m", price="{}", hold_nanos=9, scopes=["total"])),
    ("note_stray", ShardState.IN_DOUBT, lambda to, s: to.note_stray(s, "b2", status="x", account="a")),
    ("adopt", ShardState.IN_DOUBT, lambda to, s: to.note_created(s, 1, "b", status="x", due_in_s=0.0)),
    ("write_off", ShardState.IN_DOUBT, lambda to, s: to.write_off(s)),
    ("note_polled", ShardState.WAITING, lambda to, s: to.note_polled(s, [(1, {"ended": 1})], due_in_s=0.0, done=True)),
    ("note_cancel_asked", ShardState.WAITING, lambda to, s: to.note_cancel_asked(s, [1])),
    ("take_back", ShardState.WAITING, lambda to, s: to.take_back(s, lambda _, __: True, hands_back=True)),
    ("refused whole", ShardState.WAITING, lambda to, s: to.note_not_sent(s, 1, due_in_s=0.0, reason="r", refused=True)),
    ("note_fetched", ShardState.COLLECTING, lambda to, s: to.note_fetched(s, 1, [journal])),
    ("note_reread", ShardState.COLLECTING, lambda to, s: to.note_reread(s, due_in_s=1.0)),
    ("revive", ShardState.COLLECTING, lambda to, s: to.revive(s, 1, "b3", status="x")),
    ("confirm_absent", ShardState.COLLECTING, lambda to, s: to.confirm_absent(s, [1])),
    ("back_to_waiting", ShardState.COLLECTING, lambda to, s: to.back_to_waiting(s)),
    ("settle", ShardState.COLLECTING, lambda to, s: to.settle(s, done(s))),
    ("book_resend", ShardState.SENDING, lambda to, s: to.book_resend(s, 7)),
    ("open_journal", ShardState.SENDING, lambda to, s: to.open_journal(s, journal)),
    ("note_sent_all", ShardState.SENDING, lambda to, s: to.note_sent_all(s)),
]  # fmt: skip


@pytest.mark.parametrize(("state", "verb"), [v[1:] for v in VERBS], ids=[v[0] for v in VERBS])
def test_a_stale_epoch_changes_nothing(
    ledger: Ledger, other: Ledger, state: ShardState, verb: Callable[[Ledger, Shard], object]
) -> None:
    """Every verb works for the holder of the lease, and for nobody else."""
    lane = Lane.LIVE if state is ShardState.SENDING else Lane.BATCH
    publish(ledger, lane=lane)
    stale = bring(other, state, lease_s=-1.0)
    current = claim(ledger, lane)
    before = everything(ledger)
    with pytest.raises(LeaseLost):
        verb(other, stale)
    assert everything(ledger) == before
    verb(ledger, current)
    assert everything(ledger) != before


def test_a_verb_cannot_be_repeated(ledger: Ledger) -> None:
    """A step that ended gave the lease back with the state: the same call again finds nothing to change."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard))
    before = everything(ledger)
    with pytest.raises(LeaseLost):
        ledger.settle(shard, done(shard))
    assert everything(ledger) == before


def test_the_lease_of_a_dead_process_is_free_at_once(backend: Backend, ledger: Ledger) -> None:
    """A killed worker's shard goes on at once, and its lease counts as ended when that was seen."""
    publish(ledger)
    worker = Worker(backend.address, "claim")
    assert worker.line() == "job1-0"
    assert ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=LEASE_S) == []
    worker.end(kill=True)
    seen = ledger.moment()
    shard = claim(ledger)
    assert seen <= shard.lease_was_until <= ledger.moment()


def test_a_stopped_process_is_alive(backend: Backend, ledger: Ledger) -> None:
    """A worker that was stopped may go on at any moment: its lease has to run out."""
    publish(ledger)
    worker = Worker(backend.address, "claim")
    worker.line()
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        assert ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=LEASE_S) == []
        with pytest.raises(LeaseLost):
            ledger.claim_one("job1-0", LEASE_S)
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
        worker.end(kill=True)
    assert ledger.claim_one("job1-0", LEASE_S).tag == "job1-0"


def test_a_process_of_another_namespace_is_not_judged(ledger: Ledger, other: Ledger) -> None:
    """A pid means nothing in another container, so its lease has to run out."""
    publish(ledger)
    claim(other)
    assert not ledger.is_dead(other.me)
    assert ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=LEASE_S) == []


def test_a_reused_pid_is_another_process(ledger: Ledger) -> None:
    """A process is its pid and its start time: the same number later is somebody else."""
    boot, namespace, pid, started = ledger.me.split("/")
    assert not ledger.is_dead(ledger.me)
    assert ledger.is_dead("/".join((boot, namespace, pid, started + "1")))
    assert ledger.is_dead("/".join((boot + "x", namespace, pid, started)))


def test_workers_of_one_process_are_as_many(ledger: Ledger, backend: Backend) -> None:
    """Two threads share shards and limits as two processes do; what one held that ended is free at once."""
    second = backend.open()
    publish(ledger)
    claim(second)
    second.heartbeat(LEASE_S)
    assert ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=LEASE_S) == []
    assert not ledger.is_dead(second.me)
    assert ledger.heartbeat(LEASE_S) == 2
    second.close()
    assert len(ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=LEASE_S)) == 1
    assert ledger.heartbeat(LEASE_S) == 1


@pytest.mark.parametrize("jump_s", [-1e7, 1e7])
def test_a_jump_of_the_wall_clock_moves_nothing(
    ledger: Ledger, other: Ledger, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """Leases and due times are kept on a clock of their own."""
    publish(ledger, shards=2)
    claim(other)
    ledger.release(claim(ledger), due_in_s=1000.0)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    assert ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S) == []


def test_a_shard_that_was_given_back_is_due_when_it_was_said(ledger: Ledger) -> None:
    """Back-off is a due time, and an engine may sleep until then."""
    publish(ledger)
    assert ledger.outlook()[Lane.BATCH] <= ledger.moment()
    before = ledger.moment()
    shard = claim(ledger)
    assert ledger.outlook()[Lane.BATCH] >= before + LEASE_S  # somebody works on it
    ledger.release(shard, due_in_s=50.0, reason="later")
    outlook = ledger.outlook(["job1"])
    assert outlook.keys() == {Lane.BATCH}
    assert before + 50.0 <= outlook[Lane.BATCH] <= ledger.moment() + 50.0
    assert ledger.outlook(["another"]) == {}


def test_the_shard_of_a_dead_worker_is_in_the_outlook(ledger: Ledger, backend: Backend) -> None:
    """An engine does not sleep through the lease of a process that no longer exists."""
    boot, namespace, pid, _ = ledger.me.split("/")
    dead = backend.open("/".join((boot, namespace, pid, "0")))
    publish(ledger, shards=2)
    claim(ledger)
    claim(dead)
    dead.close()
    assert ledger.outlook()[Lane.BATCH] <= ledger.moment()
    assert len(ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S)) == 1


def test_a_person_takes_a_shard_whenever_it_is_due(ledger: Ledger, other: Ledger) -> None:
    """`resolve` need not wait for a due time, but never interrupts a worker."""
    publish(ledger)
    ledger.release(claim(ledger), due_in_s=1e6)
    mine = ledger.claim_one("job1-0", LEASE_S)
    assert mine.lease_until > ledger.moment()
    with pytest.raises(LeaseLost):
        other.claim_one("job1-0", LEASE_S)


def test_nothing_is_sent_for_a_job_paused_or_cancelled_since_the_claim(ledger: Ledger, other: Ledger) -> None:
    """Between claim and intent a user may say stop: then nothing goes out and nothing is held."""
    publish(ledger, shards=2)
    one, two = ledger.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S)
    other.pause("job1", "by the user")
    with pytest.raises(LeaseLost):
        intend(ledger, one)
    other.resume("job1")
    other.request_cancel("job1")
    with pytest.raises(LeaseLost):
        intend(ledger, two)
    assert {s.state for s in ledger.shards_of("job1")} == {ShardState.PLANNED}
    assert {limit.held_nanos for limit in ledger.limits()} == {0}
    assert all(s.lease_until == 0.0 for s in ledger.shards_of("job1"))  # given back at once


def test_workers_count_each_other(ledger: Ledger, other: Ledger) -> None:
    """Limits are shared by the workers that live now: the dead and those that left do not count."""
    assert ledger.heartbeat(60.0) == 1
    assert other.heartbeat(60.0) == 2
    assert ledger.heartbeat(60.0) == 2
    other.leave()
    assert ledger.heartbeat(60.0) == 1
    other.heartbeat(-1.0)
    assert ledger.heartbeat(60.0) == 1


def test_a_cool_down_is_heard_by_all_and_never_shortened(ledger: Ledger, other: Ledger) -> None:
    """One worker's 429 stops the others of the same quota, and only those."""
    assert ledger.cooling_until("acc", "m") == 0.0
    ledger.cool_down("acc", "m", 100.0)
    other.cool_down("acc", "m", 50.0)
    assert other.cooling_until("acc", "m") == 100.0
    assert other.cooling_until("acc", "m2") == 0.0


def test_reading_waits_for_no_writer_and_stops_none(ledger: Ledger, other: Ledger) -> None:
    """A look at the ledger is a snapshot: it sees all of a commit or nothing, and blocks nobody."""
    publish(ledger)
    with ledger._write("pause") as writing:
        pause_job(writing, "job1", "not yet committed")
        assert [job.reason for job in other.jobs()] == [None]
    reason = select(schema.jobs.c.reason)
    with other._read() as reading:
        assert reading.execute(reason).scalar_one() == "not yet committed"
        ledger.resume("job1")
        assert reading.execute(reason).scalar_one() == "not yet committed"
    assert ledger.jobs()[0].reason is None


def test_what_another_worker_took_back_is_seen_by_who_decides_after_it(ledger: Ledger, other: Ledger) -> None:
    """Two workers that look at the same time take back one batch, where one is enough; so with planned shards."""
    publish(ledger, shards=3, count=10)
    first, second = bring(ledger, ShardState.WAITING), bring(other, ShardState.WAITING)
    seen = []

    def must(batch: int, live: int) -> bool:
        seen.append((batch, live))
        return live == 0

    assert ledger.take_back(first, must, hands_back=True)
    assert not other.take_back(second, must, hands_back=True)
    planned = claim(other)
    assert not other.recut(planned, half, must=must)
    assert seen == [(20, 0), (10, 10), (20, 10)]
    taken = {s.tag: s.current.cancel_asked for s in ledger.shards_of("job1", ShardState.WAITING)}
    assert taken == {first.tag: True, second.tag: False}
    assert not ledger.shard(first.tag).current.cancel_heard  # type: ignore[union-attr]
    assert len(ledger.shards_of("job1", ShardState.PLANNED)) == 1
