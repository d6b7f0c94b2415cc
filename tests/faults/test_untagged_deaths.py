"""Killed at any commit where a batch carries nothing of ours: no row lost, none sent twice, every cent booked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from untagged_kit import MODEL, TOKENS, Deaths, Killed, Rig

from nightmill.ledger import _database
from nightmill.types import JobState, Lane, Usage

ROWS = 3  # of a shard
STORIES = {  # what becomes of the creates, and whether somebody makes a batch as large at the first
    "accepted": (["lost"], False),
    "dropped": (["dropped"], False),
    "twin": (["lost"], True),
    "only a twin": (["dropped"], True),
    "killed creating": (["killed"], True),
}


@contextmanager
def dying(rig: Rig, deaths: Deaths) -> Iterator[None]:
    """The process ends where ``deaths`` says, and another begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_database, "reach", deaths)
        try:
            yield
        except Killed:
            patch.undo()
            rig.again()


def told(folder: Path, story: str, at: int = 0) -> int:
    """One story, its process killed at the ``at``-th point, once; how many points there are."""
    folder.mkdir()
    rig, deaths = Rig(folder), Deaths(at)
    try:
        creates, twin = STORIES[story]
        rig.world.then.extend(creates)

        def at_create(_: str) -> None:
            if twin and not any(not batch.tag for batch in rig.world.made.values()):
                rig.world.foreign(ROWS)

        rig.world.on_create = at_create
        rig.submit(2 * ROWS, ROWS)
        for _ in range(4):  # the points, a create that kills, and what comes after
            with dying(rig, deaths):
                rig.end_well(lambda: nothing_is_lost(rig))
                break
        nothing_is_lost(rig)
        all_is_right(rig)
    finally:
        rig.close()
    return deaths.passed


def nothing_is_lost(rig: Rig) -> None:
    """No row ran twice, no stranger's batch is cancelled, and what may be billed is held or spent."""
    ran = Counter(name.rpartition("-")[2] for batch in rig.world.ours() for name in batch.ids)
    assert all(times == 1 for times in ran.values()), ran
    assert not any(batch.cancelled for batch in rig.world.made.values())
    assert rig.billed() <= sum(rig.spent_and_held())


def all_is_right(rig: Rig) -> None:
    """Every row has its own answer, spent is what was billed, nothing is held."""
    (job_id,) = rig.jobs
    each = rig.mill.home.sheet(MODEL, Lane.BATCH).cost(Usage(*TOKENS))
    assert rig.ledger.find_job(job_id).state is JobState.COMPLETED
    assert all(said and said.startswith(f"said {job_id}-") for said in rig.answers()[job_id])
    assert rig.spent_and_held() == (2 * ROWS * each, 0)
    assert rig.ledger.tally(job_id).unproven_nanos == 0


@pytest.mark.crash
@pytest.mark.parametrize("story", STORIES)
def test_undisturbed(tmp_path: Path, story: str) -> None:
    """Each story comes to its end, all of it right, when nobody is killed beside."""
    assert told(tmp_path / "home", story) > 10


@pytest.mark.req("X1")
def test_killed_at_some_commits(tmp_path: Path) -> None:
    """Our batch and a twin of the same size, both unanswered: killed at every third commit, the end is the same."""
    for at in range(1, told(tmp_path / "0", "twin") + 1, 3):
        told(tmp_path / str(at), "twin", at)


@pytest.mark.crash_full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", STORIES)
def test_killed_at_every_commit(tmp_path: Path, story: str) -> None:
    """Before and after each commit of the ledger: the next process comes to the same end."""
    for at in range(1, told(tmp_path / "0", story) + 1):
        told(tmp_path / str(at), story, at)
