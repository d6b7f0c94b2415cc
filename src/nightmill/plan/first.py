"""The first rows of a large job as shards of their own: the canary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nightmill.ledger import NewShard
from nightmill.plan.cutting import Bounds, Cutter
from nightmill.pricing import PriceSheet
from nightmill.types import Lane

_HELD_BYTES = 64 << 20  # of requests that wait to see how many come; images are many bytes each


@dataclass(frozen=True, slots=True)
class First:
    """How the first rows go out."""

    rows: int
    above: int  # only where more requests than this are to be sent; no less than ``rows``
    lane: Lane
    bounds: Bounds
    sheet: PriceSheet  # by which their holds are counted


class FirstCutter:
    """A `Cutter` whose first rows are shards of their own where enough come; else it is that cutter.

    Until it is known how many come it holds requests back, so that no shard has to be cut twice.
    """

    def __init__(self, rest: Cutter, first: Cutter | None, how: First | None) -> None:
        self._rest, self._first, self._how = rest, first, how
        self._held: list[tuple[Sequence[int], Sequence[bytes], int, int]] = []
        self._count = self._held_bytes = 0
        self._begun: list[Cutter] = []  # that take requests
        self.last: int | None = None  # the last row of the first ones
        if how is None:
            self._begun.append(rest)

    def add(self, indexes: Sequence[int], bodies: Sequence[bytes], *, cap_tokens: int = 0, inputs: int = 1) -> None:
        """As `Cutter.add`."""
        if self._begun:
            self._rest.add(indexes, bodies, cap_tokens=cap_tokens, inputs=inputs)
            return
        self._held.append((indexes, bodies, cap_tokens, inputs))
        self._count += len(bodies)
        self._held_bytes += sum(map(len, bodies))
        if self._how is not None and (self._count > self._how.above or self._held_bytes > _HELD_BYTES):
            self._let_go(self._how.rows)

    def too_large(self, indexes: Sequence[int], bodies: Sequence[bytes]) -> dict[int, str]:
        """As `Cutter.too_large`."""
        return self._rest.too_large(indexes, bodies)

    def finish(self) -> None:
        """No request comes any more."""
        if not self._begun:
            self._let_go(0)
        for cutter in self._begun:
            cutter.finish()

    def close(self) -> list[NewShard]:
        """Finish the last shard; all of them, the first rows first."""
        self.finish()
        return [shard for cutter in self._begun for shard in cutter.close()]

    def abort(self) -> None:
        for cutter in self._begun:
            cutter.abort()

    def _let_go(self, first: int) -> None:
        """Hand on what was held back, the ``first`` requests of it apart."""
        held, self._held = self._held, []
        if first and self._first is not None:
            self._begun.append(self._first)
        self._begun.append(self._rest)
        for indexes, bodies, cap_tokens, inputs in held:
            own = min(first, len(bodies))
            if own and self._first is not None:
                self._first.add(indexes[:own], bodies[:own], cap_tokens=cap_tokens, inputs=inputs)
                self.last, first = indexes[own - 1], first - own
                if not first:
                    self._first.finish()
            if own < len(bodies):
                self._rest.add(indexes[own:], bodies[own:], cap_tokens=cap_tokens, inputs=inputs)
