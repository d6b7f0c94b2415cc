"""Servers that live by a clock of their own, and calls that a throttle lets through to them."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nightmill.lanes.throttle import Throttle
from nightmill.providers import RateHint


class Clock:
    """A clock that a test moves."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@dataclass(slots=True)
class Quota:
    """``limit`` a minute: given out anew each minute, or filled up all the time."""

    limit: int
    anew: bool
    left: float = math.inf
    since: float = 0.0

    def take(self, now: float, amount: int) -> bool:
        self._fill(now)
        if self.left < amount:
            return False
        self.left -= amount
        return True

    def reset_s(self, now: float) -> float:
        return self.since + 60 - now if self.anew else (self.limit - self.left) * 60 / self.limit

    def _fill(self, now: float) -> None:
        if self.anew:
            if now - self.since >= 60:
                self.since, self.left = now - (now - self.since) % 60, self.limit
            self.left = min(self.left, self.limit)
        else:
            self.left, self.since = min(self.limit, self.left + (now - self.since) * self.limit / 60), now


class Server(Protocol):
    """Takes calls, and says when each will be answered."""

    def begin(self, now: float) -> None: ...

    def next_end(self) -> float: ...

    def end(self, now: float) -> tuple[bool, RateHint | None]:
        """The call that ends now: whether it was answered, and what the headers say."""
        ...


@dataclass(slots=True)
class Machine:
    """Answers ``slots`` calls at once; the others wait in its queue."""

    slots: int
    takes_s: Callable[[], float]
    _waiting: int = 0
    _busy: list[float] = field(default_factory=list)

    def begin(self, now: float) -> None:
        self._waiting += 1
        self._fill(now)

    def next_end(self) -> float:
        return self._busy[0] if self._busy else math.inf

    def end(self, now: float) -> tuple[bool, None]:
        heapq.heappop(self._busy)
        self._fill(now)
        return True, None

    def _fill(self, now: float) -> None:
        while self._waiting and len(self._busy) < self.slots:
            self._waiting -= 1
            heapq.heappush(self._busy, now + self.takes_s())


@dataclass(slots=True)
class Metered:
    """Answers every call after ``takes_s``, or refuses it at once where its quota does not reach."""

    quota: Quota
    takes_s: float
    cost: int = 1
    tokens: bool = False
    served: int = 0
    refused: int = 0
    _ends: list[tuple[float, int, bool, RateHint]] = field(default_factory=list)

    def begin(self, now: float) -> None:
        good = self.quota.take(now, self.cost)
        self.served, self.refused = self.served + good, self.refused + (not good)
        limit, left, reset_s = self.quota.limit, int(self.quota.left), self.quota.reset_s(now)
        hint = (
            RateHint(None, limit, None, left, None, reset_s)
            if self.tokens
            else RateHint(limit, None, left, None, reset_s)
        )
        ends = now + (self.takes_s if good else 0.01)
        heapq.heappush(self._ends, (ends, self.served + self.refused, good, hint))

    def next_end(self) -> float:
        return self._ends[0][0] if self._ends else math.inf

    def end(self, now: float) -> tuple[bool, RateHint]:
        _, _, good, hint = heapq.heappop(self._ends)
        return good, hint


def calls(throttles: Sequence[Throttle], clock: Clock, server: Server, tokens: int = 1) -> Iterator[None]:
    """Call as often as the throttles allow, for ever; one turn for each call that ends."""
    under_way: deque[Throttle] = deque()
    while True:
        soonest = math.inf
        for throttle in throttles:
            while throttle.try_take(tokens):
                server.begin(clock.at)
                under_way.append(throttle)
            wait = throttle._wait_s()
            soonest = min(soonest, math.inf if wait is None else clock.at + wait + 1e-6)
        if soonest < server.next_end():
            clock.at = soonest
            continue
        clock.at = server.next_end()
        answered, hint = server.end(clock.at)
        caller = under_way.popleft()
        if hint is not None:
            caller.learn(hint)
        if not answered:
            caller.cool_down(1.0)
        caller.give_back(answered=answered)
        yield
