"""Settings: nightmill.toml < .env < environment < arguments, resolved once at the edge.

`load_settings` reads the file and the environment it is given and returns one frozen `Settings`;
arguments are put over it with `dataclasses.replace`. No key or setting is read from the process
environment after that: they are looked up in ``Settings.env`` and nowhere else.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn

from nightmill.errors import UsageError
from nightmill.media import KINDS, Kind
from nightmill.types import Lane

FILE_NAME = "nightmill.toml"
DEFAULT_BUDGET_NANOS = 5_000_000_000  # the ledger as a whole, until someone sets another
_MOST_NANOS = 9_000_000_000_000_000_000  # what a signed 64-bit column of the ledger can hold
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LEAST_DAYS = 30  # nothing younger is ever removed: answers of a batch may come for so long
_MOST_DAYS = 100_000
_PROVIDER_FILES = ("keep", "delete")
_LANES = ("auto", "batch", "live", "flex")


class Environment(Mapping[str, str]):
    """Environment variables whose values never show in a repr, a traceback or a log."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<{len(self._values)} variables, values hidden>"


@dataclass(frozen=True, slots=True)
class Timing:
    """Every wait there is, in seconds, so that tests can shorten all of them.

    Raises:
        UsageError: a wait is not a positive finite number, or the lease is too short to send under.
    """

    lease_s: float = 180.0  # how long a claimed shard is ours without renewal
    create_timeout_s: float = 60.0  # creating a batch
    upload_timeout_s: float = 900.0  # uploading a shard file, or fetching a results file
    request_timeout_s: float = 120.0  # one live request, and any other call
    flex_timeout_s: float = 900.0  # one request in the flex lane, where calls may have to wait
    margin_s: float = 30.0  # nothing is sent unless lease left > its timeout + this
    list_lag_s: float = 30.0  # a batch may be missing from the provider's list for so long
    looks_s: tuple[float, ...] = (0.0, 30.0, 120.0)  # after a doubtful create, when to look for the batch
    doubt_alert_s: float = 3600.0  # no complete look for so long: alert, and let the user resolve it
    reread_s: float = 300.0  # between the two reads that declare a row missing
    poll_s: float = 30.0  # first wait between two polls of a batch
    poll_max_s: float = 600.0  # longest wait between two polls of a batch
    cancel_s: float = 600.0  # a cancelled batch is reckoned to end within this, until five were seen to
    collect_s: float = 60.0  # ... and its leftover rows to be ready to go out live within this
    backoff_first_s: float = 1.0  # after a failure that may be repeated
    backoff_cap_s: float = 60.0
    limit_wait_s: float = 60.0  # after a limit that names no time
    stop_grace_s: float = 30.0  # what is in hand may take so long after the first Ctrl-C

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_wait(item.name, getattr(self, item.name))
        longest = max(self.create_timeout_s, self.request_timeout_s)
        if self.lease_s <= longest + self.margin_s:
            raise UsageError(
                f"lease_s = {self.lease_s:g} is too short",
                why=f"nothing is sent unless more than {longest:g} s (the longer of create_timeout_s and"
                f" request_timeout_s) + {self.margin_s:g} s (margin_s) of the lease is left",
                fix=f"set lease_s above {longest + self.margin_s:g}, or shorten the others",
            )
        for short, long in (("poll_s", "poll_max_s"), ("backoff_first_s", "backoff_cap_s")):
            if getattr(self, short) > getattr(self, long):
                raise UsageError(
                    f"{short} = {getattr(self, short):g} is longer than {long} = {getattr(self, long):g}",
                    why=f"waits begin with {short} and grow up to {long}",
                    fix=f"raise {long} or lower {short}",
                )

    def call_s(self, lane: Lane) -> float:
        """How long a request that is sent by itself may take in ``lane``."""
        return self.flex_timeout_s if lane is Lane.FLEX else self.request_timeout_s

    def lease_of(self, lane: Lane) -> float:
        """How long a claimed shard of ``lane`` is ours without renewal: as much longer as its calls may take."""
        return self.lease_s + max(0.0, self.call_s(lane) - self.request_timeout_s)


def _check_wait(name: str, value: float | tuple[float, ...]) -> None:
    if isinstance(value, tuple):
        good = bool(value) and all(math.isfinite(v) and v >= 0 for v in value) and list(value) == sorted(value)
        rule = "rising numbers of seconds, from 0 up"
    else:
        good, rule = math.isfinite(value) and value > 0, "a number of seconds above 0"
    if not good:
        why = f"{name} is a wait: {rule}"
        raise UsageError(f"{name} = {value} is not {rule}", why=why, fix=f"give a wait in range, or leave {name} out")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in days after a job ended; None: as long as the home is there."""

    jobs_days: int | None = None  # finished jobs, whole
    wire_days: int | None = None  # what came back of them, as it came; the results stay
    logs_days: int | None = None  # log files that are full
    provider_files: str = "keep"  # "delete": at the provider, once nothing of them can be needed


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is set to. Money in nano-dollars; None means "not set here"."""

    home: Path
    file: Path | None = None  # the nightmill.toml that was read
    timing: Timing = field(default_factory=Timing)
    default_model: str | None = None
    default_lane: str = "auto"
    default_temperature: float | None = None
    default_max_output: int | None = None
    default_canary: int | None = None  # rows that go out before all others of a large job; 0: none
    default_min_valid: float | None = None  # the share of valid answers below which a job stops
    default_prompt_cache: str = "auto"  # or off: what all prompts of a job begin with is cached where that pays
    zone: str = "UTC"  # IANA name; where a budget's day and month begin
    budget_total_nanos: int | None = None
    budget_day_nanos: int | None = None
    budget_month_nanos: int | None = None
    models: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # "P/M" -> price, path
    providers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # name -> base_url, price, limits ...
    task_folders: tuple[Path, ...] = ()  # tasks/ beside the file, or in the working folder, unless it says others
    retention: Retention = field(default_factory=Retention)
    env: Mapping[str, str] = field(default_factory=Environment, repr=False)
    log_level: str = "INFO"


def load_settings(cwd: Path, environ: Mapping[str, str]) -> Settings:
    """Settings for a process that works in ``cwd`` under ``environ``.

    The first nightmill.toml from ``cwd`` upward counts, else the one in the home; ``.env`` is read
    from ``cwd``, and ``environ`` wins over it.

    Raises:
        UsageError: a file cannot be read, or holds a wrong value or an unknown key; it says which.
    """
    cwd = cwd.absolute()
    env = Environment(environment(cwd, environ))
    _refuse_database(env)
    home = _folder(env.get("NIGHTMILL_HOME") or "~/.nightmill", cwd, env)
    file = find_file(cwd, home)
    reader = _Reader(file, cwd, env, _read_toml(file) if file else {})
    timing = _timing(reader, env)
    settings = Settings(
        home=home,
        file=file,
        timing=timing,
        **reader.defaults(),
        **reader.budget(),
        models=reader.models(),
        providers=reader.providers(),
        task_folders=reader.task_folders(),
        retention=reader.retention(),
        env=env,
        log_level=_log_level(env),
    )
    reader.refuse_other_tables()
    return settings


def environment(cwd: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """``environ``, and below it what ``.env`` in ``cwd`` says. Raises UsageError."""
    return {**_read_dotenv(cwd / ".env"), **environ}


def find_file(cwd: Path, home: Path) -> Path | None:
    """The nightmill.toml that counts for ``cwd``; None when there is none."""
    files = (folder / FILE_NAME for folder in (cwd, *cwd.parents, home))
    # os.path: a parent folder we may not look into is one without a file, not an error.
    return next((file for file in files if os.path.isfile(file)), None)


_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|m|h|d)")
_SPAN_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_S = 366 * 86_400.0
BY_FORMS = "a time (08:00), a date and time (2027-01-31T08:00) or a span (6h, 90m, 1d12h)"


def parse_by(text: str, now: float) -> float:
    """A deadline as typed, in unix seconds; ``now`` too.

    ``08:00`` is the next time the clock on the wall says so, in the time zone of this machine (or ``TZ``), and so
    is a date and time without a zone of its own; ``6h`` or ``1d12h`` count from now.

    Raises:
        UsageError: it is none of these, or it is past, or more than a year away.
    """
    said = text.strip().lower()
    at = _clock(said, now) or _span(said, now) or _date(text.strip())
    if at is None:
        raise UsageError(f"--by {text}: no deadline", why=f"it has to be {BY_FORMS}", fix="for example --by 08:00")
    if at <= now:
        told = dt.datetime.fromtimestamp(now).astimezone()
        what = "is no time at all" if said[:1] == "0" and said[-1:] in "smhdn" else "is past"
        raise UsageError(f"--by {text} {what}", why=f"it is {told:%Y-%m-%d %H:%M %Z} now", fix="give a later time")
    if at - now > _LONGEST_S:
        raise UsageError(f"--by {text} is far away", why="it is more than a year from now", fix="leave --by out")
    return at


def _clock(text: str, now: float) -> float | None:
    """The next time that it is so late on this machine."""
    match = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", text)
    if match is None:
        return None
    today = dt.datetime.fromtimestamp(now)  # noqa: DTZ006 (the clock on the wall is what is meant)
    at = today.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    days = (at + dt.timedelta(days=days) for days in range(3))
    return next((day.timestamp() for day in days if day.timestamp() > now), None)


def _span(text: str, now: float) -> float | None:
    parts = _SPAN.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return now + sum(float(number) * _SPAN_S[unit] for number, unit in parts)


def _date(text: str) -> float | None:
    """By the machine's clock, unless it says its own zone; one without a time of day is none."""
    if ":" not in text:
        return None
    try:
        at = dt.datetime.fromisoformat(text)
        return at.timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def parse_usd(text: str) -> int:
    """Dollars as typed (``5``, ``2.50``, ``$0.000001``) to nano-dollars, exactly.

    Raises:
        UsageError: not a number, negative, finer than a nano-dollar, or beyond 9 billion dollars.
    """
    try:
        amount = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        _refuse_usd(text, "it is not a number")
    if not amount.is_finite():
        _refuse_usd(text, "it is not a finite number")
    if amount < 0:
        _refuse_usd(text, "it is negative")
    if amount and amount.adjusted() > 9:
        _refuse_usd(text, "it is more than a ledger can hold")
    if amount and amount.adjusted() < -9:
        _refuse_usd(text, "it has more than 9 decimals")
    numerator, denominator = amount.as_integer_ratio()
    nanos, rest = divmod(numerator * 1_000_000_000, denominator)
    if rest:
        _refuse_usd(text, "it has more than 9 decimals")
    if nanos > _MOST_NANOS:
        _refuse_usd(text, "it is more than a ledger can hold")
    return nanos


def parse_share(text: str) -> float:
    """A share of a whole as typed, ``0.9`` or ``90%``. Raises ValueError, saying what it should have been."""
    wanted = "a share above 0, such as 0.9 or 90%"
    try:
        number = Decimal(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except InvalidOperation:
        raise ValueError(wanted) from None
    if not number.is_finite() or not 0 < number <= 1:
        raise ValueError(wanted)
    return float(number)


def exact_usd(nanos: int) -> str:
    """Nano-dollars as dollars to read: exact, and no longer than that takes."""
    dollars, rest = divmod(abs(nanos), 1_000_000_000)
    fraction = f"{rest:09d}".rstrip("0")
    return f"{'-' if nanos < 0 else ''}${dollars:,}.{fraction:0<2}"


def _refuse_usd(text: str, why: str) -> NoReturn:
    raise UsageError(f"{text!r} is not an amount of dollars", why=why, fix="give dollars, such as 5 or 2.50")


def _refuse_database(env: Mapping[str, str]) -> None:
    if env.get("NIGHTMILL_DB", "").strip():
        raise UsageError(
            "NIGHTMILL_DB is not supported yet",
            why="the ledger is a SQLite file in the home; another database would be ignored",
            fix="unset NIGHTMILL_DB, and choose the home with NIGHTMILL_HOME",
        )


def _folder(text: str, base: Path, env: Mapping[str, str]) -> Path:
    if text == "~" or text.startswith("~/"):
        base, text = Path(env.get("HOME") or Path.home()), text[2:]
    return (base / text).absolute()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8", why=str(error), fix="save it as UTF-8") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {file}", why=why, fix="check its permissions") from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        # Decimal keeps a price as it was written; binary fractions would not.
        return tomllib.loads(_read_text(file), parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML", why=str(error), fix="correct that line") from error


def _read_dotenv(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    from io import StringIO

    from dotenv import dotenv_values

    values = dotenv_values(stream=StringIO(_read_text(file)))
    return {name: value for name, value in values.items() if value is not None}


def _log_level(env: Mapping[str, str]) -> str:
    text = env.get("LOG_LEVEL", "").strip().upper()
    level = {"": "INFO", "WARN": "WARNING", "FATAL": "CRITICAL"}.get(text, text)
    if level not in _LOG_LEVELS:
        raise UsageError(
            f"LOG_LEVEL={env['LOG_LEVEL']} is not a level",
            why="it says how much is logged",
            fix=f"use one of {', '.join(_LOG_LEVELS)}",
        )
    return level


def _timing(reader: _Reader, env: Mapping[str, str]) -> Timing:
    values = reader.timing()
    interval = env.get("BATCH_CHECK_INTERVAL", "").strip()
    if interval:
        try:
            seconds = float(interval)
            _check_wait("BATCH_CHECK_INTERVAL", seconds)
        except (ValueError, UsageError) as error:
            raise UsageError(
                f"BATCH_CHECK_INTERVAL={interval} is not a number of seconds above 0",
                why="it says how often a provider is asked about a batch",
                fix="give seconds, such as 60",
            ) from error
        # Whoever asks for every 60 s means 60 s, not 60 s growing to ten minutes.
        values["poll_s"] = values["poll_max_s"] = seconds
    elif "poll_s" in values and "poll_max_s" not in values:
        values["poll_max_s"] = max(values["poll_s"], Timing().poll_max_s)
    try:
        return Timing(**values)
    except UsageError as error:
        raise UsageError(f"{reader.where('timing')}: {error.what}", why=error.why, fix=error.fix) from error


Check = Callable[[object], object]  # the value to keep; raises ValueError("a whole number") if it is no such


def _text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("text")


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError("a whole number above 0")


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("a whole number, 0 or above")


def _share(value: object) -> float:
    return parse_share(value if isinstance(value, str) else str(value))


def _days(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and LEAST_DAYS <= value <= _MOST_DAYS:
        return value
    raise ValueError(f"a whole number of days, {LEAST_DAYS} or more")


def _provider_files(value: object) -> str:
    if value in _PROVIDER_FILES:
        return str(value)
    raise ValueError(f"one of {', '.join(_PROVIDER_FILES)}")


def _number(value: object) -> float:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError("a number")


class _NotYetError(Exception):
    pass


def _not_yet(value: object) -> NoReturn:
    """A key that has a meaning to come: refused, since it would be taken and do nothing."""
    raise _NotYetError


def _temperature(value: object) -> float:
    if (number := _number(value)) >= 0:
        return number
    raise ValueError("a number, 0 or above")


def _grade(value: object) -> float:
    if 0 <= (number := _number(value)) <= 100:
        return number
    raise ValueError("a number from 0 to 100")


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_text(item) for item in value)
    raise ValueError("a list of texts")


def _text_or_texts(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    raise ValueError("text, or a list of texts")


def _kinds(value: object) -> tuple[Kind, ...]:
    if isinstance(value, list) and all(kind in KINDS for kind in value):
        return tuple(value)
    raise ValueError(f"a list of {', '.join(KINDS)}")


def _waits(value: object) -> tuple[float, ...]:
    if isinstance(value, list):
        return tuple(_number(item) for item in value)
    raise ValueError("a list of numbers")


def _one_of(*words: str) -> Check:
    def check(value: object) -> str:
        if value in words:
            return str(value)
        raise ValueError(f"one of {', '.join(words)}")

    return check


def _yes_or_no(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _window(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d*[hd]", value):
        return value
    raise ValueError('a time such as "24h" or "7d"')


def _headers(value: object) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(v, str) and f"{k}{v}".isprintable() for k, v in value.items()):
        return dict(value)
    raise ValueError('headers with their texts, such as { "X-Team" = "night" }')


def _zone(value: object) -> str:
    name = _text(value)
    if name != "UTC":
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("a time zone such as Europe/Berlin") from None
    return name


def _dollars(value: object) -> int:
    if isinstance(value, (int, str, Decimal)) and not isinstance(value, bool):
        try:
            return parse_usd(str(value))
        except UsageError as error:
            raise ValueError(f"an amount of dollars: {error.why}") from error
    raise ValueError("an amount of dollars")


def _rate(value: object) -> int | Decimal:
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return value
    raise ValueError("dollars per million tokens")


_DEFAULTS: Mapping[str, Check] = {
    "model": _text,
    "lane": _one_of(*_LANES),
    "temperature": _temperature,
    "max_output": _whole,
    "canary": _count,
    "min_valid": _share,
    "prompt_cache": _one_of("auto", "off"),
}
_BUDGET: Mapping[str, Check] = {"total": _dollars, "day": _dollars, "month": _dollars, "zone": _zone}
_MODEL: Mapping[str, Check] = {"context": _whole, "quality": _grade, "aliases": _not_yet}
_PRICE: Mapping[str, Check] = dict.fromkeys(
    (
        *("input", "output", "cached_input", "cache_write"),
        *("batch_input", "batch_output"),
        *("flex_input", "flex_output"),
    ),
    _rate,
)
_PROVIDER: Mapping[str, Check] = {
    "base_url": _text,
    "api_key_env": _text_or_texts,
    "same_account": _yes_or_no,
    "key_header": _text,
    "headers": _headers,
    "like": _text,
    "batch": _yes_or_no,
    "window": _window,
    "max_tokens_field": _one_of("max_completion_tokens", "max_tokens"),
    "schema": _one_of("json_schema", "json_object", "none"),
    "responses": _yes_or_no,
    "media": _kinds,
}
_LIMITS: Mapping[str, Check] = dict.fromkeys(
    (
        "batch_requests",
        "batch_usual",
        "batch_bytes",
        "batch_inputs",
        "request_bytes",
        "concurrency",
        "window_s",
        "context",
        "rpm",
        "tpm",
    ),
    _whole,
)
_TIMING: Mapping[str, Check] = {item.name: _number for item in fields(Timing)} | {"looks_s": _waits}
_RETENTION: Mapping[str, Check] = {
    **dict.fromkeys(("jobs_days", "wire_days", "logs_days"), _days),
    "provider_files": _provider_files,
}
_TABLES = ("budget", "defaults", "models", "providers", "retention", "tasks", "timing")


class _Reader:
    """One nightmill.toml, table by table; every refusal names the file and the key."""

    def __init__(self, file: Path | None, cwd: Path, env: Mapping[str, str], tables: Mapping[str, Any]) -> None:
        self._file, self._env, self._tables = file, env, tables
        self._folder = file.parent if file else cwd  # what paths are relative to

    def where(self, table: str) -> str:
        """How a refusal begins: the file, where there is one, and the table."""
        return f"{self._file} [{table}]" if self._file else f"[{table}]"

    def defaults(self) -> dict[str, Any]:
        return {f"default_{key}": value for key, value in self._table("defaults", _DEFAULTS).items()}

    def budget(self) -> dict[str, Any]:
        values = self._table("budget", _BUDGET)
        return {key if key == "zone" else f"budget_{key}_nanos": value for key, value in values.items()}

    def timing(self) -> dict[str, Any]:
        return self._table("timing", _TIMING)

    def task_folders(self) -> tuple[Path, ...]:
        folders = self._table("tasks", {"folders": _texts}).get("folders", ("tasks",))
        return tuple(self._path(folder) for folder in folders)

    def retention(self) -> Retention:
        return Retention(**self._table("retention", _RETENTION))

    def models(self) -> dict[str, Mapping[str, object]]:
        found: dict[str, Mapping[str, object]] = {}
        for name, raw in self._raw("models").items():
            if "/" not in name and not name.startswith("python:"):
                raise UsageError(
                    f"{self.where(f'models.{name}')} names no provider",
                    why='a model is called PROVIDER/MODEL, in quotes: [models."PROVIDER/MODEL"]',
                    fix=f'write [models."PROVIDER/{name}"]',
                )
            found[name] = self._model(f'models."{name}"', raw)
        return found

    def _price(self, table: str) -> Check:
        def price(value: object) -> object:
            if value == "free":
                return value
            if isinstance(value, dict) and {"input", "output"} <= value.keys():
                return self._checked(f"{table}.price", value, _PRICE)
            raise ValueError('a price: { input = 1.00, output = 4.00 } in dollars per million tokens, or "free"')

        return price

    def _model(self, table: str, raw: object) -> dict[str, object]:
        def path(value: object) -> str:
            return str(self._path(_text(value)))

        return self._checked(table, raw, {"price": self._price(table), "path": path, **_MODEL})

    def providers(self) -> dict[str, Mapping[str, object]]:
        return {name: self._provider(f"providers.{name}", raw) for name, raw in self._raw("providers").items()}

    def _provider(self, table: str, raw: object) -> dict[str, object]:
        def limits(value: object) -> object:
            return self._checked(f"{table}.limits", value, _LIMITS)

        return self._checked(table, raw, {**_PROVIDER, "limits": limits, "price": self._price(table)})

    def refuse_other_tables(self) -> None:
        for name in self._tables:
            if name not in _TABLES:
                self._refuse_unknown(str(self._file), f"[{name}]", name, _TABLES)

    def _path(self, text: str) -> Path:
        return _folder(text, self._folder, self._env)

    def _raw(self, table: str) -> Mapping[str, Any]:
        raw = self._tables.get(table, {})
        if not isinstance(raw, dict):
            why = f"it says {table} = {_as_written(raw)}"
            raise UsageError(f"{self._file}: {table} must be a table", why=why, fix=f"write [{table}]")
        return raw

    def _table(self, table: str, known: Mapping[str, Check]) -> dict[str, Any]:
        return self._checked(table, self._raw(table), known)

    def _checked(self, table: str, raw: object, known: Mapping[str, Check]) -> dict[str, Any]:
        if not isinstance(raw, dict):
            why = f"it says {_as_written(raw)}"
            raise UsageError(f"{self.where(table)} must be a table", why=why, fix=f"write [{table}]")
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in known:
                taken = tuple(name for name, check in known.items() if check is not _not_yet)
                self._refuse_unknown(self.where(table), key, key, taken)
            try:
                values[key] = known[key](value)
            except _NotYetError:
                raise UsageError(
                    f"{self.where(table)}: {key} is not supported yet",
                    why="it would be taken and have no effect",
                    fix=f"remove {key}",
                ) from None
            except ValueError as error:
                raise UsageError(
                    f"{self.where(table)}: {key} = {_as_written(value)}",
                    why=f"it is not {error}",
                    fix=f"correct {key}, or leave it out",
                ) from error
        return values

    def _refuse_unknown(self, where: str, shown: str, name: str, known: tuple[str, ...]) -> NoReturn:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1, cutoff=0.5)
        raise UsageError(
            f"{where}: unknown {'table' if shown.startswith('[') else 'key'} {shown}",
            why=f"known here: {', '.join(known)}",
            fix=f"did you mean {near[0]}?" if near else "remove it or correct its name",
        )


def _as_written(value: object) -> str:
    return str(value) if isinstance(value, Decimal) else repr(value)
