"""The ledger: jobs, shards, money. The only place that knows SQL.

Every method of `Ledger` is a verb: it compares and sets in one transaction and returns after its
commit. What it hands out are frozen records.
"""

from __future__ import annotations

from nightmill.ledger.attendance import AttendanceVerbs
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
from nightmill.ledger.standing import OUTCOMES, Standing, standing_of, with_answers

LEDGER_NAME = "nightmill.db"  # in the home

__all__ = [
    "LEDGER_NAME",
    "OUTCOMES",
    "Booking",
    "Counts",
    "Denied",
    "Job",
    "Ledger",
    "Limit",
    "NewShard",
    "Settlement",
    "Shard",
    "Standing",
    "StoredFile",
    "Submission",
    "SubmissionState",
    "Tally",
    "standing_of",
    "with_answers",
]


class Ledger(JobVerbs, ShardVerbs, MoneyVerbs, AttendanceVerbs):
    """All transactional state. Open it with the path of its database file."""
