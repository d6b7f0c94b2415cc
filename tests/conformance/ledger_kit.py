"""What the ledger's conformance tests share. Everything here goes through the verbs, so that any backend can join.

Whatever the tests make the ledger execute is compiled for Postgres too, and must be plain SQL.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.dialects import postgresql

from nightmill.ledger import Booking, Counts, Denied, Job, Ledger, NewShard, Settlement, Shard, StoredFile, schema
from nightmill.types import FileRef, Lane, Quote, ShardState

LEASE_S = 600.0
SCOPES = ("day:2026-11-21", "month:2026-11", "total")
ROWS = 10  # requests of a shard, unless said otherwise
WORKER = Path(__file__).with_name("ledger_worker.py")

_POSTGRES = postgresql.dialect()
_SQLITE_ONLY = re.compile(r"\b(OR (REPLACE|IGNORE|ABORT)|PRAGMA|ROWID|GLOB|IFNULL|STRFTIME|JULIANDAY|DATETIME)\b", re.I)
_compiled: set[Any] = set()


def compile_for_postgres(statement: Any) -> str:
    """The statement in Postgres' words. Raises AssertionError where it speaks SQLite's."""
    text = str(statement.compile(dialect=_POSTGRES))
    assert not _SQLITE_ONLY.search(text), text
    return text


def _also_for_postgres(_connection: Any, statement: Any, *_: Any) -> None:
    key = statement._generate_cache_key() if hasattr(statement, "_generate_cache_key") else None
    if key is None or key.key not in _compiled:
        compile_for_postgres(statement)
        if key is not None:
            _compiled.add(key.key)


def connect(address: str) -> Ledger:
    """A worker's own ledger. The address says which backend."""
    kind, _, where = address.partition(":")
    assert kind == "sqlite", address
    ledger = Ledger(Path(where))
    event.listen(ledger._engine, "before_execute", _also_for_postgres)
    return ledger


@dataclass(frozen=True, slots=True)
class Backend:
    """One empty ledger, which any number of workers may open."""

    address: str

    def open(self, me: str | None = None) -> Ledger:
        """Another worker; ``me`` says which process it claims to be."""
        ledger = connect(self.address)
        if me is not None:
            ledger.me = me
        return ledger


class Worker:
    """A worker in a process of its own: it does one thing, says ``ready`` and what came of it, and waits."""

    def __init__(self, address: str, *words: str) -> None:
        command = [sys.executable, str(WORKER), address, *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate()


# -- jobs and shards


def a_file(path: str = "jobs/j/shards/s.jsonl") -> FileRef:
    return FileRef(path, 100, "0" * 32)


def new_shard(tag: str, *, lane: Lane = Lane.BATCH, first: int = 0, count: int = ROWS, **more: Any) -> NewShard:
    return NewShard(
        tag=tag, seq=int(tag.rpartition("-")[2]), lane=lane, first=first, last=first + count - 1, count=count,
        content_bytes=100 * count, cap_tokens=50 * count, input_tokens=25 * count, file=a_file(f"shards/{tag}"), **more,
    )  # fmt: skip


def publish(
    ledger: Ledger, job_id: str = "job1", *, shards: int = 1, lane: Lane = Lane.BATCH, name: str | None = None,
    fingerprint: str | None = None, count: int = ROWS, budget: int | None = None,
) -> Job:  # fmt: skip
    """A job of ``shards`` shards with ``count`` requests each."""
    ledger.begin_plan(job_id, model="provider/model", lane=lane)
    made = [new_shard(f"{job_id}-{i}", lane=lane, first=i * count, count=count) for i in range(shards)]
    quote = Quote(lane, shards * count, 1, 1, 1, 1, 1, 1, "tests")
    return ledger.publish_plan(
        job_id, name=name, fingerprint=fingerprint or job_id, task_digest="t", spec={"a": 1}, quote=quote,
        rows=shards * count, duplicates=0, cached=0, shards=made, files=[StoredFile(a_file(f"rows/{job_id}"), "rows")],
        budget_nanos=budget,
    )  # fmt: skip


def claim(ledger: Ledger, lane: Lane = Lane.BATCH, *, lease_s: float = LEASE_S) -> Shard:
    (shard,) = ledger.claim_due(lane=lane, limit=1, lease_s=lease_s)
    return shard


def intend(ledger: Ledger, shard: Shard, nanos: int = 100, scopes: Sequence[str] = SCOPES) -> Shard | Denied:
    to = ShardState.SENDING if shard.lane is Lane.LIVE else ShardState.SUBMITTING
    return ledger.note_intent(
        shard, to=to, account="acc", model="m", price="{}", hold_nanos=nanos, scopes=scopes, intent_at=1000.0
    )


def intended(ledger: Ledger, shard: Shard, nanos: int = 100, scopes: Sequence[str] = SCOPES) -> Shard:
    ready = intend(ledger, shard, nanos, scopes)
    assert isinstance(ready, Shard), ready
    return ready


def _to_planned(ledger: Ledger, lane: Lane, lease_s: float) -> Shard:
    return claim(ledger, lane, lease_s=lease_s)


def _to_handed(ledger: Ledger, lane: Lane, lease_s: float) -> Shard:
    return intended(ledger, claim(ledger, lane, lease_s=lease_s))


def _to_doubt(ledger: Ledger, lane: Lane, lease_s: float) -> Shard:
    ledger.note_doubt(_to_handed(ledger, lane, LEASE_S), due=0.0, reason="no answer")
    return claim(ledger, lane, lease_s=lease_s)


def _to_waiting(ledger: Ledger, lane: Lane, lease_s: float) -> Shard:
    shard = _to_handed(ledger, lane, LEASE_S)
    ledger.note_created(shard, shard.submission, "b1", status="validating", due_in_s=0.0)
    return claim(ledger, lane, lease_s=lease_s)


def _to_collecting(ledger: Ledger, lane: Lane, lease_s: float) -> Shard:
    if lane is Lane.LIVE:
        return ledger.note_sent_all(_to_handed(ledger, lane, lease_s))
    ledger.note_polled(_to_waiting(ledger, lane, LEASE_S), [(1, {"ended": 1})], due_in_s=0.0, done=True)
    return claim(ledger, lane, lease_s=lease_s)


_WAYS: dict[ShardState, Callable[[Ledger, Lane, float], Shard]] = {
    ShardState.PLANNED: _to_planned,
    ShardState.SUBMITTING: _to_handed,
    ShardState.SENDING: _to_handed,
    ShardState.IN_DOUBT: _to_doubt,
    ShardState.WAITING: _to_waiting,
    ShardState.COLLECTING: _to_collecting,
}


def bring(ledger: Ledger, state: ShardState, *, lease_s: float = LEASE_S) -> Shard:
    """The next due shard, led to ``state`` and held under a lease; a hold of 100 nanos from SUBMITTING on."""
    lane = Lane.LIVE if state is ShardState.SENDING else Lane.BATCH
    shard = _WAYS[state](ledger, lane, lease_s)
    assert shard.state is state
    return shard


def done(shard: Shard, spent: int = 40, *, counts: Counts | None = None, unproven: int = 0, **more: Any) -> Settlement:
    """Everything succeeded and the newest submission cost ``spent``, unless said otherwise."""
    bookings = (Booking(shard.submission, spent, unproven, shard.count),) if shard.submissions else ()
    return Settlement(counts=counts or Counts(succeeded=shard.count), bookings=bookings, **more)


# -- looking


def everything(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables: what a verb that failed must not have changed."""
    with ledger._read() as connection:
        return {
            t.name: sorted(map(tuple, connection.execute(select(t))), key=repr) for t in schema.metadata.tables.values()
        }


def money(ledger: Ledger, scope: str = "total") -> tuple[int, int]:
    """What is spent and what is held in a limit."""
    (limit,) = ledger.limits([scope])
    return limit.spent_nanos, limit.held_nanos


def booked(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Spent and held by scope, added up from the submissions."""
    import json

    sums: dict[str, tuple[int, int]] = {}
    columns = (schema.submissions.c.scopes, schema.submissions.c.spent_nanos, schema.submissions.c.hold_nanos)
    with ledger._read() as connection:
        for scopes, spent, held in connection.execute(select(*columns)):
            for scope in json.loads(scopes):
                before = sums.get(scope, (0, 0))
                sums[scope] = (before[0] + spent, before[1] + held)
    return sums


def recorded(ledger: Ledger) -> dict[tuple[str, int], int]:
    """Spend by submission, added up from the audit trail."""
    sums: dict[tuple[str, int], int] = {}
    e = schema.entries.c
    with ledger._read() as connection:
        for tag, n, kind, nanos in connection.execute(select(e.tag, e.n, e.kind, e.nanos)):
            if kind in ("settle", "unproven", "adjust"):
                sums[tag, n] = sums.get((tag, n), 0) + nanos
    return sums


def check_money(ledger: Ledger) -> None:
    """The limits, the submissions and the audit trail tell of the same money."""
    sums = booked(ledger)
    for limit in ledger.limits():
        assert (limit.spent_nanos, limit.held_nanos) == sums.get(limit.scope, (0, 0)), limit
    trail = recorded(ledger)
    s = schema.submissions.c
    with ledger._read() as connection:
        for tag, n, spent in connection.execute(select(s.tag, s.n, s.spent_nanos)):
            assert trail.get((tag, n), 0) == spent, (tag, n)
