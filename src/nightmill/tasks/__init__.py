"""Tasks: how a row becomes a request and an answer becomes columns.

A task is a TOML file, or a prompt given by hand, or the row itself sent as it is. `bind` holds it
against the columns of a source and finds out, before anything costs, what does not fit.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from nightmill.errors import TaskError
from nightmill.tasks.schemas import check_answer, check_schema, load_schema
from nightmill.tasks.templates import Column, Parsed, Template, bind_template, parse, single_braces

__all__ = [
    "BoundTask",
    "Column",
    "Task",
    "Template",
    "bind",
    "check_answer",
    "load_schema",
    "load_task",
    "prompt_task",
    "task_names",
    "verbatim_task",
]

_VERBATIM_COLUMNS = ("text", "prompt", "input")
_Role = Literal["system", "user"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task as written, before it meets a source.

    ``messages_column`` names a column whose value is a whole chat, sent as it is; there is no
    template then. ``None`` for a number means: not said here.
    """

    name: str
    endpoint: Literal["chat", "embeddings"] = "chat"
    system: str | None = None  # template
    prompt: str | None = None  # template
    messages_column: str | None = None
    rows: Literal["file", "line"] = "line"  # what a row of a .txt file is
    schema: dict[str, Any] | None = None  # JSON Schema of an answer
    variables: dict[str, str] = field(default_factory=dict)
    column_map: dict[str, str] = field(default_factory=dict)  # name in a template -> source column
    temperature: float | None = None
    max_output: int | None = None  # tokens
    expect: int | None = None  # output tokens of a typical answer

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under fixed names in a fixed order: equal tasks give equal bytes."""
        task = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("variables", "column_map"):
            task[name] = dict(sorted(task[name].items()))
        return task

    @classmethod
    def from_dict(cls, task: Mapping[str, Any]) -> Task:
        """The task that `to_dict` wrote. Raises TaskError for a field that does not exist."""
        _refuse_unknown(task, {each.name for each in fields(cls)}, "the task")
        return cls(**task)


@dataclass(frozen=True, slots=True)
class BoundTask:
    """A task whose every name is a column of the source or a text."""

    task: Task  # with what was set folded into ``variables`` and ``column_map``
    columns: tuple[str, ...]  # source columns it needs
    templates: tuple[tuple[_Role, Template], ...]  # empty when ``task.messages_column`` is set


def task_names(folders: Sequence[Path] = ()) -> list[str]:
    """Names of the tasks in ``folders`` and of the built-in ones, sorted."""
    found = {path.stem for folder in folders for path in folder.glob("*.toml")}
    return sorted(found | {_stem(entry.name) for entry in resources.files(__name__).iterdir() if _is_toml(entry.name)})


def load_task(name: str, folders: Sequence[Path] = ()) -> Task:
    """A task by name, from ``folders`` in order, then the built-in ones; or by path to a ``.toml`` file.

    Raises:
        TaskError: there is none of that name, or the file is no task.
    """
    if name.endswith(".toml"):
        return _read_task(Path(name).stem, _read(Path(name)), name)
    for folder in folders:
        path = folder / f"{name}.toml"
        if path.is_file():
            return _read_task(name, _read(path), str(path))
    known = task_names(folders)
    if name not in known:
        raise TaskError(
            f"no task {name}",
            why="there are " + ", ".join(known),
            fix=_did_you_mean(name, known) or "name one of them, or a .toml file, or give a prompt",
        )
    return _read_task(name, resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8"), name)


def prompt_task(text: str) -> Task:
    """A task made of one prompt: the text itself, or ``@FILE``. Raises TaskError."""
    if text.startswith("@"):
        text = _read(Path(text[1:]))
    if not text.strip():
        raise TaskError("the prompt is empty", why="there is nothing to ask", fix="write what each row is asked")
    return Task("prompt", prompt=text)


def verbatim_task(columns: Sequence[str]) -> Task:
    """Each row as it is: a ``messages`` column is a chat, else ``text``, ``prompt`` or ``input`` is the prompt.

    Raises:
        TaskError: there is none of these columns.
    """
    if "messages" in columns:
        return Task("verbatim", messages_column="messages")
    for column in _VERBATIM_COLUMNS:
        if column in columns:
            return Task("verbatim", prompt="{{ " + column + " }}")
    raise TaskError(
        "nothing says what to ask",
        why=f"there is no task and no prompt, and no column {', '.join(_VERBATIM_COLUMNS)} or messages; "
        f"the columns are {', '.join(columns)}",
        fix="give a prompt that uses a column, such as {{ " + (columns[0] if columns else "text") + " }}",
    )


def bind(task: Task, columns: Sequence[str], sets: Mapping[str, str] | None = None) -> BoundTask:
    """Hold ``task`` against the columns of a source.

    Each of ``sets`` gives a text to a variable of the task, or says which column stands behind a
    name: ``text=gloss`` reads the column ``gloss`` where the template says ``{{ text }}``.

    Raises:
        TaskError: a name is neither column nor variable; ``{name}`` where ``{{ name }}`` is
            meant; a set that nothing uses; a broken template.
    """
    sources: list[tuple[_Role, str]] = []
    if task.system:
        sources.append(("system", task.system))
    if task.prompt:
        sources.append(("user", task.prompt))
    parsed = [(role, parse(source)) for role, source in sources]
    used = frozenset[str]().union(*(template.names for _, template in parsed))
    if task.messages_column is not None:
        used |= {task.messages_column}
    task = _apply_sets(task, columns, sets or {}, used)
    names = {name: task.column_map.get(name, name) for name in used if name not in task.variables}
    _check_names(names, columns, task)
    for _, template in parsed:
        _check_braces(template, columns, task)
    if task.messages_column is not None:
        column = names[task.messages_column]
        return BoundTask(replace(task, messages_column=column), (column,), ())
    if not any(role == "user" for role, _ in parsed):
        raise TaskError(f"the task {task.name} asks nothing", why="it has no prompt", fix="give it a prompt")
    templates = tuple((role, bind_template(template, names, task.variables)) for role, template in parsed)
    needed = dict.fromkeys(column for _, template in templates for column in template.columns)
    return BoundTask(task, tuple(needed), templates)


def _apply_sets(task: Task, columns: Sequence[str], sets: Mapping[str, str], used: frozenset[str]) -> Task:
    variables, column_map = dict(task.variables), dict(task.column_map)
    for name, value in sets.items():
        if name not in used and name not in variables:
            raise TaskError(
                f"--set {name}={value}: the task {task.name} has no {name}",
                why="it uses " + (", ".join(sorted(used | set(variables))) or "no names at all"),
                fix=_did_you_mean(name, used | set(variables)) or "set one of these",
            )
        if name not in task.variables and value in columns:
            column_map[name] = value
            variables.pop(name, None)
        else:
            variables[name] = value
    if sets and used and not used - set(variables):
        name = next(name for name in sets if name in used)
        raise TaskError(
            f"--set {name}={sets[name]} leaves no column in the prompt",
            why=f"{sets[name]} is not a column, so every row would ask the same; the columns are {', '.join(columns)}",
            fix=_did_you_mean(sets[name], columns) or "map it to one of the columns",
        )
    return replace(task, variables=variables, column_map=column_map)


def _check_names(names: Mapping[str, str], columns: Sequence[str], task: Task) -> None:
    for name, column in sorted(names.items()):
        if column in columns:
            continue
        known = [*columns, *task.variables]
        hint = _did_you_mean(column, known)
        raise TaskError(
            f"the task {task.name} uses {column}, which is not a column",
            why=f"the columns are {', '.join(columns)}"
            + (f"; the variables are {', '.join(task.variables)}" if task.variables else ""),
            fix=(f"{hint} " if hint else "") + f"Map it with --set {name}=COLUMN, or correct the template.",
        )


def _check_braces(template: Parsed, columns: Iterable[str], task: Task) -> None:
    known = {*columns, *task.variables, *task.column_map}
    for name in single_braces(template):
        if name in known:
            right = f"{{{{ {name} }}}}" if name.isidentifier() else f"{{{{ word }}}} with --set word='{name}'"
            raise TaskError(
                f"the template says {{{name}}}",
                why=f"single braces are plain text, so the prompt would not hold the value of {name}",
                fix=f"write {right}; if the braces are meant, write {{{{ '{{{name}}}' }}}}",
            )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8", why=f"byte offset {error.start} cannot be decoded", fix="save it as UTF-8"
        ) from error
    except OSError as error:
        raise TaskError(f"{path} cannot be read", why=error.strerror or str(error), fix="check the path") from error


def _read_task(name: str, text: str, where: str) -> Task:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{where} is no TOML", why=str(error), fix="correct the file") from error
    _refuse_unknown(table, _TASK_KEYS, where)
    for key, value in table.items():
        words, fits = _TASK_KEYS[key]
        if not fits(value):
            raise TaskError(f"{where}: {key} = {value!r}", why=f"it must be {words}", fix="correct the file")
    if not table.get("prompt") and not table.get("messages_column"):
        raise TaskError(f"{where} asks nothing", why="it has no prompt", fix='write prompt = "…"')
    if "schema" in table:
        table["schema"] = check_schema(table["schema"], f"{where}: schema")
    return Task(name, **table)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_table_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


# What a key of a task file may hold, in words and as a test.
_TASK_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "endpoint": ('"chat" or "embeddings"', lambda value: value in ("chat", "embeddings")),
    "system": ("a text", _is_text),
    "prompt": ("a text", _is_text),
    "messages_column": ("the name of a column", _is_text),
    "rows": ('"file" or "line"', lambda value: value in ("file", "line")),
    "schema": ("a table with a JSON Schema", _is_table),
    "variables": ("a table of texts", _is_table_of_texts),
    "column_map": ("a table of column names", _is_table_of_texts),
    "temperature": ("a number, 0 or more", lambda value: type(value) in (int, float) and value >= 0),
    "max_output": ("a whole number of tokens, 1 or more", _is_count),
    "expect": ("a whole number of tokens, 1 or more", _is_count),
}


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            raise TaskError(
                f"{where}: unknown key {key}",
                why="a task has " + ", ".join(sorted(known)),
                fix=_did_you_mean(key, known) or "remove it",
            )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else ""


def _is_toml(name: str) -> bool:
    return name.endswith(".toml")


def _stem(name: str) -> str:
    return name.removesuffix(".toml")
