"""Refusals in Google's error shape: an HTTP status, a status word, and typed details."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nightmill.simulator.formats import Refusal, encode

# google.rpc.Code by name, and the HTTP status each travels under
RPC_CODES = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
_WORDS = {
    0: "UNKNOWN",
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TYPES = "type.googleapis.com/google.rpc."


class GeminiError(Refusal):
    """A refusal. ``word`` is the status word; None takes the one that belongs to ``status``."""

    def __init__(
        self, status: int, message: str, *, word: str | None = None, details: Sequence[dict[str, Any]] = ()
    ) -> None:
        super().__init__(status, message)
        self.word = word or word_of(status)
        self.details = list(details)

    def body(self) -> bytes:
        """``{"error": {code, message, status, details}}``; details only where there are any."""
        error: dict[str, Any] = {"code": self.status, "message": self.message, "status": self.word}
        if self.details:
            error["details"] = self.details
        return encode({"error": error})


def word_of(status: int) -> str:
    """The status word of an HTTP status."""
    return _WORDS.get(status, "UNKNOWN" if status < 500 else "INTERNAL")


def rpc_code(status: int) -> int:
    """The google.rpc.Code of an HTTP status, as result lines carry it."""
    return RPC_CODES[word_of(status)]


def invalid(message: str) -> GeminiError:
    """A 400 about what was sent."""
    return GeminiError(400, message)


def bad_key() -> GeminiError:
    """A wrong key is a 400 here, not a 401; the reason tells it apart."""
    info = {
        "@type": _TYPES + "ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    return GeminiError(400, "API key not valid. Please pass a valid API key.", details=[info])


def no_key() -> GeminiError:
    """A call without any key."""
    message = "Method doesn't allow unregistered callers (callers without established identity)."
    return GeminiError(403, message)


def no_such_file(file_id: str) -> GeminiError:
    """A file that is not there, or another's: the two cannot be told apart."""
    message = f"You do not have permission to access the File {file_id} or it may not exist."
    return GeminiError(403, message)


def no_such_batch() -> GeminiError:
    """A batch that is not there."""
    return GeminiError(404, "Requested entity was not found.")


def unknown_model(model: str, version: str) -> GeminiError:
    """A model that is not there, or does not do what was asked."""
    message = (
        f"models/{model} is not found for API version {version}, or is not supported for the method. "
        "Call ListModels to see the list of available models and their supported methods."
    )
    return GeminiError(404, message)


def internal() -> GeminiError:
    """The 500 that is not the caller's fault."""
    return GeminiError(500, "An internal error has occurred. Please retry later.")


def exhausted(message: str, *, retry_s: float | None, quota: str) -> GeminiError:
    """A 429. ``quota`` is the id of the limit; ``retry_s`` real seconds to wait, None where waiting does not help."""
    details: list[dict[str, Any]] = [
        {
            "@type": _TYPES + "QuotaFailure",
            "violations": [
                {"quotaMetric": "generativelanguage.googleapis.com/generate_content_requests", "quotaId": quota}
            ],
        }
    ]
    if retry_s is not None:
        details.append({"@type": _TYPES + "RetryInfo", "retryDelay": f"{retry_s:g}s"})
    return GeminiError(429, message, details=details)


def no_quota() -> GeminiError:
    """The 429 that only another day heals."""
    message = "You exceeded your current quota, please check your plan and billing details."
    return exhausted(message, retry_s=None, quota="GenerateRequestsPerDayPerProjectPerModel")


def enqueued(model: str, limit: int, *, retry_s: float | None) -> GeminiError:
    """The 429 of a create whose tokens the queue of its model has no room for."""
    message = (
        f"Resource has been exhausted: the batch enqueued tokens limit of {limit} for {model} is reached. "
        "Please retry once other batches have ended."
    )
    return exhausted(message, retry_s=retry_s, quota="BatchEnqueuedTokensPerProjectPerModel")
