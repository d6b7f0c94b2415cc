"""Any server that speaks the OpenAI wire format: chat completions and embeddings, live and in batches.

What sets one of them apart from the others is data, a `Server`; here is what they have in common.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from nightmill.config import Timing
from nightmill.errors import NeverSent, ProviderError, Refused, Uncertain, UsageError
from nightmill.providers import Account, BatchView, Encoded, LiveReply, Request, SentRequest
from nightmill.providers._env import is_nearby, no_key, sendable
from nightmill.providers._fitting import fitted
from nightmill.providers._http import Http, Reply, shorten
from nightmill.providers._openai_requests import decode_request
from nightmill.providers._openai_shape import OpenAILines, is_own, load_json, own_error
from nightmill.providers._openai_talk import METADATA_KEY, batch_view, failure, must_stop, rate_hint, true_status
from nightmill.providers.servers import Server
from nightmill.types import FailureKind

_USUAL = Timing()
_PAGE = 100  # batches; the most there are in a page
_FILES_PAGE = 10_000
_LIST_MARGIN_S = 300.0
_BEING_READ = ("pending", "running", "notRunning")
_FILE_LOOK_S = 2.0


class Compatible(OpenAILines):
    """One model of one server: a `LiveProvider`."""

    def __init__(
        self, name: str, model: str, server: Server, *, key: str = "", base_url: str = "", organization: str = "",
        project: str = "", timing: Timing = _USUAL,
    ) -> None:  # fmt: skip
        self.name, self.model, self.limits = name, model, server.limits
        self._server, self._timing = server, timing
        self._base = (base_url or server.base_url).rstrip("/")
        self.self_hosted = is_nearby(self._base)
        self._runs_here = server.runs_here(model, self._base)
        fingerprint = hashlib.blake2b(key.encode()).hexdigest()[:12] if key else ""
        self.account = Account(name, self._base, organization, project, fingerprint)
        self._headers = dict(server.headers)
        if key:
            self._headers[server.key_header] = f"Bearer {key}" if server.key_header == "Authorization" else key
        self._json_headers = {**self._headers, "Content-Type": "application/json"}
        self._key = key.encode()
        self._http = Http(secrets=(key,))

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A chat body always leaves with an explicit output cap."""
        return fitted(self._server, self.name, self.model, self.limits.context, request, user_set)

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        reply = await self._http.request(
            "send",
            "POST",
            self._base + url.removeprefix(self._server.batch_url),
            headers=self._json_headers,
            body=body,
            timeout_s=timeout_s,
        )
        said = reply.body
        if reply.status >= 400 and self._key:
            said = said.replace(self._key, b"***")
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
        whole = self._object("models", await self._call("models", "GET", "/models"))
        data = whole.get("data")
        return len(data) if isinstance(data, list) else 0

    def is_own(self, reply: LiveReply) -> bool:
        return is_own(reply.status, reply.body, plain=self._runs_here)

    async def close(self) -> None:
        await self._http.close()

    # -- shared by the calls above -------------------------------------------------------------

    async def _call(
        self, op: str, method: str, path: str, body: Any = None, *, fresh: bool = False, timeout_s: float | None = None
    ) -> Reply:
        return await self._http.request(
            op,
            method,
            self._base + path,
            headers=self._headers if body is None else self._json_headers,
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


class Batches(Compatible):
    """One model of a server that takes batches as well: a `BatchProvider`, too."""

    # -- the batch lane ------------------------------------------------------------------------

    async def upload(self, file: Path, *, name: str) -> str:
        """See `BatchProvider.upload`. Whatever goes wrong, nothing can have run."""
        try:
            reply = await self._http.upload(
                "upload",
                self._base + "/files",
                file,
                headers=self._headers,
                name=_file_name(name),
                fields={"purpose": "batch"},
                timeout_s=self._timing.upload_timeout_s,
            )
            return await self._taken_in(self._object("upload", reply, "id"))
        except Uncertain as exc:
            raise NeverSent(exc.what, why=exc.why, fix=exc.fix) from exc

    async def _taken_in(self, file: Mapping[str, Any]) -> str:
        """The file's id, once the server has read the file: some do so only after the upload."""
        until = time.monotonic() + self._timing.upload_timeout_s
        file_id = str(file["id"])
        while file.get("status") in _BEING_READ:
            if time.monotonic() > until:
                raise Uncertain("upload: the file is not ready", why=f"its status is still {file['status']}")
            await asyncio.sleep(min(self._timing.backoff_first_s, _FILE_LOOK_S))
            file = self._object("get", await self._call("get", "GET", f"/files/{_quoted(file_id)}"), "id")
        return file_id

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once."""
        body = {
            "input_file_id": file_id,
            "endpoint": url,
            "completion_window": self._server.window,
            "metadata": {METADATA_KEY: submission},
        }
        timeout_s = self._timing.create_timeout_s
        reply = await self._call("create", "POST", "/batches", body, fresh=True, timeout_s=timeout_s)
        return batch_view(self._object("create", reply, "id", "status"))

    async def find(self, submissions: frozenset[str], files: frozenset[str], *, since: float) -> list[BatchView]:
        """See `BatchProvider.find`. Pages end early only where the list was seen to go back in time."""
        found: list[BatchView] = []
        newest_first, newest, last = True, 0.0, float("inf")
        async for page in self._pages("list", "/batches", {"limit": str(_PAGE)}):
            for item in page:
                if not isinstance(item.get("status"), str):
                    raise Uncertain("list: a batch in the list has no status", why=f"batch {item['id']}")
                created = item.get("created_at")
                created = float(created) if isinstance(created, int | float) else float("inf")
                newest_first, newest, last = newest_first and created <= last, max(newest, created), created
                if _carries(item, submissions, files):
                    found.append(batch_view(item))
            if newest_first and last < min(newest, since - _LIST_MARGIN_S):
                break
        return found

    async def batches(self) -> AsyncIterator[BatchView]:
        """See `ListsBatches.batches`."""
        async for page in self._pages("list", "/batches", {"limit": str(_PAGE)}):
            for item in page:
                if not isinstance(item.get("status"), str):
                    raise Uncertain("list: a batch in the list has no status", why=f"batch {item['id']}")
                yield batch_view(item)

    def decode_request(self, line: bytes) -> SentRequest:
        """See `OpenBatches.decode_request`."""
        return decode_request(line)

    async def find_files(self, name: str) -> list[str]:
        """See `BatchProvider.find_files`."""
        wanted, query = _file_name(name), {"purpose": "batch", "order": "desc", "limit": str(_FILES_PAGE)}
        return [
            item["id"]
            async for page in self._pages("files", "/files", query)
            for item in page
            if item.get("filename") == wanted
        ]

    async def poll(self, batch_id: str) -> BatchView:
        reply = await self._call("get", "GET", f"/batches/{_quoted(batch_id)}")
        return batch_view(self._object("get", reply, "id", "status"))

    async def cancel(self, batch_id: str) -> BatchView:
        """Ask for the cancel; a batch that cannot be cancelled any more is shown as it is."""
        reply = await self._call("cancel", "POST", f"/batches/{_quoted(batch_id)}/cancel", fresh=True)
        if reply.status in (400, 404, 409):
            return await self.poll(batch_id)
        return batch_view(self._object("cancel", reply, "id", "status"))

    async def fetch(self, file_id: str, to: Path) -> bool:
        url = f"{self._base}/files/{_quoted(file_id)}/content"
        timeout_s = self._timing.upload_timeout_s
        reply = await self._http.download("fetch", url, to, headers=self._headers, timeout_s=timeout_s)
        if reply.status == 200:
            await asyncio.to_thread(refuse_foreign, to)
            return True
        problem = self._failure("fetch", reply)
        if reply.status == 404 and isinstance(problem, Refused):
            return False  # in the provider's own words; a stranger's 404 says nothing about the file
        raise problem

    async def delete_file(self, file_id: str) -> bool:
        path = f"/files/{_quoted(file_id)}"
        reply = await self._call("delete", "DELETE", path)
        if reply.status in (404, 405, 501):  # gone, or there is no such call: what became of the file tells
            problem = self._failure("get", await self._call("get", "GET", path))
            return isinstance(problem, Refused) and problem.status == 404
        self._object("delete", reply, "id")
        return True

    def unanswered(self, status: str) -> FailureKind:
        """See `BatchProvider.unanswered`: every request of a batch has a line, whatever became of it."""
        return FailureKind.MISSING

    def clock_skew_s(self) -> float:
        return self._http.clock_skew_s()

    async def _pages(self, op: str, path: str, query: Mapping[str, str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Every page of a list, checked; ends after the page that says it is the last."""
        after = ""
        seen: set[str] = set()
        while True:
            asked = "&".join(f"{key}={_quoted(value)}" for key, value in {**query, "after": after}.items() if value)
            reply = await self._call(op, "GET", f"{path}?{asked}")
            page = self._object(op, reply)
            if self._server.lists_whole:
                page.setdefault("has_more", False)
            if not _is_page(page) or reply.status != 200:
                raise Uncertain(f"{op}: not a page of a list", why="no data or no has_more in it")
            data: list[dict[str, Any]] = page["data"]
            yield data
            if not page["has_more"]:
                return
            after = data[-1]["id"] if data else ""
            if not after or after in seen:
                raise Uncertain(f"{op}: the list does not end", why="a page leads back to an earlier one")
            seen.add(after)


def connect(name: str, model: str, server: Server, env: Mapping[str, str], timing: Timing = _USUAL) -> Compatible:
    """``model`` of ``server`` with what ``env`` says of key and address; `Batches` where the server takes them.

    Raises:
        UsageError: the key (code ``no_key``) or the address is missing, or cannot be sent.
    """
    kind = Batches if server.limits.batch_requests else Compatible
    key, base_url = key_of(name, server, env), address(name, server, env)
    return kind(name, model, server, key=key, base_url=base_url, timing=timing)


def key_of(name: str, server: Server, env: Mapping[str, str]) -> str:
    """The key for ``server``; empty where it needs none. Raises UsageError where one is missing."""
    variable = server.key_variable(env)
    if variable is not None:
        return sendable(variable, env[variable].strip())
    if server.lacks_key(env):
        raise no_key(name, " or ".join(server.keys))
    return ""


def address(name: str, server: Server, env: Mapping[str, str]) -> str:
    """Where ``server`` is. Raises UsageError where nobody says."""
    given = env.get(server.base_url_env, "").strip().rstrip("/") if server.base_url_env else ""
    if not given and not server.base_url:
        raise UsageError(
            f"no address for {name}",
            why=f"{server.base_url_env} is not set",
            fix=f"set {server.base_url_env} in the environment or in .env, or base_url in [providers.{name}]",
        )
    if given and not given.endswith(server.base_url_path):
        given += server.base_url_path
    return sendable(server.base_url_env, given) if given else server.base_url


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


def _file_name(name: str) -> str:
    return name if name.endswith(".jsonl") else name + ".jsonl"


def _quoted(value: str) -> str:
    return quote(value, safe="")


def _carries(batch: Mapping[str, Any], submissions: frozenset[str], files: frozenset[str]) -> bool:
    metadata = batch.get("metadata")
    tag = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return tag in submissions or batch.get("input_file_id") in files


def _is_page(page: Mapping[str, Any]) -> bool:
    data = page.get("data")
    return (
        isinstance(page.get("has_more"), bool)
        and isinstance(data, list)
        and all(isinstance(item, dict) and isinstance(item.get("id"), str) and item["id"] for item in data)
    )
