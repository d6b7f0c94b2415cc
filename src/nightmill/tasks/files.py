"""Task files: where they are looked for, what may stand in them, and how a new one begins."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

from nightmill.errors import TaskError
from nightmill.tasks.binding import Task, did_you_mean, refuse_unknown
from nightmill.tasks.schemas import check_answer, check_schema
from nightmill.tasks.templates import as_text, parse
from nightmill.tasks.tools import TOOL_KEYS, check_tools, check_tools_alone
from nightmill.types import Endpoint

_SUFFIX = ".toml"
_NEW = "new_task.txt"  # what a new task file begins as


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task that goes by ``name``; nothing of it is read yet. ``path`` is None for a built-in one."""

    name: str
    path: Path | None

    @property
    def where(self) -> str:
        return "built in" if self.path is None else str(self.path)

    @property
    def hides_built_in(self) -> bool:
        """Whether it stands in the place of the built-in task of its name."""
        return self.path is not None and _built_in(self.name).is_file()

    def text(self) -> str:
        """The file as it is written. Raises TaskError."""
        return _read(self.path or _built_in(self.name), self.where)

    def load(self) -> Task:
        """Raises TaskError for what is no task."""
        table = self._table()
        table.pop("about", None)
        return Task(self.name, built_in=self.path is None, **table)

    def about(self) -> str:
        """What the task does, in its own words; empty where it does not say. Raises TaskError."""
        return str(self._table().get("about", "")).strip()

    def _table(self) -> dict[str, Any]:
        return _read_table(self.text(), self.name if self.path is None else str(self.path))


def known_tasks(folders: Sequence[Path] = ()) -> list[TaskFile]:
    """The tasks that go by a name, sorted: those in ``folders``, the first folder's before the next, then built-in."""
    found: dict[str, TaskFile] = {}
    for folder in folders:
        for path in sorted(folder.glob("*" + _SUFFIX)):
            found.setdefault(path.stem, TaskFile(path.stem, path))
    for entry in resources.files(__package__).iterdir():
        if entry.name.endswith(_SUFFIX):
            name = entry.name.removesuffix(_SUFFIX)
            found.setdefault(name, TaskFile(name, None))
    return [found[name] for name in sorted(found)]


def find_task(name: str, folders: Sequence[Path] = ()) -> TaskFile:
    """A task by name, from ``folders`` in order, then the built-in ones; or by path to a ``.toml`` file.

    Raises:
        TaskError: there is none of that name.
    """
    if name.endswith(_SUFFIX):
        return TaskFile(Path(name).stem, Path(name))
    known = {each.name: each for each in known_tasks(folders)}
    if name not in known:
        looked = f"; looked for in {', '.join(map(str, folders))}" if folders else ""
        raise TaskError(
            f"no task {name}",
            why="there are " + ", ".join(known) + looked,
            fix=did_you_mean(name, known) or "name one of them, a .toml file or module:function, or give a prompt",
        )
    return known[name]


def new_task(name: str, folder: Path) -> Path:
    """Write a task file to begin with, which works as it is, into ``folder``; its path.

    Raises:
        TaskError: the name is none, there is such a file, or it cannot be written.
    """
    if not name.isascii() or not name.replace("-", "_").isidentifier():
        why = "a task's name is made of letters, digits, _ and -, and begins with a letter"
        raise TaskError(f"{name!r} is no name for a task", why=why, fix="for example: nightmill tasks new reply")
    path = folder / f"{name}{_SUFFIX}"
    text = _read(_resource(_NEW), _NEW)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise TaskError(
            f"{path} is there already", why="it would be lost", fix="edit it, or take another name"
        ) from error
    except OSError as error:
        raise TaskError(
            f"{path} cannot be written", why=error.strerror or str(error), fix="check the folder, or [tasks] folders"
        ) from error
    return path


def read_prompt(text: str) -> str:
    """The text itself, or with ``@`` in front the content of a file. Raises TaskError."""
    return _read(Path(text[1:]), f"the prompt {text}").rstrip("\r\n") if text.startswith("@") else text


def check_values(table: Mapping[str, Any], where: str) -> None:
    """Raises TaskError for a value that its key cannot have."""
    for key, value in table.items():
        words, fits = _TASK_KEYS[key]
        if not fits(value):
            raise TaskError(f"{where}: {key} = {value!r}", why=f"it must be {words}", fix=f"correct {key}")


def check_examples(examples: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None, where: str) -> None:
    """Raises TaskError for an example whose output is not what ``schema`` asks of an answer."""
    if schema is None:
        return
    check = check_answer(schema)
    for number, example in enumerate(examples, 1):
        _, wrong = check(as_text(example["output"]))
        if wrong is not None:
            raise TaskError(
                f"{where}: the output of example {number} does not fit the schema",
                why=wrong,
                fix="correct the example or the schema: a model does as it is shown",
            )


def _built_in(name: str) -> Traversable:
    return _resource(f"{name}{_SUFFIX}")


def _resource(file: str) -> Traversable:
    return resources.files(__package__).joinpath(file)


def _read(file: Traversable | Path, where: str) -> str:
    try:
        return file.read_text("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{where} is not UTF-8", why=f"byte offset {error.start} cannot be decoded", fix="save it as UTF-8"
        ) from error
    except OSError as error:
        raise TaskError(f"{where} cannot be read", why=error.strerror or str(error), fix="check the path") from error


def _read_table(text: str, where: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{where} is no TOML", why=str(error), fix="correct the file") from error
    refuse_unknown(table, _TASK_KEYS, where)
    check_values(table, where)
    if not table.get("prompt") and not table.get("messages_column"):
        raise TaskError(f"{where} asks nothing", why="it has no prompt", fix='write prompt = "…"')
    if "schema" in table:
        table["schema"] = check_schema(table["schema"], f"{where}: schema")
    check_tools(table, where)
    check_tools_alone(table.get("tools"), table.get("schema"), where)
    if "examples" in table:
        _check_inputs(table, where)
        check_examples(table["examples"], table.get("schema"), where)
    return table


def _check_inputs(table: Mapping[str, Any], where: str) -> None:
    """Every example gives what the prompt takes from a row, and nothing that it does not use."""
    if table.get("endpoint") == "embeddings" or "messages_column" in table:
        raise TaskError(
            f"{where}: examples have no place here",
            why="they are said before a prompt, in a chat",
            fix="take them out, or give the task a prompt",
        )
    used = parse(table["prompt"]).names
    for number, example in enumerate(table["examples"], 1):
        given = example["input"].keys()
        if missing := sorted(used - given - table.get("variables", {}).keys()):
            why = f"the prompt uses {', '.join(sorted(used))}"
            raise TaskError(f"{where}: example {number} has no {missing[0]}", why=why, fix="add it to its input")
        if more := sorted(given - used):
            raise TaskError(
                f"{where}: example {number} gives {more[0]}, which the prompt does not use",
                why="the prompt uses " + (", ".join(sorted(used)) or "no names at all"),
                fix=did_you_mean(more[0], used) or "take it out of its input",
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_table_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_switch(value: Any) -> bool:
    return type(value) is bool


def _is_json(value: Any) -> bool:
    """Whether JSON has it: TOML has dates and times beside."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _are_examples(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and each.keys() == {"input", "output"} and _is_table(each["input"]) and _is_json(each)
        for each in value
    )


# What a key of a task file may hold, in words and as a test.
_TASK_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "about": ("a text that says what the task does", _is_text),
    "endpoint": ('"chat", "responses" or "embeddings"', lambda value: value in get_args(Endpoint)),
    "system": ("a text", _is_text),
    "prompt": ("a text", _is_text),
    "messages_column": ("the name of a column", _is_text),
    "rows": ('"file" or "line"', lambda value: value in ("file", "line")),
    "schema": ("a table with a JSON Schema", lambda value: _is_table(value) and _is_json(value)),
    "variables": ("a table of texts", _is_table_of_texts),
    "column_map": ("a table of column names", _is_table_of_texts),
    "examples": ("tables [[examples]], each with input (a table) and output, of values that JSON has", _are_examples),
    "temperature": ("a number, 0 or more", lambda value: type(value) in (int, float) and value >= 0),
    "max_output": ("a whole number of tokens, 1 or more", _is_count),
    "expect": ("a whole number of tokens, 1 or more", _is_count),
    "repair": ("true or false", _is_switch),
    "reask": ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "escalate": ("true or false", _is_switch),
    "media": ("a list of column names", lambda value: isinstance(value, list) and all(map(_is_text, value))),
    **TOOL_KEYS,
}
