"""Results: in input order, twins under their twin's answer, open rows left out."""

from __future__ import annotations

import os
import resource
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_kit import (
    answer,
    cache_at,
    order_of,
    plan_of,
    refusal,
    results_of,
    shard_of,
    sheet_of,
    store_lines,
    submission,
    unrun,
)

from nightmill.answers import PARTITIONS, AnswerCache, digest, later
from nightmill.collect import results as collected
from nightmill.collect.results import Keeping
from nightmill.errors import StoreError
from nightmill.ledger import SubmissionState
from nightmill.plan import Bounds, Compiled, Parameters
from nightmill.types import FileRef, Lane, ShardState, Usage
from nightmill.wire import JOURNAL, OUTPUT, ROWS, body_of, shard_lines

CENT = sheet_of().cost(Usage(10, 5))


def answered(store: Any, new: Any, rows: list[int], *, state: ShardState = ShardState.SETTLED) -> Any:
    """A shard whose ``rows`` were answered, in reverse order."""
    lines = [answer(f"{new.tag}-{i}", f"to {i}") for i in reversed(rows)]
    return shard_of(new, files=[store_lines(store, f"wire/{new.tag}", lines, OUTPUT, new.tag)], state=state)


def test_results_are_in_input_order_with_twins_across_groups_and_ranges(tmp_path: Path) -> None:
    """A duplicate is shown in its own place, with the answer of a row thousands before it, at no cost."""
    rows = [f"row {i}" for i in range(10_400)]
    rows[10_001], rows[10_002], rows[7_000] = rows[3], rows[6_000], rows[6_999]
    order, store, plan = plan_of(tmp_path, rows, bounds=Bounds(4_000, 0, None))
    shards = []
    for new in plan.shards:
        mine = [i for i in range(new.first, new.last + 1) if rows.index(rows[i]) == i]
        shards.append(answered(store, new, mine))
    results = results_of(order, store, plan, shards)
    seen = [row for first in (0, 5_000, 10_000) for batch in results.batches(first, min(first + 5_000, len(rows)))
            for row in batch.select(["index", "prompt", "response", "cost_nanos"]).to_pylist()]  # fmt: skip
    twins = {10_001: 3, 10_002: 6_000, 7_000: 6_999}
    assert [row["index"] for row in seen] == list(range(len(rows)))
    assert all(row["prompt"] == f"Say {rows[row['index']]}" for row in seen)
    assert all(row["response"] == f"to {twins.get(row['index'], row['index'])}" for row in seen)
    assert [row["index"] for row in seen if row["cost_nanos"] != CENT] == sorted(twins)
    assert (results.counts.succeeded, results.counts.pending) == (len(rows), 0)


def test_a_line_may_name_its_request_in_escapes(tmp_path: Path) -> None:
    """JSON may write any letter as an escape: what the accounting counts as answered, the results show."""
    order, store, plan = plan_of(tmp_path, ["a", "b"])
    (new,) = plan.shards
    tag = new.tag.encode()
    lines = [answer(f"{new.tag}-{i}", f"to {i}").replace(tag + b"-", tag + rb"\u002d") for i in (1, 0)]
    shard = shard_of(new, files=[store_lines(store, "wire/o", lines, OUTPUT, new.tag)], state=ShardState.SETTLED)
    (batch,) = results_of(order, store, plan, [shard]).batches(0, 2)
    assert batch.column("response").to_pylist() == ["to 0", "to 1"]


@pytest.mark.parametrize(("lane", "sealed"), [(Lane.BATCH, True), (Lane.LIVE, True), (Lane.LIVE, False)])
def test_a_job_that_ends_while_it_is_read_keeps_its_answers(tmp_path: Path, lane: Lane, sealed: bool) -> None:
    """Another worker compresses what came back after we asked where it lies: it is read all the same."""
    order, store, plan = plan_of(tmp_path, ["a", "b"])
    new = replace(plan.shards[0], lane=lane)
    kind = OUTPUT if lane is Lane.BATCH else JOURNAL
    lines = [answer(f"{new.tag}-{i}", f"to {i}") for i in range(2)]
    file = store_lines(store, f"wire/{new.tag}", lines, kind, new.tag)
    seen = file if sealed else replace(file, ref=FileRef(file.ref.path, 0, ""))
    results = results_of(order, store, plan, [shard_of(new, files=[seen], state=ShardState.SETTLED)])
    store.path(f"{file.ref.path}.1.zst").write_bytes(b"torn: its worker died")
    store.pack(file.ref.path, mark=".2")
    store.path(file.ref.path).unlink()
    (batch,) = results.batches(0, 2)
    assert batch.column("response").to_pylist() == ["to 0", "to 1"]


def test_a_sealed_journal_that_is_gone_is_said(tmp_path: Path) -> None:
    """Its answers were paid for: their rows are never shown, or counted, as rows that were not sent."""
    order, store, plan = plan_of(tmp_path, ["a"])
    new = replace(plan.shards[0], lane=Lane.LIVE)
    file = store_lines(store, "wire/j", [answer(f"{new.tag}-0", "said")], JOURNAL, new.tag)
    results = results_of(order, store, plan, [shard_of(new, files=[file], state=ShardState.SETTLED)])
    store.path(file.ref.path).unlink()
    with pytest.raises(StoreError, match="gone"):
        list(results.batches(0, 1))


def test_a_range_may_rest_on_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    """Thousands of small shards give results like a few large ones."""
    order, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(300)], bounds=Bounds(1, 0, None))
    shards = [answered(store, new, [new.first]) for new in plan.shards]
    results = results_of(order, store, plan, shards)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        free = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 100, hard))
    try:
        (batch,) = results.batches(0, 300, keep=Keeping(cache_at(tmp_path), b"s" * 32))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert batch.column("response").to_pylist() == [f"to {i}" for i in range(300)]


def test_open_rows_are_left_out(tmp_path: Path) -> None:
    """While a shard is open, its answers are shown and its other rows, with their twins, are not."""
    order, store, plan = plan_of(tmp_path, ["a", "b", "c", "d", "b", "a"], bounds=Bounds(2, 0, None))
    done, open_ = plan.shards
    shards = [answered(store, done, [0]), answered(store, open_, [2], state=ShardState.WAITING)]
    results = results_of(order, store, plan, shards)
    (batch,) = results.batches(0, 6)
    assert batch.column("index").to_pylist() == [0, 1, 2, 4, 5]
    assert batch.column("error_kind").to_pylist() == [None, "missing", None, "missing", None]
    assert (results.counts.succeeded, results.counts.missing, results.counts.pending) == (3, 2, 1)


def test_a_row_sent_again_has_its_newest_end_and_all_its_cost(tmp_path: Path) -> None:
    """An answer beats a failure; without one, what happened last stands; every exchange is in the cost."""
    order, store, plan = plan_of(tmp_path, ["a", "b", "c"])
    (first,) = plan.shards
    paid = answer(f"{first.tag}-0", "", (10, 5))  # empty, and paid for
    old = [paid, refusal(f"{first.tag}-1", 500), refusal(f"{first.tag}-2", 500)]
    again = replace(first, tag="job-7", seq=7, attempt=2)
    new = [answer("job-7-0", "better"), refusal("job-7-1", 400), unrun("job-7-2")]
    shards = [
        shard_of(first, files=[store_lines(store, "wire/1", old, OUTPUT, first.tag)], state=ShardState.SETTLED),
        shard_of(again, files=[store_lines(store, "wire/2", new, OUTPUT, "job-7")], state=ShardState.SETTLED),
    ]
    (batch,) = results_of(order, store, plan, shards).batches(0, 3)
    assert batch.column("response").to_pylist()[0] == "better"
    assert batch.column("error_kind").to_pylist() == [None, "bad_request", "expired"]
    assert batch.column("cost_nanos").to_pylist() == [2 * CENT, 0, 0]
    assert batch.column("attempt").to_pylist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("state", "kind"),
    [(SubmissionState.GONE, "cancelled"), (SubmissionState.ABSENT, "cancelled"), (SubmissionState.BOOKED, "missing")],
)
def test_a_row_without_a_line_was_lost_or_never_sent(tmp_path: Path, state: SubmissionState, kind: str) -> None:
    """Refused as a whole, then cancelled: not sent. Booked, without a line: missing."""
    order, store, plan = plan_of(tmp_path, ["a"])
    sub = replace(submission("job-0", hold_nanos=0), state=state)
    shard = shard_of(plan.shards[0], subs=[sub], state=ShardState.SETTLED)
    (batch,) = results_of(order, store, plan, [shard]).batches(0, 1)
    assert batch.column("error_kind").to_pylist() == [kind]


@pytest.mark.parametrize(("batch_id", "why"), [("batch_1", "without a line"), (None, "written off")])
def test_why_a_row_is_missing(tmp_path: Path, batch_id: str | None, why: str) -> None:
    """What a person wrote off is not said to be the provider's doing."""
    order, store, plan = plan_of(tmp_path, ["a"])
    sub = replace(submission("job-0", hold_nanos=0), state=SubmissionState.BOOKED, batch_id=batch_id)
    shard = shard_of(plan.shards[0], subs=[sub], state=ShardState.SETTLED)
    (batch,) = results_of(order, store, plan, [shard]).batches(0, 1)
    assert why in batch.column("error")[0].as_py()


def test_an_answer_that_does_not_fit_the_schema_is_a_paid_failure(tmp_path: Path) -> None:
    """The text is kept, the row has failed, and its cost counts."""
    order, store, plan = plan_of(tmp_path, ["a", "b"])

    def check(text: str) -> tuple[object, str | None]:
        return text, None if text == "to 0" else "does not fit"

    shards = [answered(store, plan.shards[0], [0, 1])]
    (batch,) = results_of(order, store, plan, shards, check).batches(0, 2)
    assert batch.column("error_kind").to_pylist() == [None, "invalid_output"]
    assert batch.column("response").to_pylist() == ["to 0", "to 1"]
    assert batch.column("cost_nanos").to_pylist() == [CENT, CENT]


def test_cached_answers_cost_nothing_and_stand_beside_new_ones(tmp_path: Path) -> None:
    """The lane says where an answer came from."""
    order, store, plan = plan_of(tmp_path, ["a", "b"], bounds=Bounds(1, 0, None))
    cached = replace(plan.shards[0], lane=Lane.CACHE)
    lines = store_lines(store, "wire/c", [answer("job-0-0", "old")], "cached", "job-0")
    shards = [shard_of(cached, files=[lines], state=ShardState.SETTLED), answered(store, plan.shards[1], [1])]
    (batch,) = results_of(order, store, plan, shards).batches(0, 2)
    assert batch.column("lane").to_pylist() == ["cache", "batch"]
    assert batch.column("cost_nanos").to_pylist() == [0, CENT]


def test_an_answer_is_kept_under_what_it_was_asked(tmp_path: Path) -> None:
    """After a retry with another output cap the older answers are no answers to the new requests."""
    texts, salt = ["a", "b", "b", "c"], b"s" * 32
    order, store, plan = plan_of(tmp_path, texts, parameters=Parameters(max_output=5))
    newer = order_of(tmp_path / "job.jsonl", parameters=Parameters(max_output=50))
    (new,) = plan.shards
    cache = cache_at(tmp_path)
    shards = [answered(store, new, [0, 1, 3])]
    (batch,) = results_of(newer, store, plan, shards).batches(0, 4, keep=Keeping(cache, salt))
    with store.open(next(file.ref for file in plan.files if file.kind == ROWS)) as stream:
        (rows,) = pq.read_table(stream).to_batches()

    def kept(compiled: Compiled) -> list[bool]:
        keys = [digest(salt, body) for body in compiled.bodies(rows, range(rows.num_rows))]
        return [key in cache.lookup(key[0]) for key in keys]

    assert batch.column("response").to_pylist() == ["to 0", "to 1", "to 1", "to 3"]
    assert kept(order.compiled) == [True] * 4
    assert kept(newer.compiled) == [False] * 4


def test_what_was_asked_again_is_kept_as_an_answer_to_what_was_asked_first(tmp_path: Path) -> None:
    """Whatever else of the same rows went out, each answer stands under the body that its own row had."""
    texts, salt, reask = ["a", "b", "c", "d", "e"], b"s" * 32, b"re-ask"
    order, store, plan = plan_of(tmp_path, texts, bounds=Bounds(3, 0, None))
    first, second = (shard_of(new, state=ShardState.SETTLED) for new in plan.shards)
    tag = f"{plan.job_id}-9"
    lines = [answer(f"{tag}-{row}", f"to {row}") for row in (0, 2, 3)]
    files = (store_lines(store, f"wire/{tag}", lines, OUTPUT, tag),)
    asked = [b'{"custom_id":"%b-%d","body":{"again":%d}}\n' % (tag.encode(), row, row) for row in (0, 2, 3)]
    own = store_lines(store, f"shards/{tag}", asked, OUTPUT, tag).ref
    again = replace(first, tag=tag, seq=9, rung=1, last=3, count=3, file=own, files=files)
    cache = cache_at(tmp_path)
    list(results_of(order, store, plan, [first, second, again]).batches(0, 5, keep=Keeping(cache, salt, {1: reask})))
    sent = (item for shard in (first, second) for item in shard_lines(store, shard))
    keys = {row: later(digest(salt, body_of(line)), reask) for row, line in sent}
    assert {row for row, key in keys.items() if key in cache.lookup(key[0])} == {0, 2, 3}
    assert len(_held(cache)) == 3


WHAT = st.sampled_from(["answer", "long", "no usage", "empty", "500", "expired", "twice", "answer and 500", "none"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(st.lists(WHAT, min_size=1, max_size=6).map(lambda few: few * 2), min_size=1, max_size=5),
       in_order=st.booleans(), is_checked=st.booleans())  # fmt: skip
def test_rows_read_together_are_the_rows_read_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, ends: list[list[str]], in_order: bool, is_checked: bool
) -> None:
    """However rows ended and lines lie, reading many at once gives what reading each by itself gives."""
    whats = [what for few in ends for what in few]
    order, store, plan = plan_of(
        tmp_path_factory.mktemp("rows"), [f"row {i}" for i in range(len(whats))], bounds=Bounds(7, 0, None)
    )
    shards = []
    for new in plan.shards:
        lines = [line for i in range(new.first, new.last + 1) for line in _lines_of(f"{new.tag}-{i}", whats[i])]
        lines = lines if in_order else lines[::-1]
        file = store_lines(store, f"wire/{new.tag}", lines, OUTPUT, new.tag)
        shards.append(shard_of(new, files=[file], state=ShardState.SETTLED))
    slow = copy(order.provider)
    slow.decode_plain = lambda _: None  # type: ignore[method-assign]
    tables = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collected, "_TOGETHER", 4)
        patch.setattr(collected, "_FEW", 2)
        for provider in (order.provider, slow):
            check = (lambda text: (text, "too long" if "long" in text else None)) if is_checked else None
            made = results_of(replace(order, provider=provider), store, plan, shards, check)
            cache = cache_at(tmp_path_factory.mktemp("cache"))
            tables.append(
                (list(made.batches(0, len(whats), keep=Keeping(cache, b"s" * 32))), made.counts, _held(cache))
            )
    assert tables[0] == tables[1]


def _lines_of(custom_id: str, what: str) -> list[bytes]:
    said = {
        "answer": [answer(custom_id, f"to {custom_id}")],
        "long": [answer(custom_id, "long")],
        "no usage": [answer(custom_id, "yes", None)],
        "empty": [answer(custom_id, "")],
        "500": [refusal(custom_id, 500)],
        "expired": [unrun(custom_id)],
        "twice": [answer(custom_id, "one"), answer(custom_id, "two")],
        "answer and 500": [answer(custom_id, "yes"), refusal(custom_id, 500)],
    }
    return said.get(what, [])


def _held(cache: AnswerCache) -> set[tuple[bytes, bytes | None]]:
    return {(key, cache.read(hit)) for part in range(PARTITIONS) for key, hit in cache.lookup(part).items()}
