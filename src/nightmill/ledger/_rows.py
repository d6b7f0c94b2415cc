"""Between records and rows: shards with their submissions and files, and what is noted beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from nightmill.ledger._database import wall
from nightmill.ledger.records import NewShard, Shard, StoredFile, Submission, SubmissionState
from nightmill.ledger.schema import TAKEN_BACK, alerts, answered_by, files, jobs, shards, submissions
from nightmill.types import FileRef, JobState, Lane, ShardState


def insert_shards(connection: Connection, job_id: str, new: Iterable[NewShard], now: float) -> None:
    rows = [
        {
            "tag": s.tag, "job_id": job_id, "seq": s.seq, "lane": s.lane, "state": ShardState.PLANNED,
            "attempt": s.attempt, "expiries": s.expiries, "missings": s.missings, "splits": s.splits,
            "first": s.first, "last": s.last, "count": s.count, "content_bytes": s.content_bytes,
            "cap_tokens": s.cap_tokens, "input_tokens": s.input_tokens, "rung": s.rung, "path": s.file.path,
            "size_bytes": s.file.size_bytes, "digest": s.file.digest, "due": now + s.due_in_s,
        }
        for s in new
    ]  # fmt: skip
    if rows:
        connection.execute(insert(shards), rows)


def insert_files(connection: Connection, job_id: str, stored: Iterable[StoredFile]) -> None:
    rows = [
        {
            "path": f.ref.path, "job_id": job_id, "tag": f.tag, "kind": f.kind, "n": f.n, "read": f.read,
            "size_bytes": f.ref.size_bytes, "digest": f.ref.digest, "first": f.first, "last": f.last,
        }
        for f in stored
    ]  # fmt: skip
    if rows:
        connection.execute(_FILE, rows)


def of_batch(connection: Connection, batch_id: str) -> str | None:
    """The name of the submission that has this batch; None: no shard has it."""
    which = submissions.c.batch_id == batch_id
    found = connection.execute(select(submissions.c.tag, submissions.c.n).where(which)).first()
    return f"{found.tag}.{found.n}" if found else None


def raise_alerts(connection: Connection, job_id: str, tag: str | None, found: Iterable[tuple[str, str]]) -> None:
    for kind, text in found:
        connection.execute(insert(alerts).values(at=wall(), job_id=job_id, tag=tag, kind=kind, text=text))


def note_models(connection: Connection, shard: Shard, models: Iterable[str]) -> None:
    """Remember which snapshots of a model answered a job; an alert where one joins others.

    Further up a job's ladder other models may be asked: what answers there says nothing of a change.
    """
    job_id, tag = shard.job_id, shard.tag
    known = list(connection.execute(select(answered_by.c.model).where(answered_by.c.job_id == job_id)).scalars())
    for model in sorted(set(models).difference(known)):
        connection.execute(insert(answered_by).values(job_id=job_id, model=model))
        if known and not shard.rung:
            text = f"the model changed: {tag} was answered by {model}, others by {', '.join(known)}"
            raise_alerts(connection, job_id, tag, [("model_changed", text)])
        known.append(model)


_SHARD_PLAIN = (
    "tag", "job_id", "seq", "attempt", "expiries", "missings", "splits", "first", "last", "count", "content_bytes",
    "cap_tokens", "input_tokens", "due", "lease_until", "lease_was_until", "epoch", "submission", "looks", "reads",
    "refusals", "waits", "price", "reason", "missing", "settled_at", "job_stopped", "rung",
)  # fmt: skip
_SUBMISSION_PLAIN = (
    "tag", "n", "account", "hold_nanos", "spent_nanos", "unproven_nanos", "intent_at", "file_id", "batch_id",
    "batch_model", "status", "cancel_at", "ended_at", "total", "completed", "failed", "output_file", "error_file",
    "sought_until",
)  # fmt: skip


def _shard(row: Any, subs: Sequence[Submission], stored: Sequence[StoredFile]) -> Shard:
    r = row._mapping
    return Shard(
        lane=Lane(r["lane"]),
        state=ShardState(r["state"]),
        file=FileRef(r["path"], r["size_bytes"], r["digest"]),
        fenced=bool(r["fenced"]),
        reread=bool(r["reread"]),
        job_state=JobState(r["job_state"]),
        cancel_requested=bool(r["cancel_requested"]),
        submissions=tuple(subs),
        files=tuple(stored),
        **{name: r[name] for name in _SHARD_PLAIN},
    )


def _submission(row: Any) -> Submission:
    r = row._mapping
    flags: dict[str, Any] = {name: bool(r[name]) for name in ("ended", "cancel_asked", "unconfirmed")}
    flags["taken_back"] = r["cancel_asked"] == TAKEN_BACK
    others: tuple[str, ...] = tuple(json.loads(r["not_ours"])) if r["not_ours"] else ()
    plain = {name: r[name] for name in _SUBMISSION_PLAIN}
    return Submission(state=SubmissionState(r["state"]), not_ours=others, **flags, **plain)


def stored_file(row: Any) -> StoredFile:
    r = row._mapping
    ref = FileRef(r["path"], r["size_bytes"], r["digest"])
    return StoredFile(ref, r["kind"], r["tag"], r["n"], r["read"], r["first"], r["last"])


# Put together once: that takes longer than the database does.
_FILE = insert(files)
_SOME_TAGS: Any = bindparam("tags", expanding=True)


def loading(which: Any) -> tuple[Any, Any, Any]:
    """Statements for the shards ``which``, for their submissions, and for their files."""
    tags = select(shards.c.tag).where(which)
    return (
        select(*shards.c, jobs.c.state.label("job_state"), jobs.c.cancel_requested, jobs.c.stopped.label("job_stopped"))
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(which)
        .order_by(shards.c.job_id, shards.c.seq),
        select(submissions).where(submissions.c.tag.in_(tags)).order_by(submissions.c.n),
        select(files).where(files.c.tag.in_(tags)).order_by(files.c.n, files.c.read, files.c.path),
    )


_BY_TAG = loading(shards.c.tag.in_(_SOME_TAGS))


def loaded(connection: Connection, statements: tuple[Any, Any, Any], given: dict[str, Any]) -> list[Shard]:
    rows, of_subs, of_files = (connection.execute(statement, given).all() for statement in statements)
    subs: dict[str, list[Submission]] = {}
    for row in of_subs:
        subs.setdefault(row.tag, []).append(_submission(row))
    stored: dict[str, list[StoredFile]] = {}
    for row in of_files:
        stored.setdefault(row.tag, []).append(stored_file(row))
    return [_shard(row, subs.get(row.tag, ()), stored.get(row.tag, ())) for row in rows]


def shards_called(connection: Connection, tags: Sequence[str]) -> list[Shard]:
    """The shards of these tags, by job and number."""
    return loaded(connection, _BY_TAG, {"tags": tags})
