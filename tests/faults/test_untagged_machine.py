"""Lost answers, strangers' batches, late lists, deaths, decisions, in any order: nothing runs twice, all is booked."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from untagged_kit import MODEL, TOKENS, Deaths, Killed, Made, Rig

from nightmill.errors import UsageError
from nightmill.ledger import Shard, _database
from nightmill.types import JobState, Lane, ShardState, Usage

SIZES = [1, 2, 3, 4]
AGAIN = st.sampled_from([0] * 4 + list(range(1, 9)))  # at which commit the process ends; 0: it lives on


class Untagged(RuleBasedStateMachine):
    """Two jobs whose shards are as large as those of others, and a provider that shows times and sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.rig = Rig(self.folder)
        self.rig.world.on_create = self.at_create
        self.resent: Counter[str] = Counter()  # by a person's word
        self.written_off = 0

    @initialize(size=st.sampled_from([2, 3, 4]))
    def begin(self, size: int) -> None:
        self.rig.submit(2 * size, size)
        self.rig.submit(4, 4, "other")

    # -- what the world does

    @rule(
        what=st.sampled_from(["lost", "lost", "dropped", "never", "killed"]), lag_s=st.sampled_from([0.0, 20.0, 500.0])
    )
    def next_create(self, what: str, lag_s: float) -> None:
        self.rig.world.then.append(what)
        self.rig.world.lag_s.append(lag_s)

    @rule(size=st.sampled_from(SIZES), ended=st.booleans(), gone=st.booleans())
    def stranger(self, size: int, ended: bool, gone: bool) -> None:
        self.rig.world.foreign(size, ended=ended).gone = gone

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def a_batch_ends(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.running())).ended = True

    @rule(deaf=st.sampled_from([False, False, True]))
    def list_fails(self, deaf: bool) -> None:
        self.rig.world.deaf = deaf

    def running(self) -> list[Made]:
        return [batch for batch in self.rig.world.made.values() if not batch.ended]

    # -- what we do

    @rule(die_at=AGAIN, jump_s=st.sampled_from([0.0, 0.0, 50.0, 4000.0]))
    def work(self, die_at: int, jump_s: float) -> None:
        self._work(1, die_at, jump_s)

    @rule(turns=st.integers(2, 8))
    def work_on(self, turns: int) -> None:
        self._work(turns, 0, 0.0)

    def _work(self, turns: int, die_at: int, jump_s: float) -> None:
        rig = self.rig
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_database, "reach", Deaths(die_at))
            try:
                for _ in range(turns):
                    soonest = rig.ledger.outlook(rig.jobs).get(Lane.BATCH)
                    rig.now = max(rig.now, soonest or 0.0) + jump_s
                    rig.turn(1)
            except Killed:
                patch.undo()
                rig.again()

    @rule()
    def another_process(self) -> None:
        self.rig.again()

    @precondition(lambda self: self.in_doubt())
    @rule(data=st.data(), how=st.sampled_from(["adopt", "adopt", "resend", "resend", "write_off"]))
    def decide(self, data: st.DataObject, how: str) -> None:
        shard = data.draw(st.sampled_from(self.in_doubt()))
        if how == "adopt":
            some = [batch.id for batch in self.rig.world.made.values() if batch.id not in self.rig.taken()]
            if some:
                self._adopt(shard, data.draw(st.sampled_from(some)))
        else:
            self._decide(shard, resend=how == "resend")

    def _adopt(self, shard: Shard, batch_id: str) -> None:
        try:
            self.rig.resolve(shard.tag, adopt=batch_id)
        except UsageError:  # of another size, or disproven before
            return

    def _decide(self, shard: Shard, *, resend: bool) -> None:
        self.rig.resolve(shard.tag, resend=resend)
        self.resent[shard.tag] += resend
        self.written_off += not resend

    def in_doubt(self) -> list[Shard]:
        now = self.rig.now
        shards = self.rig.shards(ShardState.IN_DOUBT)
        return [s for s in shards if s.lease_until <= now and s.current.batch_id is None]

    @rule(seldom=st.integers(0, 15), job=st.integers(0, 1))
    def cancel(self, seldom: int, job: int) -> None:
        if seldom == 0:
            self.rig.mill.cancel(self.rig.ledger.find_job(self.rig.jobs[job]))

    # -- what always holds

    def at_create(self, submission: str) -> None:
        tag = submission.rpartition(".")[0]
        mine = self.rig.shard(tag)
        for other in self.rig.shards(ShardState.SUBMITTING, ShardState.IN_DOUBT):
            if other.tag != tag:
                assert other.state is ShardState.IN_DOUBT, f"{other.tag} is being created, too"
                assert other.current.sought_until is not None, f"{other.tag} is still looked for"
                assert other.count != mine.count, f"{other.tag} is in doubt and as large"

    @invariant()
    def strangers_are_left_alone(self) -> None:
        assert not any(batch.cancelled for batch in self.rig.world.made.values() if not batch.tag)

    @invariant()
    def nothing_runs_twice_without_a_persons_word(self) -> None:
        ran: Counter[tuple[str, str]] = Counter()
        for batch in self.rig.world.ours():
            assert self.rig.ledger.shard(batch.tag) is not None, f"{batch.tag} ran, and was cut"
            for name in batch.ids:
                tag, _, row = name.rpartition("-")
                ran[tag.rpartition("-")[0], row] += 1
            assert len(self.rig.world.of(batch.tag)) <= 1 + self.resent[batch.tag], f"{batch.tag} ran twice"
        if not self.resent.total():
            assert all(times == 1 for times in ran.values()), ran

    @invariant()
    def what_may_be_billed_is_held_or_spent(self) -> None:
        if self.rig.jobs:
            assert self.rig.billed() - self._by_word() <= sum(self.rig.spent_and_held())

    def _by_word(self) -> int:
        """What batches cost that a person said were not there."""
        each = self.rig.mill.home.sheet(MODEL, Lane.BATCH).cost(Usage(*TOKENS))
        twice = {tag: self.rig.world.of(tag) for tag in self.resent}
        return sum(len(batch.ids) * each for batches in twice.values() for batch in batches)

    # -- how it ends

    def teardown(self) -> None:
        try:
            if self.rig.jobs:
                self._to_the_end()
        finally:
            self.rig.close()
            shutil.rmtree(self.folder)

    def _to_the_end(self) -> None:
        """The provider is well again and tells all, and a person who knows whose each batch is decides what is left."""
        rig, world = self.rig, self.rig.world
        world.then.clear()
        world.lag_s.clear()
        world.deaf = False
        rig.now += 5000.0
        rig.end_well(world.end_all)
        self._books_are_right()

    def _books_are_right(self) -> None:
        rig = self.rig
        spent, held = rig.spent_and_held()
        unproven = sum(rig.ledger.tally(job).unproven_nanos for job in rig.jobs)
        assert held == 0
        assert spent - unproven == rig.billed(), (spent, unproven, rig.billed())
        assert not unproven or self.written_off
        for job_id, answers in rig.answers().items():
            job = rig.ledger.find_job(job_id)
            assert rig.ledger.tally(job_id).unknown_ids == 0
            assert all(said is None or said.startswith(f"said {job_id}-") for said in answers), answers
            if job.state is not JobState.CANCELLED and not self.written_off:
                assert None not in answers, answers


TestUntagged = Untagged.TestCase
TestUntagged.__doc__ = "Whatever happens in whatever order, every row runs once, and what is booked is what is billed."
TestUntagged.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
