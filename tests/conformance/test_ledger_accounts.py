"""Batches that were made elsewhere, and what a provider's own totals prove: booked once, never refused, never twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from ledger_kit import (
    ROWS,
    SCOPES,
    Backend,
    a_file,
    bring,
    check_money,
    claim,
    done,
    everything,
    money,
    new_shard,
    publish,
)

from nightmill.errors import Conflict
from nightmill.ledger import ForeignBatch, KnownBatch, Ledger, Saved, StoredFile
from nightmill.types import JobState, Lane, Quote, ShardState

BATCH = ForeignBatch("b7", "provider|acc", "m", "in_progress", 900.0)


@pytest.fixture
def other(backend: Backend) -> Iterator[Ledger]:
    """Another worker."""
    opened = backend.open()
    yield opened
    opened.close()


def adopt(ledger: Ledger, job_id: str = "job1", *, name: str | None = None, nanos: int = 100) -> str | None:
    return ledger.adopt_batch(
        job_id, BATCH, new_shard(f"{job_id}-0"), model="provider/m", name=name, fingerprint=f"adopted:{BATCH.id}",
        task_digest="t", spec={"adopted": BATCH.id}, quote=Quote(Lane.BATCH, ROWS, 1, 1, 1, 1, 1, 1, "tests"),
        files=[StoredFile(a_file(f"rows/{job_id}"), "rows")], price="{}", hold_nanos=nanos, scopes=SCOPES,
    )  # fmt: skip


def planned(ledger: Ledger, job_id: str = "job1") -> None:
    ledger.begin_plan(job_id, model="provider/m", lane=Lane.BATCH)


def known(ledger: Ledger, batch_id: str = "b7") -> KnownBatch:
    return ledger.known_batches("provider")[batch_id]


def settled(ledger: Ledger, *, spent: int = 60, unproven: int = 20) -> KnownBatch:
    """An adopted batch whose answers cost 40 nanos, and 20 more that nobody can prove."""
    planned(ledger)
    adopt(ledger)
    ledger.note_polled(claim(ledger), [(1, {"ended": 1})], due_in_s=0.0, done=True)
    shard = claim(ledger)
    ledger.settle(shard, done(shard, spent, unproven=unproven))
    return known(ledger)


def test_an_adopted_batch_is_a_running_job_that_waits(ledger: Ledger) -> None:
    """It can be claimed at once, is never planned, and what it may cost is held, also past every limit."""
    ledger.set_budget("total", 10, running_scopes=SCOPES)
    planned(ledger)
    assert adopt(ledger) is None
    job = ledger.find_job("job1")
    assert (job.state, job.rows, job.model, job.spec) == (JobState.RUNNING, ROWS, "provider/m", {"adopted": "b7"})
    assert money(ledger) == (0, 100)
    check_money(ledger)
    shard = claim(ledger)
    assert (shard.state, shard.current.batch_id, shard.current.intent_at) == (ShardState.WAITING, "b7", 900.0)
    assert known(ledger).hold_nanos == 100
    assert ledger.known_batches("prov") == {}


def test_a_batch_is_adopted_once(ledger: Ledger, other: Ledger) -> None:
    """Whoever comes second is told whose it is, and nothing of the second stays in the books."""
    planned(ledger)
    planned(other, "job2")
    assert adopt(ledger) is None
    before = everything(ledger)
    assert adopt(other, "job2") == "job1-0.1"
    assert everything(ledger) == before


def test_a_plan_that_is_gone_adopts_nothing(ledger: Ledger) -> None:
    """No plan, no job: nothing is written; nor where an unfinished job has the name."""
    before = everything(ledger)
    with pytest.raises(Conflict):
        adopt(ledger)
    assert everything(ledger) == before
    publish(ledger, "job9", name="mine")
    planned(ledger)
    before = everything(ledger)
    with pytest.raises(Conflict, match="mine"):
        adopt(ledger, name="mine")
    assert everything(ledger) == before


@pytest.mark.parametrize("spent", [40, 55, 90])
def test_what_the_provider_proves_is_booked_in_place_of_doubt(ledger: Ledger, spent: int) -> None:
    """Less, as much, or more than was booked: spent is that, nothing is unproven, the trail says why."""
    batch = settled(ledger)
    assert (batch.proven_nanos, batch.unproven_nanos, batch.booked) == (40, 20, True)
    assert ledger.prove(batch, spent, note="totals")
    now = known(ledger)
    assert (now.spent_nanos, now.unproven_nanos) == (spent, 0)
    assert money(ledger) == (spent, 0)
    assert ledger.tally("job1").spent_nanos == spent
    assert ledger.calls() == ROWS
    check_money(ledger)


def test_books_that_changed_since_are_left_alone(ledger: Ledger, other: Ledger) -> None:
    """Two who reconcile at once book once; an open shard is not touched; answers are never taken back."""
    batch = settled(ledger)
    assert other.prove(batch, 45, note="totals")
    before = everything(ledger)
    assert not ledger.prove(batch, 50, note="totals")
    with pytest.raises(ValueError, match="answers cost"):
        ledger.prove(batch, 39, note="totals")
    assert everything(ledger) == before
    publish(ledger, "job2")
    shard = bring(ledger, ShardState.WAITING)
    assert not ledger.prove(replace(batch, tag=shard.tag, spent_nanos=0, unproven_nanos=0), 5, note="totals")


def test_a_job_is_handed_over_when_nothing_of_it_can_go_out(ledger: Ledger) -> None:
    """Not while a shard is due or on its way; but with one waiting there, and with one that waits for its time."""
    publish(ledger, shards=2)
    assert not ledger.is_handed_over("job1")
    first = bring(ledger, ShardState.SUBMITTING)
    second = claim(ledger)
    ledger.release(second, due_in_s=60.0)
    assert not ledger.is_handed_over("job1")
    ledger.note_created(first, 1, "b1", status="validating", due_in_s=60.0)
    assert ledger.is_handed_over("job1")
    ledger.resume("job1")
    ledger.request_cancel("job1")
    assert ledger.is_handed_over("job1")
    ledger.drop_planned("job1")
    assert ledger.is_handed_over("job1")


def test_savings_are_told_by_lane_and_kind(ledger: Ledger) -> None:
    """List prices of batches, of the cache and of what was folded; paid is what was proven, the rest stands beside."""
    batch = settled(ledger)
    assert ledger.saved("job1")["job1"] == Saved(batch_paid_nanos=batch.proven_nanos, unproven_nanos=20)
    ledger.begin_plan("job2", model="provider/m", lane=Lane.BATCH)
    cached = new_shard("job2-0", lane=Lane.CACHE)
    ledger.publish_plan(
        "job2", name=None, fingerprint="f2", task_digest="t", spec={}, rows=ROWS, duplicates=0, cached=ROWS,
        quote=Quote(Lane.BATCH, ROWS, 1, 1, 1, 1, 1, 1, "tests"), shards=[cached], files=[],
    )  # fmt: skip
    (shard,) = ledger.claim_due(lane=Lane.CACHE, limit=1, lease_s=60.0)
    ledger.settle(shard, done(shard, list_nanos=70))
    ripe = ledger.claim_finish("job2", 60.0)
    assert ripe is not None
    ledger.finish(ripe, JobState.COMPLETED, counts={"succeeded": ROWS, "folded_list_nanos": 9}, results=[])
    assert ledger.tally("job2").list_nanos == 0
    both = ledger.saved()
    assert list(both) == ["job2", "job1"]
    assert both["job2"] == Saved(cache_nanos=70, duplicates_nanos=9)
    total = both["job1"].plus(both["job2"])
    assert (total.real_time_nanos, total.paid_nanos, total.saved_nanos) == (79, 60, 19)
    assert total.saved_nanos == total.batch_nanos + total.cache_nanos + total.duplicates_nanos - total.unproven_nanos
