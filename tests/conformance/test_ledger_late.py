"""What comes after a shard had settled: one worker opens it again, and the books change by what is new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from ledger_kit import ROWS, Backend, a_file, bring, check_money, claim, done, everything, money, new_shard, publish

from nightmill.errors import Conflict, LeaseLost
from nightmill.ledger import (
    CAME_LATE,
    Booking,
    Counts,
    Job,
    Late,
    LateBatch,
    LateSettlement,
    Ledger,
    Moved,
    Settlement,
    Shard,
    StoredFile,
    SubmissionState,
)
from nightmill.types import JobState, ShardState

MISSING = Counts(succeeded=ROWS - 2, missing=2)
STRAY = LateBatch("b9", "completed", "acc", None)


@pytest.fixture
def other(backend: Backend) -> Iterator[Ledger]:
    """Another worker."""
    opened = backend.open()
    yield opened
    opened.close()


def ended(ledger: Ledger, fingerprint: str | None = None) -> tuple[Job, Shard]:
    """A finished job of one shard: two rows are missing, 60 nanos are spent, 20 of them unproven."""
    publish(ledger, fingerprint=fingerprint)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, 60, counts=MISSING, unproven=20, failures={}))
    ripe = ledger.claim_finish("job1", 60.0)
    assert ripe is not None
    ledger.finish(ripe, JobState.COMPLETED, counts={"succeeded": ROWS - 2, "missing": 2}, results=[])
    job = ledger.job("job1")
    assert job is not None
    return job, ledger.shards_of("job1")[0]


def late_file(shard: Shard) -> StoredFile:
    return StoredFile(a_file("wire/late"), "error", shard.tag, 1, CAME_LATE)


def test_a_late_file_makes_the_job_run_and_is_booked_once(ledger: Ledger) -> None:
    """The books change by the difference; rows count under their new outcome; the job can finish again."""
    job, shard = ended(ledger)
    seen = ((1, {"completed": ROWS, "error_file": "f2"}),)
    assert ledger.reopen(job, [Late(shard, files=(late_file(shard),), seen=seen)])
    running = ledger.job("job1")
    assert running is not None
    assert (running.state, running.finished_at, running.counts) == (JobState.RUNNING, None, None)
    assert ledger.claim_finish("job1", 60.0) is None
    again = claim(ledger)
    assert (again.state, again.settled_before, again.current.error_file) == (ShardState.COLLECTING, True, "f2")
    assert [f.read for f in again.files] == [CAME_LATE]
    moved = tuple(Moved(again.tag, "missing", to) for to in ("succeeded", "bad_request"))
    ledger.settle_late(again, LateSettlement((Booking(1, 55, 0, 2),), moved, extra_answers=1, tokens_in=7))
    settled = ledger.shards_of("job1")[0]
    assert (settled.state, settled.missing, [f.read for f in settled.files]) == (ShardState.SETTLED, 0, [2])
    tally = ledger.tally("job1")
    assert tally.counts == Counts(succeeded=ROWS - 1, failed=1)
    assert (tally.failures, tally.extra_answers, tally.tokens_in) == ({"bad_request": 1}, 1, 7)
    assert (tally.spent_nanos, tally.unproven_nanos) == (55, 0)
    assert ledger.calls() == ROWS + 2
    assert money(ledger) == (55, 0)
    check_money(ledger)
    assert ledger.claim_finish("job1", 60.0) is not None


def test_a_late_batch_is_waited_for(ledger: Ledger) -> None:
    """A batch nobody knew becomes a submission of its own; one that was lost gets its batch."""
    job, shard = ended(ledger)
    assert ledger.reopen(job, [Late(shard, batches=(STRAY,))])
    waiting = claim(ledger)
    assert waiting.state is ShardState.WAITING
    assert [(s.n, s.state, s.batch_id) for s in waiting.submissions] == [
        (1, SubmissionState.BOOKED, "b1"),
        (2, SubmissionState.CREATED, "b9"),
    ]
    ledger.note_polled(waiting, [(2, {"ended": 1})], due_in_s=0.0, done=True)
    ledger.settle_late(claim(ledger), LateSettlement((Booking(1, 60, 20, 0), Booking(2, 33, 0, 4))))
    assert money(ledger) == (93, 0)
    check_money(ledger)


def test_only_one_opens_it(ledger: Ledger, other: Ledger) -> None:
    """Two that found the same: the second is told that the job changed, and writes nothing."""
    job, shard = ended(ledger)
    found = [Late(shard, batches=(STRAY,))]
    assert ledger.reopen(job, found)
    before = everything(ledger)
    assert not other.reopen(job, found)
    assert everything(ledger) == before


def test_a_shard_that_changed_stays_as_it_is(ledger: Ledger, other: Ledger) -> None:
    """A record that is not the shard's any more opens nothing, and a stale lease settles nothing."""
    job, shard = ended(ledger)
    before = everything(ledger)
    with pytest.raises(LeaseLost):
        ledger.reopen(job, [Late(replace(shard, epoch=99), batches=(STRAY,))])
    assert everything(ledger) == before
    ledger.reopen(job, [Late(shard, files=(late_file(shard),))])
    (stale,) = other.claim_due(lane=shard.lane, limit=1, lease_s=-1.0)
    current = claim(ledger)
    before = everything(ledger)
    with pytest.raises(LeaseLost):
        other.settle_late(stale, LateSettlement(()))
    assert everything(ledger) == before
    ledger.settle_late(current, LateSettlement(()))


def test_a_newer_job_is_not_disturbed(ledger: Ledger) -> None:
    """While an unfinished job has its fingerprint the old one stays as it ended."""
    job, shard = ended(ledger, "same")
    publish(ledger, "job2", fingerprint="same")
    before = everything(ledger)
    with pytest.raises(Conflict, match="beside a newer job"):
        ledger.reopen(job, [Late(shard, batches=(STRAY,))])
    assert everything(ledger) == before


def test_a_job_that_is_about_to_finish_gives_the_right_back(ledger: Ledger) -> None:
    """What came late before the job had ended: it goes on as it was, and whoever is next may finish it."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, counts=MISSING))
    ripe = ledger.claim_finish("job1", 60.0)
    assert ripe is not None
    settled = ledger.shards_of("job1")[0]
    assert ledger.reopen(ripe, [Late(settled, files=(late_file(settled),))])
    assert not ledger.finish(ripe, JobState.COMPLETED, counts={}, results=[])
    ledger.settle_late(claim(ledger), LateSettlement(()))
    assert ledger.claim_finish("job1", 60.0) is not None


def test_rows_count_under_whatever_they_were_counted_as(ledger: Ledger) -> None:
    """Rows of a shard that was dropped as cancelled, or cancelled by somebody else, move from there."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, counts=Counts(succeeded=ROWS - 3, expired=1, cancelled=2)))
    job, settled = ledger.job("job1"), ledger.shards_of("job1")[0]
    assert job is not None
    ledger.reopen(job, [Late(settled, files=(late_file(settled),))])
    moved = [Moved(settled.tag, before, "succeeded") for before in ("missing", "cancelled", "cancelled")]
    ledger.settle_late(claim(ledger), LateSettlement((), tuple(moved)))
    assert ledger.tally("job1").counts == Counts(succeeded=ROWS)


@pytest.mark.parametrize("before", ["missing", "cancelled"])
def test_rows_of_a_further_step_that_nobody_took_move_from_the_failed_ones(ledger: Ledger, before: str) -> None:
    """No line of theirs is there to tell, and they count as the step before left them: no count is ever below zero."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    counts, again = Counts(succeeded=ROWS - 2, failed=2), Counts(failed=2)
    step = new_shard("job1-1", first=ROWS - 2, count=2, rung=1)
    ledger.settle(shard, Settlement(counts, done(shard).bookings, resent=again, leftovers=(step,)))
    ledger.request_cancel("job1")
    assert ledger.drop_planned("job1") == 1
    job, settled = ledger.job("job1"), ledger.shards_of("job1")[0]
    assert job is not None
    ledger.reopen(job, [Late(settled, files=(late_file(settled),))])
    ledger.settle_late(claim(ledger), LateSettlement((), (Moved("job1-1", before, "succeeded"),)))
    tally = ledger.tally("job1")
    assert (tally.counts, tally.failures) == (Counts(succeeded=ROWS - 1, failed=1), {"invalid_output": 1})


def test_the_newest_ended_job_is_found(ledger: Ledger) -> None:
    """By its fingerprint, and not while it is unfinished."""
    publish(ledger, fingerprint="same")
    assert ledger.find_ended("same") is None
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard))
    ripe = ledger.claim_finish("job1", 60.0)
    assert ripe is not None
    ledger.finish(ripe, JobState.COMPLETED, counts={}, results=[])
    found = ledger.find_ended("same")
    assert found is not None
    assert found.id == "job1"
