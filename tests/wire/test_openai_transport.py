"""The client of the providers against servers that fail in every way a network can."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from openai_loopback import answer, read_request, reset, serving

from nightmill.errors import NeverSent, StoreError, Uncertain
from nightmill.providers import _http
from nightmill.providers._http import MAX_BODY_BYTES, Http, Reply, retry_after_s, shorten

KEY = "sk-very-secret-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


async def post(url: str, **options: object) -> Reply:
    http = Http(secrets=(KEY,), connect_s=1.0)
    try:
        options.setdefault("timeout_s", 5.0)
        return await http.request("create", "POST", url, headers=HEADERS, body=b"{}", **options)
    finally:
        await http.close()


async def download(url: str, to: Path, **options: object) -> Reply:
    http = Http(secrets=(KEY,))
    try:
        return await http.download("fetch", url, to, headers=HEADERS, **options)
    finally:
        await http.close()


def server_that_says(*raw: bytes, then_reset: bool = False, asked: list | None = None):
    """Answers one request a connection, which goes into ``asked``."""

    async def handler(reader, writer):
        request = await read_request(reader)
        if asked is not None:
            asked.append(request)
        for piece in raw:
            writer.write(piece)
            await writer.drain()
        if then_reset:
            reset(writer)

    return handler


def test_a_refused_connection_was_never_sent():
    """With nobody listening, nothing can have run."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1/x"
        with pytest.raises(NeverSent) as caught:
            asyncio.run(post(url))
    assert "127.0.0.1" in str(caught.value)


def test_an_unknown_host_was_never_sent():
    """A name that does not resolve is no doubt about money."""
    with pytest.raises(NeverSent):
        asyncio.run(post("http://no-such-host.invalid/v1/x"))


def test_an_unusable_url_was_never_sent():
    """A base URL that is none fails as one, not as a crash."""
    with pytest.raises(NeverSent):
        asyncio.run(post("http://"))


@pytest.mark.parametrize("how", ["garbage", "reset", "silence"])
def test_a_failed_tls_handshake_was_never_sent(how):
    """Before TLS stands the request has not left, whatever kills the handshake."""

    async def handler(reader, writer):
        await reader.read(1)
        if how == "garbage":
            writer.write(b"this is no TLS at all, not even nearly\n" * 4)
            await writer.drain()
        elif how == "reset":
            reset(writer)
        else:
            await reader.read(-1)

    async def run():
        async with serving(handler) as base:
            http = Http(connect_s=0.3)
            try:
                await http.request("create", "POST", base.replace("http:", "https:"), headers={}, body=b"{}")
            finally:
                await http.close()

    with pytest.raises(NeverSent):
        asyncio.run(run())


def test_a_connection_that_is_not_accepted_in_time_was_never_sent():
    """A full backlog ends in the connect timeout, well before the total one, and nothing was sent."""

    async def run():
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            address = deaf.getsockname()
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(address)
                fillers.append(filler)
            http = Http(connect_s=0.2)
            try:
                await http.request("create", "POST", f"http://127.0.0.1:{address[1]}/", headers={}, timeout_s=5.0)
            finally:
                await http.close()
                for filler in fillers:
                    filler.close()

    with pytest.raises(NeverSent, match="no connection"):
        asyncio.run(run())


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
AFTER_SENDING = {
    "reset": server_that_says(then_reset=True),
    "close": server_that_says(),
    "garbage": server_that_says(b"\x00\xff nonsense\r\n\r\n"),
    "half a header": server_that_says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "short body": server_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "reset in the body": server_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", then_reset=True),
    "cut chunks": server_that_says(CHUNKED + b"5\r\nhello\r\n"),
    "bad chunk": server_that_says(CHUNKED + b"zzzz\r\nhello\r\n0\r\n\r\n"),
    "bad gzip": server_that_says(answer(200, b"not gzip at all", {"Content-Encoding": "gzip"})),
    "two lengths": server_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "endless header": server_that_says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"),
}


@pytest.mark.parametrize("how", AFTER_SENDING)
def test_what_breaks_after_sending_is_uncertain(how):
    """Once the request is out, only a whole answer counts; anything else may have run."""

    async def run():
        async with serving(AFTER_SENDING[how]) as base:
            await post(base + "/v1/x")

    with pytest.raises(Uncertain) as caught:
        asyncio.run(run())
    assert KEY not in f"{caught.value!r} {caught.value.why}"


@pytest.mark.parametrize("drips", [False, True])
def test_an_answer_that_takes_too_long_is_uncertain(drips):
    """The limit is on the whole exchange: a server that drips cannot stretch it."""

    async def handler(reader, writer):
        await read_request(reader)
        if drips:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not reader.at_eof():
            if drips:
                writer.write(b" ")
            try:
                await asyncio.wait_for(reader.read(1), 0.05)
            except TimeoutError:
                continue

    async def run():
        async with serving(handler) as base:
            await post(base + "/v1/x", timeout_s=0.4)

    with pytest.raises(Uncertain, match="no whole answer") as caught:
        asyncio.run(run())
    assert "0.4 s" in caught.value.why


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_nothing_is_sent_twice(method):
    """A kept connection that is dropped on reuse is not papered over with a second request."""
    requests = []

    async def handler(reader, writer):
        requests.append(await read_request(reader))
        writer.write(answer(200, b"{}"))
        await writer.drain()
        requests.append(await read_request(reader))

    async def run():
        http = Http()
        async with serving(handler) as base:
            await http.request("get", method, base + "/", headers={})
            try:
                await http.request("get", method, base + "/", headers={}, timeout_s=2.0)
            finally:
                await http.close()

    with pytest.raises(Uncertain):
        asyncio.run(run())
    assert len(requests) == 2


def test_a_fresh_request_rides_on_a_connection_of_its_own():
    """A create is not put in doubt by a kept connection that the server has closed meanwhile."""
    connections = []

    async def handler(reader, writer):
        connections.append(1)
        while True:
            await read_request(reader)
            writer.write(answer(200, b"{}"))
            await writer.drain()

    async def run():
        http = Http()
        async with serving(handler) as base:
            await http.request("get", "GET", base + "/", headers={})
            await http.request("create", "POST", base + "/", headers={}, body=b"{}", fresh=True)
            await http.request("create", "POST", base + "/", headers={}, body=b"{}", fresh=True)
            await http.close()

    asyncio.run(run())
    assert len(connections) == 3


def test_a_kept_connection_says_what_a_fresh_one_says():
    """The short way to send and aiohttp's own put the same request on the wire."""
    seen = []

    async def handler(reader, writer):
        while True:
            seen.append(await read_request(reader))
            writer.write(answer(200, b"{}"))
            await writer.drain()

    async def run():
        http = Http()
        async with serving(handler) as base:
            for fresh in (True, False):
                url = base + "/v1/x?a=b%20c"
                await http.request("send", "POST", url, headers=HEADERS, body=b'{"a": 1}', fresh=fresh)
        await http.close()

    asyncio.run(run())
    (first, theirs, body), kept = seen
    assert theirs.pop("connection") == "close"
    assert theirs.pop("content-type") == "application/octet-stream"  # aiohttp's guess; providers name theirs
    assert kept == (first, theirs, body)


def test_what_comes_before_an_answer_is_not_the_answer():
    """Interim 1xx messages are passed over, and what follows counts."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 2

    async def run():
        async with serving(server_that_says(early, answer(200, b'{"a": 1}'))) as base:
            return await post(base + "/v1/x")

    assert asyncio.run(run()).body == b'{"a": 1}'


@pytest.mark.parametrize("how", ["cancelled", "late", "answered early"])
def test_a_connection_that_is_not_at_rest_is_not_used_again(how):
    """After a call that was cut off, or answered before it was heard, the next one gets its own answer."""
    connections = []

    async def handler(reader, writer, heard):
        connections.append(1)
        await reader.readuntil(b"\r\n\r\n")
        if len(connections) == 1:
            heard.set()
        if len(connections) > 1 or how == "answered early":
            writer.write(answer(200, b'{"n": %d}' % len(connections)))
            await writer.drain()
        await reader.read(-1)

    async def run():
        http, heard = Http(), asyncio.Event()
        async with serving(lambda reader, writer: handler(reader, writer, heard)) as base:
            limit_s = 0.2 if how == "late" else 5.0
            body = b"0" * 40_000_000  # more than the sockets' buffers take
            first = asyncio.create_task(http.request("send", "POST", base, headers={}, body=body, timeout_s=limit_s))
            await heard.wait()
            if how == "cancelled":
                first.cancel()
            (ended,) = await asyncio.gather(first, return_exceptions=True)
            reply = await http.request("send", "POST", base, headers={}, body=b"{}", timeout_s=5.0)
            await http.close()
        return ended, reply

    ended, reply = asyncio.run(run())
    assert isinstance(ended, {"cancelled": asyncio.CancelledError, "late": Uncertain, "answered early": Reply}[how])
    assert reply.body == b'{"n": 2}'


def test_an_answer_that_nobody_asked_for_is_nobodys():
    """A server that answers twice spoils its connection, not the answers of all calls after that."""
    connections = []

    async def handler(reader, writer, again):
        connections.append(1)
        first = len(connections) == 1
        while True:
            _, _, body = await read_request(reader)
            writer.write(answer(200, body))
            if first:
                await again.wait()
                writer.write(answer(200, body))

    async def run():
        http, again = Http(), asyncio.Event()
        async with serving(lambda reader, writer: handler(reader, writer, again)) as base:
            await http.request("send", "POST", base, headers=HEADERS, body=b"1")
            again.set()
            await http.request("send", "POST", base, headers=HEADERS, body=b"2", fresh=True)  # time for it to arrive
            said = [(await http.request("send", "POST", base, headers=HEADERS, body=b)).body for b in (b"3", b"4")]
            await http.close()
        return said

    assert asyncio.run(run()) == [b"3", b"4"]
    assert len(connections) == 3


def test_a_connection_is_kept_for_all_of_its_server_and_not_for_long(monkeypatch):
    """Whatever calls ask of a server they share a connection; long unused ones are closed, and all in the end."""
    closed: list[asyncio.Event] = []

    async def handler(reader, writer):
        closed.append(asyncio.Event())
        mine = closed[-1]
        try:
            while True:
                _, _, body = await read_request(reader)
                writer.write(answer(200, body))
        except asyncio.IncompleteReadError:
            mine.set()

    async def run():
        http = Http()
        async with serving(handler) as base:
            for path in ("/a", "/b", "/a"):
                await http.request("send", "POST", base + path, headers=dict(HEADERS), body=b"1")
            assert len(closed) == 1
            monkeypatch.setattr(_http, "_REST_S", -1.0)
            await http.request("send", "POST", base + "/b", headers=HEADERS, body=b"1")
            await asyncio.wait_for(closed[0].wait(), 5)
            assert len(closed) == 2
            await http.close()
            await asyncio.wait_for(closed[1].wait(), 5)

    asyncio.run(run())


def test_an_answer_that_came_while_we_stood_still_counts():
    """A process that was stopped past its limit reads first what lies in its sockets: that is paid for."""

    async def handler(reader, writer):
        loop = asyncio.get_running_loop()
        await read_request(reader)
        writer.write(answer(200, b'{"a": 1}'))
        now = loop.time() + 1000.0
        loop.time = lambda: now

    async def run():
        async with serving(handler) as base:
            return await post(base + "/v1/x")

    assert asyncio.run(run()).body == b'{"a": 1}'


def test_a_header_with_a_line_break_is_not_sent():
    """A value that would begin another header, or another request, leaves nothing on the wire."""
    seen = []

    async def handler(reader, writer):
        seen.append(await reader.read(1))

    async def run():
        http = Http()
        async with serving(handler) as base:
            try:
                await http.request("send", "POST", base, headers={"X-Name": "a\r\nX-Other: b"}, body=b"{}")
            finally:
                await http.close()

    with pytest.raises(NeverSent):
        asyncio.run(run())
    assert seen == []


def test_a_redirect_is_an_answer_and_is_not_followed():
    """A POST is never carried on to another address."""
    seen = []
    handler = server_that_says(answer(307, b"", {"Location": "/elsewhere"}), asked=seen)

    async def run():
        async with serving(handler) as base:
            return await post(base + "/v1/x")

    assert asyncio.run(run()).status == 307
    assert len(seen) == 1


def test_an_answer_comes_back_whole():
    """Status, headers and body arrive as sent, compressed or not, and the Date teaches the skew."""
    body = gzip.compress(b'{"a": 1}')
    headers = {"Content-Encoding": "gzip", "X-Request-ID": "req_1", "Date": "Thu, 01 Jan 1970 00:16:40 GMT"}

    async def run():
        http = Http(clock=lambda: 940.0)
        assert http.clock_skew_s() == 0.0
        async with serving(server_that_says(answer(503, body, headers))) as base:
            reply = await http.request("get", "GET", base + "/", headers={})
        await http.close()
        return reply, http.clock_skew_s()

    reply, skew = asyncio.run(run())
    assert (reply.status, reply.body, reply.headers["x-request-id"]) == (503, b'{"a": 1}', "req_1")
    assert skew == 60.0


def test_a_body_that_never_ends_does_not_fill_the_memory():
    """An answer past the bound is given up, also when it hides behind compression."""
    bomb = gzip.compress(b"\0" * (MAX_BODY_BYTES + 1))

    async def run():
        async with serving(server_that_says(answer(200, bomb, {"Content-Encoding": "gzip"}))) as base:
            await post(base + "/v1/x")

    with pytest.raises(Uncertain, match="no whole answer"):
        asyncio.run(run())


def test_the_key_is_in_no_message():
    """A server that echoes the key cannot make us print it."""
    echo = f"HTTP/1.1 2x0 {KEY}\r\n\r\n".encode()

    async def run():
        async with serving(server_that_says(echo)) as base:
            await post(base + "/v1/x")

    with pytest.raises(Uncertain) as caught:
        asyncio.run(run())
    assert KEY not in f"{caught.value!r} {caught.value.why} {caught.value.fix}"
    assert caught.value.__cause__ is None
    assert KEY not in repr(vars(caught.value))


def test_an_upload_streams_a_file_with_its_length(tmp_path):
    """The server sees one multipart form: purpose, file name, every byte, and a Content-Length."""
    file = tmp_path / "shard.jsonl"
    file.write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(200_000)))
    seen = []
    handler = server_that_says(answer(200, b'{"id": "file-1"}'), asked=seen)

    async def run():
        http = Http()
        async with serving(handler) as base:
            await http.upload(
                "upload", base + "/files", file, headers=HEADERS, name="t-1.1.jsonl", fields={"purpose": "batch"}
            )
        await http.close()

    asyncio.run(run())
    first, headers, body = seen[0]
    assert first.startswith("POST /files ")
    assert "transfer-encoding" not in headers
    assert file.read_bytes() in body
    assert b'name="purpose"\r\n\r\nbatch\r\n' in body
    assert b'name="file"; filename="t-1.1.jsonl"' in body


def test_an_upload_of_a_missing_file_is_a_store_error(tmp_path):
    """A file of ours that is gone is not blamed on the provider."""
    http = Http()
    with pytest.raises(StoreError):
        asyncio.run(http.upload("upload", "http://127.0.0.1:1/", tmp_path / "no", headers={}, name="n", fields={}))


def test_a_download_appears_whole(tmp_path):
    """The file holds exactly what was sent, and nothing lies beside it."""
    content = b'{"line": 1}\n' * 100_000

    async def run():
        async with serving(server_that_says(answer(200, content))) as base:
            return await download(base + "/f", tmp_path / "out.jsonl")

    assert asyncio.run(run()).status == 200
    assert (tmp_path / "out.jsonl").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_download_follows_to_where_the_file_lies(tmp_path, status):
    """A file may lie at another host, which is not given the key."""
    asked = []
    elsewhere = server_that_says(answer(200, b"{}"), asked=asked)

    async def run():
        async with serving(elsewhere) as there:
            moved = answer(status, b"", {"Location": there + "/blob"})
            async with serving(server_that_says(moved)) as base:
                return await download(base + "/f", tmp_path / "out.jsonl")

    assert asyncio.run(run()).status == 200
    assert (tmp_path / "out.jsonl").read_bytes() == b"{}"
    assert KEY not in str(asked)
    assert "/blob" in str(asked)


BROKEN_DOWNLOADS = {
    "short": server_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
    "reset": server_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", then_reset=True),
    "cut chunks": server_that_says(CHUNKED + b"3\r\nabc\r\n"),
    "no end": server_that_says(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"),
    "in circles": server_that_says(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /f\r\n\r\n"),
}


@pytest.mark.parametrize("how", BROKEN_DOWNLOADS)
def test_a_broken_download_leaves_no_file(tmp_path, how):
    """What was cut, or could have been, is never taken for a result file."""

    async def run():
        async with serving(BROKEN_DOWNLOADS[how]) as base:
            await download(base + "/f", tmp_path / "out.jsonl", timeout_s=3.0)

    with pytest.raises(Uncertain):
        asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_cannot_be_written_is_a_store_error(tmp_path):
    """A disk of ours that fails is not blamed on the provider."""

    async def run():
        async with serving(server_that_says(answer(200, b"abc"))) as base:
            await download(base + "/f", tmp_path / "missing" / "out.jsonl")

    with pytest.raises(StoreError):
        asyncio.run(run())


def test_a_proxy_from_the_environment_is_used(monkeypatch):
    """HTTP_PROXY takes effect, and NO_PROXY exempts."""
    seen = []
    handler = server_that_says(answer(200, b"{}"), asked=seen)

    async def run():
        async with serving(handler) as proxy:
            monkeypatch.setenv("http_proxy", proxy)
            monkeypatch.setenv("no_proxy", "exempt.invalid")
            await post("http://somewhere.invalid/v1/x")
            await post("http://exempt.invalid/v1/x")

    with pytest.raises(NeverSent, match=r"exempt\.invalid"):
        asyncio.run(run())
    assert [first for first, _, _ in seen] == ["POST http://somewhere.invalid/v1/x HTTP/1.1"]


def test_kill_points_stand_around_the_sending(monkeypatch):
    """A crash test can stop just before the request leaves and just after its answer; not when none left."""
    points = []
    monkeypatch.setattr("nightmill.providers._http.reach", points.append)

    async def run():
        async with serving(server_that_says(answer(200, b"{}"))) as base:
            await post(base + "/v1/x")
        await post(base + "/v1/x")

    with pytest.raises(NeverSent):
        asyncio.run(run())
    assert points == ["http.create.sending", "http.create.answered"]


def test_a_client_belongs_to_one_loop_until_it_is_closed():
    """Use in another loop is refused loudly while open, and works after close."""
    http = Http()

    async def once(close):
        async with serving(server_that_says(answer(200, b"{}"))) as base:
            reply = await http.request("get", "GET", base, headers={})
        if close:
            await http.close()
        return reply.status

    def in_a_thread():
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(once(close=False))

    async def elsewhere():
        await once(close=False)
        await asyncio.to_thread(in_a_thread)
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()  # the loop stands in a task of its own meanwhile
        await http.close()

    assert asyncio.run(once(close=True)) == 200
    assert asyncio.run(once(close=True)) == 200
    asyncio.run(elsewhere())


def test_a_certificate_nobody_vouches_for_is_refused(tmp_path):
    """The key goes to no server whose certificate cannot be verified."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    pem = tmp_path / "server.pem"
    ask = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=127.0.0.1 -days 2"
    subprocess.run([openssl, *ask.split(), "-keyout", pem, "-out", tmp_path / "c"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "c", pem)
    seen = []

    async def handler(reader, writer):
        seen.append(await reader.read(100))

    async def run():
        server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
        try:
            await post(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x")
        finally:
            server.close()

    with pytest.raises(NeverSent, match="no connection"):
        asyncio.run(run())
    assert seen == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:40 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:40 GMT", "date": "Thu, 01 Jan 1970 00:00:38 GMT"}, 2.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, None),
    ],
)
def test_retry_after_is_read(headers, seconds):
    """Seconds, milliseconds and dates are understood; nonsense is no wait."""
    assert retry_after_s(headers, 10.0) == seconds


def test_shorten_makes_text_fit_for_a_message():
    """No control character, no line break, no surrogate and no more than the limit."""
    assert shorten("a\x1b[31m\r\nb\ud800c", 80) == "a [31m b c"
    assert len(shorten("x" * 1000, 50)) == 50
