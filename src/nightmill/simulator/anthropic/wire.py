"""The shapes of Anthropic's wire that all its handlers speak: times, errors, lists."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from nightmill.simulator.formats import Refusal, encode

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_SAID = {"timeout_error": "Request timed out", "overloaded_error": "Overloaded", "api_error": "Internal server error"}


class ApiError(Refusal):
    """A refusal in Anthropic's error shape; header and body bear the same request id."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.details = details
        self.request_id = new_request_id()
        self.headers["request-id"] = self.request_id

    def body(self) -> bytes:
        """``{"type": "error", "error": {type, message, details?}, "request_id"}``"""
        return encode(error_of(self.status, self.message, self.request_id, self.details))


def new_request_id() -> str:
    """A fresh ``req_...``."""
    return f"req_{secrets.token_hex(12)}"


def error_of(
    status: int, message: str | None, request_id: str | None, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An error as it stands in answers and in result lines; without a message, what its kind usually says."""
    kind = KINDS.get(status, "api_error" if status >= 500 or status == 0 else "invalid_request_error")
    error: dict[str, Any] = {"type": kind, "message": message or _SAID.get(kind, f"Failed with status {status}.")}
    if details is not None:
        error["details"] = details
    return {"type": "error", "error": error, "request_id": request_id}


def unknown_model(model: str) -> ApiError:
    """The 404 for a model that does not exist."""
    return ApiError(404, f"model: {model}")


def moment(unix_s: float | None) -> str | None:
    """A time as this wire writes it."""
    if unix_s is None:
        return None
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def page(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list over items that have an ``id``."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"data": list(items), "has_more": has_more, "first_id": first, "last_id": last}
