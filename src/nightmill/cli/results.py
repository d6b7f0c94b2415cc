"""``results`` and ``resolve``: what came back, and what nobody knows whether it will."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

import click

from nightmill.cli import flags, views
from nightmill.cli.edge import Edge
from nightmill.errors import UsageError
from nightmill.sinks import parse_target, stream
from nightmill.types import UNFINISHED


@click.command(short_help="Write a job's results, to stdout or files.")
@click.argument("job")
@flags.out
@click.option("--format", "form", type=click.Choice(("jsonl", "csv")), default="jsonl", show_default=True,
              help="Of what goes to stdout.")  # fmt: skip
@click.option("--failed", is_flag=True, help="Failed rows only.")
@click.option("--rows", "span", type=flags.ROWS_SPAN, help="These rows only, counted from 0.")
@flags.force
@flags.csv_raw
@flags.common
def results(
    edge: Edge, job: str, outs: tuple[str, ...], form: Literal["jsonl", "csv"], failed: bool,
    span: tuple[int, int] | None, force: bool, csv_raw: bool,
) -> int:  # fmt: skip
    """Write results in input order: as JSON lines to stdout, or to files with --out."""
    targets = [parse_target(text) for text in outs]
    with edge.mill(create=False) as mill:
        found = mill.job(job)
        if found.state in UNFINISHED:
            now = mill.standing(found)
            edge.say(f"job {found.id} is {found.state}: {now.pending:,} of {now.rows:,} rows are still open")
        chosen: dict[str, Any] = {"span": span, "failed": failed}
        if targets:
            mill.check_files(targets, found, force=force)
            rows = mill.export(found, targets, csv_raw=csv_raw, **chosen)
            paths = [str(target.path) for target in targets]
            edge.say(f"{rows:,} rows written")
            edge.answer(views.job_object(found, mill.standing(found), out=paths) | {"written": rows})
            for path in paths:
                edge.put(path)
            return 0
        if edge.json:
            raise UsageError(
                "--json with results on stdout",
                why="--json is one object, results are many",
                fix="leave --json out, or add --out PATH",
            )
        batches = mill.selected(found, **chosen)
        stream(sys.stdout.buffer, form, batches, schema=mill.schema(found), csv_raw=csv_raw)
    return 0


@click.command(short_help="Say what became of a shard in doubt.")
@click.argument("shard")
@click.option("--adopt", metavar="ID", help="This batch is the shard's.")
@click.option("--resend", is_flag=True, help="The provider does not have it: send it again.")
@click.option("--write-off", is_flag=True, help="Give it up: its hold counts as spent, its rows as missing.")
@flags.common
def resolve(edge: Edge, shard: str, adopt: str | None, resend: bool, write_off: bool) -> int:
    """End the doubt about a shard whose submission nobody can prove or disprove."""
    if sum((bool(adopt), resend, write_off)) != 1:
        raise UsageError(
            "say what became of it", why="exactly one of three", fix="add --adopt ID, --resend or --write-off"
        )
    with edge.mill() as mill:
        doubtful = mill.shard(shard)
        said = asyncio.run(mill.resolve(doubtful, adopt=adopt, resend=resend))
        job = mill.job(doubtful.job_id)
        edge.say(said)
        edge.say(f"  next: nightmill resume {job.id}")
        edge.answer(views.job_object(job, mill.standing(job)) | {"shard": doubtful.tag, "resolved": said})
    return 0
