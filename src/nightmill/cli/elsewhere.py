"""``batches`` and ``adopt``: what is at the providers, and taking in what was made elsewhere."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from nightmill.cli import flags, present, views
from nightmill.cli.edge import Edge, error_object
from nightmill.cli.progress import Mode
from nightmill.cli.session import Order, conclude, look_again, work
from nightmill.mill import ListedBatch
from nightmill.sinks import parse_target
from nightmill.types import UNFINISHED


@click.command(short_help="List batches at the providers, ours or not.")
@click.argument("provider", required=False)
@flags.common
def batches(edge: Edge, provider: str | None) -> int:
    """List every batch at a provider, or at all you have keys for: its state there and here, and its files."""
    with edge.mill(create=False) as mill:
        listings = asyncio.run(mill.list_batches(provider))
    listed = [batch for listing in listings for batch in listing.batches]
    table = [
        ["BATCH", "STATUS", "HERE", "DONE", "FAILED", "AGE", "EXPIRES", "KEY", "INPUT", "OUTPUT", "ERRORS"],
        *map(_row, listed),
    ]
    lines = present.table(table, width=edge.table_width, unicode=edge.unicode, right=(3, 4, 5, 6))
    edge.put("\n".join(lines) if listed else "no batch is listed")
    failed = [listing for listing in listings if listing.error is not None]
    for listing in failed:
        if listing.error is not None:
            with_key = f" with {listing.key}" if listing.key.fingerprint else ""
            edge.say(f"{listing.provider} could not be listed whole{with_key}:")
            edge.tell(listing.error)
    errors = [{"provider": bad.provider, **error_object(bad.error)} for bad in failed if bad.error is not None]
    edge.answer({"batches": [_object(batch) for batch in listed], "errors": errors})
    return next((bad.error.exit_code for bad in failed if bad.error is not None), 0)


def _row(batch: ListedBatch) -> list[str]:
    view, now = batch.view, time.time()
    state = _state(batch) or "in doubt"
    left_s = None if view.expires_at is None or view.phase in ("ended", "failed") else view.expires_at - now
    return [
        f"{batch.provider}/{view.id}", view.status, f"{batch.shard} {state}" if batch.shard else "not ours",
        f"{_known(view.completed)}/{_known(view.total)}", _known(view.failed),
        present.duration(max(0.0, now - view.created_at)), "" if left_s is None else present.duration(max(0.0, left_s)),
        batch.key, view.input_file or "", view.output_file or "", view.error_file or "",
    ]  # fmt: skip


def _state(batch: ListedBatch) -> str | None:
    """What became of it here; None: it is not recorded."""
    if batch.known is None:
        return None
    if batch.known.unconfirmed:
        return "not proven"
    return batch.known.state.value if batch.known.state else "deleted"


def _known(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _object(batch: ListedBatch) -> dict[str, Any]:
    view, known = batch.view, batch.known
    return {
        "provider": batch.provider, "key": batch.key, "batch_id": view.id, "status": view.status, "phase": view.phase,
        "ours": batch.shard is not None, "job_id": batch.shard.rpartition("-")[0] if batch.shard else None,
        "shard": batch.shard, "submission": f"{known.tag}.{known.n}" if known else view.submission,
        "shard_state": _state(batch), "model": view.model, "url": view.url,
        "total": view.total, "completed": view.completed, "failed": view.failed,
        "created_at": views.iso_time(view.created_at), "age_s": round(max(0.0, time.time() - view.created_at), 3),
        "expires_at": views.iso_time(view.expires_at), "input_file": view.input_file, "output_file": view.output_file,
        "error_file": view.error_file,
    }  # fmt: skip


@click.command(short_help="Take in a batch that was made elsewhere.")
@click.argument("batch", metavar="PROVIDER/BATCH_ID")
@click.option("--name", help="A label for the job.")
@flags.out
@flags.force
@flags.csv_raw
@flags.progress
@flags.common
def adopt(
    edge: Edge, batch: str, name: str | None, outs: tuple[str, ...], force: bool, csv_raw: bool, mode: Mode
) -> int:
    """Make a batch that was made elsewhere a job: wait for it, and bring its answers. Nothing of it is sent again.

    Its custom_ids are the keys of the rows. What it costs counts in the budget, which never refuses it. The same
    command again goes on with the same job.
    """
    targets = tuple(parse_target(text) for text in outs)
    with edge.mill() as mill:
        adopted = asyncio.run(mill.adopt(batch, name=name))
        job = adopted.job
        mill.check_files(targets, job, force=force)
        edge.known = views.job_object(job, mill.standing(job))
        most = present.money(job.quote.at_most_nanos, toward="up") if job.quote else ""
        is_ = "is now" if adopted.is_new else "is"
        edge.say(f"{batch} {is_} job {job.id}: {present.some(job.rows, 'row')} of {job.model}, at most {most}")
        order = Order(mode, targets=targets, csv_raw=csv_raw)
        job = job if adopted.is_new else look_again(edge, mill, job)
        interrupted = job.state in UNFINISHED and work(edge, mill, [job], order)
        return conclude(edge, mill, [job], order, interrupted=interrupted)
