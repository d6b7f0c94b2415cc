"""What an output may tell of a job beside its results, and what of its input decides where they can go."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nightmill.sinks.vectors import Vectors

Status = Literal["pending", "running", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job's rows come from. ``folder`` and ``root`` are absolute."""

    columns: tuple[str, ...] = ()
    mode: str = "rows"  # what a row is: a ``line``, a ``file`` (its name is in the column ``path``), or other ``rows``
    folder: str = "/"  # in which the names of files begin
    root: str = "/"  # of the input: names below it are kept

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Origin:
        """What a job's record says."""
        return cls(tuple(spec["columns"]), spec["row_mode"], spec["folder"], spec["root"])


@dataclass(frozen=True, slots=True)
class About:
    """A job as its outputs tell of it; ``completed`` and ``failed`` are rows that ended so, of ``total``."""

    job_id: str = ""
    model: str = ""
    prompts: tuple[str, ...] = ()  # as they were given, a column's name where a row's value goes
    total: int = 0
    completed: int = 0
    failed: int = 0
    status: Status = "pending"
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    written_at: dt.datetime | None = None
    schema: Mapping[str, Any] | None = None  # of answers: in tables each of its top-level properties is a column
    vectors: Vectors | None = None  # of a job that asks for embeddings: in each output they have a column of their own
    origin: Origin = Origin()

    @property
    def job(self) -> dict[str, Any]:
        """What every document says of its job; times in ISO 8601, UTC."""
        names = ("job_id", "model", "prompts", "total", "completed", "failed", "status", "started_at", "completed_at")
        return {name: getattr(self, name) for name in names}
