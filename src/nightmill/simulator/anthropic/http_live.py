"""``/v1/messages``, ``/v1/messages/count_tokens`` and ``/v1/models``"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nightmill.simulator import live
from nightmill.simulator.anthropic.answering import Answers, count
from nightmill.simulator.anthropic.http_common import refuse_poor, scope_of, whole_number
from nightmill.simulator.anthropic.wire import ApiError, moment, page
from nightmill.simulator.formats import Reply, Trouble, Why
from nightmill.simulator.http import FORMAT, PROVIDER, json_reply
from nightmill.simulator.provider import Provider, Quota

_MODELS_CREATED = 1_750_000_000
_ROUNDED_TO = 1000  # tokens in headers
_MOST_BYTES = 32 * 1024 * 1024  # of one live request


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages"""
    provider = request[PROVIDER]
    refuse_poor(request)
    body = await request.read()
    if len(body) > _MOST_BYTES:
        raise request[FORMAT].refusal(Trouble(Why.TOO_LARGE))
    answers, scope = Answers(provider.model, provider.catalogue, provider.prefixes), scope_of(request)
    find = provider.files.finder(scope)

    def answer(twists: frozenset[str]) -> Reply:
        return answers.answer(body, find, account=scope, batch=False, twists=twists)

    reply = await live.run(request, answer)
    return live.show(request, reply)


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages/count_tokens"""
    provider = request[PROVIDER]
    find = provider.files.finder(scope_of(request))
    return json_reply({"input_tokens": count(await request.read(), provider.catalogue, find)})


def rate_headers(provider: Provider) -> dict[str, str]:
    """The anthropic-ratelimit headers of this moment; here, input and output tokens share one quota."""
    made: dict[str, str] = {}
    for word in ("requests", "tokens", "input-tokens", "output-tokens"):
        quota = provider.requests if word == "requests" else provider.tokens
        made[f"anthropic-ratelimit-{word}-limit"] = str(quota.limit)
        made[f"anthropic-ratelimit-{word}-remaining"] = str(_left(quota, 1 if word == "requests" else _ROUNDED_TO))
        full_at = provider.clock.unix() + provider.clock.real_s(quota.reset_s())
        made[f"anthropic-ratelimit-{word}-reset"] = moment(full_at) or ""
    return made


def _left(quota: Quota, step: int) -> int:
    return max(0, round(quota.remaining() / step) * step)


async def list_models(request: web.Request) -> web.StreamResponse:
    """GET /v1/models"""
    limit = whole_number(request, "limit", 20, 1000)
    names = request[PROVIDER].catalogue.names()
    after = request.query.get("after_id")
    start = names.index(after) + 1 if after in names else 0
    return json_reply(page([_model(name) for name in names[start : start + limit]], start + limit < len(names)))


async def get_model(request: web.Request) -> web.StreamResponse:
    """GET /v1/models/{id}"""
    name = request.match_info["model"]
    if not request[PROVIDER].catalogue.knows(name):
        raise ApiError(404, f"model: {name}")
    return json_reply(_model(name))


def _model(name: str) -> dict[str, Any]:
    created = moment(_MODELS_CREATED)
    return {"type": "model", "id": name, "display_name": name, "created_at": created, "lifecycle": "active"}
