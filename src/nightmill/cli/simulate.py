"""``simulate``: a provider on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import click

from nightmill.cli import flags
from nightmill.cli.edge import Edge
from nightmill.errors import NightmillError, UsageError
from nightmill.providers.resolve import rehearsal_environment
from nightmill.simulator import SimulatorConfig, serve


class PortTaken(NightmillError):
    code = "port"


@click.command(short_help="A provider on this machine, to rehearse with.")
@click.option("--port", type=flags.PORT, default=0, help="0, the default, picks a free one.")
@click.option("--faults", metavar="FILE", help="JSON: a list of faults to have.")
@click.option("--speed", type=flags.POSITIVE, default=20.0, show_default=True, help="How fast provider time passes.")
@click.option("--dir", "folder", metavar="D", help="Where its files lie; a temporary folder otherwise.")
@flags.common
def simulate(edge: Edge, port: int, faults: str | None, speed: float, folder: str | None) -> int:
    """Simulate a provider, batches and live calls, on this machine; nothing it does costs money."""
    known = _faults(faults) if faults else ()
    try:
        config = SimulatorConfig(speed=speed, dir=Path(folder) if folder else None, faults=known)
        asyncio.run(_serve(edge, config, port))
    except ValueError as error:
        raise UsageError("the simulator cannot start", why=str(error), fix="correct --faults") from error
    except OSError as error:
        raise PortTaken(
            f"cannot listen on port {port}", why=error.strerror or str(error), fix="give another --port, or none"
        ) from error
    return 0


async def _serve(edge: Edge, config: SimulatorConfig, port: int) -> None:
    def announce(url: str) -> None:
        names = rehearsal_environment(url)
        edge.put("\n".join([f"# simulator at {url}", *(f"export {name}={value}" for name, value in names.items())]))
        edge.answer({"url": url, "env": names})
        edge.say("Ctrl-C stops it")

    task = asyncio.create_task(serve(config, port=port, ready=announce))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


def _faults(file: str) -> Any:
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {file}", why=why, fix="name a file that is there") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON", why=str(error), fix="it holds a list of faults") from error
    if not isinstance(found, list) or not all(isinstance(fault, dict) for fault in found):
        fix = 'for example [{"fault": "upload_500", "times": 1}]'
        raise UsageError(f"{file} holds no list of faults", why="each fault is a JSON object in a list", fix=fix)
    return found
