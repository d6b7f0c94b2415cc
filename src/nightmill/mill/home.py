"""What every room of the mill works with: one home's settings, ledger and files, and what they make of a model."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from nightmill.answers import AnswerCache, salt
from nightmill.config import DEFAULT_BUDGET_NANOS, Settings
from nightmill.engine import JobKit
from nightmill.errors import UnknownPrice, UsageError
from nightmill.lanes import Desk, Work
from nightmill.lanes.throttle import Rates
from nightmill.ledger import LEDGER_NAME, Job, Ledger, Limit, Shard
from nightmill.mill.embedding import answer_check, most_together
from nightmill.plan import Compiled, Ladder, Parameters, Scissors
from nightmill.pricing import PriceSheet, price_sheet
from nightmill.providers import BatchProvider, FlexProvider, Limits, LiveProvider, Provider, fingerprint_shown
from nightmill.providers.resolve import hidden_tokens, resolve_keys, runs_here
from nightmill.store import Store
from nightmill.tasks import Task, bind, repairing
from nightmill.types import Lane


def sheet_of(settings: Settings, model: str, lane: Lane) -> PriceSheet:
    """Today's prices of a model, by the settings or the catalogue. Raises UnknownPrice."""
    free = runs_here(model, settings.env, settings.providers)
    sheet = price_sheet(
        model, lane, at=dt.datetime.now(dt.UTC), overrides=settings.models, providers=settings.providers, runs_here=free
    )
    return replace(sheet, framing_tokens=sheet.framing_tokens + hidden_tokens(model, settings.providers))


def dearer(one: PriceSheet, other: PriceSheet) -> PriceSheet:
    """The sheet by which no request of either can cost more than was held, as far as one of them is that."""
    return one if one.dearer_than(other) else other


def quarter(free: Limit | None) -> int | None:
    """The most that one shard may hold, so that a few fit into the tightest limit at once; None: no limit."""
    return None if free is None or free.free_nanos is None else max(1, free.free_nanos // 4)


def most_live(
    requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None, tokens: int
) -> float:
    """Rows a second that limits of live calls allow, with ``tokens`` tokens a row at most; infinity: there are none.

    A call is taken to be answered in two seconds.
    """
    found = [concurrency / 2] if concurrency else []
    found += [requests_per_minute / 60] if requests_per_minute else []
    found += [tokens_per_minute / 60 / max(1, tokens)] if tokens_per_minute else []
    return min(found, default=math.inf)


def compiled_from(spec: Mapping[str, Any], provider: Provider) -> Compiled:
    """A job's task, compiled anew from what its record says."""
    bound = bind(Task.from_dict(spec["task"]), spec["columns"], {})
    return Compiled(provider, bound, Parameters.from_dict(spec["parameters"]))


def model_of(job: Job, shard: Shard) -> str:
    """The model that is asked the requests of a shard: the job's, or one further up its ladder."""
    step = Ladder.of(job.spec).at(shard.rung)
    return job.model if step is None else step.model


def confirmed_sheet(job: Job, model: str, lane: Lane, today: PriceSheet) -> PriceSheet:
    """The prices of a model that the user said yes to; ``today``'s where none were shown."""
    if model == job.model:
        name = "price" if lane is job.lane else "live_price"
        return PriceSheet.from_json(job.spec[name])
    said = job.spec.get("next_prices", {}).get(model, {}).get(lane.value)
    return PriceSheet.from_json(said) if said else today


def _tokens_each(job: Job, compiled: Compiled) -> int:
    """What a live call counts for in a limit of tokens: its prompt, and as much answer as it may give."""
    quote = job.quote
    return compiled.cap_tokens + (quote.input_tokens // max(1, quote.requests) if quote else 0)


class Home:
    """The settings, ledger, files and cache of one home, open.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.home)
        self.store.prepare()
        self.ledger = Ledger(settings.home / LEDGER_NAME)
        self.desk = Desk(self.ledger, self.store, settings.timing, ZoneInfo(settings.zone))
        self.ledger.ensure_budget(
            settings.budget_total_nanos, settings.budget_day_nanos, settings.budget_month_nanos,
            default_nanos=DEFAULT_BUDGET_NANOS, running_scopes=self.desk.scopes(),
        )  # fmt: skip
        self.cache = AnswerCache(settings.home / "answers")

    def close(self) -> None:
        self.desk.close()
        self.ledger.close()

    def job(self, text: str) -> Job:
        """By id, prefix, name or ``@last``. Raises Conflict."""
        return self.ledger.find_job(text)

    def folder(self, job: Job) -> Path:
        """Where the job's files lie."""
        return self.store.path(self.store.job_folder(job.id))

    def provider(self, model: str, *, sends: bool = True) -> Provider:
        """The adapter that a model is reached through; where nothing is sent it needs no key.

        Raises:
            UsageError (UnknownModel).
        """
        return self.providers(model, sends=sends)[0]

    def providers(self, model: str, *, sends: bool = True) -> list[Provider]:
        """The same once for each key that may be used, in the user's order."""
        paths = {ref: str(m["path"]) for ref, m in self.settings.models.items() if m.get("path")}
        said = self.settings
        found = resolve_keys(
            model, env=said.env, model_paths=paths, tables=said.providers, timing=said.timing, sends=sends
        )
        known = {item.name for item in fields(Limits)}
        for provider in found:
            if own := {name: value for name, value in self.limits_of(provider).items() if name in known}:
                provider.limits = replace(provider.limits, **own)
        return found

    def key_names(self, accounts: Iterable[str]) -> dict[str, str]:
        """How the key of each account is called: by its variable where it is set here, and by its fingerprint's end.

        Accounts without a key are left out.
        """
        keyed = {account: account.rpartition("|")[2] for account in accounts}
        found: dict[str, str] = {}
        for name in {account.partition("|")[0] for account in keyed}:
            with suppress(UsageError):
                found |= {each.account.id: str(each.account.key) for each in reversed(self.providers(f"{name}/-"))}
        return {a: found.get(a) or fingerprint_shown(key) for a, key in keyed.items() if key or a in found}

    def limits_of(self, provider: Provider) -> Mapping[str, Any]:
        """What ``[providers.NAME] limits`` says; it goes before what the provider is known to take."""
        return cast(Mapping[str, Any], self.settings.providers.get(provider.name, {}).get("limits", {}))

    def sheet(self, model: str, lane: Lane) -> PriceSheet:
        """Today's prices of a model. Raises UnknownPrice."""
        return sheet_of(self.settings, model, lane)

    def flex_sheet(self, model: str, provider: Provider) -> PriceSheet | None:
        """Today's prices of its flex lane; None: it has none, or nobody knows what it costs."""
        if not isinstance(provider, FlexProvider):
            return None
        with suppress(UnknownPrice):
            return self.sheet(model, Lane.FLEX)
        return None

    def rung_lane(self, lane: Lane, model: str, provider: Provider) -> Lane:
        """Where a job of ``lane`` asks another model: there too, if it has that lane."""
        if lane is Lane.BATCH and isinstance(provider, BatchProvider):
            return Lane.BATCH
        if lane is Lane.FLEX and self.flex_sheet(model, provider) is not None:
            return Lane.FLEX
        return Lane.LIVE if isinstance(provider, LiveProvider) else Lane.BATCH

    def tightest(self, job_nanos: int | None = None) -> Limit | None:
        """The limit with the least money free, a job's own of ``job_nanos`` included."""
        limits = [limit for limit in self.ledger.limits(self.desk.scopes()) if limit.cap_nanos is not None]
        if job_nanos is not None:
            limits.append(Limit("job", job_nanos, 0, 0))
        return min(limits, key=lambda limit: limit.free_nanos or 0, default=None)

    def open_kit(self, job_id: str) -> JobKit:
        """Everything a job's record only names, made ready to work with."""
        job = self.job(job_id)
        return replace(self._kit(job, job.model), open_other=partial(self._kit, job))

    def _kit(self, job: Job, model: str) -> JobKit:
        """The same as one model of the job's ladder has to do with it."""
        spec = job.spec
        keyed = self.providers(model)
        provider = keyed[0]
        lane = job.lane if model == job.model else self.rung_lane(job.lane, model, provider)
        compiled = compiled_from(spec, provider)
        sheet = self.sheet(model, lane)
        confirmed = confirmed_sheet(job, model, lane, sheet)
        scissors = Scissors(self.store, provider, compiled.url, sheet, partial(self.ledger.take_seqs, job.id))
        given = self.limits_of(provider)
        rates = Rates(
            spec["rpm"] or given.get("rpm"), spec["tpm"] or given.get("tpm"),
            spec["concurrency"] or provider.limits.concurrency, bool(spec["concurrency"]), provider.self_hosted,
        )  # fmt: skip
        regular, work = (
            self.sheet(model, Lane.LIVE),
            Work(
                job.id,
                provider,
                compiled.url,
                sheet,
                scissors,
                confirmed,
                with_each_key=tuple(keyed) if len(keyed) > 1 else (),
                together=most_together(provider, compiled),
            ),
        )
        rescue = None
        if lane is not Lane.LIVE and ("live_price" in spec or model != job.model):
            rescue = replace(work, sheet=regular, confirmed=confirmed_sheet(job, model, Lane.LIVE, regular))
        if job.deadline is not None and lane is not Lane.LIVE:
            work = replace(work, held=dearer(sheet, regular) if lane is Lane.BATCH else None, deadline=job.deadline,
                           most_live=most_live(rates.requests_per_minute, rates.tokens_per_minute,
                                               spec["concurrency"], _tokens_each(job, compiled)))  # fmt: skip
        ladder, check = Ladder.of(spec), answer_check(spec)
        return JobKit(
            job, provider, compiled, work, regular, repairing(check) if check and ladder.repair else check, rates,
            salt(provider.name, provider.model, provider.account.host), self.cache if spec["cache"] else None,
            spec["on_error"], self.settings.retention.provider_files == "delete" and "adopted" not in spec, rescue,
            ladder, lane,
        )  # fmt: skip
