"""``models``: what is usable here, where its key comes from, and what it costs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge
from nightmill.mill.listing import Listed
from nightmill.mill.listing import models as listed
from nightmill.pricing import PriceSheet
from nightmill.types import Lane


@click.command(short_help="What is usable here, its keys and prices.")
@flags.common
def models(edge: Edge) -> int:
    """What is usable here: models of the settings and one of each provider, with lanes, prices and what is missing.

    Prices are in USD per million tokens, in and out. Keys are shown by the name of their variable only.
    """
    found = listed(edge.settings())
    table = [["MODEL", "LANES", "LIVE", "BATCH", "AS OF", "KEY"], *(_row(each) for each in found)]
    edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode)))
    edge.say("prices: USD per million tokens, in / out")
    edge.answer({"models": [_object(each) for each in found]})
    return 0


def _row(each: Listed) -> list[str]:
    live, batch = (_price(each, lane) for lane in (Lane.LIVE, Lane.BATCH))
    dates = [sheet.date for sheet in each.prices.values()]
    return [each.model, ", ".join(each.offer.lanes), live, batch, dates[0] if dates else "", _key(each)]


def _key(each: Listed) -> str:
    offer = each.offer
    if offer.lacks:
        return offer.lacks
    if offer.key:
        return f"{offer.key} is set"
    return f"none needed: {offer.base_url}" if offer.base_url else "none needed"


def _price(each: Listed, lane: Lane) -> str:
    if lane.value not in each.offer.lanes:
        return "-"
    sheet = each.prices.get(lane)
    if sheet is None:
        return "unknown"
    if sheet.is_free:
        return "free"
    unsure = "" if sheet.batch_known else " ?"  # the standard price, which is the most it can be
    return f"{_usd(sheet.tiers[0].input):g} / {_usd(sheet.tiers[0].output):g}{unsure}"


def _usd(nanos_per_token: Fraction) -> float:
    """USD per million tokens."""
    return float(nanos_per_token / 1_000)


def _object(each: Listed) -> dict[str, Any]:
    offer = each.offer
    return {
        "model": each.model,
        "provider": offer.name,
        "usable": not offer.lacks,
        "lacks": offer.lacks,
        "key": {"needed": offer.needs_key, "variables": list(offer.keys), "set": offer.key},
        "base_url": offer.base_url or None,
        "lanes": list(offer.lanes),
        "prices": {lane.value: _price_object(sheet) for lane, sheet in each.prices.items()},
    }


def _price_object(sheet: PriceSheet) -> dict[str, Any]:
    first = sheet.tiers[0]
    return {
        "input_usd": _usd(first.input),
        "output_usd": _usd(first.output),
        "known": sheet.batch_known,
        "source": sheet.source,
        "date": sheet.date,
    }
