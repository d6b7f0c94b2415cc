"""Reconciling: what our books say of each batch, held against the provider's own totals.

Where the totals prove what our answers could not, the books are put right; a difference that nothing
explains is told, and stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from nightmill.errors import NightmillError
from nightmill.ledger import KnownBatch
from nightmill.mill.home import Home
from nightmill.mill.surveying import ListedBatch, Listing, list_batches
from nightmill.pricing import PriceSheet
from nightmill.providers import BatchView
from nightmill.types import ShardState, Usage


class Match(StrEnum):
    """How our books and the provider's totals agree about one batch."""

    EQUAL = "equal"
    SETTLED = "settled"  # the totals proved what was unproven; it is booked so now
    DIFFERS = "differs"  # nothing explains it; the books stay as they are
    OPEN = "open"  # it is not over, there or here, or is still looked for
    UNSTATED = "unstated"  # the provider tells no totals, or its price cannot be told from them
    DELETED = "deleted"  # its job was deleted, and with it the price it was sent at
    GONE = "gone"  # the provider does not list it any more
    OTHER_KEY = "other_key"  # it was sent with another key, and cannot be asked for with this one
    UNRECORDED = "unrecorded"  # it carries the name of a shard that settled without it


@dataclass(frozen=True, slots=True)
class Compared:
    """One batch in both books, in nanos. Where the totals leave a nano or two open, what is nearest to ours counts."""

    provider: str
    batch_id: str
    match: Match
    shard: str
    spent_nanos: int  # ours, as it is booked now
    unproven_nanos: int
    theirs_nanos: int | None
    usage: Usage | None  # theirs
    account: str = ""  # that it was made with; empty: it is not recorded
    key: str | None = None  # how the key of that is called

    @property
    def difference_nanos(self) -> int | None:
        """Theirs less ours; None where it cannot be told."""
        return None if self.theirs_nanos is None else self.theirs_nanos - self.spent_nanos


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One provider: every batch that it or we know as ours."""

    provider: str
    batches: tuple[Compared, ...]
    not_ours: int  # batches at the provider that were made elsewhere
    error: NightmillError | None  # it could not be asked, or not for everything: nothing was changed


async def reconcile(home: Home, name: str | None = None) -> list[Reconciled]:
    """Hold our books against the totals of a provider, or of each that there is a key for.

    Raises:
        UsageError (UnknownModel): no such provider, or no key for any.
    """
    listings = await list_batches(home, name)
    return [_reconcile(home, listing, _of_same_provider(listing, listings)) for listing in listings]


def _of_same_provider(listing: Listing, listings: list[Listing]) -> list[Listing]:
    return [other for other in listings if other.provider == listing.provider]


def _reconcile(home: Home, listing: Listing, beside: list[Listing]) -> Reconciled:
    """``beside``: every account of the provider that was asked, this one among them."""
    if listing.error is not None:
        return Reconciled(listing.provider, (), 0, listing.error)
    ours = [batch for batch in listing.batches if batch.shard is not None]
    found = [_compare(home, batch) for batch in ours]
    listed = {batch.view.id for other in beside for batch in other.batches}
    asked = {other.account for other in beside}
    for known in home.ledger.known_batches(listing.provider).values():
        if known.id in listed:
            continue
        if known.account == listing.account:
            found.append(_as_booked(listing.provider, known, Match.GONE))
        elif known.account not in asked and listing is beside[0]:  # told once
            found.append(_as_booked(listing.provider, known, Match.OTHER_KEY))
    names = home.key_names({each.account for each in found if each.account})
    named = tuple(replace(each, key=names.get(each.account)) for each in found)
    return Reconciled(listing.provider, named, len(listing.batches) - len(ours), None)


def _compare(home: Home, batch: ListedBatch) -> Compared:
    known, view = batch.known, batch.view
    if known is None:
        shard = home.ledger.shard(batch.shard or "")
        match = Match.OPEN if shard is not None and shard.state is not ShardState.SETTLED else Match.UNRECORDED
        return Compared(batch.provider, view.id, match, batch.shard or "", 0, 0, None, view.usage)
    if known.state is None:
        return _as_booked(batch.provider, known, Match.DELETED, view)
    if view.phase not in ("ended", "failed") or not known.booked or known.state is not ShardState.SETTLED:
        return _as_booked(batch.provider, known, Match.OPEN, view)
    bounds = _bounds(known, view)
    if bounds is None:
        return _as_booked(batch.provider, known, Match.UNSTATED, view)
    least, most = bounds
    theirs = min(max(known.proven_nanos, least), most)
    if known.unproven_nanos and theirs >= known.proven_nanos:
        if home.ledger.prove(known, theirs, note=f"{batch.provider} says so"):
            return Compared(
                batch.provider, view.id, Match.SETTLED, known.tag, theirs, 0, theirs, view.usage, known.account
            )
        return _as_booked(batch.provider, known, Match.OPEN, view)
    match = Match.EQUAL if theirs == known.spent_nanos else Match.DIFFERS
    return Compared(
        batch.provider, view.id, match, known.tag, known.spent_nanos, known.unproven_nanos, theirs, view.usage,
        known.account,
    )  # fmt: skip


def _as_booked(provider: str, known: KnownBatch, match: Match, view: BatchView | None = None) -> Compared:
    usage = view.usage if view else None
    unproven = known.unproven_nanos
    return Compared(provider, known.id, match, known.tag, known.spent_nanos, unproven, None, usage, known.account)


def _bounds(known: KnownBatch, view: BatchView) -> tuple[int, int] | None:
    """Between what the batch cost by the provider's totals and the price it was sent at; None: they do not tell."""
    usage, ran = view.usage, (view.completed or 0) + (view.failed or 0)
    if usage is None or known.price is None or view.completed is None:
        return None
    if not (usage.input_tokens or usage.output_tokens) and (view.completed or known.proven_nanos):
        return None  # something ran, and nothing is told of it
    return PriceSheet.from_json(known.price).of_totals(usage, ran)
