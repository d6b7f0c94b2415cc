"""The arithmetic of the benchmarks: medians, ratios, verdicts. No times are asserted."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nightmill.pricing import PriceSheet, Rates
from nightmill.providers._openai_shape import decode_line
from nightmill.types import Lane, Succeeded, Usage

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module("_kit", monkeypatch)


@pytest.fixture
def runner(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module("run", monkeypatch)


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_a_speedup_is_the_median_of_the_rounds_ratios(kit: ModuleType) -> None:
    """One slow round moves nothing, and a round's own noise falls on both contenders."""
    assert kit.speedup([1.0, 2.0, 10.0], [2.0, 4.0, 20.0]) == 2.0
    assert kit.speedup([1.0, 1.0, 1.0], [3.0, 90.0, 3.0]) == 3.0


@pytest.mark.parametrize(
    ("measured", "at_most", "holds"), [(1.5, False, True), (1.49, False, False), (1.5, True, True), (1.51, True, False)]
)
def test_a_figure_holds_up_to_its_floor(kit: ModuleType, measured: float, at_most: bool, holds: bool) -> None:
    """A floor that is met exactly is met, from either side."""
    figure = kit.Figure("c", measured, 1.5, at_most=at_most)
    assert figure.holds is holds
    assert figure.line().split(", ")[3] == ("ok" if holds else "MISSED")


def test_a_race_runs_every_contender_every_round(kit: ModuleType) -> None:
    """The order turns around, and each round has a time for each."""
    ran: list[str] = []
    seconds = kit.race({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 3)
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_a_missed_floor_is_an_exit_code(kit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """1 for a missed floor; a claim that could not be tested is no miss, and is said."""
    good, bad, skipped = kit.Figure("g", 2.0, 1.0), kit.Figure("b", 0.5, 1.0), kit.Skipped("s", "no server")
    assert kit.report([good, skipped], as_json=False) == 0
    assert "SKIPPED: no server" in capsys.readouterr().out
    assert kit.report([good, bad], as_json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert [(figure["claim"], figure["holds"]) for figure in said["figures"]] == [("g", True), ("b", False)]
    assert said["machine"]["cpus"] >= 1


def test_the_table_names_every_claim(kit: ModuleType, runner: ModuleType) -> None:
    """Each claim stands in it with its verdict, the skipped ones too."""
    table = runner.table([kit.Figure("one", 2.0, 1.0, note="how"), kit.Figure("two", 9.0, 1.0, at_most=True),
                          kit.Skipped("three", "why")])  # fmt: skip
    lines = table.splitlines()
    assert lines[0].startswith("one")
    assert lines[0].endswith("ok")
    assert lines[1].strip() == "how"
    assert lines[2].endswith("MISSED")
    assert lines[3].endswith("SKIPPED: why")


def test_every_script_is_run(runner: ModuleType) -> None:
    """No benchmark is forgotten by the table."""
    scripts = {path.stem for path in BENCH.glob("*.py")} - {"run", "_kit"}
    assert scripts == set(runner.SCRIPTS)


def test_rows_are_as_large_as_the_claims_say(kit: ModuleType, tmp_path: Path) -> None:
    """Texts of 200 to 400 bytes, no two the same, and the same ones each time."""
    first, second = (kit.write_rows(tmp_path / name, 500).read_text() for name in ("a.jsonl", "b.jsonl"))
    texts = [json.loads(line)["text"] for line in first.splitlines()]
    assert first == second
    assert len(set(texts)) == 500
    assert all(150 <= len(text.encode()) <= 450 for text in texts)


def test_answers_are_plain_ones(kit: ModuleType) -> None:
    """The lines that decoding is timed with decode to the answer they were made from."""
    text = kit.words(random.Random(3), 200)
    answer = decode_line(kit.answer_line("0123456789abcd-0-7", text, 90, 7))
    assert answer.custom_id == "0123456789abcd-0-7"
    assert isinstance(answer.outcome, Succeeded)
    assert answer.outcome.text == text
    assert answer.outcome.usage == Usage(90, max(1, len(text) // 4))


@pytest.mark.parametrize("tiers", [1, 2])
def test_a_total_is_the_sum_of_costs(tiers: int) -> None:
    """Many requests paid at once cost to the nano what they cost one by one."""
    from fractions import Fraction

    rates = [
        Rates(Fraction(75 + n, 7), Fraction(375, 11), Fraction(94, 3), Fraction(300, 13), Fraction(n, 2),
              above_tokens=1000 * n)
        for n in range(tiers)
    ]  # fmt: skip
    sheet = PriceSheet("p/m", Lane.BATCH, "test", "2026-11-21", True, tuple(rates))
    chance = random.Random(tiers)
    usages = [
        Usage(chance.randrange(3000), chance.randrange(900), chance.randrange(50) * (n % 3), chance.randrange(2))
        for n in range(600)
    ]  # fmt: skip
    assert sheet.total(usages) == sum(sheet.cost(usage) for usage in usages)
    assert sheet.total([]) == 0
