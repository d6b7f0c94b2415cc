"""`nightmill models`: what each model takes, costs and has for caveats, on screens of any width and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place

from nightmill.config import load_settings
from nightmill.mill import listing
from nightmill.mill.listing import Listed

pytestmark = pytest.mark.req("A4")

GPT, CLAUDE, GEMINI = "openai/gpt-5-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-pro"
ACME = '[providers.acme]\nbase_url = "https://api.acme.example/v1"\nbatch = true\nprice = "free"\n'


def one(folder: Path, ref: str, toml: str = "", env: dict[str, str] | None = None) -> Listed:
    (folder / "nightmill.toml").write_text(toml)
    return listing.one_model(load_settings(folder, {"NIGHTMILL_HOME": str(folder / "home"), **(env or {})}), ref)


def says(model: Listed, text: str) -> bool:
    return any(text in caveat for caveat in model.caveats)


def test_every_width_holds_all_of_it(tmp_path: Path) -> None:
    """At 60, 100 and 200 columns no line is longer, and lanes, limits, prices, their source and caveats are there."""
    place = Place(tmp_path, toml=f'[models."{GPT}"]\nquality = 61\n')
    for width in (60, 100, 200):
        place.env["COLUMNS"] = str(width)
        shown = place.run("models")
        assert shown.code == 0, shown.err
        assert max(map(len, shown.out.splitlines())) <= width
        said = " ".join(shown.out.split())
        for fact in (
            "50,000 requests", "400,000", "256 calls", "0.25 / 2", "0.125 / 1", "genai-prices", " 61",
            "results of a batch are kept for 30 days", "a batch carries no name", "hands nothing back",
        ):  # fmt: skip
            assert fact in said, (width, fact)


def test_one_model_is_told_in_full(tmp_path: Path) -> None:
    """Named, a model needs no entry in any settings; longer requests have their own price, and no line is cut."""
    place = Place(tmp_path)
    place.env["COLUMNS"] = "60"
    shown = place.run("models", GEMINI)
    assert (shown.code, max(map(len, shown.out.splitlines())) <= 60) == (0, True)
    said = " ".join(shown.out.split())
    assert "live: $1.25 in, $10.00 out, $0.125 cached; above 200,000 input tokens $2.50 in" in said
    assert "caveat: a request of more than 200,000 input tokens costs more" in said
    (found,) = place.run("models", GEMINI, "--json").json["models"]
    assert (found["model"], found["limits"]["window_s"], found["results_kept_days"]) == (GEMINI, 172_800, 42)
    assert [each["above_tokens"] for each in found["prices"]["live"]["longer_requests"]] == [200_000]
    assert any("hands nothing back" in caveat for caveat in found["caveats"])


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("opnai/gpt-5", "did you mean openai/gpt-5?"),
        ("gpt-5", "did you mean openai/gpt-5?"),
        ("openai", "one of its models, such as openai/gpt-5-mini"),
        ("mine", "PROVIDER/MODEL"),
    ],
)
def test_a_model_of_nobody_is_a_slip(tmp_path: Path, ref: str, told: str) -> None:
    """Exit 2, and what may have been meant."""
    done = Place(tmp_path).run("models", ref)
    assert (done.code, done.out) == (2, "")
    assert told in " ".join(done.err.split())


@pytest.mark.parametrize("ref", ["gemini/gemini-embedding-001", "openai/text-embedding-3-small"])
def test_a_model_for_embeddings_promises_neither_schema_nor_media(tmp_path: Path, ref: str) -> None:
    """Told by its price: what comes back costs nothing."""
    (found,) = Place(tmp_path).run("models", ref, "--json").json["models"]
    assert (found["schema"], found["media"]) == ("none", [])
    assert any("makes vectors of texts" in caveat for caveat in found["caveats"])


def test_a_price_of_ones_own_says_nothing_of_what_a_model_can(tmp_path: Path) -> None:
    """Who pays for input alone may still have it write."""
    toml = f'[models."{GPT}"]\nprice = {{ input = 1.0, output = 0.0 }}\n'
    (found,) = Place(tmp_path, toml=toml).run("models", GPT, "--json").json["models"]
    assert (found["schema"], found["media"]) == ("json_schema", ["image", "pdf"])


def test_programs_get_the_same_with_null_for_what_nobody_knows(tmp_path: Path) -> None:
    """Limits, grade, schema support and caveats; what a lane that is not there would take is null."""
    done = Place(tmp_path, toml=f'[models."{GPT}"]\nquality = 61\n').run("models", "--json")
    found: dict[str, dict[str, Any]] = {each["provider"]: each for each in done.json["models"]}
    assert (found["openai"]["quality"], found["anthropic"]["quality"]) == (61, None)
    assert found["openai"]["limits"]["batch_requests"] == 50_000
    assert found["openai"]["prices"]["batch"]["cached_input_usd"] < found["openai"]["prices"]["live"]["input_usd"]
    live_only = found["deepseek"]["limits"]
    assert (live_only["batch_requests"], live_only["window_s"], live_only["concurrency"]) == (None, None, 256)
    assert (found["gemini"]["media"], found["deepseek"]["media"]) == (["audio", "image", "pdf", "video"], [])
    assert (found["deepseek"]["schema"], found["openai"]["schema"]) == ("json_object", "json_schema")
    assert any("bound to JSON, not to a schema" in caveat for caveat in found["deepseek"]["caveats"])
    assert found["azure"]["prices"] == {}
    assert any("nobody knows its price" in caveat for caveat in found["azure"]["caveats"])


def test_settings_go_before_what_is_known(tmp_path: Path) -> None:
    """Limits and context of one's own are listed; what is known of a server's batches is not said of another's."""
    limits = "limits = { context = 8192, batch_requests = 10, concurrency = 3 }\n"
    acme = one(tmp_path, "acme/m", ACME + limits)
    assert (acme.limits.context, acme.limits.batch_requests, acme.limits.concurrency) == (8192, 10, 3)
    assert (acme.keeps_days, says(acme, "deletes no files"), says(acme, "nobody says how long")) == (0, True, True)
    moved = one(tmp_path, GPT, '[providers.openai]\nbase_url = "http://127.0.0.1:9/v1"\n')
    assert (moved.keeps_days, says(moved, "deletes no files"), says(moved, "30 days")) == (0, True, False)
    graded = one(tmp_path, GPT, f'[models."{GPT}"]\ncontext = 5000\nquality = 7\n')
    assert (graded.limits.context, graded.quality, says(graded, "deletes no files")) == (5000, 7.0, False)


def test_without_batches_nothing_is_said_of_them(tmp_path: Path) -> None:
    """A provider whose batches are switched off keeps no results and has no caveats of batches."""
    live = one(tmp_path, GEMINI, "[providers.gemini]\nbatch = false\n")
    assert (live.offer.lanes, live.keeps_days, says(live, "batch")) == (("live",), 0, False)
    assert says(one(tmp_path, CLAUDE), "up to 804 input tokens more")


def test_prices_that_may_be_wrong_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown batch price, and a price list whose newest price began long ago: not where the price is the user's."""
    given = '[models."acme/m"]\nprice = { input = 1, output = 2 }\n'
    acme = one(tmp_path, "acme/m", ACME + given)
    assert says(acme, "its batch price is not known: the standard price is used")
    assert not says(one(tmp_path, GPT), "price list may be old")
    monkeypatch.setattr(listing, "OLD_PRICES_DAYS", -1)
    assert says(one(tmp_path, GPT), "the price list may be old")
    assert not says(one(tmp_path, "acme/m", ACME + given), "price list may be old")
