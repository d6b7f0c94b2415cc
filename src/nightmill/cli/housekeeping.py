"""``delete`` and ``gc``: what may go, and what never does."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge
from nightmill.cli.run import Declined
from nightmill.config import LEAST_DAYS
from nightmill.mill import Job, Mill, Swept
from nightmill.types import UNFINISHED

_DAY_S = 86_400.0


@click.command(short_help="Delete a finished job and its files.")
@flags.job()
@flags.yes
@flags.common
def delete(edge: Edge, job: str, yes: bool) -> int:
    """Delete a finished job: its rows, answers and history. What it cost stays in the books, answers in the cache."""
    with edge.mill() as mill:
        begun = mill.finish_deletion(job)
        if begun is not None:  # killed before: there is nothing left to ask about
            edge.say(f"job {begun} is deleted")
            edge.answer({"job_id": begun, "deleted": True, "bytes": 0})
            return 0
        found = mill.job(job)
        if found.state not in UNFINISHED and not yes and not edge.ask(_question(mill, found)):
            raise Declined("not deleted", why="the answer was no; the job is as it was")
        freed = mill.delete(found)
        edge.say(f"job {found.id} is deleted: {present.size(freed)} are free again")
        edge.answer({"job_id": found.id, "deleted": True, "bytes": freed})
    return 0


def _question(mill: Mill, job: Job) -> str:
    now = mill.standing(job)
    late = " Answers may still come for it; they would be lost." if mill.expects_late(job) else ""
    rows = present.some(now.rows, "row")
    return f"Delete job {job.id} with the answers to {rows}, {present.money(now.spent_nanos)} spent?{late} [y/N] "


@click.command(short_help="Remove what nothing names any more.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--older-than", "days", type=flags.AGE, default=f"{LEAST_DAYS}d", show_default=True,
              help="Of what nothing names: untouched for so long; 30d is the least.")  # fmt: skip
@flags.common
def gc(edge: Edge, dry_run: bool, days: int) -> int:
    """Remove files that nothing names, and what [retention] in nightmill.toml lets go.

    Nothing that is not settled goes, and nothing younger than 30 days. Without [retention] every job stays.
    """
    with edge.mill(create=False) as mill:
        swept = asyncio.run(mill.sweep(older_than_s=days * _DAY_S, dry_run=dry_run))
    _tell(edge, swept, dry_run=dry_run)
    edge.answer(_swept_object(swept, dry_run=dry_run))
    return 0


def _tell(edge: Edge, swept: Swept, *, dry_run: bool) -> None:
    table = [["WHAT", "PATH", "FILES", "SIZE", "WHY"]]
    table += [[w.what, w.path, f"{w.files:,}", present.size(w.size_bytes), w.why] for w in swept.removed]
    if swept.removed:
        edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode, right=(2, 3))))
    done = "would be removed" if dry_run else "removed"
    edge.put(f"{present.some(sum(w.files for w in swept.removed), 'file')} {done}, {present.size(swept.size_bytes)}")
    if swept.provider_files:
        edge.put(f"{present.some(swept.provider_files, 'file')} at the provider {done}")
    for note in swept.notes:
        edge.say(present.show(f"note: {note}"))


def _swept_object(swept: Swept, *, dry_run: bool) -> dict[str, Any]:
    removed = [
        {"what": w.what, "path": w.path, "files": w.files, "bytes": w.size_bytes, "why": w.why} for w in swept.removed
    ]
    return {
        "dry_run": dry_run, "removed": removed, "bytes": swept.size_bytes, "provider_files": swept.provider_files,
        "notes": swept.notes,
    }  # fmt: skip
