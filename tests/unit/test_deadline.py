"""When batches are cancelled so that a job is done by its deadline: pure decisions."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nightmill.lanes.deadline import Decision, Pace, RowsLeft, buffer_s, decide, rows_in_turn, turns_at
from nightmill.lanes.rescue import quantile

HOUR = 3600.0
PACE = Pace(live_rate=10.0, cancel_p95_s=600.0, collect_s=60.0)

seconds = st.floats(0, 48 * HOUR)
some_rows = st.integers(0, 1_000_000)
paces = st.builds(Pace, st.floats(0.1, 500), st.floats(0, 1200), st.floats(0, 600))


def test_far_from_its_deadline_a_batch_is_waited_for() -> None:
    """Half price is taken as long as there is time for a cancel, for collecting, and for every row live."""
    left = RowsLeft(batch=10_000, live=0)
    assert decide(0.0, 2 * HOUR, left, PACE) is Decision.WAIT
    assert decide(2 * HOUR - buffer_s(left, PACE) - 1, 2 * HOUR, left, PACE) is Decision.WAIT


def test_a_batch_is_cancelled_while_there_is_time_to_run_its_rows_live() -> None:
    """At the latest moment there is time for a cancel, for collecting, and for more than all the live calls."""
    left = RowsLeft(batch=10_000, live=0)
    assert decide(2 * HOUR - buffer_s(left, PACE), 2 * HOUR, left, PACE) is Decision.CANCEL
    assert buffer_s(left, PACE) > 600 + 60 + 10_000 / 10


def test_rows_that_are_answered_give_the_rest_more_time() -> None:
    """What the provider has done by now needs no live call."""
    now = 1.25 * HOUR
    assert decide(now, 2 * HOUR, RowsLeft(20_000, 0), PACE) is Decision.CANCEL
    assert decide(now, 2 * HOUR, RowsLeft(1_000, 0), PACE) is Decision.WAIT


def test_a_batch_that_has_answered_every_row_is_not_cancelled() -> None:
    """With no row left a cancel could only do harm, however late it is."""
    assert decide(3 * HOUR, 2 * HOUR, RowsLeft(0, 5_000), PACE) is Decision.WAIT


def test_while_live_calls_have_enough_to_do_further_batches_are_waited_for() -> None:
    """Batches are taken back one after the other: cancelling them sooner would cost money and save no time."""
    deadline = 4 * HOUR
    now = deadline - buffer_s(RowsLeft(100_000, 0), PACE)
    assert decide(now, deadline, RowsLeft(100_000, 0), PACE) is Decision.CANCEL
    assert decide(now, deadline, RowsLeft(50_000, 50_000), PACE) is Decision.WAIT
    assert decide(now, deadline, RowsLeft(95_000, 5_000), PACE) is Decision.CANCEL  # they run dry in ten minutes


def test_where_every_second_counts_live_calls_never_rest_and_the_others_may_yet_come() -> None:
    """Calls that could hardly be in time never rest, and still no batch is cancelled before its turn."""
    assert decide(0.0, 9_999.0, RowsLeft(100_000, 0), PACE) is Decision.CANCEL
    assert decide(0.0, 9_999.0, RowsLeft(80_000, 20_000), PACE) is Decision.WAIT
    assert decide(0.0, 9_999.0, RowsLeft(93_000, 7_000), PACE) is Decision.CANCEL  # twelve minutes, if not ten


def test_nothing_is_waited_for_where_live_calls_may_be_too_slow_or_the_deadline_has_passed() -> None:
    """By a guess live calls might run out of rows; what is late already is done as soon as can be."""
    left = RowsLeft(50_000, 50_000)
    assert decide(0.0, 9_999.0, left, replace(PACE, is_guess=True)) is Decision.CANCEL
    assert decide(20_000.0, 20_000.0, left, PACE) is Decision.CANCEL


def test_a_batch_under_a_deadline_keeps_live_calls_busy_until_the_next_is_taken_back() -> None:
    """One as large as a provider allows could only be taken back whole."""
    assert rows_in_turn(PACE) == 2 * 660 * 10
    assert rows_in_turn(replace(PACE, live_rate=0.1)) == 1_000


@given(seconds, seconds, some_rows, some_rows, paces)
def test_what_is_told_of_the_moment_is_what_is_decided_then(
    now: float, deadline: float, batch: int, live: int, pace: Pace
) -> None:
    """A look that comes at the moment that was named finds the decision made, and one before it does not."""
    left = RowsLeft(batch, live)
    at = turns_at(now, deadline, left, pace)
    assert (decide(now, deadline, left, pace) is Decision.CANCEL) == (now >= at)


@given(seconds, seconds, st.integers(1, 1_000_000), some_rows, paces, st.integers(1, 1_000_000))
def test_more_rows_in_batches_are_never_decided_later(
    now: float, deadline: float, batch: int, live: int, pace: Pace, more: int
) -> None:
    """Not knowing of rows that were answered errs on the side of time."""
    assert turns_at(now, deadline, RowsLeft(batch + more, live), pace) <= turns_at(
        now, deadline, RowsLeft(batch, live), pace
    )


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_was_seen_and_covers_its_share(values: list[float], share: float) -> None:
    """No smaller value that was seen has as many at or below it."""
    found = quantile(values, share)
    covered = sum(value <= found for value in values)
    assert covered >= share * len(values) - 1e-9
    assert all(sum(v <= value for v in values) < share * len(values) for value in values if value < found)
