"""What is usable here: providers and models with their keys (by name), lanes and prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nightmill.config import Settings
from nightmill.errors import UnknownPrice
from nightmill.mill.home import sheet_of
from nightmill.pricing import PriceSheet
from nightmill.providers.resolve import Offer, offers, parse_model, parse_models
from nightmill.types import Lane


@dataclass(frozen=True, slots=True)
class Listed:
    """A model, and what using it takes."""

    model: str
    offer: Offer
    prices: Mapping[Lane, PriceSheet]  # of each lane that it has; none where nobody knows the price


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
    return [Listed(ref, offer, _prices(settings, ref, offer)) for ref, offer in (*told, *examples)]


def _prices(settings: Settings, ref: str, offer: Offer) -> dict[Lane, PriceSheet]:
    try:
        return {Lane(lane): sheet_of(settings, ref, Lane(lane)) for lane in offer.lanes}
    except UnknownPrice:
        return {}
