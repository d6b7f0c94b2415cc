"""The beginning that all prompts of a job share: whether to have it cached, and what that is expected to save."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import msgspec

from nightmill.pricing import PriceSheet
from nightmill.types import Lane, Usage

LEAST_ROWS = 10  # fewer would write the cache for hardly anybody to read
BATCH_HITS = Fraction(30, 100)  # of a batch's requests, those that find it cached: the least that is documented


@dataclass(frozen=True, slots=True)
class Prefix:
    """What every prompt of a job begins with, and how often it is expected to be found cached."""

    tokens: int
    burst: int  # calls that are under way before the first of them has written the cache; 0: in a batch
    measured: Fraction | None = None  # the share that was found cached when the task was run before

    def hits(self, requests: int) -> Fraction:
        """The share of ``requests`` requests that is expected to find it cached."""
        if self.measured is not None:
            return self.measured
        return 1 - Fraction(min(self.burst, requests), max(1, requests)) if self.burst else BATCH_HITS

    def pays(self, requests: int, sheet: PriceSheet) -> bool:
        """Whether writing and reading it costs less than reading it anew every time."""
        rates, hits = sheet.rates(self.tokens), self.hits(requests)
        return requests >= LEAST_ROWS and hits * rates.cached_input + (1 - hits) * rates.cache_write < rates.input

    def of(self, usage: Usage, hits: Fraction) -> Usage:
        """``usage`` of a usual request, with what of it is read and written where ``hits`` find it cached."""
        tokens = min(self.tokens, usage.input_tokens)
        read = round(tokens * hits)
        return msgspec.structs.replace(usage, cached_tokens=read, cache_write_tokens=tokens - read)


def measured(tokens: int, read: int, written: int) -> Fraction | None:
    """`Prefix.measured`: what was read and written so far; None where that is of too few requests to tell."""
    return Fraction(read, read + written) if read + written >= LEAST_ROWS * tokens else None


def burst_of(lane: Lane, concurrency: int) -> int:
    """`Prefix.burst` in a lane with so many live calls at once."""
    return 0 if lane is Lane.BATCH else max(1, concurrency)
