"""What the engine and the batch lane decide, as pure functions of what they see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plan_kit import plan_of, shard_of

from nightmill.collect import RowCounts
from nightmill.engine import allowed_failures, end_state
from nightmill.lanes.batch import Action, next_action
from nightmill.ledger import Job
from nightmill.types import JobState, Lane, ShardState

JOB = Job("j", None, JobState.RUNNING, None, None, "f", "m", Lane.BATCH, {}, None, 10, 0, 0, 0, None, False, 0.0, None,
          None, 1)  # fmt: skip


@pytest.mark.parametrize(
    ("on_error", "rows", "allowed"),
    [
        ("stop", 1000, 1),
        ("threshold:7", 1000, 7),
        ("threshold:5%", 1000, 50),
        ("threshold:5%", 1001, 51),
        ("threshold:5%", 3, 1),
        ("threshold:0%", 1000, 1),
    ],
)
def test_how_many_failed_rows_stop_a_job(on_error: str, rows: int, allowed: int) -> None:
    """The first with ``stop``, else a number or a share rounded up, at least one."""
    assert allowed_failures(on_error, rows) == allowed


@pytest.mark.parametrize(
    ("counts", "stopped", "state"),
    [
        (RowCounts(succeeded=10), None, JobState.COMPLETED),
        (RowCounts(succeeded=1, failed=9), None, JobState.COMPLETED),
        (RowCounts(failed=10), None, JobState.FAILED),
        (RowCounts(missing=10), "on_error", JobState.FAILED),
        (RowCounts(succeeded=1, cancelled=9), "on_error", JobState.COMPLETED),
        (RowCounts(succeeded=9, cancelled=1), "cancelled", JobState.CANCELLED),
        (RowCounts(), "cancelled", JobState.CANCELLED),
    ],
)
def test_how_a_job_ends(counts: RowCounts, stopped: str | None, state: JobState) -> None:
    """Cancelled when asked to, failed when no row was answered, else completed."""
    assert end_state(replace(JOB, stopped=stopped), counts) is state


def test_a_job_without_rows_is_complete() -> None:
    """Nothing was asked, and nothing failed."""
    assert end_state(replace(JOB, rows=0), RowCounts()) is JobState.COMPLETED


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize(
    ("state", "action"),
    [
        (ShardState.PLANNED, Action.SUBMIT),
        (ShardState.SUBMITTING, Action.DOUBT),
        (ShardState.IN_DOUBT, Action.LOOK),
        (ShardState.WAITING, Action.POLL),
        (ShardState.COLLECTING, Action.COLLECT),
        (ShardState.SENDING, Action.NOTHING),
        (ShardState.SETTLED, Action.NOTHING),
    ],
)
def test_what_a_claimed_shard_needs(tmp_path: Path, state: ShardState, action: Action, cancelled: bool) -> None:
    """The record alone says it; a cancelled job's shard is not sent, and all else about it goes on."""
    shard = shard_of(plan_of(tmp_path, ["a"])[2].shards[0], state=state, cancel_requested=cancelled)
    expected = Action.NOTHING if cancelled and state is ShardState.PLANNED else action
    assert next_action(shard) is expected
