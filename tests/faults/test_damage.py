"""Files of a finished job that were damaged since: what was paid for can be read all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults_kit import house

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[: len(data) // 2],
    "overwritten": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
@pytest.mark.parametrize("lane", ["batch", "live"])
def test_damaged_results_are_read_from_what_came_back(
    tmp_path: Path, how: str, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad results file hides no paid answer: the rows are made anew, with a warning, to the last column."""
    with house(tmp_path, {"fault": "truncated_answers", "count": 2}) as h:
        job = h.run(h.submit(8, lane))
        before = h.results(job)
        assert len(before) == 8
        (file,) = (tmp_path / "home").rglob("results/*.parquet")
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(DAMAGE[how](file.read_bytes()))
        assert h.results(job) == before
        assert "is damaged" in caplog.text
        assert h.mill.retry(job) == sum(not row["success"] for row in before)
