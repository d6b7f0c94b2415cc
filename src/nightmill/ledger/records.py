"""What the ledger hands out: frozen copies of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nightmill.types import FileRef, JobState, Lane, Quote, ShardState


class SubmissionState(StrEnum):
    OPEN = "open"  # intended; whether the provider has it is not known yet
    CREATED = "created"  # it has a batch id (batch), or requests may have gone out (live)
    GONE = "gone"  # proven not to be at the provider; nothing was spent
    ABSENT = "absent"  # looked for and not found; looked for once more before the shard settles
    LOST = "lost"  # nor found by that look; what turns up after that came late
    BOOKED = "booked"  # collected, every cent booked


CREATE_LOCK, SAME_SIZE = "create lock", "same size"  # what `Denied` names where a create has to wait for another
CAME_LATE = -1  # instead of the number of a file's reading: not accounted for yet, and its shard had settled before
BAD_ANSWERS = ("canary", "min_valid")  # why a job is paused: its first answers, or those so far, were too bad
EPOCHS_SINCE_A_BACKUP = 1_000_000  # more than any worker can have used up since


@dataclass(frozen=True, slots=True)
class RefusedKey:
    """A key that its provider takes no call with."""

    variable: str
    fingerprint: str
    reason: str


@dataclass(frozen=True, slots=True)
class Submission:
    """One try to hand a shard over: ``<shard tag>.<n>``."""

    tag: str
    n: int
    state: SubmissionState
    account: str
    hold_nanos: int
    spent_nanos: int
    unproven_nanos: int
    intent_at: float  # unix seconds, provider's clock
    file_id: str | None = None
    batch_id: str | None = None
    batch_model: str | None = None
    status: str | None = None
    ended: bool = False
    cancel_asked: bool = False
    taken_back: bool = False  # ... so that what is left of it runs live, for a deadline
    cancel_at: float | None = None  # unix seconds, provider's clock
    ended_at: float | None = None  # unix seconds, provider's clock
    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    output_file: str | None = None
    error_file: str | None = None
    sought_until: float | None = None  # unix seconds, provider's clock: the last look for it; None: not made yet
    unconfirmed: bool = False  # ``batch_id`` is known by its time and size alone; only the ids in its results prove it
    not_ours: tuple[str, ...] = ()  # batches that are certainly not this submission's

    @property
    def name(self) -> str:
        return f"{self.tag}.{self.n}"

    @property
    def cancel_heard(self) -> bool:
        """Whether the provider took the request to cancel its batch; one that is only noted may not have been made."""
        return self.cancel_asked and self.cancel_at is not None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a job, as the ledger holds it."""

    ref: FileRef
    kind: str
    tag: str | None = None
    n: int = 0
    read: int = 0
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of requests sent together in one lane."""

    tag: str
    job_id: str
    seq: int
    lane: Lane
    state: ShardState
    attempt: int
    expiries: int
    missings: int
    splits: int
    first: int  # smallest row index
    last: int  # largest row index
    count: int
    content_bytes: int
    cap_tokens: int
    input_tokens: int
    file: FileRef
    due: float
    lease_until: float
    lease_was_until: float
    epoch: int
    submission: int
    looks: int
    fenced: bool
    reads: int
    reread: bool
    refusals: int
    waits: int
    price: str | None
    reason: str | None
    job_state: JobState
    cancel_requested: bool  # of the job: cancelled or stopped; claim nothing new
    submissions: tuple[Submission, ...] = ()
    files: tuple[StoredFile, ...] = ()
    missing: int = 0  # of its requests, as it settled
    settled_at: float | None = None  # unix seconds; kept when something came late and it is open again
    job_stopped: str | None = None  # why its job was stopped or is paused
    rung: int = 0  # of the job's ladder: 0 asked first, above that asked again for an answer that fits the schema

    @property
    def settled_before(self) -> bool:
        """It had settled, and something of it came late: nothing of it is sent again."""
        return self.settled_at is not None and self.state is not ShardState.SETTLED

    @property
    def restored(self) -> bool:
        """The ledger was put back from a backup while this shard was open: it may not know all of its journals."""
        return self.epoch >= EPOCHS_SINCE_A_BACKUP

    @property
    def was_sent(self) -> bool:
        """Whether its rows were handed over, as this shard or as part of an earlier one."""
        out = (SubmissionState.OPEN, SubmissionState.CREATED, SubmissionState.BOOKED)
        return self.is_part or any(s.state in out for s in self.submissions)

    @property
    def is_part(self) -> bool:
        """Whether its rows are what an earlier shard left over."""
        return bool(self.attempt > 1 or self.expiries or self.missings or self.splits or self.rung)

    @property
    def current(self) -> Submission:
        return next(s for s in self.submissions if s.n == self.submission)

    @property
    def holds_create_lock(self) -> bool:
        """Where batches carry no name, none is created before this shard, in doubt, had its last look."""
        return self.state is ShardState.IN_DOUBT and self.current.sought_until is None


@dataclass(frozen=True, slots=True)
class NewShard:
    """A shard to be: its file is written and synced, the ledger does not know it yet."""

    tag: str
    seq: int
    lane: Lane
    first: int
    last: int
    count: int
    content_bytes: int
    cap_tokens: int
    input_tokens: int
    file: FileRef
    attempt: int = 1
    expiries: int = 0
    missings: int = 0
    splits: int = 0
    due_in_s: float = 0.0
    rung: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """How the requests of one or more shards ended; the first five sum up to what was sent."""

    succeeded: int = 0
    failed: int = 0
    missing: int = 0
    expired: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.succeeded + self.failed + self.missing + self.expired + self.cancelled


@dataclass(frozen=True, slots=True)
class Booking:
    """What one submission turned out to cost; ``unproven_nanos`` is part of ``spent_nanos``."""

    n: int
    spent_nanos: int
    unproven_nanos: int
    calls: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """Everything that is known when a shard is done; written in one transaction."""

    counts: Counts
    bookings: tuple[Booking, ...]
    resent: Counts = Counts()  # of those, moved into new shards (failed, missing, expired)
    extra_answers: int = 0
    unknown_ids: int = 0
    repaired: int = 0  # of those that succeeded, put right by local repair
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_written: int = 0
    caching_nanos: int = 0  # what providers' caches saved
    list_nanos: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    leftovers: tuple[NewShard, ...] = ()
    files: tuple[StoredFile, ...] = ()
    models: tuple[str, ...] = ()  # the snapshots that answered
    alerts: tuple[tuple[str, str], ...] = ()  # (kind, text)
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ForeignBatch:
    """A batch at a provider that this ledger did not make."""

    id: str
    account: str
    model: str
    status: str
    created_at: float  # unix seconds, provider's clock


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """A batch as this ledger knows it."""

    id: str
    account: str
    job_id: str
    tag: str
    n: int
    state: ShardState | None  # of its shard; None: its job was deleted
    booked: bool
    status: str | None  # the provider's own word, last seen
    spent_nanos: int
    unproven_nanos: int
    hold_nanos: int
    intent_at: float  # unix seconds, provider's clock
    price: str | None  # JSON of the price sheet pinned on its shard
    unconfirmed: bool = False  # it is likely the shard's, and not proven

    @property
    def proven_nanos(self) -> int:
        """What its answers cost."""
        return self.spent_nanos - self.unproven_nanos


@dataclass(frozen=True, slots=True)
class LateBatch:
    """A batch that turned up after its shard had settled."""

    id: str
    status: str
    account: str
    n: int | None  # the submission it is; None: another batch of one that has its own


@dataclass(frozen=True, slots=True)
class Late:
    """What turned up of one settled shard."""

    shard: Shard
    batches: tuple[LateBatch, ...] = ()
    files: tuple[StoredFile, ...] = ()  # result files that were not there; ``read`` is CAME_LATE
    seen: tuple[tuple[int, dict[str, Any]], ...] = ()  # what the provider says now of submissions that were booked


@dataclass(frozen=True, slots=True)
class Moved:
    """A request whose outcome is another one now, in the shard where it counts: a failure's kind, or ``succeeded``."""

    tag: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class LateSettlement:
    """What late answers change; numbers are differences to what was booked."""

    bookings: tuple[Booking, ...]  # spent and unproven are whole sums, calls those that are new
    moved: tuple[Moved, ...] = ()
    extra_answers: int = 0
    unknown_ids: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_written: int = 0
    caching_nanos: int = 0  # what providers' caches saved
    list_nanos: int = 0
    models: tuple[str, ...] = ()  # the snapshots that answered, all of them
    alerts: tuple[tuple[str, str], ...] = ()  # (kind, text)


@dataclass(frozen=True, slots=True)
class Denied:
    """A hold that a limit refused, or a create that has to wait for another; nothing was changed."""

    scope: str
    needed_nanos: int
    free_nanos: int
    by: str = ""  # the shard that is waited for, where it is one
    beside: int = field(default=0, compare=False)  # shards of the same job in flight at that moment: wait for them


@dataclass(frozen=True, slots=True)
class Limit:
    scope: str
    cap_nanos: int | None
    spent_nanos: int
    held_nanos: int

    @property
    def free_nanos(self) -> int | None:
        return None if self.cap_nanos is None else self.cap_nanos - self.spent_nanos - self.held_nanos


@dataclass(frozen=True, slots=True)
class CanarySums:
    """What the first rows of a job came to."""

    valid: int  # rows with an answer that is one
    failed: int  # rows that ended otherwise
    spent_nanos: int


@dataclass(frozen=True, slots=True)
class Canary:
    """What the first rows of a job showed when they had ended, and what the whole will probably cost by that."""

    rows: int  # that have ended
    valid: int
    why: dict[str, int]  # how the others failed: rows by kind and message
    row_tokens_in: int  # of a typical row
    row_tokens_out: int
    row_nanos: int  # of a typical row, in the lane of the rest
    spent_nanos: int
    expected_nanos: int  # of the whole job, those rows included
    at_most_nanos: int
    stopped: str | None = None  # "canary", "min_valid" or "budget": why the job paused
    reason: str = ""  # the same for people


@dataclass(frozen=True, slots=True)
class SoFarValid:
    """Rows that have ended, and those with a valid answer: of all, and of the newest."""

    rows: int
    valid: int
    last_rows: int
    last_valid: int


@dataclass(frozen=True, slots=True)
class Job:
    """One user submission. ``spec`` is everything needed to go on without the caller."""

    id: str
    name: str | None
    state: JobState
    reason: str | None
    stopped: str | None
    fingerprint: str
    model: str
    lane: Lane
    spec: dict[str, Any]
    quote: Quote | None
    rows: int
    invalid: int
    duplicates: int
    cached: int
    counts: dict[str, int] | None
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    epoch: int
    canary_last: int | None = None  # rows up to this one go out before all others
    canary: Canary | None = None  # what they showed, once somebody looked

    @property
    def deadline(self) -> float | None:
        """When it has to be done, in unix seconds; None: there is no hurry."""
        found: float | None = self.spec.get("deadline")
        return found


@dataclass(frozen=True, slots=True)
class Outside:
    """What a job's open shards wait for."""

    reason: str  # why one of them does not go on; empty: nothing keeps them
    done: int  # requests that providers say they have done ...
    total: int  # ... of those in the batches that they have told of


@dataclass(frozen=True, slots=True)
class Tally:
    """A job in numbers, from its shards; money in nano-dollars."""

    counts: Counts  # final outcomes of distinct requests, answered from the cache included
    sent: int  # distinct requests handed to a provider
    open: int  # requests without a final outcome
    extra_answers: int
    unknown_ids: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    spent_nanos: int
    unproven_nanos: int
    held_nanos: int
    list_nanos: int
    failures: dict[str, int]
    states: dict[str, int]  # shards by state
    rescued: int = 0  # requests of a batch job that went live instead, for its deadline
    rescued_nanos: int = 0  # ... and what they cost so far; part of what was spent
    tokens_written: int = 0
    caching_nanos: int = 0  # what providers' caches saved
