"""Making a plan a job: interrupted, named, gone on with under other options."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, exact, house, truth

from nightmill.errors import Conflict
from nightmill.mill import RunOptions

ROWS = 4


def options_for(h: House, **more: Any) -> RunOptions:
    """The command that `House.submit` gives, with more options."""
    path = h.folder / f"in-{ROWS}.csv"
    path.write_text("id,text\n" + "".join(f"k{i},word number {i}\n" for i in range(ROWS)))
    given: dict[str, Any] = {
        "max_output": 400,
        "prompt": "Say it: {{ text }}",
        "model": "openai/gpt-4o-mini",
        "lane": "live",
    }
    return RunOptions((str(path),), **(given | more))


def test_ctrl_c_right_after_publishing_keeps_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between the commit that made the plan a job and its return: the job has its files and runs."""
    with house(tmp_path) as h:
        prepared = h.mill.prepare(options_for(h))

        def ctrl_c(_: str) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(h.mill.ledger, "find_job", ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                h.mill.submit(prepared)
        h.mill.discard(prepared)  # as the command line does
        (job,) = h.mill.ledger.jobs()
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.state == "completed"


def test_a_plan_that_was_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before the commit: no job, no plan, no files."""
    with house(tmp_path) as h:
        prepared = h.mill.prepare(options_for(h))

        def ctrl_c(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(h.mill.ledger, "publish_plan", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            h.mill.submit(prepared)
        assert h.sql("SELECT id FROM jobs") == []
        assert not h.mill.store.path(h.mill.store.job_folder(prepared.plan.job_id)).exists()


@pytest.mark.parametrize("late", [False, True])
def test_a_new_job_never_takes_an_unfinished_ones_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """--new --name X while X is unfinished: refused, however late it is seen, and X is not touched."""
    with house(tmp_path) as h:
        first = h.mill.submit(h.mill.prepare(options_for(h, name="nightly")))
        h.mill.ledger.pause(first.id, "for a while")
        if late:  # the name was free when it was looked for
            monkeypatch.setattr(h.mill.ledger, "find_unfinished_name", lambda _: None)
        with pytest.raises(Conflict):
            h.mill.submit(h.mill.prepare(options_for(h, name="nightly", new=True)))
        assert [(job.id, job.state) for job in h.mill.ledger.jobs()] == [(first.id, "paused")]


def test_the_same_command_changes_rates_rule_and_name(tmp_path: Path) -> None:
    """--rpm, --tpm, --concurrency, --on-error and --name count for a job that goes on; what is not said stays."""
    with house(tmp_path) as h:
        first = h.mill.submit(h.mill.prepare(options_for(h, rpm=7.0, tpm=9_000.0, on_error="stop")))
        h.mill.ledger.pause(first.id, "for a while")
        more = {"rpm": 600.0, "concurrency": 3, "name": "nightly"}
        job = h.mill.submit(h.mill.prepare(options_for(h, **more)))
        assert (job.id, job.name, job.state) == (first.id, "nightly", "running")
        assert job.spec == first.spec | {"rpm": 600.0, "concurrency": 3}
        rates = h.mill.open_kit(job.id).rates
        assert (rates.requests_per_minute, rates.tokens_per_minute, rates.in_flight) == (600.0, 9_000.0, 3)
        job = h.mill.submit(h.mill.prepare(options_for(h, on_error="threshold:2")))
        assert (job.name, job.spec["on_error"], job.spec["rpm"]) == ("nightly", "threshold:2", 600.0)
        h.mill.submit(h.mill.prepare(options_for(h, name="other", prompt="Another: {{ text }}")))
        with pytest.raises(Conflict, match="the name other"):
            h.mill.submit(h.mill.prepare(options_for(h, name="other")))
        job = h.run(job)
        truth(h, job, settled=False)
        assert job.state == "completed"


@pytest.mark.parametrize("when", ["planned", "sending"])
def test_a_restored_ledger_sends_no_live_row_again(tmp_path: Path, when: str) -> None:
    """The ledger is put back from before the rows went out: the job pauses; resumed, it uses the answers on disk."""
    rows, database = 30, tmp_path / "home" / "nightmill.db"
    with house(tmp_path) as h:
        job = h.submit(rows, lane="live", concurrency=2)
        copy = tmp_path / "backup.db"

        def backup(*_: Any) -> bool:
            with sqlite3.connect(database) as live, sqlite3.connect(copy) as kept:
                live.backup(kept)
            return True

        if when == "planned":
            backup()
        else:
            keep = h.mill.ledger._note_handed
            h.mill.ledger._note_handed = lambda n: (keep(n), backup())[0]  # type: ignore[method-assign]
        h.run(job)
        billed = h.invoice()["total_nanos"]
        h.mill.close()
        for name in ("nightmill.db-wal", "nightmill.db-shm"):
            (tmp_path / "home" / name).unlink(missing_ok=True)
        copy.replace(database)
        h.open()
        job = h.mill.job(job.id)
        assert (job.state, "put back from a backup" in (job.reason or "")) == ("paused", True)
        h.mill.resume(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert job.counts is not None
        assert job.counts["succeeded"] == rows
        assert h.invoice()["total_nanos"] == billed
