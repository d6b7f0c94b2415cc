"""Answers that came after their shard had settled: what they change in rows and money, and nothing more.

A row counts in the newest shard that has it. One that is open there is filled; one that has an answer
keeps it as the first in file order, and the late one is paid and counted beside. Nothing is sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from nightmill.collect.accounting import SUCCEEDED, Accounting, BodySizes, account, alerts_of, bookings, without_answer
from nightmill.collect.context import Context
from nightmill.ledger import CAME_LATE, Booking, LateSettlement, Moved, Shard, SubmissionState
from nightmill.types import Lane
from nightmill.wire import shard_lines


def settle_late(contexts: Callable[[Shard], Context], shard: Shard, others: Sequence[Shard]) -> LateSettlement | None:
    """What changes by the result files of ``shard`` that are not accounted for yet.

    ``others`` are the job's other shards, each with what is accounted for and perhaps more. None: lines
    are wanting in what came, and it was read once only. ``contexts``: by whom each of them was answered.
    """
    context = contexts(shard)
    before, now = _account(context, _as_it_settled(shard)), _account(context, shard)
    if shard.reads < 2 and _is_short(context, before, now):
        return None
    changed = now.differing_from(before)
    moved, beside = _moves(before, now, changed, _holders(contexts, shard, others, set(changed)))
    return LateSettlement(
        bookings=_bookings(context, before, now),
        moved=tuple(moved),
        extra_answers=now.extra_answers - before.extra_answers + beside,
        unknown_ids=now.unknown_ids - before.unknown_ids,
        tokens_in=now.tokens_in - before.tokens_in,
        tokens_out=now.tokens_out - before.tokens_out,
        tokens_cached=now.tokens_cached - before.tokens_cached,
        tokens_written=now.tokens_written - before.tokens_written,
        caching_nanos=now.caching_nanos - before.caching_nanos,
        list_nanos=now.list_nanos - before.list_nanos,
        models=tuple(sorted(now.models)),
        alerts=tuple(found for found in alerts_of(now) if found not in alerts_of(before)),
    )


def _as_it_settled(shard: Shard) -> Shard:
    """The shard with those files only that were accounted for when it settled."""
    booked = {sub.n for sub in shard.submissions if sub.state is SubmissionState.BOOKED}
    return replace(shard, files=tuple(f for f in shard.files if f.n in booked and f.read != CAME_LATE))


def _is_short(context: Context, before: Accounting, now: Accounting) -> bool:
    """Whether what came late lacks lines that it should have."""
    shard, sizes = now.shard, BodySizes(context.store, now.shard, context.provider)
    late = {file.n for file in shard.files if file.read == CAME_LATE}
    came = [s for s in shard.submissions if s.n in late or s.state is SubmissionState.CREATED]
    return now.garbled > before.garbled or any(without_answer(now, sub, sizes) for sub in came)


def _account(context: Context, shard: Shard) -> Accounting:
    return account(context.store, shard, context.provider, context.sheet, context.list_sheet, context.check)


def _holders(
    contexts: Callable[[Shard], Context], shard: Shard, others: Sequence[Shard], rows: Collection[int]
) -> dict[int, list[Accounting]]:
    """By row, the accountings of the other shards that have it, by number, as far as they are booked."""
    found: dict[int, list[Accounting]] = {}
    if not rows:
        return found
    low, high = min(rows), max(rows)
    for other in others:
        if other.tag == shard.tag or other.lane is Lane.CACHE or other.last < low or other.first > high:
            continue
        context = contexts(other)
        shared = [index for index, _ in shard_lines(context.store, other) if index in rows]
        if shared:
            acc = _account(context, _as_it_settled(other))
            for index in shared:
                found.setdefault(index, []).append(acc)
    return found


def _moves(
    before: Accounting, now: Accounting, changed: Sequence[int], holders: dict[int, list[Accounting]]
) -> tuple[list[Moved], int]:
    """Requests that end otherwise now, and how many late answers are to rows that another shard had answered."""
    moved: list[Moved] = []
    beside = 0
    for index in changed:
        others = holders.get(index, [])
        if any(acc.word(index) == SUCCEEDED for acc in others):
            beside += now.word(index) == SUCCEEDED
            continue
        newest = max([before, *others], key=lambda acc: acc.shard.seq)
        if newest is before or now.word(index) == SUCCEEDED:
            moved.append(Moved(newest.shard.tag, newest.word(index), now.word(index)))
    return moved, beside


def _bookings(context: Context, before: Accounting, now: Accounting) -> tuple[Booking, ...]:
    """What each batch cost as far as is known now. What was written off without a batch stays so."""
    shard, new_calls = now.shard, now.calls - before.calls
    written_off = {s.n for s in shard.submissions if s.state is SubmissionState.BOOKED and s.batch_id is None}
    made = [
        b
        for b in bookings(now, context.sheet, BodySizes(context.store, shard, context.provider))
        if b.n not in written_off
    ]
    return tuple(replace(b, calls=0 if i else new_calls) for i, b in enumerate(made))
