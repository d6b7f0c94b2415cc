"""A shard's life: legal moves only, every request in exactly one place, doubt never cut short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from ledger_kit import (
    LEASE_S,
    ROWS,
    SCOPES,
    a_file,
    bring,
    check_money,
    claim,
    done,
    everything,
    intended,
    new_shard,
    publish,
)
from sqlalchemy.exc import IntegrityError

from nightmill.errors import LeaseLost
from nightmill.ledger import Booking, Counts, Ledger, Settlement, Shard, StoredFile
from nightmill.types import SHARD_MOVES, FileRef, Lane, ShardState

SETTLED_AS_IT_IS = Settlement(Counts(succeeded=ROWS), ())
MOVES: dict[str, tuple[ShardState, Callable[[Ledger, Shard], object]]] = {
    "submit": (ShardState.SUBMITTING, lambda to, s: to.note_intent(
        s, to=ShardState.SUBMITTING, account="a", model="m", price="{}", hold_nanos=1, scopes=SCOPES, intent_at=0.0)),
    "send": (ShardState.SENDING, lambda to, s: to.note_intent(
        s, to=ShardState.SENDING, account="a", model="m", price="{}", hold_nanos=1, scopes=SCOPES, intent_at=0.0)),
    "doubt": (ShardState.IN_DOUBT, lambda to, s: to.note_doubt(s, due=0.0, reason="r")),
    "created": (ShardState.WAITING, lambda to, s: to.note_created(s, 1, "b", status="x", due_in_s=0.0)),
    "disproven": (ShardState.IN_DOUBT, lambda to, s: to.back_to_doubt(s, due=0.0, reason="r", alert="a")),
    "back": (ShardState.WAITING, lambda to, s: to.back_to_waiting(s)),
    "planned": (ShardState.PLANNED, lambda to, s: to.note_not_sent(s, 1, due_in_s=0.0, reason="r")),
    "ended": (ShardState.COLLECTING, lambda to, s: to.note_polled(s, [], due_in_s=0.0, done=True)),
    "sent": (ShardState.COLLECTING, lambda to, s: to.note_sent_all(s)),
    "settle": (ShardState.SETTLED, lambda to, s: to.settle(s, done(s))),
    "write off": (ShardState.SETTLED, lambda to, s: to.write_off(s)),
}  # fmt: skip
STATES = [state for state in ShardState if state is not ShardState.SETTLED]


@pytest.mark.parametrize("state", STATES)
def test_a_move_that_is_not_in_the_table_is_impossible(ledger: Ledger, state: ShardState) -> None:
    """No verb takes a shard where its state does not lead, and a try changes nothing."""
    publish(ledger, lane=Lane.LIVE if state is ShardState.SENDING else Lane.BATCH)
    shard = bring(ledger, state)
    before = everything(ledger)
    illegal = {name: verb for name, (to, verb) in MOVES.items() if to not in SHARD_MOVES[state]}
    assert illegal
    for verb in illegal.values():
        with pytest.raises(ValueError, match=r"no legal move|cannot be written off"):
            verb(ledger, shard)
    assert everything(ledger) == before


def test_a_settled_shard_stays_settled(ledger: Ledger) -> None:
    """Nothing leads out of settled, with whatever record one comes."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard))
    before = everything(ledger)
    settled = ledger.shards_of("job1")[0]
    for _, verb in MOVES.values():
        for record in (settled, replace(settled, state=shard.state)):
            with pytest.raises((ValueError, LeaseLost)):
                verb(ledger, record)
    assert everything(ledger) == before


def test_a_record_that_lies_about_its_state_changes_nothing(ledger: Ledger) -> None:
    """The state is compared in the database, not believed."""
    publish(ledger)
    shard = bring(ledger, ShardState.SUBMITTING)
    before = everything(ledger)
    with pytest.raises(LeaseLost):
        ledger.settle(replace(shard, state=ShardState.COLLECTING), done(shard))
    assert everything(ledger) == before


def test_the_whole_way_of_a_batch_shard(ledger: Ledger) -> None:
    """What each step wrote is there for the next worker, in another process, years later."""
    job = publish(ledger)
    shard = bring(ledger, ShardState.SUBMITTING)
    ledger.note_upload(shard, 1, "file-1", at=2000.5)
    ledger.note_created(shard, 1, "batch-1", status="validating", due_in_s=0.0)
    waiting = claim(ledger)
    assert (waiting.current.file_id, waiting.current.batch_id, waiting.current.intent_at) == (
        "file-1",
        "batch-1",
        2000.5,
    )
    facts = {"status": "completed", "ended": 1, "total": 10, "completed": 9, "failed": 1, "output_file": "out"}
    ledger.note_polled(waiting, [(1, facts)], due_in_s=0.0, done=True)
    output = StoredFile(a_file("wire/o"), "output", shard.tag, 1, 1)
    fetched = ledger.note_fetched(claim(ledger), 1, [output], [(1, {"error_file": "err"})])
    assert (fetched.reads, fetched.files, fetched.current.error_file) == (1, (output,), "err")
    assert fetched.lease_until > ledger.moment()
    results = StoredFile(a_file("wire/x"), "extra", shard.tag, 1)
    ledger.settle(fetched, done(fetched, files=(results,), extra_answers=2, unknown_ids=3, tokens_in=5,
                                tokens_out=6, tokens_cached=1, list_nanos=80, alerts=(("kind", "words"),)))  # fmt: skip
    tally = ledger.tally(job.id)
    assert (tally.counts, tally.sent, tally.open) == (Counts(succeeded=ROWS), ROWS, 0)
    assert (tally.extra_answers, tally.unknown_ids, tally.tokens_in, tally.tokens_out) == (2, 3, 5, 6)
    assert (tally.tokens_cached, tally.list_nanos, tally.states) == (1, 80, {"settled": 1})
    assert ledger.alerts_of(job.id) == [("kind", shard.tag, "words")]
    assert {f.ref.path for f in ledger.files_of(job.id, "output", "extra")} == {"wire/o", "wire/x"}


def test_every_request_has_an_outcome(ledger: Ledger) -> None:
    """A settlement that forgets or invents a request is refused by the database itself."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    before = everything(ledger)
    for counts in (Counts(succeeded=ROWS - 1), Counts(succeeded=ROWS, missing=1), Counts()):
        with pytest.raises(IntegrityError):
            ledger.settle(shard, done(shard, counts=counts))
    assert everything(ledger) == before


def test_leftovers_are_born_with_the_settlement(ledger: Ledger) -> None:
    """What goes out again is in new shards by the commit that settles the old one, with its history."""
    job = publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    left = new_shard("job1-1", count=4, attempt=2, missings=1, expiries=1, splits=2, due_in_s=0.0)
    settlement = done(shard, counts=Counts(succeeded=6, failed=2, missing=2), resent=Counts(failed=2, missing=2),
                      leftovers=(left,), failures={"server_error": 1})  # fmt: skip
    ledger.settle(shard, settlement)
    (again,) = ledger.shards_of(job.id, ShardState.PLANNED)
    assert (again.tag, again.count, again.attempt, again.missings, again.expiries, again.splits) == (
        "job1-1",
        4,
        2,
        1,
        1,
        2,
    )
    tally = ledger.tally(job.id)
    assert (tally.counts, tally.open, tally.sent) == (Counts(succeeded=6), 4, ROWS)
    assert tally.failures == {"server_error": 1}


@pytest.mark.parametrize("left", [(), (new_shard("job1-1", count=1),), (new_shard("job1-1", count=3),)])
def test_leftovers_hold_what_goes_out_again(ledger: Ledger, left: tuple[object, ...]) -> None:
    """No request is lost or doubled between a shard and what is left over from it."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    before = everything(ledger)
    settlement = done(shard, counts=Counts(succeeded=8, failed=2), resent=Counts(failed=2), leftovers=left)
    with pytest.raises(ValueError, match="go out again"):
        ledger.settle(shard, settlement)
    assert everything(ledger) == before


def test_a_settlement_is_written_whole_or_not_at_all(ledger: Ledger) -> None:
    """A leftover whose tag exists already stops the settlement, money included."""
    publish(ledger, shards=2)
    shard = bring(ledger, ShardState.COLLECTING)
    before = everything(ledger)
    settlement = done(shard, counts=Counts(succeeded=8, failed=2), resent=Counts(failed=2),
                      leftovers=(new_shard("job1-1", count=2),))  # fmt: skip
    with pytest.raises(IntegrityError):
        ledger.settle(shard, settlement)
    assert everything(ledger) == before


def test_a_planned_shard_is_cut_in_halves(ledger: Ledger) -> None:
    """The halves take its place at once and hold what it held."""
    job = publish(ledger)
    shard = claim(ledger)
    ledger.recut(shard, [new_shard("job1-1", count=5), new_shard("job1-2", first=5, count=5)])
    assert [s.tag for s in ledger.shards_of(job.id)] == ["job1-1", "job1-2"]
    assert ledger.tally(job.id).open == ROWS
    assert claim(ledger).tag == "job1-1"


@pytest.mark.parametrize("counts", [(5, 4), (5, 6), (ROWS,) * 2, ()])
def test_a_cut_loses_and_doubles_nothing(ledger: Ledger, counts: tuple[int, ...]) -> None:
    """Pieces that do not add up are refused."""
    publish(ledger)
    shard = claim(ledger)
    before = everything(ledger)
    with pytest.raises(ValueError, match="cannot be cut"):
        ledger.recut(shard, [new_shard(f"job1-{i + 1}", count=n) for i, n in enumerate(counts)])
    assert everything(ledger) == before


def test_only_a_planned_shard_is_cut(ledger: Ledger) -> None:
    """Once any of a shard may have run it is never cut anew."""
    publish(ledger)
    shard = bring(ledger, ShardState.IN_DOUBT)
    with pytest.raises(ValueError, match="cannot be cut"):
        ledger.recut(shard, [new_shard("job1-1")])
    assert [s.tag for s in ledger.shards_of("job1")] == [shard.tag]


def test_a_cancel_cuts_no_doubt_short(ledger: Ledger) -> None:
    """Looks and second reads keep their time: sooner they would prove nothing."""
    publish(ledger, shards=3)
    looking = bring(ledger, ShardState.IN_DOUBT)
    due = ledger.moment() + 500.0
    ledger.note_look(looking, looks=2, fenced=True, due=due)
    ledger.note_reread(bring(ledger, ShardState.COLLECTING), due_in_s=500.0)
    ledger.note_created(bring(ledger, ShardState.SUBMITTING), 1, "b", status="x", due_in_s=500.0)
    ledger.request_cancel("job1")
    (waiting,) = ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S)
    assert (waiting.state, waiting.cancel_requested) == (ShardState.WAITING, True)
    still = ledger.shard(looking.tag)
    assert still is not None
    assert (still.due, still.looks, still.fenced) == (due, 2, True)


def test_a_new_doubt_begins_its_looks_anew(ledger: Ledger) -> None:
    """Looks for one submission say nothing of the next."""
    publish(ledger)
    ledger.note_look(bring(ledger, ShardState.IN_DOUBT), looks=2, fenced=True, due=0.0)
    shard = claim(ledger)
    assert (shard.looks, shard.fenced) == (2, True)
    ledger.note_not_sent(shard, 1, due_in_s=0.0, reason="not there", sure=False)
    again = intended(ledger, claim(ledger))
    assert (again.looks, again.fenced, again.submission) == (0, False, 2)
    ledger.note_doubt(again, due=0.0, reason="r")
    shard = claim(ledger)
    assert (shard.looks, shard.fenced) == (0, False)


def test_waits_and_refusals_are_counted_apart(ledger: Ledger) -> None:
    """Limits are no attempts: only unexplained refusals count towards a pause."""
    publish(ledger)
    for refused in (False, False, True):
        ledger.note_not_sent(bring(ledger, ShardState.SUBMITTING), ledger.shards_of("job1")[0].submission,
                             due_in_s=0.0, reason="r", refused=refused)  # fmt: skip
    shard = claim(ledger)
    assert (shard.waits, shard.refusals, shard.attempt) == (2, 1, 1)
    ledger.note_created(intended(ledger, shard), 4, "b", status="x", due_in_s=0.0)
    assert claim(ledger).waits == 0


def test_reading_twice_is_noted_once_each(ledger: Ledger) -> None:
    """A second read is asked for, remembered, and over when it was made."""
    publish(ledger)
    shard = ledger.note_fetched(bring(ledger, ShardState.COLLECTING), 1, [])
    ledger.note_reread(shard, due_in_s=0.0)
    again = claim(ledger)
    assert (again.reads, again.reread) == (1, True)
    assert (ledger.note_fetched(again, 2, []).reads, ledger.shards_of("job1")[0].reread) == (2, False)


def test_a_live_shard_goes_on_where_it_was(ledger: Ledger) -> None:
    """Half-sent, given back, claimed again: same submission, both journals, one hold."""
    publish(ledger, lane=Lane.LIVE)
    first = StoredFile(a_file("wire/1"), "journal", "job1-0", 1)
    shard = ledger.note_intent(claim(ledger, Lane.LIVE), to=ShardState.SENDING, account="a", model="m", price="{}",
                               hold_nanos=100, scopes=SCOPES, intent_at=1.0, journal=first)  # fmt: skip
    assert isinstance(shard, Shard)
    ledger.release(shard)
    again = claim(ledger, Lane.LIVE)
    assert (again.state, again.submission, again.files) == (ShardState.SENDING, 1, (first,))
    both = ledger.open_journal(again, StoredFile(a_file("wire/2"), "journal", "job1-0", 1))
    ready = ledger.note_sent_all(both)
    assert [f.ref.path for f in ready.files] == ["wire/1", "wire/2"]
    ledger.settle(ready, done(ready))
    check_money(ledger)


@pytest.mark.parametrize("before", [0, 1])
def test_a_live_shard_comes_back_as_it_is_stored(ledger: Ledger, before: int) -> None:
    """What a verb hands back without reading it again is what the next reader finds."""
    publish(ledger, lane=Lane.LIVE)
    for _ in range(before):
        ledger.note_not_sent(bring(ledger, ShardState.SENDING), 1, due_in_s=0.0, reason="r")
    journals = [StoredFile(a_file(f"wire/{n}"), "journal", "job1-0", before + 1, n) for n in (1, 2)]
    sending = ledger.note_intent(claim(ledger, Lane.LIVE), to=ShardState.SENDING, account="a", model="m", price="{}",
                                 hold_nanos=100, scopes=SCOPES, intent_at=1.0, journal=journals[0])  # fmt: skip
    assert isinstance(sending, Shard)
    assert sending == ledger.shard("job1-0")
    both = ledger.open_journal(sending, journals[1])
    assert both == ledger.shard("job1-0")
    ready = ledger.note_sent_all(both, [FileRef("wire/2", 77, "sum")])
    assert ready == ledger.shard("job1-0")
    assert ready.files[1].ref == FileRef("wire/2", 77, "sum")


def test_cached_answers_are_settled_without_money(ledger: Ledger) -> None:
    """What an earlier job paid for needs no submission."""
    publish(ledger, lane=Lane.CACHE)
    ledger.settle(claim(ledger, Lane.CACHE), SETTLED_AS_IT_IS)
    tally = ledger.tally("job1")
    assert (tally.counts.succeeded, tally.sent, tally.spent_nanos) == (ROWS, 0, 0)


def test_how_many_cost_money_now_is_known(ledger: Ledger) -> None:
    """A job with something in flight waits for it; a paused one is left alone only when nothing is to collect."""
    publish(ledger, shards=2)
    assert (ledger.in_flight("job1"), ledger.to_collect("job1")) == (0, 0)
    shard = bring(ledger, ShardState.COLLECTING)
    assert (ledger.in_flight("job1"), ledger.to_collect("job1")) == (1, 1)
    ledger.settle(shard, done(shard))
    assert (ledger.in_flight("job1"), ledger.to_collect("job1")) == (0, 0)
    publish(ledger, "job2", lane=Lane.LIVE)
    bring(ledger, ShardState.SENDING)
    assert (ledger.in_flight("job2"), ledger.to_collect("job2")) == (1, 0)


def test_a_booking_counts_its_calls(ledger: Ledger) -> None:
    """Calls costed so far add up over submissions and jobs."""
    publish(ledger, shards=2)
    for calls in (7, 9):
        shard = bring(ledger, ShardState.COLLECTING)
        ledger.settle(shard, Settlement(Counts(succeeded=ROWS), (Booking(1, 5, 0, calls),)))
    assert ledger.calls() == 16
