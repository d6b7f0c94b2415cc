"""What a person sees: real commands in a terminal, rendered, at several widths, with text that lies in wait."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Place
from screen_kit import Screen
from servers_kit import BatchServer, chat, serving

from nightmill.simulator import SimulatorConfig, in_thread

WIDTHS = pytest.mark.parametrize("columns", [60, 100, 200])
HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",  # a title, a cleared screen, a colour
    "abc\u202egnp.exe\u2066x",  # text that shows backwards
    "zero\u200bwidth\ufeff\u2060",
    "W" * 300,
    "日本語のとても長い鍵" * 12,
    "👩\u200d👩\u200d👧 ❤\ufe0f 🇩🇪",
    "e" + "\u0301" * 400,
    "\u1112\u1161\u11ab",  # a Korean syllable in three parts
    "\x9b31m C1 \x85next",
    "line\nbreak\ttab\rreturn",
    "\U000e0041 unseen tag",
    "last key",
]
# Answers every row with what it was asked, fails those that begin so, and keeps the last one waiting.
MODEL_CODE = """
import pathlib, time

def echo(messages, **params):
    text = messages[-1]["content"]
    if text == "last key":
        while not pathlib.Path("gate").exists():
            time.sleep(0.01)
    if text.startswith("fail"):
        raise ValueError(text)
    return text
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "echoing.py").write_text(MODEL_CODE)
    return Place(tmp_path)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A home with a finished job whose name, keys, answers and errors are hostile."""
    place = Place(tmp_path_factory.mktemp("past"))
    (place.folder / "echoing.py").write_text(MODEL_CODE)
    (place.folder / "gate").touch()
    assert place.run(*hostile_run(place), "--name", HOSTILE[0] + HOSTILE[4] + HOSTILE[5]).code == 3
    return place


def hostile_run(place: Place) -> tuple[str, ...]:
    name = "in \x1b[31m\u202e日本.jsonl"
    rows = [json.dumps({"id": text, "text": f"{how}{text}"}) for text in HOSTILE for how in ("", "fail ")]
    (place.folder / name).write_text("\n".join(rows) + "\n")
    return ("run", name, "--prompt", "{{ text }}", "--model", "python:echoing.echo", "--concurrency", "4")


def harmless(screen: Screen) -> None:
    """Nothing that came from outside moved, coloured, named or hid anything; the cursor is free and on a new line."""
    assert screen.screen.title == ""
    colours = {cell.fg for line in screen.screen.buffer.values() for cell in line.values()}
    assert colours <= {"default", "green"}
    assert not re.search(
        "[\u200b\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f\x80-\x9f]", "".join(screen.lines)
    )
    assert not screen.screen.cursor.hidden
    assert screen.screen.cursor.x == 0
    assert screen.echoes()


def boxed(lines: list[str]) -> list[str]:
    """The lines of the quote's box, each closed on both sides and all equally wide."""
    top = next(at for at, line in enumerate(lines) if line.startswith("┌"))
    bottom = next(at for at, line in enumerate(lines) if line.startswith("└"))
    box = lines[top : bottom + 1]
    assert {len(line) for line in box} == {len(box[0])}
    assert all(line[0] == line[-1] == "│" for line in box[1:-1])
    return box


@pytest.mark.req("C3")
@WIDTHS
def test_a_run_is_followed_on_one_panel_that_fits(place: Place, columns: int) -> None:
    """Bar with item, count, percent, elapsed and ETA; a table with total, processed, failed, success rate, pace,
    tokens, cost, elapsed and ETA; drawn in place, whatever keys, names and errors are made of."""
    with Screen(place, columns) as screen:
        running = screen.start(*hostile_run(place), "--out", "o \x1b[31m.jsonl")
        screen.until("23/24")
        screen.type("typed\r\r")
        screen.until("elapsed 0:00:01")
        lines = screen.lines
        bar = screen.line("sending")
        assert re.search(r"━+─+ +95 %  23/24  ", bar)
        assert re.search(r"ETA \d:\d\d:\d\d", bar)
        assert bool(re.search(r":\d\d  ETA", bar)) is (columns > 60)
        table = " ".join(lines[lines.index(bar) :])
        for part in ("total 24", "processed 23", "ok 11", "failed 12 (model_error 12)", "success 47 %", " a minute",
                     "elapsed 0:00:0", "ETA 0:0", " in, ", "spent $0.00", "Ctrl-C finishes"):  # fmt: skip
            assert part in table
        assert sum("processed" in line for line in lines) == 1
        assert not any("typed" in line for line in lines)
        boxed(lines)
        assert all(line[:1] in "└┌│s j0123456789i" for line in lines if line), lines
        (place.folder / "gate").touch()
        assert screen.end(running) == 3
        lines = screen.lines
        assert sum("processed" in line for line in lines) == 1
        assert not any("Ctrl-C" in line for line in lines)
        assert screen.line("100 %  24/24").startswith("done ")
        assert lines[-1] == "o ␛[31m.jsonl"
        assert "12 of 24 ok" in screen.line("◆ finished with failures")
        harmless(screen)


@pytest.mark.req("C3")
def test_the_item_of_the_bar_is_the_row_answered_last(place: Place) -> None:
    """Its key stands behind the bar, or below it where the window is narrow, cut and on one line."""
    (place.folder / "in.jsonl").write_text(
        json.dumps({"id": HOSTILE[0] + HOSTILE[4], "text": "a"}) + "\n" + json.dumps({"id": "z", "text": "last key"})
    )
    command = ("run", "in.jsonl", "--prompt", "{{ text }}", "--model", "python:echoing.echo", "--concurrency", "1")
    for columns, where in ((60, " last ␛]0;owned"), (100, "50 %  1/2")):
        with Screen(place, columns) as screen:
            running = screen.start(*command, "--new", "--no-cache")
            screen.until("1/2")
            assert "␛]0;owned" in screen.line(where)
            (place.folder / "gate").touch()
            assert screen.end(running) == 0
        (place.folder / "gate").unlink()


@pytest.mark.req("C2")
@WIDTHS
def test_the_quote_says_what_it_costs_and_asks(tmp_path: Path, columns: int) -> None:
    """Regular cost, batch cost, saving and percent, tokens, what is done and what remains; no is the default, and
    --yes skips the question."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        place = Place(tmp_path, url)
        command = ("run", place.rows(15), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch")
        assert place.run(*command, "--limit", "3", "--yes").code == 0
        asked = len(place.log())
        with Screen(place, columns) as screen:
            running = screen.start(*command)
            screen.until("[y/N] ")
            told = " ".join(line.strip("│ ") for line in boxed(screen.lines))
            costs = [float(n) for n in re.findall(r"(?:regular cost|batch cost|saves ≈) \$([\d.]+)", told)]
            assert len(costs) == 3
            assert costs[1] == pytest.approx(costs[0] / 2, rel=0.01)
            assert costs[2] == pytest.approx(costs[0] / 2, rel=0.01)
            assert "(50 %)" in told
            assert re.search(r"tokens ≈ \d+ in, \d+ out", told)
            assert "done before 3" in told
            assert "remaining 12" in told
            assert screen.line("[y/N]").startswith("Send 12 requests, at most $")
            screen.type("\r")
            assert screen.end(running) == 1
            assert screen.line("error: ") == "error: not sent"
            harmless(screen)
        assert len(place.log()) == asked
        done = place.run(*command, "--yes", "--json")
        assert (done.code, done.json["cached"], done.json["sent"]) == (0, 3, 12), done.err


@WIDTHS
def test_what_is_listed_and_shown_fits(past: Place, columns: int) -> None:
    """`jobs` and `show` keep to the window and align, whatever names, keys and errors are made of."""
    with Screen(past, columns) as screen:
        assert screen.run("jobs") == 0
        head, row = screen.lines
        assert head.startswith("ID")
        cells = screen.screen.buffer[1]  # a wide character is one of the line's and two of the screen's
        state = "".join(cells[at].data for at in range(head.index("STATE"), columns))
        assert state.startswith("completed")
        assert "12/24" in row
        harmless(screen)
    with Screen(past, columns) as screen:
        assert screen.run("show", "@last") == 0
        assert screen.lines[0].startswith("job ")
        assert screen.line("model_error").endswith("  e.g. row 1")
        assert screen.line("-0  settled").startswith(screen.lines[0].split(" ")[1])
        harmless(screen)
    with Screen(past, columns, lines=90) as screen:
        assert screen.run("show", "@last", "--failures") == 0
        assert sum(line.startswith("row ") for line in screen.lines) == 12
        assert all(line.startswith(("row ", "  ", "W", "日", "·", "␛")) for line in screen.lines)
        harmless(screen)
    with Screen(past, columns) as screen:
        assert screen.run("results", "@last", "--rows", "0-8") == 0
        harmless(screen)


def test_a_resized_window_and_ctrl_c_leave_one_panel(place: Place) -> None:
    """Narrow, wide again, Ctrl-C twice: one panel, what Ctrl-C does above it, the way back below it."""
    with Screen(place, 100, XTERM_VERSION="XTerm(390)") as screen:  # what pyte does: old lines are not broken anew
        running = screen.start(*hostile_run(place))
        screen.until("23/24")
        for columns, elapsed in ((60, "elapsed 0:00:01"), (100, "elapsed 0:00:02")):
            screen.resize(columns)
            screen.until(elapsed)
            assert sum("processed" in line for line in screen.lines) == 1
            assert screen.line("┌").startswith("┌─ Quote ")
        screen.type("\x03")
        screen.until("again to stop now")
        screen.type("\x03")
        assert screen.end(running) == 130
        assert sum("processed" in line for line in screen.lines) == 1
        lines = screen.lines
        assert lines.index(screen.line("stopping: 1 in hand")) < lines.index(screen.line("sending"))
        assert not any("^C" in line for line in lines)
        assert re.fullmatch(r"  fix: nightmill resume \w+", lines[-1])
        harmless(screen)


def test_q_stops_watching_and_the_job_goes_on(place: Place) -> None:
    """`watch` beside a run ends at the key q, says that the other goes on, and gives the terminal back."""
    running = place.start(*hostile_run(place))
    running.answered(11)
    assert " rows failed so far" in place.run("show", "@last", "--failures").out
    with Screen(place, 80) as screen:
        watching = screen.start("watch")
        screen.until("q or Ctrl-C stops watching")
        assert not screen.echoes()
        screen.type("xq")
        assert screen.end(watching) == 130
        assert screen.line("error: ").startswith("error: left: 23 of 24 rows are done")
        assert screen.line("  why: ") == "  why: another process works on it"
        assert "resume" not in " ".join(screen.lines)
        harmless(screen)
    (place.folder / "gate").touch()
    assert running.end().code == 3


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A home with two jobs whose batches do not end."""
    with in_thread(SimulatorConfig(speed=1000.0, faults=[{"fault": "never_finishes"}])) as url:
        place = Place(tmp_path_factory.mktemp("waiting"), url)
        for count, name in ((12, "first"), (15, "second")):
            rows = place.rows(count, name=f"{name}.txt")
            done = place.run(
                "run", rows, "--prompt", "{{ text }}", "--model", MODEL, "--detach", "--yes", "--name", name
            )
            assert done.code == 0, done.err
        yield place


@WIDTHS
def test_several_jobs_are_watched_a_line_each(waiting: Place, columns: int) -> None:
    """Their sum in one panel, each on a line of its own, and each by its id when it is left."""
    ids = [job["job_id"] for job in waiting.run("jobs", "--json").json["jobs"]]
    with Screen(waiting, columns) as screen:
        watching = screen.start("watch")
        screen.until("Ctrl-C stops here")
        assert screen.lines[0].startswith("2 jobs, waiting at")
        for job, count in zip(ids, (15, 12), strict=True):
            assert re.match(rf" {job} +0 % +0/{count}  waiting at openai", screen.line(f" {job}"))
        screen.type("q")
        assert screen.end(watching) == 130
        names = [line for line in screen.lines if line.startswith("job ")]
        assert names == [f"job {ids[0]} · second", f"job {ids[1]} · first"]
        harmless(screen)


@WIDTHS
def test_nothing_of_a_table_is_lost(waiting: Place, columns: int) -> None:
    """In a narrow window ids, money and files of batches and shards stand below their rows; what to do is said last."""
    batches = waiting.run("batches", "--json").json["batches"]
    with Screen(waiting, columns) as screen:
        assert screen.run("batches") == 0
        told = " ".join(" ".join(screen.lines).split())
        for batch in batches:
            for name in ("batch_id", "status", "shard", "input_file"):
                assert batch[name] in told
        assert "…" not in told
        harmless(screen)
    with Screen(waiting, columns) as screen:
        assert screen.run("show", "first") == 0
        told = " ".join(" ".join(screen.lines).split())
        assert batches[-1]["batch_id"] in told
        assert "spent $0.00 so far" in told
        assert "less than quoted" not in told
        assert screen.line("◑ running · 0 of 12 ok")
        assert screen.lines[-2] == "  nobody works on it now; its batches go on at the provider"
        assert screen.lines[-1] == f"  next: nightmill resume {batches[-1]['job_id']}"
        harmless(screen)


class Lying(BatchServer):
    """A server whose every word lies in wait: ids, states, models, tools, errors, metadata."""

    word = "".join(HOSTILE[:3]) + "\x1b]8;;http://evil\x07link\x1b]52;c;ZXZpbA==\x07\b\b\0" + HOSTILE[8]

    def __init__(self) -> None:
        super().__init__("/v1", self.said)

    def said(self, body: dict[str, Any]) -> Any:
        word, number = self.word, body["messages"][-1]["content"][-1]
        if number == "0":
            return 400, {"error": {"message": word, "type": word, "code": word}}
        if number == "1":
            tool = {"id": word, "type": "function", "function": {"name": word, "arguments": word}}
            return chat(None, model=word, finish="tool_calls", message={"tool_calls": [tool]})
        return chat(word, model=word, finish=word)

    def listed(self, data: list[dict[str, Any]]) -> Any:
        theirs = dict.fromkeys(("id", "status", "endpoint", "input_file_id", "output_file_id", "model"), self.word)
        about = {"metadata": {"description": self.word}, "request_counts": {"total": 1, "completed": 0, "failed": 0}}
        return super().listed([*data, {"object": "batch", "created_at": 1_790_000_000, **theirs, **about}])


@WIDTHS
def test_what_a_provider_says_does_nothing_to_the_screen(tmp_path: Path, columns: int) -> None:
    """Ids, states, models, tools, answers, errors and descriptions of batches, and the warnings about them."""
    with serving(Lying()) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        run = ("run", place.rows(3), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch", "--yes")
        commands = (run, ("batches",), ("show", "@last"), ("show", "@last", "--failures"), ("results", "@last"),
                    ("show", "@last", "--row", "1"), ("show", "@last", "--row", "2"), ("jobs",))  # fmt: skip
        for command in commands:
            with Screen(place, columns, lines=90) as screen:
                assert screen.run(*command) == (3 if command is run else 0), screen.lines
                harmless(screen)
                if command == ("batches",):
                    assert "unknown status" in " ".join(screen.lines)


@pytest.mark.parametrize("columns", [60, 100])
def test_questions_and_errors_break_between_words(waiting: Place, columns: int) -> None:
    """Where they are wider than the window; and what was not agreed to is left as it was."""
    with Screen(waiting, columns) as screen:
        asked = screen.start("cancel", "first")
        screen.until("[y/N] ")
        screen.type("\r")
        assert screen.end(asked) == 1
        question = " ".join(screen.lines[:-2])
        assert "rows: 12; what is done at the provider may still bill. [y/N]" in question
        assert screen.lines[-2:] == ["error: not cancelled", "  why: the answer was no; the job is as it was"]
    with Screen(waiting, columns) as screen:
        assert screen.run("shwo") == 2
        assert "jobs, resume, pause, cancel, retry, results, resolve" in " ".join(" ".join(screen.lines).split())
        assert all(line.startswith(("error: ", "  why: ", "       ", "  fix: ")) for line in screen.lines)


@WIDTHS
def test_results_are_looked_at_on_a_terminal(past: Place, columns: int) -> None:
    """The first twenty rows, a line each, and how to get all; with --format, and in a pipe, every byte as ever."""
    job = past.run("jobs", "--json").json["jobs"][0]["job_id"]
    with Screen(past, columns) as screen:
        assert screen.run("results", "@last") == 0
        head, *rows = screen.lines[:21]
        assert head.split() == ["ROW", "KEY", "ANSWER"]
        assert [row.split()[0] for row in rows] == [str(n) for n in range(20)]
        assert all("✗ model_error: " in row for row in rows[1::2])
        told = " ".join(" ".join(screen.lines[21:]).split())
        assert told == f"there are more. All: nightmill results {job} --out FILE, or here with --format jsonl"
        harmless(screen)
    with Screen(past, columns, lines=300) as screen:
        assert screen.run("results", "@last", "--failed", "--format", "jsonl") == 0
        assert screen.lines[0].startswith('{"index":1,')
    piped = past.run("results", "@last").out.split("\n")[:-1]
    assert [json.loads(line)["index"] for line in piped] == list(range(24))


def test_a_row_is_told_in_words(past: Place) -> None:
    """Truth is yes or no, and what it cost is dollars: no notation of a programming language."""
    said = past.run("show", "@last", "--row", "0").out
    assert "success: yes\n" in said
    assert "cost: $0.00\n" in said
    assert not re.search(r"True|False|None|\de-0", re.sub("shard.*", "", said))


def test_where_nothing_can_be_drawn_lines_are_written(place: Place) -> None:
    """TERM=dumb and a pipe get plain lines without a cursor code; NO_COLOR keeps the panel and loses its colour."""
    (place.folder / "gate").touch()
    command = (*hostile_run(place), "--new", "--no-cache")
    with Screen(place, 100, TERM="dumb") as screen:
        assert screen.run(*command) == 3
        assert b"\x1b" not in screen.raw
        assert screen.lines[-1].startswith("        nightmill results")
    with Screen(place, 100, NO_COLOR="1") as screen:
        assert screen.run(*command) == 3
        assert b"\x1b[" in screen.raw
        assert not re.search(rb"\x1b\[[\d;]*m", screen.raw)
        harmless(screen)
    piped = place.run(*command)
    assert "\x1b" not in piped.err
    assert "done  100 %  24/24" in piped.err
