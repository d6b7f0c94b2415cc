"""Claim: ten times the rows take the same memory, and little CPU each.

JSON lines in; plan, the batch lane against the simulator (a process of its own), collecting, and an
export to JSON lines, CSV and Parquet. Memory is the peak of our process and its children, by VmHWM
where /proc has it; CPU is theirs too, and the simulator's is not in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from _kit import MODEL, PROMPT, Figure, arguments, report, write_rows

SETTINGS = """
[budget]
total = 1000000
[timing]
poll_s = 0.5
poll_max_s = 0.5
reread_s = 1.0
"""


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return whole_way(Path(sys.argv[2]), int(sys.argv[3]))
    given = arguments(__doc__, rows=1_000_000)
    small, large = given.rows // 10, given.rows
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        with simulator(folder) as url:
            (little, _), (much, seconds) = (run(folder / str(rows), rows, url) for rows in (small, large))
    finally:
        shutil.rmtree(folder)
    stages = ", ".join(f"{name} {spent / large * 1e6:.1f}" for name, spent in seconds.items())
    name = f"{large:,} rows"
    figures = [
        Figure(f"peak memory of {name}, beside {small:,}", much / little, 1.15, at_most=True,
               note=f"{much:.0f} MB beside {little:.0f} MB"),
        Figure(f"peak memory of {name}", much, 400, "MB", at_most=True),
        Figure(f"CPU a row, end to end, {name}", sum(seconds.values()) / large * 1e6, 60, "us", at_most=True,
               note=stages),
    ]  # fmt: skip
    return report(figures, as_json=given.json)


@contextmanager
def simulator(folder: Path) -> Iterator[str]:
    files = folder / "provider"
    files.mkdir()
    command = [sys.executable, "-m", "nightmill.simulator", "--speed", "1000", "--dir", str(files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait()


def run(home: Path, rows: int, url: str) -> tuple[float, dict[str, float]]:
    """Peak megabytes and CPU seconds by step of one run in a process of its own."""
    home.mkdir()
    (home / "nightmill.toml").write_text(SETTINGS)
    write_rows(home / "rows.jsonl", rows)
    env = os.environ | {"OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": url, "NIGHTMILL_HOME": str(home / "home")}
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", str(home), str(rows)], stdout=subprocess.PIPE, text=True, env=env
    )
    watch = Watch(process.pid)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run of {rows:,} rows failed")
    shutil.rmtree(home)
    return watch.peak_mb(), json.loads(said.splitlines()[-1])


class Watch:
    """The peak memory of a process and its children, looked at twenty times a second."""

    def __init__(self, pid: int) -> None:
        self._process, self._peak_bytes = psutil.Process(pid), 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def peak_mb(self) -> float:
        self._thread.join()
        return self._peak_bytes / 1e6

    def _look(self) -> None:
        try:
            while self._process.status() != psutil.STATUS_ZOMBIE:
                tree = [self._process, *self._process.children(recursive=True)]
                self._peak_bytes = max(self._peak_bytes, sum(map(_held_bytes, tree)))
                time.sleep(0.05)
        except psutil.NoSuchProcess:
            return


def _held_bytes(process: psutil.Process) -> int:
    """The most a process ever held, where the system tells; what it holds now elsewhere."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        try:
            return int(process.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0


# -- the process that is measured -----------------------------------------------------------------------


def whole_way(home: Path, rows: int) -> int:
    from nightmill import sinks
    from nightmill.config import load_settings
    from nightmill.mill import Mill, RunOptions

    spent: dict[str, float] = {}
    mark = time.process_time()

    def note(step: str) -> None:
        nonlocal mark
        now = sum(os.times()[:4])
        spent[step], mark = now - mark, now

    mill = Mill(load_settings(home, os.environ))
    prepared = mill.prepare(RunOptions((str(home / "rows.jsonl"),), prompt=PROMPT, model=MODEL, lane="batch"))
    job = mill.submit(prepared)
    note("plan")
    asyncio.run(mill.run([job.id]))
    note("run")
    done = mill.job(job.id)
    targets = [sinks.parse_target(str(home / f"out.{suffix}")) for suffix in ("jsonl", "csv", "parquet")]
    assert sinks.write_all(targets, mill.results(done)) == rows
    note("export")
    tally = mill.tally(done)
    assert done.state == "completed", done.state
    assert tally.counts.total == rows, tally
    mill.close()
    print(json.dumps(spent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
