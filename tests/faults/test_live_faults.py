"""Each fault of live calls, one by one: what the job must come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, exact, house, truth

from nightmill.ledger import Job

ROWS = 8


def fault(name: str, **params: Any) -> dict[str, Any]:
    return {"fault": name, **params}


def finished(h: House, **options: Any) -> Job:
    """The job after a live run to its end, with everything true that always must be."""
    job = h.run(h.submit(ROWS, "live", **options))
    fired = h.fired()
    assert all(fired.values()), f"a fault never came up: {fired}"
    truth(h, job)
    return h.mill.job(job.id)


def attempts(h: House, job: Job) -> list[int]:
    return sorted(row["attempt"] for row in h.results(job))


HARMLESS = {
    "a 429 storm": [fault("live_429", count=20)],
    "429 with a wait of nothing": [fault("live_429", count=6, retry_after=0)],
    "429 with a wait in milliseconds": [fault("live_429", count=6, retry_after_ms=3)],
    "slow bodies": [fault("slow_bodies", on=["live"], pieces=3, delay_s=0.003)],
    "pretty-printed bodies": [fault("pretty_printed_bodies")],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_in_the_end(tmp_path: Path, name: str) -> None:
    """Being told to wait is no attempt, and an odd shape no failure: each row runs once, spend is exact."""
    with house(tmp_path, *HARMLESS[name]) as h:
        job = finished(h)
        exact(h, job)
        assert job.counts == {"succeeded": ROWS, "failed": 0, "missing": 0, "expired": 0, "cancelled": 0}
        assert h.invoice()["executed_rows"] == ROWS
        assert attempts(h, job) == [1] * ROWS


def test_a_rate_limit_is_kept_to(tmp_path: Path) -> None:
    """A quota that runs out makes the lane wait for its refill; no row fails."""
    with house(tmp_path, sim={"rpm": 5, "speed": 3000.0}) as h:
        job = finished(h)
        exact(h, job)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert attempts(h, job) == [1] * ROWS


@pytest.mark.parametrize("status", [500, 503, 408, 409])
def test_failed_calls_are_tried_again(tmp_path: Path, status: int) -> None:
    """A call that fails by the provider's fault costs an attempt and no money."""
    with house(tmp_path, fault("live_500", count=3, status=status)) as h:
        job = finished(h)
        exact(h, job)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert sum(attempts(h, job)) == ROWS + 3


def test_calls_that_always_fail_end(tmp_path: Path) -> None:
    """Three attempts a row, then it is a failed row; nothing was billed."""
    with house(tmp_path, fault("live_500")) as h:
        job = finished(h)
        exact(h, job)
        assert job.state == "failed"
        assert {row["error_kind"] for row in h.results(job)} == {"server_error"}
        assert attempts(h, job) == [3] * ROWS


def test_an_answer_that_never_came_is_unproven(tmp_path: Path) -> None:
    """A call that ran unseen is booked at its worst case, apart, and the row is asked again."""
    with house(tmp_path, fault("live_timeout", count=2, delay_s=30), timing={"request_timeout_s": 1.5}) as h:
        job = finished(h)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert h.tally(job).unproven_nanos > 0
        assert h.invoice()["executed_rows"] == ROWS + 2


def test_a_connection_that_drops_is_unproven(tmp_path: Path) -> None:
    """Nobody can tell a drop before the work from one after it: both are booked."""
    with house(tmp_path, fault("live_close_before", count=2)) as h:
        job = finished(h)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert h.tally(job).unproven_nanos > 0
        assert h.invoice()["executed_rows"] == ROWS


def test_answers_that_never_come_end(tmp_path: Path) -> None:
    """Three sends without an answer end a row as timed out; all of them stay booked."""
    with house(tmp_path, fault("live_close_before")) as h:
        job = finished(h)
        assert job.state == "failed"
        assert {row["error_kind"] for row in h.results(job)} == {"timeout"}
        tally = h.tally(job)
        assert tally.spent_nanos == tally.unproven_nanos > 0


@pytest.mark.parametrize("commit", [False, True])
def test_a_page_with_status_200_is_no_answer(tmp_path: Path, commit: bool) -> None:
    """An HTML page that says 200 answers nothing; what it hides may have run, so it is booked apart."""
    page = fault("non_json_bodies", status=200, commit=commit, times=2)
    with house(tmp_path, page) as h:
        job = finished(h)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert h.tally(job).unproven_nanos > 0
        assert h.invoice()["executed_rows"] == ROWS + (2 if commit else 0)


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize("status", [502, 504, 408])
def test_a_gateway_that_gave_up_proves_nothing(tmp_path: Path, status: int, commit: bool) -> None:
    """A gateway's error page says nothing of the call behind it: tried again, and booked apart."""
    with house(tmp_path, fault("non_json_bodies", status=status, commit=commit, times=2)) as h:
        job = finished(h)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert h.tally(job).unproven_nanos > 0


def test_a_body_cut_short_is_unproven(tmp_path: Path) -> None:
    """An answer that breaks off was paid for; the row is asked again and both are booked."""
    with house(tmp_path, fault("short_body", on=["live"], times=2)) as h:
        job = finished(h)
        assert job.counts is not None
        assert job.counts["succeeded"] == ROWS
        assert h.tally(job).unproven_nanos > 0
        assert h.invoice()["executed_rows"] == ROWS + 2


@pytest.mark.parametrize(("key", "says"), [("sk-wrong", "Incorrect API key"), ("sk-noquota", "current quota")])
def test_an_account_that_cannot_pay_pauses(tmp_path: Path, key: str, says: str) -> None:
    """A wrong key or an empty account pauses the job, spends no attempt, and a good key finishes it."""
    with house(tmp_path, key=key) as h:
        job = h.run(h.submit(ROWS, "live"))
        assert job.state == "paused"
        assert says in (job.reason or "")
        assert h.tally(job).spent_nanos == 0
        h.again(key="sk-good")
        h.mill.resume(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert attempts(h, job) == [1] * ROWS


def test_a_model_the_provider_does_not_know_pauses(tmp_path: Path) -> None:
    """A 404 concerns every row: the first one pauses the job with the provider's words, no row fails."""
    prices = '[models."openai/gpt-unheard-of"]\nprice = { input = 1.0, output = 1.0 }\n'
    with house(tmp_path, settings=prices) as h:
        job = h.run(h.submit(ROWS, "live", model="openai/gpt-unheard-of"))
        assert job.state == "paused"
        assert "does not exist" in (job.reason or "")
        assert h.tally(job).spent_nanos == 0
