"""Any server that speaks the OpenAI wire format: chat completions and embeddings, live and in batches.

What sets one of them apart from the others is data, a `Server`; here is what they have in common.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from nightmill.config import Timing
from nightmill.errors import NeverSent, Uncertain
from nightmill.providers import BatchView, Encoded, LiveReply, Request, SentRequest, Weight
from nightmill.providers._api import Api, Page, back_to, is_gone, nothing_ran, quoted
from nightmill.providers._env import is_nearby
from nightmill.providers._fitting import fitted
from nightmill.providers._flex import Flexes
from nightmill.providers._http import shorten
from nightmill.providers._joining import JoinsOpenAI
from nightmill.providers._media import takes_of, weigh
from nightmill.providers._openai_requests import decode_request
from nightmill.providers._openai_shape import OpenAILines, is_own, own_error
from nightmill.providers._openai_talk import METADATA_KEY, batch_view, failure, must_stop, rate_hint, true_status
from nightmill.providers.servers import Server, address, key_of
from nightmill.types import FailureKind

_USUAL = Timing()
_PAGE = 100  # batches; the most there are in a page
_FILES_PAGE = 10_000
_NO_PAGE = "no data or no has_more in it"
_BEING_READ = ("pending", "running", "notRunning")
_FILE_LOOK_S = 2.0


class Compatible(JoinsOpenAI, OpenAILines):
    """One model of one server: a `LiveProvider`."""

    def __init__(
        self, name: str, model: str, server: Server, *, key: str = "", base_url: str = "", organization: str = "",
        project: str = "", timing: Timing = _USUAL,
    ) -> None:  # fmt: skip
        self.name, self.model, self.limits = name, model, server.limits
        self._server = server
        base = (base_url or server.base_url).rstrip("/")
        self.self_hosted, self._runs_here = is_nearby(base), server.runs_here(model, base)
        self._api = Api(server, key=key, base_url=base, timing=timing, failure=failure)
        self.account = self._api.account(name, organization, project)

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A chat body always leaves with an explicit output cap."""
        return fitted(self._server, self.name, self.model, self.limits.context, request, user_set)

    def weigh(self, body: bytes) -> Weight:
        return weigh(takes_of(self._server.media, self.limits.context), self.model, body)

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        reply = await self._api.send(url.removeprefix(self._server.batch_url), body, timeout_s)
        said = reply.body
        if reply.status == 503 and self._runs_here and (error := own_error(said, plain=True)):
            why = shorten(str(error["message"]), 200)
            raise NeverSent("send: the server is not ready", why=why, fix="wait until it has loaded its model")
        status = reply.status
        if status < 300:
            status = true_status(status, said, plain=self._runs_here)
        return LiveReply(
            status,
            said,
            rate_hint(reply.headers, time.time()),
            reply.headers.get("x-request-id", ""),
            stop=status >= 400 and must_stop(status, said),
        )

    async def count_models(self) -> int:
        """See `KeyCheck.count_models`."""
        whole = await self._api.ask("models", "GET", "/models")
        data = whole.get("data")
        return len(data) if isinstance(data, list) else 0

    def is_own(self, reply: LiveReply) -> bool:
        return is_own(reply.status, reply.body, plain=self._runs_here)

    async def close(self) -> None:
        await self._api.http.close()


class Batches(Compatible):
    """One model of a server that takes batches as well: a `BatchProvider`, too."""

    hands_back_partial = True

    async def upload(self, file: Path, *, name: str) -> str:
        """See `BatchProvider.upload`. Whatever goes wrong, nothing can have run."""
        with nothing_ran():
            reply = await self._api.http.upload(
                "upload",
                self._api.base + "/files",
                file,
                headers=self._api.headers,
                name=_file_name(name),
                fields={"purpose": "batch"},
                timeout_s=self._api.timing.upload_timeout_s,
            )
            return await self._taken_in(self._api.object("upload", reply, "id"))

    async def _taken_in(self, file: Mapping[str, Any]) -> str:
        """The file's id, once the server has read the file: some do so only after the upload."""
        until = time.monotonic() + self._api.timing.upload_timeout_s
        file_id = str(file["id"])
        while file.get("status") in _BEING_READ:
            if time.monotonic() > until:
                raise Uncertain("upload: the file is not ready", why=f"its status is still {file['status']}")
            await asyncio.sleep(min(self._api.timing.backoff_first_s, _FILE_LOOK_S))
            file = await self._api.ask("get", "GET", f"/files/{quoted(file_id)}", "id")
        return file_id

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once."""
        body = {
            "input_file_id": file_id,
            "endpoint": url,
            "completion_window": self._server.window,
            "metadata": {METADATA_KEY: submission},
        }
        timeout_s = self._api.timing.create_timeout_s
        reply = await self._api.call("create", "POST", "/batches", body, fresh=True, timeout_s=timeout_s)
        return batch_view(self._api.object("create", reply, "id", "status"))

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
        async for page in self._api.pages("list", f"/batches?limit={_PAGE}", "after", self._page, _NO_PAGE):
            for item in page:
                if not isinstance(item.get("status"), str):
                    raise Uncertain("list: a batch in the list has no status", why=f"batch {item['id']}")
            yield [batch_view(item) for item in page]

    def decode_request(self, line: bytes) -> SentRequest:
        """See `OpenBatches.decode_request`."""
        return decode_request(line)

    async def find_files(self, name: str) -> list[str]:
        """See `BatchProvider.find_files`."""
        wanted, path = _file_name(name), f"/files?purpose=batch&order=desc&limit={_FILES_PAGE}"
        pages = self._api.pages("files", path, "after", self._page, _NO_PAGE)
        return [item["id"] async for page in pages for item in page if item.get("filename") == wanted]

    async def poll(self, batch_id: str) -> BatchView:
        return batch_view(await self._api.ask("get", "GET", f"/batches/{quoted(batch_id)}", "id", "status"))

    async def cancel(self, batch_id: str) -> BatchView:
        """Ask for the cancel; a batch that cannot be cancelled any more is shown as it is."""
        reply = await self._api.call("cancel", "POST", f"/batches/{quoted(batch_id)}/cancel", fresh=True)
        if reply.status in (400, 404, 409):
            return await self.poll(batch_id)
        return batch_view(self._api.object("cancel", reply, "id", "status"))

    async def fetch(self, file_id: str, to: Path) -> bool:
        return await self._api.fetch(f"/files/{quoted(file_id)}/content", to, gone=is_gone)

    async def delete_file(self, file_id: str) -> bool:
        path = f"/files/{quoted(file_id)}"
        reply = await self._api.call("delete", "DELETE", path)
        if reply.status in (404, 405, 501):  # gone, or there is no such call: what became of the file tells
            return is_gone(self._api.failure("get", await self._api.call("get", "GET", path)))
        self._api.object("delete", reply, "id")
        return True

    def unanswered(self, status: str) -> FailureKind:
        """See `BatchProvider.unanswered`: every request of a batch has a line, whatever became of it."""
        return FailureKind.MISSING

    def clock_skew_s(self) -> float:
        return self._api.http.clock_skew_s()

    def _page(self, told: dict[str, Any]) -> Page[dict[str, Any]] | None:
        data, more = told.get("data"), told.get("has_more", False if self._server.lists_whole else None)
        if not isinstance(more, bool) or not isinstance(data, list) or not all(map(_is_known, data)):
            return None
        return Page(data, None if not more else data[-1]["id"] if data else "")


class FlexCompatible(Flexes, Compatible):
    """One model of a server with a flex tier: a `FlexProvider`, too."""


class FlexBatches(Flexes, Batches):
    """The same of one that takes batches as well."""


def kind_of(server: Server) -> type[Compatible]:
    """What a model of ``server`` can do."""
    if server.limits.batch_requests:
        return FlexBatches if server.flex else Batches
    return FlexCompatible if server.flex else Compatible


def connect(name: str, model: str, server: Server, env: Mapping[str, str], timing: Timing = _USUAL) -> Compatible:
    """``model`` of ``server`` with what ``env`` says of key and address; see `kind_of`.

    Raises:
        UsageError: the key (code ``no_key``) or the address is missing, or cannot be sent.
    """
    key, base_url = key_of(name, server, env), address(name, server, env)
    return kind_of(server)(name, model, server, key=key, base_url=base_url, timing=timing)


def _file_name(name: str) -> str:
    return name if name.endswith(".jsonl") else name + ".jsonl"


def _is_known(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("id"), str) and bool(item["id"])
