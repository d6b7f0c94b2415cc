"""Gemini's files: put there by resumable uploads, under ids of our own, where they stay for two days."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nightmill.errors import Uncertain
from nightmill.providers import Upload
from nightmill.providers._api import Api, nothing_ran, quoted
from nightmill.providers._gemini_talk import fault_in, is_gone, is_same_file, moment
from nightmill.providers._http import Reply

_LOOK_S = 2.0
_READ = ("ACTIVE", "FAILED")  # of one that cannot be read the request that names it says so
_AT_ONCE = 4  # uploads of media
_STAYS_S = 48 * 3_600.0  # where a file does not say until when it stays


class Files:
    """The files of one account."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._until: dict[str, float] = {}  # media that are there, unix seconds
        self._one_each: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def put(self, file: Path, name: str, *, title: str, mime: str) -> Mapping[str, Any]:
        """Upload ``file`` as ``name`` (``files/ID``), unless it is there; what Gemini says of it once it was read.

        Whatever goes wrong, nothing can have run. Raises NeverSent, Limited, Refused.
        """
        with nothing_ran():
            try:
                told = await self._put(file, name, title, mime)
            except _Taken:
                told = await self._put_before(file, name)
            return await self._ready(told)

    async def provide(self, upload: Upload, file: Path, *, lasting_s: float) -> None:
        """See `UploadsMedia.provide`."""
        async with self._one_each[upload.id], self._turns:
            if self._until.get(upload.id, 0.0) - time.time() < lasting_s:
                with nothing_ran():
                    await self._make_room_for(upload, file, lasting_s)
                told = await self.put(file, f"files/{upload.id}", title=upload.id, mime=upload.mime)
                self._until[upload.id] = self._stays_until(told)

    def forget(self) -> None:
        """A request said that a medium is not there: look for each anew."""
        self._until.clear()

    async def _make_room_for(self, upload: Upload, file: Path, lasting_s: float) -> None:
        """Delete what has the name and is another file, or goes too soon: no name is given twice."""
        told = await self._told_of(f"files/{upload.id}")
        if told is None:
            return
        goes_soon = self._stays_until(told) - time.time() < lasting_s
        if goes_soon or told.get("state") == "FAILED" or not await asyncio.to_thread(is_same_file, told, file):
            await self.delete(upload.id)

    def _stays_until(self, told: Mapping[str, Any]) -> float:
        """Unix seconds of our clock."""
        until = moment(told.get("expirationTime")) or moment(told.get("createTime")) + _STAYS_S
        return until - self._api.http.clock_skew_s()

    async def _told_of(self, name: str) -> dict[str, Any] | None:
        reply = await self._api.call("files", "GET", f"/v1beta/{name}")
        if reply.status != 200 and is_gone(self._api.failure("files", reply)):
            return None
        return self._api.object("files", reply, "name")

    async def is_there(self, name: str) -> bool:
        """Whether there is a file of that name. Raises ProviderError (any kind): nobody knows."""
        return await self._told_of(name) is not None

    async def delete(self, file_id: str) -> None:
        """One that is gone already is fine."""
        reply = await self._api.call("delete", "DELETE", path_of("files", file_id))
        if reply.status not in (403, 404) or not is_gone(self._api.failure("delete", reply)):
            self._api.object("delete", reply)

    async def _put(self, file: Path, name: str, title: str, mime: str) -> dict[str, Any]:
        size = (await asyncio.to_thread(file.stat)).st_size
        headers = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": mime,
        }
        about = {"name": name, "display_name": title, "mime_type": mime, "size_bytes": size}
        reply = await self._api.call("upload", "POST", "/upload/v1beta/files", {"file": about}, headers=headers)
        to = reply.headers.get("x-goog-upload-url", "") if reply.status == 200 else ""
        if not to:  # its body is empty
            raise _taken(reply) or self._api.failure("upload", reply)
        reply = await self._api.http.send_file(
            "upload", self._ours(to), file, timeout_s=self._api.timing.upload_timeout_s,
            headers={**self._api.headers, "X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"},
        )  # fmt: skip
        if taken := _taken(reply):
            raise taken
        told = self._api.object("upload", reply).get("file")
        if not isinstance(told, dict) or reply.headers.get("x-goog-upload-status", "final") != "final":
            raise Uncertain("upload: not completed", why="the answer tells of no file")
        return told

    def _ours(self, url: str) -> str:
        """Where to send the bytes, at our own base URL: it may stand for the address that the server knows."""
        parts = urlsplit(url)
        return self._api.base + parts.path + (f"?{parts.query}" if parts.query else "")

    async def _put_before(self, file: Path, name: str) -> dict[str, Any]:
        """The file that has this name already; it is ours if its bytes are."""
        told = await self._api.ask("get", "GET", f"/v1beta/{name}", "name")
        if not await asyncio.to_thread(is_same_file, told, file):
            raise Uncertain("upload: the name is taken", why=f"another file is {told['name']}")
        return told

    async def _ready(self, file: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is said of a file once the server has read it."""
        until = time.monotonic() + self._api.timing.upload_timeout_s
        while file.get("state", "ACTIVE") not in _READ:
            if time.monotonic() > until:
                raise Uncertain("upload: the file is not ready", why=f"its state is {file.get('state')}")
            await asyncio.sleep(min(self._api.timing.backoff_first_s, _LOOK_S))
            file = await self._api.ask("get", "GET", path_of("files", str(file.get("name"))), "name")
        if not isinstance(file.get("name"), str) or not file["name"]:
            raise Uncertain("upload: not completed", why="the answer names no file")
        return file


class _Taken(Exception):
    """There is a file of that name already."""


def _taken(reply: Reply) -> _Taken | None:
    fault = fault_in(reply.body)
    return _Taken() if fault is not None and fault.word == "ALREADY_EXISTS" else None


def path_of(kind: str, name: str) -> str:
    """The path of a batch or file whose name may lack its kind."""
    return f"/v1beta/{kind}/{quoted(name.removeprefix(kind + '/'))}"
