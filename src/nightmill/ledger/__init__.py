"""The ledger: jobs, shards, money. The only place that knows SQL.

Every method of `Ledger` is a verb: it compares and sets in one transaction and returns after its
commit. What it hands out are frozen records.
"""

from __future__ import annotations

from nightmill.ledger.jobs import JobVerbs
from nightmill.ledger.money import MoneyVerbs
from nightmill.ledger.records import (
    Booking,
    Counts,
    Denied,
    Job,
    Limit,
    NewShard,
    Settlement,
    Shard,
    StoredFile,
    Submission,
    SubmissionState,
    Tally,
)
from nightmill.ledger.shards import ShardVerbs

__all__ = [
    "Booking",
    "Counts",
    "Denied",
    "Job",
    "Ledger",
    "Limit",
    "NewShard",
    "Settlement",
    "Shard",
    "StoredFile",
    "Submission",
    "SubmissionState",
    "Tally",
]


class Ledger(JobVerbs, ShardVerbs, MoneyVerbs):
    """All transactional state. Open it with the path of its database file."""
