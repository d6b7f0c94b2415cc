"""Live calls that the simulator cannot spoil: no network, a model that does not load, too many failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults_kit import PATIENCE_S, House, exact, house, truth

from nightmill.engine import Stop
from nightmill.errors import NeverSent, NightmillError, UsageError
from nightmill.lanes.live import _Sender
from nightmill.lanes.throttle import Throttle
from nightmill.providers import LiveReply
from nightmill.providers.openai import OpenAI


def failing_first(monkeypatch: pytest.MonkeyPatch, error: Callable[[], NightmillError], count: int | None) -> list[int]:
    """Make the first ``count`` calls (None: all) raise before anything is sent; one entry a call."""
    real, calls = OpenAI.send, list[int]()

    async def send(self: OpenAI, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        calls.append(1)
        if count is None or len(calls) <= count:
            await asyncio.sleep(0)  # all hands are under way when the first fails
            raise error()
        return await real(self, url, body, timeout_s=timeout_s)

    monkeypatch.setattr(OpenAI, "send", send)
    return calls


def unreachable() -> NightmillError:
    return NeverSent("send: no connection", why="network is down")


def attempts(h: House, job: Any) -> list[int]:
    return sorted(row["attempt"] for row in h.results(job))


def test_a_blip_of_the_network_pauses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen calls under way that fail at one moment are one failure, not sixteen."""
    failing_first(monkeypatch, unreachable, 16)
    with house(tmp_path) as h:
        job = h.run(h.submit(16, "live"))
        truth(h, job)
        exact(h, job)
        assert job.state == "completed", job.reason
        assert attempts(h, job) == [1] * 16


def test_a_network_that_stays_away_pauses_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After eight rounds of waiting the job pauses with the reason, and nothing is spent or held."""
    calls = failing_first(monkeypatch, unreachable, None)
    with house(tmp_path) as h:
        job = h.run(h.submit(16, "live"))
        assert (job.state, job.reason) == ("paused", "send: no connection; network is down")
        assert len(calls) > 16
        tally = h.tally(job)
        assert (tally.spent_nanos, tally.held_nanos, h.invoice()["total_nanos"]) == (0, 0, 0)


@pytest.mark.parametrize("fault", ["live_500", "live_timeout"])
def test_a_row_that_rests_leaves_its_slot_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """With one call at a time, a row waits for its next try while the others are answered."""
    real_send, real_rest, bodies = OpenAI.send, _Sender._rest, list[bytes]()
    others_done = asyncio.Event()

    async def send(self: OpenAI, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        bodies.append(body)
        if len(bodies) == 8:
            asyncio.get_running_loop().call_soon(others_done.set)
        return await real_send(self, url, body, timeout_s=timeout_s)

    async def rest(self: _Sender, row: Any) -> None:
        await others_done.wait()
        await real_rest(self, row)

    monkeypatch.setattr(OpenAI, "send", send)
    monkeypatch.setattr(_Sender, "_rest", rest)
    with house(tmp_path, {"fault": fault, "times": 1, "delay_s": 0.0}) as h:
        job = h.run(h.submit(8, "live", concurrency=1))
        truth(h, job)
        assert job.counts is not None
        assert job.counts["succeeded"] == 8
        assert len(set(bodies[:8])) == 8
        assert bodies[8:] == bodies[:1]


def test_a_server_that_always_fails_is_not_given_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows of a shard are put aside as calls may be under way; the hands rest with the next ones."""
    real_rest, resting, all_rest = _Sender._rest, list[int](), asyncio.Event()
    now = 0

    async def rest(self: _Sender, row: Any) -> None:
        nonlocal now
        now += 1
        resting.append(now)
        if now == 6:
            asyncio.get_running_loop().call_soon(all_rest.set)
        await all_rest.wait()
        await real_rest(self, row)
        now -= 1

    monkeypatch.setattr(_Sender, "_rest", rest)
    with house(tmp_path, {"fault": "live_500"}) as h:
        job = h.run(h.submit(40, "live", concurrency=3))
        exact(h, job)
        assert job.counts is not None
        assert job.counts["failed"] == 40
        assert max(resting) == 6


@pytest.mark.parametrize(("fault", "halved"), [("live_timeout", True), ("live_close_before", False)])
def test_only_a_call_that_waited_past_its_time_says_that_others_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, halved: bool
) -> None:
    """Fewer calls go out after one that was not answered in time, and as many as before after one that was cut off."""
    real, windows = Throttle.give_back, list[int]()

    def give_back(self: Throttle, *, answered: bool) -> None:
        real(self, answered=answered)
        windows.append(self.window)

    monkeypatch.setattr(Throttle, "give_back", give_back)
    with house(tmp_path, {"fault": fault, "times": 1}, timing={"request_timeout_s": 0.5}) as h:
        job = h.run(h.submit(8, "live"))
        truth(h, job)
        assert job.state == "completed"
        assert windows[-1] == (8 if halved else 16)


def test_a_model_that_does_not_load_takes_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that could not even be asked is told of, and is neither an attempt nor money in doubt."""
    failing_first(monkeypatch, lambda: UsageError("cannot load the model"), 4)
    with house(tmp_path) as h:
        job = h.submit(4, "live")
        with pytest.raises(UsageError, match="cannot load"):
            h.run(job)
        h.again()
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert attempts(h, job) == [1] * 4


def test_a_stop_waits_for_calls_and_not_for_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hands that wait for the rate to allow their next call go at once: one row is answered, four were never sent."""
    stop, real = Stop(), OpenAI.send

    async def send(self: OpenAI, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        reply = await real(self, url, body, timeout_s=timeout_s)
        stop.gently.set()
        return reply

    monkeypatch.setattr(OpenAI, "send", send)
    with house(tmp_path) as h:
        job = h.submit(5, "live", rpm=60.0 / (3 * PATIENCE_S))  # the second call's turn comes when this has failed

        async def work() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await h.mill.run([job.id], stop)

        asyncio.run(work())
        now = h.mill.standing(h.mill.job(job.id))
        assert (now.sent, now.succeeded, now.pending) == (1, 1, 4)


@pytest.mark.parametrize(("on_error", "calls"), [("stop", 1), ("threshold:2", 2), ("threshold:10%", 3)])
def test_too_many_failures_stop_within_a_shard(tmp_path: Path, on_error: str, calls: int) -> None:
    """The job stops with the failure that was one too many, not with the end of its shard."""
    with house(tmp_path, {"fault": "live_500", "status": 400}) as h:
        job = h.run(h.submit(30, "live", on_error=on_error, concurrency=1))
        assert h.fired() == {"live_500": calls}
        truth(h, job)
        exact(h, job)
        assert (job.state, job.stopped) == ("failed", "on_error")
        assert job.counts is not None
        assert (job.counts["failed"], job.counts["cancelled"]) == (calls, 30 - calls)


def test_rows_that_a_stop_left_unsent_are_not_counted_as_sent(tmp_path: Path) -> None:
    """``sent`` is what went out, also of a shard that was sent in part, and each row once however often retried."""
    with house(tmp_path, {"fault": "live_500", "status": 400}) as h:
        job = h.run(h.submit(30, "live", on_error="threshold:3", concurrency=1))
        assert h.mill.standing(job).sent == 3
        h.mill.retry(job)
        job = h.run(job)
        assert h.mill.standing(job).sent <= sum(h.fired().values())
        h.faults()
        h.mill.retry(job)
        job = h.run(job)
        assert (h.mill.standing(job).sent, h.mill.standing(job).succeeded) == (30, 30)
        exact(h, job)


def test_invalid_answers_count_as_failures_at_once(tmp_path: Path) -> None:
    """An answer that does not fit the schema is a failed row, and stops a job that is to stop."""
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    with house(tmp_path, {"fault": "invalid_json_answers"}) as h:
        job = h.run(h.submit(12, "live", on_error="stop", concurrency=1, schema=schema))
        truth(h, job)
        exact(h, job)
        assert job.stopped == "on_error"
        assert h.invoice()["executed_rows"] == 1


def test_failures_of_an_earlier_run_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that goes on within a shard remembers the rows of it that have failed."""
    with house(tmp_path, {"fault": "live_500", "status": 400}) as h:
        job = h.submit(12, "live", on_error="threshold:2", concurrency=1)
        real, calls = OpenAI.send, list[int]()

        async def send(self: OpenAI, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
            calls.append(1)
            if len(calls) == 2:
                raise UsageError("no more for now")
            return await real(self, url, body, timeout_s=timeout_s)

        monkeypatch.setattr(OpenAI, "send", send)
        with pytest.raises(UsageError, match="no more"):
            h.run(job)
        h.again()
        job = h.run(job)
        assert h.fired() == {"live_500": 2}
        truth(h, job)
        assert job.stopped == "on_error"


def test_jobs_of_one_account_share_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs worked on at once have together no more calls in flight than the tighter of them allows."""
    real, now, most = OpenAI.send, 0, 0

    async def send(self: OpenAI, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        nonlocal now, most
        now += 1
        most = max(now, most)
        try:
            return await real(self, url, body, timeout_s=timeout_s)
        finally:
            now -= 1

    monkeypatch.setattr(OpenAI, "send", send)
    with house(tmp_path) as h:
        jobs = [h.submit(10, "live", concurrency=2), h.submit(12, "live", concurrency=5)]
        asyncio.run(h.mill.run([job.id for job in jobs], Stop(), lambda _: None))
        assert [h.mill.job(job.id).counts["succeeded"] for job in jobs] == [10, 12]
        assert most == 2
