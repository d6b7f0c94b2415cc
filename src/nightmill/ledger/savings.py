"""What was saved against sending every row live: by the discounts of batches and flex, by caches, by equal rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from nightmill.ledger import money
from nightmill.ledger._database import Database
from nightmill.ledger.schema import entries, jobs, shards, submissions
from nightmill.types import JobState, Lane


@dataclass(frozen=True, slots=True)
class Saved:
    """One job, or several together: what its answers cost live at the list price, and what was paid. In nanos.

    ``real_time = paid + saved`` and ``saved`` is the sum of its parts, always. What is still open counts as it settles;
    duplicates count when the job has ended.
    """

    batch_list_nanos: int = 0  # answers that came in batches
    batch_paid_nanos: int = 0
    live_list_nanos: int = 0
    live_paid_nanos: int = 0
    cache_nanos: int = 0  # answers an earlier job had paid for
    duplicates_nanos: int = 0  # rows that share another's answer
    batch_caching_nanos: int = 0  # what providers' caches of prompts took off what was paid
    live_caching_nanos: int = 0
    unproven_nanos: int = 0  # paid, as far as anybody knows, and no answer came for it
    flex_list_nanos: int = 0  # answers of the flex lane
    flex_paid_nanos: int = 0
    flex_caching_nanos: int = 0

    @property
    def batch_nanos(self) -> int:
        """Saved by the batch discount."""
        return self.batch_list_nanos - self.batch_paid_nanos - self.batch_caching_nanos

    @property
    def flex_nanos(self) -> int:
        """Saved by the flex discount."""
        return self.flex_list_nanos - self.flex_paid_nanos - self.flex_caching_nanos

    @property
    def live_nanos(self) -> int:
        """Of live calls: their own price against the list price; mostly nothing."""
        return self.live_list_nanos - self.live_paid_nanos - self.live_caching_nanos

    @property
    def caching_nanos(self) -> int:
        """Saved by what providers had cached of prompts; less than nothing where writing it cost more."""
        return self.batch_caching_nanos + self.flex_caching_nanos + self.live_caching_nanos

    @property
    def real_time_nanos(self) -> int:
        answered = self.batch_list_nanos + self.flex_list_nanos + self.live_list_nanos
        return answered + self.cache_nanos + self.duplicates_nanos

    @property
    def paid_nanos(self) -> int:
        """All that was spent, what is unproven included."""
        return self.batch_paid_nanos + self.flex_paid_nanos + self.live_paid_nanos + self.unproven_nanos

    @property
    def saved_nanos(self) -> int:
        return self.real_time_nanos - self.paid_nanos

    def plus(self, other: Saved) -> Saved:
        return Saved(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class SavingsVerbs(Database):
    """Looks only."""

    def saved(self, job_id: str | None = None) -> dict[str, Saved]:
        """What every job, or one, saved so far; newest first."""
        with self._read() as connection:
            return saved_by(connection, job_id)

    def saved_by_deleted(self) -> Saved:
        """What the jobs saved, all together, that were deleted since."""
        notes = select(entries.c.note).where(entries.c.kind == money.DELETED)
        total = Saved()
        with self._read() as connection:
            for note in connection.execute(notes).scalars():
                total = total.plus(Saved(**json.loads(note).get("saved", {})))
        return total


def saved_by(connection: Connection, job_id: str | None = None) -> dict[str, Saved]:
    """What every job, or one, saved so far; newest first."""
    about = select(jobs.c.id, jobs.c.counts).where(jobs.c.state != JobState.PLANNING)
    if job_id is not None:
        about = about.where(jobs.c.id == job_id)
    rows = connection.execute(about.order_by(jobs.c.id.desc())).all()
    listed, cached = (_sums(connection, job_id, name) for name in ("list_nanos", "caching_nanos"))
    paid = _payments(connection, job_id)
    return {row.id: _saved(row, listed, cached, paid) for row in rows}


def _sums(connection: Connection, job_id: str | None, column: str) -> dict[tuple[str, str], int]:
    """By job and lane."""
    of = (shards.c.job_id, shards.c.lane)
    sums = select(*of, func.sum(shards.c[column])).group_by(*of)
    if job_id is not None:
        sums = sums.where(shards.c.job_id == job_id)
    return {(job, lane): int(nanos) for job, lane, nanos in connection.execute(sums)}


def _payments(connection: Connection, job_id: str | None) -> dict[tuple[str, str], tuple[int, int]]:
    """Spent and unproven by job and lane."""
    of = (submissions.c.job_id, shards.c.lane)
    sums = (
        select(*of, func.sum(submissions.c.spent_nanos), func.sum(submissions.c.unproven_nanos))
        .join(shards, shards.c.tag == submissions.c.tag)
        .group_by(*of)
    )
    if job_id is not None:
        sums = sums.where(submissions.c.job_id == job_id)
    return {(job, lane): (int(spent), int(unproven)) for job, lane, spent, unproven in connection.execute(sums)}


def _saved(
    row: Any, listed: dict[tuple[str, str], int], cached: dict[tuple[str, str], int],
    paid: dict[tuple[str, str], tuple[int, int]],
) -> Saved:  # fmt: skip
    job_id = row.id
    batch, flex, live = (paid.get((job_id, lane), (0, 0)) for lane in (Lane.BATCH, Lane.FLEX, Lane.LIVE))
    counts: dict[str, int] = json.loads(row.counts or "{}")
    return Saved(
        batch_list_nanos=listed.get((job_id, Lane.BATCH), 0), batch_paid_nanos=batch[0] - batch[1],
        live_list_nanos=listed.get((job_id, Lane.LIVE), 0), live_paid_nanos=live[0] - live[1],
        cache_nanos=listed.get((job_id, Lane.CACHE), 0), duplicates_nanos=counts.get("folded_list_nanos", 0),
        batch_caching_nanos=cached.get((job_id, Lane.BATCH), 0), live_caching_nanos=cached.get((job_id, Lane.LIVE), 0),
        unproven_nanos=batch[1] + flex[1] + live[1],
        flex_list_nanos=listed.get((job_id, Lane.FLEX), 0), flex_paid_nanos=flex[0] - flex[1],
        flex_caching_nanos=cached.get((job_id, Lane.FLEX), 0),
    )  # fmt: skip
