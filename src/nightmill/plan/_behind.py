"""Calls that are made a little later, in order, by a thread of their own.

For work that lets go of the interpreter - hashing, compressing, writing, syncing -, so that
whoever gives it away goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any, Self

_DEPTH = 4  # calls that may wait: what they hold on to stays in memory


class Behind:
    """Takes calls while its block lasts; at the end of the block no call is under way."""

    def __init__(self) -> None:
        self._queue: Queue[tuple[Callable[..., object], tuple[Any, ...]] | None] = Queue(_DEPTH)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="nightmill-behind", daemon=True)

    def do(self, call: Callable[..., object], *args: Any) -> None:
        """Have ``call(*args)`` made after those given before. Raises what one of those raised."""
        if self._error is not None:
            raise self._error
        self._queue.put((call, args))

    def wait(self) -> None:
        """Until every call was made. Raises what one of them raised; those after it are left out."""
        self._queue.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._error = self._error or error
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            call, args = given
            try:
                if self._error is None:
                    call(*args)
            except BaseException as error:  # raised where the next call is given, or waited for
                self._error = error
            finally:
                del given, call, args
                self._queue.task_done()


def at_once(call: Callable[..., object], *args: Any) -> None:
    """What `Behind.do` does, without delay."""
    call(*args)
