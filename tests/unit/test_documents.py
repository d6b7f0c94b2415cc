"""JSON documents as rows."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.errors import InputError
from nightmill.sources import arrays, decode_row_values, open_source
from nightmill.sources.arrays import ArrayLines


def rows(path: Path, document: object) -> list[dict[str, Any]]:
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=2), encoding="utf-8")
    source = open_source([path])
    return [
        {name: decode_row_values(batch.column(name), batch.schema.field(name))[i] for name in batch.schema.names}
        for batch in source.batches()
        for i in range(batch.num_rows)
    ]


ROWS = [
    {
        "key": "Intro/data_extraction_prompt",
        "section": "Intro",
        "name": "data_extraction_prompt",
        "prompt": "Extract: é",
    },
    {"key": "Intro/x", "section": "Intro", "name": "x", "prompt": "line\nend"},
    {"key": "End/x", "section": "End", "name": "x", "prompt": "Bye"},
]
SECTIONS = {"Intro": {"data_extraction_prompt": "Extract: é", "x": "line\nend"}, "End": {"x": "Bye"}}


@pytest.mark.req("B1")
@pytest.mark.parametrize(
    "document",
    [
        SECTIONS,
        {"sections": SECTIONS},
        {"sections": [{"name": "Intro", "prompts": SECTIONS["Intro"]}, {"title": "End", "prompts": {"x": "Bye"}}]},
    ],
)
def test_prompts_in_sections(tmp_path: Path, document: object) -> None:
    """Three forms, one meaning: a row a prompt, keyed SECTION/NAME, in the order of the document."""
    assert rows(tmp_path / "a.json", document) == ROWS


@pytest.mark.req("B1")
def test_sections_whose_prompts_stand_beside_other_facts(tmp_path: Path) -> None:
    """In a list of sections every ``..._prompt`` is a prompt and all else is not."""
    document = {
        "sections": [
            {"section": "S", "id": 7, "a_prompt": "A", "b_prompt": "B", "note": "no"},
            {"c_prompt": "C"},
            {"name": "T", "prompts": {"d": "D"}, "e_prompt": "E"},
        ]
    }
    found = rows(tmp_path / "a.json", document)
    assert [(row["key"], row["prompt"]) for row in found] == [
        ("S/a_prompt", "A"),
        ("S/b_prompt", "B"),
        ("section 2/c_prompt", "C"),
        ("T/d", "D"),
        ("T/e_prompt", "E"),
    ]


@pytest.mark.req("D1")
def test_arrays(tmp_path: Path) -> None:
    """Texts are the column ``text``; objects are rows with their columns, whatever is in them."""
    assert [row["text"] for row in rows(tmp_path / "a.json", ["a\nb", 'say "é"', ""])] == ["a\nb", 'say "é"', ""]
    assert [row["text"] for row in rows(tmp_path / "b.json", {"prompts": ["a", "b"]})] == ["a", "b"]
    given = [{"id": "x", "n": 1, "more": {"a": [1, None]}}, {"id": "y", "n": 2, "more": None}]
    assert [{k: row[k] for k in ("key", "n", "more")} for row in rows(tmp_path / "c.json", given)] == [
        {"key": row["id"], "n": row["n"], "more": row["more"]} for row in given
    ]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "no JSON document"),
        ("3", "no JSON document"),
        ("[]", "holds no rows"),
        ({"sections": []}, "holds no rows"),
        ({"A": {"x": 1}}, "A/x is a number"),
        ({"A": ["x"]}, "A is an array"),
        ({"sections": ["x"]}, "section 1 is a text"),
        ({"sections": "x"}, "sections is a text"),
        ({"sections": [{"name": "A", "x_prompt": "a"}, {"name": "B", "texts": {"x": "b"}}]}, "prompts of B is null"),
        ([1, 2], "no JSON objects"),
        ('[{"a":1}] x', "no JSON document"),
        ('["a"]' + " " * 99 + "]", "no JSON document"),
        ('["a",]', "no JSON document"),
        ('[,"a"]', "no JSON document"),
        ('["a" "b"]', "no JSON document"),
        ('[{"a": 1]', "no JSON document"),
        ('["a", "b', "no JSON document"),
        ("[", "no JSON document"),
    ],
)
def test_documents_that_hold_no_rows(tmp_path: Path, document: object, says: str) -> None:
    """What has no rows is refused: what is wrong, where, and the form to write."""
    with pytest.raises(InputError) as caught:
        rows(tmp_path / "a.json", document)
    assert says in caught.value.what
    assert caught.value.fix


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=12,
)
WRITTEN = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@pytest.mark.req("X8")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=9) | st.dictionaries(st.text(max_size=3), VALUES), min_size=1), WRITTEN)
def test_an_array_is_the_same_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch, elements: list[Any], written: dict[str, Any]
) -> None:
    """Wherever a piece of the document ends, in a text or an escape or between elements, each is read as it is."""
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", 1)
    data = json.dumps(elements, **written).encode("utf-8", "surrogatepass")
    lines = ArrayLines(BytesIO(b"\xef\xbb\xbf \n" + data + b"\n"), "a.json")
    found = [json.loads(line) for line in BufferedReader(lines, 1)]
    assert found == [{"text": each} if isinstance(each, str) else each for each in elements]


def peak_bytes(path: Path, rows: int) -> int:
    """What reading an array of so many objects of 300 bytes takes at most."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + ",\n".join(json.dumps({"text": f"{i} " + "x" * 300}) for i in range(rows)) + "]")
    tracemalloc.start()
    try:
        assert sum(batch.num_rows for batch in open_source([path]).batches()) == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.req("X8")
def test_a_long_array_is_read_in_flat_memory(tmp_path: Path) -> None:
    """A document five times as large takes no more memory."""
    small, large = (peak_bytes(tmp_path / f"{rows}.json", rows) for rows in (15_000, 75_000))
    assert large < 1.3 * small


def test_a_packed_document_that_is_cut_short(tmp_path: Path) -> None:
    """The damage is told as such, for an object as for an array."""
    for document in ({"S": {str(i): os.urandom(50).hex() for i in range(3_000)}}, [os.urandom(50).hex()] * 3_000):
        path = tmp_path / "a.json.gz"
        path.write_bytes(gzip.compress(json.dumps(document).encode())[:-100])
        with pytest.raises(InputError, match="cannot be read") as caught:
            list(open_source([path]).batches())
        assert caught.value.fix == "pack it anew"
