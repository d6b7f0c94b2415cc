"""Flex calls beside live ones of the same model: limits are shared, waits are not."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from faults_kit import house, truth

from nightmill.config import Timing
from nightmill.ledger import Job
from nightmill.providers import LiveReply
from nightmill.providers.openai import OpenAI
from nightmill.types import Lane

FLEX = "openai/gpt-5-mini"


def tier_of(body: bytes) -> str:
    return str(json.loads(body).get("service_tier", "default"))


def answered(job: Job) -> int:
    return (job.counts or {})["succeeded"]


def test_calls_of_both_lanes_together_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more in flight than one job may have; each lane gets on though the other's calls are slow."""
    real, now, most = OpenAI.send, dict[str, int](), dict[str, int]()

    async def send(self: OpenAI, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        tier = tier_of(body)
        now[tier] = now.get(tier, 0) + 1
        most[tier] = max(most.get(tier, 0), now[tier])
        most["both"] = max(most.get("both", 0), sum(now.values()))
        try:
            return await real(self, url, body, timeout_s=timeout_s)
        finally:
            now[tier] -= 1

    monkeypatch.setattr(OpenAI, "send", send)
    with house(tmp_path, sim={"flex_latency_s": 500.0}) as h:
        jobs = [h.submit(9, "flex", model=FLEX, concurrency=4), h.submit(12, "live", model=FLEX, concurrency=4)]
        asyncio.run(h.mill.run([job.id for job in jobs]))
        ended = [h.mill.job(job.id) for job in jobs]
        assert [answered(job) for job in ended] == [9, 12]
        assert most["both"] <= 4
        assert (ended[1].finished_at or 0) < (ended[0].finished_at or 0)
        spent = sum(h.tally(job).spent_nanos for job in ended)
        assert spent == h.invoice()["total_nanos"]


def test_a_tier_without_room_delays_no_live_call(tmp_path: Path) -> None:
    """While every flex call is refused a live job of the same model and key runs to its end; the waits cost no try."""
    with house(tmp_path, {"fault": "resource_unavailable"}, timing={"backoff_cap_s": 0.1}) as h:
        flex, live = h.submit(5, "flex", model=FLEX), h.submit(6, "live", model=FLEX)
        began = time.monotonic()

        async def both() -> None:
            def heard(_: str) -> None:
                if h.mill.job(live.id).finished_at:
                    h.faults()

            await h.mill.run([flex.id, live.id], on_change=heard)

        asyncio.run(asyncio.wait_for(both(), 60))
        jobs = [h.mill.job(job.id) for job in (flex, live)]
        assert [answered(job) for job in jobs] == [5, 6]
        assert time.monotonic() - began < 60
        assert h.invoice()["live_calls"] == 11
        for job in jobs:
            assert {row["attempt"] for batch in h.mill.results(job) for row in batch.to_pylist()} == {1}
        assert sum(h.tally(job).spent_nanos for job in jobs) == h.invoice()["total_nanos"]


def test_a_flex_call_that_is_never_answered_is_booked_at_the_dearer_price(tmp_path: Path) -> None:
    """Its time is the lane's own; nobody knows by which tier it ran, so the regular one counts, within the hold."""
    fault = {"fault": "live_timeout", "count": 1, "delay_s": 30}
    with house(tmp_path, fault, timing={"request_timeout_s": 5.0, "flex_timeout_s": 0.7}) as h:
        job = h.run(h.submit(3, "flex", model=FLEX))
        assert answered(job) == 3
        tally = h.tally(job)
        live = h.mill.home.sheet(FLEX, Lane.LIVE)
        (shard,) = h.shards(job)
        assert tally.unproven_nanos >= live.worst(shard.content_bytes // 3 - 1, 1, shard.cap_tokens // 3)
        assert h.invoice()["total_nanos"] <= tally.spent_nanos


def test_a_lease_outlives_every_call_of_its_lane() -> None:
    """Where flex calls may take longer, the lease of their shards does; where not, it is that of all."""
    usual = Timing()
    for lane in Lane:
        assert usual.lease_of(lane) > usual.call_s(lane) + usual.margin_s
    assert usual.lease_of(Lane.LIVE) == usual.lease_s
    short = Timing(flex_timeout_s=10.0)
    assert short.lease_of(Lane.FLEX) == short.lease_s


def test_what_a_deadline_left_open_keeps_its_tries(tmp_path: Path) -> None:
    """A row that failed twice in flex has one live try left: three in all, and its failure is final then."""
    faults: list[dict[str, Any]] = [{"fault": "live_500", "times": 2}, {"fault": "resource_unavailable", "after": 2}]
    timing = {"flex_timeout_s": 0.3, "collect_s": 0.1, "backoff_cap_s": 0.2}
    with house(tmp_path, *faults, timing=timing) as h:
        job = h.submit(1, "flex", model=FLEX, by="6s", concurrency=1)
        job = h.run(job)
        assert answered(job) == 1
        lanes = [(shard.lane, shard.attempt) for shard in h.shards(job)]
        assert lanes == [(Lane.FLEX, 1), (Lane.LIVE, 3)]
        assert h.tally(job).spent_nanos == h.invoice()["total_nanos"]
        truth(h, job)
