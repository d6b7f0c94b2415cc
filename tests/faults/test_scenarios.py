"""Cancels, budgets, splits, doubts and clocks: what happens over a job's whole life."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, exact, house, truth

from nightmill.errors import Conflict, StoreError
from nightmill.ledger import Job, Ledger, Submission
from nightmill.providers import BatchProvider, BatchView
from nightmill.simulator import faults as simulator_faults
from nightmill.types import ShardState

ROWS = 8


def fault(name: str, **params: Any) -> dict[str, Any]:
    return {"fault": name, **params}


def counts(job: Job) -> dict[str, int]:
    """The row counts that are not zero."""
    assert job.counts is not None
    return {name: n for name, n in job.counts.items() if n}


def in_state(state: ShardState) -> Callable[[House, Job], bool]:
    return lambda h, job: any(shard.state is state for shard in h.shards(job))


def test_every_fault_has_a_test() -> None:
    """A fault that the simulator learns is one that the code of some test asks for by name."""
    here = Path(__file__).parent
    files = [
        *here.glob("test_*_faults.py"),
        Path(__file__),
        *(here.parent / "acceptance" / f"test_cli_{name}.py" for name in ("resolve", "keys")),
        here.parent / "acceptance/test_partial_batches.py",
        here.parent / "crash/scenarios.py",
    ]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    named = {node.value for node in nodes if isinstance(node, ast.Constant)}  # in comments there are none
    assert [name for name in simulator_faults.KNOWN if name not in named] == []


# -- cancelling ------------------------------------------------------------------------------------


def test_a_job_cancelled_before_it_was_sent_costs_nothing(tmp_path: Path) -> None:
    """Cancelled while planned: every row is cancelled, nobody was asked anything."""
    with house(tmp_path) as h:
        job = h.submit(ROWS)
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        assert job.state == "cancelled"
        assert counts(job) == {"cancelled": ROWS}
        assert h.log("create") == []
        assert h.log("upload") == []


@pytest.mark.parametrize("reverting", [False, True])
def test_a_job_cancelled_while_waiting_keeps_what_was_done(tmp_path: Path, reverting: bool) -> None:
    """Cancelled while the batch runs: answers so far are kept and paid, the rest is cancelled."""
    faults = [fault("cancel_reverting_counts")] if reverting else []
    rows = 80  # many, and slow: the first is done long before the last
    with house(tmp_path, *faults, sim={"batch_s": 16_000.0}) as h:
        job = h.submit(rows)
        job = h.run(job, until=lambda h, job: any(b["request_counts"]["completed"] for b in h.batches()))
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "cancelled"
        assert sum(counts(job).values()) == rows
        assert h.invoice()["executed_rows"] == counts(job).get("succeeded", 0)
        assert reverting or counts(job)["succeeded"] > 0
        assert [b["status"] for b in h.batches()] == ["cancelled"]
        assert len(h.log("cancel")) == 1


def test_a_job_cancelled_while_collecting_keeps_every_answer(tmp_path: Path) -> None:
    """Cancelled when the batch has ended already: all its answers are paid for and kept."""
    with house(tmp_path) as h:
        job = h.run(h.submit(ROWS), until=in_state(ShardState.COLLECTING))
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "cancelled"
        assert counts(job) == {"succeeded": ROWS}


def test_a_job_cancelled_in_doubt_finds_its_batch_first(tmp_path: Path) -> None:
    """Cancelled while a create is in doubt: the batch is found, cancelled and booked."""
    late = fault("late_listing", lag_s=200, times=1)
    sim, timing = {"batch_s": 100_000.0}, {"looks_s": [0.0, 0.3, 0.6]}
    with house(tmp_path, fault("create_accepted_then_500"), late, sim=sim, timing=timing) as h:
        job = h.run(h.submit(ROWS), until=in_state(ShardState.IN_DOUBT))
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "cancelled"
        assert counts(job) == {"cancelled": ROWS}
        assert [b["status"] for b in h.batches()] == ["cancelled"]


def test_a_job_cancelled_after_its_batch_seemed_absent_looks_once_more(tmp_path: Path) -> None:
    """Cancelled while planned again: a batch that turned up meanwhile is cancelled, collected and booked."""

    def fenced(h: House, job: Job) -> bool:
        if any(shard.fenced for shard in h.shards(job)):
            h.cancel(job)  # before the look that decides
        return any(shard.state is ShardState.PLANNED and shard.submissions for shard in h.shards(job))

    late = fault("late_listing", lag_s=9_000, times=1)  # nine real seconds, for a busy machine
    sim = {"batch_s": 60_000.0, "validating_s": 1.0}
    with house(tmp_path, fault("create_accepted_then_500"), late, sim=sim) as h:
        job = h.run(h.submit(ROWS), until=fenced)
        assert [sub.state for shard in h.shards(job) for sub in shard.submissions] == ["absent"]
        h.forward(9_000)
        assert h.get("/v1/batches")["data"]
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "cancelled"
        assert [b["status"] for b in h.batches()] == ["cancelled"]
        assert h.alerts(job).count("second_batch") == 1


def test_a_cancel_that_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    """A batch that ended while its cancel was on its way is collected whole."""
    with house(tmp_path, timing={"poll_s": 0.3, "poll_max_s": 0.3}) as h:
        job = h.run(h.submit(ROWS), until=in_state(ShardState.WAITING))
        while not all(b["status"] == "completed" for b in h.batches()):
            time.sleep(0.02)
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert [e["status"] for e in h.log("cancel")] == [409]


def test_a_cancel_that_is_not_heard_is_asked_again(tmp_path: Path) -> None:
    """A provider that fails to cancel is polled all the same, and asked again."""
    silent = fault("non_json_bodies", on=["cancel"], status=502, times=2)
    with house(tmp_path, silent, fault("never_finishes")) as h:
        job = h.run(h.submit(ROWS), until=in_state(ShardState.WAITING))
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "cancelled"
        assert [b["status"] for b in h.batches()] == ["cancelled"]


def test_a_live_job_cancelled_under_way_keeps_its_answers(tmp_path: Path) -> None:
    """A live job that is cancelled between two shards: answers so far are kept, the rest is cancelled."""
    with house(tmp_path) as h:
        job = h.submit(ROWS, "live", batch_size=2, concurrency=1)
        job = h.run(job, until=in_state(ShardState.SETTLED))
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "cancelled"
        assert counts(job)["succeeded"] == h.invoice()["executed_rows"] > 0
        assert counts(job)["succeeded"] + counts(job).get("cancelled", 0) == ROWS


# -- stopping on errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(("on_error", "stops"), [("stop", True), ("threshold:2", True), ("threshold:3", False)])
def test_too_many_failures_stop_the_job(tmp_path: Path, on_error: str, stops: bool) -> None:
    """With --on-error the job ends when so many rows have failed for good; what was paid for is kept."""
    refused = fault("row_errors", count=2, status=400, times=1)
    with house(tmp_path, refused, sim={"batch_s": 12.0}) as h:
        job = h.submit(ROWS, batch_size=4, on_error=on_error)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job)["failed"] == 2
        assert (job.stopped == "on_error") is stops


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_rows_that_stopped_a_job_can_be_retried(tmp_path: Path, lane: str) -> None:
    """What failed before a retry does not stop it: rows that go out again count anew."""
    refused = fault("row_errors", status=400) if lane == "batch" else fault("live_500", status=400)
    with house(tmp_path, refused) as h:
        job = h.run(h.submit(ROWS, lane, batch_size=4, on_error="stop"))
        assert job.stopped == "on_error"
        h.faults()
        assert h.mill.retry(job) == ROWS
        job = h.run(job)
        exact(h, job)
        assert (job.state, job.stopped, counts(job)) == ("completed", None, {"succeeded": ROWS})


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_who_comes_after_stops_the_job_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: str) -> None:
    """A worker that ends between the row that was one too many and the stop leaves the stop to the next one."""
    refused = fault("row_errors", count=1, status=400) if lane == "batch" else fault("live_500", status=400)

    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    short = {"lease_s": 2.0, "create_timeout_s": 1.0, "request_timeout_s": 1.0, "margin_s": 0.2}
    with house(tmp_path, refused, timing=short) as h:
        job = h.submit(60, lane, batch_size=4, on_error="stop", concurrency=1)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "request_cancel", fails)
            with pytest.raises(StoreError):
                h.run(job)
        h.again()
        h.faults()
        sent = len(h.log("create"))
        job = h.run(job)
        truth(h, job, fired=("row_errors", "live_500"))
        assert job.stopped == "on_error"
        assert len(h.log("create")) == sent


# -- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_budget_that_fits_a_part_at_a_time_does_all(tmp_path: Path, lane: str) -> None:
    """Far less budget than the worst case: the job goes out in waves, finishes, and never passes the cap."""
    with house(tmp_path) as h:
        quote = h.mill.rehearse(_options(h, lane)).quote
        worst = quote.at_most_nanos
        assert quote.waves == 1
        job = h.submit(ROWS, lane, budget_nanos=worst // 3, max_output=2000)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.shards(job)) > 1
        own = next(limit for limit in h.mill.ledger.limits() if limit.scope == f"job:{job.id}")
        assert own.spent_nanos <= worst // 3


def test_a_lost_call_is_sent_again_from_what_answers_left_of_the_hold(tmp_path: Path) -> None:
    """A hold fills the budget and calls are lost: the shard's answers, cheaper than held for, pay for the next."""
    with house(tmp_path, {"fault": "live_timeout", "count": 2, "delay_s": 0}) as h:
        job = h.submit(ROWS, "live", max_output=2000)
        most = h.mill.rehearse(_options(h, "live")).quote.at_most_nanos
        h.mill.ledger.set_budget("total", most)
        job = h.run(job)
        assert h.fired()["live_timeout"] == 2
        truth(h, job)
        assert counts(job) == {"succeeded": ROWS}
        total = next(limit for limit in h.mill.ledger.limits() if limit.scope == "total")
        assert h.invoice()["total_nanos"] <= total.spent_nanos <= most
        assert h.tally(job).unproven_nanos > most // ROWS


def _options(h: House, lane: str) -> Any:
    from nightmill.mill import RunOptions

    path = h.folder / "in-probe.csv"
    path.write_text("id,text\n" + "".join(f"k{i},word number {i}\n" for i in range(ROWS)))
    return RunOptions((str(path),), lane=lane, max_output=2000, prompt="Say it: {{ text }}", model="openai/gpt-4o-mini")


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_budget_too_small_for_one_request_pauses(tmp_path: Path, lane: str) -> None:
    """Not even one request fits: the job pauses, naming the limit and what raises it; raised, it finishes."""
    with house(tmp_path) as h:
        job = h.submit(ROWS, lane)
        running = h.mill.desk.scopes()
        h.mill.ledger.set_budget("total", 10_000, running_scopes=running)
        job = h.run(job)
        assert job.state == "paused"
        assert job.stopped == "budget"
        assert "the budget has $" in (job.reason or "")
        assert "nightmill budget set" in (job.reason or "")
        assert h.invoice()["total_nanos"] == 0
        truth(h, job, settled=False)
        h.mill.ledger.set_budget("total", 5_000_000_000, running_scopes=running)
        h.mill.resume(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}


@pytest.mark.parametrize("scope", ["day", "month"])
def test_a_daily_or_monthly_budget_names_itself(tmp_path: Path, scope: str) -> None:
    """A limit on the day or the month pauses the job by its own name and flag."""
    with house(tmp_path) as h:
        job = h.submit(ROWS)
        h.mill.ledger.set_budget(scope, 1_000, running_scopes=h.mill.desk.scopes())
        job = h.run(job)
        assert job.state == "paused"
        assert f"budget set --{scope}" in (job.reason or "")
        truth(h, job, settled=False)


def test_batches_wait_for_enqueued_tokens(tmp_path: Path) -> None:
    """More shards than the provider's queue takes: they go out as others end, none is lost or repeated."""
    with house(tmp_path, sim={"enqueued_tokens": 40}) as h:
        job = h.run(h.submit(ROWS, batch_size=2))
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.shards(job)) == 4
        assert h.invoice()["executed_more_than_once"] == 0


def test_batch_size_splits(tmp_path: Path) -> None:
    """--batch-size is the most rows of a shard; each shard is a batch of its own."""
    with house(tmp_path) as h:
        job = h.run(h.submit(ROWS, batch_size=3))
        truth(h, job)
        exact(h, job)
        assert [s.count for s in h.shards(job)] == [3, 3, 2]
        assert len(h.batches()) == 3


# -- doubt -----------------------------------------------------------------------------------------


UNSURE = (fault("create_accepted_then_500", times=1), fault("list_page_500"))


def test_two_batches_of_one_submission_are_both_booked(tmp_path: Path) -> None:
    """A create that somebody repeated: the older batch is adopted, the other cancelled, both are booked."""
    with house(tmp_path, fault("create_repeated", times=1), sim={"batch_s": 3000.0}) as h:
        job = h.run(h.submit(ROWS))
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert sorted(b["status"] for b in h.batches()) == ["cancelled", "completed"]
        assert "second_batch" in h.alerts(job)


def _in_doubt(h: House, **options: Any) -> Job:
    """A job whose only shard stays in doubt: the list answers nothing."""
    job = h.run(h.submit(ROWS, **options), until=in_state(ShardState.IN_DOUBT))
    assert [s.state for s in h.shards(job)] == [ShardState.IN_DOUBT]
    return job


def test_a_list_that_never_answers_is_told_once(tmp_path: Path) -> None:
    """No complete look for too long: one alert that names the ways out, and the hold stays."""
    with house(tmp_path, *UNSURE, timing={"doubt_alert_s": 0.001}) as h:
        job = h.submit(ROWS)
        looks = 0

        def enough(h: House, job: Job) -> bool:
            nonlocal looks
            looks += in_state(ShardState.IN_DOUBT)(h, job)
            return looks > 5

        job = h.run(job, until=enough)
        assert h.alerts(job).count("in_doubt") == 1
        assert h.tally(job).held_nanos > 0
        shard = h.shards(job)[0]
        assert "--write-off" in (shard.reason or "")


def test_resolve_by_adopting(tmp_path: Path) -> None:
    """A person names the batch: it is collected as if a look had found it."""
    with house(tmp_path, *UNSURE) as h:
        job = _in_doubt(h)
        asyncio.run(h.mill.resolve(h.shards(job)[0], adopt=h.batches()[0]["id"]))
        h.faults()
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.batches()) == 1


def test_resolve_by_sending_again(tmp_path: Path) -> None:
    """A person says it is not there: it is sent again; that it was there after all is found and booked."""
    with house(tmp_path, *UNSURE) as h:
        job = _in_doubt(h)
        asyncio.run(h.mill.resolve(h.shards(job)[0], resend=True))
        h.faults()
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.batches()) == 2
        assert h.alerts(job).count("second_batch") == 1


def test_a_create_held_back_until_after_the_resend_runs_nothing(tmp_path: Path) -> None:
    """A person sent again what a stopped worker was about to create: woken after the job's end, it costs nothing."""
    with house(tmp_path, fault("create_500_before", times=1), fault("list_page_500")) as h:
        job = _in_doubt(h)
        (shard,) = h.shards(job)
        asyncio.run(h.mill.resolve(shard, resend=True))
        h.faults()
        job = h.run(job)
        late = asyncio.run(_created(h, job, shard.current))
        while (status := h.get(f"/v1/batches/{late.id}")["status"]) not in ("failed", "completed"):
            time.sleep(0.02)
        assert status == "failed"
        truth(h, job)
        exact(h, job)
        assert h.invoice()["executed_rows"] == ROWS


async def _created(h: House, job: Job, sub: Submission) -> BatchView:
    """What a worker asks for that had handed ``sub``'s file over."""
    provider = h.mill.home.provider(job.model)
    assert isinstance(provider, BatchProvider)
    assert sub.file_id
    try:
        return await provider.create(sub.file_id, Path("unread"), url="/v1/chat/completions", submission=sub.name)
    finally:
        await provider.close()


@pytest.mark.parametrize("decision", [{"resend": True}, {}, {"adopt": True}])
def test_resolve_comes_too_late(tmp_path: Path, decision: dict[str, Any]) -> None:
    """A worker adopted the batch while a person decided: the word is refused, and the first bill is booked."""
    with house(tmp_path, *UNSURE) as h:
        job = _in_doubt(h)
        seen, batch = h.shards(job)[0], h.batches()[0]["id"]
        given: dict[str, Any] = {"adopt": batch} if decision.get("adopt") else decision
        h.mill.ledger.note_created(
            h.mill.ledger.claim_one(seen.tag, 20.0), seen.submission, batch, status="x", due_in_s=0.0
        )
        with pytest.raises(Conflict, match="not in doubt any more"):
            asyncio.run(h.mill.resolve(seen, **given))
        h.faults()
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert len(h.batches()) == 1


def test_resolve_refuses_a_batch_that_is_anothers(tmp_path: Path) -> None:
    """One batch answers one shard: adopting it twice would lose one of two answers and one of two bills."""
    with house(tmp_path) as h:
        h.run(h.submit(ROWS))
        (batch,) = (made["id"] for made in h.batches())
        h.faults(*UNSURE)
        job = _in_doubt(h, prompt="Another word: {{ text }}")
        with pytest.raises(Conflict, match="already"):
            asyncio.run(h.mill.resolve(h.shards(job)[0], adopt=batch))
        h.faults()
        job = h.run(job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.mill.budget()[-1].spent_nanos == h.invoice()["total_nanos"]


def test_resolve_by_writing_off(tmp_path: Path) -> None:
    """A person gives it up: the hold is unproven spend, the rows are missing, the job ends."""
    with house(tmp_path, *UNSURE) as h:
        job = _in_doubt(h)
        held = h.tally(job).held_nanos
        asyncio.run(h.mill.resolve(h.shards(job)[0]))
        job = h.run(job)  # the list still fails, so that nothing is found as the job ends
        assert counts(job) == {"missing": ROWS}
        tally = h.tally(job)
        assert (tally.spent_nanos, tally.unproven_nanos, tally.held_nanos) == (held, held, 0)


def test_another_key_proves_nothing(tmp_path: Path) -> None:
    """A create in doubt is not sent again under another key; with its own key it is found."""
    dropped = fault("create_500_before", times=1)
    with house(tmp_path, dropped, fault("list_page_500", times=1)) as h:
        job = _in_doubt(h)
        h.again(key="sk-other")
        looks = 0

        def enough(h: House, job: Job) -> bool:
            nonlocal looks
            looks += 1
            return looks > 6

        job = h.run(job, until=enough)
        assert [s.state for s in h.shards(job)] == [ShardState.IN_DOUBT]
        assert h.log("delete") == []
        assert h.alerts(job) == ["in_doubt"]
        h.again(key="sk-x")
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.batches()) == 1


# -- afterwards, and clocks ------------------------------------------------------------------------


def test_a_retry_asks_the_failed_rows_alone(tmp_path: Path) -> None:
    """`retry` sends failed rows again, with other options; answered rows are untouched and not paid again."""
    with house(tmp_path, fault("truncated_answers", count=3, times=1)) as h:
        job = h.run(h.submit(ROWS))
        assert counts(job) == {"succeeded": ROWS - 3, "failed": 3}
        before = {row["index"]: row["response"] for row in h.results(job) if row["success"]}
        assert h.mill.retry(job, max_output=900) == 3
        job = h.run(h.mill.job(job.id))
        assert counts(job) == {"succeeded": ROWS}
        assert h.invoice()["executed_rows"] == ROWS + 3
        after = {row["index"]: row["response"] for row in h.results(job)}
        assert {i: after[i] for i in before} == before
        exact(h, job)


@pytest.mark.parametrize("days", [1, -1])
def test_a_wall_clock_that_jumps_breaks_nothing(tmp_path: Path, days: int) -> None:
    """The wall clock moves by a day under way: nothing is sent twice, money stays with its day."""
    with house(tmp_path, fault("create_accepted_then_500", times=1), sim={"batch_s": 60.0}) as h:
        job = h.submit(ROWS, batch_size=4)
        job = h.run(job, until=in_state(ShardState.WAITING))
        wall, sent = h.mill.desk.wall, h.sql("SELECT scopes FROM submissions")
        h.mill.desk.wall = lambda: wall() + days * 86_400
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.batches()) == len(h.shards(job))
        assert h.sql("SELECT scopes FROM submissions")[: len(sent)] == sent
        spent = [limit.spent_nanos for limit in h.mill.ledger.limits() if limit.scope.startswith("day:")]
        assert sum(spent) == h.tally(job).spent_nanos


def test_a_batch_far_past_its_window_is_told_once(tmp_path: Path) -> None:
    """A batch that does not end raises one alert, and goes on being polled."""
    with house(tmp_path, fault("never_finishes")) as h:
        job = h.run(h.submit(ROWS), until=in_state(ShardState.WAITING))
        wall, polls = h.mill.desk.wall, 0
        h.mill.desk.wall = lambda: wall() + 3 * 86_400

        def enough(h: House, job: Job) -> bool:
            nonlocal polls
            polls += 1
            return polls > 6

        job = h.run(job, until=enough)
        assert h.alerts(job) == ["late_batch"]
        h.cancel(job)
        job = h.run(job)
        truth(h, job)
        assert job.state == "cancelled"
        assert h.tally(job).spent_nanos == h.invoice()["total_nanos"]


def test_a_batch_nobody_has_any_more_becomes_unproven(tmp_path: Path) -> None:
    """A batch gone from the provider past all retention: its hold is spend that nobody can prove, never free."""
    with house(tmp_path) as h:
        job = h.run(h.submit(ROWS), until=in_state(ShardState.WAITING))
        held = h.tally(job).held_nanos
        h.faults(fault("poll_404_once", times=1_000_000))
        wall = h.mill.desk.wall
        h.mill.desk.wall = lambda: wall() + 40 * 86_400

        def is_settled(h: House, job: Job) -> bool:
            settled = in_state(ShardState.SETTLED)(h, job)
            if settled:
                h.faults()
            return settled

        job = h.run(job, until=is_settled)
        first = h.sql("SELECT missing, reason FROM shards ORDER BY seq LIMIT 1")
        assert first[0]["missing"] == ROWS
        assert h.sql("SELECT unproven_nanos FROM submissions ORDER BY tag, n LIMIT 1") == [{"unproven_nanos": held}]
        job = h.run(job)
        assert counts(job) == {"succeeded": ROWS}
