"""What is wrong is told before anything is spent: what, why and how to fix it; no trace stays."""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from bad_input_kit import contents, explained, fill, one_object, small_disk, with_jumping_clock, with_small_files
from cli_kit import COMMAND, MODEL, QUICK, Place, adds_up

import nightmill
from nightmill.cli import _COMMANDS, _group
from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "answer_sigma": 0.0}
UPPER = ("--model", "python:funcs.upper")
SAY = ("--prompt", "{{ text }}")
PAID = (*SAY, "--model", MODEL, "--yes", "--json")
ROWS = "id,text\n" + "".join(f"k{i},row {i}\n" for i in range(12))
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A home in which one job has run: what is refused must leave all of it as it is."""
    place = Place(tmp_path_factory.mktemp("past"))
    assert place.run("run", place.rows(3), *SAY, *UPPER).code == 0
    return place


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with in_thread(SimulatorConfig(**FAST, models=("gpt-house",))) as url:
        yield url


@pytest.fixture
def place(tmp_path: Path, home: Place) -> Place:
    """A folder of its own with rows in it, and the home with a past."""
    place = Place(tmp_path)
    place.home = home.home
    place.env["NIGHTMILL_HOME"] = str(home.home)
    (tmp_path / "c.csv").write_text(ROWS)
    return place


@dataclass(frozen=True, slots=True)
class Refusal:
    """Arguments of ``run``, what lies in the folder, and what has to be said."""

    id: str
    arguments: tuple[str, ...]
    facts: tuple[str, ...]
    files: dict[str, bytes | str] = field(default_factory=dict)
    code: str = "bad_input"
    exit: int = 2


def rows_of(name: str, *facts: str, data: bytes, id: str = "") -> Refusal:  # noqa: A002
    return Refusal(id or name, (name, *SAY, *UPPER), facts, {name: data})


BAD_LINES = b'{"text":"a"}\n{x\n[1]\n"s"\n{"a":\n{"text":1}}\n{\n{\n'
REFUSALS = [
    Refusal("missing file", ("nowhere.txt", *SAY, *UPPER), ("nowhere.txt: no such file", "there is no /")),
    Refusal("mistyped file", ("cc.csv", *SAY, *UPPER), ("did you mean c.csv?",)),
    Refusal("folder", ("e", *SAY, *UPPER), ("e holds nothing that can be read", ".jsonl", "FORMAT:e"),
            {"e/x.doc": "x"}),
    Refusal("no input", SAY, ("no input",), code="usage"),
    rows_of("e.txt", "e.txt is empty", data=b"", id="empty file"),
    rows_of("b.txt", "b.txt holds no rows", data=b"\n \n# x\n", id="only blanks and comments"),
    rows_of("h.csv", "h.csv holds no rows", "header", data=b"id,text\n", id="only a header"),
    rows_of("x.doc", ".doc is not supported", ".jsonl", data=b"x", id="unknown suffix"),
    rows_of("b.jsonl", "--skip", *(f"b.jsonl:{line}: " for line in range(2, 7)), data=BAD_LINES, id="bad JSON lines"),
    rows_of("s.jsonl", "s.jsonl:2: a lone surrogate", data=b'{"text":"a"}\n{"text":"\\ud800"}\n', id="lone surrogate"),
    rows_of("s.txt", "line 2, byte offset 3: byte 0xed", "--enc", data=b"a\nb\xed\xa0\x80\n", id="surrogate bytes"),
    rows_of("r.csv", "r.csv:3: 1 fields; r.csv:4: 3 fields", "--skip", data=b"id,text\n1,a\n2\n3,b,c\n", id="ragged"),
    rows_of("m.csv", "not separated by commas", "a semicolon", data=b"id;text\n1;a, b\n", id="semicolons"),
    rows_of("t.csv", "not separated by commas", "a tab", data=b"id\ttext\n1\ta\n", id="tabs"),
    rows_of("q.csv", "a quote is never closed", "line 3", data=b'id,text\n1,a\n2,"b\n3,c\n', id="open quote"),
    rows_of("v.csv", "rows without a value", "v.csv:3: no text", "--skip", data=b"id,text\n1,a\n2,\n", id="no value"),
    Refusal("key column", ("c.csv", *SAY, *UPPER, "--key", "idd"), ("no column idd", "id, text", "did you mean id?")),
    Refusal("column", ("c.csv", "--prompt", "{{ txet }}", *UPPER), ("uses txet", "key, id, text", "Did you mean text?"),
            code="bad_task"),
    Refusal("single braces", ("c.csv", "--prompt", "Say {text}", *UPPER), ("{text}", "write {{ text }}"),
            code="bad_task"),
    Refusal("template syntax", ("c.csv", "--prompt", "a\nSay {{ text", *UPPER),
            ("an error in line 2", "end of print statement", "Say {{ text"), code="bad_task"),
    Refusal("template that fails", ("c.csv", "--prompt", "{{ text | int // 0 }}", *UPPER),
            ("c.csv:2: ZeroDivisionError",), code="bad_task"),
    Refusal("empty prompt", ("c.csv", "--prompt", "", *UPPER), ("the prompt is empty",), code="bad_task"),
    Refusal("prompt file", ("c.csv", "--prompt", "@nosuch", *UPPER), ("@nosuch", "No such file"), code="bad_task"),
    Refusal("unknown task", ("c.csv", "--task", "defin", *UPPER), ("no task defin", "Did you mean define?"),
            code="bad_task"),
    Refusal("schema", ("c.csv", *SAY, *UPPER, "--schema", "s.json"), ("s.json is no JSON",), {"s.json": "{"},
            code="bad_task"),
    Refusal("unknown provider", ("c.csv", *SAY, "--model", "opnai/gpt-4o"), ("'opnai'", "did you mean openai/gpt-4o?"),
            code="unknown_model"),
    Refusal("model without provider", ("c.csv", *SAY, "--model", "gpt-4o"),
            ("PROVIDER/MODEL", "did you mean openai/gpt-4o?"), code="unknown_model"),
    Refusal("no model", ("c.csv", *SAY), ("no model", "OPENAI_API_KEY", "--model"), code="usage"),
    Refusal("local model", ("c.csv", *SAY, "--model", "local/nosuch"), ("nosuch", ".gguf"), code="usage"),
    Refusal("mistyped local model", ("c.csv", *SAY, "--model", "local/smolm2-135m"),
            ("did you mean local/smollm2-135m?",), code="usage"),
    Refusal("function", ("c.csv", *SAY, "--model", "python:funcs.uper"), ("no uper", "did you mean python:funcs.upper"),
            code="usage"),
    Refusal("no key", ("c.csv", *SAY, "--model", MODEL), ("OPENAI_API_KEY is not set", ".env"), code="no_key"),
    Refusal("foreign output", ("c.csv", *SAY, *UPPER, "--out", "o.jsonl"), ("o.jsonl exists", "--force"),
            {"o.jsonl": "mine"}, code="usage"),
    Refusal("output under a file", ("c.csv", *SAY, *UPPER, "--out", "c.csv/o.jsonl"),
            ("c.csv/o.jsonl cannot be written", "Not a directory"), code="usage"),
    Refusal("row over the limit", ("l.txt", *SAY, *UPPER),
            ("row 0 is too large to send", "l.txt:1: its request has 100,112 bytes", "50,000 at most"),
            {"l.txt": b"x" * 100_000 + b"\n",
             "nightmill.toml": QUICK + "[providers.python.limits]\nrequest_bytes = 50_000\n"}),
    Refusal("unknown key", ("c.csv", *SAY), ("[defaults]: unknown key modle", "did you mean model?"),
            {"nightmill.toml": '[defaults]\nmodle = "x"\n'}, code="usage"),
    Refusal("unknown table", ("c.csv", *SAY), ("unknown table [default]", "did you mean defaults?"),
            {"nightmill.toml": '[default]\nmodel = "x"\n'}, code="usage"),
    Refusal("wrong type", ("c.csv", *SAY), ("[defaults]: max_output = 'x'", "a whole number above 0"),
            {"nightmill.toml": '[defaults]\nmax_output = "x"\n'}, code="usage"),
    Refusal("wrong wait", ("c.csv", *SAY), ("lease_s = 1 is too short", "120"),
            {"nightmill.toml": "[timing]\nlease_s = 1\n"}, code="usage"),
    Refusal("broken TOML", ("c.csv", *SAY), ("nightmill.toml is not valid TOML", "at line 2"),
            {"nightmill.toml": "[defaults]\nmodel =\n"}, code="usage"),
    Refusal("no text", ("c.csv", "--prompt", os.fsdecode(b"\xff {{ text }}"), *UPPER), ("<U+DCFF>", "no UTF-8"),
            code="usage"),
]  # fmt: skip


@pytest.mark.req("B9", "D8")
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.id)
def test_what_cannot_run_is_refused_without_a_trace(place: Place, refusal: Refusal) -> None:
    """Bad rows, names, templates, settings and outputs: facts and a way out, nothing sent, nothing kept."""
    for name, data in refusal.files.items():
        (place.folder / name).parent.mkdir(exist_ok=True)
        (place.folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    before = contents(place.home)
    done = place.run("run", *refusal.arguments, "--json")
    explained(done, refusal.exit, *refusal.facts)
    one_object(done, refusal.code)
    assert contents(place.home) == before
    assert place.calls() == []
    assert all((place.folder / n).read_bytes() == (d.encode() if isinstance(d, str) else d)
               for n, d in refusal.files.items())  # fmt: skip


def test_without_json_stdout_stays_empty(place: Place) -> None:
    """A refusal is narration: stdout, which is data, holds nothing."""
    done = place.run_cold("run", "nowhere.txt", *SAY, *UPPER)
    explained(done, 2, "nowhere.txt")
    assert done.out == ""


def test_every_refusal_in_the_code_says_why_and_how_to_fix_it() -> None:
    """No place in the product refuses without a reason and a way out."""
    kinds = {"UsageError", "InputError", "TaskError", "UnknownModel", "UnknownPrice", "CannotCarry", "OverBudget",
             "Conflict", "StoreError"}  # fmt: skip
    found = 0
    for file in sorted(Path(nightmill.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                found += 1
                assert {"why", "fix"} <= {keyword.arg for keyword in node.keywords}, f"{file}:{node.lineno}"
    assert found > 50


# -- flags -----------------------------------------------------------------------------------------

# A value that means nothing, for every flag whose values are checked.
WRONG = {
    "run --lane": "fast", "run --budget": "-1", "run --rows": "word", "run --limit": "0", "run --on-error": "maybe",
    "run --batch-size": "1.5", "run --temperature": "nan", "run --max-output": "-3", "run --rpm": "0",
    "run --tpm": "inf", "run --concurrency": "many", "run --progress": "loud", "run --sample": "0", "run --seed": "x",
    "jobs --limit": "0", "jobs --state": "lost", "show --row": "-1", "watch --progress": "x", "resume --progress": "x",
    "cancel --progress": "x", "retry --max-output": "0", "retry --temperature": "-1", "retry --progress": "x",
    "results --format": "xml",
    "results --rows": "5-3", "results --progress": "x", "adopt --progress": "x", "gc --older-than": "29d",
    "completion shell": "tcsh",
    "budget set amount": "1e-10", "budget set --day": "x", "budget set --month": "-2",
    "run --canary": "-1", "run --min-valid": "2.5", "run --reask": "x", "run --min-quality": "-1",
    "run --dimensions": "0",
    "simulate --port": "70000", "simulate --speed": "0",
}  # fmt: skip


def _checked_flags() -> dict[str, tuple[str, ...]]:
    """``command --flag`` of every flag that does not take just any text, and how to call it up to the value."""
    found: dict[str, tuple[str, ...]] = {}

    def look(path: tuple[str, ...], command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                sub = command.get_command(click.Context(command), name)
                assert sub is not None
                look((*path, name), sub)
            return
        needed = ["@last" for p in command.params if isinstance(p, click.Argument) and p.required]
        for parameter in command.params:
            free = isinstance(parameter.type, (click.types.StringParamType, click.types.BoolParamType, click.Path))
            if not free:
                is_flag = isinstance(parameter, click.Option)
                name = parameter.opts[0] if is_flag else str(parameter.name)
                found[" ".join((*path, name))] = (*path, "--json", *needed, name if is_flag else "--")

    for name in _COMMANDS:
        command = _group.get_command(click.Context(_group), name)
        assert command is not None
        look((name,), command)
    return found


CHECKED = _checked_flags()


def test_every_checked_flag_is_tried() -> None:
    """A new flag with a number or a choice needs a line in the table above."""
    assert set(CHECKED) - set(WRONG) == set()


@pytest.mark.parametrize("flag", CHECKED)
def test_a_wrong_value_is_named_with_what_it_should_be(place: Place, flag: str) -> None:
    """Every numeric or enumerated flag refuses nonsense before anything is read, and says what it takes."""
    wrong, command = WRONG[flag], CHECKED[flag]
    before = contents(place.home)
    done = place.run(*command, wrong)
    explained(done, 2, wrong, {"budget set amount": "USD", "completion shell": "zsh"}.get(flag, command[-1]))
    one_object(done, "usage")
    assert contents(place.home) == before


def test_an_unknown_flag_is_told_the_nearest(place: Place) -> None:
    """`--bugdet` is met with `--budget`, and with all there are."""
    done = place.run("run", "c.csv", "--bugdet", "1", "--json")
    explained(done, 2, "no option --bugdet", "--concurrency", "did you mean --budget?")
    one_object(done, "usage")


# -- providers, prices, budgets --------------------------------------------------------------------


@pytest.fixture
def paying(tmp_path: Path, url: str) -> Place:
    """A folder and an empty home, with a provider to pay."""
    place = Place(tmp_path, url)
    (tmp_path / "c.csv").write_text(ROWS)
    return place


def tables(home: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{home / 'nightmill.db'}?mode=ro", uri=True)) as db:
        return list(db.execute(query))


def billed(place: Place) -> int:
    return int(place.invoice()["total_nanos"])


@pytest.mark.req("B9")
@pytest.mark.parametrize("lane", ["batch", "live"])
@pytest.mark.parametrize(("key", "reason"), [("sk-wrong", "invalid_api_key"), ("sk-noquota", "insufficient_quota")])
def test_a_key_that_is_refused_pauses_the_job(paying: Place, lane: str, key: str, reason: str) -> None:
    """A wrong key, or one without money, stops the job with the provider's reason; nothing is held, and the right
    key goes on."""
    before = billed(paying)
    paying.env["OPENAI_API_KEY"] = key
    command = ("run", "c.csv", *PAID, "--lane", lane)
    done = paying.run(*command)
    explained(done, 1, reason, "nightmill resume")
    error = one_object(done, "paused")
    assert "OPENAI_API_KEY" in error["why"]
    assert key not in done.err + done.out
    assert done.json["job_id"] in error["fix"]
    assert (done.json["status"], done.json["pending"], done.json["spent_usd"]) == ("paused", 12, 0.0)
    assert tables(paying.home, "SELECT sum(held_nanos), sum(spent_nanos) FROM limits") == [(0, 0)]
    assert tables(paying.home, "SELECT sum(hold_nanos) FROM submissions") == [(0,)]
    assert billed(paying) == before
    paying.env["OPENAI_API_KEY"] = "sk-right"
    again = paying.run(*command)
    assert (again.code, again.json["succeeded"], again.json["job_id"]) == (0, 12, done.json["job_id"]), again.err
    assert round(again.json["spent_usd"] * 1e9) == billed(paying) - before
    assert tables(paying.home, "SELECT sum(held_nanos) FROM limits") == [(0,)]


@pytest.mark.req("B9")
def test_an_unknown_price_shows_the_lines_to_write(paying: Place) -> None:
    """What has no price is refused; the very lines that the message shows make it run, for money and for free."""
    command = ("run", "c.csv", *SAY, "--model", "openai/gpt-house", "--yes", "--json")
    refused = paying.run(*command)
    explained(refused, 2, '[models."openai/gpt-house"]', "price = { input = 1.00, output = 4.00 }", 'price = "free"')
    fix = one_object(refused, "unknown_price")["fix"]
    assert contents(paying.home)["jobs"] == []
    tables_shown = re.findall(r"^(\[models\..*\])\n(price = .*)$", fix, re.MULTILINE)
    assert len(tables_shown) == 2
    toml = paying.folder / "nightmill.toml"
    for (table, price), spends in zip(tables_shown, (True, False), strict=True):
        toml.write_text(f"{table}\n{price}\n{QUICK}")
        done = paying.run(*command, *(("--dry-run",) if spends else ()))
        assert done.code == 0, done.err
        assert (done.json["at_most_usd"] > 0) is spends
    assert (done.json["succeeded"], done.json["spent_usd"]) == (12, 0.0)


@pytest.mark.req("A2", "A3")
def test_a_dry_run_needs_no_key(place: Place) -> None:
    """What a hosted model would cost is told before there is a key for it, and that there is none."""
    told = place.run("run", "c.csv", *SAY, "--model", MODEL, "--dry-run", "--json")
    assert told.code == 0, told.err
    assert told.json["at_most_usd"] > 0
    assert "OPENAI_API_KEY is not set" in told.err
    assert place.calls() == []


@pytest.mark.req("A2", "A3")
def test_a_budget_too_small_refuses_and_a_dry_run_only_says_so(paying: Place) -> None:
    """Exit 4 with the amounts before anything is sent, and nothing stays; the rehearsal tells the same, with exit 0."""
    asked = len(paying.log())
    command = ("run", "c.csv", *PAID, "--budget", "0.0000002")
    told = paying.run(*command, "--dry-run")
    assert told.code == 0, told.err
    assert told.json["affordable"] is False
    assert "it would be refused:\nerror: " in told.err
    assert not paying.home.exists()
    done = paying.run(*command)
    explained(done, 4, "has $0.0000002 free", "the limit job is $0.0000002", "--budget", "at most $0.00")
    one_object(done, "over_budget")
    assert contents(paying.home)["jobs"] == []
    assert tables(paying.home, "SELECT count(*) FROM jobs") == [(0,)]
    assert tables(paying.home, "SELECT sum(held_nanos) FROM limits") == [(0,)]
    assert len(paying.log()) == asked


@pytest.mark.req("B9")
def test_money_is_not_spent_where_nobody_can_be_asked(paying: Place) -> None:
    """Without a terminal and without --yes a job that costs is refused and leaves nothing."""
    asked = len(paying.log())
    done = paying.run("run", "c.csv", *SAY, "--model", MODEL, "--json")
    explained(done, 2, "stdin is no terminal", "--yes")
    one_object(done, "usage")
    assert contents(paying.home)["jobs"] == []
    assert tables(paying.home, "SELECT count(*) FROM jobs") == [(0,)]
    assert len(paying.log()) == asked


def test_a_name_belongs_to_one_unfinished_job(paying: Place) -> None:
    """The name of an unfinished job is refused to another, naming the first, which stays as it is."""
    paying.env["OPENAI_API_KEY"] = "sk-wrong"
    first = paying.run("run", "c.csv", *PAID, "--name", "nightly")
    before = contents(paying.home)
    (paying.folder / "other.txt").write_text("another row\n")
    done = paying.run("run", "other.txt", *PAID, "--name", "nightly")
    explained(done, 2, "the name nightly", first.json["job_id"], "--name")
    one_object(done, "conflict")
    assert contents(paying.home) == before


def test_two_processes_work_in_one_home(paying: Place) -> None:
    """The same command twice at once is one job, paid once; another command beside it is a job of its own."""
    before = paying.invoice()
    (paying.folder / "other.txt").write_text("".join(f"line {i}\n" for i in range(12)))
    inputs = ("c.csv", "c.csv", "other.txt")
    running = [paying.start("run", name, *PAID, "--lane", "batch") for name in inputs]
    ended = [each.end() for each in running]
    assert [done.code for done in ended] == [0, 0, 0], [done.err for done in ended]
    assert len({done.json["job_id"] for done in ended[:2]} | {ended[2].json["job_id"]}) in (2, 3)
    after = paying.invoice()
    assert after["executed_rows"] - before["executed_rows"] == 24
    spent = tables(paying.home, "SELECT spent_nanos, held_nanos FROM limits WHERE scope = 'total'")
    assert spent == [(after["total_nanos"] - before["total_nanos"], 0)]


# -- rows that are odd but fine --------------------------------------------------------------------


def test_odd_rows_run_and_come_back_as_they_were(place: Place) -> None:
    """A byte order mark, NUL characters, keys that occur twice and 100,000 characters are rows like any other."""
    long = "y" * 100_000
    text = "\ufeffid,text\n1,a\n1,n\0ul\n2," + long + "\n"
    (place.folder / "odd.csv").write_text(text, encoding="utf-8")
    done = place.run("run", "odd.csv", *SAY, *UPPER, "--out", "o.jsonl")
    assert done.code == 0, done.err
    assert "rows with the key of an earlier row: 1; all are kept" in done.err
    results = place.results("o.jsonl")
    assert [row["key"] for row in results] == ["1", "1", "2"]
    assert [row["response"] for row in results] == ["A", "N\0UL", long.upper()]


def test_a_closed_pipe_is_no_error(place: Place) -> None:
    """Whoever stops reading stdout ends the command in silence."""
    jobs = f"{' '.join(COMMAND)} jobs"
    line = f"set -e -o pipefail; {jobs} | true; {jobs} --json | true"
    done = subprocess.run(
        ["bash", "-c", line], check=False, cwd=place.folder, env=place.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- ledgers and homes -----------------------------------------------------------------------------


def _foreign(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("CREATE TABLE jobs (photo)")
        db.commit()


def _half(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 2])


def _newer(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'revision'")
        db.commit()


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (lambda ledger: ledger.write_bytes(b"no database at all\n" * 500), 1, ("file is not a database", "backup")),
        (_foreign, 2, ("no ledger of nightmill", "other tables: jobs", "NIGHTMILL_HOME")),
        (_half, 1, ("malformed", "backup")),
        (_newer, 2, ("a newer nightmill", "revision is 99", "upgrade")),
        (lambda ledger: ledger.mkdir(), 1, ("unable to open", "nightmill.db")),
    ],
    ids=["no database", "foreign", "cut in half", "newer", "a folder"],
)
def test_a_ledger_that_is_not_ours_is_left_alone(
    tmp_path: Path, home: Place, change: Any, code: int, facts: tuple[str, ...]
) -> None:
    """A broken, foreign or newer ledger is refused, and not a byte of it is changed."""
    place = Place(tmp_path)
    place.home.mkdir()
    ledger = place.home / "nightmill.db"
    if change in (_half, _newer):
        with closing(sqlite3.connect(home.home / "nightmill.db")) as old, closing(sqlite3.connect(ledger)) as new:
            old.backup(new)
    change(ledger)
    before = ledger.read_bytes() if ledger.is_file() else b""
    done = place.run("run", place.rows(3), *SAY, *UPPER, "--json")
    explained(done, code, str(ledger), *facts)
    one_object(done)
    assert (ledger.read_bytes() if ledger.is_file() else b"") == before
    assert place.calls() == []
    assert not list(place.home.glob("jobs/*"))


@pytest.mark.parametrize("where", ["c.csv/home", "/proc/nightmill"])
def test_a_home_that_cannot_be_is_named(place: Place, where: str) -> None:
    """A home under a file, or where the system lets nobody write, is exit 1 with the variable that moves it."""
    place.env["NIGHTMILL_HOME"] = str(place.folder / where)
    done = place.run("run", "c.csv", *SAY, *UPPER, "--json")
    explained(done, 1, where, "NIGHTMILL_HOME")
    one_object(done, "store")
    assert place.calls() == []


def test_read_only_folders_are_found_out_before_money_is_spent(tmp_path: Path, home: Place) -> None:
    """Permissions bind no superuser, a read-only disk does: neither home nor output is tried too late."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        place = Place(tmp_path)
        place.rows(3)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        place.env["NIGHTMILL_HOME"] = str(disk / "home")
        refused = place.run("run", "in.txt", *SAY, *UPPER, "--json")
        explained(refused, 1, "Read-only file system", "NIGHTMILL_HOME")
        place.env["NIGHTMILL_HOME"] = str(home.home)
        before = contents(home.home)
        done = place.run("run", "in.txt", *SAY, *UPPER, "--out", str(disk / "new" / "o.jsonl"), "--json")
        explained(done, 2, "o.jsonl cannot be written", "Read-only file system")
        one_object(done, "usage")
        assert contents(home.home) == before
        assert place.calls() == []


# -- disks that fill up ----------------------------------------------------------------------------


def test_a_plan_too_large_for_the_disk_leaves_room_again(tmp_path: Path) -> None:
    """A disk that is full while planning: exit 1, nothing sent, no part of the plan stays; with more room it runs."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        place = Place(tmp_path)
        place.home = disk / "home"
        place.env["NIGHTMILL_HOME"] = str(place.home)
        command = ("run", place.rows(300, "{:04} " + os.urandom(2_000).hex()), *SAY, *UPPER, "--json")
        done = place.run(*command)
        explained(done, 1, str(disk))
        assert re.search("No space left on device|disk is full", done.err)
        one_object(done, "store")
        assert contents(place.home)["jobs"] == []
        assert place.calls() == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = place.run(*command)
        assert (again.code, again.json["succeeded"]) == (0, 300), again.err


@pytest.mark.req("B9")
def test_files_that_may_not_grow_are_told_like_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files is a full disk without root: exit 1, nothing sent, and it runs without it."""
    place = Place(tmp_path)
    command = ("run", place.rows(300, "{:04} " + "word " * 500), *SAY, *UPPER, "--json")
    done = with_small_files(place, 300_000, *command)
    explained(done, 1, str(place.home), "free some space")
    one_object(done, "store")
    assert contents(place.home)["jobs"] == []
    assert place.calls() == []
    again = place.run(*command)
    assert (again.code, again.json["succeeded"]) == (0, 300), again.err


@pytest.mark.req("X1", "B9")
@pytest.mark.parametrize("lane", ["batch", pytest.param("live", marks=pytest.mark.again)])
def test_a_disk_that_fills_up_in_the_middle_loses_nothing(tmp_path: Path, lane: str) -> None:
    """The run stops and says so; after space is freed the same command goes on to the right end, and what was
    booked covers the bill, to the nano where batches are concerned."""
    slow = SimulatorConfig(speed=20.0, batch_s=20.0, latency_s=10.0, answer_sigma=0.0)
    with small_disk(tmp_path / "disk", "6m") as disk, in_thread(slow) as url:
        place = Place(tmp_path, url)
        place.home = disk / "home"
        place.env["NIGHTMILL_HOME"] = str(place.home)
        command = ("run", place.rows(60), *PAID, "--lane", lane, "--concurrency", "10", "--max-output", "100")
        running = place.start(*command)
        if lane == "live":
            running.answered(8)
        else:
            running.until(lambda event: event.get("phase", "").startswith("waiting"))
        filler = fill(disk)
        stopped = running.end()
        explained(stopped, 1, str(disk), "free some space")
        assert re.search("No space left on device|disk is full", stopped.err)
        filler.unlink()
        done = place.run(*command)
        assert (done.code, done.json["succeeded"]) == (0, 60), done.err
        assert adds_up(done.json)
        invoice, spent = place.invoice(), round(done.json["spent_usd"] * 1e9)
        assert invoice["distinct_rows"] == 60
        if lane == "batch":
            assert (invoice["executed_rows"], spent) == (60, invoice["total_nanos"])
        else:
            assert invoice["executed_rows"] <= 70
            assert spent >= invoice["total_nanos"]
        assert tables(place.home, "SELECT sum(held_nanos) FROM limits") == [(0,)]


# -- results that are cut, clocks that jump --------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "succeeded"),
    [
        ({"fault": "truncated_last_line", "times": 1}, 12),
        ({"fault": "truncated_last_line", "times": 2}, 12),
        ({"fault": "short_body", "times": 1}, 12),
        ({"fault": "truncated_last_line"}, 0),
    ],
    ids=["cut once", "cut twice", "short", "always cut"],
)
def test_a_result_file_that_is_cut_is_read_again(tmp_path: Path, fault: dict[str, Any], succeeded: int) -> None:
    """A cut download is repeated, a cut line is read again, then sent again, then missing: the job ends, its rows
    add up, and what was booked covers the bill."""
    with in_thread(SimulatorConfig(**FAST, faults=[fault])) as url:
        place = Place(tmp_path, url)
        done = place.run("run", place.rows(12), *PAID, "--lane", "batch")
        assert "Traceback" not in done.err
        assert adds_up(done.json)
        assert done.json["pending"] == 0
        assert done.json["status"] == "completed"
        billed_nanos, spent = billed(place), round(done.json["spent_usd"] * 1e9)
    if succeeded:
        assert (done.code, done.json["succeeded"]) == (0, succeeded), done.err
    else:
        assert (done.code, done.json["succeeded"], done.json["missing"]) == (3, 11, 1), done.err
    assert spent - round(done.json["unproven_usd"] * 1e9) <= billed_nanos <= spent
    assert tables(place.home, "SELECT sum(held_nanos) FROM limits") == [(0,)]


@pytest.mark.req("X1")
@pytest.mark.parametrize(
    ("lane", "shift_s"),
    [
        pytest.param("batch", DAY_S, id="batch-a day on"),
        pytest.param("live", -DAY_S, id="live-a day back"),
        pytest.param("batch", -DAY_S, id="batch-a day back", marks=pytest.mark.again),
        pytest.param("live", DAY_S, id="live-a day on", marks=pytest.mark.again),
    ],
)
def test_a_wall_clock_that_jumps_changes_nothing(tmp_path: Path, lane: str, shift_s: float) -> None:
    """A day forward or back in the middle of a run: no lease is lost, a batch in doubt is found and not sent again,
    every row is answered once, and the bill is met to the nano."""
    fault = {"fault": "create_accepted_then_500", "times": 1}
    with in_thread(SimulatorConfig(**FAST, latency_s=20.0, faults=[fault])) as url:
        place = Place(tmp_path, url)
        at = "ledger.note_upload.committed" if lane == "batch" else "live.journaled"
        done = with_jumping_clock(place, shift_s, at, "run", place.rows(12), *PAID, "--lane", lane)
        assert (done.code, done.json["succeeded"]) == (0, 12), done.err
        assert adds_up(done.json)
        invoice = place.invoice()
        creates = [event for event in place.log() if event["event"] == "create"]
        submissions = json.dumps(creates)
    assert invoice["executed_rows"] == 12, submissions
    assert round(done.json["spent_usd"] * 1e9) == invoice["total_nanos"]
    assert tables(place.home, "SELECT sum(held_nanos) FROM limits") == [(0,)]
    assert "expired" not in done.err
