"""The throttle: no more in flight than allowed, no faster than allowed, one cool-down at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import throttle_kit
from throttle_kit import Clock, Metered, Quota

from nightmill.lanes.throttle import Rates, Throttle, spacing_s, tightest
from nightmill.providers import RateHint


def throttle(clock: Clock, **rates: Any) -> Throttle:
    return Throttle(Rates(**rates), clock)


async def _tries(taking: Coroutine[Any, Any, None]) -> bool:
    """Whether a slot is had without any time going by."""
    task = asyncio.ensure_future(taking)
    for _ in range(5):
        await asyncio.sleep(0)
    if task.done():
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


def has_slot(made: Throttle, tokens: int = 1) -> bool:
    return asyncio.run(_tries(made.take(tokens)))


def calls(made: Throttle, count: int, *, answered: bool) -> None:
    """So many calls, one after the other."""
    for _ in range(count):
        assert has_slot(made)
        made.give_back(answered=answered)


@pytest.mark.parametrize(("fixed", "first"), [(True, 40), (False, 16)])
def test_no_more_in_flight_than_the_window(fixed: bool, first: int) -> None:
    """A number that the user named is used at once; else it begins small."""
    made = throttle(Clock(), in_flight=40, fixed=fixed)
    assert [has_slot(made) for _ in range(first + 1)] == [True] * first + [False]
    made.give_back(answered=False)
    assert has_slot(made)
    assert made.in_flight == first
    assert made.most == 40


def test_the_window_grows_with_answers_and_halves_with_a_complaint() -> None:
    """One more for each answer; half after a 429, once for all that were in flight; then one for each windowful."""
    clock = Clock()
    made = throttle(clock, in_flight=40)
    calls(made, 2, answered=True)
    assert made.window == 18
    calls(made, 18, answered=False)
    assert made.window == 18
    assert made.cool_down(5.0) == 1005.0
    assert made.cool_down(50.0) is None  # said of calls that were sent before
    assert made.window == 9
    assert not has_slot(made)
    clock.at = 1005.0
    calls(made, 8, answered=True)
    assert made.window == 9
    calls(made, 2, answered=True)
    assert made.window == 10
    assert made.cool_down(1.0) == 1006.0
    assert made.window == 5


def test_calls_that_wait_past_their_time_are_too_many() -> None:
    """A server that refuses nothing gets half as many after a late call, once for all sent before; no other does."""
    clock = Clock()
    made, hosted = throttle(clock, in_flight=40, self_hosted=True), throttle(clock, in_flight=40)
    clock.at = 1120.0
    for _ in range(3):
        made.late(1000.0)
        hosted.late(1000.0)
    assert (made.window, hosted.window) == (8, 16)
    calls(made, 9, answered=True)
    assert made.window == 9  # one more a windowful from now on
    made.late(1120.0)
    assert made.window == 4


def test_a_crowded_tier_gets_fewer_calls_at_once_and_nobody_waits() -> None:
    """Halved once for all calls sent before that, whoever the provider is; a call may go at once."""
    clock = Clock()
    made = throttle(clock, in_flight=40)
    clock.at = 1120.0
    for _ in range(3):
        made.crowded(1000.0)
    assert made.window == 8
    assert made.try_take(1)


def test_a_window_never_closes_or_passes_its_limit() -> None:
    """One call at least, and never more than the limit, shared by the workers there are."""
    clock = Clock()
    made = throttle(clock, in_flight=3)
    for _ in range(10):
        made.cool_down(1.0)
        clock.at += 2.0
    assert made.window == 1
    for _ in range(100):
        assert has_slot(made)
        made.give_back(answered=True)
    assert made.window == 3
    made.workers = 9
    assert made.window == 1


@pytest.mark.parametrize(("rates", "tokens"), [({"requests_per_minute": 30.0}, 1), ({"tokens_per_minute": 600.0}, 20)])
def test_rates_are_kept(rates: dict[str, float], tokens: int) -> None:
    """Calls are spread over the minute, by number or by tokens, and the pace is shared by the workers."""
    clock = Clock()
    made = throttle(clock, **rates)
    assert has_slot(made, tokens)
    assert not has_slot(made, tokens)
    clock.at += 1.9
    assert not has_slot(made, tokens)
    clock.at += 0.1
    assert has_slot(made, tokens)
    made.workers = 2
    clock.at += 3.9
    assert not has_slot(made, tokens)
    clock.at += 0.1
    assert has_slot(made, tokens)


def test_a_pause_earns_no_burst() -> None:
    """After a quiet hour the pace is what it was."""
    clock = Clock()
    made = throttle(clock, requests_per_minute=60.0)
    assert has_slot(made)
    clock.at += 3600.0
    assert [has_slot(made), has_slot(made)] == [True, False]


def test_a_cool_down_heard_of_elsewhere_counts_here() -> None:
    """Another worker was told to wait: so does this one, and a shorter word does not shorten it."""
    clock = Clock()
    made = throttle(clock)
    made.cool_until(1010.0)
    made.cool_until(1005.0)
    clock.at = 1009.0
    assert not has_slot(made)
    clock.at = 1010.0
    assert has_slot(made)


@pytest.mark.parametrize(
    ("hint", "until"),
    [
        (RateHint(remaining_requests=0, reset_requests_s=3.0), 1003.0),
        (RateHint(remaining_tokens=0, reset_tokens_s=4.0), 1004.0),
        (RateHint(remaining_tokens=0, reset_tokens_s=4000.0), 1060.0),
        (RateHint(remaining_requests=1, reset_requests_s=0.9), 1000.0),
        (RateHint(remaining_requests=0), 1000.0),
        (RateHint(), 1000.0),
    ],
)
def test_headers_that_say_nothing_is_left_are_believed(hint: RateHint, until: float) -> None:
    """It waits for the reset before the provider has to refuse, but not for ever."""
    clock = Clock()
    made = throttle(clock)
    made.learn(hint)
    assert has_slot(made) is (until == 1000.0)
    clock.at = until
    assert has_slot(made)


@pytest.mark.parametrize(
    ("limit", "left", "reset_s", "spacing"),
    [
        (100, 50, 30.0, 0.3),  # twice as fast as 50 would last 30 s
        (None, 50, 30.0, 0.3),
        (100, 100, 0.0, 0.0),
        (100, 99, 0.6, 0.0),  # whole again in a moment
        (6000, 0, 60.0, 0.3),  # as if a second's worth were left
        (None, 0, 60.0, 30.0),
        (14_400, 100, 85_000.0, 0.0),  # a quota of a day is used as fast as the job goes
        (120, None, None, 0.5),
        (120, 5, None, 0.5),
        (None, None, None, None),
        (None, 5, None, None),
    ],
)
def test_how_far_apart_the_headers_want_calls(
    limit: int | None, left: int | None, reset_s: float | None, spacing: float | None
) -> None:
    """So that what is left lasts until there is more; nothing is made up where the headers are silent."""
    assert spacing_s(limit, left, reset_s) == pytest.approx(spacing)


def for_five_minutes(throttles: list[Throttle], clock: Clock, server: Metered, tokens: int = 1) -> None:
    for _ in throttle_kit.calls(throttles, clock, server, tokens):
        if clock.at >= 300.0:
            return


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("anew", [False, True], ids=["fills up", "anew each minute"])
@pytest.mark.parametrize(("limit", "takes_s"), [(500, 0.5), (500, 2.0), (3000, 2.0)])
def test_a_quota_told_by_headers_is_used_and_not_passed(limit: int, takes_s: float, anew: bool, workers: int) -> None:
    """All of it is used in five minutes, and hardly a call is refused, however the quota renews and however many share
    it."""
    clock = Clock(0.0)
    server = Metered(Quota(limit, anew), takes_s)
    sharing = [throttle(clock) for _ in range(workers)]
    for each in sharing:
        each.workers = workers
    for_five_minutes(sharing, clock, server)
    assert server.served >= 0.97 * 5 * limit
    assert server.refused <= 0.01 * server.served


@pytest.mark.parametrize("guess", [100, 2000])
def test_tokens_are_paced_by_what_they_turn_out_to_cost(guess: int) -> None:
    """What the headers say is left corrects a guess of the tokens that is twenty times too high."""
    clock = Clock(0.0)
    server = Metered(Quota(60_000, anew=False), 1.0, cost=100, tokens=True)
    for_five_minutes([throttle(clock)], clock, server, guess)
    assert server.refused == 0
    assert server.served >= 0.95 * 5 * 600


@pytest.mark.parametrize("rates", [{"requests_per_minute": 30.0}, {"tokens_per_minute": 60.0}])
def test_headers_never_loosen_what_the_user_asked(rates: dict[str, float]) -> None:
    """A provider that allows more changes nothing about --rpm and --tpm; one that allows less is heard."""
    clock = Clock()
    made = throttle(clock, **rates)
    made.learn(RateHint(9000, 9000, 9000, 9000, 30.0, 30.0))
    assert has_slot(made, 2)
    clock.at += 1.9
    assert not has_slot(made, 2)
    clock.at += 0.2
    made.learn(RateHint(9, 9, 3, 6, 30.0, 30.0))
    assert not has_slot(made, 2)
    clock.at += 3.0
    assert has_slot(made, 2)


def test_a_quota_that_is_whole_again_lets_waiters_go() -> None:
    """Whoever waits for a pace that the headers asked for goes on as soon as they ask for it no more."""

    async def go() -> list[bool]:
        made = throttle(Clock())
        made.learn(RateHint(10, None, 1, None, 50.0))
        await made.take(1)
        waits = asyncio.ensure_future(made.take(1))
        for _ in range(5):
            await asyncio.sleep(0)
        seen = [waits.done()]
        made.learn(RateHint(10, None, 10, None, 0.0))
        await asyncio.wait([waits], timeout=5.0)
        return [*seen, waits.done()]

    assert asyncio.run(go()) == [False, True]


def test_whoever_waits_is_woken_by_a_call_that_ends() -> None:
    """A slot that comes free is taken at once, by one waiter each, and a waiter that gave up takes none."""

    async def go() -> list[bool]:
        made = throttle(Clock(), in_flight=1, fixed=True)
        await made.take(1)
        gone, first, second = (asyncio.ensure_future(made.take(1)) for _ in range(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        made.give_back(answered=True)
        await asyncio.wait([first], timeout=5.0)
        seen = [first.done(), second.done()]
        made.give_back(answered=True)
        await asyncio.wait([second], timeout=5.0)
        return [*seen, second.done()]

    assert asyncio.run(go()) == [True, False, True]


def test_who_goes_on_at_once_keeps_its_slot() -> None:
    """A slot given back and taken again wakes nobody for nothing; one not taken again goes to a waiter."""

    async def go() -> list[bool]:
        made = throttle(Clock(), in_flight=1, fixed=True)
        await made.take(1)
        waits = asyncio.ensure_future(made.take(1))
        await asyncio.sleep(0)
        made.give_back(answered=True)
        kept = made.try_take(1)
        for _ in range(5):
            await asyncio.sleep(0)
        seen = [kept, waits.done()]
        made.give_back(answered=True)
        await asyncio.wait([waits], timeout=5.0)
        return [*seen, waits.done()]

    assert asyncio.run(go()) == [True, False, True]


def test_all_who_wait_for_the_rates_get_through() -> None:
    """Waiters go one after the other as the pace allows, also after one of them gave up on its turn."""

    async def go() -> int:
        made = throttle(Clock(), requests_per_minute=60_000.0, in_flight=64, fixed=True)
        made._now = asyncio.get_running_loop().time
        waiting = [asyncio.ensure_future(made.take(1)) for _ in range(30)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5.0)
        given_up = [task for task in waiting if not task.done()][:2]
        for task in given_up:
            task.cancel()
        await asyncio.wait(waiting, timeout=5.0)
        return sum(task.done() and not task.cancelled() for task in waiting)

    assert asyncio.run(go()) == 28


def test_jobs_that_share_a_quota_keep_to_the_least_of_each() -> None:
    """Of every limit the lowest that anybody named; a job that names none loosens none."""
    mine, yours = Rates(60, None, 8, fixed=True), Rates(30, 900, 256)
    assert tightest([mine, yours]) == Rates(30, 900, 8, fixed=True)
    assert tightest([yours]) == yours
    assert tightest([Rates(in_flight=4, fixed=True), Rates(in_flight=2)]) == Rates(in_flight=2)


def test_new_rates_hold_at_once_and_forget_nothing() -> None:
    """A shrunk window and a pause outlast a change of rates; a number that the user named counts as it is."""
    clock = Clock()
    made = throttle(clock, in_flight=40)
    made.cool_down(5.0)
    made.keep_to(Rates(in_flight=30))
    assert made.window == 8
    assert not has_slot(made)
    made.keep_to(Rates(in_flight=3, fixed=True))
    clock.at += 5.0
    assert [has_slot(made) for _ in range(4)] == [True, True, True, False]
    made.keep_to(Rates(in_flight=4, fixed=True))
    assert has_slot(made)
