"""``delete`` and ``gc``: what may go, and what never does."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Declined, Edge
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
        names = [name.lower() for name in (found.name, found.id) if name]
        if found.state not in UNFINISHED and not yes and not edge.ask(_question(mill, found), names):
            raise Declined("not deleted", why="its name was not typed; the job is as it was")
        freed = mill.delete(found)
        edge.say(f"job {found.id} is deleted: {present.size(freed)} are free again")
        edge.answer({"job_id": found.id, "deleted": True, "bytes": freed})
    return 0


def _question(mill: Mill, job: Job) -> str:
    now = mill.standing(job)
    late = " Answers may still come for it; they would be lost." if mill.expects_late(job) else ""
    rows = present.some(now.rows, "row")
    what = f"Delete job {job.id} with the answers to {rows}, {present.money(now.spent_nanos)} spent?{late}"
    return f"{what} Type {job.name or job.id} to delete it:"


@click.command(short_help="Remove what nothing names any more.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--older-than", "days", type=flags.AGE, default=f"{LEAST_DAYS}d", show_default=True,
              help="Of what nothing names: untouched for so long; 30d is the least.")  # fmt: skip
@flags.yes
@flags.common
def gc(edge: Edge, dry_run: bool, days: int, yes: bool) -> int:
    """Remove files that nothing names, and what [retention] in nightmill.toml lets go.

    Nothing that is not settled goes, and nothing younger than 30 days. Without [retention] every job stays.
    """
    with edge.mill(create=False) as mill:
        swept = asyncio.run(mill.sweep(older_than_s=days * _DAY_S, dry_run=dry_run or not yes))
        if not dry_run and not yes and (swept.removed or swept.provider_files):
            edge.say("\n".join(_lines(swept, width=edge.width, unicode=edge.unicode, dry_run=True)))
            if not edge.ask("Remove them? Every job that is left, and all that money is counted by, stays. [y/N]"):
                raise Declined("nothing was removed", why="the answer was no")
            swept = asyncio.run(mill.sweep(older_than_s=days * _DAY_S))
    edge.put("\n".join(_lines(swept, width=edge.table_width, unicode=edge.unicode, dry_run=dry_run)))
    for note in swept.notes:
        edge.say(present.show(f"note: {note}"))
    edge.answer(_swept_object(swept, dry_run=dry_run))
    return 0


def _lines(swept: Swept, *, width: int, unicode: bool, dry_run: bool) -> list[str]:
    table = [["WHAT", "PATH", "FILES", "SIZE", "WHY"]]
    table += [[w.what, w.path, f"{w.files:,}", present.size(w.size_bytes), w.why] for w in swept.removed]
    lines = present.table(table, width=width, unicode=unicode, right=(2, 3)) if swept.removed else []
    done = "would be removed" if dry_run else "removed"
    files = present.some(sum(w.files for w in swept.removed), "file")
    lines.append(f"{files} {done}, {present.size(swept.size_bytes)}")
    if swept.provider_files:
        lines.append(f"{present.some(swept.provider_files, 'file')} at the provider {done}")
    return lines


def _swept_object(swept: Swept, *, dry_run: bool) -> dict[str, Any]:
    removed = [
        {"what": w.what, "path": w.path, "files": w.files, "bytes": w.size_bytes, "why": w.why} for w in swept.removed
    ]
    return {
        "dry_run": dry_run, "removed": removed, "bytes": swept.size_bytes, "provider_files": swept.provider_files,
        "notes": swept.notes,
    }  # fmt: skip
