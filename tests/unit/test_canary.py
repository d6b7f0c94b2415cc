"""First rows and the watch: what is too bad, what the first rows tell of the whole, and which rows they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_kit import CAP, ROOMY, context_of, plan_of, shard_of, sheet_of

from nightmill import wire
from nightmill.canary import LEAST_ROWS, WINDOW, Watch, is_too_bad, judged, verdict
from nightmill.collect.sampling import RowUse, Sample
from nightmill.lanes import Work
from nightmill.ledger import Canary, CanarySums, Job, NewShard
from nightmill.plan import Bounds, First
from nightmill.pricing import PriceSheet
from nightmill.types import JobState, Lane, Quote, ShardState, Usage

FOUND = Canary(20, 20, {}, 100, 50, 1_000, 20_000, 1_000_000, 5_000_000)


def job_of(expected: int = 900_000, at_most: int = 6_000_000) -> Job:
    quote = Quote(Lane.BATCH, 1_000, 1, 1, expected, at_most, 1, 1, "tests")
    return Job(
        "job", None, JobState.RUNNING, None, None, "f", "openai/m", Lane.BATCH, {}, quote, 1_000, 0, 0, 0, None, False,
        0.0, None, None, 1, 19, None,
    )  # fmt: skip


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.01, 1.0))
def test_more_valid_answers_are_never_worse(rows: int, valid: int, least: float) -> None:
    """What stops a job stops it with fewer valid answers as well, and a share that is met never does."""
    valid = min(valid, rows)
    if is_too_bad(valid, rows, least):
        assert valid < rows * least
        assert rows >= LEAST_ROWS
        assert valid == 0 or is_too_bad(valid - 1, rows, least)


@given(st.integers(1, 1_000), st.integers(1, 100))
def test_a_share_that_is_met_to_the_row_stops_nothing(rows: int, percent: int) -> None:
    """As many valid first rows as --min-valid asks for are enough, however the share is as a binary fraction."""
    valid = -(-rows * percent // 100)
    for fewer, stopped in ((0, None), (1, "min_valid")):
        if valid > fewer:
            found = replace(FOUND, rows=rows, valid=valid - fewer)
            assert verdict(job_of(at_most=10**12), found, None, percent / 100)[0] == stopped


def test_chance_stops_no_job() -> None:
    """Answers somewhat better than the floor pass a window after the other; some that are far below it do not."""
    rand, seen = random.Random(7), Watch()
    for _ in range(100_000):
        seen.add(valid=rand.random() < 0.93, least=0.9)
    assert not seen.tripped
    bad = 0
    while not seen.tripped:
        seen.add(valid=False, least=0.9)
        bad += 1
    assert bad <= WINDOW / 4


def test_a_watch_begins_anew_when_a_person_lets_the_job_go_on() -> None:
    """Rows from before say nothing then."""
    seen = Watch()
    for _ in range(LEAST_ROWS):
        seen.add(valid=False, least=0.5)
    assert seen.tripped
    seen.reset()
    seen.add(valid=False, least=0.5)
    assert not seen.tripped


@pytest.mark.parametrize(
    ("valid", "least", "free", "quoted", "stopped"),
    [
        (20, None, None, 900_000, None),
        (1, None, None, 900_000, None),
        (0, None, None, 900_000, "canary"),
        (18, 0.9, None, 900_000, None),
        (17, 0.9, None, 900_000, "min_valid"),
        (20, 0.9, 979_999, 900_000, "budget"),
        (20, 0.9, 980_000, 900_000, None),
        (20, 0.9, 1, 1_000_000, None),  # it costs what was quoted: waves as ever
    ],
)
def test_why_first_rows_stop_a_job(
    valid: int, least: float | None, free: int | None, quoted: int, stopped: str | None
) -> None:
    """None valid, fewer than the floor, or more than quoted and than there is: each has its word and its reason."""
    found = replace(FOUND, valid=valid, why={"invalid_output: no score": 20 - valid} if valid < 20 else {})
    word, reason = verdict(job_of(expected=quoted), found, free, least)
    assert (word, bool(reason)) == (stopped, stopped is not None)
    if valid < 20 and stopped:
        assert "invalid_output: no score" in reason


def test_more_than_was_agreed_to_stops_a_job() -> None:
    """The most that a person said yes to is not passed without asking."""
    assert verdict(job_of(at_most=999_999), FOUND, None, None)[0] == "budget"
    assert verdict(job_of(at_most=1_000_000), FOUND, None, None)[0] is None
    climbing = replace(job_of(at_most=400_000), spec={"next_at_most_nanos": 599_999})
    assert verdict(climbing, FOUND, None, None)[0] == "budget"
    assert verdict(replace(climbing, spec={"next_at_most_nanos": 600_000}), FOUND, None, None)[0] is None


def first(rows: int, above: int, lane: Lane = Lane.BATCH, bounds: Bounds = ROOMY) -> First:
    return First(rows, above, lane, bounds, sheet_of(lane))


SHORT = [f"row {i:02}" for i in range(100)]


def told_by(
    folder: Path, texts: list[str], tokens: dict[int, Callable[[int], int]], sheets: Sequence[PriceSheet],
    spent: int = 0,
) -> tuple[Canary, NewShard]:  # fmt: skip
    """What the first ten of some rows tell of all, and the shard of the rest.

    ``tokens``: those that went out for a row of a size, by rung, to the second of which two rows came; ten came back
    for each.
    """
    order, store, plan = plan_of(folder, texts, first=first(10, 20))
    work = Work("job", order.provider, order.compiled.url, sheets[0], context_of(order, store).scissors, sheets[0])
    works = {rung: replace(work, sheet=sheet) for rung, sheet in enumerate(sheets)}
    ahead, rest = plan.shards
    shards = [shard_of(ahead, state=ShardState.SETTLED), shard_of(rest, state=ShardState.PLANNED)]
    sizes = [order.provider.weigh(wire.body_of(line)).most for _, line in wire.shard_lines(store, shards[0])]
    used = {rung: [RowUse(size, row(size), 10) for size in (sizes[:2] if rung else sizes)]
            for rung, row in tokens.items()}  # fmt: skip
    job = replace(job_of(), canary_last=9)
    return judged(job, CanarySums(10, 0, spent), shards, works, Sample({}, used)), rest


def test_what_is_expected_counts_each_step_at_its_own_prices(tmp_path: Path) -> None:
    """Ten first rows of which two went to a model ten times as dear: the other ninety are taken to do the same."""
    cheap, dear = (sheet_of(Lane.BATCH, {"input": each, "output": 4 * each}) for each in (1, 10))
    found, _ = told_by(tmp_path, SHORT, {0: lambda _: 100, 1: lambda _: 100}, [cheap, dear], 5_000_000)
    first_ask, climbed = (cheap.cost(Usage(1_000, 100, flex=True)), dear.cost(Usage(200, 20, flex=True)))
    assert climbed == 2 * first_ask
    assert found.expected_nanos == 5_000_000 + 9 * (first_ask + climbed)
    assert (found.row_tokens_in, found.row_tokens_out) == (120, 12)


@pytest.mark.parametrize(("by_row", "by_byte"), [(40, 0.2), (60, 0), (0, 0.5), (-30, 0.5)])
def test_a_long_first_row_does_not_make_the_others_long(tmp_path: Path, by_row: int, by_byte: float) -> None:
    """What goes out is counted for each row, such as a schema, and for each byte, as the first rows show it."""
    texts, sheet = ["long " * 20_000, *SHORT[1:]], sheet_of()
    found, rest = told_by(tmp_path, texts, {0: lambda size: round(by_row + by_byte * size)}, [sheet])
    each = by_row + by_byte * rest.content_bytes / rest.count
    alike = sheet.cost(Usage(round(90 * each), 900, flex=True))
    assert found.expected_nanos == pytest.approx(alike, rel=0.03)


def test_first_rows_never_make_the_rest_dearer_than_it_can_be(tmp_path: Path) -> None:
    """Whatever they took: the first ask has a most that it may cost, and that was shown."""
    sheet = sheet_of()
    found, rest = told_by(tmp_path, SHORT, {0: lambda _: 10**9}, [sheet])
    assert found.expected_nanos == found.at_most_nanos == sheet.worst(rest.content_bytes, 90, rest.cap_tokens)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 12), st.integers(1, 5))
def test_first_rows_are_shards_of_their_own_only_where_enough_come(
    tmp_path_factory: pytest.TempPathFactory, rows: int, own: int, more: int, size: int
) -> None:
    """Every row is in one shard, in order; the first ones share none with the others, and fewer rows are as ever."""
    folder = tmp_path_factory.mktemp("plan")
    texts = [f"row {i}" for i in range(rows)]
    how = first(own, own + more, Lane.LIVE, Bounds(size, 0, None))
    _, _, plan = plan_of(folder, texts, first=how)
    assert sum(shard.count for shard in plan.shards) == rows
    if rows <= own + more:
        assert plan.canary_last is None
        assert [(s.lane, s.count) for s in plan.shards] == [(Lane.BATCH, rows)]
        return
    assert plan.canary_last == own - 1
    ahead = [s for s in plan.shards if s.last < own]
    assert sum(s.count for s in ahead) == own
    assert all(s.lane is Lane.LIVE and s.count <= size for s in ahead)
    assert [(s.lane, s.first, s.last) for s in plan.shards if s not in ahead] == [(Lane.BATCH, own, rows - 1)]


def test_rows_that_are_not_sent_are_no_first_rows(tmp_path: Path) -> None:
    """Duplicates neither make a job large nor fill its canary."""
    texts = ["same"] * 6 + [f"row {i}" for i in range(6)]
    _, _, small = plan_of(tmp_path, texts, "small", first=first(2, 7))
    assert (small.duplicates, small.canary_last) == (5, None)
    _, _, large = plan_of(tmp_path, texts, "large", first=first(2, 6))
    assert large.canary_last == 6
    assert [(s.count, s.last) for s in large.shards] == [(2, 6), (5, 11)]


def test_the_quote_counts_first_rows_at_the_price_of_their_lane(tmp_path: Path) -> None:
    """Live rows ahead of a batch cost twice as much, in what is expected and at most."""
    texts = [f"row {i:03d}" for i in range(10)]
    _, _, plain = plan_of(tmp_path, texts, "plain")
    _, _, ahead = plan_of(tmp_path, texts, "ahead", first=first(2, 5, Lane.LIVE))
    assert ahead.quote.expected_nanos == plain.quote.expected_nanos * 12 // 10
    assert ahead.quote.at_most_nanos == pytest.approx(plain.quote.at_most_nanos * 1.2, rel=0.01)
    assert ahead.fingerprint == plain.fingerprint
    assert sum(shard.cap_tokens for shard in ahead.shards) == 10 * CAP
