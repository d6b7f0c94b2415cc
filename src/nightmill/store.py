"""Where a job's files lie and how they come into being.

A file exists when the ledger holds its `FileRef`; nothing rests on a rename being atomic. Every
file is written once, under a name nobody else will use, synced, and never changed afterwards.
(Live journals are the one exception: they grow, have one writer ever, and are read up to their
last whole line.)
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO

from nightmill.errors import StoreError
from nightmill.files import sync_folder
from nightmill.killpoints import reach
from nightmill.types import FileRef

PACKED = ".zst"
APART = "media"  # the folder of a job's media that have a file each
_DIGITS = 24  # of its SHA-256, that such a file is called by
_CHUNK_BYTES = 1 << 20
_FROM_A_BACKUP = "put the home folder back from a backup"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def new_digest() -> hashlib._Hash:
    """What the bytes of files and rows go through; `digest_text` says what came of it."""
    return hashlib.sha256()  # in hardware nearly everywhere: half of BLAKE2's time


def apart(folder: str, digest: str) -> str:
    """Where the medium with that SHA-256 lies, where the job in ``folder`` has a file of its own for it."""
    return f"{folder}/{APART}/{digest[:_DIGITS]}"


def digest_text(digest: hashlib._Hash) -> str:
    """32 hex digits."""
    return digest.hexdigest()[:32]


class Writer:
    """A file in the making: bytes go in, a `FileRef` comes out when the block ends well."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path
        self._digest = new_digest()
        self._size_bytes = 0
        self._ref: FileRef | None = None

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def ref(self) -> FileRef:
        """What the ledger should hold; only there once the file is closed and synced."""
        if self._ref is None:
            raise ValueError(f"{self._path} is still open")
        return self._ref

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._size_bytes += len(data)
        return self._file.write(data)

    # what pyarrow wants of a file it writes to

    @property
    def closed(self) -> bool:
        return self._file.closed

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """The store does that, when the block ends."""

    def tell(self) -> int:
        return self._size_bytes

    def seal(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._ref = FileRef(self._path, self._size_bytes, digest_text(self._digest))


class Store:
    """The files under one home folder.

    Raises:
        StoreError: the disk is full, the folder cannot be written, or a file is not what the
            ledger says it is.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    def prepare(self) -> None:
        """Make the home, readable by its owner only; a folder that is there keeps its mode once it holds something."""
        with _explained(self.home):
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not any(self.home.iterdir()):
                self.home.chmod(0o700)
            with tempfile.NamedTemporaryFile(dir=self.home, prefix=".writable-"):  # several threads may try at once
                pass

    def path(self, path: str) -> Path:
        return self.home / path

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        """A new file at ``path`` (relative). An error inside the block leaves no file."""
        target = self.path(path)
        with _explained(target):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with target.open("wb", buffering=_CHUNK_BYTES) as file:
                writer = Writer(file, path)
                try:
                    yield writer
                    writer.seal()
                except BaseException:
                    target.unlink(missing_ok=True)
                    raise
            sync_folder(target.parent)
        reach("store.created")

    def put(self, path: str, data: bytes) -> None:
        """Write a file called by its SHA-256, unless it is there: whoever else writes it writes the same."""
        target = self.path(path)
        with _explained(target):
            if _is_as_called(target):
                return
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".writing-", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            Path(file.name).replace(target)
            sync_folder(target.parent)
        reach("store.put")

    def found(self, path: str) -> Path:
        """Where a file lies that was `put`. Raises StoreError: it is not there, or not as it was."""
        target = self.path(path)
        if not _is_as_called(target):
            why = "its digest is not its name" if target.exists() else f"{target} does not exist"
            raise StoreError(f"a file of this job is gone or was changed: {path}", why=why, fix=_FROM_A_BACKUP)
        return target

    def seal(self, path: str) -> FileRef:
        """The `FileRef` of a file someone else wrote here, synced and digested."""
        target = self.path(path)
        digest = new_digest()
        size_bytes = 0
        with _explained(target), target.open("rb") as file:
            os.fsync(file.fileno())
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
        sync_folder(target.parent)
        reach("store.sealed")
        return FileRef(path, size_bytes, digest_text(digest))

    def open(self, ref: FileRef) -> BufferedReader[FileIO]:
        """Read a file that the ledger holds; its size is checked first."""
        target = self.path(ref.path)
        try:
            file = BufferedReader(FileIO(target), 1 << 18)
        except FileNotFoundError as error:
            packed = self.open_packed(ref.path)
            if packed is None:
                raise StoreError(
                    f"a file of this job is gone: {ref.path}",
                    why=f"{target} does not exist, though the ledger counts on it",
                    fix=_FROM_A_BACKUP,
                ) from error
            file = packed
        if (size := os.fstat(file.fileno()).st_size) != ref.size_bytes:
            file.close()
            raise StoreError(
                f"a file of this job is not as it was written: {ref.path}",
                why=f"it has {size} bytes; the ledger says {ref.size_bytes}",
                fix=_FROM_A_BACKUP,
            )
        return _unpacked(file, self.home) if ref.path.endswith(PACKED) else file

    def pack(self, path: str, *, mark: str = "", size_bytes: int = sys.maxsize) -> FileRef:
        """A compressed copy of a file beside it, of its first ``size_bytes``; `open` reads it like the original.

        ``mark`` goes into its name: one that no other worker uses.
        """
        import zstandard

        with self.path(path).open("rb") as plain, self.create(f"{path}{mark}{PACKED}") as out:
            compressor = zstandard.ZstdCompressor(level=1).compressobj()
            while chunk := plain.read(min(_CHUNK_BYTES, size_bytes)):
                size_bytes -= len(chunk)
                out.write(compressor.compress(chunk))
            out.write(compressor.flush())
        return out.ref

    def open_packed(self, path: str) -> BufferedReader[FileIO] | None:
        """The plain bytes of a file that was packed since the ledger was asked where it lies; None: it was not.

        Of several copies the newest: the plain file goes when the ledger names a copy, and none is made after that.
        """
        target = self.path(path)
        copies = target.parent.glob(f"{target.name}.*{PACKED}")
        marks = [copy.name.removeprefix(f"{target.name}.").removesuffix(PACKED) for copy in copies]
        newest = max(map(int, filter(str.isdecimal, marks)), default=None)
        if newest is None:
            return None
        return _unpacked(BufferedReader(FileIO(f"{target}.{newest}{PACKED}")), self.home)

    def verify(self, ref: FileRef) -> None:
        """Raise StoreError unless the file has exactly the bytes that were written."""
        with self.open(ref) as file:
            digest = hashlib.file_digest(file, new_digest)
        if digest_text(digest) != ref.digest:
            raise StoreError(
                f"a file of this job was changed: {ref.path}",
                why="its digest is not the one in the ledger",
                fix=_FROM_A_BACKUP,
            )

    def job_folder(self, job_id: str) -> str:
        return f"jobs/{job_id}"

    def size_bytes(self, path: str) -> int:
        """What a file, or all files of a folder, take; 0 where there is none."""
        target = self.path(path)
        inside = [Path(folder, name) for folder, _, names in os.walk(target) for name in names]
        return sum(each.lstat().st_size for each in (inside if target.is_dir() else [target]) if each.exists())

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all in it, unless it is gone already. Raises StoreError."""
        target = self.path(path)
        try:
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        except FileNotFoundError:  # another process removes it too
            self.remove(path)
        except OSError as error:
            why = error.strerror or str(error)
            fix = "make it writable, then run the same command again: it goes on with what is left"
            raise StoreError(f"cannot remove {target}", why=why, fix=fix) from error

    def drop_folder(self, path: str) -> None:
        """Remove a folder that the ledger does not name (a plan that was given up)."""
        shutil.rmtree(self.path(path), ignore_errors=True)


def _is_as_called(target: Path) -> bool:
    """Whether a file is there, and its SHA-256 begins with its name."""
    try:
        with target.open("rb") as file:
            return hashlib.file_digest(file, new_digest).hexdigest().startswith(target.name)
    except OSError:
        return False


def _unpacked(file: BufferedReader[FileIO], folder: Path) -> BufferedReader[FileIO]:
    """The plain bytes of a packed file, in a nameless one that can be sought in."""
    import zstandard

    plain = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - the reader closes it
    with file:
        zstandard.ZstdDecompressor().copy_stream(file, plain, read_size=_CHUNK_BYTES, write_size=_CHUNK_BYTES)
    plain.seek(0)
    return BufferedReader(plain, 1 << 18)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        first = "free some space" if error.errno in _NO_ROOM else "make it writable"
        raise StoreError(
            f"cannot write {target}",
            why=error.strerror or str(error),
            fix=f"{first} or set NIGHTMILL_HOME to another folder; nothing was lost, run the same command again",
        ) from error
