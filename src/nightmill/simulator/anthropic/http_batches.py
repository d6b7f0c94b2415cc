"""``/v1/messages/batches``"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from nightmill.simulator.anthropic.http_common import refuse_poor, scope_of, whole_number
from nightmill.simulator.anthropic.lines import keep_requests
from nightmill.simulator.anthropic.shown import has_results, view
from nightmill.simulator.anthropic.wire import ApiError, page
from nightmill.simulator.batch import TERMINAL, Batch, new_id
from nightmill.simulator.creating import Intent, create
from nightmill.simulator.files import spool
from nightmill.simulator.formats import Trouble, Why
from nightmill.simulator.http import FORMAT, PROVIDER, json_reply, send_file, send_short
from nightmill.simulator.provider import Provider

_CHUNK_BYTES = 1 << 18
_MOST_LISTED = 1000


async def create_batch(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages/batches"""
    files = request[PROVIDER].files
    body, requests = files.scratch(), files.scratch()

    async def read(_: web.Request, facts: dict[str, Any]) -> Intent:
        return await _read(request, body, requests, facts)

    try:
        return await create(request, read)
    finally:
        body.unlink(missing_ok=True)
        requests.unlink(missing_ok=True)  # each batch made of them holds a link of its own


async def _read(request: web.Request, body: Path, requests: Path, facts: dict[str, Any]) -> Intent:
    provider, wire, scope = request[PROVIDER], request[FORMAT], scope_of(request)
    refuse_poor(request)
    size = await spool(request.content.iter_chunked(_CHUNK_BYTES), body, provider.max_bytes)
    if size > provider.max_bytes:
        raise wire.refusal(Trouble(Why.TOO_LARGE))
    max_rows = wire.max_rows if provider.config.max_rows is None else provider.config.max_rows
    rows = await asyncio.to_thread(keep_requests, body, requests, max_rows)
    facts["requests"] = rows
    return Intent(
        make=lambda: _batch(provider, scope, requests, rows),
        show=lambda batch: _view(request, batch),
        model=lambda: None,
    )


def _batch(provider: Provider, scope: str, requests: Path, rows: int) -> Batch:
    return Batch(
        id=new_id("msgbatch_"),
        scope=scope,
        created_at=provider.clock.unix(),
        created_elapsed=provider.clock.elapsed(),
        facts={},
        input=provider.files.link(requests),
        total=rows,
    )


def _view(request: web.Request, batch: Batch) -> dict[str, Any]:
    return view(batch, request[PROVIDER].clock.elapsed(), str(request.url.origin()))


def _find(request: web.Request, batch_id: str | None = None) -> Batch:
    wanted = request.match_info["batch_id"] if batch_id is None else batch_id
    batch = request[PROVIDER].batches.find(wanted, scope_of(request))
    if batch is None:
        raise ApiError(404, f"Message Batch {wanted} not found.")
    return batch


async def list_batches(request: web.Request) -> web.StreamResponse:
    """GET /v1/messages/batches, newest first."""
    provider = request[PROVIDER]
    if provider.faults.take("list_page_500", "list") is not None:
        raise request[FORMAT].refusal(Trouble(Why.BROKEN))
    limit = whole_number(request, "limit", 20, _MOST_LISTED)
    batches = provider.batches.listed(scope_of(request))
    after, before = request.query.get("after_id"), request.query.get("before_id")
    if after is not None and before is not None:
        raise ApiError(400, "after_id and before_id cannot be given together")
    if before is not None:
        newer = batches[: _place(request, batches, before)]
        shown, has_more = newer[-limit:], len(newer) > limit
    else:
        start = 0 if after is None else _place(request, batches, after) + 1
        shown, has_more = batches[start : start + limit], start + limit < len(batches)
    answer = json_reply(page([_view(request, batch) for batch in shown], has_more))
    if provider.faults.take("list_page_cut", "list") is not None:
        await send_short(request, answer)
    return answer


def _place(request: web.Request, batches: list[Batch], batch_id: str) -> int:
    anchor = _find(request, batch_id)
    if anchor not in batches:
        raise ApiError(404, f"Message Batch {batch_id} not found.")
    return batches.index(anchor)


async def get_batch(request: web.Request) -> web.StreamResponse:
    """GET /v1/messages/batches/{id}"""
    provider, batch = request[PROVIDER], _find(request)
    if provider.faults.take("poll_500", "poll") is not None:
        raise request[FORMAT].refusal(Trouble(Why.BROKEN))
    if provider.faults.take("poll_404_once", "poll") is not None:
        raise ApiError(404, f"Message Batch {batch.id} not found.")
    return json_reply(_view(request, batch))


async def cancel_batch(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages/batches/{id}/cancel"""
    provider, batch_id = request[PROVIDER], request.match_info["batch_id"]
    try:
        batch = _find(request)
        if not provider.batches.cancel(batch):
            raise ApiError(409, f"Batch {batch.id} cannot be canceled because it has already ended.")
    except ApiError as refusal:
        provider.note("cancel", refusal.status, batch_id=batch_id)
        raise
    provider.note("cancel", 200, batch_id=batch_id)
    return json_reply(_view(request, batch))


async def delete_batch(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/messages/batches/{id}"""
    provider, batch = request[PROVIDER], _find(request)
    if batch.state not in TERMINAL:
        raise ApiError(400, f"Batch {batch.id} cannot be deleted while it is being processed; cancel it first.")
    provider.batches.forget(batch)
    provider.note("delete", 200, batch_id=batch.id)
    return json_reply({"id": batch.id, "type": "message_batch_deleted"})


async def get_results(request: web.Request) -> web.StreamResponse:
    """GET /v1/messages/batches/{id}/results"""
    provider, batch = request[PROVIDER], _find(request)
    is_gone = provider.faults.take("retention_404", "content") is not None
    record = provider.files.find(batch.output_file_id or "", batch.scope)
    if is_gone or record is None or not has_results(batch, provider.clock.elapsed()):
        raise ApiError(404, f"Batch {batch.id} has no available results.")
    return await send_file(request, record.path, {"Content-Type": "application/x-jsonl"})
