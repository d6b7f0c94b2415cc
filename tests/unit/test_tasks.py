from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment, StrictUndefined

from nightmill.errors import TaskError
from nightmill.tasks import (
    BoundTask,
    Column,
    NoRequest,
    Task,
    Template,
    as_text,
    bind,
    check_answer,
    find_task,
    function_task,
    import_task,
    known_tasks,
    load_schema,
    new_task,
    prompt_task,
    task,
    verbatim_task,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    TEXT | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def user_template(prompt: str, columns: list[str], **sets: str) -> Template:
    ((role, template),) = bind(prompt_task(prompt), columns, sets).templates
    assert role == "user"
    return template


def refused(prompt: str, columns: list[str], **sets: str) -> TaskError:
    with pytest.raises(TaskError) as caught:
        bind(prompt_task(prompt), columns, sets)
    assert caught.value.why
    assert caught.value.fix
    return caught.value


# -- templates --

PIECES = st.lists(
    st.sampled_from(
        ["{{ a }}", "{{b}}", "{{- a -}}", "{{ v }}", "{# note #}", "{% raw %}{{ a }}{% endraw %}", " ", "\n", "\r\n"]
    )
    | TEXT.filter(lambda text: "{" not in text and "}" not in text),
    max_size=8,
)


@given(PIECES, VALUES, VALUES, TEXT)
@QUICK
def test_parts_join_to_what_jinja_gives(pieces: list[str], a: object, b: object, v: str) -> None:
    """Joining the parts of a plain template gives exactly what Jinja itself gives, for any values."""
    source = "x" + "".join(pieces)
    sets = {"v": v} if "{{ v }}" in pieces and "{{ a }}" in pieces and v not in ("a", "b") else {}
    template = user_template(source, ["a", "b", "v"], **sets)
    row = {"a": a, "b": b, "v": "column"}
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=as_text)
    expected = jinja.from_string(source).render({**row, **sets})
    assert template.parts is not None
    assert "".join(part if isinstance(part, str) else as_text(row[part.name]) for part in template.parts) == expected
    assert template.render(row) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ a|upper }}",
        "{% if a %}x{% endif %}{{ a }}",
        "{% for c in a %}{{ c }}{% endfor %}",
        "{{ a.b }}",
        "{{ a ~ a }}",
        "{% set a = 1 %}{{ a }}",
        "{{ 'a' }}{{ a }}",
        "{{ range(2) }}{{ a }}",
    ],
)
def test_anything_more_than_names_is_not_plain(prompt: str) -> None:
    """Filters, conditions, loops and expressions are left to Jinja."""
    assert user_template(prompt, ["a"]).parts is None


def test_parts_name_the_source_columns() -> None:
    """Variables are folded into the text, columns named as in the source, in order of use."""
    template = user_template("{{ b }} is {{ tone }}: {{ text }}\n", ["b", "gloss"], tone="dry", text="gloss")
    assert template.parts == (Column("b"), " is dry: ", Column("gloss"), "\n")
    assert template.columns == ("b", "gloss")
    assert template.render({"b": 1, "gloss": "x", "other": 2}) == "1 is dry: x\n"


def test_a_column_that_has_the_name_of_a_variable() -> None:
    """What the task's variable says holds, even where the source has a column of that name."""
    task = Task("t", prompt="{{ text }} {{ tone }}", variables={"tone": "dry"})
    ((_, template),) = bind(task, ["text", "tone"]).templates
    assert template.render({"text": "x", "tone": "wet"}) == "x dry"


@pytest.mark.parametrize(
    ("prompt", "row", "says"),
    [
        ("x\n{{ a.__class__ }}", {"a": 1}, "SecurityError"),
        ("x\n{{ a.nothing }}", {"a": 1}, "UndefinedError"),
        ("x\n{{ 1 // a }}", {"a": 0}, "ZeroDivisionError"),
        ("x\n{{ a }}", {}, "UndefinedError"),
    ],
)
def test_rendering_that_fails_names_the_line(prompt: str, row: dict[str, object], says: str) -> None:
    """Whatever goes wrong inside a template is a TaskError with the line."""
    with pytest.raises(TaskError) as caught:
        user_template(prompt, ["a"]).render(row)
    assert "line 2" in caught.value.what
    assert says in caught.value.why


@pytest.mark.parametrize("prompt", ["\n{{ a b }}", "\n{% if a %}", "\n{{ a|uper }}", "\n{{ a is odder }}"])
def test_a_broken_template_names_the_line(prompt: str) -> None:
    """Syntax errors, unknown filters and unknown tests are found before any row is read."""
    assert "line" in refused(prompt, ["a"]).what


def test_templates_cannot_reach_outside() -> None:
    """Including other templates, and names that Jinja keeps, are refused before any row is read."""
    assert "includes" in refused("{% include 'x' %}{{ a }}", ["a"]).what
    assert "self" in refused("{{ self }}", ["self"]).what
    assert "lipsum" in refused("{{ lipsum() }}", ["a"]).what


# -- binding --


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    """A name that is no column says which columns there are and which one may be meant."""
    error = refused("{{ txt }}", ["text", "stars"])
    assert "txt" in error.what
    assert "text, stars" in error.why
    assert "text" in error.fix


def test_single_braces_around_a_column_are_refused() -> None:
    """``{text}`` would be sent as it stands: refused, with the correction; other braces are text."""
    assert "{{ text }}" in refused("Sum up: {text}. {{ text }}", ["text"]).fix
    assert "--set word='Review Text'" in refused("Sum up { Review Text } {{ id }}", ["id", "Review Text"]).fix
    assert user_template('{"a": 1} {x} {{ text }} {% raw %}{{text}}{% endraw %}', ["text"]).parts is not None
    assert user_template("{{ '{text}' }} {{ text }}", ["text"]).render({"text": "x"}) == "{text} x"


def test_a_set_that_nothing_uses_is_refused() -> None:
    """A misspelt --set must not be ignored."""
    assert "tone" in refused("{{ text }} {{ tone }}", ["text"], tune="dry").fix


def test_a_set_that_leaves_no_column_is_refused() -> None:
    """A misspelt column in --set must not ask every row the same, and be paid for it."""
    assert "gloss" in refused("{{ text }}", ["gloss"], text="glos").fix


def test_bound_tasks_need_each_column_once() -> None:
    """The system and the user template share the list of needed columns."""
    bound = bind(Task("t", system="{{ a }}", prompt="{{ b }}{{ a }}"), ["a", "b", "c"])
    assert [role for role, _ in bound.templates] == ["system", "user"]
    assert bound.columns == ("a", "b")


def test_rows_sent_as_they_are() -> None:
    """Without task or prompt a messages column is a chat, else text, prompt or input is the prompt."""
    assert bind(verbatim_task(["id", "messages", "text"]), ["id", "messages", "text"]) == BoundTask(
        Task("verbatim", messages_column="messages"), ("messages",), ()
    )
    for columns, chosen in ((["prompt", "text"], "text"), (["prompt", "n"], "prompt"), (["input"], "input")):
        ((_, template),) = bind(verbatim_task(columns), columns).templates
        assert template.parts == (Column(chosen),)
    with pytest.raises(TaskError, match="nothing says what to ask"):
        verbatim_task(["id", "n"])


def test_an_empty_prompt_is_refused() -> None:
    """There is nothing to ask; a prompt that begins with @ is a prompt like any other."""
    with pytest.raises(TaskError, match="empty"):
        prompt_task("  ")
    assert prompt_task("@all: {{ text }}").prompt == "@all: {{ text }}"


# -- task files --


@given(st.dictionaries(TEXT, TEXT, max_size=3), st.none() | st.floats(0, 2), st.none() | TEXT)
@QUICK
def test_tasks_survive_json(variables: dict[str, str], temperature: float | None, system: str | None) -> None:
    """A task written as JSON and read back is the same task, and equal tasks give equal bytes."""
    task = Task("t", prompt="p", system=system, variables=variables, temperature=temperature, schema={"type": "object"})
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    turned = dataclasses.replace(task, variables=dict(reversed(variables.items())))
    assert msgspec.json.encode(turned.to_dict()) == msgspec.json.encode(task.to_dict())


def test_from_dict_refuses_what_it_does_not_know() -> None:
    """A task written by another version is not half understood."""
    with pytest.raises(TaskError, match="unknown key colour"):
        Task.from_dict({"name": "t", "colour": "red"})


def test_user_tasks_come_before_built_in_ones(tmp_path: Path) -> None:
    """A task file in a folder, or given by path, is used; a folder's wins over the built-in one, and says so."""
    (tmp_path / "define.toml").write_text('prompt = "mine {{ text }}"\n[variables]\ntone = "dry"\n')
    mine = find_task("define", [tmp_path])
    assert (mine.load().prompt, mine.hides_built_in) == ("mine {{ text }}", True)
    assert find_task(str(tmp_path / "define.toml")).load().variables == {"tone": "dry"}
    assert find_task("define").load().prompt != "mine {{ text }}"
    (tmp_path / "other.toml").write_text('prompt = "x"')
    assert not find_task("other", [tmp_path]).hides_built_in
    names = [each.name for each in known_tasks([tmp_path])]
    assert names == sorted({*(each.name for each in known_tasks()), "other"})


def test_an_unknown_task_lists_what_there_is() -> None:
    """A misspelt task says which tasks there are."""
    with pytest.raises(TaskError) as caught:
        find_task("defin")
    assert "define" in caught.value.why


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('promt = "x"', "unknown key promt"),
        ('prompt = "x"\nrows = "word"', "rows"),
        ('prompt = "x"\nmax_output = 0', "max_output"),
        ('prompt = "x"\nmax_output = true', "max_output"),
        ('prompt = "x"\nvariables = {a = 1}', "variables"),
        ('system = "x"', "asks nothing"),
        ("prompt = ", "no TOML"),
        ('prompt = "x"\nschema = {type = "strin"}', "schema"),
        ('prompt = "x"\nschema = {default = 2020-01-01}', "schema"),
        ('prompt = "x"\nabout = 1', "about"),
        ('prompt = "x"\nexamples = [{input = {}}]', "examples"),
        ('prompt = "x"\nexamples = [{input = {}, output = 2020-01-01}]', "examples"),
        ('prompt = "{{ a }}"\nexamples = [{input = {}, output = ""}]', "example 1 has no a"),
        ('prompt = "{{ a }}"\nexamples = [{input = {a = 1, b = 2}, output = ""}]', "example 1 gives b"),
        ('messages_column = "m"\nexamples = [{input = {}, output = ""}]', "no place"),
        ('prompt = "x"\nexamples = [{input = {}, output = "no"}]\nschema = {type = "object"}', "example 1"),
    ],
)
def test_task_files_that_are_refused(tmp_path: Path, content: str, says: str) -> None:
    """Unknown keys, wrong values, no prompt and unsound schemas are refused."""
    (tmp_path / "t.toml").write_text(content)
    with pytest.raises(TaskError) as caught:
        find_task("t", [tmp_path]).load()
    assert says in caught.value.what


@pytest.mark.parametrize("name", [each.name for each in known_tasks()])
def test_built_in_tasks_are_sound(name: str) -> None:
    """Every built-in task says what it does, takes a text file's columns, and is quick: its templates are plain.
    Whatever an answer may hold is bounded."""
    file = find_task(name)
    task = file.load()
    assert file.about()
    assert task.names == ["text"]
    columns = {"line": ["text", "line"], "file": ["text", "name", "path"]}[task.rows]
    assert all(template.parts is not None for _, template in bind(task, columns).templates)
    assert task.max_output or task.embeds
    if task.schema is not None:
        for part in _parts_of(task.schema):
            assert part.get("type") != "array" or "maxItems" in part
            assert part.get("type") != "string" or "maxLength" in part or "enum" in part


def _parts_of(schema: dict[str, object]) -> list[dict[str, object]]:
    inner = [value for value in schema.values() if isinstance(value, dict)]
    return [schema, *(part for each in inner for part in _parts_of(each))]


def test_define_accepts_an_entry() -> None:
    """A good dictionary entry passes, one without an etymology or with endless lists does not."""
    check = check_answer(find_task("define").load().schema or {})
    entry = {
        "part_of_speech": "noun",
        "definitions": ["A stick of wax with a wick in it, burned to give light."],
        "examples": ["She lit a candle when the power failed."],
        "etymology": "From Latin candela.",
        "synonyms": ["taper"],
    }
    assert check(json.dumps(entry)) == (entry, None)
    for wrong in ({**entry, "synonyms": ["taper"] * 9}, {k: v for k, v in entry.items() if k != "etymology"}):
        value, error = check(json.dumps(wrong))
        assert value is None
        assert error
        assert error.startswith("$")


# -- values, examples, new files --


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, "ü"], "b": {"c": True}}, '{"a":[1,null,"ü"],"b":{"c":true}}'),
        (["x", 1.5], '["x",1.5]'),
        (True, "true"),
        ("'x' <&>", "'x' <&>"),
        (3, "3"),
    ],
)
def test_values_stand_in_a_prompt_as_json(value: object, text: str) -> None:
    """Lists, objects and truth values are JSON in a prompt, never Python, on the quick path as on the other."""
    template = user_template("{{ a }}", ["a"])
    assert [as_text(value), template.render({"a": value})] == [text, text]
    assert user_template("{% if true %}{{ a }}{% endif %}", ["a"]).render({"a": value}) == text
    assert user_template("{{ a | tojson }}", ["a"]).render({"a": "'<&>"}) == '"\'<&>"'
    assert user_template("{{ a | tojson(indent=2) }}", ["a"]).render({"a": [1]}) == "[\n  1\n]"


def test_examples_are_said_before_the_row(tmp_path: Path) -> None:
    """An example is a user's and an assistant's message, from the prompt itself; its own values go before variables."""
    (tmp_path / "t.toml").write_text(
        'system = "s"\nprompt = "{{ tone }} {{ text }}"\nvariables = {tone = "dry"}\n'
        '[[examples]]\ninput = {text = "a"}\noutput = "A"\n'
        '[[examples]]\ninput = {text = "b", tone = "wet"}\noutput = {x = [1]}\n'
    )
    bound = bind(find_task("t", [tmp_path]).load(), ["gloss"], {"text": "gloss", "tone": "warm"})
    assert bound.shots == (("user", "warm a"), ("assistant", "A"), ("user", "wet b"), ("assistant", '{"x":[1]}'))
    assert bound.columns == ("gloss",)


def test_a_new_task_works_and_replaces_nothing(tmp_path: Path) -> None:
    """What `new_task` writes is a task; a file that is there, or a name that is none, is refused."""
    path = new_task("my-reply", tmp_path / "tasks")
    assert bind(find_task("my-reply", [path.parent]).load(), ["text", "line"]).columns == ("text",)
    path.write_text("mine")
    for name in ("my-reply", "../x", "", "a b"):
        with pytest.raises(TaskError):
            new_task(name, tmp_path / "tasks")
    assert path.read_text() == "mine"
    assert [each.name for each in (tmp_path / "tasks").iterdir()] == ["my-reply.toml"]


def test_what_a_new_task_file_shows_works_too(tmp_path: Path) -> None:
    """Without their # signs the examples and the schema in a new task file hold as well."""
    path = new_task("t", tmp_path)
    text = path.read_text()
    assert re.search(r"^# \[\[examples", text, re.MULTILINE)
    shown = re.sub(r"^# (?=\[|input|type|additional|required|reply|urgent)", "", text, flags=re.MULTILINE)
    path.write_text(shown.replace("# output = ", 'output = { reply = "Soon.", urgent = true } # '))
    loaded = find_task("t", [tmp_path]).load()
    assert loaded.examples[0]["output"] == {"reply": "Soon.", "urgent": True}
    assert set((loaded.schema or {})["properties"]) == {"reply", "urgent"}


# -- functions --


def plain(row: dict[str, str], tone: str = "dry", *, length: str) -> str:
    """Ask in a tone.

    And more.
    """
    return f"{tone} {length} {row['text']}"


def test_a_function_is_a_task() -> None:
    """It is called with a row and what was set; a text becomes a user's message, a list of messages is a chat."""
    made = task(plain)
    assert (made.name, made.about, made.variables) == (
        f"{__name__}:plain",
        "Ask in a tone.",
        {"tone": "dry", "length": None},
    )
    assert made({"text": "x"}, length="short") == "dry short x"
    asked = made.with_sets({"length": "long"}).ask({"text": "x"})
    assert json.loads(asked) == [{"role": "user", "content": "dry long x"}]
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert json.loads(task(lambda row: chat).ask({})) == chat
    assert function_task(made) is made


def test_a_class_is_a_task_that_can_be_overridden() -> None:
    """A small class with ``__call__`` is made once and called for each row; a subclass changes what it likes."""

    class Formal:
        greeting = "Sir"

        def __call__(self, row: dict[str, str]) -> str:
            return f"{self.greeting}: {row['text']}"

    @task(schema={"type": "object"}, max_output=9, rows="file")
    class Casual(Formal):
        greeting = "Hey"

    assert "Hey: x" in Casual.ask({"text": "x"})
    assert (Casual.task.schema, Casual.task.max_output, Casual.task.rows) == ({"type": "object"}, 9, "file")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda row: row["txt"], "KeyError: 'txt', which is no column; the columns are text (" + __file__),
        (lambda row: 1 // 0, "ZeroDivisionError"),
        (lambda row: None, "NoneType"),
        (lambda row: "", "an empty text"),
        (lambda row: [], "an empty list"),
        (lambda row: [{"content": "x"}], "without a role"),
        (lambda row: [{"role": "user", "content": object()}], "JSON cannot hold"),
        (lambda row: "\ud800", "JSON cannot hold"),
    ],
)
def test_what_a_function_does_wrong_is_told(function: Callable[..., Any], says: str) -> None:
    """A row for which a function raises or returns no chat has a reason that names the function and its line."""
    with pytest.raises(NoRequest) as caught:
        task(function).ask({"text": "x"})
    assert says in str(caught.value)
    assert "<lambda>" in str(caught.value)


async def not_now(row: dict[str, str]) -> str:
    return ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(lambda: "x", "no row"), (not_now, "async"), (3, "called"), (type("N", (), {}), "called")],
)
def test_what_cannot_be_a_task_is_refused(wrong: Any, says: str) -> None:
    """Something that takes no row, is async or cannot be called is refused before any row is read."""
    with pytest.raises(TaskError, match=says):
        function_task(wrong)


def test_sets_of_a_function_are_its_parameters() -> None:
    """A set that it does not take, one that it needs, and a wrong option are refused, with the nearest name."""
    with pytest.raises(TaskError) as caught:
        task(plain).with_sets({"tune": "x"})
    assert "tone" in caught.value.fix
    with pytest.raises(TaskError, match="needs length"):
        task(plain).with_sets({})
    with pytest.raises(TaskError, match="max_output"):
        task(max_output=0)(plain)


def test_functions_are_named_like_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``module:function`` is found in the working folder; what is not there, or ends the process, is refused."""
    (tmp_path / "asks_of_mine.py").write_text("def ask(row): return 'x'\n")
    (tmp_path / "script_of_mine.py").write_text("def ask(row): return 'x'\nraise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    assert import_task("asks_of_mine:ask").name == "asks_of_mine:ask"
    for wrong in ("asks_of_mine:nothing", "no_such_module:ask", "script_of_mine:ask"):
        with pytest.raises(TaskError, match=wrong):
            import_task(wrong)


# -- schemas --


class Review(TypedDict):
    label: str
    score: int


@dataclasses.dataclass
class Tree:
    name: str
    inside: list[Tree]


def test_schemas_from_classes() -> None:
    """A class gives an object schema at the top, and one that refers to itself still validates."""
    assert set(load_schema(Review)["properties"]) == {"label", "score"}
    schema = load_schema(Tree)
    assert schema["type"] == "object"
    check = check_answer(schema)
    assert check('{"name": "a", "inside": [{"name": "b", "inside": []}]}')[1] is None
    assert (check('{"name": "a", "inside": [{"name": 1, "inside": []}]}')[1] or "").startswith("$.inside[0].name: ")


def test_schemas_from_pydantic() -> None:
    """A Pydantic model gives its own JSON Schema."""
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Sentiment", label=(str, ...), score=(int | None, None))
    schema = load_schema(model)
    assert schema == model.model_json_schema()
    assert check_answer(schema)('{"label": "good"}') == ({"label": "good"}, None)


def test_schemas_from_a_module_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``module:Class`` is found in the working folder, and the import path is left as it was."""
    (tmp_path / "shapes_of_mine.py").write_text("import typing\nclass P(typing.TypedDict):\n    x: int\nn = 1\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_schema("shapes_of_mine:P")["required"] == ["x"]
    assert sys.path == before
    for wrong in ("shapes_of_mine:Q", "no_such_module:P", "shapes_of_mine:n"):
        with pytest.raises(TaskError, match=wrong):
            load_schema(wrong)


def test_schemas_from_files(tmp_path: Path) -> None:
    """A .json file is read; what is no JSON, no schema or not there is refused."""
    path = tmp_path / "s.json"
    path.write_text('{"type": "object"}')
    assert load_schema(str(path)) == {"type": "object"}
    for content in ("{", "[]", '{"type": "strin"}', '{"$ref": "#/$defs/none"}'):
        path.write_text(content)
        with pytest.raises(TaskError):
            load_schema(path)
    with pytest.raises(TaskError):
        load_schema(tmp_path / "none.json")


def test_schemas_fetch_nothing() -> None:
    """A reference to another address or file is refused, not followed."""
    for reference in ("http://127.0.0.1:9/s.json", "file:///etc/hostname"):
        with pytest.raises(TaskError, match="no valid JSON Schema") as caught:
            load_schema({"$ref": reference})
        assert "nothing outside the schema is fetched" in caught.value.why


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ('```json\n{"a": 1}\n```', "not JSON"),
        ('{"a": 1} and more', "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": "' + "[" * 100_000, "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": "\\ud800"}', "not JSON"),
        ('{"a": "x"}', "$.a: "),
        ("{}", "$: "),
        ('{"a": {"b": [1, "' + "x" * 10_000 + '"]}}', "$.a: "),
    ],
)
def test_answers_that_do_not_fit(text: str, says: str) -> None:
    """Anything but the JSON asked for is refused with its place, in a message of bounded length."""
    value, error = check_answer({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})(text)
    assert value is None
    assert error is not None
    assert error.startswith(says)
    assert len(error) < 400


def test_answers_that_fit() -> None:
    """Blanks around the JSON are fine, and numbers keep every digit."""
    assert check_answer({"type": "integer"})(" \n123456789012345678901 ") == (123456789012345678901, None)
