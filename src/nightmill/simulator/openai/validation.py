"""Whole-batch validation: the first bad line fails the batch, and nothing runs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nightmill.simulator.billing import Catalogue
from nightmill.simulator.formats import BatchRefused, Checked, Rules
from nightmill.simulator.media import Find
from nightmill.simulator.openai.answering import count_inputs, prompt_tokens
from nightmill.simulator.openai.wire import EMBEDDINGS_URL, ApiError
from nightmill.simulator.rows import lines_of


class _BodyHead(msgspec.Struct, frozen=True):
    model: str | None = None
    stream: bool | None = None


_NO_BODY = _BodyHead()


class _Line(msgspec.Struct):
    custom_id: str = ""
    method: str = ""
    url: str = ""
    body: _BodyHead = _NO_BODY


class RowLine(msgspec.Struct):
    """What running a row needs of its line; ``body`` is a view into the line."""

    custom_id: str
    body: msgspec.Raw


_decode_line = msgspec.json.Decoder(_Line).decode
decode_row = msgspec.json.Decoder(RowLine).decode
_REQUIRED = ("custom_id", "method", "url")


def check(path: Path, endpoint: str, rules: Rules, catalogue: Catalogue, find: Find) -> Checked:
    """Read the whole input file once.

    Memory: the set of its custom_ids, at most ``rules.max_rows`` of them.

    Raises:
        BatchRefused: with the first thing that is wrong.
    """
    if path.stat().st_size == 0:
        raise BatchRefused("empty_file", "The batch input file is empty. Please ensure it holds at least one request.")
    ids: set[str] = set()
    model = ""
    inputs = tokens = rows = 0
    with path.open("rb") as file:
        for rows, raw in enumerate(lines_of(file), 1):
            line = _parse(raw, rows)
            _check_line(line, rows, endpoint, model, ids)
            if not model:
                model = _first_model(line, catalogue)
            if rows > rules.max_rows:
                message = f"The batch input file holds more than the {rules.max_rows:,} requests a batch may have."
                raise BatchRefused("too_many_tasks", message)
            if endpoint == EMBEDDINGS_URL:
                inputs += count_inputs(bytes(decode_row(raw).body))
                if inputs > rules.max_inputs:
                    message = f"The batch holds more than {rules.max_inputs:,} embedding inputs across its requests."
                    raise BatchRefused("invalid_request", message, param="body.input", line=rows)
            if rules.count_tokens:
                tokens += _tokens(endpoint, raw, find)
    return Checked(rows, model, tokens)


def model_of(path: Path) -> str | None:
    """The model the first line of an input file names, as far as that can be read."""
    with path.open("rb") as file:
        try:
            return _decode_line(file.readline()).body.model
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def _parse(raw: bytes, number: int) -> _Line:
    try:
        return _decode_line(raw)
    except msgspec.ValidationError as wrong:
        where = str(wrong).partition(" - at ")[2].strip("`").removeprefix("$.") or None
        if where is None:  # the line is JSON, but no object
            raise BatchRefused("invalid_json_line", "This line is not a JSON object.", line=number) from None
        if where in (*_REQUIRED, "body") and "got `null`" in str(wrong):
            raise _missing(where, number) from None
        message = f"Invalid value for '{where}': {wrong}"
        raise BatchRefused("invalid_request", message, param=where, line=number) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BatchRefused("invalid_json_line", "This line is not parseable as valid JSON.", line=number) from None


def _missing(param: str, number: int) -> BatchRefused:
    message = f"Missing required parameter: '{param}'."
    return BatchRefused("missing_required_parameter", message, param=param, line=number)


def _check_line(line: _Line, number: int, endpoint: str, model: str, ids: set[str]) -> None:
    if not (line.custom_id and line.method and line.url):
        raise _missing(next(name for name in _REQUIRED if not getattr(line, name)), number)
    if line.body is _NO_BODY:
        raise _missing("body", number)
    if line.custom_id in ids:
        message = f"The custom_id for this request is a duplicate of another request. ({line.custom_id})"
        raise BatchRefused("duplicate_custom_id", message, param="custom_id", line=number)
    ids.add(line.custom_id)
    if line.method != "POST":
        message = f"The method '{line.method}' is not supported. Only POST is."
        raise BatchRefused("invalid_method", message, param="method", line=number)
    if line.url != endpoint:
        message = f"The URL provided for this request does not match the batch endpoint. Expected '{endpoint}'."
        raise BatchRefused("invalid_url", message, param="url", line=number)
    if not line.body.model:
        message = "Missing required parameter: 'body.model'."
        raise BatchRefused("invalid_request", message, param="body.model", line=number)
    if model and line.body.model != model:
        message = (
            f"The provided model '{line.body.model}' does not match the model of the batch, '{model}'. "
            "Please ensure all requests in the batch use the same model."
        )
        raise BatchRefused("mismatched_model", message, param="body.model", line=number)
    if line.body.stream:
        message = "Streaming is not supported in the Batch API."
        raise BatchRefused("streaming_unsupported", message, param="body.stream", line=number)


def _first_model(line: _Line, catalogue: Catalogue) -> str:
    model = line.body.model
    if not model or not catalogue.knows(model):
        message = f"The provided model '{model}' does not exist or is not supported by the Batch API."
        raise BatchRefused("model_not_found", message, param="body.model", line=1)
    return model


def _tokens(endpoint: str, raw: bytes, find: Find) -> int:
    try:
        return prompt_tokens(endpoint, bytes(decode_row(raw).body), find)
    except ApiError:  # a row that will fail by itself takes no room in the queue
        return 0
