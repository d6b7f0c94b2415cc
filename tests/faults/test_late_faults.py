"""What comes after its shard had settled: every answer is booked, open rows are filled, nothing is sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, exact, house, truth

from nightmill.errors import Refused, Uncertain
from nightmill.ledger import Job
from nightmill.providers import BatchView
from nightmill.providers.openai import OpenAI

ROWS = 8
NEVER = 1e5  # provider seconds: not before `House.forward`
READINGS = "SELECT path FROM files WHERE kind IN ('output', 'superseded')"
ACCEPTED = {"fault": "create_accepted_then_500", "times": 1}


def held_back(name: str, **parameters: Any) -> dict[str, Any]:
    return {"fault": name, "lag_s": NEVER, **parameters}


def look_again(h: House, job: Job) -> bool:
    return asyncio.run(h.mill.look_again(h.mill.job(job.id)))


def come_back(h: House, job: Job) -> Job:
    """What was held back shows, a person comes back to the job, and it is worked on to its end; nothing is sent."""
    sent = len(h.log("create")), len(h.log("upload"))
    h.forward()
    assert look_again(h, job)
    assert h.mill.job(job.id).state == "running"
    job = h.run(job)
    assert (len(h.log("create")), len(h.log("upload"))) == sent
    return job


def counts(job: Job) -> dict[str, int]:
    return {name: n for name, n in (job.counts or {}).items() if n}


def test_a_batch_that_the_fence_did_not_stop_and_that_lists_late_is_booked(tmp_path: Path) -> None:
    """Its input was read before the fence, it is listed after the shard settled: both batches ran, both are booked."""
    with house(tmp_path, ACCEPTED, held_back("late_listing", times=1)) as h:
        job = h.run(h.submit(ROWS))
        before = h.results(job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.invoice()["executed_rows"] == 2 * ROWS
        assert h.tally(job).spent_nanos < h.invoice()["total_nanos"]
        read = len(h.sql(READINGS))
        job = come_back(h, job)
        truth(h, job)
        exact(h, job)
        assert job.state == "completed"
        assert h.tally(job).extra_answers == ROWS
        assert [row["index"] for row in h.results(job)] == [row["index"] for row in before]
        assert h.alerts(job).count("second_batch") == 1
        assert len(h.sql(READINGS)) == read + 1  # what was booked already is not fetched again
        assert not look_again(h, job)


def test_a_late_file_is_booked_beside_the_answers_that_came_instead(tmp_path: Path) -> None:
    """The output shows after its rows were sent again and answered: both are paid, nothing is unproven any more."""
    with house(tmp_path, held_back("late_output_file", times=1)) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"succeeded": ROWS}
        assert h.tally(job).unproven_nanos > 0
        job = come_back(h, job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.tally(job).extra_answers == ROWS
        assert h.alerts(job) == ["late_answers"]


def test_late_answers_fill_rows_that_were_missing_for_good(tmp_path: Path) -> None:
    """Rows missing twice, then both outputs show: every row is answered, and the job that had failed is completed."""
    with house(tmp_path, held_back("late_output_file")) as h:
        job = h.run(h.submit(ROWS))
        assert (job.state, counts(job)) == ("failed", {"missing": ROWS})
        job = come_back(h, job)
        truth(h, job)
        exact(h, job)
        assert (job.state, counts(job)) == ("completed", {"succeeded": ROWS})
        assert h.tally(job).extra_answers == ROWS
        assert len(h.sql("SELECT path FROM files WHERE kind = 'results'")) == 1


def test_a_late_answer_counts_where_its_row_was_sent_last(tmp_path: Path) -> None:
    """Only the first batch's output shows, and the second never had one: the rows are answered, once each."""
    lost = {"fault": "missing_lines", "fraction": 1.0, "after": 1}
    with house(tmp_path, held_back("late_output_file", times=1), lost) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"missing": ROWS}
        job = come_back(h, job)
        truth(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.tally(job).extra_answers == 0
        first, second = h.shards(job)
        assert sum(s.unproven_nanos for s in first.submissions) == 0
        assert sum(s.unproven_nanos for s in second.submissions) > 0


def test_a_batch_that_was_deleted_there_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch is unknown now, and what it cost stays unproven; what the others have is taken in all the same."""
    poll = OpenAI.poll
    with house(tmp_path, held_back("late_output_file")) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"missing": ROWS}
        first, _ = h.shards(job)

        async def deleted(self: OpenAI, batch_id: str) -> BatchView:
            if batch_id == first.submissions[0].batch_id:
                raise Refused("no such batch", status=404)
            return await poll(self, batch_id)

        monkeypatch.setattr(OpenAI, "poll", deleted)
        job = come_back(h, job)
        assert (job.state, counts(job)) == ("completed", {"succeeded": ROWS})
        first, second = h.shards(job)
        assert first.submissions[0].unproven_nanos > 0
        assert second.submissions[0].unproven_nanos == 0
        assert h.tally(job).spent_nanos >= h.invoice()["total_nanos"]


def test_a_late_error_file_says_why_rows_failed(tmp_path: Path) -> None:
    """Errors that show after the rows counted as missing: nothing is unproven any more, and the reasons are told."""
    late = held_back("late_error_file")
    with house(tmp_path, {"fault": "row_errors", "count": 2, "status": 500}, late) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"succeeded": ROWS - 2, "missing": 2}
        job = come_back(h, job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS - 2, "failed": 2}
        assert h.tally(job).failures == {"server_error": 2}
        assert {row["error_kind"] for row in h.results(job)} == {None, "server_error"}


def test_a_second_batch_of_an_adopted_submission_is_booked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create that something on the way repeated: the first is adopted, the second lists late, both are booked."""
    once = OpenAI.create

    async def twice(self: OpenAI, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        await once(self, file_id, file, url=url, submission=submission)
        await once(self, file_id, file, url=url, submission=submission)
        raise Uncertain("the answer to the second try was lost")

    monkeypatch.setattr(OpenAI, "create", twice)
    with house(tmp_path, held_back("late_listing", after=1)) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"succeeded": ROWS}
        job = come_back(h, job)
        truth(h, job)
        exact(h, job)
        assert h.tally(job).extra_answers == ROWS
        assert [s.n for s in h.shards(job)[0].submissions] == [1, 2]


def test_what_was_written_off_comes_back(tmp_path: Path) -> None:
    """A batch that a person gave up on is listed late: its rows are answered, its cost is proven."""
    no_list = {"fault": "list_page_500"}
    with house(tmp_path, ACCEPTED, no_list, timing={"doubt_alert_s": 0.01}) as h:
        job = h.run(h.submit(ROWS), until=lambda h, job: "in_doubt" in h.alerts(job))
        asyncio.run(h.mill.resolve(h.shards(job)[0]))
        job = h.run(job)
        assert counts(job) == {"missing": ROWS}
        assert h.tally(job).unproven_nanos > 0
        h.faults()
        job = come_back(h, job)
        truth(h, job, fired={"create_accepted_then_500"})
        exact(h, job)
        assert (job.state, counts(job)) == ("completed", {"succeeded": ROWS})


def test_a_late_batch_that_is_refused_whole_sends_nothing(tmp_path: Path) -> None:
    """Written off, listed late, and failed before any row ran: nothing was spent, and nothing goes out again."""
    faults = [ACCEPTED, {"fault": "list_page_500"}, {"fault": "batch_failed_unexplained"}]
    with house(tmp_path, *faults, sim={"validating_s": 60_000.0}, timing={"doubt_alert_s": 0.01}) as h:
        job = h.run(h.submit(ROWS), until=lambda h, job: "in_doubt" in h.alerts(job))
        asyncio.run(h.mill.resolve(h.shards(job)[0]))
        job = h.run(job)
        h.faults()
        assert look_again(h, job)
        (batch,) = h.batches()
        h.post(f"/v1/batches/{batch['id']}/cancel", {})  # ends its validation
        job = h.run(job)
        assert len(h.log("create")) == 1
        assert counts(job) == {"missing": ROWS}
        exact(h, job)


def test_a_cancelled_job_takes_in_what_comes_late(tmp_path: Path) -> None:
    """A batch of a cancelled job, thought absent, had run: its answers are kept and paid; the job stays cancelled."""

    def fenced(h: House, job: Job) -> bool:
        if any(shard.fenced for shard in h.shards(job)):
            h.cancel(job)
        return False

    with house(tmp_path, ACCEPTED, held_back("late_listing", times=1)) as h:
        job = h.run(h.submit(ROWS), until=fenced)
        assert counts(job) == {"cancelled": ROWS}
        job = come_back(h, job)
        truth(h, job)
        exact(h, job)
        assert (job.state, counts(job)) == ("cancelled", {"succeeded": ROWS})


def test_a_job_that_ends_looks_back(tmp_path: Path) -> None:
    """Rows of an early shard come late while a later one is still at the provider: taken in before the job ends."""

    def show(h: House, job: Job) -> bool:
        if len(h.batches()) > 1:
            h.forward()
        return False

    with house(tmp_path, held_back("late_output_file", times=1)) as h:
        job = h.run(h.submit(ROWS), until=show)
        truth(h, job)
        exact(h, job)
        assert h.tally(job).extra_answers == ROWS
        assert h.alerts(job) == ["late_answers"]


def test_a_look_that_finds_nothing_changes_nothing(tmp_path: Path) -> None:
    """Where something may still come and does not, the ledger stays as it was, however often one looks."""
    with house(tmp_path, ACCEPTED, held_back("late_listing", times=1), held_back("late_output_file", after=1)) as h:
        job = h.run(h.submit(ROWS))
        before = [h.sql(f"SELECT * FROM {table}") for table in ("jobs", "shards", "submissions", "limits", "entries")]
        assert not look_again(h, job)
        assert not look_again(h, job)
        after = [h.sql(f"SELECT * FROM {table}") for table in ("jobs", "shards", "submissions", "limits", "entries")]
        assert before == after


def test_only_one_of_two_that_look_takes_it_in(tmp_path: Path) -> None:
    """Two commands that find the same late batch at once: it is booked once."""
    with house(tmp_path, ACCEPTED, held_back("late_listing", times=1)) as h:
        job = h.run(h.submit(ROWS))
        h.forward()

        async def both() -> list[bool]:
            return list(await asyncio.gather(h.mill.look_again(job), h.mill.look_again(job)))

        assert sorted(asyncio.run(both())) == [False, True]
        job = h.run(job)
        truth(h, job)
        exact(h, job)


def test_a_retry_between_an_answer_and_its_coming(tmp_path: Path) -> None:
    """Rows that a retry answered meanwhile stay answered once; the late answers are paid and stand beside."""
    with house(tmp_path, held_back("late_output_file", times=2)) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"missing": ROWS}
        assert h.mill.retry(job) == ROWS
        job = h.run(job)
        assert counts(job) == {"succeeded": ROWS}
        job = come_back(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.mill.standing(job).extra_answers == 2 * ROWS
        h.again()
        job = h.mill.job(job.id)
        assert sum(row["success"] for row in h.results(job)) == ROWS


LOST = {"fault": "missing_lines", "fraction": 1.0, "after": 1}


@pytest.mark.parametrize(
    "faults",
    [(held_back("late_output_file", times=1), LOST), (ACCEPTED, held_back("late_listing", times=1), LOST)],
    ids=["file", "batch"],
)
def test_a_late_file_that_is_cut_is_read_again(tmp_path: Path, faults: tuple[dict[str, Any], ...]) -> None:
    """The download of what came late ends inside its last line: it is read once more, and no paid answer is lost."""
    with house(tmp_path, *faults) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"missing": ROWS}
        h.faults({"fault": "truncated_last_line", "times": 1})
        job = come_back(h, job)
        assert h.fired() == {"truncated_last_line": 1}
        truth(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.shards(job)[0].submissions[0].unproven_nanos == 0


def test_totals_that_were_taken_back_are_no_news(tmp_path: Path) -> None:
    """A cancelled batch says that fewer rows ran than it said before, and its file is late: the job stays ended."""

    def ran(h: House, job: Job) -> bool:
        if any(sub.completed for shard in h.shards(job) for sub in shard.submissions):
            h.cancel(job)
        return False

    faults = ({"fault": "cancel_reverting_counts"}, held_back("late_error_file"))
    with house(tmp_path, *faults, sim={"batch_s": 4000.0}) as h:
        job = h.run(h.submit(ROWS), until=ran)
        assert counts(job) == {"missing": ROWS}
        assert h.tally(job).unproven_nanos > 0
        assert not look_again(h, job)
        assert h.mill.job(job.id).state == "cancelled"
        job = come_back(h, job)
        exact(h, job)
        assert counts(job) == {"cancelled": ROWS}
