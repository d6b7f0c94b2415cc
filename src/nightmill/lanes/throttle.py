"""How fast live calls may go: requests and tokens a minute, calls in flight, one cool-down per quota.

One throttle per engine and quota (account and model), shared by all jobs that use it. What several
workers share is allotted in the ledger: each takes its part of a limit, by how many workers live now.
Every answer of a provider with a quota tells all of them how much of it is left.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from nightmill.lanes.hillclimb import HillClimb
from nightmill.providers import RateHint

_FIRST_WINDOW = 16
_MINUTE_S = 60.0
_SOON_S = 1.0  # a quota that is whole again so soon is as good as untouched


@dataclass(frozen=True, slots=True)
class Rates:
    """What the user, or the provider, allows. None: not limited."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    in_flight: int = 256
    fixed: bool = False  # the user named the number in flight: it does not adapt
    self_hosted: bool = False  # no quota: the number in flight adapts to how many calls are answered


def tightest(rates: Collection[Rates]) -> Rates:
    """What keeps to all of ``rates``: jobs that share a quota share the least that any of them may use."""
    in_flight = min(each.in_flight for each in rates)
    return Rates(
        min((each.requests_per_minute for each in rates if each.requests_per_minute), default=None),
        min((each.tokens_per_minute for each in rates if each.tokens_per_minute), default=None),
        in_flight,
        any(each.fixed and each.in_flight == in_flight for each in rates),
        all(each.self_hosted for each in rates),
    )


def spacing_s(limit: int | None, left: int | None, reset_s: float | None) -> float | None:
    """Seconds from one request, or token, to the next that a quota's headers ask for. None: they do not say.

    Twice the pace at which what is left would last until the reset. A quota that is new each minute is so
    used up just as it ends; one that fills up all the time is never empty, and is used as fast as it fills.
    Where next to nothing is left, as if it were a second's worth. A quota of a day is not spread over the
    day. Where only the limit is known, it is one of a minute.
    """
    if left is None or reset_s is None:
        return _MINUTE_S / limit if limit else None
    if not _SOON_S <= reset_s <= _MINUTE_S:
        return 0.0
    return reset_s / (2 * max(left, (limit or 0) / _MINUTE_S, 1))


class Throttle:
    """Slots for live calls. ``now`` is a clock in seconds that never jumps.

    The window of calls in flight begins small and grows by one with each answer. It is halved when the
    provider says it is too much, and from the first time on grows by one for each windowful of answers.
    Where nobody would say so, and nobody did, it climbs (`HillClimb`), until calls wait past their time.
    """

    def __init__(self, rates: Rates, now: Callable[[], float]) -> None:
        self._rates, self._now = rates, now
        self.workers = 1
        self._window = _first_window(rates)
        self._complained = False  # the provider did, once at least
        self._climb = self._new_climb()
        self._in_flight = 0
        self._told = [0.0, 0.0]  # seconds from one request, and from one token, to the next, as headers have it
        self._request_s, self._token_s = self._spacing()
        self._last, self._last_tokens = -math.inf, 0  # the last call that was spaced
        self._cool_until = 0.0
        self._halved = -math.inf  # when the window was
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._call: asyncio.Handle | None = None  # to `_admit`, soon or when the rates allow

    def keep_to(self, rates: Rates) -> None:
        """Other rates from now on; calls in flight, pauses and what was learned of the window stay."""
        if rates == self._rates:
            return
        learned = not (rates.fixed or self._rates.fixed)
        self._window = min(float(rates.in_flight), self._window) if learned else _first_window(rates)
        self._rates = rates
        self._climb = self._new_climb()
        self._request_s, self._token_s = self._spacing()
        if self._waiters:
            self._admit()

    @property
    def window(self) -> int:
        """Calls that may be in flight now, in this process."""
        return max(1, int(self._window) // self.workers)

    @property
    def most(self) -> int:
        """Calls that may ever be in flight."""
        return self._rates.in_flight

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def try_take(self, tokens: int) -> bool:
        """Take a slot for a call of about ``tokens`` tokens if one is free now; `give_back` ends it."""
        if self._wait_s() != 0.0:
            return False
        self._in_flight += 1
        if self._request_s or self._token_s:
            self._last, self._last_tokens = self._now(), tokens
        return True

    async def take(self, tokens: int) -> None:
        """Wait for a slot for a call of about ``tokens`` tokens; `give_back` ends it."""
        while not self.try_take(tokens):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._admit()
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                self._admit()  # it may have been this one's turn
                raise
        self._admit()  # there may be room for the next one

    def give_back(self, *, answered: bool) -> None:
        """The call is over; ``answered``: the provider took it without complaint."""
        if answered and not self._rates.fixed:
            if self._climb is not None:
                self._window = self._climb.answered(full=4 * self._in_flight >= 3 * self.window)
            elif self._window < self._rates.in_flight:
                self._window += 1.0 / self._window if self._complained else 1.0
        self._in_flight -= 1
        if self._waiters:  # soon, not now: who gives a slot back mostly has a next call, and goes on at once
            self._admit_in(0.0)

    def cool_down(self, seconds: float) -> float | None:
        """The provider asks for less: pause all calls. The moment it ends, or None if one is under way.

        Answers to calls sent before the pause began say the same again and do not lengthen it.
        """
        now = self._now()
        if now < self._cool_until:
            return None
        self._cool_until = now + seconds
        self._halve(now)
        return self._cool_until

    def late(self, began: float) -> None:
        """A call sent at ``began`` was not answered in its time: so a server says it is too much that refuses nothing.

        Of calls sent before the window was last halved it says nothing new.
        """
        if self._rates.self_hosted:
            self.crowded(began)

    def crowded(self, began: float) -> None:
        """A call sent at ``began`` showed that fewer at once would do as well. Nobody waits."""
        if began >= self._halved:
            self._halve(self._now())

    def cool_until(self, moment: float) -> None:
        """Another worker was told to wait until ``moment``."""
        self._cool_until = max(self._cool_until, moment)

    def learn(self, hint: RateHint) -> None:
        """Go no faster than the headers of an answer allow, before the provider has to say so."""
        quotas = (
            (hint.limit_requests, hint.remaining_requests, hint.reset_requests_s),
            (hint.limit_tokens, hint.remaining_tokens, hint.reset_tokens_s),
        )
        for which, (limit, left, reset_s) in enumerate(quotas):
            told = spacing_s(limit, left, reset_s)
            self._told[which] = self._told[which] if told is None else told
            if left == 0 and reset_s:
                self.cool_until(self._now() + min(reset_s, _MINUTE_S))
        before = self._request_s, self._token_s
        self._request_s, self._token_s = now = self._spacing()
        if self._call is not None and now != before:  # whoever waits may not have to wait so long
            self._admit()

    def _halve(self, now: float) -> None:
        self._complained, self._climb, self._halved = True, None, now
        if not self._rates.fixed:
            self._window = max(1.0, self._window / 2)

    def _spacing(self) -> tuple[float, float]:
        """Seconds from one request, and from one token, to the next: what the user allows, or less."""
        per_minute = self._rates.requests_per_minute, self._rates.tokens_per_minute
        asked = [_MINUTE_S / rate if rate else 0.0 for rate in per_minute]
        return max(asked[0], self._told[0]), max(asked[1], self._told[1])

    def _new_climb(self) -> HillClimb | None:
        """From the window as it is."""
        climbs = self._rates.self_hosted and not (self._rates.fixed or self._complained)
        return HillClimb(int(self._window), self._rates.in_flight, self._now) if climbs else None

    def _wait_s(self) -> float | None:
        """Seconds until the next slot: 0.0 is now, None is when a call ends."""
        opens = self._cool_until
        if self._request_s or self._token_s:
            between = self.workers * max(self._request_s, self._token_s * self._last_tokens)
            opens = max(opens, self._last + between)
        if opens and (wait := opens - self._now()) > 0.0:
            return wait
        return 0.0 if self._in_flight < self.window else None

    def _admit(self) -> None:
        """Wake one waiter if it can go now; it wakes the next. Or come back when the rates allow."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        while self._waiters and self._waiters[0].done():
            self._waiters.popleft()
        if not self._waiters:
            return
        wait = self._wait_s()
        if wait == 0.0:
            self._waiters.popleft().set_result(None)
        elif wait is not None:
            self._admit_in(wait)

    def _admit_in(self, wait: float) -> None:
        if self._call is None:
            loop = asyncio.get_running_loop()
            self._call = loop.call_later(wait, self._admit) if wait else loop.call_soon(self._admit)


def _first_window(rates: Rates) -> float:
    return float(rates.in_flight if rates.fixed else min(_FIRST_WINDOW, rates.in_flight))
