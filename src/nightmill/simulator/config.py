"""What a simulator is told once, and the clock its provider lives by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """How the simulated provider behaves.

    Waits named ``*_s`` are *provider seconds* and pass ``speed`` times faster than real ones, unless
    a fault's own parameter says otherwise. Time stamps on the wire stay wall-clock (plus ``skew_s``):
    a clock that ran ahead would make the ``Date`` header useless to anyone who reconciles by it.
    """

    speed: float = 1.0
    dir: Path | None = None  # where file contents lie; None = a temporary folder, removed at the end
    faults: Sequence[Mapping[str, Any]] = ()  # see `nightmill.simulator.faults`
    batch_s: float = 60.0  # from in_progress to all rows done
    validating_s: float = 2.0
    finalizing_s: float = 1.0
    cancel_s: float = 5.0  # from cancelling to cancelled
    window_s: float | None = None  # a batch that takes longer expires; None = as long as its provider allows
    latency_s: float = 0.0  # of a live call
    flex_latency_s: float | None = None  # of one in the flex tier; None = of any
    skew_s: float = 0.0  # real seconds the provider's clock is ahead of ours
    answer_tokens: int = 40  # median length of an answer
    answer_sigma: float = 0.5  # of the log of the length; 0 = every answer is equally long
    dimensions: int = 8  # of an embedding, unless the request says
    batch_cache_hits: float = 0.6  # share of a batch's requests that find what is cached of their prompts
    models: tuple[str, ...] = ()  # known beside the price catalogue's; they cost nothing
    enqueued_tokens: int | None = None  # most prompt tokens in unfinished batches of one model
    rpm: int = 0  # live requests a minute; 0 = no limit
    tpm: int = 0  # live tokens a minute; 0 = no limit
    max_rows: int | None = None  # of a batch; None = as many as its provider allows
    max_bytes: int | None = None  # of a batch's input; None = as large as its provider allows
    max_inputs: int = 50_000  # embedding inputs in a batch
    count_rows: int = 200_000  # distinct rows are counted up to here, then no more (memory)


class Clock:
    """Provider time: stamps by the wall clock, durations compressed."""

    def __init__(self, speed: float = 1.0, skew_s: float = 0.0) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be above 0, got {speed}")
        self._speed, self._skew_s = speed, skew_s
        self._started = time.monotonic()
        self._ahead_s = 0.0

    def stamp(self) -> int:
        """Unix seconds for the wire."""
        return int(self.unix())

    def unix(self) -> float:
        """Unix seconds, with their fraction."""
        return time.time() + self._skew_s

    def elapsed(self) -> float:
        """Provider seconds since the start; never goes back."""
        return (time.monotonic() - self._started) * self._speed + self._ahead_s

    def forward(self, provider_s: float) -> None:
        """Let so many provider seconds count as past: what a fault holds back shows. Waits under way stay as long."""
        if not provider_s >= 0:
            raise ValueError(f"time goes forward only, got {provider_s}")
        self._ahead_s += provider_s

    def real_s(self, provider_s: float) -> float:
        """Real seconds that ``provider_s`` takes."""
        return provider_s / self._speed

    async def sleep(self, provider_s: float) -> None:
        """Wait for ``provider_s`` provider seconds."""
        await asyncio.sleep(self.real_s(provider_s))
