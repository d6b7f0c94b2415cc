"""The first rows of a job: nothing else of it is claimed before somebody has looked at them, whoever claims."""

from __future__ import annotations

from dataclasses import replace

from ledger_kit import LEASE_S, ROWS, Backend, a_file, bring, claim, done, intended, new_shard, publish

from nightmill.ledger import Canary, CanarySums, Counts, Job, Ledger, StoredFile
from nightmill.types import JobState, Lane, Quote, ShardState

GOOD = Canary(ROWS, ROWS, {}, 10, 5, 4, 40, 120, 200)


def publish_first(ledger: Ledger, job_id: str = "job1", *, shards: int = 3, lane: Lane = Lane.BATCH) -> Job:
    """A job of ``shards`` shards, the first of which is its canary."""
    ledger.begin_plan(job_id, model="provider/model", lane=Lane.BATCH)
    made = [new_shard(f"{job_id}-{i}", first=i * ROWS, lane=lane if i == 0 else Lane.BATCH) for i in range(shards)]
    quote = Quote(Lane.BATCH, shards * ROWS, 1, 1, 1, 1, 1, 1, "tests")
    return ledger.publish_plan(
        job_id, name=None, fingerprint=job_id, task_digest="t", spec={}, quote=quote, rows=shards * ROWS,
        duplicates=0, cached=0, shards=made, files=[StoredFile(a_file(f"rows/{job_id}"), "rows")], canary_last=ROWS - 1,
    )  # fmt: skip


def claimable(ledger: Ledger, lane: Lane = Lane.BATCH) -> list[str]:
    """Tags that a worker would get now; it gives them back."""
    got = ledger.claim_due(lane=lane, limit=9, lease_s=LEASE_S)
    for shard in got:
        ledger.release(shard)
    return [shard.tag for shard in got]


def settle_first(ledger: Ledger, counts: Counts | None = None, **more: object) -> None:
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, counts=counts, tokens_in=100, tokens_out=50, **more))


def test_nothing_but_the_first_rows_is_claimed_until_they_were_looked_at(backend: Backend, ledger: Ledger) -> None:
    """Before the decision no worker gets the rest, after it all do; other jobs are not kept waiting."""
    publish_first(ledger)
    publish(ledger, "job2")
    other = backend.open()
    assert claimable(ledger) == claimable(other) == ["job1-0", "job2-0"]
    settle_first(ledger)
    assert claimable(ledger) == claimable(other) == ["job2-0"]
    assert Lane.BATCH in ledger.outlook(["job2"])
    assert ledger.outlook(["job1"]) == {}
    assert ledger.note_canary("job1", GOOD)
    assert claimable(other) == ["job1-1", "job1-2", "job2-0"]
    other.close()


def test_a_canary_is_summed_up_once_all_of_it_has_settled(ledger: Ledger) -> None:
    """Parts that go out again are waited for, and count as they end at last; other shards never do."""
    publish_first(ledger)
    again = replace(new_shard("job1-9", first=0, count=2), attempt=2)
    counts = Counts(succeeded=ROWS - 3, failed=3)
    settle_first(ledger, counts, resent=Counts(failed=2), leftovers=(again,), failures={"invalid_output": 1})
    assert ledger.canary_sums("job1") is None
    assert claimable(ledger) == ["job1-9"]
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, spent=8, tokens_in=20, tokens_out=10))
    assert ledger.canary_sums("job1") == CanarySums(ROWS - 1, 1, 48)
    ledger.note_canary("job1", GOOD)
    assert ledger.canary_sums("job1") is None


def test_a_decision_is_made_once(backend: Backend, ledger: Ledger) -> None:
    """Of two workers that decide about a canary the first one's word counts, with the pause that goes with it."""
    publish_first(ledger)
    settle_first(ledger)
    other = backend.open()
    bad = replace(GOOD, valid=0, stopped="canary", reason="none is valid")
    assert ledger.note_canary("job1", bad)
    assert not other.note_canary("job1", GOOD)
    job = other.find_job("job1")
    assert (job.state, job.stopped, job.reason, job.canary) == (JobState.PAUSED, "canary", "none is valid", bad)
    other.close()
    ledger.resume("job1")
    assert claimable(ledger) == ["job1-1", "job1-2"]


def test_a_decision_waits_while_the_job_is_paused_for_another_reason(ledger: Ledger) -> None:
    """A person's pause is not taken for the canary's, nor the other way round."""
    publish_first(ledger)
    settle_first(ledger)
    ledger.pause("job1", "paused by you", stopped="paused")
    assert not ledger.note_canary("job1", replace(GOOD, stopped="canary", reason="none is valid"))
    assert ledger.find_job("job1").stopped == "paused"
    ledger.resume("job1")
    assert claimable(ledger) == []
    assert ledger.canary_sums("job1") == CanarySums(ROWS, 0, 40)


def test_the_same_command_again_asks_for_a_new_decision(ledger: Ledger) -> None:
    """After that nothing of the rest is claimed until somebody decides anew."""
    publish_first(ledger)
    settle_first(ledger)
    ledger.note_canary("job1", replace(GOOD, stopped="min_valid", reason="too few"))
    ledger.decide_anew("job1")
    ledger.resume("job1")
    assert claimable(ledger) == []
    assert ledger.note_canary("job1", GOOD)
    assert claimable(ledger) == ["job1-1", "job1-2"]


def test_a_cancelled_job_is_not_kept_by_its_canary(ledger: Ledger) -> None:
    """What waits for the first rows of a cancelled job is settled as cancelled like the rest."""
    publish_first(ledger)
    ledger.request_cancel("job1")
    assert claimable(ledger) == ["job1-0", "job1-1", "job1-2"]
    assert ledger.drop_planned("job1") == 3


def test_whoever_detaches_waits_for_a_live_canary_and_leaves_with_one_in_a_batch(ledger: Ledger) -> None:
    """A job is handed over when nothing can go out in a moment; what waits for a batch cannot."""
    publish_first(ledger, lane=Lane.LIVE)
    assert not ledger.is_handed_over("job1")
    live = intended(ledger, claim(ledger, Lane.LIVE))
    assert not ledger.is_handed_over("job1")
    live = ledger.note_sent_all(live)
    assert not ledger.is_handed_over("job1")
    ledger.settle(live, done(live))
    assert not ledger.is_handed_over("job1")
    publish_first(ledger, "job2")
    assert not ledger.is_handed_over("job2")
    (batch,) = ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=LEASE_S, job_ids=["job2"])
    batch = intended(ledger, batch)
    ledger.note_created(batch, batch.submission, "b1", status="validating", due_in_s=100.0)
    assert ledger.is_handed_over("job2")


def test_a_live_canary_of_a_batch_job_was_not_rescued(ledger: Ledger) -> None:
    """First rows that go live are no rows that a deadline made go live."""
    publish_first(ledger, lane=Lane.LIVE)
    live = ledger.note_sent_all(intended(ledger, claim(ledger, Lane.LIVE)))
    ledger.settle(live, done(live))
    assert (ledger.tally("job1").rescued, ledger.tally("job1").rescued_nanos) == (0, 0)


def test_answers_so_far_are_those_of_rows_that_have_ended(ledger: Ledger) -> None:
    """All of them, and the newest; expired and missing ones say nothing, nor rows that go out again until they end."""
    publish(ledger, shards=3)
    counts = [Counts(succeeded=9, failed=1), Counts(succeeded=2, failed=6, expired=2), Counts(succeeded=4, failed=6)]
    for one, resent in zip(counts, (0, 0, 5), strict=True):
        shard = bring(ledger, ShardState.COLLECTING)
        again = [replace(new_shard("job1-9", first=shard.first, count=resent), attempt=2)] if resent else []
        ledger.settle(shard, done(shard, counts=one, resent=Counts(failed=resent), leftovers=tuple(again)))
    found = ledger.valid_so_far("job1", 8)
    assert (found.rows, found.valid) == (23, 15)
    assert (found.last_rows, found.last_valid) == (8, 2)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, counts=Counts(succeeded=1, failed=4)))
    found = ledger.valid_so_far("job1", 8)
    assert (found.rows, found.valid) == (28, 16)
    assert (found.last_rows, found.last_valid) == (10, 5)  # not one of five, which were the worst


def test_a_job_that_its_answers_stop_is_paused_once_and_its_batches_are_looked_at(ledger: Ledger) -> None:
    """Its waiting batches are due at once, to be cancelled; nothing new of it is claimed until it is resumed."""
    publish(ledger, shards=2)
    shard = intended(ledger, claim(ledger))
    ledger.note_created(shard, shard.submission, "b1", status="validating", due_in_s=1000.0)
    assert ledger.stop_for_answers("job1", "too few are valid")
    assert not ledger.stop_for_answers("job1", "again")
    job = ledger.find_job("job1")
    assert (job.state, job.stopped, job.reason) == (JobState.PAUSED, "min_valid", "too few are valid")
    (waiting,) = ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S)
    assert (waiting.tag, waiting.job_stopped) == ("job1-0", "min_valid")
