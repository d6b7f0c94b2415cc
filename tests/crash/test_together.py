"""Several processes at once: on one job, on one budget, and some of them killed or frozen."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from campaign import LEASE_S, Campaign, Case
from kit import DONE, OVERTAKEN, PATIENT_S, BudgetWatch, Home, Scenario, Worker, audit

from nightmill.types import JobState

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="there is neither SIGKILL nor SIGSTOP"),
]

PROMPTS = ("Describe {{ text }}", "Name {{ text }}", "Sell {{ text }}")
# Dollars: what one job is expected to cost fits, what three may cost at most does not by far.
BUDGET = {"batch": 0.0013, "live": 0.0025}
SEEDS = 12

both_lanes = pytest.mark.parametrize("lane", ["batch", "live"])
batch_in_short = pytest.mark.parametrize("lane", ["batch", pytest.param("live", marks=pytest.mark.again)])


def scenario_of(lane: str, toml: str = "", **asked: Any) -> Scenario:
    concurrency = {"concurrency": 3} if lane == "live" else {}
    return Scenario(f"together-{lane}", lane, rows=12, asked={"batch_size": 2, **concurrency, **asked}, toml=toml)


@dataclass(frozen=True)
class Together(Case):
    """Several processes, some of which are to be stopped at a point; at least one is not."""

    processes: int = 3
    points: Mapping[int, str] = field(default_factory=dict)  # where each is stopped, as NIGHTMILL_KILL_AT
    how: str = "kill"

    @property
    def lease_s(self) -> float:
        return PATIENT_S if self.how == "kill" else LEASE_S

    def __str__(self) -> str:
        return f"{self.scenario} {self.how} {dict(self.points)} of {self.processes}"

    def start(self, home: Home, prompts: Sequence[str] = ()) -> list[Worker]:
        """All of them: on one job, or each on the job of its own prompt."""
        asked = [{"prompt": prompt} for prompt in prompts] or [{} for _ in range(self.processes)]
        return [home.start(self.points.get(i, ""), how=self.how, **more) for i, more in enumerate(asked)]

    def names(self, struck: Sequence[int]) -> list[str]:
        return [self.points[i].partition(":")[0] for i in struck]


def on_one_job(campaign: Campaign, case: Together, home: Home) -> list[str]:
    """Those that nobody stops see the job through; what was wrong."""
    workers = case.start(home)
    struck = [i for i in case.points if stopped(workers[i], case.how)]
    frozen = [workers[i] for i in struck if case.how == "stop"]
    if home.is_locked():  # one stands in a write transaction, and nobody can go on without it
        wake(frozen)
    codes = {w.wait() for i, w in enumerate(workers) if i not in case.points}
    assert codes <= {0, OVERTAKEN}, "".join(w.text() for w in workers)
    if OVERTAKEN in codes:
        home.finish()
    wake(frozen)
    for worker in workers:
        worker.wait()
        assert "Traceback" not in worker.text(), worker.said("a stopped worker")
    return campaign.judge(f"together, {case.how}", home, case.names(list(case.points)), case.names(struck))


def stopped(worker: Worker, how: str) -> bool:
    """Whether it was stopped; False: the others had left it nothing to do there."""
    return worker.wait() == -9 if how == "kill" else worker.wait_stopped()


def wake(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.wake()


def on_one_budget(campaign: Campaign, case: Together, home: Home) -> list[str]:
    """A job each, and a budget that fits only part of them; then money for all; what was wrong."""
    cap_nanos = BUDGET[case.scenario.lane] * 1e9
    with BudgetWatch(home) as watch:
        workers = case.start(home, PROMPTS)
        codes = [worker.wait() for worker in workers]
        struck = [i for i, code in enumerate(codes) if code == -9 and i in case.points]
        codes = [home.start(prompt=PROMPTS[i]).wait() if i in struck else code for i, code in enumerate(codes)]
    assert set(codes) <= {0, 4}, "".join(w.text() for w in workers)
    assert watch.passed == []
    assert watch.most > 0.5 * cap_nanos  # it was tight, as far as samples can tell
    with home.mill() as mill:
        assert mill.ledger.jobs()
        held = sum(limit.held_nanos for limit in mill.ledger.limits() if limit.scope == "total")
        assert held == sum(mill.tally(job).held_nanos for job in mill.ledger.jobs())
        mill.ledger.set_budget("total", 1_000_000_000)
        for job in mill.ledger.jobs(states=[JobState.PAUSED]):
            mill.resume(job)
    for prompt in PROMPTS:
        assert home.start(prompt=prompt).wait() in DONE
    return campaign.judge("one budget, kill", home, case.names(list(case.points)), case.names(struck))


@pytest.mark.crash
@batch_in_short
def test_three_workers_on_one_job_share_its_work(campaign: Campaign, lane: str) -> None:
    """The same command three times at once: one job, each row run once, and every worker sees it through."""
    with campaign.home(scenario_of(lane)) as home, BudgetWatch(home) as watch:
        workers = Together(home.scenario).start(home)
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
    case = Together(scenario_of(lane), points={0: point})
    assert campaign.each([case], lambda case, home: on_one_job(campaign, case, home)) == []


@batch_in_short
def test_three_jobs_share_a_budget_that_fits_only_part(campaign: Campaign, lane: str) -> None:
    """Whatever the processes do at once, spent + held never pass the limit; more money lets all of them finish."""
    case = Together(tight(lane))
    assert campaign.each([case], lambda case, home: on_one_budget(campaign, case, home)) == []


@pytest.mark.crash_full
@pytest.mark.parametrize("how", ["kill", "stop"])
@both_lanes
def test_others_go_on_wherever_some_are_stopped(campaign: Campaign, lane: str, how: str) -> None:
    """Of two or three workers on one job all but one are killed, or one is frozen: at each point in turn."""
    moments = Moments(campaign, scenario_of(lane))
    cases = []
    for point, processes in itertools.product(moments.points, (2, 3)):
        points = {0: moments.at(point)}
        if how == "kill" and processes == 3:  # a second frozen one could hold what the first one waits for
            points[1] = moments.any()
        cases.append(Together(moments.scenario, processes, points, how))
    assert campaign.each(cases, lambda case, home: on_one_job(campaign, case, home)) == []


@pytest.mark.crash_full
@both_lanes
def test_a_budget_holds_wherever_its_spenders_are_killed(campaign: Campaign, lane: str) -> None:
    """Two of three jobs on one budget lose their process at some moment: it is never passed, and all can finish."""
    moments = Moments(campaign, tight(lane))
    cases = [Together(moments.scenario, 3, {0: moments.any(), 1: moments.any()}) for _ in range(SEEDS)]
    assert campaign.each(cases, lambda case, home: on_one_budget(campaign, case, home)) == []


def tight(lane: str) -> Scenario:
    return scenario_of(lane, f"[budget]\ntotal = {BUDGET[lane]}\n", batch_size=1)


class Moments:
    """Points that a lone worker passes on its way, and passes of them chosen by lot, the same ones in every run."""

    def __init__(self, campaign: Campaign, scenario: Scenario) -> None:
        self.scenario = scenario
        self._lot = random.Random(scenario.name)
        assert campaign.explore([scenario_of(scenario.lane)]) == []
        self.points = campaign.reached[scenario.name]

    def at(self, point: str) -> str:
        return f"{point}:{self._lot.randint(1, self.points[point])}"

    def any(self) -> str:
        return self.at(self._lot.choice(list(self.points)))
