"""Prompt caches as Anthropic documents them: beginnings of prompts that were marked, kept for a while.

What is marked is read where the account's cache of that model has it, and written where not; a prompt shorter than the
model's minimum is neither.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nightmill.simulator.anthropic.wire import ApiError
from nightmill.simulator.formats import encode
from nightmill.simulator.prefixes import Prefixes

_LIVES_S = {"5m": 300.0, "1h": 3600.0}
_MOST_MARKS = 4
_LOOKED_BACK = 20  # blocks before a mark
_MINIMUM = (  # tokens, as of 2026-11; by model
    (r"(opus|fable|mythos)-5(?!-)", 512),
    (r"opus-4-8|sonnet-5(?!-)|sonnet-4(?!-7)|opus-4-(0|1|2025)|opus-4$|3-7-sonnet|3-5-sonnet|3-opus", 1024),
    (r"opus-4-7|3-5-haiku|3-haiku", 2048),
    (r"", 4096),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of a prompt, in the order in which caches see them."""

    tokens: int
    said: bytes  # what it is, without its mark
    mark: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a prompt's tokens are billed as; all that is in no other part is fresh."""

    total: int
    read: int = 0
    written: int = 0  # for five minutes
    written_long: int = 0  # for an hour


def weigh(prefixes: Prefixes, account: str, model: str, blocks: Sequence[Block], *, batch: bool, luck: int) -> Weighed:
    """Read what is cached of a prompt, write what is marked, and tell both; see `Prefixes` for ``luck``.

    Raises:
        ApiError: 400 for more marks than there may be, or none that is known.
    """
    lives = _marks(blocks)
    total, sums, names = 0, list[int](), list[bytes]()
    digest = hashlib.blake2b(f"{account}\0{model}".encode(), digest_size=16)
    for block in blocks:
        total += block.tokens
        digest.update(len(block.said).to_bytes(8, "big") + block.said)
        sums.append(total)
        names.append(digest.digest())
    least = next(tokens for pattern, tokens in _MINIMUM if re.search(pattern, model))
    lives = {at: life_s for at, life_s in lives.items() if sums[at] >= least}
    if not lives:
        return Weighed(total)
    near = sorted({at for mark in lives for at in range(max(0, mark - _LOOKED_BACK + 1), mark + 1)}, reverse=True)
    kept = [(names[at], life_s) for at, life_s in lives.items()]
    found = prefixes.read_or_write([names[at] for at in near], kept, batch=batch, luck=luck)
    read = 0 if found is None else sums[near[found]]
    written = max(0, sums[max(lives)] - read)
    long = max((sums[at] for at, life_s in lives.items() if life_s > _LIVES_S["5m"]), default=0)
    written_long = max(0, long - read)
    return Weighed(total, read, written - written_long, written_long)


def _marks(blocks: Sequence[Block]) -> dict[int, float]:
    """By the number of its block, how long what a mark keeps lives."""
    marks: dict[int, float] = {}
    for at, block in enumerate(blocks):
        if block.mark is None:
            continue
        kind, ttl = block.mark.get("type"), block.mark.get("ttl") or "5m"
        if kind != "ephemeral" or ttl not in _LIVES_S:
            raise ApiError(400, f"cache_control: Input should be ephemeral, for 5m or 1h, not {encode(block.mark)!r}")
        marks[at] = _LIVES_S[ttl]
    if len(marks) > _MOST_MARKS:
        raise ApiError(
            400, f"A maximum of {_MOST_MARKS} blocks with cache_control may be provided. Found {len(marks)}."
        )
    lives = list(marks.values())
    if lives != sorted(lives, reverse=True):
        raise ApiError(400, "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block.")
    return marks
