"""Faults that come and go while a job is begun, left, taken up by others, cancelled, paused and come back to."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faults_kit import SCHEMA, house, truth
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_fault_mixtures import QUIET, Story, came_late, stories

_OVER = ("completed", "failed", "cancelled")


class Troubles(RuleBasedStateMachine):
    """One job, and all that can happen to it in any order; at the end it ends, and the books are right."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._fired: set[str] = set()
        self._begun = self._cancelled = False

    @initialize(story=stories())
    def begin(self, story: Story) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        timing = {"request_timeout_s": 1.0} if story.lane == "live" else {}
        self.h = self._stack.enter_context(house(folder, *story.faults, timing=timing))
        options: dict[str, Any] = {"batch_size": story.batch_size} | ({"schema": SCHEMA} if story.schema else {})
        self.job = self.h.submit(story.rows, story.lane, **options)
        self.lane, self._begun = story.lane, True

    @rule()
    def work_for_one_step(self) -> None:
        self.job = self.h.run(self.job, until=lambda *_: True)

    @rule()
    def another_process_takes_over(self) -> None:
        self.h.again()

    @rule(story=stories())
    def other_faults(self, story: Story) -> None:
        if story.lane == self.lane:
            self._note()
            self.h.faults(*story.faults)

    @rule(provider_s=st.sampled_from([5, 60, 3_600]))
    def provider_time_passes(self, provider_s: float) -> None:
        self.h.forward(provider_s)

    @precondition(lambda self: not self._cancelled and self.job.state not in _OVER)
    @rule(sure=st.integers(0, 3))
    def cancel(self, sure: int) -> None:
        if sure == 0:
            self.h.cancel(self.job)
            self._cancelled = True

    @precondition(lambda self: self.job.state == "paused")
    @rule()
    def resume(self) -> None:
        assert self.job.reason
        self.h.mill.resume(self.h.mill.job(self.job.id))

    @precondition(lambda self: self.job.state in _OVER)
    @rule()
    def come_back(self) -> None:
        if came_late(self.h, self.h.mill.job(self.job.id)):
            self.job = self.h.run(self.job)

    @invariant()
    def no_limit_is_passed(self) -> None:
        for limit in self.h.mill.ledger.limits() if self._begun else []:
            assert limit.cap_nanos is None or limit.spent_nanos + limit.held_nanos <= limit.cap_nanos, limit

    def _note(self) -> None:
        self._fired |= {name for name, n in self.h.fired().items() if n}

    def _end(self) -> None:
        """As a person would: go on with it, wherever it stands, until nothing is left to do."""
        h = self.h
        self.job = h.run(self.job)
        while self.job.state == "paused":
            self._note()
            h.faults()
            h.mill.resume(self.job)
            self.job = h.run(self.job)
        h.forward()
        if came_late(h, self.job):
            self.job = h.run(self.job)
        self._note()
        truth(h, self.job, fired=self._fired)
        assert self.job.state in _OVER

    def teardown(self) -> None:
        with self._stack:
            if self._begun:
                self._end()


def test_whatever_happens_in_whatever_order() -> None:
    """In any order of steps, faults, processes and wishes: the job ends, and accounting, money and answers hold."""
    run_state_machine_as_test(
        Troubles,
        settings=settings(max_examples=15, stateful_step_count=8, derandomize=True, deadline=None, database=None,
                          suppress_health_check=QUIET),
    )  # fmt: skip


@pytest.mark.crash_full
@pytest.mark.timeout(3600)
def test_much_happens_in_whatever_order() -> None:
    """The same over many more stories, other ones in every run."""
    run_state_machine_as_test(
        Troubles,
        settings=settings(max_examples=100, stateful_step_count=12, deadline=None, database=None,
                          suppress_health_check=QUIET),
    )  # fmt: skip
