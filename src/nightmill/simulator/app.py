"""The simulator as one aiohttp application: whose shape a request is in, and the middleware every request passes."""

from __future__ import annotations

import contextlib
import email.utils
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from yarl import URL

from nightmill.simulator.anthropic import shape as anthropic
from nightmill.simulator.billing import summed
from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.formats import COSTLY, Format, Handler, Operation, Refusal, Trouble, Why
from nightmill.simulator.gemini import shape as gemini
from nightmill.simulator.http import FORMAT, KEY, PROVIDER, Dropped, html_page, json_reply, send_short, send_slowly
from nightmill.simulator.openai import shape as openai
from nightmill.simulator.provider import Provider, Shared

_MAX_JSON_BYTES = 64 * 1024 * 1024
# Asked in this order whose a request is; the last takes the rest.
FORMATS: tuple[Format, ...] = (anthropic.SHAPE, gemini.SHAPE, openai.SHAPE)
_SHARED = web.AppKey("shared", Shared)
_PROVIDERS = web.AppKey("providers", dict[str, Provider])
_STARTED = web.RequestKey("started", float)
_SPEAKS_BEFORE = frozenset({Operation.CREATE})  # handles its own non_json_bodies: it matters whether it was committed


class _Calls(web.AbstractResource):
    """The routes of one format; they see no request of another."""

    def __init__(self, wire: Format) -> None:
        super().__init__()
        self._wire, self._router = wire, web.UrlDispatcher()
        for number, route in enumerate(wire.routes):
            self._router.add_route(route.method, route.path, route.handler, name=f"{route.operation}-x{number}")

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        if _format_of(request) is not self._wire:
            return None, set()
        return await self._router.resolve(request), set()

    @property
    def canonical(self) -> str:
        return "/"

    def url_for(self, **kwargs: str) -> URL:
        return URL(self.canonical)

    def add_prefix(self, prefix: str) -> None:
        raise NotImplementedError("the simulator is an application of its own")

    def get_info(self) -> Any:
        return {"formatter": self._wire.name}

    def raw_match(self, path: str) -> bool:
        return False

    def __len__(self) -> int:
        return len(self._wire.routes)

    def __iter__(self) -> Iterator[web.AbstractRoute]:
        return iter(self._router.routes())


def create_app(config: SimulatorConfig) -> web.Application:
    """The simulator, ready for an aiohttp runner.

    Raises:
        ValueError: a fault in the configuration is unknown, or speed is not above 0.
    """
    app = web.Application(middlewares=[_answer], client_max_size=_MAX_JSON_BYTES)
    shared = app[_SHARED] = Shared.of(config)
    providers = app[_PROVIDERS] = {wire.name: Provider.of(wire, shared) for wire in FORMATS}

    async def life(_: web.Application) -> AsyncIterator[None]:
        with contextlib.ExitStack() as stack:
            folder = config.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="simulator-")))
            for name, provider in providers.items():
                provider.files.open(folder / "files" / name)
            yield
            for provider in providers.values():
                await provider.batches.close()

    app.cleanup_ctx.append(life)
    app.on_response_prepare.append(_sign)
    app.router.add_get("/simulator/invoice", _invoice)
    app.router.add_get("/simulator/log", _log)
    app.router.add_get("/simulator/faults", _get_faults)
    app.router.add_put("/simulator/faults", _put_faults)
    app.router.add_delete("/simulator/faults", _delete_faults)
    app.router.add_post("/simulator/forward", _forward)
    for wire in FORMATS:
        app.router.register_resource(_Calls(wire))
    return app


def _format_of(request: web.Request) -> Format:
    """Whose shape a request is in."""
    return next((wire for wire in FORMATS if wire.claims(request)), FORMATS[-1])


def _operation(request: web.Request) -> str:
    """The name faults know a request by; empty for what is no provider's."""
    return (request.match_info.route.name or "").partition("-")[0]


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[_STARTED] = time.perf_counter()
    wire = request[FORMAT] = _format_of(request)
    request[PROVIDER] = request.app[_PROVIDERS][wire.name]
    try:
        answer = await _answer_or_refuse(request, wire, handler)
        if isinstance(answer, web.Response):
            return await _deliver(request, request[PROVIDER], answer)
    except (Dropped, ConnectionResetError):  # the latter: the caller left while it was being written to
        return web.Response(status=500)  # goes nowhere: the connection is closed
    return answer


async def _answer_or_refuse(request: web.Request, wire: Format, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or its refusal in the caller's error shape."""
    operation, faults = _operation(request), request[PROVIDER].faults
    try:
        if not request.path.startswith("/simulator/"):
            wire.admit(request)
            _try_key(request, wire, operation)
        told = None if operation in _SPEAKS_BEFORE else faults.take("non_json_bodies", operation)
        if told is not None and not told.get("commit"):
            return html_page(told)
        answer = await handler(request)
        return answer if told is None else html_page(told)
    except Refusal as refusal:
        return _refuse(refusal)
    except web.HTTPRequestEntityTooLarge:
        return _refuse(wire.refusal(Trouble(Why.TOO_LARGE)))
    except web.HTTPException as wrong:
        facts = {"method": request.method, "path": request.path}
        return _refuse(wire.refusal(Trouble(Why.NO_SUCH_CALL, wrong.status, facts)))


def _try_key(request: web.Request, wire: Format, operation: str) -> None:
    """Note the key of a request. Raises Refusal where a fault has befallen it."""
    key, faults = wire.key_of(request), request[PROVIDER].faults
    request[KEY] = key
    if faults.befalls("key_revoked", operation, key):
        raise wire.refusal(Trouble(Why.KEY_REVOKED))
    if operation in COSTLY and faults.befalls("quota_used_up", operation, key):
        raise wire.refusal(Trouble(Why.NO_MONEY))


def _refuse(refusal: Refusal) -> web.Response:
    answer = json_reply(refusal.body(), refusal.status)
    answer.headers.update(refusal.headers)
    return answer


async def _sign(request: web.Request, answer: web.StreamResponse) -> None:
    """The headers every answer has."""
    took_s = time.perf_counter() - request.get(_STARTED, time.perf_counter())
    _format_of(request).sign(answer.headers, took_s)
    answer.headers["Date"] = email.utils.formatdate(request.app[_SHARED].clock.unix(), usegmt=True)


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
    return json_reply(summed({name: each.invoice.view() for name, each in request.app[_PROVIDERS].items()}))


async def _log(request: web.Request) -> web.Response:
    return json_reply(list(request.app[_SHARED].events))


async def _get_faults(request: web.Request) -> web.Response:
    return json_reply(request.app[_SHARED].faults.view())


async def _put_faults(request: web.Request) -> web.Response:
    try:
        specs: Any = msgspec.json.decode(await request.read(), type=list[dict[str, Any]])
        request.app[_SHARED].faults.replace(specs)
    except (ValueError, TypeError) as wrong:  # msgspec's errors are ValueErrors too
        raise Refusal(400, f"These are no faults: {wrong}") from None
    return json_reply(request.app[_SHARED].faults.view())


async def _forward(request: web.Request) -> web.Response:
    clock = request.app[_SHARED].clock
    try:
        clock.forward(msgspec.json.decode(await request.read(), type=float))
    except (ValueError, TypeError) as wrong:
        raise Refusal(400, f"This is no number of provider seconds: {wrong}") from None
    return json_reply({"elapsed_s": clock.elapsed()})


async def _delete_faults(request: web.Request) -> web.Response:
    request.app[_SHARED].faults.replace(())
    return json_reply([])
