"""Which files a job wrote: those it may write again, all others only when told to.

The list lies in the job's folder: for each file its size, its time, the format it was written in (null
where it holds a part of the results only) and whether CSV was left raw. A file on it counts as the
job's own only while it is, to the nanosecond and the byte, as the job left it. Of a folder with a file for
each input only its name is on the list: its files tell themselves whose they are.

A file is on the list before it is in its place, and with it what it replaces (the file that is there; the jobs
that left the files of a folder): a job that is killed in between finds either its own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nightmill.errors import StoreError, UsageError
from nightmill.sinks import About, Target, Written, check_distinct, check_fit
from nightmill.sinks.checkpoints import job_of
from nightmill.sinks.folders import Layout

_NAME = "exports.json"
_REPLACED = 4  # where in an entry begins what its file replaces


def check_targets(
    targets: Sequence[Target],
    about: About,
    *,
    names: Sequence[str] = (),
    inputs: Sequence[str] = (),
    folder: Path | None = None,
    force: bool = False,
) -> None:
    """Refuse, before anything is spent, what could not or must not be written at the end.

    ``names``: of the rows that are files. ``inputs``: files that are read. ``folder`` is that of the job which goes
    on, or which the same command began before: its exports are fine.

    Raises:
        UsageError: a target is an input, named twice, in a folder nobody may write to, of no kind that the
            results can be put in, or a file that somebody else wrote and ``force`` is not given.
    """
    check_distinct(targets)
    sources = {os.path.realpath(path) for path in inputs}
    ours, job = (_read(folder), folder.name) if folder else ({}, None)
    for target in targets:
        check_fit(target.format, about.origin, f"--out {target.path}")
        path = os.path.realpath(target.path)
        _check_no_input(target.path, sources)
        if target.format == "files":
            jobs = [folder.name, *ours.get(path, [])[_REPLACED:]] if folder else []
            _check_folder(target, Layout(target.path, about), names, sources, jobs, force=force)
            continue
        if os.path.isdir(path):
            raise UsageError(f"{target.path} is a folder", why="results go into a file", fix="name a file in it")
        _check_writable(target, path)
        if target.format == "checkpoint":
            is_ours = _is_own_checkpoint(target, path, job)
        else:
            is_ours = not _is_file(path) or _left_so(ours.get(path, []), path)
        if not force and not is_ours:
            raise _foreign(target.path, job)


def check_outside(targets: Sequence[Target], folders: Sequence[str]) -> None:
    """Refuse results below a folder whose files are the input: the next run would read them, too.

    Raises UsageError.
    """
    for target in targets:
        path = Path(os.path.realpath(target.path))
        for folder in folders:
            if path.is_relative_to(os.path.realpath(folder)):
                raise UsageError(
                    f"{target.path} lies in the input {folder}",
                    why="the next run would read the results as rows, and pay for them",
                    fix="name a path beside it",
                )


def _is_own_checkpoint(target: Target, path: str, job: str | None) -> bool:
    """Whether the file is the job's, whoever wrote it last and however that ended, or an empty one."""
    if os.path.exists(path) and not _is_file(path):
        raise UsageError(f"{target.path} is no file", why="a checkpoint is replaced again and again", fix="name a file")
    return not os.path.exists(path) or not os.path.getsize(path) or (job is not None and job_of(Path(path)) == job)


def _check_folder(
    target: Target, layout: Layout, names: Sequence[str], sources: Collection[str], jobs: Sequence[str], *, force: bool
) -> None:
    path = os.path.realpath(target.path)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(
            f"{target.path} is a file", why="a folder was asked for", fix="name another folder, or move the file away"
        )
    _check_writable(target, os.path.join(path, "x"))
    for place in layout.places(names):
        for file in (place.answer, place.meta):
            _check_no_input(file, sources)
            if file.is_dir():
                raise UsageError(f"{file} is a folder", why="an answer goes there", fix="name another folder")
        if not force and place.is_taken and (not jobs or place.left_by() not in jobs):
            raise _foreign(place.answer, jobs[0] if jobs else None)


def _check_no_input(path: Path, sources: Collection[str]) -> None:
    if os.path.realpath(path) in sources:
        raise UsageError(f"{path} is an input", why="the results would replace it", fix="name another --out")


def _foreign(path: Path, job: str | None) -> UsageError:
    return UsageError(
        f"{path} exists",
        why="it was not written by this job, or was changed since"
        if job
        else "this run begins a new job, and a job replaces only files that it wrote itself",
        fix="name another path, or replace it with --force",
    )


def note_writing(written: Sequence[Written], folder: Path, *, whole: bool, csv_raw: bool) -> None:
    """Remember what the job of ``folder`` is about to put in its place, and what is there until then.

    Raises StoreError.
    """
    ours = _read(folder)
    for each in written:
        path = os.path.realpath(each.target.path)
        form = each.target.format if whole else None
        if each.target.format == "files":
            before = ours.get(path, [])[_REPLACED:]
            ours[path] = [0, 0, form, csv_raw, *sorted(each.replaces.union(before))]
        elif each.stamp is not None:
            there = [_stamp(path)] if _is_file(path) else []
            ours[path] = [*each.stamp, form, csv_raw, *there]
    _keep(ours, folder)


def note_written(targets: Sequence[Target], folder: Path, *, whole: bool, csv_raw: bool) -> None:
    """Remember that the job of ``folder`` wrote these files; ``whole``: with every result there was.

    Raises StoreError.
    """
    ours = _read(folder)
    for target in targets:
        path = os.path.realpath(target.path)
        if target.format == "files":
            ours[path] = [0, 0, target.format if whole else None, csv_raw, *ours.get(path, [])[_REPLACED:]]
        elif _is_file(path):
            ours[path] = [*_stamp(path), target.format if whole else None, csv_raw]
    _keep(ours, folder)


def _keep(ours: dict[str, list[Any]], folder: Path) -> None:
    fresh = folder / f".{_NAME}.{os.getpid()}.{threading.get_ident()}"
    try:
        fresh.write_text(json.dumps(ours), encoding="utf-8")
        fresh.replace(folder / _NAME)
    except OSError as error:
        raise StoreError(
            f"{folder / _NAME} cannot be written",
            why=error.strerror or str(error),
            fix="check that the job is still there and the disk has room, then run the same command again",
        ) from error


def unchanged(folder: Path) -> list[tuple[Target, bool]]:
    """The files with whole results that the job of ``folder`` wrote and nobody has touched since, and whether CSV
    was left raw."""
    return [
        (Target(format_, Path(path), spares=format_ == "files"), entry[3])
        for path, entry in _read(folder).items()
        if (format_ := entry[2]) and (os.path.isdir(path) if format_ == "files" else _left_so(entry, path))
    ]


def _check_writable(target: Target, path: str) -> None:
    parent = Path(path).parent
    while not parent.exists():
        parent = parent.parent
    try:
        if os.path.exists(path) and not _is_file(path):  # a device or a pipe is written to as it is
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:  # permissions bind no superuser, a disk or a kernel folder does: only trying tells
            tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise UsageError(
            f"{target.path} cannot be written",
            why=f"{parent} does not take it: {error.strerror or error}",
            fix="name a path you may write to, or change its permissions",
        ) from error


def _is_file(path: str) -> bool:
    """Devices and pipes are written to as they are: they belong to nobody."""
    return os.path.exists(path) and stat.S_ISREG(os.stat(path).st_mode)


def _left_so(entry: Sequence[Any], path: str) -> bool:
    """Whether a file is there as the list has it."""
    return _is_file(path) and _stamp(path) in (list(entry[:2]), *entry[_REPLACED:])


def _stamp(path: str) -> list[int]:
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns]


def _read(folder: Path) -> dict[str, list[Any]]:
    try:
        known: dict[str, list[Any]] = json.loads((folder / _NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or cut short by a crash: then nothing is ours
        return {}
    return known
