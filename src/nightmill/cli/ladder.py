"""What is said of a job's ladder, in lines of text."""

from __future__ import annotations

from nightmill.cli.present import money, percent, some
from nightmill.mill import Job, Mill, Step


def step_lines(mill: Mill, job: Job) -> list[str]:
    """Of each step how many rows came to it, how many became valid, and what that cost; nothing without a ladder."""
    found = mill.steps(job)
    if not found:
        return []
    width = max(len(step.name) for step in found)
    lines = ["  answers that fit the schema, by step:"]
    for step in found:
        share = f" ({percent(step.valid, step.rows)})" if step.rows else ""
        cost = f" · {money(step.spent_nanos)}{_each(step)}" if step.asks else ""
        lines.append(f"    {step.name.ljust(width)}  {step.valid:,} of {some(step.rows, 'row')}{share}{cost}")
    return lines


def _each(step: Step) -> str:
    return f", {money(step.spent_nanos // step.rows)} a row" if step.rows and step.spent_nanos else ""
