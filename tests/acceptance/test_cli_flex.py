"""The flex lane: live calls at the price of batches, where the provider has room for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("D2")
MODEL = "openai/gpt-5-mini"


@contextmanager
def place(folder: Path, *faults: dict[str, Any], toml: str = "", **config: Any) -> Iterator[Place]:
    """A place whose provider has a flex tier."""
    with in_thread(SimulatorConfig(**{"speed": 1000.0, "faults": faults, **config})) as url:
        yield Place(folder, url, toml=toml)


def asked(at: Place, *more: str, rows: int = 30) -> list[str]:
    return ["run", at.rows(rows), "--prompt", "Say {{ text }}", "--model", MODEL, "--json", *more]


def nanos(dollars: float) -> int:
    return round(dollars * 1e9)


def test_a_flex_job_is_billed_at_flex_prices_and_says_so(tmp_path: Path) -> None:
    """Half the live price; spend equals the invoice; rows, savings and quote say it; later jobs have its answers."""
    with place(tmp_path) as at:
        done = at.run(*asked(at, "--lane", "flex", "--yes", "--out", "r.jsonl"))
        assert done.code == 0, done.err
        billed, rows = at.invoice(), at.results("r.jsonl")
        assert nanos(done.json["spent_usd"]) == billed["total_nanos"] == sum(nanos(row["cost_usd"]) for row in rows)
        assert done.json["lane"] == "flex"
        assert done.json["saved_usd"] == pytest.approx(done.json["list_price_usd"] / 2, rel=0.01)
        assert {row["lane"] for row in rows} == {"flex"}
        saved = at.run("savings", "@last", "--json").json
        assert saved["saved_usd"] == saved["by"]["flex_usd"] == pytest.approx(done.json["saved_usd"])
        again = at.run(*asked(at, "--lane", "live", "--yes"))
        assert (again.code, again.json["cached"], at.invoice()["total_nanos"]) == (0, 30, billed["total_nanos"])


def test_what_the_regular_tier_answered_is_booked_at_its_price_and_was_held_for(tmp_path: Path) -> None:
    """An answer says by which tier it was given: that price is paid, in the bill of each row too, and none is over."""
    with place(tmp_path, {"fault": "flex_downgraded", "fraction": 0.4}) as at:
        done = at.run(*asked(at, "--lane", "flex", "--yes", "--out", "r.jsonl"))
        assert done.code == 0, done.err
        billed, rows = at.invoice(), at.results("r.jsonl")
        assert nanos(done.json["spent_usd"]) == billed["total_nanos"] == sum(nanos(row["cost_usd"]) for row in rows)
        assert 0.5 < done.json["spent_usd"] / done.json["list_price_usd"] < 0.9
        quoted = at.run(*asked(at, "--lane", "flex", "--dry-run", "--new")).json
        live = at.run(*asked(at, "--lane", "live", "--dry-run", "--new")).json
        assert quoted["at_most_usd"] == pytest.approx(live["at_most_usd"])  # what may be billed, not what is hoped for
        assert quoted["estimated_usd"] == pytest.approx(live["estimated_usd"] / 2, rel=0.01)


def test_a_storm_of_full_tiers_is_waited_out_and_costs_nothing(tmp_path: Path) -> None:
    """Each refused row waits and goes again; no try is used up by it, and every row is answered and paid once."""
    with place(tmp_path, {"fault": "resource_unavailable", "times": 400}) as at:
        done = at.run(*asked(at, "--lane", "flex", "--yes", rows=60))
        assert done.code == 0, done.err
        assert done.json["succeeded"] == 60
        billed = at.invoice()
        assert nanos(done.json["spent_usd"]) == billed["total_nanos"]
        assert (billed["live_calls"], billed["executed_more_than_once"]) == (60, 0)
        assert at.run("show", "@last").out.count("has no room for gpt-5-mini in flex") == 1


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("openai/gpt-4o-mini", "the flex price of openai/gpt-4o-mini is unknown"),
        ("anthropic/claude-haiku-4-5", "anthropic has no flex lane"),
        ("openai/text-embedding-3-small", "text-embedding-3-small"),
    ],
)
def test_a_model_without_the_lane_is_refused_before_anything_is_sent(tmp_path: Path, model: str, why: str) -> None:
    """Exit 2 with a reason and a way on; no job is begun."""
    with place(tmp_path) as at:
        at.env["ANTHROPIC_API_KEY"] = "sk-ant"
        done = at.run("run", at.rows(3), "--prompt", "{{ text }}", "--model", model, "--lane", "flex", "--yes")
        assert (done.code, why in done.err, "--lane" in done.err) == (2, True, True), done.err
        assert not at.invoice()["executed_rows"]
        assert at.run("jobs", "--json").json["jobs"] == []


def test_a_request_that_names_another_tier_itself_is_refused_by_its_row(tmp_path: Path) -> None:
    """What users say is sent or refused, never changed: flex may stand in a body, another tier may not."""
    with place(tmp_path) as at:

        def bodies(name: str, *tiers: str | None) -> str:
            chat = [{"role": "user", "content": 'say "service_tier"'}]
            lines = [
                {
                    "custom_id": f"r{i}",
                    "body": {"messages": chat, "max_tokens": 500 + i} | ({"service_tier": t} if t else {}),
                }
                for i, t in enumerate(tiers)
            ]
            (at.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
            return name

        run = ("--model", MODEL, "--lane", "flex", "--yes", "--json")
        bad = at.run("run", bodies("bad.jsonl", None, "default"), *run)
        assert (bad.code, at.invoice()["executed_rows"]) == (2, 0)
        assert "bad.jsonl:2" in bad.err
        assert "service_tier" in bad.err
        good = at.run("run", bodies("good.jsonl", None, "flex"), *run)
        assert (good.code, good.json["succeeded"]) == (0, 2), good.err
        assert nanos(good.json["spent_usd"]) == at.invoice()["total_nanos"]
        assert good.json["saved_usd"] == pytest.approx(good.json["list_price_usd"] / 2, rel=0.01)


def test_what_a_user_says_flex_costs_is_what_it_costs(tmp_path: Path) -> None:
    """A price of one's own counts where flex_input and flex_output are in it; without them the lane is refused."""
    own = '[models."openai/gpt-5-mini"]\nprice = {{ input = 4, output = 8{} }}\n'
    with place(tmp_path, toml=own.format(", flex_input = 1, flex_output = 2")) as at:
        done = at.run(*asked(at, "--lane", "flex", "--yes"))
        assert done.code == 0, done.err
        assert done.json["spent_usd"] == pytest.approx(done.json["list_price_usd"] / 4)
    (tmp_path / "b").mkdir()
    with place(tmp_path / "b", toml=own.format("")) as at:
        done = at.run(*asked(at, "--lane", "flex", "--yes"))
        assert (done.code, "flex_input" in done.json["error"]["fix"]) == (2, True)


# -- deadlines

HURRY = "cancel_s = 0.5\ncollect_s = 0.3\nflex_timeout_s = {}\n"


@contextmanager
def hurried(folder: Path, *faults: dict[str, Any], flex_timeout_s: float, **config: Any) -> Iterator[Place]:
    with place(folder, *faults, **{"speed": 1.0, "validating_s": 0.1, "finalizing_s": 0.1, **config}) as at:
        settings = folder / "nightmill.toml"
        settings.write_text(settings.read_text() + HURRY.format(flex_timeout_s))
        yield at


def lanes(at: Place) -> dict[str, int]:
    rows = [row["lane"] for row in at.results("r.jsonl")]
    return {lane: rows.count(lane) for lane in sorted(set(rows))}


@pytest.mark.req("E8")
def test_what_flex_has_not_answered_in_time_is_finished_live(tmp_path: Path) -> None:
    """Calls under way are waited for, the rest goes live: all in time, none twice, and spent is what is billed."""
    hurry = ("--by", "23s", "--concurrency", "4", "--canary", "0")
    with hurried(tmp_path, flex_timeout_s=8.0, flex_latency_s=6.0) as at:
        done = at.run(*asked(at, "--lane", "flex", *hurry, "--yes", "--out", "r.jsonl", rows=16))
        assert (done.code, done.json["succeeded"]) == (0, 16), done.err
        billed = at.invoice()
        assert lanes(at) == {"flex": 4, "live": 12}, done.err
        assert (nanos(done.json["spent_usd"]), billed["executed_more_than_once"]) == (billed["total_nanos"], 0)
        assert (done.json["lane"], done.json["rescued"], done.json["unproven_usd"]) == ("flex", 12, 0)
        assert "in time" in done.err


@pytest.mark.req("E8")
def test_without_time_for_batches_auto_takes_flex_where_it_is_fast_enough(tmp_path: Path) -> None:
    """By what was measured here of both; as long as flex was not, it is taken to be slow. With time it is a batch."""
    with hurried(tmp_path, flex_timeout_s=0.5, batch_s=8.0) as at:
        before = at.run(*asked(at, "--lane", "batch", "--batch-size", "1", "--yes", rows=5))
        assert before.code == 0, before.err
        unknown = at.run(*asked(at, "--by", "7s", "--dry-run", rows=12)).json
        assert at.run(*asked(at, "--lane", "flex", "--yes", rows=60)).code == 0
        known = at.run(*asked(at, "--by", "7s", "--yes", "--no-cache", "--out", "r.jsonl", rows=12))
        enough = at.run(*asked(at, "--by", "1h", "--dry-run", "--no-cache", "--new", rows=12)).json
        assert (unknown["lane"], known.json["lane"], enough["lane"]) == ("batch", "flex", "batch"), known.err
        assert lanes(at) == {"flex": 12}
        assert "too little time for batches" in known.err
        assert (
            nanos(sum(job["spent_usd"] for job in at.run("jobs", "--json").json["jobs"])) == at.invoice()["total_nanos"]
        )


def test_models_that_have_the_lane_say_so_and_what_it_costs(tmp_path: Path) -> None:
    """In the list of lanes, and with a price of its own; a model of the same provider without that price has it not."""
    with place(tmp_path) as at:
        has, lacks = (at.run("models", model, "--json").json["models"][0] for model in (MODEL, "openai/gpt-4o-mini"))
        assert (has["lanes"], lacks["lanes"]) == (["batch", "live", "flex"], ["batch", "live"])
        assert has["prices"]["flex"]["output_usd"] * 2 == has["prices"]["live"]["output_usd"]
        assert "flex" not in lacks["prices"]
        assert "flex: $0.12" in at.run("models", MODEL).out
