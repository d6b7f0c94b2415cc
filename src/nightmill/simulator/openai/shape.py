"""OpenAI's wire format: `SHAPE` is what the simulator is told of it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from aiohttp import web

from nightmill.simulator.answering import Model
from nightmill.simulator.batch import Batch
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import BatchRefused, Operation, Refusal, Route, Trouble, Why
from nightmill.simulator.openai import http_batches, http_files, http_live
from nightmill.simulator.openai.http_common import api_key
from nightmill.simulator.openai.lines import OpenAIRows
from nightmill.simulator.openai.wire import ApiError, enqueued_limit_text, no_quota, server_error
from nightmill.simulator.prefixes import Prefixes
from nightmill.simulator.provider import Provider

_ROUTES = (
    Route(Operation.UPLOAD, "POST", "/v1/files", http_files.upload),
    Route(Operation.FILES, "GET", "/v1/files", http_files.list_files),
    Route(Operation.FILE, "GET", "/v1/files/{file_id}", http_files.get_file),
    Route(Operation.DELETE_FILE, "DELETE", "/v1/files/{file_id}", http_files.delete_file),
    Route(Operation.CONTENT, "GET", "/v1/files/{file_id}/content", http_files.get_content),
    Route(Operation.CREATE, "POST", "/v1/batches", http_batches.create_batch),
    Route(Operation.LIST, "GET", "/v1/batches", http_batches.list_batches),
    Route(Operation.POLL, "GET", "/v1/batches/{batch_id}", http_batches.get_batch),
    Route(Operation.CANCEL, "POST", "/v1/batches/{batch_id}/cancel", http_batches.cancel_batch),
    Route(Operation.LIVE, "POST", "/v1/chat/completions", http_live.chat),
    Route(Operation.LIVE, "POST", "/v1/embeddings", http_live.embeddings),
    Route(Operation.LIVE, "POST", "/v1/responses", http_live.responses),
    Route(Operation.MODELS, "GET", "/v1/models", http_live.list_models),
    Route(Operation.MODELS, "GET", "/v1/models/{model:.+}", http_live.get_model),
)


class OpenAI:
    """The format of OpenAI and of everyone who imitates it."""

    name = prices = "openai"  # here and in genai-prices
    routes: tuple[Route, ...] = _ROUTES
    max_rows = 50_000
    max_bytes = 209_715_200
    window_s = 86_400.0
    keeps_partial = True
    kept_headers: tuple[str, ...] = ("x-", "retry-")
    impossible: frozenset[str] = frozenset()

    def claims(self, request: web.Request) -> bool:
        """Everything that is nobody else's."""
        return True

    def admit(self, request: web.Request) -> None:
        """Look at the key, where there is something to open with it."""
        if request.path.startswith("/v1/"):
            api_key(request)

    def key_of(self, request: web.Request) -> str:
        """The bearer key."""
        return api_key(request) if request.path.startswith("/v1/") else ""

    def take_input(self, batch: Batch, files: FileStore) -> Path:
        """A link to the file the create named: deleting that file does not stop the batch."""
        file_id = batch.facts["input_file_id"]
        source = files.find(file_id, batch.scope)
        if source is None or source.purpose != "batch":
            why = "was not found" if source is None else f"has purpose '{source.purpose}', not 'batch'"
            raise BatchRefused("invalid_request", f"The input file {file_id} {why}.", param="input_file_id")
        return files.hold(source)

    def file_id(self, batch: Batch, word: str) -> None:
        """Results are files like any other."""

    def rows(self, model: Model, catalogue: Catalogue, files: FileStore, prefixes: Prefixes) -> OpenAIRows:
        """How the lines of its batches are read, run and written."""
        return OpenAIRows(model, catalogue, files, prefixes)

    def refusal(self, trouble: Trouble) -> Refusal:
        """Trouble as OpenAI words it."""
        facts, headers = trouble.facts, trouble.headers
        match trouble.why:
            case Why.BROKEN:
                error = server_error()
                return ApiError(trouble.status or 500, error.message, kind=error.kind, headers=headers)
            case Why.KEY_REVOKED:
                return ApiError(401, "Incorrect API key provided: it was revoked.", code="invalid_api_key")
            case Why.NO_MONEY:
                return no_quota()
            case Why.RATE:
                message = "Rate limit reached for requests. Please try again later."
                return ApiError(429, message, kind="requests", code="rate_limit_exceeded", headers=headers)
            case Why.QUEUE_FULL:
                message = enqueued_limit_text(facts["model"], facts["limit"])
                return ApiError(429, message, code="token_limit_exceeded")
            case Why.TOO_LARGE:
                return ApiError(413, "The body of your request is too large.")
            case Why.NO_SUCH_CALL:
                return ApiError(trouble.status or 404, f"Invalid URL ({facts['method']} {facts['path']})")

    def sign(self, headers: Any, took_s: float) -> None:
        """The headers OpenAI puts on every answer."""
        headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
        headers["openai-processing-ms"] = str(round(took_s * 1000))
        headers["openai-version"] = "2020-10-01"

    def rate_headers(self, provider: Provider) -> dict[str, str]:
        """The x-ratelimit headers of this moment."""
        return http_live.rate_headers(provider)


SHAPE = OpenAI()
