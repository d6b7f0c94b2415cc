"""Creating a batch, with everything that can go wrong around the moment at which it is committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from nightmill.simulator.batch import Batch
from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.formats import Operation, Refusal, Trouble, Why
from nightmill.simulator.http import FORMAT, KEY, PROVIDER, hang_up, hold_s, html_page, json_reply


@dataclass(frozen=True, slots=True)
class Intent:
    """What a create asks for.

    Attributes:
        make: a batch that is not started; raises the format's refusal. Called twice for `create_repeated`.
        show: the batch as it is answered.
        model: what the limit of enqueued tokens is told of, where that can be read.
    """

    make: Callable[[], Batch]
    show: Callable[[Batch], Any]
    model: Callable[[], str | None]


Reader = Callable[[web.Request, dict[str, Any]], Awaitable[Intent]]


async def create(request: web.Request, read: Reader) -> web.StreamResponse:
    """Commit a batch and answer what is shown of it, unless a fault says otherwise; all of it goes into the log.

    Args:
        read: what the request asks for; adds to the facts for the log, and may refuse.

    Raises:
        Refusal: what the caller is told instead.
        Dropped: the connection was closed.
    """
    provider = request[PROVIDER]
    facts: dict[str, Any] = {"batch_id": None}
    try:
        answer = await _create(request, await read(request, facts), facts)
    except Refusal as refusal:
        provider.note("create", refusal.status, **facts)
        raise
    # A dropped one was logged when that was decided: the caller may be gone before this runs.
    provider.note("create", answer.status, **facts)
    return answer


def room_s(config: SimulatorConfig) -> float:
    """Real seconds after which a queue that is full may have room again: a minute of the provider's."""
    return 60.0 / config.speed


async def _create(request: web.Request, intent: Intent, facts: dict[str, Any]) -> web.StreamResponse:
    provider, wire = request[PROVIDER], request[FORMAT]
    faults = provider.faults
    if faults.take("create_dropped_before", Operation.CREATE) is not None:
        provider.note("create", None, dropped=True, **facts)
        await hang_up(request)
    told = faults.take("create_500_before", Operation.CREATE)
    if told is not None:
        raise wire.refusal(Trouble(Why.BROKEN, int(told.get("status", 500))))
    told = faults.take("enqueued_limit_now", Operation.CREATE)
    if told is not None:
        after_s = float(told.get("retry_after", room_s(provider.config)))
        limit = {"model": intent.model() or "this model", "limit": int(told.get("limit", 2_000_000))}
        raise wire.refusal(Trouble(Why.QUEUE_FULL, facts={**limit, "retry_after_s": after_s}))
    batch = intent.make()
    page_fault = faults.take("non_json_bodies", Operation.CREATE)
    if page_fault is not None and not page_fault.get("commit"):
        return html_page(page_fault)
    batch.faults = {name: told for name, told in faults.take_for_batch().items() if name not in wire.impossible}
    batch.key = request[KEY]
    provider.batches.start(batch)
    facts["batch_id"] = batch.id
    if page_fault is not None:
        return html_page(page_fault)
    held = faults.take("create_accepted_then_timeout", Operation.CREATE)
    if held is not None:
        provider.note("create", None, dropped=True, **facts)
        await hang_up(request, hold_s(held))
    if faults.take("create_repeated", Operation.CREATE) is not None:
        again = intent.make()
        again.key = request[KEY]
        provider.batches.start(again)
        provider.note("create", 500, **{**facts, "batch_id": again.id})
        raise wire.refusal(Trouble(Why.BROKEN))
    if faults.take("create_accepted_then_500", Operation.CREATE) is not None:
        raise wire.refusal(Trouble(Why.BROKEN))
    return json_reply(intent.show(batch))
