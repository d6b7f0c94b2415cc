"""From a model reference, such as ``openai/gpt-5-mini``, to the provider that answers for it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nightmill.errors import UnknownModel
from nightmill.providers import Provider

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Hosted:
    """A provider reached over the network. Its module has ``connect(model, env) -> Provider``."""

    module: str
    keys: tuple[str, ...]  # any one of these variables will do
    example: str
    base_url_variable: str


HOSTED: dict[str, _Hosted] = {
    "openai": _Hosted("nightmill.providers.openai", ("OPENAI_API_KEY",), "openai/gpt-5-mini", "OPENAI_BASE_URL"),
}


@dataclass(frozen=True, slots=True)
class HostedAccount:
    """What the environment says about one hosted provider; never the key itself."""

    name: str
    keys: tuple[str, ...]  # variables that may hold the key
    key: str | None  # the one that does
    base_url: str  # empty without a key
    base_url_variable: str


def accounts(env: Mapping[str, str]) -> list[HostedAccount]:
    """Every hosted provider there is, with a key or without."""
    found = []
    for name, hosted in HOSTED.items():
        key = next((key for key in hosted.keys if env.get(key, "").strip()), None)
        base_url = resolve(hosted.example, env=env).account.base_url if key else ""
        found.append(HostedAccount(name, hosted.keys, key, base_url, hosted.base_url_variable))
    return found


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


def resolve(ref: str, *, env: Mapping[str, str], model_paths: Mapping[str, str] = _NONE) -> Provider:
    """The provider for ``ref``; nothing is sent and no local model is loaded yet.

    Args:
        env: the environment, where keys and base URLs are.
        model_paths: files of local models by reference (``local/NAME``) or by NAME.

    Raises:
        UnknownModel: nobody here answers for it; the message says what is usable.
        UsageError: a key is missing (code ``no_key``), or the local model or function cannot be had.
    """
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
            why="usable here: " + "; ".join(available(env)),
            fix=f"did you mean {near[0]}/{model}?" if near else "choose one of these with --model",
        )
    made: Provider = importlib.import_module(HOSTED[provider].module).connect(model, env)
    return made


def available(env: Mapping[str, str]) -> list[str]:
    """One line for each way to get answers here, saying what is there or what is missing."""
    from nightmill.providers import local

    lines = []
    for name, hosted in HOSTED.items():
        key = next((key for key in hosted.keys if env.get(key, "").strip()), None)
        state = f"{key} is set" if key else f"set {' or '.join(hosted.keys)}"
        lines.append(f"{name}: {state} (for example {hosted.example})")
    lines.append(f"local: {local.availability()}")
    lines.append("python: any importable function (python:module.function)")
    return lines
