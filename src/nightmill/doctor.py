"""What a healthy nightmill needs, checked one by one.

It makes the home and its ledger where there are none, and notes in a ledger that was copied that
unsettled work has to be looked for; apart from that it only reads.

No key is shown or sent: a base URL counts as reachable when it gives any HTTP answer at all.
"""

from __future__ import annotations

import datetime as dt
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from nightmill.config import Settings
from nightmill.errors import NightmillError
from nightmill.ledger import LEDGER_NAME, Ledger
from nightmill.pricing import price_sheet
from nightmill.providers import local
from nightmill.providers.resolve import Offer, offers, runs_here
from nightmill.store import Store
from nightmill.types import Lane

_REACH_S = 5.0
_LEAST_FREE_BYTES = 1_000_000_000
_MOST_SKEW_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: ``note`` is worth knowing, ``bad`` will stop work."""

    name: str
    state: Literal["ok", "note", "bad"]
    text: str
    fix: str = ""


def diagnose(settings: Settings) -> list[Finding]:
    """Every check in turn. A check that fails is a finding, never an exception."""
    found = [_settings(settings), *_providers(settings), _local_model()]
    checks: tuple[Callable[[Settings], Finding], ...] = (_price, _home, _disk, _ledger)
    return found + [_safely(check, settings) for check in checks]


def _safely(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except NightmillError as error:
        name = check.__name__.strip("_").replace("_", " ")
        return _failed(name, error)


def _failed(name: str, error: NightmillError) -> Finding:
    return Finding(name, "bad", f"{error.what}: {error.why}" if error.why else error.what, error.fix)


def _settings(settings: Settings) -> Finding:
    where = str(settings.file) if settings.file else "no nightmill.toml; defaults and environment"
    return Finding("settings", "ok", where)


# -- providers


def _providers(settings: Settings) -> list[Finding]:
    try:
        known = offers(settings.env, settings.providers)
    except NightmillError as error:
        return [_failed("providers", error)]
    found = []
    for offer in known:
        if not _is_wanted(offer, settings):
            continue
        if offer.lacks:
            found.append(Finding(offer.name, "note", "not usable yet", f"{offer.lacks} in the environment or in .env"))
            continue
        found.append(Finding(offer.name, "ok", f"{offer.key} is set" if offer.key else "no key is sent"))
        found += _reach(offer)
    if not found:
        return [Finding("providers", "note", "no key is set", "nightmill models lists what can be used, and how")]
    return found


def _is_wanted(offer: Offer, settings: Settings) -> bool:
    """Whether anything says that this provider is to be used: a key, its table, the default model."""
    by_default = (settings.default_model or "").startswith(f"{offer.name}/")
    return offer.name not in ("local", "python") and bool(offer.key or offer.configured or by_default)


def _reach(account: Offer) -> list[Finding]:
    """Whether the base URL answers, and what its clock says about ours."""
    name = f"{account.name} address"
    if not account.base_url.startswith(("http://", "https://")):
        return [Finding(name, "bad", f"{account.base_url} is no http address", f"correct {account.base_url_variable}")]
    began = dt.datetime.now(dt.UTC)
    request = urllib.request.Request(account.base_url, method="HEAD")  # noqa: S310  checked above
    try:
        with urllib.request.urlopen(request, timeout=_REACH_S) as answer:  # noqa: S310
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refused:  # any answer will do: no key was sent
        date = refused.headers.get("Date")
        refused.close()
    except (OSError, ValueError) as error:
        why = str(getattr(error, "reason", error))
        fix = f"check the network, a proxy, or {account.base_url_variable}"
        return [Finding(name, "bad", f"{account.base_url} does not answer: {why}", fix)]
    found = [Finding(name, "ok", f"{account.base_url} answers")]
    return found + ([_clock(date, began)] if date else [])


def _clock(date: str, began: dt.datetime) -> Finding:
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return Finding("clock", "note", "the provider's date cannot be read")
    middle = began + (dt.datetime.now(dt.UTC) - began) / 2
    skew_s = (middle - theirs).total_seconds()
    if abs(skew_s) <= _MOST_SKEW_S:
        return Finding("clock", "ok", "agrees with the provider's")
    way = "ahead of" if skew_s > 0 else "behind"
    fix = "set the clock; days and months of the budget follow it"
    return Finding("clock", "bad", f"{abs(skew_s):.0f} s {way} the provider's", fix)


def _local_model() -> Finding:
    text = local.availability()
    return Finding("local model", "ok" if local.is_available() else "note", text)


def _price(settings: Settings) -> Finding:
    model = settings.default_model
    if not model:
        return Finding("model", "note", "no default model", "set [defaults] model in nightmill.toml, or give --model")
    free = runs_here(model, settings.env, settings.providers)
    sheet = price_sheet(
        model, Lane.LIVE, at=dt.datetime.now(dt.UTC), overrides=settings.models, providers=settings.providers,
        runs_here=free,
    )  # fmt: skip
    return Finding("model", "ok", f"{model}: price known ({sheet.source}, {sheet.date})")


# -- this machine


def _home(settings: Settings) -> Finding:
    Store(settings.home).prepare()
    mode = settings.home.stat().st_mode & 0o077
    if mode:
        fix = f"chmod 700 {settings.home}"
        return Finding("home", "bad", f"{settings.home} can be read by others, with all prompts and answers", fix)
    return Finding("home", "ok", f"{settings.home} is writable, and readable by its owner only")


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.home).free
    text = f"{free / 1e9:,.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk", "bad", text, "free some space, or set NIGHTMILL_HOME to another disk")
    return Finding("disk", "ok", text)


def _ledger(settings: Settings) -> Finding:
    ledger = Ledger(settings.home / LEDGER_NAME)
    try:
        jobs = len(ledger.jobs())
        if ledger.copied:
            return Finding(
                "ledger", "note", f"{jobs:,} jobs; it was copied or restored", "unsettled work is checked first"
            )
    finally:
        ledger.close()
    return Finding("ledger", "ok", f"opens; {jobs:,} jobs")
