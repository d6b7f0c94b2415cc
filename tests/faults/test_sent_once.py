"""How many rows were sent: each counts once, however often it went out."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults_kit import house


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_rows_that_a_retry_sends_anew_are_counted_once(tmp_path: Path, lane: str) -> None:
    """Rows that a cancelled job never sent count when a retry sends them; rows it sends again do not."""
    with house(tmp_path, {"fault": "truncated_answers", "count": 2}) as h:
        job = h.submit(8, lane)
        h.cancel(job)
        job = h.run(job)
        assert h.mill.standing(job).sent == 0
        for expected in (8, 2):
            assert h.mill.retry(h.mill.job(job.id)) == expected
            job = h.run(h.mill.job(job.id))
            assert (h.mill.standing(job).sent, h.tally(job).sent) == (8, 8)
