"""What a worker makes sure of before it sends a create."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nightmill.errors import LeaseLost
from nightmill.lanes import Desk
from nightmill.lanes.batch import renew_for_create
from nightmill.ledger import Shard


def renewals(held_up_s: Iterator[float], last_of_ours: int = 99) -> int:
    """How often a lease of 10 s is renewed where each time takes so long, the first ``last_of_ours`` of them ours."""
    clock, asked = [0.0], [0]

    def renew(_: list[Shard], __: float) -> set[str]:
        clock[0] += next(held_up_s)
        asked[0] += 1
        return {"job-0"} if asked[0] <= last_of_ours else set()

    async def book(call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    timing = SimpleNamespace(lease_s=10.0, create_timeout_s=5.0, margin_s=1.0)
    desk = SimpleNamespace(ledger=SimpleNamespace(moment=lambda: clock[0], renew=renew), book=book, timing=timing)
    asyncio.run(renew_for_create(cast("Desk", desk), cast("Shard", SimpleNamespace(tag="job-0"))))
    return asked[0]


def test_a_worker_that_was_held_up_renews_its_lease_once_more() -> None:
    """What is left of a lease when the create leaves is more than the create may take."""
    assert renewals(iter([0.1])) == 1
    assert renewals(iter([3.9])) == 1
    assert renewals(iter([4.0, 60.0, 0.1])) == 3


def test_a_worker_that_slept_too_long_sends_nothing() -> None:
    """Another has its shard by then, and may have looked for the batch already."""
    with pytest.raises(LeaseLost):
        renewals(iter([60.0, 0.1]), last_of_ours=1)
