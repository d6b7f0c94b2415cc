"""``nightmill run``: plan, price, ask, send, wait, write."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nightmill.cli import flags, present, views
from nightmill.cli.edge import Declined, Edge
from nightmill.cli.session import Order, conclude, conclude_detached, look_again, work
from nightmill.errors import OverBudget, UsageError
from nightmill.mill import Mill, Prepared, RunOptions, check_affordable
from nightmill.mill.templates import Template
from nightmill.mill.templates import load as load_template
from nightmill.mill.templates import save as save_template
from nightmill.sinks import parse_target
from nightmill.tasks import read_prompt
from nightmill.types import UNFINISHED, Lane

log = logging.getLogger(__name__)

_FIRST_REQUEST_CHARS = 4_000  # of a request that is shown
_BULK = re.compile(r"[A-Za-z0-9+/]{300,}={0,2}")  # bytes in base64, of which nobody reads a word


@dataclass(frozen=True, slots=True)
class _Manner:
    """How to run, apart from what."""

    order: Order
    yes: bool
    force: bool
    dry_run: bool
    save_requests: Path | None
    save_as: str | None
    asked: Template  # what is saved


@click.command(short_help="Run a task or a prompt over rows.")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--task", metavar="NAME", help="A task: its name, a .toml file, or module:function.")
@click.option("--prompt", metavar="TEXT|@FILE", help="A prompt; {{ column }} stands for a row's value.")
@click.option("--model", metavar="P/M[,P/M...]", help="The model, such as local/smollm2-135m; of several the cheapest "
              "that can do the job.")  # fmt: skip
@click.option("--min-quality", type=flags.GRADE, metavar="Q",
              help="The least a model may be worth, 0 to 100, as [models] of the settings grades it.")  # fmt: skip
@click.option("--lane", type=click.Choice(("auto", "batch", "live", "flex")),
              help="Half price and slow, at once, or half price and at once where there is room.")  # fmt: skip
@click.option("--by", metavar="08:00|6h", help="When to be done: what batches have not answered in time runs live.")
@click.option("--budget", type=flags.USD, help="Most this job may spend.")
@click.option("--schema", metavar="FILE|module:Class", help="What every answer must look like; JSON as it is will do.")
@flags.out
@click.option("--key", metavar="COLUMN", help="The column that names a row.")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Map a task's column, or set its variable.")
@click.option("--media", multiple=True, metavar="COLUMN",
              help="A column of images, PDFs, audio or video to send along: paths or web addresses.")  # fmt: skip
@click.option("--rows", type=click.Choice(("file", "line")), help="What a row of a .txt file is.")
@click.option("--encoding", metavar="E", help="How the text of the inputs is written, if not as UTF-8.")
@click.option("--skip-bad", is_flag=True, help="Count rows that cannot be sent as invalid, and send the rest.")
@click.option("--name", help="A label for the job.")
@click.option("--new", is_flag=True, help="Begin a new job even if this one ran before.")
@click.option("--limit", type=flags.WHOLE, help="Most rows to take.")
@click.option("--sample", type=flags.WHOLE, help="Take so many rows at random, of the first --limit ones if given.")
@click.option("--seed", type=flags.SEED, help="Another number, another sample; left out, the rows decide.")
@click.option("--on-error", type=flags.ON_ERROR,
              help="continue (where nothing is said), stop, threshold:N or threshold:N%.")  # fmt: skip
@click.option(
    "--canary",
    type=flags.COUNT,
    help="Rows that go out before all others; 0: none. Where nothing is said, 20 of more than 500.",
)
@click.option("--min-valid", type=flags.SHARE, help="Stop where a smaller share of the answers is valid: 0.9 or 90%.")
@click.option("--repair/--no-repair", default=None,
              help="Put answers that do not fit the schema right on this machine, where that can be.")  # fmt: skip
@click.option("--reask", type=flags.COUNT, metavar="N",
              help="Then ask such rows again with what is wrong, up to N times.")  # fmt: skip
@click.option("--batch-size", type=flags.WHOLE, help="Most rows in a shard.")
@click.option("--temperature", type=flags.TEMPERATURE,
              help="How freely words are chosen, where a model takes that: 0 least, 0.3 unless told.")  # fmt: skip
@click.option("--max-output", type=flags.WHOLE, help="Most tokens an answer may have; 2,000 unless the task says.")
@click.option("--dimensions", type=flags.WHOLE, help="How many numbers an embedding has; left out, the model decides.")
@click.option("--rpm", type=flags.POSITIVE, help="Most live requests a minute.")
@click.option("--tpm", type=flags.POSITIVE, help="Most live tokens a minute.")
@click.option("--concurrency", type=flags.WHOLE, help="Live requests at once.")
@click.option("--no-cache", is_flag=True, help="Do not use answers of earlier jobs.")
@click.option("--no-dedupe", is_flag=True, help="Send rows that are alike one by one.")
@click.option("--save-as", metavar="NAME", help="Keep these options as a template: nightmill run @NAME.")
@click.option("--dry-run", is_flag=True, help="Plan and price; send, spend and keep nothing.")
@click.option(
    "--save-requests", metavar="FOLDER", help="With --dry-run: keep what would be sent, a file for each shard."
)
@click.option("--detach", is_flag=True, help="Hand over what fits, in batches, and leave; collect later.")
@flags.checkpoint
@flags.yes
@flags.force
@flags.csv_raw
@flags.progress
@flags.common
def run(edge: Edge, **given: Any) -> int:
    """Run a task or a prompt over the rows of files, and wait for the answers.

    INPUT is a file (.csv .jsonl .txt .json .parquet .arrow, also .gz and .zst), a folder, a pattern, - for
    the standard input, piped or typed, or FORMAT:PATH where the suffix does not say how the file is written.
    @NAME is what was saved with --save-as NAME; inputs and options given beside it count instead.
    """
    mode, yes, force, save_requests = given.pop("mode"), given.pop("yes"), given.pop("force"), _folder(given)
    dry_run, detach, save_as = given.pop("dry_run"), given.pop("detach"), given.pop("save_as")
    typed, around = _told_apart(given)
    saved = _with_template(edge, _template(typed))
    asked = saved.over(_template(around))
    if not asked.options.inputs:
        fix = "nightmill run words.txt --task define; nightmill run - takes rows that are typed or piped"
        raise UsageError("no input", why="there is nothing to run", fix=fix)
    targets = tuple(map(parse_target, asked.outs))
    lane = _detachable(asked.options.lane, targets) if detach else asked.options.lane
    order = Order(mode, targets=targets, csv_raw=asked.csv_raw, checkpoint=asked.checkpoint, detach=detach)
    manner = _Manner(order, yes, force, dry_run, save_requests, save_as, saved)
    with edge.piped(asked.options.inputs) as piped, edge.mill(create=not manner.dry_run) as mill:
        options = replace(asked.options, given=piped, lane=lane, detach=detach and asked.options.lane is None)
        if manner.dry_run:
            return _rehearse(edge, mill, options, manner)
        return _run(edge, mill, options, manner)


def _told_apart(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was typed, and what the environment says, which counts less than a template."""
    context = click.get_current_context()
    nothing = {name: () if isinstance(value, tuple) else False if isinstance(value, bool) else None
               for name, value in given.items()}  # fmt: skip
    outside = {n for n in given if context.get_parameter_source(n) is ParameterSource.ENVIRONMENT and n != "new"}
    typed = {name: nothing[name] if name in outside else value for name, value in given.items()}
    return typed, nothing | {name: given[name] for name in outside} | {"inputs": (), "new": False}


def _template(given: dict[str, Any]) -> Template:
    outs, csv_raw, checkpoint = (given.pop(name) for name in ("outs", "csv_raw", "checkpoint"))
    return Template(_options(given), outs, csv_raw, checkpoint)


def _with_template(edge: Edge, asked: Template) -> Template:
    """What was said, and where ``@NAME`` stands for a template, what that says beside."""
    inputs = asked.options.inputs
    if not inputs or not inputs[0].startswith("@"):
        return asked
    rest = replace(asked, options=replace(asked.options, inputs=inputs[1:]))
    return rest.over(load_template(edge.settings().home, inputs[0][1:]))


def _save_template(edge: Edge, manner: _Manner) -> None:
    """Once it stands that the command can be planned; a dry run does it too, since that was asked for."""
    if manner.save_as is not None:
        save_template(edge.settings().home, manner.save_as, manner.asked, force=manner.force)
        edge.say(f"saved: nightmill run @{manner.save_as}")


def _folder(given: dict[str, Any]) -> Path | None:
    """Where a dry run is to keep the requests. Raises UsageError: it is none."""
    folder = given.pop("save_requests")
    if folder and not given["dry_run"]:
        raise UsageError(
            "--save-requests without --dry-run", why="a job keeps its requests itself", fix="add --dry-run"
        )
    return Path(folder) if folder else None


def _detachable(lane: str | None, targets: Sequence[object]) -> str:
    """The lane of a run that does not wait for its answers. Raises UsageError."""
    if lane in ("live", "flex"):
        why = "live calls end with this process"
        raise UsageError(f"--detach with --lane {lane}", why=why, fix="use --lane batch")
    if targets:
        raise UsageError(
            "--detach with --out", why="there are no results yet when it leaves",
            fix="leave --out out, and give it to: nightmill results JOB",
        )  # fmt: skip
    return "batch"


def _options(given: dict[str, Any]) -> RunOptions:
    budget, sets, prompt = given.pop("budget"), given.pop("sets"), given.pop("prompt")
    no_cache, no_dedupe = given.pop("no_cache"), given.pop("no_dedupe")
    return RunOptions(
        budget_nanos=budget,
        sets=flags.pairs(sets),
        prompt=read_prompt(prompt) if prompt else prompt,
        cache=not no_cache,
        dedupe=not no_dedupe,
        **given,
    )


def _rehearse(edge: Edge, mill: Mill, options: RunOptions, manner: _Manner) -> int:
    prepared = mill.rehearse(options, manner.save_requests)
    mill.check_outputs(manner.order.files, prepared, force=manner.force)
    _save_template(edge, manner)
    _show_quote(edge, mill, prepared)
    if prepared.resumes is not None:
        edge.say(f"it would go on with unfinished job {prepared.resumes.id}")
    refusal = _refusal(prepared)
    if refusal is not None:
        edge.say("it would be refused:")
        edge.tell(refusal)
    sent = [shard for shard in prepared.plan.shards if shard.lane is not Lane.CACHE]
    size = f"{present.some(len(sent), 'shard')}, {present.some(prepared.quote.waves, 'wave')}"
    kept = f", the requests are in {manner.save_requests}" if manner.save_requests else ""
    edge.say(f"dry run: {size}; nothing was sent or spent" + (kept or " or kept"))
    first = json.loads(prepared.plan.first_request) if prepared.plan.first_request else None
    if first is not None:
        text = _BULK.sub(_told_short, json.dumps(first, indent=2, ensure_ascii=False))
        rest = f" … ({len(text):,} characters in all)" if len(text) > _FIRST_REQUEST_CHARS else ""
        edge.say("first request:\n" + present.show(text[:_FIRST_REQUEST_CHARS]) + rest)
    more = {"shards": len(sent), "waves": prepared.quote.waves, "affordable": refusal is None, "first_request": first}
    edge.answer(views.quote_object(prepared) | views.compared_object(mill.compare(prepared)) | more)
    return 0


def _told_short(bulk: re.Match[str]) -> str:
    return f"{bulk[0][:32]}… ({len(bulk[0]):,} characters)"


def _refusal(prepared: Prepared) -> OverBudget | None:
    try:
        check_affordable(prepared)
    except OverBudget as error:
        return error
    return None


def _run(edge: Edge, mill: Mill, options: RunOptions, manner: _Manner) -> int:
    prepared = mill.prepare(options)
    try:
        prepared = _joined_to_late(edge, mill, prepared)
        mill.check_outputs(manner.order.files, prepared, force=manner.force)
        edge.known = views.quote_object(prepared) | {"status": "refused"}
        _save_template(edge, manner)
        _confirm(edge, mill, prepared, manner)
        job = mill.submit(prepared)
    except BaseException:
        mill.discard(prepared)
        raise
    edge.known = views.job_object(job, mill.standing(job))
    log.info("job %s: %d rows, %s, %s lane", job.id, job.rows, job.model, job.lane)
    if prepared.resumes is None:
        edge.say(f"job {job.id}")
    interrupted = work(edge, mill, [job], manner.order)
    job = mill.job(job.id)
    if manner.order.detach and job.state in UNFINISHED and not interrupted:
        return conclude_detached(edge, mill, job)
    return conclude(edge, mill, [job], manner.order, interrupted=interrupted)


def _joined_to_late(edge: Edge, mill: Mill, prepared: Prepared) -> Prepared:
    """Where the same command began a job that has ended, and answers came since, it goes on: they are paid already."""
    job = mill.ended_like(prepared)
    if job is None or (job := look_again(edge, mill, job)).state not in UNFINISHED:
        return prepared
    return replace(prepared, resumes=job)


def _confirm(edge: Edge, mill: Mill, prepared: Prepared, manner: _Manner) -> None:
    """Show what it will cost and ask, where money may be spent that nobody agreed to yet."""
    job = prepared.resumes
    if job is not None:
        now = mill.standing(job)
        done = f"{now.done:,} of {now.rows - now.invalid:,} rows are done, {now.pending:,} remain"
        edge.say(f"goes on with job {job.id}: {done}")
        if not mill.is_dearer(job):
            return
    _show_quote(edge, mill, prepared)
    if job is None:
        check_affordable(prepared)
    if not prepared.quote.at_most_nanos or manner.yes:
        return
    if not edge.ask(present.question(_view(mill, prepared))):
        raise Declined("not sent", why="the answer was no; nothing was spent and nothing is kept")


def _view(mill: Mill, prepared: Prepared) -> present.QuoteView:
    before = mill.standing(prepared.resumes) if prepared.resumes is not None else None
    return views.quote_view(prepared, mill.compare(prepared), before)


def _show_quote(edge: Edge, mill: Mill, prepared: Prepared) -> None:
    edge.say(present.quote_panel(_view(mill, prepared), width=edge.width, unicode=edge.unicode))


__all__: Sequence[str] = ["run"]
