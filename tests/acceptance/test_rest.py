"""What else a run can do: growing inputs, samples, snapshots of models, templates, typed prompts."""

from __future__ import annotations

import json
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
    end = done.err[done.err.index("✓") :].splitlines()  # progress in plain lines before it is as long as it is
    assert all(len(line) <= 100 for line in end)


@pytest.mark.req("X13")
@pytest.mark.parametrize("lane", ["batch", "live"])
@pytest.mark.parametrize("model", ["anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"])
def test_every_provider_says_which_snapshot_answered(tmp_path: Path, model: str, lane: str) -> None:
    """Anthropic's model and Gemini's modelVersion stand in each row, and an alert tells where they changed."""
    fault = {"fault": "model_snapshot_changes", "fraction": 0.5}
    with in_thread(SimulatorConfig(**FAST, faults=(fault,))) as url:
        place, root = Place(tmp_path, url), url.removesuffix("/v1")
        place.env |= {"ANTHROPIC_API_KEY": "a", "ANTHROPIC_BASE_URL": root, "GEMINI_API_KEY": "g",
                      "GEMINI_BASE_URL": root}  # fmt: skip
        done = place.run("run", place.rows(12), "--model", model, "--lane", lane, "--yes", "--out", "o.jsonl")
    assert done.code == 0, done.err
    answered = {row["model"] for row in place.results("o.jsonl")}
    assert model.partition("/")[2] in answered
    assert len(answered) > 1
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


@pytest.mark.req("D1")
def test_prompts_are_typed_in_by_hand(place: Place) -> None:
    """On a terminal - says how to end; each line is a prompt, whatever it begins with, comments and blanks aside."""
    text = "[first]\n# no prompt\n\nsecond\n\x04"
    done = place.typed(text, "run", "-", "--model", "python:funcs.upper", "--out", "o.jsonl", at="Ctrl-D")
    assert done.code == 0, done.out
    assert [row["response"] for row in place.results("o.jsonl")] == ["[FIRST]", "SECOND"]


@pytest.mark.req("D1")
def test_what_is_typed_may_still_be_declined(tmp_path: Path) -> None:
    """The question about money comes after the prompts; without one nothing was typed for nobody."""
    with in_thread(SimulatorConfig(**FAST)) as url:
        place = Place(tmp_path, url)
        done = place.typed("one\n\x04n\n", "run", "-", "--model", MODEL, at="Ctrl-D")
        assert done.code == 1, done.out
        assert "not sent" in done.out
        assert place.invoice()["executed_rows"] == 0


@pytest.mark.req("D8")
def test_a_saved_template_runs_again(place: Place) -> None:
    """--save-as keeps what was asked for; @NAME asks it again, and what is said beside it counts instead."""
    place.rows(3)
    saved = ("in.txt", "--prompt", "{{ text }} {{ mood }}", "--set", "mood=now", "--model", "python:funcs.upper",
             "--out", "o.jsonl", "--limit", "2", "--checkpoint", "so-far.json")  # fmt: skip
    tried = place.run("run", *saved, "--save-as", "nightly", "--dry-run", "--force")
    assert (tried.code, place.calls()) == (0, [])
    assert "nightmill run @nightly" in tried.err
    done = place.run("run", "@nightly")
    assert done.code == 0, done.err
    assert [row["response"] for row in place.results("o.jsonl")] == ["ROW 0 NOW", "ROW 1 NOW"]
    place.rows(1, "other {}", name="b.txt")
    done = place.run("run", "@nightly", "b.txt", "--set", "mood=then", "--out", "p.jsonl", "--checkpoint", "p.json",
                     "--json")  # fmt: skip
    assert done.json["out"] == ["p.jsonl"]
    assert [row["response"] for row in place.results("p.jsonl")] == ["OTHER 0 THEN"]
    assert json.loads((place.folder / "so-far.json").read_text())
    done = place.run("run", "@nightly", "--task", "rephrase", "--rows", "line", "--dry-run", "--force")
    assert done.code == 0, done.err


@pytest.mark.req("D8")
def test_templates_are_not_lost_or_mistaken(place: Place) -> None:
    """A name that is taken, unknown or none is told, with what there is; a yes is never saved."""
    place.rows(1)
    run = ("run", "in.txt", "--model", "python:funcs.upper")
    assert place.run(*run, "--save-as", "daily", "--yes").code == 0
    assert place.run(*run, "--save-as", "daily").code == 0  # it says the same
    taken = place.run(*run, "--save-as", "daily", "--rpm", "5")
    assert (taken.code, "there is a template daily already" in taken.err) == (2, True)
    assert place.run(*run, "--save-as", "daily", "--rpm", "5", "--force").code == 0
    unknown = place.run("run", "@dayly", "--json")
    assert (unknown.code, unknown.json["error"]["fix"]) == (2, "did you mean @daily?")
    assert place.run(*run, "--save-as", "../daily").code == 2
    (file,) = (place.home / "templates").iterdir()
    assert "yes" not in file.read_text()
    file.write_text("{}")
    assert "holds no template" in place.run("run", "@daily").err
