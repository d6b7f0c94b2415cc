"""nightmill from Python, as a script, a notebook and several threads use it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from cli_kit import MODEL, QUICK, Place

import nightmill as nm
from nightmill import errors
from nightmill.mill import adopting
from nightmill.plan import foreign
from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "answer_sigma": 0.0}
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
ECHO: dict[str, Any] = {"prompt": "{{ text }}", "model": "python:funcs.upper"}


def enter(place: Place, patch: pytest.MonkeyPatch) -> Place:
    """Be a program that was started in that folder."""
    for name in set(os.environ) - set(place.env):
        patch.delenv(name)
    for name, value in place.env.items():
        patch.setenv(name, value)
    patch.chdir(place.folder)
    patch.syspath_prepend(place.folder)
    patch.delitem(sys.modules, "funcs", raising=False)
    return place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return enter(Place(tmp_path), monkeypatch)


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with in_thread(SimulatorConfig(**FAST, batch_s=20)) as url:
        yield enter(Place(tmp_path, url), monkeypatch)


class Sentiment(pydantic.BaseModel):
    label: str
    score: float


def said(job: nm.Job) -> list[str | None]:
    return [result.response for result in job.results()]


@pytest.mark.req("A8", "B2")
def test_a_file_a_prompt_a_model_and_a_budget_give_a_table(hosted: Place) -> None:
    """The first example: rows of a file through a provider, checked answers as a table, every cent known."""
    Path("reviews.csv").write_text("id,text\na,Good.\nb,Bad.\n" + "".join(f"r{i},Fair {i}.\n" for i in range(12)))
    job = nm.run(
        "reviews.csv", prompt="Sentiment of: {{ text }}", model=MODEL, schema=Sentiment, budget=0.5, name="reviews"
    )
    table = job.table()
    assert (job.state, job.lane, job.name) == ("completed", "batch", "reviews")
    assert table.column("key").to_pylist()[:2] == ["a", "b"]
    assert table.schema.field("label").type == pa.string()
    assert table.schema.field("score").type == pa.float64()
    first = next(job.results())
    assert Sentiment(**first.parsed).label == table.column("label")[0].as_py()
    assert round(job.spent * 1e9) == hosted.invoice()["total_nanos"]
    assert job.spent == pytest.approx(sum(result.cost_usd for result in job.results()))
    assert job.export("answers.csv", "parquet:answers") == 14
    with pytest.raises(errors.UsageError, match="exists"):
        nm.Mill().submit(["x"], **ECHO).export("answers.csv")


ROWS = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]
TABLE = pa.Table.from_pylist(ROWS)


class Stream:
    """What any library's table offers."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return TABLE.__arrow_c_stream__(requested_schema)


@pytest.mark.req("A8", "D8")
@pytest.mark.parametrize(
    "source",
    [
        lambda: ROWS,
        lambda: (dict(row) for row in ROWS),
        lambda: pd.DataFrame(ROWS, index=["x", "y"]),
        lambda: pl.DataFrame(ROWS),
        lambda: TABLE,
        TABLE.to_reader,
        lambda: TABLE.to_batches()[0],
        Stream,
    ],
    ids=["dicts", "generator", "pandas", "polars", "arrow", "reader", "batch", "stream"],
)
def test_rows_of_every_kind_are_asked(place: Place, source: Callable[[], Any]) -> None:
    """Dicts, generators, DataFrames and whatever speaks Arrow are rows with the same columns."""
    job = nm.run(source(), prompt="{{ text }} {{ n }}", model="python:funcs.upper")
    assert said(job) == ["ONE 1", "TWO 2"]


@pytest.mark.req("A8")
@pytest.mark.parametrize("wrap", [list, iter, pd.Series, pl.Series, pa.array], ids=lambda wrap: wrap.__name__)
def test_texts_are_rows_with_a_text(place: Place, wrap: Callable[[Any], Any]) -> None:
    """A list, a generator or a column of texts needs no other name than text; nothing of it is skipped."""
    assert said(nm.run(wrap(["one", "# two"]), **ECHO)) == ["ONE", "# TWO"]


@pytest.mark.req("A8")
def test_answers_come_as_the_frames_that_people_use(place: Place) -> None:
    """Results are Arrow, and DataFrames of pandas and polars."""
    job = nm.run(["one", "two"], **ECHO)
    assert job.pandas()["response"].tolist() == ["ONE", "TWO"]
    assert job.polars()["response"].to_list() == ["ONE", "TWO"]
    assert job.table().column_names == job.polars().columns


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "list: no rows"),
        (["fine", 5], "list:2: of type int"),
        (["fine", ""], "list:2: no text"),
        (["fine", "half \ud800"], "list:2"),
        ([{"text": ENDLESS}], "list:1"),
        (["funcs.py"], "list of names of files"),
        ({"text": "one"}, "list of texts or of dicts"),
        (b"one", "bytes"),
        (5, "int"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(place: Place, source: Any, words: str) -> None:
    """Nothing is begun where rows cannot be sent, and the message says which."""
    mill = nm.Mill()
    with pytest.raises(errors.InputError) as refused:
        mill.run(source, **ECHO)
    assert words in f"{refused.value.what} {refused.value.why} {refused.value.fix}"
    assert mill.jobs() == []


@pytest.mark.parametrize(
    "options",
    [
        {"promt": "x"}, {"limit": 0}, {"limit": True}, {"on_error": "often"}, {"lane": "fast"}, {"budget": "much"},
        {"budget": -1}, {"temperature": float("nan")}, {"model": 5}, {"set": {"a": 1}}, {"rpm": 0}, {"schema": 3},
    ],
)  # fmt: skip
def test_an_option_that_means_nothing_is_refused(place: Place, options: dict[str, Any]) -> None:
    """A misspelt name or an impossible value is told before anything is read, as an error of ours."""
    with pytest.raises(errors.UsageError) as refused:
        nm.run(["one"], **{**ECHO, **options})
    assert all((refused.value.what, refused.value.why, refused.value.fix))
    assert next(iter(options)) in refused.value.what or refused.value.what.endswith("an amount of dollars")


@pytest.mark.req("A8", "D8")
def test_the_same_rows_go_on_with_the_same_job(place: Place) -> None:
    """Rows are known by what they are: a list after a generator, in the next call, finishes what that began."""
    mill = nm.Mill()
    begun = mill.submit((f"row {i}" for i in range(3)), **ECHO)
    again = mill.submit([f"row {i}" for i in range(3)], **ECHO)
    assert begun == again
    assert [job.id for job in mill.jobs(unfinished=True)] == [begun.id]
    assert mill.run([f"row {i}" for i in range(3)], **ECHO) == begun
    assert mill.jobs(unfinished=True) == []
    assert len(place.calls()) == 3


@pytest.mark.req("A8")
def test_tasks_prompts_in_files_and_samples_are_asked_for_as_on_the_command_line(place: Place) -> None:
    """A function that `task` made, a prompt behind an @, and rows taken at random; a task that is none is refused."""

    @nm.task
    def greet(row: dict[str, str], word: str = "hi") -> str:
        return f"{word} {row['text']}"

    assert said(nm.run(["one"], task=greet, set={"word": "ho"}, model=ECHO["model"])) == ["HO ONE"]
    Path("ask.txt").write_text("say {{ text }}\n")
    assert said(nm.run(["two"], prompt="@ask.txt", model=ECHO["model"])) == ["SAY TWO"]
    some = nm.run([f"row {i}" for i in range(9)], **ECHO, sample=3, seed=1)
    assert some.counts["rows"] == 3
    with pytest.raises(errors.UsageError, match="task"):
        nm.run(["one"], task=len, model=ECHO["model"])  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="no-such"):
        nm.run(["one"], prompt="@no-such.txt", model=ECHO["model"])


@pytest.mark.req("A8")
def test_both_forms_work_where_a_loop_runs(place: Place) -> None:
    """In a notebook the blocking form works as it does elsewhere, and the async one shares the loop."""

    async def cell() -> tuple[nm.Job, nm.Job]:
        return nm.run(["one"], **ECHO), await nm.arun(["two"], **ECHO)

    one, two = asyncio.run(cell())
    assert (said(one), said(two)) == (["ONE"], ["TWO"])


@pytest.mark.req("A8", "D8")
def test_several_threads_run_jobs_at_once(place: Place) -> None:
    """Each thread gets its own answers, and all of them keep one ledger."""
    met = threading.Barrier(3, timeout=30)

    def together(messages: list[dict[str, str]]) -> str:
        met.wait()
        return messages[-1]["content"].upper()

    found: dict[str, list[str | None]] = {}

    def work(text: str) -> None:
        found[text] = said(nm.run([text], prompt="{{ text }}", model=together))

    threads = [threading.Thread(target=work, args=(text,)) for text in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"one": ["ONE"], "two": ["TWO"], "three": ["THREE"]}
    assert [job.state for job in nm.Mill().jobs()] == ["completed"] * 3


@pytest.mark.req("D8")
def test_results_are_streamed_in_the_order_they_come(place: Place) -> None:
    """A row that takes long holds up no other, and every row comes once, duplicates too."""
    others_came = threading.Event()

    def answer(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        if text == "row 0" and not others_came.wait(30):
            raise TimeoutError
        return text.upper()

    rows = [*(f"row {i}" for i in range(6)), "row 3"]
    job = nm.Mill().submit(rows, prompt="{{ text }}", model=answer)

    async def collect() -> list[int]:
        came: list[int] = []
        async for result in job.stream():
            assert result.response == rows[result.index].upper()
            came.append(result.index)
            if len(came) == 6:
                others_came.set()
        return came

    came = asyncio.run(collect())
    assert came[-1] == 0
    assert sorted(came) == list(range(7))
    assert [result.index for result in job.stream()] == list(range(7))  # again, from the beginning


@pytest.mark.req("D8")
def test_who_leaves_a_stream_comes_back_to_the_rest(place: Place) -> None:
    """To leave the loop ends the work gently; a new stream has all results, and no row is asked twice."""
    job = nm.Mill().submit([f"row {i}" for i in range(700)], **ECHO)
    for result in job.stream():
        assert result.success
        break
    assert sorted(result.index for result in job.stream()) == list(range(700))
    assert job.state == "completed"
    assert len(place.calls()) == 700


@pytest.mark.req("D8")
def test_rows_that_share_an_answer_are_all_streamed(place: Place) -> None:
    """Duplicates come too, each once, however far from the row that was asked."""
    job = nm.Mill().submit(["same"] * 5_100, **ECHO)
    assert sorted(result.index for result in job.stream()) == list(range(5_100))
    assert place.calls() == ["same"]


@pytest.mark.req("D8")
def test_progress_is_told_and_ends_with_everything(place: Place) -> None:
    """The callback, plain or async, hears of the job until its last row."""
    told: list[nm.Progress] = []
    nm.run(["one", "two"], progress=told.append, **ECHO)
    assert (told[-1].done, told[-1].total, str(told[-1])) == (2, 2, "2 of 2 done, $0.0000")

    async def hear(progress: nm.Progress) -> None:
        told.append(progress)

    asyncio.run(nm.arun(["three"], progress=hear, **ECHO))
    assert (told[-1].done, told[-1].total) == (1, 1)


@pytest.mark.req("D8")
def test_a_callback_that_fails_stops_the_work_and_loses_nothing(place: Place) -> None:
    """What it raised is raised, what was in hand is kept, and the job goes on when it is asked to."""
    rows = [f"row {i}" for i in range(30)]

    def fail(progress: nm.Progress) -> None:
        Path("gate").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nm.run(rows, prompt="{{ text }}", model="python:funcs.gated", progress=fail)
    job = nm.run(rows, prompt="{{ text }}", model="python:funcs.gated")
    assert job.counts["succeeded"] == 30
    assert sorted(place.calls()) == sorted(rows)


@pytest.mark.req("D8")
def test_an_error_strategy_ends_a_job_and_retry_mends_it(place: Place) -> None:
    """`on_error` stops the job with an error that names it; `retry` sends what is left, and only that."""
    mill = nm.Mill()
    with pytest.raises(errors.StoppedByErrors) as stopped:
        mill.run(["one", "bad two"], prompt="{{ text }}", model="python:funcs.picky", on_error="stop")
    assert stopped.value.job_id is not None
    job = mill.job(stopped.value.job_id)
    assert [(group.kind, group.count, group.row) for group in job.failures()] == [("model_error", 1, 1)]
    assert ["cannot do bad two" in (result.error or "") for result in job.results(failed=True)] == [True]
    Path("mended").touch()
    assert job.retry().counts["succeeded"] == 2
    assert place.calls().count("one") == 1


@pytest.mark.req("A2", "A8")
def test_a_quote_leaves_no_trace(hosted: Place) -> None:
    """A quote makes no home where there is none, asks nobody and puts nothing on record where there is one; it is
    short of answers that were paid for."""
    rows = [f"row {i}" for i in range(12)]
    asked: dict[str, Any] = {"prompt": "{{ text }}", "model": MODEL}
    assert nm.quote(rows, **asked).requests == 12
    assert (hosted.home.exists(), hosted.log()) == (False, [])
    nm.run(rows[:2], **asked)
    seen = len(hosted.log())
    assert (nm.quote(rows, **asked).requests, nm.quote(rows, **asked).cached) == (10, 2)
    assert (len(nm.Mill().jobs()), len(hosted.log())) == (1, seen)


@pytest.mark.req("A3", "A8")
def test_a_budget_is_an_error_with_its_way_out(hosted: Place) -> None:
    """What would cost too much is refused before anything is sent; a quote tells the price for nothing."""
    rows = [f"row {i}" for i in range(20)]
    priced = nm.quote(rows, prompt="{{ text }}", model=MODEL)
    assert (priced.rows, priced.lane, priced.requests) == (20, "batch", 20)
    assert 0 < priced.expected_usd < priced.at_most_usd
    with pytest.raises(errors.OverBudget) as refused:
        nm.run(rows, prompt="{{ text }}", model=MODEL, budget=priced.expected_usd / 2)
    told = "".join(traceback.format_exception(refused.value))
    assert all(text and text in told for text in (refused.value.what, refused.value.why, refused.value.fix))
    assert hosted.log() == []
    assert nm.Mill().jobs() == []


@pytest.mark.req("B2", "D8")
def test_each_step_alone(hosted: Place) -> None:
    """Submit, pause, resume, watch, cancel and fetch are steps of their own, and a later program takes them up."""
    rows = [f"row {i}" for i in range(12)]
    with nm.Mill() as mill:
        job = mill.submit(rows, prompt="{{ text }}", model=MODEL)
        assert (job.state, hosted.log()) == ("pending", [])
        assert mill.pause(job).state == "paused"
        with pytest.raises(errors.Paused):
            job.watch()
    later = nm.Mill().job(job.id)
    assert later.resumable
    assert later.resume().state == "completed"
    assert later.watch().counts["succeeded"] == 12
    assert len(nm.Mill().results("@last")) == 12
    other = nm.Mill().submit(["another"], prompt="{{ text }}", model=MODEL)
    assert other.cancel().state == "cancelled"
    with pytest.raises(errors.WasCancelled):
        other.watch()
    with pytest.raises(errors.Conflict):
        other.resume()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A provider whose batches nobody sees end on the way out."""
    with in_thread(SimulatorConfig(**FAST, batch_s=1500)) as url:
        yield enter(Place(tmp_path, url), monkeypatch)


@pytest.mark.req("B2", "A8")
def test_a_batch_is_handed_over_by_one_program_and_collected_by_another(slow: Place) -> None:
    """`hand_over` leaves once all is at the provider and says until when to collect; live calls cannot be left."""
    with nm.Mill() as mill:
        job = mill.submit([f"row {i}" for i in range(5)], prompt="{{ text }}", model=MODEL, lane="batch", batch_size=3)
        there = job.hand_over()
        assert (job.state, there.rows, there.rows_left, there.rows_in_doubt) == ("running", 5, 0, 0)
        assert there.done_by is not None
        assert there.collect_by is not None
        assert dt.datetime.now(dt.UTC) < there.done_by < there.collect_by
        assert job.hand_over().batches == there.batches
        live = mill.submit(["one"], prompt="{{ text }}", model=MODEL)
        with pytest.raises(errors.UsageError, match="cannot be handed over"):
            live.hand_over()
    listed = slow.run("batches", "openai", "--json").json["batches"]
    assert {batch["batch_id"] for batch in listed} == {*there.batches}
    assert len(listed) == 2
    done = nm.Mill().job(job.id).watch()
    assert (done.state, done.counts["succeeded"], done.hand_over().batches) == ("completed", 5, ())


@pytest.mark.req("B2", "A8")
def test_a_batch_of_the_official_client_is_monitored_by_its_id(slow: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python writes the batch file, another tool sends it, `adopt` waits for it: its custom_ids are the keys, its bill
    is what was spent, twice is the same job; in a running loop too, which is not kept from anything else by the
    reading of rows. What is no batch is refused."""
    rows = [f"row {i}" for i in range(4)]
    asked: dict[str, Any] = {"prompt": "Say {{ text }}", "model": MODEL, "lane": "batch"}
    quote = nm.quote(rows, save_requests="requests", **asked)
    assert (quote.requests, slow.log()) == (4, [])
    (file,) = Path("requests").iterdir()
    with openai.OpenAI(max_retries=0) as client:
        sent = client.files.create(file=file, purpose="batch")
        made = client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h")
    mill = nm.Mill()
    readers: list[bool] = []

    def take_in(*given: Any) -> foreign.TakenIn:
        readers.append(asyncio._get_running_loop() is None)
        return foreign.take_in(*given)

    monkeypatch.setattr(adopting, "take_in", take_in)
    job = mill.adopt(f"openai/{made.id}", name="theirs")
    assert readers == [True]
    assert (job.state, job.lane, job.counts["rows"]) == ("running", "batch", 4)

    async def cell() -> nm.Job:
        again = await mill.aadopt(f"openai/{made.id}")
        return await again.awatch()

    assert asyncio.run(cell()) == job == mill.job("theirs")
    assert [result.prompt for result in job.results()] == [f"Say row {i}" for i in range(4)]
    names = [json.loads(line)["custom_id"] for line in file.read_text().splitlines()]
    assert [result.key for result in job.results()] == names
    assert all(result.response and result.batch_id == made.id for result in job.results())
    assert round(job.spent * 1e9) == slow.invoice()["total_nanos"]
    for wrong in ("openai", "openai/batch_none", "nobody/batch_1"):
        with pytest.raises(errors.UsageError):
            mill.adopt(wrong)
    assert mill.jobs() == [job]


@pytest.mark.req("D8")
def test_a_function_of_a_module_can_be_resumed_by_any_process(place: Place) -> None:
    """What can be imported is known by its name: the command line finishes what Python began."""
    import funcs  # type: ignore[import-not-found]

    job = nm.Mill().submit(["one"], prompt="{{ text }}", model=funcs.upper)
    assert job.resumable
    done = place.run("resume", job.id)
    assert done.code == 0, done.err
    assert said(job) == ["ONE"]


@pytest.mark.req("D8")
def test_a_function_that_is_in_no_module_says_who_can_go_on(place: Place) -> None:
    """A lambda runs here; another process is told why it cannot, and what to do."""
    job = nm.Mill().submit(["one"], prompt="{{ text }}", model=lambda messages: "mine")
    assert not job.resumable
    elsewhere = place.run("resume", job.id)
    assert elsewhere.code == 2
    assert "the function lambda is not here" in elsewhere.err
    assert "put it into a module" in elsewhere.err
    with pytest.raises(errors.Conflict):
        job._mill.resume(job, model=lambda messages: "yours")
    assert said(job.resume()) == ["mine"]


@pytest.mark.req("D8")
def test_a_function_that_was_changed_is_asked_anew(place: Place) -> None:
    """Answers of an object are never served to a later job: it may not be the same any more."""

    def ask(greeting: str) -> nm.Job:
        return nm.run(["one"], prompt="{{ text }}", model=lambda messages: greeting)

    assert (said(ask("hello")), said(ask("bye"))) == (["hello"], ["bye"])


@pytest.mark.req("A8")
def test_a_notebook_shows_a_job_and_no_foreign_markup(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A job shows as text and as a table, in which names and messages are text."""

    def fail(messages: list[dict[str, str]]) -> str:
        raise ValueError("<script>\x1b[2J")

    job = nm.run(["one"], prompt="{{ text }}", model=fail, name="<b>bold</b>")
    assert repr(job) == f"<Job {job.id}: failed, 0 of 1 ok, 1 failed, $0.000000>"
    assert "&lt;b&gt;bold" in job._repr_html_()
    assert "<script>" not in job._repr_html_()
    job.show()
    shown = capsys.readouterr().out
    assert "ValueError: <script>" in shown
    assert "\x1b" not in shown


INTERRUPTED = """
import os, signal, threading
import nightmill as nm

calls, heard, over = [], threading.Event(), threading.Event()
rows = [f"row {i}" for i in range(300)]

def hear(*_):
    heard.set()
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, hear)

def press():
    heard.clear()
    os.kill(os.getpid(), signal.SIGINT)
    heard.wait(30)

def once(messages):
    calls.append(messages[-1]["content"])
    press() if messages[-1]["content"] == calls[0] else heard.wait(30)
    return "done"

try:
    nm.run(rows, prompt="{{ text }}", model=once)
except KeyboardInterrupt:
    print("interrupted", nm.Mill().job("@last").state)
job = nm.run(rows, prompt="{{ text }}", model=once)
print(job.state, job.counts["succeeded"], len(calls) == len(set(calls)) == 300)

def twice(messages):
    if not over.is_set() and messages[-1]["content"] == "a":
        press()
        press()
    over.wait(30)
    return "done"

try:
    nm.run(["a", "b"], prompt="{{ text }}", model=twice)
except KeyboardInterrupt:
    print("stopped", nm.Mill().job("@last").state)
over.set()
print(nm.run(["a", "b"], prompt="{{ text }}", model=twice).state)
"""


@pytest.mark.req("A8", "D8")
def test_ctrl_c_ends_a_cell_and_the_same_cell_goes_on(place: Place) -> None:
    """The first finishes what is in hand, so that no row is asked twice; the second stops at once; both raise
    KeyboardInterrupt, and the same process can go on without waiting for anything."""
    Path("notebook.py").write_text(INTERRUPTED)
    Path("nightmill.toml").write_text(QUICK + "stop_grace_s = 2.0\n")
    done = subprocess.run(
        [sys.executable, "notebook.py"], check=False, env=place.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["interrupted running", "completed 300 True", "stopped running", "completed"]


@pytest.mark.req("X3")
def test_first_rows_can_be_looked_at_and_stop_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """job.canary has what they showed; too few valid answers raise, and resume goes on all the same."""
    asked: dict[str, Any] = {"prompt": "{{ text }}", "model": MODEL, "max_output": 50, "canary": 4}
    bad = {"fault": "empty_answers", "from_row": 12, "count": 3, "on": "live"}  # of the second job
    with in_thread(SimulatorConfig(**FAST, batch_s=20, faults=[bad])) as url:
        enter(Place(tmp_path, url), monkeypatch)
        job = nm.run([f"good {i}" for i in range(12)], **asked, min_valid=0.5)
        assert job.canary is not None
        assert (job.canary["rows"], job.canary["valid"], job.canary["stopped"]) == (4, 4, None)
        assert job.canary["row_usd"] > 0
        with pytest.raises(errors.StoppedByAnswers, match="too few answers are valid"):
            nm.run([f"bad {i}" for i in range(12)], **asked, min_valid="50%")
        stopped = nm.Mill().job("@last")
        assert (stopped.state, stopped.counts["sent"]) == ("paused", 4)
        assert stopped.resume().counts["succeeded"] == 9
        with pytest.raises(errors.UsageError, match="min_valid = 2"):
            nm.run(["one"], **asked, min_valid=2)
