"""The shapes of OpenAI's wire that all its handlers speak: addresses, errors, lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nightmill.simulator.formats import Refusal, encode

CHAT_URL = "/v1/chat/completions"
EMBEDDINGS_URL = "/v1/embeddings"
RESPONSES_URL = "/v1/responses"
SERVED = (CHAT_URL, RESPONSES_URL, EMBEDDINGS_URL)


class ApiError(Refusal):
    """A refusal in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.kind, self.param, self.code = kind, param, code

    def body(self) -> bytes:
        """``{"error": {message, type, param, code}}``"""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return encode({"error": error})


def server_error() -> ApiError:
    """The 500 OpenAI gives when it is not the caller's fault."""
    return ApiError(
        500,
        "The server had an error while processing your request. Sorry about that!",
        kind="server_error",
    )


def unknown_model(model: str) -> ApiError:
    """The 404 of a live call to a model that does not exist."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found")


def no_batch(batch_id: str) -> ApiError:
    """The 404 for a batch that is not there."""
    return ApiError(404, f"No batch found with id '{batch_id}'.")


def no_quota() -> ApiError:
    """The 429 that waiting does not heal."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. "
        "For more information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors."
    )
    return ApiError(429, message, kind="insufficient_quota", code="insufficient_quota")


def no_room() -> ApiError:
    """The 429 of a call in the flex tier for which there is no room now; nothing was run."""
    message = "Resource Unavailable: there is no capacity for flex processing at the moment. Please try again later."
    return ApiError(429, message, kind="resource_unavailable", code="resource_unavailable")


def enqueued_limit_text(model: str, limit: int) -> str:
    """The message of `token_limit_exceeded`, as OpenAI words it."""
    return (
        f"Enqueued token limit reached for {model} in organization org-simulator. "
        f"Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )


def page(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list object over items that have an ``id``."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": has_more}
