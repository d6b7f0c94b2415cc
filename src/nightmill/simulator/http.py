"""What the request handlers of every format share: whom a request is for, and answers that go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from nightmill.simulator.files import spool
from nightmill.simulator.formats import Format, encode
from nightmill.simulator.provider import Provider

PROVIDER = web.RequestKey("provider", Provider)  # whom a request is for
FORMAT = web.RequestKey("format", Format)
KEY = web.RequestKey("key", str)
_HTML = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_HOLD_S = 600.0
_CHUNK_BYTES = 1 << 18
_SERVED_WHOLE = ("short_body", "slow_bodies", "truncated_last_line")


class Dropped(Exception):
    """The connection was closed instead of answering."""


def json_reply(body: Any, status: int = 200) -> web.Response:
    """A JSON response."""
    raw = body if isinstance(body, bytes) else encode(body)
    return web.Response(body=raw, status=status, content_type="application/json")


async def read_form(request: web.Request, to: Path, max_bytes: int) -> tuple[dict[str, str], str | None, int]:
    """A form's text fields, its file's name (None: there was no file) and size; the file goes to ``to``.

    Raises:
        ValueError: it is no form that can be read.
    """
    fields: dict[str, str] = {}
    filename: str | None = None
    size = 0
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise ValueError("nested multipart bodies are not supported")
            if part.name == "file":
                filename = part.filename or ""
                size = await spool(_chunks(part), to, max_bytes)
            elif part.name:
                fields[part.name] = await part.text()
    except HttpProcessingError as broken:
        raise ValueError(str(broken)) from None
    return fields, filename, size


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        yield bytes(chunk)


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
    kept = request[FORMAT].kept_headers
    stream = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
    stream.headers.update({k: v for k, v in answer.headers.items() if k.lower().startswith(kept)})
    stream.content_length = size
    await stream.prepare(request)
    await stream.write(first)
    return stream


async def send_file(request: web.Request, path: Path, headers: Mapping[str, str]) -> web.StreamResponse:
    """What lies at ``path``, through whatever goes wrong with contents."""
    faults = request[PROVIDER].faults
    if not faults.concerns(_SERVED_WHOLE, "content"):
        return web.FileResponse(path, chunk_size=_CHUNK_BYTES, headers=headers)
    body = await asyncio.to_thread(path.read_bytes)
    if faults.take("truncated_last_line", "content") is not None:
        body = _cut_last_line(body)
    return web.Response(body=body, headers=headers)


def _cut_last_line(body: bytes) -> bytes:
    """``body`` without the second half of its last line."""
    start = body.rstrip(b"\n").rfind(b"\n") + 1
    return body[: start + (len(body) - start) // 2]
