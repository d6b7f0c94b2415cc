"""Submitting: a plan becomes a job, or joins the unfinished one that the same command began."""

from __future__ import annotations

from dataclasses import replace

from nightmill.config import exact_usd
from nightmill.errors import Conflict, OverBudget
from nightmill.ledger import BAD_ANSWERS, Job
from nightmill.mill import laddering, planning
from nightmill.mill.home import Home
from nightmill.mill.planning import Prepared, RunOptions
from nightmill.pricing import PriceSheet
from nightmill.providers.resolve import parse_model
from nightmill.types import UNFINISHED, JobState, Lane


def submit(home: Home, prepared: Prepared) -> Job:
    """Make the plan a job; if the same command began one that is unfinished, that one.

    Raises:
        OverBudget: it would probably cost more than is free.
        Conflict: its name is another unfinished job's.
    """
    plan, options = prepared.plan, prepared.options
    if prepared.resumes is not None:
        planning.drop(home, plan.job_id)
        return _go_on(home, prepared.resumes, options)
    try:
        check_affordable(prepared)
        laddering.check(home, prepared.spec)
        fingerprint = f"{plan.fingerprint}:{plan.job_id}" if options.new else plan.fingerprint
        _check_name(home, options.name, fingerprint)
        _forgive_keys(home, prepared.model)
        return home.ledger.publish_plan(
            plan.job_id,
            name=options.name,
            fingerprint=fingerprint,
            task_digest=prepared.task_digest,
            spec=prepared.spec,
            quote=plan.quote,
            rows=plan.rows,
            invalid=plan.invalid,
            duplicates=plan.duplicates,
            cached=plan.cached,
            shards=plan.shards,
            files=plan.files,
            budget_nanos=options.budget_nanos,
            canary_last=plan.canary_last,
        )
    except Conflict:
        planning.drop(home, plan.job_id)
        winner = None if options.new else home.ledger.find_unfinished(plan.fingerprint)
        if winner is not None:  # another process was first: help it
            return _go_on(home, winner, options)
        raise
    except BaseException:
        planning.drop(home, plan.job_id)
        raise


def _go_on(home: Home, job: Job, options: RunOptions) -> Job:
    """The unfinished job, under the budget, rates, rule and name this command gives, and no longer paused."""
    _check_name(home, options.name, job.fingerprint)
    given = {name: getattr(options, name) for name in ("rpm", "tpm", "concurrency", "on_error", "min_valid")}
    changes = {name: value for name, value in given.items() if value not in (None, job.spec.get(name))}
    name = options.name if options.name != job.name else None
    if changes or name:
        home.ledger.revise(job.id, changes, name=name)
    if options.budget_nanos is not None:
        home.ledger.set_budget(f"job:{job.id}", options.budget_nanos)
    if job.state is JobState.PAUSED:
        if job.canary is not None and job.canary.stopped is not None:
            home.ledger.decide_anew(job.id)
        _let_go_on(home, job)
    return home.job(job.id)


def _forgive_keys(home: Home, model: str) -> None:
    """Where every key was refused, a new job tries them again: what was wrong may have been put right."""
    name = parse_model(model)[0]
    refused = {key.fingerprint for key in home.ledger.refused_keys(name)}
    if refused and all(each.account.key.fingerprint in refused for each in home.providers(model)):
        home.ledger.forgive_keys(name)


def resume(home: Home, job: Job) -> None:
    """Let a paused job go on, at today's price; a later run works on it.

    Whoever says so of a job that its answers stopped wants them as they are: nothing watches them any more.
    """
    if job.state is JobState.PAUSED and job.stopped in BAD_ANSWERS:
        home.ledger.revise(job.id, {"min_valid": None})
    if job.state is JobState.PAUSED and job.canary is not None and job.canary.stopped is not None:
        home.ledger.canary_stands(job.id, replace(job.canary, stopped=None))
    _let_go_on(home, job)


def _let_go_on(home: Home, job: Job) -> None:
    sheet = home.sheet(job.model, job.lane)
    changes = {"price": sheet.to_json()} if sheet.dearer_than(PriceSheet.from_json(job.spec["price"])) else {}
    changes |= laddering.next_prices(home, job.spec)
    if "live_price" in job.spec:
        changes["live_price"] = home.sheet(job.model, Lane.LIVE).to_json()
    if changes:
        home.ledger.revise(job.id, changes)
    for name in {parse_model(model)[0] for model in (job.model, *job.spec.get("next_models", ()))}:
        home.ledger.forgive_keys(name)
    home.ledger.resume(job.id)


def pause(home: Home, job: Job) -> Job:
    """Nothing new of an unfinished job is sent until it is resumed; the job as it is then. Raises Conflict."""
    if job.cancel_requested or job.state not in UNFINISHED:
        what = "is being cancelled" if job.state in UNFINISHED else f"is {job.state}"
        why = "nothing new of it is sent" if job.state in UNFINISHED else "nothing of it is left to do"
        raise Conflict(f"job {job.id} {what}", why=why, fix=f"nightmill show {job.id}")
    home.ledger.pause(job.id, "paused by you", stopped="paused")
    return home.job(job.id)


def _check_name(home: Home, name: str | None, fingerprint: str) -> None:
    other = home.ledger.find_unfinished_name(name) if name else None
    if other is not None and other.fingerprint != fingerprint:
        raise Conflict(
            f"the name {name} is that of unfinished job {other.id}",
            why="this is another job: its rows, task, model or options differ, or it was begun with --new",
            fix="give another --name, or finish or cancel that job first",
        )


def check_affordable(prepared: Prepared) -> None:
    """Raises OverBudget when the expected cost is more than the tightest limit has free."""
    free, quote = prepared.free, prepared.quote
    if free is None or free.free_nanos is None or quote.expected_nanos <= free.free_nanos or not quote.expected_nanos:
        return
    kind = free.scope.partition(":")[0]
    raised = {"job": "give a higher --budget", "total": "raise it with: nightmill budget set USD"}
    raise OverBudget(
        f"the job will probably cost {exact_usd(quote.expected_nanos)}; "
        f"the budget has {exact_usd(free.free_nanos)} free",
        why=f"the limit {free.scope} is {exact_usd(free.cap_nanos or 0)}, spent {exact_usd(free.spent_nanos)}, "
        f"held {exact_usd(free.held_nanos)}; the job costs at most {exact_usd(quote.at_most_nanos)}",
        fix="lower --max-output or --limit, take a cheaper model, or "
        + raised.get(kind, f"raise it with: nightmill budget set --{kind} USD"),
    )
