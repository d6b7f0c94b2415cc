"""The requests of a message batch as they are kept, and its result lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from nightmill.simulator.answering import Model
from nightmill.simulator.anthropic.answering import Answers
from nightmill.simulator.anthropic.wire import ApiError, error_of
from nightmill.simulator.batch import Batch
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import Checked, Reply, Rules, encode
from nightmill.simulator.prefixes import Prefixes
from nightmill.simulator.rows import lines_of
from nightmill.simulator.rows import spaced as in_one_line

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}").fullmatch
_NOT_RUN = {"expired": "expired", "cancelled": "canceled"}


class _Request(msgspec.Struct):
    custom_id: str
    params: msgspec.Raw


class _Create(msgspec.Struct):
    requests: list[_Request]


_decode_create = msgspec.json.Decoder(_Create).decode
_decode_request = msgspec.json.Decoder(_Request).decode


def keep_requests(body: Path, to: Path, max_rows: int) -> int:
    """Write the requests of a create's body to ``to``, one a line; how many there are.

    Bad ``params`` are no concern of a create: their rows fail when they run.

    Raises:
        ApiError: 400 for a body that is none, for too many requests, and for ids that break the rules.
    """
    try:
        asked = _decode_create(body.read_bytes())
    except msgspec.ValidationError as bad:
        raise ApiError(400, f"requests: {bad}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(400, "The request body is not valid JSON") from None
    if not asked.requests:
        raise ApiError(400, "requests: List should have at least 1 item after validation, not 0")
    if len(asked.requests) > max_rows:
        raise ApiError(400, f"requests: List should have at most {max_rows} items, not {len(asked.requests)}")
    seen: set[str] = set()
    with to.open("wb") as file:
        for number, request in enumerate(asked.requests):
            where = f"requests.{number}.custom_id"
            if _CUSTOM_ID(request.custom_id) is None:
                raise ApiError(400, f"{where}: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
            if request.custom_id in seen:
                raise ApiError(400, f"{where}: custom_ids must be unique; '{request.custom_id}' is not")
            seen.add(request.custom_id)
            file.write(encode(request).replace(b"\n", b" ") + b"\n")  # JSON has raw newlines only between its words
    return len(asked.requests)


class AnthropicRows:
    """How the requests of message batches are read and run, and what is written of them."""

    two_files = False

    def __init__(self, model: Model, catalogue: Catalogue, files: FileStore, prefixes: Prefixes) -> None:
        self._answers, self._files = Answers(model, catalogue, prefixes), files

    def check(self, path: Path, batch: Batch, rules: Rules) -> Checked:
        """Each row is looked at only when it runs."""
        with path.open("rb") as file:
            return Checked(sum(1 for _ in lines_of(file)), "", 0)

    def read(self, raw: bytes) -> tuple[str, bytes]:
        """Id and body of one request."""
        request = _decode_request(raw)
        return request.custom_id, bytes(request.params)

    def answer(self, batch: Batch, body: bytes, *, created: int, twists: frozenset[str], salt: int = 0) -> Reply:
        """The message that answers one body, or what is wrong with it."""
        try:
            find, scope = self._files.finder(batch.scope), batch.scope
            return self._answers.answer(body, find, account=scope, batch=True, twists=twists, salt=salt)
        except ApiError as wrong:
            return Reply(wrong.status, wrong.body())

    def line(self, custom_id: str, reply: Reply, *, spaced: bool) -> bytes:
        """The line of a request that succeeded, or that was refused when it ran."""
        body = in_one_line(reply.body) if spaced else reply.body
        if reply.status != 200:
            return b'{"custom_id":%b,"result":{"type":"errored","error":%b}}\n' % (encode(custom_id), body)
        return b'{"custom_id":%b,"result":{"type":"succeeded","message":%b}}\n' % (encode(custom_id), body)

    def failed_line(self, custom_id: str, status: int, row: int) -> bytes:
        """The line of a request that the provider failed."""
        return _line(custom_id, {"type": "errored", "error": error_of(status, None, f"req_{row:024x}")})

    def not_run_line(self, custom_id: str, ending: str, row: int) -> bytes:
        """The line of a request that the end of the batch overtook."""
        return _line(custom_id, {"type": _NOT_RUN[ending]})

    def unknown_line(self, number: int) -> bytes:
        """A line nobody asked for."""
        return _line(f"nobody-sent-this-{number}", {"type": "errored", "error": error_of(500, None, None)})


def _line(custom_id: str, result: dict[str, Any]) -> bytes:
    return encode({"custom_id": custom_id, "result": result}) + b"\n"
