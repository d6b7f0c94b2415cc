"""Following jobs while they run: what a screen asks for, several times a second, without reading twice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from nightmill.collect import Answers, SoFar
from nightmill.engine import JobKit
from nightmill.errors import Conflict, StoreError, UsageError
from nightmill.files import GROUP_ROWS
from nightmill.ledger import Job, Outside, Shard, Standing, standing_of, with_answers
from nightmill.mill.home import Home, model_of
from nightmill.types import ShardState
from nightmill.wire import ROWS

log = logging.getLogger(__name__)

_COOLING = "{} asks to wait (rate limit); it goes on by itself, and with --rpm or --tpm below the limit evenly"
_UNDER_WAY = (ShardState.SENDING, ShardState.COLLECTING)


@dataclass(frozen=True, slots=True)
class Look:
    """Where a job stands this moment, answers that are not settled yet included."""

    job: Job
    now: Standing  # distinct requests
    in_hand: int  # live calls under way
    item: str  # key of the row that was answered last
    outside: Outside


class Follower:
    """Says where jobs stand while somebody works on them, in this process or in another."""

    def __init__(self, home: Home, job_ids: Sequence[str], *, distinct: bool = True) -> None:
        self._home, self._ids, self._distinct = home, list(job_ids), distinct
        self._kits: dict[str, JobKit] = {}
        self._journals: dict[tuple[str, str], SoFar] = {}  # by job and model
        self._keys: dict[tuple[str, int], list[str | None]] = {}

    def look(self) -> list[Look]:
        """Every job as it stands, but for those that were deleted. Blocks; call it on a thread.

        Raises:
            StoreError: the home cannot be read.
            Conflict: none of the jobs is there any more.
        """
        looks: list[Look] = []
        gone: Conflict | None = None
        for job_id in self._ids:
            try:
                looks.append(self._look(job_id))
            except Conflict as error:
                gone = error
        if gone is not None and not looks:
            raise gone
        return looks

    def _look(self, job_id: str) -> Look:
        home, ledger = self._home, self._home.ledger
        for _ in range(3):  # a shard that settles between the two reads would count twice, or not at all
            tally = ledger.tally(job_id)
            shards = [s for s in ledger.shards_of(job_id, *_UNDER_WAY) if s.lane.is_live]
            if ledger.tally(job_id).states == tally.states:
                break
        job = home.job(job_id)
        now, outside = standing_of(job, tally, distinct=self._distinct), ledger.outside(job_id)
        if not shards:
            return Look(job, now, 0, "", outside)
        try:
            found, cooling = self._under_way(job_id, shards)
        except UsageError:  # its key or its function is not here now; the rest can be told all the same
            return Look(job, now, 0, "", outside)
        if cooling:
            outside = replace(outside, reason=_COOLING.format(cooling))
        return Look(job, _joined(now, found), found.in_hand, self._key(job_id, found.last_row), outside)

    def _under_way(self, job_id: str, shards: Sequence[Shard]) -> tuple[Answers, str]:
        """What the journals of live shards say by now, and the name of a provider that asks to wait, if one does."""
        home, ledger, total, cooling = self._home, self._home.ledger, Answers(), ""
        if job_id not in self._kits:
            self._kits[job_id] = home.open_kit(job_id)
        by_model: dict[str, list[Shard]] = {}
        for shard in shards:
            by_model.setdefault(model_of(self._kits[job_id].job, shard), []).append(shard)
        for model, some in by_model.items():
            kit = self._kits[job_id].at(some[0].rung)
            if (job_id, model) not in self._journals:
                self._journals[job_id, model] = SoFar(
                    home.store, kit.provider, kit.list_sheet, kit.check, self._kits[job_id].ladder
                )
            accounts = {shard.submissions[-1].account for shard in some if shard.submissions}
            if any(ledger.cooling_until(account, kit.provider.model) > ledger.moment() for account in accounts):
                cooling = kit.provider.name
            total.add(self._journals[job_id, model].look(some))
        return total, cooling

    def _key(self, job_id: str, row: int | None) -> str:
        if row is None:
            return ""
        group, place = divmod(row, GROUP_ROWS)
        if (job_id, group) not in self._keys:
            rows = self._home.ledger.files_of(job_id, ROWS)[0]
            try:
                with self._home.store.open(rows.ref) as stream:
                    keys = (
                        pq.ParquetFile(stream)
                        .read_row_group(group, columns=["key"], use_threads=False)
                        .column("key")
                        .to_pylist()
                    )
            except (OSError, StoreError, pa.ArrowException) as error:  # whoever needs the file itself will say so
                log.warning("job %s: its rows cannot be read: %s", job_id, type(error).__name__)
                keys = [None] * GROUP_ROWS
            self._keys = {(job_id, group): keys}
        return self._keys[job_id, group][place] or ""


def standing(home: Home, job: Job) -> Standing:
    """The job in rows and money, answers that are not settled yet included."""
    if job.finished_at is not None:
        return standing_of(job, home.ledger.tally(job.id))
    return Follower(home, [job.id], distinct=False).look()[0].now


def _joined(now: Standing, found: Answers) -> Standing:
    spent = max(0, found.spent_nanos - now.unproven_nanos)  # what is booked as unproven is in both
    return with_answers(
        now, succeeded=found.succeeded, failures=found.failures, tokens_in=found.tokens_in,
        tokens_out=found.tokens_out, spent_nanos=spent, list_nanos=found.list_nanos, unsent=found.unsent,
    )  # fmt: skip
