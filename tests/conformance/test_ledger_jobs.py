"""A job's life: planned whole or not at all, once at a time, finished by one worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from ledger_kit import (
    LEASE_S,
    ROWS,
    Backend,
    Worker,
    a_file,
    bring,
    claim,
    done,
    everything,
    intended,
    money,
    new_shard,
    publish,
)

from nightmill.errors import Conflict
from nightmill.ledger import Counts, Ledger, Settlement, StoredFile
from nightmill.types import JobState, Lane, Quote, ShardState

COUNTS = {"succeeded": 1, "failed": 0}


@pytest.fixture
def other(backend: Backend, ledger: Ledger) -> Iterator[Ledger]:
    """Another live worker: a process of another pid namespace, which nobody can judge."""
    boot, namespace, pid, started = ledger.me.split("/")
    opened = backend.open("/".join((boot, namespace + "9", pid, started)))
    yield opened
    opened.close()


def settle_all(ledger: Ledger, lane: Lane = Lane.BATCH) -> None:
    while ledger.outlook():
        shard = bring(ledger, ShardState.COLLECTING)
        ledger.settle(shard, done(shard))


def finished(ledger: Ledger, state: JobState = JobState.COMPLETED) -> None:
    settle_all(ledger)
    ripe = ledger.claim_finish("job1", LEASE_S)
    assert ripe is not None
    assert ledger.finish(ripe, state, counts=COUNTS, results=[])


def test_a_plan_is_invisible_until_it_is_whole(ledger: Ledger) -> None:
    """A plan in the making is no job; publishing it shows everything at once."""
    ledger.begin_plan("job1", model="m", lane=Lane.BATCH)
    assert ledger.jobs() == []
    with pytest.raises(Conflict):
        ledger.find_job("job1")
    ledger.abandon_plan("job1")
    job = publish(ledger, shards=2, name="mine", budget=500)
    assert ledger.job("job1") == job
    assert (job.state, job.rows, job.name, job.spec, job.quote) == (
        JobState.PENDING, 20, "mine", {"a": 1}, Quote(Lane.BATCH, 20, 1, 1, 1, 1, 1, 1, "tests"))  # fmt: skip
    assert [s.tag for s in ledger.shards_of("job1")] == ["job1-0", "job1-1"]
    assert [f.ref.path for f in ledger.files_of("job1", "rows")] == ["rows/job1"]
    assert ledger.limits(["job:job1"])[0].cap_nanos == 500


def test_a_plan_that_cannot_be_published_leaves_nothing(ledger: Ledger) -> None:
    """All or nothing: a shard whose tag is taken stops the whole plan."""
    publish(ledger)
    ledger.begin_plan("job2", model="m", lane=Lane.BATCH)
    before = everything(ledger)
    quote = Quote(Lane.BATCH, 1, 1, 1, 1, 1, 1, 1, "tests")
    with pytest.raises(Conflict):
        ledger.publish_plan(
            "job2", name=None, fingerprint="f2", task_digest="t", spec={}, quote=quote, rows=1, duplicates=0, cached=0,
            shards=[new_shard("job2-0"), new_shard("job1-0")], files=[], budget_nanos=5,
        )  # fmt: skip
    assert everything(ledger) == before


def test_a_plan_that_was_given_up_cannot_be_published(ledger: Ledger, other: Ledger) -> None:
    """Nor can another worker publish it: no shards without a job."""
    ledger.begin_plan("job1", model="m", lane=Lane.BATCH)
    quote = Quote(Lane.BATCH, 1, 1, 1, 1, 1, 1, 1, "tests")

    def publish_it(by: Ledger) -> None:
        by.publish_plan(
            "job1", name=None, fingerprint="f", task_digest="t", spec={}, quote=quote, rows=1, duplicates=0, cached=0,
            shards=[new_shard("job1-0")], files=[],
        )  # fmt: skip

    before = everything(ledger)
    with pytest.raises(Conflict):
        publish_it(other)
    assert everything(ledger) == before
    ledger.abandon_plan("job1")
    before = everything(ledger)
    with pytest.raises(Conflict):
        publish_it(ledger)
    assert everything(ledger) == before


def test_giving_up_a_plan_never_touches_a_job(ledger: Ledger) -> None:
    """What was published stays, whoever calls late."""
    publish(ledger)
    before = everything(ledger)
    ledger.abandon_plan("job1")
    assert everything(ledger) == before


def test_the_second_starter_of_the_same_job_is_told(ledger: Ledger, other: Ledger) -> None:
    """Rows, task, model and options equal: one job, and the second starter can find it."""
    publish(ledger, fingerprint="same")
    with pytest.raises(Conflict):
        publish(other, "job2", fingerprint="same")
    other.abandon_plan("job2")
    found = other.find_unfinished("same")
    assert found is not None
    assert found.id == "job1"
    finished(ledger)
    assert ledger.find_unfinished("same") is None
    assert publish(other, "job3", fingerprint="same").id == "job3"


def test_a_plan_that_was_overtaken_is_refused(ledger: Ledger, other: Ledger) -> None:
    """The same job, begun and ended by another while this one was planned or asked about, is not paid for again."""
    other.begin_plan("job2", model="m", lane=Lane.BATCH)
    publish(ledger, fingerprint="same")
    finished(ledger)
    before = everything(ledger)
    quote = Quote(Lane.BATCH, 1, 1, 1, 1, 1, 1, 1, "tests")
    with pytest.raises(Conflict, match="job1 did the same meanwhile"):
        other.publish_plan(
            "job2", name=None, fingerprint="same", task_digest="t", spec={}, quote=quote, rows=1, duplicates=0,
            cached=0, shards=[new_shard("job2-0")], files=[],
        )  # fmt: skip
    assert everything(ledger) == before


def test_a_name_is_unique_among_unfinished_jobs(ledger: Ledger) -> None:
    """A label means one job while it lives, and may be used again afterwards."""
    publish(ledger, name="nightly")
    with pytest.raises(Conflict):
        publish(ledger, "job2", name="nightly")
    ledger.abandon_plan("job2")
    found = ledger.find_unfinished_name("nightly")
    assert found is not None
    assert found.id == "job1"
    finished(ledger)
    assert ledger.find_unfinished_name("nightly") is None
    publish(ledger, "job3", name="nightly")
    publish(ledger, "job4")
    publish(ledger, "job5")  # no name is no label


def test_the_plan_of_a_dead_planner_is_swept(backend: Backend, ledger: Ledger) -> None:
    """Killed while planning: the next planner drops it and learns whose folder may go. Live ones stay."""
    dead = Worker(backend.address, "plan", "dead")
    live = Worker(backend.address, "plan", "live")
    assert dead.line() == live.line() == "planning"
    dead.end(kill=True)
    assert ledger.begin_plan("mine", model="m", lane=Lane.BATCH) == ["dead"]
    assert ledger.job("dead") is None
    assert ledger.job("live") is not None
    live.end()
    assert ledger.begin_plan("next", model="m", lane=Lane.BATCH) == ["live"]


@pytest.mark.parametrize("text", ["job1", "first", "job1-is", "@last"])
def test_a_job_is_found_by_id_prefix_name_or_last(ledger: Ledger, text: str) -> None:
    """Whatever names one job finds it."""
    publish(ledger, "job0")
    publish(ledger, "job1-is-long", name="first")
    assert ledger.find_job("job1-is-long" if text == "job1" else text).id == "job1-is-long"


@pytest.mark.parametrize("text", ["job", "job1", "nothing", "%", "job_", ""])
def test_what_names_no_job_or_several_is_refused(ledger: Ledger, text: str) -> None:
    """A prefix has at least four letters and one meaning; wildcards are letters."""
    publish(ledger, "job1-a")
    publish(ledger, "job1-b")
    with pytest.raises(Conflict):
        ledger.find_job(text)


def test_numbers_are_never_given_twice(ledger: Ledger, other: Ledger) -> None:
    """Whoever takes shard numbers, they go on from the plan's and never repeat."""
    publish(ledger, shards=3)
    assert [ledger.take_seqs("job1", 1), other.take_seqs("job1", 5), ledger.take_seqs("job1", 2)] == [3, 4, 9]


def test_a_paused_job_collects_but_sends_nothing(ledger: Ledger) -> None:
    """Pause keeps what is in flight going and holds back the rest until it is resumed."""
    publish(ledger, shards=2)
    ledger.note_created(bring(ledger, ShardState.SUBMITTING), 1, "b", status="x", due_in_s=0.0)
    ledger.pause("job1", "the user said so", stopped="budget")
    job = ledger.find_job("job1")
    assert (job.state, job.reason, job.stopped) == (JobState.PAUSED, "the user said so", "budget")
    (waiting,) = ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S)
    ledger.note_polled(waiting, [(1, {"ended": 1})], due_in_s=0.0, done=True)
    collecting = claim(ledger)
    ledger.settle(collecting, done(collecting))
    assert ledger.claim_due(lane=Lane.BATCH, limit=9, lease_s=LEASE_S) == []
    ledger.resume("job1")
    job = ledger.find_job("job1")
    assert (job.state, job.reason, job.stopped) == (JobState.RUNNING, None, None)
    assert claim(ledger).tag == "job1-1"


def test_resuming_makes_waiting_shards_due(ledger: Ledger) -> None:
    """Raised the budget, resumed: nothing waits out a back-off."""
    publish(ledger)
    ledger.release(claim(ledger), due_in_s=1e6)
    ledger.pause("job1", "no money")
    ledger.resume("job1")
    assert claim(ledger).tag == "job1-0"


def test_a_cancelled_job_claims_nothing_more(ledger: Ledger) -> None:
    """Planned rows end as cancelled, what is in flight is collected, cached answers stay."""
    publish(ledger, shards=3)
    in_flight = bring(ledger, ShardState.SUBMITTING)
    held = claim(ledger)
    ledger.request_cancel("job1")
    assert ledger.drop_planned("job1") == 1  # not the one a worker has in hand
    ledger.release(held)
    assert ledger.drop_planned("job1") == 1
    tally = ledger.tally("job1")
    assert (tally.counts, tally.open) == (Counts(cancelled=2 * ROWS), ROWS)
    ledger.note_created(in_flight, 1, "b", status="x", due_in_s=0.0)
    waiting = claim(ledger)
    assert waiting.cancel_requested
    ledger.note_cancel_asked(waiting, [1])
    assert ledger.shards_of("job1", ShardState.WAITING)[0].current.cancel_asked
    publish(ledger, "job2", lane=Lane.CACHE)
    ledger.request_cancel("job2")
    assert ledger.drop_planned("job2") == 0
    assert claim(ledger, Lane.CACHE).cancel_requested


def test_a_finished_job_cannot_be_paused_or_cancelled(ledger: Ledger) -> None:
    """What is over stays as it ended."""
    publish(ledger)
    finished(ledger)
    before = everything(ledger)
    ledger.pause("job1", "too late")
    ledger.resume("job1")
    ledger.request_cancel("job1")
    assert everything(ledger) == before


def test_a_cancelled_job_stays_cancelled_over_a_pause(ledger: Ledger) -> None:
    """What lets a cancelled job wait, and go on, does not make it a job that ends as if nobody had cancelled it."""
    publish(ledger)
    ledger.request_cancel("job1")
    ledger.pause("job1", "the key is refused", stopped="budget")
    ledger.resume("job1")
    job = ledger.find_job("job1")
    assert (job.state, job.cancel_requested, job.stopped) == (JobState.RUNNING, True, "cancelled")


def test_a_job_is_finished_by_one_worker(ledger: Ledger, other: Ledger) -> None:
    """One worker builds the results; whoever lost the right changes nothing."""
    publish(ledger)
    assert ledger.claim_finish("job1", LEASE_S) is None  # not all is settled
    settle_all(ledger)
    mine = ledger.claim_finish("job1", LEASE_S)
    assert mine is not None
    assert other.claim_finish("job1", LEASE_S) is None
    assert ledger.claim_finish("job1", LEASE_S) is None  # nor a second engine of this process
    assert ledger.renew_finish(mine, -1.0)
    theirs = other.claim_finish("job1", LEASE_S)
    assert theirs is not None
    assert theirs.epoch > mine.epoch  # result files are named by it
    assert not ledger.renew_finish(mine, LEASE_S)
    before = everything(ledger)
    ledger.give_back_finish(mine)
    assert not ledger.finish(mine, JobState.FAILED, counts={}, results=[StoredFile(a_file("r0"), "results")])
    assert everything(ledger) == before
    assert other.finish(theirs, JobState.COMPLETED, counts=COUNTS, results=[StoredFile(a_file("r1"), "results", n=2)])
    job = ledger.find_job("job1")
    assert (job.state, job.counts) == (JobState.COMPLETED, COUNTS)
    assert job.finished_at is not None
    assert [f.ref.path for f in ledger.files_of("job1", "results")] == ["r1"]
    assert ledger.claim_finish("job1", LEASE_S) is None


def test_the_right_to_finish_can_be_given_back(ledger: Ledger, other: Ledger) -> None:
    """A disk that filled while building delays nobody."""
    publish(ledger)
    settle_all(ledger)
    mine = ledger.claim_finish("job1", LEASE_S)
    assert mine is not None
    ledger.give_back_finish(mine)
    assert other.claim_finish("job1", LEASE_S) is not None


def test_a_rebuild_switches_results_in_one_commit(ledger: Ledger) -> None:
    """Readers see the old range or the new one, never both or none."""
    publish(ledger)
    settle_all(ledger)
    for n in (1, 2):
        ripe = ledger.claim_finish("job1", LEASE_S)
        assert ripe is not None
        results = [StoredFile(a_file(f"results/{first}.{n}"), "results", n=n, first=first, last=first + 4)
                   for first in (0, 5)]  # fmt: skip
        assert ledger.finish(ripe, JobState.COMPLETED, counts=COUNTS, results=results)
        assert [f.ref.path for f in ledger.files_of("job1", "results")] == [f"results/0.{n}", f"results/5.{n}"]
        ledger.extend(ledger.find_job("job1"), [], [])


def test_a_retry_reopens_a_finished_job_once(ledger: Ledger, other: Ledger) -> None:
    """Two retries at once send the failed rows once: the second is told that the job changed."""
    publish(ledger)
    finished(ledger, JobState.FAILED)
    seen = other.find_job("job1")
    again = [new_shard("job1-1", count=3)]
    ledger.extend(seen, again, [], spec={"b": 2})
    before = everything(ledger)
    with pytest.raises(Conflict):
        other.extend(seen, [new_shard("job1-2", count=3)], [])
    assert everything(ledger) == before
    job = ledger.find_job("job1")
    assert (job.state, job.finished_at, job.counts, job.spec) == (JobState.RUNNING, None, None, {"b": 2})
    assert claim(ledger).tag == "job1-1"


def test_a_retry_beside_a_newer_job_of_the_same_kind_is_refused(ledger: Ledger) -> None:
    """There is one unfinished job of a fingerprint, also when an older one would come back."""
    publish(ledger, fingerprint="same")
    finished(ledger)
    publish(ledger, "job2", fingerprint="same")
    before = everything(ledger)
    with pytest.raises(Conflict):
        ledger.extend(ledger.find_job("job1"), [new_shard("job1-1")], [])
    assert everything(ledger) == before


def test_the_tally_adds_up_in_every_state(ledger: Ledger) -> None:
    """Final outcomes and open requests are always all requests; what went out is counted once."""
    publish(ledger, shards=3)
    total = 3 * ROWS

    def adds_up(sent: int, open_: int) -> None:
        tally = ledger.tally("job1")
        assert (tally.counts.total + tally.open, tally.sent, tally.open) == (total, sent, open_)

    adds_up(0, total)
    shard = intended(ledger, claim(ledger))
    adds_up(ROWS, total)
    ledger.note_not_sent(shard, 1, due_in_s=1e6, reason="limit")
    adds_up(0, total)
    shard = bring(ledger, ShardState.COLLECTING)
    adds_up(ROWS, total)
    left = (new_shard("job1-7", count=2, expiries=1), new_shard("job1-8", count=1, attempt=2))
    counts = Counts(succeeded=6, failed=2, expired=2)
    ledger.settle(shard, done(shard, counts=counts, resent=Counts(failed=1, expired=2), leftovers=left))
    adds_up(ROWS, total - 7)
    ledger.settle(claim(ledger), Settlement(Counts(failed=ROWS), ()))  # from planned, as a cancelled job's
    adds_up(ROWS, total - 7 - ROWS)
    ledger.request_cancel("job1")
    ledger.drop_planned("job1")
    adds_up(ROWS, 0)
    assert money(ledger)[1] == 0


def test_alerts_are_kept_in_order(ledger: Ledger) -> None:
    """What a person should look at, oldest first, per job."""
    publish(ledger)
    publish(ledger, "job2")
    ledger.alert("job1", "job1-0", "in_doubt", "first")
    ledger.alert("job2", None, "late_batch", "another's")
    ledger.alert("job1", None, "late_batch", "second")
    assert ledger.alerts_of("job1") == [("in_doubt", "job1-0", "first"), ("late_batch", None, "second")]


def test_records_are_frozen(ledger: Ledger) -> None:
    """What the ledger hands out cannot be changed behind its back."""
    job = publish(ledger)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.state = JobState.COMPLETED  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim(ledger).count = 1  # type: ignore[misc]


def test_the_mean_answer_counts_every_answer_that_was_paid_for(ledger: Ledger) -> None:
    """Answers that were cut or unfit are in the sum of tokens, so they are in the number too."""
    publish(ledger)
    assert ledger.mean_output_tokens("provider/model", "t") is None
    shard = bring(ledger, ShardState.COLLECTING)
    counts = Counts(succeeded=1, failed=ROWS - 1)
    ledger.settle(shard, done(shard, counts=counts, tokens_out=2000 * ROWS, failures={"truncated": ROWS - 1}))
    assert ledger.mean_output_tokens("provider/model", "t") == 2000
    assert ledger.mean_output_tokens("provider/model", "another task") is None


def test_the_mean_answer_is_that_of_first_asks(ledger: Ledger) -> None:
    """What another model, or the same one asked again, wrote on a further step says nothing of the next first ask."""
    publish(ledger)
    again = new_shard("job1-1", rung=1)
    first = bring(ledger, ShardState.COLLECTING)
    ledger.settle(first, done(first, counts=Counts(failed=ROWS), resent=Counts(failed=ROWS), tokens_out=20 * ROWS,
                              leftovers=(again,)))  # fmt: skip
    second = bring(ledger, ShardState.COLLECTING)
    assert second.rung == 1
    ledger.settle(second, done(second, tokens_out=9_000 * ROWS))
    assert ledger.mean_output_tokens("provider/model", "t") == 20


def test_what_providers_cached_of_prompts_is_summed(ledger: Ledger) -> None:
    """Read, written and saved are in the job's numbers and its savings; how often it was found is known by lane."""
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(
        shard, done(shard, counts=Counts(succeeded=ROWS), tokens_cached=70, tokens_written=30, caching_nanos=-5)
    )
    tally, saved = ledger.tally(shard.job_id), ledger.saved(shard.job_id)[shard.job_id]
    assert (tally.tokens_cached, tally.tokens_written, tally.caching_nanos) == (70, 30, -5)
    assert (saved.caching_nanos, saved.saved_nanos) == (-5, saved.real_time_nanos - saved.paid_nanos)
    other = next(lane for lane in (Lane.BATCH, Lane.LIVE) if lane is not shard.lane)
    assert ledger.cached_so_far("provider/model", "t", shard.lane) == (70, 30)
    assert ledger.cached_so_far("provider/model", "t", other) == (0, 0)
    assert ledger.cached_so_far("provider/model", "another task", shard.lane) == (0, 0)
