"""Exactly once where a batch carries nothing of ours: one create at a time, and only results prove whose it is."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from untagged_kit import Killed, Rig

from nightmill.errors import Conflict, UsageError
from nightmill.types import JobState, Lane, ShardState

ROWS = 6
LOOKED_S = 200.0  # the last look is over


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def settled(rig: Rig) -> None:
    """Every row answered with its own answer, once, at what it cost."""
    rig.finish()
    for job_id, answers in rig.answers().items():
        job = rig.ledger.find_job(job_id)
        assert job.state is JobState.COMPLETED
        assert all(said and said.startswith(f"said {job_id}-") for said in answers), answers
        tally = rig.ledger.tally(job_id)
        assert (tally.counts.succeeded, tally.unproven_nanos, tally.unknown_ids) == (job.rows, 0, 0)
    assert rig.spent_and_held() == (rig.billed(), 0)


def test_a_lost_answer_is_found_by_time_and_size_and_proven_by_its_results(rig: Rig) -> None:
    """Made, and its answer lost: taken for the shard's after the last look, unconfirmed, and confirmed by the ids."""
    rig.world.then.append("lost")
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.unconfirmed) == (ShardState.WAITING, True)
    assert "its results will prove it" in (shard.reason or "")
    settled(rig)
    (shard,) = rig.shards()
    assert not shard.current.unconfirmed
    assert len(rig.world.made) == 1
    assert rig.alerts(shard.tag) == []


def test_nothing_listed_stays_in_doubt_with_its_hold(rig: Rig) -> None:
    """Not made, and nobody says so: no second create, the hold stays, one alert; --resend sends it once."""
    rig.world.then.append("dropped")
    rig.submit(ROWS, ROWS)
    rig.work(1800)
    (shard,) = rig.shards()
    assert shard.state is ShardState.IN_DOUBT
    assert "no batch of 6 requests is listed" in (shard.reason or "")
    assert rig.alerts(shard.tag) == ["in_doubt"]
    assert rig.world.made == {}
    assert rig.spent_and_held()[1] == shard.current.hold_nanos > 0
    rig.resolve(shard.tag, resend=True)
    settled(rig)
    assert len(rig.world.made) == 1


def test_two_alike_are_told_apart_by_their_results(rig: Rig) -> None:
    """A stranger's batch of the same size, made meanwhile: nobody guesses; once both have ended the ids decide."""
    rig.world.then.append("lost")
    rig.submit(ROWS, ROWS)
    rig.work(10)
    rig.world.foreign(ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    assert shard.state is ShardState.IN_DOUBT
    assert "2 batches of 6 requests may be it (batch_0, batch_1)" in (shard.reason or "")
    assert rig.alerts(shard.tag) == ["in_doubt"]
    settled(rig)
    assert not any(batch.cancelled for batch in rig.world.made.values())


def test_a_strangers_batch_is_disproven_and_never_paid(rig: Rig) -> None:
    """Ours was never made, and one of the same size was: taken for ours, disproven, and excluded for ever."""
    rig.world.then.append("dropped")
    rig.submit(ROWS, ROWS)
    rig.work(10)
    theirs = rig.world.foreign(ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.batch_id) == (ShardState.WAITING, theirs.id)
    theirs.ended = True
    rig.work(1800)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.batch_id, shard.current.not_ours) == (ShardState.IN_DOUBT, None, (theirs.id,))
    assert rig.alerts(shard.tag) == ["not_ours"]
    assert (rig.spent_and_held()[0], shard.files) == (0, ())
    assert not list(rig.mill.store.path(rig.mill.store.job_folder(shard.job_id)).glob("wire/*"))
    with pytest.raises(UsageError, match="is not that of shard"):
        rig.resolve(shard.tag, adopt=theirs.id)
    fetched = rig.world.fetches
    rig.work(1800)
    assert rig.world.fetches == fetched
    rig.resolve(shard.tag, resend=True)
    settled(rig)


def test_what_was_there_before_is_never_taken_for_ours(rig: Rig) -> None:
    """A stranger's batch of the same size, made a moment before the create: it is no candidate."""
    theirs = rig.world.foreign(ROWS, age_s=20.0)
    rig.world.then.append("dropped")
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.not_ours) == (ShardState.IN_DOUBT, (theirs.id,))
    assert "no batch of 6 requests" in (shard.reason or "")


@pytest.mark.parametrize("skew_s", [-7200.0, 7200.0])
def test_a_wrong_clock_hides_no_batch(rig: Rig, skew_s: float) -> None:
    """Our clock is hours off: the provider's own counts, from before the first create."""
    rig.world.skew_s = skew_s
    rig.world.foreign(ROWS, age_s=5.0)
    rig.world.then.append("lost")
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    assert (shard.current.batch_id, shard.current.unconfirmed) == ("batch_1", True)
    settled(rig)


def test_one_create_at_a_time_and_none_while_another_is_in_doubt(rig: Rig) -> None:
    """Until the last look for a shard no other is created on the account, of whatever job; waiting is no attempt."""
    asked: list[float] = []
    rig.world.on_create = lambda _: asked.append(rig.now)
    rig.world.then.append("lost")
    rig.submit(4 * ROWS, ROWS)
    rig.submit(ROWS, ROWS, "other")
    rig.work(100)
    first, *others = rig.shards()
    assert (first.state, len(asked)) == (ShardState.IN_DOUBT, 1)
    assert {(s.state, s.waits, s.attempt) for s in others} == {(ShardState.PLANNED, 0, 1)}
    assert all(f"waits until shard {first.tag}" in (s.reason or "") for s in others)
    rig.work(LOOKED_S)
    assert rig.shard(first.tag).current.unconfirmed
    settled(rig)
    assert min(asked[1:]) >= 120.0


def test_no_create_is_as_large_as_one_in_doubt(rig: Rig) -> None:
    """After the last look the others go out, in other sizes, so that what is found later can only be the one."""
    rig.world.then.append("dropped")
    rig.submit(3 * ROWS, ROWS)
    rig.work(1800)
    doubtful = rig.shards(ShardState.IN_DOUBT)
    assert [s.count for s in doubtful] == [ROWS]
    assert {len(batch.ids) for batch in rig.world.made.values()} == {ROWS // 2}
    rig.resolve(doubtful[0].tag, resend=True)
    settled(rig)


def test_one_row_cannot_be_cut_and_waits(rig: Rig) -> None:
    """As many rows as one in doubt, and no smaller size: it waits, and goes out when the doubt is over."""
    rig.world.then.append("dropped")
    rig.submit(2, 1)
    rig.work(1800)
    assert [s.state for s in rig.shards()] == [ShardState.IN_DOUBT, ShardState.PLANNED]
    assert "is in doubt and as large" in (rig.shards()[1].reason or "")
    rig.resolve(rig.shards()[0].tag, resend=True)
    settled(rig)
    assert len(rig.world.made) == 2


def test_an_unproven_batch_is_never_cancelled(rig: Rig) -> None:
    """A cancelled job's batch that may be somebody else's runs to its end; what it brings is kept and paid."""
    rig.world.then.append("lost")
    job = rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    rig.mill.cancel(job)
    rig.work(3600)
    (batch,) = rig.world.made.values()
    assert not batch.cancelled
    rig.finish()
    assert rig.ledger.tally(job.id).counts.succeeded == ROWS
    assert rig.spent_and_held() == (rig.billed(), 0)


def test_a_batch_that_is_certainly_ours_is_cancelled(rig: Rig) -> None:
    """Its create was answered: nothing is doubtful about it."""
    job = rig.submit(ROWS, ROWS)
    rig.work()
    rig.mill.cancel(job)
    rig.work(60)
    (batch,) = rig.world.made.values()
    assert batch.cancelled


@pytest.mark.parametrize("decision", ["adopt", "resend", "write_off"])
def test_a_batch_listed_late(rig: Rig, decision: str) -> None:
    """Listed only after the last look: a person adopts it, and its ids prove it; or else it is found before the end."""
    rig.world.then.append("lost")
    rig.world.lag_s.append(500.0)
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    assert shard.state is ShardState.IN_DOUBT
    rig.resolve(shard.tag, **({"adopt": "batch_0"} if decision == "adopt" else {"resend": decision == "resend"}))
    assert rig.shards()[0].current.unconfirmed is (decision == "adopt")
    rig.work(3600)
    settled(rig)
    assert len(rig.world.made) == (2 if decision == "resend" else 1)


def test_a_person_is_proven_like_a_look(rig: Rig) -> None:
    """--adopt of a stranger's batch: refused by its size, else disproven by its results; nothing of it is paid."""
    rig.world.then.append("dropped")
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    wrong, other = rig.world.foreign(ROWS + 1), rig.world.foreign(ROWS)
    with pytest.raises(UsageError, match="is not that of shard") as refused:
        rig.resolve(shard.tag, adopt=wrong.id)
    assert "it has 7 requests, the shard 6" in refused.value.why
    said = rig.resolve(shard.tag, adopt=other.id)
    assert "its results will prove" in said
    other.ended = True
    rig.work(3600)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.not_ours, rig.spent_and_held()[0]) == (ShardState.IN_DOUBT, (other.id,), 0)
    rig.resolve(shard.tag, resend=True)
    settled(rig)


def test_results_that_are_gone_prove_nothing(rig: Rig) -> None:
    """Neither for nor against: read twice, then in doubt again with its hold, until a person decides."""
    rig.world.then.append("lost")
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (batch,) = rig.world.made.values()
    batch.ended = batch.gone = True
    rig.work(3600)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.not_ours) == (ShardState.IN_DOUBT, (batch.id,))
    (alert,) = [text for _, _, text in rig.ledger.alerts_of(shard.job_id)]
    assert f"batch {batch.id} was taken for its, and has no results any more" in alert
    assert rig.spent_and_held()[1] == shard.current.hold_nanos


def test_an_earlier_try_that_ran_after_all_is_found_before_the_shard_settles(rig: Rig) -> None:
    """--resend of what was there and listed late: both are collected and booked, the second is told."""
    rig.world.then.append("lost")
    rig.world.lag_s.append(500.0)
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    rig.resolve(shard.tag, resend=True)
    rig.work(1000)
    rig.world.made["batch_1"].ended = True
    rig.work(3600)
    (shard,) = rig.shards()
    assert (shard.state, shard.reason) == (
        ShardState.COLLECTING,
        "waits for batch batch_0 to end: its results tell whether it is an earlier try of this shard",
    )
    settled(rig)
    assert rig.alerts(shard.tag) == ["in_doubt", "second_batch"]


def overtake(rig: Rig) -> None:
    """During the next create another worker takes the shard over, and comes to doubt it."""

    def overtaken(_: str) -> None:
        rig.world.on_create = lambda _: None
        rig.now += 1000.0  # the lease is long over
        (shard,) = rig.ledger.claim_due(lane=Lane.BATCH, limit=1, lease_s=100.0)
        other = Thread(target=rig.step, args=(shard,))
        other.start()
        other.join()

    rig.world.on_create = overtaken


def test_a_stopped_workers_answer_is_heard(rig: Rig) -> None:
    """A create answered after another worker took over: its id ends the doubt, without any guess."""
    rig.submit(ROWS, ROWS)
    overtake(rig)
    rig.turn()
    (shard,) = rig.shards()
    assert (shard.state, shard.current.batch_id) == (ShardState.IN_DOUBT, "batch_0")
    with pytest.raises(Conflict, match="batch batch_0 is that of shard"):
        rig.resolve(shard.tag, resend=True)
    settled(rig)
    assert len(rig.world.made) == 1


@pytest.mark.parametrize("is_over", [False, True])
def test_an_answer_after_a_persons_word_is_booked(rig: Rig, is_over: bool) -> None:
    """Sent again by a person, and then the first create is answered after all: both are collected and booked."""
    rig.submit(ROWS, ROWS)
    rig.world.then.append("dropped")
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    rig.resolve(shard.tag, resend=True)
    if is_over:
        rig.end_well(rig.world.end_all)
    first = rig.world.make(shard.tag, [f"{shard.tag}-{row}" for row in range(ROWS)])
    assert rig.ledger.note_answered(shard.tag, 1, first.id, status="x")
    rig.world.end_all()
    rig.end_well(rig.world.end_all)
    settled(rig)
    assert len(rig.world.ours()) == 2


def test_a_batch_that_is_not_to_be_seen_for_once_is_not_given_up(rig: Rig) -> None:
    """An unproven batch that one poll does not know, and the next does: it is waited for."""
    rig.world.then.append("lost")
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    rig.world.unseen = 1
    rig.work(1000)
    (shard,) = rig.shards()
    assert (shard.state, shard.current.unconfirmed, shard.current.ended) == (ShardState.WAITING, True, False)
    settled(rig)


@pytest.mark.parametrize("skew_s", [-7200.0, 7200.0])
def test_a_wrong_clock_hides_no_batch_from_another_process(rig: Rig, skew_s: float) -> None:
    """The provider's clock is not known yet when the next process makes the last look."""
    rig.world.skew_s = skew_s
    rig.world.then.append("lost")
    rig.submit(ROWS, ROWS)
    rig.work(50)
    rig.again()
    rig.work(LOOKED_S)
    assert rig.shards()[0].current.unconfirmed
    settled(rig)


def test_killed_before_it_heard(rig: Rig) -> None:
    """The worker ends during its create: another process finds what it made, and proves it."""
    rig.world.then.append("killed")
    rig.submit(2 * ROWS, ROWS)
    with pytest.raises(Killed):
        rig.turn(1)
    rig.again()
    rig.work(400)
    assert [s.current.unconfirmed for s in rig.shards()] == [True, False, False]
    assert [len(batch.ids) for batch in rig.world.made.values()] == [ROWS, ROWS // 2, ROWS // 2]
    settled(rig)


def test_a_list_that_cannot_be_read_concludes_nothing(rig: Rig) -> None:
    """No look, no conclusion: nothing else is created, after a while a person is told; then all comes right."""
    rig.world.then.append("lost")
    rig.submit(2 * ROWS, ROWS)
    rig.turn(1)
    rig.world.deaf = True
    rig.work(1000)
    assert len(rig.world.made) == 1
    first, second = rig.shards()
    assert (rig.alerts(first.tag), second.state) == (["in_doubt"], ShardState.PLANNED)
    rig.world.deaf = False
    rig.work(3600)
    settled(rig)


def test_without_a_list_nothing_is_created(rig: Rig) -> None:
    """What could not be looked for is not sent: the hold goes back, and it is tried again."""
    rig.world.deaf = True
    rig.submit(ROWS, ROWS)
    rig.work(60)
    assert (rig.world.made, rig.spent_and_held()) == ({}, (0, 0))
    rig.world.deaf = False
    settled(rig)


def test_a_ledger_put_back_from_a_backup(rig: Rig) -> None:
    """Sent after the backup: all is in doubt at once and of one size; nobody guesses, the results tell."""
    rig.submit(2 * ROWS, ROWS)
    database = rig.folder / "home" / "nightmill.db"
    copy = rig.folder / "backup.db"
    with contextlib.closing(sqlite3.connect(database)) as live, contextlib.closing(sqlite3.connect(copy)) as kept:
        live.backup(kept)
    rig.work(20)
    assert len(rig.world.made) == 2
    rig.close()
    for name in ("nightmill.db-wal", "nightmill.db-shm"):
        database.with_name(name).unlink(missing_ok=True)
    copy.replace(database)
    rig.open()
    rig.work(LOOKED_S)
    assert [s.state for s in rig.shards()] == [ShardState.IN_DOUBT] * 2
    reasons = [s.reason or "" for s in rig.shards()]
    assert all("2 batches of 6 requests may be it" in reason for reason in reasons), reasons
    settled(rig)
    assert len(rig.world.made) == 2


def test_an_earlier_try_answers_a_later_doubt(rig: Rig) -> None:
    """--resend of what was there, and nobody knows of the second create either: results that name the shard end it."""
    rig.world.then.extend(["lost", "dropped"])
    rig.world.lag_s.append(500.0)
    rig.submit(ROWS, ROWS)
    rig.work(LOOKED_S)
    (shard,) = rig.shards()
    rig.resolve(shard.tag, resend=True)
    rig.work(1000)
    (shard,) = rig.shards()
    assert (shard.state, shard.submission) == (ShardState.IN_DOUBT, 2)
    settled(rig)
    assert len(rig.world.made) == 1
