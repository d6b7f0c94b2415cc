"""The checkpoint file: which words are done, which failed and why, what that cost so far.

    {"job_id", "processed_words": [...], "failed_words": {WORD: REASON}, "start_time", "total_cost", "total_tokens",
     "timestamp"}

A word is the key of a row, the cost is in dollars, times are UTC. It is an export: nothing goes on from it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from nightmill.types import usd

_encode = msgspec.json.Encoder().encode


class _Head(msgspec.Struct):
    job_id: str


_read_head = msgspec.json.Decoder(_Head).decode


@dataclass(frozen=True, slots=True)
class Words:
    """How some rows ended, as they stand in the file."""

    processed: bytes
    failed: bytes

    @classmethod
    def of(cls, results: pa.RecordBatch) -> Words:
        keys, good, errors = (results.column(name).to_pylist() for name in ("key", "success", "error"))
        failed = {key: error for key, is_good, error in zip(keys, good, errors, strict=True) if not is_good}
        processed = [key for key, is_good in zip(keys, good, strict=True) if is_good]
        return cls(_encode(processed)[1:-1], _encode(failed)[1:-1])


def rendered(
    job_id: str, words: Iterable[Words], *, began: dt.datetime | None, spent_nanos: int, tokens: int, at: dt.datetime
) -> Iterator[bytes]:
    """The whole file, piece by piece; ``words`` of all rows that ended, in input order."""
    held = list(words)
    totals: dict[str, Any] = {
        "start_time": began, "total_cost": usd(spent_nanos), "total_tokens": tokens, "timestamp": at,
    }  # fmt: skip
    yield b'{"job_id":' + _encode(job_id) + b',"processed_words":['
    yield b",".join(part.processed for part in held if part.processed)
    yield b'],"failed_words":{'
    yield b",".join(part.failed for part in held if part.failed)
    yield b"}," + _encode(totals)[1:] + b"\n"


def job_of(path: Path) -> str | None:
    """The job whose checkpoint this file is; None: it is something else."""
    try:
        return _read_head(path.read_bytes()).job_id
    except (OSError, msgspec.DecodeError):
        return None
