"""What a newcomer reads: help that begins with examples, where things stand, and flags from the environment."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli_kit import MODEL, Place

from nightmill.cli import _group
from nightmill.cli.edge import Edge
from nightmill.cli.helping import EXAMPLES
from nightmill.simulator import SimulatorConfig, in_thread


def every_command(group: click.Group = _group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*before, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*before, name))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("command", list(every_command()), ids=" ".join)
def test_help_begins_with_examples_that_work(place: Place, command: tuple[str, ...]) -> None:
    """Whatever one looks up, the first lines are commands that could be typed so: each flag and value is one."""
    lines = place.run(*command, "--help").out.splitlines()
    assert lines[2] == "  Examples:"
    assert sum("Examples:" in line for line in lines) == 1
    shown = [line.strip() for line in lines[3 : lines.index("", 3)]]
    assert shown == list(EXAMPLES[" ".join(command)])
    for example in shown:
        words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"').partition(" | ")[0])
        assert tuple(words[1 : 1 + len(command)]) == command
        inner, rest, context = _group, words[1:], click.Context(_group, obj=Edge())
        while isinstance(inner, click.Group) and rest:
            _, found, rest = inner.resolve_command(context, rest)
            assert found is not None
            inner = found
        with inner.make_context("it", rest, parent=context):
            pass


def test_alone_it_says_what_to_type_and_where_things_stand(place: Place) -> None:
    """No command is no error: a few examples, how many jobs run or wait, and what may be spent; nothing is created."""
    first = place.run()
    assert (first.code, first.err) == (0, "")
    assert "nightmill run words.txt" in first.out
    assert first.out.endswith("0 jobs running, $5.00 free; no jobs yet: nightmill run INPUT\n")
    assert not place.home.exists()
    place.rows(20)
    place.run("budget", "set", "--day", "0.50")
    (place.folder / "gate").touch()
    stopped = place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", "python:funcs.gated")
    assert stopped.code == 0, stopped.err
    assert place.run().out.endswith("0 jobs running, $0.50 free; nightmill --help tells all\n")


@pytest.mark.req("B6")
def test_flags_come_from_the_environment_and_env_files(place: Place) -> None:
    """NIGHTMILL_RUN_LIMIT or NIGHTMILL_LIMIT is --limit of run; what is typed wins, then the environment, then .env."""
    place.rows(5)
    (place.folder / ".env").write_text("NIGHTMILL_MODEL=python:funcs.upper\nNIGHTMILL_LIMIT=1\n")
    place.env |= {"NIGHTMILL_JSON": "1", "NIGHTMILL_RUN_LIMIT": "3", "NIGHTMILL_PROGRESS": "none"}
    assert place.run("run", "in.txt").json["rows"] == 3
    assert place.run("run", "in.txt", "--limit", "2").json["rows"] == 2
    del place.env["NIGHTMILL_RUN_LIMIT"]
    assert place.run("run", "in.txt").json["rows"] == 1
    assert len(place.run("jobs").json["jobs"]) == 3  # --limit of another command
    place.env["NIGHTMILL_BUDGET"] = "much"
    refused = place.run("run", "in.txt")
    assert (refused.code, refused.json["error"]["fix"]) == (2, "correct or unset NIGHTMILL_BUDGET")
    assert "NIGHTMILL_BUDGET" in refused.json["error"]["message"]


@pytest.mark.req("D8", "X2")
def test_a_template_goes_before_the_environment_and_keeps_none_of_it(tmp_path: Path) -> None:
    """A limit that was saved is not raised by one that lies around, nor is one that lies around saved."""
    with in_thread(SimulatorConfig(speed=1000.0)) as url:
        place = Place(tmp_path, url)
        place.env |= {"NIGHTMILL_BUDGET": "4", "NIGHTMILL_MODEL": MODEL, "NIGHTMILL_YES": "1"}
        run = ("run", place.rows(2), "--prompt", "Say {{ text }}", "--json")
        assert place.run(*run, "--budget", "0.5", "--save-as", "small").code == 0
        assert place.run("run", "@small", "--new", "--no-cache", "--json").code == 0
    with contextlib.closing(sqlite3.connect(place.home / "nightmill.db")) as ledger:
        caps = ledger.execute("SELECT cap_nanos FROM limits WHERE scope LIKE 'job:%'").fetchall()
    assert caps == [(500_000_000,), (500_000_000,)]
    assert MODEL not in (place.home / "templates" / "small.json").read_text()
