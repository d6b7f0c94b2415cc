"""What collecting a job's shards needs beside the shard."""

from __future__ import annotations

from dataclasses import dataclass

from nightmill.collect.accounting import Check
from nightmill.plan import Climb, Scissors
from nightmill.pricing import PriceSheet
from nightmill.providers import Provider
from nightmill.store import Store


@dataclass(frozen=True, slots=True)
class Context:
    """Where a shard's files lie, who can read them, and at which prices."""

    store: Store
    provider: Provider
    sheet: PriceSheet  # pinned on the shard at its hold
    list_sheet: PriceSheet  # the live standard price, for what was saved
    check: Check | None  # of the task's schema
    scissors: Scissors
    climb: Climb | None = None  # the next step for answers that do not fit the schema; None: there is none
