"""Until when providers keep the results of batches, and which have to be collected soon: what is gone was paid for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from nightmill.ledger import Job, Shard
from nightmill.mill.home import Home, model_of
from nightmill.providers.resolve import known_of
from nightmill.types import UNFINISHED, Lane, ShardState

_DAY_S = 86_400.0
_SOON_S = 7 * _DAY_S
_TO_COLLECT = (ShardState.WAITING, ShardState.COLLECTING)


def kept_until(home: Home, job: Job, shards: Iterable[Shard]) -> list[float]:
    """Until when the results of these shards' batches are there at least, in unix seconds, where somebody says.

    Providers count the days from a batch's creation, which is no earlier than our intent.
    """
    days: dict[str, int] = {}
    found = []
    for shard in shards:
        model = model_of(job, shard)
        if model not in days:
            days[model] = known_of(model, home.settings.providers).keeps_days
        if shard.lane is Lane.BATCH and days[model]:
            found.append(shard.current.intent_at + days[model] * _DAY_S)
    return found


def alert(home: Home, job: Job) -> str:
    """What to tell of batches whose results a person should collect before they go; empty: there is no hurry."""
    if job.state not in UNFINISHED:
        return ""
    now, there = home.desk.wall(), home.ledger.shards_of(job.id, *_TO_COLLECT)
    soon = [until for until in kept_until(home, job, there) if until - now < _SOON_S]
    if not soon:
        return ""
    what = "a batch" if len(soon) == 1 else f"{len(soon):,} batches"
    day = dt.datetime.fromtimestamp(min(soon), dt.UTC).date()
    verb = "are" if min(soon) > now else "were"
    return f"the results of {what} {verb} kept until {day} and are not collected yet: nightmill resume {job.id}"
