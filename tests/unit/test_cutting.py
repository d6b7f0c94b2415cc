"""Requests that say themselves how much they may cost: what their shards hold, and how many they are."""

from __future__ import annotations

import itertools
from pathlib import Path

from plan_kit import provider_of, sheet_of

from nightmill.ledger import NewShard
from nightmill.plan import Bounds, Cutter, bounds
from nightmill.providers import Limits
from nightmill.store import Store
from nightmill.types import Lane

BODY = b'{"model":"m"}'


def cutter(home: Path, limits: Bounds) -> Cutter:
    store, numbers = Store(home), itertools.count()
    store.prepare()
    pieces = provider_of().line_pieces("/v1/chat/completions")
    return Cutter(store, store.job_folder("job"), Lane.BATCH, limits, sheet_of(), 0, pieces,
                  lambda: f"job-{next(numbers)}", lambda size, _: size)  # fmt: skip


def made(home: Path, limits: Bounds, *adds: tuple[int, int, int]) -> list[NewShard]:
    """Shards of requests added as ``(count, cap_tokens, inputs)``."""
    cut, first = cutter(home, limits), 0
    for count, cap, inputs in adds:
        cut.add(range(first, first + count), [BODY] * count, cap_tokens=cap, inputs=inputs)
        first += count
    return cut.close()


def test_a_shard_holds_the_highest_cap_of_its_requests_for_each(tmp_path: Path) -> None:
    """Any request of a shard, sent alone, is bounded by the shard's share for one; other shards pay nothing for it."""
    shards = made(tmp_path, Bounds(4, 0, None), (3, 10, 1), (1, 500, 1), (4, 20, 1))
    assert [(s.count, s.cap_tokens) for s in shards] == [(4, 4 * 500), (4, 4 * 20)]


def test_a_high_cap_never_makes_a_shard_hold_more_than_it_may(tmp_path: Path) -> None:
    """Where the request with the high cap does not fit beside the others, it begins a shard of its own."""
    room = sheet_of().worst(10 * len(BODY), 10, 10 * 100)
    shards = made(tmp_path, Bounds(1_000, 0, room), (10, 100, 1), (1, 900, 1), (5, 100, 1))
    assert [s.first for s in shards] == [0, 10, 11]
    assert all(sheet_of().worst(s.content_bytes, s.count, s.cap_tokens) <= room for s in shards)


def test_a_batch_is_as_large_as_is_usual_unless_somebody_says_more() -> None:
    """A provider whose batches are best kept small takes larger ones where they are asked for, up to the most."""
    small = Limits(batch_requests=100, batch_usual=10)
    for asked, most in ((None, 10), (5, 5), (50, 50), (500, 100)):
        how = bounds(Lane.BATCH, small, batch_size=asked, hold_nanos=None, embeddings=False)
        assert how.requests == most
    assert bounds(Lane.BATCH, Limits(7), batch_size=None, hold_nanos=None, embeddings=False).requests == 7


def test_texts_to_embed_are_counted_whatever_request_they_are_in(tmp_path: Path) -> None:
    """A batch with a limit on inputs holds fewer requests where each has several."""
    limits = bounds(Lane.BATCH, Limits(100, 0, 30), batch_size=None, hold_nanos=None, embeddings=True)
    shards = made(tmp_path, limits, (9, 0, 10), (40, 0, 1))
    assert [s.count for s in shards] == [3, 3, 3, 30, 10]
