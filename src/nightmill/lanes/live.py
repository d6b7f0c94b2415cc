"""The live lane, and flex: one call a request, each marked on disk before it leaves, each answer kept.

A shard is resumed row by row. A journal has one writer ever (its name holds the epoch); a worker
that takes a shard over reads all older journals first, and books every send that may have been
billed before it sends anything again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from nightmill import wire
from nightmill.errors import (
    LeaseLost,
    Limited,
    NeverSent,
    NightmillError,
    ProviderError,
    Refused,
    StoreError,
    Uncertain,
    UsageError,
)
from nightmill.killpoints import reach
from nightmill.lanes import Desk, Lease, Work, handle_denied, hold_nanos, keys, over_budget, price_rose, uploading
from nightmill.lanes.throttle import Throttle
from nightmill.ledger import Denied, Shard, StoredFile
from nightmill.pricing import PriceSheet
from nightmill.providers import FlexProvider, JoiningProvider, LiveProvider, LiveReply, UploadsMedia
from nightmill.store import PACKED
from nightmill.types import ATTEMPTS, RETRYABLE, Failed, FileRef, Lane, Outcome, ShardState

log = logging.getLogger(__name__)

UNREACHABLE_TRIES = 8  # rounds in a row, of all calls of a shard together, before the job pauses
_REFUSED_TOLD = 8  # times in a row that one request found no room, before a person hears of it
_LOOK_UP_S = 0.2  # between two looks whether to stop
_CALL_BYTES = 256 * 1024  # of several rows in one call; servers bound its tokens, and a token is a byte at least
_RETRY_STATUSES = frozenset({0, 408, 409})

Ended = Callable[[Outcome | None], Awaitable[None]]  # how a row ended; None: nobody answered it
Turn = Callable[[int], Awaitable[float]]  # for how many seconds more rows are sent, of which so many are open


class _Pause(Exception):
    """Nothing more of this job can be sent now."""

    def __init__(self, reason: str, stopped: str | None = None, *, key: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.stopped = reason, stopped
        self.key = key  # it is about the key: with another one calls may pass


@dataclass(slots=True)
class _Row:
    index: int
    custom_id: str
    body: bytes
    attempts: int = 0  # completed exchanges so far
    done: bool = False
    rest_s: float = 0.0  # before the next try; it goes by itself then
    refused: int = 0  # times in a row, for want of room in a tier
    most: int = 1  # rows it may go with in one call


@dataclass(slots=True)
class _Past:
    """What the journals of earlier epochs say."""

    attempts: dict[int, int] = field(default_factory=dict)
    done: dict[int, Outcome] = field(default_factory=dict)
    doubtful: list[int] = field(default_factory=list)  # one entry a send that may have been billed


class Journal:
    """Appends lines, past every buffer of ours: what was written survives the process.

    Raises:
        StoreError: the disk does not take it. Then nothing of it is in the file, and what was kept for it still is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._kept = b""
        with self._explained():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def keep(self, line: bytes) -> None:
        """Write ``line`` together with the next one: the caller writes, or calls `flush`, before it awaits anything."""
        self._kept += line

    def write(self, line: bytes) -> None:
        data = self._kept + line
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            with self._explained():
                os.ftruncate(self._fd, self._size)
                raise
        self._size += len(data)
        if self._kept:
            self._kept = b""
            reach("live.journaled")

    def flush(self) -> None:
        """Write what is kept."""
        if self._kept:
            self.write(b"")

    def end(self) -> None:
        """Write what is kept, sync, and close."""
        try:
            self.flush()
            with self._explained():
                os.fsync(self._fd)
        finally:
            os.close(self._fd)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {self._path}",
                why=error.strerror or str(error),
                fix="free some space, then run the same command again: it goes on with the rows that have no answer",
            ) from error


async def run_shard(
    desk: Desk, work: Work, provider: LiveProvider, throttle: Throttle, lease: Lease, stopping: Callable[[], bool],
    ended: Ended | None = None, turn: Turn | None = None,
) -> Shard | None:  # fmt: skip
    """Send every row of a live shard that has no answer; the shard, ready to be accounted for.

    None: it is not done; the ledger says when to come back. ``stopping`` turns true when nothing
    new may be sent. ``ended`` is told of every row that will not be sent again, before the next one is.
    ``turn`` is asked, with the number of rows without an answer, for how many seconds more are sent; from 0 on the
    shard is done, and what is open has to go another way.

    Raises:
        LeaseLost: another worker has the shard.
    """
    shard = lease.shard
    path = f"{desk.store.job_folder(shard.job_id)}/wire/{shard.tag}.{shard.epoch}.0.jsonl"
    begins = shard.state is ShardState.PLANNED
    n = 1 + max((s.n for s in shard.submissions), default=shard.submission) if begins else shard.submission
    journal_file = StoredFile(FileRef(path, 0, ""), wire.JOURNAL, shard.tag, n, shard.epoch)
    if shard.state is ShardState.PLANNED:
        if shard.cancel_requested or stopping():
            await desk.book(desk.ledger.release, shard)
            return None
        ready = await _intend(desk, work, provider, shard, journal_file)
        if ready is None:
            return None
        shard = lease.shard = ready
    else:
        await desk.aside(desk.store.verify, shard.file)
        account = provider.account.id  # it may be another key's turn now
        shard = lease.shard = await desk.book(desk.ledger.open_journal, shard, journal_file, account=account)
    if shard.restored:
        shard = lease.shard = await _with_journals_on_disk(desk, shard, n)
    past = _Past() if begins and not shard.restored else await asyncio.to_thread(_read_past, desk, provider, shard)
    return await _Sender(desk, work, provider, throttle, lease, stopping, past, ended, turn).run(path)


async def _with_journals_on_disk(desk: Desk, shard: Shard, n: int) -> Shard:
    """The shard with the journals that were begun after the backup of its ledger, as part of submission ``n``."""

    def unknown() -> list[StoredFile]:
        known = {file.ref.path.removesuffix(PACKED) for file in shard.files}
        folder = desk.store.path(f"{desk.store.job_folder(shard.job_id)}/wire")
        found: dict[str, StoredFile] = {}
        for path in sorted(folder.glob(f"{shard.tag}.*.0.jsonl*")):  # the plain one before a packed one
            name, epoch = path.name.partition(".jsonl")[0], int(path.name.removeprefix(f"{shard.tag}.").split(".")[0])
            ref = FileRef(f"{desk.store.job_folder(shard.job_id)}/wire/{path.name}", path.stat().st_size, "")
            if epoch < shard.epoch and not any(k.endswith(f"/{name}.jsonl") for k in known):
                found.setdefault(name, StoredFile(ref, wire.JOURNAL, shard.tag, n, epoch))
        return list(found.values())

    strays = await asyncio.to_thread(unknown)
    for stray in strays:
        shard = await desk.book(desk.ledger.open_journal, shard, stray)
    return shard


async def _intend(desk: Desk, work: Work, provider: LiveProvider, shard: Shard, journal: StoredFile) -> Shard | None:
    if await price_rose(desk, work, shard):
        return None
    await desk.aside(desk.store.verify, shard.file)
    ready = await desk.book(
        desk.ledger.note_intent, shard, to=ShardState.SENDING, account=provider.account.id, model=provider.model,
        price=work.sheet.to_json(), hold_nanos=hold_nanos(work, shard),
        scopes=desk.scopes(work.job_id), intent_at=desk.wall(), journal=journal,
    )  # fmt: skip
    if isinstance(ready, Denied):
        await handle_denied(desk, work, shard, ready)
        return None
    return ready


def _read_past(desk: Desk, provider: LiveProvider, shard: Shard) -> _Past:
    past = _Past()
    for file in wire.chosen(shard.files):
        pending: set[str] = set()
        lost: list[str] = []
        for line in wire.lines(desk.store, file):
            if wire.read_mark(line, pending, lost):
                continue
            try:
                answer = provider.decode(line)
            except ValueError:
                continue
            pending.discard(answer.custom_id)
            index = int(answer.custom_id.rpartition("-")[2])
            past.attempts[index] = past.attempts.get(index, 0) + 1
            if not (isinstance(answer.outcome, Failed) and answer.outcome.kind in RETRYABLE):
                past.done.setdefault(index, answer.outcome)
        for custom_id in (*pending, *lost):
            index = int(custom_id.rpartition("-")[2])
            past.doubtful.append(index)
            past.attempts[index] = past.attempts.get(index, 0) + 1
    return past


def _again(status: int) -> bool:
    """Whether an exchange that ended so is worth another. 429 never gets here: it is no exchange."""
    return status >= 500 or status in _RETRY_STATUSES


def _may_have_run(provider: LiveProvider, reply: LiveReply) -> bool:
    """Some gateway spoke in place of the provider, in JSON or not: the call may be billed."""
    gateway_gave_up = reply.status < 300 or _again(reply.status)
    return gateway_gave_up and not provider.is_own(reply)


class _Sender:
    """Sends the open rows of one shard."""

    def __init__(
        self, desk: Desk, work: Work, provider: LiveProvider, throttle: Throttle, lease: Lease,
        stopping: Callable[[], bool], past: _Past, ended: Ended | None, turn: Turn | None,
    ) -> None:  # fmt: skip
        self._desk, self._work, self._provider, self._throttle = desk, work, provider, throttle
        self._lease, self._stopping, self._past, self._ended = lease, stopping, past, ended
        self._turn, self._has_turned = turn, False
        self._shard = lease.shard
        self._tries = ATTEMPTS + 1 - self._shard.attempt  # a batch may have had some before
        self._cap = self._shard.cap_tokens // self._shard.count
        self._tokens = -(-self._shard.input_tokens // self._shard.count)  # about, for the token rate
        self._request_s, self._lease_s = desk.timing.call_s(self._shard.lane), desk.timing.lease_of(self._shard.lane)
        self._need_s = self._request_s + desk.timing.margin_s
        self._flex = provider if isinstance(provider, FlexProvider) and self._shard.lane is Lane.FLEX else None
        self._uploader = provider if isinstance(provider, UploadsMedia) else None
        self._renewing = asyncio.Lock()
        current = self._shard.current
        self._covered = current.hold_nanos + current.unproven_nanos  # so much of what the shard may cost
        self._joining = provider if work.together > 1 and isinstance(provider, JoiningProvider) else None
        self._rows: list[_Row] = []  # all of the shard
        self._under_way = 0  # calls
        self._calls_ended = 0
        self._unreachable = 0
        self._quiet_until = 0.0  # after a round that reached nobody
        self._aside = 0  # rows whose try failed, put aside for the next one
        self._trouble: _Pause | NightmillError | None = None  # the first; nothing more is sent then
        self._idle: set[asyncio.Task[None]] = set()  # hands that wait for their turn

    async def run(self, path: str) -> Shard | None:
        rows = self._rows = await self._desk.aside(self._open_rows)
        journal = Journal(self._desk.store.path(path))
        try:
            await self._book_past()
            await self._tell_past(rows)
            await self._send_all(rows, journal)
        except _Pause as pause:
            self._trouble = pause
        finally:
            await self._desk.aside(journal.end)
        reach("live.synced")
        if isinstance(self._trouble, NightmillError):
            if isinstance(self._trouble, UsageError):  # a model that cannot be loaded
                await self._let_go(rows, str(self._trouble))
            raise self._trouble
        return await self._leave(path, rows, self._trouble)

    def _seal(self, own: str) -> list[FileRef]:
        """All journals as they are now. A worker that lost the shard while it stood still may yet write to its own."""
        paths = [*(f.ref.path for f in self._shard.files if f.kind == wire.JOURNAL), own]
        return [self._desk.store.seal(path) for path in dict.fromkeys(paths) if self._desk.store.path(path).exists()]

    async def _leave(self, path: str, rows: list[_Row], pause: _Pause | None) -> Shard | None:
        desk, shard = self._desk, self._shard
        if pause is not None:
            reason: str | None = pause.reason
            if pause.key:
                reason = await keys.none_left(desk, self._work, pause.reason)
                await keys.remember(desk, self._work, pause.reason)
            if reason is not None:
                await desk.book(desk.ledger.pause, shard.job_id, reason, stopped=pause.stopped)
        if all(row.done for row in rows) or (self._has_turned and pause is None and not self._stopping()):
            return await desk.book(desk.ledger.note_sent_all, shard, await desk.aside(self._seal, path))
        await self._let_go(rows, pause.reason if pause else None)
        return None

    async def _let_go(self, rows: list[_Row], reason: str | None) -> None:
        """Give the shard back unfinished; with a reason to wait, nothing stays held if nothing can have run."""
        ledger, shard = self._desk.ledger, self._shard
        if reason is not None and not any(row.attempts for row in rows):
            await self._desk.book(ledger.note_not_sent, shard, shard.submission, due_in_s=0.0, reason=reason)
        else:
            await self._desk.book(ledger.release, shard, reason=reason)

    def _open_rows(self) -> list[_Row]:
        past, shard = self._past, self._shard
        most = self._work.together if self._joining else 1
        rows = []
        for index, line in wire.shard_lines(self._desk.store, shard):
            tried = past.attempts.get(index, 0)
            done = index in past.done or tried >= self._tries or shard.cancel_requested
            rows.append(_Row(index, f"{shard.tag}-{index}", wire.body_of(line), tried, done, most=most))
        return rows

    async def _book_past(self) -> None:
        """Sends of earlier epochs that may have been billed: book them, and hold as much again."""
        if not self._past.doubtful or self._shard.cancel_requested:
            return
        sizes = {
            index: self._provider.weigh(wire.body_of(line)).most
            for index, line in wire.shard_lines(self._desk.store, self._shard)
        }
        worst = sum(self._worst(sizes[index]) for index in self._past.doubtful if index in sizes)
        await self._book(worst - self._shard.current.unproven_nanos)

    async def _tell_past(self, rows: list[_Row]) -> None:
        if self._ended is not None:
            for row in rows:
                if row.index in self._past.done or row.attempts >= self._tries:
                    await self._ended(self._past.done.get(row.index))

    async def _book(self, nanos: int) -> None:
        if nanos <= 0:
            return
        while denied := await self._desk.book(self._desk.ledger.book_resend, self._shard, nanos):
            others, ended = self._under_way, self._calls_ended  # before looking at what was answered, not after
            if await self._desk.aside(self._needed, [row for row in self._rows if not row.done]) <= self._covered:
                return
            if not others:
                raise _Pause(over_budget(denied), "budget")
            with self._idling():
                while self._calls_ended == ended:  # noqa: ASYNC110 (a wait for money may end with any call)
                    await asyncio.sleep(_LOOK_UP_S)
        self._covered += nanos

    def _needed(self, still_open: list[_Row]) -> int:
        """The most this shard costs if each open row is sent once more: answers mostly cost less than was held."""
        shard, worst = self._shard, 0
        sheet = PriceSheet.from_json(shard.price) if shard.price else self._work.sheet
        sizes = {
            index: self._provider.weigh(wire.body_of(line)).most
            for index, line in wire.shard_lines(self._desk.store, shard)
        }
        files = wire.chosen(shard.files)
        doubtful: list[str] = []
        for file in files:
            pending: set[str] = set()
            for line in wire.lines(self._desk.store, file):
                if wire.read_mark(line, pending, doubtful):
                    continue
                try:
                    answer = self._provider.decode(line)
                except ValueError:
                    continue
                pending.discard(answer.custom_id)
                usage = answer.outcome.usage
                if usage is None or usage.estimated:
                    doubtful.append(answer.custom_id)
                else:
                    worst += sheet.cost(usage)
            if file is not files[-1]:  # what is under way now are open rows
                doubtful.extend(pending)
        indexes = [*(int(name.rpartition("-")[2]) for name in doubtful), *(row.index for row in still_open)]
        return worst + sum(sheet.worst(sizes[index], 1, self._cap) for index in indexes if index in sizes)

    def _worst(self, weight: int) -> int:
        return self._work.sheet.worst(weight, 1, self._cap)

    async def _send_all(self, rows: list[_Row], journal: Journal) -> None:
        still_open = [row for row in rows if not row.done]
        todo = _groups(still_open) if self._joining else ([row] for row in still_open)
        hands = min(len(still_open), self._throttle.most)
        await self._mind_turn()
        watches = [asyncio.create_task(each) for each in (self._dismiss_idle(), self._watch_turn())]
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(hands):
                    group.create_task(self._send_some(todo, journal, group))
        finally:
            for watch in watches:
                watch.cancel()
            ended = await asyncio.gather(*watches, return_exceptions=True)
        for trouble in ended:
            if isinstance(trouble, Exception):  # a mistake of ours, which must not pass unseen
                raise trouble

    async def _mind_turn(self) -> float:
        """Ask for how long more is sent; infinity where nobody has to say."""
        if self._turn is None:
            return math.inf
        more_s = await self._turn(sum(not row.done for row in self._rows))
        self._has_turned = more_s <= 0
        return more_s

    async def _watch_turn(self) -> None:
        try:
            while not self._has_turned:
                more_s = await self._mind_turn()
                if math.isinf(more_s):
                    return
                await asyncio.sleep(more_s)
        except NightmillError as trouble:  # nobody would turn in time any more
            self._trouble = self._trouble or trouble

    @property
    def _ends(self) -> bool:
        """Whether nothing new may be sent."""
        return self._stopping() or self._trouble is not None or self._has_turned

    async def _dismiss_idle(self) -> None:
        """Once nothing more may be sent, only calls under way are waited for."""
        while True:
            if self._ends:
                for task in self._idle:
                    task.cancel()
            await asyncio.sleep(_LOOK_UP_S)

    @contextmanager
    def _idling(self) -> Iterator[None]:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._idle.add(task)
        try:
            yield
        finally:
            self._idle.discard(task)

    async def _send_some(
        self, todo: Iterator[list[_Row]], journal: Journal, group: asyncio.TaskGroup | None = None
    ) -> None:
        """Make one call after the other. Trouble ends every hand, but never a call under way: that is paid for."""
        try:
            await self._send_each(todo, journal, group)
            journal.flush()
        except (_Pause, NightmillError) as trouble:
            self._trouble = self._trouble or trouble

    async def _send_each(self, todo: Iterator[list[_Row]], journal: Journal, group: asyncio.TaskGroup | None) -> None:
        """``todo``: open rows that go together. Those of a call that was of no use go in smaller ones."""
        throttle = self._throttle
        for together in todo:
            rows = together
            while rows:
                if len(rows) > 1 and any(row.most < len(rows) for row in rows):
                    await self._send_each(_groups(rows), journal, group)
                    break
                if rows[0].rest_s:
                    if group is not None and self._aside < throttle.window:
                        self._aside += 1
                        group.create_task(self._send_later(rows[0], journal))
                        break
                    await self._rest(rows[0])  # so many failed that others would fail as well
                tokens = (self._tokens + self._cap) * len(rows)
                if not throttle.try_take(tokens):
                    journal.flush()
                    with self._idling():
                        await throttle.take(tokens)
                answered = False
                try:
                    if self._ends:
                        return
                    answered = await self._exchange(rows, journal)
                finally:
                    throttle.give_back(answered=answered)
                rows = [row for row in rows if not row.done]

    async def _send_later(self, row: _Row, journal: Journal) -> None:
        """Send one row after its rest, while the hand that met its failure goes on with others."""
        await self._rest(row)
        await self._send_some(iter(([row],)), journal)
        self._aside -= 1

    async def _rest(self, row: _Row) -> None:
        rest_s, row.rest_s = row.rest_s, 0.0
        with self._idling():
            await asyncio.sleep(rest_s)

    def _lease_is_long_enough(self, now: float) -> bool:
        return not self._lease.lost and self._lease.until - now > self._need_s

    async def _keep_lease(self) -> None:
        """Renew, now, a lease that is too short for another call. Raises LeaseLost."""
        async with self._renewing:
            if self._lease_is_long_enough(self._desk.ledger.moment()):
                return
            desk = self._desk
            until = desk.ledger.moment() + self._lease_s
            if self._lease.lost or not await desk.book(desk.ledger.renew, [self._shard], self._lease_s):
                raise LeaseLost(f"shard {self._shard.tag} is another worker's now")
            self._lease.until = until

    async def _exchange(self, rows: list[_Row], journal: Journal) -> bool:
        """One call, each of its rows marked first. True when the provider answered it."""
        if self._uploader and (not await self._provided(self._uploader, rows, journal) or self._ends):
            return False
        journal.write(_marks(wire.sent_mark, rows))
        reach("live.marked")
        began = self._desk.ledger.moment()
        if not self._lease_is_long_enough(began):  # whoever has the shard now may have read past the mark
            journal.write(_marks(wire.unsent_mark, rows))
            await self._keep_lease()
            return False
        try:
            reply = await self._call(rows)
        except NeverSent as error:
            journal.write(_marks(wire.unsent_mark, rows))
            await self._not_reached(error, began)
            return False
        except Uncertain as error:
            journal.write(_marks(wire.lost_mark, rows))
            if self._desk.ledger.moment() - began >= self._request_s:
                self._throttle.late(began)
            await self._lost(rows, error)
            return False
        except UsageError:  # of a model that cannot be loaded: nothing was asked
            journal.write(_marks(wire.unsent_mark, rows))
            raise
        return await self._answered(rows, reply, began, journal)

    async def _provided(self, uploader: UploadsMedia, rows: list[_Row], journal: Journal) -> bool:
        """Whether all is there that the requests only name; where it is refused, so are they."""
        began = self._desk.ledger.moment()
        try:
            await uploading.for_requests(self._desk, uploader, self._shard.job_id, [row.body for row in rows])
        except (NeverSent, Limited) as error:
            await self._not_reached(error, began)
            return False
        except Refused as error:
            said = "; ".join(filter(None, (error.what, error.why, error.fix)))
            if error.scope == "account":
                raise _Pause(said, key=True) from error
            for row in rows:
                await self._keep(row, LiveReply(400, self._provider.error_body(said)), 0.0, journal)
            return False
        return True

    async def _call(self, rows: list[_Row]) -> LiveReply:
        url, body = self._work.url, rows[0].body
        if len(rows) > 1 and self._joining is not None:
            url, body = self._joining.joined(url, [row.body for row in rows])
        if self._flex is not None:
            body = self._flex.in_flex(url, body)
        self._under_way += 1
        try:
            return await self._provider.send(url, body, timeout_s=self._request_s)
        finally:
            self._under_way -= 1
            self._calls_ended += 1

    async def _answered(self, rows: list[_Row], reply: LiveReply, began: float, journal: Journal) -> bool:
        self._unreachable, took_s = 0, self._desk.ledger.moment() - began
        if reply.hint is not None:
            self._throttle.learn(reply.hint)
        if reply.stop:  # quota or key: it was not processed, and nothing else will be
            journal.write(_marks(wire.unsent_mark, rows))
            raise _Pause(self._explain(reply), key=reply.shuts_key)
        if self._flex is not None and self._flex.has_no_room(reply):
            journal.write(_marks(wire.unsent_mark, rows))
            await self._no_room(rows, began)
            return False
        if reply.status == 429:
            journal.write(_marks(wire.unsent_mark, rows))
            await self._cool(reply)
            return False
        if len(rows) > 1:
            return await self._answered_together(rows, reply, took_s, journal)
        if _may_have_run(self._provider, reply):
            await self._no_answer(rows, reply, journal)
            return False
        return await self._keep(rows[0], reply, took_s, journal)

    async def _answered_together(self, rows: list[_Row], reply: LiveReply, took_s: float, journal: Journal) -> bool:
        if 400 <= reply.status < 500 and not _again(reply.status):
            journal.write(_marks(wire.unsent_mark, rows))  # one of them was refused, and nothing done for the others
            for row in rows:
                row.most = (len(rows) + 1) // 2
            return True
        parts = self._parted(rows, reply)
        if any(_may_have_run(self._provider, part) for part in parts):
            await self._no_answer(rows, reply, journal)
            return False
        kept = [await self._keep(row, part, took_s, journal) for row, part in zip(rows, parts, strict=True)]
        return all(kept)

    def _parted(self, rows: list[_Row], reply: LiveReply) -> list[LiveReply]:
        """What each row was answered: all the same where they failed together, nothing where it cannot be told."""
        if self._joining is None or not 200 <= reply.status < 300:
            return [reply] * len(rows)
        parts = self._joining.parted(reply, [len(row.body) for row in rows])
        return parts or [replace(reply, body=b"")] * len(rows)

    async def _keep(self, row: _Row, reply: LiveReply, took_s: float, journal: Journal) -> bool:
        """One row's answer. True when the provider answered it."""
        line = self._provider.reply_line(row.custom_id, reply, took_s)
        journal.keep(line)
        row.attempts, row.refused = row.attempts + 1, 0
        if not _again(reply.status) or row.attempts >= self._tries:
            row.done = True
            if self._ended is not None:
                journal.flush()
                await self._ended(self._provider.decode(line).outcome)
            return reply.status < 500
        journal.flush()
        row.rest_s, row.most = self._desk.backoff_s(row.attempts - 1), 1
        return False

    async def _cool(self, reply: LiveReply) -> None:
        told = reply.hint.retry_after_s if reply.hint else None
        least = self._desk.timing.backoff_first_s  # a server that says "0 seconds" is not asked in a tight loop
        until = self._throttle.cool_down(self._desk.backoff_s(2) if told is None else max(told, least))
        if until is not None:
            log.info("shard %s: the provider asks to wait", self._shard.tag)
            account = self._provider.account.id
            await self._desk.book(self._desk.ledger.cool_down, account, self._provider.model, until)

    async def _no_room(self, rows: list[_Row], began: float) -> None:
        """These rows wait, and nobody else: it says little of other calls, and of other tiers nothing."""
        self._throttle.crowded(began)
        for row in rows:
            row.rest_s, row.refused = self._desk.backoff_s(row.refused), row.refused + 1
        if rows[0].refused == _REFUSED_TOLD:
            name, model = self._work.provider.name, self._work.provider.model
            text = (
                f"{name} has no room for {model} in flex now: calls are made again, and cost nothing; in another lane "
                "they would not wait: nightmill cancel JOB, then run it with another --lane and --new"
            )
            desk, job_id = self._desk, self._shard.job_id
            known = await desk.book(desk.ledger.alerts_of, job_id)
            if all(kind != "no_room" for kind, _, _ in known):
                await desk.book(desk.ledger.alert, job_id, self._shard.tag, "no_room", text)

    def _explain(self, reply: LiveReply) -> str:
        outcome = self._provider.decode(self._provider.reply_line("x-0", reply, 0.0)).outcome
        said = outcome.message if isinstance(outcome, Failed) else ""
        return f"{self._work.provider.name} refuses every call (HTTP {reply.status}): {said}"

    async def _not_reached(self, error: ProviderError, began: float) -> None:
        """Wait, together: calls that were under way when a round failed fail with it, and are no further round."""
        ledger = self._desk.ledger
        if began >= self._quiet_until:
            self._unreachable += 1
            log.warning("shard %s: nobody reached, time %d: %s", self._shard.tag, self._unreachable, error.logged)
            if self._unreachable >= UNREACHABLE_TRIES:
                raise _Pause("; ".join(filter(None, (error.what, error.why, error.fix))))
            self._quiet_until = ledger.moment() + self._desk.backoff_s(self._unreachable - 1)
        with self._idling():
            await asyncio.sleep(max(0.0, self._quiet_until - ledger.moment()))

    async def _no_answer(self, rows: list[_Row], reply: LiveReply, journal: Journal) -> None:
        journal.write(_marks(wire.lost_mark, rows))
        await self._lost(rows, Uncertain("the answer is no answer", why=f"it begins {reply.body[:40]!r}"))

    async def _lost(self, rows: list[_Row], error: ProviderError) -> None:
        """Sent, and nobody knows whether it ran: it counts as an attempt of each row, and as money."""
        again = []
        for row in rows:
            log.info("shard %s: row %d: %s", self._shard.tag, row.index, error.logged)
            row.attempts += 1
            row.most = 1
            row.done = row.attempts >= self._tries
            if not row.done:
                again.append(row)
            elif self._ended is not None:
                await self._ended(None)
        await self._book(sum(self._worst(self._provider.weigh(row.body).most) for row in again))
        for row in again:
            row.rest_s = self._desk.backoff_s(row.attempts - 1)


def _groups(rows: list[_Row]) -> Iterator[list[_Row]]:
    """``rows`` in calls, as many in each as each may go with, and as go into a call."""
    together: list[_Row] = []
    size = 0
    for row in rows:
        size += len(row.body)
        if together and (len(together) >= min(row.most, together[0].most) or size > _CALL_BYTES):
            yield together
            together, size = [], len(row.body)
        together.append(row)
    if together:
        yield together


def _marks(mark: Callable[[str], bytes], rows: list[_Row]) -> bytes:
    return b"".join([mark(row.custom_id) for row in rows])
