"""Run every script here and show one table: each claim, what was measured, its floor, the verdict.

Exits 1 when a floor is missed or a script fails. ``--quick`` takes smaller inputs: for a first look,
not for numbers to quote.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _kit import Figure, Skipped, machine

SCRIPTS: dict[str, list[str]] = {
    "startup": ["--rounds", "3"],
    "encode": ["--rows", "20000", "--rounds", "3"],
    "plan": ["--rows", "20000", "--rounds", "3"],
    "collect": ["--rows", "10000", "--rounds", "3"],
    "live": ["--rows", "1000", "--rounds", "2"],
    "scale": ["--rows", "100000"],
    "formats": ["--rows", "100000"],
    "deadline": [],
    "ladder": ["--rows", "8"],
}
"""The scripts in the order they run, and their arguments for a quick look."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    parser.add_argument("only", nargs="*", metavar="SCRIPT", help=f"of {', '.join(SCRIPTS)}")
    given = parser.parse_args()
    if unknown := set(given.only) - SCRIPTS.keys():
        parser.error(f"no such script: {', '.join(sorted(unknown))}")
    results: list[Figure | Skipped] = []
    failed: list[str] = []
    before = machine()
    for script, quick in SCRIPTS.items():
        if given.only and script not in given.only:
            continue
        print(f"running {script}", file=sys.stderr, flush=True)
        found = figures(script, quick if given.quick else [])
        if found is None:
            failed.append(script)
        else:
            results += found
    if given.json:
        print(json.dumps({"results": [_plain(each) for each in results], "failed": failed, "machine": before}))
    else:
        print(table(results))
        print(*(f"{script}: failed, see above" for script in failed), sep="\n")
        print(", ".join(f"{name} {value}" for name, value in before.items()))
    return int(bool(failed) or any(isinstance(each, Figure) and not each.holds for each in results))


def figures(script: str, arguments: list[str]) -> list[Figure | Skipped] | None:
    """What one script found; None when it broke, which it has then said on stderr itself."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), "--json", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    for figure in said["figures"]:
        figure.pop("holds")
    return [*(Figure(**each) for each in said["figures"]), *(Skipped(**each) for each in said["skipped"])]


def table(results: list[Figure | Skipped]) -> str:
    """Claims one below the other, notes under each."""
    width = max((len(each.claim) for each in results), default=0)
    lines = []
    for each in results:
        if isinstance(each, Skipped):
            lines.append(f"{each.claim:<{width}}  SKIPPED: {each.why}")
            continue
        bound = f"{'<=' if each.at_most else '>='} {each.floor:g} {each.unit}"
        verdict = "ok" if each.holds else "MISSED"
        lines.append(f"{each.claim:<{width}}  {each.measured:>8.3g} {each.unit:<7} {bound:<12} {verdict}")
        if each.note:
            lines.append(f"    {each.note}")
    return "\n".join(lines)


def _plain(each: Figure | Skipped) -> dict[str, Any]:
    if isinstance(each, Skipped):
        return {"claim": each.claim, "skipped": each.why}
    return {
        "claim": each.claim, "measured": each.measured, "floor": each.floor, "unit": each.unit,
        "at_most": each.at_most, "holds": each.holds, "note": each.note,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
