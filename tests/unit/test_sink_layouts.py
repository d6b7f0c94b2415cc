"""Documents and folders: what outputs of another shape than a row a line promise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.errors import StoreError, UsageError
from nightmill.sinks import RESULT_SCHEMA, About, Origin, Target, parse_target, write_all
from nightmill.sinks.columns import input_column
from nightmill.sinks.documents import SectionsWriter
from nightmill.sinks.exports import check_targets
from nightmill.sinks.folders import Layout

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(['"', "\n", "\u2028", "\x00"])


def batches(*rows: dict[str, Any], size: int = 3) -> Iterator[pa.RecordBatch]:
    """Results; a value of ``input`` in a row stands beside them."""
    names = [input_column(name) for name in (rows[0].get("input", {}) if rows else {})]
    for start in range(0, len(rows), size):
        some = [dict.fromkeys(RESULT_SCHEMA.names) | {"success": True, "cost_nanos": 0} | row
                for row in rows[start : start + size]]  # fmt: skip
        batch = pa.RecordBatch.from_pylist(some, schema=RESULT_SCHEMA)
        for name in names:
            beside = pa.array([row["input"][name.removeprefix("input.")] for row in some], pa.string())
            batch = batch.append_column(name, beside)
        yield batch


@given(st.lists(st.tuples(TEXT, st.booleans()), max_size=7))
@QUICK
def test_a_document_is_json_whatever_the_texts(tmp_path: Path, rows: list[tuple[str, bool]]) -> None:
    """Any texts, any number of rows, none too: one JSON document, whose summary counts its results."""
    results = [{"index": n, "response": text, "success": good} for n, (text, good) in enumerate(rows)]
    write_all([Target("json", tmp_path / "r.json")], batches(*results), About(job_id="j"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert [(row["response"], row["success"]) for row in found["results"]] == rows
    good = sum(good for _, good in rows)
    rate = good / len(rows) if rows else None
    assert found["summary"] == {"total": len(rows), "completed": good, "failed": len(rows) - good, "success_rate": rate}


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "A/B"]), st.sampled_from(["x", "x (2)", "B/x"])), max_size=9))
@QUICK
def test_no_answer_of_a_section_replaces_another(tmp_path: Path, names: list[tuple[str, str]]) -> None:
    """Sections and names that come twice, or anew later, keep every answer, each in its section, in order."""
    rows = [{"index": n, "response": str(n), "input": {"section": s, "name": p}} for n, (s, p) in enumerate(names)]
    write_all([Target("sections", tmp_path / "r.json")], batches(*rows), About())
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["total_results"] == len(names)
    kept = {
        section: [p["response"] for p in prompts.values()] for section, prompts in found["results_by_section"].items()
    }
    assert kept == {name: [str(n) for n, (s, _) in enumerate(names) if s == name] for name, _ in names}


FOLDERS = Origin(("key", "text", "name", "path"), "file", "/home/me", "/home/me/docs")


@pytest.mark.parametrize(
    ("name", "placed"),
    [
        ("docs/a.txt", "a.txt"), ("docs/sub/a.txt", "sub/a.txt"), ("./docs//sub/../a.txt", "a.txt"),
        ("/home/me/docs/sub/a.txt", "sub/a.txt"), ("../../etc/passwd", "passwd"), ("/etc/passwd", "passwd"),
        ("docs/../../../x", "x"), ("docs/a.txt.gz", "a.txt"), ("-", "stdin"),
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str, placed: str) -> None:
    """Files lie as they did below what was named; whatever else a name says, it stays in the folder."""
    place = Layout(tmp_path, About(origin=FOLDERS)).place(name)
    assert (place.answer, place.meta) == (tmp_path / placed, tmp_path / f"{placed}.meta.json")


def test_answers_with_a_schema_are_json_files(tmp_path: Path) -> None:
    """An answer that is JSON does not go by the name of a text."""
    place = Layout(tmp_path, About(origin=FOLDERS, schema={"type": "object"})).place("docs/a.txt")
    assert (place.answer.name, place.meta.name) == ("a.txt.json", "a.txt.meta.json")


@pytest.mark.parametrize("names", [("docs/a.txt", "docs/a.txt.gz"), ("docs/a.txt", "./docs/a.txt"),
                                   ("docs/a", "docs/a.meta.json")])  # fmt: skip
def test_two_inputs_for_one_file_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Before anything is spent: one answer would replace another."""
    with pytest.raises(UsageError, match="two inputs"):
        check_targets([Target("files", tmp_path / "out")], About(origin=FOLDERS), names=names)


def filed(*answers: str | None) -> list[dict[str, Any]]:
    return [{"index": n, "response": text, "success": text is not None, "input": {"path": f"docs/{n}.txt"}}
            for n, text in enumerate(answers)]  # fmt: skip


def test_a_writer_that_died_half_way_knows_its_files(tmp_path: Path) -> None:
    """Files put in their place before the end came count as the job's own, the others stay as they were."""
    out, about = tmp_path / "out", About(job_id="j1", origin=FOLDERS)
    (out / "1.txt").mkdir(parents=True)
    with pytest.raises(StoreError):
        write_all([Target("files", out)], batches(*filed("a", "b", "c")), about)
    assert sorted(path.name for path in out.iterdir()) == ["0.txt", "0.txt.meta.json", "1.txt"]
    (out / "1.txt").rmdir()
    names = [f"docs/{n}.txt" for n in range(3)]
    check_targets([Target("files", out)], about, names=names, folder=tmp_path / "j1")
    with pytest.raises(UsageError, match=r"0\.txt exists"):
        check_targets([Target("files", out)], about, names=names, folder=tmp_path / "j2")


def test_an_answer_that_is_none_any_more_goes(tmp_path: Path) -> None:
    """Beside a file that says `failed` lies no answer of an earlier run, unless a person changed it."""
    about = About(job_id="j1", origin=FOLDERS)
    write_all([Target("files", tmp_path)], batches(*filed("a", "b")), about)
    (tmp_path / "1.txt").write_text("mine")
    write_all([Target("files", tmp_path, spares=True)], batches(*filed(None, None)), about)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt.meta.json", "1.txt", "1.txt.meta.json"]
    assert json.loads((tmp_path / "0.txt.meta.json").read_text())["status"] == "failed"
    assert json.loads((tmp_path / "1.txt.meta.json").read_text())["status"] == "completed"


def test_targets_of_other_shapes(tmp_path: Path) -> None:
    """A path that ends in a slash, or is a folder, takes a file each; sections are asked for by name."""
    assert parse_target("out/") == Target("files", Path("out"))
    assert parse_target(str(tmp_path)) == Target("files", tmp_path)
    assert parse_target("r.json") == Target("json", Path("r.json"))
    assert parse_target("sections:r.txt") == Target("sections", Path("r.txt"))


@pytest.mark.req("B3")
def test_many_prompts_of_one_name_in_a_section(tmp_path: Path) -> None:
    """Each has a name of its own, also where the input has that name; looking for it does not start at 2 each time."""
    section = _Looked()
    names = ["x"] * 300 + ["x (2)", "x"]
    file = (tmp_path / "r.json").open("wb")
    with file:
        writer = SectionsWriter(file, About(), csv_raw=False)
        writer._sections["S"] = section
        for batch in batches(*({"input": {"section": "S", "name": name}} for name in names)):
            writer.write(batch)
    assert list(section) == ["x", *(f"x ({n})" for n in range(2, 301)), "x (2) (2)", "x (301)"]
    assert section.looks < 3 * len(names)


class _Looked(dict[str, Any]):
    """Counts how often it is asked for a name."""

    looks = 0

    def __contains__(self, name: object) -> bool:
        self.looks += 1
        return super().__contains__(name)
