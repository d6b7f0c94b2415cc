"""Deleting and forgetting: what goes is nobody's, what stays adds up."""

from __future__ import annotations

import pytest
from ledger_kit import bring, check_money, done, everything, money, publish

from nightmill.errors import Conflict
from nightmill.ledger import Job, Ledger, StoredFile
from nightmill.types import FileRef, JobState, Lane, ShardState


def _finished(ledger: Ledger, job_id: str = "job1", spent: int = 40) -> Job:
    publish(ledger, job_id)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, spent))
    job = ledger.claim_finish(job_id, 60.0)
    assert job is not None
    results = [StoredFile(FileRef(f"jobs/{job_id}/results/0.1.parquet", 1, "d"), "results")]
    assert ledger.finish(job, JobState.COMPLETED, counts={"succeeded": 10}, results=results)
    return ledger.find_job(job_id)


@pytest.mark.req("X12")
def test_a_deleted_job_leaves_its_money(ledger: Ledger) -> None:
    """Deleted, a job is found no more; limits, submissions and the audit trail still tell of the same money."""
    job = _finished(ledger)
    before, calls = money(ledger), ledger.calls()
    assert ledger.delete_job(job)
    with pytest.raises(Conflict):
        ledger.find_job("job1")
    assert ledger.shards_of("job1") == []
    assert ledger.named_files("job1") == set()
    assert ledger.known_jobs() == set()
    assert [gone.job_id for gone in ledger.deletions()] == ["job1"]
    assert (money(ledger), ledger.calls()) == (before, calls) == ((40, 0), 10)
    check_money(ledger)


@pytest.mark.parametrize("state", [ShardState.PLANNED, ShardState.WAITING, ShardState.COLLECTING])
def test_an_unfinished_job_is_not_deleted(ledger: Ledger, state: ShardState) -> None:
    """What may still cost money or bring answers stays, whatever its shards do; and nothing of it is forgotten."""
    publish(ledger)
    bring(ledger, state)
    job, before = ledger.find_job("job1"), everything(ledger)
    assert not ledger.delete_job(job)
    assert ledger.forget_wire(job) == []
    assert everything(ledger) == before


def test_a_job_that_goes_on_again_is_not_deleted(ledger: Ledger) -> None:
    """Read while it was finished, retried by another since: it stays."""
    job = _finished(ledger)
    ledger.extend(job, [], [])
    before = everything(ledger)
    assert not ledger.delete_job(job)
    assert ledger.forget_wire(job) == []
    assert everything(ledger) == before


def test_forgotten_answers_are_not_gone_on_with(ledger: Ledger) -> None:
    """What came back is named no more, results are; a retry that was prepared before that comes too late."""
    job = _finished(ledger)
    wire = [StoredFile(FileRef(f"jobs/job1/wire/{kind}", 1, "d"), kind, "job1-0", 1) for kind in ("output", "error")]
    ledger.extend(job, [], wire)
    claimed = ledger.claim_finish("job1", 60.0)
    assert claimed is not None
    ledger.finish(claimed, JobState.COMPLETED, counts={}, results=[])
    job = ledger.find_job("job1")
    assert sorted(ledger.forget_wire(job)) == ["jobs/job1/wire/error", "jobs/job1/wire/output"]
    assert "jobs/job1/results/0.1.parquet" in ledger.named_files("job1")
    assert ledger.find_job("job1").spec["wire"] == "removed"
    with pytest.raises(Conflict):
        ledger.extend(job, [], [])


def test_files_at_the_provider_are_noted_until_they_are_gone(ledger: Ledger) -> None:
    """Of a finished job the provider's files are known, until they are noted as gone."""
    publish(ledger)
    shard = bring(ledger, ShardState.SUBMITTING)
    ledger.note_upload(shard, 1, "file-1", at=1.0)
    ledger.note_created(shard, 1, "batch-1", status="running", due_in_s=0.0)
    assert ledger.jobs_with_provider_files() == []
    (shard,) = ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=60.0)
    ledger.note_polled(shard, [(1, {"ended": 1, "output_file": "file-2"})], due_in_s=0.0, done=True)
    (shard,) = ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=60.0)
    ledger.settle(shard, done(shard))
    job = ledger.claim_finish("job1", 60.0)
    assert job is not None
    ledger.finish(job, JobState.COMPLETED, counts={}, results=[])
    assert ledger.jobs_with_provider_files() == ["job1"]
    ledger.note_files_gone("job1-0", 1)
    assert ledger.jobs_with_provider_files() == []
    (sub,) = ledger.shards_of("job1")[0].submissions
    assert (sub.file_id, sub.output_file, sub.batch_id) == (None, None, "batch-1")
