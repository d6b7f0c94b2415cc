"""JSON documents as rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nightmill.errors import InputError
from nightmill.sources import decode_row_values, open_source


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
        "sections": [{"section": "S", "id": 7, "a_prompt": "A", "b_prompt": "B", "note": "no"}, {"c_prompt": "C"}]
    }
    found = rows(tmp_path / "a.json", document)
    assert [(row["key"], row["prompt"]) for row in found] == [
        ("S/a_prompt", "A"),
        ("S/b_prompt", "B"),
        ("section 2/c_prompt", "C"),
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
        ([1, 2], "no JSON objects"),
        ('[{"a":1}] x', "no JSON document"),
    ],
)
def test_documents_that_hold_no_rows(tmp_path: Path, document: object, says: str) -> None:
    """What has no rows is refused: what is wrong, where, and the form to write."""
    with pytest.raises(InputError) as caught:
        rows(tmp_path / "a.json", document)
    assert says in caught.value.what
    assert caught.value.fix
