"""Collecting: what came back becomes outcomes, money booked, and results in input order.

`settle_shard` decides, from the files alone, how every request of a shard ended; `Results` joins
outcomes to their rows. Both read the same lines by the same rules, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nightmill.collect.accounting import (
    Accounting,
    BodySizes,
    Check,
    Verdict,
    account,
    alerts_of,
    bookings,
    verdict,
)
from nightmill.collect.beside import with_input
from nightmill.collect.context import Context
from nightmill.collect.late import settle_late
from nightmill.collect.results import Results, RowCounts, read_built
from nightmill.collect.sofar import Answers, SoFar
from nightmill.ledger import Counts, NewShard, Settlement, Shard
from nightmill.plan.cutting import LIVE_ROWS
from nightmill.types import FailureKind, Lane

__all__ = [
    "Answers",
    "Check",
    "Collected",
    "Context",
    "Results",
    "RowCounts",
    "SoFar",
    "read_built",
    "settle_late",
    "settle_shard",
    "with_input",
]


@dataclass(frozen=True, slots=True)
class Collected:
    """What to write to the ledger, or that the files must be read once more first."""

    settlement: Settlement
    read_again: bool


def settle_shard(context: Context, shard: Shard, *, stopping: bool, urgent: bool = False) -> Collected:
    """Account for a shard whose result files lie in the store. ``urgent``: what it left over runs live.

    ``read_again`` is True when requests have no line, nothing explains it, and the files were read
    once only: the settlement must not be written then.
    """
    sizes = BodySizes(context.store, shard, context.provider)
    climb = None if stopping else context.climb
    acc = account(
        context.store, shard, context.provider, context.sheet, context.list_sheet, context.check,
        keep_said=climb is not None,
    )  # fmt: skip
    if shard.lane is Lane.BATCH and acc.open and shard.reads < 2 and not _explained(acc, shard):
        return Collected(Settlement(verdict(acc, stopping=stopping, urgent=urgent).counts, ()), read_again=True)
    climbing = acc.climbing()
    higher, climbed = climb.shards(shard, climbing) if climb is not None and climbing else ([], set[int]())
    found = verdict(acc, stopping=stopping, urgent=urgent, climbed=climbed)
    leftovers = _leftovers(context, acc, found, urgent=urgent) + higher
    resent = {kind: len(rows) for kind, rows in found.resend.items()}
    settlement = Settlement(
        counts=found.counts,
        bookings=bookings(acc, context.sheet, sizes),
        resent=Counts(
            failed=resent.get("failed", 0) + len(climbed),
            missing=resent.get("missing", 0),
            expired=resent.get("expired", 0),
        ),
        extra_answers=acc.extra_answers,
        unknown_ids=acc.unknown_ids,
        repaired=len(acc.repaired),
        tokens_in=acc.tokens_in,
        tokens_out=acc.tokens_out,
        tokens_cached=acc.tokens_cached,
        tokens_written=acc.tokens_written,
        caching_nanos=acc.caching_nanos,
        list_nanos=acc.list_nanos,
        failures=found.failures,
        leftovers=tuple(leftovers),
        models=() if shard.lane is Lane.CACHE else tuple(sorted(acc.models)),
        alerts=tuple(alerts_of(acc)),
    )
    return Collected(settlement, read_again=False)


def _explained(acc: Accounting, shard: Shard) -> bool:
    """Nothing more is to come: such a batch hands nothing back, or the provider's totals equal the lines there are."""
    sub = shard.current
    if acc.unanswered is not FailureKind.MISSING and not acc.lines and not acc.garbled:
        return True
    if sub.completed is None or sub.failed is None:
        return False
    return sub.completed + sub.failed <= acc.lines.get(sub.n, 0) and not acc.garbled


def _leftovers(context: Context, acc: Accounting, found: Verdict, *, urgent: bool) -> list[NewShard]:
    """New shards for the rows that go out again, a kind each, since their histories differ."""
    shard = acc.shard
    tries = max((acc.tries[row] for row in found.resend.get("failed", ())), default=0) or 1
    made: list[NewShard] = []
    histories: dict[str, dict[str, Any]] = {
        "failed": {"attempt": shard.attempt + tries},
        "expired": {"expiries": shard.expiries + 1},
        "missing": {"missings": shard.missings + 1},
    }
    most, lane = (LIVE_ROWS, Lane.LIVE) if urgent or shard.lane is Lane.FLEX else (0, None)
    for kind, rows in found.resend.items():
        new = context.scissors.again(shard, set(rows), most=most, lane=lane)
        made += [replace(each, **histories[kind]) for each in new]
    return made
