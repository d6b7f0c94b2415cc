"""The live journal when the disk does not take what is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nightmill.errors import StoreError
from nightmill.lanes.live import Journal


def filling_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A disk with ``room`` bytes left: a write takes what fits, and the next one fails."""
    real, left = os.write, [room]

    def write(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("room", [0, 1, 6, 7, 8, 12])
def test_a_full_disk_keeps_the_answer_and_takes_back_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """An answer that did not fit is written when there is room; the mark of a call that was not made is nowhere."""
    journal = Journal(tmp_path / "j")
    journal.write(b"first\n")
    journal.keep(b"answer\n")
    with monkeypatch.context() as full:
        filling_up(full, room)
        with pytest.raises(StoreError, match="cannot write"):
            journal.write(b"mark 2\n")
    assert (tmp_path / "j").read_bytes() == b"first\n"
    journal.write(b"mark 3\n")
    journal.end()
    assert (tmp_path / "j").read_bytes() == b"first\nanswer\nmark 3\n"


def test_what_is_kept_is_written_at_the_end(tmp_path: Path) -> None:
    """The last answer has no mark after it, and is there all the same."""
    journal = Journal(tmp_path / "j")
    journal.write(b"mark\n")
    journal.keep(b"answer\n")
    journal.end()
    assert (tmp_path / "j").read_bytes() == b"mark\nanswer\n"
