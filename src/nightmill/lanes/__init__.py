"""Lanes: how a shard gets done. Two modules with the same shape, `batch` and `live`.

A lane decides from a shard's record alone what to do next, does it, and writes to the ledger what
it saw. Whatever it holds in memory may be lost at any moment.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from zoneinfo import ZoneInfo

from nightmill.config import Timing
from nightmill.ledger import CREATE_LOCK, SAME_SIZE, Denied, Ledger, Shard, SubmissionState
from nightmill.plan import Scissors
from nightmill.pricing import PriceSheet
from nightmill.providers import Provider
from nightmill.store import Store
from nightmill.types import usd

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Desk:
    """What every step needs: the ledger (on a thread of its own), the store, waits, chance."""

    ledger: Ledger
    store: Store
    timing: Timing
    zone: ZoneInfo
    rand: Callable[[], float] = random.random
    wall: Callable[[], float] = time.time
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "ledger"))
    _aside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "aside"))

    async def book(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a ledger verb on the ledger's thread; it has committed when this returns."""
        result = await _done(self._thread.submit(verb, *args, **kwargs))
        if args and isinstance(args[0], Shard):
            log.debug("shard %s: %s", args[0].tag, verb.__name__)
        elif verb == self.ledger.pause:
            log.warning("job %s: paused", args[0])
        return result

    async def aside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call, on another thread, what mostly takes a few milliseconds and may have to wait for a disk."""
        return await _done(self._aside.submit(work, *args, **kwargs))

    def backoff_s(self, waits: int) -> float:
        """How long to wait after ``waits`` failures in a row: full jitter, capped."""
        cap = min(self.timing.backoff_cap_s, self.timing.backoff_first_s * 2.0 ** min(waits, 30))
        return cap * (0.5 + self.rand() / 2)

    def scopes(self, job_id: str | None = None) -> list[str]:
        """The limits a hold made now is in, always in this order; without a job those of the ledger as a whole."""
        today = dt.datetime.fromtimestamp(self.wall(), self.zone)
        own = [f"job:{job_id}"] if job_id else []
        return [*own, f"day:{today:%Y-%m-%d}", f"month:{today:%Y-%m}", "total"]

    def close(self) -> None:
        self._thread.shutdown()
        self._aside.shutdown()


_TOGETHER_S = 0.005


async def _done(future: Future[T]) -> T:
    """The result of a call on another thread, for which the event loop itself waits a moment first.

    While both run they take turns at the interpreter, and turns cost more than the wait: with live
    calls under way a fifth of all CPU time. What takes longer goes on beside the loop.
    """
    try:
        result = future.result(_TOGETHER_S)
    except TimeoutError:
        return await asyncio.wrap_future(future)  # also where the call itself raised this
    await asyncio.sleep(0)  # nobody is kept from their turn by a task that has many such calls to make
    return result


@dataclass(frozen=True, slots=True)
class Work:
    """A job as the lanes see it."""

    job_id: str
    provider: Provider  # with the key that the step at hand is made with
    url: str
    sheet: PriceSheet  # of the job's lane, now
    scissors: Scissors
    confirmed: PriceSheet  # the sheet the user said yes to
    held: PriceSheet | None = None  # what holds are counted by, where that is another sheet
    deadline: float | None = None  # unix seconds; what batches do not do in time runs live
    most_live: float = math.inf  # rows a second that limits of live calls allow
    together: int = 1  # most rows in a live call
    with_each_key: tuple[Provider, ...] = ()  # where there are several: the provider once for each, in order

    @property
    def keys(self) -> tuple[Provider, ...]:
        """The provider once for each key that may be used."""
        return self.with_each_key or (self.provider,)


@dataclass(slots=True)
class Lease:
    """A shard's lease as the heartbeat keeps it; shared by everything that works on the shard."""

    shard: Shard
    until: float
    lost: bool = False


def hold_nanos(work: Work, shard: Shard) -> int:
    """The worst case of a shard; under a deadline that of running it live, should that be necessary."""
    return (work.held or work.sheet).worst(shard.content_bytes, shard.count, shard.cap_tokens)


async def price_rose(desk: Desk, work: Work, shard: Shard) -> bool:
    """Whether the price is above the confirmed one: then the job pauses and the shard stays planned."""
    if not work.sheet.dearer_than(work.confirmed):
        return False
    reason = (
        f"the price of {work.sheet.model} rose since you confirmed the quote "
        f"({work.confirmed.source}, {work.confirmed.date}); nightmill resume {work.job_id} goes on at today's price"
    )
    await desk.book(desk.ledger.release, shard, reason=reason)
    await desk.book(desk.ledger.pause, work.job_id, reason)
    return True


async def handle_denied(desk: Desk, work: Work, shard: Shard, denied: Denied) -> None:
    """A planned shard that may not go out now: wait for money or another create, go out in halves, or pause."""
    ledger = desk.ledger
    if denied.scope == SAME_SIZE and shard.count > 1 and can_be_cut(shard):
        await halve(desk, work, shard)
    elif denied.scope in ("enqueued tokens", SAME_SIZE):
        await desk.book(ledger.release, shard, due_in_s=desk.timing.limit_wait_s, reason=_waits_for(denied))
    elif denied.scope == CREATE_LOCK or denied.beside > 0:
        wait = min(desk.timing.poll_s, 5.0)
        await desk.book(ledger.release, shard, due_in_s=wait, reason=_waits_for(denied))
    elif shard.count > 1 and can_be_cut(shard):
        await halve(desk, work, shard)
    elif shard.rung:  # every row of it has its outcome, and keeps that
        await desk.book(ledger.give_up, shard, over_budget(denied))
    else:
        await desk.book(ledger.release, shard, reason=_waits_for(denied))
        await desk.book(ledger.pause, work.job_id, over_budget(denied), stopped="budget")


def can_be_cut(shard: Shard) -> bool:
    """No: one of its submissions was not found, and is to be looked for once more before the shard settles."""
    current = shard.submission
    return all(
        s.state is SubmissionState.GONE or (s.n == current and s.state is not SubmissionState.ABSENT)
        for s in shard.submissions
    )


async def halve(desk: Desk, work: Work, shard: Shard) -> None:
    """Two shards in place of a planned one that is too large to go out."""
    halves = await asyncio.to_thread(work.scissors.again, shard, Everything(), most=-(-shard.count // 2))
    await desk.book(desk.ledger.recut, shard, halves)


_BUDGETS = {"total": "the budget", "day": "today's budget", "month": "this month's budget", "job": "the job's budget"}


def over_budget(denied: Denied) -> str:
    name = _BUDGETS[denied.scope.partition(":")[0]]
    flag = {"total": "", "day": " --day", "month": " --month"}.get(denied.scope.partition(":")[0], " --job JOB")
    return (
        f"{name} has ${usd(denied.free_nanos):.6f} free and the next request may cost ${usd(denied.needed_nanos):.6f}; "
        f"raise it with: nightmill budget set{flag} USD, then: nightmill resume"
    )


def _waits_for(denied: Denied) -> str:
    if denied.scope == CREATE_LOCK:
        job = denied.by.rpartition("-")[0]
        return (
            f"waits until shard {denied.by} is submitted or was looked for: batches of this provider carry no name, so "
            f"that they are made one by one (if nobody works on it: nightmill resume {job})"
        )
    if denied.scope == SAME_SIZE:
        return f"waits for shard {denied.by}, which is in doubt and as large: no name tells their batches apart"
    whose = _BUDGETS.get(denied.scope.partition(":")[0])
    return f"waits for money that is held to come free in {whose}" if whose else f"waits for {denied.scope}"


class Everything:
    """A container of all there is."""

    def __contains__(self, _: Any) -> bool:
        return True
