"""Until when providers keep the results of batches, and which have to be collected soon: what is gone was paid for."""

from __future__ import annotations

import datetime as dt

from nightmill.ledger import Job, Shard
from nightmill.mill.home import Home
from nightmill.plan import Ladder
from nightmill.providers.resolve import known_of
from nightmill.types import UNFINISHED, ShardState

_DAY_S = 86_400.0
_SOON_S = 7 * _DAY_S
_TO_COLLECT = (ShardState.WAITING, ShardState.COLLECTING)


def kept_until(home: Home, job: Job, shard: Shard) -> float | None:
    """Until when the results of a shard's batch are there at least, in unix seconds; None: nobody says.

    Providers count the days from a batch's creation, which is no earlier than our intent.
    """
    step = Ladder.of(job.spec).at(shard.rung)
    days = known_of(job.model if step is None else step.model, home.settings.providers).keeps_days
    return shard.current.intent_at + days * _DAY_S if days else None


def alert(home: Home, job: Job) -> str:
    """What to tell of batches whose results a person should collect before they go; empty: there is no hurry."""
    if job.state not in UNFINISHED:
        return ""
    kept = [kept_until(home, job, shard) for shard in home.ledger.shards_of(job.id, *_TO_COLLECT)]
    now = home.desk.wall()
    soon = [until for until in kept if until is not None and until - now < _SOON_S]
    if not soon:
        return ""
    what = "a batch" if len(soon) == 1 else f"{len(soon):,} batches"
    day = dt.datetime.fromtimestamp(min(soon), dt.UTC).date()
    verb = "are" if min(soon) > now else "were"
    return f"the results of {what} {verb} kept until {day} and are not collected yet: nightmill resume {job.id}"
