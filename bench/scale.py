"""Claim: ten times the rows take the same memory, and no row more CPU than in a bare script.

JSON lines in; plan, the batch lane against the simulator (a process of its own), collecting, and an
export to JSON lines, CSV and Parquet. Memory is the peak of our process and its children, by VmHWM
where /proc has it; CPU is theirs too, and the simulator's is not in it. Rival: the same rows made into
requests, the same answers read and joined to them, the same three files, by ``json``, ``csv`` and
pyarrow, all in memory; nothing uploaded, polled or fetched, no prices, checks or duplicates, nothing
kept for a crash.
"""

from __future__ import annotations

import asyncio
import csv
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
    if sys.argv[1:2] == ["--bare"]:
        return bare(Path(sys.argv[2]), int(sys.argv[3]))
    given = arguments(__doc__, rows=1_000_000)
    small, large = given.rows // 10, given.rows
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        with simulator(folder) as url:
            (little, *_), (much, seconds, theirs) = (run(folder / str(rows), rows, url) for rows in (small, large))
    finally:
        shutil.rmtree(folder)
    stages = ", ".join(f"{name} {spent / large * 1e6:.1f}" for name, spent in seconds.items())
    name, ours = f"{large:,} rows", sum(seconds.values())
    figures = [
        Figure(f"peak memory of {name}, beside {small:,}", much / little, 1.15, at_most=True,
               note=f"{much:.0f} MB beside {little:.0f} MB"),
        Figure(f"peak memory of {name}", much, 400, "MB", at_most=True),
        Figure(f"CPU end to end, beside a bare script, {name}", ours / theirs, 1, at_most=True,
               note=f"{ours / large * 1e6:.1f} us a row beside {theirs / large * 1e6:.1f} ({stages})"),
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


def run(home: Path, rows: int, url: str) -> tuple[float, dict[str, float], float]:
    """Peak megabytes, CPU seconds by step, and those of the rival, each run in a process of its own."""
    home.mkdir()
    (home / "nightmill.toml").write_text(SETTINGS)
    write_rows(home / "rows.jsonl", rows)
    env = os.environ | {"OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": url, "NIGHTMILL_HOME": str(home / "home")}
    peak_mb, seconds = measured("--child", home, rows, env)
    _, theirs = measured("--bare", home, rows, env)
    shutil.rmtree(home)
    return peak_mb, seconds, sum(theirs.values())


def measured(what: str, home: Path, rows: int, env: dict[str, str]) -> tuple[float, dict[str, float]]:
    """Peak megabytes of a process, and the CPU seconds that it tells at its end."""
    process = subprocess.Popen(
        [sys.executable, __file__, what, str(home), str(rows)], stdout=subprocess.PIPE, text=True, env=env
    )
    watch = Watch(process.pid)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run of {rows:,} rows failed")
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
    from nightmill import sinks, wire
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
    with (home / "answers.jsonl").open("wb") as kept:  # for the rival
        for shard in mill.ledger.shards_of(job.id):
            for file in shard.files:
                with wire.open_wire(mill.store, file) as lines:
                    shutil.copyfileobj(lines, kept)
    mill.close()
    print(json.dumps(spent))
    return 0


def bare(home: Path, rows: int) -> int:
    """The script that anyone would write who has the answers already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before, _, after = PROMPT.partition("{{ text }}")
    with (home / "rows.jsonl").open(encoding="utf-8") as lines, (home / "sent").open("w", encoding="utf-8") as out:
        for i, line in enumerate(lines):
            content = before + json.loads(line)["text"] + after
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}
            out.write(json.dumps({"custom_id": str(i), "url": "/v1/chat/completions", "body": body}) + "\n")
    answers = {}
    with (home / "answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            said = json.loads(line)
            answers[int(said["custom_id"].rpartition("-")[2])] = said["response"]["body"]
    results = []
    with (home / "rows.jsonl").open(encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            answer, usage = answers[i]["choices"][0], answers[i]["usage"]
            results.append({
                "index": i, "prompt": before + json.loads(line)["text"] + after,
                "response": answer["message"]["content"], "tokens_in": usage["prompt_tokens"],
                "tokens_out": usage["completion_tokens"], "finish_reason": answer["finish_reason"],
                "model": answers[i]["model"],
            })  # fmt: skip
    assert len(results) == rows
    with (home / "bare.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(result) + "\n" for result in results)
    with (home / "bare.csv").open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, list(results[0]))
        table.writeheader()
        table.writerows(results)
    pq.write_table(pa.Table.from_pylist(results), home / "bare.parquet", compression="zstd")
    print(json.dumps({"bare": sum(os.times()[:4])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
