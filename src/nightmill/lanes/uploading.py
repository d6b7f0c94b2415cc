"""Media that requests only name: they are at the provider before what names them leaves.

An upload runs nothing and costs nothing, and its name follows from its bytes: whoever is killed in one has lost time,
and whoever comes next finds what is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nightmill import wire
from nightmill.killpoints import reach
from nightmill.lanes import Desk
from nightmill.ledger import Shard
from nightmill.providers import Provider, Upload, UploadsMedia
from nightmill.store import apart

BATCH_LASTS_S = 24 * 3_600.0  # as long as a batch is said to take; files mostly stay twice as long
LIVE_LASTS_S = 3_600.0


async def for_shard(desk: Desk, provider: Provider, shard: Shard) -> None:
    """See to it that all media are there which the requests of a shard only name.

    Raises NeverSent, Limited, Refused, StoreError.
    """
    if not isinstance(provider, UploadsMedia):
        return

    def named() -> list[Upload]:
        lines = wire.shard_lines(desk.store, shard)
        found = (upload for _, line in lines for upload in provider.uploads(wire.body_of(line)))
        return list({upload.id: upload for upload in found}.values())

    await _provide(desk, provider, shard.job_id, await asyncio.to_thread(named), BATCH_LASTS_S)


async def for_requests(desk: Desk, provider: UploadsMedia, job_id: str, bodies: Iterable[bytes]) -> None:
    """The same for requests that are sent now."""
    named = {upload.id: upload for body in bodies for upload in provider.uploads(body)}
    if named:
        await _provide(desk, provider, job_id, list(named.values()), LIVE_LASTS_S)


async def _provide(desk: Desk, provider: UploadsMedia, job_id: str, uploads: list[Upload], lasting_s: float) -> None:
    """All of them, whatever becomes of one; then the first trouble is raised."""

    async def one(upload: Upload) -> None:
        path = apart(desk.store.job_folder(job_id), upload.digest)
        file = await asyncio.to_thread(desk.store.found, path)
        await provider.provide(upload, file, lasting_s=lasting_s)
        reach("media.provided")

    done = await asyncio.gather(*map(one, uploads), return_exceptions=True)
    for trouble in done:
        if isinstance(trouble, BaseException):
            raise trouble
