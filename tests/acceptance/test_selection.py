"""Several models for one job: the cheapest that can do it, and why not another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

import nightmill as nm
from nightmill.config import load_settings
from nightmill.errors import UsageError
from nightmill.mill import Mill as House
from nightmill.mill import Prepared, RunOptions
from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("A4")

GPT, CLAUDE, GEMINI = "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"
ALL = ",".join((CLAUDE, GPT, GEMINI))
DUMPS, LOADS = "python:json.dumps", "python:json.loads"  # never called here: jobs are planned, not run
GRADES = f'[models."{GPT}"]\nquality = 50\n[models."{CLAUDE}"]\nquality = 80\n'


@contextmanager
def three(folder: Path, toml: str = "") -> Iterator[Place]:
    """A place with keys for all three formats of one simulator."""
    with in_thread(SimulatorConfig(speed=1000.0)) as url:
        place = Place(folder, url, toml=toml)
        bare = url.removesuffix("/v1")
        place.env |= {"GEMINI_API_KEY": "gm-test", "GEMINI_BASE_URL": bare}
        place.env |= {"ANTHROPIC_API_KEY": "sk-ant", "ANTHROPIC_BASE_URL": bare}
        yield place


def asked(place: Place, *more: str, models: str = ALL) -> list[str]:
    return ["run", place.rows(12), "--prompt", "Say {{ text }}", "--model", models, *more]


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_the_cheapest_of_three_providers_does_the_job_and_alone_is_paid(tmp_path: Path, lane: str) -> None:
    """It is chosen by what this job costs in its lane; the invoice has no other provider, and equals what was spent."""
    with three(tmp_path) as place:
        done = place.run(*asked(place, "--lane", lane, "--yes", "--json", "--out", "r.jsonl"))
        assert done.code == 0, done.err
        assert (done.json["model"], done.json["succeeded"]) == (GPT, 12)
        billed = place.invoice()
        assert round(done.json["spent_usd"] * 1e9) == billed["total_nanos"] > 0
        assert {name for name, each in billed["providers"].items() if each["total_nanos"]} == {"openai"}


def test_a_quote_shows_every_model_and_lane_side_by_side_and_why_not(tmp_path: Path) -> None:
    """On the screen at any width, and as JSON: what each lane of each candidate costs, and what keeps one out."""
    with three(tmp_path, GRADES) as place:
        shown = {}
        for width in (60, 100, 200):
            place.env["COLUMNS"] = str(width)
            shown[width] = place.run(*asked(place, "--dry-run", "--min-quality", "50")).err
            assert max(map(len, shown[width].splitlines())) <= width
        said = " ".join(shown[200].split())
        assert f"{GPT} · quality 50 · context" in said
        assert "nobody says how good it is" in said
        found = place.run(*asked(place, "--dry-run", "--json", "--min-quality", "50", "--lane", "batch")).json
    claude, gpt, gemini = found["candidates"]
    assert [each["viable"] for each in (claude, gpt, gemini)] == [True, True, False]
    assert (gpt["chosen"], claude["chosen"], gemini["lanes"]) == (True, False, [])
    assert gpt["expected_usd"] == found["estimated_usd"] < claude["expected_usd"]
    assert [lane["lane"] for lane in claude["lanes"]] == ["batch", "live"]
    assert claude["lanes"][1]["expected_usd"] == pytest.approx(2 * claude["lanes"][0]["expected_usd"])
    assert "--min-quality asks for 50" in gemini["why_not"]


def test_where_none_can_do_the_job_every_reason_is_told(tmp_path: Path) -> None:
    """Exit 2, a line of reasons for each model, and nothing was sent."""
    with three(tmp_path, GRADES + '[providers.plain]\nbase_url = "http://127.0.0.1:9/v1"\n') as place:
        models = f"{GPT},{GEMINI},plain/unpriced,deepseek/deepseek-chat"
        done = place.run(*asked(place, "--lane", "batch", "--min-quality", "60", "--yes", models=models))
        assert (done.code, place.invoice()["total_nanos"]) == (2, 0)
    for reason in (
        f"{GPT}: its quality is 50: --min-quality asks for 60", f"{GEMINI}: nobody says how good it is",
        "plain/unpriced: plain has no batch lane", "DEEPSEEK_API_KEY is not set",
    ):  # fmt: skip
        assert reason in done.err


def test_a_model_without_a_key_is_quoted_and_left_out_of_a_run(tmp_path: Path) -> None:
    """A dry run may choose it and says what is missing; a run takes the next cheapest."""
    with three(tmp_path) as place:
        del place.env["OPENAI_API_KEY"]
        found = place.run(*asked(place, "--dry-run", "--json", "--lane", "batch")).json
        by_model = {each["model"]: each for each in found["candidates"]}
        assert (found["model"], by_model[GPT]["lacks"]) == (GPT, "OPENAI_API_KEY")
        done = place.run(*asked(place, "--yes", "--json", "--lane", "batch"))
        assert (done.code, done.json["model"]) == (0, GEMINI)
        assert f"{GPT} is left out: " in " ".join(done.err.split())


# -- planned, in this process


@contextmanager
def house_in(folder: Path, toml: str = "", env: dict[str, str] | None = None) -> Iterator[House]:
    (folder / "nightmill.toml").write_text(toml)
    house = House(load_settings(folder, {"NIGHTMILL_HOME": str(folder / "home"), **(env or {})}))
    try:
        yield house
    finally:
        house.close()


def options(folder: Path, models: str, rows: list[str] | None = None, **more: Any) -> RunOptions:
    (folder / "rows.txt").write_text("".join(f"{row}\n" for row in rows or ["one", "two"]))
    more = {"prompt": "{{ text }}", "rows": "line"} | more
    return RunOptions((str(folder / "rows.txt"),), model=models, **more)


def price(model: str, given: float, answered: float, more: str = "") -> str:
    return f'[models."{model}"]\nprice = {{ input = {given}, output = {answered} }}\n{more}\n'


def test_a_job_knows_the_models_that_may_follow_and_is_found_again_by_all_of_them(tmp_path: Path) -> None:
    """The record holds the next models; the same candidates are the same job, others are another."""
    with house_in(tmp_path) as house:
        plan: Callable[[str], Prepared] = lambda models: house.prepare(options(tmp_path, models))  # noqa: E731
        first, same, other = plan(f"{DUMPS},{LOADS}"), plan(f"{DUMPS}, {LOADS}"), plan(DUMPS)
    assert (first.spec["next_models"], other.spec["next_models"]) == ([LOADS], [])
    assert first.plan.fingerprint == same.plan.fingerprint != other.plan.fingerprint


def test_the_whole_input_decides_and_not_its_beginning(tmp_path: Path) -> None:
    """Where long rows come later the model with cheap input wins; of the plan that lost nothing is left."""
    toml = price(DUMPS, 10, 0.001) + price(LOADS, 0.5, 10)
    with house_in(tmp_path, toml) as house:
        short = house.prepare(options(tmp_path, f"{DUMPS},{LOADS}"))
        assert short.model == DUMPS
        house.discard(short)
        found = house.prepare(
            options(tmp_path, f"{DUMPS},{LOADS}", ["one"] * 20 + ["many words " * 2_000] * 20, dedupe=False)
        )
        assert (found.model, found.plan.rows) == (LOADS, 40)
        assert [each.name for each in (tmp_path / "home" / "jobs").iterdir()] == [found.plan.job_id]
        house.discard(found)


def test_the_longest_row_has_to_fit(tmp_path: Path) -> None:
    """A model whose context is too small for one row and its answer is out, wherever in the input that row is."""
    toml = price(DUMPS, 1, 1, "context = 3000") + price(LOADS, 5, 5)
    with house_in(tmp_path, toml) as house:
        few = house.rehearse(options(tmp_path, f"{DUMPS},{LOADS}", max_output=100))
        long = house.rehearse(options(tmp_path, f"{DUMPS},{LOADS}", ["one"] * 30 + ["word " * 4_000], max_output=100))
        capped = house.rehearse(options(tmp_path, f"{DUMPS},{LOADS}", max_output=3_000))
    assert (few.model, long.model, capped.model) == (DUMPS, LOADS, LOADS)
    assert (few.spec["next_models"], long.spec["next_models"]) == ([LOADS], [])
    assert any("its context is 3,000 tokens" in note for note in long.quote.notes)


@pytest.mark.parametrize(
    ("asks", "reason"),
    [({"temperature": 0.5}, "temperature"), ({"schema": {"type": "object"}}, "binds no answer to a schema")],
)
def test_what_a_model_cannot_be_asked_keeps_it_out(tmp_path: Path, asks: dict[str, Any], reason: str) -> None:
    """A sampling that it does not take, a schema that its server knows nothing of."""
    toml = '[providers.plain]\nbase_url = "http://127.0.0.1:9/v1"\nschema = "none"\nprice = "free"\n'
    models = f"plain/m,openai/gpt-5-mini,{GPT}" if "schema" in asks else f"openai/gpt-5-nano,{GPT}"
    with house_in(tmp_path, toml) as house:
        found = house.rehearse(options(tmp_path, models, lane="live", **asks))
        assert found.model == GPT
        first = house.compare(found)[0]
    assert reason in first.why_not
    assert first.model not in found.spec["next_models"]


@pytest.mark.parametrize(
    ("asks", "models", "chosen", "reason"),
    [
        ({}, f"{GPT},openai/text-embedding-3-small", GPT, "it makes embeddings"),
        (
            {"task": "embed", "prompt": None, "max_output": None}, "openai/gpt-5-nano,openai/text-embedding-3-large",
            "openai/text-embedding-3-large", "it makes no embeddings",
        ),
    ],
)  # fmt: skip
def test_a_model_that_does_another_kind_of_work_is_left_out(
    tmp_path: Path, asks: dict[str, Any], models: str, chosen: str, reason: str
) -> None:
    """However cheap: what is asked to write goes to no embedding model, and texts to embed to none that writes."""
    with house_in(tmp_path) as house:
        found = house.rehearse(options(tmp_path, models, **asks))
        other = next(each for each in house.compare(found) if each.model != chosen)
    assert found.model == chosen
    assert reason in other.why_not
    assert found.spec["next_models"] == []


def test_a_row_that_only_one_of_them_can_carry_decides(tmp_path: Path) -> None:
    """What an encoder refuses in the middle of the input keeps its model out; the plan is made for another."""
    chat = [{"role": "user", "content": "hi"}]
    rows = [{"messages": chat}] * 40 + [{"messages": chat, "logit_bias": {"1": 5}}]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"url": "/v1/chat/completions", "body": row}) + "\n" for row in rows)
    )
    toml = f'[models."{CLAUDE}"]\nprice = "free"\n'
    with house_in(tmp_path, toml) as house:
        found = house.rehearse(RunOptions((str(tmp_path / "rows.jsonl"),), model=f"{CLAUDE},{GPT}", dedupe=False))
        assert found.model == GPT
        assert "logit_bias" in house.compare(found)[0].why_not


def test_a_job_goes_on_with_the_model_it_was_begun_with(tmp_path: Path) -> None:
    """Though another is the cheapest by now: rows of one job are not answered by two models unasked."""
    models = f"{DUMPS},{LOADS}"
    with house_in(tmp_path, price(DUMPS, 1, 1) + price(LOADS, 2, 2)) as house:
        job = house.submit(house.prepare(options(tmp_path, models)))
        assert job.model == DUMPS
    with house_in(tmp_path, price(DUMPS, 3, 3) + price(LOADS, 2, 2)) as house:
        again = house.prepare(options(tmp_path, models))
        assert again.resumes is not None
        assert (again.resumes.id, again.model) == (job.id, DUMPS)
        assert house.submit(again).id == job.id
        fresh = house.prepare(replace(again.options, new=True))
        assert (fresh.resumes, fresh.model) == (None, LOADS)
        house.discard(fresh)


@pytest.mark.parametrize("models", [f"{GPT},{GPT}", f"{GPT},", "gpt-4o-mini,openai/gpt-5", f"{GPT},opnai/gpt-5"])
def test_a_slip_in_the_list_is_no_candidate(tmp_path: Path, models: str) -> None:
    """A model named twice or not at all, or of no provider, is told at once and not left out."""
    with house_in(tmp_path) as house, pytest.raises(UsageError):
        house.rehearse(options(tmp_path, models))


def test_what_has_nothing_to_do_with_the_model_is_told_once(tmp_path: Path) -> None:
    """A wrong option is an error of its own, not a reason for each model."""
    with house_in(tmp_path) as house, pytest.raises(UsageError) as caught:
        house.rehearse(options(tmp_path, f"{DUMPS},{LOADS}", by="yesterday"))
    assert "yesterday" in caught.value.what


def test_python_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of models, callables among them, and every candidate in the quote."""
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = nm.quote([{"text": "one"}], prompt="{{ text }}", model=[GPT, json.dumps], lane="live")
    assert (found.model, [each.model for each in found.candidates]) == (DUMPS, [GPT, DUMPS])
    assert [(each.chosen, each.lacks) for each in found.candidates] == [(False, "OPENAI_API_KEY"), (True, None)]
    assert found.candidates[1].expected_usd == 0 < (found.candidates[0].expected_usd or 0)


def test_flex_is_shown_beside_the_other_lanes_where_its_price_is_known(tmp_path: Path) -> None:
    """One more line, for a single model, too; it is not taken unless asked for."""
    with house_in(tmp_path) as house:
        found = house.compare(house.rehearse(options(tmp_path, "openai/gpt-5-mini")))
        other = house.compare(house.rehearse(options(tmp_path, GPT)))
    costs = {cost.lane: cost.expected_nanos for cost in found[0].costs}
    assert found[0].lane != "flex"
    assert costs["flex"] * 2 == pytest.approx(costs["live"], rel=1e-3)
    assert "flex" not in {cost.lane for cost in other[0].costs}
