"""How fast live calls may go: requests and tokens a minute, calls in flight, one cool-down per quota.

One throttle per engine and quota (account and model), shared by all jobs that use it. What several
workers share is allotted in the ledger: each takes its part of a limit, by how many workers live now.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from nightmill.providers import RateHint

_FIRST_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Rates:
    """What the user, or the provider, allows. None: not limited."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    in_flight: int = 256
    fixed: bool = False  # the user named the number in flight: it does not adapt


def tightest(rates: Collection[Rates]) -> Rates:
    """What keeps to all of ``rates``: jobs that share a quota share the least that any of them may use."""
    in_flight = min(each.in_flight for each in rates)
    return Rates(
        min((each.requests_per_minute for each in rates if each.requests_per_minute), default=None),
        min((each.tokens_per_minute for each in rates if each.tokens_per_minute), default=None),
        in_flight,
        any(each.fixed and each.in_flight == in_flight for each in rates),
    )


class Throttle:
    """Slots for live calls. ``now`` is a clock in seconds that never jumps.

    The window of calls in flight begins small, grows by one for each windowful of answers, and is
    halved when the provider says it is too much.
    """

    def __init__(self, rates: Rates, now: Callable[[], float]) -> None:
        self._rates, self._now = rates, now
        self.workers = 1
        self._window = _first_window(rates)
        self._in_flight = 0
        self._next_request = self._next_tokens = 0.0  # when the rates allow the next call
        self._cool_until = 0.0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._call: asyncio.Handle | None = None  # to `_admit`, soon or when the rates allow

    def keep_to(self, rates: Rates) -> None:
        """Other rates from now on; calls in flight, pauses and what was learned of the window stay."""
        if rates == self._rates:
            return
        learned = not (rates.fixed or self._rates.fixed)
        self._window = min(float(rates.in_flight), self._window) if learned else _first_window(rates)
        self._rates = rates
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
        rates = self._rates
        if rates.requests_per_minute:
            gap = 60.0 * self.workers / rates.requests_per_minute
            self._next_request = max(self._next_request, self._now()) + gap
        if rates.tokens_per_minute:
            gap = 60.0 * self.workers * tokens / rates.tokens_per_minute
            self._next_tokens = max(self._next_tokens, self._now()) + gap
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
        self._in_flight -= 1
        if answered and not self._rates.fixed and self._window < self._rates.in_flight:
            self._window += 1.0 / self._window
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
        if not self._rates.fixed:
            self._window = max(1.0, self._window / 2)
        return self._cool_until

    def cool_until(self, moment: float) -> None:
        """Another worker was told to wait until ``moment``."""
        self._cool_until = max(self._cool_until, moment)

    def learn(self, hint: RateHint) -> None:
        """Headers that say nothing is left: wait for the reset before the provider has to say so."""
        for left, reset in (
            (hint.remaining_requests, hint.reset_requests_s),
            (hint.remaining_tokens, hint.reset_tokens_s),
        ):
            if left == 0 and reset:
                self.cool_until(self._now() + min(reset, 60.0))

    def _wait_s(self) -> float | None:
        """Seconds until the next slot: 0.0 is now, None is when a call ends."""
        opens = max(self._cool_until, self._next_request, self._next_tokens)
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
