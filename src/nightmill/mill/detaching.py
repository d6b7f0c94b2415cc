"""Detaching: hand over what can go out now, and leave the rest to whoever comes back."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nightmill.engine import Engine, Stop
from nightmill.lanes import rescue
from nightmill.ledger import Job
from nightmill.mill.home import Home
from nightmill.mill.lapsing import kept_until
from nightmill.types import ShardState


@dataclass(frozen=True, slots=True)
class Handed:
    """What of a job is at the provider, and until when. Times are unix seconds, None where nothing is there."""

    batches: tuple[str, ...]
    rows: int
    rows_left: int  # not handed over: they wait for money or for the provider's limits
    rows_in_doubt: int  # handed over, and whether the provider has them is to be looked for
    done_by: float | None  # when the last of the batches has ended at the latest
    collect_by: float | None  # from when on results of the first may be gone; None also where nobody says
    back_by: float | None = None  # for the deadline: from then on somebody has to be there to run the rest live


async def hand_over(
    home: Home, job_ids: Sequence[str], stop: Stop, on_change: Callable[[str], None] | None = None
) -> None:
    """Work on jobs until all of them that can go out is out; what comes back meanwhile is kept as always."""
    changed = asyncio.Event()
    changed.set()

    def note(job_id: str) -> None:
        changed.set()
        if on_change is not None:
            on_change(job_id)

    async def leave() -> None:
        out = False
        while not out:
            await changed.wait()
            changed.clear()
            out = all([await home.desk.book(home.ledger.is_handed_over, job_id) for job_id in job_ids])
        stop.gently.set()

    watching = asyncio.create_task(leave())
    try:
        await Engine(home.desk, home.open_kit, stop, note).run(job_ids)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def handed(home: Home, job: Job) -> Handed:
    """Where a job stands that was handed over. Asks nobody."""
    shards = home.ledger.shards_of(job.id)
    there = [shard for shard in shards if shard.state in (ShardState.WAITING, ShardState.COLLECTING)]
    began = [shard.current.intent_at for shard in there]
    window_s = home.provider(job.model).limits.window_s
    return Handed(
        tuple(shard.current.batch_id or "" for shard in there), sum(shard.count for shard in there),
        sum(shard.count for shard in shards if shard.state is ShardState.PLANNED),
        sum(shard.count for shard in shards if shard.state in (ShardState.SUBMITTING, ShardState.IN_DOUBT)),
        max(began) + window_s if began else None, min(kept_until(home, job, there), default=None),
        _back_by(home, job),
    )  # fmt: skip


def _back_by(home: Home, job: Job) -> float | None:
    """The last moment at which what batches have not done can be run live in time, by what is known now."""
    in_s = rescue.outlook(home.desk, home.open_kit(job.id).work)[1] if job.deadline is not None else math.inf
    return home.desk.wall() + in_s if math.isfinite(in_s) else None
