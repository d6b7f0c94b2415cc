"""OpenAI: chat completions and embeddings, live and through the Batch API."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from nightmill.config import Timing
from nightmill.errors import CannotCarry, NeverSent, ProviderError, Refused, Uncertain
from nightmill.providers import Account, BatchView, Encoded, Limits, LiveReply, Request
from nightmill.providers._env import is_nearby, no_key, sendable
from nightmill.providers._http import Http, Reply, shorten
from nightmill.providers._openai_shape import (
    METADATA_KEY,
    OpenAILines,
    batch_view,
    cap_of,
    carried,
    failure,
    inputs_of,
    json_line,
    load_json,
    must_stop,
    rate_hint,
)

CHAT_URL = "/v1/chat/completions"
EMBEDDINGS_URL = "/v1/embeddings"
BASE_URL = "https://api.openai.com/v1"
DEFAULT_CAP = 2_000
REASONING_CAP = 8_000  # thinking is billed as output and counts against the cap

_USUAL = Timing()
_PAGE = 100  # batches; the most there are in a page
_FILES_PAGE = 10_000
_LIST_MARGIN_S = 300.0
_SAMPLING = ("temperature", "top_p")
_CHAT_ONLY = (
    *_SAMPLING,
    "max_completion_tokens",
    "max_tokens",
    "response_format",
    "tools",
    "tool_choice",
    "reasoning_effort",
    "stop",
    "seed",
    "n",
    "logprobs",
    "presence_penalty",
    "frequency_penalty",
)


class OpenAI(OpenAILines):
    """One model of one OpenAI account: a `BatchProvider` and a `LiveProvider`."""

    name = "openai"
    limits = Limits(batch_requests=50_000, batch_bytes=200 * 1024 * 1024, batch_inputs=50_000)

    def __init__(
        self, model: str, *, key: str, base_url: str = BASE_URL, organization: str = "", project: str = "",
        timing: Timing = _USUAL,
    ) -> None:  # fmt: skip
        self.model, self._timing = model, timing
        self._base = base_url.rstrip("/")
        self.self_hosted = is_nearby(self._base)
        self.account = Account(
            self.name,
            self._base,
            organization,
            project,
            hashlib.blake2b(key.encode()).hexdigest()[:12],
        )
        self._headers = {"Authorization": f"Bearer {key}"}
        if organization:
            self._headers["OpenAI-Organization"] = organization
        if project:
            self._headers["OpenAI-Project"] = project
        self._json_headers = {**self._headers, "Content-Type": "application/json"}
        self._key = key.encode()
        self._http = Http(secrets=(key,))

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A chat body always leaves with an explicit ``max_completion_tokens``."""
        body = carried(self.name, self.model, request, user_set)
        notes: list[str] = []
        if "input" in body and "messages" not in body:
            _fit_embeddings(body, notes, user_set)
            return Encoded(EMBEDDINGS_URL, json_line(body), tuple(notes), inputs=inputs_of(body))
        if not isinstance(body.get("messages"), list | tuple) or not body["messages"]:
            why = "a model answers to messages"
            raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")
        _fit_cap(self.model, body, notes, user_set)
        _fit_sampling(self.model, body, notes, user_set)
        return Encoded(CHAT_URL, json_line(body), tuple(notes), cap_of(body))

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
            return str(self._object("upload", reply, "id")["id"])
        except Uncertain as exc:
            raise NeverSent(exc.what, why=exc.why, fix=exc.fix) from exc

    async def create(self, file_id: str, *, url: str, submission: str) -> BatchView:
        """See `BatchProvider.create`. On a connection of its own, once."""
        body = {
            "input_file_id": file_id,
            "endpoint": url,
            "completion_window": "24h",
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
            await asyncio.to_thread(_refuse_foreign, to)
            return True
        problem = self._failure("fetch", reply)
        if reply.status == 404 and isinstance(problem, Refused):
            return False  # in the provider's own words; a stranger's 404 says nothing about the file
        raise problem

    async def delete_file(self, file_id: str) -> None:
        reply = await self._call("delete", "DELETE", f"/files/{_quoted(file_id)}")
        if reply.status not in (404, 405, 501):  # gone, or a server that deletes nothing
            self._object("delete", reply, "id")

    def clock_skew_s(self) -> float:
        return self._http.clock_skew_s()

    # -- the live lane -------------------------------------------------------------------------

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        reply = await self._http.request(
            "send",
            "POST",
            self._base + url.removeprefix("/v1"),
            headers=self._json_headers,
            body=body,
            timeout_s=timeout_s,
        )
        said = reply.body if reply.status < 400 else reply.body.replace(self._key, b"***")
        return LiveReply(
            reply.status,
            said,
            rate_hint(reply.headers, time.time()),
            reply.headers.get("x-request-id", ""),
            stop=reply.status >= 400 and must_stop(reply.status, said),
        )

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

    async def _pages(self, op: str, path: str, query: Mapping[str, str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Every page of a list, checked; ends after the page that says it is the last."""
        after = ""
        seen: set[str] = set()
        while True:
            asked = "&".join(f"{key}={_quoted(value)}" for key, value in {**query, "after": after}.items() if value)
            reply = await self._call(op, "GET", f"{path}?{asked}")
            page = self._object(op, reply)
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


def connect(model: str, env: Mapping[str, str], timing: Timing = _USUAL) -> OpenAI:
    """An `OpenAI` from the environment.

    Raises:
        UsageError: OPENAI_API_KEY is missing (code ``no_key``) or cannot be sent in a header.
    """
    key = env.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise no_key("openai", "OPENAI_API_KEY")
    return OpenAI(
        model,
        key=sendable("OPENAI_API_KEY", key),
        base_url=sendable("OPENAI_BASE_URL", env.get("OPENAI_BASE_URL", "").strip() or BASE_URL),
        organization=sendable("OPENAI_ORG_ID", env.get("OPENAI_ORG_ID", "").strip()),
        project=sendable("OPENAI_PROJECT_ID", env.get("OPENAI_PROJECT_ID", "").strip()),
        timing=timing,
    )


def takes_sampling(model: str, effort: object = None) -> bool:
    """Whether ``model`` takes temperature and top_p: reasoning models do not.

    Reasoning models are the families o1, o3 and o4, and gpt-5 and gpt-6 unless the name says
    ``chat`` (``gpt-5-chat-latest``) or the request turns reasoning off (``reasoning_effort: none``).
    A fine-tuned ``ft:MODEL:...`` is what its MODEL is.
    """
    base = model.removeprefix("ft:").split(":", 1)[0]
    return effort == "none" or "chat" in base or not re.match(r"(o[134]|gpt-[56])(?![0-9])", base)


def _fit_cap(model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    """Leave ``body`` with the cap to send; our default is raised for models that think first."""
    asked = not user_set.isdisjoint(("max_completion_tokens", "max_tokens"))
    cap = body.get("max_completion_tokens")
    if cap is None:
        cap = DEFAULT_CAP
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        why = "it must be a whole number above 0"
        raise CannotCarry(f"max_completion_tokens is {cap!r}", why=why, fix="give --max-output such a number")
    if not asked and cap < REASONING_CAP and not takes_sampling(model, body.get("reasoning_effort")):
        notes.append(f"output cap {REASONING_CAP:,} instead of {cap:,}: {model} thinks first, and that counts")
        cap = REASONING_CAP
    body["max_completion_tokens"] = cap


def _fit_sampling(model: str, body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    if takes_sampling(model, body.get("reasoning_effort")):
        return
    for name in _SAMPLING:
        if name not in body or body[name] == 1:  # 1 is what these models use, and may be said
            continue
        if name in user_set:
            raise CannotCarry(
                f"{model} takes no {name}",
                why="it is a reasoning model",
                fix=f"leave {name} out, or choose a model that takes it",
            )
        notes.append(f"{name} {body.pop(name)} left out: {model} takes none")


def _fit_embeddings(body: dict[str, Any], notes: list[str], user_set: frozenset[str]) -> None:
    for name in _CHAT_ONLY:
        if name not in body:
            continue
        if name in user_set:
            why = "the answer is a vector, not text"
            raise CannotCarry(f"embeddings take no {name}", why=why, fix=f"leave {name} out")
        notes.append(f"{name} {body.pop(name)} left out: embeddings take none")


def _refuse_foreign(file: Path) -> None:
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
