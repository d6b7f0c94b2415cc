"""Loopback servers for the tests of this folder: one that misbehaves on the wire, one that speaks JSON."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A TCP server on loopback; yields its ``http://host:port``."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """``(request line, headers, body)`` of the next request on this connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return first, headers, body


def reset(writer: asyncio.StreamWriter) -> None:
    """Answer with a TCP reset."""
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@dataclass
class Api:
    """A scripted JSON server: ``routes`` maps ``"METHOD /path"`` to what it answers, in turn; the last one stays."""

    routes: dict[str, list[Any]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0

    def on(self, route: str, *answers: Any) -> None:
        """Each answer is a body (dict: 200 JSON), a ``(status, body)`` or a ``(status, body, headers)``."""
        self.routes[route] = list(answers)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            request = await read_request(reader)
            self.seen.append(request)
            method, target, _ = request[0].split(" ")
            answers = self.routes.get(f"{method} {target}") or self.routes[f"{method} {target.partition('?')[0]}"]
            said = answers.pop(0) if len(answers) > 1 else answers[0]
            status, body, headers = (*said, {}, {})[:3] if isinstance(said, tuple) else (200, said, {})
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            writer.write(answer(status, raw, headers))
            await writer.drain()
