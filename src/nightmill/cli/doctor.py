"""``doctor``: what is well here and what is not, each with its remedy."""

from __future__ import annotations

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge
from nightmill.doctor import diagnose

_MARKS = {"ok": "✓", "note": "·", "bad": "✗"}


@click.command(short_help="Check keys, prices, disk, ledger and clock.")
@flags.common
def doctor(edge: Edge) -> int:
    """Check keys (by name, each with a call that costs nothing), base URLs, clock, prices, home, disk and ledger."""
    findings = diagnose(edge.settings())
    for finding in findings:
        line = f"{_MARKS[finding.state]} {finding.name}: {finding.text}"
        edge.put(present.fitted(line, width=edge.width, unicode=edge.unicode, hanging=4))
        if finding.fix:
            edge.put(present.fitted(f"    fix: {finding.fix}", width=edge.width, unicode=edge.unicode, hanging=5))
    broken = [finding.name for finding in findings if finding.state == "bad"]
    checks = [{"name": f.name, "state": f.state, "text": f.text, "fix": f.fix} for f in findings]
    edge.answer({"ok": not broken, "checks": checks})
    return 1 if broken else 0
