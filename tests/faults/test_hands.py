"""The engine's own part: hands that are all busy, a key that is refused half way, a job that another one deleted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, exact, house, truth

from nightmill.engine import _HANDS, Engine, JobKit, Stop
from nightmill.errors import Conflict, StoreError
from nightmill.lanes.throttle import Rates
from nightmill.ledger import Job, Ledger
from nightmill.providers.openai import OpenAI
from nightmill.types import Lane, ShardState


@pytest.mark.parametrize(("lane", "call"), [(Lane.BATCH, "upload"), (Lane.LIVE, "send")])
def test_full_hands_ask_the_ledger_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: Lane, call: str
) -> None:
    """While every hand is busy and more is due, shards are claimed once, and a hand that comes free is waited for."""
    free, waits, claims = asyncio.Event(), list[float | None](), list[Lane]()
    real_call, real_sleep, real_claim = getattr(OpenAI, call), Engine._sleep, Ledger.claim_due

    async def held(self: OpenAI, *args: Any, **given: Any) -> Any:
        await free.wait()
        return await real_call(self, *args, **given)

    async def sleep(self: Engine, due_in_s: float | None) -> None:
        if not free.is_set():
            waits.append(due_in_s)
            asyncio.get_running_loop().call_soon(free.set)
        await real_sleep(self, due_in_s)

    def claim(self: Ledger, **given: Any) -> Any:
        if not free.is_set():
            claims.append(given["lane"])
        return real_claim(self, **given)

    monkeypatch.setattr(OpenAI, call, held)
    monkeypatch.setattr(Engine, "_sleep", sleep)
    monkeypatch.setattr(Ledger, "claim_due", claim)
    with house(tmp_path) as h:
        job = h.run(h.submit(2 * (_HANDS[lane] + 2), lane.value, batch_size=2))
        assert (claims, waits) == ([lane], [None])
        truth(h, job)
        exact(h, job)


@pytest.mark.parametrize(
    ("state", "faults"),
    [
        (ShardState.WAITING, []),
        (ShardState.COLLECTING, []),
        (ShardState.IN_DOUBT, [{"fault": "create_accepted_then_500", "times": 1}]),
    ],
)
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_key_refused_half_way_pauses_the_job(
    tmp_path: Path, state: ShardState, faults: list[dict[str, Any]], cancelled: bool
) -> None:
    """Met while polling, fetching or looking, a wrong key ends the run with the provider's words; holds stay, and the
    right key brings back what was paid for, sending nothing twice."""

    def there(h: House, job: Job) -> bool:
        return any(shard.state is state for shard in h.shards(job))

    with house(tmp_path, *faults) as h:
        job = h.run(h.submit(8), there)
        assert there(h, job)
        before, states = h.tally(job).held_nanos, [shard.state for shard in h.shards(job)]
        assert before > 0
        if cancelled:
            h.cancel(job)
        h.again(key="sk-wrong")
        job = h.run(job)
        assert job.state == "paused"
        assert "Incorrect API key" in (job.reason or "")
        assert (h.tally(job).held_nanos, [shard.state for shard in h.shards(job)]) == (before, states)
        h.again(key="sk-x")
        h.mill.resume(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == ("cancelled" if cancelled else "completed")
        assert len(h.batches()) == 1


def test_a_key_refused_half_way_stops_every_shard(tmp_path: Path) -> None:
    """Each shard at the provider keeps its place and its hold; another job with the same key is paused as well."""
    with house(tmp_path, sim={"batch_s": 100_000.0}) as h:
        jobs = [h.submit(8, batch_size=2), h.submit(9, batch_size=3)]
        for job in jobs:
            h.run(job, lambda h, job: all(shard.state is ShardState.WAITING for shard in h.shards(job)))
        h.again(key="sk-wrong")
        asyncio.run(asyncio.wait_for(h.mill.run([job.id for job in jobs]), 30))
        for job in jobs:
            assert h.mill.job(job.id).state == "paused"
            assert {shard.state for shard in h.shards(job)} == {ShardState.WAITING}
            assert h.tally(job).held_nanos > 0


@pytest.mark.parametrize(("given", "fixed"), [({}, False), ({"concurrency": 7}, True)])
def test_a_server_nearby_is_climbed_unless_the_user_named_a_number(
    tmp_path: Path, given: dict[str, Any], fixed: bool
) -> None:
    """The throttle of a job learns from its provider that nobody's quota will say what is too much."""
    with house(tmp_path) as h:
        job = h.submit(4, "live", **given)
        rates = h.mill.open_kit(job.id).rates
        assert rates == Rates(in_flight=given.get("concurrency", 256), fixed=fixed, self_hosted=True)


def while_it_opens(h: House, job: Job, meanwhile: Callable[[], None], *, before: bool = False) -> None:
    """Work on the job with an engine that has claimed it, and stands still while ``meanwhile`` happens, just after it
    has read what the job is, or ``before``."""

    def open_kit(job_id: str) -> JobKit:
        kit = None if before else h.mill.open_kit(job_id)
        meanwhile()
        return kit or h.mill.open_kit(job_id)

    asyncio.run(asyncio.wait_for(Engine(h.mill.desk, open_kit, Stop()).run([job.id]), 10))


@pytest.mark.parametrize(("settled", "before"), [(False, False), (True, False), (True, True)])
def test_a_job_that_another_process_deleted_is_let_go(tmp_path: Path, settled: bool, before: bool) -> None:
    """Its lease is over, another worker ends the job and it is deleted: who held a shard of it, or was about to build
    its results, ends in peace, and the books stay as they were."""
    with house(tmp_path) as h:
        job = h.submit(4, "live")
        if settled:
            h.run(job, lambda h, job: all(shard.state is ShardState.SETTLED for shard in h.shards(job)))
            assert h.mill.job(job.id).state == "running"
        spent = []

        def deleted() -> None:
            other = House(h.url, h.folder, h.timing)
            try:
                for table in ("shards", "jobs"):
                    other.sql(f"UPDATE {table} SET lease_until = 0 RETURNING 1")
                truth(other, other.run(job))
                spent.append(other.mill.budget())
                other.mill.delete(other.mill.job(job.id))
            finally:
                other.mill.close()

        def elsewhere() -> None:
            worker = threading.Thread(target=deleted)  # a loop of its own
            worker.start()
            worker.join()

        while_it_opens(h, job, elsewhere, before=before)
        assert h.mill.jobs() == []
        assert [h.mill.budget()] == spent
        assert not h.mill.folder(job).exists()


def test_who_looks_on_leaves_out_a_deleted_job(tmp_path: Path) -> None:
    """Of two jobs that are followed and attended one is deleted: the other is told of and worked on; of one that was
    alone it is said that it is gone."""
    with house(tmp_path) as h:
        gone, other = h.submit(2, "live"), h.submit(3, "live")
        follower = h.mill.follow([gone.id, other.id])
        h.mill.delete(h.run(gone))
        assert [look.job.id for look in follower.look()] == [other.id]
        asyncio.run(asyncio.wait_for(h.mill.attend([gone.id, other.id]), 10))
        other = h.mill.job(other.id)
        assert other.state == "completed"
        h.mill.delete(other)
        with pytest.raises(Conflict, match=other.id):
            follower.look()


def test_where_the_ledger_cannot_be_asked_the_trouble_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trouble at a shard, and the ledger does not say whether its job was deleted: the run ends with that trouble, at
    once, and the job goes on later."""
    with house(tmp_path) as h:
        job = h.submit(4, "live")

        def trouble() -> None:
            asked.setattr(h.mill.ledger, "job", unanswered)
            raise StoreError("the disk is full")

        def unanswered(_: str) -> None:
            asked.undo()  # once
            raise StoreError("the ledger is busy")

        with monkeypatch.context() as asked, pytest.raises(StoreError, match="the disk is full"):
            while_it_opens(h, job, trouble)
        h.again()
        done = h.run(job)
        assert done.state == "completed"
        truth(h, done)
        exact(h, done)
