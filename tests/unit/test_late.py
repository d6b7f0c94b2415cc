"""Late answers: a shard that is accounted for in two parts comes to what it would have come to at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_kit import (
    answer,
    context_of,
    plan_of,
    refusal,
    shard_of,
    sheet_of,
    store_lines,
    submission,
    unrun,
)

from nightmill.collect import settle_late, settle_shard
from nightmill.ledger import CAME_LATE, LateSettlement, Moved, Settlement, Shard, StoredFile, SubmissionState
from nightmill.plan import Order
from nightmill.store import Store
from nightmill.wire import ERROR, OUTPUT

ROWS = 6
FINAL = {"attempt": 3, "expiries": 2, "missings": 1}  # nothing of it goes out again
COLUMNS = ("succeeded", "missing", "expired", "cancelled")
SUMS = ("extra_answers", "unknown_ids", "tokens_in", "tokens_out", "tokens_cached", "list_nanos")

House = tuple[Order, Store, Any]
rows = st.integers(-2, ROWS - 1)  # negative: an id that is not of this shard
said = st.tuples(st.just("answer"), st.sampled_from(["yes", "no"]), st.sampled_from([(10, 5), (3, 1), None]))
bad = st.tuples(st.sampled_from(["500", "400", "batch_expired", "batch_cancelled"]))
lines = st.lists(st.tuples(rows, st.one_of(said, bad)), max_size=2 * ROWS)


def line_of(tag: str, row: int, what: tuple[Any, ...]) -> bytes:
    custom_id = f"{tag}-{row}" if row >= 0 else f"other-{-row}"
    if what[0] == "answer":
        return answer(custom_id, what[1], what[2])
    return refusal(custom_id, int(what[0])) if what[0].isdigit() else unrun(custom_id, what[0])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return plan_of(tmp_path_factory.mktemp("late"), [f"row {i}" for i in range(ROWS)])


def booked(shard: Shard, done: Settlement) -> Shard:
    """The shard as it is once it has settled so."""
    costs = {b.n: b for b in done.bookings}
    subs = [
        replace(s, state=SubmissionState.BOOKED, hold_nanos=0, ended=True, spent_nanos=costs[s.n].spent_nanos,
                unproven_nanos=costs[s.n].unproven_nanos)
        for s in shard.submissions
    ]  # fmt: skip
    return replace(shard, submissions=tuple(subs), settled_at=1.0)


def counted(done: Settlement, moved: tuple[Moved, ...]) -> Counter[str]:
    """Requests by outcome after what came late."""
    counts = Counter(asdict(done.counts))
    for move in moved:
        for outcome, by in ((move.before, -1), (move.after, 1)):
            counts[outcome if outcome in COLUMNS else "failed"] += by
    return +counts


@settings(max_examples=150, deadline=None)
@given(
    came=lines, late=lines, completed=st.one_of(st.none(), st.integers(0, ROWS)), stopping=st.booleans(),
    second_batch=st.booleans(),
)  # fmt: skip
def test_two_parts_come_to_the_whole(
    house: House, came: list[Any], late: list[Any], completed: int | None, stopping: bool, second_batch: bool
) -> None:
    """An error file, or a whole batch, after its shard had settled: rows and money are as if all had come at once."""
    order, store, plan = house
    (new,) = plan.shards
    tag, (n, kind) = new.tag, (2, OUTPUT) if second_batch else (1, ERROR)
    context = context_of(order, store)
    hold = sheet_of().worst(new.content_bytes, new.count, new.cap_tokens)
    first = submission(tag, hold_nanos=hold, completed=completed)
    more = [submission(tag, 2, hold_nanos=0)] if second_batch else []
    in_time = store_lines(store, "wire/in-time", [line_of(tag, *line) for line in came], OUTPUT, tag)
    too_late = store_lines(store, "wire/late", [line_of(tag, *line) for line in late], kind, tag, n, CAME_LATE)
    about = {**FINAL, "cancel_requested": stopping}

    shard = shard_of(new, files=[in_time], subs=[first], **about)
    before = settle_shard(context, shard, stopping=stopping).settlement
    again = booked(shard, before)
    again = replace(again, files=(in_time, too_late), submissions=(*again.submissions, *more))
    after = settle_late(lambda _: context, again, [])

    at_once = shard_of(new, files=[in_time, too_late], subs=[first, *more], submission=1, **about)
    whole = settle_shard(context, at_once, stopping=stopping).settlement
    assert counted(before, after.moved) == +Counter(asdict(whole.counts))
    assert {b.n: (b.spent_nanos, b.unproven_nanos) for b in after.bookings} == {
        b.n: (b.spent_nanos, b.unproven_nanos) for b in whole.bookings
    }
    assert sum(b.calls for b in (*before.bookings, *after.bookings)) == sum(b.calls for b in whole.bookings)
    for name in SUMS:
        assert getattr(before, name) + getattr(after, name) == getattr(whole, name), name


# -- rows that other shards have too ---------------------------------------------------------------


def three_shards(tmp_path: Path, *words: str) -> tuple[House, list[Shard]]:
    """A row sent three times, in shards 0, 1 and 2; ``words``: what came of it in each, ``""`` for nothing."""
    order, store, plan = house = plan_of(tmp_path, ["the row"])
    shards = []
    for number, word in enumerate(words):
        again = plan.shards[0] if not number else context_of(order, store).scissors.again(shards[0], {0})[0]
        came = {"": [], "answer": [answer(f"{again.tag}-0", f"by {number}")], "500": [refusal(f"{again.tag}-0", 500)]}
        file = store_lines(store, f"wire/{number}", came[word], OUTPUT, again.tag)
        shard = shard_of(again, files=[file], **FINAL)
        sub = replace(shard.submissions[0], state=SubmissionState.BOOKED, hold_nanos=0)
        shards.append(replace(shard, seq=number, submissions=(sub,), settled_at=1.0))
    return house, shards


def late_in(house: House, shard: Shard, others: list[Shard], line: bytes) -> LateSettlement:
    order, store, _ = house
    file: StoredFile = store_lines(store, "wire/late", [line], ERROR, shard.tag, read=CAME_LATE)
    return settle_late(lambda _: context_of(order, store), replace(shard, files=(*shard.files, file)), others)


def test_a_late_answer_counts_where_the_row_was_sent_last(tmp_path: Path) -> None:
    """Sent three times and answered by none, then by the first: the newest shard's count says so."""
    house, shards = three_shards(tmp_path, "", "", "500")
    done = late_in(house, shards[0], shards, answer(f"{shards[0].tag}-0", "late"))
    assert done.moved == (Moved(shards[2].tag, "server_error", "succeeded"),)
    assert done.extra_answers == 0


@pytest.mark.parametrize("words", [("", "answer", ""), ("", "", "answer")])
def test_a_late_answer_to_an_answered_row_is_extra(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Whichever shard had an answer: nothing is counted anew, and the late one stands beside."""
    house, shards = three_shards(tmp_path, *words)
    done = late_in(house, shards[0], shards, answer(f"{shards[0].tag}-0", "late"))
    assert (done.moved, done.extra_answers) == ((), 1)
    assert done.bookings[0].spent_nanos > 0


def test_a_late_failure_changes_the_newest_shard_only(tmp_path: Path) -> None:
    """Why a row failed the first time does not matter once it was sent again; the last time it does."""
    house, shards = three_shards(tmp_path, "", "500", "")
    assert late_in(house, shards[0], shards, refusal(f"{shards[0].tag}-0", 400)).moved == ()
    newest = late_in(house, shards[2], shards, refusal(f"{shards[2].tag}-0", 400))
    assert newest.moved == (Moved(shards[2].tag, "missing", "bad_request"),)


def test_what_another_shard_has_not_settled_yet_does_not_count(tmp_path: Path) -> None:
    """Two shards got late answers to one row: the first to settle moves it, the second finds it answered."""
    house, shards = three_shards(tmp_path, "", "", "")
    order, store, _ = house
    file = store_lines(store, "wire/second", [answer(f"{shards[1].tag}-0", "2")], ERROR, shards[1].tag, read=CAME_LATE)
    second = replace(shards[1], files=(*shards[1].files, file))
    first = late_in(house, shards[0], [shards[0], second, shards[2]], answer(f"{shards[0].tag}-0", "1"))
    assert first.moved == (Moved(shards[2].tag, "missing", "succeeded"),)
    answered = replace(shards[0], files=(store_lines(store, "wire/answered", [answer(f"{shards[0].tag}-0", "1")], ERROR,
                                                     shards[0].tag),))  # fmt: skip
    then = settle_late(lambda _: context_of(order, store), second, [answered, second, shards[2]])
    assert (then.moved, then.extra_answers) == ((), 1)
