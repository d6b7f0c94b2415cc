"""A JSON document as rows: an array of texts or objects, or prompts in sections.

    ["text", ...]                                       a column ``text``
    [{"column": ...}, ...]                              the columns of its objects
    {"prompts": [...]}                                  the same, one level down
    {SECTION: {NAME: TEXT}}                             columns ``key`` (SECTION/NAME), section, name, prompt
    {"sections": {SECTION: {NAME: TEXT}}}               the same
    {"sections": [{"name": SECTION, "..._prompt": TEXT}]}
    {"sections": [{"title": SECTION, "prompts": {NAME: TEXT}}]}

An array is read a little at a time, an object whole: it takes a few times its size in memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from nightmill.errors import InputError
from nightmill.sources.inputs import Input

_NAMES = ("name", "section", "title")  # what a section in a list is called by
_encode = msgspec.json.Encoder().encode
_HEAD_BYTES = 1 << 16


def as_lines(source: Input) -> Input:
    """The document as JSON lines, one row each.

    Raises:
        InputError: it is no JSON, or of no form that has rows.
    """
    with source.explained(), source.open() as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
        if head.lstrip().startswith(b"["):
            return _array(source)
        data = head + file.read()
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{source.name} is no JSON document of rows",
            why=str(error) or "nested too deeply",
            fix="write an array of texts or objects; for one object a line, call it .jsonl",
        ) from error
    if isinstance(document.get("prompts"), list):
        return _array(replace(source, data=_encode(document["prompts"])))
    try:
        data = b"\n".join(_sectioned(document))
    except _Odd as odd:
        raise InputError(
            f"{source.name}: {odd.where} is {odd.what}",
            why="prompts in sections are texts by name, in objects by section",
            fix='write {"SECTION": {"NAME": "prompt"}}, or an array of texts or objects',
        ) from None
    if not data:
        raise _empty(source)
    return replace(source, format="jsonl", data=data)


def _array(source: Input) -> Input:
    lines = replace(source, format="jsonl", is_array=True)
    with lines.open() as file:
        if not file.read(1):
            raise _empty(source)
    return lines


def _empty(source: Input) -> InputError:
    why = "its arrays and objects are empty"
    return InputError(f"{source.name} holds no rows", why=why, fix="check what wrote it")


class _Odd(Exception):
    """Something in a sectioned document that is not what it should be."""

    def __init__(self, where: str, what: object) -> None:
        super().__init__(where)
        kinds = {dict: "an object", list: "an array", str: "a text", bool: "a boolean", type(None): "null"}
        self.where, self.what = where, kinds.get(type(what), "a number")


def _sectioned(document: dict[str, Any]) -> Iterator[bytes]:
    for section, name, prompt in _prompts(document.get("sections", document)):
        yield _encode({"key": f"{section}/{name}", "section": section, "name": name, "prompt": prompt})


def _prompts(sections: Any) -> Iterator[tuple[str, str, str]]:
    """Section, name and text of each."""
    if isinstance(sections, dict):
        named = list(sections.items())
    elif isinstance(sections, list):
        named = [_called(section, number) for number, section in enumerate(sections, 1)]
    else:
        raise _Odd("sections", sections)
    for section, prompts in named:
        if not isinstance(prompts, dict):
            raise _Odd(section, prompts)
        for name, prompt in prompts.items():
            if not isinstance(prompt, str):
                raise _Odd(f"{section}/{name}", prompt)
            yield section, name, prompt


def _called(section: Any, number: int) -> tuple[str, Any]:
    """A section of a list: its name, and its prompts."""
    if not isinstance(section, dict):
        raise _Odd(f"section {number}", section)
    name = next((section[key] for key in _NAMES if isinstance(section.get(key), str)), f"section {number}")
    beside = {key: text for key, text in section.items() if key.endswith("_prompt")}
    prompts = section.get("prompts", beside or None)
    if not isinstance(prompts, dict):
        raise _Odd(f"prompts of {name}", prompts)
    return name, prompts | beside
