"""What may go: finished jobs, answers as they came, notes of files at the provider. Money history never does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update

from nightmill.ledger import money
from nightmill.ledger._database import Database
from nightmill.ledger.records import Job
from nightmill.ledger.savings import Saved, saved_by
from nightmill.ledger.schema import alerts, answered_by, entries, files, jobs, limits, shards, submissions
from nightmill.types import UNFINISHED, Lane

_CAME_BACK = ("output", "error", "journal", "cached", "superseded")
_HAS_FILES = or_(
    submissions.c.file_id.is_not(None), submissions.c.output_file.is_not(None), submissions.c.error_file.is_not(None)
)


@dataclass(frozen=True, slots=True)
class Deletion:
    """A job that was deleted; its files may be there still."""

    job_id: str
    name: str | None


def _as_seen(job: Job) -> Any:
    """The job is as it was when it was read, and finished: nobody works on it."""
    over = jobs.c.state.not_in(list(UNFINISHED))
    return and_(jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.epoch == job.epoch, over)


class HousekeepingVerbs(Database):
    """Deleting and forgetting; only what is finished, and no row that money is counted by."""

    def delete_job(self, job: Job) -> bool:
        """A finished job is no more. What was held, spent and submitted for it stays, with a note of what it was.

        Its files are nobody's from now on. False, and nothing is written: it changed since ``job`` was read.
        """
        with self._write("delete_job") as connection:
            saved = saved_by(connection, job.id).get(job.id, Saved())
            if connection.execute(delete(jobs).where(_as_seen(job)).returning(jobs.c.id)).first() is None:
                return False
            names = ("tokens_in", "tokens_out", "list_nanos")
            sums = connection.execute(
                select(*(func.coalesce(func.sum(shards.c[name]), 0).label(name) for name in names)).where(
                    shards.c.job_id == job.id,
                    shards.c.lane != Lane.CACHE,  # what it cost an earlier job
                )
            ).one()
            known = {"name": job.name, "fingerprint": job.fingerprint, "model": job.model, "lane": job.lane,
                     "rows": job.rows, "state": job.state, "finished_at": job.finished_at,
                     "saved": asdict(saved), **sums._mapping}  # fmt: skip
            money.record(connection, money.DELETED, 0, job_id=job.id, tag=job.id, n=0, note=json.dumps(known))
            for table in (shards, files, alerts, answered_by):
                connection.execute(delete(table).where(table.c.job_id == job.id))
            connection.execute(delete(limits).where(limits.c.scope == f"job:{job.id}"))
        return True

    def deletions(self) -> list[Deletion]:
        """Jobs that were deleted, newest job first."""
        notes = select(entries.c.job_id, entries.c.note).where(entries.c.kind == money.DELETED)
        with self._read() as connection:
            rows = connection.execute(notes.order_by(entries.c.job_id.desc())).all()
        return [Deletion(job_id, json.loads(note)["name"]) for job_id, note in rows]

    def known_jobs(self) -> set[str]:
        """The ids of all jobs, plans in the making included."""
        with self._read() as connection:
            return set(connection.execute(select(jobs.c.id)).scalars())

    def named_files(self, job_id: str) -> set[str]:
        """The paths of all files of a job that the ledger counts on."""
        with self._read() as connection:
            stored = connection.execute(select(files.c.path).where(files.c.job_id == job_id)).scalars().all()
            asked = connection.execute(select(shards.c.path).where(shards.c.job_id == job_id)).scalars().all()
        return {*stored, *asked}

    def forget_wire(self, job: Job) -> list[str]:
        """What came back of a finished job is not counted on any more: its results stand for it. The paths of it.

        Such a job is never sent again and takes in nothing late. Empty: there was nothing, or the job changed.
        """
        mine = and_(files.c.job_id == job.id, files.c.kind.in_(_CAME_BACK))
        with self._write("forget_wire") as connection:
            spec = json.dumps(job.spec | {"wire": "removed"})
            said = update(jobs).where(_as_seen(job)).values(spec=spec, epoch=jobs.c.epoch + 1)
            if connection.execute(said.returning(jobs.c.id)).first() is None:
                return []
            return list(connection.execute(delete(files).where(mine).returning(files.c.path)).scalars())

    def jobs_with_provider_files(self) -> list[str]:
        """Finished jobs of which the provider may still keep files."""
        over = and_(jobs.c.id == submissions.c.job_id, jobs.c.state.not_in(list(UNFINISHED)))
        which = select(submissions.c.job_id).join(jobs, over).where(_HAS_FILES).distinct()
        with self._read() as connection:
            return sorted(connection.execute(which).scalars())

    def note_files_gone(self, tag: str, n: int) -> None:
        """The provider keeps no file of this submission any more."""
        this = and_(submissions.c.tag == tag, submissions.c.n == n)
        with self._write("note_files_gone") as connection:
            connection.execute(update(submissions).where(this).values(file_id=None, output_file=None, error_file=None))
