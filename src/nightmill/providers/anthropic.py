"""Anthropic: messages, live and in batches whose requests travel in the create.

A batch can carry nothing of ours: it is known by its time and its size, and proven by the ids in its results.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from nightmill.config import Timing
from nightmill.providers import BatchView, Encoded, LiveReply, Request, Weight, _anthropic_caching
from nightmill.providers._anthropic_requests import encoded
from nightmill.providers._anthropic_shape import AnthropicLines
from nightmill.providers._anthropic_talk import RESULTS, batch_view, failure, must_stop, rate_hint
from nightmill.providers._api import Api, Page, back_to, is_gone, quoted
from nightmill.providers._env import is_nearby
from nightmill.providers._http import Reply
from nightmill.providers._media import ANTHROPIC, weigh
from nightmill.providers.servers import Server, address, key_of
from nightmill.types import FailureKind

_USUAL = Timing()
_VERSION = "2023-06-01"  # newer ones may have dropped temperature and top_p; of batches they say the same
_BATCHES = "/v1/messages/batches"
_PAGE = 1_000  # the most there are in a page
_LIST = (b'{"requests":[', b"]}")
_TOOL_PROMPT_TOKENS = 600  # about as many are billed before the tools of a request: by model 290 to 804
_CREATE_SHARE = 0.9  # of the time a create has: who ends it later cannot tell whether all of it had left


class Anthropic(AnthropicLines):
    """One model of one account: a `LiveProvider`."""

    def __init__(
        self, name: str, model: str, server: Server, *, key: str, base_url: str, timing: Timing = _USUAL
    ) -> None:
        self.name, self.model, self.limits = name, model, server.limits
        base = base_url.rstrip("/")
        self.self_hosted = is_nearby(base)
        version = {"anthropic-version": _VERSION}
        self.least_cached = _anthropic_caching.least_cached(model)
        self._api = Api(server, key=key, base_url=base, timing=timing, failure=failure, headers=version)
        self.account = self._api.account(name)

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A body always leaves with an explicit output cap."""
        return encoded(self.name, self.model, request, user_set)

    def weigh(self, body: bytes) -> Weight:
        weight = weigh(ANTHROPIC, self.model, body)
        return weight._replace(beside=weight.beside + _TOOL_PROMPT_TOKENS) if b'"tools":' in body else weight

    marked = staticmethod(_anthropic_caching.marked)
    unmarked = staticmethod(_anthropic_caching.unmarked)

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        """See `LiveProvider.send`."""
        reply = await self._api.send(url, body, timeout_s)
        return LiveReply(
            reply.status,
            reply.body,
            rate_hint(reply.headers, time.time()),
            reply.headers.get("request-id", ""),
            stop=reply.status >= 400 and must_stop(reply.status, reply.body),
        )

    async def count_models(self) -> int:
        """See `KeyCheck.count_models`."""
        whole = await self._api.ask("models", "GET", f"/v1/models?limit={_PAGE}")
        data = whole.get("data")
        return len(data) if isinstance(data, list) else 0

    async def close(self) -> None:
        await self._api.http.close()


class Batches(Anthropic):
    """The same with batches: an `UntaggedBatches` provider."""

    hands_back_partial = True

    async def upload(self, file: Path, *, name: str) -> str:
        """See `BatchProvider.upload`. Nothing is sent: the requests travel in the create."""
        return name

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once; the file is never held in memory whole."""
        reply = await self._api.http.stream(
            "create",
            self._api.base + _BATCHES,
            file,
            headers=self._api.json_headers,
            around=_LIST,
            timeout_s=self._api.timing.create_timeout_s * _CREATE_SHARE,
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
        found = [view async for view in back_to(since, self._pages()) if since <= view.created_at <= until]
        return sorted(found, key=lambda view: (view.created_at, view.id))

    async def batches(self) -> AsyncIterator[BatchView]:
        """See `ListsBatches.batches`."""
        async for page in self._pages():
            for view in page:
                yield view

    async def poll(self, batch_id: str) -> BatchView:
        return self._view("get", await self._api.call("get", "GET", f"{_BATCHES}/{quoted(batch_id)}"))

    async def cancel(self, batch_id: str) -> BatchView:
        """Ask for the cancel; a batch that cannot be cancelled any more is shown as it is."""
        reply = await self._api.call("cancel", "POST", f"{_BATCHES}/{quoted(batch_id)}/cancel", fresh=True)
        if reply.status in (400, 404, 409):
            return await self.poll(batch_id)
        return self._view("cancel", reply)

    async def fetch(self, file_id: str, to: Path) -> bool:
        """See `BatchProvider.fetch`. The address is made of the batch's id: that in its answer might lead anywhere."""
        path = f"{_BATCHES}/{quoted(file_id.removesuffix(RESULTS))}{RESULTS}"
        return await self._api.fetch(path, to, gone=lambda problem: is_gone(problem, (404, 410)))

    async def delete_file(self, file_id: str) -> bool:
        """See `BatchProvider.delete_file`. Results go with their batch; of a submission nothing else is kept."""
        if not file_id.endswith(RESULTS):
            return False
        path = f"{_BATCHES}/{quoted(file_id.removesuffix(RESULTS))}"
        reply = await self._api.call("delete", "DELETE", path)
        if reply.status == 404 and is_gone(self._api.failure("delete", reply)):
            return True
        self._api.object("delete", reply, "id")
        return True

    def unanswered(self, status: str) -> FailureKind:
        """See `BatchProvider.unanswered`: every request of a batch has a line, whatever became of it."""
        return FailureKind.MISSING

    def clock_skew_s(self) -> float:
        return self._api.http.clock_skew_s()

    def _view(self, op: str, reply: Reply) -> BatchView:
        return batch_view(self._api.object(op, reply, "id", "processing_status"))

    def _pages(self) -> AsyncIterator[list[BatchView]]:
        """Every page of the list of batches, checked."""
        return self._api.pages("list", f"{_BATCHES}?limit={_PAGE}", "after_id", _page, "no data or no has_more in it")


def _page(told: Mapping[str, Any]) -> Page[BatchView] | None:
    """A page of batches; None where one of them does not say what it is known by."""
    data, more = told.get("data"), told.get("has_more")
    if not isinstance(data, list) or not isinstance(more, bool) or not all(map(_is_known, data)):
        return None
    views = [batch_view(item) for item in data]
    if any(not view.created_at or view.total is None for view in views):
        return None
    return Page(views, None if not more else views[-1].id if views else "")


def _is_known(item: Any) -> bool:
    texts = [item.get(key) for key in ("id", "processing_status")] if isinstance(item, dict) else [None]
    return all(isinstance(text, str) and text for text in texts)


def connect(name: str, model: str, server: Server, env: Mapping[str, str], timing: Timing = _USUAL) -> Anthropic:
    """``model`` of ``server`` with what ``env`` says of key and address; `Batches` where the server takes them.

    Raises:
        UsageError: the key (code ``no_key``) or the address is missing, or cannot be sent.
    """
    kind = Batches if server.limits.batch_requests else Anthropic
    key, base_url = key_of(name, server, env), address(name, server, env)
    return kind(name, model, server, key=key, base_url=base_url, timing=timing)
