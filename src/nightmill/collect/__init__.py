"""Collecting: what came back becomes outcomes, money booked, and results in input order.

`settle_shard` decides, from the files alone, how every request of a shard ended; `Results` joins
outcomes to their rows. Both read the same lines by the same rules, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nightmill import wire
from nightmill.collect.accounting import Accounting, BodySizes, Check, Rules, Verdict, account, bookings, verdict
from nightmill.collect.results import Results, RowCounts
from nightmill.ledger import Counts, NewShard, Settlement, Shard
from nightmill.plan import Bounds, Cutter, recut_lines
from nightmill.pricing import PriceSheet
from nightmill.providers import Provider
from nightmill.store import Store
from nightmill.types import Lane

__all__ = ["Check", "Collected", "Context", "Results", "RowCounts", "Rules", "cut_again", "settle_shard"]


@dataclass(frozen=True, slots=True)
class Context:
    """What collecting a job's shards needs beside the shard."""

    store: Store
    provider: Provider
    sheet: PriceSheet  # pinned on the shard at its hold
    list_sheet: PriceSheet  # the live standard price, for what was saved
    check: Check | None  # of the task's schema
    url: str  # endpoint of the requests
    take_seqs: Callable[[int], int]  # reserves shard numbers in the ledger; the first of them
    rules: Rules = Rules()


@dataclass(frozen=True, slots=True)
class Collected:
    """What to write to the ledger, or that the files must be read once more first."""

    settlement: Settlement
    read_again: bool


def settle_shard(context: Context, shard: Shard, *, stopping: bool) -> Collected:
    """Account for a shard whose result files lie in the store.

    ``read_again`` is True when requests have no line, nothing explains it, and the files were read
    once only: the settlement must not be written then.
    """
    sizes = BodySizes(context.store, shard)
    acc = account(context.store, shard, context.provider, context.sheet, context.list_sheet, context.check)
    found = verdict(acc, context.rules, stopping=stopping)
    if shard.lane is Lane.BATCH and acc.open and shard.reads < 2 and not _explained(acc, shard):
        return Collected(Settlement(found.counts, ()), read_again=True)
    leftovers = _leftovers(context, shard, found)
    resent = {kind: len(rows) for kind, rows in found.resend.items()}
    settlement = Settlement(
        counts=found.counts,
        bookings=bookings(acc, context.sheet, sizes),
        resent=Counts(
            failed=resent.get("failed", 0), missing=resent.get("missing", 0), expired=resent.get("expired", 0)
        ),
        extra_answers=acc.extra_answers,
        unknown_ids=acc.unknown_ids,
        tokens_in=acc.tokens_in,
        tokens_out=acc.tokens_out,
        tokens_cached=acc.tokens_cached,
        list_nanos=acc.list_nanos,
        failures=found.failures,
        leftovers=tuple(leftovers),
        alerts=tuple(_alerts(acc, shard)),
    )
    return Collected(settlement, read_again=False)


def _explained(acc: Accounting, shard: Shard) -> bool:
    """The provider's own totals equal the lines we have: nothing more is to come."""
    sub = shard.current
    if sub.completed is None or sub.failed is None:
        return False
    return sub.completed + sub.failed <= acc.lines.get(sub.n, 0) and not acc.garbled


def _alerts(acc: Accounting, shard: Shard) -> list[tuple[str, str]]:
    found = []
    if acc.differing:
        found.append(("answers_differ", f"{acc.differing} requests of {shard.tag} were answered twice, differently"))
    if acc.unknown_ids:
        found.append(("unknown_ids", f"{acc.unknown_ids} lines of {shard.tag} name requests it did not hold"))
    if len(acc.models) > 1:
        found.append(("model_changed", f"{shard.tag} was answered by {', '.join(sorted(acc.models))}"))
    over = sum(acc.spent.values()) - sum(s.hold_nanos + s.unproven_nanos for s in shard.submissions)
    if over > 0 and any(s.hold_nanos for s in shard.submissions):
        found.append(("over_worst_case", f"{shard.tag} cost {over} nano-dollars more than its worst case"))
    return found


def _leftovers(context: Context, shard: Shard, found: Verdict) -> list[NewShard]:
    """New shards for the rows that go out again, a kind each, since their histories differ."""
    made: list[NewShard] = []
    histories = {
        "failed": {"attempt": shard.attempt + 1},
        "expired": {"expiries": shard.expiries + 1},
        "missing": {"missings": shard.missings + 1},
    }
    for kind, rows in found.resend.items():
        history = {"attempt": shard.attempt, "expiries": shard.expiries, "missings": shard.missings} | histories[kind]
        made += [replace(new, **history) for new in cut_again(context, shard, set(rows))]
    return made


def cut_again(context: Context, shard: Shard, rows: set[int], *, most: int | None = None) -> list[NewShard]:
    """The requests of ``rows`` in new shards of at most ``most`` requests, histories as a first attempt's."""
    cap = shard.cap_tokens // shard.count
    limits = Bounds(most or len(rows), 0, None)

    def tokens(body_bytes: int) -> int:
        return -(-body_bytes * shard.input_tokens // max(1, shard.content_bytes))

    def tag(_: int) -> str:
        return f"{shard.job_id}-{context.take_seqs(1)}"

    cutter = Cutter(
        context.store, context.store.job_folder(shard.job_id), shard.lane, limits, context.sheet, cap,
        context.provider.line_pieces(context.url), tag, tokens,
    )  # fmt: skip
    return recut_lines(cutter, ((i, line) for i, line in wire.shard_lines(context.store, shard) if i in rows))
