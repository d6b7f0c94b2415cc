"""``watch``, ``resume``, ``pause``, ``cancel``, ``retry``: going on with jobs that there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from nightmill.cli import flags, present, views
from nightmill.cli.edge import Declined, Edge
from nightmill.cli.progress import Mode
from nightmill.cli.session import Order, conclude, look_again, work
from nightmill.errors import Conflict, UsageError
from nightmill.mill import Job, Mill, Standing
from nightmill.types import UNFINISHED, JobState, ShardState


@click.command(short_help="Follow a job; work on it where nobody else does.")
@flags.job(required=False)
@click.option("--exit-status", is_flag=True, help="Exit with the code that `run` would have given.")
@flags.progress
@flags.common
def watch(edge: Edge, job: str | None, exit_status: bool, mode: Mode) -> int:
    """Follow a job, or all that are unfinished; work on them where no other process does."""
    with edge.mill() as mill:
        jobs = [look_again(edge, mill, mill.job(job))] if job else mill.unfinished()
        if not jobs:
            edge.say("nothing is unfinished")
            edge.answer({"jobs": []})
            return 0
        order = Order(mode, aside=True, quits=True)
        open_jobs = [j for j in jobs if j.state in UNFINISHED]
        interrupted = bool(open_jobs) and work(edge, mill, open_jobs, order)
        code = conclude(edge, mill, jobs, order, interrupted=interrupted)
        return code if exit_status or interrupted else 0


@click.command(short_help="Go on with what is unfinished.")
@flags.job(required=False)
@click.option("--list", "only_list", is_flag=True, help="Only list what can be resumed.")
@flags.checkpoint
@flags.yes
@flags.progress
@flags.common
def resume(edge: Edge, job: str | None, only_list: bool, checkpoint: Path | None, yes: bool, mode: Mode) -> int:
    """Go on with a job, or with all that are unfinished; paused ones are tried again."""
    with edge.mill() as mill:
        jobs = [_open(look_again(edge, mill, mill.job(job)))] if job else mill.unfinished()
        rows = [(j, mill.standing(j)) for j in jobs]
        if not jobs or only_list:
            edge.say("nothing is unfinished" if not jobs else _table(edge, mill, jobs))
            edge.answer({"jobs": [views.job_object(j, now) for j, now in rows]})
            return 0
        order = _kept(mill, jobs, mode, checkpoint)
        if not job:
            edge.say(_table(edge, mill, jobs))
        for one, now in rows:
            edge.say(f"goes on with job {one.id}: {now.done:,} of {now.rows - now.invalid:,} rows are done")
            if one.state is JobState.PAUSED:
                _unpause(edge, mill, one, yes=yes)
        interrupted = work(edge, mill, jobs, order)
        return conclude(edge, mill, jobs, order, interrupted=interrupted)


def _kept(mill: Mill, jobs: Sequence[Job], mode: Mode, checkpoint: Path | None) -> Order:
    """The order to work on jobs and keep a checkpoint. Raises UsageError where it could not be written."""
    order = Order(mode, checkpoint=checkpoint)
    if checkpoint is None:
        return order
    if len(jobs) > 1:
        raise UsageError(
            f"--checkpoint {checkpoint} for {len(jobs)} jobs",
            why="a checkpoint is that of one job",
            fix="name the job: nightmill resume JOB --checkpoint FILE",
        )
    mill.check_files(order.files, jobs[0], force=False)
    return order


def _open(job: Job) -> Job:
    if job.state not in UNFINISHED:
        raise Conflict(
            f"job {job.id} is {job.state}",
            why="nothing of it is left to do",
            fix=f"its answers: nightmill results {job.id}; rows that failed, if any, again: nightmill retry {job.id}",
        )
    return job


def _unpause(edge: Edge, mill: Mill, job: Job, *, yes: bool) -> None:
    if mill.is_dearer(job) and not yes and not edge.ask(f"The price of {job.model} rose. Go on at today's? [y/N] "):
        raise Declined("not resumed", why="the answer was no; the job stays paused")
    mill.resume(job)


def _table(edge: Edge, mill: Mill, jobs: Sequence[Job]) -> str:
    rows = [views.job_row(job, mill.standing(job)) for job in jobs]
    return present.jobs_table(rows, width=edge.width, unicode=edge.unicode)


@click.command(short_help="Send nothing new of a job until it is resumed.")
@flags.job()
@flags.common
def pause(edge: Edge, job: str) -> int:
    """Send nothing new of a job; what is at the provider stays, and `resume` goes on. A running process hears it."""
    with edge.mill() as mill:
        found = mill.job(job)
        was = found.state
        found = mill.pause(found)
        now = mill.standing(found)
        already = "already" if was is JobState.PAUSED else "now"
        edge.say(f"job {found.id} is paused {already}: {found.reason}")
        if now.states.get(ShardState.WAITING):
            there = "  what is at the provider goes on there, and is collected when somebody works on the job"
            edge.say(present.fitted(there, width=edge.width, unicode=edge.unicode))
        edge.say(f"  next: nightmill resume {found.id}")
        edge.answer(views.job_object(found, now) | {"reason": found.reason})
    return 0


@click.command(short_help="End a job; what was paid for is kept.")
@flags.job()
@flags.yes
@flags.progress
@flags.common
def cancel(edge: Edge, job: str, yes: bool, mode: Mode) -> int:
    """End a job: nothing more is sent, open batches are cancelled, what they had done is collected."""
    with edge.mill() as mill:
        found = mill.job(job)
        now = mill.standing(found)
        if found.state not in UNFINISHED:
            edge.say(f"job {found.id} is {found.state} already")
            edge.answer(views.job_object(found, now))
            return 0
        left = f"open rows: {now.pending:,}; what is done at the provider may still bill"
        if not yes and not edge.ask(f"Cancel job {found.id}? {left}. [y/N] "):
            raise Declined("not cancelled", why="the answer was no; the job is as it was")
        mill.cancel(found)
        if mill.attended(found):
            edge.say(f"job {found.id}: another process collects what is left and ends it")
            edge.answer(views.job_object(mill.job(found.id), now))
            return 0
        order = Order(mode, cancels=True)
        interrupted = work(edge, mill, [found], order)
        return conclude(edge, mill, [found], order, interrupted=interrupted)


@click.command(short_help="Send the failed rows of a finished job again.")
@flags.job()
@click.option("--max-output", type=flags.WHOLE, help="Most tokens an answer may have.")
@click.option("--temperature", type=flags.TEMPERATURE, help="How freely a model may choose its words; 0: least.")
@flags.checkpoint
@flags.yes
@flags.progress
@flags.common
def retry(
    edge: Edge, job: str, max_output: int | None, temperature: float | None, checkpoint: Path | None, yes: bool,
    mode: Mode,
) -> int:  # fmt: skip
    """Send the failed rows of a finished job again, with a fresh three attempts; the others stay."""
    with edge.mill() as mill:
        found = look_again(edge, mill, mill.job(job))
        order = _kept(mill, [found], mode, checkpoint)
        again = mill.prepare_retry(found, max_output=max_output, temperature=temperature)
        try:
            if again.at_most_nanos and not yes:
                most = present.money(again.at_most_nanos, toward="up")
                if not edge.ask(f"Send {present.some(again.rows, 'row')} again, at most {most}? [y/N] "):
                    raise Declined("not sent", why="the answer was no; nothing was spent")
            mill.submit_retry(again)
        except BaseException:
            mill.discard_retry(again)
            raise
        if not again.rows:
            standing = mill.standing(found)
            edge.say(f"job {found.id} has no failed rows{_of_invalid(standing)}")
            edge.answer(views.job_object(found, standing))
            return 0
        edge.say(f"job {found.id}: sends {present.some(again.rows, 'row')} again")
        interrupted = work(edge, mill, [found], order)
        return conclude(edge, mill, [found], order, interrupted=interrupted)


def _of_invalid(standing: Standing) -> str:
    """What `retry` cannot do for rows that were never sent."""
    if not standing.invalid:
        return ""
    rows = present.some(standing.invalid, "invalid row")
    return f"; {rows} can only be put right in the input: then give the command of the job again"
