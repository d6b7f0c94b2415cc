"""What else a run can do: growing inputs, samples, snapshots of models, templates, typed prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "answer_sigma": 0.0}
UPPER = ("--model", "python:funcs.upper", "--out", "o.jsonl", "--force", "--json")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.req("X13", "X6")
def test_new_rows_in_a_growing_input_cost_only_themselves(place: Place) -> None:
    """Rows put in anywhere since the last time are sent, and only they; the results hold all, in input order."""
    path = place.folder / "log.txt"
    words = ["one", "two", "three"]
    for new in ([], ["four", "five"], ["zero"], []):
        words = [*new, *words] if new == ["zero"] else [*words, *new]
        path.write_text("\n".join(words) + "\n")
        done = place.run("run", "log.txt", *UPPER)
        assert done.code == 0, done.err
        told = done.json
        assert (told["rows"], told["succeeded"]) == (len(words), len(words))
        assert told["sent"] == (3 if len(words) == 3 else len(new))
        assert told["cached"] == len(words) - told["sent"]
        assert [row["response"] for row in place.results("o.jsonl")] == [word.upper() for word in words]
    assert sorted(place.calls()) == sorted(words)


@pytest.mark.req("X13")
def test_a_model_that_changes_between_shards_is_told(tmp_path: Path) -> None:
    """Each row says which snapshot answered it, and an alert says that the alias moved between two batches."""
    fault = {"fault": "model_snapshot_changes", "fraction": 1.0, "after": 1}
    with in_thread(SimulatorConfig(**FAST, faults=(fault,))) as url:
        place = Place(tmp_path, url)
        rows = place.rows(4)
        done = place.run("run", rows, "--model", MODEL, "--lane", "batch", "--batch-size", "2", "--yes",
                         "--out", "o.jsonl")  # fmt: skip
    assert done.code == 0, done.err
    models = [row["model"] for row in place.results("o.jsonl")]
    assert "gpt-4o-mini" in models
    assert any(model.startswith("gpt-4o-mini-2026") for model in models)
    assert "alert: the model changed" in done.err


@pytest.mark.req("X13")
def test_a_sample_is_a_job_of_its_own_that_can_go_on(place: Place) -> None:
    """--sample takes rows at random, in order; the same command takes the same ones, another seed others."""
    place.rows(200)
    run = ("run", "in.txt", *UPPER, "--sample", "20")
    first = place.run(*run)
    assert first.json["sent"] == first.json["succeeded"] == first.json["rows"] == 20
    keys = [row["key"] for row in place.results("o.jsonl")]
    numbers = [int(key.split()[1]) for key in keys]
    assert numbers == sorted(numbers)
    assert numbers != list(range(20))
    again = place.run(*run)
    assert (again.json["sent"], again.json["cached"]) == (0, 20)
    assert [row["key"] for row in place.results("o.jsonl")] == keys
    other = place.run(*run, "--seed", "7", "--limit", "50").json
    assert other["rows"] == 20
    assert max(int(row["key"].split()[1]) for row in place.results("o.jsonl")) < 50
