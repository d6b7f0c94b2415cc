"""Claim: planning does all its duties faster than a bare loop of the standard library's ``json``.

By wall clock, as a second thread does a part of our work; CPU time stands beside it. Ours: `make_plan`
whole, from reading and checking the file to shards, Parquet snapshot, digests, duplicates, token
estimate and quote. Rival: json.loads, a dict, json.dumps, write; nothing else.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _kit import PROMPT, Figure, arguments, order_for, per_row, race, report, speedup, write_rows

from nightmill.plan import make_plan
from nightmill.sources import open_source
from nightmill.store import Store


def main() -> int:
    given = arguments(__doc__, rows=100_000, rounds=19)
    folder = Path(tempfile.mkdtemp(prefix="bench-plan-"))
    try:
        return report([measure(folder, given.rows, given.rounds)], as_json=given.json)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, rows: int, rounds: int) -> Figure:
    from dataclasses import replace

    path = write_rows(folder / "rows.jsonl", rows)
    order, store = order_for(path), Store(folder)

    def plan() -> None:
        # As the command does: planning itself checks what opening has not seen.
        made = make_plan(replace(order, source=open_source([path], whole=False)), store, "0123456789abcd")
        assert made.rows == rows
        store.drop_folder("jobs")

    cpu: dict[str, list[float]] = {"plan": [], "json": []}

    def noted(name: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            work()
            cpu[name].append(time.process_time() - started)

        return run

    contenders = {"plan": noted("plan", plan), "json": noted("json", lambda: bare(path, folder / "bare.jsonl"))}
    seconds = race(contenders, rounds, time.perf_counter)
    return Figure("rows a second of the whole plan, beside a bare json loop", speedup(seconds["plan"], seconds["json"]),
                  1.5, note=f"{per_row(seconds, rows)}; CPU {per_row(cpu, rows)}")  # fmt: skip


def bare(path: Path, to: Path) -> None:
    """The loop that anyone would write."""
    before, _, after = PROMPT.partition("{{ text }}")
    with path.open(encoding="utf-8") as lines, to.open("w", encoding="utf-8") as out:
        for i, line in enumerate(lines):
            row = json.loads(line)
            request = {
                "custom_id": f"0123456789abcd-{i}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "gpt-4o-mini",
                    "messages": [{"role": "user", "content": before + row["text"] + after}],
                    "temperature": 0.3,
                    "max_completion_tokens": 2000,
                },
            }
            out.write(json.dumps(request) + "\n")


if __name__ == "__main__":
    sys.exit(main())
