"""The first rows of a large job: how many go out before all others, in which lane, and what is said of it."""

from __future__ import annotations

from typing import Any

from nightmill.ledger import Job, Limit
from nightmill.mill.home import Home, quarter
from nightmill.plan import First, Order, Plan, bounds
from nightmill.providers import LiveProvider
from nightmill.types import Lane, usd

ROWS = 20  # of a canary, where nobody says how many
ABOVE = 500  # rows to send, without a word from the user: smaller jobs are their own canary


def first_of(home: Home, order: Order, *, asked: int | None, batch_said: bool, free: Limit | None) -> First | None:
    """How the first rows of a plan go out, should there be enough; None: all at once.

    They are sent live where that can be paid for and nobody asked for batches, since a batch is waited for.
    ``asked``: how many the user said, 0 for none.
    """
    rows = asked if asked is not None else home.settings.default_canary
    rows = ROWS if rows is None else rows
    if not rows:
        return None
    above = max(rows, 0 if asked is not None else ABOVE)
    in_a_hurry = order.held is not None
    lane = order.lane
    if lane is Lane.BATCH and isinstance(order.provider, LiveProvider) and (in_a_hurry or not batch_said):
        lane = Lane.LIVE
    limits, size = order.provider.limits, order.bounds.requests
    is_embedding = order.compiled.is_embeddings
    own = bounds(lane, limits, batch_size=size, hold_nanos=quarter(free), embeddings=is_embedding)
    sheet = order.list_sheet if lane is not order.lane else order.held or order.sheet
    return First(rows, above, lane, own, sheet)


def notes(plan: Plan, lane: Lane) -> list[str]:
    """What to know before agreeing."""
    if plan.canary_last is None:
        return []
    first = [s for s in plan.shards if s.last <= plan.canary_last and s.lane is not Lane.CACHE]
    rows, live = sum(s.count for s in first), any(s.lane is not lane for s in first)
    how = ", live" if live else ", in a batch of their own" if lane is Lane.BATCH else ""
    return [f"the first {rows:,} rows go out before all others{how}, and are looked at (--canary 0: all at once)"]


def told(job: Job) -> dict[str, Any] | None:
    """What the first rows of a job showed, for ``--json`` and Python; None: it has none, or they are not done."""
    found, quote = job.canary, job.quote
    if found is None:
        return None
    return {
        "rows": found.rows, "valid": found.valid, "valid_share": found.valid / found.rows if found.rows else None,
        "failures": dict(found.why), "row_tokens_in": found.row_tokens_in, "row_tokens_out": found.row_tokens_out,
        "row_usd": usd(found.row_nanos), "spent_usd": usd(found.spent_nanos),
        "expected_usd": usd(found.expected_nanos), "at_most_usd": usd(found.at_most_nanos),
        "quoted_usd": usd(quote.expected_nanos) if quote else None,
        "quoted_at_most_usd": usd(quote.at_most_nanos) if quote else None,
        "stopped": found.stopped, "reason": found.reason or None,
    }  # fmt: skip
