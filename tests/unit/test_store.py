"""Files come into being whole, are never changed, and are what the ledger says, or an error says why not."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nightmill.errors import StoreError
from nightmill.store import Store
from nightmill.types import FileRef


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "home")
    made.prepare()
    return made


def test_a_home_is_its_owners_alone(store: Store) -> None:
    """Inputs and answers are nobody else's to read; nothing of the probe stays."""
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700
    assert list(store.home.iterdir()) == []


def test_threads_may_open_a_home_at_once(tmp_path: Path) -> None:
    """None takes another's probe for a disk that cannot be written."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: Store(tmp_path / "home").prepare(), range(800)):
            pass


def test_what_was_written_is_what_is_read(store: Store) -> None:
    """The reference holds size and digest of just these bytes, and there is none before the file is whole."""
    with store.create("jobs/j/a") as out:
        out.write(b"one\n")
        with pytest.raises(ValueError, match="still open"):
            _ = out.ref
        out.write(b"two\n")
        assert out.tell() == out.size_bytes == 8
    store.verify(out.ref)
    with store.open(out.ref) as file:
        assert file.read() == b"one\ntwo\n"
    assert out.ref == store.seal("jobs/j/a")


def test_an_error_leaves_no_file(store: Store) -> None:
    """Half a file never lies about as if it were whole, whatever interrupted it."""

    def interrupted(error: type[BaseException]) -> None:
        with store.create("jobs/j/a") as out:
            out.write(b"half")
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(error)
    assert not store.path("jobs/j/a").exists()


@pytest.mark.parametrize("now", [None, b"", b"onE\n", b"one\nmore", b"on"])
def test_a_file_that_is_not_as_it_was_written_is_refused(store: Store, now: bytes | None) -> None:
    """Gone, cut, longer or changed: nothing is sent from it, and the error says what to do."""
    with store.create("a") as out:
        out.write(b"one\n")
    if now is None:
        store.path("a").unlink()
    else:
        store.path("a").write_bytes(now)
    with pytest.raises(StoreError) as refused:
        store.verify(out.ref)
    assert "a" in refused.value.what
    assert refused.value.fix


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A file in the way of the home is a StoreError, not a traceback."""
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "home").prepare()


def test_a_full_disk_is_said(store: Store) -> None:
    """No space left: a StoreError, and no half file."""
    if not os.path.exists("/dev/full"):
        pytest.fail("this system has no /dev/full to stand for a full disk")
    store.path("full").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="cannot write"), store.create("full") as out:
        out.write(b"x" * (2 << 20))
    assert not store.path("full").is_symlink()


def test_dropping_a_folder_that_is_gone_is_fine(store: Store) -> None:
    """A plan that was given up twice is given up."""
    with store.create(f"{store.job_folder('j')}/x/y") as out:
        out.write(b"1")
    store.drop_folder(store.job_folder("j"))
    store.drop_folder(store.job_folder("j"))
    with pytest.raises(StoreError, match="gone"):
        store.open(FileRef(out.ref.path, 1, out.ref.digest))
