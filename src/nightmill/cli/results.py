"""``results`` and ``resolve``: what came back, and what nobody knows whether it will."""

from __future__ import annotations

import asyncio
import sys
from itertools import islice
from typing import Any

import click

from nightmill.cli import flags, present, views
from nightmill.cli.edge import Edge, PipeClosed, error_object
from nightmill.cli.progress import Mode
from nightmill.cli.session import Order, look_again, tell_end, work
from nightmill.errors import UsageError
from nightmill.mill import Job, Mill
from nightmill.sinks import STREAMED, Format, parse_target
from nightmill.types import UNFINISHED

_MOST_SHOWN = 20  # rows on a terminal


@click.command(short_help="Write a job's results, to stdout or files.")
@flags.job()
@flags.out
@click.option(
    "--format",
    "form",
    type=click.Choice(STREAMED),
    help="Of what goes to stdout: jsonl; where that is a terminal and nothing is said, a few rows to look at.",
)
@click.option("--failed", is_flag=True, help="Failed rows only.")
@click.option("--rows", "span", type=flags.ROWS_SPAN, help="These rows only, counted from 0.")
@flags.force
@flags.csv_raw
@flags.progress
@flags.common
def results(
    edge: Edge, job: str, outs: tuple[str, ...], form: Format | None, failed: bool,
    span: tuple[int, int] | None, force: bool, csv_raw: bool, mode: Mode,
) -> int:  # fmt: skip
    """Write results in input order: as JSON lines to stdout, or to files with --out. On a terminal, show the first.

    A job that is not finished is worked on first, until it is. Ctrl-C takes what there is so far,
    and so does this command when another process works on the job.
    """
    targets = [parse_target(text) for text in outs]
    if edge.json and not targets:
        raise UsageError(
            "--json with results on stdout",
            why="--json is one object, results are many",
            fix="leave --json out, or add --out PATH",
        )
    with edge.mill(create=False) as mill:
        found = mill.job(job)
        mill.check_files(targets, found, force=force)
        mill.check_format(form or "jsonl", found)
        found = look_again(edge, mill, found)
        worked, interrupted = _bring_on(edge, mill, found, mode) if found.state in UNFINISHED else (False, False)
        found = mill.job(found.id)
        chosen: dict[str, Any] = {"span": span, "failed": failed}
        if targets:
            rows = mill.export(found, targets, csv_raw=csv_raw, **chosen)
            edge.say(f"{present.some(rows, 'row')} written")
        elif form is None and sys.stdout.isatty():
            rows = _look_at(edge, mill, found, span or (0, found.rows), failed=failed)
        else:
            try:
                rows = mill.pour(found, edge.data, form or "jsonl", csv_raw=csv_raw, **chosen)
            except BrokenPipeError as closed:
                raise PipeClosed from closed
        now, paths = mill.standing(found), [str(target.path) for target in targets]
        answer = views.job_object(found, now, out=paths, interrupted=interrupted) | {"written": rows}
        code, error = tell_end(edge, mill, found, now, interrupted=interrupted, wrote=True) if worked else (0, None)
        edge.answer(answer if error is None else answer | {"error": error_object(error)})
        for path in paths:
            edge.put(path)
        return code if error is not None else 0  # the rows that failed are among the results


def _look_at(edge: Edge, mill: Mill, job: Job, span: tuple[int, int], *, failed: bool) -> int:
    """Show the first of these rows, a line each, and say how to get at all; how many were shown."""
    records = (record for batch in mill.results(job, *span) for record in batch.to_pylist())
    wanted = (record for record in records if not (failed and record["success"]))
    shown = list(islice(wanted, _MOST_SHOWN))
    rows = [(f"{record['index']:,}", record["key"] or "", _answer(record)) for record in shown]
    if rows:
        edge.put("\n".join(present.answers_table(rows, width=edge.width, unicode=edge.unicode)))
    else:
        edge.say("no row to show")
    if next(wanted, None) is not None:
        edge.say(f"there are more. All: nightmill results {job.id} --out FILE, or here with --format jsonl")
    return len(shown)


def _answer(record: dict[str, Any]) -> str:
    if record["success"]:
        return record["response"] or ""
    kind = record["error_kind"] or "failed"
    return f"✗ {kind}: {(record['error'] or '').removeprefix(f'{kind}: ')}"


def _bring_on(edge: Edge, mill: Mill, job: Job, mode: Mode) -> tuple[bool, bool]:
    """Work on an unfinished job where nobody else does; whether this worked, and was interrupted."""
    now = mill.standing(job)
    edge.known = views.job_object(job, now)
    still_open = f"{now.pending:,} of {now.rows:,} rows are still open"
    if mill.attended(job):
        edge.say(f"job {job.id} is {job.state} in another process: {still_open}")
        return False, False
    edge.say(f"job {job.id} is {job.state}: {still_open}")
    edge.keep_log(mill.settings)
    return True, work(edge, mill, [job], Order(mode, aside=True))


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
