"""A checkpoint: where one job stands, word by word, in a file that is kept up to date while it runs.

What was read once is kept, encoded, by the group of rows it belongs to. A look reads those groups anew in which a
shard has moved on or is being sent, so that it costs what is under way and not what is done.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path

from nightmill.engine import JobKit, results_of
from nightmill.files import GROUP_ROWS
from nightmill.ledger import Shard, Standing
from nightmill.mill import reading
from nightmill.mill.following import standing
from nightmill.mill.home import Home
from nightmill.sinks import Target, save
from nightmill.sinks.checkpoints import Words, rendered
from nightmill.types import ShardState
from nightmill.wire import BAD, ROWS, TWINS

_MOST_GROUPS = 10  # read in one go
_Mark = tuple[ShardState, int, int]


class Checkpoint:
    """The checkpoint of one job in one file. Not for two threads at once."""

    def __init__(self, home: Home, job_id: str, path: Path) -> None:
        self._home, self._job_id, self._target = home, job_id, Target("checkpoint", path)
        self._kit: JobKit | None = None
        self._marks: dict[str, _Mark] = {}  # shards as they were when their rows were read
        self._words: dict[int, Words] = {}  # by group of rows
        self._written: Standing | None = None

    def keep(self, now: Standing) -> None:
        """Bring the file up to date with a running job, if anything came. Raises StoreError, UsageError."""
        if now != self._written:
            self._look()
            self._write(now)

    def finish(self) -> None:
        """Write what there is of every row: rows that share another's answer, too. Raises StoreError, UsageError."""
        job = self._home.job(self._job_id)
        batches = reading.results(self._home, job)
        self._words = dict(enumerate(Words.of(batch) for batch in batches))
        self._write(standing(self._home, job))

    def _look(self) -> None:
        home = self._home
        self._kit = kit = self._kit or home.open_kit(self._job_id)
        shards = home.ledger.shards_of(self._job_id)
        results = results_of(home.store, kit, shards, home.ledger.files_of(self._job_id, ROWS, TWINS, BAD))
        for groups in _runs(self._stale(shards)):
            first = groups[0] * GROUP_ROWS
            end = min((groups[-1] + 1) * GROUP_ROWS, results.rows)
            for group, batch in zip(groups, results.batches(first, end), strict=True):
                self._words[group] = Words.of(batch)
        self._marks = {shard.tag: _mark(shard) for shard in shards}

    def _stale(self, shards: Sequence[Shard]) -> list[int]:
        """The groups of rows of which more may be known now, in order."""
        groups = set[int]()
        for shard in shards:
            is_sent = shard.lane.is_live and shard.state is ShardState.SENDING
            if shard.files and (is_sent or self._marks.get(shard.tag) != _mark(shard)):
                groups.update(range(shard.first // GROUP_ROWS, shard.last // GROUP_ROWS + 1))
        return sorted(groups)

    def _write(self, now: Standing) -> None:
        job = self._home.job(self._job_id)
        began = dt.datetime.fromtimestamp(job.started_at or job.created_at, dt.UTC)
        words = (self._words[group] for group in sorted(self._words))
        tokens, at = now.tokens_in + now.tokens_out, dt.datetime.now(dt.UTC)
        save(
            self._target,
            rendered(job.id, words, began=began, spent_nanos=now.spent_nanos, tokens=tokens, at=at),
        )
        self._written = now


def _mark(shard: Shard) -> _Mark:
    return shard.state, shard.submission, len(shard.files)


def _runs(groups: Sequence[int]) -> Iterator[list[int]]:
    """Groups that stand side by side, together."""
    run: list[int] = []
    for group in groups:
        if run and (group != run[-1] + 1 or len(run) == _MOST_GROUPS):
            yield run
            run = []
        run.append(group)
    if run:
        yield run
