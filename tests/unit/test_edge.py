"""The edge: what a signal does while a question waits for its answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from nightmill import cli
from nightmill.cli.edge import Edge, _signals_heard

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


class _Interrupting:
    def __set_name__(self, owner: type, name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1_000_000):  # its handler runs somewhere here
            pass


def test_ctrl_c_while_a_library_is_imported_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where Python hides the interruption in an error of its own, the command still ends as interrupted."""

    def imports(*_: object, **__: object) -> None:
        type("Imported", (), {"data": _Interrupting()})

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(cli._group, "main", imports)
    try:
        assert cli._run(Edge(), ["jobs"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "unexpected" not in capsys.readouterr().err
