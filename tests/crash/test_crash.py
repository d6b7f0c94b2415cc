"""Killed or frozen at any point: no row lost, none submitted twice, money exact."""

from __future__ import annotations

import sys

import pytest
from campaign import Campaign, Kill
from kit import Scenario
from points import known_points
from scenarios import ALL, BATCH, LIVE

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="there is neither SIGKILL nor SIGSTOP"),
]

HOLDS_THE_LEDGER = ".committing"  # nobody can take over from a worker that stands there; `make crash` tries them


MOST_NTH = 3

both_lanes = pytest.mark.parametrize("scenarios", [BATCH, LIVE], ids=["batch", "live"])


@pytest.fixture(scope="session")
def explored(campaign: Campaign) -> Campaign:
    """Every scenario was run once, undisturbed."""
    campaign.wrong = campaign.explore(ALL)
    return campaign


def test_undisturbed_runs_are_right(explored: Campaign) -> None:
    """Whatever goes wrong at the provider, rows and money are right when nobody is killed."""
    assert explored.wrong == []


def test_every_point_is_reached(explored: Campaign) -> None:
    """A point in the code that no scenario reaches is a crash that nobody tried."""
    reached = {point for points in explored.reached.values() for point in points}
    assert sorted(known_points() - reached) == []


@pytest.mark.req("X1")
@both_lanes
def test_killed_at_every_point(explored: Campaign, scenarios: tuple[Scenario, ...]) -> None:
    """Killed once at each point of a lane, the same command goes on to the right end."""
    cases = [Kill(scenario, point) for point, scenario in explored.points_of(scenarios).items()]
    assert explored.strike(cases) == []


@both_lanes
def test_frozen_at_every_point(explored: Campaign, scenarios: tuple[Scenario, ...]) -> None:
    """Frozen at a point until another worker has finished the job, then woken: it does no harm."""
    points = explored.points_of(scenarios).items()
    cases = [Kill(s, point, how="stop") for point, s in points if not point.endswith(HOLDS_THE_LEDGER)]
    assert explored.strike(cases) == []


@pytest.mark.crash_full
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_the_full_product(explored: Campaign, scenario: Scenario, how: str) -> None:
    """Every scenario, at each of its points, the first three times it is passed, killed and frozen."""
    passed = explored.reached[scenario.name].items()
    cases = [Kill(scenario, point, nth, how) for point, times in passed for nth in range(1, min(times, MOST_NTH) + 1)]
    assert explored.strike(cases) == []
