"""What a healthy nightmill needs, checked one by one.

It makes the home and its ledger where there are none, and notes in a ledger that was copied that
unsettled work has to be looked for; apart from that it only reads.

No key is shown. A base URL counts as reachable when it gives any HTTP answer at all, asked without the key; then
the key is tried with a call that costs nothing, where the provider has one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from nightmill.config import Settings
from nightmill.errors import Limited, NightmillError, ProviderError, Refused
from nightmill.ledger import LEDGER_NAME, Ledger
from nightmill.pricing import OLD_PRICES_DAYS, newest_price, price_sheet
from nightmill.providers import KeyCheck, Provider, local
from nightmill.providers.resolve import Offer, offers, parse_models, resolve_keys, runs_here
from nightmill.store import Store
from nightmill.types import Lane

_REACH_S = 5.0
_LEAST_FREE_BYTES = 1_000_000_000
_MOST_SKEW_S = 60.0
_LARGE_LOG_BYTES = 100_000_000
_OVERDUE_S = 3.0


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
    checks: tuple[Callable[[Settings], Finding], ...] = (_prices, _price, _home, _disk, _ledger, _work)
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
        found.append(Finding(offer.name, "ok", f"{_joined(offer.set)} set" if offer.set else "no key is sent"))
        reached = _reach(offer)
        found += reached
        if offer.key and all(finding.state != "bad" for finding in reached):
            found += _keys_taken(offer, settings)
    if not found:
        return [Finding("providers", "note", "no key is set", "nightmill models lists what can be used, and how")]
    return found


def _is_wanted(offer: Offer, settings: Settings) -> bool:
    """Whether anything says that this provider is to be used: a key, its table, the default model."""
    by_default = any(model.startswith(f"{offer.name}/") for model in parse_models(settings.default_model or ""))
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


def _joined(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _keys_taken(offer: Offer, settings: Settings) -> list[Finding]:
    """Whether the provider takes each key."""
    name = f"{offer.name} key"
    try:
        keyed = resolve_keys(offer.example, env=settings.env, tables=settings.providers, timing=settings.timing)
    except NightmillError as error:
        return [_failed(name, error)]
    if len(keyed) == 1:
        return [_key_taken(name, offer.key or "", keyed[0])]
    return [_key_taken(f"{offer.name} {each.account.key}", each.account.key.variable, each) for each in keyed]


def _key_taken(name: str, variable: str, provider: Provider) -> Finding:
    """Whether the provider takes its key: by a call that costs nothing, where it has one."""
    try:
        count = asyncio.run(_count_models(provider))
    except Limited as error:
        return Finding(name, "note", f"it is taken, and asks to wait: {error.why}", "try again later")
    except Refused as error:
        if error.status in (404, 405):
            return Finding(name, "note", "there is no list of models to try it with")
        return Finding(name, "bad", f"it is not taken: {error.why}", f"set a key that works in {variable}")
    except (ProviderError, TimeoutError) as error:
        return Finding(name, "note", f"could not be tried: {error}", "try again later")
    except NightmillError as error:
        return _failed(name, error)
    if count is None:
        return Finding(name, "note", "there is no call for nothing to try it with")
    return Finding(name, "ok", f"it is taken; {count:,} models")


async def _count_models(provider: Provider) -> int | None:
    try:
        return await asyncio.wait_for(provider.count_models(), _REACH_S) if isinstance(provider, KeyCheck) else None
    finally:
        await provider.close()


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


def _prices(_: Settings) -> Finding:
    """How old the price list may be: by its own newest entry, since files are as old as their copy."""
    now = dt.datetime.now(dt.UTC)
    source, newest = newest_price(now)
    days = (now.date() - newest).days
    text = f"{source}, its newest price began {newest.isoformat()}, {days:,} days ago"
    if days > OLD_PRICES_DAYS:
        return Finding("prices", "note", text, "pip install --upgrade genai-prices")
    return Finding("prices", "ok", text)


def _price(settings: Settings) -> Finding:
    models = parse_models(settings.default_model or "")
    if not models[0]:
        return Finding("model", "note", "no default model", "set [defaults] model in nightmill.toml, or give --model")
    sheets = [
        price_sheet(
            model, Lane.LIVE, at=dt.datetime.now(dt.UTC), overrides=settings.models, providers=settings.providers,
            runs_here=runs_here(model, settings.env, settings.providers),
        )
        for model in models
    ]  # fmt: skip
    return Finding("model", "ok", f"{', '.join(models)}: price known ({sheets[0].source}, {sheets[0].date})")


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
        count, health, copied = len(ledger.jobs()), ledger.health(), ledger.copied
    finally:
        ledger.close()
    if health.sound != "ok":
        fix = "put it back from a backup, or set NIGHTMILL_HOME to another folder; the file was left as it is"
        return Finding("ledger", "bad", f"it is damaged: {health.sound}", fix)
    jobs = f"{count:,} {'job' if count == 1 else 'jobs'}"
    if copied:
        return Finding("ledger", "note", f"{jobs}; it was copied or restored", "unsettled work is checked first")
    size = f"{health.size_bytes / 1e6:,.1f} MB, log {health.log_bytes / 1e6:,.1f} MB"
    if health.journal != "wal":
        fix = "move the home to a disk of this machine: processes here wait for each other"
        return Finding("ledger", "note", f"{jobs}, {size}; its journal is {health.journal}, not wal", fix)
    if health.log_bytes > _LARGE_LOG_BYTES:
        return Finding("ledger", "note", f"{jobs}, {size}", "end processes that stand still in this home")
    return Finding("ledger", "ok", f"sound; {jobs}, {size}")


def _work(settings: Settings) -> Finding:
    """Jobs that are under way and have nobody who works on them."""
    ledger = Ledger(settings.home / LEDGER_NAME)
    try:
        health = ledger.health()
        alone = [job for job in health.running if not ledger.attended(job, overdue_s=_OVERDUE_S)]
    finally:
        ledger.close()
    if not alone:
        return Finding("work", "ok", "nothing is left alone")
    stale = f"; {health.stale} leases of processes that are gone" if health.stale else ""
    return Finding(
        "work", "note", f"nobody works on {', '.join(alone[:5])}{stale}", "nightmill resume goes on with them"
    )
