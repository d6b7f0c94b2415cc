"""Batches: the record, how it looks on the wire, and its life from validating to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightmill.simulator.answering import Model
from nightmill.simulator.billing import FREE, Catalogue, Invoice, Tally
from nightmill.simulator.config import Clock, SimulatorConfig
from nightmill.simulator.faults import Params
from nightmill.simulator.files import THIRTY_DAYS_S, FileStore
from nightmill.simulator.rows import RowJob, run_rows
from nightmill.simulator.validation import BatchRefused, Checked, Rules, check
from nightmill.simulator.wire import ApiError, enqueued_limit_text, new_id

TERMINAL = frozenset({"failed", "completed", "expired", "cancelled"})
_DAY_S = 86_400
_STAMPS = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """One batch and what became of it so far."""

    endpoint: str
    input_file_id: str
    metadata: dict[str, str] | None
    scope: str
    created_at: int
    created_elapsed: float  # provider seconds, for `late_listing`
    faults: Mapping[str, Params]
    keep_s: int = THIRTY_DAYS_S  # of the result files
    input: Path | None = None  # our own link to the input, so that deleting the file does not stop the batch
    id: str = field(default_factory=lambda: new_id("batch_"))
    status: str = "validating"
    model: str | None = None
    total: int = 0
    tokens: int = 0  # prompt tokens that count as enqueued
    running_since: float | None = None  # provider seconds
    stopped_at: int | None = None  # rows done when it was cancelled or expired
    tally: Tally | None = None
    error: dict[str, Any] | None = None
    unexplained: bool = False
    output_file_id: str | None = None
    error_file_id: str | None = None
    ended_elapsed: float | None = None
    stamps: dict[str, int] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


def find_progress(batch: Batch, elapsed: float, batch_s: float) -> int:
    """Rows done by now."""
    if batch.stopped_at is not None:
        return batch.stopped_at
    if batch.running_since is None:
        return 0
    share = 1.0 if batch_s <= 0 else (elapsed - batch.running_since) / batch_s
    return max(0, min(batch.total, int(batch.total * share)))


def view(batch: Batch, elapsed: float, batch_s: float) -> dict[str, Any]:
    """The batch object of the wire, as it looks at ``elapsed`` provider seconds."""
    faults = batch.faults
    shown = batch.status
    if shown == "in_progress" and "status_unknown_word" in faults:
        shown = str(faults["status_unknown_word"].get("word", "queued"))
    made: dict[str, Any] = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": [batch.error]} if batch.error else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": shown,
        "output_file_id": _in_time(batch, "late_output_file", batch.output_file_id, elapsed),
        "error_file_id": _in_time(batch, "late_error_file", batch.error_file_id, elapsed),
        "created_at": batch.created_at,
        **{f"{name}_at": batch.stamps.get(name) for name in _STAMPS},
        "request_counts": _counts(batch, elapsed, batch_s),
        "usage": _usage(batch.tally),
        "metadata": batch.metadata,
    }
    for key in ("output_file_id", "error_file_id"):
        if made[key] is None and "absent_file_ids" in faults:
            del made[key]
        elif made[key] is None and "empty_file_ids" in faults:
            made[key] = ""
    return made


def _in_time(batch: Batch, fault: str, file_id: str | None, elapsed: float) -> str | None:
    """The id of a result file, once the fault that holds it back lets it show."""
    late = batch.faults.get(fault)
    if late is None or batch.ended_elapsed is None:
        return file_id
    return file_id if elapsed >= batch.ended_elapsed + float(late.get("lag_s", 60)) else None


def _counts(batch: Batch, elapsed: float, batch_s: float) -> dict[str, int | None]:
    tally, total = batch.tally, batch.total
    if batch.status == "cancelling" and "cancel_reverting_counts" in batch.faults:
        return {"total": total, "completed": min(total, max(1, batch.stopped_at or 0)), "failed": 0}
    if tally is None:
        done, failed = find_progress(batch, elapsed, batch_s), 0
    else:
        done, failed = tally.completed, tally.failed
    if batch.status == "expired":
        failed = total - done
    if "null_counts" in batch.faults:
        return {"total": total, "completed": None, "failed": None}
    return {"total": total, "completed": done, "failed": failed}


def _usage(tally: Tally | None) -> dict[str, Any] | None:
    if tally is None:
        return None
    return {
        "input_tokens": tally.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tally.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tally.input_tokens + tally.output_tokens,
    }


class BatchRunner:
    """Takes each batch through its life, one task a batch, rows in a thread."""

    def __init__(
        self, config: SimulatorConfig, clock: Clock, files: FileStore, catalogue: Catalogue, model: Model, bill: Invoice
    ) -> None:
        self._config, self._clock, self._files = config, clock, files
        self._catalogue, self._model, self._invoice = catalogue, model, bill
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="simulator-rows")
        self._batches: dict[str, Batch] = {}
        self._enqueued: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, batch: Batch) -> None:
        """Commit a new batch."""
        batch.stamps["expires"] = batch.created_at + _DAY_S
        self._batches[batch.id] = batch
        task = asyncio.get_running_loop().create_task(self._live(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def get(self, batch_id: str, scope: str) -> Batch:
        """The batch, or the 404 of the wire."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.scope != scope:
            raise ApiError(404, f"No batch found with id '{batch_id}'.")
        return batch

    def listed(self, scope: str) -> list[Batch]:
        """This account's batches that the list shows by now, newest first."""
        now = self._clock.elapsed()

        def visible(batch: Batch) -> bool:
            late = batch.faults.get("late_listing")
            return late is None or now >= batch.created_elapsed + float(late.get("lag_s", 60))

        return [b for b in reversed(self._batches.values()) if b.scope == scope and visible(b)]

    def cancel(self, batch: Batch) -> None:
        """Ask for a cancel; a batch that has ended refuses with 409."""
        if batch.status in TERMINAL:
            raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.")
        if batch.status == "cancelling":
            return
        batch.stopped_at = self._progress(batch)
        self._move(batch, "cancelling")
        batch.cancelled.set()

    async def close(self) -> None:
        """Stop everything; batches stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _progress(self, batch: Batch) -> int:
        if batch.status == "finalizing":
            return batch.total
        return find_progress(batch, self._clock.elapsed(), self._config.batch_s)

    def _move(self, batch: Batch, status: str) -> None:
        batch.status = status
        batch.stamps[status] = self._clock.stamp()
        if status in TERMINAL:
            batch.ended_elapsed = self._clock.elapsed()
            if batch.model is not None and batch.tokens:
                self._enqueued[batch.model] -= batch.tokens

    async def _live(self, batch: Batch) -> None:
        try:
            await self._run(batch)
        except BatchRefused as refused:
            if not batch.unexplained:
                batch.error = refused.error
            self._move(batch, "failed")
        except Exception:
            # The boundary of a background task: without this a defect here would look like a slow provider.
            _log.exception("batch %s broke the simulator", batch.id)
            batch.error = BatchRefused("simulator_defect", "See the simulator's log.").error
            self._move(batch, "failed")

    async def _run(self, batch: Batch) -> None:
        await self._wait(batch, self._config.validating_s)
        checked = await self._validate(batch)
        batch.total = checked.rows
        if not batch.cancelled.is_set():
            self._admit(batch, checked)
            batch.running_since = self._clock.elapsed()
            self._move(batch, "in_progress")
            ending = await self._work(batch)
        else:
            ending = "cancelled"
        await self._finish(batch, checked.model, ending)

    async def _validate(self, batch: Batch) -> Checked:
        faults = batch.faults
        if "batch_failed_unexplained" in faults:
            batch.unexplained = True
            raise BatchRefused("unexplained", "not shown")
        if "batch_failed_line" in faults:
            told = faults["batch_failed_line"]
            raise BatchRefused(
                str(told.get("code", "invalid_request")),
                str(told.get("message", "This request is invalid.")),
                param=told.get("param"),
                line=int(told.get("line", 1)),
            )
        source = self._files.find(batch.input_file_id, batch.scope)
        if source is None or source.purpose != "batch":
            why = "was not found" if source is None else f"has purpose '{source.purpose}', not 'batch'"
            raise BatchRefused("invalid_request", f"The input file {batch.input_file_id} {why}.", param="input_file_id")
        config = self._config
        rules = Rules(config.max_rows, config.max_inputs, config.enqueued_tokens is not None)
        loop = asyncio.get_running_loop()
        batch.input = self._files.hold(source)
        return await loop.run_in_executor(self._threads, check, batch.input, batch.endpoint, rules, self._catalogue)

    def _admit(self, batch: Batch, checked: Checked) -> None:
        """Let the batch into the model's queue, or fail it for the enqueued-token limit."""
        told = batch.faults.get("enqueued_limit_later")
        limit = self._config.enqueued_tokens
        present = self._enqueued.get(checked.model, 0)
        if told is not None or (limit is not None and present + checked.tokens > limit):
            shown = int(told.get("limit", 2_000_000)) if told is not None else limit or 0
            batch.total = 0
            raise BatchRefused("token_limit_exceeded", enqueued_limit_text(checked.model, shown))
        batch.model, batch.tokens = checked.model, checked.tokens
        self._enqueued[checked.model] = present + checked.tokens

    async def _work(self, batch: Batch) -> str:
        """Wait until the rows are done or something ends them; the status the batch is heading for."""
        config = self._config
        if "never_finishes" in batch.faults:
            await batch.cancelled.wait()
            return "cancelled"
        limit_s, share = config.batch_s, 1.0
        if "expire_at" in batch.faults:
            share = float(batch.faults["expire_at"].get("fraction", 0.8))
        elif config.batch_s > config.window_s:
            share = config.window_s / config.batch_s
        await self._wait(batch, limit_s * share)
        if batch.cancelled.is_set():
            return "cancelled"
        if share < 1.0:
            batch.stopped_at = int(batch.total * share)
            return "expired"
        self._move(batch, "finalizing")
        return "completed"

    async def _wait(self, batch: Batch, provider_s: float) -> None:
        """Wait, but no longer than until the batch is cancelled."""
        try:
            async with asyncio.timeout(self._clock.real_s(provider_s)):
                await batch.cancelled.wait()
        except TimeoutError:
            return

    async def _finish(self, batch: Batch, model: str, ending: str) -> None:
        done = batch.total if batch.stopped_at is None else batch.stopped_at
        if ending == "cancelled" and "cancel_reverting_counts" in batch.faults:
            done = 0
        output, errors = self._files.scratch(), self._files.scratch()
        if batch.input is None:
            raise BatchRefused("invalid_request", f"The input file {batch.input_file_id} was never read.")
        job = RowJob(
            input=batch.input,
            output=output,
            errors=errors,
            endpoint=batch.endpoint,
            total=batch.total,
            done=done,
            rest="batch_expired" if ending == "expired" else "batch_cancelled",
            created=self._clock.stamp(),
            card=self._catalogue.card(model, batch=True) or FREE,
            faults=batch.faults,
            keep_keys=self._invoice.counting,
        )
        loop = asyncio.get_running_loop()
        tally = await loop.run_in_executor(self._threads, run_rows, job, self._model)
        if ending == "completed":
            await self._wait(batch, self._config.finalizing_s)
            ending = "cancelled" if batch.cancelled.is_set() else ending
        if ending == "cancelled":
            await self._clock.sleep(self._config.cancel_s)
        batch.input.unlink()
        self._invoice.book_batch(batch.id, tally)
        batch.output_file_id = self._keep(batch, output, "output")
        batch.error_file_id = self._keep(batch, errors, "error")
        batch.tally = tally
        tally.keys.clear()
        self._move(batch, ending)

    def _keep(self, batch: Batch, path: Path, word: str) -> str | None:
        """The id of a result file; an empty one does not come into being."""
        if path.stat().st_size == 0:
            path.unlink()
            return None
        return self._files.add(
            path,
            filename=f"{batch.id}_{word}.jsonl",
            purpose="batch_output",
            created_at=self._clock.stamp(),
            keep_s=batch.keep_s,
            scope=batch.scope,
        ).id
