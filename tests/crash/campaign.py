"""Runs many cases side by side, each on simulators and workers of its own, and keeps the score."""

from __future__ import annotations

import contextlib
import queue
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kit import DONE, PATIENT_S, Findings, Home, Nest, Scenario, Simulator, Slot, Worker, audit

_SLOTS = 4  # more than two processors: much of a case is waiting
LEASE_S = 2.5  # where a stopped worker's lease has to run out


@dataclass(frozen=True)
class Kill:
    """One case: stop ``scenario`` for good, or for a while, at the ``nth`` passing of ``point``."""

    scenario: Scenario
    point: str
    nth: int = 1
    how: str = "kill"

    def __str__(self) -> str:
        return f"{self.scenario} {self.how} {self.point}:{self.nth}"


def _take_over(home: Home, first: Worker, *, struck: bool) -> None:
    """Let another worker finish while ``first`` stands still, then wake it.

    Where it stands in a write transaction it holds SQLite's write lock, and everybody waits for it: it is woken
    under the other's eyes.
    """
    if struck and home.is_locked():
        second = home.start()
        first.wake()
        second.wait()
        first.wait()
        home.finish()
    else:
        home.finish()
        if struck:
            first.wake()
        first.wait()
    assert "Traceback" not in first.text(), first.said("the woken worker")


@dataclass
class Score:
    """What all cases of a kind came to."""

    cases: int = 0
    struck: int = 0  # the point was reached, and the worker stopped there
    lost: int = 0
    twice: int = 0  # beyond what the provider itself made run twice
    off_nanos: int = 0  # between what is booked as proven and what the answers on disk cost
    points: set[str] = field(default_factory=set)


class Campaign:
    """The cases of one test session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slots: queue.Queue[Slot] = queue.Queue()
        self._made: list[Slot] = []
        self._count = 0
        self.reached: dict[str, Counter[str]] = {}  # points by scenario, in order, and how often
        self.scores: dict[str, Score] = {}
        self.wrong: list[str] = []  # of the undisturbed runs

    def open(self) -> None:
        for _ in range(_SLOTS):
            slot = Slot(Simulator(), Nest())
            self._made.append(slot)
            self._slots.put(slot)

    def close(self) -> None:
        for slot in self._made:
            slot.nest.close()
            slot.simulator.close()

    # -- cases -------------------------------------------------------------------------------------

    def explore(self, scenarios: Iterable[Scenario]) -> list[str]:
        """Run each undisturbed and note the points it reaches; what was wrong."""
        return self._each(list(scenarios), self._explore)

    def strike(self, cases: Iterable[Kill]) -> list[str]:
        """Run each case; what was wrong."""
        return self._each(list(cases), self._strike)

    @contextlib.contextmanager
    def home(self, scenario: Scenario) -> Iterator[Home]:
        """A home of its own for a test that does its own killing."""
        slot = self._slots.get()
        self._count += 1
        try:
            with contextlib.closing(Home(self._folder / f"{self._count:04}", slot, scenario)) as home:
                yield home
        finally:
            self._slots.put(slot)

    def _each(self, cases: list[Scenario] | list[Kill], run: Callable[..., list[str]]) -> list[str]:
        with ThreadPoolExecutor(_SLOTS) as pool:
            return [wrong for found in pool.map(lambda case: self._guarded(run, case), cases) for wrong in found]

    def _guarded(self, run: Callable[..., list[str]], case: Scenario | Kill) -> list[str]:
        slot = self._slots.get()
        self._count += 1
        folder = self._folder / f"{self._count:04}"
        try:
            found = run(case, folder, slot)
        except Exception as error:  # a case that breaks is a defect of its own, and the others still count
            found = [f"{error}\n{traceback.format_exc(limit=-3)}"]
        finally:
            self._slots.put(slot)
        if not found:
            shutil.rmtree(folder, ignore_errors=True)
        return [f"{case}: {wrong} [{folder.name}]" for wrong in found]

    def _explore(self, scenario: Scenario, folder: Path, slot: Slot) -> list[str]:
        with contextlib.closing(Home(folder, slot, scenario)) as home:
            return self._run_through(scenario, home)

    def _run_through(self, scenario: Scenario, home: Home) -> list[str]:
        log = home.folder / "points"
        worker = home.start(log=log)
        assert worker.wait() in DONE, worker.said("not finished")
        self.reached[scenario.name] = Counter(log.read_text().split())
        found = audit(home)
        self._count_in("undisturbed", found, scenario, self.reached[scenario.name])
        return list(found.defects)

    def _strike(self, case: Kill, folder: Path, slot: Slot) -> list[str]:
        lease_s = PATIENT_S if case.how == "kill" else LEASE_S
        with contextlib.closing(Home(folder, slot, case.scenario, lease_s=lease_s)) as home:
            first = home.start(f"{case.point}:{case.nth}", how=case.how)
            if case.how == "kill":
                struck = first.wait() == -9
                home.finish()
            else:
                struck = first.wait_stopped()
                _take_over(home, first, struck=struck)
            found = audit(home)
        self._count_in(case.how, found, case.scenario, [case.point] if struck else [])
        return list(found.defects)

    def _count_in(self, kind: str, found: Findings, scenario: Scenario, points: Iterable[str]) -> None:
        score = self.scores.setdefault(kind, Score())
        score.cases += 1
        score.struck += bool(points)
        score.points.update(points)
        score.lost += found.lost
        if scenario.lane == "batch":
            score.twice += max(0, found.twice - scenario.twice)
        score.off_nanos += found.off_nanos

    # -- choosing ----------------------------------------------------------------------------------

    def points_of(self, scenarios: Iterable[Scenario]) -> dict[str, Scenario]:
        """Each point and the first of the scenarios that reaches it."""
        first: dict[str, Scenario] = {}
        for scenario in scenarios:
            for point in self.reached[scenario.name]:
                first.setdefault(point, scenario)
        return first

    def table(self) -> list[str]:
        lines = [
            f"{'':<12}{'points':>8}{'runs':>8}{'struck':>8}{'rows lost':>11}{'submitted twice':>17}{'money off':>11}"
        ]
        for kind, s in self.scores.items():
            numbers = (len(s.points), s.cases, s.struck, s.lost, s.twice, s.off_nanos)
            lines.append(f"{kind:<12}{''.join(f'{number:>17}' for number in numbers)}")
        return lines
