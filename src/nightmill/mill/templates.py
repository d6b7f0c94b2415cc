"""Saved job templates: what a user asked for, under a name, to be asked again.

A template holds what was said and nothing that follows from it: paths as they were typed, no yes to any price.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nightmill.errors import StoreError, UsageError
from nightmill.mill.planning import RunOptions

_FOLDER = "templates"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ONCE = ("given", "new", "hurry")  # true of one run, not of the next


@dataclass(frozen=True, slots=True)
class Template:
    """Options of a run, and the outputs that it writes, as they were typed."""

    options: RunOptions
    outs: tuple[str, ...] = ()
    csv_raw: bool = False
    checkpoint: Path | None = None

    def over(self, other: Template) -> Template:
        """This one where it says something, else the other; variables are set name by name."""
        mine, theirs = _said(self.options), _said(other.options)
        if "task" in mine or "prompt" in mine:  # each says what to ask: one instead of the other
            theirs = {name: value for name, value in theirs.items() if name not in ("task", "prompt", "sets")}
        sets = theirs.get("sets", {}) | mine.get("sets", {})
        options = replace(self.options, **(theirs | mine | ({"sets": sets} if sets else {})))
        checkpoint = self.checkpoint or other.checkpoint
        return Template(options, self.outs or other.outs, bool(self.csv_raw or other.csv_raw), checkpoint)


def save(home: Path, name: str, template: Template, *, force: bool) -> None:
    """Keep a template under ``name``.

    Raises:
        UsageError: it is no name, or, without ``force``, that of another template.
        StoreError: the home cannot be written.
    """
    if not _NAME.fullmatch(name) or name == "last":
        why = "it is called by @NAME: letters, digits, dots, dashes and underscores, and @last is a job"
        raise UsageError(f"{name!r} names no template", why=why, fix="such as --save-as nightly")
    file = home / _FOLDER / f"{name}.json"
    said = {
        "options": _said(template.options), "out": list(template.outs), "csv_raw": template.csv_raw,
        "checkpoint": str(template.checkpoint) if template.checkpoint else None,
    }  # fmt: skip
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    try:
        if file.exists() and not force and file.read_text(encoding="utf-8") != text:
            why = "it says something else"
            raise UsageError(f"there is a template {name} already", why=why, fix="name another, or add --force")
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(f"{file} cannot be written", why=why, fix="check its folder and the disk") from error


def load(home: Path, name: str) -> Template:
    """The template of that name.

    Raises:
        UsageError: there is none, or its file does not hold one.
    """
    known = names(home)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"no template is called {name}",
            why="there are " + ", ".join(known) if known else "none was saved yet",
            fix=f"did you mean @{near[0]}?" if near else "save one: nightmill run ... --save-as NAME",
        )
    file = home / _FOLDER / f"{name}.json"
    try:
        said: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        options = RunOptions(**{**said["options"], "inputs": tuple(said["options"].get("inputs", ()))})
        checkpoint = Path(said["checkpoint"]) if said["checkpoint"] else None
        return Template(options, tuple(said["out"]), bool(said["csv_raw"]), checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file} holds no template", why=why, fix="save it anew with --save-as and --force") from error


def names(home: Path) -> Sequence[str]:
    """Of all templates, sorted."""
    return sorted(file.stem for file in (home / _FOLDER).glob("*.json"))


def _said(options: RunOptions) -> dict[str, Any]:
    """What differs from saying nothing."""
    nothing = RunOptions(())
    values = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in _ONCE}
    return {name: value for name, value in values.items() if value != getattr(nothing, name)}
