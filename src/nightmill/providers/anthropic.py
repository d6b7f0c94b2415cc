"""Anthropic: messages, live and in batches whose requests travel in the create.

A batch can carry nothing of ours: it is known by its time and its size, and proven by the ids in its results.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nightmill.config import Timing
from nightmill.errors import ProviderError, Refused, Uncertain
from nightmill.providers import Account, BatchView, Encoded, LiveReply, Request
from nightmill.providers._anthropic_requests import encoded
from nightmill.providers._anthropic_shape import AnthropicLines
from nightmill.providers._anthropic_talk import RESULTS, batch_view, failure, must_stop, rate_hint
from nightmill.providers._env import is_nearby
from nightmill.providers._http import Http, Reply
from nightmill.providers._openai_shape import load_json
from nightmill.providers.compatible import address, key_of, refuse_foreign
from nightmill.providers.servers import Server
from nightmill.types import FailureKind

_USUAL = Timing()
_VERSION = "2023-06-01"  # newer ones may have dropped temperature and top_p; of batches they say the same
_BATCHES = "/v1/messages/batches"
_PAGE = 1_000  # the most there are in a page
_LIST_MARGIN_S = 300.0
_LIST = (b'{"requests":[', b"]}")
_CREATE_SHARE = 0.9  # of the time a create has: who ends it later cannot tell whether all of it had left


class Anthropic(AnthropicLines):
    """One model of one account: a `LiveProvider`."""

    def __init__(
        self, name: str, model: str, server: Server, *, key: str, base_url: str, timing: Timing = _USUAL
    ) -> None:
        self.name, self.model, self.limits = name, model, server.limits
        self._timing, self._base = timing, base_url.rstrip("/")
        self.self_hosted = is_nearby(self._base)
        fingerprint = hashlib.blake2b(key.encode()).hexdigest()[:12] if key else ""
        self.account = Account(name, self._base, key_fingerprint=fingerprint)
        self._headers = {"anthropic-version": _VERSION, **server.headers}
        if key:
            self._headers[server.key_header] = f"Bearer {key}" if server.key_header == "Authorization" else key
        self._json_headers = {**self._headers, "Content-Type": "application/json"}
        self._key = key.encode()
        self._http = Http(secrets=(key,))

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A body always leaves with an explicit output cap."""
        return encoded(self.name, self.model, request, user_set)

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        """See `LiveProvider.send`."""
        headers = self._json_headers
        reply = await self._http.request(
            "send", "POST", self._base + url, headers=headers, body=body, timeout_s=timeout_s
        )
        said = reply.body.replace(self._key, b"***") if reply.status >= 400 and self._key else reply.body
        return LiveReply(
            reply.status,
            said,
            rate_hint(reply.headers, time.time()),
            reply.headers.get("request-id", ""),
            stop=reply.status >= 400 and must_stop(reply.status, said),
        )

    async def count_models(self) -> int:
        """See `KeyCheck.count_models`."""
        whole = self._object("models", await self._call("models", "GET", f"/v1/models?limit={_PAGE}"))
        data = whole.get("data")
        return len(data) if isinstance(data, list) else 0

    async def close(self) -> None:
        await self._http.close()

    # -- shared by the calls -------------------------------------------------------------------

    async def _call(self, op: str, method: str, path: str, *, fresh: bool = False) -> Reply:
        timeout_s = self._timing.request_timeout_s
        url, headers = self._base + path, self._headers
        return await self._http.request(op, method, url, headers=headers, timeout_s=timeout_s, fresh=fresh)

    def _object(self, op: str, reply: Reply, *texts: str) -> dict[str, Any]:
        """The JSON object of a clean success in which each of ``texts`` is a non-empty text."""
        if 200 <= reply.status < 300:
            try:
                whole = load_json(reply.body)
            except ValueError:
                whole = None
            if isinstance(whole, dict) and all(isinstance(whole.get(key), str) and whole[key] for key in texts):
                return whole
        raise self._failure(op, reply)

    def _failure(self, op: str, reply: Reply) -> ProviderError:
        problem = failure(op, reply, time.time())
        problem.why = self._http.redact(problem.why)
        return problem


class Batches(Anthropic):
    """The same with batches: an `UntaggedBatches` provider."""

    async def upload(self, file: Path, *, name: str) -> str:
        """See `BatchProvider.upload`. Nothing is sent: the requests travel in the create."""
        return name

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once; the file is never held in memory whole."""
        reply = await self._http.stream(
            "create",
            self._base + _BATCHES,
            file,
            headers=self._json_headers,
            around=_LIST,
            timeout_s=self._timing.create_timeout_s * _CREATE_SHARE,
        )
        return self._view("create", reply)

    async def find(self, submissions: frozenset[str], files: frozenset[str], *, since: float) -> list[BatchView]:
        """See `UntaggedBatches`: no batch carries anything of ours."""
        return []

    async def find_files(self, name: str) -> list[str]:
        """See `UntaggedBatches`: nothing is uploaded."""
        return []

    async def made_between(self, since: float, until: float) -> list[BatchView]:
        """See `UntaggedBatches.made_between`. Pages end early only where the list was seen to go back in time."""
        found: list[BatchView] = []
        newest_first, newest, last = True, 0.0, float("inf")
        async for page in self._pages():
            for view in page:
                newest_first, newest = newest_first and view.created_at <= last, max(newest, view.created_at)
                last = view.created_at
                if since <= view.created_at <= until:
                    found.append(view)
            if newest_first and last < min(newest, since - _LIST_MARGIN_S):
                break
        return sorted(found, key=lambda view: (view.created_at, view.id))

    async def batches(self) -> AsyncIterator[BatchView]:
        """See `ListsBatches.batches`."""
        async for page in self._pages():
            for view in page:
                yield view

    async def poll(self, batch_id: str) -> BatchView:
        return self._view("get", await self._call("get", "GET", f"{_BATCHES}/{_quoted(batch_id)}"))

    async def cancel(self, batch_id: str) -> BatchView:
        """Ask for the cancel; a batch that cannot be cancelled any more is shown as it is."""
        reply = await self._call("cancel", "POST", f"{_BATCHES}/{_quoted(batch_id)}/cancel", fresh=True)
        if reply.status in (400, 404, 409):
            return await self.poll(batch_id)
        return self._view("cancel", reply)

    async def fetch(self, file_id: str, to: Path) -> bool:
        """See `BatchProvider.fetch`. The address is made of the batch's id: that in its answer might lead anywhere."""
        url = f"{self._base}{_BATCHES}/{_quoted(file_id.removesuffix(RESULTS))}{RESULTS}"
        timeout_s = self._timing.upload_timeout_s
        reply = await self._http.download("fetch", url, to, headers=self._headers, timeout_s=timeout_s)
        if reply.status == 200:
            await asyncio.to_thread(refuse_foreign, to)
            return True
        problem = self._failure("fetch", reply)
        if reply.status in (404, 410) and isinstance(problem, Refused):
            return False  # in the provider's own words; a stranger's 404 says nothing about the results
        raise problem

    async def delete_file(self, file_id: str) -> bool:
        """See `BatchProvider.delete_file`. Results go with their batch; of a submission nothing else is kept."""
        if not file_id.endswith(RESULTS):
            return False
        path = f"{_BATCHES}/{_quoted(file_id.removesuffix(RESULTS))}"
        reply = await self._call("delete", "DELETE", path)
        if reply.status == 404 and isinstance(self._failure("delete", reply), Refused):
            return True
        self._object("delete", reply, "id")
        return True

    def unanswered(self, status: str) -> FailureKind:
        """See `BatchProvider.unanswered`: every request of a batch has a line, whatever became of it."""
        return FailureKind.MISSING

    def clock_skew_s(self) -> float:
        return self._http.clock_skew_s()

    def _view(self, op: str, reply: Reply) -> BatchView:
        return batch_view(self._object(op, reply, "id", "processing_status"))

    async def _pages(self) -> AsyncIterator[list[BatchView]]:
        """Every page of the list of batches, checked; ends after the page that says it is the last."""
        after = ""
        seen: set[str] = set()
        while True:
            asked = f"?limit={_PAGE}" + (f"&after_id={_quoted(after)}" if after else "")
            reply = await self._call("list", "GET", _BATCHES + asked)
            page = self._object("list", reply)
            views = _views(page) if reply.status == 200 and isinstance(page.get("has_more"), bool) else None
            if views is None:
                raise Uncertain("list: not a page of a list", why="no data or no has_more in it")
            yield views
            if not page["has_more"]:
                return
            after = views[-1].id if views else ""
            if not after or after in seen:
                raise Uncertain("list: the list does not end", why="a page leads back to an earlier one")
            seen.add(after)


def _views(page: Mapping[str, Any]) -> list[BatchView] | None:
    """The batches of a page; None where one of them does not say what it is known by."""
    data = page.get("data")
    if not isinstance(data, list):
        return None
    views = []
    for item in data:
        texts = [item.get(key) for key in ("id", "processing_status")] if isinstance(item, dict) else []
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            return None
        view = batch_view(item)
        if not view.created_at or view.total is None:
            return None
        views.append(view)
    return views


def connect(name: str, model: str, server: Server, env: Mapping[str, str], timing: Timing = _USUAL) -> Anthropic:
    """``model`` of ``server`` with what ``env`` says of key and address; `Batches` where the server takes them.

    Raises:
        UsageError: the key (code ``no_key``) or the address is missing, or cannot be sent.
    """
    kind = Batches if server.limits.batch_requests else Anthropic
    key, base_url = key_of(name, server, env), address(name, server, env)
    return kind(name, model, server, key=key, base_url=base_url, timing=timing)


def _quoted(value: str) -> str:
    return quote(value, safe="")
