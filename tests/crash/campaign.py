"""Runs many cases side by side, each on simulators and workers of its own, and keeps the score."""

from __future__ import annotations

import contextlib
import itertools
import queue
import shutil
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kit import DONE, PATIENT_S, Findings, Home, Nest, Scenario, Slot, Worker, audit
from points import known_points

_SLOTS = 6  # more than two processors: much of a case is waiting
LEASE_S = 2.5  # where a stopped worker's lease has to run out


@dataclass(frozen=True)
class Case:
    """One home, and what is done in it."""

    scenario: Scenario

    @property
    def lease_s(self) -> float:
        return PATIENT_S

    def __str__(self) -> str:
        return str(self.scenario)


@dataclass(frozen=True)
class Kill(Case):
    """Stop the scenario's command for good, or for a while, at the ``nth`` passing of ``point``."""

    point: str
    nth: int = 1
    how: str = "kill"

    @property
    def lease_s(self) -> float:
        return PATIENT_S if self.how == "kill" else LEASE_S

    def __str__(self) -> str:
        return f"{self.scenario} {self.how} {self.point}:{self.nth}"


AnyCase = TypeVar("AnyCase", bound=Case)


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
    meant: set[str] = field(default_factory=set)  # points
    points: set[str] = field(default_factory=set)  # of these, those at which a worker was stopped


class Campaign:
    """The cases of one test session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slots: queue.LifoQueue[Slot | None] = queue.LifoQueue()  # None: one that nobody needed yet
        self._nest: Nest | None = None
        self._made: list[Slot] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # of the scores
        self.reached: dict[str, Counter[str]] = {}  # points by scenario, in order, and how often
        self.scores: dict[str, Score] = {}
        self.wrong: list[str] = []  # of the undisturbed runs

    def open(self) -> None:
        self._nest = Nest()
        for _ in range(_SLOTS):
            self._slots.put(None)

    def close(self) -> None:
        for slot in self._made:
            slot.close()
        if self._nest is not None:
            self._nest.close()

    # -- cases -------------------------------------------------------------------------------------

    def explore(self, scenarios: Iterable[Scenario]) -> list[str]:
        """Run each undisturbed and note the points it reaches; what was wrong."""
        return self.each((Case(scenario) for scenario in scenarios), self._explore)

    def strike(self, cases: Iterable[Kill]) -> list[str]:
        """Run each case; what was wrong."""
        return self.each(cases, self._strike)

    def each(self, cases: Iterable[AnyCase], run: Callable[[AnyCase, Home], list[str]]) -> list[str]:
        """``run`` each case in a home of its own, several at once; what was wrong, case by case."""
        with ThreadPoolExecutor(_SLOTS) as pool:
            return [wrong for found in pool.map(lambda case: self._guarded(run, case), cases) for wrong in found]

    @contextlib.contextmanager
    def home(self, scenario: Scenario) -> Iterator[Home]:
        """A home of its own for a test that does its own killing."""
        with self._slot() as slot, contextlib.closing(Home(self._next_folder(), slot, scenario)) as home:
            yield home

    @contextlib.contextmanager
    def _slot(self) -> Iterator[Slot]:
        slot = self._slots.get()
        try:
            if slot is None:
                assert self._nest is not None
                slot = Slot(self._nest)
                self._made.append(slot)
            slot.serve()
            yield slot
        finally:
            self._slots.put(slot)

    def _next_folder(self) -> Path:
        return self._folder / f"{next(self._numbers):05}"

    def _guarded(self, run: Callable[[AnyCase, Home], list[str]], case: AnyCase) -> list[str]:
        folder = self._next_folder()
        try:
            with (
                self._slot() as slot,
                contextlib.closing(Home(folder, slot, case.scenario, lease_s=case.lease_s)) as home,
            ):
                found = run(case, home)
        except Exception as error:  # a case that breaks is a defect of its own, and the others still count
            found = [f"{error}\n{traceback.format_exc(limit=-3)}"]
        if not found:
            shutil.rmtree(folder, ignore_errors=True)
        return [f"{case}: {wrong} [{folder.name}]" for wrong in found]

    def _explore(self, case: Case, home: Home) -> list[str]:
        log = home.folder / "points"
        worker = home.start(log=log)
        assert worker.wait() in DONE, worker.said("not finished")
        points = self.reached[case.scenario.name] = Counter(log.read_text().split())
        return self.judge("undisturbed", home, points, points)

    def _strike(self, case: Kill, home: Home) -> list[str]:
        first = home.start(f"{case.point}:{case.nth}", how=case.how)
        if case.how == "kill":
            struck = first.wait() == -9
            home.finish()
        else:
            struck = first.wait_stopped()
            _take_over(home, first, struck=struck)
        return self.judge(case.how, home, [case.point], [case.point] if struck else [])

    # -- the score ---------------------------------------------------------------------------------

    def judge(self, kind: str, home: Home, meant: Iterable[str], struck: Iterable[str]) -> list[str]:
        """Audit a home in which all is over, and count it under ``kind``; what was wrong."""
        found = audit(home)
        with self._lock:
            self._count(self.scores.setdefault(kind, Score()), found, home.scenario)
            self.scores[kind].meant.update(meant)
            points = set(struck)
            self.scores[kind].struck += bool(points)
            self.scores[kind].points |= points
        return list(found.defects)

    def _count(self, score: Score, found: Findings, scenario: Scenario) -> None:
        score.cases += 1
        score.lost += found.lost
        if scenario.lane == "batch":
            score.twice += max(0, found.twice - scenario.twice)
        score.off_nanos += found.off_nanos

    def missed(self) -> list[str]:
        """The known points at which no worker was stopped in any scenario, though one was meant to be."""
        known, scores = known_points(), {kind: self.scores.get(kind, Score()) for kind in ("kill", "stop")}
        return [f"{kind} {p}" for kind, score in scores.items() for p in sorted(known & score.meant - score.points)]

    def points_of(self, scenarios: Iterable[Scenario]) -> dict[str, Scenario]:
        """Each point and the first of the scenarios that reaches it."""
        first: dict[str, Scenario] = {}
        for scenario in scenarios:
            for point in self.reached[scenario.name]:
                first.setdefault(point, scenario)
        return first

    def table(self) -> list[str]:
        widths = (8, 8, 8, 11, 17, 11)
        heads = ("points", "runs", "struck", "rows lost", "submitted twice", "money off")
        lines = [" " * 20 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
        for kind, s in self.scores.items():
            numbers = (len(s.points), s.cases, s.struck, s.lost, s.twice, s.off_nanos)
            lines.append(f"{kind:<20}" + "".join(f"{n:>{width}}" for n, width in zip(numbers, widths, strict=True)))
        known = known_points()
        unseen = known - {point for points in self.reached.values() for point in points}
        lines.append(f"points in the code: {len(known)}, of which {len(unseen)} were not reached")
        return [*lines, *(f"nobody was stopped at: {missed}" for missed in self.missed())]
