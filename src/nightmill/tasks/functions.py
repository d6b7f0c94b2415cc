"""Python functions as tasks: called with a row, a function gives what that row asks.

Functions are called while a job is planned and never again: from then on the job holds what they
made, so that it can be resumed, retried and read wherever the function is, and whatever became of it.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, overload

import msgspec

from nightmill.errors import TaskError, name_and_text
from nightmill.tasks.binding import Task, did_you_mean
from nightmill.tasks.files import check_values
from nightmill.tasks.importing import import_name
from nightmill.tasks.schemas import load_schema

MESSAGES = "nightmill.messages"  # the column that holds what a function made of each row

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""A chat as OpenAI writes it: ``[{"role": "user", "content": "…"}]``."""


class NoRequest(Exception):
    """What a function makes of a row is no request; the text says why."""


@dataclass(frozen=True, slots=True)
class TaskFunction:
    """A function that makes a request of a row, and what else a task says.

    It can be called like the function itself. ``variables`` are its parameters beside the row, with
    their defaults as text (None: has to be set); ``task.variables`` are those that were set.
    """

    call: Callable[..., Messages | str]
    task: Task
    variables: Mapping[str, str | None] = field(default_factory=dict)
    takes_any: bool = False  # variable of any name

    def __call__(self, *args: Any, **kwargs: Any) -> Messages | str:
        return self.call(*args, **kwargs)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def about(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.call) or "").partition("\n")[0]

    def with_sets(self, sets: Mapping[str, str]) -> TaskFunction:
        """The function with texts for its variables.

        Raises:
            TaskError: it has no such variable, or needs one that is not set.
        """
        for name, value in sets.items():
            if name not in self.variables and not self.takes_any:
                raise TaskError(
                    f"--set {name}={value}: the task {self.name} has no {name}",
                    why="beside the row it takes " + (", ".join(self.variables) or "nothing"),
                    fix=did_you_mean(name, self.variables) or "leave it out",
                )
        for name, default in self.variables.items():
            if default is None and name not in sets:
                raise TaskError(
                    f"the task {self.name} needs {name}",
                    why=f"{name} is a parameter of the function without a default",
                    fix=f"give it with --set {name}=…",
                )
        return replace(self, task=replace(self.task, variables=dict(sets)))

    def ask(self, row: dict[str, Any]) -> str:
        """What ``row`` asks, as the JSON text of a chat. Raises NoRequest."""
        try:
            made = self.call(row, **self.task.variables)
        except Exception as error:  # a function is a user's program: anything can come out of it
            raise NoRequest(f"{self.name} raised {self._told(error, row)}") from error
        chat = [{"role": "user", "content": made}] if isinstance(made, str) else made
        if wrong := _wrong(chat):
            raise NoRequest(f"{self.name} returned {wrong}: a text or a list of messages is needed")
        try:
            return msgspec.json.encode([dict(message) for message in chat]).decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NoRequest(f"{self.name} returned what JSON cannot hold: {error}") from error

    def _told(self, error: Exception, row: Mapping[str, Any]) -> str:
        text = name_and_text(error)
        if isinstance(error, KeyError) and error.args and error.args[0] not in row:
            text += f", which is no column; the columns are {', '.join(row)}"
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = getattr(inspect.unwrap(self.call), "__code__", None)
        ours = [frame for frame in frames if own is None or frame.filename == own.co_filename] or frames
        return f"{text} ({ours[-1].filename}:{ours[-1].lineno})" if ours else text


@overload
def task(call: Callable[..., Any], /) -> TaskFunction: ...


@overload
def task(
    *,
    schema: Any = None,
    rows: Literal["file", "line"] = "line",
    temperature: float | None = None,
    max_output: int | None = None,
    expect: int | None = None,
) -> Callable[[Callable[..., Any]], TaskFunction]: ...


def task(call: Callable[..., Any] | None = None, /, **said: Any) -> Any:
    """Make a function a task: called with a row, it returns a text or a list of messages.

    A row is a dict of column to value. Further parameters are variables, set as texts (``--set tone=dry``).
    A class is made an instance first, which is then called. ``schema`` is whatever `load_schema` takes,
    ``max_output`` and ``expect`` are tokens, ``rows`` says what a row of a ``.txt`` file is.

    Raises:
        TaskError: it cannot be called with a row, or an option has a wrong value.
    """
    if call is not None:
        return function_task(call)
    return lambda call: function_task(call, **said)


def import_task(spec: str) -> TaskFunction:
    """The function that ``module:function`` names, as a task. Raises TaskError."""
    return function_task(import_name(spec, "task"), name=spec)


def function_task(call: object, *, name: str | None = None, schema: Any = None, **said: Any) -> TaskFunction:
    """See `task`, which may have made one of it already; ``name`` is for what has none of its own.

    Raises:
        TaskError: it cannot be called with a row, or an option has a wrong value.
    """
    if isinstance(call, TaskFunction):
        return call
    own = getattr(call, "__qualname__", None)
    name = f"{getattr(call, '__module__', None)}:{own}" if own else name or type(call).__qualname__
    if isinstance(call, type):
        call = _instance(call, name)
    if not callable(call):
        why = f"it is a {type(call).__name__}"
        raise TaskError(f"{name} cannot be called", why=why, fix="name a function that takes a row")
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None)):  # noqa: B004
        raise TaskError(f"{name} is async", why="rows are made into requests one by one", fix="write a plain def")
    options = {key: value for key, value in said.items() if value is not None}
    check_values(options, name)
    made = Task(name, messages_column=MESSAGES, schema=None if schema is None else load_schema(schema), **options)
    variables, takes_any = _variables(call, name)
    return TaskFunction(call, made, variables, takes_any)


def _instance(made: type, name: str) -> object:
    try:
        return made()
    except Exception as error:  # a user's constructor
        why = f"{type(error).__name__}: {error}"
        fix = "give its parameters defaults, or name an instance of it"
        raise TaskError(f"{name} cannot be made", why=why, fix=fix) from error


def _variables(call: Callable[..., Any], name: str) -> tuple[dict[str, str | None], bool]:
    """Parameters beside the row, with their defaults as text, and whether there may be others."""
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return {}, False
    kinds = inspect.Parameter
    if not parameters or parameters[0].kind in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD):
        raise TaskError(f"{name} takes no row", why="it has no first parameter", fix=f"write def {name}(row)")
    named = [p for p in parameters[1:] if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    defaults = {p.name: None if p.default is p.empty else str(p.default) for p in named}
    return defaults, any(p.kind is kinds.VAR_KEYWORD for p in parameters)


def _wrong(chat: Any) -> str:
    """What it is instead of a chat; empty where it is one."""
    if not isinstance(chat, list | tuple):
        return f"a {type(chat).__name__}"
    if not chat:
        return "an empty list"
    for message in chat:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message without a role"
    return "an empty text" if chat[-1].get("content") == "" else ""
