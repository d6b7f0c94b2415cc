"""What a caller says about a job, checked where it comes in."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypedDict

from nightmill.config import parse_share, parse_usd
from nightmill.errors import UsageError
from nightmill.mill import RunOptions
from nightmill.providers.function import is_importable, name_of
from nightmill.tasks import TaskFunction, read_prompt

Model = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]
Schema = type | Mapping[str, Any] | str | os.PathLike[str]
_ON_ERROR = re.compile(r"continue|stop|threshold:([1-9][0-9]*)(%?)")


class Options(TypedDict, total=False):
    """What can be said about a job beside its rows; what is not said is as on the command line."""

    prompt: str  # {{ column }} stands for a row's value; "@FILE" for a file's content
    task: str | os.PathLike[str] | TaskFunction  # a name, a .toml file, "module:function", or what `task` made
    model: Model  # "openai/gpt-5-mini", a callable f(messages, **params), or several: the cheapest that can do it
    lane: Literal["auto", "batch", "live", "flex"]
    by: str  # when to be done: "08:00", "2027-01-31T08:00", "6h"; what batches have not answered in time runs live
    budget: float | Decimal | str  # dollars; most this job may spend
    schema: Schema  # a Pydantic model, dataclass or TypedDict, a JSON Schema, a file, "module:Class"
    key: str  # the column that names a row
    set: Mapping[str, str]  # a task's column, or a variable of its
    media: str | Sequence[str]  # columns whose cells are images, PDFs, audio or video to send along
    rows: Literal["file", "line"]  # what a row of a .txt file is
    encoding: str
    skip_bad: bool
    name: str
    new: bool
    limit: int  # most rows to take
    sample: int  # so many rows at random, of the first `limit` ones if given
    seed: int  # another number, another sample; left out, the rows decide
    on_error: str  # "continue", "stop", "threshold:N" or "threshold:N%"
    batch_size: int  # most rows in a shard
    temperature: float
    max_output: int  # most tokens an answer may have
    dimensions: int  # how many numbers an embedding has; left out, the model decides
    min_quality: float  # the least a model may be worth, 0 to 100, as [models] of the settings grades it
    rpm: float
    tpm: float
    concurrency: int
    cache: bool
    dedupe: bool
    canary: int  # rows that go out before all others; 0: none; left out, 20 of more than 500
    repair: bool  # answers that do not fit the schema are put right here where they can be
    reask: int  # ... times they are asked again, with what is wrong
    min_valid: float | str  # 0.9 or "90%": the job stops where a smaller share of the answers is valid


def run_options(given: Mapping[str, Any], inputs: tuple[str, ...], files: Mapping[str, Path]) -> RunOptions:
    """``given`` as the mill wants it; what is None counts as not said.

    Raises:
        UsageError: the prompt's file cannot be read, or the budget is no amount of money.
    """
    said = {name: value for name, value in given.items() if value is not None}
    own = {"budget": "budget_nanos", "set": "sets"}
    made = {own.get(name, name): value for name, value in said.items()}
    if "media" in said:
        made["media"] = (said["media"],) if isinstance(said["media"], str) else tuple(said["media"])
    if "budget" in said:
        made["budget_nanos"] = _nanos(said["budget"])
    if "min_valid" in said:
        made["min_valid"] = parse_share(str(said["min_valid"]))
    if "model" in said and not isinstance(said["model"], str):
        models = [said["model"]] if callable(said["model"]) else said["model"]
        callables = {id(each): name_of(each) for each in models if callable(each)}
        made["model"] = ",".join(f"python:{callables[id(each)]}" if callable(each) else each for each in models)
        if not all(map(is_importable, callables.values())):  # nobody can tell whether it is the same the next time
            made["cache"] = False
    if isinstance(said.get("schema"), os.PathLike):
        made["schema"] = Path(said["schema"])
    if isinstance(said.get("task"), os.PathLike):
        made["task"] = os.fspath(said["task"])
    if "prompt" in said:
        made["prompt"] = read_prompt(said["prompt"])
    return RunOptions(inputs=inputs, given=dict(files), **made)


def _nanos(budget: object) -> int:
    return parse_usd(f"{budget:.9f}" if isinstance(budget, float) else str(budget))


def check_options(given: Mapping[str, Any]) -> None:
    """Raises UsageError: there is no such option, or its value is none that it takes."""
    said = {name: value for name, value in given.items() if value is not None}
    hidden = {"inputs", "given", "budget_nanos", "sets", "detach"}
    known = {*Options.__annotations__, *(item.name for item in fields(RunOptions))} - hidden
    for name, value in said.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"no option {name}",
                why="there are " + ", ".join(sorted(known)),
                fix=f"did you mean {near[0]}?" if near else "leave it out",
            )
        words, fits = _TAKES.get(name, ("", _anything))
        if not fits(value):
            raise UsageError(f"{name} = {value!r}", why=f"it must be {words}", fix="correct it, or leave it out")


def _anything(_value: Any) -> bool:
    return True


def is_whole(value: Any) -> bool:
    """A whole number, 1 or more."""
    return type(value) is int and value >= 1


def is_temperature(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_model(value: Any) -> bool:
    named = value if isinstance(value, list | tuple) else [value]
    return bool(named) and all(isinstance(each, str) or callable(each) for each in named)


def _is_grade(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_rule(value: Any) -> bool:
    match = _ON_ERROR.fullmatch(value) if isinstance(value, str) else None
    return match is not None and not (match[2] and int(match[1]) > 100)


def _is_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(each, str) for pair in value.items() for each in pair)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (type, Mapping, str, os.PathLike))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_share(value: Any) -> bool:
    if type(value) not in (int, float, str):
        return False
    try:
        parse_share(str(value))
    except ValueError:
        return False
    return True


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _are_columns(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value)))


_TEXT = ("a text that is not empty", _is_text)
_SWITCH = ("True or False", _is_switch)
_WHOLE = ("a whole number, 1 or more", is_whole)
_POSITIVE = ("a number above 0", _is_positive)
_TAKES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "prompt": ("a text", lambda value: isinstance(value, str)),
    "task": ("a name, a .toml file or a task of Python", lambda v: isinstance(v, (str, os.PathLike, TaskFunction))),
    "model": ("PROVIDER/MODEL or a callable, or a list of them", _is_model),
    "lane": ("auto, batch, live or flex", lambda value: value in ("auto", "batch", "live", "flex")),
    "by": _TEXT,
    "budget": ("dollars, such as 5 or 2.50", lambda value: type(value) in (int, float, str, Decimal)),
    "schema": ("a class, a JSON Schema, a file or module:Class", _is_schema),
    "key": _TEXT,
    "set": ("a dict of texts", _is_texts),
    "media": ("the name of a column, or a list of them", _are_columns),
    "rows": ("file or line", lambda value: value in ("file", "line")),
    "encoding": _TEXT,
    "skip_bad": _SWITCH,
    "name": _TEXT,
    "new": _SWITCH,
    "limit": _WHOLE,
    "sample": _WHOLE,
    "seed": ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "on_error": ("continue, stop, threshold:N or threshold:N%", _is_rule),
    "batch_size": _WHOLE,
    "temperature": ("a number, 0 or above", is_temperature),
    "max_output": _WHOLE,
    "dimensions": _WHOLE,
    "rpm": _POSITIVE,
    "tpm": _POSITIVE,
    "concurrency": _WHOLE,
    "cache": _SWITCH,
    "dedupe": _SWITCH,
    "repair": _SWITCH,
    "reask": ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "canary": ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "min_quality": ("a number from 0 to 100", _is_grade),
    "min_valid": ('a share above 0, such as 0.9 or "90%"', _is_share),
}
