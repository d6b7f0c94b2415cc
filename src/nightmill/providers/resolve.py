"""From a model reference, such as ``openai/gpt-5-mini``, to the provider that answers for it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, cast

from nightmill.config import Timing
from nightmill.errors import UnknownModel, UsageError
from nightmill.providers import Limits, Provider
from nightmill.providers.servers import SERVERS, Server, address, configured

Tables = Mapping[str, Mapping[str, object]]  # [providers.NAME] of the settings file
_NONE: Mapping[str, str] = MappingProxyType({})
_NO_TABLES: Tables = MappingProxyType({})
_USUAL = Timing()
_KEYLESS = ("local", "python")  # run in this process
_REHEARSED = ("openai", "anthropic", "gemini")  # whose wire formats the simulator speaks
_STARTS = {"gpt-": "openai", "text-embedding-": "openai", "claude-": "anthropic", "gemini-": "gemini"}  # of models
_LIMITS = frozenset(item.name for item in fields(Limits))
_OWN_KEYS = frozenset({"limits", "price"})  # what [providers.NAME] may say of those


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to get answers here, and what it still lacks; never a key itself."""

    name: str  # of the provider
    example: str  # a model reference
    keys: tuple[str, ...] = ()  # variables that may hold the key
    key: str | None = None  # the one that does; of several the first
    set: tuple[str, ...] = ()  # all whose keys are used
    needs_key: bool = False
    base_url: str = ""  # empty for what runs in this process, and where nobody has said it
    base_url_variable: str = ""  # one that goes before the settings file
    lanes: tuple[str, ...] = ()
    lacks: str = ""  # why it cannot be used yet; empty: it can
    configured: bool = False  # [providers.NAME] tells of it


def offers(env: Mapping[str, str], tables: Tables = _NO_TABLES) -> list[Offer]:
    """Every provider there is, those that the settings file adds included.

    Raises:
        UsageError: a table that cannot be used; what only lacks a key or an address is an offer.
    """
    check_tables(tables)
    return [_offer(name, env, tables) for name in dict.fromkeys((*SERVERS, *tables)) if name not in _KEYLESS] + [
        _local(),
        Offer("python", "python:module.function", lanes=("live",)),
    ]


def account_model(name: str, env: Mapping[str, str], tables: Tables = _NO_TABLES) -> str:
    """A model of the provider ``name``, for what is asked of its account and not of a model.

    Raises:
        UnknownModel: there is no such provider, or it has no batches.
        UsageError: a table that cannot be used.
    """
    known = {offer.name: offer.example for offer in offers(env, tables) if "batch" in offer.lanes}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    fix = f"did you mean {near[0]}?" if near else "name one of these"
    raise UnknownModel(f"no provider {name!r} with batches", why=f"there are {', '.join(known)}", fix=fix)


def _offer(name: str, env: Mapping[str, str], tables: Tables) -> Offer:
    from nightmill.providers._env import without_login

    server = configured(name, tables.get(name, {}))
    key = server.key_variable(env)
    needs_key = bool(server.keys) and not server.key_optional
    lacks = f"set {' or '.join(server.keys)}" if server.lacks_key(env) else ""
    try:
        base_url = without_login(address(name, server, env))
    except UsageError:
        base_url, lacks = "", " and ".join(filter(None, (lacks, f"set {server.base_url_env}")))
    has = {"batch": bool(server.limits.batch_requests), "live": True, "flex": server.flex}
    lanes = tuple(lane for lane, there in has.items() if there)
    return Offer(
        name, f"{name}/{server.example}", server.keys, key, server.key_variables(env), needs_key, base_url,
        server.base_url_env, lanes, lacks, name in tables,
    )  # fmt: skip


def _local() -> Offer:
    from nightmill.providers import local

    lacks = "" if local.is_available() else local.availability()
    return Offer("local", f"local/{local.DEMO_MODEL}", lanes=("live",), lacks=lacks)


def available(env: Mapping[str, str], tables: Tables = _NO_TABLES) -> list[str]:
    """In lines, what answers here, and at last all that needs only a key, an address or a server that runs."""
    from nightmill.providers import local

    lines, lacking, servers = [], [], []
    for offer in offers(env, tables):
        if offer.name == "local":
            lines.append(f"local: {local.availability()}")
        elif offer.name == "python":
            lines.append("python: any importable function (python:module.function)")
        elif offer.lacks:
            lacking.append(f"{offer.name} ({offer.lacks})")
        elif offer.configured or offer.needs_key:
            state = f"{offer.key} is set" if offer.key else offer.base_url
            lines.append(f"{offer.name}: {state} (for example {offer.example})")
        else:
            servers.append(offer.name)
    if servers:
        lines.append(f"a server on this machine: {', '.join(servers)}")
    if lacking:
        lines.append(f"with a key: {', '.join(lacking)}")
    return lines


def check_tables(tables: Tables) -> None:
    """Refuse what [providers.NAME] says in vain.

    Raises:
        UsageError: a table of no provider, or one whose keys have no effect.
    """
    for name, table in tables.items():
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise UsageError(
                f"[providers.{name!r}] cannot be part of a model's name",
                why="a model is called NAME/MODEL",
                fix="give it a name of letters, digits, dots, dashes and underscores",
            )
        if name not in _KEYLESS:
            configured(name, table)
        elif vain := table.keys() - _OWN_KEYS:
            raise UsageError(
                f"[providers.{name}]: {' and '.join(sorted(vain))} would have no effect",
                why=f"{name} models run on this machine and need no address and no key",
                fix=f"remove {' and '.join(sorted(vain))}",
            )


def rehearsal_environment(url: str) -> dict[str, str]:
    """Variables that point a program at the simulator listening at ``url``, which ends in ``/v1``."""
    made: dict[str, str] = {}
    for server in (SERVERS[name] for name in _REHEARSED):
        made[server.base_url_env] = url if server.base_url.endswith("/v1") else url.removesuffix("/v1")
        made[server.keys[0]] = "sk-simulated"
    return {**made, "BATCH_CHECK_INTERVAL": "1"}


def parse_model(ref: str) -> tuple[str, str]:
    """``(provider, model)`` of ``provider/model`` or ``python:module.function``.

    Raises:
        UnknownModel: it has neither form.
    """
    if ref.startswith("python:") and len(ref) > len("python:"):
        return "python", ref.removeprefix("python:")
    provider, _, model = ref.partition("/")
    if provider and model:
        return provider, model
    raise UnknownModel(
        f"{ref!r} is no model reference",
        why="it has the form PROVIDER/MODEL",
        fix=_meant(ref) or "for example openai/gpt-5-mini, local/smollm2-135m or python:module.function",
    )


def _meant(name: str) -> str:
    """What somebody means who gives a provider alone, or a model alone whose name says whose it is."""
    if name in SERVERS:
        return f"name one of its models, such as {name}/{SERVERS[name].example}"
    whose = next((provider for start, provider in _STARTS.items() if name.startswith(start)), None)
    return f"did you mean {whose}/{name}?" if whose else ""


def parse_models(text: str) -> list[str]:
    """One model reference, or several with commas between.

    Raises:
        UsageError (UnknownModel): one of several is none, or is named twice.
    """
    if "," not in text:
        return [text]
    named = [name.strip() for name in text.split(",")]
    for name in named:
        parse_model(name)
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UsageError(f"{twice} is named twice", why=f"the models are {text}", fix="name each model once")
    return named


def schema_support(ref: str, tables: Tables = _NO_TABLES) -> str:
    """How answers of a model are bound to a schema: "json_schema", "json_object" (to JSON), or "none"."""
    provider, _ = parse_model(ref)
    return "json_schema" if provider in _KEYLESS else configured(provider, tables.get(provider, {})).schema


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model before anything is asked."""

    limits: Limits  # what the settings say goes before what its server is known to take
    schema: str  # see `schema_support`
    keeps_days: int  # how long the results of a batch are kept; 0: nobody says
    caveats: tuple[str, ...]
    media: tuple[str, ...] = ()  # kinds that it is sent along with prompts


def known_of(ref: str, tables: Tables = _NO_TABLES) -> Known:
    """What is known of a model, by its server; nothing is asked and no model is loaded."""
    provider, model = parse_model(ref)
    said = cast(Mapping[str, Any], tables.get(provider, {}).get("limits", {}))
    given = {name: value for name, value in said.items() if name in _LIMITS}
    if provider in _KEYLESS:
        from nightmill.providers import function, local

        limits = local.Local.limits if provider == "local" else function.Function.limits
        return Known(replace(limits, **given), schema_support(ref, tables), 0, ())
    server = configured(provider, tables.get(provider, {}))
    limits, batches = replace(server.limits, **given), bool(server.limits.batch_requests)
    caveats = [*server.caveats, *(server.batch_caveats if batches else ())]
    if server.hidden_tokens:
        caveats.append(f"with tools, up to {server.hidden_tokens:,} input tokens more are billed for each request")
    if batches:
        kept = f"results of a batch are kept for {server.keeps_days} days"
        caveats.append(kept if server.keeps_days else "nobody says how long results of a batch are kept")
    from nightmill.providers._media import takes_of

    media = tuple(sorted(takes_of(server.media, limits.context).kinds(model)))
    return Known(limits, server.schema, server.keeps_days if batches else 0, tuple(caveats), media)


def resolve(
    ref: str,
    *,
    env: Mapping[str, str],
    model_paths: Mapping[str, str] = _NONE,
    tables: Tables = _NO_TABLES,
    timing: Timing = _USUAL,
    sends: bool = True,
) -> Provider:
    """The provider for ``ref``; nothing is sent and no local model is loaded yet.

    Args:
        env: the environment, where keys and base URLs are; it goes before ``tables``.
        model_paths: files of local models by reference (``local/NAME``) or by NAME.
        tables: what [providers.NAME] says: it changes a known server or adds one.
        timing: how long each kind of call may take.
        sends: without it no key is needed; such a provider encodes and prices, its calls would be refused.

    Raises:
        UnknownModel: nobody here answers for it; the message says what is usable.
        UsageError: a key is missing (code ``no_key``), the local model or function cannot be had, or
            a table says what has no effect.
    """
    return resolve_keys(ref, env=env, model_paths=model_paths, tables=tables, timing=timing, sends=sends)[0]


def resolve_keys(
    ref: str,
    *,
    env: Mapping[str, str],
    model_paths: Mapping[str, str] = _NONE,
    tables: Tables = _NO_TABLES,
    timing: Timing = _USUAL,
    sends: bool = True,
) -> list[Provider]:
    """The same once for each key that may be used, in the user's order; at least one. See `resolve`."""
    check_tables(tables)
    provider, model = parse_model(ref)
    if provider == "local":
        from nightmill.providers import local

        return [local.connect(model, model_paths)]
    if provider == "python":
        from nightmill.providers import function

        return [function.connect(model)]
    check_provider(ref, env, tables)
    server = configured(provider, tables.get(provider, {}))
    if not sends and server.lacks_key(env):
        env = {**env, server.keys[0]: "none"}
    servers = [replace(server, keys=(name,)) for name in server.key_variables(env)] or [server]
    return [_hosted(provider, model, each, env, timing) for each in servers]


def check_provider(ref: str, env: Mapping[str, str], tables: Tables = _NO_TABLES) -> None:
    """Raises UnknownModel: it is no model reference, or nobody here answers for it."""
    provider, model = parse_model(ref)
    known = dict.fromkeys((*SERVERS, *tables, *_KEYLESS))
    if provider not in known:
        near = difflib.get_close_matches(provider, known, n=1)
        raise UnknownModel(
            f"unknown provider {provider!r} in {ref!r}",
            why="usable here: " + "; ".join(available(env, tables)),
            fix=f"did you mean {near[0]}/{model}?"
            if near
            else f"choose one of these with --model, or add its server as [providers.{provider}] to nightmill.toml",
        )


def _hosted(provider: str, model: str, server: Server, env: Mapping[str, str], timing: Timing) -> Provider:
    """The adapter to the wire format of a server."""
    if server.wire == "anthropic":
        from nightmill.providers import anthropic

        return anthropic.connect(provider, model, server, env, timing)
    if server.wire == "gemini":
        from nightmill.providers import gemini

        return gemini.connect(provider, model, server, env, timing)
    if provider == "openai":
        from nightmill.providers import openai

        return openai.connect(model, env, timing, server)
    from nightmill.providers import compatible

    return compatible.connect(provider, model, server, env, timing)


def lacking_key(ref: str, env: Mapping[str, str], tables: Tables = _NO_TABLES) -> str:
    """The variable that has to hold a key before ``ref`` can be called; empty where nothing lacks."""
    provider, _ = parse_model(ref)
    if provider in _KEYLESS:
        return ""
    server = configured(provider, tables.get(provider, {}))
    return " or ".join(server.keys) if server.lacks_key(env) else ""


def hidden_tokens(ref: str, tables: Tables = _NO_TABLES) -> int:
    """The most input tokens that whoever answers ``ref`` adds to a request by itself, and bills."""
    provider, _ = parse_model(ref)
    if provider in _KEYLESS or (provider not in SERVERS and provider not in tables):
        return 0
    return configured(provider, tables.get(provider, {})).hidden_tokens


def runs_here(ref: str, env: Mapping[str, str], tables: Tables = _NO_TABLES) -> bool:
    """Whether the model runs on hardware of the user's own, so that nobody bills for it."""
    provider, model = parse_model(ref)
    if provider in _KEYLESS:
        return True
    if provider not in SERVERS and provider not in tables:
        return False
    server = configured(provider, tables.get(provider, {}))
    try:
        return server.runs_here(model, address(provider, server, env))
    except UsageError:
        return False  # nobody says where it is
