"""nightmill: large numbers of LLM requests, priced first, never over budget, never lost, never paid twice.

    import nightmill as nm
    job = nm.run("reviews.csv", prompt="Sentiment of: {{ text }}", model="openai/gpt-5-mini", budget=2.00)
    job.table()

The public names are loaded when they are first used.
"""

from __future__ import annotations

import typing as _typing

if _typing.TYPE_CHECKING:
    from nightmill import errors
    from nightmill.api import Handed, Job, Mill, Options, Progress, Quote, Result, arun, quote, run
    from nightmill.config import Settings, load_settings
    from nightmill.errors import NightmillError
    from nightmill.tasks import Messages, task

__all__ = [
    "Handed",
    "Job",
    "Messages",
    "Mill",
    "NightmillError",
    "Options",
    "Progress",
    "Quote",
    "Result",
    "Settings",
    "arun",
    "errors",
    "load_settings",
    "quote",
    "run",
    "task",
]

_API = ("Handed", "Job", "Mill", "Options", "Progress", "Quote", "Result", "arun", "quote", "run")
_HOMES = {
    **dict.fromkeys(_API, "nightmill.api"),
    "Messages": "nightmill.tasks",
    "NightmillError": "nightmill.errors",
    "Settings": "nightmill.config",
    "load_settings": "nightmill.config",
    "task": "nightmill.tasks",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        return import_module("nightmill.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
