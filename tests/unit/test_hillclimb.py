"""The climb: a window that ends where more calls would only wait longer, whatever the server can do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from throttle_kit import Clock, Machine, calls

from nightmill.lanes.hillclimb import HillClimb, Stand, decide
from nightmill.lanes.throttle import Rates, Throttle

MOST = 256


def steady() -> float:
    return 1.0


def uneven(seed: int) -> Callable[[], float]:
    """Seconds an answer takes, as unequal as the lengths of texts are."""
    chance = random.Random(seed)
    return lambda: chance.lognormvariate(-0.125, 0.5)


def windows(made: Throttle, run: Iterator[None], answers: int) -> list[int]:
    """The window after each of so many answers more."""
    return [made.window for _ in islice(run, answers)]


def hosted(clock: Clock, in_flight: int = MOST, *, fixed: bool = False) -> Throttle:
    return Throttle(Rates(in_flight=in_flight, fixed=fixed, self_hosted=True), clock)


@pytest.mark.parametrize("slots", [1, 4, 16, 60, 200])
@pytest.mark.parametrize("takes_s", [steady, uneven(1), uneven(2)], ids=["steady", "uneven", "otherwise uneven"])
def test_it_ends_near_what_the_server_can_do(slots: int, takes_s: Callable[[], float]) -> None:
    """The server is kept busy, and no crowd waits in its queue: neither starved nor run away."""
    clock = Clock(0.0)
    made = hosted(clock)
    run = calls([made], clock, Machine(slots, takes_s))
    windows(made, run, 10_000)
    began = clock.at
    seen = windows(made, run, 10_000)
    assert sum(seen) / len(seen) <= 2 * slots + 2
    assert len(seen) / (clock.at - began) >= 0.85 * slots


@pytest.mark.parametrize(("before", "after"), [(80, 20), (20, 80)])
def test_it_follows_a_server_that_changes(before: int, after: int) -> None:
    """A server that lost or won most of what it can do has a window to match, before long."""
    clock = Clock(0.0)
    made, server = hosted(clock), Machine(before, uneven(1))
    run = calls([made], clock, server)
    windows(made, run, 8_000)
    server.slots = after
    windows(made, run, 8_000)
    seen = windows(made, run, 8_000)
    assert 0.75 * after <= sum(seen) / len(seen) <= 2 * after


def test_a_server_that_takes_anything_gets_all_that_is_allowed_and_no_more() -> None:
    """The limit of calls in flight is reached and never passed, and one that the user named is used from the start."""
    clock = Clock(0.0)
    made, named = hosted(clock, 100), hosted(clock, 100, fixed=True)
    seen = windows(made, calls([made], clock, Machine(10_000, steady)), 6_000)
    assert max(seen) == 100
    assert sum(seen[3_000:]) / 3_000 >= 90
    assert set(windows(named, calls([named], clock, Machine(1, steady)), 500)) == {100}


def test_a_server_that_complains_has_a_quota_after_all() -> None:
    """From its first complaint on the window grows by one for each windowful of answers, like any other."""
    clock = Clock(0.0)
    made = hosted(clock)
    run = calls([made], clock, Machine(10_000, steady))
    windows(made, run, 3_000)
    made.cool_down(1.0)
    low = made.window
    seen = windows(made, run, 4 * low)
    assert seen == sorted(seen)
    assert low < seen[-1] <= low + 4


def test_fewer_rows_than_the_window_say_nothing_of_the_server() -> None:
    """While the job has too little to do the window stays: it is not the server that sets the pace then."""
    clock = Clock(0.0)
    climb = HillClimb(16, MOST, clock)
    for _ in range(2_000):
        clock.at += 0.1
        assert climb.answered(full=False) == 16


@pytest.mark.parametrize(
    ("at", "rate", "then"),
    [
        (Stand(16, 16), 8.0, Stand(32, 16, 8.0)),  # the first step
        (Stand(32, 16, 8.0), 9.7, Stand(64, 32, 9.7)),  # twice the calls for a fifth more answers: worth it
        (Stand(32, 16, 8.0), 9.6, Stand(16, 16, 8.0, up=False, step=1.25, rest=4)),
        (Stand(16, 16, 8.0, up=False, step=1.25, rest=4), 8.1, Stand(16, 16, 8.1, up=False, step=1.25, rest=3)),
        (Stand(16, 16, 8.0, up=False, step=1.25), 8.0, Stand(12, 16, 8.0, up=False, step=1.25)),
        (Stand(12, 16, 8.0, up=False, step=1.25), 7.7, Stand(9, 12, 7.7, up=False, step=1.25)),  # hardly any loss
        (Stand(12, 16, 8.0, up=False, step=1.25), 7.5, Stand(16, 16, 8.0, up=True, step=1.25, rest=4)),
        (Stand(16, 16, 8.0, up=False, step=1.25, rest=4), 11.0, Stand(32, 16, 11.0)),  # the server is another
        (Stand(16, 16, 8.0, up=True, step=1.25, rest=4), 5.0, Stand(8, 16, 5.0, up=False)),
        (Stand(90, 60, 8.0), 16.0, Stand(100, 90, 16.0)),  # not above the most
        (Stand(100, 90, 8.0), 16.0, Stand(100, 100, 16.0, up=False, step=1.25, rest=4)),
        (Stand(1, 1, 8.0, up=False, step=1.25), 8.0, Stand(1, 1, 8.0, up=True, step=1.25, rest=4)),  # nor below one
    ],
)
def test_where_it_goes_on(at: Stand, rate: float, then: Stand) -> None:
    """A step stays where it brought answers in proportion; else back, a rest, and the other way."""
    assert decide(at, rate, 100) == then
