"""List every requirement and the tests marked with it.

Fails on a mark that names no requirement, and when a requirement that is met has lost its tests.

    python scripts/reqs.py [TESTS_FOLDER]

A test claims a requirement with ``@pytest.mark.req("A3")`` on itself or its class, or with
``pytestmark = pytest.mark.req("A3")`` for a whole module. The tests are read, not imported.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REQUIREMENTS = {
    "A1": "a task over text files, one output per input",
    "A2": "dry run: everything planned and priced, nothing spent",
    "A3": "a budget that stops work before it is crossed",
    "A4": "the cheapest viable model is chosen",
    "A5": "missing usage is estimated and marked",
    "A6": "requests and tokens a minute can be capped",
    "A7": "web page: drop files, see the price, run, follow",
    "A8": "keys from the environment or .env; usable from Python",
    "B1": "sectioned prompts in three shapes",
    "B2": "the whole batch workflow, and each step alone",
    "B3": "results grouped by section",
    "B4": "REST: /batch/submit, status, results, list, process-complete",
    "B5": "real-time against batch cost, before and after",
    "B6": "settings by environment",
    "B7": "custom prompt formatting is one function",
    "B8": "few prompts run live, more in batches, many in several",
    "B9": "rotating logs; every common failure says what to do",
    "C1": "a word list to structured entries",
    "C2": "a cost panel and a question before running",
    "C3": "a progress bar and a status table while running",
    "C4": "checkpoint export and batch size",
    "C5": "Ctrl-C finishes, saves and says how to resume",
    "C6": "failed items never stop the rest and can be retried alone",
    "C7": "entries into MongoDB by item key",
    "D1": "prompts from .txt or .json, or typed in",
    "D2": "local models and Python callables",
    "D3": "what a job and a result carry",
    "D4": "checkpoints, and resuming keeps every result",
    "D5": "error strategies: continue, stop, threshold",
    "D6": "export to JSON and CSV",
    "D7": "interactive menu",
    "D8": "parallel, retried, templated, streamed, validated; from Python too",
    "E1": "three providers' Batch APIs at their discount",
    "E2": "job types, and a new one with one file",
    "E3": "a durable queue; Redis streams",
    "E4": "a scheduler that runs for weeks",
    "E5": "a monitor that retries and notifies",
    "E6": "REST: the queue, process, metrics, scheduler, integrations",
    "E7": "dashboard, savings, trends, alerts, reports",
    "E8": "what is urgent falls back to real time",
    "E9": "production: health, backups, runbook, scaling out",
    "X1": "exactly once, through kill -9",
    "X2": "a budget that cannot be crossed",
    "X3": "a deadline",
    "X4": "any data in, any data out",
    "X5": "structured output, validated",
    "X6": "no paying twice",
    "X7": "OpenAI-compatible batch server",
    "X8": "scale: flat memory, millions of rows",
    "X9": "images, PDFs, audio, video, embeddings",
    "X10": "metrics, traces, audit trail",
    "X11": "a provider simulator with faults",
    "X12": "housekeeping with money in mind",
    "X13": "the rest of the API",
}


# What is met, and so has to keep at least one test.
MET = (
    "A1", "A2", "A3", "A5", "A6", "A8", "B1", "B2", "B3", "B5", "B6", "B7", "B8", "B9", "C1", "C2", "C3", "C4",
    "C5", "C6", "D1", "D2", "D3", "D4", "D5", "D6", "X1", "X2", "X6", "X8", "X11", "X12", "X13",
)  # fmt: skip


class Claim(NamedTuple):
    requirement: str
    test: str  # path::Class::function, or the path alone for a whole module
    line: int


def claims(file: Path, shown: str) -> Iterator[Claim]:
    """Every requirement that ``file`` claims; ``shown`` is how the file is called in the list."""
    yield from _claims(ast.parse(file.read_text(encoding="utf-8"), str(file)), shown)


def _claims(node: ast.AST, name: str) -> Iterator[Claim]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{name}::{child.name}"
            for mark in child.decorator_list:
                yield from _marked(mark, inner)
            yield from _claims(child, inner)
        elif isinstance(child, ast.Assign) and any(getattr(t, "id", "") == "pytestmark" for t in child.targets):
            marks = child.value.elts if isinstance(child.value, (ast.List, ast.Tuple)) else [child.value]
            for mark in marks:
                yield from _marked(mark, name)


def _marked(mark: ast.expr, name: str) -> Iterator[Claim]:
    if isinstance(mark, ast.Call) and ast.unparse(mark.func) in ("pytest.mark.req", "mark.req"):
        for argument in mark.args:
            text = argument.value if isinstance(argument, ast.Constant) else ast.unparse(argument)
            yield Claim(str(text), name, mark.lineno)


def main(tests: Path) -> int:
    """Print the list; 1 when a mark names no requirement, or a met requirement has no mark."""
    found: dict[str, list[str]] = defaultdict(list)
    unknown = []
    for file in sorted(tests.rglob("test_*.py")):
        for claim in claims(file, file.relative_to(tests.parent).as_posix()):
            if claim.requirement in REQUIREMENTS:
                found[claim.requirement].append(claim.test)
            else:
                unknown.append(claim)
    for requirement, title in REQUIREMENTS.items():
        print(f"{requirement:<4} {title}")
        for test in found[requirement] or ["no test yet"]:
            print(f"       {test}")
    print(f"\n{sum(bool(found[r]) for r in REQUIREMENTS)} of {len(REQUIREMENTS)} requirements have tests")
    for claim in unknown:
        print(f"{claim.test} (line {claim.line}): no requirement is called {claim.requirement!r}", file=sys.stderr)
    lost = [requirement for requirement in MET if not found[requirement]]
    for requirement in lost:
        print(f"{requirement} ({REQUIREMENTS[requirement]}) has no test any more", file=sys.stderr)
    return 1 if unknown or lost else 0


if __name__ == "__main__":
    here = Path(__file__).resolve().parent.parent
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else here / "tests"))
