from __future__ import annotations

import threading

import pytest

from nightmill.plan._behind import Behind


def test_calls_are_made_in_order_elsewhere() -> None:
    """Every call is made once, in the order given, and none by the thread that gave it."""
    made: list[int] = []
    threads = set[int]()

    def note(n: int) -> None:
        made.append(n)
        threads.add(threading.get_ident())

    with Behind() as behind:
        for n in range(100):
            behind.do(note, n)
        behind.wait()
        assert made == list(range(100))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_a_call_raises_is_raised_again() -> None:
    """A failure reaches whoever waits or gives the next call, and no later call is made."""
    made: list[int] = []

    def fail() -> None:
        raise OSError(28, "no space")

    def all_three() -> None:
        with Behind() as behind:
            behind.do(made.append, 1)
            behind.do(fail)
            with pytest.raises(OSError, match="no space"):
                behind.wait()
            behind.do(made.append, 2)

    with pytest.raises(OSError, match="no space"):
        all_three()
    assert made == [1]


def test_no_call_is_under_way_after_an_error() -> None:
    """When the block is left by an error, the call under way is finished and the others are dropped."""
    made: list[str] = []
    begun = threading.Event()

    def leave() -> None:
        with Behind() as behind:

            def slow() -> None:
                begun.set()
                while behind._error is None:
                    threading.Event().wait(0.001)
                made.append("slow")

            behind.do(slow)
            behind.do(made.append, "dropped")
            begun.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert made == ["slow"]
