"""Tools of a task, and how many answers each row gets: what a task file says of them, and how a request says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nightmill.errors import TaskError
from nightmill.tasks.binding import Task
from nightmill.tasks.schemas import check_schema

_CHOICES = ("auto", "none", "required")
_KEYS = {"name", "description", "parameters", "strict"}


def _is_tool(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= _KEYS
        and isinstance(value.get("name"), str)
        and isinstance(value.get("description", ""), str)
        and isinstance(value.get("parameters", {}), dict)
        and isinstance(value.get("strict", False), bool)
    )


def _are_tools(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_tool, value)) and len({each["name"] for each in value}) == len(value)


# What a key of a task file may hold, in words and as a test.
TOOL_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "tools": ("tables [[tools]], each with a name of its own, perhaps description, parameters and strict", _are_tools),
    "tool_choice": ("auto, none, required or the name of a tool", lambda value: isinstance(value, str)),
    "parallel_tool_calls": ("true or false", lambda value: isinstance(value, bool)),
    "choices": ("a whole number, 1 or more", lambda value: type(value) is int and value >= 1),
}


def check_tools(table: Mapping[str, Any], where: str) -> None:
    """Raises TaskError for tools that no request could have."""
    tools, choice = table.get("tools", []), table.get("tool_choice")
    for tool in tools:
        if "parameters" in tool:
            check_schema(tool["parameters"], f"{where}: the parameters of {tool['name']}")
    names = [tool["name"] for tool in tools]
    if not tools and (choice is not None or "parallel_tool_calls" in table):
        raise TaskError(f"{where} has no tools", why="there is nothing to choose from", fix="add [[tools]]")
    if choice is not None and choice not in (*_CHOICES, *names):
        why = f"there are {', '.join((*_CHOICES, *names))}"
        raise TaskError(f"{where}: tool_choice = {choice!r}", why=why, fix="correct tool_choice")
    if table.get("endpoint") == "embeddings" and (tools or "choices" in table):
        why = "a vector calls nothing, and there is one"
        raise TaskError(f"{where} asks for embeddings", why=why, fix="take tools and choices out")


def check_tools_alone(tools: Any, schema: Any, where: str) -> None:
    """Raises TaskError for tools beside a schema."""
    if tools and schema:
        why = "an answer that calls a tool has no text to hold against a schema"
        raise TaskError(f"{where} has both tools and a schema", why=why, fix="leave one of them out")


def request_parts(task: Task) -> dict[str, Any]:
    """What requests of ``task`` say of tools and choices, in the words of its endpoint."""
    flat = task.endpoint == "responses"
    parts: dict[str, Any] = {}
    if task.tools:
        parts["tools"] = [_flat(tool) if flat else {"type": "function", "function": tool} for tool in task.tools]
        if (choice := task.tool_choice) is not None:
            named = {"type": "function", "name": choice} if flat else {"type": "function", "function": {"name": choice}}
            parts["tool_choice"] = choice if choice in _CHOICES else named
        if task.parallel_tool_calls is not None:
            parts["parallel_tool_calls"] = task.parallel_tool_calls
    if task.choices is not None and task.choices > 1:
        parts["n"] = task.choices
    return parts


def _flat(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as the responses endpoint has it: where it says nothing of strictness, it would be strict there alone."""
    return {"type": "function", "parameters": {"type": "object", "properties": {}}, "strict": False, **tool}
