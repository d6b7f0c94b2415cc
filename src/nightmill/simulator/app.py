"""The simulator as one aiohttp application: routes, and the middleware every request passes."""

from __future__ import annotations

import contextlib
import email.utils
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from nightmill.simulator import http_batches, http_files, http_live
from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.http_common import (
    PROVIDER,
    Dropped,
    api_key,
    html_page,
    json_reply,
    send_short,
    send_slowly,
)
from nightmill.simulator.provider import Provider
from nightmill.simulator.wire import ApiError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_MAX_JSON_BYTES = 64 * 1024 * 1024
_ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("upload", "POST", "/v1/files", http_files.upload),
    ("files", "GET", "/v1/files", http_files.list_files),
    ("file", "GET", "/v1/files/{file_id}", http_files.get_file),
    ("file_delete", "DELETE", "/v1/files/{file_id}", http_files.delete_file),
    ("content", "GET", "/v1/files/{file_id}/content", http_files.get_content),
    ("create", "POST", "/v1/batches", http_batches.create_batch),
    ("list", "GET", "/v1/batches", http_batches.list_batches),
    ("poll", "GET", "/v1/batches/{batch_id}", http_batches.get_batch),
    ("cancel", "POST", "/v1/batches/{batch_id}/cancel", http_batches.cancel_batch),
    ("live", "POST", "/v1/chat/completions", http_live.chat),
    ("live-embeddings", "POST", "/v1/embeddings", http_live.embeddings),
    ("live-responses", "POST", "/v1/responses", http_live.responses),
    ("models", "GET", "/v1/models", http_live.list_models),
    ("model", "GET", "/v1/models/{model:.+}", http_live.get_model),
)
_STARTED = web.RequestKey("started", float)
_SPEAKS_BEFORE = frozenset({"create"})  # handles its own non_json_bodies: it matters whether it was committed


def create_app(config: SimulatorConfig) -> web.Application:
    """The simulator, ready for an aiohttp runner.

    Raises:
        ValueError: a fault in the configuration is unknown, or speed is not above 0.
    """
    app = web.Application(middlewares=[_answer], client_max_size=_MAX_JSON_BYTES)
    provider = Provider.of(config)
    app[PROVIDER] = provider

    async def life(_: web.Application) -> AsyncIterator[None]:
        with contextlib.ExitStack() as stack:
            folder = config.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="simulator-")))
            provider.files.open(folder / "files")
            yield
            await provider.batches.close()

    app.cleanup_ctx.append(life)
    app.on_response_prepare.append(_sign)
    for name, method, path, handler in _ROUTES:
        app.router.add_route(method, path, handler, name=name)
    app.router.add_get("/simulator/invoice", _invoice)
    app.router.add_get("/simulator/log", _log)
    app.router.add_get("/simulator/faults", _get_faults)
    app.router.add_put("/simulator/faults", _put_faults)
    app.router.add_delete("/simulator/faults", _delete_faults)
    app.router.add_post("/simulator/forward", _forward)
    return app


def _operation(request: web.Request) -> str:
    """The name faults know a request by."""
    name = request.match_info.route.name or ""
    return {"live-embeddings": "live", "live-responses": "live", "model": "models"}.get(name, name)


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[_STARTED] = time.perf_counter()
    try:
        answer = await _answer_or_refuse(request, handler)
        if isinstance(answer, web.Response):
            return await _deliver(request, request.app[PROVIDER], answer)
    except (Dropped, ConnectionResetError):  # the latter: the caller left while it was being written to
        return web.Response(status=500)  # goes nowhere: the connection is closed
    return answer


async def _answer_or_refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or its refusal in OpenAI's error shape."""
    operation = _operation(request)
    provider = request.app[PROVIDER]
    try:
        if request.path.startswith("/v1/"):
            api_key(request)
        told = None if operation in _SPEAKS_BEFORE else provider.faults.take("non_json_bodies", operation)
        if told is not None and not told.get("commit"):
            return html_page(told)
        answer = await handler(request)
        return answer if told is None else html_page(told)
    except ApiError as refusal:
        answer = json_reply(refusal.body(), refusal.status)
        answer.headers.update(refusal.headers)
        return answer
    except web.HTTPRequestEntityTooLarge:
        return json_reply(ApiError(413, "The body of your request is too large.").body(), 413)
    except web.HTTPException as wrong:
        message = f"Invalid URL ({request.method} {request.path})"
        return json_reply(ApiError(wrong.status, message).body(), wrong.status)


async def _sign(request: web.Request, answer: web.StreamResponse) -> None:
    """The headers OpenAI puts on every answer."""
    took_s = time.perf_counter() - request.get(_STARTED, time.perf_counter())
    answer.headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
    answer.headers["openai-processing-ms"] = str(round(took_s * 1000))
    answer.headers["openai-version"] = "2020-10-01"
    answer.headers["Date"] = email.utils.formatdate(request.app[PROVIDER].clock.unix(), usegmt=True)


async def _deliver(request: web.Request, provider: Provider, answer: web.Response) -> web.StreamResponse:
    """Send an answer, through whatever goes wrong with bodies."""
    operation, faults = _operation(request), provider.faults
    if not faults.concerns(("short_body", "slow_bodies", "pretty_printed_bodies"), operation):
        return answer
    if operation != "live" and faults.take("pretty_printed_bodies", operation) is not None:
        _prettify(answer)
    if faults.take("short_body", operation) is not None:
        await send_short(request, answer)
    told = faults.take("slow_bodies", operation)
    return answer if told is None else await send_slowly(request, answer, told)


def _prettify(answer: web.Response) -> None:
    if answer.content_type == "application/json" and isinstance(answer.body, bytes | bytearray):
        answer.body = msgspec.json.format(bytes(answer.body), indent=2)


async def _invoice(request: web.Request) -> web.Response:
    return json_reply(request.app[PROVIDER].invoice.view())


async def _log(request: web.Request) -> web.Response:
    return json_reply(list(request.app[PROVIDER].events))


async def _get_faults(request: web.Request) -> web.Response:
    return json_reply(request.app[PROVIDER].faults.view())


async def _put_faults(request: web.Request) -> web.Response:
    try:
        specs: Any = msgspec.json.decode(await request.read(), type=list[dict[str, Any]])
        request.app[PROVIDER].faults.replace(specs)
    except (ValueError, TypeError) as wrong:  # msgspec's errors are ValueErrors too
        raise ApiError(400, f"These are no faults: {wrong}") from None
    return json_reply(request.app[PROVIDER].faults.view())


async def _forward(request: web.Request) -> web.Response:
    clock = request.app[PROVIDER].clock
    try:
        clock.forward(msgspec.json.decode(await request.read(), type=float))
    except (ValueError, TypeError) as wrong:
        raise ApiError(400, f"This is no number of provider seconds: {wrong}") from None
    return json_reply({"elapsed_s": clock.elapsed()})


async def _delete_faults(request: web.Request) -> web.Response:
    request.app[PROVIDER].faults.replace(())
    return json_reply([])
