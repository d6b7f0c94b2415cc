"""What every HTTP provider does in the same way: calls with its key, objects and pages out of answers, their failures.

A provider has an `Api` and keeps for itself what is its own wire: paths, bodies, how a refusal reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from nightmill.config import Timing
from nightmill.errors import NeverSent, ProviderError, Refused, Uncertain
from nightmill.providers import Account, BatchView, Key
from nightmill.providers._http import Http, Reply, shorten
from nightmill.providers._json import load_json
from nightmill.providers.servers import Server

Item = TypeVar("Item")
REFUSALS = (400, 401, 402, 403, 404, 413, 422)  # where the provider's own word means that nothing was done
_LIST_MARGIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A page of a list, and what the next one is asked for by: None after the last, empty where nobody can tell."""

    items: list[Item]
    after: str | None


class Api:
    """One server with one key. Every call is made once.

    Args:
        failure: what an answer that is no clean success means, from the call's name, the answer and unix seconds.
        headers: sent with every call, before those of the settings.
    """

    def __init__(
        self, server: Server, *, key: str, base_url: str, timing: Timing,
        failure: Callable[[str, Reply, float], ProviderError], headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.base, self.timing, self._server, self._read_failure = base_url, timing, server, failure
        self.headers = {**(headers or {}), **server.headers}
        if key:
            self.headers[server.key_header] = f"Bearer {key}" if server.key_header == "Authorization" else key
        self.json_headers = {**self.headers, "Content-Type": "application/json"}
        self._key = key.encode()
        self.http = Http(secrets=(key,))

    def account(self, name: str, organization: str = "", project: str = "") -> Account:
        """Whose batches and limits the calls are about; ``name`` is the provider's."""
        fingerprint = hashlib.blake2b(self._key).hexdigest()[:12] if self._key else ""
        key = Key(self._server.keys[0] if self._server.keys else "", fingerprint) if fingerprint else Key()
        own = "" if self._server.same_account else fingerprint
        return Account(name, self.base, organization, project, own, key)

    # -- calls -----------------------------------------------------------------------------------

    async def call(
        self, op: str, method: str, path: str, body: Any = None, *, fresh: bool = False,
        timeout_s: float | None = None, headers: Mapping[str, str] | None = None,
    ) -> Reply:  # fmt: skip
        """One call, with ``body`` as JSON. Raises NeverSent, Uncertain, see `Http.request`."""
        common = self.headers if body is None else self.json_headers
        return await self.http.request(
            op,
            method,
            self.base + path,
            headers={**common, **headers} if headers else common,
            body=None if body is None else msgspec.json.encode(body),
            timeout_s=timeout_s or self.timing.request_timeout_s,
            fresh=fresh,
        )

    async def ask(self, op: str, method: str, path: str, *texts: str, body: Any = None) -> dict[str, Any]:
        """The JSON object that a call brings back; see `call` and `object`."""
        return self.object(op, await self.call(op, method, path, body), *texts)

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        """A live request, its bytes as they are. Where the answer is an error, it does not repeat our key."""
        reply = await self.http.request(
            "send", "POST", self.base + path, headers=self.json_headers, body=body, timeout_s=timeout_s
        )
        if reply.status >= 400 and self._key and self._key in reply.body:
            return replace(reply, body=reply.body.replace(self._key, b"***"))
        return reply

    async def fetch(self, path: str, to: Path, *, gone: Callable[[ProviderError], bool]) -> bool:
        """Stream a result file to ``to``. False where it is gone in the provider's own words, as ``gone`` reads them.

        Raises:
            ProviderError: any kind.
            StoreError: ``to`` cannot be written.
        """
        timeout_s = self.timing.upload_timeout_s
        reply = await self.http.download("fetch", self.base + path, to, headers=self.headers, timeout_s=timeout_s)
        if reply.status == 200:
            await asyncio.to_thread(refuse_foreign, to)
            return True
        problem = self.failure("fetch", reply)
        if gone(problem):
            return False
        raise problem

    # -- what answers say ------------------------------------------------------------------------

    def object(self, op: str, reply: Reply, *texts: str) -> dict[str, Any]:
        """The JSON object of a clean success in which each of ``texts`` is a non-empty text; else raises `failure`."""
        if 200 <= reply.status < 300:
            try:
                whole = load_json(reply.body)
            except ValueError:
                whole = None
            if isinstance(whole, dict) and all(isinstance(whole.get(key), str) and whole[key] for key in texts):
                return whole
        raise self.failure(op, reply)

    def failure(self, op: str, reply: Reply) -> ProviderError:
        """What an answer that is no clean success means, without our key in it."""
        problem = self._read_failure(op, reply, time.time())
        problem.why = self.http.redact(problem.why)
        return problem

    async def pages(
        self, op: str, path: str, cursor: str, read: Callable[[dict[str, Any]], Page[Item] | None], lacks: str
    ) -> AsyncIterator[list[Item]]:
        """Every page of the list at ``path``, which has a query already; ends after the one that says it is the last.

        Args:
            cursor: the parameter that says where the next page begins.
            read: a page of the object that came; None where it is none, for want of what ``lacks`` says.
        """
        after, seen = "", set[str]()
        while True:
            reply = await self.call(op, "GET", path + (f"&{cursor}={quoted(after)}" if after else ""))
            page = read(self.object(op, reply))
            if page is None or reply.status != 200:
                raise Uncertain(f"{op}: not a page of a list", why=lacks)
            yield page.items
            if page.after is None:
                return
            if not page.after or page.after in seen:
                raise Uncertain(f"{op}: the list does not end", why="a page leads back to an earlier one")
            after = page.after
            seen.add(after)


async def back_to(since: float, pages: AsyncIterator[list[BatchView]]) -> AsyncIterator[BatchView]:
    """The batches of ``pages``, which end early only where they were seen to go back in time, past ``since``."""
    newest_first, newest, last = True, 0.0, float("inf")
    async for page in pages:
        for view in page:
            created = view.created_at or float("inf")
            newest_first, newest, last = newest_first and created <= last, max(newest, created), created
            yield view
        if newest_first and last < min(newest, since - _LIST_MARGIN_S):
            return


def quoted(value: str) -> str:
    """``value`` as one part of a path or a query."""
    return quote(value, safe="")


@contextlib.contextmanager
def nothing_ran() -> Iterator[None]:
    """For an upload: whatever goes wrong in it, nothing can have run."""
    try:
        yield
    except Uncertain as exc:
        raise NeverSent(exc.what, why=exc.why, fix=exc.fix) from exc


def refuse_foreign(file: Path) -> None:
    """A page that a proxy sent in place of the result file would hide every answer in it.

    Raises:
        Uncertain: ``file`` has something in it, and its first line is no JSON object.
    """
    with file.open("rb") as opened:
        start = opened.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start and not start.startswith(b"{"):
        file.unlink()
        raise Uncertain("fetch: not a result file", why=f"it begins {shorten(start.decode('utf-8', 'replace'), 60)!r}")


# -- failures --------------------------------------------------------------------------------------


def is_gone(problem: ProviderError, statuses: Container[int] = (404,)) -> bool:
    """Whether it says, in the provider's own words, that there is no such thing; a stranger's 404 says nothing."""
    return isinstance(problem, Refused) and problem.status in statuses


def refused(
    op: str, status: int, code: str, message: str, scope: str, fixes: Mapping[str, str], *, line: int | None = None
) -> Refused:
    """A refusal in the provider's own words; ``fixes`` says by scope what to do about it."""
    return Refused(
        f"{op}: refused" + (f" ({code})" if code else ""),
        why=message,
        fix=fixes.get(scope, ""),
        status=status,
        provider_code=code,
        scope=scope,
        line=line,
    )


def untrusted(op: str, reply: Reply, message: str = "") -> Uncertain:
    """An answer that says nothing that can be relied on; ``message`` is what was read out of it."""
    return Uncertain(f"{op}: an answer that cannot be trusted", why=f"status {reply.status}: {said(reply, message)}")


def said(reply: Reply, message: str = "") -> str:
    """What an answer says: ``message``, else the beginning of its body."""
    return message or shorten(reply.body[:1000].decode("utf-8", "replace"), 200) or "an empty body"
