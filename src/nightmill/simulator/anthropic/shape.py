"""Anthropic's wire format: `SHAPE` is what the simulator is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web

from nightmill.simulator.answering import Model
from nightmill.simulator.anthropic import http_batches, http_common, http_files, http_live
from nightmill.simulator.anthropic.lines import AnthropicRows
from nightmill.simulator.anthropic.wire import ApiError, error_of, new_request_id
from nightmill.simulator.batch import Batch
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import BatchRefused, Operation, Refusal, Route, Trouble, Why
from nightmill.simulator.prefixes import Prefixes
from nightmill.simulator.provider import Provider

_BATCHES = "/v1/messages/batches"
_BATCH = _BATCHES + "/{batch_id}"
_ROUTES = (
    Route(Operation.CREATE, "POST", _BATCHES, http_batches.create_batch),
    Route(Operation.LIST, "GET", _BATCHES, http_batches.list_batches),
    Route(Operation.POLL, "GET", _BATCH, http_batches.get_batch),
    Route(Operation.DELETE, "DELETE", _BATCH, http_batches.delete_batch),
    Route(Operation.CANCEL, "POST", _BATCH + "/cancel", http_batches.cancel_batch),
    Route(Operation.CONTENT, "GET", _BATCH + "/results", http_batches.get_results),
    Route(Operation.UPLOAD, "POST", "/v1/files", http_files.upload),
    Route(Operation.FILES, "GET", "/v1/files", http_files.list_files),
    Route(Operation.FILE, "GET", "/v1/files/{file_id}", http_files.get_file),
    Route(Operation.DELETE_FILE, "DELETE", "/v1/files/{file_id}", http_files.delete_file),
    Route(Operation.LIVE, "POST", "/v1/messages", http_live.messages),
    Route(Operation.COUNT, "POST", "/v1/messages/count_tokens", http_live.count_tokens),
    Route(Operation.MODELS, "GET", "/v1/models", http_live.list_models),
    Route(Operation.MODELS, "GET", "/v1/models/{model:.+}", http_live.get_model),
)
_ORGANISATION = "00000000-0000-4000-8000-000000000000"


class Anthropic:
    """The format of Anthropic."""

    name = prices = "anthropic"  # here and in genai-prices
    routes: tuple[Route, ...] = _ROUTES
    max_rows = 100_000
    max_bytes = 268_435_456
    window_s = 86_400.0
    keeps_partial = True
    kept_headers: tuple[str, ...] = ("anthropic-", "request-id", "retry-")
    impossible = frozenset(
        {
            "batch_failed_line",  # a batch does not fail as a whole: each bad row does
            "batch_failed_unexplained",
            "fail_at",
            "enqueued_limit_later",  # a full queue is told at once
            "cancel_reverting_counts",  # nothing is counted before the end
            "null_counts",  # the counts are always there
            "late_error_file",  # one stream of results has failures and all
            "upload_500",  # batches are made of no files
            "delete_405",
        }
    )

    def claims(self, request: web.Request) -> bool:
        """Its own addresses, and what names its version."""
        path = request.path
        return path == "/v1/messages" or path.startswith("/v1/messages/") or "anthropic-version" in request.headers

    def admit(self, request: web.Request) -> None:
        """Look at key and version."""
        http_common.admit(request)

    def key_of(self, request: web.Request) -> str:
        """The key, in either of the headers that may carry it."""
        return http_common.key_of(request)

    def take_input(self, batch: Batch, files: FileStore) -> Path:
        """There is nothing to take: requests travel in the create."""
        raise BatchRefused("invalid_request", "A batch came without its requests.")

    def file_id(self, batch: Batch, word: str) -> None:
        """Results are found by their batch alone."""

    def rows(self, model: Model, catalogue: Catalogue, files: FileStore, prefixes: Prefixes) -> AnthropicRows:
        """How the requests of its batches are read, run and written."""
        return AnthropicRows(model, catalogue, files, prefixes)

    def refusal(self, trouble: Trouble) -> Refusal:
        """Trouble as Anthropic words it."""
        headers = {name: value for name, value in trouble.headers.items() if name != "retry-after-ms"}
        match trouble.why:
            case Why.BROKEN:
                status = trouble.status or 500
                return ApiError(status, error_of(status, None, None)["error"]["message"], headers=headers)
            case Why.KEY_REVOKED:
                return ApiError(401, "invalid x-api-key")
            case Why.NO_MONEY:
                return http_common.no_credit()
            case Why.RATE:
                return ApiError(429, "This request would exceed your organization's rate limit.", headers=headers)
            case Why.QUEUE_FULL:
                message = "This request would exceed the number of requests your organization may have queued."
                return ApiError(429, message, headers=headers)
            case Why.TOO_LARGE:
                return ApiError(413, "Request exceeds the maximum allowed number of bytes.")
            case Why.NO_SUCH_CALL:
                return ApiError(trouble.status or 404, f"Not found: {trouble.facts['method']} {trouble.facts['path']}")

    def sign(self, headers: Any, took_s: float) -> None:
        """The headers Anthropic puts on every answer."""
        headers.setdefault("request-id", new_request_id())
        headers["anthropic-organization-id"] = _ORGANISATION

    def rate_headers(self, provider: Provider) -> dict[str, str]:
        """The anthropic-ratelimit headers of this moment."""
        return http_live.rate_headers(provider)


SHAPE = Anthropic()
