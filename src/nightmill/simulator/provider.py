"""Everything one simulated provider holds, handed to the request handlers as a whole.

Each format has a provider of its own, with its own files, batches, models and bill; the clock, the faults and the log
are one for all.
"""

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
from nightmill.simulator.formats import Format
from nightmill.simulator.prefixes import Prefixes

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
class Shared:
    """What all providers of one simulator have in common."""

    config: SimulatorConfig
    clock: Clock
    faults: FaultBook
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_LOG_LENGTH))

    @classmethod
    def of(cls, config: SimulatorConfig) -> Shared:
        """Nothing has happened yet. Raises ValueError for a configuration that is wrong."""
        return cls(config, Clock(config.speed, config.skew_s), FaultBook(config.faults))


@dataclass(slots=True)
class Provider:
    """The state of one provider."""

    config: SimulatorConfig
    clock: Clock
    faults: FaultBook
    files: FileStore
    catalogue: Catalogue
    model: Model
    prefixes: Prefixes  # of prompts, that it keeps
    invoice: Invoice
    batches: BatchRunner
    requests: Quota
    tokens: Quota
    max_bytes: int  # of a batch's input
    events: deque[dict[str, Any]]

    @classmethod
    def of(cls, wire: Format, shared: Shared) -> Provider:
        """A provider with nothing in it; `files` is to be opened before the first request."""
        config, clock = shared.config, shared.clock
        files, catalogue, invoice = (
            FileStore(clock.elapsed),
            Catalogue(config.models, wire.prices),
            Invoice(config.count_rows),
        )
        model, faults = Model(config), shared.faults
        prefixes = Prefixes(config, clock)
        rows = wire.rows(model, catalogue, files, prefixes)
        return cls(
            config=config,
            clock=clock,
            faults=faults,
            files=files,
            catalogue=catalogue,
            model=model,
            prefixes=prefixes,
            invoice=invoice,
            batches=BatchRunner(wire, rows, config, clock, files, catalogue, invoice, faults.count),
            requests=Quota(config.rpm, clock),
            tokens=Quota(config.tpm, clock),
            max_bytes=wire.max_bytes if config.max_bytes is None else config.max_bytes,
            events=shared.events,
        )

    def note(self, event: str, status: int | None, *, dropped: bool = False, **facts: Any) -> None:
        """Add a line to the log of what was asked and answered."""
        self.events.append({"event": event, "time": self.clock.unix(), "status": status, "dropped": dropped, **facts})
