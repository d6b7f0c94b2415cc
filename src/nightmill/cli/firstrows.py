"""What is said of the first rows of a large job, in lines of text."""

from __future__ import annotations

from nightmill.cli.present import money, percent, some, tokens
from nightmill.mill import Job

_NAMED = 5  # reasons, a line each


def canary_lines(job: Job) -> list[str]:
    """What the first rows showed: how many are valid and why not, what a row takes, and the quote by that."""
    found, quote = job.canary, job.quote
    if found is None:
        return []
    share = f"valid {found.valid:,} ({percent(found.valid, found.rows)})"
    row = f"a row ≈ {tokens(found.row_tokens_in)} tokens in, {tokens(found.row_tokens_out)} out"
    lines = [f"  first {some(found.rows, 'row')}: {share} · {row}, {money(found.row_nanos)}"]
    why = list(found.why.items())
    lines += [f"    {rows:,} {text}" for text, rows in why[:_NAMED]]
    if more := sum(rows for _, rows in why[_NAMED:]):
        lines.append(f"    {more:,} for other reasons")
    if quote is not None:
        expected = f"expected {money(quote.expected_nanos)} → {money(found.expected_nanos)}"
        most = [money(nanos, toward="up") for nanos in (quote.at_most_nanos, found.at_most_nanos)]
        lines.append(f"    {expected} · at most {most[0]} → {most[1]}")
    return lines
