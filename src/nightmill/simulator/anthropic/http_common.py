"""What Anthropic's request handlers share: the key, the version, the account, numbers of a query."""

from __future__ import annotations

from aiohttp import web

from nightmill.simulator.anthropic.wire import ApiError
from nightmill.simulator.formats import account_in

VERSIONS = ("2023-06-01", "2026-10-21")


def scope_of(request: web.Request) -> str:
    """The workspace, whose batches a request sees."""
    return f"{request.headers.get('anthropic-workspace-id', '')}@{account_in(key_of(request))}"


def key_of(request: web.Request) -> str:
    """The key, in either of the headers that may carry it; empty for none."""
    kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
    return request.headers.get("x-api-key", "").strip() or (bearer.strip() if kind.lower() == "bearer" else "")


def admit(request: web.Request) -> None:
    """Look at key and version.

    Raises:
        ApiError: 401 for no key or a wrong one, 400 for no version or an unknown one.
    """
    key = key_of(request)
    if not key:
        raise ApiError(401, "x-api-key header is required")
    if key == "sk-wrong":
        raise ApiError(401, "invalid x-api-key")
    version = request.headers.get("anthropic-version")
    if version is None:
        raise ApiError(400, "anthropic-version: header is required")
    if version not in VERSIONS:
        raise ApiError(400, f'anthropic-version: "{version}" is not a valid version')


def no_credit() -> ApiError:
    """The 402 of an account whose credit is used up."""
    return ApiError(402, "Your credit balance is too low to access the Anthropic API.")


def refuse_poor(request: web.Request) -> None:
    """Refuse what costs money to accounts that cannot pay: ``sk-noquota`` has no credit, ``sk-spent`` met its limit."""
    key = key_of(request)
    if key == "sk-noquota":
        raise no_credit()
    if key == "sk-spent":
        message = "You have reached your specified API usage limits until the end of the month."
        raise ApiError(429, message, details={"error_code": "enforced_spend_limit_reached"})


def whole_number(request: web.Request, name: str, default: int, most: int) -> int:
    """An integer from the query, 1 to ``most``, or 400."""
    given = request.query.get(name)
    if given is None:
        return default
    if not given.isdigit() or not 1 <= int(given) <= most:
        raise ApiError(400, f"{name}: Input should be an integer from 1 to {most}")
    return int(given)
