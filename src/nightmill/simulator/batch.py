"""A batch: what is known of it, and its states in words of no wire."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from nightmill.simulator.billing import Tally
from nightmill.simulator.faults import Params
from nightmill.simulator.files import THIRTY_DAYS_S
from nightmill.simulator.formats import BatchRefused


class State(StrEnum):
    """Where a batch is."""

    VALIDATING = "validating"
    RUNNING = "running"
    FINISHING = "finishing"
    CANCELLING = "cancelling"
    ENDED = "ended"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"  # as a whole: before anything ran, but for a fault


TERMINAL = frozenset({State.ENDED, State.EXPIRED, State.CANCELLED, State.FAILED})


def new_id(prefix: str) -> str:
    """A fresh id such as ``batch_68f0...``."""
    return prefix + secrets.token_hex(16)


@dataclass(slots=True)
class Batch:
    """One batch and what became of it so far."""

    id: str
    scope: str
    created_at: float  # unix seconds
    created_elapsed: float  # provider seconds, for `late_listing`
    facts: Mapping[str, Any]  # what its format remembers of the create
    key: str = ""  # that pays
    input: Path | None = None  # its own link to the input; None: its format finds it when it is validated
    faults: Mapping[str, Params] = field(default_factory=dict)
    keep_s: int = THIRTY_DAYS_S  # of the result files
    state: State = State.VALIDATING
    model: str | None = None  # of all its requests; None before that is known, "" where they differ
    total: int = 0
    asked_before: int = 0  # requests that the provider was given before those of this batch
    tokens: int = 0  # prompt tokens that count as enqueued
    running_since: float | None = None  # provider seconds
    stopped_at: int | None = None  # rows done when it was cancelled or expired
    tally: Tally | None = None
    error: BatchRefused | None = None
    unexplained: bool = False
    output_file_id: str | None = None
    error_file_id: str | None = None
    ended_elapsed: float | None = None
    stamps: dict[str, float] = field(default_factory=dict)  # unix seconds at which it came into a state
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def late(self, fault: str, elapsed: float) -> bool:
        """Whether ``fault`` still holds back a result of this batch at ``elapsed`` provider seconds."""
        told = self.faults.get(fault)
        if told is None or self.ended_elapsed is None:
            return False
        return elapsed < self.ended_elapsed + float(told.get("lag_s", 60))


def find_progress(batch: Batch, elapsed: float, batch_s: float) -> int:
    """Rows done by now."""
    if batch.stopped_at is not None:
        return batch.stopped_at
    if batch.running_since is None:
        return 0
    share = 1.0 if batch_s <= 0 else (elapsed - batch.running_since) / batch_s
    return max(0, min(batch.total, int(batch.total * share)))
