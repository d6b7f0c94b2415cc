"""Google's Gemini Developer API: generateContent and embedContent, live and in batches.

A batch is made from an uploaded file and carries its submission as ``displayName``; the file lies under an id of
our own. One that expires, or is cancelled, hands back nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from nightmill.config import Timing
from nightmill.errors import NeverSent, ProviderError, Uncertain
from nightmill.providers import BatchView, Encoded, LiveReply, Request, Upload, Weight
from nightmill.providers._api import Api, Page, back_to
from nightmill.providers._env import is_nearby
from nightmill.providers._gemini_files import Files, path_of
from nightmill.providers._gemini_requests import encoded, model_path
from nightmill.providers._gemini_shape import GeminiLines
from nightmill.providers._gemini_talk import (
    batch_view,
    failure,
    file_name,
    is_gone,
    misses_file,
    must_stop,
    rate_hint,
    unanswered,
)
from nightmill.providers._joining import JoinsGemini
from nightmill.providers._media import GEMINI, uploads_in, weigh
from nightmill.providers.servers import Server, address, key_of
from nightmill.types import FailureKind

_USUAL = Timing()
_PAGE = 100  # batches
_MODELS_PAGE = 1_000
_FORM = "application/jsonl"


class Gemini(JoinsGemini, GeminiLines):
    """One model of one Gemini account: a `LiveProvider`."""

    def __init__(
        self, name: str, model: str, server: Server, *, key: str = "", base_url: str = "", timing: Timing = _USUAL
    ) -> None:
        self.name, self.model, self.limits = name, model, server.limits
        base = (base_url or server.base_url).rstrip("/").removesuffix("/v1beta")
        self.self_hosted = is_nearby(base)
        self._api = Api(server, key=key, base_url=base, timing=timing, failure=failure)
        self.account = self._api.account(name)
        self._files = Files(self._api)

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A chat body always leaves with an explicit output cap."""
        return encoded(self.name, self.model, request, user_set, self.limits.request_bytes)

    def weigh(self, body: bytes) -> Weight:
        return weigh(GEMINI, self.model, body)

    def uploads(self, body: bytes) -> list[Upload]:
        return uploads_in(body)

    async def provide(self, upload: Upload, file: Path, *, lasting_s: float) -> None:
        await self._files.provide(upload, file, lasting_s=lasting_s)

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        reply = await self._api.send(url, body, timeout_s)
        if reply.status < 400:
            return LiveReply(reply.status, reply.body)
        if misses_file(reply):
            self._files.forget()
        hint, stop = rate_hint(reply, time.time()), must_stop(reply.status, reply.body)
        return LiveReply(reply.status, reply.body, hint, stop=stop)

    async def count_models(self) -> int:
        """See `KeyCheck.count_models`."""
        return sum([len(page) async for page in self._pages("models", "models", "models", _MODELS_PAGE)])

    async def close(self) -> None:
        await self._api.http.close()

    async def _pages(self, op: str, path: str, key: str, size: int) -> AsyncIterator[list[dict[str, Any]]]:
        """Every page of a list, checked."""
        lacks = f"no {key} in it, or more than that"
        path = f"/v1beta/{path}?pageSize={size}"
        async for items in self._api.pages(op, path, "pageToken", lambda told: _page(told, key), lacks):
            yield items


class Batches(Gemini):
    """The same with batches: a `BatchProvider`, too."""

    hands_back_partial = False

    async def upload(self, file: Path, *, name: str) -> str:
        """See `BatchProvider.upload`. Whatever goes wrong, nothing can have run."""
        told = await self._files.put(file, file_name(name), title=name, mime=_FORM)
        if told.get("state") == "FAILED":
            raise NeverSent("upload: the file is not ready", why="its state is FAILED")
        return str(told["name"])

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once."""
        verb = "asyncBatchEmbedContent" if url.endswith(":embedContent") else "batchGenerateContent"
        body = {"batch": {"displayName": submission, "inputConfig": {"fileName": file_id}}}
        path, timeout_s = f"/v1beta/{model_path(self.model)}:{verb}", self._api.timing.create_timeout_s
        reply = await self._api.call("create", "POST", path, body, fresh=True, timeout_s=timeout_s)
        return batch_view(self._api.object("create", reply, "name"))

    async def find(self, submissions: frozenset[str], files: frozenset[str], *, since: float) -> list[BatchView]:
        """See `BatchProvider.find`. Pages end early only where the list was seen to go back in time."""
        listed = back_to(since, self._pages_of_batches())
        return [view async for view in listed if view.submission in submissions or view.input_file in files]

    async def batches(self) -> AsyncIterator[BatchView]:
        """See `ListsBatches.batches`."""
        async for page in self._pages_of_batches():
            for view in page:
                yield view

    async def _pages_of_batches(self) -> AsyncIterator[list[BatchView]]:
        async for page in self._pages("list", "batches", "operations", _PAGE):
            for item in page:
                if not isinstance(item.get("metadata"), dict):
                    raise Uncertain("list: a batch in the list says nothing of itself", why=f"batch {item['name']}")
            yield [batch_view(item) for item in page]

    async def find_files(self, name: str) -> list[str]:
        """See `BatchProvider.find_files`. A submission's file lies under an id that follows from its name."""
        file_id = file_name(name.removesuffix(".jsonl"))
        return [file_id] if await self._files.is_there(file_id) else []

    async def poll(self, batch_id: str) -> BatchView:
        return batch_view(await self._api.ask("get", "GET", path_of("batches", batch_id), "name"))

    async def cancel(self, batch_id: str) -> BatchView:
        """Ask for the cancel and look; a batch that cannot be cancelled any more is shown as it is."""
        reply = await self._api.call("cancel", "POST", path_of("batches", batch_id) + ":cancel", {}, fresh=True)
        if reply.status not in (400, 404, 409):
            self._api.object("cancel", reply)
        return await self.poll(batch_id)

    async def fetch(self, file_id: str, to: Path) -> bool:
        """See `BatchProvider.fetch`. Where the documented address does not give it, that of the official client may."""
        path, trouble, is_there = path_of("files", file_id) + ":download?alt=media", None, True
        for where in (f"/download{path}", path):
            try:
                if await self._api.fetch(where, to, gone=is_gone):
                    return True
                is_there = False
            except ProviderError as error:
                trouble = trouble or error
        if is_there and trouble is not None:
            raise trouble
        return False

    async def delete_file(self, file_id: str) -> bool:
        await self._files.delete(file_id)
        return True

    def unanswered(self, status: str) -> FailureKind:
        """See `BatchProvider.unanswered`."""
        return unanswered(status)

    def clock_skew_s(self) -> float:
        return self._api.http.clock_skew_s()


def connect(name: str, model: str, server: Server, env: Mapping[str, str], timing: Timing = _USUAL) -> Gemini:
    """``model`` of ``server`` with what ``env`` says of key and address; `Batches` where it takes them.

    Raises:
        UsageError: the key (code ``no_key``) is missing, or key or address cannot be sent.
    """
    kind = Batches if server.limits.batch_requests else Gemini
    key, base_url = key_of(name, server, env), address(name, server, env)
    return kind(name, model, server, key=key, base_url=base_url, timing=timing)


def _page(told: Mapping[str, Any], key: str) -> Page[dict[str, Any]] | None:
    """A page of a list, which is left out where it is empty: then there is nothing else, either."""
    items, after = told.get(key, []), told.get("nextPageToken", "")
    if told.keys() - {key, "nextPageToken", "unreachable"} or not isinstance(after, str):
        return None
    if not isinstance(items, list) or not all(map(_is_known, items)):
        return None
    return Page(items, after or None)


def _is_known(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str) and bool(item["name"])
