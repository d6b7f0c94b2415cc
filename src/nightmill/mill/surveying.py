"""Surveying: every batch at a provider, whoever made it, and what of it is ours."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from nightmill.errors import NightmillError, UsageError
from nightmill.ledger import KnownBatch
from nightmill.mill.home import Home
from nightmill.providers import BatchView, Key, ListsBatches, Provider
from nightmill.providers.resolve import account_model, available, offers


@dataclass(frozen=True, slots=True)
class ListedBatch:
    """A batch as the provider has it, and as we do."""

    provider: str
    key: str  # how the key is called that it was seen with
    view: BatchView
    known: KnownBatch | None  # None: not recorded here
    shard: str | None  # the shard that sent it, also where it is not recorded yet, or was deleted; None: not ours


@dataclass(slots=True)
class Listing:
    """What one provider says of one account; what came before an ``error`` is not all there is."""

    provider: str
    account: str = ""
    key: Key = field(default_factory=Key)  # that it was asked with
    batches: list[ListedBatch] = field(default_factory=list)
    error: NightmillError | None = None


async def list_batches(home: Home, name: str | None = None) -> list[Listing]:
    """All batches of a provider, or of each that there is a key for, newest first. One that fails hides no other.

    Raises:
        UsageError (UnknownModel): no such provider, or no key for any.
    """
    env, tables = home.settings.env, home.settings.providers
    if name:
        account_model(name, env, tables)
    names = [name] if name else [o.name for o in offers(env, tables) if "batch" in o.lanes and not o.lacks]
    if not names:
        why = "; ".join(available(env, tables))
        raise UsageError("no provider with batches can be asked", why=why, fix="set a key in the environment or .env")
    listings = await asyncio.gather(*(_of_provider(home, each) for each in names))
    return [listing for of_one in listings for listing in of_one]


async def _of_provider(home: Home, name: str) -> list[Listing]:
    """One listing an account: keys of one account show the same batches."""
    try:
        keyed = home.providers(account_model(name, home.settings.env, home.settings.providers))
    except NightmillError as error:
        return [Listing(name, error=error)]
    refused = {key.fingerprint for key in home.ledger.refused_keys(name)}
    by_choice = sorted(keyed, key=lambda each: each.account.key.fingerprint in refused)
    accounts = {each.account.id: each for each in reversed(by_choice)}
    listings = [await _of_account(home, name, accounts[each]) for each in dict.fromkeys(k.account.id for k in keyed)]
    return _each_once(listings)


def _each_once(listings: list[Listing]) -> list[Listing]:
    """What several keys of one account show is told once: by the key it was made with, else by the first."""
    asked = {listing.account for listing in listings if listing.error is None}
    seen: set[str] = set()
    for listing in listings:
        kept = []
        for batch in listing.batches:
            whose = batch.known.account if batch.known else ""
            if batch.view.id not in seen and (whose == listing.account or whose not in asked):
                kept.append(batch)
                seen.add(batch.view.id)
        listing.batches = kept
    return listings


async def _of_account(home: Home, name: str, provider: Provider) -> Listing:
    listing = Listing(name, provider.account.id, provider.account.key)
    views: list[BatchView] = []
    try:
        if not isinstance(provider, ListsBatches):
            raise UsageError(f"{name} lists no batches", why="it has no such call", fix="ask for another provider")
        async for view in provider.batches():
            views.append(view)  # noqa: PERF401  what came before an error is kept
    except NightmillError as error:
        listing.error = error
    finally:
        await provider.close()
    known = home.ledger.known_batches(name)  # only now: what was sent while it was listed is recorded too
    for view in views:
        ours = known.get(view.id)
        shard = ours.tag if ours else _shard_of(home, view)
        listing.batches.append(ListedBatch(name, str(listing.key), view, ours, shard))
    return listing


def _shard_of(home: Home, view: BatchView) -> str | None:
    """The shard whose submission the batch says it is, though its id is not recorded: it is in doubt."""
    shard = home.ledger.shard(view.submission.rpartition(".")[0]) if view.submission else None
    return shard.tag if shard else None
