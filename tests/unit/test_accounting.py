"""The truth about a shard: whatever comes back, every request ends once and every answer is paid once."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_kit import (
    CAP,
    answer,
    context_of,
    plan_of,
    refusal,
    results_of,
    shard_of,
    sheet_of,
    store_lines,
    submission,
    unrun,
)

from nightmill import wire
from nightmill.collect import Collected, accounting, settle_shard
from nightmill.lanes.batch import facts
from nightmill.ledger import Counts, Shard
from nightmill.plan import Bounds, Order
from nightmill.providers._openai_talk import batch_view
from nightmill.store import Store
from nightmill.types import FailureKind, Lane, ShardState, Usage
from nightmill.wire import ERROR, JOURNAL, OUTPUT, lost_mark, sent_mark, unsent_mark

ROWS = 6
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# A line: what it is, and (for an answer) its text and tokens.
said = st.tuples(st.just("answer"), st.sampled_from(["yes", "no"]), st.sampled_from([(10, 5), (3, 1), None]))
bad = st.tuples(st.sampled_from(["500", "400", "batch_expired", "batch_cancelled"]))
rows = st.integers(-2, ROWS - 1)  # negative: an id that is not of this shard
lines = st.lists(st.tuples(rows, st.one_of(said, bad), st.booleans()), max_size=3 * ROWS)


def line_of(tag: str, row: int, what: tuple[Any, ...]) -> bytes:
    custom_id = f"{tag}-{row}" if row >= 0 else "other-2" if row == -2 else f"{tag}-{'9' * 5000}"
    if what[0] == "answer":
        return answer(custom_id, what[1], what[2])
    return refusal(custom_id, int(what[0])) if what[0].isdigit() else unrun(custom_id, what[0])


def model_of(given_lines: list[tuple[int, tuple[Any, ...]]]) -> dict[int, str]:
    """How each row ended, told anew and slowly: the first answer, else the first thing said."""
    ends: dict[int, str] = {}
    for row, what in given_lines:
        if row >= 0 and (row not in ends or (what[0] == "answer" and ends[row] != "answer")):
            ends[row] = what[0]
    return ends


# How a batch ended, and what its requests without a line are then; the first hands back a line for each.
ENDS = {"completed": FailureKind.MISSING, "expired": FailureKind.EXPIRED, "cancelled": FailureKind.CANCELLED}


def handing_nothing_back(order: Order) -> Order:
    """The same job with a provider whose batches give nothing back unless they are completed."""
    provider = copy(order.provider)
    provider.unanswered = ENDS.__getitem__  # type: ignore[attr-defined]
    return replace(order, provider=provider)


@quick
@given(
    came=lines, torn=st.booleans(), stopping=st.booleans(), last_try=st.booleans(),
    status=st.sampled_from(sorted(ENDS)), told=st.booleans(),
)  # fmt: skip
def test_every_request_ends_once_and_every_answer_is_paid(
    fixed: tuple[Order, Store, Any],
    came: list[tuple[int, tuple[Any, ...], bool]],
    torn: bool,
    stopping: bool,
    last_try: bool,
    status: str,
    told: bool,
) -> None:
    """Missing, doubled, unknown, torn, shuffled, in both files: the sum holds, the money too, and the rows agree."""
    order, store, plan = handing_nothing_back(fixed[0]), *fixed[1:]
    (new,) = plan.shards
    in_order = [(r, w) for r, w, is_error in came if not is_error] + [(r, w) for r, w, is_error in came if is_error]
    files = []
    for kind, is_error in ((OUTPUT, False), (ERROR, True)):
        these = [line_of(new.tag, r, w) for r, w, e in came if e is is_error]
        if torn:
            these.append(answer(f"{new.tag}-0", "cut")[:-20])
        files.append(store_lines(store, f"wire/{kind}", these, kind, new.tag))
    last = {"attempt": 3, "expiries": 2, "missings": 1} if last_try else {}
    counts = {"completed": 0, "failed": 0} if told else {}
    shard = shard_of(new, files=files, subs=[submission(new.tag, status=status, **counts)], **last)
    done = settle_shard(context_of(order, store), shard, stopping=stopping).settlement
    check_counts(done.counts, done.resent, in_order, ENDS[status], stopping=stopping)
    assert sum(left.count for left in done.leftovers) == done.resent.total
    assert done.resent.total == 0 or not (stopping or last_try)
    check_rows(order, store, plan, shard, done, in_order, ENDS[status], told=told)


@quick
@given(came=lines, plain=st.integers(0, ROWS), twice=st.booleans())
def test_lines_read_together_add_up_like_lines_read_one_by_one(
    fixed: tuple[Order, Store, Any], came: list[tuple[int, tuple[Any, ...], bool]], plain: int, twice: bool
) -> None:
    """Reading many lines in one go changes no count and no nano, whatever stands between the plain answers."""
    order, store, plan = fixed
    (new,) = plan.shards
    answers = [answer(f"{new.tag}-{row}", f"text {row}", (row + 1, 2)) for row in range(plain)]
    these = [*answers, *(line_of(new.tag, r, w) for r, w, _ in came), *(answers[:1] if twice else []), b"torn"]
    shard = shard_of(new, files=[store_lines(store, "wire/mixed", these, OUTPUT, new.tag)])
    slow = copy(order.provider)
    slow.decode_plain = lambda _: None  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_BUNCH_BYTES", 1_500)
        patch.setattr(accounting, "_FEW", 2)
        together, one_by_one = (
            accounting.account(store, shard, provider, order.sheet, order.list_sheet, None)
            for provider in (order.provider, slow)
        )
    assert together == one_by_one
    assert together.succeeded >= plain


events = st.tuples(st.integers(0, ROWS - 1), st.sampled_from(["sent", "unsent", "lost", "yes", "no", "500", "nothing"]))


@quick
@given(plain=st.integers(0, ROWS), came=st.lists(events, max_size=2 * ROWS), unanswered=st.booleans())
def test_a_journal_read_at_once_adds_up_like_one_read_line_by_line(
    fixed: tuple[Order, Store, Any], plain: int, came: list[tuple[int, str]], unanswered: bool
) -> None:
    """Whatever stands between plain answers, in whichever order: the same counts, money and calls in doubt."""
    order, store, plan = fixed
    (new,) = plan.shards
    names = [f"{new.tag}-{row}" for row in range(ROWS)]
    journal = [line for name in names[:plain] for line in (sent_mark(name), answer(name, f"text {name}", (7, 2)))]
    marks = {"sent": sent_mark, "unsent": unsent_mark, "lost": lost_mark}
    for row, what in came:
        if what in marks:
            journal.append(marks[what](names[row]))
        elif what != "nothing":
            line = refusal(names[row], 500) if what == "500" else answer(names[row], what, (3, 1))
            journal += [sent_mark(names[row]), line]
    journal += [sent_mark(names[-1])] if unanswered else []
    file = store_lines(store, "wire/journal", journal, JOURNAL, new.tag)
    shard = replace(shard_of(new, files=[file]), lane=Lane.LIVE)
    slow = copy(order.provider)
    slow.decode_plain = lambda _: None  # type: ignore[method-assign]
    at_once, one_by_one = (
        accounting.account(store, shard, provider, order.sheet, order.list_sheet, None)
        for provider in (order.provider, slow)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "_AT_ONCE_BYTES", 500)
        too_long = accounting.account(store, shard, order.provider, order.sheet, order.list_sheet, None)
    assert at_once == one_by_one == too_long
    assert sorted(at_once.unproven_rows) == sorted(in_doubt(journal, new.tag))


def in_doubt(journal: list[bytes], tag: str) -> list[int]:
    """Rows of calls that may have been billed, told anew and slowly."""
    rows: list[int] = []
    for row in range(ROWS):
        is_open = False
        for line in journal:
            if f'"{tag}-{row}"'.encode() in line:
                is_open = line.startswith(b'{"sent"')
                rows += [row] if line.startswith(b'{"lost"') else []
        rows += [row] if is_open else []
    return rows


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Order, Store, Any]:
    """One plan for every example."""
    return plan_of(tmp_path_factory.mktemp("fixed"), [f"row {i}" for i in range(ROWS)])


def check_counts(
    counts: Counts, resent: Counts, given_lines: list[tuple[int, tuple[Any, ...]]], unanswered: FailureKind, *,
    stopping: bool,
) -> None:  # fmt: skip
    ends = list(model_of(given_lines).values())
    assert counts.total == ROWS
    assert counts.succeeded == ends.count("answer")
    assert counts.failed == ends.count("500") + ends.count("400")
    without = {unanswered: ROWS - len(ends)}
    expired = ends.count("batch_expired") + without.get(FailureKind.EXPIRED, 0)
    cancelled = ends.count("batch_cancelled") + without.get(FailureKind.CANCELLED, 0)
    assert (counts.expired, counts.cancelled) == ((expired, cancelled) if stopping else (expired + cancelled, 0))
    assert counts.missing == without.get(FailureKind.MISSING, 0)
    assert resent.succeeded == resent.cancelled == 0
    assert all(getattr(resent, k) <= getattr(counts, k) for k in ("failed", "missing", "expired"))


def check_rows(
    order: Order, store: Store, plan: Any, shard: Shard, done: Any, given_lines: list[Any], unanswered: FailureKind, *,
    told: bool,
) -> None:  # fmt: skip
    """What is shown of each row is what was counted and booked."""
    results = results_of(order, store, plan, [shard_of(plan.shards[0], files=shard.files, subs=shard.submissions,
                                                        state=ShardState.SETTLED)])  # fmt: skip
    (batch,) = results.batches(0, ROWS)
    assert batch.column("index").to_pylist() == list(range(ROWS))
    ends = model_of(given_lines)
    kinds = {"500": "server_error", "400": "bad_request", "batch_expired": "expired", "batch_cancelled": "cancelled"}
    for row, ok, kind in zip(*(batch.column(c).to_pylist() for c in ("index", "success", "error_kind")), strict=True):
        assert ok == (ends.get(row) == "answer")
        assert ok or kind == kinds.get(ends.get(row, ""), unanswered)
    unknown = sum(sheet_of().cost(Usage(*w[2])) for r, w in given_lines if r < 0 and w[0] == "answer" and w[2])
    (booking,) = done.bookings
    known_nanos = sum(batch.column("cost_nanos").to_pylist()) + unknown
    assert (booking.spent_nanos > known_nanos) == (not told and len(ends) < ROWS)  # no word that it did not run
    assert booking.spent_nanos >= known_nanos
    assert done.unknown_ids == sum(r < 0 for r, _ in given_lines)
    known = [r for r, _ in given_lines if r >= 0]
    assert done.extra_answers == len(known) - len(set(known))


@pytest.fixture
def house(tmp_path: Path) -> tuple[Order, Store, Any]:
    return plan_of(tmp_path, [f"row {i}" for i in range(ROWS)])


def settled(house: tuple[Order, Store, Any], came: list[bytes], *, stopping: bool = False, **more: Any) -> Collected:
    order, store, plan = house
    (new,) = plan.shards
    file = store_lines(store, "wire/output", came, OUTPUT, new.tag)
    return settle_shard(context_of(order, store), shard_of(new, files=[file], **more), stopping=stopping)


def test_rows_without_a_line_are_read_for_twice(house: tuple[Order, Store, Any]) -> None:
    """Nothing explains a gap: the files are read once more before it is declared."""
    came = [answer(f"job-0-{i}", "yes") for i in range(ROWS - 1)]
    assert settled(house, came, reads=1).read_again
    assert not settled(house, came, reads=2).read_again
    told = [submission("job-0", completed=ROWS - 1, failed=0)]
    assert not settled(house, came, reads=1, subs=told).read_again


def test_a_missing_row_stays_booked_until_totals_prove_otherwise(house: tuple[Order, Store, Any]) -> None:
    """A row without a line may have run: its worst case is unproven, within the hold."""
    came = [answer(f"job-0-{i}", "yes") for i in range(ROWS - 1)]
    proven = (ROWS - 1) * sheet_of().cost(Usage(10, 5))
    (booking,) = settled(house, came).settlement.bookings
    plan = house[2]
    body = plan.shards[0].content_bytes // ROWS
    assert booking.unproven_nanos >= sheet_of().worst(body - 8, 1, CAP)
    assert booking.spent_nanos == proven + booking.unproven_nanos
    (tight,) = settled(house, came, subs=[submission("job-0", hold_nanos=proven + 7)]).settlement.bookings
    assert (tight.spent_nanos, tight.unproven_nanos) == (proven + 7, 7)
    (told,) = settled(house, came, subs=[submission("job-0", completed=ROWS - 1)]).settlement.bookings
    assert (told.spent_nanos, told.unproven_nanos) == (proven, 0)


@pytest.mark.parametrize("kind", [FailureKind.EXPIRED, FailureKind.CANCELLED])
def test_what_a_batch_does_not_hand_back_goes_out_again_at_once(tmp_path: Path, kind: FailureKind) -> None:
    """Expired or cancelled as a whole: nothing is read twice for, and what it may have cost stays booked."""
    order, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(ROWS)])
    order, (new,) = handing_nothing_back(order), plan.shards
    for completed, is_booked in ((None, True), (0, False)):
        shard = shard_of(new, subs=[submission(new.tag, status=kind.value, completed=completed)], reads=1)
        found = settle_shard(context_of(order, store), shard, stopping=False)
        assert not found.read_again
        done = found.settlement
        assert (done.counts, done.resent) == (Counts(expired=ROWS), Counts(expired=ROWS))
        assert [(left.count, left.expiries, left.missings) for left in done.leftovers] == [(ROWS, 1, 0)]
        assert (done.bookings[0].unproven_nanos > 0) is is_booked
        assert done.bookings[0].spent_nanos == done.bookings[0].unproven_nanos
    final = shard_of(new, subs=[submission(new.tag, status=kind.value)], expiries=2)
    assert settle_shard(context_of(order, store), final, stopping=False).settlement.leftovers == ()


def test_a_batch_beside_the_shards_own_does_not_say_how_its_rows_ended(tmp_path: Path) -> None:
    """We cancelled the second one: what the first lacks is missing, or expired with it."""
    order, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(ROWS)])
    order, (new,) = handing_nothing_back(order), plan.shards
    for own, counted in (("completed", Counts(missing=ROWS)), ("expired", Counts(expired=ROWS))):
        subs = [submission(new.tag, 1, status=own), submission(new.tag, 2, status="cancelled")]
        shard = shard_of(new, subs=subs, submission=1)
        assert settle_shard(context_of(order, store), shard, stopping=True).settlement.counts == counted


def test_a_count_of_a_batch_under_way_proves_nothing_of_its_end(house: tuple[Order, Store, Any]) -> None:
    """Of a batch that ends without totals nobody knows how many rows it answered: a lost one stays unproven."""
    came = [answer(f"job-0-{i}", "yes") for i in range(ROWS - 1)]
    under_way = submission("job-0", completed=2)
    ended = batch_view({"id": "b", "status": "completed", "request_counts": None})
    told = facts(ended, under_way, over=True)["completed"]
    (booking,) = settled(house, came, subs=[replace(under_way, completed=told)]).settlement.bookings
    assert booking.unproven_nanos > 0
    known = replace(under_way, completed=ROWS - 1, ended=True)
    assert facts(ended, known, over=True)["completed"] == ROWS - 1


def test_what_goes_out_again_keeps_its_history(house: tuple[Order, Store, Any]) -> None:
    """Failed, expired and missing rows go into shards of their own, each with one more of what happened to it."""
    came = [answer("job-0-0", "yes"), refusal("job-0-1", 500), refusal("job-0-2", 400), unrun("job-0-3")]
    done = settled(house, came).settlement
    histories = {(s.first, s.last, s.count): (s.attempt, s.expiries, s.missings) for s in done.leftovers}
    assert histories == {(1, 1, 1): (2, 0, 0), (3, 3, 1): (1, 1, 0), (4, 5, 2): (1, 0, 1)}
    assert done.failures == {"bad_request": 1}
    assert all(left.lane is Lane.BATCH for left in done.leftovers)


def test_a_stopped_job_sends_nothing_again(house: tuple[Order, Store, Any]) -> None:
    """Cancelled or stopped: what failed, expired or is missing is final."""
    came = [refusal("job-0-1", 500), unrun("job-0-3"), unrun("job-0-4", "batch_cancelled")]
    done = settled(house, came, stopping=True).settlement
    assert done.leftovers == ()
    assert done.counts == Counts(0, 1, 3, 1, 1)


def test_answers_that_differ_and_unknown_ids_are_told(house: tuple[Order, Store, Any]) -> None:
    """Twice answered, differently, or for nobody: paid, counted, and a person should know."""
    came = [answer(f"job-0-{i}", "yes") for i in range(ROWS)] + [answer("job-0-0", "no"), answer("job-9-1", "hm")]
    done = settled(house, came).settlement
    assert ("answers_differ", "requests of job-0 answered twice, differently: 1") in done.alerts
    assert ("unknown_ids", "lines for job-0 that name requests it did not hold: 1") in done.alerts
    assert done.bookings[0].spent_nanos == (ROWS + 2) * sheet_of().cost(Usage(10, 5))


def live(tmp_path: Path, journal: list[bytes], *, stopping: bool = False) -> tuple[Any, Any]:
    order, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(ROWS)], lane=Lane.LIVE)
    (new,) = plan.shards
    file = store_lines(store, "wire/journal", journal, JOURNAL, new.tag)
    shard = shard_of(new, files=[file], subs=[submission(new.tag, batch_id=None)])
    done = settle_shard(context_of(order, store), shard, stopping=stopping).settlement
    record = shard_of(new, files=[file], subs=shard.submissions, state=ShardState.SETTLED)
    (batch,) = results_of(order, store, plan, [record]).batches(0, ROWS)
    return done, batch


def test_a_live_journal_is_accounted_try_by_try(tmp_path: Path) -> None:
    """Answered, failed then answered, taken back, lost, never sent: each is what it is, and the lost one unproven."""
    sent = [sent_mark(f"job-0-{i}") for i in range(ROWS)]
    journal = [
        sent[0], answer("job-0-0", "yes"),
        sent[1], refusal("job-0-1", 500), sent[1], answer("job-0-1", "no"),
        sent[2], unsent_mark("job-0-2"), sent[2], refusal("job-0-2", 400),
        sent[3], lost_mark("job-0-3"),
        sent[4],
        b'{"sent":"job-0',
    ]  # fmt: skip
    done, batch = live(tmp_path, journal, stopping=True)
    assert done.counts == Counts(succeeded=2, failed=3, cancelled=1)
    assert done.extra_answers == 0
    assert done.leftovers == ()
    proven = 2 * sheet_of(Lane.LIVE).cost(Usage(10, 5))
    (booking,) = done.bookings
    assert booking.spent_nanos - booking.unproven_nanos == proven == sum(batch.column("cost_nanos").to_pylist())
    assert booking.unproven_nanos > 0
    kinds = [None, None, "bad_request", "timeout", "timeout", "cancelled"]
    assert batch.column("error_kind").to_pylist() == kinds


def test_a_flex_answer_is_booked_at_the_price_of_the_tier_that_it_names(tmp_path: Path) -> None:
    """In the shard's bill and in each row's: what says flex costs flex, what says anything else or nothing costs live.

    What a deadline left open goes live: what was never sent, and what failed with tries left; the others have ended.
    """
    texts = [f"row {i}" for i in range(ROWS)]
    order, store, plan = plan_of(tmp_path, texts, lane=Lane.FLEX, bounds=Bounds(ROWS, 0, None))
    (new,) = plan.shards
    named = [f"{new.tag}-{i}" for i in range(ROWS)]
    failed = refusal(named[3], 500)
    journal = [
        sent_mark(named[0]), answer(named[0], "yes", service_tier="flex"),
        sent_mark(named[1]), answer(named[1], "yes", service_tier="default"),
        sent_mark(named[2]), answer(named[2], "yes"),
        sent_mark(named[3]), failed, sent_mark(named[3]), failed, sent_mark(named[3]), failed,
        sent_mark(named[4]), refusal(named[4], 500), sent_mark(named[4]), lost_mark(named[4]),
    ]  # fmt: skip
    file = store_lines(store, "wire/journal", journal, JOURNAL, new.tag)
    shard = shard_of(new, files=[file], subs=[submission(new.tag, batch_id=None)])
    done = settle_shard(context_of(order, store), shard, stopping=False).settlement
    sheet, live_sheet = sheet_of(Lane.FLEX), sheet_of(Lane.LIVE)
    (booking,) = done.bookings
    cheap, full = sheet.cost(Usage(10, 5, flex=True)), live_sheet.cost(Usage(10, 5))
    assert 0 < cheap < full
    assert booking.spent_nanos - booking.unproven_nanos == cheap + 2 * full
    assert booking.unproven_nanos == live_sheet.worst(new.content_bytes // ROWS, 1, CAP)  # one send, nobody knows
    assert done.counts == Counts(succeeded=3, failed=2, expired=1)
    assert done.resent == Counts(failed=1, expired=1)
    assert done.failures == {"server_error": 1}
    assert {(s.lane, s.first, s.count, s.attempt) for s in done.leftovers} == {
        (Lane.LIVE, 4, 1, 3),
        (Lane.LIVE, 5, 1, 1),
    }
    record = shard_of(new, files=[file], subs=shard.submissions, state=ShardState.SETTLED)
    (batch,) = results_of(order, store, plan, [record]).batches(0, ROWS)
    assert batch.column("cost_nanos").to_pylist()[:3] == [cheap, full, full]


def test_cached_answers_cost_nothing(tmp_path: Path) -> None:
    """What an earlier job paid for is counted as answered and saved, and not as money."""
    order, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(ROWS)])
    (new,) = plan.shards
    file = store_lines(store, "wire/cached", [answer(f"{new.tag}-{i}", "yes") for i in range(ROWS)], "cached", new.tag)
    shard = shard_of(new, files=[file], subs=[], lane=Lane.CACHE, submission=0)
    done = settle_shard(context_of(order, store), shard, stopping=False).settlement
    assert (done.counts, done.bookings, done.tokens_in) == (Counts(succeeded=ROWS), (), 0)
    assert done.list_nanos > 0


def test_a_success_without_an_answer_is_booked(house: tuple[Order, Store, Any]) -> None:
    """A batch line that says 200 and nothing else was billed, or may have been: at its cap; its own error was not."""
    tag = house[2].shards[0].tag
    bodies = [{}, {"error": {"message": "no", "code": "server_error"}}]
    came = [
        json.dumps({"custom_id": f"{tag}-{i}", "response": {"status_code": 200, "body": body}}).encode() + b"\n"
        for i, body in enumerate(bodies)
    ]
    order, store, plan = house
    file = store_lines(store, "wire/output", came, OUTPUT, tag)
    shard = shard_of(plan.shards[0], files=[file], subs=[submission(tag, completed=1, failed=1)], attempt=3)
    done = settle_shard(context_of(order, store), shard, stopping=True).settlement
    assert done.tokens_out == CAP
    assert sum(b.spent_nanos - b.unproven_nanos for b in done.bookings) > 0
    results = results_of(order, store, plan, [replace(shard, state=ShardState.SETTLED)])
    (batch,) = results.batches(0, ROWS)
    first, second, *_ = batch.to_pylist()
    assert (first["cost_nanos"] > 0, first["cost_estimated"]) == (True, True)
    assert (second["cost_nanos"], second["cost_estimated"]) == (0, False)


@pytest.mark.req("X3")
def test_what_is_urgent_goes_out_live_in_small_shards(fixed: tuple[Order, Store, Any]) -> None:
    """Of a batch taken back for a deadline every row that did not run goes live, however often it expired before."""
    order, store, plan = fixed
    (new,) = plan.shards
    these = [answer(f"{new.tag}-0", "yes"), *(unrun(f"{new.tag}-{row}", "batch_cancelled") for row in range(1, ROWS))]
    files = [store_lines(store, "wire/urgent", these, OUTPUT, new.tag)]
    shard = shard_of(new, files=files, subs=[submission(new.tag, completed=1, failed=0)], expiries=2)
    given_up = settle_shard(context_of(order, store), shard, stopping=False).settlement
    assert given_up.leftovers == ()
    done = settle_shard(context_of(order, store), shard, stopping=False, urgent=True).settlement
    (left,) = done.leftovers
    assert (left.lane, left.count, left.first, left.last) == (Lane.LIVE, ROWS - 1, 1, ROWS - 1)
    assert (done.counts.succeeded, done.resent) == (1, Counts(expired=ROWS - 1))
