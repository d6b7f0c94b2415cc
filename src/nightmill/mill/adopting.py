"""Adopting: a batch that was made elsewhere becomes a job, is waited for, and its answers are results like others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nightmill.errors import Conflict, Refused, UsageError
from nightmill.lanes.batch import is_shut_out, ran_nothing, said
from nightmill.ledger import ForeignBatch, Job
from nightmill.mill import planning
from nightmill.mill.home import Home, compiled_from
from nightmill.plan import Parameters
from nightmill.plan.foreign import TakenIn, first_request, take_in
from nightmill.pricing import PriceSheet
from nightmill.providers import BatchView, OpenBatches
from nightmill.providers.resolve import account_model
from nightmill.tasks import Task
from nightmill.types import FileRef, Lane, Quote, Usage

T = TypeVar("T")
_EXPECTED_OUTPUT = 300  # tokens of an answer, where nobody knows better


@dataclass(frozen=True, slots=True)
class Adopted:
    """The job that a batch made elsewhere is now."""

    job: Job
    is_new: bool  # False: an earlier command adopted it


async def adopt(home: Home, reference: str, *, name: str | None = None) -> Adopted:
    """Make the batch ``PROVIDER/BATCH_ID`` a job; a later run waits for it. Once adopted, the job that it is.

    What it may cost is held in the day's, the month's and the whole budget, and no limit refuses it: the money is
    committed already.

    Raises:
        UsageError: the provider does not know the batch, or it cannot be taken in.
        UnknownPrice: nobody knows what its model costs.
        Conflict: it is the batch of a job that nightmill sent.
        ProviderError: the provider cannot be asked now; nothing was changed.
    """
    provider_name, _, batch_id = reference.partition("/")
    if not batch_id:
        fix = "for example PROVIDER/batch_abc123; nightmill batches lists them"
        raise UsageError(f"{reference!r} names no batch", why="it has the form PROVIDER/BATCH_ID", fix=fix)
    known = home.ledger.submission_of(batch_id)
    if known is not None:
        return Adopted(_adopted_before(home, batch_id, known), is_new=False)
    keyed = home.providers(account_model(provider_name, home.settings.env, home.settings.providers))
    opened = [each for each in keyed if isinstance(each, OpenBatches)]
    if not opened:
        why = "it does not keep what was sent in a batch"
        raise UsageError(f"batches of {provider_name} cannot be adopted", why=why, fix="fetch its results by hand")
    try:
        provider = await _that_sees(opened, batch_id)
        view = await _look(provider, batch_id)
        _refuse_ours(home, view)
        return await _take_over(home, provider, view, name)
    finally:
        for each in keyed:
            await each.close()


async def _that_sees(keyed: list[OpenBatches], batch_id: str) -> OpenBatches:
    """The provider with the key that the batch is shown to; the last where none is: it says why."""
    for provider in keyed[:-1]:
        with contextlib.suppress(Refused):
            await provider.poll(batch_id)
            return provider
    return keyed[-1]


def _adopted_before(home: Home, batch_id: str, known: str) -> Job:
    """The job that adopted the batch. Raises Conflict: it is one that nightmill sent, or that was deleted."""
    tag = known.rpartition(".")[0]
    job = home.ledger.job(tag.rpartition("-")[0])
    if job is None:
        raise Conflict(
            f"batch {batch_id} was that of a job that was deleted", why="what it cost is booked already",
            fix="fetch its results by hand while they are there",
        )  # fmt: skip
    if job.spec.get("adopted", {}).get("batch_id") != batch_id:
        raise Conflict(
            f"batch {batch_id} is that of job {job.id} already", why=f"nightmill sent it, as {known}",
            fix=f"nightmill watch {job.id}",
        )  # fmt: skip
    return job


def _refuse_ours(home: Home, view: BatchView) -> None:
    """A batch that carries the name of a submission of ours, and that no shard has yet. Raises Conflict."""
    shard = home.ledger.shard((view.submission or "").rpartition(".")[0])
    if shard is not None:
        raise Conflict(
            f"batch {view.id} is that of job {shard.job_id}", why=f"it carries the name {view.submission}",
            fix=f"nightmill resume {shard.job_id} finds it; nightmill resolve {shard.tag} --adopt {view.id} says so",
        )  # fmt: skip


async def _look(provider: OpenBatches, batch_id: str) -> BatchView:
    """The batch as it is now. Raises UsageError: there is none, or nothing of it ran."""
    try:
        view = await provider.poll(batch_id)
    except Refused as error:
        if is_shut_out(error):
            raise
        fix = f"nightmill batches {provider.name} lists what there is"
        raise UsageError(f"{batch_id} cannot be adopted", why=said(error), fix=fix) from error
    if ran_nothing(view):
        raise UsageError(f"batch {batch_id} failed before any of it ran", why=str(view.refusal), fix="send it again")
    return view


async def _take_over(home: Home, provider: OpenBatches, view: BatchView, name: str | None) -> Adopted:
    job_id = planning.new_id()
    reference = f"{provider.name}/{view.model or 'unknown'}"
    for dead in home.ledger.begin_plan(job_id, model=reference, lane=Lane.BATCH):
        home.store.drop_folder(home.store.job_folder(dead))
    try:
        sent = await _fetch_input(home, provider, view, job_id)
        taken = await _to_its_end(partial(_publish, home, provider, view, job_id, sent, name))
    except BaseException:
        planning.drop(home, job_id)
        raise
    if taken is not None:  # another command was first
        planning.drop(home, job_id)
        return Adopted(_adopted_before(home, view.id, taken), is_new=False)
    return Adopted(home.job(job_id), is_new=True)


async def _fetch_input(home: Home, provider: OpenBatches, view: BatchView, job_id: str) -> FileRef:
    path = f"{home.store.job_folder(job_id)}/shards/{job_id}-0.sent.jsonl"
    home.store.path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if view.input_file is None or not await provider.fetch(view.input_file, home.store.path(path)):
        raise UsageError(
            f"the input file of batch {view.id} is gone at the provider",
            why="without it nobody knows what was asked, nor what may be missing",
            fix="fetch its results by hand while they are there",
        )
    return await _to_its_end(partial(home.store.seal, path))


async def _to_its_end(work: Callable[[], T]) -> T:
    """Do ``work``, which reads every row, on a thread; who cancels waits until it has ended and writes no more."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _publish(
    home: Home, provider: OpenBatches, view: BatchView, job_id: str, sent: FileRef, name: str | None
) -> str | None:
    """Files and ledger entry of the job; the submission that has the batch where another command was first."""
    first = first_request(home.store, sent, provider)
    model = f"{provider.name}/{first.model}"
    sheet, list_sheet = home.sheet(model, Lane.BATCH), home.sheet(model, Lane.LIVE)
    taken = take_in(home.store, home.store.job_folder(job_id), f"{job_id}-0", sent, provider, sheet)
    spec = _spec(view, model, first.url, sheet, provider.name)
    batch = ForeignBatch(view.id, provider.account.id, first.model, view.status, view.created_at)
    return home.ledger.adopt_batch(
        job_id, batch, taken.shard, model=model, name=name, fingerprint=f"adopted:{provider.account.host}:{view.id}",
        task_digest=compiled_from(spec, home.provider(model)).digest, spec=spec,
        quote=_quote(taken, sheet, list_sheet), files=taken.files, price=sheet.to_json(),
        hold_nanos=sheet.worst(taken.shard.content_bytes, taken.shard.count, taken.shard.cap_tokens),
        scopes=home.desk.scopes(job_id),
    )  # fmt: skip


def _quote(taken: TakenIn, sheet: PriceSheet, list_sheet: PriceSheet) -> Quote:
    shard = taken.shard
    each = Usage(shard.input_tokens // shard.count, min(_EXPECTED_OUTPUT, shard.cap_tokens // shard.count))
    at_most = sheet.worst(shard.content_bytes, shard.count, shard.cap_tokens)
    return Quote(
        Lane.BATCH, shard.count, shard.input_tokens, each.output_tokens * shard.count, sheet.cost(each) * shard.count,
        at_most, list_sheet.cost(each) * shard.count, 1, f"{sheet.source}, {sheet.date}",
    )  # fmt: skip


def _spec(view: BatchView, model: str, url: str, sheet: PriceSheet, provider: str) -> dict[str, Any]:
    """What goes on without the caller: the rows are shown by their prompts, and nothing of them is rendered."""
    folder = str(Path.cwd())
    endpoint: Any = "embeddings" if url.endswith("/embeddings") else "chat"
    return {
        "inputs": [f"{provider}/{view.id}"], "task": Task("adopted", endpoint, prompt="{{ prompt }}").to_dict(),
        "columns": ["key", "prompt", "body"], "parameters": Parameters().to_dict(), "model": model, "next_models": [],
        "lane": Lane.BATCH.value, "batch_size": None, "cache": False, "dedupe": False, "rpm": None, "tpm": None,
        "concurrency": None, "on_error": "continue", "row_mode": "rows", "folder": folder, "root": folder,
        "price": sheet.to_json(),
        "adopted": {"batch_id": view.id, "provider": provider, "url": url},
    }  # fmt: skip
