"""A deadline: half price where there is time, live where there is none left, and each row paid for once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Done, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X3")

SPEED = 100.0
HURRY = "cancel_s = 1.0\ncollect_s = 0.5\n"  # five seconds of ours are eight minutes at the provider


def place_with(folder: Path, url: str) -> Place:
    place = Place(folder, url)
    settings = folder / "nightmill.toml"
    settings.write_text(settings.read_text() + HURRY)
    return place


def run(place: Place, rows: int, *arguments: str) -> Done:
    name = place.rows(rows, f"{place.folder.name} row {{}}")
    return place.run("run", name, "--prompt", "{{ text }}", "--model", MODEL, "--max-output", "100",
                     "--out", "r.jsonl", "--yes", "--json", "--force", *arguments)  # fmt: skip


def lanes(place: Place) -> dict[str, int]:
    rows = place.results("r.jsonl")
    return {lane: sum(row["lane"] == lane for row in rows) for lane in ("batch", "live")}


def server(**more: float) -> Any:
    """A provider, a hundred times faster than real ones; times are in its own seconds."""
    return in_thread(SimulatorConfig(speed=SPEED, **more))  # type: ignore[arg-type]


def test_what_a_slow_batch_has_not_done_in_time_is_finished_live(tmp_path: Path) -> None:
    """Every row is answered by the deadline, none is run twice, and what was spent is what is billed."""
    with server(batch_s=900.0, cancel_s=20.0) as url:
        place = place_with(tmp_path, url)
        done = run(place, 12, "--by", "8s")
        print(done.err, place.invoice())
        assert done.code == 0, done.err
        assert adds_up(done.json)
        assert lanes(place) == {}
