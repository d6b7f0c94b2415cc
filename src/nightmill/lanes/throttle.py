"""How fast live calls may go: requests and tokens a minute, calls in flight, one cool-down per quota.

One throttle per process and quota (account and model). What several workers share is allotted in
the ledger: each takes its part of a limit, by how many workers live now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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


class Throttle:
    """Slots for live calls. ``now`` is a clock in seconds that never jumps.

    The window of calls in flight begins small, grows by one for each windowful of answers, and is
    halved when the provider says it is too much.
    """

    def __init__(self, rates: Rates, now: Callable[[], float]) -> None:
        self._rates, self._now = rates, now
        self.workers = 1
        self._window = float(rates.in_flight if rates.fixed else min(_FIRST_WINDOW, rates.in_flight))
        self._in_flight = 0
        self._next_request = self._next_tokens = 0.0  # when the rates allow the next call
        self._cool_until = 0.0
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

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

    async def take(self, tokens: int) -> None:
        """Wait for a slot for a call of about ``tokens`` tokens; `give_back` ends it."""
        while (wait := self._wait_s()) != 0.0:
            await self._sleep(wait)
        self._in_flight += 1
        now = self._now()
        if self._rates.requests_per_minute:
            gap = 60.0 * self.workers / self._rates.requests_per_minute
            self._next_request = max(self._next_request, now) + gap
        if self._rates.tokens_per_minute:
            gap = 60.0 * self.workers * tokens / self._rates.tokens_per_minute
            self._next_tokens = max(self._next_tokens, now) + gap

    def give_back(self, *, answered: bool) -> None:
        """The call is over; ``answered``: the provider took it without complaint."""
        self._in_flight -= 1
        if answered and not self._rates.fixed and self._window < self._rates.in_flight:
            self._window += 1.0 / self._window
        self._wake()

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
        now = self._now()
        wait = max(self._cool_until, self._next_request, self._next_tokens) - now
        if wait > 0.0:
            return wait
        return 0.0 if self._in_flight < self.window else None

    async def _sleep(self, wait: float | None) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(wait):
                await waiter
        except TimeoutError:
            return
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                return
