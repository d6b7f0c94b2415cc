"""Answers that do not fit the schema, step by step up the ladder: rows, money, and nothing asked twice on one step."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults_kit import SCHEMA, House, exact, house

from nightmill.errors import UsageError
from nightmill.ledger import Job
from nightmill.mill import Prepared, RunOptions
from nightmill.plan import Ladder
from nightmill.types import JobState

pytestmark = pytest.mark.req("X5")

BIGGER = "openai/gpt-4o"


def prepared(h: House, rows: int = 8, *, then: list[str] | None = None, **options: Any) -> Prepared:
    """A plan with a schema; ``then``: the models that it escalates to."""
    path = h.folder / "in.csv"
    path.write_text("id,text\n" + "".join(f"k{i},word number {i}\n" for i in range(rows)))
    (h.folder / "schema.json").write_text(json.dumps(SCHEMA))
    given = {"max_output": 400, "prompt": "Say it: {{ text }}", "schema": str(h.folder / "schema.json")} | options
    return h.mill.prepare(RunOptions((str(path),), model=",".join(["openai/gpt-4o-mini", *(then or [])]), **given))


def ran(h: House, rows: int = 8, **options: Any) -> Job:
    return h.run(h.mill.submit(prepared(h, rows, **options)))


def steps(h: House, job: Job) -> list[tuple[str, int, int]]:
    return [(step.name, step.rows, step.valid) for step in h.mill.steps(job)]


def asked_once(h: House, job: Job) -> bool:
    """Whether no row is in two shards of one rung."""
    seen = [(s.rung, row) for s in h.shards(job) for row in rows_of(h, s.file)]
    return len(seen) == len(set(seen))


def rows_of(h: House, file: Any) -> list[int]:
    with h.mill.store.open(file) as stream:
        return [int(json.loads(line)["custom_id"].rpartition("-")[2]) for line in stream]


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_the_whole_ladder(tmp_path: Path, lane: str) -> None:
    """Asked, repaired here, asked again, put to another model: in the end all are valid, each step told and paid."""
    wrong = {"fault": "wrong_schema_answers", "on": ["batch", "live"]}
    faults = [wrong | {"fraction": 0.5, "times": 2}] if lane == "batch" else [wrong | {"times": 6}]
    with house(tmp_path, *faults) as h:
        job = ran(h, lane=lane, repair=True, reask=1, then=[BIGGER], concurrency=1)
        assert job.state is JobState.COMPLETED
        found = steps(h, job)
        asks = [step for step in found if step[0] != "local repair"]
        left = (8, 4, 2) if lane == "batch" else (8, 6, 0)
        assert asks == [
            (name, rows, rows - after)
            for name, rows, after in zip(("first ask", "re-ask 1", BIGGER), left, (*left[1:], 0), strict=True)
            if rows
        ]
        results = h.results(job)
        assert all(row["success"] and json.loads(row["parsed"])["word"] for row in results)
        assert sorted({row["shard"] for row in results}) == sorted(s.tag for s in h.shards(job))
        assert asked_once(h, job)
        exact(h, job)
        spent = sum(step.spent_nanos for step in h.mill.steps(job))
        assert spent == sum(row["cost_nanos"] for row in results) == h.invoice()["total_nanos"]


def test_repair_makes_an_answer_fit_and_the_text_stays_as_it_came(tmp_path: Path) -> None:
    """--repair: prose around JSON that was cut off is no failure; the value is as repaired, the text as it came."""
    with house(tmp_path, {"fault": "invalid_json_answers", "on": ["batch"]}) as h:
        job = ran(h, lane="batch", repair=True)
        rows = h.results(job)
        assert [row["success"] for row in rows] == [True] * 8
        assert all(row["response"].startswith("Sure! Here is the JSON") for row in rows)
        assert all(set(json.loads(row["parsed"])) == {"word"} for row in rows)
        assert steps(h, job) == [("first ask", 8, 0), ("local repair", 8, 8)]
        exact(h, job)


def test_without_a_ladder_an_answer_that_does_not_fit_is_not_asked_for_again(tmp_path: Path) -> None:
    """A paid answer that is wrong is repeated by nobody who was not asked to."""
    with house(tmp_path, {"fault": "wrong_schema_answers", "on": ["batch"]}) as h:
        job = ran(h, lane="batch", then=[])
        assert h.mill.steps(job) == []
        assert (h.tally(job).counts.failed, len(h.batches())) == (8, 1)


def test_the_most_that_further_steps_cost_counts_live_calls_where_there_may_be_any(tmp_path: Path) -> None:
    """Under a deadline what a batch does not do runs live: what is agreed to beforehand covers that."""
    with house(tmp_path) as h:
        most = [
            prepared(h, reask=1, then=[BIGGER], **how).spec["next_at_most_nanos"]
            for how in ({"lane": "live"}, {"lane": "batch", "by": "1h"}, {"lane": "batch"})
        ]
        assert most[0] == most[1] > most[2]


def test_what_a_re_ask_says(tmp_path: Path) -> None:
    """The model sees the row's own part, its answer, what is wrong with it, and the schema."""
    wrong = {"fault": "wrong_schema_answers", "on": ["batch"], "times": 1}
    with house(tmp_path, wrong) as h:
        job = ran(h, 1, lane="batch", reask=1)
        shard = h.shards(job)[-1]
        with h.mill.store.open(shard.file) as stream:
            said = json.loads(stream.readline())["body"]["messages"]
        assert [turn["role"] for turn in said] == ["user", "assistant", "user"]
        assert said[:2] == [
            {"role": "user", "content": "Say it: word number 0"},
            {"role": "assistant", "content": '["unexpected"]'},
        ]
        assert "is not of type" in said[2]["content"]
        assert '"required":["word"]' in said[2]["content"]


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_without_money_for_a_step_its_rows_stay_as_they_are(tmp_path: Path, lane: str) -> None:
    """The budget holds on the ladder, too: what it has no money for is not asked, which is said, and the job ends."""
    with house(tmp_path, {"fault": "wrong_schema_answers", "on": ["batch", "live"]}) as h:
        job = h.mill.submit(prepared(h, lane=lane, reask=2))
        h.run(job, until=lambda h, job: len(h.shards(job)) > 1)
        h.mill.ledger.set_budget(f"job:{job.id}", h.tally(job).spent_nanos + 1)
        job = h.run(job)
        assert job.state is JobState.FAILED
        assert h.alerts(job) == ["ladder_stopped"]
        assert [row["error_kind"] for row in h.results(job)] == ["invalid_output"] * 8
        assert max(shard.rung for shard in h.shards(job) if shard.submissions) < 2
        exact(h, job)


def test_rows_of_a_cancelled_job_stay_as_the_step_before_left_them(tmp_path: Path) -> None:
    """Cancelled on the way up: nothing more is asked, and rows that were answered are not called unsent."""
    wrong = {"fault": "wrong_schema_answers", "on": ["batch"]}
    with house(tmp_path, wrong) as h:
        job = h.mill.submit(prepared(h, lane="batch", reask=1))
        h.run(job, until=lambda h, job: len(h.shards(job)) > 1)
        h.mill.cancel(job)
        job = h.run(job)
        assert job.state is JobState.CANCELLED
        assert [row["error_kind"] for row in h.results(job)] == ["invalid_output"] * 8
        assert h.tally(job).failures == {"invalid_output": 8}
        exact(h, job)


def test_a_ladder_without_a_schema_is_refused(tmp_path: Path) -> None:
    """Where nothing says which answers are wrong, none can be put right: said before anything is sent."""
    with house(tmp_path) as h, pytest.raises(UsageError, match="without a schema"):
        h.submit(reask=1)
    with house(tmp_path) as h, pytest.raises(UsageError, match="without a schema"):
        h.submit(repair=True)


def test_steps_of_a_ladder_make_another_job(tmp_path: Path) -> None:
    """The same rows with another ladder are another job; with the same one they go on with it."""
    with house(tmp_path) as h:
        one, same, other = (prepared(h, lane="batch", reask=n).plan.fingerprint for n in (1, 1, 2))
        assert one == same != other


def test_a_model_further_up_without_a_key_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """Of a model that the ladder may come to, the key is missed before the first row is paid for, not in the end."""
    with house(tmp_path) as h:
        plan = prepared(h, lane="batch", then=["anthropic/claude-haiku-4-5"])
        assert any("ANTHROPIC_API_KEY" in note for note in plan.quote.notes)
        assert Ladder.of(plan.spec).rungs == ()
        rungs = {"next_models": ["anthropic/claude-haiku-4-5"]}  # as if it had been there while the job was planned
        with pytest.raises(UsageError, match="ANTHROPIC_API_KEY"):
            h.mill.submit(replace(plan, spec=plan.spec | rungs))
        assert h.mill.jobs() == []


def test_the_quote_tells_the_steps_and_their_worst_case(tmp_path: Path) -> None:
    """Before anybody agrees to a price it is said what else an answer that does not fit may cost."""
    with house(tmp_path) as h:
        notes = prepared(h, lane="batch", repair=True, reask=2, then=[BIGGER]).quote.notes
        told = next(note for note in notes if note.startswith("answers that do not fit the schema"))
        assert "put right here where that can be, then asked again, up to 2 times, then put to openai/gpt-4o" in told
        assert "at most $" in told
        assert not any("do not fit" in note for note in prepared(h, lane="batch", then=[]).quote.notes)


def test_a_retry_tells_what_further_steps_may_cost_too(tmp_path: Path) -> None:
    """What fits nothing goes up the ladder again: the price that is agreed to before a retry covers that."""
    with house(tmp_path, {"fault": "wrong_schema_answers", "on": ["batch"]}) as h:
        jobs = [ran(h, lane="batch", new=True, **how) for how in ({}, {"reask": 1, "then": [BIGGER]})]
        plain, climbing = (h.mill.prepare_retry(job) for job in jobs)
        assert plain.rows == climbing.rows == 8
        assert climbing.at_most_nanos > 10 * plain.at_most_nanos > 0  # the next model costs sixteen times as much


def test_a_task_says_its_own_ladder(tmp_path: Path) -> None:
    """repair, reask and escalate of a task file hold where the command says nothing, and the command goes before."""
    (tmp_path / "say.toml").write_text(
        'prompt = "{{ text }}"\nreask = 2\nescalate = false\n[schema]\ntype = "object"\nrequired = ["word"]\n'
    )
    with house(tmp_path) as h:
        asked = {"prompt": None, "task": str(tmp_path / "say.toml"), "lane": "batch"}
        said = prepared(h, then=[BIGGER], **asked).spec
        assert [step.name for step in Ladder.of(said).rungs] == ["re-ask", "re-ask"]
        said = prepared(h, then=[BIGGER], reask=0, repair=True, **asked).spec
        assert (Ladder.of(said).repair, Ladder.of(said).rungs) == (True, ())


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_an_answer_that_came_to_fit_is_not_paid_for_again(tmp_path: Path, lane: str) -> None:
    """The same command once more, and more rows: what was repaired or asked again is there, only new rows cost."""
    wrong = {"fault": "wrong_schema_answers", "on": ["batch", "live"]}
    faults = [
        wrong | ({"fraction": 0.5, "times": 1} if lane == "batch" else {"times": 3}),
        {"fault": "invalid_json_answers", "on": ["batch", "live"], "fraction": 0.5},
    ]
    with house(tmp_path, *faults) as h:
        asked: dict[str, Any] = {"lane": lane, "repair": True, "reask": 1, "concurrency": 1}
        first = ran(h, **asked)
        told = {name: valid for name, _, valid in steps(h, first)}
        assert first.state is JobState.COMPLETED
        assert min(told["local repair"], told["re-ask 1"]) > 0
        answered = [(row["success"], row["response"], row["parsed"]) for row in h.results(first)]
        paid = h.invoice()["total_nanos"]
        again = ran(h, **asked)
        assert [(row["success"], row["response"], row["parsed"]) for row in h.results(again)] == answered
        assert (h.invoice()["total_nanos"], h.tally(again).spent_nanos) == (paid, 0)
        h.faults()
        more = h.mill.standing(ran(h, 10, **asked))
        assert (more.cached, more.sent, more.succeeded) == (8, 2, 10)


def test_a_job_without_these_steps_asks_for_itself(tmp_path: Path) -> None:
    """What only fitted after a repair is no answer where nothing is repaired, nor what was asked again elsewhere."""
    with house(tmp_path, {"fault": "invalid_json_answers", "on": ["batch"]}) as h:
        ran(h, lane="batch", repair=True)
        h.faults({"fault": "wrong_schema_answers", "on": ["batch"], "times": 1})
        asked_again = ran(h, lane="batch", reask=1)
        assert steps(h, asked_again) == [("first ask", 8, 0), ("re-ask 1", 8, 8)]
        h.faults()
        bare = h.mill.standing(ran(h, lane="batch"))
        assert (bare.cached, bare.sent) == (0, 8)


def test_rows_that_will_be_asked_again_have_not_failed(tmp_path: Path) -> None:
    """Whoever looks on while the first answers are of no use sees rows that are open, none that failed."""
    wrong = {"fault": "wrong_schema_answers", "on": ["live"], "times": 8}
    seen: list[tuple[int, int]] = []
    with house(tmp_path, wrong, sim={"latency_s": 60.0}) as h:
        job = h.mill.submit(prepared(h, lane="live", reask=1, concurrency=1))
        follower = h.mill.follow([job.id])

        async def watched() -> None:
            working = asyncio.create_task(h.mill.run([job.id]))
            while not working.done():
                (look,) = follower.look()
                seen.append((look.now.failed, look.now.tokens_out))
                await asyncio.sleep(0.02)
            await working

        asyncio.run(watched())
        assert (h.mill.job(job.id).state, {failed for failed, _ in seen}) == (JobState.COMPLETED, {0})
        assert len({tokens for _, tokens in seen}) > 3  # while answers came
