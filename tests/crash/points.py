"""The kill points, read from the code: whatever commits to the ledger, sends a request or says `reach`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src/nightmill"

# The one provider that the simulator plays; the others go through the same client under the same names.
CLIENT = (SOURCE / "providers/compatible.py", SOURCE / "providers/_api.py")
_OPERATIONS = frozenset({"request", "upload", "download", "call", "ask", "pages"})

# Verbs and calls that running a small job does not reach, and why nobody needs to be killed there.
ELSEWHERE: dict[str, str] = {
    "renew_finish": "only where building the results takes longer than a quarter of a lease; it moves a time",
    "forgive_keys": "only where a person resumes after that; it lets a key be tried again, and moves nothing else",
    "models": "a call that costs nothing and changes nothing, to see whether a key is taken",
    "note_answered": "only where a create is answered after its worker was overtaken; who looks finds its batch anyway",
    "give_back_finish": "only where building the results fails; what it gives back would run out by itself",
}


def known_points() -> set[str]:
    """Every point there is, but those of `ELSEWHERE`."""
    points: set[str] = set()
    for module in SOURCE.rglob("*.py"):
        if module.name == "killpoints.py":
            continue
        for name, word in _calls(module):
            if name == "_write" and "ledger" in module.parts and word not in ELSEWHERE:
                points |= {f"ledger.{word}.committing", f"ledger.{word}.committed"}
            elif name == "reach":
                points.add(word)
    for name, word in (call for module in CLIENT for call in _calls(module)):
        if name in _OPERATIONS and word not in ELSEWHERE:
            points |= {f"http.{word}.sending", f"http.{word}.answered"}
    return points


def _calls(module: Path) -> Iterator[tuple[str, str]]:
    """``(function or method, its first argument)`` of each call whose first argument is a text."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, first.value
