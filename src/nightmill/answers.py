"""Never pay twice for the same words: equal rows inside a job, and answers across jobs.

A request is known by a 16-byte digest of its encoded body and of whom it is sent to. Digests lie
in 256 partitions by their first byte, and one partition at a time is in memory, so that a job of
any size is folded in flat memory.

Losing the cache costs money, never truth: whatever is odd in it, is a miss.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b, sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from zlib import crc32

try:
    import fcntl
except ImportError:  # Windows: one process may use a cache at a time
    fcntl = None  # type: ignore[assignment]

from nightmill.killpoints import reach

log = logging.getLogger(__name__)

DIGEST_BYTES: Final = 16
PARTITIONS: Final = 256

_SEEN = struct.Struct("<16sQ")  # digest, row
_TWIN = struct.Struct("<QQ")  # row, first equal row
_FOUND = struct.Struct("<QBQLL")  # row, then a CacheHit
_ENTRY = struct.Struct("<16sQLL")  # digest, then a CacheHit without its partition
_ENTRY_KEY = struct.Struct("<16s16x")

_SPILL_BYTES: Final = 4 << 20  # digests or findings kept in memory before they go to disk
_PUT_BYTES: Final = 32 << 20  # answers kept in memory before they go to disk
_SPAN_ROWS: Final = 1 << 16  # rows whose findings are sorted in memory together, at least

_LOCK_S: Final = 5.0  # a writer that stands still keeps others from putting their answers, and from nothing else
_LOCK_LOOK_S: Final = 0.01


def salt(provider: str, model: str, host: str) -> bytes:
    """What sets apart equal bodies for different models: the key for `digest`."""
    return blake2b("\0".join((provider, model, host)).encode(), digest_size=32).digest()


def digest(salt: bytes, body: bytes) -> bytes:
    """The 16 bytes that stand for a request, in a job and in the cache."""
    return sha256(salt + body).digest()[:DIGEST_BYTES]  # in hardware nearly everywhere: half of BLAKE2's time


def digests(salt: bytes, bodies: Iterable[bytes]) -> list[bytes]:
    """`digest` of many. Copies of one that has begun take less time than beginning anew."""
    begun, made = sha256(salt).copy, []
    for body in bodies:
        each = begun()
        each.update(body)
        made.append(each.digest()[:DIGEST_BYTES])
    return made


def later(key: bytes, step: bytes) -> bytes:
    """The key of an answer that the request of ``key`` only had after a further ``step``; in the same partition."""
    return key[:1] + sha256(key + step).digest()[: DIGEST_BYTES - 1]


class CacheHit(NamedTuple):
    """Where an answer lies in the cache."""

    partition: int
    offset: int
    length: int  # bytes, newline not included
    check: int  # crc32 of those bytes


# -- across jobs


class AnswerCache:
    """Answers by digest, kept for later jobs: ``<pp>.jsonl`` one answer a line, ``<pp>.idx`` where.

    Safe for several processes and for an end at any byte: a line is written before the entry that
    names it, under the partition's lock, and an entry holds the checksum of its line.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_many(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        """Keep ``(digest, answer)`` pairs; how many were new. The first answer to a digest stays.

        An answer is one line of bytes, without its newline. What cannot be written is left out,
        with a warning. Give many at once: each call opens every partition that it touches.

        Raises:
            ValueError: an answer is empty or holds a newline.
        """
        kept = size = 0
        waiting: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)
        for key, answer in items:
            if not answer or b"\n" in answer:
                raise ValueError("an answer must be one line, without its newline")
            waiting[key[0]].setdefault(key, answer)
            size += len(answer)
            if size >= _PUT_BYTES:
                kept += self._put(waiting)
                waiting.clear()
                size = 0
        return kept + self._put(waiting)

    def lookup(self, partition: int, wanted: Container[bytes] | None = None) -> dict[bytes, CacheHit]:
        """The entries of one partition, all or those ``wanted``, that name a line that exists."""
        try:
            index = self._path(partition, "idx").read_bytes()
            size = self._path(partition, "jsonl").stat().st_size
        except OSError:
            return {}
        return _entries(partition, index, size, wanted)

    def read(self, hit: CacheHit) -> bytes | None:
        """The answer, whole as it was put, or None: then it is not there after all."""
        return self.read_many([hit])[0]

    def read_many(self, hits: Sequence[CacheHit]) -> list[bytes | None]:
        """`read` for many, each partition opened once."""
        answers: list[bytes | None] = [None] * len(hits)
        places = sorted(range(len(hits)), key=hits.__getitem__)
        for partition, group in groupby(places, key=lambda place: hits[place].partition):
            try:
                with open(self._path(partition, "jsonl"), "rb") as file:
                    for place in group:
                        answers[place] = _line(file, hits[place])
            except OSError:
                continue
        return answers

    def _path(self, partition: int, suffix: str) -> Path:
        return self._folder / f"{partition:02x}.{suffix}"

    def _put(self, waiting: defaultdict[int, dict[bytes, bytes]]) -> int:
        kept = 0
        for partition, answers in waiting.items():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                kept += self._put_partition(partition, answers)
            except OSError as error:
                log.warning("answers not cached: %s", error)
        reach("answers.kept")
        return kept

    def _put_partition(self, partition: int, answers: dict[bytes, bytes]) -> int:
        with _appending(self._path(partition, "idx")) as index, _appending(self._path(partition, "jsonl")) as data:
            end = data.seek(0, os.SEEK_END)
            known = self._known(partition, index, data, end, answers)
            lines, entries = list[bytes](), list[bytes]()
            data.seek(max(end - 1, 0))
            if data.read() not in (b"", b"\n"):
                lines.append(b"\n")  # closes a line that was torn; nothing names it
                end += 1
            for key, answer in answers.items():
                if key not in known:
                    size = len(answer)
                    entries.append(_ENTRY.pack(key, end, size, crc32(answer)))
                    lines += (answer, b"\n")
                    end += size + 1
            data.write(b"".join(lines))
            data.flush()
            index.write(b"".join(entries))
        return len(entries)

    def _known(
        self, partition: int, index: BinaryIO, data: BinaryIO, size: int, answers: dict[bytes, bytes]
    ) -> set[bytes]:
        """Which of ``answers`` are there and readable; cuts a torn entry off the index."""
        index.seek(0)
        kept = index.read()
        if len(kept) % _ENTRY.size:
            index.truncate(len(kept) - len(kept) % _ENTRY.size)
        whole = memoryview(kept)[: len(kept) - len(kept) % _ENTRY.size]
        if answers.keys().isdisjoint(map(itemgetter(0), _ENTRY_KEY.iter_unpack(whole))):  # as it mostly is
            return set()
        return {key for key, hit in _entries(partition, kept, size, answers).items() if _line(data, hit) is not None}


def _entries(partition: int, index: bytes, size: int, wanted: Container[bytes] | None) -> dict[bytes, CacheHit]:
    """Later entries win: a second one is only written where the first had become unreadable."""
    whole = memoryview(index)[: len(index) - len(index) % _ENTRY.size]
    return {
        key: CacheHit(partition, offset, length, check)
        for key, offset, length, check in _ENTRY.iter_unpack(whole)
        if length and offset + length < size and (wanted is None or key in wanted)
    }


def _line(file: BinaryIO, hit: CacheHit) -> bytes | None:
    """The bytes of a hit without their newline, if they are what was put there."""
    try:
        file.seek(hit.offset)
        line = file.read(hit.length + 1)
    except OSError:
        return None
    answer = line[:-1]
    if len(line) != hit.length + 1 or line[-1:] != b"\n" or crc32(answer) != hit.check:
        return None
    return answer


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    """A file to read and to append to, locked against other writers until closed. Raises TimeoutError."""
    with open(path, "a+b") as file:
        if fcntl is not None:
            _lock(file)
        yield file


def _lock(file: BinaryIO) -> None:
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError(f"{file.name} is locked by another process") from None
            time.sleep(_LOCK_LOOK_S)
        else:
            return


# -- inside a job


class Folding:
    """Which rows of a job need not be sent, and why.

    ``skip`` has one bit a row, lowest bit first: set where the row equals an earlier one or has
    its answer in the cache. The rest lies in files, cut by row, and is read in row order.
    """

    def __init__(self, skip: bytearray, twins: _Spans, hits: _Spans) -> None:
        self.skip = skip
        self.duplicates = twins.count
        self.cached = hits.count
        self._twins, self._hits = twins, hits

    def skips(self, row: int) -> bool:
        """Whether row ``row`` is a duplicate or cached."""
        return _has(self.skip, row)

    def duplicate_pairs(self) -> Iterator[tuple[int, int]]:
        """``(row, first equal row)`` by rising row."""
        return ((row, twin) for row, twin in self._twins.records())

    def cached_hits(self) -> Iterator[tuple[int, CacheHit]]:
        """``(row, where its answer lies)`` by rising row.

        Each answer was there a moment ago; should `AnswerCache.read` now give None, send the row.
        """
        return ((row, CacheHit._make(hit)) for row, *hit in self._hits.records())

    def close(self) -> None:
        """Remove the files."""
        self._twins.close()
        self._hits.close()


class Deduper:
    """Finds equal digests among any number of rows, in files in ``folder``, which is its own.

    What an earlier Deduper left there is removed: nothing in it outlives planning.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("seen", "twins", "hits"):
            for old in folder.glob(f"{kind}.*"):
                old.unlink()
        self._folder = folder
        self._seen = [bytearray() for _ in range(PARTITIONS)]
        self._unspilled = 0
        self._spilled = False
        self._rows = 0

    def add_many(self, rows: Sequence[int], digests: Sequence[bytes]) -> None:
        """The digests of ``rows``, by rising index. Rows left out are never skipped."""
        seen, pack = self._seen, _SEEN.pack
        for row, key in zip(rows, digests, strict=True):
            seen[key[0]] += pack(key, row)
        self._rows = max(self._rows, rows[-1] + 1) if rows else self._rows
        self._unspilled += len(digests) * _SEEN.size
        if self._unspilled >= _SPILL_BYTES:
            self._spill()

    def finish(self, cache: AnswerCache | None, *, dedupe: bool = True, steps: Sequence[bytes] = ()) -> Folding:
        """Fold: once, after all rows. With ``dedupe`` False only the cache is asked.

        Where it has no answer to a request, one after a further step counts, too (`later`), the first in ``steps``.
        """
        span = max(_SPAN_ROWS, -(-self._rows // PARTITIONS))
        twins = _Spans(self._folder, "twins", _TWIN, span)
        hits = _Spans(self._folder, "hits", _FOUND, span)
        skip = bytearray(-(-self._rows // 8))
        for partition in range(PARTITIONS):
            records = self._take(partition)
            if dedupe and len({key for key, _ in records}) < len(records):
                records = _fold(records, twins, skip)
            if cache is not None and records:
                _find(records, partition, cache, steps, hits, skip)
        twins.spill()
        hits.spill()
        return Folding(skip, twins, hits)

    def _spill(self) -> None:
        for partition, records in enumerate(self._seen):
            if records:
                with open(self._path(partition), "ab") as file:
                    file.write(records)
                records.clear()
        self._unspilled, self._spilled = 0, True

    def _take(self, partition: int) -> list[tuple[bytes, int]]:
        """The (digest, row) records of a partition; its file is removed."""
        kept, self._seen[partition] = self._seen[partition], bytearray()
        if self._spilled:
            path = self._path(partition)
            if path.exists():
                kept = bytearray(path.read_bytes()) + kept
                path.unlink()
        return list(_SEEN.iter_unpack(kept))

    def _path(self, partition: int) -> Path:
        return self._folder / f"seen.{partition:02x}"


def _fold(records: list[tuple[bytes, int]], twins: _Spans, skip: bytearray) -> list[tuple[bytes, int]]:
    """Note the duplicates among records; the first occurrences."""
    first: dict[bytes, int] = {}
    for key, row in sorted(records, key=itemgetter(1)):
        twin = first.setdefault(key, row)
        if twin != row:
            twins.add(row, twin)
            skip[row >> 3] |= 1 << (row & 7)
    return list(first.items())


def _find(
    records: list[tuple[bytes, int]], partition: int, cache: AnswerCache, steps: Sequence[bytes], hits: _Spans,
    skip: bytearray,
) -> None:  # fmt: skip
    """Note the records whose answer the cache has, after a look at the answer itself."""
    for step in (None, *steps):
        asked = records if step is None else [(later(key, step), row) for key, row in records if not _has(skip, row)]
        known = cache.lookup(partition, {key for key, _ in asked})
        found = [(row, known[key]) for key, row in asked if key in known]
        for start in range(0, len(found), 256):  # 256 answers in memory at a time
            some = found[start : start + 256]
            for (row, hit), answer in zip(some, cache.read_many([hit for _, hit in some]), strict=True):
                if answer is not None:
                    hits.add(row, *hit)
                    skip[row >> 3] |= 1 << (row & 7)


def _has(bits: bytearray, row: int) -> bool:
    return bool(bits[row >> 3] >> (row & 7) & 1)


class _Spans:
    """Fixed-size records that begin with their row: added in any order, read back by rising row.

    Rows are cut into spans with a file each; a span is sorted in memory when it is read.
    """

    def __init__(self, folder: Path, kind: str, record: struct.Struct, span: int) -> None:
        self._folder, self._kind, self._record, self._span = folder, kind, record, span
        self._waiting: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._unspilled = 0
        self._spilled: set[int] = set()
        self.count = 0

    def add(self, row: int, *rest: int) -> None:
        self._waiting[row // self._span] += self._record.pack(row, *rest)
        self.count += 1
        self._unspilled += self._record.size
        if self._unspilled >= _SPILL_BYTES:
            self.spill()

    def spill(self) -> None:
        for span, records in self._waiting.items():
            with open(self._path(span), "ab") as file:
                file.write(records)
        self._spilled.update(self._waiting)
        self._waiting.clear()
        self._unspilled = 0

    def records(self) -> Iterator[tuple[int, ...]]:
        for span in sorted(self._spilled):
            yield from sorted(self._record.iter_unpack(self._path(span).read_bytes()))

    def close(self) -> None:
        for span in self._spilled:
            self._path(span).unlink(missing_ok=True)

    def _path(self, span: int) -> Path:
        return self._folder / f"{self._kind}.{span}"
