"""What a task is, and how it is held against the columns of a source before anything costs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from nightmill.errors import TaskError
from nightmill.tasks.templates import Parsed, Template, as_text, bind_template, parse, single_braces
from nightmill.types import Endpoint

MEDIA = "nightmill.media"  # the column that says where the media of each row lie
_NOT_OF_A_BODY = ("key", "id", "custom_id")
_ONLY_A_PROMPT = ("prompt", "verbatim")
_VERBATIM_COLUMNS = ("text", "prompt", "input")
_Role = Literal["system", "user"]

ASKS: Mapping[Endpoint, str] = {"chat": "messages", "embeddings": "input", "responses": "input"}
"""The key of a request that says what is asked."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as written, before it meets a source.

    ``messages_column`` names a column whose value is a whole chat, sent as it is; with
    ``bodies`` each row is a whole request body, in a column ``body`` or spread over all columns but the key.
    There is no template then. ``None`` for a number means: not said here.
    """

    name: str
    endpoint: Endpoint = "chat"
    system: str | None = None  # template
    prompt: str | None = None  # template
    messages_column: str | None = None
    bodies: bool = False  # each row is a whole request
    rows: Literal["file", "line"] = "line"  # what a row of a .txt file is
    schema: dict[str, Any] | None = None  # JSON Schema of an answer
    variables: dict[str, str] = field(default_factory=dict)
    column_map: dict[str, str] = field(default_factory=dict)  # name in a template -> source column
    temperature: float | None = None
    max_output: int | None = None  # tokens
    expect: int | None = None  # output tokens of a typical answer
    built_in: bool = False  # one of ours: its numbers give way where a model does not take them
    examples: list[dict[str, Any]] = field(default_factory=list)  # each an input, by name, and the output for it
    repair: bool | None = None  # answers that do not fit the schema are put right here where they can be
    reask: int | None = None  # ... times they are asked again, with what is wrong
    escalate: bool | None = None  # ... and then put to the next of the models that were named
    tools: list[dict[str, Any]] = field(default_factory=list)  # functions that the model may call: name, parameters, …
    tool_choice: str | None = None  # auto, none, required, or the name of a tool
    parallel_tool_calls: bool | None = None
    choices: int | None = None  # answers to each row
    media: list[str] = field(default_factory=list)  # columns whose cells are images, PDFs, audio or video to send along

    @property
    def called(self) -> str:
        """What messages call it: whoever typed a prompt knows of no task."""
        return "the prompt" if self.name in _ONLY_A_PROMPT else f"the task {self.name}"

    @property
    def embeds(self) -> bool:
        """Whether each row is one text that becomes one vector."""
        return self.endpoint == "embeddings" and not self.bodies

    @property
    def names(self) -> list[str]:
        """What it takes from a row, by the names in its templates, sorted. Raises TaskError for a broken template."""
        sources = filter(None, (self.system, self.prompt))
        used = frozenset[str]().union(*(parse(source).names for source in sources))
        return sorted(used - self.variables.keys())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under fixed names in a fixed order: equal tasks give equal bytes."""
        task = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("variables", "column_map"):
            task[name] = dict(sorted(task[name].items()))
        if not task["media"]:
            del task["media"]  # so that a task without has the digest that it always had
        return task

    @classmethod
    def from_dict(cls, task: Mapping[str, Any]) -> Task:
        """The task that `to_dict` wrote. Raises TaskError for a field that does not exist."""
        refuse_unknown(task, {each.name for each in fields(cls)}, "the task")
        return cls(**task)


@dataclass(frozen=True, slots=True)
class BoundTask:
    """A task whose every name is a column of the source or a text."""

    task: Task  # with what was set folded into ``variables`` and ``column_map``
    columns: tuple[str, ...]  # source columns in which every row needs a value
    templates: tuple[tuple[_Role, Template], ...]  # the user's last; empty when the rows are chats or bodies
    shots: tuple[tuple[Literal["user", "assistant"], str], ...] = ()  # the examples, said before the user's part
    optional: tuple[str, ...] = ()  # source columns that are used where a row has a value


def prompt_task(text: str) -> Task:
    """A task made of one prompt, a template. Raises TaskError."""
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


def holds_bodies(columns: Sequence[str]) -> bool:
    """Whether rows with these columns are whole requests: lines of a batch file, or the bodies of such lines."""
    if "body" in columns:
        return not {"custom_id", "url", "method"}.isdisjoint(columns)
    return "model" in columns and not {"messages", "input"}.isdisjoint(columns)


def bind(task: Task, columns: Sequence[str], sets: Mapping[str, str] | None = None) -> BoundTask:
    """Hold ``task`` against the columns of a source.

    Each of ``sets`` gives a text to a variable of the task, or says which column stands behind a
    name: ``text=gloss`` reads the column ``gloss`` where the template says ``{{ text }}``.

    Raises:
        TaskError: a name is neither column nor variable; ``{name}`` where ``{{ name }}`` is
            meant; a set that nothing uses; a broken template.
    """
    _check_media(task, columns)
    if task.bodies:
        return _bind_bodies(task, columns, sets or {})
    seen = (MEDIA,) if task.media else ()
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
        return BoundTask(replace(task, messages_column=column), (column, *seen), ())
    if not any(role == "user" for role, _ in parsed):
        raise TaskError(f"{task.called} asks nothing", why="it has no prompt", fix="give it a prompt")
    templates = tuple((role, bind_template(template, names, task.variables)) for role, template in parsed)
    needed = dict.fromkeys(column for _, template in templates for column in template.columns)
    return BoundTask(task, (*needed, *seen), templates, _shots(task, parsed[-1][1]))


def _check_media(task: Task, columns: Sequence[str]) -> None:
    """Raises TaskError: a column of media is none, or the rows are no prompts that media could go along with."""
    for name in task.media:
        if name not in columns:
            why = f"the columns are {', '.join(columns)}"
            raise TaskError(
                f"no column {name} to take media from", why=why, fix=did_you_mean(name, columns) or "name one"
            )
    if task.media and (task.bodies or task.endpoint == "embeddings"):
        why = "each row is a whole request already" if task.bodies else "the answer is a vector of a text"
        raise TaskError("media go along with a prompt", why=why, fix="leave media out, or give a prompt")


def _bind_bodies(task: Task, columns: Sequence[str], sets: Mapping[str, str]) -> BoundTask:
    if sets:
        name, value = next(iter(sets.items()))
        why = "each row is a whole request already"
        raise TaskError(f"--set {name}={value}: there is nothing to set", why=why, fix="leave --set out")
    if "body" in columns:
        return BoundTask(task, ("body",), (), optional=("url",) if "url" in columns else ())
    asks = ASKS[task.endpoint]
    optional = tuple(name for name in columns if name not in (asks, *_NOT_OF_A_BODY))
    return BoundTask(task, (asks,), (), optional=optional)


def _shots(task: Task, prompt: Parsed) -> tuple[tuple[Literal["user", "assistant"], str], ...]:
    """The examples as they are said: what an example's input does not give, a variable does."""
    shots: list[tuple[Literal["user", "assistant"], str]] = []
    for example in task.examples:
        given = example["input"]
        left = {name: value for name, value in task.variables.items() if name not in given}
        asked = bind_template(prompt, {name: name for name in given}, left).render(given)
        shots += [("user", asked), ("assistant", as_text(example["output"]))]
    return tuple(shots)


def _apply_sets(task: Task, columns: Sequence[str], sets: Mapping[str, str], used: frozenset[str]) -> Task:
    variables, column_map = dict(task.variables), dict(task.column_map)
    for name, value in sets.items():
        if name not in used and name not in variables:
            raise TaskError(
                f"--set {name}={value}: {task.called} has no {name}",
                why="it uses " + (", ".join(sorted(used | set(variables))) or "no names at all"),
                fix=did_you_mean(name, used | set(variables)) or "set one of these",
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
            fix=did_you_mean(sets[name], columns) or "map it to one of the columns",
        )
    return replace(task, variables=variables, column_map=column_map)


def _check_names(names: Mapping[str, str], columns: Sequence[str], task: Task) -> None:
    for name, column in sorted(names.items()):
        if column in columns:
            continue
        known = [*columns, *task.variables]
        hint = did_you_mean(column, known)
        raise TaskError(
            f"{task.called} uses {column}, which is not a column",
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


def refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            raise TaskError(
                f"{where}: unknown key {key}",
                why="a task has " + ", ".join(sorted(known)),
                fix=did_you_mean(key, known) or "remove it",
            )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else ""
