"""What is said of a job's ladder, in lines of text."""

from __future__ import annotations

from nightmill.cli import present
from nightmill.cli.edge import Edge
from nightmill.mill import Job, Mill, Step

_HEADINGS = ("STEP", "ROWS", "VALID", "SHARE", "SPENT", "A ROW")


def step_lines(edge: Edge, mill: Mill, job: Job) -> list[str]:
    """Of each step how many rows came to it, how many became valid, and what that cost; nothing without a ladder."""
    found = mill.steps(job)
    if not found:
        return []
    table = [_HEADINGS, *map(_row, found)]
    lines = present.table(table, width=edge.table_width - 2, unicode=edge.unicode, right=range(1, len(_HEADINGS)))
    return ["  answers that fit the schema, by step:", *(f"  {line}" for line in lines)]


def _row(step: Step) -> tuple[str, ...]:
    share = present.percent(step.valid, step.rows) if step.rows else ""
    spent = present.money(step.spent_nanos) if step.asks else ""
    each = present.money(step.spent_nanos // step.rows) if step.asks and step.rows else ""
    return step.name, present.count(step.rows), present.count(step.valid), share, spent, each
