"""``jobs`` and ``show``: what there is, and one of them closely."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from nightmill.cli import flags, present, views
from nightmill.cli.edge import Edge
from nightmill.errors import UsageError
from nightmill.mill import Job, Mill, Shard
from nightmill.types import UNFINISHED, JobState, ShardState, usd

_MOST_SHARDS = 20  # in the table; the newest are what one looks for
_MOST_FAILURES = 100


@click.command(short_help="List jobs, newest first.")
@click.option("--limit", type=flags.WHOLE, default=20, show_default=True, help="Most jobs to list.")
@flags.common
def jobs(edge: Edge, limit: int) -> int:
    """List jobs, newest first."""
    with edge.mill(create=False) as mill:
        found = [(job, mill.standing(job)) for job in mill.jobs(limit=limit)]
    table = [views.job_row(job, now) for job, now in found]
    edge.put(present.jobs_table(table, width=edge.table_width, unicode=edge.unicode))
    edge.answer({"jobs": [views.job_object(job, now) | {"name": job.name} for job, now in found]})
    return 0


@click.command(short_help="One job: rows, money, shards, failures.")
@click.argument("job")
@click.option("--row", type=click.IntRange(min=0), help="One row, by its index: prompt, answer, cost.")
@click.option("--failures", is_flag=True, help="The failed rows, each with its reason.")
@flags.common
def show(edge: Edge, job: str, row: int | None, failures: bool) -> int:
    """One job: rows that add up, money, shards and batches, failures by kind, alerts, what to do next."""
    with edge.mill(create=False) as mill:
        found = mill.job(job)
        if row is not None:
            return _show_row(edge, mill, found, row)
        if failures:
            return _show_failures(edge, mill, found)
        return _show_job(edge, mill, found)


def _show_job(edge: Edge, mill: Mill, job: Job) -> int:
    now = mill.standing(job)
    view = views.end_view(mill, job, now, interrupted=False, wrote=False)
    shards = mill.shards(job)
    alerts = mill.alerts(job)
    name = f" · {job.name}" if job.name else ""
    head = f"job {job.id}{name} · {job.model} · {job.lane} · {job.state}"
    lines = [present.fitted(head, width=edge.width, unicode=edge.unicode)]
    lines.append(present.end_report(view, width=edge.width, unicode=edge.unicode))
    if now.held_nanos:
        lines.append(f"  held {present.money(now.held_nanos)}")
    lines += present.table(_shard_lines(shards), width=edge.table_width, unicode=edge.unicode)
    if len(shards) > _MOST_SHARDS:
        lines.append(f"  {len(shards) - _MOST_SHARDS:,} older shards are not shown; --json has all")
    lines += [present.fitted(f"  alert: {alert.text}", width=edge.width, unicode=edge.unicode) for alert in alerts]
    lines += _next_step(job, shards)
    edge.put("\n".join(lines))
    edge.answer(
        views.job_object(job, now)
        | {
            "name": job.name, "reason": job.reason, "held_usd": usd(now.held_nanos),
            "failures": [{"kind": g.kind, "count": g.count, "message": g.message, "row": g.row} for g in view.failures],
            "shards": [_shard_object(shard) for shard in shards],
            "alerts": [{"kind": alert.kind, "shard": alert.shard, "text": alert.text} for alert in alerts],
        }
    )  # fmt: skip
    return 0


def _next_step(job: Job, shards: list[Shard]) -> list[str]:
    doubtful = [shard.tag for shard in shards if shard.state is ShardState.IN_DOUBT]
    lines = [f"  in doubt: nightmill resolve {tag} --adopt ID | --resend | --write-off" for tag in doubtful]
    if job.state is JobState.PAUSED:
        lines.append(present.error_text(views.paused(job)))
    elif job.state in UNFINISHED:
        lines.append(f"  next: nightmill watch {job.id}")
    return lines


def _shard_lines(shards: list[Shard]) -> list[list[str]]:
    lines = [["SHARD", "STATE", "LANE", "ROWS", "SPENT", "BATCH", "REASON"]]
    for shard in shards[-_MOST_SHARDS:]:
        batch = next((s.batch_id for s in reversed(shard.submissions) if s.batch_id), None)
        spent = sum(s.spent_nanos for s in shard.submissions)
        lines.append([
            shard.tag, shard.state.value, shard.lane.value, f"{shard.count:,}", present.money(spent), batch or "",
            shard.reason or "",
        ])  # fmt: skip
    return lines


def _shard_object(shard: Shard) -> dict[str, Any]:
    return {
        "shard": shard.tag, "state": shard.state.value, "lane": shard.lane.value, "rows": shard.count,
        "first": shard.first, "last": shard.last, "attempt": shard.attempt, "reason": shard.reason,
        "spent_usd": usd(sum(s.spent_nanos for s in shard.submissions)),
        "held_usd": usd(sum(s.hold_nanos for s in shard.submissions)),
        "submissions": [
            {"name": s.name, "state": s.state.value, "batch_id": s.batch_id, "status": s.status, "total": s.total,
             "completed": s.completed, "failed": s.failed}
            for s in shard.submissions
        ],
    }  # fmt: skip


def _show_row(edge: Edge, mill: Mill, job: Job, row: int) -> int:
    record = next(iter(_records(mill, job, row, row + 1)), None)
    if record is None:
        why = f"the job has rows 0 to {job.rows - 1:,}" if row >= job.rows else "it has no answer yet"
        raise UsageError(f"no result for row {row}", why=why, fix=f"nightmill show {job.id}")
    record["cost_usd"] = usd(record.pop("cost_nanos") or 0)
    for name, value in record.items():
        if value is not None:
            text = present.show(f"{value:.6g}" if isinstance(value, float) else str(value))
            edge.put(f"{name}:\n{text}" if "\n" in text else f"{name}: {text}")
    edge.answer(record)
    return 0


def _show_failures(edge: Edge, mill: Mill, job: Job) -> int:
    names = ("index", "key", "error_kind", "error")
    failed = ({name: r[name] for name in names} for r in _records(mill, job, 0, job.rows) if not r["success"])
    if edge.json:
        edge.answer({"job_id": job.id, "failures": list(failed)})
        return 0
    some = list(islice(failed, _MOST_FAILURES))
    more = next(failed, None) is not None
    for record in some:
        edge.put(_failure_text(edge, record))
    if not some:
        edge.put("no row failed")
    if more:
        edge.say(f"only the first {_MOST_FAILURES}; all: nightmill results {job.id} --failed")
    return 0


def _failure_text(edge: Edge, record: dict[str, Any]) -> str:
    """Which row failed, and under it the whole reason."""
    kind = record["error_kind"] or "failed"
    head = f"row {record['index']:,} · {record['key'] or ''} · {kind}"
    why = (record["error"] or "").removeprefix(f"{kind}: ")
    lines = [head, f"  {why}"] if why else [head]
    return "\n".join(present.fitted(line, width=edge.width, unicode=edge.unicode) for line in lines)


def _records(mill: Mill, job: Job, first: int, end: int) -> Iterator[dict[str, Any]]:
    return (record for batch in mill.results(job, first, end) for record in batch.to_pylist())
