"""Several models for one job: the cheapest that can do it, and why not another."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightmill.config import load_settings
from nightmill.mill import Mill as House
from nightmill.mill import RunOptions

pytestmark = pytest.mark.req("A4")


def test_a_job_knows_the_models_that_may_follow_and_is_found_again_by_all_of_them(tmp_path: Path) -> None:
    """The record holds the next models; the same candidates are the same job, others are another."""
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    settings = load_settings(tmp_path, {"NIGHTMILL_HOME": str(tmp_path / "home")})
    house = House(settings)
    try:
        first, same, other = (
            house.prepare(RunOptions((str(tmp_path / "rows.txt"),), prompt="{{ text }}", model=model, rows="line"))
            for model in ("python:json.dumps,python:json.loads", "python:json.dumps,python:json.loads",
                          "python:json.dumps")
        )  # fmt: skip
    finally:
        house.close()
    assert (first.spec["next_models"], other.spec["next_models"]) == (["python:json.loads"], [])
    assert first.plan.fingerprint == same.plan.fingerprint != other.plan.fingerprint
