"""Small servers on loopback that answer as well-known ones do, for tests that talk to them over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came."""

    method: str
    path: str  # without the query
    headers: dict[str, str]  # names in lower case
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found

    @property
    def asked(self) -> str:
        """The text of the last message."""
        text: str = self.body["messages"][-1]["content"]
        return text


# A body (a dict is JSON, bytes go out as they are), or a status and a body, or both and headers; None: no answer.
Said = Any
Answers = Callable[[Call], Said]


@dataclass
class Server:
    """A server under way; ``calls`` is all that it was asked."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)

    def to(self, path: str) -> list[Call]:
        """The calls of one path."""
        return [call for call in self.calls if call.path == path]


@contextmanager
def serving(answers: Answers) -> Iterator[Server]:
    """A server on loopback that answers as told, until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(self.command, self.path.partition("?")[0], headers, raw)
            server.calls.append(call)
            said = answers(call)
            if said is None:
                self.close_connection = True
                return
            status, body, more = (*said, {})[:3] if isinstance(said, tuple) else (200, said, {})
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 (names that the base class calls)

        def log_message(self, *_args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def chat(
    text: str | None, *, model: str = "m", finish: str = "stop", usage: dict[str, Any] | None = None,
    choice: dict[str, Any] | None = None, message: dict[str, Any] | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A chat completion; ``choice``, ``message`` and ``more`` are what one server adds."""
    said = {"role": "assistant", "content": text, **(message or {})}
    counted = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120} if usage is None else usage
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": model,
        "choices": [{"index": 0, "message": said, "finish_reason": finish, **(choice or {})}], "usage": counted, **more,
    }  # fmt: skip


class BatchServer:
    """Files and batches under ``prefix``; every batch has ended when it is asked for.

    ``answer`` makes the body of a row, or ``(status, body)``. What differs by server is overridden.
    """

    def __init__(self, prefix: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.prefix, self.answer = prefix, answer
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    def __call__(self, call: Call) -> Said:
        parts = call.path.removeprefix(self.prefix).strip("/").split("/")
        match call.method, *parts:
            case "POST", "files":
                return self.upload(call)
            case "GET", "files":
                return self.listed([{"id": name, "filename": "x.jsonl"} for name in self.files])
            case "GET", "files", file_id, "content":
                return self.files[file_id]
            case "GET", "files", file_id:
                return self.file(file_id, "processed")
            case "DELETE", "files", file_id:
                self.files.pop(file_id, None)
                return {"id": file_id, "object": "file", "deleted": True}
            case "POST", "batches":
                return self.created(self.create(call.body))
            case "GET", "batches":
                return self.listed(list(self.batches.values()))
            case "GET", "batches", batch_id:
                return self.batches[batch_id]
        return 404, {
            "error": {"message": "Unknown request URL", "type": "invalid_request_error", "code": "unknown_url"}
        }

    def upload(self, call: Call) -> Said:
        message = BytesParser().parsebytes(
            b"Content-Type: " + call.headers["content-type"].encode() + b"\n\n" + call.raw
        )
        parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
        assert parts["purpose"].get_payload(decode=True).strip() == b"batch"
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = parts["file"].get_payload(decode=True)
        return self.file(file_id, "processed")

    def file(self, file_id: str, status: str) -> dict[str, Any]:
        return {"id": file_id, "object": "file", "purpose": "batch", "status": status, "filename": "x.jsonl"}

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        number = len(self.batches)
        good, bad = [], []
        for line in self.files[asked["input_file_id"]].splitlines():
            request = json.loads(line)
            assert request["url"] == asked["endpoint"]
            said = self.answer(request["body"])
            status, body = said if isinstance(said, tuple) else (200, said)
            response = {"status_code": status, "request_id": "r", "body": body}
            row = {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}
            (good if status == 200 else bad).append(json.dumps(row).encode() + b"\n")
        self.files |= {f"out-{number}": b"".join(good), f"err-{number}": b"".join(bad)}
        batch = {
            "id": f"batch_{number}", "object": "batch", "status": "completed", "created_at": int(time.time()),
            "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"], "metadata": asked["metadata"],
            "output_file_id": f"out-{number}" if good else None, "error_file_id": f"err-{number}" if bad else None,
            "request_counts": {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)},
        }  # fmt: skip
        self.batches[batch["id"]] = batch
        return batch

    def created(self, batch: dict[str, Any]) -> Said:
        return batch | {"status": "validating", "output_file_id": None, "error_file_id": None}

    def listed(self, data: list[dict[str, Any]]) -> Said:
        return {"object": "list", "data": data, "has_more": False}
