"""`Mill`: submit, run, watch, cancel, retry, resolve. Async inside; the command line is one caller.

A `Mill` holds the settings, the ledger and the store of one home. `prepare` plans and prices
without promising anything; `submit` makes the plan a job; `run` works until it is done.
"""

from __future__ import annotations

import datetime as dt
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightmill.answers import AnswerCache, salt
from nightmill.collect import Check, Results, read_built
from nightmill.config import DEFAULT_BUDGET_NANOS, Settings, exact_usd
from nightmill.engine import Engine, JobKit, Stop, results_of
from nightmill.errors import Conflict, InputError, NightmillError, OverBudget, TaskError, UsageError
from nightmill.files import GROUP_ROWS
from nightmill.lanes import Desk, Work
from nightmill.lanes.batch import note_terms
from nightmill.lanes.throttle import Rates
from nightmill.ledger import (
    LEDGER_NAME,
    OUTCOMES,
    Job,
    Ledger,
    Limit,
    NewShard,
    Shard,
    Standing,
    StoredFile,
    Tally,
    standing_of,
)
from nightmill.mill.following import Follower, Look
from nightmill.plan import Bounds, Compiled, Cutter, Order, Parameters, Plan, Scissors, bounds, make_plan, with_waves
from nightmill.pricing import PriceSheet, price_sheet
from nightmill.providers import BatchProvider, BatchView, Limits, LiveProvider, Provider
from nightmill.providers.resolve import available, resolve
from nightmill.sinks import Target, write_all
from nightmill.sinks.exports import check_targets, note_written
from nightmill.sources import Source, open_source
from nightmill.store import Store
from nightmill.tasks import BoundTask, Task, bind, check_answer, load_schema, load_task, prompt_task, verbatim_task
from nightmill.types import UNFINISHED, JobState, Lane, Quote, ShardState, Usage, usd
from nightmill.wire import RESULTS, ROWS, TWINS

LIVE_UP_TO = 10  # rows that run live unless told otherwise
_OVERDUE_S = 3.0  # a shard that is due for so long has nobody who looks after it
_EXPECTED_OUTPUT = 300  # tokens, where nobody knows better
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user asks for. None: not said."""

    inputs: tuple[str, ...]
    task: str | None = None
    prompt: str | None = None
    model: str | None = None
    lane: str | None = None  # auto, batch or live
    budget_nanos: int | None = None
    schema: str | None = None
    key: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    rows: str | None = None  # file or line
    name: str | None = None
    new: bool = False
    limit: int | None = None
    on_error: str | None = None  # continue, stop or threshold:N
    batch_size: int | None = None
    temperature: float | None = None
    max_output: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    cache: bool = True
    dedupe: bool = True


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan that promises nothing yet, or the unfinished job that the same command began."""

    plan: Plan
    spec: dict[str, Any]
    options: RunOptions
    source: Source
    model: str
    lane: Lane
    task_digest: str
    free: Limit | None  # the tightest limit
    resumes: Job | None = None

    @property
    def quote(self) -> Quote:
        return self.plan.quote


@dataclass(frozen=True, slots=True)
class LaneCost:
    """What a plan would cost in one lane."""

    lane: Lane
    expected_nanos: int
    at_most_nanos: int


@dataclass(frozen=True, slots=True)
class Again:
    """Failed rows of a finished job, cut anew; nothing is promised yet."""

    job: Job
    rows: int
    shards: tuple[NewShard, ...]
    spec: dict[str, Any]
    at_most_nanos: int


@dataclass(slots=True)
class Group:
    """Rows that failed alike: how many, and one of them."""

    kind: str
    count: int
    message: str
    row: int


@dataclass(frozen=True, slots=True)
class Alert:
    """Something about a job that a person should look at."""

    kind: str
    shard: str | None
    text: str


@contextmanager
def opened(settings: Settings, *, create: bool = True) -> Iterator[Mill]:
    """A `Mill` for as long as the block lasts.

    Without ``create`` a home that has no ledger yet stays as it is: an empty one in a folder that
    is gone afterwards takes its place.
    """
    if create or (settings.home / LEDGER_NAME).exists():
        mill = Mill(settings)
        try:
            yield mill
        finally:
            mill.close()
        return
    with (
        tempfile.TemporaryDirectory(prefix="nightmill-") as folder,
        opened(replace(settings, home=Path(folder))) as mill,
    ):
        yield mill


class Mill:
    """One home: its settings, ledger and files.

    Raises:
        StoreError: the home cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.home)
        self.store.prepare()
        self.ledger = Ledger(settings.home / LEDGER_NAME)
        self.desk = Desk(self.ledger, self.store, settings.timing, ZoneInfo(settings.zone))
        self.ledger.ensure_budget(
            settings.budget_total_nanos, settings.budget_day_nanos, settings.budget_month_nanos,
            default_nanos=DEFAULT_BUDGET_NANOS, running_scopes=self.desk.scopes(),
        )  # fmt: skip
        self.cache = AnswerCache(settings.home / "answers")

    def close(self) -> None:
        self.desk.close()
        self.ledger.close()

    # -- planning ------------------------------------------------------------------------------

    def prepare(self, options: RunOptions) -> Prepared:
        """Read the input, plan and price it. The caller submits the plan or discards it.

        Raises:
            UsageError (InputError, TaskError, UnknownModel, UnknownPrice, CannotCarry), StoreError:
                nothing of it is left.
        """
        return _after_a_look(partial(self._prepare, options))

    def _prepare(self, options: RunOptions, whole: bool) -> Prepared:
        order, spec, source, model = self._order(options, whole)
        free = self.tightest(options.budget_nanos)
        order = _bounded(order, options, free)
        job_id = new_id()
        for dead in self.ledger.begin_plan(job_id, model=model, lane=order.lane):
            self.store.drop_folder(self.store.job_folder(dead))
        try:
            plan = make_plan(order, self.store, job_id)
            plan = replace(plan, quote=with_waves(plan.quote, free.free_nanos if free else None))
            unfinished = None if options.new else self._unfinished_like(plan, spec, options)
        except BaseException:
            self._drop_plan(job_id)
            raise
        return Prepared(plan, spec, options, source, model, order.lane, order.compiled.digest, free, unfinished)

    def rehearse(self, options: RunOptions) -> Prepared:
        """`prepare` in a folder that is gone afterwards: nothing is written to the home."""
        return _after_a_look(partial(self._rehearse, options))

    def _rehearse(self, options: RunOptions, whole: bool) -> Prepared:
        order, spec, source, model = self._order(options, whole)
        free = self.tightest(options.budget_nanos)
        order = _bounded(order, options, free)
        folder = Path(tempfile.mkdtemp(prefix="nightmill-dry-"))
        try:
            plan = make_plan(order, Store(folder), new_id())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        plan = replace(plan, quote=with_waves(plan.quote, free.free_nanos if free else None))
        unfinished = None if options.new else self._unfinished_like(plan, spec, options)
        return Prepared(plan, spec, options, source, model, order.lane, order.compiled.digest, free, unfinished)

    def submit(self, prepared: Prepared) -> Job:
        """Make the plan a job; if the same command began one that is unfinished, that one.

        Raises:
            OverBudget: it would probably cost more than is free.
            Conflict: its name is another unfinished job's.
        """
        plan, options = prepared.plan, prepared.options
        if prepared.resumes is not None:
            self._drop_plan(plan.job_id)
            return self._go_on(prepared.resumes, options)
        try:
            check_affordable(prepared)
            fingerprint = f"{plan.fingerprint}:{plan.job_id}" if options.new else plan.fingerprint
            self._check_name(options.name, fingerprint)
            return self.ledger.publish_plan(
                plan.job_id,
                name=options.name,
                fingerprint=fingerprint,
                task_digest=prepared.task_digest,
                spec=prepared.spec,
                quote=plan.quote,
                rows=plan.rows,
                duplicates=plan.duplicates,
                cached=plan.cached,
                shards=plan.shards,
                files=plan.files,
                budget_nanos=options.budget_nanos,
            )
        except Conflict:
            self._drop_plan(plan.job_id)
            winner = None if options.new else self.ledger.find_unfinished(plan.fingerprint)
            if winner is not None:  # another process was first: help it
                return self._go_on(winner, options)
            raise
        except BaseException:
            self._drop_plan(plan.job_id)
            raise

    def _go_on(self, job: Job, options: RunOptions) -> Job:
        """The unfinished job, under the budget, rates, rule and name this command gives, and no longer paused."""
        self._check_name(options.name, job.fingerprint)
        given = {name: getattr(options, name) for name in ("rpm", "tpm", "concurrency", "on_error")}
        changes = {name: value for name, value in given.items() if value not in (None, job.spec[name])}
        name = options.name if options.name != job.name else None
        if changes or name:
            self.ledger.revise(job.id, changes, name=name)
        if options.budget_nanos is not None:
            self.ledger.set_budget(f"job:{job.id}", options.budget_nanos)
        if job.state is JobState.PAUSED:
            self.resume(job)
        return self.job(job.id)

    def lane_costs(self, prepared: Prepared) -> list[LaneCost]:
        """What the plan would cost in each lane that its model has, batch first."""
        quote, provider = prepared.quote, self._provider(prepared.model)
        each = Usage(-(-quote.input_tokens // max(1, quote.requests)), quote.output_tokens // max(1, quote.requests))
        costs = []
        for lane, able in ((Lane.BATCH, BatchProvider), (Lane.LIVE, LiveProvider)):
            if lane is prepared.lane:
                costs.append(LaneCost(lane, quote.expected_nanos, quote.at_most_nanos))
            elif isinstance(provider, able):
                sheet = self._sheet(prepared.model, lane)
                sent = [s for s in prepared.plan.shards if s.lane is not Lane.CACHE]
                at_most = sum(sheet.worst(s.content_bytes, s.count, s.cap_tokens) for s in sent)
                costs.append(LaneCost(lane, sheet.cost(each) * quote.requests, at_most))
        return costs

    def check_outputs(self, targets: Sequence[Target], prepared: Prepared, *, force: bool) -> None:
        """Refuse outputs that could not or must not be written. Raises UsageError."""
        folder = self.folder(prepared.resumes) if prepared.resumes else None
        check_targets(targets, inputs=prepared.options.inputs, folder=folder, force=force)

    def check_files(self, targets: Sequence[Target], job: Job, *, force: bool) -> None:
        """The same for a job that exists."""
        check_targets(targets, folder=self.folder(job), force=force)

    def discard(self, prepared: Prepared) -> None:
        """The user said no: no trace stays."""
        self._drop_plan(prepared.plan.job_id)

    def _drop_plan(self, job_id: str) -> None:
        """A plan and its files go; a job, though this is called late, keeps its own."""
        if self.ledger.is_planned(job_id):
            self.store.drop_folder(self.store.job_folder(job_id))  # first: on a full disk the ledger needs the room
            self.ledger.abandon_plan(job_id)

    def _order(self, options: RunOptions, whole: bool) -> tuple[Order, dict[str, Any], Source, str]:
        settings = self.settings
        model = options.model or settings.default_model
        if not model:
            raise UsageError(
                "no model",
                why="usable here: " + "; ".join(available(settings.env, settings.providers)),
                fix="name one with --model, or set [defaults] model in nightmill.toml",
            )
        provider = self._provider(model)
        task = self._task(options, provider)
        rows = options.rows or task.rows
        source = open_source(
            options.inputs, rows="file" if rows == "file" else "line", key=options.key, limit=options.limit, whole=whole
        )
        if options.task is None and options.prompt is None:
            task = _for_model(verbatim_task(_columns(source)), provider)
        bound = bind(task, _columns(source), options.sets)
        parameters = self._parameters(options, bound.task)
        compiled = Compiled(provider, bound, parameters)
        lane = _lane(options.lane or settings.default_lane, provider, source)
        expect = self._expected_tokens(model, bound.task, compiled)
        order = Order(
            source, provider, compiled, lane, self._sheet(model, lane), self._sheet(model, Lane.LIVE),
            Bounds(1, 0, None), expect, options.dedupe, self.cache if options.cache else None,
            (f"limit={options.limit}", f"key={options.key}"),
        )  # fmt: skip
        spec = _spec(options, bound, parameters, model, lane, source) | {"price": order.sheet.to_json()}
        return order, spec, source, model

    def _expected_tokens(self, model: str, task: Task, compiled: Compiled) -> int:
        """Output tokens of a typical answer: measured, else the task's word, else a guess under the cap."""
        if not compiled.cap_tokens:
            return 0
        measured = self.ledger.mean_output_tokens(model, compiled.digest)
        return min(compiled.cap_tokens, measured or task.expect or _EXPECTED_OUTPUT)

    def _provider(self, model: str) -> Provider:
        paths = {ref: str(m["path"]) for ref, m in self.settings.models.items() if m.get("path")}
        said = self.settings
        provider = resolve(model, env=said.env, model_paths=paths, tables=said.providers, timing=said.timing)
        known = {item.name for item in fields(Limits)}
        if own := {name: value for name, value in self._limits(provider).items() if name in known}:
            provider.limits = replace(provider.limits, **own)
        return provider

    def _limits(self, provider: Provider) -> Mapping[str, Any]:
        """What ``[providers.NAME] limits`` says; it goes before what the provider is known to take."""
        return cast(Mapping[str, Any], self.settings.providers.get(provider.name, {}).get("limits", {}))

    def _task(self, options: RunOptions, provider: Provider) -> Task:
        if options.task is not None and options.prompt is not None:
            raise UsageError("both a task and a prompt", why="one of them says what to ask", fix="give only one")
        if options.task is not None:
            return load_task(options.task, self.settings.task_folders)
        return _for_model(prompt_task(options.prompt), provider) if options.prompt is not None else Task("verbatim")

    def _parameters(self, options: RunOptions, task: Task) -> Parameters:
        schema = load_schema(options.schema) if options.schema else task.schema
        return Parameters(
            temperature=_first(options.temperature, task.temperature, self.settings.default_temperature),
            max_output=_first(options.max_output, task.max_output, self.settings.default_max_output),
            schema=schema,
        )

    def _sheet(self, model: str, lane: Lane) -> PriceSheet:
        return price_sheet(model, lane, at=dt.datetime.now(dt.UTC), overrides=self.settings.models)

    def tightest(self, job_nanos: int | None = None) -> Limit | None:
        """The limit with the least money free, a job's own of ``job_nanos`` included."""
        limits = [limit for limit in self.ledger.limits(self.desk.scopes()) if limit.cap_nanos is not None]
        if job_nanos is not None:
            limits.append(Limit("job", job_nanos, 0, 0))
        return min(limits, key=lambda limit: limit.free_nanos or 0, default=None)

    def _unfinished_like(self, plan: Plan, spec: dict[str, Any], options: RunOptions) -> Job | None:
        """The unfinished job that the same command began; refuses options that differ in how it runs."""
        job = self.ledger.find_unfinished(plan.fingerprint)
        if job is None:
            return None
        asked = {"lane": options.lane not in (None, "auto", job.spec["lane"])}
        for option in ("batch_size", "cache", "dedupe"):
            asked[option] = job.spec[option] != spec[option]
        if differing := [name.replace("_", "-") for name, differs in asked.items() if differs]:
            raise Conflict(
                f"job {job.id} is unfinished and was begun with another --{differing[0]}",
                why="its shards are cut and sent already",
                fix=f"run it as it was begun, or start anew with --new (nightmill cancel {job.id} ends the old one)",
            )
        return job

    def _check_name(self, name: str | None, fingerprint: str) -> None:
        other = self.ledger.find_unfinished_name(name) if name else None
        if other is not None and other.fingerprint != fingerprint:
            raise Conflict(
                f"the name {name} is that of unfinished job {other.id}",
                why="this is another job: its rows, task, model or options differ, or it was begun with --new",
                fix="give another --name, or finish or cancel that job first",
            )

    # -- working -------------------------------------------------------------------------------

    async def run(
        self, job_ids: Sequence[str], stop: Stop | None = None, on_change: Callable[[str], None] | None = None
    ) -> None:
        """Work on jobs until they are done or paused. Paused ones go on first where they can."""
        await Engine(self.desk, self.open_kit, stop or Stop(), on_change).run(job_ids)

    def resume(self, job: Job) -> None:
        """Let a paused job go on, at today's price; a later `run` works on it."""
        sheet = self._sheet(job.model, job.lane)
        if sheet.dearer_than(PriceSheet.from_json(job.spec["price"])):
            self.ledger.revise(job.id, {"price": sheet.to_json()})
        self.ledger.resume(job.id)

    def is_dearer(self, job: Job) -> bool:
        """Whether today's price is above the one that was confirmed for this job."""
        return self._sheet(job.model, job.lane).dearer_than(PriceSheet.from_json(job.spec["price"]))

    def attended(self, job: Job) -> bool:
        """Whether another process works on the job, so that this one need not."""
        return self.ledger.attended(job.id, overdue_s=_OVERDUE_S)

    def cancel(self, job: Job) -> None:
        """Claim nothing more; what is at the provider is cancelled and collected by the next `run`."""
        self.ledger.request_cancel(job.id)

    def open_kit(self, job_id: str) -> JobKit:
        """Everything a job's record only names, made ready to work with."""
        job = self.job(job_id)
        spec = job.spec
        provider = self._provider(job.model)
        bound = bind(Task.from_dict(spec["task"]), spec["columns"], {})
        parameters = Parameters.from_dict(spec["parameters"])
        compiled = Compiled(provider, bound, parameters)
        sheet = self._sheet(job.model, job.lane)
        confirmed = PriceSheet.from_json(spec["price"])
        scissors = Scissors(self.store, provider, compiled.url, sheet, partial(self.ledger.take_seqs, job_id))
        given = self._limits(provider)
        rates = Rates(
            spec["rpm"] or given.get("rpm"), spec["tpm"] or given.get("tpm"),
            spec["concurrency"] or provider.limits.concurrency, bool(spec["concurrency"]),
        )  # fmt: skip
        return JobKit(
            job, provider, compiled,
            Work(job.id, provider, compiled.url, sheet, scissors, confirmed),
            self._sheet(job.model, Lane.LIVE), check_of(parameters), rates,
            salt(provider.name, provider.model, provider.account.host), self.cache if spec["cache"] else None,
            spec["on_error"],
        )  # fmt: skip

    # -- asking --------------------------------------------------------------------------------

    def job(self, text: str) -> Job:
        """By id, prefix, name or ``@last``. Raises Conflict."""
        return self.ledger.find_job(text)

    def unfinished(self) -> list[Job]:
        """Jobs that can go on, newest first."""
        return self.ledger.jobs(states=UNFINISHED)

    def shard(self, tag: str) -> Shard:
        """By its tag. Raises Conflict."""
        found = self.ledger.shard(tag)
        if found is None:
            raise Conflict(
                f"no shard is called {tag!r}", why="a tag is JOB-NUMBER", fix="nightmill show JOB lists them"
            )
        return found

    def alerts(self, job: Job) -> list[Alert]:
        """What a person should look at, oldest first."""
        return [Alert(*found) for found in self.ledger.alerts_of(job.id)]

    def budget(self, *scopes: str) -> list[Limit]:
        """The limits that a hold made now is in, and those of ``scopes`` beside them."""
        running = [scope for scope in self.desk.scopes() if scope not in scopes]
        return self.ledger.limits([*scopes, *reversed(running)])

    def set_budget(self, scope: str, cap_nanos: int | None) -> None:
        """Set a limit: ``total``, ``day``, ``month`` or ``job:ID``; None lifts it. Holds already made stay."""
        self.ledger.set_budget(scope, cap_nanos, running_scopes=self.desk.scopes())

    def tally(self, job: Job) -> Tally:
        return self.ledger.tally(job.id)

    def standing(self, job: Job) -> Standing:
        """The job in rows and money, answers that are not settled yet included."""
        if job.finished_at is not None:
            return standing_of(job, self.ledger.tally(job.id))
        return Follower(self, [job.id], distinct=False).look()[0].now

    def follow(self, job_ids: Sequence[str]) -> Follower:
        return Follower(self, job_ids)

    def folder(self, job: Job) -> Path:
        """Where the job's files lie."""
        return self.store.path(self.store.job_folder(job.id))

    def results(self, job: Job, first: int = 0, end: int | None = None) -> Iterator[pa.RecordBatch]:
        """Results of rows ``first`` to ``end`` in input order; rows that are still open are left out."""
        end = job.rows if end is None else min(end, job.rows)
        built = self.ledger.files_of(job.id, RESULTS) if job.finished_at is not None else []
        for batch in self._built(job, built, first, end) if built else self._read_open(job, first, end):
            index = batch.column("index")
            yield batch.filter(pc.and_(pc.greater_equal(index, first), pc.less(index, end)))

    def _built(self, job: Job, files: Sequence[StoredFile], first: int, end: int) -> Iterator[pa.RecordBatch]:
        for file in files:
            if file.first < end and file.last >= first:
                yield from read_built(self.store, file, first, end, partial(self.open_results, job))

    def _read_open(self, job: Job, first: int, end: int) -> Iterator[pa.RecordBatch]:
        results = self.open_results(job)
        for low, high in results.ranges():
            if low < end and high > first:
                yield from results.batches(low, high)

    def failures(self, job: Job) -> tuple[list[Group], int]:
        """Failed rows grouped by kind, most frequent first, and the nanos that rest on estimated usage."""
        groups: dict[str, Group] = {}
        estimated = 0
        for batch in self.results(job):
            estimated += pc.sum(batch.filter(batch.column("cost_estimated")).column("cost_nanos")).as_py() or 0
            bad = batch.filter(pc.invert(batch.column("success"))).select(["index", "error_kind", "error"])
            for row in bad.to_pylist():
                kind = row["error_kind"] or "failed"
                group = groups.setdefault(kind, Group(kind, 0, row["error"] or "", row["index"]))
                group.count += 1
        return sorted(groups.values(), key=lambda group: -group.count), estimated

    def selected(
        self, job: Job, *, span: tuple[int, int] | None = None, failed: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Results of some rows: those from ``span[0]`` up to ``span[1]``, those that failed."""
        for batch in self.results(job, *(span or ())):
            yield batch.filter(pc.invert(batch.column("success"))) if failed else batch

    def export(
        self,
        job: Job,
        targets: Sequence[Target],
        *,
        csv_raw: bool = False,
        span: tuple[int, int] | None = None,
        failed: bool = False,
    ) -> int:
        """Write what results there are to every target, whole or not at all; how many rows. Raises StoreError."""
        batches = self.selected(job, span=span, failed=failed)
        rows = write_all(targets, batches, schema=self.schema(job), csv_raw=csv_raw)
        note_written(targets, self.folder(job))
        return rows

    def schema(self, job: Job) -> Mapping[str, Any] | None:
        """The JSON Schema that the job's answers are held to, if there is one."""
        return Parameters.from_dict(job.spec["parameters"]).schema

    def open_results(self, job: Job) -> Results:
        kit = self.open_kit(job.id)
        files = self.ledger.files_of(job.id, ROWS, TWINS)
        return results_of(self.store, kit, self.ledger.shards_of(job.id), files)

    # -- again, and in doubt -------------------------------------------------------------------

    def retry(self, job: Job, *, max_output: int | None = None, temperature: float | None = None) -> int:
        """`prepare_retry` and `submit_retry` at once; how many rows go out again."""
        again = self.prepare_retry(job, max_output=max_output, temperature=temperature)
        self.submit_retry(again)
        return again.rows

    def prepare_retry(self, job: Job, *, max_output: int | None = None, temperature: float | None = None) -> Again:
        """Cut the failed rows of a finished job into new shards, with a fresh three attempts.

        Rows that succeeded are not touched; duplicates of a failed row share the new answer. The
        caller submits what comes back or discards it. Raises Conflict while the job is unfinished.
        """
        if job.finished_at is None:
            raise Conflict(
                f"job {job.id} is not finished", why=f"it is {job.state}", fix=f"nightmill resume {job.id}, then retry"
            )
        failed = self._failed_rows(job)
        sheet = self._sheet(job.model, job.lane)
        kinds = {index: kind for index, (kind, _) in failed.items()}
        spec = job.spec | {"price": sheet.to_json(), "again": _counted_again(job.spec.get("again", {}), kinds)}
        given = {"max_output": max_output, "temperature": temperature}
        spec["parameters"] = spec["parameters"] | {k: v for k, v in given.items() if v is not None}
        sent = {shard.tag for shard in self.ledger.shards_of(job.id) if shard.was_sent}
        before = [index for index, (_, tag) in failed.items() if tag in sent]
        never = [index for index, (_, tag) in failed.items() if tag not in sent]
        # Those that went out before are counted as sent already: their shards are parts of the earlier ones.
        shards = (*(replace(s, splits=1) for s in self._cut_rows(job, spec, before)), *self._cut_rows(job, spec, never))
        at_most = sum(sheet.worst(s.content_bytes, s.count, s.cap_tokens) for s in shards)
        return Again(job, len(failed), shards, spec, at_most)

    def submit_retry(self, again: Again) -> None:
        """The rows go out with the next `run`. Raises Conflict when the job changed meanwhile."""
        if again.shards:
            self.ledger.extend(again.job, again.shards, [], spec=again.spec)

    def discard_retry(self, again: Again) -> None:
        for shard in again.shards:
            self.store.path(shard.file.path).unlink(missing_ok=True)

    def _failed_rows(self, job: Job) -> dict[int, tuple[str, str | None]]:
        """Row to failure kind and newest shard, without duplicates of other rows."""
        results = self.open_results(job)
        failed: dict[int, tuple[str, str | None]] = {}
        for low, high in results.ranges():
            twins = results.twins(low, high)
            for batch in self.results(job, low, high):
                bad = batch.filter(pc.invert(batch.column("success")))
                rows = zip(*(bad.column(name).to_pylist() for name in ("index", "error_kind", "shard")), strict=True)
                failed.update((index, (kind or "failed", tag)) for index, kind, tag in rows if index not in twins)
        return failed

    def _cut_rows(self, job: Job, spec: dict[str, Any], indexes: list[int]) -> list[NewShard]:
        """Shards for some rows of a job, encoded anew from the rows as they were taken."""
        if not indexes:
            return []
        provider = self._provider(job.model)
        compiled = Compiled(
            provider, bind(Task.from_dict(spec["task"]), spec["columns"], {}), Parameters.from_dict(spec["parameters"])
        )
        free, wanted = self.tightest(), set(indexes)
        embeddings = compiled.is_embeddings
        limits = bounds(job.lane, provider.limits, batch_size=spec["batch_size"], hold_nanos=_quarter(free),
                        embeddings=embeddings)  # fmt: skip
        cutter = Cutter(
            self.store, self.store.job_folder(job.id), job.lane, limits, self._sheet(job.model, job.lane),
            compiled.cap_tokens, provider.line_pieces(compiled.url),
            lambda _: f"{job.id}-{self.ledger.take_seqs(job.id, 1)}", lambda size: -(-size // 4),
        )  # fmt: skip
        rows = self.ledger.files_of(job.id, ROWS)[0]
        with self.store.open(rows.ref) as stream:
            first = 0
            for batch in pq.ParquetFile(stream).iter_batches(GROUP_ROWS):
                bodies = compiled.bodies(batch, first)
                some = [i for i in range(batch.num_rows) if first + i in wanted]
                cutter.add([first + i for i in some], [bodies[i] for i in some])
                first += batch.num_rows
        return cutter.close()

    async def resolve(self, shard: Shard, *, adopt: str | None = None, resend: bool = False) -> str:
        """End a shard's doubt by a person's word: adopt a batch, send again, or write it off."""
        if shard.state is not ShardState.IN_DOUBT:
            raise Conflict(f"shard {shard.tag} is not in doubt", why=f"it is {shard.state}", fix="nightmill show JOB")
        provider = self._batch_provider(shard) if adopt else None
        view = await _poll_once(provider, adopt) if provider and adopt else None
        claimed = self._claim_doubtful(shard, adopt)
        if provider and adopt and view:
            if not claimed.current.account:
                await note_terms(self.desk, self.open_kit(shard.job_id).work, provider, claimed)
            self.ledger.note_created(claimed, claimed.submission, adopt, status=view.status, due_in_s=0.0)
            return f"{shard.tag} waits for {adopt} now"
        if resend:
            reason = "sent again on the user's word"
            self.ledger.note_not_sent(claimed, claimed.submission, due_in_s=0.0, reason=reason, sure=False)
            return f"{shard.tag} is planned again"
        self.ledger.write_off(claimed)
        return (
            f"{shard.tag} is written off: ${usd(claimed.current.hold_nanos):.6f} counts as spent, its rows as missing"
        )

    def _claim_doubtful(self, shard: Shard, adopt: str | None) -> Shard:
        """The shard under a lease, still in doubt, and ``adopt`` nobody's batch yet; as it was before a Conflict."""
        ledger = self.ledger
        claimed = ledger.claim_one(shard.tag, self.settings.timing.lease_s)
        other = ledger.submission_of(adopt) if adopt else None
        if claimed.state is ShardState.IN_DOUBT and other is None:
            return claimed
        ledger.release(claimed, due_in_s=claimed.due - ledger.moment(), reason=claimed.reason)
        if claimed.state is ShardState.IN_DOUBT:
            raise Conflict(
                f"batch {adopt} is that of {other} already", why="one batch answers one shard",
                fix="give the id of another batch, or --resend or --write-off",
            )  # fmt: skip
        raise Conflict(
            f"shard {shard.tag} is not in doubt any more",
            why=f"a worker found out meanwhile: it is {claimed.state}",
            fix=f"nightmill show {shard.job_id}",
        )

    def _batch_provider(self, shard: Shard) -> BatchProvider:
        provider = self._provider(self.job(shard.job_id).model)
        if not isinstance(provider, BatchProvider):
            raise UsageError(f"{provider.name} has no batches", why="only a batch can be adopted", fix="use --resend")
        return provider


async def _poll_once(provider: BatchProvider, batch_id: str) -> BatchView:
    try:
        return await provider.poll(batch_id)
    finally:
        await provider.close()


def new_id() -> str:
    """A job id: sorts by time, 14 characters, the last four random."""
    milliseconds = time.time_ns() // 1_000_000
    stamp = "".join(_CROCKFORD[milliseconds >> shift & 31] for shift in range(45, -1, -5))
    return stamp + "".join(secrets.choice(_CROCKFORD) for _ in range(4))


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


def check_of(parameters: Parameters) -> Check | None:
    return check_answer(parameters.schema) if parameters.schema else None


def _bounded(order: Order, options: RunOptions, free: Limit | None) -> Order:
    """Shards whose hold is at most a quarter of the tightest limit's free money."""
    embeddings = order.compiled.is_embeddings
    limits = bounds(
        order.lane,
        order.provider.limits,
        batch_size=options.batch_size,
        hold_nanos=_quarter(free),
        embeddings=embeddings,
    )
    return replace(order, bounds=limits)


def _quarter(free: Limit | None) -> int | None:
    return None if free is None or free.free_nanos is None else max(1, free.free_nanos // 4)


def _after_a_look(plan: Callable[[bool], Prepared]) -> Prepared:
    """Plan after a look at the beginning of the input; where that is refused, after a look at all of it."""
    try:
        return plan(False)
    except (InputError, TaskError):  # it may be fine, and only the whole input tells what is wrong
        return plan(True)


def _lane(asked: str, provider: Provider, source: Source) -> Lane:
    """``auto``: 10 rows or fewer live, else batch where the provider has one."""
    can_batch, can_live = isinstance(provider, BatchProvider), isinstance(provider, LiveProvider)
    if asked == "batch" and not can_batch:
        raise UsageError(f"{provider.name} has no batch lane", why="it answers live only", fix="use --lane live")
    if asked in ("batch", "live"):
        return Lane(asked)
    few = next(source.batches()).num_rows <= LIVE_UP_TO
    return Lane.LIVE if not can_batch or (few and can_live) else Lane.BATCH


def _for_model(task: Task, provider: Provider) -> Task:
    """A bare prompt for an embedding model asks for embeddings."""
    return replace(task, endpoint="embeddings") if "embed" in provider.model.lower() else task


def _columns(source: Source) -> list[str]:
    names = list(source.schema.names)
    return names if "key" in names else ["key", *names]


def _spec(
    options: RunOptions, bound: BoundTask, parameters: Parameters, model: str, lane: Lane, source: Source
) -> dict[str, Any]:
    """Everything needed to go on without the caller."""
    return {
        "inputs": list(options.inputs), "task": bound.task.to_dict(), "columns": _columns(source),
        "parameters": parameters.to_dict(), "model": model, "lane": lane.value, "batch_size": options.batch_size,
        "cache": options.cache, "dedupe": options.dedupe, "rpm": options.rpm, "tpm": options.tpm,
        "concurrency": options.concurrency, "on_error": options.on_error or "continue",
        "row_mode": source.kind,
    }  # fmt: skip


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _counted_again(before: Mapping[str, Any], failed: Mapping[int, str]) -> dict[str, Any]:
    """How many rows ended in which way before a retry sent them anew, all retries of the job together."""
    counts: dict[str, Any] = {name: before.get(name, 0) for name in OUTCOMES}
    kinds = dict(before.get("failures", {}))
    for kind in failed.values():
        name = kind if kind in ("missing", "expired", "cancelled") else "failed"
        counts[name] += 1
        if name == "failed":
            kinds[kind] = kinds.get(kind, 0) + 1
    return counts | {"failures": kinds}


__all__ = [
    "Again",
    "Alert",
    "Follower",
    "Group",
    "LaneCost",
    "Look",
    "Mill",
    "NightmillError",
    "Prepared",
    "RunOptions",
    "check_affordable",
    "new_id",
    "opened",
]
