"""The edge: what a signal does while a question waits for its answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from nightmill.cli.edge import _signals_heard

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signal ends a wait there")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Stands for the keyboard; handlers that a finalizer has swallowed the exception of stand for ours."""
    hears, types = os.pipe()
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with os.fdopen(hears) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield types
    os.close(types)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_whose_exception_was_lost_ends_the_wait(typed: int) -> None:
    """A SIGTERM that came before the wait ends it, whatever became of what its handler raised."""
    with _signals_heard() as heard:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            heard()


def test_another_signal_leaves_the_question_open(typed: int) -> None:
    """A signal that is no request to stop does not answer for the person, who answers then."""
    with _signals_heard() as heard:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.write(typed, b"y\n")
        heard()
        assert sys.stdin.readline() == "y\n"
