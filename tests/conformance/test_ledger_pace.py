"""What a deadline is kept by: rows without an answer, and how long batches, cancels and live calls took."""

from __future__ import annotations

import time

import pytest
from ledger_kit import LEASE_S, bring, claim, done, intended, publish

from nightmill.ledger import Counts, Ledger, Settlement
from nightmill.ledger.records import NewShard
from nightmill.types import Lane, ShardState

pytestmark = pytest.mark.req("X3")


def ended(ledger: Ledger, *, at: float, **more: object) -> None:
    """The next batch is seen to have ended at that time of the provider's."""
    shard = bring(ledger, ShardState.WAITING)
    ledger.note_polled(shard, [(1, {"ended": 1, "ended_at": at, **more})], due_in_s=0.0, done=True)


def test_rows_left_are_those_that_nobody_has_answered(ledger: Ledger) -> None:
    """Planned rows count whole, those of a batch less what its provider says it has done; settled ones not at all."""
    publish(ledger, shards=3, count=10)
    assert ledger.rows_left("job1") == (30, 0)
    waiting = bring(ledger, ShardState.WAITING)
    ledger.note_polled(waiting, [(1, {"completed": 6, "failed": 1})], due_in_s=1e6, done=False)
    assert ledger.rows_left("job1") == (23, 0)
    assert ledger.rows_left("job1", but=waiting.tag) == (20, 0)
    collecting = bring(ledger, ShardState.COLLECTING)
    ledger.settle(collecting, done(collecting))
    assert ledger.rows_left("job1") == (13, 0)
    assert ledger.rows_left("another job") == (0, 0)


def test_where_a_cancelled_batch_hands_back_nothing_its_answers_count_when_there_is_a_file_of_them(
    ledger: Ledger,
) -> None:
    """Rows that such a batch has answered may all have to be asked again, until its results can be fetched."""
    publish(ledger, shards=2, count=10)
    waiting = bring(ledger, ShardState.WAITING)
    ledger.note_polled(waiting, [(1, {"completed": 6, "failed": 1})], due_in_s=0.0, done=False)
    assert ledger.rows_left("job1", hands_back=False) == (20, 0)
    (again,) = [s for s in ledger.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S) if s.tag == waiting.tag]
    over = {"ended": 1, "completed": 6, "failed": 1, "output_file": "f"}
    ledger.note_polled(again, [(1, over)], due_in_s=0.0, done=True)
    assert ledger.rows_left("job1", hands_back=False) == (10, 3)


def test_rows_of_a_batch_that_is_cancelled_run_live(ledger: Ledger) -> None:
    """What is on its way to live calls is no longer waited for, from the cancel to the last live row."""
    publish(ledger, shards=2, count=10)
    shard = bring(ledger, ShardState.WAITING)
    ledger.note_cancel_asked(shard, [1], at=2000.0)
    ledger.note_polled(shard, [(1, {"completed": 4, "failed": None})], due_in_s=0.0, done=False)
    assert ledger.rows_left("job1") == (10, 6)
    (shard,) = [s for s in ledger.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S) if s.state is ShardState.WAITING]
    ledger.note_polled(shard, [(1, {"ended": 1, "ended_at": 2090.0, "completed": 4})], due_in_s=0.0, done=True)
    assert ledger.rows_left("job1") == (10, 6)
    shard = claim(ledger)
    rest = NewShard("job1-2", 2, Lane.LIVE, 4, 9, 6, 600, 300, 150, shard.file, expiries=1)
    counts, again = Counts(succeeded=4, expired=6), Counts(expired=6)
    ledger.settle(shard, Settlement(counts, done(shard).bookings, resent=again, leftovers=(rest,)))
    assert ledger.rows_left("job1") == (10, 6)
    tally = ledger.tally("job1")
    assert (tally.rescued, tally.rescued_nanos) == (6, 0)
    live = claim(ledger, Lane.LIVE)
    live = ledger.note_sent_all(intended(ledger, live, 90))
    ledger.settle(live, done(live, 70))
    assert ledger.rows_left("job1") == (10, 0)
    assert ledger.tally("job1").rescued_nanos == 70
    assert ledger.cancel_times("acc", since=0.0) == [90.0]
    assert ledger.cancel_times("acc", since=2001.0) == []
    assert ledger.cancel_times("another", since=0.0) == []


def test_a_batch_that_was_refused_as_a_whole_while_it_was_cancelled_is_decided_about_anew(ledger: Ledger) -> None:
    """Nothing of it ran: its rows wait to be handed over, and are no live calls yet."""
    publish(ledger, shards=1, count=10)
    shard = bring(ledger, ShardState.WAITING)
    ledger.note_cancel_asked(shard, [1], at=2000.0)
    ledger.note_not_sent(shard, 1, due_in_s=0.0, reason="no room for its tokens")
    assert ledger.rows_left("job1") == (10, 0)


def test_a_live_job_has_rescued_nothing(ledger: Ledger) -> None:
    """Live calls that were asked for are no rescue."""
    publish(ledger, shards=1, lane=Lane.LIVE)
    live = ledger.note_sent_all(intended(ledger, claim(ledger, Lane.LIVE)))
    ledger.settle(live, done(live))
    assert (ledger.tally("job1").rescued, ledger.tally("job1").rescued_nanos) == (0, 0)


def test_how_long_batches_take_is_learned_from_those_that_came_to_their_end(ledger: Ledger) -> None:
    """From upload to end by the provider's clock, by model; what we cancelled, or has not ended, tells nothing."""
    publish(ledger, shards=3)
    ended(ledger, at=1000.0 + 3600)  # the kit's batches are handed over at 1000
    assert ledger.batch_times("m", since=0.0) == [3600.0]
    assert ledger.batch_times("m", since=1001.0) == []
    assert ledger.batch_times("another", since=0.0) == []
    ledger.settle(shard := claim(ledger), done(shard))
    cancelled = bring(ledger, ShardState.WAITING)
    ledger.note_cancel_asked(cancelled, [1], at=1500.0)
    ledger.note_polled(cancelled, [(1, {"ended": 1, "ended_at": 1600.0})], due_in_s=0.0, done=True)
    ledger.settle(shard := claim(ledger), done(shard))
    bring(ledger, ShardState.WAITING)
    assert ledger.batch_times("m", since=0.0) == [3600.0]


def test_live_rates_are_those_of_jobs_with_enough_rows(ledger: Ledger) -> None:
    """A handful of calls says nothing of how many a minute takes."""
    for job, rows in (("small", 5), ("large", 200)):
        publish(ledger, job, lane=Lane.LIVE, count=rows)
        live = ledger.note_sent_all(intended(ledger, claim(ledger, Lane.LIVE)))
        ledger.settle(live, done(live))
    (rate,) = ledger.live_rates("acc", "m", since=0.0, least=50)
    assert rate == pytest.approx(200 / (time.time() - 1000.0), rel=0.01)
    assert ledger.live_rates("acc", "another", since=0.0, least=50) == []
    assert ledger.live_rates("acc", "m", since=1001.0, least=50) == []
