"""Working on jobs in the foreground: progress, signals, the end report, the exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightmill.cli import present, views
from nightmill.cli.edge import Edge, error_object
from nightmill.cli.firstrows import canary_lines
from nightmill.cli.keys import unechoed
from nightmill.cli.ladder import step_lines
from nightmill.cli.progress import Mode, Progress
from nightmill.engine import Stop
from nightmill.errors import Conflict, NightmillError, StoreError
from nightmill.mill import Job, Look, Mill, Standing, paused
from nightmill.sinks import Target
from nightmill.types import UNFINISHED, JobState

log = logging.getLogger(__name__)

_SAVING = 0.1  # most of the time that goes into keeping a checkpoint
_LOOK_S = 0.25  # between two looks at a job that is shown


@dataclass(frozen=True, slots=True)
class Order:
    """What to do with jobs and how to show it."""

    mode: Mode = "auto"
    aside: bool = False  # work only on what nobody else works on
    targets: tuple[Target, ...] = ()
    csv_raw: bool = False
    quits: bool = False  # the key q does what Ctrl-C does
    checkpoint: Path | None = None  # of the one job that is worked on
    detach: bool = False  # leave when all that can go out is out
    cancels: bool = False  # a person wants it to end: that it was cancelled is no error

    @property
    def files(self) -> tuple[Target, ...]:
        """All that will be written."""
        return self.targets if self.checkpoint is None else (*self.targets, Target("checkpoint", self.checkpoint))


def work(edge: Edge, mill: Mill, jobs: Sequence[Job], order: Order) -> bool:
    """Work on jobs until they are done or paused, or somebody interrupts; True when somebody did.

    The first Ctrl-C or SIGTERM finishes what is in hand, the second stops at once.
    """
    log.info("working on %s", ", ".join(job.id for job in jobs))
    with Progress(order.mode, sys.stderr, os.environ) as progress, ExitStack() as terminal:
        keys = None
        if progress.mode == "bar":
            keys = terminal.enter_context(unechoed(heard=order.quits))
        session = _Session(edge, mill, [job.id for job in jobs], progress, order, keys)
        edge.beside = progress.note if progress.mode != "none" else None
        try:
            asyncio.run(session.run())
        except BaseException:
            session.save()
            raise
        finally:
            edge.beside = None
            edge.restore_signals()
            session.show()
    return session.interrupted


def look_again(edge: Edge, mill: Mill, job: Job) -> Job:
    """A job that a person comes back to: answers that came after it had ended make it run again."""
    try:
        came = asyncio.run(mill.look_again(job))
    except NightmillError as error:  # what there is can be told all the same
        edge.say(f"could not look for late answers of job {job.id}: {error}")
        return job
    if came:
        edge.say(f"answers came after job {job.id} had ended: it takes them in")
    return mill.job(job.id)


class _Session:
    def __init__(
        self, edge: Edge, mill: Mill, job_ids: list[str], progress: Progress, order: Order, keys: int | None
    ) -> None:
        self._mill, self._ids, self._progress, self._order, self._keys = mill, job_ids, progress, order, keys
        self._follower = mill.follow(job_ids)
        self._stop = Stop()
        self._signals = 0
        self._began = time.monotonic()
        self._before: int | None = None
        self._looks: list[Look] = []
        self._edge = edge
        self._told = {i for i in job_ids if mill.job(i).canary is not None}  # jobs of whose first rows was told
        self._works = not order.aside
        self._main: asyncio.Task[None] | None = None
        path = order.checkpoint
        self._checkpoint = mill.checkpoint(mill.job(job_ids[0]), path) if path is not None else None
        self._save_at = 0.0

    @property
    def interrupted(self) -> bool:
        return self._signals > 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        if self._keys is not None:
            loop.add_reader(self._keys, self._hear, self._keys)
        self.show()  # before a cent is spent: how to stop, and how to come back
        self._main = asyncio.create_task(self._attend())
        is_looked_at = self._progress.mode != "none" or self._checkpoint is not None
        ticker = asyncio.create_task(self._tick()) if is_looked_at else None
        try:
            await self._main
        except asyncio.CancelledError:
            if not self._signals:
                raise
        finally:
            if self._keys is not None:
                loop.remove_reader(self._keys)
            if ticker is not None:
                ticker.cancel()
                await asyncio.gather(ticker, return_exceptions=True)

    async def _attend(self) -> None:
        if self._order.aside:
            await self._mill.attend(self._ids, self._stop, self._take_turn)
        elif self._order.detach:
            await self._mill.hand_over(self._ids, self._stop)
        else:
            await self._mill.run(self._ids, self._stop)

    def _take_turn(self, works: bool) -> None:
        self._works = works

    def _hear(self, keys: int) -> None:
        try:
            typed = os.read(keys, 1024)
        except OSError:  # the terminal is gone
            typed = b""
        if not typed:
            asyncio.get_running_loop().remove_reader(keys)
        elif b"q" in typed.lower():
            self._interrupt()

    def _interrupt(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self._cancel()
            return
        grace = self._mill.settings.timing.stop_grace_s
        hands = sum(look.in_hand for look in self._looks) if self._works else 0
        in_hand = f": {hands} in hand, up to {grace:.0f} s" if hands else ""
        self._progress.note(f"stopping{in_hand}; again to stop now")
        self._stop.gently.set()
        asyncio.get_running_loop().call_later(grace, self._cancel)

    def _cancel(self) -> None:
        if self._main is not None and not self._main.done() and not self._main.cancelling():
            self._main.cancel()

    # -- showing -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            try:
                self._show(await asyncio.to_thread(self._follower.look))
                await self._keep_checkpoint()
            except NightmillError as error:  # the engine meets it too, and ends the run with it
                log.warning("progress: %s", error.logged)
            await asyncio.sleep(_LOOK_S)

    async def _keep_checkpoint(self) -> None:
        """What came since goes into the file; the longer that takes, the less often."""
        began = time.monotonic()
        if self._checkpoint is not None and began >= self._save_at:
            await asyncio.to_thread(self._checkpoint.keep, self._looks[0].now)
            self._save_at = began + (time.monotonic() - began) / _SAVING

    def save(self) -> None:
        """Write the checkpoint as well as it can be when work broke off: what broke is being told."""
        if self._checkpoint is not None:
            try:
                self._checkpoint.finish()
            except NightmillError as error:
                log.warning("checkpoint: %s", error.logged)

    def _show(self, looks: list[Look]) -> None:
        self._looks = looks
        done = sum(look.now.done for look in looks)
        self._before = done if self._before is None else self._before
        elapsed_s = time.monotonic() - self._began
        stops = "q or Ctrl-C" if self._keys is not None else "Ctrl-C"
        view = views.progress_view(looks, before=self._before, elapsed_s=elapsed_s, works=self._works, stops=stops)
        self._progress.update(view)
        for look in looks:
            if look.job.canary is not None and look.job.id not in self._told:
                self._told.add(look.job.id)
                of_job = f"job {look.job.id}" if len(looks) > 1 else ""
                for line in filter(None, (of_job, *canary_lines(look.job))):
                    self._progress.note(present.fitted(line, width=self._edge.width, unicode=self._edge.unicode))

    def show(self) -> None:
        """Show where the jobs stand now."""
        if self._progress.mode == "none":
            return
        try:
            self._show(self._follower.look())
        except NightmillError as error:
            log.warning("progress: %s", error.logged)


def conclude(edge: Edge, mill: Mill, jobs: Sequence[Job], order: Order, *, interrupted: bool) -> int:
    """Write outputs, say how every job ended, answer; the exit code (the first that is not 0)."""
    codes = []
    objects: list[dict[str, Any]] = []
    for job in jobs:
        if len(jobs) > 1:
            name = f" · {job.name}" if job.name else ""
            edge.say(present.fitted(f"job {job.id}{name}", width=edge.width, unicode=edge.unicode))
        try:
            ended = mill.job(job.id)
        except Conflict:
            if len(jobs) == 1:
                raise
            edge.say("  was deleted meanwhile")  # which keeps nobody from hearing of the others
            continue
        code, found = _conclude_one(edge, mill, ended, order, interrupted=interrupted)
        codes.append(code)
        objects.append(found)
    edge.answer(objects[0] if len(jobs) == 1 else {"jobs": objects})
    return next((code for code in codes if code), 0)


def conclude_detached(edge: Edge, mill: Mill, job: Job) -> int:
    """Say what is at the provider and until when to collect it; 0, unless the job is paused."""
    now, there = mill.standing(job), mill.handed(job)
    answer = views.job_object(job, now) | views.handed_object(there)
    error = paused(job) if job.state is JobState.PAUSED else None
    for line in views.handed_lines(job, there):
        edge.say(present.fitted(line, width=edge.width, unicode=edge.unicode))
    if error is not None:
        edge.tell(error)
        answer["error"] = error_object(error)
    edge.answer(answer)
    return error.exit_code if error is not None else 0


def _export(mill: Mill, job: Job, order: Order) -> list[str]:
    """Write the files that were asked for, else bring those up to date that an earlier command wrote; their paths."""
    paths = [str(target.path) for target in order.targets]
    try:
        if order.targets:
            mill.export(job, order.targets, csv_raw=order.csv_raw)
        elif not order.aside:
            paths = [str(path) for path in mill.refresh(job)]
        if order.checkpoint is not None:
            mill.checkpoint(job, order.checkpoint).finish()
    except StoreError as error:  # what was paid for is safe: say so, and how to get at it
        fix = f"{error.fix}; the results are kept: nightmill results {job.id} --out PATH"
        raise StoreError(error.what, why=error.why, fix=fix) from error
    return paths


def _conclude_one(edge: Edge, mill: Mill, job: Job, order: Order, *, interrupted: bool) -> tuple[int, dict[str, Any]]:
    now = mill.standing(job)
    edge.known = views.job_object(job, now, interrupted=interrupted)
    paths = _export(mill, job, order)
    code, error = tell_end(edge, mill, job, now, interrupted=interrupted, wrote=bool(paths), cancels=order.cancels)
    found = views.job_object(job, now, out=paths, interrupted=interrupted) | views.steps_object(mill, job)
    if error is not None:
        found["error"] = error_object(error)
    for path in paths:
        edge.put(path)
    return code, found


def tell_end(
    edge: Edge, mill: Mill, job: Job, now: Standing, *, interrupted: bool, wrote: bool, cancels: bool = False
) -> tuple[int, NightmillError | None]:
    """Say where a job stands when work on it ends; its exit code, and the error told, if it is one."""
    goes_on = interrupted and job.state in UNFINISHED and mill.attended(job)
    code, error = views.ending(job, now, interrupted=interrupted, goes_on=goes_on)
    if cancels and job.state is JobState.CANCELLED:
        code, error = 0, None
    view = views.end_view(mill, job, now, interrupted=interrupted and not goes_on, wrote=wrote)
    edge.say(present.end_report(view, width=edge.width, unicode=edge.unicode))
    for line in step_lines(edge, mill, job):
        edge.say(line)
    for alert in mill.alerts(job):
        edge.say(present.fitted(f"  alert: {alert.text}", width=edge.width, unicode=edge.unicode))
    if error is not None:
        edge.tell(error)
    log.info("job %s is %s: %d of %d rows ok, exit %d", job.id, job.state, now.succeeded, now.rows, code)
    return code, error
