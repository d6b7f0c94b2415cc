"""The engine: claim due shards, act, save what was seen; a level-triggered reconciler.

Nothing in memory matters: a shard that waits a day is a row with a due time. Killed at any moment,
another engine goes on from the ledger. A lease is renewed while its shard is worked on; whoever
loses one stops at the next write.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from nightmill import canary, wire
from nightmill.answers import AnswerCache
from nightmill.collect import Check, Context, Results, RowCounts, settle_late, settle_shard
from nightmill.collect.results import JobFiles, Keeping
from nightmill.errors import Conflict, LeaseLost, ProviderError, StoreError
from nightmill.killpoints import reach
from nightmill.lanes import Desk, Lease, Work, batch, keys, late, live, rescue, tidying
from nightmill.lanes.throttle import Rates, Throttle, tightest
from nightmill.ledger import Counts, Job, Shard, StoredFile, standing_of
from nightmill.plan import CLIMBS, Climb, Compiled, Ladder, bounds
from nightmill.pricing import PriceSheet
from nightmill.providers import BatchProvider, LiveProvider, Provider
from nightmill.store import PACKED, Store
from nightmill.types import LIVE_LANES, Failed, FailureKind, JobState, Lane, Outcome, ShardState, Succeeded

log = logging.getLogger(__name__)

# Shards worked on at once; each live one sends many rows at once.
_HANDS = {Lane.CACHE: 1, Lane.BATCH: 8, Lane.LIVE: 4, Lane.FLEX: 4}
_ENDS = ("succeeded", "failed", "missing", "expired", "cancelled")
_WORTH_PACKING_BYTES = 64 << 10
_IDLE_S = 1.0  # longest sleep between two looks at the ledger while something is due soon
_ORDERS_S = 1.0  # between two looks for jobs that a person paused or cancelled
_BREATH_S = 0.05  # shortest: what is overdue and could not be claimed is in other hands, or ours are full


@dataclass(frozen=True, slots=True)
class JobKit:
    """A job made workable: everything its record only names."""

    job: Job
    provider: Provider
    compiled: Compiled
    work: Work
    list_sheet: PriceSheet
    check: Check | None
    rates: Rates  # of live calls
    salt: bytes
    cache: AnswerCache | None  # where good answers are kept for later jobs
    on_error: str  # continue, stop, threshold:N or threshold:N%
    tidies: bool = False  # files at the provider go when nothing of them can be needed
    rescue: Work | None = None  # of a batch job of which some rows go live: as those see it
    ladder: Ladder = field(default_factory=Ladder)
    lane: Lane = Lane.LIVE  # of what its ladder asks this model
    open_other: Callable[[str], JobKit] | None = None  # the same job, asked of another model of its ladder
    others: dict[str, JobKit] = field(default_factory=dict)  # those that are open

    def at(self, rung: int) -> JobKit:
        """The job as its requests on a rung of its ladder see it: asked of that rung's model, at its prices."""
        step = self.ladder.at(rung)
        if step is None or step.model == self.job.model or self.open_other is None:
            return self
        if step.model not in self.others:
            self.others[step.model] = self.open_other(step.model)
        return self.others[step.model]

    def climb_from(self, shard: Shard, store: Store, rows: StoredFile, *, urgent: bool) -> Climb | None:
        """Where rows of ``shard`` go whose answers do not fit the schema; None: no step of the ladder is left.

        ``urgent``: there is no time for batches.
        """
        rung = shard.rung + 1
        step = self.ladder.at(rung)
        if step is None or self.check is None:
            return None
        kit = self.at(rung)
        hurries = (urgent or shard.lane is Lane.LIVE) and isinstance(kit.provider, LiveProvider)
        lane = Lane.LIVE if hurries else kit.lane
        work = kit.rescue if lane is Lane.LIVE and kit.rescue is not None else kit.work
        limits = bounds(lane, kit.provider.limits, batch_size=self.job.spec["batch_size"], hold_nanos=None,
                        embeddings=False)  # fmt: skip
        return Climb(
            rung, step.is_reask, lane, store, rows, kit.provider, kit.compiled, work.held or work.sheet, limits,
            kit.work.scissors.take_seqs,
        )  # fmt: skip

    @property
    def opened(self) -> list[JobKit]:
        """This and every other that was opened."""
        return [self, *self.others.values()]

    def sent_with(self, provider: Provider) -> JobKit:
        """The same with another of its keys."""
        rescue = None if self.rescue is None else replace(self.rescue, provider=provider)
        return replace(self, provider=provider, work=replace(self.work, provider=provider), rescue=rescue)

    def work_on(self, shard: Shard) -> Work:
        """The job as the lane of ``shard`` sees it."""
        return self.rescue if shard.lane is Lane.LIVE and self.rescue is not None else self.work


@dataclass(slots=True)
class Stop:
    """How an engine is asked to end: ``gently`` finishes what is in hand."""

    gently: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self) -> bool:
        return self.gently.is_set()


@dataclass(slots=True)
class _Failures:
    """Rows of one job that failed for good, as far as this engine knows."""

    most: int  # so many stop the job
    settled: int = 0
    under_way: Counter[str] = field(default_factory=Counter)  # of live shards, by tag

    @property
    def too_many(self) -> bool:
        return self.settled + self.under_way.total() >= self.most


class Engine:
    """Works on jobs until they are done, paused, or the engine is stopped.

    ``kits`` opens a job by id; ``on_change`` is told the job's id after every step.
    """

    def __init__(
        self, desk: Desk, kits: Callable[[str], JobKit], stop: Stop, on_change: Callable[[str], None] | None = None
    ) -> None:
        self._desk, self._open, self._stop = desk, kits, stop
        self._on_change = on_change or (lambda _: None)
        self._kits: dict[str, JobKit] = {}
        self._throttles: dict[tuple[_Quota, Lane], Throttle] = {}
        self._sends: dict[str, _Quota] = {}  # of which quota a job sends live calls, with the key it is at
        self._workers = 1  # that share the limits, this one among them
        self._leases: dict[str, Lease] = {}
        self._finishing: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._failures: dict[str, _Failures] = {}  # of jobs that stop at so many
        self._watches: dict[str, canary.Watch] = {}  # of jobs that were worked on
        self._halted: set[str] = set()  # jobs that were paused or cancelled while worked on
        self._one_by_one = asyncio.Lock()  # whoever takes a batch back for a deadline counts what others took back
        self._shut_out: set[str] = set()  # jobs whose key was refused: with it nothing can be collected either

    async def run(self, job_ids: Iterable[str]) -> None:
        """Work until every job is finished or paused with nothing in flight.

        Raises:
            StoreError: the disk or the ledger cannot be written; everything is as it was.
        """
        ids = list(job_ids)
        heart = asyncio.create_task(self._beat())
        gc.freeze()  # a look through all that is loaded takes as long as hundreds of live calls
        try:
            while not self._stop() and self._failure is None:
                if not await self._round(ids):
                    break
            await self._drain()
        finally:
            gc.unfreeze()
            heart.cancel()
            await self._abandon()
            with contextlib.suppress(StoreError):  # a courtesy: our part of the limits runs out by itself
                await self._desk.book(self._desk.ledger.leave)
        if self._failure is not None:
            raise self._failure

    # -- one round -----------------------------------------------------------------------------

    async def _round(self, ids: list[str]) -> bool:
        """Claim what is due and start on it; False when nothing is left to do."""
        desk, ledger = self._desk, self._desk.ledger
        self._wake.clear()  # first: a task that ends while the ledger is asked must not go unheard
        held = {lease.shard.job_id for lease in self._leases.values()}
        left = [job_id for job_id in ids if job_id in held or not await self._close_job(job_id)]
        if not left:
            return False
        claimed, soonest = 0, None
        outlook = await desk.book(ledger.outlook, left)
        now = ledger.moment()
        for lane, at in outlook.items():
            free = self._free_hands(lane)
            if not free:
                continue  # a step that ends wakes us
            if at <= now:
                lease_s = desk.timing.lease_of(lane)
                shards = await desk.book(ledger.claim_due, lane=lane, limit=free, lease_s=lease_s, job_ids=left)
                for shard in shards:
                    self._start(shard)
                claimed += len(shards)
            soonest = at if soonest is None else min(at, soonest)
        if not claimed:
            await self._sleep(None if soonest is None else soonest - now)
        return True

    def _free_hands(self, lane: Lane) -> int:
        """How many more shards of a lane to claim. Live ones come by twos or more: a claim costs as much as a shard."""
        hands = _HANDS[lane]
        free = hands - sum(lease.shard.lane is lane for lease in self._leases.values())
        return 0 if lane.is_live and free < hands // 2 else max(0, free)

    async def _sleep(self, due_in_s: float | None) -> None:
        """Until something is due, a task ends, or the engine is stopped."""
        wait = _IDLE_S if due_in_s is None else min(_IDLE_S, max(_BREATH_S, due_in_s))
        waiters = [asyncio.create_task(self._wake.wait()), asyncio.create_task(self._stop.gently.wait())]
        _, pending = await asyncio.wait(waiters, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        for waiter in pending:
            waiter.cancel()

    def _start(self, shard: Shard) -> None:
        lease = Lease(shard, shard.lease_until)
        self._leases[shard.tag] = lease
        if not (shard.cancel_requested or shard.job_state is JobState.PAUSED):
            self._halted.discard(shard.job_id)
            self._shut_out.discard(shard.job_id)
        task = asyncio.create_task(self._work_on(lease), name=shard.tag)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_on(self, lease: Lease) -> None:
        shard = lease.shard
        try:
            await self._try_step(self._kit(shard.job_id).at(shard.rung), lease)
        except LeaseLost as lost:
            log.warning("shard %s: %s", shard.tag, lost.logged)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # kept for the caller of run(): a task has nobody else to tell
            is_deleted = False
            try:
                is_deleted = await self._is_deleted(shard.job_id)
            finally:  # also where the ledger cannot be asked
                if not is_deleted:
                    self._fail(error)
        finally:
            if self._leases.get(shard.tag) is lease:  # not where we lost it, and claimed it anew
                del self._leases[shard.tag]
            self._wake.set()
            self._on_change(shard.job_id)

    async def _is_deleted(self, job_id: str) -> bool:
        """Whether another process ended the job and deleted it, and its files with it."""
        is_gone = await self._desk.book(self._desk.ledger.job, job_id) is None
        if is_gone:
            log.warning("job %s was deleted by another process", job_id)
        return is_gone

    def _fail(self, error: BaseException) -> None:
        log.debug("the engine stops", exc_info=error)
        self._failure = self._failure or error
        self._wake.set()

    def _stops(self, job_id: str) -> bool:
        """Whether nothing new of a job may be sent."""
        failures = self._failures.get(job_id)
        too_many = failures is not None and failures.too_many
        too_bad = job_id in self._watches and self._watches[job_id].tripped
        return too_many or too_bad or self._stop() or self._failure is not None or job_id in self._halted

    async def _try_step(self, kit: JobKit, lease: Lease) -> None:
        """A step; trouble that its lane does not know delays this shard, and no other.

        A key that is refused is left alone; where no other is left, the job pauses.
        """
        provider = await self._turn_of(kit, lease.shard)
        if provider is None:
            await self._without_key(kit, lease.shard)
            return
        kit = kit if provider is kit.provider else kit.sent_with(provider)
        try:
            await self._step(kit, lease)
        except ProviderError as error:
            desk, shard = self._desk, lease.shard
            log.warning("shard %s: %s", shard.tag, error.logged)
            if isinstance(error, keys.KeyGone):
                await self._wait_for_key(kit, shard, None, reason=batch.said(error))
            elif batch.is_shut_out(error):
                await self._wait_for_key(kit, shard, batch.said(error), reason=shard.reason)
            else:
                await desk.book(desk.ledger.release, shard, due_in_s=self._retry_s(shard), reason=str(error))

    def _retry_s(self, shard: Shard) -> float:
        return max(self._desk.timing.poll_s, self._desk.backoff_s(shard.waits + 3))

    async def _turn_of(self, kit: JobKit, shard: Shard) -> Provider | None:
        """With which key the shard goes on; None: none is left that it may be sent with."""
        if len(kit.work.keys) == 1:
            return kit.provider
        refused = await self._desk.book(self._desk.ledger.refused_keys, kit.provider.name)
        return keys.choose(kit.work.keys, shard, {key.fingerprint for key in refused})

    async def _without_key(self, kit: JobKit, shard: Shard) -> None:
        """A shard that is to be sent, and the key that it might be sent with is refused.

        Where that is so because of an earlier try, one more look with that key makes it free for another.
        """
        own = keys.owner(kit.work.keys, shard)
        if isinstance(own, BatchProvider) and batch.not_found(shard):
            try:
                await batch.look_once_more(self._desk, own, shard)
            except ProviderError as error:
                log.warning("shard %s: no last look: %s", shard.tag, error.logged)
            else:
                return
        await self._wait_for_key(kit, shard, None, reason="waits for a key that is taken")

    async def _wait_for_key(self, kit: JobKit, shard: Shard, why: str | None, *, reason: str | None) -> None:
        """Give a shard back until its key is taken again; pause the job where nothing of it can go on meanwhile.

        ``why``: what the provider said to the key; None: it is another key that the shard needs.
        """
        desk, pause = self._desk, await keys.why_to_pause(self._desk, kit.work, shard, why)
        if pause is not None:
            self._shut_out.add(shard.job_id)
        await desk.book(desk.ledger.release, shard, due_in_s=self._retry_s(shard), reason=reason)
        if why is not None:
            await keys.remember(desk, kit.work, why)
        if pause is not None:
            await desk.book(desk.ledger.pause, shard.job_id, pause)

    async def _step(self, kit: JobKit, lease: Lease) -> None:
        """One step of one shard, in its lane."""
        desk, shard = self._desk, lease.shard
        if shard.state is ShardState.COLLECTING or shard.lane is Lane.CACHE:
            await self._collect(kit, shard)
        elif shard.state is ShardState.PLANNED and shard.cancel_requested and not batch.not_found(shard):
            await desk.book(desk.ledger.release, shard)
            await desk.book(desk.ledger.drop_planned, shard.job_id)
        elif shard.lane.is_live:
            if not await self._taken_live(kit, shard):
                await self._send(kit, lease)
        else:
            if shard.state is ShardState.PLANNED:
                await self._count_failures(kit)
                await self._watch(kit)
            await self._hand_over(kit, shard)

    async def _taken_live(self, kit: JobKit, shard: Shard) -> bool:
        """Whether a flex shard, under a deadline, went live instead."""
        if shard.lane is not Lane.FLEX or kit.work.deadline is None:
            return False
        async with self._one_by_one:
            return await rescue.taken_live(self._desk, kit.work, shard)

    async def _hand_over(self, kit: JobKit, shard: Shard) -> None:
        """One step of a batch shard; under a deadline its rows may have to go live instead."""
        provider = self._batch_provider(kit)
        if kit.work.deadline is None:
            await batch.step(self._desk, kit.work, provider, shard)
        elif shard.state is ShardState.WAITING:
            async with self._one_by_one:
                await batch.step(self._desk, kit.work, provider, shard)
        else:
            async with self._one_by_one:
                is_live_now = await rescue.taken_live(self._desk, kit.work, shard)
            if not is_live_now:
                await batch.step(self._desk, kit.work, provider, shard)

    async def _send(self, kit: JobKit, lease: Lease) -> None:
        if not isinstance(kit.provider, LiveProvider):
            raise TypeError(f"{kit.provider.name} has no live lane")
        tag, stopping = lease.shard.tag, partial(self._stops, kit.job.id)
        await self._count_failures(kit)
        least = await self._watch(kit)
        failures = self._failures.get(kit.job.id)
        shard = lease.shard
        of_all = not (canary.is_of(kit.job, shard) or shard.is_part or shard.rung)  # these are judged as a whole
        floor = least if of_all else None
        climbs = self._kit(kit.job.id).ladder.at(lease.shard.rung + 1) is not None
        told = partial(self._note_end, kit, failures, floor, tag, climbs)
        ended = None if failures is None and floor is None else told
        try:
            work, throttle = kit.work_on(lease.shard), self._throttle(kit, lease.shard.lane)
            turns = shard.lane is Lane.FLEX and work.deadline is not None
            turn = partial(rescue.waits_for_flex, self._desk, work, shard) if turns else None
            done = await live.run_shard(self._desk, work, kit.provider, throttle, lease, stopping, ended, turn)
            if done is not None:
                await self._collect(kit, done)
        finally:
            if failures is not None:
                failures.under_way.pop(tag, None)

    @staticmethod
    def _batch_provider(kit: JobKit) -> BatchProvider:
        if not isinstance(kit.provider, BatchProvider):
            raise TypeError(f"{kit.provider.name} has no batch lane")
        return kit.provider

    # -- collecting ----------------------------------------------------------------------------

    async def _collect(self, kit: JobKit, shard: Shard) -> None:
        desk = self._desk
        if shard.lane is Lane.BATCH:
            fetched = await batch.bring_back(desk, self._batch_provider(kit), shard)
            if fetched is None:
                return
            shard = fetched
        if shard.settled_before:
            await self._settle_late(shard)
            return
        elsewhere = desk.aside if shard.lane.is_live else asyncio.to_thread  # a batch may take minutes
        stopping = shard.cancel_requested or wire.is_foreign(shard)  # nothing of it goes out again
        urgent = not stopping and await rescue.rest_goes_live(desk, kit.work, shard)
        context = self._context(shard)
        whole = self._kit(shard.job_id)
        if not stopping and whole.ladder.at(shard.rung + 1) is not None:
            rows = await desk.book(desk.ledger.files_of, shard.job_id, wire.ROWS)
            context = replace(context, climb=whole.climb_from(shard, desk.store, rows[0], urgent=urgent))
        collected = await elsewhere(settle_shard, context, shard, stopping=stopping, urgent=urgent)
        if collected.read_again:
            await desk.book(desk.ledger.note_reread, shard, due_in_s=desk.timing.reread_s)
            return
        if failures := self._failures.get(kit.job.id):  # first: what is settled counts in the ledger, and only there
            failures.under_way.pop(shard.tag, None)
        await desk.book(desk.ledger.settle, shard, collected.settlement)
        log.info("shard %s: settled: %s", shard.tag, _told(collected.settlement.counts))
        await self._count_failures(kit)
        await self._watch(kit)

    def _context(self, shard: Shard) -> Context:
        """By whom a shard is answered, and at which prices."""
        kit = self._kit(shard.job_id).at(shard.rung)
        sheet = PriceSheet.from_json(shard.price) if shard.price else kit.work_on(shard).sheet
        return Context(self._desk.store, kit.provider, sheet, kit.list_sheet, kit.check, kit.work.scissors)

    async def _settle_late(self, shard: Shard) -> None:
        """Book what came late of a shard. Those of one job one by one, in order: each counts rows of the others."""
        desk = self._desk
        others = await desk.book(desk.ledger.shards_of, shard.job_id)
        if any(other.seq < shard.seq and other.state is not ShardState.SETTLED for other in others):
            reason = "waits for an earlier shard to settle"
            await desk.book(desk.ledger.release, shard, due_in_s=desk.timing.poll_s, reason=reason)
            return
        settlement = await asyncio.to_thread(settle_late, self._context, shard, others)
        if settlement is None:
            await desk.book(desk.ledger.note_reread, shard, due_in_s=desk.timing.reread_s)
        else:
            await desk.book(desk.ledger.settle_late, shard, settlement)

    async def _count_failures(self, kit: JobKit) -> None:
        """Look at how many rows failed in shards that are settled; stop where too many.

        Whoever settled the last of them may not have lived to stop the job. What a retry sent again counts anew.
        """
        if kit.on_error == "continue":
            return
        book, ledger = self._desk.book, self._desk.ledger
        now = standing_of(await book(ledger.find_job, kit.job.id), await book(ledger.tally, kit.job.id))
        most = allowed_failures(kit.on_error, kit.job.rows)
        failures = self._failures.setdefault(kit.job.id, _Failures(most))
        failures.settled = now.failed + now.missing + now.expired
        await self._mind_errors(kit)

    async def _watch(self, kit: JobKit) -> float | None:
        """Stop the job where its answers are too bad; the share of valid ones that the user asks for, if any."""
        if canary.least_valid(kit.job) is None:
            return None
        seen = self._watches.setdefault(kit.job.id, canary.Watch())
        return await canary.watch(self._desk, kit.job.id, seen)

    async def _note_end(
        self, kit: JobKit, failures: _Failures | None, least: float | None, tag: str, climbs: bool,
        outcome: Outcome | None,
    ) -> None:  # fmt: skip
        """A row of a live shard under way has ended. ``climbs``: an answer that does not fit is not the last of it."""
        kind = outcome.kind if isinstance(outcome, Failed) else None
        if isinstance(outcome, Succeeded) and kit.check and kit.check(outcome.text)[1] is not None:
            kind = FailureKind.INVALID_OUTPUT
        if climbs and kind in CLIMBS:
            return
        bad = outcome is None or kind is not None
        if bad and failures is not None:
            failures.under_way[tag] += 1
            await self._mind_errors(kit)
        if least is not None:
            seen = self._watches[kit.job.id]
            seen.add(valid=not bad, least=least)
            if seen.tripped and not seen.told:
                await self._watch(kit)

    async def _mind_errors(self, kit: JobKit) -> None:
        """Stop the job where the user said how many failed rows are too many."""
        failures = self._failures.get(kit.job.id)
        if failures is not None and failures.too_many:
            await self._desk.book(self._desk.ledger.request_cancel, kit.job.id, stopped="on_error")

    # -- finishing -----------------------------------------------------------------------------

    async def _close_job(self, job_id: str) -> bool:
        """Finish the job if all is settled; True when there is nothing left to do for it here."""
        desk, ledger = self._desk, self._desk.ledger
        job = await desk.book(ledger.job, job_id)
        if job is None or job.state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED):
            return True
        if job.cancel_requested:
            await desk.book(ledger.drop_planned, job_id)
        elif job.canary_last is not None and job.canary is None and job.state is not JobState.PAUSED:
            kit = self._kit(job_id)
            if await canary.mind(desk, job_id, kit.check, lambda rung: kit.at(rung).work):
                self._wake.set()  # it may be paused: nobody sleeps over that
        ripe = await desk.book(ledger.claim_finish, job_id, desk.timing.lease_s)
        if ripe is not None:
            try:
                await self._finish(self._kit(job_id), ripe)
            except (Conflict, LeaseLost, StoreError, OSError):
                if not await self._is_deleted(job_id):
                    raise
            self._wake.set()
            return False  # the next round sees whether it is over, or another worker took it
        if job.state is not JobState.PAUSED or any(lease.shard.job_id == job_id for lease in self._leases.values()):
            return False
        if job_id in self._shut_out:
            return True
        return not job.cancel_requested and not await desk.book(ledger.to_collect, job_id)

    async def _finish(self, kit: JobKit, job: Job) -> None:
        """Build the results of a job that has none of its rows open, and close it, unless something came late."""
        desk = self._desk
        self._finishing[job.id] = job
        try:
            if await self._look_back(kit, job):
                return
            shards = await desk.book(desk.ledger.shards_of, job.id)
            files = await desk.book(desk.ledger.files_of, job.id, wire.ROWS, wire.TWINS, wire.BAD, wire.RESULTS)
            counts, written = await asyncio.to_thread(build_results, desk.store, kit, shards, files, job.epoch)
            packed, superseded = await asyncio.to_thread(pack_wire, desk.store, shards, job.epoch)
        except BaseException:
            await desk.book(desk.ledger.give_back_finish, job)
            raise
        finally:
            del self._finishing[job.id]
        reach("results.written")
        state = end_state(job, counts)
        final = {name: getattr(counts, name) for name in _ENDS}
        if counts.folded_list_nanos:
            final["folded_list_nanos"] = counts.folded_list_nanos
        if await desk.book(
            desk.ledger.finish, job, state, counts=final, results=written, packed=packed, superseded=superseded
        ):
            log.info("job %s: %s: %s", job.id, state, _told(counts))
            for path, _ in packed:  # the ledger names the packed ones now
                desk.store.path(path).unlink(missing_ok=True)
            for each in kit.opened:
                if kit.tidies:
                    await self._tidy(each, [shard for shard in shards if kit.at(shard.rung) is each])
        self._on_change(job.id)

    async def _tidy(self, kit: JobKit, shards: Sequence[Shard]) -> None:
        """A courtesy to the provider's storage: what is left of it is for `gc`."""
        _, failed = await tidying.delete_files(self._desk, kit.work.keys, shards)
        for error in failed:
            log.warning("job %s: files stay at the provider: %s", kit.job.id, error.logged)

    async def _look_back(self, kit: JobKit, job: Job) -> bool:
        """Whether something came after its shard had settled; no job waits for a provider that cannot tell."""
        if job.lane is not Lane.BATCH:
            return False
        shards = await self._desk.book(self._desk.ledger.shards_of, job.id)
        for rung in sorted({shard.rung for shard in shards if shard.lane is Lane.BATCH}):
            if await self._look_back_at(kit.at(rung), job, [shard for shard in shards if shard.rung == rung]):
                return True  # of the other rungs the next look tells
        return False

    async def _look_back_at(self, kit: JobKit, job: Job, shards: Sequence[Shard]) -> bool:
        if not isinstance(kit.provider, BatchProvider):
            return False
        settled_for_s = self._desk.timing.reread_s
        try:
            return await late.reopen(self._desk, kit.work.keys, job, shards, settled_for_s=settled_for_s)
        except (ProviderError, TimeoutError) as error:
            why = error.logged if isinstance(error, ProviderError) else "no answer in time"
            log.warning("job %s: could not look for what came late: %s", job.id, why)
            return False

    # -- leases --------------------------------------------------------------------------------

    async def _beat(self) -> None:
        beat_s, due = min(self._desk.timing.lease_s / 4, 15.0), 0.0
        try:
            while True:
                if (now := self._desk.ledger.moment()) >= due:
                    due = now + beat_s
                    await self._keep_leases()
                    await self._share_limits()
                await self._hear_orders()
                await asyncio.sleep(min(beat_s, _ORDERS_S))
        except StoreError as error:  # without a heart no lease lasts: end as if a step had failed
            self._fail(error)

    async def _keep_leases(self) -> None:
        """Renew what is worked on."""
        desk, timing = self._desk, self._desk.timing
        if held := list(self._leases.values()):
            for lease_s in {timing.lease_of(lease.shard.lane) for lease in held}:
                alike = [lease for lease in held if timing.lease_of(lease.shard.lane) == lease_s]
                until = desk.ledger.moment() + lease_s
                ours = await desk.book(desk.ledger.renew, [lease.shard for lease in alike], lease_s)
                for lease in alike:
                    if lease.shard.tag in ours:
                        lease.until = until
                    else:
                        lease.lost = True
        for job in list(self._finishing.values()):
            await desk.book(desk.ledger.renew_finish, job, timing.lease_s)

    async def _share_limits(self) -> None:
        """Take part in sharing the limits; hear of cool-downs."""
        desk = self._desk
        self._workers = await desk.book(desk.ledger.heartbeat, desk.timing.lease_s)
        for (quota, _), throttle in list(self._throttles.items()):
            throttle.workers = self._sharers(quota)
            throttle.cool_until(await desk.book(desk.ledger.cooling_until, *quota))

    async def _hear_orders(self) -> None:
        """Hear of jobs that were paused, cancelled or deleted: nothing new of them is sent."""
        if known := set(self._kits):
            halted = known - await self._desk.book(self._desk.ledger.sending, known)
            for job_id in halted - self._halted:
                log.info("job %s: nothing new is sent", job_id)
            self._halted |= halted

    def _kit(self, job_id: str) -> JobKit:
        if job_id not in self._kits:
            self._kits[job_id] = self._open(job_id)
        return self._kits[job_id]

    def _throttle(self, kit: JobKit, lane: Lane) -> Throttle:
        """The throttle of the job's quota, at the rates of all jobs that send live calls against it now.

        Each lane has its own, and no more than its part of the limits: calls of one may wait long, those of the other
        are not to wait for them.
        """
        quota = _quota(kit)
        working = {lease.shard.job_id for lease in self._leases.values() if lease.shard.lane.is_live}
        self._sends[kit.job.id] = quota
        rates = tightest([self._kits[each].rates for each in working if self._sends.get(each) == quota] or [kit.rates])
        throttle = self._throttles.get((quota, lane))
        if throttle is None:
            throttle = self._throttles[quota, lane] = Throttle(rates, self._desk.ledger.moment)
        for each in LIVE_LANES:
            if other := self._throttles.get((quota, each)):
                other.workers = self._sharers(quota)
        throttle.keep_to(rates)
        return throttle

    def _sharers(self, quota: _Quota) -> int:
        """How many share a quota: workers, and of each the lanes that calls are made in now."""
        at_work = {lease.shard.lane for lease in self._leases.values() if self._sends.get(lease.shard.job_id) == quota}
        return self._workers * max(1, len(at_work.intersection(LIVE_LANES)))

    async def _drain(self) -> None:
        """Let what is in hand finish; live calls stop by themselves, no new ones begin."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _abandon(self) -> None:
        """Stop at once: tasks are cancelled where they are, as a crash would; nothing is lost by it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for kit in [each for job in self._kits.values() for each in job.opened]:
            for provider in kit.work.keys:
                await provider.close()


def _told(counts: Counts | RowCounts) -> str:
    """How rows ended, for a line of the log."""
    return ", ".join(f"{number} {name}" for name in _ENDS if (number := getattr(counts, name))) or "no row"


_Quota = tuple[str, str]  # account and model


def _quota(kit: JobKit) -> _Quota:
    return kit.provider.account.id, kit.provider.model


def allowed_failures(on_error: str, rows: int) -> int:
    """How many finally failed rows stop the job: ``stop`` = 1, ``threshold:N``, ``threshold:N%``."""
    if on_error == "stop":
        return 1
    text = on_error.partition(":")[2]
    if text.endswith("%"):
        return max(1, -(-rows * int(text[:-1]) // 100))
    return int(text)


def end_state(job: Job, counts: RowCounts) -> JobState:
    """Cancelled when it was asked for; failed when no row was answered; else completed."""
    if job.stopped == "cancelled":
        return JobState.CANCELLED
    return JobState.COMPLETED if counts.succeeded or not job.rows else JobState.FAILED


def results_of(store: Store, kit: JobKit, shards: list[Shard], files: list[Any]) -> Results:
    """A reader of the job's results as its files stand. Raises LeaseLost: the job was deleted."""
    rows = next((f for f in files if f.kind == wire.ROWS), None)
    if rows is None:
        raise LeaseLost(f"job {kit.job.id} was deleted by another process")
    twins, bad = (next((f for f in files if f.kind == kind), None) for kind in (wire.TWINS, wire.BAD))
    sheets = {s.tag: PriceSheet.from_json(s.price) for s in shards if s.price}
    job = JobFiles(rows, twins, bad, shards, sheets, kit.list_sheet)
    others = {shard.rung: kit.at(shard.rung).provider for shard in shards if shard.rung}
    return Results(store, job, kit.provider, kit.compiled, kit.check, others)


def build_results(
    store: Store, kit: JobKit, shards: list[Shard], files: list[Any], n: int
) -> tuple[RowCounts, list[Any]]:
    """Write every row range as Parquet, under rebuild number ``n``, and count how the rows ended.

    ``n`` is the epoch of the right to build them: no two workers ever write to the same file.
    """
    results = results_of(store, kit, shards, files)
    folder = store.job_folder(kit.job.id)
    steps = kit.ladder.kept_steps(kit.job.spec["parameters"].get("schema"))
    keep = None if kit.cache is None else Keeping(kit.cache, kit.salt, steps)
    written = [results.write(folder, first, end, n, keep) for first, end in results.ranges()]
    return results.counts, written


def pack_wire(store: Store, shards: Iterable[Shard], n: int) -> tuple[list[tuple[str, StoredFile]], list[str]]:
    """Compress what came back, now that all is settled: ``(old path, packed file)``, and readings not used.

    ``n`` is the epoch of the right to finish, as in `build_results`.
    """
    packed, superseded = [], []
    for shard in shards:
        used = wire.chosen(shard.files)
        superseded += [f.ref.path for f in shard.files if f.kind in wire.WIRE and f not in used]
        for file in used:
            path = store.path(file.ref.path)
            if not file.ref.path.endswith(PACKED) and path.exists() and path.stat().st_size >= _WORTH_PACKING_BYTES:
                ref = store.pack(file.ref.path, mark=f".{n}", size_bytes=wire.end_of(file))
                packed.append((file.ref.path, replace(file, ref=ref)))
    return packed, superseded
