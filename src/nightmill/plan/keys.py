"""How many rows have the key of an earlier row: a warning, in eight bytes a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

_MOST = 16_000_000  # keys that are looked at: 128 MB
_PARTS = 16  # looked through one after the other, since telling values apart takes eight times their memory


class KeyWatch:
    """Keys are told apart by a 64-bit hash: of a million, two are mixed up once in thirty million inputs."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, keys: Iterable[str | None]) -> None:
        """Look at ``keys``; past the first 16 million nothing is looked at."""
        if len(self._hashes) < _MOST:
            self._hashes.extend(map(hash, keys))

    def repeated(self) -> int:
        """Rows whose key an earlier row has."""
        count = len(self._hashes)
        hashes = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(self._hashes)])
        part_of = pc.bit_wise_and(hashes, _PARTS - 1)
        parts = (hashes.filter(pc.equal(part_of, part)) for part in range(_PARTS))
        distinct: int = sum(pc.count_distinct(part).as_py() for part in parts)
        return count - distinct
