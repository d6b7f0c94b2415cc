"""Faults that meet: whatever goes wrong together, the general promises hold."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults_kit import SCHEMA, House, house, truth
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nightmill.errors import ProviderError
from nightmill.ledger import Job
from nightmill.types import ShardState

some = st.floats(0.1, 1.0).map(lambda x: round(x, 2))
once = st.just(1)
few = st.integers(1, 3)
NOT_BEFORE_THE_END = st.just(100_000)
STATUS = st.sampled_from([500, 503, 429, 400, 408, 0])

# What each fault may be asked for. Those that would keep a job from ever ending come a few times only.
BATCH: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "late_listing": {"lag_s": st.one_of(st.integers(5, 50), NOT_BEFORE_THE_END), "times": few},
    "missing_lines": {"fraction": some, "times": few},
    "duplicate_lines": {"fraction": some, "differ": st.booleans()},
    "unknown_lines": {"count": st.integers(1, 3)},
    "late_output_file": {"lag_s": st.one_of(st.integers(5, 25), NOT_BEFORE_THE_END), "times": few},
    "late_error_file": {"lag_s": st.one_of(st.integers(5, 25), NOT_BEFORE_THE_END)},
    "empty_file_ids": {},
    "absent_file_ids": {},
    "shuffled_rows": {},
    "enqueued_limit_later": {"times": few, "limit": st.sampled_from([60, 5_000_000])},
    "expire_at": {"fraction": st.floats(0.0, 0.9).map(lambda x: round(x, 2)), "times": few},
    "cancel_reverting_counts": {},
    "row_errors": {"fraction": some, "status": STATUS, "times": few},
    "null_counts": {},
    "status_unknown_word": {},
    "batch_failed_unexplained": {"times": few},
    "batch_failed_line": {"line": st.integers(1, 9), "times": few},
    "create_accepted_then_500": {"times": few},
    "create_repeated": {"times": few},
    "create_dropped_before": {"times": few},
    "create_500_before": {"times": few},
    "enqueued_limit_now": {"times": few, "limit": st.sampled_from([60, 5_000_000])},
    "non_json_bodies": {
        "times": few,
        "status": st.sampled_from([200, 502]),
        "commit": st.booleans(),
        "on": st.sampled_from([["create"], ["poll"], ["list"], ["content"], ["upload"], ["cancel"]]),
    },
    "short_body": {"times": few},
    "truncated_last_line": {"times": few},
    "retention_404": {"times": few},
    "list_page_500": {"times": few},
    "list_page_cut": {"times": few},
    "upload_500": {"times": few},
    "poll_500": {"times": few},
    "poll_404_once": {"times": few},
}
ANSWERS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "pretty_printed_bodies": {},
    "usage_missing": {"fraction": some},
    "empty_answers": {"fraction": some},
    "truncated_answers": {"fraction": some},
    "invalid_json_answers": {"fraction": some},
    "wrong_schema_answers": {"fraction": some},
    "refusal_answers": {"fraction": some},
    "model_snapshot_changes": {"fraction": some},
}
LIVE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "live_429": {"count": st.integers(1, 8), "retry_after_ms": st.integers(0, 4)},
    "live_500": {"fraction": some, "times": st.integers(1, 12), "status": st.sampled_from([500, 503, 408])},
    "live_timeout": {"times": once, "delay_s": st.just(30)},
    "live_close_before": {"times": few},
    "non_json_bodies": {"times": few, "status": st.sampled_from([200, 502]), "commit": st.booleans()},
    "short_body": {"times": few, "on": st.just(["live"])},
}


@dataclass(frozen=True)
class Story:
    """One job with its troubles."""

    lane: str
    faults: list[dict[str, Any]]
    rows: int
    batch_size: int | None
    schema: bool
    cancelled: bool


@st.composite
def stories(draw: st.DrawFn) -> Story:
    lane = draw(st.sampled_from(["batch", "batch", "batch", "live"]))
    known = {**(BATCH if lane == "batch" else LIVE), **ANSWERS}
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=2, max_size=3, unique=True))
    faults = [{"fault": name, **{key: draw(value) for key, value in known[name].items()}} for name in names]
    batch_size = draw(st.sampled_from([None, None, 4]))
    return Story(lane, faults, draw(st.integers(1, 9)), batch_size, draw(st.booleans()), draw(st.integers(0, 5)) == 0)


def _is_under_way(h: House, job: Job) -> bool:
    return any(shard.state in (ShardState.WAITING, ShardState.SENDING) for shard in h.shards(job))


def came_late(h: House, job: Job) -> bool:
    """Whether something did; faults that keep one from looking come a few times only."""
    for _ in range(12):
        with contextlib.suppress(ProviderError):
            return asyncio.run(h.mill.look_again(job))
    raise AssertionError("no look is answered")


def live_through(story: Story) -> None:
    """Run the job to its end, through pauses and a cancel, and judge it."""
    options: dict[str, Any] = {"batch_size": story.batch_size, "on_error": "continue"}
    if story.schema:
        options["schema"] = SCHEMA
    timing = {"request_timeout_s": 1.0} if story.lane == "live" else {}
    with tempfile.TemporaryDirectory() as folder, house(Path(folder), *story.faults, timing=timing) as h:
        job = h.submit(story.rows, story.lane, **options)
        if story.cancelled:
            h.run(job, until=_is_under_way)
            h.cancel(job)
        job = h.run(job)
        fired = {name for name, n in h.fired().items() if n}
        while job.state == "paused":
            assert job.reason
            truth(h, job, settled=False, fired=fired)
            h.mill.resume(job)
            job = h.run(job)
        h.forward()
        if came_late(h, job):
            job = h.run(job)
        truth(h, job, fired=fired | {name for name, n in h.fired().items() if n})
        assert job.state == ("cancelled" if story.cancelled and job.cancel_requested else job.state)
        assert job.state in ("completed", "failed", "cancelled")


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


# A line that is lost does not come twice: nobody could tell what it cost.
LOST_AND_TWICE = Story(
    "batch",
    [{"fault": "duplicate_lines", "differ": True}, {"fault": "missing_lines", "times": 1}],
    2,
    None,
    False,
    True,
)


@example(LOST_AND_TWICE)
@settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
@given(stories())
def test_faults_that_meet(story: Story) -> None:
    """Two or three faults at once: accounting, money, answers and the rules of sending again all hold."""
    live_through(story)


@pytest.mark.crash_full
@pytest.mark.timeout(3600)
@settings(max_examples=400, deadline=None, database=None, suppress_health_check=QUIET)
@given(stories())
def test_many_faults_that_meet(story: Story) -> None:
    """The same over many more mixtures, other ones in every run."""
    live_through(story)
