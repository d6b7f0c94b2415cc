"""What all prompts of a job begin with is cached where that pays, and every cent of it is in the quote and the bill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("D2")

MODEL = "anthropic/claude-sonnet-4-5"
ROWS = 24
SYSTEM = "You sort letters of customers by what they want, and say why. " * 190  # some 3,000 tokens
TASK = f'''system = """{SYSTEM}"""
prompt = "{{{{ text }}}}"
'''


def place_at(folder: Path, url: str, defaults: str = "") -> Place:
    folder.mkdir()
    place = Place(folder, url, toml=f'[providers.anthropic]\nbase_url = "{url.removesuffix("/v1")}"\n{defaults}')
    place.env["ANTHROPIC_API_KEY"] = "sk-test"
    (folder / "sort.toml").write_text(TASK)
    return place


def run(place: Place, lane: str, *more: str, rows: int = ROWS) -> Done:
    return place.run(
        "run", place.rows(rows), "--task", "sort.toml", "--model", MODEL, "--lane", lane, "--concurrency", "3",
        "--out", "r.jsonl", "--json", "--yes", *more,
    )  # fmt: skip


def sent(place: Place) -> list[dict[str, Any]]:
    """The bodies of a job's requests."""
    files = sorted((place.home / "jobs").glob("*/shards/*.jsonl"))
    return [json.loads(line)["params"] for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_long_beginning_is_cached_and_costs_less(tmp_path: Path, lane: str) -> None:
    """Spent is billed, to the nano; with the beginning cached it is less, and the quote had said so."""
    with in_thread(SimulatorConfig(speed=20.0, batch_s=5.0, validating_s=0.5, answer_sigma=0.0)) as url:
        place, plain = (
            place_at(tmp_path / "auto", url),
            place_at(tmp_path / "off", url, '[defaults]\nprompt_cache = "off"\n'),
        )
        done = run(place, lane)
        assert done.code == 0, done.err
        billed = place.invoice()["total_nanos"]
        without = run(plain, lane)
        more = plain.invoice()["total_nanos"] - billed
        told = f"cached: billed {billed:,} nanos, spent {done.json['spent_usd']}, quoted {done.json['estimated_usd']}; "
        told += f"not cached: billed {more:,} nanos, quoted {without.json['estimated_usd']}\n{done.err}"
        assert round(done.json["spent_usd"] * 1e9) == billed, told
        assert round(without.json["spent_usd"] * 1e9) == more, told
        assert billed < more, told
        assert done.json["estimated_usd"] < without.json["estimated_usd"], told
        assert sum(row["tokens_cached"] for row in place.results("r.jsonl")) > 0
        assert sum(row["tokens_cached"] for row in plain.results("r.jsonl")) == 0


def test_what_was_cached_is_told_before_and_after(tmp_path: Path) -> None:
    """The quote names the share, a second one that which was measured; `show` tells tokens, `savings` adds up."""
    with in_thread(SimulatorConfig(speed=20.0, batch_s=5.0, validating_s=0.5, batch_cache_hits=0.5)) as url:
        place = place_at(tmp_path / "auto", url)
        done = run(place, "batch")
        assert done.code == 0, done.err
        shown = place.run("show", done.json["job_id"])
        assert "prompt cache:" in shown.out, shown.out
        saved = place.run("savings", done.json["job_id"], "--json").json
        assert saved["by"]["prompt_cache_usd"] > 0
        assert saved["saved_usd"] == pytest.approx(sum(saved["by"].values()), abs=1e-9)
        assert saved["paid_usd"] == done.json["spent_usd"]
        again = place.run("run", "in.txt", "--task", "sort.toml", "--model", MODEL, "--lane", "batch", "--no-cache",
                          "--dry-run")  # fmt: skip
        assert "(measured)" in again.out + again.err, again.out + again.err


def test_few_rows_and_short_prompts_are_sent_as_they_are(tmp_path: Path) -> None:
    """Nine rows would write more than they read; and an answer is found again whether its request was marked or not."""
    with in_thread(SimulatorConfig(speed=1000.0)) as url:
        place = place_at(tmp_path / "auto", url)
        few = run(place, "batch", rows=9)
        assert few.code == 0, few.err
        assert all(isinstance(body["system"], str) for body in sent(place))
        more = run(place, "batch", "--force", rows=30)
        assert (more.code, more.json["cached"]) == (0, 9), more.err
        assert sum("cache_control" in json.dumps(body) for body in sent(place)) == 21
        again = run(place, "live", "--force", "--new", rows=30)
        assert (again.code, again.json["cached"], again.json["spent_usd"]) == (0, 30, 0.0), again.err


@pytest.mark.parametrize(
    ("model", "lane"), [("gpt-5.4-mini", "batch"), ("gpt-4o-mini", "live"), ("gpt-5.6-luna", "live")]
)
def test_what_a_provider_caches_by_itself_is_paid_and_told(tmp_path: Path, model: str, lane: str) -> None:
    """No mark is sent; what OpenAI had cached, and what it bills of writing, is spent to the nano."""
    with in_thread(SimulatorConfig(speed=20.0, batch_s=5.0, validating_s=0.5, answer_sigma=0.0)) as url:
        place = place_at(tmp_path / "auto", url)
        done = place.run("run", place.rows(12), "--task", "sort.toml", "--model", f"openai/{model}", "--lane", lane,
                         "--concurrency", "3", "--out", "r.jsonl", "--json", "--yes")  # fmt: skip
        assert done.code == 0, done.err
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"], place.invoice()
        cached = [row["tokens_cached"] for row in place.results("r.jsonl")]
        assert max(cached) >= 1_024
        assert all(tokens % 128 == 0 for tokens in cached), cached
        assert place.run("savings", done.json["job_id"], "--json").json["by"]["prompt_cache_usd"] > 0
        if lane == "batch":
            assert place.run("reconcile", "openai").code == 0
