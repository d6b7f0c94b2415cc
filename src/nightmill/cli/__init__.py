"""The command line: arguments to `Mill`, what comes of it to text or ``--json``.

Commands are loaded when they are called, so that ``nightmill --help`` answers at once. stdout is
data, everything else goes to stderr. Whatever goes wrong ends here, in `main`.
"""

from __future__ import annotations

import difflib
import gc
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import click

from nightmill.cli.edge import Edge, PipeClosed
from nightmill.cli.helping import finish, variable_of
from nightmill.cli.logs import warnings_said
from nightmill.errors import NightmillError, UsageError

# Command -> its module and what it is for; help lists them without loading anything.
_COMMANDS = {
    "run": ("run", "Run a task or a prompt over rows, and wait for the answers."),
    "show": ("jobs", "One job: rows, money, shards, failures."),
    "watch": ("working", "Follow a job; work on it where nobody else does."),
    "jobs": ("jobs", "List jobs, newest first."),
    "resume": ("working", "Go on with what is unfinished."),
    "pause": ("working", "Send nothing new of a job until it is resumed."),
    "cancel": ("working", "End a job; what was paid for is kept."),
    "retry": ("working", "Send the failed rows of a finished job again."),
    "results": ("results", "Write a job's results, to stdout or files."),
    "resolve": ("results", "Say what became of a shard in doubt."),
    "models": ("models", "What is usable here, its keys and prices."),
    "tasks": ("tasks", "List the tasks there are, show one, begin a new one."),
    "batches": ("elsewhere", "List batches at the providers, ours or not."),
    "adopt": ("elsewhere", "Take in a batch that was made elsewhere."),
    "budget": ("budget", "Show or set what may be spent."),
    "savings": ("money", "What batches, the cache and folding saved."),
    "reconcile": ("money", "Hold the books against the providers' own totals."),
    "simulate": ("simulate", "A provider on this machine, to rehearse with."),
    "delete": ("housekeeping", "Delete a finished job and its files."),
    "gc": ("housekeeping", "Remove what nothing names any more."),
    "completion": ("completing", "Print a script that completes commands and jobs in a shell."),
    "doctor": ("doctor", "Check keys, prices, disk, ledger and clock."),
}
_EXAMPLES = """\b
Examples:
  nightmill run words.txt --task define --dry-run
  nightmill run reviews.csv --prompt "Sentiment of: {{ text }}" --out answers.jsonl --budget 2
  nightmill show @last
  nightmill resume
  nightmill budget
"""
_ABOUT = "Large numbers of LLM requests, cheaply and safely."
_MORE = """JOB is an id, the first letters of one, a name, or @last.

Flags may come from the environment or .env, too: NIGHTMILL_RUN_MODEL is --model of run, and so is NIGHTMILL_MODEL;
NIGHTMILL_PROGRESS, NIGHTMILL_JSON and NIGHTMILL_DEBUG are for every command."""


@cache
def _load(name: str) -> click.Command:
    command: click.Command = getattr(import_module(f"nightmill.cli.{_COMMANDS[name][0]}"), name)
    return finish(command, name)


class LazyGroup(click.Group):
    """Knows its commands by name and loads the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in _COMMANDS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if ctx.resilient_parsing:  # a shell asks what may come next
            from nightmill.cli.completing import TAKES_JOB, Light

            if len(args) == 1 and args[0] in TAKES_JOB:
                return args[0], Light(args[0], self), []
            return super().resolve_command(ctx, args)
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            raise UsageError(
                f"no command {args[0]}",
                why=f"there are {', '.join(_COMMANDS)}",
                fix=f"did you mean nightmill {near[0]}?" if near else "nightmill --help",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group(cls=LazyGroup, help=f"{_EXAMPLES}\n{_ABOUT}\n\n{_MORE}", invoke_without_command=True)
@click.version_option(metadata.version("nightmill"), message="nightmill %(version)s")
@click.pass_context
def _group(ctx: click.Context) -> int:
    if ctx.invoked_subcommand is not None:
        return 0
    from nightmill.cli.alone import tell

    tell(ctx.ensure_object(Edge), f"{_ABOUT}\n\n{_EXAMPLES.removeprefix(chr(8)).strip()}\n")
    return 0


_COLLECT_AFTER = 20_000  # objects: at the usual 700 a tenth of a short command is collecting what its imports made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code.

    0 every row succeeded, 1 error, 2 bad usage or input, 3 finished with failed rows, 4 stopped by
    a budget, 5 stopped by --on-error or --min-valid, 130 interrupted (resumable).
    """
    gc.set_threshold(_COLLECT_AFTER)
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    edge = Edge(json="--json" in flags or _is_set("NIGHTMILL_JSON"), debug="--debug" in flags)
    edge.restore_signals()
    try:
        with warnings_said(edge.say_beside):
            code = _run(edge, arguments)
        sys.stdout.flush()
    except (BrokenPipeError, PipeClosed):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    gc.freeze()  # what ends with the process need not be looked through once more
    return code


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "t", "y")


def _run(edge: Edge, arguments: list[str]) -> int:
    try:
        _refuse_no_text(arguments)
        _read_env_file()
        done = _group.main(arguments, prog_name="nightmill", standalone_mode=False, obj=edge)
        return done if isinstance(done, int) else 0
    except NightmillError as error:
        return edge.fail(error)
    except click.UsageError as error:
        return edge.fail(_as_usage_error(error))
    except (KeyboardInterrupt, click.Abort):
        return edge.interrupted()
    except (BrokenPipeError, PipeClosed):
        raise
    except Exception as error:  # a bug: a user gets one line and the log, not a traceback
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while a class was made: Python 3.11 wraps it
            return edge.interrupted()
        return edge.fail_unexpectedly(error)


def _read_env_file() -> None:
    """Flags in ``.env`` count like those in the environment, which goes first."""
    if Path(".env").is_file():
        from nightmill.config import environment

        for name, value in environment(Path.cwd(), os.environ).items():
            if name.startswith("NIGHTMILL_"):
                os.environ.setdefault(name, value)


def _refuse_no_text(arguments: list[str]) -> None:
    """What is no UTF-8 could go into no request, no ledger and no answer."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the argument {argument} is no text",
                why=f"byte {error.start + 1} of it is no UTF-8",
                fix="give it in UTF-8; a file of such a name has to be renamed",
            ) from error


def _as_usage_error(error: click.UsageError) -> UsageError:
    command = error.ctx.command_path if error.ctx is not None else "nightmill"
    fix = f"{command} --help"
    if isinstance(error, click.NoSuchOption):
        known = [o for p in error.ctx.command.params for o in p.opts if o[0] == "-"] if error.ctx is not None else []
        near = difflib.get_close_matches(error.option_name, known, n=1)
        why = f"{command} has {', '.join(sorted(known)) or 'no such option'}"
        return UsageError(f"no option {error.option_name}", why=why, fix=f"did you mean {near[0]}?" if near else fix)
    text = error.format_message().rstrip(".")
    what, why = text[:1].lower() + text[1:], error.ctx.get_usage() if error.ctx is not None else "it ends too early"
    if type(error) is click.BadParameter:  # the others say themselves what is missing
        why = error.message.rstrip(".")
        what = what.removesuffix(f": {why}")
    if variable := variable_of(error):
        what, fix = f"{what}, from {variable} in the environment or .env", f"correct or unset {variable}"
    return UsageError(what, why=why, fix=fix)
