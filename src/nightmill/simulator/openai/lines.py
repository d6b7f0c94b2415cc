"""The lines of OpenAI's batch files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nightmill.simulator.answering import Model
from nightmill.simulator.batch import Batch
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import Checked, Reply, Rules, encode
from nightmill.simulator.openai.answering import Answers, Caller
from nightmill.simulator.openai.validation import check, decode_row
from nightmill.simulator.prefixes import Prefixes
from nightmill.simulator.rows import spaced as in_one_line

_NOT_RUN = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "This request was not executed because the batch was cancelled.",
}


class OpenAIRows:
    """How OpenAI's batch lines are read, run and written."""

    two_files = True

    def __init__(self, model: Model, catalogue: Catalogue, files: FileStore, prefixes: Prefixes) -> None:
        self._answers, self._catalogue, self._files = Answers(model, catalogue, prefixes), catalogue, files

    def check(self, path: Path, batch: Batch, rules: Rules) -> Checked:
        """The whole input is read before anything runs."""
        return check(path, batch.facts["endpoint"], rules, self._catalogue, self._files.finder(batch.scope))

    def read(self, raw: bytes) -> tuple[str, bytes]:
        """Id and body of one line."""
        line = decode_row(raw)
        return line.custom_id, bytes(line.body)

    def answer(self, batch: Batch, body: bytes, *, created: int, twists: frozenset[str], salt: int = 0) -> Reply:
        """The response to one body."""
        url, find = batch.facts["endpoint"], self._files.finder(batch.scope)
        caller = Caller(batch.scope, batch=True)
        return self._answers.answer(url, body, find=find, caller=caller, created=created, twists=twists, salt=salt)

    def line(self, custom_id: str, reply: Reply, *, spaced: bool) -> bytes:
        """The line of a request that was answered."""
        tag = reply.digest.hex().encode()
        body = in_one_line(reply.body) if spaced else reply.body
        return (
            b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":"req_%b","body":%b},'
            b'"error":null}\n'
        ) % (tag, encode(custom_id), reply.status, tag, body)

    def failed_line(self, custom_id: str, status: int, row: int) -> bytes:
        """The line of a request that failed; status 0 is one that got no answer at all."""
        response: dict[str, Any]
        if status == 0:
            response = {"status_code": 0, "request_id": "", "body": None}
        else:
            kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
            code = {429: "rate_limit_exceeded", 400: "invalid_value"}.get(status)
            error = {"message": f"The request failed with status {status}.", "type": kind, "param": None, "code": code}
            response = {"status_code": status, "request_id": f"req_{row:032x}", "body": {"error": error}}
        return _envelope(custom_id, row, response, None)

    def not_run_line(self, custom_id: str, ending: str, row: int) -> bytes | None:
        """The line of a request that the end of the batch overtook; a batch that failed has none of it."""
        if ending not in _NOT_RUN:
            return None
        return _envelope(custom_id, row, None, {"code": f"batch_{ending}", "message": _NOT_RUN[ending]})

    def unknown_line(self, number: int) -> bytes:
        """A line nobody asked for."""
        body = {"object": "chat.completion", "choices": [], "model": "unknown"}
        response = {"status_code": 200, "request_id": f"req_{number:032x}", "body": body}
        return _envelope(f"nobody-sent-this-{number}", number, response, None)


def _envelope(custom_id: str, row: int, response: Any, error: Any) -> bytes:
    made = {"id": f"batch_req_{row:032x}", "custom_id": custom_id, "response": response, "error": error}
    return encode(made) + b"\n"
