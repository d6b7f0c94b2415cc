"""The life of batches, from validating to their end: one task a batch, rows in a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nightmill.simulator.batch import TERMINAL, Batch, State, find_progress
from nightmill.simulator.billing import Catalogue, Invoice, Tally
from nightmill.simulator.config import Clock, SimulatorConfig
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import BatchRefused, Checked, Format, Rows, Rules, Trouble, Why
from nightmill.simulator.rows import RowJob, run_rows

_log = logging.getLogger(__name__)


class BatchRunner:
    """Takes each batch through its life, one task a batch, rows in a thread."""

    def __init__(
        self,
        wire: Format,
        rows: Rows,
        config: SimulatorConfig,
        clock: Clock,
        files: FileStore,
        catalogue: Catalogue,
        bill: Invoice,
        count: Callable[[int], int],
    ) -> None:
        """``count`` is told how many requests the provider is given, and says how many there were before."""
        self._wire, self._rows, self._config, self._clock, self._count = wire, rows, config, clock, count
        self._files, self._catalogue, self._invoice = files, catalogue, bill
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="simulator-rows")
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, batch: Batch) -> None:
        """Commit a new batch."""
        self._batches[batch.id] = batch
        task = asyncio.get_running_loop().create_task(self._live(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def find(self, batch_id: str, scope: str) -> Batch | None:
        """The batch, if it exists and is this account's."""
        batch = self._batches.get(batch_id)
        return batch if batch is not None and batch.scope == scope else None

    def forget(self, batch: Batch) -> None:
        """Delete a batch that has ended, with its results."""
        del self._batches[batch.id]
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                self._files.drop(file_id)

    def listed(self, scope: str) -> list[Batch]:
        """This account's batches that the list shows by now, newest first."""
        now = self._clock.elapsed()

        def visible(batch: Batch) -> bool:
            late = batch.faults.get("late_listing")
            return late is None or now >= batch.created_elapsed + float(late.get("lag_s", 60))

        return [b for b in reversed(self._batches.values()) if b.scope == scope and visible(b)]

    def open(self) -> list[Batch]:
        """Those of every account that have not ended."""
        return [batch for batch in self._batches.values() if batch.state not in TERMINAL]

    def enqueued(self, model: str, but: Batch | None = None) -> int:
        """Prompt tokens of ``model`` in batches that have not ended, one of them left out."""
        return sum(batch.tokens for batch in self.open() if batch.model == model and batch is not but)

    def cancel(self, batch: Batch) -> bool:
        """Ask for a cancel; False for a batch that has ended."""
        if batch.state in TERMINAL:
            return False
        if batch.state is State.CANCELLING:
            return True
        batch.stopped_at = self._progress(batch)
        self._move(batch, State.CANCELLING)
        batch.cancelled.set()
        return True

    async def close(self) -> None:
        """Stop everything; batches stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _progress(self, batch: Batch) -> int:
        if batch.state is State.FINISHING:
            return batch.total
        return find_progress(batch, self._clock.elapsed(), self._config.batch_s)

    def _move(self, batch: Batch, state: State) -> None:
        batch.state = state
        batch.stamps[state] = self._clock.unix()
        if state in TERMINAL:
            batch.ended_elapsed = self._clock.elapsed()

    async def _live(self, batch: Batch) -> None:
        try:
            await self._run(batch)
        except BatchRefused as refused:
            if not batch.unexplained:
                batch.error = refused
            self._move(batch, State.FAILED)
        except Exception:
            # The boundary of a background task: without this a defect here would look like a slow provider.
            _log.exception("batch %s broke the simulator", batch.id)
            batch.error = BatchRefused("simulator_defect", "See the simulator's log.")
            self._move(batch, State.FAILED)

    async def _run(self, batch: Batch) -> None:
        await self._wait(batch, self._config.validating_s)
        checked = await self._validate(batch)
        batch.total = checked.rows
        batch.asked_before = self._count(checked.rows)
        if not batch.cancelled.is_set():
            self._admit(batch, checked)
            batch.running_since = self._clock.elapsed()
            self._move(batch, State.RUNNING)
            ending = await self._work(batch)
        else:
            ending = State.CANCELLED
        await self._finish(batch, ending)

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
        if batch.input is None:
            batch.input = self._wire.take_input(batch, self._files)
        config = self._config
        rules = Rules(
            self._wire.max_rows if config.max_rows is None else config.max_rows,
            config.max_inputs,
            config.enqueued_tokens is not None,
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._rows.check, batch.input, batch, rules)

    def _admit(self, batch: Batch, checked: Checked) -> None:
        """Let the batch into the model's queue, or fail it for the enqueued-token limit."""
        told = batch.faults.get("enqueued_limit_later")
        limit = self._config.enqueued_tokens
        present = self.enqueued(checked.model, but=batch)
        if told is not None or (limit is not None and present + checked.tokens > limit):
            shown = int(told.get("limit", 2_000_000)) if told is not None else limit or 0
            batch.total = 0
            trouble = Trouble(Why.QUEUE_FULL, facts={"model": checked.model, "limit": shown})
            raise BatchRefused("token_limit_exceeded", self._wire.refusal(trouble).message)
        batch.model, batch.tokens = checked.model, checked.tokens

    async def _work(self, batch: Batch) -> State:
        """Wait until the rows are done or something ends them; the status the batch is heading for."""
        config = self._config
        if "never_finishes" in batch.faults:
            await batch.cancelled.wait()
            return State.CANCELLED
        limit_s, share = float(batch.faults.get("slow_batch", {}).get("lag_s", config.batch_s)), 1.0
        early = State.FAILED if "fail_at" in batch.faults else State.EXPIRED
        window_s = self._wire.window_s if config.window_s is None else config.window_s
        if "expire_at" in batch.faults:
            share = float(batch.faults["expire_at"].get("fraction", 0.8))
        elif early is State.FAILED:
            share = float(batch.faults["fail_at"].get("fraction", 0.5))
        elif limit_s > window_s:
            share = window_s / limit_s
        await self._wait(batch, limit_s * share)
        if batch.cancelled.is_set():
            return State.CANCELLED
        if share < 1.0:
            batch.stopped_at = int(batch.total * share)
            if early is State.FAILED:
                batch.error = BatchRefused("server_error", "The batch failed while it ran.")
            return early
        self._move(batch, State.FINISHING)
        return State.ENDED

    async def _wait(self, batch: Batch, provider_s: float) -> None:
        """Wait, but no longer than until the batch is cancelled."""
        try:
            async with asyncio.timeout(self._clock.real_s(provider_s)):
                await batch.cancelled.wait()
        except TimeoutError:
            return

    async def _finish(self, batch: Batch, ending: State) -> None:
        done = batch.total if batch.stopped_at is None else batch.stopped_at
        if ending is State.CANCELLED and "cancel_reverting_counts" in batch.faults:
            done = 0
        output, errors = self._files.scratch(), self._files.scratch()
        if batch.input is None:
            raise BatchRefused("invalid_request", "The input was never read.")
        job = RowJob(
            batch=batch,
            input=batch.input,
            output=output,
            errors=errors,
            done=done,
            ending=ending,
            created=self._clock.stamp(),
            catalogue=self._catalogue,
            keep_keys=self._invoice.counting,
        )
        loop = asyncio.get_running_loop()
        tally = await loop.run_in_executor(self._threads, run_rows, job, self._rows)
        if ending is State.ENDED:
            await self._wait(batch, self._config.finalizing_s)
            ending = State.CANCELLED if batch.cancelled.is_set() else ending
        if ending is State.CANCELLED:
            await self._clock.sleep(float(batch.faults.get("slow_cancel", {}).get("lag_s", self._config.cancel_s)))
        batch.input.unlink()
        if ending is not State.ENDED and not self._wire.keeps_partial:
            tally = Tally(not_run=batch.total)
            for path in (output, errors):
                path.write_bytes(b"")
        self._invoice.book_batch(batch.id, tally, batch.key)
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
            file_id=self._wire.file_id(batch, word),
        ).id
