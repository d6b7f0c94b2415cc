"""``python -m nightmill.simulator``: the simulator as a process."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.serving import serve


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nightmill.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster provider time passes")
    parser.add_argument("--faults", type=Path, help="JSON file: a list of faults")
    parser.add_argument("--dir", type=Path, help="where file contents lie; default a temporary folder")
    parser.add_argument("--batch-s", type=float, default=60.0, help="provider seconds a batch takes")
    parser.add_argument("--answer-tokens", type=int, default=40, help="median length of an answer")
    parser.add_argument("--enqueued-tokens", type=int, help="most enqueued prompt tokens of one model")
    parser.add_argument("--rpm", type=int, default=0, help="live requests a minute; 0 = no limit")
    parser.add_argument("--tpm", type=int, default=0, help="live tokens a minute; 0 = no limit")
    parser.add_argument("--model", action="append", default=[], help="a model to know beside the catalogue's, free")
    return parser


def config_from(arguments: argparse.Namespace) -> SimulatorConfig:
    """The configuration the command line asks for. Raises OSError or ValueError for a bad faults file."""
    return SimulatorConfig(
        speed=arguments.speed,
        dir=arguments.dir,
        faults=json.loads(arguments.faults.read_text()) if arguments.faults else (),
        batch_s=arguments.batch_s,
        answer_tokens=arguments.answer_tokens,
        enqueued_tokens=arguments.enqueued_tokens,
        rpm=arguments.rpm,
        tpm=arguments.tpm,
        models=tuple(arguments.model),
    )


async def _until_told(config: SimulatorConfig, host: str, port: int) -> None:
    task = asyncio.create_task(serve(config, host=host, port=port, ready=_announce))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


def _announce(url: str) -> None:
    print(f"simulator {url}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0 then, 2 for bad usage, 1 when the port is taken."""
    arguments = _arguments().parse_args(argv)
    try:
        config = config_from(arguments)
        asyncio.run(_until_told(config, arguments.host, arguments.port))
    except ValueError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    except OSError as broken:
        print(f"error: {broken}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
