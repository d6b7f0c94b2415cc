"""``models/{model}:generateContent``, ``:batchEmbedContents``, ``:countTokens`` and the list of models"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from nightmill.simulator import live
from nightmill.simulator.formats import Reply
from nightmill.simulator.gemini import answering, reading, showing
from nightmill.simulator.gemini.errors import invalid, unknown_model
from nightmill.simulator.gemini.keys import refuse_without_quota, scope_of, version_of
from nightmill.simulator.gemini.media import look, refuse_too_long
from nightmill.simulator.http import PROVIDER, json_reply
from nightmill.simulator.media import Kind

_MOST_EMBEDDED = 100  # requests of one call


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /{version}/models/{model}:generateContent"""
    raw, model = await _asked(request)
    refuse_too_long(raw)
    mind, find = request[PROVIDER].model, request[PROVIDER].files.finder(scope_of(request))

    def answer(twists: frozenset[str]) -> Reply:
        return _pretty(answering.generate(mind, raw, model, find, twists=twists), twists)

    return live.show(request, await live.run(request, answer))


async def embed_many(request: web.Request) -> web.StreamResponse:
    """POST /{version}/models/{model}:batchEmbedContents"""
    raw, model = await _asked(request)
    asked = reading.read(raw, reading.EmbedMany).requests
    if not 1 <= len(asked) <= _MOST_EMBEDDED:
        raise invalid(f"* BatchEmbedContentsRequest.requests: between 1 and {_MOST_EMBEDDED} requests are taken.")
    return await _embed(request, raw, asked, model, many=True)


async def embed_one(request: web.Request) -> web.StreamResponse:
    """POST /{version}/models/{model}:embedContent"""
    raw, model = await _asked(request)
    return await _embed(request, raw, [reading.read(raw, reading.Embed)], model, many=False)


async def _embed(
    request: web.Request, raw: bytes, asked: list[reading.Embed], model: str, *, many: bool
) -> web.StreamResponse:
    mind = request[PROVIDER].model

    def answer(twists: frozenset[str]) -> Reply:
        return _pretty(answering.embed_live(mind, raw, asked, model, many=many, twists=twists), twists)

    return live.show(request, await live.run(request, answer))


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """POST /{version}/models/{model}:countTokens"""
    raw, model = await _asked(request)
    asked = reading.read(raw, reading.Count)
    whole = asked.generate_content_request or reading.Generate(contents=asked.contents)
    reading.check(whole)
    sights = look(whole, model, request[PROVIDER].files.finder(scope_of(request)))
    sights.tokens[Kind.TEXT] += answering.count(whole)
    return json_reply({"totalTokens": sights.tokens.total(), "promptTokensDetails": showing.details(sights.tokens)})


async def _asked(request: web.Request) -> tuple[bytes, str]:
    """The body of a call, and the model it is for, which there is."""
    model = request.match_info["model"]
    refuse_without_quota(request)
    if not request[PROVIDER].catalogue.knows(model):
        raise unknown_model(model, version_of(request))
    return await request.read(), model


def _pretty(reply: Reply, twists: frozenset[str]) -> Reply:
    """The same over many lines, where that is asked for."""
    return (
        replace(reply, body=msgspec.json.format(reply.body, indent=2)) if "pretty_printed_bodies" in twists else reply
    )


async def list_models(request: web.Request) -> web.StreamResponse:
    """GET /{version}/models"""
    names, query = request[PROVIDER].catalogue.names(), request.query
    shown, token = showing.page(
        names, names, size=query.get("pageSize"), token=query.get("pageToken"), default=50, most=1000
    )
    body: dict[str, Any] = {"models": [_model(name) for name in shown], "nextPageToken": token}
    return json_reply({name: value for name, value in body.items() if value})


async def get_model(request: web.Request) -> web.StreamResponse:
    """GET /{version}/models/{model}"""
    name = request.match_info["model"]
    if not request[PROVIDER].catalogue.knows(name):
        raise unknown_model(name, version_of(request))
    return json_reply(_model(name))


def _model(name: str) -> dict[str, Any]:
    return showing.model(name, embeds="embedding" in name)
