"""Attending: who works on a job, and working on it where nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from nightmill.engine import Stop
from nightmill.mill.home import Home
from nightmill.types import UNFINISHED

_OVERDUE_S = 3.0  # a shard that is due for so long has nobody who looks after it
_ASIDE_S = 0.5  # between two looks at a job that another worker works on

Work = Callable[[Sequence[str], Stop], Awaitable[None]]


def attended(home: Home, job_id: str) -> bool:
    """Whether another worker works on the job, so that this one need not."""
    return home.ledger.attended(job_id, overdue_s=_OVERDUE_S)


async def attend(home: Home, job_ids: Sequence[str], work: Work, stop: Stop, on_turn: Callable[[bool], None]) -> None:
    """Look on while others work; take over what nobody works on; see `Mill.attend`."""
    left = list(job_ids)
    while left and not stop():
        known = [await home.desk.book(home.ledger.job, job_id) for job_id in left]
        left = [job.id for job in known if job is not None and job.state in UNFINISHED]  # None: deleted elsewhere
        alone = [job_id for job_id in left if not await home.desk.book(attended, home, job_id)]
        if alone:
            on_turn(True)
            await work(alone, stop)
            left = [job_id for job_id in left if job_id not in alone]
        elif left:
            on_turn(False)
            try:
                await asyncio.wait_for(stop.gently.wait(), _ASIDE_S)
            except TimeoutError:
                continue
