"""Answers that do not fit their schema: what each further step did and cost, before and after."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

NEXT = "anthropic/claude-haiku-4-5"
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}


def test_every_step_tells_its_rows_and_what_they_cost(tmp_path: Path) -> None:
    """Of eight rows none fits at first, six when asked again, two at the next model: the sum is the bill."""
    bad = {"fault": "wrong_schema_answers", "on": "live", "count": 10}
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=[bad])) as url:
        place = Place(tmp_path, url)
        place.env |= {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": url.removesuffix("/v1")}
        (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
        asked = ("--prompt", "Say {{ text }}", "--schema", "s.json", "--reask", "1", "--max-output", "200")
        lane = ("--model", f"{MODEL},{NEXT}", "--lane", "live", "--concurrency", "1")
        command = ("run", place.rows(8), *asked, *lane)
        quoted = place.typed("n\n", *command)
        assert re.search(r"at most \$\S+, and \$\S+ for answers that do not fit\? \[y/N\]", quoted.out), quoted.out
        done = place.run(*command, "--yes", "--json")
        assert (done.code, done.json["succeeded"]) == (0, 8), done.err
        for step in (r"first ask +8 +0 +0 % ", r"re-ask 1 +8 +6 +75 % ", rf"{NEXT} +2 +2 +100 % "):
            assert re.search(step, done.err), done.err
        steps = done.json["ladder"]
        assert sum(round(step["spent_usd"] * 1e9) for step in steps) == place.invoice()["total_nanos"]
        assert "for answers that do not fit" in place.run("show", "@last").out
