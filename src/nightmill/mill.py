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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from nightmill.answers import AnswerCache, salt
from nightmill.collect import Check, Results
from nightmill.config import DEFAULT_BUDGET_NANOS, Settings
from nightmill.engine import Engine, JobKit, Stop, results_of
from nightmill.errors import Conflict, NightmillError, OverBudget, UsageError
from nightmill.lanes import Desk, Work
from nightmill.lanes.throttle import Rates, Throttle
from nightmill.ledger import Job, Ledger, Limit, Shard, Tally
from nightmill.plan import Bounds, Compiled, Cutter, Order, Parameters, Plan, Scissors, bounds, make_plan, with_waves
from nightmill.pricing import PriceSheet, price_sheet
from nightmill.providers import BatchProvider, LiveProvider, Provider
from nightmill.providers.resolve import available, resolve
from nightmill.sources import Source, open_source
from nightmill.store import Store
from nightmill.tasks import BoundTask, Task, bind, check_answer, load_schema, load_task, prompt_task, verbatim_task
from nightmill.types import Lane, Quote, ShardState, usd
from nightmill.wire import ROWS, TWINS

LIVE_UP_TO = 10  # rows that run live unless told otherwise
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
    on_error: str = "continue"
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


class Mill:
    """One home: its settings, ledger and files.

    Raises:
        StoreError: the home cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.home)
        self.store.prepare()
        self.ledger = Ledger(settings.home / "nightmill.db")
        total = settings.budget_total_nanos
        self.ledger.ensure_budget(
            DEFAULT_BUDGET_NANOS if total is None else total, settings.budget_day_nanos, settings.budget_month_nanos
        )
        self.desk = Desk(self.ledger, self.store, settings.timing, ZoneInfo(settings.zone))
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
        order, spec, source, model = self._order(options)
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
        order, spec, source, model = self._order(options)
        free = self.tightest(options.budget_nanos)
        order = _bounded(order, options, free)
        folder = Path(tempfile.mkdtemp(prefix="nightmill-dry-"))
        try:
            plan = make_plan(order, Store(folder), new_id())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        plan = replace(plan, quote=with_waves(plan.quote, free.free_nanos if free else None))
        return Prepared(plan, spec, options, source, model, order.lane, order.compiled.digest, free)

    def submit(self, prepared: Prepared) -> Job:
        """Make the plan a job; if the same command began one that is unfinished, that one.

        Raises:
            OverBudget: it would probably cost more than is free.
            Conflict: its name is another unfinished job's.
        """
        plan, options = prepared.plan, prepared.options
        if prepared.resumes is not None:
            self._drop_plan(plan.job_id)
            return prepared.resumes
        try:
            check_affordable(prepared)
            self._check_name(options.name, plan.fingerprint)
            fingerprint = f"{plan.fingerprint}:{plan.job_id}" if options.new else plan.fingerprint
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
            if winner := self.ledger.find_unfinished(plan.fingerprint):  # another process was first: help it
                return winner
            raise
        except BaseException:
            self._drop_plan(plan.job_id)
            raise

    def discard(self, prepared: Prepared) -> None:
        """The user said no: no trace stays."""
        self._drop_plan(prepared.plan.job_id)

    def _drop_plan(self, job_id: str) -> None:
        self.ledger.abandon_plan(job_id)
        self.store.drop_folder(self.store.job_folder(job_id))

    def _order(self, options: RunOptions) -> tuple[Order, dict[str, Any], Source, str]:
        settings = self.settings
        model = options.model or settings.default_model
        if not model:
            raise UsageError(
                "no model",
                why="usable here: " + "; ".join(available(settings.env)),
                fix="name one with --model, or set [defaults] model in nightmill.toml",
            )
        provider = self._provider(model)
        task = self._task(options, provider)
        rows = options.rows or task.rows
        source = open_source(
            options.inputs, rows="file" if rows == "file" else "line", key=options.key, limit=options.limit
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
        return measured or task.expect or min(compiled.cap_tokens, _EXPECTED_OUTPUT)

    def _provider(self, model: str) -> Provider:
        paths = {ref: str(m["path"]) for ref, m in self.settings.models.items() if m.get("path")}
        return resolve(model, env=self.settings.env, model_paths=paths)

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
        limits = [limit for limit in self.ledger.limits(self.desk.scopes("", False)) if limit.cap_nanos is not None]
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
                why="rows, task, model or options differ from that job's",
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
            self.ledger.reprice(job.id, job.spec | {"price": sheet.to_json()})
        self.ledger.resume(job.id)

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
        rates = Rates(
            spec["rpm"], spec["tpm"], spec["concurrency"] or provider.limits.concurrency, bool(spec["concurrency"])
        )
        return JobKit(
            job, provider, compiled,
            Work(job.id, provider, compiled.url, sheet, scissors, spec["has_budget"], confirmed),
            self._sheet(job.model, Lane.LIVE), check_of(parameters), Throttle(rates, self.ledger.moment),
            salt(provider.name, provider.model, provider.account.host), self.cache if spec["cache"] else None,
            spec["on_error"],
        )  # fmt: skip

    # -- asking --------------------------------------------------------------------------------

    def job(self, text: str) -> Job:
        """By id, prefix, name or ``@last``. Raises Conflict."""
        return self.ledger.find_job(text)

    def tally(self, job: Job) -> Tally:
        return self.ledger.tally(job.id)

    def results(self, job: Job) -> Iterator[pa.RecordBatch]:
        """Results in input order, as far as there are any; open rows are left out."""
        results = self.open_results(job)
        for first, end in results.ranges():
            yield from results.batches(first, end)

    def open_results(self, job: Job) -> Results:
        kit = self.open_kit(job.id)
        files = self.ledger.files_of(job.id, ROWS, TWINS)
        return results_of(self.store, kit, self.ledger.shards_of(job.id), files)

    # -- again, and in doubt -------------------------------------------------------------------

    def retry(self, job: Job, *, max_output: int | None = None, temperature: float | None = None) -> int:
        """Send the failed rows of a finished job again, with a fresh three attempts; how many.

        Rows that succeeded are not touched. Raises Conflict while the job is unfinished.
        """
        if job.finished_at is None:
            raise Conflict(
                f"job {job.id} is not finished", why=f"it is {job.state}", fix=f"nightmill resume {job.id}, then retry"
            )
        failed = [i for batch in self.results(job) for i, ok in _success(batch) if not ok]
        if not failed:
            return 0
        spec = dict(job.spec)
        given = {"max_output": max_output, "temperature": temperature}
        spec["parameters"] = spec["parameters"] | {k: v for k, v in given.items() if v is not None}
        shards = self._cut_rows(job, spec, failed)
        self.ledger.extend(job, shards, [], spec=spec)
        return len(failed)

    def _cut_rows(self, job: Job, spec: dict[str, Any], indexes: list[int]) -> list[Any]:
        """Shards for some rows of a job, encoded anew from the rows as they were taken."""
        import pyarrow.parquet as pq

        provider = self._provider(job.model)
        compiled = Compiled(
            provider, bind(Task.from_dict(spec["task"]), spec["columns"], {}), Parameters.from_dict(spec["parameters"])
        )
        free, wanted = self.tightest(), set(indexes)
        embeddings = "/embeddings" in compiled.url
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
            for batch in pq.ParquetFile(stream).iter_batches(5_000):
                bodies = compiled.bodies(batch, first)
                some = [i for i in range(batch.num_rows) if first + i in wanted]
                cutter.add([first + i for i in some], [bodies[i] for i in some])
                first += batch.num_rows
        return cutter.close()

    async def resolve(self, shard: Shard, *, adopt: str | None = None, resend: bool = False) -> str:
        """End a shard's doubt by a person's word: adopt a batch, send again, or write it off."""
        if shard.state is not ShardState.IN_DOUBT:
            raise Conflict(f"shard {shard.tag} is not in doubt", why=f"it is {shard.state}", fix="nightmill show JOB")
        claimed = self.ledger.claim_one(shard.tag, self.settings.timing.lease_s)
        if adopt:
            view = await self._batch_provider(shard).poll(adopt)
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

    def _batch_provider(self, shard: Shard) -> BatchProvider:
        provider = self._provider(self.job(shard.job_id).model)
        if not isinstance(provider, BatchProvider):
            raise UsageError(f"{provider.name} has no batches", why="only a batch can be adopted", fix="use --resend")
        return provider


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
    raise OverBudget(
        f"the job will probably cost ${usd(quote.expected_nanos):.6f}; the budget has ${usd(free.free_nanos):.6f} free",
        why=f"the limit {free.scope} is ${usd(free.cap_nanos or 0):.2f}, spent ${usd(free.spent_nanos):.6f}, "
        f"held ${usd(free.held_nanos):.6f}; the job costs at most ${usd(quote.at_most_nanos):.6f}",
        fix="lower --max-output or --limit, take a cheaper model, or raise it with: nightmill budget set USD",
    )


def check_of(parameters: Parameters) -> Check | None:
    return check_answer(parameters.schema) if parameters.schema else None


def _bounded(order: Order, options: RunOptions, free: Limit | None) -> Order:
    """Shards whose hold is at most a quarter of the tightest limit's free money."""
    embeddings = order.compiled.cap_tokens == 0
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
        "concurrency": options.concurrency, "on_error": options.on_error,
        "has_budget": options.budget_nanos is not None, "row_mode": source.kind,
    }  # fmt: skip


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _success(batch: pa.RecordBatch) -> Iterator[tuple[int, bool]]:
    return zip(batch.column("index").to_pylist(), batch.column("success").to_pylist(), strict=True)


__all__ = ["Mill", "NightmillError", "Prepared", "RunOptions", "check_affordable", "new_id"]
