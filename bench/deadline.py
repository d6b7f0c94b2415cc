"""Claim: a deadline is kept, each row is paid for once, and most rows still cost half.

The product's own `decide` over a simulated clock, 200 jobs of 1,000 to 1,000,000 rows, in batches of the size that
the product cuts under a deadline (at most 50,000 rows). A batch's delay is log-normal (half of them end within 1 h,
nine of ten within 6 h), 3 of 100 stop somewhere and never end; a cancel takes 0 to 10 minutes, in which the batch goes
on answering rows; collecting takes up to a minute; live calls go up to 15 % slower or faster than the 5 to 50 rows a
second that were measured. Deadlines are 2 to 20 h away. Only jobs that live calls alone, begun at once, would finish
in time are counted.

Rivals, over the same batches: a fixed buffer of 15 % of the time, with cancels and live calls like ours; live
only; and a clairvoyant, who knows how long everything will take, cancels the batches that would be late, and at
the last moment that is in time. A row costs 1 live and 0.5 in a batch. The rules were tuned on the seeds from 10,000
on, the figures are from the seeds 0 to 199.
"""

from __future__ import annotations

import heapq
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from _kit import Figure, arguments, report

from nightmill.lanes.deadline import Decision, Pace, RowsLeft, decide, rows_in_turn, turns_at

_HOUR_S = 3600.0
_P50_S, _P90_S = 1 * _HOUR_S, 6 * _HOUR_S
_SIGMA = math.log(_P90_S / _P50_S) / 1.2815515655446004  # the normal distribution's 90 % quantile
_NEVER = 0.03
_BATCH_ROWS = 50_000
_CANCEL_S, _COLLECT_S = 600.0, 60.0  # at most
_POLL_S, _POLL_MAX_S = 30.0, 600.0  # as the product's settings are
_HALF = 0.5  # a batch row's price


@dataclass(frozen=True, slots=True)
class Batch:
    """All that is going to happen to one batch; times are seconds after the job's beginning."""

    rows: int
    begins: float  # when it answers its first row
    ends: float  # when it would answer its last one
    most: int  # rows that it ever answers: fewer than it has, if it never ends
    cancel_s: float
    collect_s: float

    def answered(self, at: float) -> int:
        share = min(1.0, max(0.0, (at - self.begins) / (self.ends - self.begins)))
        return min(self.most, int(self.rows * share))

    def is_in_time(self, deadline: float) -> bool:
        return self.most == self.rows and self.ends + self.collect_s <= deadline


@dataclass(frozen=True, slots=True)
class Story:
    """All that is going to happen to one job."""

    batches: tuple[Batch, ...]
    deadline: float
    measured: float  # live rows a second, as known
    real: float  # ... and as they turn out to be

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Course:
    """How a job went."""

    done: float  # when its last row was answered
    batch: int  # rows paid for in batches
    live: int

    @property
    def cost(self) -> float:
        return self.batch * _HALF + self.live


When = Callable[[float, RowsLeft], float]
"""From which moment on a batch that was just looked at is to be cancelled, by the time and the rows left."""


def story(seed: int) -> Story:
    chance = random.Random(seed)
    rows = round(math.exp(chance.uniform(math.log(1_000), math.log(1_000_000))))
    measured = math.exp(chance.uniform(math.log(5), math.log(50)))
    most = min(_BATCH_ROWS, rows_in_turn(pace(measured)))
    sizes = [min(most, rows - first) for first in range(0, rows, most)]
    deadline, real = chance.uniform(2, 20) * _HOUR_S, measured * chance.uniform(0.85, 1.15)
    return Story(tuple(_batch(chance, size) for size in sizes), deadline, measured, real)


def pace(measured: float) -> Pace:
    """What is known of how fast things go, with ``measured`` live rows a second."""
    return Pace(measured, 0.95 * _CANCEL_S, _COLLECT_S + _POLL_S)


def _batch(chance: random.Random, rows: int) -> Batch:
    ends = math.exp(chance.gauss(math.log(_P50_S), _SIGMA))
    most = int(rows * chance.random()) if chance.random() < _NEVER else rows
    begins = ends * chance.uniform(0.0, 0.9)
    return Batch(rows, begins, ends, most, chance.uniform(0, _CANCEL_S), chance.uniform(1, _COLLECT_S))


class _Run:
    """One job on a simulated clock: each batch is polled like the batch lane does it, the live lane never rests."""

    def __init__(self, job: Story, when: When) -> None:
        self._job, self._when = job, when
        self._left = {n: batch.rows for n, batch in enumerate(job.batches)}  # as last seen, of what is waited for
        self._coming: dict[int, int] = {}  # rows left in batches that are being cancelled ...
        self._over: dict[int, float] = {}  # ... and when they have ended
        self._live_until = self._done = 0.0
        self._paid = self._live = 0

    def course(self) -> Course:
        looks = [(0.0, n) for n in self._left]
        while looks:
            now, n = heapq.heappop(looks)
            batch = self._job.batches[n]
            if n in self._coming:
                self._go_live(now + batch.collect_s if now else 0.0, n, batch.answered(self._over[n]))
                continue
            self._left[n] = left = batch.rows - batch.answered(now)
            if not left:
                self._paid += batch.rows
                self._done = max(self._done, now + batch.collect_s)
                del self._left[n]
            elif (cancel := self._when(now, self._rows_left(now))) > now:
                heapq.heappush(looks, (min(cancel, now + min(_POLL_MAX_S, max(_POLL_S, 0.02 * now))), n))
            else:
                heapq.heappush(looks, (self._cancel(now, n), n))
        return Course(max(self._done, self._live_until), self._paid, self._live)

    def _rows_left(self, now: float) -> RowsLeft:
        under_way = max(0.0, self._live_until - now) * self._job.real
        return RowsLeft(sum(self._left.values()), int(under_way) + sum(self._coming.values()))

    def _cancel(self, now: float, n: int) -> float:
        """When it is seen that the batch has ended; one that was not handed over yet is only cut."""
        batch = self._job.batches[n]
        self._coming[n] = self._left.pop(n)
        self._over[n] = now + batch.cancel_s if now else 0.0
        return now + _POLL_S * math.ceil(batch.cancel_s / _POLL_S) if now else 0.0

    def _go_live(self, at: float, n: int, kept: int) -> None:
        left = self._job.batches[n].rows - kept
        del self._coming[n]
        self._paid += kept
        self._live += left
        self._live_until = max(self._live_until, at) + left / self._job.real


def ours(job: Story) -> Course:
    known = pace(job.measured)

    def when(now: float, left: RowsLeft) -> float:
        is_due = decide(now, job.deadline, left, known) is Decision.CANCEL
        return now if is_due else turns_at(now, job.deadline, left, known)

    return _Run(job, when).course()


def fixed(job: Story) -> Course:
    """All that is left runs live when 15 % of the time is left."""
    return _Run(job, lambda _, __: 0.85 * job.deadline).course()


def live_only(job: Story) -> Course:
    return Course(job.rows / job.real, 0, job.rows)


def clairvoyant(job: Story) -> Course:
    """What will be late is cancelled at the last moment that is in time, whatever cancels take."""
    late = [batch for batch in job.batches if not batch.is_in_time(job.deadline)]
    fine = sum(batch.rows for batch in job.batches) - sum(batch.rows for batch in late)
    if not late:
        return Course(job.deadline, fine, 0)
    for at in range(int(job.deadline), -1, -10):
        kept = sum(batch.answered(at + batch.cancel_s) for batch in late)
        left, until = sum(batch.rows for batch in late) - kept, 0.0
        for batch in sorted(late, key=lambda batch: batch.cancel_s + batch.collect_s):
            ready = at + batch.cancel_s + batch.collect_s
            until = max(until, ready) + (batch.rows - batch.answered(at + batch.cancel_s)) / job.real
        if until <= job.deadline:
            return Course(until, fine + kept, left)
    return live_only(job)


def in_time(jobs: Sequence[Story], courses: Sequence[Course]) -> float:
    """Percent of the jobs that are done by their deadline."""
    return 100 * sum(course.done <= job.deadline for job, course in zip(jobs, courses, strict=True)) / len(jobs)


def cost(jobs: Sequence[Story], courses: Sequence[Course]) -> float:
    """Mean price of a row, each job counting alike."""
    return sum(course.cost / job.rows for job, course in zip(jobs, courses, strict=True)) / len(jobs)


def figures(seeds: range) -> list[Figure]:
    every = [story(seed) for seed in seeds]
    jobs = [job for job in every if live_only(job).done <= job.deadline]
    mine, theirs, live, best = ([way(job) for job in jobs] for way in (ours, fixed, live_only, clairvoyant))
    twice = sum(abs(course.batch + course.live - job.rows) for job, course in zip(jobs, mine, strict=True))
    price, rival, full, least = (cost(jobs, courses) for courses in (mine, theirs, live, best))
    late = max(100 * (course.done / job.deadline - 1) for job, course in zip(jobs, mine, strict=True))
    rescued = sum(course.live > 0 for course in mine)
    about = f"{len(jobs)} of {len(every)} jobs, seeds {seeds.start} to {seeds.stop - 1}; {rescued} were finished live"
    return [
        Figure("jobs done by their deadline, where live calls could be", in_time(jobs, mine), 99, "%",
               note=f"{about}; the latest at {late:+.1f} % of its time"),
        Figure("rows paid for twice, or not at all, under a deadline", twice, 0, "rows", at_most=True),
        Figure("cost of a row beside live only", price / full, 0.75, at_most=True, note=f"{price:.3f} to {full:.3f}"),
        Figure("cost of a row beside a fixed buffer of 15 %", price / rival, 1, at_most=True,
               note=f"{price:.3f} to {rival:.3f}; that is in time in {in_time(jobs, theirs):.1f} %"),
        Figure("cost of a row beyond a clairvoyant's", 100 * (price / least - 1), 5, "%", at_most=True,
               note=f"{price:.3f} to {least:.3f}"),
    ]  # fmt: skip


def main() -> int:
    given = arguments(__doc__, jobs=200, seed=0)
    return report(figures(range(given.seed, given.seed + given.jobs)), as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
