"""What goes wrong at a provider is told in its words, with what to do; nothing is lost by it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bad_input_kit import explained, one_object
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "answer_sigma": 0.0}
NOBODY = "http://127.0.0.1:9/v1"  # nothing listens there
UNKNOWN = "openai/gpt-nosuch"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong, and what has to be said when it ends the run."""

    id: str
    lane: str
    facts: tuple[str, ...]
    faults: tuple[dict[str, Any], ...] = ()
    model: str = MODEL
    url: str = ""
    env: dict[str, str] = field(default_factory=dict)


PAUSES = [
    Trouble("batch failed", "batch", ("batch batch_", " failed: ", "no reason given", "provider's own page"),
            faults=({"fault": "batch_failed_unexplained"},)),
    Trouble("network away", "live", ("no connection to 127.0.0.1:9", "check the network and the base URL"), url=NOBODY),
    Trouble("model unknown", "batch", ("gpt-nosuch", "check the model's name"), model=UNKNOWN),
    Trouble("wrong key", "live", ("invalid_api_key",), env={"OPENAI_API_KEY": "sk-wrong"}),
    Trouble("no money", "batch", ("insufficient_quota", "billing"), env={"OPENAI_API_KEY": "sk-noquota"}),
]  # fmt: skip


@pytest.mark.req("B9")
@pytest.mark.parametrize("trouble", PAUSES, ids=lambda trouble: trouble.id)
def test_what_needs_a_person_pauses_the_job_and_says_what_to_do(tmp_path: Path, trouble: Trouble) -> None:
    """Exit 1, the provider's reason, the next command; every row is open and nothing is held or spent."""
    with in_thread(SimulatorConfig(**FAST, faults=list(trouble.faults))) as url:
        place = Place(tmp_path, trouble.url or url, toml=f'[models."{UNKNOWN}"]\nprice = "free"\n')
        place.env |= trouble.env
        command = ("run", place.rows(3), "--prompt", "{{ text }}", "--model", trouble.model, "--lane", trouble.lane)
        done = place.run(*command, "--yes", "--json")
    explained(done, 1, *trouble.facts, "nightmill resume")
    assert done.json["job_id"] in one_object(done, "paused")["fix"]
    assert (done.json["status"], done.json["pending"], done.json["spent_usd"]) == ("paused", 3, 0.0)
    assert place.run("show", "@last", "--json").json["held_usd"] == 0.0


@pytest.mark.req("B9")
def test_a_rate_limit_is_told_and_waited_out(tmp_path: Path) -> None:
    """While a provider asks to wait the screen says so and what would spare it; the job goes on by itself."""
    faults = [{"fault": "live_429", "times": 2, "retry_after": 1}]
    with in_thread(SimulatorConfig(**FAST, faults=faults)) as url:
        place = Place(tmp_path, url)
        running = place.start("run", place.rows(3), "--prompt", "{{ text }}", "--model", MODEL, "--yes", "--json")
        told = running.until(lambda event: bool(event.get("trouble")))["trouble"]
        done = running.end()
    assert "openai asks to wait (rate limit)" in told
    assert "--rpm" in told
    assert (done.code, done.json["succeeded"]) == (0, 3), done.err


@pytest.mark.req("B9")
def test_a_batch_that_cannot_be_handed_over_says_why_while_it_tries(tmp_path: Path) -> None:
    """Without a network a batch is tried again and again: the screen says what is wrong, and Ctrl-C loses nothing."""
    place = Place(tmp_path, NOBODY)
    command = ("run", place.rows(3), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch", "--yes", "--json")
    running = place.start(*command)
    told = running.until(lambda event: bool(event.get("trouble")))["trouble"]
    running.signal(signal.SIGINT)
    done = running.end()
    assert "no connection to 127.0.0.1:9" in told
    assert "check the network and the base URL" in told
    assert (done.code, done.json["pending"], done.json["sent"]) == (130, 3, 0), done.err
