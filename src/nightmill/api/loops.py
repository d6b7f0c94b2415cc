"""Async work for callers that block: a loop in a thread of its own, and what Ctrl-C does meanwhile.

The thread makes blocking forms work wherever they are called, also where a loop runs already (in a
notebook) and in several threads at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from typing import Any, Self, TypeVar

from nightmill.engine import Stop

T = TypeVar("T")

_AT_ONCE = 3  # Ctrl-C so many times, and nothing is waited for any more
_HEAR_S = 0.2  # a signal that comes just before a wait begins does not end it


class LoopThread:
    """A running loop, while the block lasts. Used by one thread."""

    def __init__(self) -> None:
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._over = asyncio.Event()
        self._abandoned = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=lambda: context.run(asyncio.run, self._main()), name="nightmill", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop = self._ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        if not self._abandoned:
            self._thread.join()

    async def _main(self) -> None:
        self._ready.set_result(asyncio.get_running_loop())
        await self._over.wait()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``. A Ctrl-C cancels it and waits for its end, a second one cancels again.

        Raises:
            KeyboardInterrupt: there was one, and the work has ended; with the third it may not have.
        """
        done: Future[T] = Future()
        tasks: list[asyncio.Task[None]] = []
        self._loop.call_soon_threadsafe(lambda: tasks.append(self._loop.create_task(_carry(work, done))))

        def cancel() -> None:
            tasks[0].cancel()

        pressed = 0
        while True:
            try:
                while not done.done():
                    wait([done], _HEAR_S)
                return done.result()
            except KeyboardInterrupt:
                pressed += 1
                if done.done() or pressed == _AT_ONCE:
                    self._abandoned = not done.done()
                    raise
                self._loop.call_soon_threadsafe(cancel)
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None


async def _carry(work: Coroutine[Any, Any, T], done: Future[T]) -> None:
    try:
        done.set_result(await work)
    except BaseException as error:  # it is the waiting thread's, whatever it is
        done.set_exception(error)


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; see `LoopThread.call`."""
    with LoopThread() as loop:
        return loop.call(work)


def blocking_iterator(items: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """The same items for a plain loop; work behind them goes on while the loop's body runs."""
    with LoopThread() as loop:
        found = items()
        try:
            while True:
                try:
                    item = loop.call(_next(found))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            loop.call(_close(found))


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def gently(work: Callable[[Stop], Awaitable[None]], grace_s: float) -> None:
    """Do ``work``; the first cancel lets it finish what is in hand, the second, or ``grace_s`` later, ends it at once.

    Either way it has ended when this raises CancelledError.
    """
    stop = Stop()
    task = asyncio.ensure_future(work(stop))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.gently.set()
        await asyncio.wait([task], timeout=grace_s)
        raise
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def in_thread(work: Callable[[], T], undo: Callable[[T], object]) -> T:
    """What ``work`` gives, done in a thread; cancelled meanwhile, its end is awaited and undone."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        for found in await asyncio.gather(task, return_exceptions=True):
            if not isinstance(found, BaseException):
                undo(found)
        raise
