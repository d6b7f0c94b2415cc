"""A random sample of rows, in input order, in flat memory: the same rows every time the input is read."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import TypeVar

from nightmill.sources.taken import Taken, digest_batch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """``size`` of ``total`` rows. Which ones depends on the three numbers and nothing else."""

    size: int
    total: int
    seed: str

    def pick(self, taken: Iterable[Taken]) -> Iterator[Taken]:
        """The sample of these rows, which must be ``total`` ones."""
        is_in = self._decisions()
        for some in taken:
            rows = list(compress(range(some.batch.num_rows), is_in))
            if rows:
                yield some.some(rows)

    def those(self, about: Iterable[T]) -> Iterator[T]:
        """Of something about each row, that about the rows of the sample."""
        return compress(about, self._decisions())

    def _decisions(self) -> Iterator[bool]:
        """Whether each row is in it: any is as likely to be as any other."""
        chance = random.Random(self.seed).random  # noqa: S311 (no secret: the same rows every time)
        wanted = min(self.size, self.total)
        for left in range(self.total, 0, -1):
            is_in = chance() * left < wanted
            wanted -= is_in
            yield is_in


def sample_of(taken: Iterable[Taken], size: int, seed: int | None) -> Sample:
    """A sample of these rows; without a ``seed`` the rows themselves decide, so that equal inputs give equal ones."""
    digest, total = hashlib.sha256(), 0
    for some in taken:
        total += some.batch.num_rows
        if seed is None:
            digest_batch(digest, some.batch)
    return Sample(size, total, digest.hexdigest()[:32] if seed is None else str(seed))
