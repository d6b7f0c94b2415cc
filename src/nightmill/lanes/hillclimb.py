"""How many calls at once a server without a quota is worth: as many as it answers more of for.

Such a server refuses nothing; what is too much for it waits in its queue. So the window is found by
climbing: a step up stays where more answers came for it, a step down where hardly fewer did, and
after a step that was taken back it rests. It ends near the knee, where more calls only wait longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

_STRIDE, _STEP = 2.0, 1.25  # on unknown ground, and near where a step was taken back
_WORTH = 0.2  # a tenth more calls is worth it for a fiftieth more answers
_REST = 4  # measurements between a step that was taken back and the next
_CHANGE = 0.3  # the server itself is another: it is climbed anew
_FEWEST = 100  # answers that make a measurement
_MOST_SHORT = 0.1  # of them while fewer calls were under way than may be: then it was not the server that was measured


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the climb stands: on its foothold, or a step up or down from there, to see what comes of it."""

    window: int
    foothold: int
    rate: float = 0.0  # answers a second on the foothold, as last measured
    up: bool = True  # where the step goes: the present one, else the next
    step: float = _STRIDE
    rest: int = 0  # measurements before the next step

    def go_on(self, most: int) -> Stand:
        """A step from the foothold, or a rest there where none leads further this way."""
        up, down = math.ceil(self.foothold * self.step), math.floor(self.foothold / self.step)
        window = min(most, up) if self.up else max(1, down)
        return replace(self, window=window) if window != self.foothold else self.turn()

    def turn(self) -> Stand:
        """Back on the foothold; the next step is a small one the other way."""
        return replace(self, window=self.foothold, up=not self.up, step=_STEP, rest=_REST)


def decide(at: Stand, rate: float, most: int) -> Stand:
    """Where to go on after ``rate`` answers a second came where it stands; no window is above ``most``."""
    if at.window != at.foothold:
        if rate <= at.rate * (1 + _WORTH * (at.window / at.foothold - 1)):
            return at.turn()
        return replace(at, foothold=at.window, rate=rate).go_on(most)
    if abs(rate - at.rate) > _CHANGE * at.rate:
        return replace(at, rate=rate, up=rate > at.rate, step=_STRIDE, rest=0).go_on(most)
    if at.rest:
        return replace(at, rate=rate, rest=at.rest - 1)
    return replace(at, rate=rate).go_on(most)


class HillClimb:
    """A window that climbs. ``now`` is a clock in seconds that never jumps."""

    def __init__(self, first: int, most: int, now: Callable[[], float]) -> None:
        self._at = Stand(first, first)
        self._most, self._now = most, now
        self._answers = self._short = 0
        self._since: float | None = None  # when the measurement began; None: calls from before the step still end

    def answered(self, *, full: bool) -> int:
        """One more call was answered; the window from now on. ``full``: as many were under way as may be."""
        window = self._at.window
        self._answers += 1
        if self._since is None:
            if self._answers >= window:
                self._measure()
            return window
        self._short += not full
        if self._answers < window * max(2, math.ceil(_FEWEST / window)):  # whole windowfuls: they may end together
            return window
        took_s = self._now() - self._since
        if took_s <= 0 or self._short > _MOST_SHORT * self._answers:
            self._measure()
            return window
        self._at = decide(self._at, self._answers / took_s, self._most)
        self._measure()
        if self._at.window != window:
            self._since = None
        return self._at.window

    def _measure(self) -> None:
        self._answers = self._short = 0
        self._since = self._now()
