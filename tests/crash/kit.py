"""What the crash tests share: a simulator that outlives its clients, a home, a worker to kill, and the audit.

Every case has its own home; the simulators are shared by many cases, one case at a time, and what a
case cost is the difference of two readings of the invoice.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil

from nightmill.config import load_settings
from nightmill.ledger import Job, Shard, SubmissionState
from nightmill.mill import Mill
from nightmill.simulator.billing import FREE, Catalogue
from nightmill.types import JobState, Lane, ShardState
from nightmill.wire import JOURNAL

WORKER = Path(__file__).with_name("worker.py")
SPEED = 600.0  # a batch of 60 s takes a tenth of one
MOST_RESTARTS = 6
CASES_A_SIMULATOR = 50
PATIENCE_S = 60.0
GLANCE_S = 0.02  # between two looks at a process
_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAC0lEQVR4nGNoIAAAO+AQAV4IW1gAAAAASUVORK5CYII="
)  # an image
DONE = (0, 3)  # exit codes: every row succeeded; finished with failed rows
OVERTAKEN = 2  # exit code: another worker did the same job while this one still planned it
PATIENT_S = 6.0  # a lease that nobody has to wait for: its owner is dead
MODEL = "gpt-4o-mini"
_NOT_OURS = ("NIGHTMILL_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_")  # of the environment that workers get

# Short, but long enough that a busy machine does not turn every create into a doubtful one.
TIMING = """
upload_timeout_s = 10.0
margin_s = 0.2
list_lag_s = 0.1
looks_s = [0.0, 0.1, 0.2]
reread_s = 0.1
poll_s = 0.03
poll_max_s = 0.1
backoff_first_s = 0.01
backoff_cap_s = 0.05
limit_wait_s = 0.1
doubt_alert_s = 0.2
"""


class Simulator:
    """The provider, as a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "nightmill.simulator", "--port", "0", "--speed", str(SPEED)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NIGHTMILL_")}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[1]
        self._root = self.url.removesuffix("/v1")

    @property
    def control(self) -> str:
        """Where it is told what to do, and tells what was done."""
        return f"{self._root}/simulator"

    def invoice(self) -> dict[str, Any]:
        return self._get("invoice")

    def log(self) -> list[dict[str, Any]]:
        return self._get("log")

    def faults(self, specs: list[dict[str, Any]]) -> None:
        body = json.dumps(specs).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.control}/faults", data=body, method="PUT")
        ) as answer:
            answer.read()

    def _get(self, name: str) -> Any:
        with urllib.request.urlopen(f"{self.control}/{name}") as answer:
            return json.load(answer)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=20)


class Slot:
    """What one case at a time has to itself."""

    def __init__(self, nest: Nest) -> None:
        self.simulator, self.nest = Simulator(), nest
        self._served = 0

    def serve(self) -> None:
        """Get ready for one more case: a simulator keeps all that it was asked, and every audit reads that."""
        self._served += 1
        if self._served % CASES_A_SIMULATOR == 0:
            self.simulator.close()
            self.simulator = Simulator()

    def close(self) -> None:
        self.simulator.close()


@dataclass(frozen=True)
class Scenario:
    """One command over one input, with what goes wrong at the provider, and what may come of it."""

    name: str
    lane: str
    rows: int = 6
    asked: Mapping[str, Any] = field(default_factory=dict)  # for worker.py
    faults: tuple[Mapping[str, Any], ...] = ()
    ends: JobState = JobState.COMPLETED
    failed: int = 0  # most rows that may end without an answer
    twice: int = 0  # most rows that the provider, not we, makes run twice
    unproven: bool = False  # money may stay booked that nobody can prove
    before: str = ""  # what happened before, a name of `BEFORE`
    toml: str = ""  # more settings
    deleted: bool = False  # the job is no more in the end
    model: str = f"openai/{MODEL}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Bill:
    """What the provider charged during a case."""

    nanos: int
    executed: int
    twice: int
    creates: tuple[Mapping[str, Any], ...]


class Home:
    """One case: a folder with its input and settings, and the processes that work there."""

    def __init__(self, folder: Path, slot: Slot, scenario: Scenario, *, lease_s: float = PATIENT_S) -> None:
        self.folder, self.scenario = folder, scenario
        self.simulator, self._nest = slot.simulator, slot.nest
        folder.mkdir(parents=True)
        self._workers: list[Worker] = []
        stamp = uuid.uuid4().hex  # other rows than any other case's, so that the simulator can tell them apart
        self._own_key = f"sk-{stamp}@{stamp}"  # where batches carry no name, one case must not see another's
        lines = [f"k{i},{stamp} row {i}" for i in range(scenario.rows)]
        if photos := scenario.asked.get("media"):
            lines = [f"{line},dot.png" for line in lines]
            (folder / "dot.png").write_bytes(_DOT + stamp.encode() * 100)  # no other case's file
        (folder / "in.csv").write_text(",".join(("id", "text", *(photos or ()))) + "\n" + "\n".join(lines) + "\n")
        longest = lease_s / 2  # of one call
        waits = f"lease_s = {lease_s}\ncreate_timeout_s = {longest}\nrequest_timeout_s = {longest}\n"
        self._toml = f"[timing]\n{waits}{TIMING}"
        self.settle_on(scenario.toml)
        self.simulator.faults([dict(fault) for fault in scenario.faults])
        self._before, self._events = self.simulator.invoice(), len(self.simulator.log())
        if scenario.before:
            BEFORE[scenario.before](self)

    def settle_on(self, toml: str) -> None:
        """More settings than the waits; earlier ones are forgotten."""
        (self.folder / "nightmill.toml").write_text(self._toml + toml)

    def crash(self, point: str) -> None:
        """Run until killed at ``point``."""
        worker = self.start(point)
        assert worker.wait() == -signal.SIGKILL, worker.said(f"{point} was not reached")

    def ledger(self) -> Path:
        return self.folder / "home/nightmill.db"

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_OURS)}
        return {
            **kept,
            "NIGHTMILL_HOME": str(self.folder / "home"),
            "OPENAI_API_KEY": "sk-crash",
            "OPENAI_KEY_2": "sk-crash-2@two",  # of an account that sees nothing of the first one's
            "OPENAI_BASE_URL": self.simulator.url,
            "ANTHROPIC_API_KEY": self._own_key,
            "ANTHROPIC_BASE_URL": self.simulator.url.removesuffix("/v1"),
            "GEMINI_API_KEY": "AIza-crash",
            "GEMINI_BASE_URL": self.simulator.url.removesuffix("/v1"),
        }

    def start(self, kill_at: str = "", *, how: str = "kill", log: Path | None = None, **more: Any) -> Worker:
        """A worker on the case's command; ``kill_at`` arms it."""
        env = self.env() | {"NIGHTMILL_KILL_AT": kill_at, "NIGHTMILL_KILL_HOW": how}
        if log is not None:
            env["NIGHTMILL_KILL_LOG"] = str(log)
        scenario = self.scenario
        asked = {"lane": scenario.lane, "model": scenario.model, "simulator": self.simulator.control,
                 "since": self._events, **scenario.asked, **more}  # fmt: skip
        errors = self.folder / f"stderr.{len(self._workers)}"
        self._workers.append(Worker(self._nest, self.folder, asked, env, errors))
        return self._workers[-1]

    def close(self) -> None:
        """End what is left of the case, so that nothing of it reaches the next."""
        for worker in self._workers:
            worker.end()

    def is_locked(self) -> bool:
        """Whether a process holds the ledger's write lock for longer than any transaction takes."""
        with contextlib.closing(sqlite3.connect(self.ledger(), timeout=0.3)) as ledger:
            try:
                ledger.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    def finish(self, **more: Any) -> int:
        """Start the same command until it says that all is done; how often that took."""
        for starts in range(1, MOST_RESTARTS + 1):
            worker = self.start(**more)
            code = worker.wait()
            if code in DONE or (code == 2 and self._is_exported(worker)):
                return starts
            assert code == 4, worker.said(f"exit {code}")
        raise AssertionError(f"not done after {MOST_RESTARTS} starts")

    def _is_exported(self, worker: Worker) -> bool:
        """Killed between the output and its own end: the command finds a file it does not want to replace."""
        return "out.jsonl exists" in worker.text()

    def billed_nanos(self) -> int:
        total: int = self.simulator.invoice()["total_nanos"] - self._before["total_nanos"]
        return total

    def bill(self) -> Bill:
        now, before = self.simulator.invoice(), self._before
        events = self.simulator.log()[self._events :]
        creates = tuple(e for e in events if e["event"] == "create" and e["batch_id"])
        return Bill(
            now["total_nanos"] - before["total_nanos"],
            now["executed_rows"] - before["executed_rows"],
            now["executed_more_than_once"] - before["executed_more_than_once"],
            creates,
        )

    @contextlib.contextmanager
    def mill(self) -> Iterator[Mill]:
        mill = Mill(load_settings(self.folder, self.env()))
        try:
            yield mill
        finally:
            mill.close()


class Nest:
    """Starts workers; see worker.py."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NIGHTMILL_")}
        command = [sys.executable, str(WORKER), "--nest"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: Mapping[str, Any]) -> int | None:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: int | None = json.loads(self._process.stdout.readline())
            return answer

    def close(self) -> None:
        self._process.communicate("", timeout=20)


class Worker:
    """One worker process."""

    def __init__(
        self, nest: Nest, folder: Path, asked: Mapping[str, Any], env: Mapping[str, str], errors: Path
    ) -> None:
        self._nest, self._errors = nest, errors
        self._code: int | None = None
        start = {"folder": str(folder), "asked": asked, "env": env, "errors": str(errors)}
        pid = nest.ask({"start": start})
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit code once it has one; negative: the signal that ended it."""
        if self._code is None:
            self._code = self._nest.ask({"poll": self.pid})
        return self._code

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code; one that does not end in time is killed, which is a defect."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(self.said(f"{self._stacks()}, not done after {timeout_s:g} s"))
            time.sleep(GLANCE_S)
        return code

    def _stacks(self) -> str:
        """Have it write where each of its threads is, and kill it; what state it was in."""
        state = str(psutil.Process(self.pid).status())
        for number in (signal.SIGUSR1, signal.SIGCONT):
            os.kill(self.pid, number)
        time.sleep(1.0)
        os.kill(self.pid, signal.SIGKILL)
        return state

    def wait_stopped(self) -> bool:
        """Wait until it stands still; False when it ended instead."""
        process = psutil.Process(self.pid)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.poll() is not None:
                return False
            if process.status() == psutil.STATUS_STOPPED:
                return True
            time.sleep(GLANCE_S)
        raise AssertionError(self.said("neither stopped nor ended"))

    def end(self) -> None:
        """Kill it if it still is."""
        while self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(GLANCE_S)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def said(self, what: str) -> str:
        return f"{what}: {self.text()[-3000:]}"

    def text(self) -> str:
        return self._errors.read_text(errors="replace")


# -- what happened before -------------------------------------------------------------------------------


def _crashed(point: str) -> Callable[[Home], None]:
    return lambda home: home.crash(point)


def _restored(point: str) -> Callable[[Home], None]:
    return lambda home: _restore(home, point)


def _restore(home: Home, point: str) -> None:
    """A backup of the ledger is put back that knows nothing of what was handed over until ``point``."""
    home.crash("ledger.publish_plan.committed")
    backup = home.folder / "backup.db"
    with contextlib.closing(sqlite3.connect(home.ledger())) as old, contextlib.closing(sqlite3.connect(backup)) as new:
        old.backup(new)
    home.crash(point)
    for name in ("nightmill.db-wal", "nightmill.db-shm"):
        (home.ledger().parent / name).unlink(missing_ok=True)
    backup.replace(home.ledger())


def _dearer(home: Home) -> None:
    """The job was confirmed at half of what it costs now."""
    half = "{ input = 0.075, output = 0.3, batch_input = 0.0375, batch_output = 0.15 }"
    home.settle_on(f'[models."openai/{MODEL}"]\nprice = {half}\n')
    home.crash("ledger.publish_plan.committed")
    home.settle_on("")


def _made_elsewhere(home: Home) -> None:
    """Somebody else made a batch of the rows, with the same key; its id lies in the folder."""
    rows = [line.split(",") for line in (home.folder / "in.csv").read_text().splitlines()[1:]]
    lines = [
        {"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": text}]}}
        for key, text in rows
    ]  # fmt: skip
    with openai.OpenAI(base_url=home.simulator.url, api_key="sk-crash", max_retries=0) as client:
        text = "\n".join(map(json.dumps, lines)).encode()
        sent = client.files.create(file=("theirs.jsonl", text), purpose="batch")
        made = client.batches.create(
            input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"who": "they"}
        )
    (home.folder / "elsewhere").write_text(made.id)


def _torn(home: Home) -> None:
    """Killed while sending, and the last line of the journal is cut."""
    home.crash("live.journaled:3")
    (journal,) = home.folder.glob("home/jobs/*/wire/*.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole[: whole.rindex(b'{"id"') + 40])


BEFORE: dict[str, Callable[[Home], None]] = {
    "killed while waiting": _crashed("ledger.note_polled.committed"),
    "killed while sending": _crashed("live.journaled:2"),
    "restored after a create": _restored("ledger.note_created.committed"),
    "restored after an upload": _restored("http.upload.answered"),
    "dearer": _dearer,
    "torn": _torn,
    "made elsewhere": _made_elsewhere,
}


# -- the audit ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What an audit measured; the defects are sentences."""

    lost: int
    twice: int
    off_nanos: int
    unproven_nanos: int
    defects: tuple[str, ...]


def audit(home: Home) -> Findings:
    """Compare the ledger, the files and the provider's invoice once all is over."""
    with home.mill() as mill:
        return _Audit(home, mill).run()


class _Audit:
    def __init__(self, home: Home, mill: Mill) -> None:
        self._home, self._mill = home, mill
        self._scenario = home.scenario
        self._bill = home.bill()
        self._defects: list[str] = []
        self._lost = 0

    def run(self) -> Findings:
        mill = self._mill
        jobs = mill.ledger.jobs()
        if self._scenario.deleted:
            return self._check_deleted(jobs)
        self._expect(bool(jobs), "no job at all")
        for job in jobs:
            self._check_job(job)
        shards = [shard for job in jobs for shard in mill.ledger.shards_of(job.id)]
        self._check_files(shards)
        self._check_output()
        spent = sum(s.spent_nanos for shard in shards for s in shard.submissions)
        unproven = sum(s.unproven_nanos for shard in shards for s in shard.submissions)
        self._check_limits(spent)
        off = self._check_money(shards, spent, unproven)
        return Findings(self._lost, self._bill.twice, off, unproven, tuple(self._defects))

    def _check_deleted(self, jobs: list[Job]) -> Findings:
        """Nothing of the job is left but its money; what a worker wrote that was frozen meanwhile a sweep removes."""
        self._expect(not jobs and len(self._mill.ledger.deletions()) == 1, f"jobs are left: {jobs}")
        asyncio.run(self._mill.sweep(older_than_s=0.0))
        folders = list((self._home.folder / "home/jobs").iterdir())
        self._expect(not folders, f"folders are left: {folders}")
        spent = sum(limit.spent_nanos for limit in self._mill.ledger.limits() if limit.scope == "total")
        self._check_limits(spent)
        off = abs(spent - self._bill.nanos)
        self._expect(off == 0, f"spent {spent}; invoice {self._bill.nanos}")
        return Findings(0, self._bill.twice, off, 0, tuple(self._defects))

    def _expect(self, holds: bool, text: str) -> None:
        if not holds:
            self._defects.append(text)

    def _check_job(self, job: Job) -> None:
        scenario = self._scenario
        rows = [row for batch in self._mill.results(job) for row in batch.to_pylist()]
        all_failed = scenario.failed == scenario.rows and not any(row["success"] for row in rows)
        ends = JobState.FAILED if scenario.ends is JobState.COMPLETED and all_failed else scenario.ends
        self._expect(job.state is ends, f"job {job.id} ended {job.state}, not {ends} ({job.reason})")
        self._lost += max(0, scenario.rows - len({row["index"] for row in rows}))
        self._expect([r["index"] for r in rows] == list(range(scenario.rows)), f"{len(rows)} rows of {scenario.rows}")
        self._expect([r["key"] for r in rows] == [f"k{i}" for i in range(len(rows))], "keys are not the input's")
        kinds = Counter(row["error_kind"] for row in rows if not row["success"])
        self._expect(None not in kinds, "a row failed without a kind")
        self._expect(sum(kinds.values()) <= scenario.failed, f"rows failed: {dict(kinds)}")
        tally = self._mill.tally(job)
        self._expect(tally.open == 0, f"{tally.open} requests are open")
        counts = job.counts or {}
        told = (counts.get("succeeded"), sum(counts.values()))
        self._expect(told == (sum(r["success"] for r in rows), scenario.rows), f"the job says {counts}")

    def _check_files(self, shards: list[Shard]) -> None:
        for shard in shards:
            self._expect(shard.state is ShardState.SETTLED, f"{shard.tag} is {shard.state}")
            for sub in shard.submissions:
                over = sub.state in (SubmissionState.BOOKED, SubmissionState.GONE, SubmissionState.LOST)
                self._expect(over and not sub.hold_nanos, f"{sub.name} is {sub.state}, holds {sub.hold_nanos}")
            for file in (shard.file, *(f.ref for f in shard.files if f.kind != JOURNAL)):
                self._mill.store.verify(file)

    def _check_output(self) -> None:
        """Whole or not at all."""
        output = self._home.folder / "out.jsonl"
        if output.exists():
            indexes = [json.loads(line)["index"] for line in output.read_text().splitlines()]
            self._expect(indexes == list(range(self._scenario.rows)), f"{output.name} has rows {indexes}")

    def _check_limits(self, spent: int) -> None:
        lowered = self._scenario.asked.get("command") == "poor"  # below what was spent, perhaps: that is no defect
        limits = self._mill.ledger.limits()
        for kind in ("total", "day:", "month:"):  # a case may run over midnight
            said = sum(limit.spent_nanos for limit in limits if limit.scope.startswith(kind))
            self._expect(said == spent, f"{kind} says {said}, shards {spent}")
        for limit in limits:
            self._expect(limit.held_nanos == 0, f"{limit.scope} still holds {limit.held_nanos}")
            if limit.cap_nanos is not None and not lowered:
                self._expect(limit.spent_nanos <= limit.cap_nanos, f"{limit.scope} is over its cap")

    def _check_money(self, shards: list[Shard], spent: int, unproven: int) -> int:
        """By how much the books are off; zero is the only good answer."""
        bill, scenario = self._bill, self._scenario
        proven, off = spent - unproven, 0
        if scenario.lane == Lane.BATCH and not scenario.unproven:
            self._expect(unproven == 0, f"{unproven} unproven")
            off = abs(spent - bill.nanos)
        off = max(off, bill.nanos - spent, proven - bill.nanos)
        if Lane(scenario.lane).is_live:
            off = max(off, abs(proven - self._journaled(shards)))
            in_flight = sum(1 for shard in shards for _ in _unanswered(self._mill, shard))
            self._expect(bill.twice <= in_flight, f"{bill.twice} rows ran twice, {in_flight} were in flight")
            self._expect(bool(unproven) == bool(in_flight), f"{unproven} unproven for {in_flight} sends")
        else:
            self._expect(bill.twice <= scenario.twice, f"{bill.twice} rows ran twice")
        self._expect(off == 0, f"spent {spent}, of it unproven {unproven}; invoice {bill.nanos}")
        return off

    def _journaled(self, shards: list[Shard]) -> int:
        """What the answers on disk cost, by the simulator's own rates, each in the tier that it says it is of."""
        provider, _, model = self._scenario.model.partition("/")
        catalogue = Catalogue(provider="google" if provider == "gemini" else provider)
        cards = {tier: catalogue.card(model, batch=False, tier=tier) or FREE for tier in ("", "flex")}
        live = [line for shard in shards if shard.lane.is_live for line in _answers(self._mill, shard)]
        used = zip(map(_tier, live), map(_tokens, live), strict=True)
        return sum(cards[tier].nanos(*tokens) for tier, tokens in used if tokens)


def _tier(line: dict[str, Any]) -> str:
    body = (line.get("response") or {}).get("body")
    return "flex" if isinstance(body, dict) and body.get("service_tier") == "flex" else ""


def _tokens(line: dict[str, Any]) -> tuple[int, int] | None:
    """What an answer in a live journal used, input and output, in whichever format it is; None: nothing was answered.

    No row of these scenarios is cached anywhere.
    """
    answer = line.get("response") or line.get("result") or {}
    if told := answer.get("usageMetadata"):
        return told["promptTokenCount"], told["candidatesTokenCount"] + told.get("thoughtsTokenCount", 0)
    if told := (answer.get("message") or {}).get("usage"):
        return told["input_tokens"], told["output_tokens"]
    if told := (answer.get("body") or {}).get("usage"):
        return told["prompt_tokens"], told["completion_tokens"]
    return None


def _journals(mill: Mill, shard: Shard) -> Iterator[list[dict[str, Any]]]:
    """The lines of each of a live shard's journals, as far as they count."""
    for file in shard.files:
        path = mill.store.path(file.ref.path)
        if file.kind == JOURNAL and path.exists():
            raw = path.read_bytes()[: file.ref.size_bytes if file.ref.digest else None]
            yield [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]


def _answers(mill: Mill, shard: Shard) -> Iterator[dict[str, Any]]:
    """The answers in a live shard's journals."""
    return (line for lines in _journals(mill, shard) for line in lines if _name(line))


def _name(line: dict[str, Any]) -> str | None:
    """Which request a line is the answer to; None: it is a mark."""
    name: str | None = line.get("custom_id") or line.get("key")
    return name


def _unanswered(mill: Mill, shard: Shard) -> Iterator[str]:
    """The sends of a live shard that may have been billed and have no answer."""
    for lines in _journals(mill, shard):
        pending: set[str] = set()
        for line in lines:
            if "sent" in line:
                pending.add(line["sent"])
            elif "lost" in line:
                pending.discard(line["lost"])
                yield line["lost"]
            else:
                pending.discard(line.get("unsent") or _name(line))
        yield from pending


class BudgetWatch:
    """Samples the limits while processes work: neither the books nor the provider's bill ever pass them."""

    def __init__(self, home: Home) -> None:
        self._home, self._path = home, home.ledger()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.samples = self.most = 0  # the latter: nanos spent and held
        self.passed: list[str] = []

    def __enter__(self) -> BudgetWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(GLANCE_S):
            if self._path.exists():
                with contextlib.suppress(sqlite3.OperationalError):  # not made yet
                    self._look()

    def _look(self) -> None:
        billed = self._home.billed_nanos()
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as ledger:
            for scope, cap, spent, held in ledger.execute(
                "SELECT scope, cap_nanos, spent_nanos, held_nanos FROM limits"
            ):
                if cap is not None and spent + held > cap:
                    self.passed.append(f"{scope}: spent {spent} + held {held} > {cap}")
                self.most = max(self.most, spent + held)
                if scope == "total" and billed > spent + held:
                    self.passed.append(f"the provider billed {billed}; {scope} has {spent} + {held}")
        self.samples += 1
