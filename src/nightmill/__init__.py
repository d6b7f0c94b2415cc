"""nightmill: large numbers of LLM requests, priced first, never over budget, never lost, never paid twice.

The public names are loaded when they are first used.
"""

from __future__ import annotations

import typing as _typing

if _typing.TYPE_CHECKING:
    from nightmill.config import Settings, load_settings
    from nightmill.errors import NightmillError
    from nightmill.mill import Mill, RunOptions
    from nightmill.tasks import Messages, task

__all__ = ["Messages", "Mill", "NightmillError", "RunOptions", "Settings", "load_settings", "task"]

_HOMES = {
    "Messages": "nightmill.tasks",
    "Mill": "nightmill.mill",
    "NightmillError": "nightmill.errors",
    "RunOptions": "nightmill.mill",
    "Settings": "nightmill.config",
    "load_settings": "nightmill.config",
    "task": "nightmill.tasks",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
