"""Sinks: results become files, each whole or not there at all.

Results stream into a temporary file beside the target, which takes the target's place in one
step when everything is written; an error leaves an existing file as it was. A folder with a file for
each input file is filled in the same way.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import pyarrow as pa

from nightmill.errors import StoreError, UsageError
from nightmill.files import sync_folder
from nightmill.killpoints import reach
from nightmill.sinks import folders
from nightmill.sinks.about import About, Origin
from nightmill.sinks.columns import RESULT_SCHEMA
from nightmill.sinks.documents import JsonWriter, SectionsWriter
from nightmill.sinks.formats import CsvWriter, JsonlWriter, ParquetWriter, Writer
from nightmill.sinks.making import hidden_name, hold

__all__ = [
    "RESULT_SCHEMA",
    "STREAMED",
    "About",
    "Format",
    "Origin",
    "Target",
    "Written",
    "check_distinct",
    "check_fit",
    "needed_columns",
    "parse_target",
    "save",
    "stream",
    "write_all",
]

Format = Literal["jsonl", "csv", "parquet", "json", "sections", "files", "checkpoint"]

_BY_SUFFIX: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "json",
}  # fmt: skip
_WRITERS: dict[Format, Callable[..., Writer]] = {
    "jsonl": JsonlWriter, "csv": CsvWriter, "parquet": ParquetWriter, "json": JsonWriter, "sections": SectionsWriter,
}  # fmt: skip
_BY_NAME: dict[str, Format] = {name: name for name in _WRITERS}
_NEEDS: dict[Format, tuple[str, ...]] = {"sections": SectionsWriter.NEEDS, "files": folders.NEEDS}
STREAMED: tuple[Format, ...] = ("jsonl", "csv", "json", "sections")  # what a pipe or a terminal can take
_NOBODY = About()
_HINTS = {
    errno.ENOSPC: "free some space, or name a path on another disk",
    errno.EDQUOT: "free some space, or name a path on another disk",
    errno.EFBIG: "raise the file size limit, or name a path on another disk",
    errno.EACCES: "name a path you may write to, or change its permissions",
    errno.EPERM: "name a path you may write to, or change its permissions",
    errno.EROFS: "name a path on a disk that is not read-only",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a path whose parents are folders",
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where results go. ``spares``: of a folder, files that others wrote or changed are left as they are."""

    format: Format
    path: Path
    spares: bool = False


def parse_target(spec: str) -> Target:
    """``PATH``, whose suffix says the format, ``FORMAT:PATH``, or ``DIR/``, which may be any folder that exists.

    Raises:
        UsageError: the format is unknown.
    """
    known = "write PATH.jsonl, .csv, .json or .parquet, or DIR/, or put one of {}: before the path".format(
        ":, ".join(_BY_NAME)
    )
    prefix, colon, rest = spec.partition(":")
    if colon and prefix.lower() in _BY_NAME:
        if not rest:
            raise UsageError(f"--out {spec}: no path", why="nothing follows the colon", fix=known)
        return Target(_BY_NAME[prefix.lower()], Path(rest))
    if colon and len(prefix) > 1 and prefix.isalnum():  # one letter is a drive
        raise UsageError(f"--out {spec}: unknown format {prefix}", why=f"there are {', '.join(_BY_NAME)}", fix=known)
    path = Path(spec)
    if spec.endswith(("/", os.sep)) or (spec and path.is_dir()):
        return Target("files", path)
    found = _BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        what = f"unknown format {path.suffix}" if path.suffix else "no suffix"
        raise UsageError(f"--out {spec}: {what}", why="the suffix says how results are written", fix=known)
    return Target(found, path)


def needed_columns(formats: Iterable[Format]) -> list[str]:
    """Columns of the input that have to stand beside the results (as `columns.input_column` calls them)."""
    return list(dict.fromkeys(name for each in formats for name in _NEEDS.get(each, ())))


def check_fit(form: Format, origin: Origin, asked: str) -> None:
    """Raises UsageError when the input lacks that by which its results would be laid out; ``asked`` is what for."""
    if form == "files" and origin.mode != "file":
        row = "a line" if origin.mode == "line" else "no file"
        raise UsageError(
            f"{asked}: not for these rows",
            why=f"into a folder goes one file for each input file, and here a row is {row}",
            fix="name a file, such as results.jsonl, or for text files make each a row: --rows file",
        )
    if form == "sections" and not set(SectionsWriter.NEEDS) <= set(origin.columns):
        raise UsageError(
            f"{asked}: the input has no sections",
            why=f"its columns are {', '.join(origin.columns)}; a section and a name are needed",
            fix='give it as {"SECTION": {"NAME": "prompt"}}, or write .json, .jsonl, .csv or .parquet',
        )


def write_all(
    targets: Sequence[Target],
    batches: Iterable[pa.RecordBatch],
    about: About = _NOBODY,
    *,
    csv_raw: bool = False,
    on_written: Callable[[Sequence[Written]], None] | None = None,
) -> int:
    """Write results to every target in one pass over ``batches``; the number of rows.

    ``batches`` are of `RESULT_SCHEMA`, in input order, and beside it have the `needed_columns`. ``on_written`` is
    called when all is written, before the first target is in its place.

    Raises:
        UsageError: two targets are one file.
        StoreError: a target cannot be written. No target has been touched then, unless the very
            last step, putting finished files in place, failed half way.
    """
    check_distinct(targets)
    rows = 0
    with ExitStack() as open_outputs:
        outputs = [(target, open_outputs.enter_context(_opened(target, about, csv_raw))) for target in targets]
        for batch in batches:
            rows += batch.num_rows
            for target, output in outputs:
                with _reported(target):
                    output.write(batch)
        for target, output in outputs:
            with _reported(target):
                output.finish()
        reach("sinks.written")
        if on_written is not None:
            on_written([Written(target, output.stamp(), output.replaces()) for target, output in outputs])
        for target, output in outputs:
            with _reported(target):
                output.publish()
        reach("sinks.published")
    return rows


def stream(
    file: BinaryIO,
    format: Format,  # noqa: A002  the word every caller uses
    batches: Iterable[pa.RecordBatch],
    about: About = _NOBODY,
    *,
    csv_raw: bool = False,
) -> int:
    """Write results to an open file as they come, and leave it open; the number of rows.

    Raises:
        OSError: the file cannot be written; a pipe whose reader left is a BrokenPipeError.
    """
    writer = _WRITERS[format](file, about, csv_raw=csv_raw)
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        writer.write(batch)
        file.flush()
    writer.close()
    file.flush()
    return rows


def save(target: Target, pieces: Iterable[bytes]) -> None:
    """Write a file in one step in place of what was there. Raises StoreError: that is still there then."""
    path = Path(os.path.realpath(target.path))
    temporary = hidden_name(path)
    try:
        with _reported(target):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
            with hold(temporary):
                with temporary.open("wb") as file:
                    file.writelines(pieces)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
    finally:
        with suppress(OSError):  # it is in its place, or what broke is being reported
            temporary.unlink(missing_ok=True)


def check_distinct(targets: Sequence[Target]) -> None:
    """Raises UsageError when two targets are one file."""
    paths = [os.path.realpath(target.path) for target in targets]
    for target, path in zip(targets, paths, strict=True):
        if paths.count(path) > 1:
            raise UsageError(
                f"{target.path} is named twice",
                why="the second output would replace the first",
                fix="give each output its own path",
            )


@dataclass(frozen=True, slots=True)
class Written:
    """A target whose results are on the disk, and not in their place yet."""

    target: Target
    stamp: tuple[int, int] | None  # size and time of the file, which it keeps in its place
    replaces: frozenset[str]  # jobs whose files in the folder are replaced


class _Output(Protocol):
    """One target while it is written. Raises OSError."""

    def stamp(self) -> tuple[int, int] | None: ...

    def replaces(self) -> frozenset[str]: ...

    def write(self, batch: pa.RecordBatch) -> None: ...

    def finish(self) -> None:
        """Everything is on the disk after this, under other names."""
        ...

    def publish(self) -> None:
        """Everything is in its place after this."""
        ...


@dataclass(slots=True)
class _File:
    """One file while it is written: into ``temporary``, until `publish` puts that in place.

    A device or a pipe cannot be replaced: it has no ``temporary`` and is written to as it is.
    """

    path: Path
    temporary: Path | None
    file: BinaryIO
    writer: Writer

    def write(self, batch: pa.RecordBatch) -> None:
        self.writer.write(batch)

    def finish(self) -> None:
        self.writer.close()
        self.file.flush()
        if self.temporary is not None:
            os.fsync(self.file.fileno())
        self.file.close()

    def stamp(self) -> tuple[int, int] | None:
        if self.temporary is None:
            return None
        about = self.temporary.stat()
        return about.st_size, about.st_mtime_ns

    def replaces(self) -> frozenset[str]:
        return frozenset()

    def publish(self) -> None:
        if self.temporary is None:
            return
        self.temporary.replace(self.path)
        self.temporary = None
        sync_folder(self.path.parent)


@contextmanager
def _opened(target: Target, about: About, csv_raw: bool) -> Iterator[_Output]:
    if target.format == "files":
        with _reported(target):
            folder = folders.FolderOutput(target.path, about, spares=target.spares)
        try:
            yield folder
        finally:
            folder.discard()
    else:
        with _opened_file(target, about, csv_raw) as file:
            yield file


@contextmanager
def _opened_file(target: Target, about: About, csv_raw: bool) -> Iterator[_File]:
    # A link stays a link: what it points to is replaced.
    path = Path(os.path.realpath(target.path))
    temporary: Path | None = hidden_name(path)
    output: _File | None = None
    try:
        with _reported(target):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):
                temporary = None
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("wb") if temporary is None else temporary.open("xb")
        with _closed_after(file), hold(temporary) if temporary else nullcontext():
            with _reported(target):
                writer = _WRITERS[target.format](file, about, csv_raw=csv_raw)
            output = _File(path, temporary, file, writer)
            try:
                yield output
            except BaseException:
                writer.abandon()
                raise
    finally:
        left = temporary if output is None else output.temporary
        if left is not None:
            with suppress(OSError):  # it may never have been there; what broke is being reported
                left.unlink()


@contextmanager
def _closed_after(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):  # closing writes what is buffered, and the disk may be the trouble
            file.close()


@contextmanager
def _reported(target: Target) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{target.path} cannot be written",
            why=error.strerror or str(error),
            fix=_HINTS.get(error.errno or 0, "check the path and the disk, or name another path"),
        ) from error
