"""Claim: rows in and results out take the same memory for a million as for a hundred thousand, in every format.

In: one pass of the whole plan over a CSV, JSON Lines or Parquet file. Out: as many results written to one.
Each in a process of its own. Memory is its peak, beside that with a tenth of the rows; rows a second are
by the CPU time of the process, start and imports aside.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from _kit import Figure, arguments, order_for, report, words, write_rows
from scale import Watch

FORMATS = ("csv", "jsonl", "parquet")
_CHUNK = 5_000
_FLOORS = {"in": 25_000, "out": 40_000}  # rows a second: what a laptop core does, halved and halved again
_RATIO, _MOST_MB = 1.25, 400


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    given = arguments(__doc__, rows=1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="bench-formats-"))
    figures: list[Figure] = []
    try:
        for way in ("in", "out"):
            for name in FORMATS:
                figures += measure(way, name, folder, given.rows)
    finally:
        shutil.rmtree(folder)
    return report(figures, as_json=given.json)


def measure(way: str, name: str, folder: Path, rows: int) -> list[Figure]:
    """Memory and speed of one direction of one format."""
    small, large = rows // 10, rows
    (little, _), (much, rate) = (run(way, name, folder, count) for count in (small, large))
    what = f"{large:,} rows {'from' if way == 'in' else 'to'} {name}"
    note = f"{much:.0f} MB beside {little:.0f} MB of {small:,}"
    return [
        Figure(f"peak memory of {what}", much / little, _RATIO, at_most=True, note=note),
        Figure(f"peak memory of {what}, whole", much, _MOST_MB, "MB", at_most=True),
        Figure(f"speed of {what}", rate, _FLOORS[way], "rows/s", note=f"{1e6 / rate:.1f} us of CPU a row"),
    ]


def run(way: str, name: str, folder: Path, rows: int) -> tuple[float, float]:
    """Peak megabytes, and rows a second, of one process."""
    path = folder / f"rows.{name}"
    if way == "in":
        MAKERS[name](folder, path, rows)
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", way, str(path), str(rows)], stdout=subprocess.PIPE, text=True
    )
    watch = Watch(process.pid)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way} {path.name} of {rows:,} rows failed")
    path.unlink()
    return watch.peak_mb(), rows / json.loads(said)


# -- inputs ----------------------------------------------------------------------------------------------


def _rows(folder: Path, rows: int) -> Iterator[dict[str, Any]]:
    source = write_rows(folder / "made.jsonl", rows)
    with source.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
    source.unlink()


def make_csv(folder: Path, path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(_rows(folder, rows))


def make_jsonl(_folder: Path, path: Path, rows: int) -> None:
    write_rows(path, rows)


def make_parquet(folder: Path, path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, source = pa.schema([("id", pa.string()), ("text", pa.string())]), _rows(folder, rows)
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(source, _CHUNK)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema))


MAKERS: dict[str, Callable[[Path, Path, int], None]] = {
    "csv": make_csv,
    "jsonl": make_jsonl,
    "parquet": make_parquet,
}


# -- the process that is measured ------------------------------------------------------------------------


def child(way: str, path: Path, rows: int) -> int:
    work = plan if way == "in" else write
    print(work(path, rows))
    return 0


def plan(path: Path, rows: int) -> float:
    """CPU seconds of planning every row of ``path``."""
    from nightmill.plan import make_plan
    from nightmill.store import Store

    order, store = order_for(path), Store(path.parent / "home")
    started = time.process_time()
    made = make_plan(order, store, "0123456789abcd")
    spent = time.process_time() - started
    assert made.rows == rows
    shutil.rmtree(path.parent / "home")
    return spent


def write(path: Path, rows: int) -> float:
    """CPU seconds of writing so many results to ``path``."""
    from nightmill import sinks

    first = results(min(rows, _CHUNK))  # what it takes to make results is not what is measured
    started = time.process_time()
    count = sinks.write_all([sinks.parse_target(str(path))], (_moved(first, at) for at in range(0, rows, _CHUNK)))
    assert count == rows
    return time.process_time() - started


def results(count: int) -> Any:
    """A batch of results as a job has them."""
    import random

    import pyarrow as pa

    from nightmill.sinks import RESULT_SCHEMA

    chance = random.Random(7)
    texts = [words(chance, 300) for _ in range(count)]
    said: dict[str, Any] = {
        "index": 0, "prompt": texts, "response": [words(chance, 120) for _ in range(count)], "success": True,
        "tokens_in": 80, "tokens_out": 30, "duration": 0.5, "finish_reason": "stop", "model": "gpt-4o-mini-2024-07-18",
        "provider": "openai", "lane": "batch", "tokens_cached": 0, "cost_nanos": 12_345, "cost_estimated": False,
        "attempt": 1, "shard": "0123456789abcd-0", "batch_id": "batch_0123456789",
        "key": [f"r{i}" for i in range(count)],
    }  # fmt: skip
    columns = []
    for field in RESULT_SCHEMA:
        value = said.get(field.name)
        columns.append(pa.array(value if isinstance(value, list) else [value] * count, field.type))
    return pa.record_batch(columns, schema=RESULT_SCHEMA)


def _moved(batch: Any, first: int) -> Any:
    """The batch under the numbers from ``first`` on."""
    import pyarrow as pa

    numbers = pa.array(range(first, first + batch.num_rows), pa.int64())
    return batch.set_column(0, batch.schema.field(0), numbers)


if __name__ == "__main__":
    sys.exit(main())
