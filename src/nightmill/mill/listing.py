"""What is usable here: models with their keys (by name), lanes, limits, prices and caveats."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from nightmill.config import Settings
from nightmill.errors import UnknownPrice
from nightmill.mill.comparing import context_of, quality_of
from nightmill.mill.home import sheet_of
from nightmill.pricing import OLD_PRICES_DAYS, PriceSheet, newest_price
from nightmill.providers import Limits
from nightmill.providers.resolve import Offer, check_provider, known_of, offers, parse_model, parse_models
from nightmill.types import Lane

_SCHEMA_CAVEATS = {
    "json_object": "answers are bound to JSON, not to a schema: that is said in the prompt, and checked here",
    "none": "nothing binds answers to a schema: with one, it is left out where others are named beside it",
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A model, and what using it takes."""

    model: str
    offer: Offer
    prices: Mapping[Lane, PriceSheet]  # of each lane that it has; none where nobody knows the price
    limits: Limits  # the context included, wherever that is known from
    quality: float | None  # 0 to 100, as the settings grade it
    schema: str  # how answers are bound to one: "json_schema", "json_object" or "none"
    keeps_days: int  # how long the results of a batch are kept; 0: nobody says
    caveats: tuple[str, ...]
    media: tuple[str, ...] = ()  # kinds that can be sent along: "image", "pdf", "audio", "video"


def models(settings: Settings) -> list[Listed]:
    """The models that the settings name, then an example of each provider there is, what is usable first.

    Raises:
        UsageError: the settings tell of a provider that cannot be used.
    """
    known = {offer.name: offer for offer in offers(settings.env, settings.providers)}
    named = dict.fromkeys(filter(None, (*parse_models(settings.default_model or ""), *settings.models)))
    of_settings = [(ref, known.get(parse_model(ref)[0])) for ref in named]
    told = [(ref, replace(offer, example=ref)) for ref, offer in of_settings if offer is not None]
    served = {offer.name for _, offer in told}
    examples = [(offer.example, offer) for offer in known.values() if offer.name not in served]
    examples.sort(key=lambda each: bool(each[1].lacks))
    catalogue = newest_price(dt.datetime.now(dt.UTC))
    return [_listed(settings, ref, offer, catalogue) for ref, offer in (*told, *examples)]


def one_model(settings: Settings, ref: str) -> Listed:
    """The same of one model, whether or not anything names it.

    Raises:
        UsageError (UnknownModel): it is no model reference, or nobody here answers for it.
    """
    check_provider(ref, settings.env, settings.providers)
    provider, _ = parse_model(ref)
    offer = next(each for each in offers(settings.env, settings.providers) if each.name == provider)
    catalogue = newest_price(dt.datetime.now(dt.UTC))
    return _listed(settings, ref, replace(offer, example=ref), catalogue)


def _listed(settings: Settings, ref: str, offer: Offer, catalogue: tuple[str, dt.date]) -> Listed:
    prices, known = _prices(settings, ref, offer), known_of(ref, settings.providers)
    if Lane.FLEX not in prices:  # a server has that tier for some of its models, and those have a price of their own
        offer = replace(offer, lanes=tuple(lane for lane in offer.lanes if lane != Lane.FLEX))
    limits = replace(known.limits, context=context_of(settings, ref, known.limits))
    caveats = [*known.caveats, *_price_caveats(prices, catalogue)]
    listed = [sheet for sheet in prices.values() if sheet.source.startswith(catalogue[0])]  # not priced by the user
    if any(sheet.only_reads for sheet in listed):
        known = replace(known, schema="none", media=())
        caveats.append("nothing that it writes has a price: it makes vectors of texts, and takes no schema or media")
    elif known.schema in _SCHEMA_CAVEATS:
        caveats.append(_SCHEMA_CAVEATS[known.schema])
    quality = quality_of(settings, ref)
    return Listed(ref, offer, prices, limits, quality, known.schema, known.keeps_days, tuple(caveats), known.media)


def _price_caveats(prices: Mapping[Lane, PriceSheet], catalogue: tuple[str, dt.date]) -> Sequence[str]:
    if not prices:
        return ["nobody knows its price: nothing is sent before the settings say one"]
    caveats, sheets, (source, newest) = [], list(prices.values()), catalogue
    if not all(sheet.batch_known for sheet in sheets):
        caveats.append("its batch price is not known: the standard price is used, which it does not exceed")
    if steps := sorted({tier.above_tokens for sheet in sheets for tier in sheet.tiers[1:]}):
        caveats.append(f"a request of more than {' or '.join(f'{at:,}' for at in steps)} input tokens costs more")
    days = (dt.datetime.now(dt.UTC).date() - newest).days
    if days > OLD_PRICES_DAYS and any(sheet.source.startswith(source) for sheet in sheets):
        caveats.append(f"the price list may be old: its newest price began {days:,} days ago")
    return caveats


def _prices(settings: Settings, ref: str, offer: Offer) -> dict[Lane, PriceSheet]:
    found = {}
    for lane in map(Lane, offer.lanes):
        with suppress(UnknownPrice):
            found[lane] = sheet_of(settings, ref, lane)
    return found
