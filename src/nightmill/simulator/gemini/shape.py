"""Gemini's wire format, as the core asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web

from nightmill.simulator.answering import Model
from nightmill.simulator.batch import Batch
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.files import FileStore
from nightmill.simulator.formats import BatchRefused, Handler, Operation, Refusal, Route, Trouble, Why
from nightmill.simulator.gemini import http_batches, http_files, http_live, keys, uploads
from nightmill.simulator.gemini.errors import (
    GeminiError,
    bad_key,
    enqueued,
    exhausted,
    internal,
    no_quota,
)
from nightmill.simulator.gemini.lines import GeminiRows
from nightmill.simulator.prefixes import Prefixes
from nightmill.simulator.provider import Provider

_CALLS: tuple[tuple[Operation, str, str, Handler], ...] = (
    (Operation.UPLOAD, "POST", "/upload/{v}/files", http_files.upload),
    (Operation.CONTENT, "GET", "/download/{v}/files/{file_id}:download", http_files.download),
    (Operation.CONTENT, "GET", "/{v}/files/{file_id}:download", http_files.download),
    (Operation.FILES, "GET", "/{v}/files", http_files.list_files),
    (Operation.FILE, "GET", "/{v}/files/{file_id}", http_files.get_file),
    (Operation.DELETE_FILE, "DELETE", "/{v}/files/{file_id}", http_files.delete_file),
    (Operation.CREATE, "POST", "/{v}/models/{model}:batchGenerateContent", http_batches.create_generate),
    (Operation.CREATE, "POST", "/{v}/models/{model}:asyncBatchEmbedContent", http_batches.create_embed),
    (Operation.LIST, "GET", "/{v}/batches", http_batches.list_batches),
    (Operation.POLL, "GET", "/{v}/batches/{batch_id}", http_batches.get_batch),
    (Operation.CANCEL, "POST", "/{v}/batches/{batch_id}:cancel", http_batches.cancel_batch),
    (Operation.DELETE, "DELETE", "/{v}/batches/{batch_id}", http_batches.delete_batch),
    (Operation.LIVE, "POST", "/{v}/models/{model}:generateContent", http_live.generate),
    (Operation.LIVE, "POST", "/{v}/models/{model}:batchEmbedContents", http_live.embed_many),
    (Operation.LIVE, "POST", "/{v}/models/{model}:embedContent", http_live.embed_one),
    (Operation.COUNT, "POST", "/{v}/models/{model}:countTokens", http_live.count_tokens),
    (Operation.MODELS, "GET", "/{v}/models", http_live.list_models),
    (Operation.MODELS, "GET", "/{v}/models/{model}", http_live.get_model),
)


def _path(path: str, version: str) -> str:
    """A path of `_CALLS` for one version; no name has a slash or a colon in it."""
    for name in ("file_id", "batch_id", "model"):
        path = path.replace(f"{{{name}}}", f"{{{name}:[^/:]+}}")
    return path.replace("{v}", version)


class Gemini:
    """Google's Gemini Developer API."""

    name = "gemini"
    prices = "google"
    routes = tuple(Route(call[0], call[1], _path(call[2], v), call[3]) for v in ("v1beta", "v1") for call in _CALLS)
    max_rows = 1_000_000  # Google names none; a file of 2 GB is the limit
    max_bytes = uploads.MOST_BYTES
    window_s = 172_800.0
    keeps_partial = False
    impossible: frozenset[str] = frozenset(("late_error_file", "absent_file_ids"))
    kept_headers: tuple[str, ...] = ("x-goog-",)

    def claims(self, request: web.Request) -> bool:
        """By path, or where paths are shared by how the key travels."""
        return keys.speaks(request)

    def admit(self, request: web.Request) -> None:
        """Look at the key."""
        keys.admit(request)

    def key_of(self, request: web.Request) -> str:
        """The key; an upload's address is enough without one."""
        return keys.key_of(request)

    def take_input(self, batch: Batch, files: FileStore) -> Path:
        """Every batch has its input when it is made."""
        raise BatchRefused("internal", "The batch has no input.")

    def file_id(self, batch: Batch, word: str) -> str:
        """Results are called after their batch."""
        return f"batch-{batch.id.removeprefix('batches/')}"

    def rows(self, model: Model, catalogue: Catalogue, files: FileStore, prefixes: Prefixes) -> GeminiRows:
        """How the lines of batches are read, run and written."""
        return GeminiRows(model, files)

    def refusal(self, trouble: Trouble) -> Refusal:
        """Trouble in Google's words; how long to wait is told in details, never in headers."""
        facts = trouble.facts
        match trouble.why:
            case Why.KEY_REVOKED:
                return bad_key()
            case Why.NO_MONEY:
                return no_quota()
            case Why.RATE:
                message = "Resource has been exhausted (e.g. check quota)."
                quota = "GenerateRequestsPerMinutePerProjectPerModel"
                return exhausted(message, retry_s=_wait_s(trouble), quota=quota)
            case Why.QUEUE_FULL:
                return enqueued(facts["model"], facts["limit"], retry_s=_wait_s(trouble))
            case Why.TOO_LARGE:
                return GeminiError(413, "Request payload size exceeds the limit.")
            case Why.NO_SUCH_CALL:
                return GeminiError(trouble.status or 404, "The requested URL was not found on this server.")
            case Why.BROKEN:
                return GeminiError(trouble.status or 500, internal().message)

    def sign(self, headers: Any, took_s: float) -> None:
        """Nothing more stands on every answer."""

    def rate_headers(self, provider: Provider) -> dict[str, str]:
        """Google says nothing of its quota before it is used up."""
        return {}


def _wait_s(trouble: Trouble) -> float | None:
    """Real seconds to wait, as precisely as is known."""
    in_ms = trouble.headers.get("retry-after-ms")
    if in_ms is not None:
        return float(in_ms) / 1000
    known = trouble.facts.get("retry_after_s")
    return None if known is None else float(known)


SHAPE = Gemini()
