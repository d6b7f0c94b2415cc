"""Templates: Jinja in a sandbox, and the plain ones among them taken apart.

A template that is nothing but text and ``{{ name }}`` needs no template engine a row: joining its
`Template.parts` gives exactly what Jinja gives. Which ones those are is decided on Jinja's own
syntax tree, never by looking at the text.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import msgspec
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nightmill.errors import TaskError

_SINGLE_BRACES = re.compile(r"(?<!\{)\{[^\S\n]*([^{}\n]*[^{}\s])[^\S\n]*\}(?!\})")
_JSON_KINDS = (dict, list, tuple, bool, type(None))
# What Jinja itself puts behind a name, so that a column cannot be had by it.
_RESERVED = frozenset({"self", "super", "caller", "varargs", "kwargs"})


@dataclass(frozen=True, slots=True)
class Column:
    """The place of a row's value in a template; ``name`` is the source's column."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A template bound to columns and variables.

    ``parts`` is what to join, with `as_text` of its value in the place of each `Column`, or None
    when only `render` gives the text.
    """

    source: str
    columns: tuple[str, ...]  # source columns it needs, in order of first use where plain
    parts: tuple[str | Column, ...] | None
    _names: Mapping[str, str] = field(repr=False)  # name in the template -> source column
    _variables: Mapping[str, str] = field(repr=False)
    _compiled: jinja2.Template = field(repr=False, compare=False)

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for ``row``, which maps source columns to values.

        Raises:
            TaskError: the template cannot be rendered for this row.
        """
        values: dict[str, Any] = dict(self._variables)
        for name, column in self._names.items():
            if column in row:
                values[name] = row[column]
        try:
            return self._compiled.render(values)
        except Exception as error:  # a template is a user's program: anything can come out of it
            raise _failed(error, self.source) from error


@dataclass(frozen=True, slots=True)
class Parsed:
    """A template before it is bound: its tree and the names it takes from outside."""

    source: str
    tree: nodes.Template
    names: frozenset[str]


def parse(source: str) -> Parsed:
    """Raises TaskError, with the line, for what is no template."""
    try:
        tree = _environment().parse(source)
        names = meta.find_undeclared_variables(tree) - {"range"}  # also finds unknown filters and tests
    except jinja2.TemplateSyntaxError as error:
        raise TaskError(
            f"the template has an error in line {error.lineno}",
            why=f"{error.message} (in {_line(source, error.lineno)!r})",
            fix="correct it; a value is written {{ column }}, and a column whose name is no plain word is reached"
            " with --set word='its name'",
        ) from error
    used = {node.name for node in tree.find_all(nodes.Name)} & _RESERVED
    if used:
        raise TaskError(
            f"the template uses {', '.join(sorted(used))}",
            why="Jinja keeps that name for itself",
            fix=f"use another name and map it: --set word={min(used)}",
        )
    if any(True for _ in meta.find_referenced_templates(tree)):
        raise TaskError(
            "the template includes another one", why="a task is one file", fix="copy the other template into it"
        )
    return Parsed(source, tree, frozenset(names))


def as_text(value: Any) -> str:
    """A value as it stands in a prompt: lists, objects, true, false and null as JSON, everything else as it reads."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind in _JSON_KINDS:
        return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)


def bind_template(parsed: Parsed, names: Mapping[str, str], variables: Mapping[str, str]) -> Template:
    """Bind every name of the template, to a source column by ``names`` or to a text by ``variables``."""
    names = {name: names[name] for name in sorted(parsed.names) if name in names}
    variables = {name: variables[name] for name in sorted(parsed.names) if name in variables}
    parts = _parts(parsed.tree, names, variables)
    columns = [part.name for part in parts if isinstance(part, Column)] if parts is not None else list(names.values())
    compiled = _environment().from_string(parsed.tree)
    return Template(parsed.source, tuple(dict.fromkeys(columns)), parts, names, variables, compiled)


def single_braces(parsed: Parsed) -> list[str]:
    """Names written ``{name}`` in the text of the template, where ``{{ name }}`` may be meant."""
    text = "\0".join(node.data for node in parsed.tree.find_all(nodes.TemplateData))
    return list(dict.fromkeys(_SINGLE_BRACES.findall(text)))


def _parts(
    tree: nodes.Template, names: Mapping[str, str], variables: Mapping[str, str]
) -> tuple[str | Column, ...] | None:
    parts: list[str | Column] = []

    def add(text: str) -> None:
        if parts and isinstance(parts[-1], str):
            parts[-1] += text
        elif text:
            parts.append(text)

    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                add(node.data)
            elif isinstance(node, nodes.Name) and node.name in variables:
                add(variables[node.name])
            elif isinstance(node, nodes.Name) and node.name in names:
                parts.append(Column(names[node.name]))
            else:
                return None
    return tuple(parts)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    # No autoescape: a prompt is text, not HTML, and its characters are sent as they are.
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=as_text,
    )
    # Jinja's own escapes what would be HTML.
    environment.filters["tojson"] = _to_json
    # Every other global would hide a missing column of its name.
    environment.globals = {"range": environment.globals["range"]}
    return environment


def _to_json(value: Any, indent: int = 0) -> str:
    text = msgspec.json.encode(value, enc_hook=str)
    return msgspec.json.format(text, indent=indent).decode() if indent else text.decode()


def _failed(error: Exception, source: str) -> TaskError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    line = lines[-1] if lines else None
    where = f" in line {line}" if line else ""
    shown = f" (in {_line(source, line)!r})" if line else ""
    return TaskError(
        f"the template cannot be rendered{where}",
        why=f"{type(error).__name__}: {error}{shown}",
        fix="correct the template, or the row",
    )


def _line(source: str, number: int) -> str:
    lines = source.splitlines()
    return lines[number - 1].strip()[:80] if 0 < number <= len(lines) else ""
