"""An input whose columns were learned from its beginning gives what one that was read twice gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.config import load_settings
from nightmill.errors import InputError
from nightmill.mill import Mill, RunOptions
from nightmill.mill.planning import _rehearse
from nightmill.sources import BATCH_ROWS, Source, jsonlines, open_source

CELL = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.sampled_from([1.5, 2.0, "a", "", [1], {"b": 2}])
ROW = st.dictionaries(st.sampled_from(["id", "text", "n"]), CELL, max_size=3)
TABLE = st.lists(ROW, min_size=1, max_size=12) | st.lists(st.just({"text": "a", "n": 1}), min_size=1, max_size=12)
ROOMY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, table: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


def read(source: Source) -> tuple[Any, ...]:
    kinds = [(field.name, field.type, jsonlines.is_json(field)) for field in source.schema]
    return kinds, source.key_column, [batch.to_pylist() for batch in source.batches()]


def outcome(inputs: list[Path], *, whole: bool) -> Any:
    try:
        return read(open_source(inputs, whole=whole))
    except InputError as error:
        return error


@given(st.lists(TABLE, min_size=1, max_size=2))
@ROOMY
def test_a_first_look_never_guesses(tmp_path: Path, tables: list[list[dict[str, Any]]]) -> None:
    """Learned from the beginning, an input gives the same columns, keys and rows as looked at whole, or is refused."""
    inputs = [written(tmp_path / f"{n}.jsonl", table) for n, table in enumerate(tables)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlines, "_BLOCK_BYTES", 16)
        known, quick = outcome(inputs, whole=True), outcome(inputs, whole=False)
    if isinstance(known, InputError):
        assert isinstance(quick, InputError)
    elif not isinstance(quick, InputError):
        assert quick == known


def test_rows_that_stay_alike_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every block has the columns and types of the first, a first look is enough; texts come along."""
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", 1 << 10)
    table = [{"text": f"row {n}", "n": n, "x": None if n else 0.5} for n in range(2 * BATCH_ROWS + 1)]
    path = written(tmp_path / "a.jsonl", table)
    quick = open_source([path], whole=False)
    assert read(quick) == read(open_source([path]))
    texts = [text for some in quick.taken() for text in some.texts.get("text", ())]
    assert texts == [f"row {n}" for n in range(2 * BATCH_ROWS)]


@pytest.mark.parametrize("late", [{"text": 5}, {"text": "b", "messages": []}, {"text": None, "id": "k"}])
def test_a_plan_does_not_depend_on_how_input_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: dict[str, Any]
) -> None:
    """A row unlike those at the beginning makes the plan, or the refusal, that a whole look makes."""
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", 64)
    path = written(tmp_path / "a.jsonl", [{"text": f"row {n}"} for n in range(20)] + [late])
    mill = Mill(load_settings(tmp_path, {"NIGHTMILL_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "sk-x"}))
    options = RunOptions((str(path),), prompt="Say {{ text }}", model="openai/gpt-4o-mini", lane="batch")

    def planned(prepare: Any) -> Any:
        try:
            plan = prepare().plan
        except InputError as error:
            return str(error), error.why
        return plan.rows, plan.quote, plan.fingerprint

    try:
        assert planned(lambda: mill.rehearse(options)) == planned(lambda: _rehearse(mill.home, None, options, (), True))
        with pytest.raises(InputError, match="other columns further down"):
            _rehearse(mill.home, None, options, (), False)
    finally:
        mill.close()
