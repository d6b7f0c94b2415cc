"""Housekeeping: deleting a finished job, and removing what nothing names or the settings let go.

The ledger forgets first, in one transaction; then files go that nobody's record names any more. Killed in between,
the same command removes what is left. Money history, and whatever is not settled, always stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nightmill.config import LEAST_DAYS
from nightmill.errors import Conflict, StoreError, UsageError
from nightmill.killpoints import reach
from nightmill.lanes import late, tidying
from nightmill.ledger import Job, Shard
from nightmill.mill.home import Home, model_of
from nightmill.store import APART
from nightmill.types import UNFINISHED
from nightmill.wire import RESULTS

DAY_S = 86_400.0
_OWN_FILES = ("exports.json",)  # of a job's folder; the ledger does not name them
_JOBS, _LOGS = "jobs", "logs"
_LOG_IN_USE = "nightmill.log"


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that may go: ``what`` it is, where (relative to the home), how much, and ``why``."""

    what: str
    path: str
    files: int
    size_bytes: int
    why: str


@dataclass(slots=True)
class Swept:
    """What `sweep` removed, or would have."""

    removed: list[Waste] = field(default_factory=list)
    provider_files: int = 0
    notes: list[str] = field(default_factory=list)  # what could not be done, and why

    @property
    def size_bytes(self) -> int:
        return sum(waste.size_bytes for waste in self.removed)


# -- one job


def delete(home: Home, job: Job) -> int:
    """Delete a finished job with its files; how many bytes that freed. The cache and all money history stay.

    Raises:
        Conflict: it is not finished, or somebody went on with it meanwhile.
        StoreError: its files cannot be removed; `finish_deletion` goes on with them.
    """
    if job.state in UNFINISHED:
        raise Conflict(
            f"job {job.id} is {job.state}", why="what is not finished may still cost money or bring answers",
            fix=f"finish it with: nightmill resume {job.id}\nor end it with: nightmill cancel {job.id}",
        )  # fmt: skip
    freed = home.store.size_bytes(home.store.job_folder(job.id))
    if not home.ledger.delete_job(job):
        raise Conflict(
            f"job {job.id} changed meanwhile", why="somebody went on with it", fix=f"nightmill show {job.id}"
        )
    _remove_folder(home, job.id)
    return freed


def finish_deletion(home: Home, text: str) -> str | None:
    """Remove what an interrupted deletion of the job that goes by ``text`` left; the job's id.

    None: there is none, or a newer job goes by that text.
    """
    try:
        newest = home.job(text).id
    except Conflict:  # nobody is called so
        newest = ""
    for gone in home.ledger.deletions():
        named = text in (gone.job_id, gone.name, "@last") or (len(text) >= 4 and gone.job_id.startswith(text))
        if named and gone.job_id > newest and home.store.path(home.store.job_folder(gone.job_id)).exists():
            _remove_folder(home, gone.job_id)
            return gone.job_id
    return None


def _remove_folder(home: Home, job_id: str) -> None:
    home.store.remove(home.store.job_folder(job_id))
    reach("store.removed")


def expects_late(home: Home, job: Job) -> bool:
    """Whether answers of a finished job may still come, that its deletion would leave nobody to take in."""
    return bool(late.doubtful(home.desk, home.ledger.shards_of(job.id)))


# -- the whole home


async def sweep(
    home: Home, *, older_than_s: float = LEAST_DAYS * DAY_S, dry_run: bool = False, now: float | None = None
) -> Swept:
    """Remove what nothing names and what ``[retention]`` lets go; nothing unsettled, nothing younger than 30 days.

    ``older_than_s`` counts for what nothing names, ``now`` is unix seconds. Raises StoreError.
    """
    now = time.time() if now is None else now
    swept, least_s = Swept(), max(older_than_s, LEAST_DAYS * DAY_S)
    sweeper = _Sweeper(home, now, now - least_s, dry_run, swept)
    sweeper.leftovers()
    sweeper.old_jobs()
    sweeper.old_wire()
    sweeper.nameless()
    sweeper.old_logs()
    if home.settings.retention.provider_files == "delete":
        await sweeper.provider_files()
    return swept


class _Sweeper:
    def __init__(self, home: Home, now: float, cutoff: float, dry_run: bool, swept: Swept) -> None:
        self._home, self._now, self._cutoff, self._dry_run, self._swept = home, now, cutoff, dry_run, swept
        self._gone: set[str] = set()  # jobs that this sweep deleted, or would

    def leftovers(self) -> None:
        """What interrupted deletions left. Age does not matter: somebody said that it may go."""
        for gone in self._home.ledger.deletions():
            folder = self._home.store.job_folder(gone.job_id)
            if self._home.store.path(folder).exists():
                self._remove("job", folder, "its deletion was interrupted")

    def old_jobs(self) -> None:
        days = self._home.settings.retention.jobs_days
        for job in self._ended_before(days):
            self._count("job", self._home.store.job_folder(job.id), f"ended more than {days} days ago")
            self._gone.add(job.id)
            if not self._dry_run:
                try:
                    delete(self._home, job)
                except Conflict as changed:
                    self._swept.removed.pop()
                    self._swept.notes.append(changed.what)

    def old_wire(self) -> None:
        """What came back of old jobs, where the results that stand for it are whole."""
        days = self._home.settings.retention.wire_days
        for job in self._ended_before(days):
            folder = f"{self._home.store.job_folder(job.id)}/wire"
            if job.id in self._gone or job.spec.get("wire") or not self._home.store.path(folder).exists():
                continue
            if not self._has_results(job):
                continue
            self._count("answers as they came", folder, f"job ended more than {days} days ago; its results stay")
            if not self._dry_run:
                for path in self._home.ledger.forget_wire(job):
                    self._home.store.remove(path)
                reach("wire.removed")

    def nameless(self) -> None:
        """Files of finished jobs, and folders of jobs, that no record names."""
        known = self._home.ledger.known_jobs()
        for folder in self._folders():
            path = f"{_JOBS}/{folder.name}"
            if folder.name in known or self._is_counted(path):
                continue
            if self._is_old([folder, *_files_in(folder)]):
                self._remove("job", path, "no job is called so")
        for job in self._ended_before(0):
            if job.id not in self._gone:
                self._nameless_of(job)

    def _nameless_of(self, job: Job) -> None:
        folder, named = self._home.store.job_folder(job.id), self._home.ledger.named_files(job.id)
        for file in _files_in(self._home.store.path(folder)):
            path = file.relative_to(self._home.store.home).as_posix()
            if (
                path not in named
                and file.name not in _OWN_FILES
                and (file.parent.name != APART or file.name.startswith("."))  # those are named by what they hold
                and not self._is_counted(path)
                and self._is_old([file])
            ):
                self._remove("file", path, "no record names it")

    def old_logs(self) -> None:
        days = self._home.settings.retention.logs_days
        if days is None:
            return
        for file in _files_in(self._home.store.path(_LOGS)):
            if file.name != _LOG_IN_USE and _mtime(file) < self._now - days * DAY_S:
                self._remove("log", f"{_LOGS}/{file.name}", f"last written more than {days} days ago")

    async def provider_files(self) -> None:
        """Files of settled shards at the provider that nobody will ask for again."""
        home = self._home
        for job_id in home.ledger.jobs_with_provider_files():
            job, shards = home.ledger.job(job_id), home.ledger.shards_of(job_id)
            spare = tidying.spare(home.desk, shards)
            if job is None or "adopted" in job.spec or not spare:  # what others made is theirs to delete
                continue
            if self._dry_run:
                self._swept.provider_files += sum(len(tidying.files_of(sub)) for sub in spare)
                continue
            try:
                for model in dict.fromkeys(model_of(job, shard) for shard in shards):
                    mine = [shard for shard in shards if model_of(job, shard) == model]
                    await self._delete_there(job_id, model, mine)
            except UsageError as error:
                self._swept.notes.append(f"files of job {job_id} stay at the provider: {error}")

    async def _delete_there(self, job_id: str, model: str, shards: Sequence[Shard]) -> None:
        """What one model's providers keep of shards. Raises UsageError: there is no key for it now."""
        keyed = self._home.providers(model)
        try:
            count, failed = await tidying.delete_files(self._home.desk, keyed, shards)
        finally:
            for provider in keyed:
                await provider.close()
        self._swept.provider_files += count
        self._swept.notes += [f"files of job {job_id} stay at the provider: {error}" for error in failed]

    # -- shared by the rules above

    def _ended_before(self, days: int | None) -> list[Job]:
        """Finished jobs that ended so long ago; none where there is no rule."""
        if days is None:
            return []
        before = self._now - days * DAY_S
        return [job for job in self._home.ledger.jobs() if job.finished_at is not None and job.finished_at < before]

    def _has_results(self, job: Job) -> bool:
        built = self._home.ledger.files_of(job.id, RESULTS)
        try:
            for file in built:
                self._home.store.verify(file.ref)
        except StoreError as error:
            self._swept.notes.append(f"the answers of job {job.id} stay as they came: {error.what}")
            return False
        return bool(built)

    def _folders(self) -> Iterator[Path]:
        root = self._home.store.path(_JOBS)
        return (folder for folder in sorted(root.iterdir()) if folder.is_dir()) if root.is_dir() else iter(())

    def _is_old(self, paths: Iterable[Path]) -> bool:
        return all(_mtime(path) < self._cutoff for path in paths)

    def _is_counted(self, path: str) -> bool:
        return any(path == waste.path or path.startswith(f"{waste.path}/") for waste in self._swept.removed)

    def _count(self, what: str, path: str, why: str) -> None:
        target = self._home.store.path(path)
        files = sum(1 for _ in _files_in(target)) if target.is_dir() else 1
        self._swept.removed.append(Waste(what, path, files, self._home.store.size_bytes(path), why))

    def _remove(self, what: str, path: str, why: str) -> None:
        self._count(what, path, why)
        if not self._dry_run:
            self._home.store.remove(path)


def _files_in(folder: Path) -> Iterator[Path]:
    return (Path(inside, name) for inside, _, names in os.walk(folder) for name in names)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # gone meanwhile
        return float("inf")
