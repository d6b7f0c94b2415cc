"""Beginnings of prompts that a provider keeps for a while, in words of no wire."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nightmill.simulator.config import Clock, SimulatorConfig


@dataclass(slots=True)
class _Kept:
    ready: float  # provider seconds
    until: float
    life_s: float


class Prefixes:
    """Beginnings by name. Thread-safe.

    One can be read from the end of the call on that wrote it, so that calls under way at the same time all write it;
    each read begins its life anew. In a batch finding one is a matter of luck.
    """

    def __init__(self, config: SimulatorConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._kept: dict[bytes, _Kept] = {}
        self._lock = threading.Lock()

    def read_or_write(
        self, looked_at: Sequence[bytes], kept: Iterable[tuple[bytes, float]], *, batch: bool, luck: int
    ) -> int | None:
        """Which of ``looked_at``, the best first, is there; what is ``kept`` is written with its life in seconds.

        Args:
            luck: a number that stands for the request; in a batch it decides whether anything is found.
        """
        may_find = not batch or luck % 1000 < self._config.batch_cache_hits * 1000
        with self._lock:
            now = self._clock.elapsed()
            found = next((i for i, name in enumerate(looked_at) if self._has(name, now)), None) if may_find else None
            if found is not None:
                entry = self._kept[looked_at[found]]
                entry.until = now + entry.life_s
            for name, life_s in kept:
                ready = now if self._has(name, now) else now + (0.0 if batch else self._config.latency_s)
                self._kept[name] = _Kept(ready, now + life_s, life_s)
        return found

    def _has(self, name: bytes, now: float) -> bool:
        entry = self._kept.get(name)
        return entry is not None and entry.ready <= now < entry.until
