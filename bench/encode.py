"""Claim: encoding requests and writing them costs little more than copying the file it gives.

Ours: compiled bodies of rows in memory, cut into shard files with digest, size and fsync.
Rival: the bytes of those very files, copied line by line.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from itertools import count
from pathlib import Path

from _kit import Figure, arguments, order_for, per_row, race, report, speedup, write_rows

from nightmill.plan import Cutter, four_bytes_a_token
from nightmill.store import Store


def main() -> int:
    given = arguments(__doc__, rows=100_000, rounds=7)
    folder = Path(tempfile.mkdtemp(prefix="bench-encode-"))
    try:
        return report([measure(folder, given.rows, given.rounds)], as_json=given.json)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, rows: int, rounds: int) -> Figure:
    order = order_for(write_rows(folder / "rows.jsonl", rows))
    batches = list(order.source.batches())
    store, pieces = Store(folder), order.provider.line_pieces(order.compiled.url)

    def encode() -> None:
        numbers = count()
        cutter = Cutter(
            store, "ours", order.lane, order.bounds, order.sheet, order.compiled.cap_tokens, pieces,
            lambda: f"0123456789abcd-{next(numbers)}", four_bytes_a_token,
        )  # fmt: skip
        first = 0
        for batch in batches:
            indexes = range(first, first + batch.num_rows)
            cutter.add(indexes, order.compiled.bodies(batch, indexes))
            first += batch.num_rows
        cutter.close()

    def copy() -> None:
        for file in sorted((folder / "ours/shards").iterdir()):
            with file.open("rb") as lines, (folder / "copy.jsonl").open("wb") as out:
                for line in lines:
                    out.write(line)

    encode()
    seconds = race({"encode": encode, "copy": copy}, rounds)
    return Figure("compiled encoding and writing, beside copying its output by lines",
                  speedup(seconds["encode"], seconds["copy"]), 0.3, note=per_row(seconds, rows))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
