"""Google's Gemini Developer API: generateContent and embedContent, live and in batches.

A batch is made from an uploaded file and carries its submission as ``displayName``; the file lies under an id of
our own. One that expires, or is cancelled, hands back nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from nightmill.config import Timing
from nightmill.errors import NeverSent, ProviderError, Uncertain
from nightmill.providers import Account, BatchView, Encoded, LiveReply, Request
from nightmill.providers._env import is_nearby
from nightmill.providers._gemini_requests import encoded, model_path
from nightmill.providers._gemini_shape import GeminiLines
from nightmill.providers._gemini_talk import (
    batch_view,
    failure,
    fault_in,
    file_name,
    is_gone,
    is_same_file,
    must_stop,
    rate_hint,
    unanswered,
)
from nightmill.providers._http import Http, Reply
from nightmill.providers._openai_shape import load_json
from nightmill.providers.compatible import address, key_of, refuse_foreign
from nightmill.providers.servers import Server
from nightmill.types import FailureKind

_USUAL = Timing()
_PAGE = 100  # batches
_MODELS_PAGE = 1_000
_LIST_MARGIN_S = 300.0
_FILE_LOOK_S = 2.0
_FORM = "application/jsonl"


class Gemini(GeminiLines):
    """One model of one Gemini account: a `LiveProvider`."""

    def __init__(
        self, name: str, model: str, server: Server, *, key: str = "", base_url: str = "", timing: Timing = _USUAL
    ) -> None:
        self.name, self.model, self.limits = name, model, server.limits
        self._timing = timing
        self._base = (base_url or server.base_url).rstrip("/").removesuffix("/v1beta")
        self.self_hosted = is_nearby(self._base)
        fingerprint = hashlib.blake2b(key.encode()).hexdigest()[:12] if key else ""
        self.account = Account(name, self._base, key_fingerprint=fingerprint)
        self._headers = {**server.headers, server.key_header: key} if key else dict(server.headers)
        self._json_headers = {**self._headers, "Content-Type": "application/json"}
        self._key = key.encode()
        self._http = Http(secrets=(key,))

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A chat body always leaves with an explicit output cap."""
        return encoded(self.name, self.model, request, user_set)

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        reply = await self._http.request(
            "send", "POST", self._base + url, headers=self._json_headers, body=body, timeout_s=timeout_s
        )
        if reply.status < 400:
            return LiveReply(reply.status, reply.body)
        said = reply.body.replace(self._key, b"***") if self._key else reply.body
        return LiveReply(reply.status, said, rate_hint(reply, time.time()), stop=must_stop(reply.status, said))

    async def count_models(self) -> int:
        """See `KeyCheck.count_models`."""
        return sum([len(page) async for page in self._pages("models", "models", "models", _MODELS_PAGE)])

    async def close(self) -> None:
        await self._http.close()

    # -- shared by the calls above and below -----------------------------------------------------

    async def _call(
        self, op: str, method: str, path: str, body: Any = None, *, fresh: bool = False,
        timeout_s: float | None = None, headers: Mapping[str, str] | None = None,
    ) -> Reply:  # fmt: skip
        return await self._http.request(
            op,
            method,
            self._base + path,
            headers={**(self._headers if body is None else self._json_headers), **(headers or {})},
            body=None if body is None else msgspec.json.encode(body),
            timeout_s=timeout_s or self._timing.request_timeout_s,
            fresh=fresh,
        )

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

    async def _pages(self, op: str, path: str, key: str, size: int) -> AsyncIterator[list[dict[str, Any]]]:
        """Every page of a list, checked; ends after the page that names no next one. An empty page has no list."""
        token, seen = "", set[str]()
        while True:
            after = f"&pageToken={quote(token, safe='')}" if token else ""
            reply = await self._call(op, "GET", f"/v1beta/{path}?pageSize={size}{after}")
            page = self._object(op, reply)
            if reply.status != 200 or not _is_page(page, key):
                raise Uncertain(f"{op}: not a page of a list", why=f"no {key} in it, or more than that")
            yield page.get(key, [])
            token = page.get("nextPageToken", "")
            if not token:
                return
            if token in seen:
                raise Uncertain(f"{op}: the list does not end", why="a page leads back to an earlier one")
            seen.add(token)


class Batches(Gemini):
    """The same with batches: a `BatchProvider`, too."""

    async def upload(self, file: Path, *, name: str) -> str:
        """See `BatchProvider.upload`. Whatever goes wrong, nothing can have run."""
        try:
            return await self._upload(file, name)
        except Uncertain as exc:
            raise NeverSent(exc.what, why=exc.why, fix=exc.fix) from exc

    async def _upload(self, file: Path, name: str) -> str:
        size = (await asyncio.to_thread(file.stat)).st_size
        headers = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": _FORM,
        }
        about = {"name": file_name(name), "display_name": name, "mime_type": _FORM, "size_bytes": size}
        reply = await self._call("upload", "POST", "/upload/v1beta/files", {"file": about}, headers=headers)
        if (fault := fault_in(reply.body)) and fault.word == "ALREADY_EXISTS":
            return await self._uploaded_before(file, name)
        to = reply.headers.get("x-goog-upload-url", "") if reply.status == 200 else ""
        if not to:  # its body is empty
            raise self._failure("upload", reply)
        reply = await self._http.send_file(
            "upload", self._ours(to), file, timeout_s=self._timing.upload_timeout_s,
            headers={**self._headers, "X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"},
        )  # fmt: skip
        told = self._object("upload", reply).get("file")
        if not isinstance(told, dict) or reply.headers.get("x-goog-upload-status", "final") != "final":
            raise Uncertain("upload: not completed", why="the answer tells of no file")
        return await self._ready(told)

    def _ours(self, url: str) -> str:
        """Where to send the bytes, at our own base URL: it may stand for the address that the server knows."""
        parts = urlsplit(url)
        return self._base + parts.path + (f"?{parts.query}" if parts.query else "")

    async def _uploaded_before(self, file: Path, name: str) -> str:
        """The file that has this submission's name already; it is ours if its bytes are."""
        told = self._object("get", await self._call("get", "GET", f"/v1beta/{file_name(name)}"), "name")
        if not await asyncio.to_thread(is_same_file, told, file):
            raise Uncertain("upload: the name is taken", why=f"another file is {told['name']}")
        return await self._ready(told)

    async def _ready(self, file: Mapping[str, Any]) -> str:
        """The file's id, once the server has read it."""
        until = time.monotonic() + self._timing.upload_timeout_s
        while (state := file.get("state", "ACTIVE")) != "ACTIVE":
            if state == "FAILED" or time.monotonic() > until:
                raise Uncertain("upload: the file is not ready", why=f"its state is {state}")
            await asyncio.sleep(min(self._timing.backoff_first_s, _FILE_LOOK_S))
            file = self._object("get", await self._call("get", "GET", _path("files", str(file.get("name")))), "name")
        if not isinstance(file.get("name"), str) or not file["name"]:
            raise Uncertain("upload: not completed", why="the answer names no file")
        return str(file["name"])

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once."""
        verb = "asyncBatchEmbedContent" if url.endswith(":embedContent") else "batchGenerateContent"
        body = {"batch": {"displayName": submission, "inputConfig": {"fileName": file_id}}}
        path, timeout_s = f"/v1beta/{model_path(self.model)}:{verb}", self._timing.create_timeout_s
        reply = await self._call("create", "POST", path, body, fresh=True, timeout_s=timeout_s)
        return batch_view(self._object("create", reply, "name"))

    async def find(self, submissions: frozenset[str], files: frozenset[str], *, since: float) -> list[BatchView]:
        """See `BatchProvider.find`. Pages end early only where the list was seen to go back in time."""
        found: list[BatchView] = []
        newest_first, newest, last = True, 0.0, float("inf")
        async for page in self._pages_of_batches():
            for view in page:
                created = view.created_at or float("inf")
                newest_first, newest, last = newest_first and created <= last, max(newest, created), created
                if view.submission in submissions or view.input_file in files:
                    found.append(view)
            if newest_first and last < min(newest, since - _LIST_MARGIN_S):
                break
        return found

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
        reply = await self._call("files", "GET", f"/v1beta/{file_id}")
        if reply.status != 200 and is_gone(self._failure("files", reply)):
            return []
        self._object("files", reply, "name")
        return [file_id]

    async def poll(self, batch_id: str) -> BatchView:
        return batch_view(self._object("get", await self._call("get", "GET", _path("batches", batch_id)), "name"))

    async def cancel(self, batch_id: str) -> BatchView:
        """Ask for the cancel and look; a batch that cannot be cancelled any more is shown as it is."""
        reply = await self._call("cancel", "POST", _path("batches", batch_id) + ":cancel", {}, fresh=True)
        if reply.status not in (400, 404, 409):
            self._object("cancel", reply)
        return await self.poll(batch_id)

    async def fetch(self, file_id: str, to: Path) -> bool:
        url = f"{self._base}/download{_path('files', file_id)}:download?alt=media"
        timeout_s = self._timing.upload_timeout_s
        reply = await self._http.download("fetch", url, to, headers=self._headers, timeout_s=timeout_s)
        if reply.status == 200:
            await asyncio.to_thread(refuse_foreign, to)
            return True
        problem = self._failure("fetch", reply)
        if is_gone(problem):
            return False
        raise problem

    async def delete_file(self, file_id: str) -> bool:
        reply = await self._call("delete", "DELETE", _path("files", file_id))
        if reply.status in (403, 404) and is_gone(self._failure("delete", reply)):
            return True
        self._object("delete", reply)
        return True

    def unanswered(self, status: str) -> FailureKind:
        """See `BatchProvider.unanswered`."""
        return unanswered(status)

    def clock_skew_s(self) -> float:
        return self._http.clock_skew_s()


def connect(name: str, model: str, server: Server, env: Mapping[str, str], timing: Timing = _USUAL) -> Gemini:
    """``model`` of ``server`` with what ``env`` says of key and address; `Batches` where it takes them.

    Raises:
        UsageError: the key (code ``no_key``) is missing, or key or address cannot be sent.
    """
    kind = Batches if server.limits.batch_requests else Gemini
    key, base_url = key_of(name, server, env), address(name, server, env)
    return kind(name, model, server, key=key, base_url=base_url, timing=timing)


def _is_page(page: Mapping[str, Any], key: str) -> bool:
    """Whether it is a page of a list, which is left out where it is empty: then there is nothing else, either."""
    items = page.get(key, [])
    return (
        not page.keys() - {key, "nextPageToken", "unreachable"}
        and isinstance(page.get("nextPageToken", ""), str)
        and isinstance(items, list)
        and all(isinstance(each, dict) and isinstance(each.get("name"), str) and each["name"] for each in items)
    )


def _path(kind: str, name: str) -> str:
    """The path of a batch or file whose name may lack its kind."""
    return f"/v1beta/{kind}/{quote(name.removeprefix(kind + '/'), safe='')}"
