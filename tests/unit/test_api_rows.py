"""Rows of Python on their way into a file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nightmill.api.rows import taken
from nightmill.errors import InputError


@pytest.mark.req("D8")
def test_a_generator_is_taken_down_in_flat_memory() -> None:
    """Rows that together would fill forty megabytes never are in memory together."""
    wide = "x" * 2_000
    tracemalloc.start()
    try:
        with taken(f"{i} {wide}" for i in range(20_000)) as rows:
            assert rows.given["generator"].stat().st_size > 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_no_more_rows_are_drawn_than_may_run() -> None:
    """A generator without an end is fine with a limit, and is left where it is."""
    drawn: list[int] = []

    def endless() -> object:
        while True:
            drawn.append(len(drawn))
            yield "text"

    with taken(endless(), limit=3) as rows:  # type: ignore[arg-type]
        assert rows.given["generator"].read_text().count("\n") == 3
    assert len(drawn) == 3


def test_what_a_generator_raises_is_raised_and_nothing_stays() -> None:
    """An error in the program that makes the rows is that program's, and no file is left of it."""
    files: list[Path] = []
    with pytest.raises(ZeroDivisionError), taken(str(1 // (i - 2)) for i in range(3)) as rows:
        files += rows.given.values()
    assert files == []


def test_paths_are_files(tmp_path: Path) -> None:
    """A text or a path names a file, a list of paths several; nothing is written down for them."""
    for source, inputs in (("a.csv", ("a.csv",)), (Path("a"), ("a",)), ([Path("a"), Path("b")], ("a", "b"))):
        with taken(source) as rows:  # type: ignore[arg-type]
            assert (rows.inputs, dict(rows.given)) == (inputs, {})
    there = tmp_path / "a.txt"
    there.touch()
    with pytest.raises(InputError, match="names of files"), taken([str(there)]):
        pass


@pytest.mark.req("X4")
def test_arrays_among_the_values_of_a_row() -> None:
    """What numpy holds is written as lists and numbers, of any length."""
    row = {"text": np.str_("a"), "n": np.int64(3), "many": np.array([1.5, 2]), "one": np.array([1])}
    with taken([row]) as rows:
        assert json.loads(rows.given["list"].read_text()) == {"text": "a", "n": 3, "many": [1.5, 2], "one": [1]}


@pytest.mark.req("X4")
def test_a_frame_with_two_columns_of_one_name_is_refused() -> None:
    """What no table can be made of is told as such, not as an error of a library."""
    with pytest.raises(InputError, match="cannot be read as Arrow"), taken(pd.DataFrame([[1, 2]], columns=["a", "a"])):
        pass
