"""Tasks as a user meets them: built-in ones, files, functions; listed, shown, begun anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

from nightmill.config import load_settings
from nightmill.mill import RunOptions, opened
from nightmill.tasks import task

TEXTS = {"minutes.txt": "Bo orders flyers.\n\nAna phones the hall by May.", "deep/note.txt": "All is done."}
# A model that answers with all it was asked, and one that finds an action in every text.
MODELS = """
import json

def echo(messages, **params):
    return json.dumps(messages)

def acts(messages, **params):
    return json.dumps({"actions": [{"action": "Order flyers.", "owner": "Bo", "due": ""}]})
"""
ASKS = """
import nightmill as nm

@nm.task(schema={"type": "array"}, max_output=50)
def grade(row, tone="plain"):
    \"\"\"Ask for a grade.\"\"\"
    with open("asked.log", "a") as log:
        log.write(row["text"] + "\\n")
    if row["text"] == "bad":
        raise ValueError("cannot grade this")
    return [{"role": "system", "content": tone}, {"role": "user", "content": row["text"]}]

class Bare:
    greeting = "Hello"

    def __call__(self, row):
        return f"{self.greeting} {row['text']}"

class Warm(Bare):
    greeting = "Dear"
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "asks.py").write_text(ASKS)
    (tmp_path / "texts/deep").mkdir(parents=True)
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text)
    return Place(tmp_path)


def asked(place: Place, name: str = "o.jsonl") -> list[list[dict[str, str]]]:
    """The chats that reached the model which answers with them."""
    return [json.loads(row["response"]) for row in place.results(name)]


# -- built in


@pytest.mark.req("A1")
@pytest.mark.parametrize("name", ["summarize", "rephrase"])
def test_built_in_tasks_read_whole_files(place: Place, name: str) -> None:
    """One request a .txt file with all its text in it; --set changes how it is asked."""
    done = place.run("run", "texts", "--task", name, "--set", "tone=dry", "--model", "python:models.echo",
                     "--out", "o.jsonl")  # fmt: skip
    assert done.code == 0, done.err
    assert [row["key"] for row in place.results("o.jsonl")] == ["texts/deep/note.txt", "texts/minutes.txt"]
    for (system, user), text in zip(asked(place), sorted(TEXTS.values()), strict=True):
        assert (system["role"], user["role"]) == ("system", "user")
        assert text in user["content"]
        assert "a dry tone" in user["content"]


@pytest.mark.req("A1")
def test_actions_become_columns(place: Place) -> None:
    """extract_actions gives a checked list of actions a file."""
    done = place.run("run", "texts/*.txt", "--task", "extract_actions", "--model", "python:models.acts",
                     "--out", "o.jsonl")  # fmt: skip
    assert done.code == 0, done.err
    (found,) = place.results("o.jsonl")
    assert found["parsed"] == {"actions": [{"action": "Order flyers.", "owner": "Bo", "due": ""}]}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.req("A1")
def test_a_local_model_extracts_actions(place: Place) -> None:
    """The model that comes along, on this machine, writes lists of actions that fit the schema."""
    done = place.run("run", "texts", "--task", "extract_actions", "--model", "local/smollm2-135m",
                     "--out", "o.jsonl", "--json", seconds=360)  # fmt: skip
    assert done.code == 0, done.err
    assert [set(row["parsed"]) for row in place.results("o.jsonl")] == [{"actions"}] * 2


# -- files


def test_examples_of_a_task_file_are_said_first(place: Place) -> None:
    """[[examples]] reach the model as a user's and an assistant's messages before the row."""
    (place.folder / "tasks").mkdir()
    (place.folder / "tasks/shout.toml").write_text(
        'prompt = "Shout {{ text }}"\n[[examples]]\ninput = { text = "hey" }\noutput = "HEY"\n'
    )
    done = place.run("run", place.rows(2), "--task", "shout", "--model", "python:models.echo", "--out", "o.jsonl")
    assert done.code == 0, done.err
    shots = [("user", "Shout hey"), ("assistant", "HEY")]
    assert [[(m["role"], m["content"]) for m in chat] for chat in asked(place)] == [
        [*shots, ("user", f"Shout row {i}")] for i in range(2)
    ]


@pytest.mark.req("A1")
def test_own_tasks_go_before_built_in_ones_and_say_so(place: Place) -> None:
    """A file in tasks/ beside nightmill.toml stands in the place of the built-in task; the quote tells it."""
    (place.folder / "tasks").mkdir()
    (place.folder / "tasks/define.toml").write_text('about = "Mine."\nprompt = "mine {{ text }}"\n')
    (place.folder / "tasks/broken.toml").write_text("prompt = \n")
    done = place.run("run", place.rows(1), "--task", "define", "--model", "python:models.echo", "--out", "o.jsonl")
    assert done.code == 0, done.err
    assert asked(place)[0][-1]["content"] == "mine row 0"
    assert "tasks/define.toml, not the built-in one" in " ".join(done.err.replace("│", "").split())
    listed = {each["name"]: each for each in place.run("tasks", "--json").json["tasks"]}
    assert (listed["define"]["overrides_built_in"], listed["define"]["about"]) == (True, "Mine.")
    assert "no TOML" in listed["broken"]["error"]
    assert listed["summarize"]["built_in"]


def test_tasks_are_listed_and_shown(place: Place) -> None:
    """`tasks` tells of each what it does, its columns, variables and answer; `tasks NAME` gives the file itself."""
    done = place.run("tasks")
    assert done.code == 0, done.err
    for word in ("summarize", "rephrase", "extract_actions", "define", "actions", "--set tone=neutral"):
        assert word in done.out
    listed = place.run("tasks", "--json").json
    assert all(each["columns"] == ["text"] and each["about"] for each in listed["tasks"])
    shown = place.run("tasks", "summarize")
    (place.folder / "mine.toml").write_text(shown.out)
    whole, mine = (place.run("tasks", name, "--json").json for name in ("summarize", "mine.toml"))
    assert set(whole["variables"]) == {"length", "tone", "audience"}
    assert {**mine, "name": 0, "path": 0, "built_in": 0} == {**whole, "name": 0, "path": 0, "built_in": 0}
    function = place.run("tasks", "asks:grade", "--json").json
    assert (function["about"], function["variables"]) == ("Ask for a grade.", {"tone": "plain"})
    wrong = place.run("tasks", "sumarize")
    assert (wrong.code, "summarize" in wrong.err) == (2, True)


def test_a_new_task_works_at_once_and_replaces_none(place: Place) -> None:
    """`tasks new NAME` writes a file that runs as it is; one that is there stays as it is."""
    done = place.run("tasks", "new", "reply")
    assert (done.code, done.out) == (0, "tasks/reply.toml\n"), done.err
    ran = place.run("run", place.rows(1), "--task", "reply", "--model", "python:models.echo", "--out", "o.jsonl")
    assert ran.code == 0, ran.err
    assert "friendly" in asked(place)[0][-1]["content"]
    (place.folder / "tasks/reply.toml").write_text("mine")
    again = place.run("tasks", "new", "reply", "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "bad_task")
    assert (place.folder / "tasks/reply.toml").read_text() == "mine"


def test_nested_values_reach_the_model_as_json(place: Place) -> None:
    """An object in a column is JSON in the prompt."""
    (place.folder / "n.jsonl").write_text('{"a": {"b": [true, null, "ü"]}}\n')
    done = place.run("run", "n.jsonl", "--prompt", "Read {{ a }}", "--model", "python:models.echo", "--out", "o.jsonl")
    assert done.code == 0, done.err
    assert asked(place)[0][-1]["content"] == 'Read {"b":[true,null,"ü"]}'


# -- functions


@pytest.mark.req("B7")
def test_a_function_makes_the_messages_of_each_row(place: Place) -> None:
    """--task module:function sends what the function makes; its options hold, --set reaches its parameters."""
    done = place.run("run", place.rows(3), "--task", "asks:grade", "--set", "tone=dry", "--model",
                     "python:models.echo", "--out", "o.jsonl", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert [[m["content"] for m in chat] for chat in asked(place)] == [["dry", f"row {i}"] for i in range(3)]
    assert place.results("o.jsonl")[0]["prompt"] == "row 0"
    assert place.results("o.jsonl")[0]["parsed"] is not None
    wrong = place.run("run", "in.txt", "--task", "asks:grade", "--set", "tune=dry", "--model", "python:models.echo")
    assert (wrong.code, "tone" in wrong.err) == (2, True)


@pytest.mark.req("B7")
def test_a_small_class_can_be_overridden(place: Place) -> None:
    """A class with __call__ is a task; a subclass changes one thing of it."""
    for name, greeting in (("Bare", "Hello"), ("Warm", "Dear")):
        done = place.run("run", place.rows(1), "--task", f"asks:{name}", "--model", "python:models.echo",
                         "--out", f"{name}.jsonl")  # fmt: skip
        assert done.code == 0, done.err
        assert asked(place, f"{name}.jsonl")[0][0]["content"] == f"{greeting} row 0"


@pytest.mark.req("B7", "X4")
def test_a_row_that_a_function_fails_for_is_bad(place: Place) -> None:
    """It is refused by file and line before anything is sent, or counted as invalid with --skip-bad."""
    (place.folder / "in.txt").write_text("one\nbad\n# no row\ntwo\nbad\n")
    run = ("run", "in.txt", "--task", "asks:grade", "--model", "python:models.echo", "--json")
    refused = place.run(*run)
    assert refused.code == 2
    why = refused.json["error"]["why"]
    assert "in.txt:2: asks:grade raised ValueError: cannot grade this (" in why
    assert "asks.py:10)" in why
    assert "in.txt:5: " in why
    skipped = place.run(*run, "--skip-bad", "--out", "o.jsonl")
    assert (skipped.code, skipped.json["invalid"], skipped.json["succeeded"]) == (3, 2, 2), skipped.err
    assert "cannot grade this" in place.results("o.jsonl")[1]["error"]


@pytest.mark.req("B7")
def test_a_job_needs_its_function_only_once(place: Place) -> None:
    """What the function made is kept: retry and results ask no function, and an edited one begins another job
    in which only what it asks otherwise is sent."""
    (place.folder / "in.txt").write_text("one\nbad two\n")
    run = ("run", "in.txt", "--task", "asks:grade", "--model", "python:funcs.picky", "--json", "--schema", "any.json")
    (place.folder / "any.json").write_text("{}")
    (place.folder / "funcs.py").write_text((place.folder / "funcs.py").read_text().replace(
        "return text.upper()", "return json.dumps(text.upper())"))  # fmt: skip
    first = place.run(*run)
    assert (first.code, first.json["failed"]) == (3, 1), first.err
    (place.folder / "mended").touch()
    (place.folder / "asks.py").rename(place.folder / "asks.away")
    again = place.run("retry", first.json["job_id"], "--json")
    assert (again.code, again.json["succeeded"]) == (0, 2), again.err
    assert [json.loads(line)["prompt"] for line in place.run("results", first.json["job_id"]).out.splitlines()] == [
        "one",
        "bad two",
    ]
    edited = ASKS.replace('"content": row["text"]', '"content": row["text"].replace("two", "three")')
    (place.folder / "asks.py").write_text(edited)
    calls = len(place.calls())
    other = place.run(*run)
    assert (other.code, other.json["cached"]) == (0, 1), other.err
    assert other.json["job_id"] != first.json["job_id"]
    assert place.calls()[calls:] == ["bad three"]


@pytest.mark.req("B7")
def test_a_function_at_hand_is_a_task(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python a decorated function is given as it is, wherever it was defined."""
    monkeypatch.chdir(place.folder)
    suffix = "!"

    @task
    def shout(row: dict[str, Any]) -> str:
        return str(row["text"]) + suffix

    options = RunOptions((place.rows(2),), task=shout, model="python:funcs.upper")
    with opened(load_settings(place.folder, place.env)) as mill:
        prepared = mill.rehearse(options)
    assert b"row 0!" in prepared.plan.first_request
