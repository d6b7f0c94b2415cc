"""The lines of Gemini's batches: all of them checked before a batch is made, then answered into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from nightmill.simulator.answering import Model, text_tokens
from nightmill.simulator.batch import Batch
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import Checked, Reply, Rules, encode
from nightmill.simulator.gemini import answering, reading, showing
from nightmill.simulator.gemini.errors import GeminiError, invalid, rpc_code
from nightmill.simulator.gemini.media import look, refuse_too_long
from nightmill.simulator.media import Find
from nightmill.simulator.rows import lines_of
from nightmill.simulator.rows import spaced as in_one_line

_BUFFER_BYTES = 1 << 18


class GeminiRows:
    """How Gemini's batch lines are read, run and written."""

    two_files = False

    def __init__(self, model: Model, files: FileStore) -> None:
        self._mind, self._files = model, files

    def check(self, path: Path, batch: Batch, rules: Rules) -> Checked:
        """What `check` found before the batch was made."""
        return batch.facts["checked"]  # type: ignore[no-any-return]

    def read(self, raw: bytes) -> tuple[str, bytes]:
        """Key and request of one line."""
        line = reading.read(raw, reading.Line)
        return line.key or "", bytes(line.request)

    def answer(self, batch: Batch, body: bytes, *, created: int, twists: frozenset[str], salt: int = 0) -> Reply:
        """The response to one request."""
        model = batch.facts["model"]
        if batch.facts["kind"] == showing.EMBED:
            return answering.embed(self._mind, body, model, twists=twists)
        find = self._files.finder(batch.scope)
        return answering.generate(self._mind, body, model, find, twists=twists, salt=salt)

    def line(self, custom_id: str, reply: Reply, *, spaced: bool) -> bytes:
        """The line of a request that was answered, or that the model refused."""
        if reply.status != 200:
            message = msgspec.json.decode(reply.body)["error"]["message"]
            return _line(custom_id, "error", {"code": rpc_code(reply.status), "message": message})
        made = _line(custom_id, "response", msgspec.Raw(reply.body))
        return in_one_line(made) + b"\n" if spaced else made

    def failed_line(self, custom_id: str, status: int, row: int) -> bytes:
        """The line of a request that failed, with a google.rpc code for its status."""
        message = f"The request failed with status {status}."
        return _line(custom_id, "error", {"code": rpc_code(status), "message": message})

    def not_run_line(self, custom_id: str, ending: str, row: int) -> None:
        """There is none: a batch that expired or was cancelled hands nothing back."""

    def unknown_line(self, number: int) -> bytes:
        """A line nobody asked for."""
        return _line(f"nobody-sent-this-{number}", "response", {"modelVersion": "unknown"})


def _line(key: str, word: str, body: Any) -> bytes:
    return encode({"key": key, word: body} if key else {word: body}) + b"\n"


def check(path: Path, kind: str, model: str, find: Find) -> Checked:
    """Read every row of an input file. Media that are not what they should be fail their rows later.

    Blocking: meant for a thread.

    Raises:
        GeminiError: 400, naming the first line that is wrong.
    """
    rows = tokens = 0
    with path.open("rb", _BUFFER_BYTES) as file:
        for rows, raw in enumerate(lines_of(file), 1):
            try:
                tokens += _tokens(raw, kind, model, find)
            except GeminiError as wrong:
                raise invalid(f"Failed to parse line {rows} of the input: {wrong.message}") from None
    if rows == 0:
        raise invalid("The input holds no requests.")
    return Checked(rows, model, tokens)


def _tokens(raw: bytes, kind: str, model: str, find: Find) -> int:
    """Tokens of one row's prompt, or a 400."""
    request = bytes(reading.read(raw, reading.Line).request)
    if not request:
        raise invalid("request is not specified")
    if kind == showing.EMBED:
        return text_tokens(answering.embedded_text(reading.read(request, reading.Embed)))
    asked = reading.read(request, reading.Generate)
    reading.check(asked)
    reading.called_tool(asked)
    refuse_too_long(request)
    try:
        return answering.count(asked) + look(asked, model, find).tokens.total()
    except GeminiError:  # a row that will fail by itself takes no room in the queue
        return 0


def write_inline(requests: reading.InlineRequests, to: Path) -> None:
    """Requests that came inside a create, as an input file whose keys are their metadata. Blocking."""
    with to.open("wb", _BUFFER_BYTES) as out:
        for asked in requests.requests:
            row: dict[str, Any] = {"key": encode(asked.metadata).decode()}
            if bytes(asked.request):
                row["request"] = asked.request
            out.write(encode(row) + b"\n")


def inline_results(path: Path) -> list[dict[str, Any]]:
    """The results of such a file as an operation carries them. Blocking."""
    made = []
    with path.open("rb", _BUFFER_BYTES) as file:
        for raw in lines_of(file):
            row = msgspec.json.decode(raw)
            metadata = _metadata(row.pop("key", "null"))
            made.append(row if metadata is None else {"metadata": metadata, **row})
    return made


def _metadata(key: str) -> Any:
    try:
        return msgspec.json.decode(key)
    except msgspec.DecodeError:  # a line nobody sent
        return {"key": key}
