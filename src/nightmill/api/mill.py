"""`Mill`: what can be done in one home, from Python. The work itself is `nightmill.mill`'s."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from nightmill import mill as house
from nightmill.api.job import Job
from nightmill.api.loops import blocking, gently, in_thread
from nightmill.api.options import Model, Options, check_options, is_temperature, is_whole, run_options
from nightmill.api.rows import Source, taken
from nightmill.api.values import Handed, Progress, Quote, Result, results_in
from nightmill.config import Settings, load_settings
from nightmill.engine import Stop
from nightmill.errors import Conflict, NightmillError, UsageError
from nightmill.mill import Prepared, ending_error
from nightmill.mill.again import Again
from nightmill.providers.function import name_of
from nightmill.types import UNFINISHED, JobState

log = logging.getLogger(__name__)

T = TypeVar("T")
Callback = Callable[[Progress], Awaitable[None] | None]
_Way = Callable[[house.Mill, list[str], Stop], Awaitable[None]]
_LOOK_S = 0.25  # between two looks at a job that is followed
_SHARE = 4  # reading what came takes at most one part in so many


class Mill:
    """One home: its jobs, its budget, its files.

    Methods that work on a job block until it is done; each has an async form with an ``a`` in front.
    Blocking ones may be called anywhere, also where a loop runs (a notebook), and from several
    threads. The first Ctrl-C finishes what is in hand and then raises KeyboardInterrupt, the second
    stops at once; to cancel an async one does the same. Nothing is lost: call it again to go on.

    ``settings``: by default nightmill.toml, .env and the environment of the working folder.

    Raises:
        UsageError: a setting is wrong.
        StoreError: the home cannot be written.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings(Path.cwd(), os.environ)
        self._house = house.Mill(self.settings)

    def close(self) -> None:
        """Give back what is open. Jobs of this mill can still be asked."""
        self._house.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- new jobs ------------------------------------------------------------------------------

    def quote(
        self, source: Source, *, save_requests: str | os.PathLike[str] | None = None, **options: Unpack[Options]
    ) -> Quote:
        """What `run` would cost: the whole plan, and nothing sent, spent or kept. Raises UsageError.

        ``save_requests``: a new or empty folder that keeps what would be sent, a file for each shard, as a provider
        takes it.
        """
        return quoted(self._house, source, save_requests, options)

    def submit(self, source: Source, **options: Unpack[Options]) -> Job:
        """Plan a job and put it on record, or find the unfinished one that the same call began.

        Nothing is sent until somebody works on it: `hand_over`, `watch`, `resume`, `Job.stream`, ``nightmill watch``.
        ``source`` and ``options`` are as for `nightmill.run`.

        Raises:
            UsageError (InputError, TaskError, UnknownModel, UnknownPrice, CannotCarry): nothing was begun.
            OverBudget: it would probably cost more than is free.
            Conflict: an unfinished job contradicts it.
        """
        prepared = self._prepare(source, options)
        try:
            ended = self._house.ended_like(prepared)
            if ended is not None:
                prepared = blocking(self._joined(prepared, ended))
            return Job(self, self._house.submit(prepared).id)
        except BaseException:
            self._house.discard(prepared)
            raise

    async def asubmit(self, source: Source, **options: Unpack[Options]) -> Job:
        """`submit`; the rows are read on a thread."""
        prepared = await in_thread(partial(self._prepare, source, options), self._house.discard)
        try:
            ended = await asyncio.to_thread(self._house.ended_like, prepared)
            if ended is not None:
                prepared = await self._joined(prepared, ended)
            job = await in_thread(partial(self._house.submit, prepared), _keep)
            return Job(self, job.id)
        except BaseException:
            self._house.discard(prepared)
            raise

    def run(self, source: Source, *, progress: Callback | None = None, **options: Unpack[Options]) -> Job:
        """`submit` a job and work on it until it is done; see `nightmill.run`."""
        job = self.submit(source, **options)
        return self._block(self._worked(job, progress))

    async def arun(self, source: Source, *, progress: Callback | None = None, **options: Unpack[Options]) -> Job:
        """`run`, in the caller's loop."""
        return await self._worked(await self.asubmit(source, **options), progress)

    # -- jobs that there are -------------------------------------------------------------------

    def job(self, text: str) -> Job:
        """By id, beginning of an id, name, or ``@last``. Raises Conflict."""
        return Job(self, self._house.job(text).id)

    def jobs(self, *, unfinished: bool = False, limit: int | None = None) -> list[Job]:
        """All jobs, newest first, no more than ``limit``; ``unfinished``: those that can go on."""
        found = self._house.unfinished()[:limit] if unfinished else self._house.jobs(limit=limit)
        return [Job(self, record.id) for record in found]

    def adopt(self, batch: str, *, name: str | None = None) -> Job:
        """Make ``PROVIDER/BATCH_ID``, a batch that was made elsewhere, a job; `watch` waits for it and has its answers.

        Its custom_ids are the keys of the rows, and nothing of it is ever sent again. Twice is the same job.

        Raises:
            UsageError (UnknownPrice), ProviderError: it cannot be taken in, or not now; nothing of it is left.
            Conflict: it is the batch of a job that was sent from here.
        """
        return self._block(self.aadopt(batch, name=name))

    async def aadopt(self, batch: str, *, name: str | None = None) -> Job:
        adopted = await self._house.adopt(batch, name=name)
        return Job(self, adopted.job.id)

    def hand_over(self, job: Job | str) -> Handed:
        """Send what fits of a job in batches, and leave: what is there now, and until when to collect it.

        Raises:
            UsageError: it was not submitted with ``lane="batch"``.
            Paused: it cannot go on.
        """
        return self._block(self.ahand_over(job))

    async def ahand_over(self, job: Job | str) -> Handed:
        found = self._found(job)
        record = self._house.job(found.id)
        if record.lane.is_live:
            raise UsageError(
                f"job {found.id} cannot be handed over", why="live calls end with the process that makes them",
                fix='submit it with lane="batch"',
            )  # fmt: skip
        if record.state in UNFINISHED:
            await self._work(found.id, None, house.Mill.hand_over)
            record = self._house.job(found.id)
        if record.state is JobState.PAUSED or record.state not in UNFINISHED:
            self._check_ending(found.id)
        return Handed.of(self._house.handed(record))

    def watch(self, job: Job | str, *, progress: Callback | None = None) -> Job:
        """Wait for a job, and work on it where nobody else does; answers that came late are taken in.

        Raises:
            Paused, OverBudget, StoppedByErrors, StoppedByAnswers, WasCancelled: it did not come to its natural end.
        """
        return self._block(self.awatch(job, progress=progress))

    async def awatch(self, job: Job | str, *, progress: Callback | None = None) -> Job:
        found = await self._looked_at(job)
        if self._house.job(found.id).state in UNFINISHED:
            await self._work(found.id, progress, house.Mill.attend)
        self._check_ending(found.id)
        return found

    def resume(self, job: Job | str, *, model: Model | None = None, progress: Callback | None = None) -> Job:
        """Go on with an unfinished job, also a paused one, at today's price.

        ``model``: the function that the job was begun with, where this process does not have it yet.

        Raises:
            Conflict: it is not unfinished, or was begun with another function.
            what `watch` raises.
        """
        return self._block(self.aresume(job, model=model, progress=progress))

    async def aresume(self, job: Job | str, *, model: Model | None = None, progress: Callback | None = None) -> Job:
        found = await self._looked_at(job)
        record = self._house.job(found.id)
        if record.state not in UNFINISHED:
            raise Conflict(
                f"job {found.id} is {record.state}", why="nothing of it is left to do", fix="retry it for failed rows"
            )
        if callable(model) and (given := f"python:{name_of(model)}") != record.model:
            raise Conflict(
                f"job {found.id} was begun with {record.model}", why=f"this is {given}", fix="give the same function"
            )
        if record.state is JobState.PAUSED:
            self._house.resume(record)
        return await self._worked(found, progress)

    def retry(
        self,
        job: Job | str,
        *,
        max_output: int | None = None,
        temperature: float | None = None,
        progress: Callback | None = None,
    ) -> Job:
        """Send the failed rows of a finished job again, with a fresh three attempts; the others stay.

        Raises:
            Conflict: it is unfinished, was adopted, or its answers as they came were removed.
            what `watch` raises.
        """
        return self._block(self.aretry(job, max_output=max_output, temperature=temperature, progress=progress))

    async def aretry(
        self,
        job: Job | str,
        *,
        max_output: int | None = None,
        temperature: float | None = None,
        progress: Callback | None = None,
    ) -> Job:
        _check("max_output", max_output, "a whole number, 1 or more", is_whole)
        _check("temperature", temperature, "a number, 0 or above", is_temperature)
        found = await self._looked_at(job)
        cut = partial(self._cut_again, found.id, max_output, temperature)
        again = await in_thread(cut, self._house.discard_retry)
        return await self._worked(found, progress) if again.rows else found

    def cancel(self, job: Job | str) -> Job:
        """End a job: nothing more is sent, open batches are cancelled, what they had done is kept."""
        return self._block(self.acancel(job))

    async def acancel(self, job: Job | str) -> Job:
        found = self._found(job)
        record = self._house.job(found.id)
        if record.state in UNFINISHED:
            self._house.cancel(record)
            if not self._house.attended(record):
                await self._work(found.id, None, house.Mill.run)
        return found

    def pause(self, job: Job | str) -> Job:
        """Send nothing new of a job until it is resumed; whoever works on it brings in what is under way."""
        found = self._found(job)
        self._house.pause(self._house.job(found.id))
        return found

    def results(self, job: Job | str) -> list[Result]:
        """The results there are, in input order; `Job.results` reads them one by one."""
        return list(self._found(job).results())

    # -- work ----------------------------------------------------------------------------------

    def _block(self, work: Coroutine[Any, Any, T]) -> T:
        return blocking(work)

    def _found(self, job: Job | str) -> Job:
        return job if isinstance(job, Job) else self.job(job)

    def _prepare(self, source: Source, options: Options) -> Prepared:
        check_options(options)
        with taken(source, options.get("limit")) as rows:
            return self._house.prepare(run_options(options, rows.inputs, rows.given))

    async def _looked_at(self, job: Job | str) -> Job:
        """A job that somebody comes back to: answers that came after it had ended make it run again."""
        found = self._found(job)
        try:
            await self._house.look_again(self._house.job(found.id))
        except NightmillError as error:  # what there is can be told all the same
            log.warning("could not look for late answers of job %s: %s", found.id, error.logged)
        return found

    async def _joined(self, prepared: Prepared, ended: house.Job) -> Prepared:
        """The ended job that the same call began goes on where answers came since: they are paid already."""
        await self._looked_at(ended.id)
        again = self._house.job(ended.id)
        return replace(prepared, resumes=again) if again.state in UNFINISHED else prepared

    def _cut_again(self, job_id: str, max_output: int | None, temperature: float | None) -> Again:
        record = self._house.job(job_id)
        again = self._house.prepare_retry(record, max_output=max_output, temperature=temperature)
        try:
            self._house.submit_retry(again)
        except BaseException:
            self._house.discard_retry(again)
            raise
        return again

    async def _worked(self, job: Job, progress: Callback | None) -> Job:
        await self._work(job.id, progress, house.Mill.run)
        self._check_ending(job.id)
        return job

    def _check_ending(self, job_id: str) -> None:
        record = self._house.job(job_id)
        error = ending_error(record, self._house.standing(record))
        if error is not None:
            raise error

    async def _work(self, job_id: str, progress: Callback | None, way: _Way) -> None:
        """Work on a job for as long as ``way`` does, as a worker of its own; cancelled, first gently."""
        worker = await in_thread(partial(house.Mill, self.settings), house.Mill.close)
        try:
            await gently(partial(_work_and_tell, worker, job_id, progress, way), self.settings.timing.stop_grace_s)
        finally:
            worker.close()

    async def _stream(self, job_id: str) -> AsyncIterator[Result]:
        """See `Job.stream`."""
        arrivals = self._house.arrivals(self._house.job(job_id))
        work = asyncio.create_task(self._followed(job_id))
        try:
            while True:
                is_last, began = work.done(), time.monotonic()
                batches = await asyncio.to_thread(arrivals.look)
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    for result in results_in([batch]):
                        yield result
                if is_last:
                    break
                await asyncio.wait([work], timeout=max(_LOOK_S, _SHARE * (time.monotonic() - began)))
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _followed(self, job_id: str) -> None:
        await self.awatch(job_id)


def quoted(mill: house.Mill, source: Source, save_requests: str | os.PathLike[str] | None, options: Options) -> Quote:
    """See `Mill.quote`."""
    check_options(options)
    kept = None if save_requests is None else Path(save_requests)
    with taken(source, options.get("limit")) as rows:
        prepared = mill.rehearse(run_options(options, rows.inputs, rows.given), kept)
        return Quote.of(prepared, mill.compare(prepared))


async def _work_and_tell(worker: house.Mill, job_id: str, progress: Callback | None, way: _Way, stop: Stop) -> None:
    """Work; a callback that raises stops the work like a first Ctrl-C, and what it raised is raised."""
    work = way(worker, [job_id], stop)
    if progress is None:
        await work
        return
    task, follower, last = asyncio.ensure_future(work), worker.follow([job_id]), None
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK_S)
            told = await asyncio.to_thread(_progress, follower)
            if told is not None and told != last:
                answer = progress(told)
                if inspect.isawaitable(answer):
                    await answer
                last = told
    except asyncio.CancelledError:
        task.cancel()
        raise
    except BaseException:
        stop.gently.set()
        raise
    finally:
        await asyncio.gather(task, return_exceptions=True)
    task.result()


def _progress(follower: house.Follower) -> Progress | None:
    try:
        return Progress.of(follower.look()[0])
    except NightmillError as error:  # the worker meets it too, and ends with it
        log.warning("progress: %s", error.logged)
        return None


def _check(name: str, value: Any, words: str, fits: Callable[[Any], bool]) -> None:
    if value is not None and not fits(value):
        raise UsageError(f"{name} = {value!r}", why=f"it must be {words}", fix="correct it, or leave it out")


def _keep(_job: house.Job) -> None:
    """A job on record stays there."""
