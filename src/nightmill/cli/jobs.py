"""``jobs`` and ``show``: what there is, and one of them closely."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import click

from nightmill.cli import flags, present, views
from nightmill.cli.edge import Edge
from nightmill.cli.firstrows import canary_lines
from nightmill.cli.ladder import step_lines
from nightmill.errors import UsageError
from nightmill.mill import Event, Job, Mill, Shard, paused
from nightmill.types import UNFINISHED, JobState, ShardState, usd

_MOST_SHARDS = 20  # in the table; the newest are what one looks for
_MOST_FAILURES = 100
_STATES = tuple(state.value for state in JobState if state is not JobState.PLANNING)


@click.command(short_help="List jobs, newest first.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only jobs in this state.")
@click.option("--limit", type=flags.WHOLE, default=20, show_default=True, help="Most jobs to list.")
@click.option("--all", "every", is_flag=True, help="List all there are.")
@flags.common
def jobs(edge: Edge, states: tuple[str, ...], limit: int, every: bool) -> int:
    """List jobs, newest first."""
    with edge.mill(create=False) as mill:
        listed = mill.jobs(states=[JobState(state) for state in states] or None, limit=None if every else limit + 1)
        shown = listed if every else listed[:limit]
        found = [(job, mill.standing(job)) for job in shown]
        lapsing = list(filter(None, map(mill.lapsing, shown)))
    table = [views.job_row(job, now) for job, now in found]
    none = f"no job is {' or '.join(states)}" if states and not found else ""
    edge.put(none or present.jobs_table(table, width=edge.table_width, unicode=edge.unicode))
    if len(listed) > len(shown):
        edge.say("there are more: nightmill jobs --all")
    for text in lapsing:
        edge.say(present.fitted(f"alert: {text}", width=edge.width, unicode=edge.unicode))
    edge.answer({"jobs": [views.job_object(job, now) | {"name": job.name} for job, now in found]})
    return 0


@click.command(short_help="One job: rows, money, shards, failures.")
@flags.job()
@click.option("--row", type=click.IntRange(min=0), help="One row, by its index: prompt, answer, cost.")
@click.option("--failures", is_flag=True, help="The failed rows, each with its reason.")
@click.option("--log", is_flag=True, help="What happened to the job, in the order of time.")
@flags.common
def show(edge: Edge, job: str, row: int | None, failures: bool, log: bool) -> int:
    """One job: rows that add up, money, shards and batches, failures by kind, alerts, what to do next."""
    if (row is not None) + failures + log > 1:
        why = "each shows another thing"
        raise UsageError("--row, --failures and --log do not go together", why=why, fix="give one of them")
    with edge.mill(create=False) as mill:
        found = mill.job(job)
        if row is not None:
            return _show_row(edge, mill, found, row)
        if failures:
            return _show_failures(edge, mill, found)
        if log:
            return _show_log(edge, mill, found)
        return _show_job(edge, mill, found)


def _show_job(edge: Edge, mill: Mill, job: Job) -> int:
    now = mill.standing(job)
    view = views.end_view(mill, job, now, interrupted=False, wrote=False)
    shards = mill.shards(job)
    keys = mill.key_names(shards)
    alerts = mill.alerts(job)
    name = f" · {job.name}" if job.name else ""
    head = f"job {job.id}{name} · {job.model} · {job.lane} · {job.state}"
    lines = [present.fitted(head, width=edge.width, unicode=edge.unicode)]
    lines.append(present.end_report(replace(view, next=()), width=edge.width, unicode=edge.unicode))
    quoted = views.against_quote(job, now)
    told = (*quoted, *canary_lines(job))
    lines += [present.fitted(line, width=edge.width, unicode=edge.unicode) for line in told]
    lines += step_lines(edge, mill, job)
    if now.held_nanos:
        lines.append(f"  held {present.money(now.held_nanos)}")
    lines += present.table(_shard_lines(shards, keys), width=edge.table_width, unicode=edge.unicode, right=(3, 4))
    if len(shards) > _MOST_SHARDS:
        lines.append(f"  {len(shards) - _MOST_SHARDS:,} older shards are not shown; --json has all")
    lines += [present.fitted(f"  alert: {alert.text}", width=edge.width, unicode=edge.unicode) for alert in alerts]
    goes_on = job.state in UNFINISHED and job.state is not JobState.PAUSED
    is_attended = goes_on and mill.attended(job)
    if goes_on and not is_attended:
        is_out = any(shard.state is ShardState.WAITING for shard in shards)
        lines.append("  nobody works on it now" + is_out * "; its batches go on at the provider")
    follow = [f"nightmill {'watch' if is_attended else 'resume'} {job.id}"] * goes_on
    lines += _next_step(job, shards) + present.next_lines([*follow, *view.next], unicode=edge.unicode)
    edge.put("\n".join(lines))
    edge.answer(
        views.job_object(job, now)
        | {
            "name": job.name, "reason": job.reason, "attended": is_attended, "held_usd": usd(now.held_nanos),
            "started_at": views.iso_time(job.started_at), "completed_at": views.iso_time(job.finished_at),
            "difference_usd": usd(now.spent_nanos - job.quote.expected_nanos) if job.quote else None,
            "failures": [{"kind": g.kind, "count": g.count, "message": g.message, "row": g.row} for g in view.failures],
            "shards": [_shard_object(shard, keys) for shard in shards],
            **views.steps_object(mill, job),
            "alerts": [{"kind": alert.kind, "shard": alert.shard, "text": alert.text} for alert in alerts],
        }
    )  # fmt: skip
    return 0


def _next_step(job: Job, shards: list[Shard]) -> list[str]:
    doubtful = [shard.tag for shard in shards if shard.state is ShardState.IN_DOUBT]
    lines = [f"  in doubt: nightmill resolve {tag} --adopt ID | --resend | --write-off" for tag in doubtful]
    if job.state is JobState.PAUSED:
        lines.append(present.error_text(paused(job)))
    return lines


def _shard_lines(shards: list[Shard], keys: Mapping[str, str]) -> list[list[str]]:
    """A table of the newest shards, with the key of each where a provider has several to tell apart."""
    several = len(keys) > len({account.partition("|")[0] for account in keys})
    lines = [["SHARD", "STATE", "LANE", "ROWS", "SPENT", *(["KEY"] * several), "BATCH", "REASON"]]
    for shard in shards[-_MOST_SHARDS:]:
        batch = next((s.batch_id for s in reversed(shard.submissions) if s.batch_id), None)
        spent = sum(s.spent_nanos for s in shard.submissions)
        lines.append([
            shard.tag, shard.state.value, shard.lane.value, f"{shard.count:,}", present.money(spent),
            *([_key(shard, keys)] * several), batch or "", shard.reason or "",
        ])  # fmt: skip
    return lines


def _key(shard: Shard, keys: Mapping[str, str]) -> str:
    return keys.get(shard.submissions[-1].account, "") if shard.submissions else ""


def _shard_object(shard: Shard, keys: Mapping[str, str]) -> dict[str, Any]:
    return {
        "shard": shard.tag, "state": shard.state.value, "lane": shard.lane.value, "rows": shard.count,
        "first": shard.first, "last": shard.last, "attempt": shard.attempt, "rung": shard.rung, "reason": shard.reason,
        "spent_usd": usd(sum(s.spent_nanos for s in shard.submissions)),
        "held_usd": usd(sum(s.hold_nanos for s in shard.submissions)),
        "submissions": [
            {"name": s.name, "state": s.state.value, "key": keys.get(s.account), "batch_id": s.batch_id,
             "status": s.status, "total": s.total, "completed": s.completed, "failed": s.failed}
            for s in shard.submissions
        ],
    }  # fmt: skip


def _show_row(edge: Edge, mill: Mill, job: Job, row: int) -> int:
    record = next(iter(_records(mill, job, row, row + 1)), None)
    if record is None:
        raise UsageError(f"no result for row {row}", why=_why_none(mill, job, row), fix=f"nightmill show {job.id}")
    cost = record.pop("cost_nanos") or 0
    for name, value in (record | {"cost": present.money(cost)}).items():
        if value is not None:
            text = present.show(_told(value))
            edge.put(f"{name}:\n{text}" if "\n" in text else f"{name}: {text}")
    record["cost_usd"] = usd(cost)
    tries = mill.tries(job, row)
    for shard in tries:
        step = f"{mill.step_name(job, shard)}: " if job.spec.get("ladder") else ""
        edge.put(present.fitted(f"{step}was in {_whereabouts(shard)}", width=edge.table_width, unicode=edge.unicode))
    told = [_try_object(shard) | {"step": mill.step_name(job, shard)} for shard in tries]
    edge.answer(record | {"job_id": job.id, "tries": told})
    return 0


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _why_none(mill: Mill, job: Job, row: int) -> str:
    if row >= job.rows:
        return f"the job has rows 0 to {job.rows - 1:,}"
    tries = mill.tries(job, row)
    return f"it has no answer yet: it is in {_whereabouts(tries[-1])}" if tries else "it has no answer yet"


def _whereabouts(shard: Shard) -> str:
    batches = [s.batch_id for s in shard.submissions if s.batch_id]
    return " · ".join((f"shard {shard.tag}", shard.lane.value, shard.state.value, *batches))


def _try_object(shard: Shard) -> dict[str, Any]:
    batches = [s.batch_id for s in shard.submissions if s.batch_id]
    return {"shard": shard.tag, "lane": shard.lane.value, "state": shard.state.value, "batches": batches}


def _show_log(edge: Edge, mill: Mill, job: Job) -> int:
    events = mill.history(job)
    table = [["TIME (UTC)", "EVENT", "WHERE", "USD", "CALLS", ""]]
    for event in events:
        money = "" if event.nanos is None else present.money(event.nanos)
        calls = f"{event.calls:,}" if event.calls else ""
        table.append([_time(event.at), event.kind, event.submission or "", money, calls, event.text])
    edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode, right=(3, 4))))
    edge.answer({"job_id": job.id, "events": [_event_object(event) for event in events]})
    return 0


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _event_object(event: Event) -> dict[str, Any]:
    at = dt.datetime.fromtimestamp(event.at, dt.UTC).isoformat(timespec="milliseconds")
    money = None if event.nanos is None else usd(event.nanos)
    return {"at": at, "event": event.kind, "where": event.submission, "usd": money, "calls": event.calls,
            "text": event.text}  # fmt: skip


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
        failed_so_far = mill.standing(job).failed  # answers that are not settled yet are counted, and listed later
        told = f"{present.some(failed_so_far, 'row')} failed so far; which ones is told when their shard has settled"
        edge.put(told if failed_so_far else "no row failed")
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
