"""What the tests of the simulator's Gemini format share: requests in that format, with nothing done for us."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from simulator_kit import Answer, call, jsonl

MODEL = "gemini-2.5-flash"
EMBEDDER = "gemini-embedding-001"
OVER = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")
KEY = "gm-test"


def root(url: str) -> str:
    """The base URL without OpenAI's version."""
    return url.removesuffix("/v1")


def ask(url: str, method: str, path: str, body: Any = None, *, key: str | None = KEY, **headers: str) -> Answer:
    """One request with the key where Gemini's clients put it; ``path`` has its version."""
    if key is not None:
        headers["x-goog-api-key"] = key
    return call(url, method, path, body, key=None, **headers)


def request(text: str, **config: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    return {**made, "generationConfig": config} if config else made


def lines(count: int, **config: Any) -> list[dict[str, Any]]:
    return [{"key": f"shard-{i}", "request": request(f"row number {i}", **config)} for i in range(count)]


def start_upload(url: str, size: int, **file: Any) -> Answer:
    return ask(
        url, "POST", "/upload/v1beta/files", {"file": file},
        **{"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start",
           "X-Goog-Upload-Header-Content-Length": str(size), "X-Goog-Upload-Header-Content-Type": "application/jsonl"},
    )  # fmt: skip


def send(address: str, body: bytes, offset: int, command: str = "upload, finalize") -> Answer:
    """A chunk to an upload's address, without a key: knowing the address is enough."""
    path = address[address.index("/upload/") :]
    headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
    return call(address, "POST", path, body, key=None, **headers)


def upload(url: str, content: bytes, **file: Any) -> Answer:
    """A whole upload: its last answer, or the refusal of its start."""
    started = start_upload(url, len(content), **file)
    if started.status != 200:
        return started
    return send(started.headers["X-Goog-Upload-URL"], content, 0)


def create(url: str, content: bytes | Iterable[Any], model: str = MODEL, **batch: Any) -> Answer:
    """Upload and create."""
    raw = content if isinstance(content, bytes) else jsonl(content)
    name = upload(url, raw).json()["file"]["name"]
    asked = {"batch": {"displayName": "d", "inputConfig": {"fileName": name}, **batch}}
    return ask(url, "POST", f"/v1beta/models/{model}:batchGenerateContent", asked)


def poll(url: str, name: str) -> dict[str, Any]:
    return ask(url, "GET", f"/v1beta/{name}").json()


def state(operation: dict[str, Any]) -> str:
    return operation["metadata"]["state"].removeprefix("BATCH_STATE_")


def until(url: str, name: str, *states: str) -> dict[str, Any]:
    """The operation once its batch is in one of these states; gives up after ten seconds."""
    give_up = time.monotonic() + 10
    while True:
        seen = poll(url, name)
        if state(seen) in states:
            return seen
        if time.monotonic() > give_up:
            raise AssertionError(f"still {state(seen)}, not one of {states}")


def run(url: str, content: bytes | Iterable[Any], **batch: Any) -> dict[str, Any]:
    """A batch from upload to its end."""
    return until(url, create(url, content, **batch).json()["name"], *OVER)


def content(url: str, operation: dict[str, Any]) -> bytes:
    name = operation["response"]["responsesFile"]
    return ask(url, "GET", f"/download/v1beta/{name}:download?alt=media").body


def results(url: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the result file, in file order; none where there is no file."""
    if not operation.get("response"):
        return []
    return [json.loads(raw) for raw in content(url, operation).split(b"\n") if raw]


def generate(url: str, text: str = "x", *, model: str = MODEL, **config: Any) -> Answer:
    return ask(url, "POST", f"/v1beta/models/{model}:generateContent", request(text, **config))


def listed(url: str) -> list[str]:
    """The names on the first page of the list, newest first."""
    return [item["name"] for item in ask(url, "GET", "/v1beta/batches?pageSize=100").json().get("operations", [])]
