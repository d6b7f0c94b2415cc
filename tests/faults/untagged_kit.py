"""A home with a clock that is set by hand, and a provider where a batch carries nothing of ours, played in memory.

The provider knows whose every batch is, which nobody who asks it can see; tests judge by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightmill.config import load_settings
from nightmill.engine import Engine, Stop
from nightmill.errors import LeaseLost, NeverSent, Refused, Uncertain, UsageError
from nightmill.lanes import Lease
from nightmill.ledger import Job, Shard
from nightmill.mill import Mill, RunOptions, late
from nightmill.providers import BatchView
from nightmill.providers.resolve import resolve
from nightmill.types import Lane, ShardState, Usage

MODEL = "openai/gpt-4o-mini"
TOKENS = (10, 5)
ENV = {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
PROMPT = "Say it: {{ text }}"


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Made:
    """A batch at the provider, with what only the provider knows of it."""

    id: str
    tag: str  # whose it is; empty: somebody else's
    ids: list[str]
    made_at: float  # unix seconds
    listed_at: float
    ended: bool = False
    cancelled: bool = False
    gone: bool = False  # its results


@dataclass
class World:
    """The provider's side. ``then`` says what happens to the next creates; after these all is well.

    ``lost``: made, and the answer is lost. ``dropped``: not made, and nobody says so. ``killed``: made, and the
    process ends before it hears of it. ``never``: no connection. ``frozen``: made when `thaw` is called.
    """

    clock: Callable[[], float]
    then: deque[str] = field(default_factory=deque)
    lag_s: deque[float] = field(default_factory=deque)  # until the next batch is listed
    made: dict[str, Made] = field(default_factory=dict)
    skew_s: float = 0.0  # the provider's clock less ours
    deaf: bool = False  # no page of the list can be read
    on_create: Callable[[str], None] = lambda _: None
    fetches: int = 0
    unseen: int = 0  # so many of the next polls know of no such batch

    def foreign(self, count: int, *, ended: bool = False, age_s: float = 0.0) -> Made:
        """Somebody else's batch of so many requests."""
        return self.make("", [f"theirs-{len(self.made)}-{i}" for i in range(count)], ended=ended, age_s=age_s)

    def take(self, file: Path) -> Made:
        ids = [json.loads(line)["custom_id"] for line in file.read_bytes().splitlines()]
        return self.make(ids[0].rpartition("-")[0], ids, lag_s=self.lag_s.popleft() if self.lag_s else 0.0)

    def make(self, tag: str, ids: list[str], *, ended: bool = False, age_s: float = 0.0, lag_s: float = 0.0) -> Made:
        now = self.clock() + self.skew_s
        batch = Made(f"batch_{len(self.made)}", tag, ids, now - age_s, now + lag_s, ended)
        self.made[batch.id] = batch
        return batch

    def of(self, tag: str) -> list[Made]:
        return [batch for batch in self.made.values() if batch.tag == tag]

    def ours(self) -> list[Made]:
        return [batch for batch in self.made.values() if batch.tag]

    def end_all(self) -> None:
        for batch in self.made.values():
            batch.ended = True


def _answer(name: str) -> bytes:
    """A result line."""
    message = {"role": "assistant", "content": f"said {name}"}
    usage = {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
    body = {"id": "c", "object": "chat.completion", "model": "gpt-4o-mini-2024-07-18", "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"id": "l", "custom_id": name, "response": response, "error": None}).encode() + b"\n"


class Deaths:
    """Stands in for the kill points of the ledger: the process ends at the ``at``-th, of ``passed``; 0: it lives on."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.passed = at, 0

    def __call__(self, _: str) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise Killed


class Untagged:
    """What the provider shows: times, sizes, and at the end names."""

    self_hosted = False

    def __init__(self, world: World) -> None:
        self._inner, self._world = resolve(MODEL, env=ENV, model_paths={}), world
        self._heard = False
        for name in ("name", "model", "account", "limits", "encode", "weigh", "line_pieces", "decode", "decode_plain",
                     "reply_line", "error_body", "unanswered", "hands_back_partial"):  # fmt: skip
            setattr(self, name, getattr(self._inner, name))

    async def close(self) -> None:
        await self._inner.close()

    async def upload(self, file: Path, *, name: str) -> str:
        return name

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        world = self._world
        world.on_create(submission)
        what = world.then.popleft() if world.then else "well"
        if what == "never":
            raise NeverSent("no connection")
        if what == "dropped":
            raise Uncertain("the connection broke")
        batch = world.take(file)
        if what == "lost":
            raise Uncertain("the connection broke")
        if what == "killed":
            raise Killed
        return self._view(batch)

    async def made_between(self, since: float, until: float) -> list[BatchView]:
        world = self._world
        if world.deaf:
            raise Uncertain("a page is cut")
        self._heard = True
        now = world.clock() + world.skew_s
        return [self._view(b) for b in world.made.values() if since <= b.made_at <= until and b.listed_at <= now]

    def _view(self, batch: Made) -> BatchView:
        results = f"{batch.id}/results" if batch.ended and not batch.gone else None
        done = len(batch.ids) if batch.ended else None
        return BatchView(
            batch.id, "ended" if batch.ended else "in_progress", "ended" if batch.ended else "running",
            batch.made_at, total=len(batch.ids), completed=done, failed=0 if batch.ended else None,
            output_file=results,
        )  # fmt: skip

    async def find(self, submissions: frozenset[str], files: frozenset[str], *, since: float) -> list[BatchView]:
        return []

    async def find_files(self, name: str) -> list[str]:
        return []

    async def poll(self, batch_id: str) -> BatchView:
        if batch_id not in self._world.made or self._world.unseen:
            self._world.unseen = max(0, self._world.unseen - 1)
            raise Refused("there is no such batch", status=404)
        return self._view(self._world.made[batch_id])

    async def cancel(self, batch_id: str) -> BatchView:
        batch = self._world.made[batch_id]
        batch.cancelled = batch.ended = True
        return self._view(batch)

    async def fetch(self, file_id: str, to: Path) -> bool:
        self._world.fetches += 1
        batch = self._world.made[file_id.partition("/")[0]]
        if batch.gone:
            return False
        self._write(batch, to)
        return True

    @staticmethod
    def _write(batch: Made, to: Path) -> None:
        to.write_bytes(b"".join(_answer(name) for name in batch.ids))

    async def delete_file(self, file_id: str) -> bool:
        return False

    def clock_skew_s(self) -> float:
        return self._world.skew_s if self._heard else 0.0


class Rig:
    """One home; what is due is done step by step, at the time that ``now`` says."""

    def __init__(self, folder: Path) -> None:
        self.now, self.folder = 0.0, folder
        self.began = time.time()  # by the wall clock, which dates a restored ledger's doubts, too
        self.world = World(lambda: self.began + self.now)
        self.jobs: list[str] = []
        (folder / "nightmill.toml").write_text("[timing]\ndoubt_alert_s = 600.0\n")
        self.open()

    def open(self) -> None:
        """A process begins."""
        self.mill = Mill(load_settings(self.folder, {"NIGHTMILL_HOME": str(self.folder / "home"), **ENV}))
        home = self.mill.home
        self.ledger, self.desk = home.ledger, home.desk
        self.provider = Untagged(self.world)
        self.ledger.moment = lambda: self.now  # type: ignore[method-assign]
        self.desk.wall = lambda: self.began + self.now
        self.desk.rand = lambda: 1.0
        home.providers = lambda model, *, sends=True: [self.provider]  # type: ignore[method-assign,assignment,return-value]
        self.engine = Engine(self.desk, home.open_kit, Stop())

    def close(self) -> None:
        asyncio.run(self.provider.close())
        self.mill.close()

    def again(self) -> None:
        """The process ended, however; another begins."""
        self.close()
        self.open()

    def submit(self, rows: int, batch_size: int, name: str = "in") -> Job:
        path = self.folder / f"{name}.csv"
        path.write_text("id,text\n" + "".join(f"k{i},{name} number {i}\n" for i in range(rows)))
        options = RunOptions(
            (str(path),), lane="batch", max_output=400, prompt=PROMPT, model=MODEL, batch_size=batch_size
        )
        job = self.mill.submit(self.mill.prepare(options))
        self.jobs.append(job.id)
        return job

    # -- one step after the other

    def step(self, shard: Shard) -> None:
        """What is to be done for a shard that was claimed."""
        with contextlib.suppress(LeaseLost):
            asyncio.run(self.engine._try_step(self.engine._kit(shard.job_id), Lease(shard, shard.lease_until)))

    def turn(self, most: int = 8) -> int:
        """Claim what is due now and do it; how many shards that were."""
        lease_s = self.desk.timing.lease_s
        claimed = self.ledger.claim_due(lane=Lane.BATCH, limit=most, lease_s=lease_s, job_ids=self.jobs)
        for shard in claimed:
            self.step(shard)
        return len(claimed)

    def work(self, for_s: float = 0.0) -> None:
        """Do all that falls due within ``for_s`` seconds."""
        end = self.now + for_s
        for _ in range(3000):
            if self.turn():
                continue
            soonest = self.ledger.outlook(self.jobs).get(Lane.BATCH)
            if soonest is None or soonest > end:
                self.now = end
                return
            self.now = max(self.now, soonest)
        raise AssertionError(f"it does not come to rest: {[(s.tag, s.state, s.reason) for s in self.shards()]}")

    def finish(self) -> None:
        """All batches end, and everything is brought in."""
        for _ in range(20):
            self.world.end_all()
            self.work(2000)
            over = [asyncio.run(self.engine._close_job(job)) for job in self.jobs]
            if all(over):
                return
        raise AssertionError([(s.tag, s.state, s.reason) for s in self.shards()])

    # -- how it ends

    def end_well(self, check: Callable[[], None] = lambda: None) -> None:
        """Come to the end with a person who knows whose each batch is; ``check`` is called after every turn.

        What is there is adopted, what is not is sent again.
        """
        for _ in range(12):
            self._settle_down(check)
            for shard in self.doubted():
                true = [batch.id for batch in self.world.of(shard.tag) if batch.id not in self.taken()]
                if true:
                    with contextlib.suppress(UsageError):  # it was there before, or is disproven
                        self.resolve(shard.tag, adopt=true[0])
                else:
                    self.resolve(shard.tag, resend=True)
            over = [asyncio.run(self.engine._close_job(job)) for job in self.jobs]
            if all(over) and not self._came_late():
                return
        raise AssertionError([(s.tag, s.state, s.reason) for s in self.shards()])

    def _settle_down(self, check: Callable[[], None]) -> None:
        """Everything but doubts that only a person can end."""
        for _ in range(400):
            left = [s for s in self.shards() if s.state not in (ShardState.SETTLED, ShardState.IN_DOUBT)]
            fresh = [s for s in self.shards(ShardState.IN_DOUBT) if s not in self.doubted()]
            stuck = not fresh and all(s.state is ShardState.PLANNED for s in left) and self.doubted()
            if stuck or not (left or fresh):
                return
            self.now = max(self.now, self.ledger.outlook(self.jobs).get(Lane.BATCH, 0.0))
            self.turn(1)
            check()
            self.world.end_all()
        raise AssertionError([(s.tag, s.state, s.reason) for s in self.shards()])

    def _came_late(self) -> bool:
        """A person comes back, later."""
        self.now += 1000.0
        found = [asyncio.run(late.look_again(self.mill.home, self.ledger.find_job(job))) for job in self.jobs]
        return any(found)

    def doubted(self) -> list[Shard]:
        """Shards of which a person was asked, and nobody knows more."""
        doubtful = self.shards(ShardState.IN_DOUBT)
        return [s for s in doubtful if s.current.sought_until is not None and s.current.batch_id is None]

    def taken(self) -> set[str]:
        """Batches that a shard has."""
        return set(self.ledger.taken(list(self.world.made)))

    # -- looking

    def shards(self, *states: ShardState) -> list[Shard]:
        return [shard for job in self.jobs for shard in self.ledger.shards_of(job, *states)]

    def shard(self, tag: str) -> Shard:
        found = self.ledger.shard(tag)
        assert found is not None
        return found

    def alerts(self, tag: str) -> list[str]:
        return [kind for job in self.jobs for kind, of, _ in self.ledger.alerts_of(job) if of == tag]

    def resolve(self, tag: str, **how: Any) -> str:
        return asyncio.run(self.mill.resolve(self.shard(tag), **how))

    def spent_and_held(self) -> tuple[int, int]:
        (total,) = self.ledger.limits(["total"])
        return total.spent_nanos, total.held_nanos

    def billed(self) -> int:
        """What our own batches cost, running ones as if they had ended."""
        sheet = self.mill.home.sheet(MODEL, Lane.BATCH)
        return sum(len(batch.ids) for batch in self.world.ours()) * sheet.cost(Usage(*TOKENS))

    def answers(self) -> dict[str, list[str | None]]:
        """By job, what each row was answered."""
        return {
            job: [row["response"] for some in self.mill.results(self.ledger.find_job(job)) for row in some.to_pylist()]
            for job in self.jobs
        }


__all__ = ["MODEL", "TOKENS", "Deaths", "Killed", "Made", "Rig", "Untagged", "World"]
