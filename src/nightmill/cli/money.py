"""``savings`` and ``reconcile``: what was not paid, and whether what was is what the providers say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge, error_object
from nightmill.errors import NightmillError
from nightmill.mill import Compared, Match, Reconciled, Saved
from nightmill.types import usd

_SAID = {
    Match.EQUAL: "equal",
    Match.SETTLED: "proven by the provider's totals, booked so now",
    Match.DIFFERS: "differs",
    Match.OPEN: "not over yet",
    Match.UNSTATED: "the provider tells no totals",
    Match.DELETED: "its job was deleted",
    Match.GONE: "not listed there any more",
    Match.OTHER_KEY: "sent with another key",
    Match.UNRECORDED: "carries our name, not in the books",
}
_WRONG = (Match.DIFFERS, Match.UNRECORDED)


class Differs(NightmillError):
    code = "differs"


@click.command(short_help="What batches, flex, the cache and folding saved.")
@flags.job(required=False)
@flags.common
def savings(edge: Edge, job: str | None) -> int:
    """What a job, or all of them, cost and would have cost in real time, live at the list price, and what saved it."""
    with edge.mill(create=False) as mill:
        found = mill.saved(mill.job(job) if job else None)
        deleted = Saved() if job else mill.saved_by_deleted()
    total = deleted
    for each in found.values():
        total = total.plus(each)
    table = [
        ["JOB", "REAL TIME", "PAID", "SAVED", "", "BATCH", "FLEX", "CACHE", "PROMPT CACHE", "DUPLICATES", "UNPROVEN"]
    ]
    table += [_saved_row(job_id, each) for job_id, each in found.items()]
    table += [_saved_row("deleted jobs", deleted)] if deleted != Saved() else []
    table += [] if job else [_saved_row("all", total)]
    edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode, right=range(1, 11))))
    jobs = [{"job_id": job_id} | _saved_object(each) for job_id, each in found.items()]
    edge.answer(jobs[0] if job else _saved_object(total) | {"jobs": jobs, "deleted_jobs": _saved_object(deleted)})
    return 0


def _saved_row(name: str, saved: Saved) -> list[str]:
    nanos = (
        saved.batch_nanos + saved.live_nanos,
        saved.flex_nanos,
        saved.cache_nanos,
        saved.caching_nanos,
        saved.duplicates_nanos,
        -saved.unproven_nanos,
    )
    percent = present.percent(saved.saved_nanos, saved.real_time_nanos)
    totals = (saved.real_time_nanos, saved.paid_nanos, saved.saved_nanos)
    return [name, *map(_signed, totals), percent, *map(_signed, nanos)]


def _saved_object(saved: Saved) -> dict[str, Any]:
    """``saved_usd = real_time_usd - paid_usd``, and the sum of its parts."""
    return {
        "real_time_usd": usd(saved.real_time_nanos), "paid_usd": usd(saved.paid_nanos),
        "saved_usd": usd(saved.saved_nanos),
        "by": {
            "batch_usd": usd(saved.batch_nanos), "flex_usd": usd(saved.flex_nanos), "live_usd": usd(saved.live_nanos),
            "cache_usd": usd(saved.cache_nanos), "prompt_cache_usd": usd(saved.caching_nanos),
            "duplicates_usd": usd(saved.duplicates_nanos), "unproven_usd": usd(-saved.unproven_nanos),
        },
    }  # fmt: skip


@click.command(short_help="Hold the books against the providers' own totals.")
@click.argument("provider", required=False)
@flags.common
def reconcile(edge: Edge, provider: str | None) -> int:
    """Hold what is booked for each batch against the provider's own totals, at one provider or all you have keys for.

    Money that nobody could prove is released or booked where the totals prove it; any other difference is told, and
    nothing is changed. Live calls are in no batch's totals. Exit 0: all that could be compared is equal; 1: it is not.
    """
    with edge.mill() as mill:
        found = asyncio.run(mill.reconcile(provider))
    compared = [batch for each in found for batch in each.batches]
    table = [["OURS", "THEIRS", "DIFFERENCE", "", "SHARD", "BATCH"], *map(_row, compared)]
    if compared:
        edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode, right=(0, 1, 2))))
    wrong = [batch for batch in compared if batch.match in _WRONG]
    errors = [(each.provider, each.error) for each in found if each.error is not None]
    for name, error in errors:
        edge.say(f"{name} could not be asked:")
        edge.tell(error)
    edge.put(present.fitted(_summary(compared), width=edge.table_width, unicode=edge.unicode))
    answer = _answer(found, compared)
    if wrong:
        what = "1 batch differs" if len(wrong) == 1 else f"{len(wrong):,} batches differ"
        differs = Differs(
            what,
            why="nothing here explains it; the books were left as they are",
            fix="compare with the provider's own bill; nightmill show JOB tells what each shard cost",
        )
        edge.tell(differs)
        answer["error"] = error_object(differs)
    edge.answer(answer)
    return 1 if wrong else next((error.exit_code for _, error in errors), 0)


def _row(batch: Compared) -> list[str]:
    theirs, difference = batch.theirs_nanos, batch.difference_nanos
    return [
        present.money(batch.spent_nanos), "?" if theirs is None else present.money(theirs),
        "?" if difference is None else _signed(difference), _SAID[batch.match], batch.shard,
        f"{batch.provider}/{batch.batch_id}",
    ]  # fmt: skip


def _signed(nanos: int) -> str:
    return "-" + present.money(-nanos) if nanos < 0 else present.money(nanos)


def _summary(compared: Sequence[Compared]) -> str:
    told = [batch for batch in compared if batch.theirs_nanos is not None]
    ours, theirs = sum(b.spent_nanos for b in told), sum(b.theirs_nanos or 0 for b in told)
    open_ = len(compared) - len(told)
    rest = f"; {open_:,} could not be compared" if open_ else ""
    return f"compared {len(told):,}: ours {present.money(ours)}, theirs {present.money(theirs)}{rest}"


def _answer(found: Sequence[Reconciled], compared: Sequence[Compared]) -> dict[str, Any]:
    told = [batch for batch in compared if batch.theirs_nanos is not None]
    ours, theirs = sum(b.spent_nanos for b in told), sum(b.theirs_nanos or 0 for b in told)
    return {
        "compared": len(told), "not_compared": len(compared) - len(told),
        "not_ours": sum(each.not_ours for each in found), "ours_usd": usd(ours), "theirs_usd": usd(theirs),
        "difference_usd": usd(theirs - ours), "batches": [_object(batch) for batch in compared],
        "errors": [{"provider": e.provider, **error_object(e.error)} for e in found if e.error is not None],
    }  # fmt: skip


def _object(batch: Compared) -> dict[str, Any]:
    theirs, difference, usage = batch.theirs_nanos, batch.difference_nanos, batch.usage
    return {
        "provider": batch.provider, "key": batch.key, "batch_id": batch.batch_id, "shard": batch.shard,
        "match": batch.match.value,
        "ours_usd": usd(batch.spent_nanos), "unproven_usd": usd(batch.unproven_nanos),
        "theirs_usd": None if theirs is None else usd(theirs),
        "difference_usd": None if difference is None else usd(difference),
        "their_tokens_in": usage.input_tokens if usage else None,
        "their_tokens_out": usage.output_tokens if usage else None,
    }  # fmt: skip
