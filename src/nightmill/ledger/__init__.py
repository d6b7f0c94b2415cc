"""The ledger: jobs, shards, money. The only place that knows SQL.

Every method of `Ledger` is a verb: it compares and sets in one transaction and returns after its
commit. What it hands out are frozen records.
"""

from __future__ import annotations

from nightmill.ledger.accounts import AccountVerbs
from nightmill.ledger.attendance import AttendanceVerbs
from nightmill.ledger.canary import CanaryVerbs
from nightmill.ledger.claiming import ClaimVerbs
from nightmill.ledger.health import Health, HealthVerbs
from nightmill.ledger.history import Event, HistoryVerbs
from nightmill.ledger.housekeeping import Deletion, HousekeepingVerbs
from nightmill.ledger.jobs import JobVerbs
from nightmill.ledger.keys import KeyVerbs
from nightmill.ledger.ladder import LadderVerbs, StepTally
from nightmill.ledger.late import LateVerbs
from nightmill.ledger.money import MoneyVerbs
from nightmill.ledger.pace import PaceVerbs
from nightmill.ledger.records import (
    BAD_ANSWERS,
    CAME_LATE,
    CREATE_LOCK,
    SAME_SIZE,
    Booking,
    Canary,
    CanarySums,
    Counts,
    Denied,
    ForeignBatch,
    Job,
    KnownBatch,
    Late,
    LateBatch,
    LateSettlement,
    Limit,
    Moved,
    NewShard,
    Outside,
    RefusedKey,
    Settlement,
    Shard,
    SoFarValid,
    StoredFile,
    Submission,
    SubmissionState,
    Tally,
)
from nightmill.ledger.savings import Saved, SavingsVerbs
from nightmill.ledger.sharing import SharingVerbs
from nightmill.ledger.standing import OUTCOMES, Standing, standing_of, with_answers
from nightmill.ledger.tallying import TallyVerbs
from nightmill.ledger.untagged import UntaggedVerbs

LEDGER_NAME = "nightmill.db"  # in the home

__all__ = [
    "BAD_ANSWERS",
    "CAME_LATE",
    "CREATE_LOCK",
    "LEDGER_NAME",
    "OUTCOMES",
    "SAME_SIZE",
    "Booking",
    "Canary",
    "CanarySums",
    "Counts",
    "Deletion",
    "Denied",
    "Event",
    "ForeignBatch",
    "Health",
    "Job",
    "KnownBatch",
    "Late",
    "LateBatch",
    "LateSettlement",
    "Ledger",
    "Limit",
    "Moved",
    "NewShard",
    "Outside",
    "RefusedKey",
    "Saved",
    "Settlement",
    "Shard",
    "SoFarValid",
    "Standing",
    "StepTally",
    "StoredFile",
    "Submission",
    "SubmissionState",
    "Tally",
    "standing_of",
    "with_answers",
]


class Ledger(
    JobVerbs,
    TallyVerbs,
    ClaimVerbs,
    SharingVerbs,
    KeyVerbs,
    LateVerbs,
    LadderVerbs,
    UntaggedVerbs,
    AccountVerbs,
    MoneyVerbs,
    PaceVerbs,
    AttendanceVerbs,
    CanaryVerbs,
    HistoryVerbs,
    SavingsVerbs,
    HousekeepingVerbs,
    HealthVerbs,
):
    """All transactional state. Open it with the path of its database file."""
