"""Running the rows of one batch: its input file in, an output file and an error file out, one row at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from nightmill.simulator.answering import NO_TWIST
from nightmill.simulator.batch import Batch
from nightmill.simulator.billing import Catalogue, Tally
from nightmill.simulator.faults import ANSWER_FAULTS, Params, Share
from nightmill.simulator.formats import Reply, Rows

_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class RowJob:
    """All that running a batch's rows depends on."""

    batch: Batch
    input: Path
    output: Path
    errors: Path  # stays empty where a format has one file
    done: int  # rows that ran before the batch ended; the rest did not run
    ending: str
    created: int  # unix seconds, for the bodies
    catalogue: Catalogue
    keep_keys: bool  # whether to remember who each row was


class _Plan:
    """The row faults of one batch, resolved to the rows they hit."""

    def __init__(self, faults: Mapping[str, Params], total: int, asked_before: int) -> None:
        def share(name: str, default: int | None) -> Share | None:
            return Share.of(name, faults[name], total, default) if name in faults else None

        self.missing = share("missing_lines", 1)
        self.duplicate = share("duplicate_lines", 1)
        self.differ = bool(faults.get("duplicate_lines", {}).get("differ"))
        self.errors = share("row_errors", None)
        self.status = int(faults.get("row_errors", {}).get("status", 500))
        self.unknown = int(faults["unknown_lines"].get("count", 1)) if "unknown_lines" in faults else 0
        self.spaced = "pretty_printed_bodies" in faults
        self._twists = [
            (n, Share.of(n, faults[n], total), int(faults[n].get("from_row", 0)) - asked_before)
            for n in ANSWER_FAULTS
            if n in faults
        ]

    def twists(self, row: int) -> frozenset[str]:
        if not self._twists:
            return NO_TWIST
        hit = (name for name, share, first in self._twists if row >= first and row in share)
        return frozenset(name for name in hit if name != "pretty_printed_bodies")


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their newline; a file's last newline ends a line, it starts none."""
    for line in file:
        yield line[:-1] if line.endswith(b"\n") else line


def spaced(body: bytes) -> bytes:
    """The same JSON in one line, as a careless but correct writer would put it."""
    return json.dumps(msgspec.json.decode(body), ensure_ascii=True, separators=(" , ", " : ")).encode()


def run_rows(job: RowJob, rows: Rows) -> Tally:
    """Write both result files; what was run and what it costs.

    Blocking: meant for a thread. Memory is flat but for 32 bytes a row while rows are told apart.
    """
    tally = Tally()
    batch = job.batch
    plan = _Plan(batch.faults, batch.total, batch.asked_before)
    with (
        job.input.open("rb", _BUFFER_BYTES) as source,
        job.output.open("wb", _BUFFER_BYTES) as out,
        job.errors.open("wb", _BUFFER_BYTES) as errors,
    ):
        err = errors if rows.two_files else out
        for row, raw in enumerate(lines_of(source)):
            custom_id, body = rows.read(raw)
            if row >= job.done:
                err.write(rows.not_run_line(custom_id, job.ending, row) or b"")
                tally.not_run += 1
            elif plan.errors is not None and row in plan.errors:
                tally.failed += 1
                err.write(rows.failed_line(custom_id, plan.status, row))
            else:
                _run_row(job, rows, plan, row, custom_id, body, out, err, tally)
        for number in range(plan.unknown):
            out.write(rows.unknown_line(number))
    if "shuffled_rows" in batch.faults:
        _shuffle(job.output)
    return tally


def _run_row(
    job: RowJob,
    rows: Rows,
    plan: _Plan,
    row: int,
    custom_id: str,
    body: bytes,
    out: BinaryIO,
    err: BinaryIO,
    tally: Tally,
) -> None:
    twists = plan.twists(row)
    reply = rows.answer(job.batch, body, created=job.created, twists=twists)
    line = rows.line(custom_id, reply, spaced=plan.spaced)
    if reply.status != 200:
        tally.failed += 1
        err.write(line)
        return
    tally.completed += 1
    _bill(job, tally, reply)
    if job.keep_keys:
        tally.keys.append(custom_id.rpartition("-")[2].encode()[:16] + reply.digest)
    if plan.missing is not None and row in plan.missing:
        return
    out.write(line)
    if plan.duplicate is not None and row in plan.duplicate:
        if plan.differ:
            again = rows.answer(job.batch, body, created=job.created, twists=twists, salt=1)
            _bill(job, tally, again)
            line = rows.line(custom_id, again, spaced=plan.spaced)
        out.write(line)


def _bill(job: RowJob, tally: Tally, reply: Reply) -> None:
    tally.executed += 1
    tally.nanos += job.catalogue.nanos(reply, batch=True)
    tally.input_tokens += reply.input_tokens
    tally.output_tokens += reply.output_tokens
    tally.cached_tokens += reply.cached_tokens


def _shuffle(path: Path) -> None:
    """Rewrite a file with its lines in another, fixed order."""
    lines = [line + b"\n" for line in path.read_bytes().split(b"\n") if line]
    random.Random(len(lines)).shuffle(lines)  # noqa: S311 (no secret: the same disorder every time)
    path.write_bytes(b"".join(lines))
