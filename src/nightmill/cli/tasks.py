"""``tasks``: what can be asked by name, what each needs, and a file to begin one with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge
from nightmill.errors import TaskError
from nightmill.tasks import Task, TaskFile, TaskFunction, find_task, import_task, known_tasks, new_task


class _ByName(click.Group):
    """``tasks NAME`` is ``tasks show NAME``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["show", *args])


@click.group(cls=_ByName, short_help="List the tasks there are, show one, begin a new one.",
             invoke_without_command=True, subcommand_metavar="[NAME | new NAME]")  # fmt: skip
@flags.common
def tasks(edge: Edge) -> int:
    """List the tasks there are, those in your folders before the built-in ones of their names.

    Folders are [tasks] folders of nightmill.toml, else the folder tasks beside it, or in the working folder.
    """
    return _list(edge) if click.get_current_context().invoked_subcommand is None else 0


@tasks.command()
@click.argument("name")
@flags.common
def show(edge: Edge, name: str) -> int:
    """One task whole: as it is written, and what it needs. NAME may be a .toml file or module:function."""
    if ":" in name and not name.endswith(".toml"):
        return _show_function(edge, import_task(name))
    file = find_task(name, edge.settings().task_folders)
    edge.put(present.show(file.text().rstrip()))
    found = _object(file)
    edge.say("\n".join(_about(found, edge)))
    edge.answer(found | _whole(file.load()))
    return 0


@tasks.command()
@click.argument("name")
@flags.common
def new(edge: Edge, name: str) -> int:
    """Write a task file to begin with: it works at once, and says what else it may hold."""
    folders = edge.settings().task_folders
    if not folders:
        why = "[tasks] folders is empty, so that no file would be found"
        raise TaskError("no folder for a new task", why=why, fix="name a folder in [tasks] folders")
    path = new_task(name, folders[0])
    shown = _short(path)
    edge.put(shown)
    file = TaskFile(name, path)
    if file.hides_built_in:
        edge.say(f"from now on {name} is this task, not the built-in one")
    edge.say(f"edit it, then: nightmill run INPUT --task {name} --dry-run")
    edge.answer({"name": name, "path": shown, "overrides_built_in": file.hides_built_in})
    return 0


def _list(edge: Edge) -> int:
    folders = edge.settings().task_folders
    found = [_object(file) for file in known_tasks(folders)]
    for each in found:
        edge.put("\n".join([each["name"], *_about(each, edge, indent="  ")]))
    edge.say("show one: nightmill tasks NAME\nbegin one: nightmill tasks new NAME")
    edge.answer({"tasks": found, "folders": [str(folder) for folder in folders]})
    return 0


def _show_function(edge: Edge, function: TaskFunction) -> int:
    task = function.task
    found = _said(function.name, function.about, None, task)
    found |= {"built_in": False, "overrides_built_in": False, "columns": None, "variables": dict(function.variables)}
    edge.put("\n".join(_about(found, edge)))
    edge.answer(found | _whole(task))
    return 0


def _object(file: TaskFile) -> dict[str, Any]:
    """A task, in short; what is wrong with it where it cannot be read."""
    try:
        found = _said(file.name, file.about(), file.path, file.load())
    except TaskError as error:
        path = None if file.path is None else str(file.path)
        found = {"name": file.name, "path": path, "error": f"{error.what}: {error.why}"}
    return found | {"built_in": file.path is None, "overrides_built_in": file.hides_built_in}


def _said(name: str, about: str, path: Path | None, task: Task) -> dict[str, Any]:
    columns = [task.messages_column] if task.messages_column else task.names
    return {
        "name": name, "about": about, "path": None if path is None else str(path), "rows": task.rows,
        "columns": columns, "variables": task.variables, "schema": task.schema, "error": None,
    }  # fmt: skip


def _whole(task: Task) -> dict[str, Any]:
    more = ("endpoint", "system", "prompt", "examples", "temperature", "max_output", "expect", "column_map")
    return {name: value for name, value in task.to_dict().items() if name in more}


def _about(found: dict[str, Any], edge: Edge, indent: str = "") -> list[str]:
    """A task in lines that fit."""
    return [present.fitted(indent + line, width=edge.table_width, unicode=edge.unicode) for line in _lines(found)]


def _lines(found: dict[str, Any]) -> list[str]:
    where = [f"from {_short(Path(found['path']))}" + ", in place of the built-in one" * found["overrides_built_in"]
             ] if found["path"] else []  # fmt: skip
    if found["error"]:
        return [f"cannot be used: {found['error']}", *where]
    schema = found["schema"] or {}
    answer = ", ".join(schema.get("properties", {})) or "any JSON" if found["schema"] else "text"
    takes = f"takes {', '.join(found['columns'])}; " if found["columns"] else ""
    lines = [found["about"]] if found["about"] else []
    lines.append(f"{takes}answers with {answer}; a .txt file is one row" + " a line" * (found["rows"] == "line"))
    lines += [f"--set {name}={_quoted(value)}" for name, value in found["variables"].items()]
    return [*lines, *where]


def _quoted(value: str | None) -> str:
    if value is None:
        return "…"
    return f"'{value}'" if " " in value else value


def _short(path: Path) -> str:
    """The path from the working folder, where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
