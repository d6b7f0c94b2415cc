"""Everything one simulated provider holds, handed to the request handlers as a whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from nightmill.simulator.answering import Model
from nightmill.simulator.batches import BatchRunner
from nightmill.simulator.billing import Catalogue, Invoice
from nightmill.simulator.config import Clock, SimulatorConfig
from nightmill.simulator.faults import FaultBook
from nightmill.simulator.files import FileStore

_LOG_LENGTH = 100_000
_UNLIMITED = 10_000_000  # what the headers claim where nothing is limited


class Quota:
    """A bucket that refills continuously to ``per_minute``; 0 = it is never empty."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.limited = per_minute > 0
        self.limit = per_minute or _UNLIMITED
        self._clock = clock
        self._level, self._at = float(self.limit), clock.elapsed()

    def remaining(self) -> int:
        """What is left now."""
        now = self._clock.elapsed()
        self._level = min(float(self.limit), self._level + (now - self._at) * self.limit / 60)
        self._at = now
        return int(self._level)

    def wait_s(self, amount: int) -> float:
        """Provider seconds until ``amount`` is there; 0 when it is."""
        lacking = min(amount, self.limit) - self.remaining()
        return max(0.0, lacking * 60 / self.limit) if self.limited else 0.0

    def spend(self, amount: int) -> None:
        """Take ``amount`` out; the level may go below zero, as tokens are known only afterwards."""
        self.remaining()
        if self.limited:
            self._level -= amount

    def reset_s(self) -> float:
        """Provider seconds until it is full again."""
        return max(0.0, (self.limit - self._level) * 60 / self.limit)


@dataclass(slots=True)
class Provider:
    """The state of one simulator."""

    config: SimulatorConfig
    clock: Clock
    faults: FaultBook
    files: FileStore
    catalogue: Catalogue
    model: Model
    invoice: Invoice
    batches: BatchRunner
    requests: Quota
    tokens: Quota
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_LOG_LENGTH))

    @classmethod
    def of(cls, config: SimulatorConfig) -> Provider:
        """A provider with nothing in it; `files` is to be opened before the first request."""
        clock = Clock(config.speed, config.skew_s)
        files, catalogue, invoice = FileStore(), Catalogue(config.models), Invoice(config.count_rows)
        model = Model(config, catalogue)
        return cls(
            config=config,
            clock=clock,
            faults=FaultBook(config.faults),
            files=files,
            catalogue=catalogue,
            model=model,
            invoice=invoice,
            batches=BatchRunner(config, clock, files, catalogue, model, invoice),
            requests=Quota(config.rpm, clock),
            tokens=Quota(config.tpm, clock),
        )

    def note(self, event: str, status: int | None, *, dropped: bool = False, **facts: Any) -> None:
        """Add a line to the log of what was asked and answered."""
        self.events.append({"event": event, "time": self.clock.unix(), "status": status, "dropped": dropped, **facts})
