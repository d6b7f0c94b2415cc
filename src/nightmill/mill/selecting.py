"""Which of several models does a job: the cheapest that can."""

from __future__ import annotations

from collections.abc import Sequence

from nightmill.config import Settings
from nightmill.errors import UsageError
from nightmill.mill.home import Home
from nightmill.providers.resolve import available, parse_model


def candidates(settings: Settings, asked: str | None) -> list[str]:
    """The models that may do a job, as the user names them: one, or several with commas between.

    Raises:
        UsageError (UnknownModel): there is none, one is named twice, or one is no model reference.
    """
    text = asked or settings.default_model
    if not text:
        raise UsageError(
            "no model",
            why="usable here: " + "; ".join(available(settings.env, settings.providers)),
            fix="name one with --model, or set [defaults] model in nightmill.toml\nnightmill models tells more",
        )
    if "," not in text:
        return [text]
    named = [name.strip() for name in text.split(",")]
    for name in named:
        parse_model(name)
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UsageError(f"--model names {twice} twice", why=f"it says {text}", fix="name each model once")
    return named


def fingerprint_of(home: Home, models: Sequence[str]) -> tuple[str, ...]:
    """What several candidates add to a job's fingerprint: their names and where they are. Nothing, where one is."""
    if len(models) < 2:
        return ()
    return tuple(f"{model} at {_host(home, model)}" for model in models)


def _host(home: Home, model: str) -> str:
    try:
        return home.provider(model, sends=False).account.host
    except UsageError:  # it cannot be had here, for which it is left out
        return ""
