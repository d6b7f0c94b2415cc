"""Money: held before it can be spent, booked exactly, never past a cap, the same in every account of it."""

from __future__ import annotations

import pytest
from ledger_kit import (
    LEASE_S,
    ROWS,
    SCOPES,
    Backend,
    Worker,
    bring,
    check_money,
    claim,
    done,
    everything,
    intend,
    intended,
    money,
    publish,
    recorded,
)

from nightmill.ledger import Booking, Denied, Ledger, SubmissionState
from nightmill.types import JobState, Lane, ShardState


def test_a_hold_is_granted_in_all_scopes_or_in_none(ledger: Ledger) -> None:
    """A limit that refuses leaves no trace in the others, and says how much it has free."""
    ledger.set_budget("day:2026-11-21", 60)
    publish(ledger)
    shard = claim(ledger)
    before = everything(ledger)
    assert intend(ledger, shard, 61, ("month:2026-11", "day:2026-11-21", "total")) == Denied("day:2026-11-21", 61, 60)
    assert everything(ledger) == before
    intended(ledger, shard, 60)
    assert [money(ledger, scope) for scope in SCOPES] == [(0, 60)] * 3
    check_money(ledger)


def test_each_limit_refuses_what_would_pass_it(ledger: Ledger) -> None:
    """The total, the day, the month and the job's own budget all count; one nano too much is too much."""
    ledger.set_budget("day", 300)
    ledger.set_budget("month", 500)
    job = publish(ledger, budget=200)
    own = (f"job:{job.id}", *SCOPES)
    shard = claim(ledger)
    assert intend(ledger, shard, 201, own) == Denied("job:job1", 201, 200)
    assert intend(ledger, shard, 301) == Denied("day:2026-11-21", 301, 300)
    assert intend(ledger, shard, 501, ("month:2026-11", "total")) == Denied("month:2026-11", 501, 500)
    assert intend(ledger, shard, 1_001, ("total",)) == Denied("total", 1_001, 1_000)
    intended(ledger, shard, 200, own)
    check_money(ledger)


def test_a_hold_of_zero_is_always_granted(ledger: Ledger) -> None:
    """What costs nothing is never stopped by money, not even by a limit that is passed already."""
    ledger.set_budget("total", 50)
    publish(ledger, shards=2)
    intended(ledger, claim(ledger), 50)
    ledger.set_budget("total", 10)
    intended(ledger, claim(ledger), 0)
    assert money(ledger) == (0, 50)


def test_a_lowered_limit_cancels_nothing_and_refuses_more(ledger: Ledger) -> None:
    """Below what is spent and held, a cap stops new holds only; none is no limit at all."""
    publish(ledger, shards=2)
    held = intended(ledger, claim(ledger), 100)
    ledger.set_budget("total", 40)
    second = claim(ledger)
    assert intend(ledger, second, 1) == Denied("total", 1, 0)
    ledger.note_created(held, 1, "b", status="s", due_in_s=0.0)
    ledger.set_budget("total", None)
    intended(ledger, second, 10**15)


def test_a_day_takes_the_cap_of_days_and_follows_it_while_it_runs(ledger: Ledger) -> None:
    """Days and months come into being with the cap of their kind; the running one follows a change at once."""
    ledger.set_budget("day", 70)
    assert ledger.limits(["day:2026-11-21"])[0].free_nanos == 70
    publish(ledger)
    shard = claim(ledger)
    assert isinstance(intend(ledger, shard, 71), Denied)
    ledger.set_budget("day", 80, running_scopes=["day:2026-11-21", "month:2026-11"])
    intended(ledger, shard, 80)
    assert ledger.limits(["day:2026-11-22"])[0].cap_nanos == 80
    assert ledger.limits(["month:2026-11"])[0].cap_nanos is None


def test_budgets_that_were_set_stay(ledger: Ledger) -> None:
    """Opening the ledger again under the same settings does not reset what the user set."""
    ledger.set_budget("total", 5)
    before = everything(ledger)
    ledger.ensure_budget(1_000, None, None, default_nanos=99)
    assert everything(ledger) == before
    assert {limit.scope: limit.cap_nanos for limit in ledger.limits()} == {"total": 5, "day": None, "month": None}


def test_settings_that_change_count(ledger: Ledger) -> None:
    """A cap edited in the settings holds from the next opening on, also today's; one not named there stays."""
    publish(ledger)
    intended(ledger, claim(ledger), 80)
    running = ["day:2026-11-21", "month:2026-11"]
    ledger.ensure_budget(90, 70, None, running_scopes=running)
    caps = {limit.scope: limit.cap_nanos for limit in ledger.limits()}
    assert caps == {"total": 90, "day": 70, "month": None, "day:2026-11-21": 70, "month:2026-11": None}
    ledger.set_budget("total", 500)
    ledger.ensure_budget(None, 60, None, running_scopes=running)
    caps = {limit.scope: limit.cap_nanos for limit in ledger.limits()}
    assert (caps["total"], caps["day"], caps["day:2026-11-21"]) == (500, 60, 60)
    ledger.ensure_budget(90, 60, None, running_scopes=running)  # said before, and overruled since
    assert ledger.limits(["total"])[0].cap_nanos == 500


def test_a_new_ledger_has_a_limit(backend: Backend) -> None:
    """Where the settings say nothing, a first limit stands all the same."""
    ledger = backend.open()
    ledger.ensure_budget(None, None, None, default_nanos=7)
    assert {limit.scope: limit.cap_nanos for limit in ledger.limits()} == {"total": 7, "day": None, "month": None}
    ledger.close()


@pytest.mark.parametrize("spent", [0, 40, 100, 130])
def test_settling_books_exactly_and_frees_the_hold(ledger: Ledger, spent: int) -> None:
    """After settling, exactly what it cost is spent, in every scope, and nothing is held."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard, spent, unproven=spent // 4))
    assert [money(ledger, scope) for scope in SCOPES] == [(spent, 0)] * 3
    tally = ledger.tally("job1")
    assert (tally.spent_nanos, tally.unproven_nanos, tally.held_nanos) == (spent, spent // 4, 0)
    assert ledger.calls() == ROWS
    check_money(ledger)


@pytest.mark.parametrize("booking", [Booking(1, -1, 0, 1), Booking(1, 5, 6, 1), Booking(1, 5, -1, 1)])
def test_money_is_never_negative(ledger: Ledger, booking: Booking) -> None:
    """A booking that cannot be is refused, and nothing of its settlement is written."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    before = everything(ledger)
    settlement = done(shard)
    with pytest.raises(ValueError, match="cannot be"):
        ledger.settle(shard, type(settlement)(counts=settlement.counts, bookings=(booking,)))
    assert everything(ledger) == before


def test_no_hold_outlives_its_shard(ledger: Ledger) -> None:
    """A settlement that forgets a submission with money held is refused: the hold would stay for ever."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    before = everything(ledger)
    with pytest.raises(ValueError, match="still held"):
        ledger.settle(shard, type(done(shard))(counts=done(shard).counts, bookings=()))
    assert everything(ledger) == before


@pytest.mark.parametrize("state", [ShardState.SUBMITTING, ShardState.IN_DOUBT, ShardState.WAITING])
def test_what_was_never_sent_costs_nothing(ledger: Ledger, state: ShardState) -> None:
    """Proven not to be at the provider: the hold is free again and the shard planned, as a new submission."""
    publish(ledger)
    shard = bring(ledger, state)
    ledger.note_not_sent(shard, 1, due_in_s=0.0, reason="refused", refused=state is ShardState.WAITING)
    assert money(ledger) == (0, 0)
    again = claim(ledger)
    assert (again.state, again.reason, again.current.state) == (ShardState.PLANNED, "refused", SubmissionState.GONE)
    assert intended(ledger, again).submission == 2
    check_money(ledger)


def test_a_resend_books_the_first_and_holds_as_much_again(ledger: Ledger) -> None:
    """Live: what may have been billed is spent, unproven, and the row's worst case stays held."""
    publish(ledger, lane=Lane.LIVE)
    shard = bring(ledger, ShardState.SENDING)
    assert ledger.book_resend(shard, 30) is None
    assert money(ledger) == (30, 100)
    assert ledger.book_resend(shard, 871) == Denied("total", 871, 870)
    assert money(ledger) == (30, 100)
    check_money(ledger)
    ready = ledger.note_sent_all(shard)
    ledger.settle(ready, done(ready, 55, unproven=10))
    assert money(ledger) == (55, 0)
    assert recorded(ledger) == {("job1-0", 1): 55}
    check_money(ledger)


def test_a_write_off_spends_the_hold_unproven(ledger: Ledger) -> None:
    """Given up by the user: the worst case counts as spent and every row as missing."""
    publish(ledger)
    ledger.write_off(bring(ledger, ShardState.IN_DOUBT))
    tally = ledger.tally("job1")
    assert (tally.spent_nanos, tally.unproven_nanos, tally.counts.missing, tally.open) == (100, 100, ROWS, 0)
    assert money(ledger) == (100, 0)
    check_money(ledger)


def test_a_write_off_books_every_batch_of_the_shard(ledger: Ledger) -> None:
    """A second batch that turned up runs on after the user gave up: it may cost as much as the first."""
    publish(ledger)
    shard = bring(ledger, ShardState.IN_DOUBT)
    ledger.note_stray(shard, "b2", status="x", account="acc")
    ledger.release(shard)
    ledger.write_off(claim(ledger))
    tally = ledger.tally("job1")
    assert (tally.spent_nanos, tally.unproven_nanos) == (200, 200)
    assert money(ledger) == (200, 0)
    assert recorded(ledger) == {("job1-0", 1): 100, ("job1-0", 2): 100}
    check_money(ledger)


def test_a_second_batch_is_booked_beside_the_first(ledger: Ledger) -> None:
    """A stray costs too: it is settled with its shard and counts in the same limits."""
    publish(ledger)
    shard = bring(ledger, ShardState.IN_DOUBT)
    ledger.note_stray(shard, "b2", status="x", account="acc")
    ledger.note_created(shard, 1, "b1", status="x", due_in_s=0.0)
    waiting = claim(ledger)
    assert [(s.n, s.batch_id, s.hold_nanos) for s in waiting.submissions] == [(1, "b1", 100), (2, "b2", 0)]
    ledger.note_polled(waiting, [(1, {"ended": 1}), (2, {"ended": 1})], due_in_s=0.0, done=True)
    ready = claim(ledger)
    bookings = (Booking(1, 40, 0, 10), Booking(2, 25, 0, 6))
    ledger.settle(ready, type(done(ready))(counts=done(ready).counts, bookings=bookings))
    assert [money(ledger, scope) for scope in SCOPES] == [(65, 0)] * 3
    assert [alert[0] for alert in ledger.alerts_of("job1")] == ["second_batch"]
    check_money(ledger)


def test_a_stray_and_a_new_submission_have_numbers_of_their_own(ledger: Ledger) -> None:
    """The batch was refused as a whole beside a stray: the next submission takes neither's number."""
    publish(ledger)
    shard = bring(ledger, ShardState.IN_DOUBT)
    ledger.note_stray(shard, "b2", status="x", account="acc")
    ledger.note_created(shard, 1, "b1", status="x", due_in_s=0.0)
    ledger.note_not_sent(claim(ledger), 1, due_in_s=0.0, reason="refused", refused=True)
    again = intended(ledger, claim(ledger))
    assert [(s.n, s.state) for s in again.submissions] == [
        (1, SubmissionState.GONE),
        (2, SubmissionState.CREATED),
        (3, SubmissionState.OPEN),
    ]
    assert again.submission == 3
    check_money(ledger)


def test_a_submission_found_late_is_booked_too(ledger: Ledger) -> None:
    """Thought absent, and there after all: back to waiting, then both are booked."""
    publish(ledger)
    ledger.note_not_sent(bring(ledger, ShardState.IN_DOUBT), 1, due_in_s=0.0, reason="not there", sure=False)
    collecting = bring(ledger, ShardState.PLANNED)
    assert collecting.current.state is SubmissionState.ABSENT
    second = intended(ledger, collecting)
    ledger.note_created(second, 2, "b2", status="x", due_in_s=0.0)
    ledger.note_polled(claim(ledger), [(2, {"ended": 1})], due_in_s=0.0, done=True)
    ready = claim(ledger)
    ledger.revive(ready, 1, "b1", status="in_progress")
    ledger.back_to_waiting(ready)
    waiting = claim(ledger)
    assert waiting.state is ShardState.WAITING
    assert (waiting.reads, waiting.submissions[0].ended, waiting.submissions[0].batch_id) == (0, False, "b1")
    ledger.note_polled(waiting, [(1, {"ended": 1})], due_in_s=0.0, done=True)
    ready = claim(ledger)
    both = (Booking(1, 33, 0, 8), Booking(2, 44, 0, 10))
    ledger.settle(ready, type(done(ready))(counts=done(ready).counts, bookings=both))
    assert money(ledger) == (77, 0)
    check_money(ledger)


def test_absence_can_be_confirmed(ledger: Ledger) -> None:
    """The last look found nothing: the submission counts as lost and costs nothing."""
    publish(ledger)
    ledger.note_not_sent(bring(ledger, ShardState.IN_DOUBT), 1, due_in_s=0.0, reason="not there", sure=False)
    second = intended(ledger, claim(ledger))
    ledger.note_created(second, 2, "b2", status="x", due_in_s=0.0)
    ledger.note_polled(claim(ledger), [(2, {"ended": 1})], due_in_s=0.0, done=True)
    ready = claim(ledger)
    ledger.confirm_absent(ready, [1])
    ledger.settle(ready, done(ready, 44))
    assert [s.state for s in ledger.shards_of("job1")[0].submissions] == [SubmissionState.LOST, SubmissionState.BOOKED]
    check_money(ledger)


def test_enqueued_tokens_hold_back_what_would_pass_the_cap(ledger: Ledger) -> None:
    """A learned cap is kept by all shards together, but one alone is always tried."""
    publish(ledger, shards=3)
    one, two, three = ledger.claim_due(lane=Lane.BATCH, limit=3, lease_s=LEASE_S)
    ledger.learn_enqueued_cap("acc", "m", 300)
    ledger.learn_enqueued_cap("acc", "m", 100)
    intended(ledger, one)
    denied = intend(ledger, two)
    assert isinstance(denied, Denied)
    assert denied.scope == "enqueued tokens"
    assert money(ledger) == (0, 100)
    ledger.learn_enqueued_cap("acc", "m", 500)
    ready = intended(ledger, two)
    assert isinstance(intend(ledger, three), Denied)
    ledger.note_not_sent(ready, 1, due_in_s=9.0, reason="limit")
    intended(ledger, three)


def test_a_refusal_pauses_the_job_in_the_same_commit(ledger: Ledger) -> None:
    """A key, quota or model error stops the job before the next shard can be claimed."""
    publish(ledger, shards=2)
    shard = bring(ledger, ShardState.SUBMITTING)
    ledger.note_not_sent(shard, 1, due_in_s=0.0, reason="401", refused=True, pause="the key is refused")
    job = ledger.job("job1")
    assert job is not None
    assert (job.state, job.reason) == (JobState.PAUSED, "the key is refused")
    assert ledger.claim_due(lane=Lane.BATCH, limit=2, lease_s=LEASE_S) == []
    assert money(ledger) == (0, 0)


def test_no_number_of_processes_passes_a_cap(backend: Backend, ledger: Ledger) -> None:
    """Four processes hold as fast as they can: exactly as many are granted as fit, and every shard is had once."""
    ledger.set_budget("day", 1_700)
    ledger.set_budget("total", 1_000)
    publish(ledger, shards=32, lane=Lane.LIVE)
    workers = [Worker(backend.address, "hammer", "70") for _ in range(4)]
    for worker in workers:
        assert worker.line() == "ready"
    for worker in workers:
        worker.go_on()
    while any(worker.process.poll() is None for worker in workers):
        for limit in ledger.limits():
            assert limit.free_nanos is None or limit.free_nanos >= 0, limit
    granted, denied = map(sum, zip(*(map(int, worker.line().split()) for worker in workers), strict=True))
    for worker in workers:
        worker.end()
    assert (granted, denied) == (1_000 // 70, 32 - 1_000 // 70)
    spent, held = money(ledger)
    assert spent + held == granted * 70
    check_money(ledger)
