"""Batches that carry nothing of ours: which may be a shard's by time and size, which are by the ids in their results.

A batch that has not ended may be anybody's. One that has ended names its requests, and every request of ours is
named after its shard: that alone is proof, for and against.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nightmill.lanes import Desk
from nightmill.ledger import Shard, Submission
from nightmill.providers import BatchView, Provider, UntaggedBatches

SKEW_S = 300.0  # a list is read back to so long before the intent


@dataclass(frozen=True, slots=True)
class Candidates:
    """Batches of a submission's time and size that no submission of this ledger has, oldest first."""

    ours: tuple[BatchView, ...]  # they have ended, and their results hold requests of the shard
    likely: tuple[BatchView, ...]  # they have not, and nobody can tell


async def there_before(desk: Desk, provider: UntaggedBatches, shard: Shard) -> list[str]:
    """Batches as large as ``shard`` that are there before its create: none of them is what that will make.

    From then on the provider's clock is known, by which the batch will be looked for. Raises ProviderError.
    """
    skew_s = provider.clock_skew_s()
    listed = await _made_lately(desk, provider)
    if abs(provider.clock_skew_s() - skew_s) > 1.0:  # the first answer tells the time: that was another window
        listed = await _made_lately(desk, provider)
    return [view.id for view in listed if view.total == shard.count]


async def _made_lately(desk: Desk, provider: UntaggedBatches) -> list[BatchView]:
    now = desk.wall() + provider.clock_skew_s()
    return await provider.made_between(now - SKEW_S, now + SKEW_S)


async def candidates(
    desk: Desk, provider: UntaggedBatches, shard: Shard, sub: Submission, *, late: bool = False
) -> Candidates:
    """One complete look for the batch of ``sub``. What proves to be another's is never looked at again.

    ``late``: it was given up, and what a stopped worker made of it long after counts, too.

    Raises:
        ProviderError, TimeoutError: this was no complete look.
    """
    until = math.inf  # no other of ours is created meanwhile
    if sub.sought_until is not None and not late:
        until = sub.sought_until + desk.timing.list_lag_s
    listed = await provider.made_between(sub.intent_at - SKEW_S, until)
    alike = [view for view in listed if view.total == shard.count and view.id not in sub.not_ours]
    taken = await desk.book(desk.ledger.taken, [view.id for view in alike])  # only now: what came meanwhile is known
    ours: list[BatchView] = []
    likely: list[BatchView] = []
    others: list[str] = []
    for view in sorted(alike, key=lambda view: (view.created_at, view.id)):
        if view.id in taken:
            continue
        if view.phase not in ("ended", "failed"):
            likely.append(view)
        elif await _holds(desk, provider, shard, view):
            ours.append(view)
        else:
            others.append(view.id)
    if others:
        await desk.book(desk.ledger.exclude, sub.tag, sub.n, others)
    return Candidates(tuple(ours), tuple(likely))


async def _holds(desk: Desk, provider: UntaggedBatches, shard: Shard, view: BatchView) -> bool:
    """Whether the results of a batch that has ended hold requests of ``shard``; no results prove nothing."""
    for file_id in filter(None, (view.output_file, view.error_file)):
        path = f"{desk.store.job_folder(shard.job_id)}/wire/{shard.tag}.{secrets.token_hex(4)}.looked-at.jsonl"
        to = desk.store.path(path)
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            if await provider.fetch(file_id, to) and await _names(provider, shard.tag, to):
                return True
        finally:
            to.unlink(missing_ok=True)
    return False


async def _names(provider: Provider, tag: str, file: Path) -> bool | None:
    return await asyncio.to_thread(names_shard, provider, tag, [file])


def names_shard(provider: Provider, tag: str, files: Sequence[Path]) -> bool | None:
    """Whether a line of these result files names a request of the shard; None: no line names any request."""
    said: bool | None = None
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    named = provider.decode(line).custom_id.rpartition("-")[0]
                except ValueError:
                    continue
                if named == tag:
                    return True
                said = False
    return said


def what_is_known(shard: Shard, likely: Sequence[BatchView]) -> str:
    """Why nobody can tell what became of a submission, in a person's words."""
    alike = f"{shard.count:,} requests" if shard.count > 1 else "one request"
    if not likely:
        return f"no batch of {alike} is listed that may be it, and a create on its way could still make it"
    if len(likely) == 1:
        return f"batch {likely[0].id} has {alike} too and may be it, which its results will tell when it has ended"
    names = ", ".join(view.id for view in likely[:5]) + (", ..." if len(likely) > 5 else "")
    return f"{len(likely)} batches of {alike} may be it ({names}), which their results will tell as they end"
