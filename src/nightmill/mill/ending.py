"""Ending: what a job's end means to whoever waited for it."""

from __future__ import annotations

from nightmill.errors import NightmillError, OverBudget, Paused, StoppedByAnswers, StoppedByErrors, WasCancelled
from nightmill.ledger import BAD_ANSWERS, Job, Standing
from nightmill.types import UNFINISHED, JobState


def ending_error(job: Job, now: Standing) -> NightmillError | None:
    """Why a job on which nobody works any more did not come to its natural end; None: it did, failed rows or not."""
    error: NightmillError | None = None
    if job.state is JobState.PAUSED:
        return paused(job)
    if job.stopped == "on_error":
        error = StoppedByErrors(
            f"stopped by --on-error {job.spec['on_error']}: {now.failed + now.missing + now.expired:,} rows failed",
            fix=f"nightmill show {job.id} --failures\nnightmill retry {job.id}",
        )
    elif job.state is JobState.CANCELLED:
        left = now.succeeded + now.invalid < now.rows
        fix = f"nightmill retry {job.id} sends what is left" if left else f"nightmill results {job.id}"
        error = WasCancelled(f"job {job.id} was cancelled", fix=fix)
    elif job.state in UNFINISHED:
        error = Paused(f"job {job.id} is not done", why=job.reason or "", fix=f"nightmill resume {job.id}")
    if error is not None:
        error.job_id = job.id
    return error


def paused(job: Job) -> NightmillError:
    """Why a paused job is paused, and what lets it go on."""
    if job.stopped in BAD_ANSWERS or (job.canary is not None and job.canary.stopped == job.stopped is not None):
        return _by_answers(job)
    why, _, told = (job.reason or "").partition("; raise it with: ")
    told = told.removesuffix(", then: nightmill resume").replace("--job JOB", f"--job {job.id}")
    error: NightmillError
    if job.stopped == "budget":
        fix = f"{told or 'nightmill budget set USD'}, then: nightmill resume {job.id}"
        error = OverBudget(f"job {job.id} is paused by a budget", why=why, fix=fix)
    elif job.stopped == "paused":
        error = Paused(f"job {job.id} is paused", why=why, fix=f"go on with: nightmill resume {job.id}")
    else:
        error = Paused(f"job {job.id} is paused", why=why, fix=f"put that right, then: nightmill resume {job.id}")
    error.job_id = job.id
    return error


def _by_answers(job: Job) -> NightmillError:
    """A job that its first rows, or its answers so far, stopped: nothing goes out until a person says so."""
    error: NightmillError
    if job.stopped == "budget":
        fix = f"nightmill resume {job.id} goes on until the money is spent\nor raise it with: nightmill budget set USD"
        error = OverBudget(f"job {job.id} is paused: its first rows cost more", why=job.reason or "", fix=fix)
    else:
        fix = (
            f"nightmill show {job.id} --failures tells more\n"
            f"nightmill resume {job.id} goes on all the same; nightmill cancel {job.id} ends it"
        )
        error = StoppedByAnswers(f"job {job.id} is paused: too few answers are valid", why=job.reason or "", fix=fix)
    error.job_id = job.id
    return error
