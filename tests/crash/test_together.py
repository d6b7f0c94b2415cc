"""Several processes at once: on one job, on one budget, and one of them killed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
from campaign import Campaign
from kit import DONE, BudgetWatch, Home, Scenario, Worker, audit

from nightmill.types import JobState

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL"),
]

PROMPTS = ("Describe {{ text }}", "Name {{ text }}", "Sell {{ text }}")
# Dollars: what one job is expected to cost fits, what three may cost at most does not by far.
BUDGET = {"batch": 0.0013, "live": 0.0025}


def scenario_of(lane: str, toml: str = "", **asked: Any) -> Scenario:
    concurrency = {"concurrency": 3} if lane == "live" else {}
    return Scenario(f"together-{lane}", lane, rows=12, asked={"batch_size": 2, **concurrency, **asked}, toml=toml)


def start(home: Home, kill_at: Mapping[int, str] | None = None, **asked: Any) -> list[Worker]:
    return [home.start((kill_at or {}).get(i, ""), **asked) for i in range(3)]


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_three_workers_on_one_job_share_its_work(campaign: Campaign, lane: str) -> None:
    """The same command three times at once: one job, each row run once, and every worker sees it through."""
    with campaign.home(scenario_of(lane)) as home, BudgetWatch(home) as watch:
        workers = start(home)
        assert [w.wait() for w in workers] == [0, 0, 0], "".join(w.text() for w in workers)
        found = audit(home)
        assert (found.defects, found.lost, found.twice, found.unproven_nanos) == ((), 0, 0, 0)
        with home.mill() as mill:
            assert len({job.fingerprint for job in mill.ledger.jobs()}) == 1
    assert watch.passed == []
    assert watch.samples > 3


@pytest.mark.parametrize(
    ("lane", "point"),
    [("batch", "ledger.note_created.committed"), ("batch", "http.create.answered"), ("live", "live.journaled:2")],
)
def test_others_go_on_where_one_is_killed(campaign: Campaign, lane: str, point: str) -> None:
    """Of three workers on one job one is killed in the middle of a step: the other two finish it."""
    with campaign.home(scenario_of(lane)) as home:
        workers = start(home, {0: point})
        codes = [w.wait() for w in workers]
        assert codes[1:] == [0, 0], "".join(w.text() for w in workers)
        assert codes[0] in (-9, 0)  # 0: the others had left it nothing to do
        assert audit(home).defects == ()


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_three_jobs_share_a_budget_that_fits_only_part(campaign: Campaign, lane: str) -> None:
    """Whatever the processes do at once, spent + held never pass the limit; more money lets all of them finish."""
    with campaign.home(scenario_of(lane, f"[budget]\ntotal = {BUDGET[lane]}\n", batch_size=1)) as home:
        with BudgetWatch(home) as watch:
            workers = [home.start(prompt=prompt) for prompt in PROMPTS]
            codes = [worker.wait() for worker in workers]
        assert set(codes) <= {0, 4}, "".join(w.text() for w in workers)
        assert watch.passed == []
        assert watch.most > 0.5 * BUDGET[lane] * 1e9  # it was tight, as far as samples can tell
        with home.mill() as mill:
            assert mill.ledger.jobs()
            held = sum(limit.held_nanos for limit in mill.ledger.limits() if limit.scope == "total")
            assert held == sum(mill.tally(job).held_nanos for job in mill.ledger.jobs())
            mill.ledger.set_budget("total", 1_000_000_000)
            for job in mill.ledger.jobs(states=[JobState.PAUSED]):
                mill.resume(job)
        for prompt in PROMPTS:
            assert home.start(prompt=prompt).wait() in DONE
        found = audit(home)
        assert (found.defects, found.lost, found.twice) == ((), 0, 0)
