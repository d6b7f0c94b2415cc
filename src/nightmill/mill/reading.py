"""Reading: results of a job, finished or not, in input order; and writing them where a user wants them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightmill.collect import Results, read_built, with_input
from nightmill.engine import results_of
from nightmill.files import GROUP_ROWS
from nightmill.ledger import Job, Shard, StoredFile
from nightmill.mill import embedding
from nightmill.mill.following import standing
from nightmill.mill.home import Home
from nightmill.plan import Parameters
from nightmill.sinks import About, Format, Origin, Target, needed_columns, stream, write_all
from nightmill.sinks.about import Status
from nightmill.sinks.exports import note_writing, note_written, unchanged
from nightmill.sinks.vectors import SizesDiffer, Vectors
from nightmill.tasks import Task
from nightmill.types import JobState
from nightmill.wire import BAD, RESULTS, ROWS, TWINS, shard_lines

_STATUS: dict[JobState, Status] = {
    JobState.PLANNING: "pending",
    JobState.PENDING: "pending",
    JobState.RUNNING: "running",
    JobState.PAUSED: "running",  # begun, and not at its end
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


@dataclass(slots=True)
class Group:
    """Rows that failed alike: how many, and one of them."""

    kind: str
    count: int
    message: str
    row: int


def results(home: Home, job: Job, first: int = 0, end: int | None = None) -> Iterator[pa.RecordBatch]:
    """Results of rows ``first`` to ``end`` in input order; rows that are still open are left out."""
    end = job.rows if end is None else min(end, job.rows)
    built = home.ledger.files_of(job.id, RESULTS) if job.finished_at is not None else []
    for batch in _built(home, job, built, first, end) if built else _read_open(home, job, first, end):
        index = batch.column("index")
        yield batch.filter(pc.and_(pc.greater_equal(index, first), pc.less(index, end)))


def _built(home: Home, job: Job, files: Sequence[StoredFile], first: int, end: int) -> Iterator[pa.RecordBatch]:
    for file in files:
        if file.first < end and file.last >= first:
            yield from read_built(home.store, file, first, end, partial(open_results, home, job))


def _read_open(home: Home, job: Job, first: int, end: int) -> Iterator[pa.RecordBatch]:
    results = open_results(home, job)
    for low, high in results.ranges():
        if low < end and high > first:
            yield from results.batches(low, high)


def failures(home: Home, job: Job) -> tuple[list[Group], int]:
    """Failed rows grouped by kind, most frequent first, and the nanos that rest on estimated usage."""
    groups: dict[str, Group] = {}
    estimated = 0
    for batch in results(home, job):
        estimated += pc.sum(batch.filter(batch.column("cost_estimated")).column("cost_nanos")).as_py() or 0
        bad = batch.filter(pc.invert(batch.column("success"))).select(["index", "error_kind", "error"])
        for row in bad.to_pylist():
            kind = row["error_kind"] or "failed"
            group = groups.setdefault(kind, Group(kind, 0, row["error"] or "", row["index"]))
            group.count += 1
    return sorted(groups.values(), key=lambda group: -group.count), estimated


def selected(
    home: Home, job: Job, *, span: tuple[int, int] | None = None, failed: bool = False, columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Results of some rows: those from ``span[0]`` up to ``span[1]``, those that failed.

    Beside them stand ``columns`` of the input, as `sinks.columns.input_column` calls them.
    """
    found = results(home, job, *(span or ()))
    if failed:
        found = (batch.filter(pc.invert(batch.column("success"))) for batch in found)
    return with_input(home.store, home.ledger.files_of(job.id, ROWS)[0], found, columns) if columns else found


def tries(home: Home, job: Job, row: int) -> list[Shard]:
    """The shards that hold a request of this row, in the order of their making."""
    near = [shard for shard in home.ledger.shards_of(job.id) if shard.first <= row <= shard.last]
    return [shard for shard in near if any(index == row for index, _ in shard_lines(home.store, shard))]


def export(
    home: Home,
    job: Job,
    targets: Sequence[Target],
    *,
    csv_raw: bool = False,
    span: tuple[int, int] | None = None,
    failed: bool = False,
) -> int:
    """Write what results there are to every target, whole or not at all; how many rows. Raises StoreError."""
    columns = needed_columns(target.format for target in targets)
    batches = selected(home, job, span=span, failed=failed, columns=columns)
    folder, is_whole = home.folder(job), span is None and not failed
    note = partial(note_writing, folder=folder, whole=is_whole, csv_raw=csv_raw)
    told = about(home, job)
    try:
        rows = write_all(targets, batches, told, csv_raw=csv_raw, on_written=note)
    except SizesDiffer:
        _tell_sizes(home, job)
        batches = selected(home, job, span=span, failed=failed, columns=columns)
        rows = write_all(targets, batches, replace(told, vectors=Vectors()), csv_raw=csv_raw, on_written=note)
    note_written(targets, folder, whole=is_whole, csv_raw=csv_raw)
    return rows


def _tell_sizes(home: Home, job: Job) -> None:
    """An alert, once."""
    if not any(kind == "sizes_differ" for kind, _, _ in home.ledger.alerts_of(job.id)):
        text = "its vectors differ in size: tables have lists of any size for them, not of a fixed one"
        home.ledger.alert(job.id, None, "sizes_differ", text)


def pour(
    home: Home,
    job: Job,
    file: BinaryIO,
    form: Format,
    *,
    csv_raw: bool = False,
    span: tuple[int, int] | None = None,
    failed: bool = False,
) -> int:
    """Write the same to an open file, as it is read; how many rows. Raises OSError."""
    batches = selected(home, job, span=span, failed=failed, columns=needed_columns([form]))
    return stream(file, form, batches, about(home, job), csv_raw=csv_raw)


def refresh(home: Home, job: Job) -> list[Path]:
    """Write again what earlier commands wrote for this job and nobody changed since; which files. Raises StoreError."""
    known = unchanged(home.folder(job))
    for raw in (False, True):
        targets = [target for target, csv_raw in known if csv_raw is raw]
        if targets:
            export(home, job, targets, csv_raw=raw)
    return [target.path for target, _ in known]


def about(home: Home, job: Job) -> About:
    """What outputs tell of the job, as it stands now."""
    now, task = standing(home, job), Task.from_dict(job.spec["task"])
    return About(
        job_id=job.id,
        model=job.model,
        prompts=tuple(text for text in (task.system, task.prompt) if text is not None),
        total=now.rows,
        completed=now.succeeded,
        failed=now.rows - now.pending - now.succeeded,
        status=_STATUS[job.state],
        started_at=_time(job.started_at),
        completed_at=_time(job.finished_at),
        written_at=dt.datetime.now(dt.UTC),
        schema=schema_of(job),
        vectors=vectors_of(home, job),
        origin=Origin.of(job.spec),
    )


def schema_of(job: Job) -> Mapping[str, Any] | None:
    """The JSON Schema that the job's answers are held to, if there is one."""
    return Parameters.from_dict(job.spec["parameters"]).schema


def vectors_of(home: Home, job: Job) -> Vectors | None:
    """What the embeddings of the job are like, by the first there is; None where it asks for none."""
    return embedding.vectors_of(job.spec, lambda: results(home, job))


def _time(moment: float | None) -> dt.datetime | None:
    return None if moment is None else dt.datetime.fromtimestamp(moment, dt.UTC)


def file_names(home: Home, job: Job) -> Iterator[str]:
    """The names of the files that the job's rows are; none where rows are no files."""
    if Origin.of(job.spec).mode == "file":
        with home.store.open(home.ledger.files_of(job.id, ROWS)[0].ref) as stream:
            for batch in pq.ParquetFile(stream, pre_buffer=False).iter_batches(
                GROUP_ROWS, columns=["path"], use_threads=False
            ):
                yield from batch.column("path").to_pylist()


def open_results(home: Home, job: Job) -> Results:
    kit = home.open_kit(job.id)
    files = home.ledger.files_of(job.id, ROWS, TWINS, BAD)
    return results_of(home.store, kit, home.ledger.shards_of(job.id), files)
