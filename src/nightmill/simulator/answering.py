"""The pretended model: a neutral question in, a neutral answer out, always the same for the same bytes.

A token is four bytes of UTF-8, rounded up, for prompts and answers alike; each message adds three.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.formats import encode
from nightmill.simulator.instances import instance

NO_TWIST: frozenset[str] = frozenset()
_BYTES_A_TOKEN = 4
MESSAGE_TOKENS = 3
_REFUSAL = "I'm sorry, but I can't help with that."
_ALL = 0xFFFFFFFFFFFFFFFF
_FREE_TEXT = frozenset({"type", "title", "description"})


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks of the model."""

    cap: int | None = None  # most tokens of the answer
    schema: dict[str, Any] | None = None  # that the answer fits; None: prose
    tool: tuple[str, dict[str, Any]] | None = None  # that must be called: its name and the schema of its arguments
    seen: str = ""  # the media it came with, as the answer is to name them


@dataclass(slots=True)
class Said:
    """One answer."""

    content: str | None
    finish: str  # stop, length or tool
    tokens: int  # of the whole answer, thoughts included
    refusal: str | None = None
    reasoning: int = 0  # of the tokens, thoughts
    call: tuple[str, str] | None = None  # a tool and its arguments


def text_tokens(text: str) -> int:
    """Tokens of a text, by the simulator's rule."""
    size = len(text) if text.isascii() else len(text.encode())
    return -(-size // _BYTES_A_TOKEN)


def prompt_tokens(messages: Iterable[str]) -> int:
    """Tokens of a prompt whose messages have these texts."""
    return sum(text_tokens(text) + MESSAGE_TOKENS for text in messages)


def digest_of(body: bytes) -> bytes:
    """16 bytes that stand for a request body."""
    return hashlib.blake2b(body, digest_size=16).digest()


def number_of(digest: bytes, salt: int = 0, turn: int = 0) -> int:
    """What an answer is chosen by: another for another body, salt or turn among several answers."""
    number = int.from_bytes(digest[:8], "big") + salt * 0x9E3779B97F4A7C15
    return number + turn * 0xD1B54A32D192ED03 & _ALL


def snapshot(model: str, digest: bytes) -> str:
    """A dated name of a model, not always the same."""
    return f"{model}-2026-{('07-01', '09-15')[digest[0] & 1]}"


class Model:
    """Answers. Thread-safe; remembers nothing."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.dimensions = config.dimensions
        self._lengths = _lengths(config.answer_tokens, config.answer_sigma)

    def say(self, ask: Ask, number: int, twists: frozenset[str] = NO_TWIST) -> Said:
        """The answer that ``number`` chooses.

        Args:
            twists: names from `faults.ANSWER_FAULTS` to apply.

        Raises:
            Unsatisfiable: the schema asks for what this model cannot make.
        """
        if ask.tool is not None:
            return _calling(ask.tool, number & _ALL, ask.cap)
        tokens = self._lengths[number & 0xFFF]
        if ask.schema is None:
            text = f"{ask.seen} {_prose(number, tokens * _BYTES_A_TOKEN)}".lstrip()
        else:
            text = _fitting(ask.schema, number, ask.seen)
        tokens, finish = text_tokens(text), "stop"
        if twists:
            return _twisted(Said(text, finish, tokens), ask, twists)
        if ask.cap is not None and tokens > ask.cap:
            text, tokens, finish = _cut(text, ask.cap), ask.cap, "length"
        return Said(text, finish, tokens)


def _twisted(said: Said, ask: Ask, twists: frozenset[str]) -> Said:
    text, schema, cap = said.content or "", ask.schema, ask.cap
    if "wrong_schema_answers" in twists:
        text = '["unexpected"]' if schema is None or schema.get("type") != "array" else '{"unexpected":true}'
    if "invalid_json_answers" in twists:
        text = "Sure! Here is the JSON: {" + text[:40]
    tokens = text_tokens(text)
    if "refusal_answers" in twists:
        return Said(None, "stop", _capped(text_tokens(_REFUSAL), cap), refusal=_REFUSAL)
    if "truncated_answers" in twists:
        kept = _capped(max(1, tokens // 2), cap)
        return Said(_cut(text, kept), "length", kept)
    if "empty_answers" in twists:  # all of it went into thinking
        spent = _capped(tokens, cap)
        return Said("", "stop", spent, reasoning=spent)
    if cap is not None and tokens > cap:
        return Said(_cut(text, cap), "length", cap)
    return Said(text, said.finish, tokens)


def _calling(tool: tuple[str, dict[str, Any]], number: int, cap: int | None) -> Said:
    name, parameters = tool
    arguments = _fitting(parameters, number)
    return Said(None, "tool", _capped(text_tokens(name + arguments), cap), call=(name, arguments))


def _capped(tokens: int, cap: int | None) -> int:
    return tokens if cap is None else min(tokens, cap)


def _cut(text: str, tokens: int) -> str:
    """The first ``tokens`` tokens of ``text``."""
    return text.encode()[: tokens * _BYTES_A_TOKEN].decode(errors="ignore")


def _fitting(schema: dict[str, Any], number: int, seen: str = "") -> str:
    """An instance of the schema; the media that were seen stand in the first property that takes any text."""
    made = instance(schema, number)
    if seen and isinstance(made, dict):
        free = (name for name in made if _takes_any_text(schema.get("properties", {}).get(name)))
        made.update((name, seen) for name in itertools.islice(free, 1))
    return encode(made).decode()


def _takes_any_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string" and schema.keys() <= _FREE_TEXT


@lru_cache(maxsize=8)
def _lengths(median: int, sigma: float) -> list[int]:
    """4096 lengths in tokens whose distribution is log-normal; one is picked by 12 bits of the digest."""
    deviates = (NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096))
    return [max(3, round(median * math.exp(sigma * deviate))) for deviate in deviates]


def _corpus() -> str:
    """128 KiB of words nobody reads, the same in every process."""
    syllables = [consonant + vowel for consonant in "bdfklmnrst" for vowel in "ao"]
    words, state = [], 1
    for _ in range(26_000):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        pick = state >> 33
        words.append("".join(syllables[(pick >> (5 * i)) % 20] for i in range(1 + pick % 3)))
    return " ".join(words)


_CORPUS = _corpus()
_SPAN = 0xFFFF


def _prose(number: int, size: int) -> str:
    """``size`` bytes of text that differ for different numbers."""
    start = (number >> 12) & _SPAN
    text = f"{number & 0xFFFFFFFFFFFFFFFF:016x} "[: size - 1] + _CORPUS[start : start + size]
    while len(text) < size:
        text += _CORPUS
    return text[: size - 1].rstrip() + "."


def unit_vector(source: bytes, size: int) -> list[float]:
    """A vector of ``size`` dimensions and length 1, chosen by ``source``."""
    raw = hashlib.shake_128(source).digest(2 * size)
    whole = [value - 32767.5 for value in struct.unpack(f"<{size}H", raw)]
    norm = math.sqrt(sum(value * value for value in whole))
    return [value / norm for value in whole]
