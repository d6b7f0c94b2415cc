"""``models``: what is usable here, what it takes and costs, and what to know before one is chosen."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge
from nightmill.mill.listing import Listed, one_model
from nightmill.mill.listing import models as listed
from nightmill.pricing import PriceSheet, Rates
from nightmill.types import Lane

_HEADINGS = (
    "MODEL", "LANES", "LIVE", "BATCH", "CONTEXT", "KEY", "A BATCH", "AT ONCE", "SCHEMA", "QUALITY", "PRICES", "CAVEATS",
)  # fmt: skip
_SCHEMAS = {"json_schema": "yes", "json_object": "JSON only", "none": "no"}


@click.command(short_help="What is usable here, its keys and prices.")
@click.argument("model", required=False)
@flags.common
def models(edge: Edge, model: str | None) -> int:
    """What is usable here: models of the settings and one of each provider, with lanes, limits, prices and caveats.

    MODEL, a PROVIDER/MODEL, shows all that is known of that one. Prices are in USD per million tokens, in and
    out. Keys are shown by the name of their variable only.
    """
    settings = edge.settings()
    found = [one_model(settings, model)] if model else listed(settings)
    if model:
        _show(edge, found[0])
    else:
        table = [_HEADINGS, *(_row(each) for each in found)]
        edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode)))
        edge.say("prices: USD per million tokens, in / out; nightmill models MODEL tells all of one")
    edge.answer({"models": [_object(each) for each in found]})
    return 0


def _row(each: Listed) -> list[str]:
    live, batch = (_price(each, lane) for lane in (Lane.LIVE, Lane.BATCH))
    context = present.count(each.limits.context) if each.limits.context else ""
    quality = "" if each.quality is None else f"{each.quality:g}"
    return [
        each.model, ", ".join(each.offer.lanes), live, batch, context, _key(each), _batch(each),
        present.some(each.limits.concurrency, "call"), _SCHEMAS[each.schema], quality, _source(each),
        "; ".join(each.caveats),
    ]  # fmt: skip


def _show(edge: Edge, each: Listed) -> None:
    """All of one model, a line each; caveats last."""
    _, lanes, live, batch, context, key, a_batch, at_once, schema, quality, source, _ = _row(each)
    lines = [
        ("lanes", lanes), ("live", _in_words(each, Lane.LIVE) or live), ("batch", _in_words(each, Lane.BATCH) or batch),
        ("flex", _in_words(each, Lane.FLEX)), ("prices", source), ("a batch", a_batch), ("at once", f"{at_once}, live"),
        ("context", f"{context} tokens" if context else "not known"), ("schema", schema),
        ("media", ", ".join(each.media) or "none that is known"), ("quality", quality or "not graded"), ("key", key),
        ("address", each.offer.base_url),
        *(("caveat", caveat) for caveat in each.caveats),
    ]  # fmt: skip
    edge.put(present.fitted(each.model, width=edge.width, unicode=edge.unicode))
    for label, text in lines:
        if text:
            line = f"  {label}: {text}"
            edge.put(present.fitted(line, width=edge.width, unicode=edge.unicode, hanging=4))


def _in_words(each: Listed, lane: Lane) -> str:
    """Every rate of a lane, and those of longer requests; empty where there is nothing to tell."""
    sheet = each.prices.get(lane)
    return "" if sheet is None or sheet.is_free else "; ".join(map(_rates, sheet.tiers))


def _rates(tier: Rates) -> str:
    over = f"above {tier.above_tokens:,} input tokens " if tier.above_tokens else ""
    text = f"{over}{_dollars(tier.input)} in, {_dollars(tier.output)} out, {_dollars(tier.cached_input)} cached"
    return f"{text}, {_dollars(tier.cache_write)} cache write" if tier.cache_write != tier.input else text


def _dollars(rate: Fraction) -> str:
    usd = _usd(rate)
    return f"${usd:.2f}" if usd == round(usd, 2) else f"${usd:g}"


def _batch(each: Listed) -> str:
    """What one batch takes."""
    if "batch" not in each.offer.lanes:
        return ""
    limits = each.limits
    usual = f" ({present.count(limits.batch_usual)} unless told)" if limits.batch_usual else ""
    requests = present.some(limits.batch_requests, "request") + usual
    return f"{requests}, {present.size(limits.batch_bytes)}, {limits.window_s // 3_600} h"


def _source(each: Listed) -> str:
    sheet = next(iter(each.prices.values()), None)
    return f"{sheet.source}, {sheet.date}" if sheet else ""


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
        "limits": _limits_object(each),
        "schema": each.schema,
        "media": list(each.media),
        "quality": each.quality,
        "results_kept_days": each.keeps_days or None,
        "prices": {lane.value: _price_object(sheet) for lane, sheet in each.prices.items()},
        "caveats": list(each.caveats),
    }


def _limits_object(each: Listed) -> dict[str, int | None]:
    """What is not known, or of a lane that is not there, is null."""
    told = {name: value or None for name, value in asdict(each.limits).items()}
    if "batch" in each.offer.lanes:
        return told
    return {name: None if name.startswith(("batch", "window")) else value for name, value in told.items()}


def _rates_object(tier: Rates) -> dict[str, float]:
    return {
        "input_usd": _usd(tier.input),
        "output_usd": _usd(tier.output),
        "cached_input_usd": _usd(tier.cached_input),
        "cache_write_usd": _usd(tier.cache_write),
    }


def _price_object(sheet: PriceSheet) -> dict[str, Any]:
    longer = [{"above_tokens": tier.above_tokens, **_rates_object(tier)} for tier in sheet.tiers[1:]]
    return {
        **_rates_object(sheet.tiers[0]),
        "longer_requests": longer,
        "known": sheet.batch_known,
        "source": sheet.source,
        "date": sheet.date,
    }
