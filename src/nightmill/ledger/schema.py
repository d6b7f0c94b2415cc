"""The tables. Thousands of rows, never one per request of a bulk job.

A *moment* is seconds on the ledger's own clock (`Database.moment`); ``*_at`` columns that people
read are unix seconds of the wall clock. Money is nano-dollars. Only what both SQLite and
Postgres understand is used here.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from nightmill.types import UNFINISHED, JobState, ShardState

REVISION = 3
TAKEN_BACK = 2  # of a batch whose cancel was asked: so that what is left of it runs live

metadata = MetaData()


def _states(column: str, states: type[JobState] | type[ShardState]) -> CheckConstraint:
    allowed = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({allowed})")


def _int(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String),
    Column("state", String, nullable=False),
    Column("reason", Text),  # why it is paused, for people
    Column("stopped", String),  # "budget", "on_error" or "cancelled": why it ended early
    Column("fingerprint", String),
    Column("model", String, nullable=False),
    Column("task_digest", String),  # same task, same parameters: what answers look like is learned by it
    Column("lane", String, nullable=False),
    Column("spec", Text, nullable=False),  # JSON: everything needed to go on without the caller
    Column("quote", Text),  # JSON of types.Quote
    _int("rows"),
    _int("invalid"),
    _int("duplicates"),
    _int("cached"),
    _int("next_seq"),
    Column("canary_last", BigInteger),  # rows up to this one go out before all others; NULL: none do
    Column("canary", Text),  # JSON of records.Canary: what they showed; NULL: nobody has looked at them yet
    Column("counts", Text),  # JSON of final row counts, and what was folded; written when the job ends
    Column("cancel_requested", Integer, nullable=False, server_default=text("0")),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("owner", String),
    Column("lease_until", Float, nullable=False, server_default=text("0")),
    _int("epoch"),
    _states("state", JobState),
    CheckConstraint("state = 'planning' OR fingerprint IS NOT NULL"),
)
_unfinished = text("state IN (" + ", ".join(f"'{s.value}'" for s in sorted(UNFINISHED)) + ")")
Index("one_unfinished_job_per_fingerprint", jobs.c.fingerprint, unique=True,
      sqlite_where=_unfinished, postgresql_where=_unfinished)  # fmt: skip
Index("one_unfinished_job_per_name", jobs.c.name, unique=True,
      sqlite_where=_unfinished, postgresql_where=_unfinished)  # fmt: skip

shards = Table(
    "shards",
    metadata,
    Column("tag", String, primary_key=True),
    Column("job_id", String, nullable=False),
    _int("seq"),
    Column("lane", String, nullable=False),
    Column("state", String, nullable=False),
    _int("attempt"),  # completed exchanges its rows had before, plus one
    _int("expiries"),  # submissions its rows expired in before
    _int("missings"),  # times its rows came back missing before
    _int("splits"),  # whole-shard refusals that named a line, before
    _int("rung"),  # of its job's ladder: 0 asked first, above that asked again for an answer that fits the schema
    _int("first"),
    _int("last"),
    _int("count"),
    _int("content_bytes"),
    _int("cap_tokens"),  # sum of the output caps
    _int("input_tokens"),  # expected, for enqueued-token limits
    Column("path", Text, nullable=False),
    _int("size_bytes"),
    Column("digest", String, nullable=False),
    Column("due", Float, nullable=False, server_default=text("0")),  # a moment
    Column("owner", String),
    Column("lease_until", Float, nullable=False, server_default=text("0")),
    Column("lease_was_until", Float, nullable=False, server_default=text("0")),
    _int("epoch"),
    _int("submission"),  # the newest submission's number
    _int("looks"),  # complete looks made while in doubt
    _int("fenced"),  # 1: the input file was deleted, the next clean look decides
    _int("reads"),  # times the result files were read
    _int("reread"),  # 1: rows are missing, read the files once more
    _int("refusals"),  # unexplained whole-shard refusals
    _int("waits"),  # consecutive limits or failures to send, for back-off
    Column("price", Text),  # JSON of the price sheet pinned at hold
    Column("reason", Text),
    _int("succeeded"),
    _int("failed"),
    _int("missing"),
    _int("expired"),
    _int("cancelled"),
    _int("resent_failed"),
    _int("resent_missing"),
    _int("resent_expired"),
    _int("extra_answers"),
    _int("unknown_ids"),
    _int("repaired"),  # of those that succeeded, put right by local repair
    _int("tokens_in"),
    _int("tokens_out"),
    _int("tokens_cached"),
    _int("tokens_written"),  # of the input, to a provider's cache
    _int("caching_nanos"),  # what providers' caches took off what was paid; less than nothing where they added to it
    _int("list_nanos"),  # what the same tokens cost fresh at the live standard price, paid or from the cache
    Column("failures", Text),  # JSON {kind: rows}
    Column("settled_at", Float),
    _states("state", ShardState),
    CheckConstraint(
        "state <> 'settled' OR count = succeeded + failed + missing + expired + cancelled",
        name="every_request_has_an_outcome",
    ),
    CheckConstraint("count > 0"),
)
Index("shards_due", shards.c.state, shards.c.due)
Index("shards_of_job", shards.c.job_id, shards.c.seq)

submissions = Table(
    "submissions",
    metadata,
    Column("tag", String, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("job_id", String, nullable=False),
    Column("state", String, nullable=False),
    Column("account", String, nullable=False),
    Column("scopes", Text, nullable=False),  # JSON list of the limits the hold is in
    _int("hold_nanos"),  # still held
    _int("spent_nanos"),  # booked, unproven included
    _int("unproven_nanos"),
    Column("intent_at", Float, nullable=False),  # unix seconds, provider's clock
    Column("file_id", String),
    Column("batch_id", String),
    Column("batch_model", String),
    Column("status", String),  # the provider's own word, last seen
    Column("ended", Integer, nullable=False, server_default=text("0")),
    Column("cancel_asked", Integer, nullable=False, server_default=text("0")),  # 0, 1 or TAKEN_BACK
    Column("cancel_at", Float),  # unix seconds, provider's clock; when a cancel was asked for
    Column("ended_at", Float),  # unix seconds, provider's clock; how long batches take is learned by it
    Column("total", Integer),
    Column("completed", Integer),
    Column("failed", Integer),
    Column("output_file", String),
    Column("error_file", String),
    Column("sought_until", Float),  # unix seconds, provider's clock: the last look; until then no other create
    Column("unconfirmed", Integer, nullable=False, server_default=text("0")),  # 1: batch_id is likely, and not proven
    Column("not_ours", Text),  # JSON list: batches that are certainly not this submission's
    CheckConstraint("hold_nanos >= 0 AND unproven_nanos >= 0 AND spent_nanos >= unproven_nanos"),
)

files = Table(
    "files",
    metadata,
    Column("path", String, primary_key=True),
    Column("job_id", String, nullable=False),
    Column("tag", String),
    Column("kind", String, nullable=False),  # rows, output, error, journal, cached, results, ...
    _int("n"),  # submission number, or rebuild number
    _int("read"),
    _int("size_bytes"),
    Column("digest", String, nullable=False),
    _int("first"),
    _int("last"),
)
Index("files_of_job", files.c.job_id, files.c.kind)

limits = Table(
    "limits",
    metadata,
    Column("scope", String, primary_key=True),  # total, day, month, day:2026-11-21, job:ID
    Column("cap_nanos", BigInteger),
    _int("spent_nanos"),
    _int("held_nanos"),
    CheckConstraint("held_nanos >= 0 AND spent_nanos >= 0"),
)

entries = Table(
    "entries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("job_id", String, nullable=False),
    Column("tag", String, nullable=False),
    _int("n"),
    Column("kind", String, nullable=False),  # hold, release, settle, unproven, deleted
    _int("nanos"),
    _int("calls"),
    Column("note", Text),
)

quotas = Table(
    "quotas",
    metadata,
    Column("account", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("enqueued_cap", BigInteger),
    Column("cool_until", Float, nullable=False, server_default=text("0")),  # a moment
)

refused_keys = Table(
    "refused_keys",
    metadata,
    Column("provider", String, primary_key=True),
    Column("fingerprint", String, primary_key=True),  # of the key; never the key
    Column("variable", String, nullable=False),  # that held it
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("owner", String, primary_key=True),
    Column("seen_until", Float, nullable=False),  # a moment
)

answered_by = Table(
    "answered_by",
    metadata,
    Column("job_id", String, nullable=False, index=True),
    Column("model", String, nullable=False),  # the snapshot that answers named
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("job_id", String),
    Column("tag", String),
    Column("kind", String, nullable=False),
    Column("text", Text, nullable=False),
)
