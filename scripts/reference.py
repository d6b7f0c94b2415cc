"""Write docs/reference.md from the code: commands, flags, settings, columns, exit codes.

python scripts/reference.py            write it
python scripts/reference.py --check    fail where it is not what the code says
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from nightmill import Options, cli, config
from nightmill.providers.servers import SERVERS
from nightmill.simulator.faults import KNOWN
from nightmill.sinks.columns import table_schema
from nightmill.sinks.vectors import Vectors

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

_HEAD = """# Reference

Written by `make docs` from the code itself: edit the code, not this page.
"""
_EXIT_CODES = {
    0: "every row succeeded, or the command did what it was asked",
    1: "another error, or the job is paused",
    2: "bad usage or bad input; nothing was sent",
    3: "finished, and some rows failed, or were invalid",
    4: "stopped by a budget",
    5: "stopped by `--on-error`, or by answers that are not valid",
    130: "interrupted; running again goes on",
}
_ENVIRONMENT = {
    "NIGHTMILL_COMMAND_FLAG": "a flag of a command, such as `NIGHTMILL_RETRY_MAX_OUTPUT`; what is typed goes before it",
    "NIGHTMILL_FLAG": "a flag of `run`, such as `NIGHTMILL_MODEL`; `PROGRESS`, `JSON` and `DEBUG` for every command",
    "NIGHTMILL_HOME": "where ledger, jobs, cache and logs are; `~/.nightmill` where it is not set",
    **{key: f"the key of `{name}/` models" for name, server in SERVERS.items() for key in server.keys},
    "OPENAI_BASE_URL": "another address of the same API, up to and with `/v1`",
    "OPENAI_ORG_ID": "the organisation that is billed",
    "OPENAI_PROJECT_ID": "the project that is billed",
    "AZURE_OPENAI_ENDPOINT": "the address of the resource that has the deployments",
    "BATCH_CHECK_INTERVAL": "seconds between two polls of a batch",
    "LOG_LEVEL": f"how much is logged: {', '.join(config._LOG_LEVELS)}",
    "NO_COLOR": "no colours, whatever its value",
}


def main() -> int:
    text = re.sub(r"[ \t]+$", "", "\n".join(_lines()), flags=re.MULTILINE).rstrip() + "\n"
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the code says: run make docs", file=sys.stderr)
    return 1


def _lines() -> Iterator[str]:
    yield _HEAD
    yield from _commands()
    yield from _table("Exit codes", ("code", "means"), ((str(code), means) for code, means in _EXIT_CODES.items()))
    yield from _columns()
    yield from _settings()
    yield from _table(
        "Environment", ("variable", "what it sets"), ((f"`{name}`", what) for name, what in _ENVIRONMENT.items())
    )
    yield "A `.env` file in the working folder is read too; what the environment itself says wins.\n"
    yield from _arguments()
    yield from _faults()


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    group = cli._group
    yield from _commands_of(group, click.Context(group, info_name="nightmill"), "###")


def _commands_of(group: click.Group, context: click.Context, heading: str) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            raise LookupError(name)
        inner = click.Context(command, info_name=name, parent=context)
        yield f"{heading} {inner.command_path.removeprefix('nightmill ')}\n"
        yield "```text"
        yield " ".join(command.get_usage(inner).removeprefix("Usage: ").split())
        yield "```\n"
        examples, _, about = (command.help or "").partition("\n\n")
        yield f"{_prose(about)}\n"
        yield "```text"
        yield from (line.strip() for line in examples.splitlines()[2:])
        yield "```\n"
        options = [_option(option, inner) for option in command.params if isinstance(option, click.Option)]
        yield from _rows(("option", "what it does"), options)
        if isinstance(command, click.Group):
            yield from _commands_of(command, inner, f"{heading}#")


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    if record is None:
        raise LookupError(option.name)
    return f"`{record[0]}`", record[1]


def _columns() -> Iterator[str]:
    kinds = {field.name: str(field.type).replace("item: ", "") for field in table_schema((), Vectors())}
    yield from _table("Columns of a result", ("column", "type"), ((f"`{name}`", kind) for name, kind in kinds.items()))
    yield "In tables, each top-level field of a schema is a column of its own, and `parsed` is not there. Only jobs"
    yield "that ask for embeddings have the column `embedding`: in Parquet and Arrow a list of 32-bit floats, of a"
    yield "fixed size where all are as long, in CSV and JSON a list of numbers.\n"


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield "In `nightmill.toml`: the first one found from the working folder upward, else the one in the home.\n"
    tables = {
        "[budget]": config._BUDGET,
        "[defaults]": config._DEFAULTS,
        "[providers.NAME]": {**config._PROVIDER, "limits": None, "price": None},
        "[providers.NAME.limits]": config._LIMITS,
        '[models."PROVIDER/MODEL"]': {"price": None, "path": None, **config._MODEL},
        '[models."PROVIDER/MODEL".price]': config._PRICE,
        "[retention]": config._RETENTION,
        "[tasks]": {"folders": None},
    }
    for name, keys in tables.items():
        taken = [key for key, check in keys.items() if check is not config._not_yet]
        yield f"- `{name}`: {', '.join(f'`{key}`' for key in taken)}"
    yield ""
    yield "`[timing]`, in seconds:\n"
    yield from _rows(("key", "if not set"), ((f"`{f.name}`", _default(f)) for f in dataclasses.fields(config.Timing)))


def _faults() -> Iterator[str]:
    yield "## Faults of the simulator\n"
    yield "`nightmill simulate --faults FILE` reads a JSON list of objects such as"
    yield '`{"fault": "row_errors", "fraction": 0.1, "times": 1}`. Without `times` a fault comes up each time,'
    yield "with `after` not the first so many; `on` narrows it to operations, `from_row` to requests from that on.\n"
    yield from _rows(
        ("fault", "its own fields, and what happens"), ((f"`{name}`", what) for name, what in KNOWN.items())
    )


def _arguments() -> Iterator[str]:
    """Those of `run` and its like, with the comments beside them."""
    yield "## Arguments in Python\n"
    yield "`nm.run`, `nm.arun`, `nm.quote` and the same of a `Mill` take, beside the rows:\n"
    found = re.findall(r"^    (\w+): (.*?)(?:  # (.*))?$", inspect.getsource(Options), re.MULTILINE)
    yield from _rows(("argument", "what it says"), ((f"`{name}: {kind}`", about) for name, kind, about in found))
    yield "What has no word here does what its flag does.\n"


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


def _table(title: str, head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from _rows(head, rows)


def _rows(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    found = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    if found:
        yield f"| {head[0]} | {head[1]} |"
        yield "|---|---|"
        yield from (f"| {left} | {right} |" for left, right in found)
        yield ""


if __name__ == "__main__":
    sys.exit(main())
