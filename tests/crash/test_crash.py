"""Killed or frozen at any point: no row lost, none submitted twice, money exact."""

from __future__ import annotations

import re
import sys

import pytest
from campaign import Campaign, Kill
from kit import Scenario
from points import known_points
from scenarios import ALL, BATCH, CANARY, FLEX, GEMINI, LIVE, LIVE_ELSEWHERE, UNNAMED

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="there is neither SIGKILL nor SIGSTOP"),
]

_TALK = re.compile(r"http\.|media\.|ledger\.(note_|settle|exclude|back_to_)")
each_way = pytest.mark.parametrize(
    "scenarios",
    [BATCH, LIVE + CANARY, FLEX, UNNAMED, GEMINI, LIVE_ELSEWHERE],
    ids=["batch", "live", "flex", "anthropic", "gemini", "others live"],
)


@pytest.fixture(scope="session")
def explored(campaign: Campaign) -> Campaign:
    """Every scenario was run once, undisturbed."""
    campaign.wrong = campaign.explore(ALL)
    return campaign


@pytest.mark.crash
def test_undisturbed_runs_are_right(explored: Campaign) -> None:
    """Whatever goes wrong at the provider, rows and money are right when nobody is killed."""
    assert explored.wrong == []


@pytest.mark.crash
def test_every_point_is_reached(explored: Campaign) -> None:
    """A point in the code that no scenario reaches is a crash that nobody tried."""
    reached = {point for points in explored.reached.values() for point in points}
    assert sorted(known_points() - reached) == []


@pytest.mark.req("X1")
@each_way
def test_killed_at_every_point(explored: Campaign, scenarios: tuple[Scenario, ...]) -> None:
    """Killed once at each point of a lane, the same command goes on to the right end.

    In the live lane these are the points of its own, and those at which something is told to a provider or known from
    it, and at the other providers the latter alone; a point in between is the same wherever the job goes.
    """
    points = explored.points_of(scenarios)
    if scenarios is not BATCH:
        own = points.keys() - explored.points_of(BATCH).keys() if scenarios[0].model.startswith("openai/") else set()
        points = {point: scenario for point, scenario in points.items() if _TALK.match(point) or point in own}
    assert explored.strike([Kill(scenario, point) for point, scenario in points.items()]) == []


@pytest.mark.crash_full
@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_the_full_product(explored: Campaign, scenario: Scenario) -> None:
    """Every scenario, at each of its points, the first and the last time it is passed, frozen and killed."""
    passed = explored.reached[scenario.name].items()
    moments = [(point, nth) for point, times in passed for nth in sorted({1, times})]
    # those that wait go first
    assert explored.strike(Kill(scenario, point, nth, how) for how in ("stop", "kill") for point, nth in moments) == []


@pytest.mark.crash_full
def test_the_full_product_leaves_no_point_out(explored: Campaign) -> None:
    """At each point that the scenarios pass a worker was killed in one of them, and one was frozen."""
    assert explored.missed() == []
