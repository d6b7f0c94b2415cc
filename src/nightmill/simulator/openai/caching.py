"""Prompt caching as OpenAI does it by itself: prompts that begin alike, from 1,024 tokens on, in steps of 128."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nightmill.simulator.answering import MESSAGE_TOKENS, text_tokens
from nightmill.simulator.prefixes import Prefixes

_LEAST_TOKENS, _STEP_TOKENS, _TOKEN_BYTES = 1024, 128, 4
_LIVES_S = 300.0  # five to ten minutes, they say
_BILLS_WRITES = re.compile(r"gpt-(5\.[6-9]|[6-9])")


@dataclass(frozen=True, slots=True)
class Cached:
    """Of a prompt's tokens, those that were read from a cache, and those that writing it is billed for."""

    read: int = 0
    written: int = 0


def cached(
    prefixes: Prefixes, whose: str, model: str, declared: bytes, texts: Iterable[str], *, batch: bool, luck: int
) -> Cached:
    """Look for the longest beginning that is there, and keep all of them; see `Prefixes` for ``luck``.

    Args:
        declared: what stands before the texts and has to be equal, too: tools and the form of the answer.
    """
    said = b"".join(_padded(text) for text in texts)
    most = len(said) // _TOKEN_BYTES // _STEP_TOKENS * _STEP_TOKENS
    if most < _LEAST_TOKENS:
        return Cached()
    digest = hashlib.blake2b(b"\0".join((whose.encode(), model.encode(), declared)), digest_size=16)
    cuts, begun = list(range(_LEAST_TOKENS, most + 1, _STEP_TOKENS)), 0
    names = []
    for cut in cuts:
        digest.update(said[begun : cut * _TOKEN_BYTES])
        begun = cut * _TOKEN_BYTES
        names.append(digest.digest())
    found = prefixes.read_or_write(names[::-1], [(name, _LIVES_S) for name in names], batch=batch, luck=luck)
    read = 0 if found is None else cuts[::-1][found]
    return Cached(read, most - read if _BILLS_WRITES.match(model) else 0)


def _padded(text: str) -> bytes:
    """A message in as many bytes as its tokens have here."""
    return text.encode().ljust((text_tokens(text) + MESSAGE_TOKENS) * _TOKEN_BYTES, b"\0")
