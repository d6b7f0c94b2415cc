"""The embedded ledger as a file: restored, copied, booted, full, read-only, from the future."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_kit import (
    SCOPES,
    Backend,
    a_file,
    booked,
    bring,
    check_money,
    claim,
    connect,
    done,
    everything,
    intend,
    intended,
    money,
    publish,
)
from sqlalchemy import select, update

from nightmill.errors import Conflict, StoreError
from nightmill.ledger import CREATE_LOCK, Denied, Ledger, StoredFile, SubmissionState, _sqlite, schema
from nightmill.types import JobState, Lane, ShardState

OLD_LEDGER = Path(__file__).parents[1] / "data/ledger_revision_1.sql"  # a job that is done, and one at a provider


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def backend(path: Path) -> Backend:
    """These tests are about the embedded ledger alone."""
    return Backend(f"sqlite:{path}")


def backed_up(ledger: Ledger, path: Path) -> Path:
    """A copy of the database as it is now, by SQLite's own backup."""
    copy = path.with_suffix(".backup")
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    assert ledger.jobs()
    return copy


def put_back(copy: Path, path: Path) -> None:
    """The way that keeps the file's inode: the old bytes over the new ones."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    path.write_bytes(copy.read_bytes())


@pytest.fixture
def behind(backend: Backend, path: Path) -> Iterator[Ledger]:
    """A ledger put back to before its shards 0 and 1 were handed over; 2 was never handed over."""
    ledger = backend.open()
    ledger.ensure_budget(1_000, None, None)
    publish(ledger, shards=3, budget=900)
    copy = backed_up(ledger, path)
    bring(ledger, ShardState.WAITING)
    bring(ledger, ShardState.SUBMITTING)
    ledger.take_seqs("job1", 4)
    ledger.close()
    put_back(copy, path)
    restored = backend.open()
    yield restored
    restored.close()


def test_what_may_have_gone_out_since_a_backup_is_in_doubt(behind: Ledger) -> None:
    """A restored ledger looks at the provider before it sends anything again, also when put back in place."""
    assert behind.copied
    shards = behind.shards_of("job1")
    assert {(s.state, s.submission, s.looks, s.fenced) for s in shards} == {(ShardState.IN_DOUBT, 1, 0, False)}
    assert {(s.current.state, s.current.account, s.current.hold_nanos) for s in shards} == {
        (SubmissionState.OPEN, "", 0)
    }
    assert all(s.current.intent_at == behind.find_job("job1").created_at for s in shards)
    assert len(behind.claim_due(lane=Lane.BATCH, limit=9, lease_s=60.0)) == 3


def test_numbers_given_since_a_backup_are_not_given_again(behind: Ledger) -> None:
    """A new shard never has the tag of one that the ledger forgot."""
    assert behind.take_seqs("job1", 1) >= 3 + 4


def test_a_restored_step_further_up_may_be_at_any_provider(backend: Backend, path: Path) -> None:
    """Where batches carry nothing of ours, no other is made before it was looked for, whatever model its job has."""
    ledger = backend.open()
    publish(ledger, shards=2)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE shards SET rung = 1 WHERE tag = 'job1-1'")
    copy = backed_up(ledger, path)
    bring(ledger, ShardState.WAITING)
    bring(ledger, ShardState.WAITING)
    ledger.close()
    put_back(copy, path)
    with contextlib.closing(backend.open()) as restored:
        publish(restored, "job2")
        denied = restored.note_intent(
            restored.claim_one("job2-0", 60.0), to=ShardState.SUBMITTING, account="other|https://x||a|key", model="m",
            price="{}", hold_nanos=1, scopes=SCOPES, intent_at=1.0, alone=True,
        )  # fmt: skip
        assert denied == Denied(CREATE_LOCK, 0, 0, by="job1-1")


def test_a_ledger_is_restored_once(behind: Ledger, backend: Backend) -> None:
    """Opening it again does not bring the doubt back."""
    shard = claim(behind)
    behind.note_not_sent(shard, 1, due_in_s=0.0, reason="looked for, not there", sure=False)
    before = everything(behind)
    again = backend.open()
    assert not again.copied
    assert everything(again) == before
    again.close()


def test_what_is_found_after_a_restore_is_held_and_booked(behind: Ledger) -> None:
    """A batch from after the backup costs real money: its worst case is held in every limit, then booked."""
    scopes = ("job:job1", *SCOPES)
    shard = claim(behind)
    behind.note_terms(shard, account="acc", model="m", price="{}", hold_nanos=100, scopes=scopes)
    behind.note_created(shard, 1, "b1", status="x", due_in_s=0.0)
    assert [money(behind, scope) for scope in scopes] == [(0, 100)] * 4
    behind.note_polled(claim(behind), [(1, {"ended": 1})], due_in_s=0.0, done=True)
    ready = claim(behind)
    assert (ready.price, ready.current.account) == ("{}", "acc")
    behind.settle(ready, done(ready, 60))
    assert [money(behind, scope) for scope in scopes] == [(60, 0)] * 4
    check_money(behind)


def test_what_is_out_is_held_though_no_limit_has_room(behind: Ledger) -> None:
    """Refusing would not bring it back; new holds are refused instead."""
    behind.set_budget("total", 50)
    shard = claim(behind)
    behind.note_terms(shard, account="acc", model="m", price="{}", hold_nanos=100, scopes=SCOPES)
    assert money(behind) == (0, 100)
    publish(behind, "job2")
    other = behind.claim_one("job2-0", 60.0)
    assert isinstance(intend(behind, other, 1), Denied)
    assert booked(behind)["total"] == (0, 100)


def test_a_copy_elsewhere_is_in_doubt_too(backend: Backend, tmp_path: Path, path: Path) -> None:
    """A ledger copied to another folder does not know what the original does meanwhile."""
    ledger = backend.open()
    publish(ledger)
    copy = tmp_path / "copy.db"
    shutil.copyfile(backed_up(ledger, path), copy)
    ledger.close()
    copied = connect(f"sqlite:{copy}")
    assert copied.copied
    assert copied.shards_of("job1")[0].state is ShardState.IN_DOUBT
    copied.close()


def test_an_untouched_ledger_is_believed(backend: Backend) -> None:
    """Closing and opening changes nothing, with work in every state."""
    ledger = backend.open()
    ledger.ensure_budget(1_000, None, None)
    publish(ledger, shards=3)
    bring(ledger, ShardState.WAITING)
    bring(ledger, ShardState.SUBMITTING)
    before = everything(ledger)
    ledger.close()
    again = backend.open()
    assert not again.copied
    assert everything(again) == before
    again.close()


def test_a_live_shard_is_not_put_in_doubt(backend: Backend, path: Path) -> None:
    """Live rows have journals of their own; only a batch can be looked for. The job waits for a person's word."""
    ledger = backend.open()
    ledger.ensure_budget(1_000, None, None)
    publish(ledger, lane=Lane.LIVE)
    copy = backed_up(ledger, path)
    intended(ledger, claim(ledger, Lane.LIVE))
    ledger.close()
    put_back(copy, path)
    restored = backend.open()
    assert restored.copied
    (shard,) = restored.shards_of("job1")
    assert (shard.state, shard.restored) == (ShardState.PLANNED, True)
    job = restored.find_job("job1")
    assert job.state == "paused"
    assert "put back from a backup" in (job.reason or "")
    assert restored.claim_due(lane=Lane.LIVE, limit=9, lease_s=60.0) == []
    restored.resume("job1")
    assert restored.claim_due(lane=Lane.LIVE, limit=9, lease_s=60.0)[0].epoch > shard.epoch
    restored.close()


def test_a_boot_frees_leases_and_begins_looks_anew(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of leases begins again at a boot: all are over, all is due, and no wait counts as waited."""
    ledger = backend.open()
    ledger.ensure_budget(1_000, None, None)
    publish(ledger, shards=3)
    ledger.note_look(bring(ledger, ShardState.IN_DOUBT), looks=2, fenced=True, due=ledger.moment() + 1e6)
    read = ledger.note_fetched(bring(ledger, ShardState.COLLECTING), 1, [StoredFile(a_file("wire/o"), "output")])
    ledger.note_reread(read, due_in_s=1e6)
    bring(ledger, ShardState.SUBMITTING)
    ledger.begin_plan("unfinished", model="m", lane=Lane.BATCH)
    ledger.cool_down("acc", "m", 1e9)
    ledger.heartbeat(1e6)
    ledger.close()
    monkeypatch.setattr(_sqlite, "boot_id", lambda: "another-boot")
    booted = backend.open()
    assert not booted.copied
    claimed = booted.claim_due(lane=Lane.BATCH, limit=9, lease_s=60.0)
    states = (ShardState.IN_DOUBT, ShardState.COLLECTING, ShardState.SUBMITTING)
    seen = {s.state: (s.looks, s.fenced, s.reads, s.reread, s.lease_was_until) for s in claimed}
    assert seen == dict.fromkeys(states, (0, False, 0, False, 0.0))
    assert booted.cooling_until("acc", "m") == 0.0
    assert booted.heartbeat(60.0) == 1
    assert booted.begin_plan("next", model="m", lane=Lane.BATCH) == ["unfinished"]
    booted.close()


def test_a_ledger_that_another_is_just_beginning_is_waited_for(
    path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that start together where there is no ledger yet: none of them is turned away."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as first:
        first.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(_sqlite.time, "sleep", lambda _: first.execute("COMMIT"))
        with contextlib.closing(backend.open()) as ledger:
            assert ledger.jobs() == []


def test_a_ledger_of_an_older_program_goes_on(path: Path, backend: Backend) -> None:
    """What it holds stays as it was, what is new is there, and the old program is told so from then on."""
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(OLD_LEDGER.read_text())
        spent = old.execute("SELECT spent_nanos FROM limits WHERE scope = 'total'").fetchone()
    with contextlib.closing(backend.open()) as ledger:
        jobs = {job.state: job for job in ledger.jobs()}
        assert jobs.keys() == {JobState.COMPLETED, JobState.RUNNING}
        (shard,) = ledger.shards_of(jobs[JobState.RUNNING].id)
        assert (shard.rung, shard.current.unconfirmed, shard.current.hold_nanos > 0) == (0, False, True)
        assert next(limit.spent_nanos for limit in ledger.limits() if limit.scope == "total") == spent[0] > 0
        with ledger._read() as connection:
            known = dict(connection.execute(select(schema.meta.c.key, schema.meta.c.value)).all())
    assert known["revision"] == str(schema.REVISION)


def test_a_ledger_from_a_newer_program_is_refused(backend: Backend) -> None:
    """An old program never writes into what it does not understand."""
    ledger = backend.open()
    publish(ledger)
    with ledger._write("upgrade") as connection:
        newer = update(schema.meta).where(schema.meta.c.key == "revision")
        connection.execute(newer.values(value=str(schema.REVISION + 1)))
    before = everything(ledger)
    with pytest.raises(Conflict, match="newer nightmill") as refused:
        backend.open()
    assert refused.value.fix
    assert everything(ledger) == before
    ledger.close()


def test_a_full_disk_is_said_and_loses_nothing(backend: Backend) -> None:
    """No room: a StoreError that says so, nothing half-written, and it goes on once there is room."""
    ledger = backend.open()
    publish(ledger)
    before = everything(ledger)

    def pages(most: str) -> None:
        with ledger._read() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {most}")

    pages("1")  # clamped to what the file has
    with pytest.raises(StoreError, match="cannot use the ledger") as full:
        publish(ledger, "job2", shards=400)
    assert "full" in full.value.why
    pages("1000000")
    ledger.abandon_plan("job2")
    assert everything(ledger) == before
    publish(ledger, "job2", shards=400)
    ledger.close()


@pytest.mark.parametrize("bad", [b"no database at all, but rather long " * 200, b"\0" * 8192])
def test_a_file_that_is_no_ledger_is_said(path: Path, backend: Backend, bad: bytes) -> None:
    """Something else under the ledger's name is not written over."""
    path.write_bytes(bad)
    with pytest.raises(StoreError, match="cannot use the ledger"):
        backend.open()
    assert path.read_bytes() == bad


@pytest.mark.parametrize("missing", ["folder", "permission"])
def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, missing: str) -> None:
    """No folder, or one that may not be written: a StoreError with what to do."""
    folder = tmp_path / "home"
    if missing == "permission":
        folder.mkdir()
        (folder / "ledger.db").mkdir()  # holds for root too, whom permissions do not stop
    with pytest.raises(StoreError) as refused:
        connect(f"sqlite:{folder / 'ledger.db'}")
    assert refused.value.fix


def test_a_read_only_ledger_can_be_looked_at(backend: Backend, path: Path) -> None:
    """What cannot be written raises a StoreError, and stays as it was."""
    ledger = backend.open()
    publish(ledger)
    before = everything(ledger)
    with ledger._read() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    with pytest.raises(StoreError):
        ledger.pause("job1", "no")
    assert ledger.find_job("job1").reason is None
    assert everything(ledger) == before
    ledger.close()


def test_the_note_beside_the_ledger_only_rises(path: Path) -> None:
    """Two processes hand over at once: the higher count stays, in whatever order they say so."""
    assert _sqlite.handed(path) == 0
    _sqlite.note_handed(path, 7)
    _sqlite.note_handed(path, 5)
    assert _sqlite.handed(path) == 7
    note = next(p for p in path.parent.iterdir() if p.name.endswith("-handovers"))
    assert stat.S_IMODE(os.stat(note).st_mode) == 0o600
    note.unlink()
    assert _sqlite.handed(path) == 0


@pytest.mark.parametrize("name", ["what?mode=memory", "p%41 b", "a#b", "file:x"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    """A path is a path, whatever its letters would mean in a URL."""
    (tmp_path / name).mkdir()
    path = tmp_path / name / "ledger.db"
    ledger = connect(f"sqlite:{path}")
    publish(ledger)
    ledger.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    assert path.stat().st_size > 0
