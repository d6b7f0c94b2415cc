"""Each fault of a batch provider, one by one: what the job must come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults_kit import SCHEMA, House, exact, house, truth

from nightmill.ledger import Job

ROWS = 8


def fault(name: str, **params: Any) -> dict[str, Any]:
    return {"fault": name, **params}


def finished(h: House, **options: Any) -> Job:
    """The job after a run to its end, with everything true that always must be."""
    job = h.run(h.submit(ROWS, **options))
    fired = h.fired()
    assert all(fired.values()), f"a fault never came up: {fired}"
    truth(h, job)
    return h.mill.job(job.id)


def counts(job: Job) -> dict[str, int]:
    """The row counts that are not zero."""
    assert job.counts is not None
    return {name: n for name, n in job.counts.items() if n}


def executed(h: House) -> int:
    found: int = h.invoice()["executed_rows"]
    return found


def kinds(h: House, job: Job) -> dict[str, int]:
    """Failed rows by kind, from the results."""
    found: dict[str, int] = {}
    for row in h.results(job):
        if row["error_kind"]:
            found[row["error_kind"]] = found.get(row["error_kind"], 0) + 1
    return found


def test_a_smooth_run_is_exact(tmp_path: Path) -> None:
    """Without faults every row is answered, once, for exactly what the provider bills."""
    with house(tmp_path) as h:
        job = finished(h)
        exact(h, job)
        assert job.state == "completed"
        assert counts(job) == {"succeeded": ROWS}
        assert executed(h) == ROWS


# -- faults that change nothing in the end ---------------------------------------------------------

HARMLESS = {
    "slow bodies": [fault("slow_bodies", pieces=4, delay_s=0.005)],
    "a body cut short": [fault("short_body", times=2)],
    "a last line cut once": [fault("truncated_last_line", times=1)],
    "shuffled rows": [fault("shuffled_rows")],
    "null counts": [fault("null_counts")],
    "an unknown status": [fault("status_unknown_word", word="pondering")],
    "file ids that are empty": [fault("empty_file_ids")],
    "file ids that are absent": [fault("absent_file_ids")],
    "spaced bodies": [fault("pretty_printed_bodies")],
    "polls that answer 500": [fault("poll_500", times=3)],
    "a poll that answers 404": [fault("poll_404_once")],
    "uploads that answer 500": [fault("upload_500", times=2)],
    "an HTML page for an upload": [fault("non_json_bodies", on=["upload"], times=1)],
    "an HTML page for an upload that was taken": [fault("non_json_bodies", on=["upload"], commit=True, times=1)],
    "an HTML page for a poll": [fault("non_json_bodies", on=["poll"], status=200, times=2)],
    "an HTML page for a result file": [fault("non_json_bodies", on=["content"], status=502, times=2)],
    "an HTML 200 page for a result file": [fault("non_json_bodies", on=["content"], status=200, times=2)],
    "enqueued tokens now": [fault("enqueued_limit_now", times=2, limit=5_000_000)],
    "enqueued tokens later": [fault("enqueued_limit_later", times=2, limit=5_000_000)],
    "a create that was dropped": [fault("create_dropped_before", times=1)],
    "a create that failed": [fault("create_500_before", times=1)],
    "an HTML page for a create": [fault("non_json_bodies", on=["create"], times=1)],
    "an HTML 200 page for a create": [fault("non_json_bodies", on=["create"], status=200, times=1)],
    "an HTML page for a create that was taken": [fault("non_json_bodies", on=["create"], commit=True, times=1)],
    "a create taken and answered 500": [fault("create_accepted_then_500", times=1)],
    "a create in doubt, a list that fails": [fault("create_500_before", times=1), fault("list_page_500", times=2)],
    "a create in doubt, a list that is cut": [fault("create_accepted_then_500"), fault("list_page_cut", times=2)],
    "a refused batch, twice": [fault("batch_failed_unexplained", times=2)],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_in_the_end(tmp_path: Path, name: str) -> None:
    """What a second try or a closer look overcomes leaves no trace: each row runs once, spend is exact."""
    with house(tmp_path, *HARMLESS[name]) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert executed(h) == ROWS
        assert h.invoice()["executed_more_than_once"] == 0
        assert {row["attempt"] for row in h.results(job)} == {1}


# -- creates in doubt ------------------------------------------------------------------------------


def test_a_create_that_timed_out_is_adopted(tmp_path: Path) -> None:
    """A create that was accepted and never answered is found by a look: one create, one run."""
    with house(tmp_path, fault("create_accepted_then_timeout", times=1), timing={"create_timeout_s": 0.3}) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.log("create")) == 1
        assert len(h.batches()) == 1


def test_a_batch_that_lists_late_is_found_by_a_later_look(tmp_path: Path) -> None:
    """A batch that the list shows only after the first look is adopted by another one."""
    late = fault("late_listing", lag_s=60, times=1)
    timing = {"looks_s": [0.0, 0.2, 0.4]}
    with house(tmp_path, fault("create_accepted_then_500", times=1), late, timing=timing) as h:
        job = finished(h)
        exact(h, job)
        assert len(h.batches()) == 1
        assert executed(h) == ROWS


def test_the_fence_stops_a_batch_that_nobody_sees(tmp_path: Path) -> None:
    """A batch that no look shows dies with its input file; the shard goes out again and runs once."""
    late = fault("late_listing", lag_s=100_000, times=1)
    with house(tmp_path, fault("create_accepted_then_500", times=1), late, sim={"validating_s": 2_000.0}) as h:
        job = finished(h)
        exact(h, job)
        assert [b["status"] for b in h.batches()] == ["failed", "completed"]
        assert [e["status"] for e in h.log("delete")] == [200]
        assert executed(h) == ROWS


def test_a_batch_thought_absent_is_booked_when_it_turns_up(tmp_path: Path) -> None:
    """A batch that shows after all looks, before the shard settles, is collected and paid beside the other."""
    late = fault("late_listing", lag_s=2_000, times=1)
    sim = {"batch_s": 2_300.0, "validating_s": 1.0}
    with house(tmp_path, fault("create_accepted_then_500", times=1), late, sim=sim) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.batches()) == 2
        assert h.alerts(job).count("second_batch") == 1
        assert h.tally(job).spent_nanos == sum(b["nanos"] for b in h.invoice()["batches"].values())


def test_a_lost_create_is_sent_again_once(tmp_path: Path) -> None:
    """A create that never arrived is sent again only after every look and the fence."""
    with house(tmp_path, fault("create_500_before", times=1)) as h:
        job = finished(h)
        assert [e["status"] for e in h.log("create")] == [500, 200]
        assert len(h.log("upload")) == 2
        assert len(h.log("delete")) == 1
        assert {b["metadata"]["nightmill"].rpartition(".")[2] for b in h.batches()} == {"2"}
        assert job.state == "completed"


# -- limits and refusals ---------------------------------------------------------------------------


def test_enqueued_tokens_teach_the_cap(tmp_path: Path) -> None:
    """A batch failed for enqueued tokens: the cap is learned, the same rows go out later, as attempt one."""
    with house(tmp_path, fault("enqueued_limit_later", times=1, limit=3_000_000)) as h:
        job = finished(h)
        exact(h, job)
        assert [b["status"] for b in h.batches()] == ["failed", "completed"]
        assert [q["enqueued_cap"] for q in h.sql("SELECT * FROM quotas")] == [3_000_000]
        assert len(h.shards(job)) == 1
        assert {row["attempt"] for row in h.results(job)} == {1}


def test_a_shard_above_the_cap_goes_out_in_parts(tmp_path: Path) -> None:
    """A shard that alone passes the learned cap on enqueued tokens is cut until its parts fit."""
    with house(tmp_path, sim={"enqueued_tokens": 30}) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert len(h.shards(job)) > 1


def test_a_named_line_fails_alone(tmp_path: Path) -> None:
    """A batch refused for one line: that row fails as a bad request, the rest is answered."""
    with house(tmp_path, fault("batch_failed_line", line=3, message="No such thing.", times=1)) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS - 1, "failed": 1}
        failed = [row for row in h.results(job) if not row["success"]]
        assert [(row["index"], row["error_kind"]) for row in failed] == [(2, "bad_request")]
        assert "No such thing." in failed[0]["error"]
        assert executed(h) == ROWS - 1


def test_lines_refused_again_and_again_end(tmp_path: Path) -> None:
    """Every batch refused for its first line: each row fails in its turn, nothing is spent, the job ends."""
    with house(tmp_path, fault("batch_failed_line")) as h:
        job = finished(h)
        exact(h, job)
        assert job.state == "failed"
        assert counts(job) == {"failed": ROWS}
        assert kinds(h, job) == {"bad_request": ROWS}
        assert executed(h) == 0


def test_a_refusal_without_a_reason_pauses_after_three(tmp_path: Path) -> None:
    """Unexplained refusals are tried three times, then the job pauses and says so; nothing is held."""
    with house(tmp_path, fault("batch_failed_unexplained")) as h:
        job = h.run(h.submit(ROWS))
        assert job.state == "paused"
        assert "no reason given" in (job.reason or "")
        assert len(h.batches()) == 3
        assert {limit.held_nanos for limit in h.mill.ledger.limits()} == {0}
        truth(h, job, settled=False)
        h.mill.resume(job)
        job = h.run(job)
        truth(h, job)
        assert counts(job) == {"succeeded": ROWS}


def test_a_model_the_provider_does_not_know_pauses_at_once(tmp_path: Path) -> None:
    """A refusal about the model concerns every shard: one try, then the job pauses with the reason."""
    refusal = fault("batch_failed_line", code="model_not_found", message="The model does not exist.", param="model")
    with house(tmp_path, refusal) as h:
        job = h.run(h.submit(ROWS))
        assert job.state == "paused"
        assert "The model does not exist." in (job.reason or "")
        assert len(h.batches()) == 1
        truth(h, job, settled=False)


@pytest.mark.parametrize(("key", "says"), [("sk-wrong", "Incorrect API key"), ("sk-noquota", "current quota")])
def test_an_account_that_cannot_pay_pauses(tmp_path: Path, key: str, says: str) -> None:
    """A wrong key or an empty account pauses the job with the provider's words; a good key finishes it."""
    with house(tmp_path, key=key) as h:
        job = h.run(h.submit(ROWS))
        assert job.state == "paused"
        assert says in (job.reason or "")
        assert key not in (job.reason or "")
        assert {limit.held_nanos for limit in h.mill.ledger.limits()} == {0}
        h.again(key="sk-good")
        h.mill.resume(job)
        job = h.run(job)
        truth(h, job)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}


# -- rows that fail, vanish, expire ----------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 429, 408, 0])
def test_failed_rows_are_tried_again(tmp_path: Path, status: int) -> None:
    """Rows that failed by the provider's fault go into a new shard, the answered ones stay."""
    with house(tmp_path, fault("row_errors", count=3, status=status, times=1)) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert sorted(row["attempt"] for row in h.results(job)) == [1] * 5 + [2] * 3
        assert executed(h) == ROWS


def test_rows_that_always_fail_are_tried_three_times(tmp_path: Path) -> None:
    """Three attempts a row, then it is a failed row and the job ends."""
    with house(tmp_path, fault("row_errors", status=503)) as h:
        job = finished(h)
        exact(h, job)
        assert job.state == "failed"
        assert kinds(h, job) == {"server_error": ROWS}
        assert len(h.batches()) == 3


def test_rows_refused_for_what_they_say_are_final(tmp_path: Path) -> None:
    """A row refused with 400 is refused again if sent again: it is not."""
    with house(tmp_path, fault("row_errors", count=2, status=400)) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS - 2, "failed": 2}
        assert kinds(h, job) == {"bad_request": 2}
        assert len(h.batches()) == 1


def test_missing_rows_are_sent_once_more(tmp_path: Path) -> None:
    """Rows that ran without a line are looked for twice, booked as unproven, and sent once more."""
    with house(tmp_path, fault("missing_lines", count=2, times=1)) as h:
        job = finished(h)
        assert counts(job) == {"succeeded": ROWS}
        assert executed(h) == ROWS + 2
        assert h.tally(job).unproven_nanos > 0


def test_rows_that_are_always_missing_end(tmp_path: Path) -> None:
    """A row that goes missing twice is missing; what it may have cost stays booked as unproven."""
    with house(tmp_path, fault("missing_lines", fraction=1.0)) as h:
        job = finished(h)
        assert counts(job) == {"missing": ROWS}
        assert executed(h) == 2 * ROWS
        assert h.tally(job).unproven_nanos == h.tally(job).spent_nanos > 0
        assert len(h.batches()) == 2


def test_a_late_error_file_is_read_the_second_time(tmp_path: Path) -> None:
    """An error file that shows only after the first reading is read before any row counts as missing."""
    faults = fault("row_errors", count=2, status=400), fault("late_error_file", lag_s=20)
    with house(tmp_path, *faults, timing={"reread_s": 0.15}) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS - 2, "failed": 2}
        assert kinds(h, job) == {"bad_request": 2}
        assert len(h.batches()) == 1


def test_an_expired_batch_keeps_what_it_did(tmp_path: Path) -> None:
    """What ran before the window closed is kept and paid; the rest goes into a new shard."""
    with house(tmp_path, fault("expire_at", fraction=0.5, times=1)) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert [b["status"] for b in h.batches()] == ["expired", "completed"]
        assert [s.count for s in h.shards(job)] == [ROWS, ROWS // 2]
        assert executed(h) == ROWS


def test_rows_that_always_expire_end(tmp_path: Path) -> None:
    """A row that expired in three submissions is expired for good, and cost nothing."""
    with house(tmp_path, fault("expire_at", fraction=0.0)) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"expired": ROWS}
        assert len(h.batches()) == 3


def test_a_last_line_that_stays_cut_is_a_missing_row(tmp_path: Path) -> None:
    """A row whose line cannot be read, twice, is missing: sent once more, the first run unproven."""
    with house(tmp_path, fault("truncated_last_line", times=2)) as h:
        job = finished(h)
        assert counts(job) == {"succeeded": ROWS}
        assert executed(h) == ROWS + 1
        assert h.tally(job).unproven_nanos > 0


def test_results_that_are_gone_are_missing_rows(tmp_path: Path) -> None:
    """Result files past retention: rows are missing, their worst case stays booked, the job ends."""
    with house(tmp_path, fault("retention_404")) as h:
        job = finished(h)
        assert counts(job) == {"missing": ROWS}
        assert h.tally(job).unproven_nanos == h.tally(job).spent_nanos > 0
        assert len(h.batches()) == 2


# -- lines that should not be there ----------------------------------------------------------------


def test_a_line_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """The same line again is an extra answer; nobody can prove that it was billed again, or that it was not."""
    with house(tmp_path, fault("duplicate_lines", count=2)) as h:
        job = finished(h)
        tally = h.tally(job)
        assert counts(job) == {"succeeded": ROWS}
        assert tally.extra_answers == 2
        assert "answers_differ" not in h.alerts(job)
        assert tally.spent_nanos - tally.unproven_nanos == h.invoice()["total_nanos"]


def test_two_different_answers_are_both_paid(tmp_path: Path) -> None:
    """Two answers to one row: the first is kept, both are paid, and somebody is told."""
    with house(tmp_path, fault("duplicate_lines", count=2, differ=True)) as h:
        job = finished(h)
        exact(h, job)
        assert h.tally(job).extra_answers == 2
        assert "answers_differ" in h.alerts(job)


def test_lines_nobody_sent_are_told(tmp_path: Path) -> None:
    """Lines with ids that were never sent change no row and raise an alert."""
    with house(tmp_path, fault("unknown_lines", count=3)) as h:
        job = finished(h)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS}
        assert h.tally(job).unknown_ids == 3
        assert "unknown_ids" in h.alerts(job)


# -- answers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("truncated_answers", "truncated"),
        ("empty_answers", "empty"),
        ("refusal_answers", "content_filter"),
        ("invalid_json_answers", "invalid_output"),
        ("wrong_schema_answers", "invalid_output"),
    ],
)
@pytest.mark.parametrize("lane", ["batch", "live"])
def test_bad_answers_are_paid_and_not_repeated(tmp_path: Path, name: str, kind: str, lane: str) -> None:
    """An answer that cannot be used is a failure of its own kind: paid for, its text kept, not asked again."""
    with house(tmp_path, fault(name, count=3)) as h:
        job = finished(h, lane=lane, schema=SCHEMA)
        exact(h, job)
        assert counts(job) == {"succeeded": ROWS - 3, "failed": 3}
        assert kinds(h, job) == {kind: 3}
        assert executed(h) == ROWS
        failed = [row for row in h.results(job) if not row["success"]]
        assert all(row["cost_nanos"] for row in failed)
        assert kind == "empty" or all(row["response"] for row in failed)


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_usage_that_is_missing_is_estimated_and_marked(tmp_path: Path, lane: str) -> None:
    """Answers without usage are good answers; what they cost is an estimate and says so."""
    with house(tmp_path, fault("usage_missing", count=3)) as h:
        job = h.run(h.submit(ROWS, lane=lane))
        assert counts(job) == {"succeeded": ROWS}
        assert sorted(row["cost_estimated"] for row in h.results(job)) == [False] * 5 + [True] * 3
        assert all(row["cost_nanos"] for row in h.results(job))
        assert h.tally(job).held_nanos == 0


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_model_that_changes_under_way_is_told(tmp_path: Path, lane: str) -> None:
    """Answers by two snapshots of the model are kept and raise an alert."""
    with house(tmp_path, fault("model_snapshot_changes")) as h:
        job = finished(h, lane=lane)
        exact(h, job)
        assert "model_changed" in h.alerts(job)
        assert len({row["model"] for row in h.results(job)}) == 2
