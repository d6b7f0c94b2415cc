"""What every command's help begins with, and the variables that stand in for its flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import cleandoc
from types import MappingProxyType

import click
from click.core import ParameterSource

EXAMPLES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "run": (
        "nightmill run words.txt --task define --model local/smollm2-135m --out words.jsonl",
        'nightmill run reviews.csv --prompt "Sentiment of: {{ text }}" --budget 2 --dry-run',
        "nightmill run notes/ --task summarize --out summaries/ --dry-run",
        "nightmill run @nightly --yes",
    ),
    "show": ("nightmill show @last", "nightmill show nightly --row 812", "nightmill show @last --failures"),
    "watch": ("nightmill watch", "nightmill watch @last --exit-status"),
    "jobs": ("nightmill jobs", "nightmill jobs --limit 100 --json"),
    "resume": ("nightmill resume", "nightmill resume --list", "nightmill resume @last --checkpoint so-far.json"),
    "pause": ("nightmill pause @last",),
    "cancel": ("nightmill cancel @last", "nightmill cancel nightly --yes"),
    "retry": ("nightmill retry @last", "nightmill retry nightly --max-output 4000 --yes"),
    "results": (
        "nightmill results @last | head",
        "nightmill results nightly --out answers.csv --out answers.parquet",
        "nightmill results @last --failed --format csv",
    ),
    "resolve": ("nightmill resolve SHARD --adopt batch_abc", "nightmill resolve SHARD --resend"),
    "models": ("nightmill models",),
    "tasks": ("nightmill tasks", "nightmill tasks define", "nightmill tasks new tagline"),
    "tasks show": ("nightmill tasks show define",),
    "tasks new": ("nightmill tasks new tagline",),
    "batches": ("nightmill batches", "nightmill batches --json"),
    "adopt": ("nightmill adopt PROVIDER/BATCH_ID --out answers.jsonl",),
    "budget": ("nightmill budget", "nightmill budget set 20 --day 5", "nightmill budget set 2 --job nightly"),
    "budget show": ("nightmill budget show --json",),
    "budget set": ("nightmill budget set 20", "nightmill budget set --day 5 --month none"),
    "savings": ("nightmill savings", "nightmill savings @last"),
    "reconcile": ("nightmill reconcile", "nightmill reconcile --json"),
    "simulate": ("nightmill simulate --port 8123 --speed 1000", "nightmill simulate --faults faults.json"),
    "delete": ("nightmill delete nightly",),
    "gc": ("nightmill gc --dry-run", "nightmill gc --older-than 12w"),
    "completion": ('eval "$(nightmill completion bash)"', "nightmill completion fish"),
    "doctor": ("nightmill doctor", "nightmill doctor --json"),
})  # fmt: skip
_EVERYWHERE = ("json", "debug", "progress")  # flags that mean the same for each command


def finish(command: click.Command, name: str) -> click.Command:
    """``command`` with its examples before all else, and each flag with the variables that may give it."""
    lines = "".join(f"  {example}\n" for example in EXAMPLES[name])
    about = cleandoc(command.help or "")
    command.short_help = command.short_help or about.partition("\n")[0]  # else a list of commands shows the examples
    command.help = f"\b\nExamples:\n{lines}\n{about}"
    for option in command.params:
        if isinstance(option, click.Option):
            option.envvar = variables(name, option)
    for inner, each in getattr(command, "commands", {}).items():
        finish(each, f"{name} {inner}")
    return command


def variable_of(error: click.UsageError) -> str | None:
    """The variable that gave a value which is wrong; None: it was typed."""
    context, option = error.ctx, getattr(error, "param", None)
    if context is None or not isinstance(option, click.Option) or option.name is None:
        return None
    if context.get_parameter_source(option.name) is not ParameterSource.ENVIRONMENT:
        return None
    return next(name for name in option.envvar or () if os.environ.get(name))


def variables(name: str, option: click.Option) -> list[str]:
    """Of one flag of a command, in the order in which they count."""
    flag = max(option.opts, key=len).lstrip("-").replace("-", "_")
    own = f"NIGHTMILL_{name.replace(' ', '_')}_{flag}".upper()
    return [own, f"NIGHTMILL_{flag}".upper()] if name == "run" or flag in _EVERYWHERE else [own]
