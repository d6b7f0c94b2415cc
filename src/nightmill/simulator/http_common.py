"""What every request handler of the simulator shares: the account, bodies, and answers that go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from nightmill.simulator.provider import Provider
from nightmill.simulator.wire import ApiError, encode, no_quota

PROVIDER = web.AppKey("provider", Provider)
_HTML = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_HOLD_S = 600.0


class Dropped(Exception):
    """The connection was closed instead of answering."""


def scope_of(request: web.Request) -> str:
    """The account of a request: files and batches belong to an organisation and a project."""
    headers = request.headers
    return f"{headers.get('OpenAI-Organization', '')}/{headers.get('OpenAI-Project', '')}"


def api_key(request: web.Request) -> str:
    """The bearer key.

    Raises:
        ApiError: 401 for no key or a wrong one.
    """
    kind, _, key = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
        raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
    if key.strip() == "sk-wrong":
        message = "Incorrect API key provided: sk-wrong. You can find your API key at https://platform.openai.com/account/api-keys."
        raise ApiError(401, message, code="invalid_api_key")
    return key.strip()


def refuse_without_quota(request: web.Request) -> None:
    """Raise the 429 of an account that has no money left, for the key ``sk-noquota``."""
    if api_key(request) == "sk-noquota":
        raise no_quota()


async def json_object(request: web.Request) -> dict[str, Any]:
    """The JSON object a request carries, or 400."""
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = (
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
        )
        raise ApiError(400, message) from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body of your request must be a JSON object.")
    return body


def whole_number(request: web.Request, name: str, default: int, most: int) -> int:
    """An integer from the query, 1 to ``most``, or 400."""
    given = request.query.get(name)
    if given is None:
        return default
    if not given.lstrip("-").isdigit():
        raise ApiError(400, f"Invalid '{name}': expected an integer.", param=name, code="invalid_type")
    if not 1 <= int(given) <= most:
        side = "below_min" if int(given) < 1 else "above_max"
        message = f"Invalid '{name}': expected a value between 1 and {most}, but got {given} instead."
        raise ApiError(400, message, param=name, code=f"integer_{side}_value")
    return int(given)


def json_reply(body: Any, status: int = 200) -> web.Response:
    """A JSON response."""
    raw = body if isinstance(body, bytes) else encode(body)
    return web.Response(body=raw, status=status, content_type="application/json")


async def hang_up(request: web.Request, after_s: float = 0.0) -> None:
    """Close the connection with no answer, ``after_s`` real seconds from now.

    Raises:
        Dropped: always.
    """
    transport = request.transport
    if after_s > 0:
        await asyncio.sleep(after_s)
    if transport is not None:
        transport.abort()
    raise Dropped


def hold_s(params: Mapping[str, Any]) -> float:
    """How long a fault keeps its caller waiting, in real seconds."""
    return float(params.get("delay_s", _HOLD_S))


def html_page(params: Mapping[str, Any]) -> web.Response:
    """What a gateway says when it has nothing to say."""
    return web.Response(body=_HTML, status=int(params.get("status", 502)), content_type="text/html")


async def send_short(request: web.Request, answer: web.Response) -> None:
    """Send the headers of ``answer`` and half its body, then cut the connection. Raises Dropped."""
    body = bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""
    await _start(request, answer, len(body), body[: len(body) // 2])
    await asyncio.sleep(0.02)  # let the half leave before the cut: a reset would swallow it
    if request.transport is not None:
        request.transport.close()
    raise Dropped


async def send_slowly(request: web.Request, answer: web.Response, params: Mapping[str, Any]) -> web.StreamResponse:
    """Send ``answer`` in pieces with pauses between."""
    body = bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""
    pieces = max(1, int(params.get("pieces", 10)))
    step = max(1, -(-len(body) // pieces))
    stream = await _start(request, answer, len(body), body[:step])
    for at in range(step, len(body), step):
        await asyncio.sleep(float(params.get("delay_s", 0.05)))
        await stream.write(body[at : at + step])
    await stream.write_eof()
    return stream


async def _start(request: web.Request, answer: web.Response, size: int, first: bytes) -> web.StreamResponse:
    stream = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
    stream.headers.update({k: v for k, v in answer.headers.items() if k.lower().startswith(("x-", "retry-"))})
    stream.content_length = size
    await stream.prepare(request)
    await stream.write(first)
    return stream
