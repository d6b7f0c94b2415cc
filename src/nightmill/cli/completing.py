"""``completion``: a script for the shell, and what it is told at every TAB, without loading what works."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from nightmill.cli import flags
from nightmill.cli.edge import Edge

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_NIGHTMILL_COMPLETE"
TAKES_JOB = frozenset({"show", "watch", "resume", "pause", "cancel", "retry", "results", "savings", "delete"})
_HINTS = {
    "bash": 'eval "$(nightmill completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(nightmill completion zsh)" in ~/.zshrc',
    "fish": "nightmill completion fish > ~/.config/fish/completions/nightmill.fish",
}


class Light(click.Command):
    """Stands in for a command that takes a job while a shell asks for its first word: loading it takes a second."""

    def __init__(self, name: str, group: click.Group) -> None:
        super().__init__(name, add_help_option=False)
        self._group = group

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        real = self._group.get_command(ctx, self.name or "") if incomplete.startswith("-") else None
        if real is None:
            return flags.jobs_to_complete(ctx, None, incomplete)
        return real.shell_complete(click.Context(real, parent=ctx.parent, resilient_parsing=True), incomplete)


@click.command(short_help="Print a script that completes commands and jobs in a shell.")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@flags.common
def completion(edge: Edge, shell: str | None) -> int:
    """Print a script for bash, zsh or fish that completes commands, options, and jobs by id or name."""
    shell = shell or Path(os.environ.get("SHELL", "")).name
    made = get_completion_class(shell) if shell in SHELLS else None
    if made is None:
        raise click.UsageError(f"no shell is given: one of {', '.join(SHELLS)}")
    root = click.get_current_context().find_root().command
    script = made(root, {}, "nightmill", VARIABLE).source()
    edge.put(script)
    edge.say(f"# for every new shell: {_HINTS[shell]}")
    edge.answer({"shell": shell, "script": script})
    return 0
