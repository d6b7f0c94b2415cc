"""HTTP for providers: one request, one try, and a plain answer to "can it have been processed?".

Nothing here retries. What fails raises `NeverSent` when no connection was made, so that nothing can
have run, and `Uncertain` in every other case; an answer, of whatever status, is a `Reply`.
aiohttp is imported with the first request: planning and decoding do not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.request import getproxies, proxy_bypass

from nightmill.errors import NeverSent, StoreError, Uncertain
from nightmill.files import sync_folder
from nightmill.killpoints import reach

if TYPE_CHECKING:
    import aiohttp

MAX_BODY_BYTES = 64 * 1024 * 1024  # an answer held in memory
MAX_ERROR_BYTES = 1024 * 1024  # of the body of a refused download
_CHUNK_BYTES = 1 << 18
_REST_S = 15.0  # unused for longer, a connection may have been forgotten on its way
_PUT_BACK = "put the home folder back from a backup"
_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. Header names are lower-case; of a repeated header the last one counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes  # empty for a download that reached its file


@dataclass(slots=True)
class _Exchange:
    """One request on its way. ``left`` turns true just before anything of it can leave that could be acted on."""

    op: str
    left: bool = False
    held: bool = False  # its body is of no use to anyone until its last piece leaves

    def leave(self) -> None:
        if self.held:
            return
        self.left = True
        reach(f"http.{self.op}.sending")


_on_its_way: ContextVar[_Exchange] = ContextVar("on its way")


_Resting = deque[tuple[Any, float]]  # connections to one server that wait for a next request, and since when


@dataclass(frozen=True, slots=True)
class _Route:
    """What all plain requests to one URL have in common, made once."""

    headers: Mapping[str, str]  # the caller's, to know them by
    pattern: aiohttp.ClientRequest  # what the connector asks about host, port and TLS
    head: bytes  # the request up to the value of Content-Length
    timeout: aiohttp.ClientTimeout
    deadlines: _Deadlines
    resting: _Resting

    def rested(self) -> Any:
        """A kept connection, if one is good: with an answer in it that nobody asked for, all after it shift."""
        while self.resting:
            connection, since = self.resting.popleft()  # in turn: none rests so long that the server closes it
            protocol = connection.protocol
            fresh = self.pattern.loop.time() - since <= _REST_S
            if fresh and protocol.is_connected() and not protocol.should_close:
                return connection
            connection.close()
        return None

    def let_go(self, connection: Any) -> None:
        """Keep the connection for a next request, unless the server answered before it had heard all of this one."""
        transport = connection.transport
        if transport is None or transport.get_write_buffer_size():
            connection.close()
        else:
            self.resting.append((connection, self.pattern.loop.time()))


class _Deadlines:
    """Cancels tasks that take longer than ``limit_s``; one timer for all, since they are late in the order they began.

    A timer each would cost more than reading the answer.
    """

    def __init__(self, limit_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._limit_s, self._loop = limit_s, loop
        self._due: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[Any]) -> None:
        due = self._due[task] = self._loop.time() + self._limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._wake)

    def end(self, task: asyncio.Task[Any]) -> bool:
        """Whether ``task`` was cancelled for being late."""
        return self._due.pop(task, None) is None

    def _wake(self) -> None:
        self._loop.call_soon(self._cancel_late)  # after who has an answer: it may be we who stood still

    def _cancel_late(self) -> None:
        self._timer, now = None, self._loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._wake)
                return
            del self._due[task]
            task.cancel()


class Http:
    """A client for one provider. Bound to the event loop of its first request until `close`.

    Args:
        secrets: texts that no message may contain, such as the key.
        connect_s: most seconds to make a connection, TLS included; always less than the total.
        clock: unix seconds.
    """

    def __init__(
        self,
        *,
        secrets: tuple[str, ...] = (),
        connect_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = tuple(secret for secret in secrets if secret)
        self._connect_s = connect_s
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}
        self._routes: dict[tuple[str, str, float], _Route] = {}
        self._resting: dict[Any, _Resting] = {}  # by aiohttp's key of a server
        self._last_date = ""
        self._skew_s = 0.0

    def clock_skew_s(self) -> float:
        """The server's clock minus ours, from the last ``Date`` header; 0.0 before any answer."""
        return self._skew_s

    def request(
        self,
        op: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float = 60.0,
        fresh: bool = False,
    ) -> Coroutine[Any, Any, Reply]:
        """Send one request and read its whole answer.

        Args:
            op: names the kill points, ``http.{op}.sending`` and ``http.{op}.answered``.
            timeout_s: for everything, from name lookup to the last byte of the answer.
            fresh: on a connection of its own. A kept one may have been closed by the server
                unseen, which would leave a request in doubt for nothing.

        Raises:
            NeverSent: no connection was made.
            Uncertain: sent, and no whole answer came back.
        """
        return self._exchange(op, method, url, headers, body, timeout_s, fresh=fresh)

    async def upload(
        self,
        op: str,
        url: str,
        file: Path,
        *,
        headers: Mapping[str, str],
        name: str,
        fields: Mapping[str, str],
        timeout_s: float = 900.0,
    ) -> Reply:
        """POST ``file`` as the part ``file`` of a multipart form, streamed from disk.

        Raises:
            NeverSent, Uncertain: as `request`.
            StoreError: ``file`` cannot be read.
        """
        import aiohttp

        form = aiohttp.FormData()
        for field, value in fields.items():
            form.add_field(field, value)
        with _opened(file) as opened:
            form.add_field("file", opened, filename=name, content_type="application/jsonl")
            return await self._exchange(op, "POST", url, headers, form, timeout_s, fresh=True)

    async def send_file(
        self, op: str, url: str, file: Path, *, headers: Mapping[str, str], timeout_s: float = 900.0
    ) -> Reply:
        """POST the bytes of ``file`` and nothing else, streamed from disk.

        Raises:
            NeverSent, Uncertain: as `request`.
            StoreError: ``file`` cannot be read.
        """
        with _opened(file) as opened:
            return await self._exchange(op, "POST", url, headers, opened, timeout_s, fresh=True)

    async def stream(
        self,
        op: str,
        url: str,
        file: Path,
        *,
        headers: Mapping[str, str],
        around: tuple[bytes, bytes],
        timeout_s: float = 900.0,
    ) -> Reply:
        """POST the lines of ``file`` as the items of one JSON list, streamed from disk, on a connection of its own.

        The body is ``around[0]``, the lines with a comma in place of each newline but the last, and ``around[1]``.

        Raises:
            NeverSent, Uncertain: as `request`; what breaks before the last piece of the body leaves was never
                sent, since less than all of it is no JSON.
            StoreError: ``file`` cannot be read, or does not end with a newline.
        """
        before, after = around
        with _opened(file) as opened:
            size = opened.seek(0, os.SEEK_END)
            if not _ends_a_line(opened, size):
                raise StoreError(f"{file} is cut", why="it does not end with a newline", fix=_PUT_BACK)
            exchange = _Exchange(op, held=True)
            sized = {**headers, "Content-Length": str(len(before) + size - 1 + len(after))}
            body = _list_of_lines(opened, size - 1, before, after, exchange)
            return await self._exchange(op, "POST", url, sized, body, timeout_s, fresh=True, exchange=exchange)

    async def download(
        self,
        op: str,
        url: str,
        to: Path,
        *,
        headers: Mapping[str, str],
        timeout_s: float = 900.0,
    ) -> Reply:
        """GET ``url`` into the file ``to``, which appears only whole and synced to disk.

        An answer other than 200 is returned with its body, and ``to`` is left alone. Redirects are
        followed, to another host without the key: files may lie elsewhere.

        Raises:
            NeverSent, Uncertain: as `request`; a body that ends early, or that does not say
                where it ends, is uncertain.
            StoreError: ``to`` cannot be written.
        """
        plain = {**headers, "Accept-Encoding": "identity"}
        return await self._exchange(op, "GET", url, plain, None, timeout_s, fresh=False, to=to)

    async def close(self) -> None:
        """Close every connection; the next request opens anew, in whatever loop runs then."""
        sessions, self._pooled, self._fresh, self._loop = (self._pooled, self._fresh), None, None, None
        self._routes.clear()
        for resting in self._resting.values():
            for connection, _ in resting:
                connection.close()
        self._resting.clear()
        for session in sessions:
            if session is not None:
                await session.close()

    def redact(self, text: str) -> str:
        """``text`` without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def _exchange(
        self,
        op: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: Any,
        timeout_s: float,
        *,
        fresh: bool,
        to: Path | None = None,
        exchange: _Exchange | None = None,
    ) -> Reply:
        import aiohttp

        exchange = exchange or _Exchange(op)
        session = self._session(fresh=fresh)
        plain = type(data) is bytes and to is None and not fresh
        try:
            if plain and (route := self._route(session, method, url, headers, timeout_s)) is not None:
                reply = await _post(session.connector, route, data, exchange)
            else:
                _on_its_way.set(exchange)
                # One session stands for all requests of a kind; entering a request, not the session.
                async with session.request(
                    method, url, headers=headers, data=data, proxy=self._proxy(url),
                    allow_redirects=to is not None, timeout=self._timeout(timeout_s),
                ) as response:  # fmt: skip
                    reply = await self._read(response, to)
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, ValueError) as exc:
            # Built-in TimeoutError is an OSError; ValueError is aiohttp's for URLs and headers.
            raise self._failure(exchange, url, exc, timeout_s) from None
        self._note_date(reply.headers.get("date", ""))
        reach(f"http.{op}.answered")
        return reply

    async def _read(self, response: aiohttp.ClientResponse, to: Path | None) -> Reply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        if to is None:
            body = await _bounded(response.content, headers, MAX_BODY_BYTES)
        elif response.status == 200:
            body = b""
            _check_ends(response, headers)
            await _save(response, to)
        else:
            body = await _bounded(response.content, headers, MAX_ERROR_BYTES)
        return Reply(response.status, headers, body)

    def _timeout(self, timeout_s: float) -> aiohttp.ClientTimeout:
        import aiohttp

        return aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(self._connect_s, timeout_s / 2))

    def _route(
        self, session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str], timeout_s: float
    ) -> _Route | None:
        """How requests go to ``url``; None where a proxy or a login in the URL wants aiohttp's whole care."""
        key = (method, url, timeout_s)
        route = self._routes.get(key)
        if route is None or route.headers is not headers:
            if self._proxy(url) is not None or not _is_plain(url):
                return None
            timeout = self._timeout(timeout_s)
            route = self._routes[key] = _prepared(session, method, url, headers, timeout, self._resting)
        return route

    def _failure(self, exchange: _Exchange, url: str, exc: Exception, timeout_s: float) -> NeverSent | Uncertain:
        host = url.split("//", 1)[-1].split("/", 1)[0].rpartition("@")[2]
        said = shorten(self.redact(str(exc)), 200)
        why = f"{type(exc).__name__}: {said}" if said else type(exc).__name__
        if isinstance(exc, TimeoutError):
            why += f" (the limit was {timeout_s:g} s)"
        if exchange.left:
            return Uncertain(f"{exchange.op}: no whole answer from {host}", why=why)
        if exchange.held:
            return NeverSent(
                f"{exchange.op}: not all of it left for {host}",
                why=why,
                fix="check the network and the base URL; if it is slow, raise create_timeout_s or lower --batch-size",
            )
        return NeverSent(
            f"{exchange.op}: no connection to {host}",
            why=why,
            fix="check the network and the base URL",
        )

    def _session(self, *, fresh: bool) -> aiohttp.ClientSession:
        if self._loop is None:
            self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        elif threading.get_ident() != self._thread or asyncio.current_task(self._loop) is None:
            # As exact as asking for the running loop, which costs a system call each time.
            raise RuntimeError("this client belongs to another event loop: close it there first")
        if fresh:
            if self._fresh is None:
                self._fresh = _open(keep=False)
            return self._fresh
        if self._pooled is None:
            self._pooled = _open(keep=True)
        return self._pooled

    def _proxy(self, url: str) -> str | None:
        # aiohttp's trust_env asks the environment and ~/.netrc anew in two threads for each
        # request, and a netrc entry for the host then clashes with our own key.
        scheme, _, rest = url.partition("://")
        host = rest.split("/", 1)[0]
        origin = f"{scheme}://{host}"
        if origin not in self._proxies:
            bypassed = proxy_bypass(host.rpartition("@")[2])
            self._proxies[origin] = None if bypassed else getproxies().get(scheme)
        return self._proxies[origin]

    def _note_date(self, date: str) -> None:
        if not date or date == self._last_date:
            return
        with contextlib.suppress(ValueError):
            self._skew_s = parsedate_to_datetime(date).timestamp() - self._clock()
            self._last_date = date


def shorten(text: str, limit: int = 300) -> str:
    """``text`` on one line, single-spaced and without control characters, at most ``limit`` characters long."""
    text = _CONTROL.sub(" ", text[: limit * 4]).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the server asks to wait, from ``retry-after-ms`` or ``retry-after``; None if it does not.

    A date is counted from the answer's own ``Date``, or from ``now`` (unix seconds).
    """
    ms = _seconds(headers.get("retry-after-ms", ""))
    if ms is not None:
        return ms / 1000
    text = headers.get("retry-after", "")
    plain = _seconds(text)
    if plain is not None or not text:
        return plain
    try:
        due = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    with contextlib.suppress(ValueError):
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    return max(0.0, due - now)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def _open(*, keep: bool) -> aiohttp.ClientSession:
    """A session that neither retries nor limits how many requests are in flight."""
    import aiohttp

    class Connector(aiohttp.TCPConnector):
        connect_plainly = aiohttp.TCPConnector.connect

        async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - aiohttp's own
            connection = await super().connect(req, traces, timeout)
            # It stands, proxy and TLS included, and nothing is written yet. aiohttp's traces would
            # tell the same, but send half a dozen signals for each request.
            _on_its_way.get().leave()
            return connection

        async def _get(self, key: Any, traces: Any) -> Any:
            """A kept connection, if one is at rest: with an answer in it that nobody asked for, all after it shift."""
            kept: Any = await super()._get(key, traces)
            while kept is not None and kept.protocol.should_close:
                kept.close()
                kept = await super()._get(key, traces)
            return kept

    session = aiohttp.ClientSession(
        connector=Connector(limit=0, force_close=not keep),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "nightmill"},
    )
    # aiohttp repeats a GET, PUT or DELETE whose kept connection was dropped, and offers no setting.
    session._retry_connection = False
    return session


def _is_plain(url: str) -> bool:
    return url.startswith(("http://", "https://")) and "@" not in url and "#" not in url


def _prepared(
    session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout,
    resting: dict[Any, _Resting],
) -> _Route:  # fmt: skip
    """Raises ValueError for a URL or headers that cannot be sent."""
    import aiohttp
    from yarl import URL

    target = URL(url)
    given = {"User-Agent": "nightmill", **headers}
    pattern = aiohttp.ClientRequest(method, target, headers=given, loop=asyncio.get_running_loop(), session=session)
    lines = [f"{method} {target.raw_path_qs} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in pattern.headers.items() if name.lower() != "content-length"]
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ValueError("a line break in a header")
    head = "\r\n".join([*lines, "Content-Length: "]).encode()
    deadlines = _Deadlines(timeout.total or math.inf, pattern.loop)
    return _Route(headers, pattern, head, timeout, deadlines, resting.setdefault(pattern.connection_key, deque()))


async def _post(connector: Any, route: _Route, body: bytes, exchange: _Exchange) -> Reply:
    """One request over a kept connection, on aiohttp's connector and parser without the layers between.

    Those cost more than all the rest of a live call: a task to write each body, a dozen objects, and
    care for redirects, cookies and streams that a provider's API has no use for.
    """
    task = cast("asyncio.Task[Any]", asyncio.current_task(route.pattern.loop))
    cancelling, connection = task.cancelling(), None
    route.deadlines.begin(task)
    try:
        connection = route.rested() or await connector.connect_plainly(route.pattern, [], route.timeout)
        protocol = connection.protocol
        protocol.set_response_params(read_until_eof=True)
        exchange.leave()
        _write(protocol.transport, b"%s%d\r\n\r\n%s" % (route.head, len(body), body))
        message, content = await protocol.read()
        while 100 <= message.code < 200 and message.code != 101:  # "go on" and "early hints" come before the answer
            message, content = await protocol.read()
        headers = {name.lower(): value for name, value in message.headers.items()}
        said = await _bounded(content, headers, MAX_BODY_BYTES)
    except BaseException as exc:
        if connection is not None:
            connection.close()
        late = route.deadlines.end(task)
        if late and isinstance(exc, asyncio.CancelledError) and task.uncancel() <= cancelling:
            raise TimeoutError from None
        raise
    route.deadlines.end(task)
    route.let_go(connection)
    return Reply(message.code, headers, said)


def _write(transport: asyncio.Transport | None, data: bytes) -> None:
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the connection was lost before the request was written")
    transport.write(data)


def _opened(file: Path) -> BufferedReader:
    try:
        return file.open("rb")
    except OSError as exc:
        raise StoreError(f"cannot read {file}", why=str(exc), fix=_PUT_BACK) from exc


def _ends_a_line(opened: BinaryIO, size: int) -> bool:
    opened.seek(max(0, size - 1))
    return opened.read(1) == b"\n"


async def _list_of_lines(
    opened: BinaryIO, size: int, before: bytes, after: bytes, exchange: _Exchange
) -> AsyncIterator[bytes]:
    """The first ``size`` bytes of a file of lines, as a list; ``exchange`` is held until the last piece."""
    opened.seek(0)
    yield before
    while size > 0 and (chunk := await asyncio.to_thread(opened.read, min(size, _CHUNK_BYTES))):
        size -= len(chunk)
        yield chunk.replace(b"\n", b",")
    exchange.held = False
    exchange.leave()
    yield after


async def _chunks(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    async for chunk in content.iter_chunked(_CHUNK_BYTES):
        yield chunk


async def _bounded(content: aiohttp.StreamReader, headers: Mapping[str, str], limit: int) -> bytes:
    size = headers.get("content-length", "")
    if size.isdigit() and int(size) <= limit and "content-encoding" not in headers:
        return content.read_nowait() if content.is_eof() else await content.read()
    parts, total = [], 0
    async for chunk in _chunks(content):
        total += len(chunk)
        if total > limit:
            raise ValueError(f"the answer is larger than {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _check_ends(response: aiohttp.ClientResponse, headers: Mapping[str, str]) -> None:
    """Refuse a body of which nobody could say whether it is whole."""
    if response.content_length is None and "chunked" not in headers.get("transfer-encoding", ""):
        raise ValueError("the answer has neither a Content-Length nor chunks: it may be cut")


async def _save(response: aiohttp.ClientResponse, to: Path) -> None:
    part = to.with_name(to.name + ".part")
    written = 0
    try:
        with _writing(part), part.open("wb") as file:
            async for chunk in _chunks(response.content):
                written += file.write(chunk)
            _check_length(response, written)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        with _writing(to):
            part.replace(to)
            sync_folder(to.parent)
    finally:
        part.unlink(missing_ok=True)


def _check_length(response: aiohttp.ClientResponse, written: int) -> None:
    size = response.content_length
    if size is not None and size != written and "Content-Encoding" not in response.headers:
        raise ValueError(f"{written} bytes came, {size} were announced")


@contextlib.contextmanager
def _writing(path: Path) -> Any:
    """Turn failures of our own disk into `StoreError`, and leave those of the network alone."""
    import aiohttp

    try:
        yield
    except (aiohttp.ClientError, TimeoutError):
        raise
    except OSError as exc:
        raise StoreError(f"cannot write {path}", why=str(exc), fix="free disk space, then resume") from exc
