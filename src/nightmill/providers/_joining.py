"""Several requests for an embedding in one live call: how they are put together, and their answers taken apart.

Every row keeps an answer of its own, as if it had been asked alone; the tokens of the call are shared out among the
rows, so that their sum is what is billed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import msgspec

from nightmill.providers import LiveReply
from nightmill.providers._json import count, load_json

MOST_OPENAI = 64  # in a call, of the 2,048 it takes: what one lost answer makes doubtful stays little
MOST_GEMINI = 64  # of the 100 it takes
_ALONE, _TOGETHER = ":embedContent", ":batchEmbedContents"

_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.encode
_decode_body = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    index: int


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]
    model: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


class _Content(msgspec.Struct, gc=False, rename="camel"):
    embeddings: list[msgspec.Raw]
    usage_metadata: msgspec.Raw = _NULL


_decode_vectors = msgspec.json.Decoder(_Vectors).decode
_decode_contents = msgspec.json.Decoder(_Content).decode


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole parts, each in proportion to its weight within one; their sum is ``total``."""
    whole = max(1, sum(weights))
    return [
        total * after // whole - total * before // whole for before, after in pairwise(accumulate(weights, initial=0))
    ]


class JoinsOpenAI:
    """The part of a provider of the OpenAI shape that embeds several texts in one call: `JoiningProvider`."""

    most_joined = MOST_OPENAI

    def joined(self, url: str, bodies: Sequence[bytes]) -> tuple[str, bytes]:
        asked = [_decode_body(body) for body in bodies]
        texts = b",".join(bytes(each["input"]) for each in asked)
        return url, _encode(asked[0] | {"input": msgspec.Raw(b"[" + texts + b"]")})

    def parted(self, reply: LiveReply, weights: Sequence[int]) -> list[LiveReply] | None:
        try:
            whole = _decode_vectors(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        found = {each.index: each.embedding for each in whole.data}
        if len(whole.data) != len(weights) or found.keys() != set(range(len(weights))):
            return None
        usages = _split(whole.usage, weights, ("prompt_tokens", "total_tokens"))
        return [
            replace(reply, body=_encode(_alone(found[i], whole.model) | ({"usage": usage} if usage else {})))
            for i, usage in enumerate(usages)
        ]


def _alone(vector: msgspec.Raw, model: msgspec.Raw) -> dict[str, Any]:
    """The body of an answer that holds only this vector."""
    return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector}], "model": model}


class JoinsGemini:
    """The part of a provider of the Gemini shape that embeds several texts in one call: `JoiningProvider`."""

    most_joined = MOST_GEMINI

    def joined(self, url: str, bodies: Sequence[bytes]) -> tuple[str, bytes]:
        path = url.removesuffix(_ALONE)
        model = path[path.index("/", 1) + 1 :]  # behind the version; each request names it once more
        return path + _TOGETHER, _encode({"requests": [{"model": model, **_decode_body(body)} for body in bodies]})

    def parted(self, reply: LiveReply, weights: Sequence[int]) -> list[LiveReply] | None:
        try:
            whole = _decode_contents(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if len(whole.embeddings) != len(weights):
            return None
        usages = _split(whole.usage_metadata, weights, ("promptTokenCount", "totalTokenCount"))
        return [
            replace(reply, body=_encode({"embedding": vector, **({"usageMetadata": usage} if usage else {})}))
            for vector, usage in zip(whole.embeddings, usages, strict=True)
        ]


def _split(usage: msgspec.Raw, weights: Sequence[int], names: tuple[str, str]) -> list[dict[str, int]]:
    """Each row's part of a usage that has a number of what was sent, and one of all; empty where it says nothing."""
    told: Any = load_json(bytes(usage))
    if not isinstance(told, dict) or type(told.get(names[0])) is not int:
        return [{}] * len(weights)
    sent = count(told[names[0]])
    beside = max(0, count(told.get(names[1])) - sent)
    parts = zip(shares(sent, weights), shares(beside, weights), strict=True)
    return [{names[0]: part, names[1]: part + more} for part, more in parts]
