"""From what the mill says to what screens and ``--json`` show. Nothing is decided here but words."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import Any

from nightmill.cli import present
from nightmill.cli.edge import Interrupted
from nightmill.cli.present import EndView, FailureGroup, JobRow, LaneView, ProgressView, QuoteView, some
from nightmill.errors import NightmillError, UsageError
from nightmill.mill import (
    Candidate,
    Handed,
    Job,
    LaneCost,
    Look,
    Mill,
    Prepared,
    Standing,
    canary_told,
    ending_error,
    steps_told,
)
from nightmill.types import UNFINISHED, JobState, ShardState, usd

_PHASES = (  # what is worth saying first, when shards are in several states
    (ShardState.SENDING, "sending"),
    (ShardState.SUBMITTING, "submitting"),
    (ShardState.COLLECTING, "collecting"),
    (ShardState.WAITING, "waiting at {}"),
    (ShardState.IN_DOUBT, "looking for a batch at {}"),
    (ShardState.PLANNED, "starting"),
)


_PAUSED_BY = {"budget": "by a budget", "canary": "by its first rows", "min_valid": "by --min-valid"}
_WHOLE = "these are the costs of all rows; those that are done are paid and stay"


def quote_view(prepared: Prepared, compared: Sequence[Candidate], before: Standing | None = None) -> QuoteView:
    """``compared``: each model that was asked for; ``before``: where the job stands that the plan goes on with."""
    plan, quote, free = prepared.plan, prepared.quote, prepared.free
    inputs = prepared.options.inputs
    deadline = prepared.resumes.deadline if prepared.resumes else prepared.spec["deadline"]
    return QuoteView(
        name=inputs[0] if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1} more",
        model=prepared.model,
        rows=plan.rows,
        requests=min(quote.requests, before.pending) if before else quote.requests,
        lanes=tuple(_lane_view(each, cost) for each in compared for cost in each.costs),
        list_price_nanos=quote.list_price_nanos,
        input_tokens=quote.input_tokens,
        output_tokens=quote.output_tokens,
        price_source=quote.price_source,
        row_mode=prepared.source.kind if prepared.source.kind in ("line", "file") else "",
        duplicates=plan.duplicates,
        cached=plan.cached,
        invalid=plan.invalid,
        done=before.done if before else plan.cached,
        waves=quote.waves,
        budget_nanos=free.cap_nanos if free else None,
        free_nanos=free.free_nanos if free else None,
        notes=(*quote.notes, _WHOLE) if before else quote.notes,
        deadline=local_time(deadline) if deadline else "",
        next_nanos=prepared.spec.get("next_at_most_nanos", 0),
    )


def _lane_view(each: Candidate, cost: LaneCost) -> LaneView:
    about = [f"quality {each.quality:g}"] if each.quality is not None else []
    about += [f"context {present.tokens(each.context)}"] if each.context else []
    about += [f"{each.lacks} is not set"] if each.lacks else []
    is_own = cost.lane == each.lane
    return LaneView(
        cost.lane, cost.expected_nanos, cost.at_most_nanos, chosen=each.chosen and is_own, done_by=_done_by(cost),
        model=each.model, about=tuple(about),
    )  # fmt: skip


def compared_object(compared: Sequence[Candidate]) -> dict[str, Any]:
    """What ``--json`` of a plan says of each model that was asked for, and of its lanes."""
    return {"candidates": [_candidate_object(each) for each in compared]}


def _candidate_object(each: Candidate) -> dict[str, Any]:
    cost = each.cost
    return {
        "model": each.model, "chosen": each.chosen, "viable": not each.why_not, "why_not": each.why_not or None,
        "lane": each.lane.value if each.lane else None,
        "expected_usd": usd(cost.expected_nanos) if cost else None,
        "at_most_usd": usd(cost.at_most_nanos) if cost else None,
        "quality": each.quality, "context": each.context or None, "lacks": each.lacks or None,
        "lanes": [_lane_object(each) for each in each.costs],
    }  # fmt: skip


def _lane_object(cost: LaneCost) -> dict[str, Any]:
    half, most = map(iso_time, cost.done_by or (None, None))
    return {
        "lane": cost.lane, "expected_usd": usd(cost.expected_nanos), "at_most_usd": usd(cost.at_most_nanos),
        "done_by": half, "done_by_p90": most, "done_by_latest": iso_time(cost.latest),
    }  # fmt: skip


def _done_by(cost: LaneCost) -> str:
    """When a lane would be done: in half and in nine of ten cases, or at the latest."""
    if cost.done_by is None:
        return f"{local_time(cost.latest)} at the latest" if cost.latest else ""
    half, most = map(local_time, cost.done_by)
    return f"≈ {half}" if half == most else f"≈ {half} (p90 {most})"


def local_time(at: float) -> str:
    """A time near now by the clock on the wall; with its day where that is another one."""
    then, today = (dt.datetime.fromtimestamp(seconds).astimezone() for seconds in (at, time.time()))
    days = (then.date() - today.date()).days
    if not days:
        return f"{then:%H:%M}"
    return f"{then:%a %H:%M}" if 0 < days < 7 else f"{then:%Y-%m-%d %H:%M}"


def quote_object(prepared: Prepared) -> dict[str, Any]:
    """The keys of ``--json`` for a plan: nothing has been sent or spent."""
    plan, quote = prepared.plan, prepared.quote
    nothing = dict.fromkeys(
        ("sent", "succeeded", "failed", "missing", "expired", "cancelled", "extra_answers", "unknown_ids"), 0
    )
    return {
        "job_id": None, "status": "dry_run", "stopped": None, "rows": plan.rows,
        "invalid": plan.invalid, "pending": plan.rows - plan.invalid,
        "cached": plan.cached, "duplicates": plan.duplicates, **nothing,
        "lane": prepared.lane.value, "model": prepared.model, "tokens_in": quote.input_tokens,
        "tokens_out": quote.output_tokens, "spent_usd": 0.0, "unproven_usd": 0.0,
        "estimated_usd": usd(quote.expected_nanos), "at_most_usd": usd(quote.at_most_nanos),
        "list_price_usd": usd(quote.list_price_nanos), "saved_usd": usd(quote.saved_nanos), "duration_s": 0.0,
        "out": [],
    } | _hurry(prepared.spec["deadline"], 0, 0)  # fmt: skip


def _hurry(deadline: float | None, rescued: int, rescued_nanos: int) -> dict[str, Any]:
    """What ``--json`` says of a deadline, where there is one."""
    if deadline is None:
        return {}
    return {"deadline": iso_time(deadline), "rescued": rescued, "rescued_usd": usd(rescued_nanos)}


def duration_s(job: Job) -> float:
    began = job.started_at or job.created_at
    return max(0.0, (job.finished_at or time.time()) - began)


def job_object(job: Job, now: Standing, *, out: Sequence[str] = (), interrupted: bool = False) -> dict[str, Any]:
    """The keys of ``--json`` for a job; counts are rows, ``*_usd`` numbers of dollars."""
    quote = job.quote
    return {
        "job_id": job.id, "status": job.state.value, "stopped": "interrupted" if interrupted else job.stopped,
        "rows": now.rows, "invalid": now.invalid, "pending": now.pending, "cached": now.cached,
        "duplicates": now.duplicates, "sent": now.sent, "succeeded": now.succeeded, "failed": now.failed,
        "missing": now.missing, "expired": now.expired, "cancelled": now.cancelled,
        "extra_answers": now.extra_answers, "unknown_ids": now.unknown_ids, "lane": job.lane.value,
        "model": job.model, "tokens_in": now.tokens_in, "tokens_out": now.tokens_out,
        "spent_usd": usd(now.spent_nanos), "unproven_usd": usd(now.unproven_nanos),
        "estimated_usd": usd(quote.expected_nanos) if quote else None,
        "at_most_usd": usd(quote.at_most_nanos) if quote else None, "list_price_usd": usd(now.list_nanos),
        "saved_usd": usd(now.saved_nanos), "duration_s": round(duration_s(job), 3), "out": list(out),
    } | _first_rows(job) | _hurry(job.deadline, now.rescued, now.rescued_nanos)  # fmt: skip


def _first_rows(job: Job) -> dict[str, Any]:
    """What ``--json`` says of a canary, where there is one; null until somebody has looked at it."""
    return {"canary": canary_told(job)} if job.canary_last is not None else {}


def steps_object(mill: Mill, job: Job) -> dict[str, Any]:
    """What ``--json`` says of a ladder, where there is one."""
    found = mill.steps(job)
    return {"ladder": steps_told(found)} if found else {}


def handed_object(there: Handed) -> dict[str, Any]:
    """What ``--json`` of a detached run says beside the job."""
    return {
        "detached": True, "batches": list(there.batches), "rows_at_provider": there.rows, "rows_left": there.rows_left,
        "rows_in_doubt": there.rows_in_doubt,
        "done_by": iso_time(there.done_by), "collect_by": iso_time(there.collect_by),
    } | ({"back_by": iso_time(there.back_by)} if there.back_by is not None else {})  # fmt: skip


def handed_lines(job: Job, there: Handed) -> list[str]:
    batches = "1 batch" if len(there.batches) == 1 else f"{len(there.batches):,} batches"
    lines = [f"handed over: {some(there.rows, 'row')} in {batches} at {job.model.partition('/')[0]}"]
    if there.done_by is not None:
        kept = iso_time(there.collect_by)
        until = f"before {kept}" if kept else "soon after: nobody says how long results are kept"
        lines.append(f"  done by {iso_time(there.done_by)} at the latest; collect {until}")
    if there.back_by is not None:
        lines.append(f"  be back by {local_time(there.back_by)}: from then on what is late has to run live")
    if there.rows_left and job.canary_last is not None and job.canary is None:
        left = some(there.rows_left, "row")
        lines.append(f"  still to send: {left}, by whoever comes back when the first rows are answered")
    elif there.rows_left:
        lines.append(f"  still to send: {some(there.rows_left, 'row')}, waiting for money or for the provider's limits")
    if there.rows_in_doubt:
        lines.append(f"  {some(there.rows_in_doubt, 'row')} in doubt: the next command looks for their batch")
    return [*lines, f"  next: nightmill results {job.id}", f"        nightmill watch {job.id}"]


def iso_time(seconds: float | None) -> str | None:
    """Unix seconds as text, in UTC."""
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def ending(job: Job, now: Standing, *, interrupted: bool, goes_on: bool = False) -> tuple[int, NightmillError | None]:
    """The exit code that a job's end deserves, and the error to tell, if it is one.

    ``goes_on``: another process works on it.
    """
    error: NightmillError | None = None
    done = f"{now.done:,} of {now.rows - now.invalid:,} rows are done"
    if job.state in UNFINISHED and goes_on:
        error = Interrupted(f"left: {done}", why="another process works on it", fix=f"nightmill watch {job.id}")
    elif job.state in UNFINISHED and interrupted:
        error = Interrupted(
            f"interrupted: {done}, nothing is lost",
            why="what is at the provider goes on there" if now.states.get(ShardState.WAITING) else "",
            fix=f"nightmill resume {job.id}",
        )
    else:
        error = ending_error(job, now)
    if error is not None:
        return error.exit_code, error
    return (0 if now.succeeded == now.rows else 3), None


def end_view(mill: Mill, job: Job, now: Standing, *, interrupted: bool, wrote: bool) -> EndView:
    try:
        groups, estimated = mill.failures(job)
    except UsageError:  # an open job whose key or function is not here now: the ledger's sums can be told
        groups, estimated = [], 0
    over = job.state not in UNFINISHED
    after = [f"nightmill retry {job.id}", f"nightmill show {job.id} --failures"] if over and groups else []
    if "adopted" in job.spec or now.rows == now.succeeded + now.invalid:  # nothing of it is sent again
        after = after[1:]
    if not wrote and now.succeeded:
        after.append(f"nightmill results {job.id}")
    stopped = {"on_error": "too many rows failed", "cancelled": "" if over else "cancelled"}.get(job.stopped or "", "")
    if not over:
        stopped = "interrupted" if interrupted else _PAUSED_BY.get(job.stopped or "", "")
    failures = tuple(FailureGroup(g.kind, g.count, g.message.removeprefix(f"{g.kind}: "), g.row) for g in groups)
    return EndView(
        state=job.state.value, rows=now.rows, ok=now.succeeded, failed=now.failed, missing=now.missing,
        expired=now.expired, cancelled=now.cancelled, invalid=now.invalid, pending=now.pending, stopped=stopped,
        sent=now.sent, cached=now.cached, duplicates=now.duplicates, extra_answers=now.extra_answers,
        unknown_ids=now.unknown_ids, spent_nanos=now.spent_nanos, unproven_nanos=now.unproven_nanos,
        estimated_nanos=estimated, list_nanos=now.list_nanos, saved_nanos=now.saved_nanos, duration_s=duration_s(job),
        failures=failures, next=tuple(after), rescued=now.rescued, rescued_nanos=now.rescued_nanos,
        tokens_cached=now.tokens_cached, tokens_written=now.tokens_written, caching_nanos=now.caching_nanos,
        deadline=local_time(job.deadline) if job.deadline else "", kept=_kept(job),
    )  # fmt: skip


def _kept(job: Job) -> str:
    """Whether a job that has ended was done by its deadline."""
    if job.deadline is None or job.finished_at is None:
        return ""
    late_s = job.finished_at - job.deadline
    return "in time" if late_s <= 0 else f"{present.duration(late_s)} late"


def against_quote(job: Job, now: Standing) -> list[str]:
    """What was quoted beside what was paid, in a line; nothing where there was no quote."""
    if job.quote is None:
        return []
    quoted, more = job.quote.expected_nanos, now.spent_nanos - job.quote.expected_nanos
    most = present.money(job.quote.at_most_nanos, toward="up")
    if further := job.spec.get("next_at_most_nanos"):
        most += f" and {present.money(further, toward='up')} for answers that do not fit"
    told = f"  quoted {present.money(quoted)}, at most {most} · spent {present.money(now.spent_nanos)}"
    if job.state in UNFINISHED:
        return [f"{told} so far"]
    if not more:
        return [f"{told}: as quoted"]
    part = f" ({present.percent(abs(more), quoted)})" if quoted else ""
    return [f"{told}: {present.money(abs(more))} {'more' if more > 0 else 'less'} than quoted{part}"]


def job_row(job: Job, now: Standing) -> JobRow:
    age_s = max(0.0, time.time() - job.created_at)
    return JobRow(
        job.id, job.name or "", job.state.value, now.succeeded, now.rows,
        now.failed + now.missing + now.expired, job.lane.value, job.model, now.spent_nanos, now.saved_nanos, age_s,
    )  # fmt: skip


def phase(look: Look) -> str:
    """What is going on, in a few words."""
    job, states = look.job, look.now.states
    if job.state not in UNFINISHED:
        return "done"
    if job.cancel_requested:
        return "cancelling"
    doing = next((words for state, words in _PHASES if states.get(state)), "writing results")
    if job.lane.is_live and states.get(ShardState.PLANNED) and states.get(ShardState.SETTLED):
        doing = "sending"  # between two slices: what the slice in hand is at changes too fast to say
    doing = doing.format(job.model.partition("/")[0])
    if job.canary_last is not None and job.canary is None:
        doing = f"first rows: {doing}"
    return f"paused, {doing}" if job.state is JobState.PAUSED else doing


def _leave(looks: Sequence[Look], stops: str, *, works: bool) -> tuple[str, ...]:
    """What Ctrl-C (``stops``: and what else does the same) does while these jobs run, and how to come back to them."""
    still_open = [look for look in looks if look.job.state in UNFINISHED]
    if not still_open:
        return ()
    waits = any(look.now.states.get(ShardState.WAITING) for look in still_open)
    what = "stops here, batches go on at the provider" if waits else "finishes what is in hand and stops"
    job = f" {still_open[0].job.id}" if len(looks) == 1 else ""
    if not works:
        return f"{stops} stops watching, another process works on", f"back with: nightmill watch{job}"
    return f"{stops} {what}", f"back with: nightmill resume{job}"


def _outside(looks: Sequence[Look]) -> tuple[int, int] | None:
    """What providers say of batches under way; None where nothing is there, or nothing was said."""
    done, total = (sum(numbers) for numbers in zip(*((o.outside.done, o.outside.total) for o in looks), strict=True))
    return (done, total) if total else None


def _part(look: Look) -> ProgressView:
    """One of several jobs, as far as it stands on a line."""
    job, now = look.job, look.now
    return ProgressView(
        phase(look), now.rows, ok=now.succeeded, failed=now.failed, missing=now.missing, expired=now.expired,
        cancelled=now.cancelled, spent_nanos=now.spent_nanos, job_id=job.id, name=job.name or "",
    )  # fmt: skip


def progress_view(
    looks: Sequence[Look], *, before: int, elapsed_s: float, works: bool, stops: str = "Ctrl-C"
) -> ProgressView:
    """A job, or the sum of several and each of them.

    ``before``: how many requests were done when this process began to look. ``works``: whether it
    is this process that works on them.
    """
    now = [look.now for look in looks]
    kinds: dict[str, int] = {}
    for standing in now:
        for kind, n in standing.failures.items():
            kinds[kind] = kinds.get(kind, 0) + n
    total, done = sum(s.rows for s in now), sum(s.done for s in now)
    pace = (done - before) / elapsed_s if elapsed_s > 0 and done > before else None
    phases = list(dict.fromkeys(phase(look) for look in looks))
    several = f"{len(looks)} jobs, " if len(looks) > 1 else ""
    return ProgressView(
        phase=several + phases[0],
        total=total,
        ok=sum(s.succeeded for s in now),
        failed=sum(s.failed for s in now),
        missing=sum(s.missing for s in now),
        expired=sum(s.expired for s in now),
        cancelled=sum(s.cancelled for s in now),
        kinds=tuple(sorted(kinds.items(), key=lambda kind: -kind[1])),
        tokens_in=sum(s.tokens_in for s in now),
        tokens_out=sum(s.tokens_out for s in now),
        spent_nanos=sum(s.spent_nanos for s in now),
        held_nanos=sum(s.held_nanos for s in now),
        rescued=sum(s.rescued for s in now),
        rescued_nanos=sum(s.rescued_nanos for s in now),
        list_nanos=sum(s.list_nanos for s in now),
        saved_nanos=sum(s.saved_nanos for s in now),
        elapsed_s=elapsed_s,
        per_minute=pace * 60 if pace else None,
        eta_s=(total - done) / pace if pace else None,
        item=next((look.item for look in looks if look.item), ""),
        job_id=looks[0].job.id if len(looks) == 1 else "",
        outside=_outside(looks),
        trouble="" if phases == ["done"] else next((look.outside.reason for look in looks if look.outside.reason), ""),
        leave=_leave(looks, stops, works=works),
        jobs=tuple(map(_part, looks)) if len(looks) > 1 else (),
    )
