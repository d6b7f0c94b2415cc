"""Planning: what a user asks for becomes a plan with a price. Nothing is promised here, sent or spent."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nightmill.config import parse_by
from nightmill.errors import Conflict, InputError, StoreError, TaskError, UsageError
from nightmill.ledger import Job, Limit
from nightmill.mill import deadlines, embedding, firstrows, laddering, selecting
from nightmill.mill.comparing import Judged
from nightmill.mill.home import Home, dearer, quarter
from nightmill.plan import (
    Bounds,
    Compiled,
    Order,
    Parameters,
    Plan,
    Prefix,
    bounds,
    burst_of,
    endpoint_at,
    endpoint_of_body,
    make_plan,
    measured,
    with_waves,
)
from nightmill.providers import BatchProvider, FlexProvider, LiveProvider, Provider
from nightmill.providers.resolve import lacking_key
from nightmill.sinks.vectors import Vectors
from nightmill.sources import Source, decode_row_values, open_source
from nightmill.store import Store
from nightmill.tasks import (
    MESSAGES,
    BoundTask,
    Task,
    TaskFunction,
    bind,
    check_examples,
    check_tools_alone,
    find_task,
    holds_bodies,
    import_task,
    load_schema,
    prompt_task,
    verbatim_task,
)
from nightmill.types import Lane, Quote

DEADLINE = ("by", "deadline", "live_price")  # what a job's spec says of it
TOO_LATE = "too little time for batches"
LIVE_UP_TO = 10  # rows that run live unless told otherwise
_NUMBERS = ("temperature", "max_output")  # that a task may say
T = TypeVar("T")
_EXPECTED_OUTPUT = 300  # tokens, where nobody knows better
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user asks for. None: not said."""

    inputs: tuple[str, ...]
    task: str | Task | TaskFunction | None = None  # by name, .toml file or module:function
    prompt: str | None = None
    model: str | None = None  # or several, with commas between: the cheapest that can do the job
    lane: str | None = None  # auto, batch, live or flex
    by: str | None = None  # when it has to be done, as `config.parse_by` reads it
    budget_nanos: int | None = None
    schema: str | Path | type | Mapping[str, Any] | None = None
    key: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    media: tuple[str, ...] = ()  # columns whose cells are images, PDFs, audio or video to send along
    rows: str | None = None  # file or line
    encoding: str | None = None
    skip_bad: bool = False
    given: Mapping[str, Path] = field(default_factory=dict)  # inputs that lie in a file of another name, such as -
    name: str | None = None
    new: bool = False
    limit: int | None = None
    sample: int | None = None  # so many of the rows, at random
    seed: int | None = None  # of that chance; None: the rows decide
    on_error: str | None = None  # continue, stop or threshold:N
    batch_size: int | None = None
    temperature: float | None = None
    max_output: int | None = None
    dimensions: int | None = None  # numbers in an embedding
    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    cache: bool = True
    dedupe: bool = True
    canary: int | None = None  # rows that go out before all others; 0: none
    min_quality: float | None = None  # the least a model may be worth, 0 to 100, as the settings grade them
    min_valid: float | None = None  # the share of valid answers below which the job stops
    repair: bool | None = None  # answers that do not fit the schema are put right here where they can be
    reask: int | None = None  # ... times they are asked again, with what is wrong
    detach: bool = False  # the lane is batch since nobody waits for the answers, and not because it was said
    hurry: Prepared | None = None  # the same in batches, for which there is too little time


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be planned."""

    order: Order
    spec: dict[str, Any]
    model: str
    free: Limit | None  # the tightest limit
    notices: tuple[str, ...]  # for who looks at the price

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """What answers are held to, if anything."""
        return Parameters.from_dict(self.spec["parameters"]).schema


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
    judged: tuple[Judged, ...] = ()  # the models that one was chosen from; none where one was named

    @property
    def quote(self) -> Quote:
        return self.plan.quote

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema that answers are held to, if there is one."""
        return Parameters.from_dict(self.spec["parameters"]).schema

    @property
    def vectors(self) -> Vectors | None:
        """What embeddings will be like, as far as that is known; None where it asks for none."""
        return embedding.vectors_of(self.spec, lambda: ())


_Planning = Callable[[RunOptions, tuple[str, ...], bool], Prepared]  # for one model, among several, after which look


def prepare(home: Home, options: RunOptions) -> Prepared:
    """Read the input, plan and price it. The caller submits the plan or discards it.

    Raises:
        UsageError (InputError, TaskError, UnknownModel, UnknownPrice, CannotCarry), StoreError:
            nothing of it is left.
    """
    prepared = _chosen(home, options, partial(_prepare, home))
    if not _is_too_late_for_batches(home, prepared):
        return prepared
    drop(home, prepared.plan.job_id)
    return _noted(_chosen(home, replace(options, hurry=prepared), partial(_prepare, home)), TOO_LATE)


def _chosen(home: Home, options: RunOptions, plan: _Planning, *, sends: bool = True) -> Prepared:
    """The plan for the model that is asked for; where there are several, for the cheapest that can do the job."""
    models = selecting.candidates(home.settings, options.model)
    among = selecting.fingerprint_of(home, models)

    def made(model: str) -> Prepared:
        return _after_a_look(partial(plan, replace(options, model=model), among))

    def drafted(model: str) -> Draft:
        return _after_a_look(lambda whole: _draft(home, replace(options, model=model), among, whole, sends=sends))

    if not among and options.min_quality is None:
        return _with_ladder(home, replace(made(models[0]), options=options))
    choice = selecting.Choice(home, models, options.min_quality, drafted, made, lambda it: drop(home, it.plan.job_id))
    return _with_ladder(home, replace(choice.make(), options=options))


def _with_ladder(home: Home, prepared: Prepared) -> Prepared:
    """With what the models cost that may be asked next, and with a word on it."""
    spec = prepared.spec | laddering.next_prices(home, prepared.spec)
    if prepared.resumes:
        return replace(prepared, spec=spec)
    spec |= laddering.next_at_most(home, spec, prepared.plan.shards)
    return _noted(replace(prepared, spec=spec), *laddering.notes(spec))


def _prepare(home: Home, options: RunOptions, among: tuple[str, ...], whole: bool) -> Prepared:
    draft = _draft(home, options, among, whole)
    job_id = new_id()
    for dead in home.ledger.begin_plan(job_id, model=draft.model, lane=draft.order.lane):
        home.store.drop_folder(home.store.job_folder(dead))
    try:
        return _planned(home, options, draft, home.store, job_id)
    except BaseException:
        drop(home, job_id)
        raise


def rehearse(home: Home, options: RunOptions, save_to: Path | None = None) -> Prepared:
    """`prepare` in a folder that is gone afterwards: nothing is written to the home.

    What would be sent is kept in the folder ``save_to``, a file for each shard, as a provider takes it.
    """
    if save_to is not None and save_to.exists() and (not save_to.is_dir() or any(save_to.iterdir())):
        what = f"{save_to} is no empty folder"
        raise UsageError(what, why="requests are kept in a folder of their own", fix="name one that does not exist yet")
    is_sure = options.by is None and len(selecting.candidates(home.settings, options.model)) == 1
    kept = save_to if is_sure else None  # else the lane or the model may yet be another
    prepared = _chosen(home, options, partial(_rehearse, home, kept), sends=False)
    if _is_too_late_for_batches(home, prepared):
        hurried = replace(options, hurry=prepared)
        prepared = _noted(_chosen(home, hurried, partial(_rehearse, home, None), sends=False), TOO_LATE)
    if save_to is not None and not is_sure:
        _after_a_look(partial(_rehearse, home, save_to, replace(prepared.options, model=prepared.model), ()))
    return prepared


def _noted(prepared: Prepared, *notes: str) -> Prepared:
    """With notes for whoever looks at the price."""
    quote = replace(prepared.quote, notes=(*prepared.quote.notes, *notes))
    return replace(prepared, plan=replace(prepared.plan, quote=quote))


def _is_too_late_for_batches(home: Home, prepared: Prepared) -> bool:
    """Whether rows had better go another way to be in time, in a lane that nobody asked for."""
    options = prepared.options
    is_free = prepared.resumes is None and (options.lane or home.settings.default_lane) == "auto"
    return is_free and options.hurry is None and deadlines.hurries(home, prepared)


def _rehearse(home: Home, save_to: Path | None, options: RunOptions, among: tuple[str, ...], whole: bool) -> Prepared:
    draft = _draft(home, options, among, whole, sends=False)
    with tempfile.TemporaryDirectory(prefix="nightmill-dry-", ignore_cleanup_errors=True) as folder:
        prepared = _planned(home, options, draft, Store(Path(folder)), new_id())
        if save_to is not None:
            _save_requests(Path(folder), prepared, save_to)
        return prepared


def _save_requests(folder: Path, prepared: Prepared, save_to: Path) -> None:
    """Copies of the shard files. Raises StoreError."""
    try:
        save_to.mkdir(parents=True, exist_ok=True)
        for shard in prepared.plan.shards:
            if shard.lane is not Lane.CACHE:
                shutil.copyfile(folder / shard.file.path, save_to / Path(shard.file.path).name)
    except OSError as error:
        why, fix = error.strerror or str(error), "free some space, or name another folder"
        raise StoreError(f"cannot write the requests to {save_to}", why=why, fix=fix) from error


def _planned(home: Home, options: RunOptions, draft: Draft, store: Store, job_id: str) -> Prepared:
    """The plan with its price, its files in ``store``."""
    order, free = draft.order, draft.free
    plan = make_plan(order, store, job_id)
    notes = (*draft.notices, *plan.quote.notes)
    plan = replace(plan, quote=with_waves(replace(plan.quote, notes=notes), free.free_nanos if free else None))
    unfinished = None if options.new else _unfinished_like(home, plan, draft.spec, options)
    digest = order.compiled.digest
    made = Prepared(plan, draft.spec, options, order.source, draft.model, order.lane, digest, free, unfinished)
    if unfinished is not None:
        return made
    at_once = deadlines.live_at_once(home, made)
    made = deadlines.priced(made, at_once)
    return _noted(made, *deadlines.notes(home, made, at_once), *firstrows.notes(plan, order.lane))


def drop(home: Home, job_id: str) -> None:
    """A plan and its files go; a job, though this is called late, keeps its own."""
    if home.ledger.is_planned(job_id):
        home.store.drop_folder(home.store.job_folder(job_id))  # first: on a full disk the ledger needs the room
        home.ledger.abandon_plan(job_id)


def _draft(home: Home, options: RunOptions, among: tuple[str, ...], whole: bool, *, sends: bool = True) -> Draft:
    """What is to be planned for the one model of ``options``, which is ``among`` several where it was chosen."""
    settings, model = home.settings, options.model or ""
    provider = home.provider(model, sends=sends)
    task, function, notice = _task(home, options, provider)
    rows = options.rows or task.rows
    source = open_source(
        options.inputs, rows="file" if rows == "file" else "line", key=options.key, limit=options.limit,
        sample=options.sample, seed=options.seed, encoding=options.encoding, skip_bad=options.skip_bad,
        given=options.given, whole=whole,
    )  # fmt: skip
    if options.task is None and options.prompt is None:
        is_whole = holds_bodies(_columns(source))
        task = _bodies_task(source, provider) if is_whole else _for_model(verbatim_task(_columns(source)), provider)
    of_text = {name: getattr(options, name) is not None for name in ("schema", "temperature", "max_output")}
    extra = embedding.asked(task, options.dimensions, **of_text)
    columns = _columns(source, function)
    if options.media or (source.is_media and not task.media):
        task = replace(task, media=list(dict.fromkeys((*task.media, *(options.media or ("path",))))))
    bound = bind(task, columns, {} if function else options.sets)
    parameters = _parameters(home, options, bound.task)
    parameters = replace(parameters, extra={**parameters.extra, **extra})
    compiled = Compiled(provider, bound, parameters)
    deadline = None if options.by is None else parse_by(options.by, home.desk.wall())
    lane = _lane(options.lane or settings.default_lane, provider, source)
    if options.hurry is not None:
        lane = deadlines.lane_in_a_hurry(home, options.hurry, model, provider)
    if deadline is not None and lane is Lane.BATCH and not isinstance(provider, LiveProvider):
        raise UsageError(
            f"--by with {provider.name}", why="it has no live lane for what is late in a batch", fix="leave --by out"
        )
    expect = _expected_tokens(home, model, bound.task, compiled)
    sheet, regular = home.sheet(model, lane), home.sheet(model, Lane.LIVE)
    order = Order(
        source, provider, compiled, lane, sheet, regular,
        Bounds(1, 0, None), expect, options.skip_bad, options.dedupe, home.cache if options.cache else None,
        (f"limit={options.limit}", f"key={options.key}", *_sampled(options)), function,
        held=dearer(sheet, regular) if deadline is not None and lane is Lane.BATCH else None, candidates=among,
        media=tuple(bound.task.media),
    )  # fmt: skip
    spec = _spec(options, bound, parameters, model, lane, source)
    spec |= {"canary": options.canary, "min_valid": _first(options.min_valid, settings.default_min_valid)}
    spec |= {"columns": columns, "price": order.sheet.to_json(), "by": options.by, "deadline": deadline}
    spec |= laddering.asked(home, options, bound.task, parameters)
    order = _with_prefix(home, options, laddering.marked(order, spec))
    free = home.tightest(options.budget_nanos)
    order = _bounded(order, options, free)
    if order.held is not None and options.batch_size is None:
        most = min(order.bounds.requests, deadlines.batch_rows(home, spec, provider, compiled.cap_tokens))
        order = replace(order, bounds=replace(order.bounds, requests=most))
    batch_said = (options.lane or settings.default_lane) == "batch" and not options.detach
    first = firstrows.first_of(home, order, asked=options.canary, batch_said=batch_said, free=free)
    order = replace(order, first=first)
    may_turn = deadline is not None and lane is not Lane.LIVE
    if may_turn or (first is not None and first.lane is not lane):
        spec["live_price"] = regular.to_json()
    lacking = lacking_key(model, settings.env, settings.providers)
    notices = (notice, lacking and f"{lacking} is not set: the run needs it")
    return Draft(order, spec, model, free, tuple(filter(None, notices)))


def _with_prefix(home: Home, options: RunOptions, order: Order) -> Order:
    """With the beginning of all prompts cached, where that is expected to pay."""
    compiled, provider = order.compiled, order.provider
    tokens = compiled.shared_tokens() if home.settings.default_prompt_cache != "off" else 0
    if not tokens:
        return order
    burst = burst_of(order.lane, options.concurrency or provider.limits.concurrency)
    found = home.ledger.cached_so_far(options.model or "", compiled.digest, order.lane)
    prefix = Prefix(tokens, burst, measured(tokens, *found))
    if not prefix.pays(next(order.source.batches()).num_rows, order.sheet):
        return order
    compiled.cache_prefix()
    return replace(order, prefix=prefix)


def _sampled(options: RunOptions) -> list[str]:
    return [] if options.sample is None else [f"sample={options.sample}", f"seed={options.seed}"]


def _expected_tokens(home: Home, model: str, task: Task, compiled: Compiled) -> int:
    """Output tokens of a typical answer: measured, else the task's word, else a guess under the cap."""
    if compiled.is_embeddings:
        return 0
    measured = home.ledger.mean_output_tokens(model, compiled.digest)
    usual = measured or task.expect or _EXPECTED_OUTPUT
    return usual if task.bodies else min(compiled.cap_tokens, usual)


def _task(home: Home, options: RunOptions, provider: Provider) -> tuple[Task, TaskFunction | None, str | None]:
    """The task, the function that it is if it is one, and what is to be said about it."""
    if options.task is not None and options.prompt is not None:
        raise UsageError("both a task and a prompt", why="one of them says what to ask", fix="give only one")
    if options.prompt is not None:
        return _for_model(prompt_task(options.prompt), provider), None, None
    found = options.task
    if isinstance(found, str):
        if ":" not in found or found.endswith(".toml"):
            file = find_task(found, home.settings.task_folders)
            notice = f"the task {file.name} is that of {file.where}, not the built-in one"
            return file.load(), None, notice if file.hides_built_in else None
        found = import_task(found)
    if isinstance(found, TaskFunction):
        found = found.with_sets(options.sets)
        return found.task, found, None
    return found or Task("verbatim"), None, None


def _bodies_task(source: Source, provider: Provider) -> Task:
    """Rows that are whole requests: what the first of them is for all of them must be for.

    Raises:
        InputError: nothing that is asked here.
    """
    columns = ("url", "body", "messages", "input", "model")
    rows = next(source.batches())
    first = {
        name: next((v for v in decode_row_values(rows.column(name), rows.schema.field(name)) if v is not None), None)
        for name in columns
        if name in rows.schema.names
    }
    if url := first.get("url"):
        endpoint = endpoint_at(str(url))
        if endpoint is None:
            why = "rows can ask /v1/chat/completions, /v1/responses and /v1/embeddings"
            raise InputError(f"{source.names[0]} asks {url}", why=why, fix="rewrite the requests for one of these")
    else:
        body = first.get("body") if "body" in first else first
        endpoint = endpoint_of_body(body, provider.model)
    return Task("requests", endpoint, bodies=True)


def _parameters(home: Home, options: RunOptions, task: Task) -> Parameters:
    schema = task.schema
    if options.schema:
        schema = load_schema(options.schema)
        check_examples(task.examples, schema, f"{task.called} with --schema {options.schema}")
        check_tools_alone(task.tools, schema, f"{task.called} with --schema {options.schema}")
    if task.bodies:  # what they do not say is not for the settings to say
        return Parameters(options.temperature, options.max_output, schema)
    return Parameters(
        temperature=_first(options.temperature, task.temperature, home.settings.default_temperature),
        max_output=_first(options.max_output, task.max_output, home.settings.default_max_output),
        schema=schema,
        suggested=[name for name in _NUMBERS if task.built_in and getattr(options, name) is None],
    )


def _unfinished_like(home: Home, plan: Plan, spec: dict[str, Any], options: RunOptions) -> Job | None:
    """The unfinished job that the same command began; refuses options that differ in how it runs."""
    job = home.ledger.find_unfinished(plan.fingerprint)
    if job is None:
        return None
    asked = {"lane": options.lane not in (None, "auto", job.spec["lane"])}
    asked["canary"] = options.canary not in (None, job.spec.get("canary"))
    asked["by"] = options.by not in (None, job.spec.get("by"))
    for option in ("batch_size", "cache", "dedupe"):
        asked[option] = job.spec[option] != spec[option]
    if differing := [name.replace("_", "-") for name, differs in asked.items() if differs]:
        raise Conflict(
            f"job {job.id} is unfinished and was begun with another --{differing[0]}",
            why="its shards are cut and sent already",
            fix=f"run it as it was begun, or start anew with --new (nightmill cancel {job.id} ends the old one)",
        )
    return job


def new_id() -> str:
    """A job id: sorts by time, 14 characters, the last four random."""
    milliseconds = time.time_ns() // 1_000_000
    stamp = "".join(_CROCKFORD[milliseconds >> shift & 31] for shift in range(45, -1, -5))
    return stamp + "".join(secrets.choice(_CROCKFORD) for _ in range(4))


def _bounded(order: Order, options: RunOptions, free: Limit | None) -> Order:
    """Shards whose hold is at most a quarter of the tightest limit's free money."""
    limits = bounds(
        order.lane,
        order.provider.limits,
        batch_size=options.batch_size,
        hold_nanos=quarter(free),
        embeddings=order.compiled.is_embeddings,
    )
    return replace(order, bounds=limits)


def _after_a_look(plan: Callable[[bool], T]) -> T:
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
    if asked == "flex" and not isinstance(provider, FlexProvider):
        why = "it has no cheaper tier for calls that may wait"
        raise UsageError(f"{provider.name} has no flex lane", why=why, fix="use --lane batch or --lane live")
    if asked != "auto":
        return Lane(asked)
    few = next(source.batches()).num_rows <= LIVE_UP_TO
    return Lane.LIVE if not can_batch or (few and can_live) else Lane.BATCH


def _for_model(task: Task, provider: Provider) -> Task:
    """A bare prompt for an embedding model asks for embeddings."""
    return replace(task, endpoint="embeddings") if "embed" in provider.model.lower() else task


def _columns(source: Source, function: TaskFunction | None = None) -> list[str]:
    """What a task may use: the source's columns, and beside them what a function makes of each row."""
    names = list(source.schema.names)
    if "key" not in names:
        names.insert(0, "key")
    return names if function is None or MESSAGES in names else [*names, MESSAGES]


def _spec(
    options: RunOptions, bound: BoundTask, parameters: Parameters, model: str, lane: Lane, source: Source
) -> dict[str, Any]:
    """Everything needed to go on without the caller."""
    return {
        "inputs": list(options.inputs), "task": bound.task.to_dict(), "parameters": parameters.to_dict(),
        "model": model, "next_models": [],
        "lane": lane.value, "batch_size": options.batch_size,
        "cache": options.cache, "dedupe": options.dedupe, "rpm": options.rpm, "tpm": options.tpm,
        "concurrency": options.concurrency, "on_error": options.on_error or "continue",
        "row_mode": source.kind, "folder": str(Path.cwd()), "root": source.root,
    }  # fmt: skip


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
