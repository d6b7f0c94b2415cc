"""``models/{model}:batchGenerateContent``, ``:asyncBatchEmbedContent`` and ``/{version}/batches``"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

from aiohttp import web

from nightmill.simulator.batch import Batch
from nightmill.simulator.creating import Intent, create, room_s
from nightmill.simulator.formats import Trouble, Why
from nightmill.simulator.gemini import lines, reading, showing
from nightmill.simulator.gemini.errors import (
    GeminiError,
    exhausted,
    internal,
    invalid,
    no_such_batch,
    unknown_model,
)
from nightmill.simulator.gemini.http_files import find as find_file
from nightmill.simulator.gemini.keys import refuse_without_quota, scope_of, version_of
from nightmill.simulator.gemini.shown import view
from nightmill.simulator.http import FORMAT, PROVIDER, json_reply, send_short
from nightmill.simulator.provider import Provider

_MOST_INLINE_BYTES = 20 * 1024 * 1024
_MOST_OPEN = 100  # batches of one project that have not ended
_KEEP_S = 42 * 86_400  # results, six weeks
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


async def create_generate(request: web.Request) -> web.StreamResponse:
    """POST /{version}/models/{model}:batchGenerateContent"""
    return await _create(request, showing.GENERATE)


async def create_embed(request: web.Request) -> web.StreamResponse:
    """POST /{version}/models/{model}:asyncBatchEmbedContent"""
    return await _create(request, showing.EMBED)


async def _create(request: web.Request, kind: str) -> web.StreamResponse:
    source = request[PROVIDER].files.scratch()  # the input, until the batch has a link of its own to it

    async def read(request: web.Request, facts: dict[str, Any]) -> Intent:
        return await _intent(request, kind, source, facts)

    try:
        return await create(request, read)
    finally:
        source.unlink(missing_ok=True)


async def _intent(request: web.Request, kind: str, source: Path, facts: dict[str, Any]) -> Intent:
    """The batch that is asked for, every row of which was read: a bad one refuses the create."""
    provider, model = request[PROVIDER], request.match_info["model"]
    refuse_without_quota(request)
    raw = await request.read()
    asked = reading.read(raw, reading.Create).batch or reading.Wanted()
    config = asked.input_config or reading.InputConfig()
    facts.update(display_name=asked.display_name, input_file_id=config.file_name, filename=None)
    if not provider.catalogue.knows(model):
        raise unknown_model(model, version_of(request))
    await _put_input(request, config, len(raw), source)
    find = provider.files.finder(scope_of(request))
    checked = await asyncio.to_thread(lines.check, source, kind, model, find)
    _refuse_without_room(request, model, checked.tokens)
    known = {
        "kind": kind,
        "model": model,
        "checked": checked,
        "display_name": asked.display_name,
        "priority": asked.priority,
        "input_file": None if config.file_name is None else config.file_name.removeprefix("files/"),
    }
    return Intent(
        make=lambda: _batch(provider, known, source, scope_of(request)),
        show=lambda batch: view(batch, provider),
        model=lambda: model,
    )


async def _put_input(request: web.Request, config: reading.InputConfig, size_bytes: int, to: Path) -> None:
    """Put the requests where ``to`` says, whether they are in a file or came along."""
    if config.file_name is not None:
        found = find_file(request, config.file_name.removeprefix("files/"))
        await asyncio.to_thread(to.hardlink_to, found.path)
        return
    if config.requests is None:
        raise invalid("* BatchGenerateContentRequest.batch.input_config: file_name or requests is required.")
    if size_bytes > _MOST_INLINE_BYTES:
        raise invalid(f"Inline requests may have up to {_MOST_INLINE_BYTES} bytes; use a file.")
    await asyncio.to_thread(lines.write_inline, config.requests, to)


def _refuse_without_room(request: web.Request, model: str, tokens: int) -> None:
    """429 for a batch that has no place beside those that have not ended."""
    provider, limit = request[PROVIDER], request[PROVIDER].config.enqueued_tokens
    if limit is not None and provider.batches.enqueued(model) + tokens > limit:
        full = {"model": model, "limit": limit, "retry_after_s": room_s(provider.config)}
        raise request[FORMAT].refusal(Trouble(Why.QUEUE_FULL, facts=full))
    if len(provider.batches.open()) >= _MOST_OPEN:
        message = f"Resource has been exhausted: {_MOST_OPEN} batches have not ended."
        raise exhausted(message, retry_s=room_s(provider.config), quota="ConcurrentBatchesPerProject")


def _batch(provider: Provider, facts: dict[str, Any], source: Path, scope: str) -> Batch:
    checked = facts["checked"]
    return Batch(
        id="batches/" + "".join(secrets.choice(_ALPHABET) for _ in range(36)),
        scope=scope,
        created_at=provider.clock.unix(),
        created_elapsed=provider.clock.elapsed(),
        facts=facts,
        input=provider.files.link(source),
        keep_s=_KEEP_S,
        model=checked.model,
        total=checked.rows,
        tokens=checked.tokens,
    )


def _find(request: web.Request) -> Batch:
    batch = request[PROVIDER].batches.find(f"batches/{request.match_info['batch_id']}", scope_of(request))
    if batch is None:
        raise no_such_batch()
    return batch


async def _with_results(batch: Batch, provider: Provider) -> dict[str, Any]:
    """The operation; requests that came inside a create are answered inside it."""
    found = None
    if batch.facts["input_file"] is None and batch.output_file_id is not None:
        kept = provider.files.find(batch.output_file_id, batch.scope)
        found = None if kept is None else await asyncio.to_thread(lines.inline_results, kept.path)
    return view(batch, provider, found)


async def list_batches(request: web.Request) -> web.StreamResponse:
    """GET /{version}/batches, newest first."""
    provider, query = request[PROVIDER], request.query
    if provider.faults.take("list_page_500", "list") is not None:
        raise internal()
    batches = provider.batches.listed(scope_of(request))
    ids = [batch.id for batch in batches]
    size, token = query.get("pageSize"), query.get("pageToken")
    shown, more = showing.page(batches, ids, size=size, token=token, default=50, most=1000)
    body: dict[str, Any] = {"operations": [await _with_results(b, provider) for b in shown], "nextPageToken": more}
    answer = json_reply({name: value for name, value in body.items() if value})
    if provider.faults.take("list_page_cut", "list") is not None:
        await send_short(request, answer)
    return answer


async def get_batch(request: web.Request) -> web.StreamResponse:
    """GET /{version}/batches/{id}"""
    provider, batch = request[PROVIDER], _find(request)
    if provider.faults.take("poll_500", "poll") is not None:
        raise internal()
    if provider.faults.take("poll_404_once", "poll") is not None:
        raise no_such_batch()
    return json_reply(await _with_results(batch, provider))


async def cancel_batch(request: web.Request) -> web.StreamResponse:
    """POST /{version}/batches/{id}:cancel, with an empty object or nothing at all in its body."""
    provider, name = request[PROVIDER], f"batches/{request.match_info['batch_id']}"
    try:
        if not provider.batches.cancel(_find(request)):
            raise GeminiError(400, "The batch has ended and cannot be cancelled.", word="FAILED_PRECONDITION")
    except GeminiError as refusal:
        provider.note("cancel", refusal.status, batch_id=name)
        raise
    provider.note("cancel", 200, batch_id=name)
    return json_reply({})


async def delete_batch(request: web.Request) -> web.StreamResponse:
    """DELETE /{version}/batches/{id}; its results go, too. One that runs goes on, and nobody hears of it."""
    provider, batch = request[PROVIDER], _find(request)
    provider.batches.forget(batch)
    provider.note("delete", 200, batch_id=batch.id)
    return json_reply({})
