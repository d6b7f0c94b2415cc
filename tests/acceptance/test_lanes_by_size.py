"""Advice on sizes is acted on: few prompts run at once, more go to the batch lane, many into several batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        yield url


@pytest.mark.req("B8")
@pytest.mark.parametrize(
    ("rows", "told", "toml", "lane", "batches"),
    [
        (1, (), "", "live", 0),
        (10, (), "", "live", 0),
        (11, (), "", "batch", 1),
        (10, ("--lane", "batch"), "", "batch", 1),
        (11, ("--lane", "live"), "", "live", 0),
        (5, (), "[defaults]\nlane = 'batch'\n", "batch", 1),
        (25, ("--batch-size", "10"), "", "batch", 3),
        (25, (), "[providers.openai.limits]\nbatch_requests = 10\n", "batch", 3),
    ],
)
def test_the_number_of_prompts_decides_unless_told_otherwise(
    tmp_path: Path, url: str, rows: int, told: tuple[str, ...], toml: str, lane: str, batches: int
) -> None:
    """Up to ten prompts run live at once, more as a batch, and as several where one cannot hold them."""
    place = Place(tmp_path, url, toml=toml)
    before = [event for event in place.log() if event["event"] == "create"]
    command = ("run", place.rows(rows), "--prompt", "{{ text }}", "--model", MODEL, *told)
    done = place.run(*command, "--out", "o.jsonl", "--yes", "--json")
    assert (done.code, done.json["lane"], done.json["succeeded"]) == (0, lane, rows), done.err
    assert len([event for event in place.log() if event["event"] == "create"]) - len(before) == batches
    results = place.results("o.jsonl")
    assert [row["index"] for row in results] == list(range(rows))
    assert len({row["batch_id"] for row in results} - {None}) == batches
