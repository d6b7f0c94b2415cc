"""Running the simulator: as a coroutine, in a thread for tests, or as a process."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from aiohttp import web

from nightmill.simulator.app import create_app
from nightmill.simulator.config import SimulatorConfig

_GRACE_S = 0.5  # for requests in flight when it stops
_START_S = 30.0


async def serve(
    config: SimulatorConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None],
) -> None:
    """Serve until cancelled.

    Args:
        port: 0 picks a free one.
        ready: called once it listens, with the base URL, ``http://HOST:PORT/v1``.

    Raises:
        OSError: the port is taken.
        ValueError: the configuration is wrong.
    """
    runner = web.AppRunner(create_app(config), access_log=None, shutdown_timeout=_GRACE_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0][1]
        ready(f"http://{host}:{bound}/v1")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def in_thread(config: SimulatorConfig | None = None) -> Iterator[str]:
    """A simulator in a thread of its own for as long as the block lasts; yields its base URL.

    Raises:
        ValueError: the configuration is wrong.
    """
    told: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    stop: list[asyncio.Task[None]] = []

    async def main() -> None:
        task = asyncio.current_task()
        if task is not None:
            stop.append(task)
        await serve(config or SimulatorConfig(), ready=told.put)

    def work() -> None:
        try:
            loop.run_until_complete(main())
        except asyncio.CancelledError:
            return
        except BaseException as broken:  # handed to the thread that waits for the start
            told.put(broken)
        finally:
            _end(loop)

    thread = threading.Thread(target=work, name="simulator", daemon=True)
    thread.start()
    first = told.get(timeout=_START_S)
    if isinstance(first, BaseException):
        thread.join()
        raise first
    try:
        yield first
    finally:
        loop.call_soon_threadsafe(stop[0].cancel)
        thread.join()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop with nothing left in it: a handler may still be holding its caller back."""

    async def tidy() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # transports say goodbye in the next turn

    loop.run_until_complete(tidy())
    loop.close()
