"""Flags that several commands share, and values checked where they come in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from nightmill.cli.edge import Edge
from nightmill.config import LEAST_DAYS, load_settings, parse_share, parse_usd
from nightmill.errors import UsageError
from nightmill.glance import jobs_like

_ON_ERROR = re.compile(r"continue|stop|threshold:([1-9][0-9]*)(%?)")
PROGRESS = ("auto", "bar", "plain", "json", "none")


class _Checked(click.ParamType[Any]):
    """A value read by a function that raises ValueError, saying what it should have been."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self._read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or not int(text):
        raise ValueError("a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ValueError("a whole number, 0 or above")
    return int(text)


def _real(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not math.isfinite(number) or not fits(number):
        raise ValueError(wanted)
    return number


def _positive(text: str) -> float:
    return _real(text, "a number above 0", lambda number: number > 0)


def _grade(text: str) -> float:
    return _real(text, "a number from 0 to 100", lambda number: 0 <= number <= 100)


def _temperature(text: str) -> float:
    return _real(text, "a number, 0 or above", lambda number: number >= 0)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65_535:
        raise ValueError("a port, 0 to 65535")
    return int(text)


def _usd(text: str) -> int:
    try:
        return parse_usd(text)
    except UsageError as error:
        raise ValueError(f"an amount of dollars, such as 5 or 2.50: {error.why}") from None


def _usd_or_none(text: str) -> int | str:
    return "none" if text == "none" else _usd(text)


def _on_error(text: str) -> str:
    match = _ON_ERROR.fullmatch(text)
    if match is None or (match[2] and int(match[1]) > 100):
        raise ValueError("continue, stop, threshold:N or threshold:N%")
    return text


def _span(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", text.strip())
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError("A-B, two row numbers counted from 0")
    return int(match[1]), int(match[2] or match[1]) + 1


def _age(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([dw])", text.strip())
    days = int(match[1]) * {"d": 1, "w": 7}[match[2]] if match else 0
    if days < LEAST_DAYS:
        raise ValueError(f"an age of {LEAST_DAYS} days or more, such as 30d or 12w")
    return days


SEED = _Checked("N", _seed)
COUNT = _Checked("N", _seed)
GRADE = _Checked("Q", _grade)
SHARE = _Checked("SHARE", parse_share)
WHOLE = _Checked("N", _whole)
POSITIVE = _Checked("NUMBER", _positive)
TEMPERATURE = _Checked("T", _temperature)
PORT = _Checked("PORT", _port)
USD = _Checked("USD", _usd)
USD_OR_NONE = _Checked("USD", _usd_or_none)
ON_ERROR = _Checked("RULE", _on_error)
AGE = _Checked("AGE", _age)
ROWS_SPAN = _Checked("A-B", _span)


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Edge).json |= value


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Edge).debug |= value


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json`` and ``--debug``, which every command has; the `Edge` comes as first argument."""
    with_json = click.option(
        "--json", is_flag=True, expose_value=False, callback=_set_json, help="One JSON object on stdout."
    )
    with_debug = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show where an error comes from."
    )
    return with_json(with_debug(click.pass_obj(command)))


def jobs_to_complete(_ctx: click.Context, _param: click.Parameter | None, incomplete: str) -> list[CompletionItem[Any]]:
    """Ids and names of jobs that begin so, for a shell; none where the settings cannot be read."""
    try:
        home = load_settings(Path.cwd(), os.environ).home
    except UsageError:
        return []
    found = jobs_like(home, incomplete) + [("@last", "the newest job")] * "@last".startswith(incomplete or "@")
    return [CompletionItem(text, help=about) for text, about in found]


def job(*, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The argument JOB, which a shell completes."""
    return click.argument("job", required=required, shell_complete=jobs_to_complete)


progress = click.option(
    "--progress", "mode", type=click.Choice(PROGRESS), default="auto", show_default=True,
    help="How to show progress; none: only the quote and the end.",
)  # fmt: skip
yes = click.option("--yes", is_flag=True, help="Do not ask.")
out = click.option(
    "--out", "outs", multiple=True, metavar="PATH",
    help="Write results here: .jsonl, .csv, .parquet, .json, sections:PATH, FORMAT:PATH, or DIR/ for a file each.",
)  # fmt: skip
checkpoint = click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="FILE",
    help="Keep this file up to date: words that are done, words that failed and why, cost and tokens so far.",
)  # fmt: skip
force = click.option("--force", is_flag=True, help="Replace files that this job did not write.")
csv_raw = click.option("--csv-raw", is_flag=True, help="Leave CSV text that begins like a formula as it is.")


def pairs(given: tuple[str, ...]) -> dict[str, str]:
    """``--set k=v`` as a mapping. Raises UsageError."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            why = "a name, an equals sign and a value are needed"
            raise UsageError(
                f"--set {text}: not NAME=VALUE", why=why, fix="for example --set text=gloss or --set tone=dry"
            )
        if name in found:
            why = f"it says {found[name]!r} and {value!r}"
            raise UsageError(f"--set {name} is given twice", why=why, fix="give it once")
        found[name] = value
    return found
