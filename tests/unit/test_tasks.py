from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TypedDict

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment, StrictUndefined

from nightmill.errors import TaskError
from nightmill.tasks import (
    BoundTask,
    Column,
    Task,
    Template,
    bind,
    check_answer,
    load_schema,
    load_task,
    prompt_task,
    task_names,
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
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    expected = jinja.from_string(source).render({**row, **sets})
    assert template.parts is not None
    assert "".join(part if isinstance(part, str) else str(row[part.name]) for part in template.parts) == expected
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


def test_a_prompt_from_a_file(tmp_path: Path) -> None:
    """``@FILE`` reads the prompt as it is, its last line end included."""
    (tmp_path / "p.txt").write_text("Define {{ text }}\n")
    assert prompt_task(f"@{tmp_path}/p.txt").prompt == "Define {{ text }}\n"
    for missing in (f"@{tmp_path}/no.txt", "  "):
        with pytest.raises(TaskError):
            prompt_task(missing)


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
    """A task file in a folder, or given by path, is used; a folder's wins over the built-in one."""
    (tmp_path / "define.toml").write_text('prompt = "mine {{ text }}"\n[variables]\ntone = "dry"\n')
    assert load_task("define", [tmp_path]).prompt == "mine {{ text }}"
    assert load_task(str(tmp_path / "define.toml")).variables == {"tone": "dry"}
    assert load_task("define").prompt != "mine {{ text }}"
    (tmp_path / "other.toml").write_text('prompt = "x"')
    assert set(task_names([tmp_path])) == {*task_names(), "other"}


def test_an_unknown_task_lists_what_there_is() -> None:
    """A misspelt task says which tasks there are."""
    with pytest.raises(TaskError) as caught:
        load_task("defin")
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
    ],
)
def test_task_files_that_are_refused(tmp_path: Path, content: str, says: str) -> None:
    """Unknown keys, wrong values, no prompt and unsound schemas are refused."""
    (tmp_path / "t.toml").write_text(content)
    with pytest.raises(TaskError) as caught:
        load_task("t", [tmp_path])
    assert says in caught.value.what


@pytest.mark.parametrize("name", task_names())
def test_built_in_tasks_are_sound(name: str) -> None:
    """Every built-in task loads, takes a text file's columns, and bounds whatever an answer may hold."""
    task = load_task(name)
    columns = {"line": ["text", "line"], "file": ["text", "name", "path"]}[task.rows]
    assert bind(task, columns).columns
    assert task.max_output
    if task.schema is not None:
        for part in _parts_of(task.schema):
            assert part.get("type") != "array" or "maxItems" in part
            assert part.get("type") != "string" or "maxLength" in part or "enum" in part


def _parts_of(schema: dict[str, object]) -> list[dict[str, object]]:
    inner = [value for value in schema.values() if isinstance(value, dict)]
    return [schema, *(part for each in inner for part in _parts_of(each))]


def test_define_accepts_an_entry() -> None:
    """A good dictionary entry passes, one without an etymology or with endless lists does not."""
    check = check_answer(load_task("define").schema or {})
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
