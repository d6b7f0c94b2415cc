"""A deadline: how long a job may wait for its batches, and which of them must be cancelled to finish it live.

Pure functions of what is known: no clock and no chance of their own. Times are seconds on one clock,
whichever the caller likes, as long as it is the same for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

_MARGIN = 1.2  # of the time that live calls take: a quota fills up slower, an answer comes slower than it used to
_LEAST_IN_TURN = 1_000  # rows of a batch; below that there would be too many batches


class Decision(Enum):
    WAIT = "wait"  # the batch may yet be in time, and if it is not, live calls will be
    CANCEL = "cancel"  # what it has not done has to run live from now on


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast things go here, measured or, where nothing was measured yet, assumed."""

    live_rate: float  # rows a second, of live calls of the whole job
    cancel_p95_s: float  # from asking for a cancel to a batch that has ended, in 95 of 100 cases
    collect_s: float  # from the end of a batch to its leftover rows being ready to go out
    is_guess: bool = False  # the live rate: no live calls were measured yet

    @property
    def turn_s(self) -> float:
        """From deciding to cancel a batch to the first live call for what it left over."""
        return self.cancel_p95_s + self.collect_s


@dataclass(frozen=True, slots=True)
class RowsLeft:
    """Rows of a job that nobody has answered yet, as far as is known."""

    batch: int  # in batches that may be waited for, or bound for one
    live: int  # live, or about to be: in batches that are being cancelled

    @property
    def total(self) -> int:
        return self.batch + self.live


def live_s(rows: int, pace: Pace) -> float:
    """Seconds that live calls for so many rows take, with a margin."""
    return _MARGIN * rows / pace.live_rate


def buffer_s(left: RowsLeft, pace: Pace) -> float:
    """Seconds before the deadline at which rows have to be taken back from batches, unless answers come first.

    The sum of what then happens one after the other: cancel, collect, run the rest live, with a margin.
    """
    return pace.turn_s + live_s(left.total, pace)


def turns_at(now: float, deadline: float, left: RowsLeft, pace: Pace) -> float:
    """The moment from which `decide` says CANCEL if nothing is answered until then; infinity: at none.

    Live calls that are busy anyway answer as many rows as time passes for, so that a cancel keeps its time until they
    could be about to run out of rows, be they faster than they used to be: batches are cancelled one after the other,
    the last ones often not at all. Nothing is waited for once the deadline has passed, nor where live calls are only
    guessed to be that fast and even by that guess could hardly be in time.
    """
    if left.batch <= 0:
        return math.inf
    dry_s = left.live / (_MARGIN * pace.live_rate)
    in_turn = max(deadline - buffer_s(left, pace), now + dry_s - pace.turn_s)
    return min(in_turn, deadline - left.total / pace.live_rate if pace.is_guess else deadline)


def rows_in_turn(pace: Pace) -> int:
    """Rows of a batch that, taken back, keep live calls busy until the next one could be: for two turns."""
    return max(_LEAST_IN_TURN, int(2 * pace.turn_s * pace.live_rate))


def decide(now: float, deadline: float, left: RowsLeft, pace: Pace) -> Decision:
    """Whether one more batch of the job may be waited for at ``now``, or has to be cancelled.

    Asked again at each look: what was answered meanwhile leaves more time for the rest, and what was
    cancelled since counts among the rows that run live.
    """
    return Decision.CANCEL if now >= turns_at(now, deadline, left, pace) else Decision.WAIT
