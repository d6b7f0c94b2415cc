"""``/v1/chat/completions``, ``/v1/responses``, ``/v1/embeddings`` and ``/v1/models``"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from nightmill.simulator import live
from nightmill.simulator.formats import Operation, Reply, encode
from nightmill.simulator.http import PROVIDER, json_reply
from nightmill.simulator.openai.answering import FLEX, Answers, Caller
from nightmill.simulator.openai.http_common import api_key, refuse_without_quota, scope_of
from nightmill.simulator.openai.wire import CHAT_URL, EMBEDDINGS_URL, RESPONSES_URL, no_room, unknown_model
from nightmill.simulator.provider import Provider

_MODELS_CREATED = 1_750_000_000


class _Stream(msgspec.Struct):
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


class _Tier(msgspec.Struct):
    service_tier: str | None = None


_read_stream = msgspec.json.Decoder(_Stream).decode
_read_tier = msgspec.json.Decoder(_Tier).decode


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    return await _live(request, CHAT_URL)


async def embeddings(request: web.Request) -> web.StreamResponse:
    """POST /v1/embeddings"""
    return await _live(request, EMBEDDINGS_URL)


async def responses(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses"""
    return await _live(request, RESPONSES_URL)


async def _live(request: web.Request, url: str) -> web.StreamResponse:
    provider = request[PROVIDER]
    refuse_without_quota(request)
    body = await request.read()
    if _asks_flex(body) and provider.faults.take("resource_unavailable", Operation.LIVE) is not None:
        raise no_room()
    answers, caller = Answers(provider.model, provider.catalogue, provider.prefixes), Caller(scope_of(request))
    find, created = provider.files.finder(scope_of(request)), provider.clock.stamp()

    def answer(twists: frozenset[str]) -> Reply:
        return answers.answer(url, body, find=find, caller=caller, created=created, twists=twists)

    reply = await live.run(request, answer)
    if url == CHAT_URL and reply.status == 200 and b'"stream"' in body:
        wanted = _read_stream(body)
        if wanted.stream:
            return await _stream(request, reply, bool((wanted.stream_options or {}).get("include_usage")))
    return live.show(request, reply)


def _asks_flex(body: bytes) -> bool:
    if b'"flex"' not in body:
        return False
    try:
        return _read_tier(body).service_tier == FLEX
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def rate_headers(provider: Provider) -> dict[str, str]:
    """The x-ratelimit headers of this moment."""
    made: dict[str, str] = {}
    for word, quota in (("requests", provider.requests), ("tokens", provider.tokens)):
        made[f"x-ratelimit-limit-{word}"] = str(quota.limit)
        made[f"x-ratelimit-remaining-{word}"] = str(max(0, quota.remaining()))
        made[f"x-ratelimit-reset-{word}"] = duration(provider.clock.real_s(quota.reset_s()))
    return made


def duration(seconds: float) -> str:
    """A wait as OpenAI's headers write it: ``14ms``, ``8.64s``, ``6m0s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    return f"{whole // 60}m{whole % 60}s"


async def _stream(request: web.Request, reply: Reply, with_usage: bool) -> web.StreamResponse:
    """The same answer as server-sent events: role, text in pieces, the end."""
    whole = msgspec.json.decode(reply.body)
    head = {k: whole[k] for k in ("id", "created", "model", "service_tier", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    stream.headers.update(rate_headers(request[PROVIDER]))
    await stream.prepare(request)

    async def send(choices: list[dict[str, Any]], **more: Any) -> None:
        await stream.write(b"data: " + encode({**head, "choices": choices, **more}) + b"\n\n")

    for choice in whole["choices"]:
        index, text = choice["index"], choice["message"]["content"] or ""
        first = {"role": "assistant", "content": "", "refusal": choice["message"]["refusal"]}
        await send([{"index": index, "delta": first, "logprobs": None, "finish_reason": None}])
        for at in range(0, len(text), 40):
            piece = {"content": text[at : at + 40]}
            await send([{"index": index, "delta": piece, "logprobs": None, "finish_reason": None}])
        await send([{"index": index, "delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}])
    if with_usage:
        await send([], usage=whole.get("usage"))
    await stream.write(b"data: [DONE]\n\n")
    await stream.write_eof()
    return stream


async def list_models(request: web.Request) -> web.StreamResponse:
    """GET /v1/models"""
    names = request[PROVIDER].catalogue.names()
    return json_reply({"object": "list", "data": [_model(name) for name in names]})


async def get_model(request: web.Request) -> web.StreamResponse:
    """GET /v1/models/{id}"""
    api_key(request)
    name = request.match_info["model"]
    if not request[PROVIDER].catalogue.knows(name):
        raise unknown_model(name)
    return json_reply(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _MODELS_CREATED, "owned_by": "openai"}
