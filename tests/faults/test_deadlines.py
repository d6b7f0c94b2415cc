"""A deadline, where the provider is slow to let go of a batch, or somebody changes their mind on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults_kit import MODEL, House, house

from nightmill.ledger import Job
from nightmill.ledger.schema import TAKEN_BACK
from nightmill.mill import RunOptions
from nightmill.types import Lane, ShardState

pytestmark = pytest.mark.req("X3")

ROWS = 6
STUCK = {"batch_s": 1e6}  # a quarter of an hour of ours
QUICK = {"cancel_s": 0.5, "collect_s": 0.1}  # with 1.8 s for six live calls, a cancel 2.4 s before the deadline


def asked(h: House, job: Job) -> bool:
    """Whether a cancel is on its way."""
    return any(sub.cancel_asked for shard in h.shards(job) for sub in shard.submissions)


def answered_once(h: House, job: Job) -> None:
    """Every row has its answer, none ran twice, and what was booked is what is billed."""
    bill, tally = h.invoice(), h.tally(job)
    assert [row["success"] for row in h.results(job)] == [True] * job.rows
    assert (bill["executed_rows"], bill["executed_more_than_once"]) == (job.rows, 0)
    assert (tally.spent_nanos, tally.unproven_nanos, tally.held_nanos) == (bill["total_nanos"], 0, 0)


def test_a_batch_that_does_not_let_go_in_time_makes_rows_late_and_never_paid_twice(tmp_path: Path) -> None:
    """Nothing of it runs live before it has ended; that is told, once, and every row is answered in the end."""
    with house(tmp_path, sim=STUCK | {"cancel_s": 4000.0}, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="4s"))
        answered_once(h, job)
        assert h.alerts(job) == ["deadline"]
        assert job.deadline is not None
        assert job.finished_at is not None
        assert job.finished_at > job.deadline
        assert (h.tally(job).rescued, h.invoice()["live_calls"]) == (ROWS, ROWS)


def test_a_cancel_for_the_deadline_that_is_not_heard_is_asked_again(tmp_path: Path) -> None:
    """A provider that fails to cancel delays the rescue by a poll, not for good."""
    silent = {"fault": "non_json_bodies", "on": ["cancel"], "status": 502, "times": 2}
    with house(tmp_path, silent, sim=STUCK, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="4s"))
        answered_once(h, job)
        assert h.alerts(job) == []
        assert job.deadline is not None
        assert job.finished_at is not None
        assert job.finished_at <= job.deadline


@pytest.mark.parametrize(
    "until", [asked, lambda h, job: bool(h.log("create"))], ids=["while it is taken back", "before"]
)
def test_a_job_cancelled_by_its_user_is_not_finished_live(tmp_path: Path, until: Callable[[House, Job], bool]) -> None:
    """Whoever cancels wants no more answers, whatever the deadline was."""
    with house(tmp_path, sim=STUCK, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="4s"), until=until)
        h.cancel(job)
        job = h.run(job)
        assert (job.state, h.invoice()["live_calls"]) == ("cancelled", 0)
        assert h.tally(job).spent_nanos == h.invoice()["total_nanos"]


def test_whoever_comes_back_after_the_deadline_finishes_live_what_is_left(tmp_path: Path) -> None:
    """Nobody was there in time: the batch is taken back at once, and the rest is answered as soon as can be."""
    with house(tmp_path, sim=STUCK, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="4s"), until=lambda h, job: bool(h.batches()))
        h.again()
        h.sql("UPDATE jobs SET spec = json_set(spec, '$.deadline', 1.0)")
        job = h.run(job)
        answered_once(h, job)
        assert h.tally(job).rescued == ROWS


def test_what_is_cancelled_because_of_its_answers_does_not_go_live_for_that(tmp_path: Path) -> None:
    """There is time enough: when the job goes on its rows go into a batch again, at the price of batches."""
    with house(tmp_path, sim=STUCK, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="1h"), until=lambda h, job: bool(h.batches()))
        assert h.mill.ledger.stop_for_answers(job.id, "answers are too bad")
        h.run(job)
        assert [batch["status"] for batch in h.batches()] == ["cancelled"]
        assert [(s.lane, s.count) for s in h.shards(job) if s.state is ShardState.PLANNED] == [(Lane.BATCH, ROWS)]


def test_nor_where_the_job_goes_on_before_that_cancel_has_come_through(tmp_path: Path) -> None:
    """Why a batch was cancelled is known when it ends, whatever its job does by then."""
    with house(tmp_path, sim=STUCK | {"cancel_s": 1500.0}, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="1h"), until=lambda h, job: bool(h.batches()))
        assert h.mill.ledger.stop_for_answers(job.id, "answers are too bad")
        job = h.run(job, until=asked)
        h.mill.resume(job)
        h.run(job, until=lambda h, job: len(h.log("create")) == 2 or h.invoice()["live_calls"] > 0)
        first, *_ = h.batches()
        assert (first["status"], h.invoice()["live_calls"]) == ("cancelled", 0)


def test_batches_are_taken_back_one_after_the_other_and_the_last_may_stay(tmp_path: Path) -> None:
    """While live calls have rows to do the other batches are waited for: one that ends by then costs half."""
    # live calls are reckoned at 4 rows a second: the first cancel is due 5.1 s before the deadline, the third 2.1 s
    with house(tmp_path, {"fault": "null_counts"}, sim={"batch_s": 4500.0}, timing=QUICK) as h:
        job = h.run(h.submit(15, by="8s", batch_size=5))
        answered_once(h, job)
        statuses = sorted(batch["status"] for batch in h.batches())
        assert statuses in (["cancelled", "cancelled", "completed"], ["cancelled", "completed", "completed"])
        assert 0 < h.tally(job).rescued < 15


def past_its_deadline(h: House, completed: int = 0) -> Job:
    """A job whose batch is known to have answered so many rows, and whose deadline has passed since."""
    seen = f"SELECT n FROM submissions WHERE completed >= {completed}"
    job = h.run(h.submit(ROWS, by="1h"), until=lambda h, job: bool(h.sql(seen)))
    h.again()
    h.sql("UPDATE jobs SET spec = json_set(spec, '$.deadline', 1.0)")
    return job


def told(h: House, job: Job) -> bool:
    """Whether a person was told that the deadline is not kept."""
    return h.alerts(job) == ["deadline"]


def test_a_batch_that_has_answered_every_row_is_waited_for(tmp_path: Path) -> None:
    """It does not end, and cancelling it might lose answers: that is told, once; a person may still cancel it."""
    with house(tmp_path, {"fault": "never_finishes"}, timing=QUICK) as h:
        job = past_its_deadline(h, completed=ROWS)
        h.run(job, until=told)
        assert h.log("cancel") == []
        h.again()
        h.cancel(job)
        job = h.run(job)
        answered_once(h, job)
        assert told(h, job)


def test_a_cancel_that_was_noted_and_not_made_is_made_by_whoever_comes_next(tmp_path: Path) -> None:
    """Killed between deciding and asking: the ledger says that the batch is taken back, and it is."""
    with house(tmp_path, sim=STUCK, timing=QUICK) as h:
        job = past_its_deadline(h)
        h.sql(f"UPDATE submissions SET cancel_asked = {TAKEN_BACK}")
        job = h.run(job)
        answered_once(h, job)
        assert (len(h.log("cancel")), h.tally(job).rescued) == (1, ROWS)


@pytest.mark.parametrize(("lane", "planned"), [("auto", "live"), ("batch", "batch")])
def test_the_lane_of_the_settings_is_one_that_was_asked_for(tmp_path: Path, lane: str, planned: str) -> None:
    """Rows without time for a batch are planned live, at twice the price, only where nobody named another lane."""
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"word {i}\n" for i in range(15)))
    with house(tmp_path, timing=QUICK, settings=f'[defaults]\nlane = "{lane}"\n') as h:
        options = RunOptions((str(tmp_path / "in.csv"),), prompt="Say it: {{ text }}", model=MODEL, by="3s")
        assert h.mill.prepare(options).lane == planned


def test_the_hold_of_a_batch_is_what_running_it_live_may_cost(tmp_path: Path) -> None:
    """The money for the rescue is there from the beginning: what the quote said is at most what is held."""
    with house(tmp_path, sim=STUCK, timing=QUICK) as h:
        plain = h.submit(ROWS)
        job = h.submit(ROWS, by="1h", new=True)
        assert plain.quote is not None
        assert job.quote is not None
        assert job.quote.expected_nanos == plain.quote.expected_nanos
        h.run(job, until=lambda h, job: bool(h.batches()))
        assert h.tally(job).held_nanos == job.quote.at_most_nanos
        assert job.quote.at_most_nanos == pytest.approx(2 * plain.quote.at_most_nanos, rel=1e-3)


def test_a_retry_has_no_deadline(tmp_path: Path) -> None:
    """What is tried again later is in no hurry any more: it goes out at half price."""
    refused = {"fault": "row_errors", "count": 1, "status": 400, "times": 1}
    with house(tmp_path, refused, timing=QUICK) as h:
        job = h.run(h.submit(ROWS, by="1h"))
        again = h.mill.retry(job)
        assert again
        job = h.run(job)
        assert (job.deadline, h.tally(job).counts.succeeded, h.invoice()["live_calls"]) == (None, ROWS, 0)
