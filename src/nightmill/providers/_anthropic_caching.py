"""How a Messages body says which of its beginning is to be cached.

A prompt is, in this order, its tools, its system text and its turns; one mark caches all up to where it stands. A text
alone and a list of one text block are the same to the API, so that a mark changes what is billed and nothing else.

Facts of models are those of 2026-11.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nightmill.providers import Marked

_CONTROL = {"type": "ephemeral"}  # five minutes, begun anew by each read
_MARK = b',"cache_control":{"type":"ephemeral"}'
_BLOCK = b'[{"type":"text","text":'
_BLOCK_END = b"}]"
_LEAST = (  # tokens of a beginning that is cached, by model
    (r"claude-(opus|fable|mythos)-5(?!-)", 512),
    (r"claude-opus-4-8|claude-sonnet-(5(?!-)|4(?!-7))", 1024),
    (r"claude-opus-4(-[01])?(-2025\d{4})?$|claude-3-(7|5)-sonnet|claude-3-opus", 1024),
    (r"claude-opus-4-7|claude-3(-5)?-haiku|claude-haiku-3", 2048),
    (r"", 4096),  # Opus 4.5 and 4.6, Haiku 4.5, and those that nobody has a number for: the most that there is
)


def least_cached(model: str) -> int:
    """Tokens below which a beginning is not cached, whatever is asked, and billed as if nothing were."""
    return next(tokens for pattern, tokens in _LEAST if re.match(pattern, model))


def marked(body: bytes, turns: int | None) -> Marked:
    """See `CachesPrefixes.marked`."""
    whole: dict[str, Any] = msgspec.json.decode(body)
    shared = [msgspec.json.encode(tool).decode() for tool in whole.get("tools", ())]
    system = whole.get("system") if turns is not None else None
    before = whole["messages"][: turns or 0]
    texts = [*([system] if system else []), *(turn["content"] for turn in before)]
    if not all(isinstance(text, str) for text in texts):
        return Marked(body, "")
    if before:
        before[-1]["content"] = _block(before[-1]["content"])
    elif system:
        whole["system"] = _block(system)
    elif shared:
        whole["tools"][-1]["cache_control"] = _CONTROL
    else:
        return Marked(body, "")
    return Marked(msgspec.json.encode(whole), "\n".join([*shared, *texts]))


def _block(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "cache_control": _CONTROL}]


def unmarked(body: bytes) -> bytes:
    """See `CachesPrefixes.unmarked`. Inside a JSON string the bytes of a mark cannot stand: its quotes are escaped."""
    at = body.find(_MARK)
    if at < 0:
        return body
    end = at + len(_MARK)
    if body[at - 1 : at] != b'"':  # behind a tool
        return body[:at] + body[end:]
    start = body.rfind(_BLOCK, 0, at)
    return body[:start] + body[start + len(_BLOCK) : at] + body[end + len(_BLOCK_END) :]
