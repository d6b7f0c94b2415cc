"""What OpenAI's request handlers share: the account, the key, bodies and numbers of a query."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from nightmill.simulator.formats import account_in
from nightmill.simulator.openai.wire import ApiError, no_quota


def scope_of(request: web.Request) -> str:
    """The account of a request: files and batches belong to an organisation and a project."""
    headers = request.headers
    named = f"{headers.get('OpenAI-Organization', '')}/{headers.get('OpenAI-Project', '')}"
    return f"{named}@{account_in(api_key(request))}"


def api_key(request: web.Request) -> str:
    """The bearer key.

    Raises:
        ApiError: 401 for no key or a wrong one.
    """
    kind, _, key = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
        raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
    if key.strip() == "sk-wrong":
        message = "Incorrect API key provided: sk-wrong. You can find your API key at https://platform.openai.com/account/api-keys."
        raise ApiError(401, message, code="invalid_api_key")
    return key.strip()


def refuse_without_quota(request: web.Request) -> None:
    """Raise the 429 of an account that has no money left, for the key ``sk-noquota``."""
    if api_key(request) == "sk-noquota":
        raise no_quota()


async def json_object(request: web.Request) -> dict[str, Any]:
    """The JSON object a request carries, or 400."""
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = (
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
        )
        raise ApiError(400, message) from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body of your request must be a JSON object.")
    return body


def whole_number(request: web.Request, name: str, default: int, most: int) -> int:
    """An integer from the query, 1 to ``most``, or 400."""
    given = request.query.get(name)
    if given is None:
        return default
    if not given.lstrip("-").isdigit():
        raise ApiError(400, f"Invalid '{name}': expected an integer.", param=name, code="invalid_type")
    if not 1 <= int(given) <= most:
        side = "below_min" if int(given) < 1 else "above_max"
        message = f"Invalid '{name}': expected a value between 1 and {most}, but got {given} instead."
        raise ApiError(400, message, param=name, code=f"integer_{side}_value")
    return int(given)
