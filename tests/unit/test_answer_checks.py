"""Schemas from wherever users have them, and answers held to all of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nightmill.api.objects import objects_in
from nightmill.api.values import Result
from nightmill.errors import TaskError, UsageError
from nightmill.tasks import check_answer, load_schema

pytestmark = pytest.mark.req("X5")


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Place(pydantic.BaseModel):
    city: str
    since: dt.date | None = None


class Model(pydantic.BaseModel):
    mood: Mood
    kind: Literal["a", "b"]
    places: list[Place]
    note: str | None = None
    score: float = pydantic.Field(ge=0, le=1)


@dataclasses.dataclass
class Plain:
    mood: Mood
    places: list[Plain]
    note: str | None = None


@dataclasses.dataclass
class Mixed:
    """A dataclass that holds a Pydantic model."""

    place: Place
    count: int = 0


@pydantic.dataclasses.dataclass
class Validated:
    count: int = pydantic.Field(ge=3)


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


class Struct(msgspec.Struct):
    a: int
    when: dt.datetime | None = None


ANSWERS: list[tuple[type, dict[str, Any], dict[str, Any]]] = [
    (Model, {"mood": "good", "kind": "a", "places": [{"city": "Rome", "since": "2020-01-31"}], "score": 0.5},
     {"mood": "good", "kind": "a", "places": [{"city": 5}], "score": 0.5}),
    (Plain, {"mood": "bad", "places": [{"mood": "good", "places": []}]}, {"mood": "fair", "places": []}),
    (Mixed, {"place": {"city": "Rome"}}, {"place": {}}),
    (Validated, {"count": 3}, {"count": 2}),
    (Typed, {"a": 1}, {"b": "x"}),
    (Struct, {"a": 1, "when": "2020-01-31T10:00:00Z"}, {"a": 1, "when": 5}),
]  # fmt: skip


def result(index: int, parsed: Any) -> Result:
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(Result))
    return Result(**{**nothing, "index": index, "success": parsed is not None, "parsed": parsed})


@pytest.mark.parametrize(("kind", "right", "wrong"), ANSWERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_class_is_a_schema_and_its_answers_are_its_objects(kind: Any, right: Any, wrong: Any) -> None:
    """Enums, nested objects, optional fields and bounds are checked, and an answer that fits becomes the object."""
    schema = load_schema(kind)
    assert schema["type"] == "object"
    check = check_answer(schema)
    assert check(json.dumps(right)) == (right, None)
    assert check(json.dumps(wrong))[0] is None
    first, second = objects_in([result(0, right), result(1, None)], kind)
    if kind is Typed:
        assert first == right
    else:
        assert isinstance(first, kind)
    assert second is None


def test_an_object_that_wants_more_than_its_schema_is_told_by_row() -> None:
    """A check in Python, which no schema says, is not passed over."""

    class Even(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def _even(cls, n: int) -> int:
            if n % 2:
                raise ValueError("odd")
            return n

    assert [each and each.n for each in objects_in([result(0, {"n": 2})], Even)] == [2]
    with pytest.raises(UsageError, match="row 7 is no Even") as caught:
        list(objects_in([result(7, {"n": 3})], Even))
    assert "odd" in caught.value.why


def test_a_class_without_a_schema_is_refused() -> None:
    """With the reason in a line."""

    class Callback(pydantic.BaseModel):
        call: Callable[[], int]

    @dataclasses.dataclass
    class Odd:
        call: Callable[[], int]

    for kind in (Callback, Odd):
        with pytest.raises(TaskError, match="gives no schema") as caught:
            load_schema(kind)
        assert caught.value.why
        assert "\n" not in caught.value.why


def test_a_schema_may_be_written_as_it_is() -> None:
    """JSON where a file would be named."""
    assert load_schema(' {"type": "object"}') == {"type": "object"}
    with pytest.raises(TaskError, match="is no JSON"):
        load_schema("{type: object}")


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"format": "date"}, "2024-02-29", "2023-02-29"),
        ({"format": "email"}, "a@b.example", "nobody"),
        ({"format": "date-time"}, "2024-01-31T10:00:00Z", "31.1.2024"),
        ({"format": "uuid"}, "0b9b7a52-6b2c-4a0f-9c55-3b8f6f8a9f01", "0b9b"),
        ({"format": "ipv4"}, "10.0.0.1", "10.0.0.256"),
        ({"prefixItems": [{"type": "integer"}], "items": False}, [1], [1, 2]),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
        ({"properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}, {"a": 1, "b": 2}),
        ({"$ref": "#/$defs/A", "maxLength": 2, "$defs": {"A": {"type": "string"}}}, "ab", "abc"),
        ({"uniqueItems": True}, [1, "1", True], [1, 1.0]),
        ({"contains": {"const": 3}, "maxContains": 1}, [3, 4], [3, 3]),
        ({"oneOf": [{"minimum": 3}, {"maximum": 5}]}, 7, 4),
        ({"multipleOf": 0.01}, 4.02, 4.005),
    ],
)
def test_the_whole_of_the_schema_counts(schema: dict[str, Any], right: Any, wrong: Any) -> None:
    """Draft 2020-12, its formats included."""
    check = check_answer(schema)
    assert check(json.dumps(right)) == (right, None)
    value, error = check(json.dumps(wrong))
    assert value is None
    assert error is not None
    assert error.startswith("$")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"mood": "fine", "kind": "a", "places": [], "score": 0.5}, '$.mood: "fine" is not one of "good" or "bad"'),
        (
            {"mood": "good", "kind": "a", "places": [{"city": "x" * 9_000, "since": 3}], "score": 1},
            "$.places[0].since: ",
        ),
        ({"mood": "good", "kind": "a", "places": [], "note": "x", "score": 7}, "$.score: 7 is greater than"),
        ({"mood": "good"}, '$: "kind" is a required property (and 2 more)'),
        ({"mood": "x" * 9_000, "kind": "a", "places": [], "score": 0}, '$.mood: it is not one of "good" or "bad"'),
        ([["x" * 9_000]], '$: it is not of type "object"'),
    ],
)
def test_what_is_wrong_is_told_with_its_place_in_few_words(answer: Any, says: str) -> None:
    """The first thing, where it is, and how many there are; a long value is not repeated."""
    value, error = check_answer(load_schema(Model))(json.dumps(answer))
    assert value is None
    assert error is not None
    assert error.startswith(says)
    assert len(error) < 300


def test_odd_names_are_told_as_they_are() -> None:
    """A property whose name is no word stands in quotes."""
    _, error = check_answer({"additionalProperties": {"type": "integer"}})('{"a b.c": "x"}')
    assert error == '$["a b.c"]: "x" is not of type "integer"'


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.sampled_from("abcd"), parts, max_size=4),
)
_TREE: dict[str, Any] = {"properties": {"a": {"$ref": "#"}, "b": {"type": "integer"}}, "required": ["z"]}


@settings(deadline=None)
@given(text=st.one_of(st.text(), _JSON.map(json.dumps)))
@example('{"a":' * 990 + "1" + "}" * 990)
@example("1" + "0" * 5_000)
@example("1e999")
@example("-0.0")
def test_no_answer_breaks_the_check(text: str) -> None:
    """Whatever a model says, it is an answer or a reason why not."""
    for schema in (_TREE, load_schema(Model), {"type": "number"}, {}):
        value, error = check_answer(schema)(text)
        if error is not None:
            assert value is None
            assert len(error) < 400
        else:
            assert msgspec.json.decode(text) == value


@given(value=_JSON)
def test_an_answer_without_a_schema_to_break_is_kept_as_it_is(value: Any) -> None:
    """What fits comes out as the model said it."""
    assert check_answer({})(json.dumps(value)) == (msgspec.json.decode(json.dumps(value)), None)


def test_a_schema_of_a_file_and_its_definitions(tmp_path: Path) -> None:
    """References within a file are followed."""
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"$defs": {"N": {"type": "integer", "minimum": 1}}, "type": "object",
                                "properties": {"n": {"$ref": "#/$defs/N"}}}))  # fmt: skip
    check = check_answer(load_schema(path))
    assert check('{"n": 1}')[1] is None
    assert (check('{"n": 0}')[1] or "").startswith("$.n: ")
