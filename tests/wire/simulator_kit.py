"""What the simulator's tests share: one OpenAPI judge, small batches, raw requests where a client hides facts."""

from __future__ import annotations

import functools
import http.client
import json
import time
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs

from nightmill.simulator import SimulatorConfig

DATA = Path(__file__).parent.parent / "data"
MODEL = "gpt-4o-mini"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
# Batches are over in a few hundredths of a second.
FAST = {"speed": 1000.0, "batch_s": 20.0, "validating_s": 1.0, "finalizing_s": 1.0, "cancel_s": 1.0}
TERMINAL = ("completed", "failed", "expired", "cancelled")


def fast(**changes: Any) -> SimulatorConfig:
    return SimulatorConfig(**{**FAST, **changes})


@functools.cache
def openapi() -> dict[str, Any]:
    return json.loads((DATA / "openai-openapi-2026-08-21.json").read_text())


@functools.cache
def _validator(component: str) -> Any:
    return jsonschema_rs.validator_for({**openapi(), "$ref": f"#/components/schemas/{component}"})


def judge(component: str, body: Any) -> list[str]:
    """What OpenAI's document finds wrong with a body.

    Optional keys that are null count as absent: the document declares them as plain strings, yet its
    own example of a batch has nulls, and so has the real API.
    """
    return [f"{error.instance_path}: {error.message}" for error in _validator(component).iter_errors(_nullless(body))]


_NULLABLE_IN_PRACTICE = frozenset(
    ("model", "errors", "output_file_id", "error_file_id", "usage", "metadata", "status_details", "first_id", "last_id")
) | {f"{state}_at" for state in ("expires", "in_progress", "finalizing", "cancelling", *TERMINAL)}


def _nullless(node: Any) -> Any:
    if isinstance(node, list):
        return [_nullless(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {k: _nullless(v) for k, v in node.items() if not (v is None and k in _NULLABLE_IN_PRACTICE)}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def call(url: str, method: str, path: str, body: Any = None, *, key: str | None = "sk-test", **headers: str) -> Answer:
    """One request with nothing done for us; a dropped connection raises what http.client raises."""
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    if raw is not None:
        sent["Content-Type"] = "application/json"
    try:
        connection.request(method, path, raw, {**sent, **headers})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def line(custom_id: str, body: dict[str, Any], url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat_body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def chat_lines(count: int, **more: Any) -> list[dict[str, Any]]:
    return [line(f"shard-{i}", chat_body(f"row number {i}", **more)) for i in range(count)]


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


def upload(url: str, content: bytes, filename: str = "in.jsonl", purpose: str = "batch", **headers: str) -> Answer:
    edge = "edge-of-a-part"
    form = (
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    ).encode()
    form += content + f"\r\n--{edge}--\r\n".encode()
    headers["Content-Type"] = f"multipart/form-data; boundary={edge}"
    return call(url, "POST", "/v1/files", form, **headers)


def create(url: str, content: bytes | Iterable[Any], endpoint: str = CHAT, **more: Any) -> Answer:
    """Upload and create."""
    raw = content if isinstance(content, bytes) else jsonl(content)
    asked = {"input_file_id": upload(url, raw).json()["id"], "endpoint": endpoint, "completion_window": "24h", **more}
    return call(url, "POST", "/v1/batches", asked)


def poll(url: str, batch_id: str) -> dict[str, Any]:
    return call(url, "GET", f"/v1/batches/{batch_id}").json()


def until(url: str, batch_id: str, *statuses: str) -> dict[str, Any]:
    """The batch once it is in one of these states; gives up after half a minute."""
    give_up = time.monotonic() + 30
    while True:
        seen = poll(url, batch_id)
        if seen["status"] in statuses:
            return seen
        if time.monotonic() > give_up:
            raise AssertionError(f"still {seen['status']}, not one of {statuses}")
        time.sleep(0.01)


def run(url: str, content: bytes | Iterable[Any], endpoint: str = CHAT, **more: Any) -> dict[str, Any]:
    """A batch from upload to its end."""
    return until(url, create(url, content, endpoint, **more).json()["id"], *TERMINAL)


def content(url: str, file_id: str) -> bytes:
    return call(url, "GET", f"/v1/files/{file_id}/content").body


def results(url: str, batch: dict[str, Any], which: str = "output_file_id") -> list[dict[str, Any]]:
    """The lines of a result file, in file order; none where there is no file."""
    return [json.loads(raw) for raw in content(url, batch[which]).split(b"\n") if raw] if batch.get(which) else []


def invoice(url: str) -> dict[str, Any]:
    return call(url, "GET", "/simulator/invoice").json()


def log(url: str) -> list[dict[str, Any]]:
    return call(url, "GET", "/simulator/log").json()


def set_faults(url: str, *faults: dict[str, Any]) -> Answer:
    return call(url, "PUT", "/simulator/faults", list(faults))
