"""Cutting a stream of requests into shards: the fewest, within a provider's and a budget's limits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from nightmill.errors import InputError
from nightmill.ledger import NewShard
from nightmill.plan._behind import at_once
from nightmill.pricing import PriceSheet
from nightmill.providers import Limits
from nightmill.store import Store, Writer
from nightmill.types import Lane

LIVE_ROWS = 256  # a live shard's hold is a slice of the job's
LIVE_BYTES = 64 << 20  # the requests of a live shard lie in memory while it runs
_AROUND_BYTES = 256  # at most, of a line beside its body
_SHORTEN = "shorten the row or take it out of the input; nothing was sent"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one shard may be."""

    requests: int
    size_bytes: int  # encoded lines, newlines included; 0 = no limit
    hold_nanos: int | None  # None = no limit
    request_bytes: int = 0  # one line; 0 = no limit of its own
    inputs: int = 0  # texts to embed, of all requests together; 0 = no limit


def bounds(lane: Lane, limits: Limits, *, batch_size: int | None, hold_nanos: int | None, embeddings: bool) -> Bounds:
    """What a shard of ``lane`` may be for a provider with ``limits``."""
    if lane.is_live:
        return Bounds(min(LIVE_ROWS, batch_size or LIVE_ROWS), LIVE_BYTES, hold_nanos, limits.request_bytes)
    most = min(limits.batch_requests, batch_size or limits.batch_usual or limits.batch_requests)
    one = min(filter(None, (limits.request_bytes, limits.batch_bytes)), default=0)
    return Bounds(most, limits.batch_bytes, hold_nanos, one, limits.batch_inputs if embeddings else 0)


def four_bytes_a_token(weight: int, _: int) -> int:
    """Expected input tokens where no bodies were looked at."""
    return -(-weight // 4)


class Cutter:
    """Takes request bodies in row order, writes shard files, says what became of them.

    ``tag`` names the next shard; ``tokens`` turns what bodies weigh, and how many they are, into expected input tokens;
    ``do`` makes the calls that write, in order, at once or later: then before `close`.
    ``weigh`` says how many input tokens a body is at most.
    """

    def __init__(
        self, store: Store, folder: str, lane: Lane, bounds: Bounds, sheet: PriceSheet, cap_tokens: int,
        pieces: tuple[bytes, bytes, bytes], tag: Callable[[], str], tokens: Callable[[int, int], int],
        do: Callable[..., None] = at_once, weigh: Callable[[bytes], int] = len,
    ) -> None:  # fmt: skip
        self._weigh = weigh
        self._store, self._folder, self._lane, self._bounds, self._sheet = store, folder, lane, bounds, sheet
        self._least_cap = self._cap = cap_tokens
        self._pieces, self._tag, self._tokens, self._do = pieces, tag, tokens, do
        self._room_nanos, self._most = self._hold_room(), bounds.requests
        self._done: list[_Open] = []
        self._open: _Open | None = None

    def _hold_room(self) -> int | None:
        """Most nanos that one shard may hold of the budget; None without a bound, or where nothing costs."""
        return None if self._bounds.hold_nanos is None or self._sheet.is_free else self._bounds.hold_nanos

    def add(self, indexes: Sequence[int], bodies: Sequence[bytes], *, cap_tokens: int = 0, inputs: int = 1) -> None:
        """Requests in row order, with output caps up to ``cap_tokens`` where that is more than usual, and up to
        ``inputs`` texts to embed each.

        Raises InputError for one that no shard can hold.
        """
        start, self._cap = 0, max(self._least_cap, cap_tokens)
        self._most = self._bounds.requests
        if self._bounds.inputs:
            self._most = max(1, min(self._most, self._bounds.inputs // max(1, inputs)))
        sums = [0, *accumulate(map(len, bodies))]
        weights = sums if self._weigh is len else [0, *accumulate(map(self._weigh, bodies))]
        if too_large := self.too_large(indexes, bodies):
            row, why = next(iter(too_large.items()))
            error = InputError(f"row {row} is too large to send", why=why, fix=_SHORTEN)
            error.row = row
            raise error
        while start < len(bodies):
            shard = self._open or self._begin()
            end = self._fit(shard, start, sums, weights)
            if end == start:
                self._finish()
                continue
            shard.write(indexes[start:end], bodies[start:end], weights[end] - weights[start])
            start = end
            shard.cap_tokens = max(shard.cap_tokens, self._cap)
            if shard.count >= self._most:
                self._finish()

    def too_large(self, indexes: Sequence[int], bodies: Sequence[bytes]) -> dict[int, str]:
        """Rows whose request is more than the provider takes, and by how much."""
        most = self._bounds.request_bytes
        if not most or max(map(len, bodies), default=0) + _AROUND_BYTES <= most:
            return {}
        why = (
            f"its request has {{:,}} bytes, and up to {_AROUND_BYTES} around them; the provider takes {most:,} at most"
        )
        return {i: why.format(len(b)) for i, b in zip(indexes, bodies, strict=True) if len(b) + _AROUND_BYTES > most}

    def finish(self) -> None:
        """No request comes any more."""
        if self._open is not None:
            self._finish()

    def close(self) -> list[NewShard]:
        """Finish the last shard; all of them."""
        self.finish()
        return [self._new(shard) for shard in self._done]

    def abort(self) -> None:
        if self._open is not None:
            self._open.abandon()

    def _fit(self, shard: _Open, start: int, sums: Sequence[int], weights: Sequence[int]) -> int:
        """How far from ``start`` the requests fit into ``shard``; a shard takes at least one."""
        end = max(start, min(len(sums) - 1, start + self._most - shard.count))
        if self._bounds.size_bytes:
            line = len(shard.head) + len(b"".join(self._pieces[1:])) + 21  # an index is at most 20 digits
            while (
                end > start
                and shard.size_bytes + sums[end] - sums[start] + (end - start) * line > self._bounds.size_bytes
            ):
                over = shard.size_bytes + sums[end] - sums[start] + (end - start) * line - self._bounds.size_bytes
                end = max(start, min(end - 1, bisect_right(sums, sums[end] - over) - 1))
        if self._room_nanos is not None:
            low, high = start, end
            while low < high:  # the hold grows with every request: halve
                middle = (low + high + 1) // 2
                if self._hold(shard, weights[middle] - weights[start], middle - start) <= self._room_nanos:
                    low = middle
                else:
                    high = middle - 1
            end = low
        return max(end, start + 1) if shard.count == 0 else end

    def _hold(self, shard: _Open, more_weight: int, more: int) -> int:
        count = shard.count + more
        cap = max(shard.cap_tokens, self._cap)
        return self._sheet.worst(shard.content_bytes + more_weight, count, count * cap)

    def _begin(self) -> _Open:
        tag = self._tag()
        before, between, after = self._pieces
        head = before + b'"' + tag.encode() + b"-"
        path = f"{self._folder}/shards/{tag}.jsonl"
        self._open = _Open(self._store, path, tag, head, b'"' + between, after, self._do)
        return self._open

    def _finish(self) -> None:
        if self._open is not None:
            self._open.finish()
            self._done.append(self._open)
            self._open = None

    def _new(self, shard: _Open) -> NewShard:
        return NewShard(
            tag=shard.tag, seq=int(shard.tag.rpartition("-")[2]), lane=self._lane, first=shard.first,
            last=shard.last, count=shard.count, content_bytes=shard.content_bytes,
            cap_tokens=shard.count * shard.cap_tokens, input_tokens=self._tokens(shard.content_bytes, shard.count),
            file=shard.writer.ref,
        )  # fmt: skip


class _Abandoned(Exception):
    """Ends a file in the making."""


class _Open:
    """A shard file in the making."""

    def __init__(
        self, store: Store, path: str, tag: str, head: bytes, between: bytes, end: bytes, do: Callable[..., None]
    ) -> None:
        self.tag, self.head, self._between, self._end, self._do = tag, head, between, end, do
        self._context = store.create(path)
        self.writer: Writer = self._context.__enter__()
        self.first = self.last = -1
        self.count = self.content_bytes = self.size_bytes = 0
        self.cap_tokens = 0  # of the request with the highest cap

    def write(self, indexes: Sequence[int], bodies: Sequence[bytes], content_bytes: int) -> None:
        # index, between, body, joint; index, between, body, joint; ... filled in strides, which is twice as fast
        pieces = [self._between] * (4 * len(bodies))
        pieces[0::4] = [b"%d" % i for i in indexes]
        pieces[2::4] = bodies
        pieces[3::4] = [self._end + self.head] * len(bodies)
        pieces[-1] = self._end
        lines = b"".join((self.head, *pieces))
        self._do(self.writer.write, lines)
        self.size_bytes += len(lines)
        if self.first < 0:
            self.first = indexes[0]
        self.last = indexes[-1]
        self.count += len(bodies)
        self.content_bytes += content_bytes

    def finish(self) -> None:
        self._do(self._context.__exit__, None, None, None)

    def abandon(self) -> None:
        try:  # no OSError: the store would take it for trouble of its own
            self._context.__exit__(_Abandoned, _Abandoned(), None)
        except _Abandoned:
            return
