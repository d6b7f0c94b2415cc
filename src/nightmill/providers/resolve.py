"""From a model reference, such as ``openai/gpt-5-mini``, to the provider that answers for it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nightmill.config import Environment, Timing
from nightmill.errors import UnknownModel, UsageError
from nightmill.providers import Provider
from nightmill.providers._env import no_key

Tables = Mapping[str, Mapping[str, object]]  # [providers.NAME] of the settings file
_NONE: Mapping[str, str] = MappingProxyType({})
_NO_TABLES: Tables = MappingProxyType({})
_USUAL = Timing()


@dataclass(frozen=True, slots=True)
class _Hosted:
    """A provider reached over the network. Its module has ``connect(model, env, timing) -> Provider``."""

    module: str
    keys: tuple[str, ...]  # any one of these variables will do
    example: str
    base_url_variable: str


HOSTED: dict[str, _Hosted] = {
    "openai": _Hosted("nightmill.providers.openai", ("OPENAI_API_KEY",), "openai/gpt-5-mini", "OPENAI_BASE_URL"),
}
_KEYLESS = ("local", "python")


@dataclass(frozen=True, slots=True)
class HostedAccount:
    """What the environment says about one hosted provider; never the key itself."""

    name: str
    keys: tuple[str, ...]  # variables that may hold the key
    key: str | None  # the one that does
    base_url: str  # empty without a key
    base_url_variable: str


def accounts(env: Mapping[str, str], tables: Tables = _NO_TABLES) -> list[HostedAccount]:
    """Every hosted provider there is, with a key or without.

    Raises:
        UsageError: as `resolve`, for a key or table that cannot be used.
    """
    _check_tables(tables)
    found = []
    for name, hosted in HOSTED.items():
        keys = _key_variables(hosted, tables.get(name, {}))
        key = next((key for key in keys if env.get(key, "").strip()), None)
        base_url = resolve(hosted.example, env=env, tables=tables).account.base_url if key else ""
        found.append(HostedAccount(name, keys, key, base_url, hosted.base_url_variable))
    return found


def _key_variables(hosted: _Hosted, table: Mapping[str, object]) -> tuple[str, ...]:
    named = table.get("api_key_env")
    return (str(named),) if named else hosted.keys


def _check_tables(tables: Tables) -> None:
    """Refuse what [providers.NAME] says in vain."""
    for name, table in tables.items():
        if name not in (*HOSTED, *_KEYLESS):
            raise UsageError(
                f"[providers.{name}] names no provider",
                why=f"there are {', '.join((*HOSTED, *_KEYLESS))}; servers under a name of their own are not"
                " supported yet",
                fix=f"remove [providers.{name}] or correct its name",
            )
        if name in _KEYLESS and (vain := table.keys() & {"base_url", "api_key_env"}):
            raise UsageError(
                f"[providers.{name}]: {' and '.join(sorted(vain))} would have no effect",
                why=f"{name} models run on this machine and need no address and no key",
                fix=f"remove {' and '.join(sorted(vain))}",
            )


def _environment(name: str, env: Mapping[str, str], table: Mapping[str, object]) -> Mapping[str, str]:
    """``env`` as the provider reads it: with the key and the base URL that its table tells of."""
    hosted, said = HOSTED[name], {}
    if variable := table.get("api_key_env"):
        said[hosted.keys[0]] = env.get(str(variable), "").strip()
        if not said[hosted.keys[0]]:
            raise no_key(name, str(variable))
    if (base_url := table.get("base_url")) and not env.get(hosted.base_url_variable, "").strip():
        said[hosted.base_url_variable] = str(base_url)  # the environment goes before the file
    return Environment({**env, **said}) if said else env


def rehearsal_environment(url: str) -> dict[str, str]:
    """Variables that point a program at the simulator listening at ``url``."""
    hosted = HOSTED["openai"]  # the wire format it speaks
    return {hosted.base_url_variable: url, hosted.keys[0]: "sk-simulated", "BATCH_CHECK_INTERVAL": "1"}


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
        fix="for example openai/gpt-5-mini, local/smollm2-135m or python:module.function",
    )


def resolve(
    ref: str,
    *,
    env: Mapping[str, str],
    model_paths: Mapping[str, str] = _NONE,
    tables: Tables = _NO_TABLES,
    timing: Timing = _USUAL,
) -> Provider:
    """The provider for ``ref``; nothing is sent and no local model is loaded yet.

    Args:
        env: the environment, where keys and base URLs are.
        model_paths: files of local models by reference (``local/NAME``) or by NAME.
        tables: what [providers.NAME] says. ``api_key_env`` names the variable that holds the key;
            ``base_url`` counts where the environment gives none.
        timing: how long each kind of call may take.

    Raises:
        UnknownModel: nobody here answers for it; the message says what is usable.
        UsageError: a key is missing (code ``no_key``), the local model or function cannot be had, or
            a table says what has no effect.
    """
    _check_tables(tables)
    provider, model = parse_model(ref)
    if provider == "local":
        from nightmill.providers import local

        return local.connect(model, model_paths)
    if provider == "python":
        from nightmill.providers import function

        return function.connect(model, env)
    if provider not in HOSTED:
        near = difflib.get_close_matches(provider, [*HOSTED, "local"], n=1)
        raise UnknownModel(
            f"unknown provider {provider!r} in {ref!r}",
            why="usable here: " + "; ".join(available(env, tables)),
            fix=f"did you mean {near[0]}/{model}?" if near else "choose one of these with --model",
        )
    env = _environment(provider, env, tables.get(provider, {}))
    made: Provider = importlib.import_module(HOSTED[provider].module).connect(model, env, timing)
    return made


def available(env: Mapping[str, str], tables: Tables = _NO_TABLES) -> list[str]:
    """One line for each way to get answers here, saying what is there or what is missing."""
    from nightmill.providers import local

    lines = []
    for name, hosted in HOSTED.items():
        keys = _key_variables(hosted, tables.get(name, {}))
        key = next((key for key in keys if env.get(key, "").strip()), None)
        state = f"{key} is set" if key else f"set {' or '.join(keys)}"
        lines.append(f"{name}: {state} (for example {hosted.example})")
    lines.append(f"local: {local.availability()}")
    lines.append("python: any importable function (python:module.function)")
    return lines
