"""What came back, as lines on disk: which files count, in which order, and what a live journal adds.

A live journal holds result lines as a batch output file would, and between them marks:

    {"sent":"<custom_id>"}     goes in before a request leaves
    {"unsent":"<custom_id>"}   takes the mark back: no connection was made
    {"lost":"<custom_id>"}     sent, and no answer that can be trusted: it may have been billed
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader, FileIO
from itertools import chain, takewhile

import msgspec

from nightmill.ledger import Shard, StoredFile
from nightmill.store import PACKED, Store
from nightmill.types import FileRef

OUTPUT, ERROR, JOURNAL, CACHED = "output", "error", "journal", "cached"
ROWS, TWINS, BAD, RESULTS = "rows", "twins", "bad", "results"  # the other kinds of a job's files
WIRE = (OUTPUT, ERROR, JOURNAL, CACHED)
MEDIA = "media"  # images, PDFs and the like that go along with rows
FOREIGN = "foreign"  # the input file of a batch that was made elsewhere, as it was sent there

_BUNCH_BYTES = 1 << 18
_SENT, _UNSENT, _LOST = b'{"sent":"', b'{"unsent":"', b'{"lost":"'


def sent_mark(custom_id: str) -> bytes:
    return _SENT + custom_id.encode() + b'"}\n'


def unsent_mark(custom_id: str) -> bytes:
    return _UNSENT + custom_id.encode() + b'"}\n'


def lost_mark(custom_id: str) -> bytes:
    return _LOST + custom_id.encode() + b'"}\n'


def is_mark(line: bytes) -> bool:
    """Whether it is a mark, of whatever kind, and no result line."""
    return line.startswith((_SENT, _UNSENT, _LOST))


def is_sent_mark(line: bytes) -> bool:
    """Whether it is a mark that goes in before a request leaves."""
    return line.startswith(_SENT)


def sent_id(mark: bytes) -> str:
    """The custom_id of such a mark."""
    return mark[9:-3].decode()


def read_mark(line: bytes, pending: set[str], lost: list[str]) -> bool:
    """Take note of a mark; False when it is a result line, which ends its mark too."""
    if line.startswith(_SENT):
        pending.add(sent_id(line))
    elif line.startswith(_UNSENT):
        pending.discard(line[11:-3].decode())
    elif line.startswith(_LOST):
        custom_id = line[9:-3].decode()
        pending.discard(custom_id)
        lost.append(custom_id)
    else:
        return False
    return True


def chosen(stored: Sequence[StoredFile]) -> list[StoredFile]:
    """Of files that were read more than once the fullest reading, in accounting order.

    Order: by submission, output before error, journals by epoch.
    """
    best: dict[tuple[int, str, str], StoredFile] = {}
    for file in stored:
        if file.kind not in WIRE:
            continue
        which = (file.n, file.kind, file.ref.path if file.kind in (JOURNAL, CACHED) else "")
        if which not in best or file.ref.size_bytes > best[which].ref.size_bytes:
            best[which] = file
    order = {OUTPUT: 0, ERROR: 1, JOURNAL: 2, CACHED: 3}
    return sorted(best.values(), key=lambda f: (f.n, order[f.kind], f.read, f.ref.path))


def lines(store: Store, file: StoredFile) -> Iterator[bytes]:
    """The whole lines of a file, as `bunches` has them."""
    return chain.from_iterable(bunches(store, file))


def bunches(store: Store, file: StoredFile) -> Iterator[list[bytes]]:
    """The lines of a file, some at a time: a quarter of a megabyte, or one that is longer.

    A journal is read up to its last newline, or to where it was sealed.
    """
    left = end_of(file)
    with open_wire(store, file) as stream:
        while left > 0 and (some := stream.readlines(min(_BUNCH_BYTES, left))):
            if file.kind == JOURNAL:
                left -= sum(map(len, some))
                whole = list(takewhile(_is_whole, some if left >= 0 else some[:-1]))
                if len(whole) < len(some):  # its rest may be written meanwhile, and is no line either
                    left = 0
                some = whole
            yield some


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n")


def end_of(file: StoredFile) -> int:
    """How many bytes of a wire file count. A sealed journal may have grown: its writer did not know yet."""
    sealed = file.kind == JOURNAL and file.ref.digest and not file.ref.path.endswith(PACKED)
    return file.ref.size_bytes if sealed else sys.maxsize


def open_wire(store: Store, file: StoredFile) -> BufferedReader[FileIO]:
    """A wire file to read and seek in. A journal still grows, or may not have been begun."""
    if file.kind != JOURNAL or file.ref.path.endswith(PACKED):
        return store.open(file.ref)
    try:
        return BufferedReader(FileIO(store.path(file.ref.path)), 1 << 18)
    except FileNotFoundError:
        if file.ref.digest:  # it was sealed, so that it was there
            return store.open(file.ref)
        return store.open_packed(file.ref.path) or BufferedReader(FileIO(os.devnull), 1)


def shard_lines(store: Store, shard: Shard) -> Iterator[tuple[int, bytes]]:
    """``(row index, line)`` of a shard's own file, in order."""
    with store.open(shard.file) as stream:
        yield from split_lines(stream, shard.tag)


def split_lines(stream: Iterable[bytes], tag: str) -> Iterator[tuple[int, bytes]]:
    """``(row index, line)`` of lines whose custom_id is ``<tag>-<row index>``."""
    mark = b'"' + tag.encode() + b"-"
    start = -1
    for line in stream:
        if start < 0 or line[start - len(mark) : start] != mark:  # cached answers come from lines of any layout
            start = line.index(mark) + len(mark)
        yield int(line[start : line.index(b'"', start)]), line


def body_of(line: bytes) -> bytes:
    """The request body inside a shard's line: the last thing in it and an object, whatever a provider calls it."""
    return line[line.index(b"{", 1) : -2]


# -- batches that were made elsewhere: their requests have names of their own ------------------------


class _Named(msgspec.Struct):
    custom_id: str


_read_name = msgspec.json.Decoder(_Named).decode


def is_foreign(shard: Shard) -> bool:
    """Whether the shard's batch was made elsewhere: nothing of it is sent again on our own account."""
    return any(file.kind == FOREIGN for file in shard.files)


def named_as_ours(store: Store, shard: Shard, came: str, to: str) -> FileRef:
    """The result file at ``came`` under ``to``, every request named as in the shard's own file; ``came`` goes.

    Lines that name no request of the shard stay as they are.
    """
    rows = _foreign_rows(store, shard)
    raw = store.path(came)
    with raw.open("rb") as lines_there, store.create(to) as out:
        for line in lines_there:
            out.write(_renamed(line, rows, shard.tag))
    raw.unlink()
    return out.ref


def _foreign_rows(store: Store, shard: Shard) -> dict[str, int]:
    """Row by custom_id; of equal ones the first."""
    sent = next(file for file in shard.files if file.kind == FOREIGN)
    rows: dict[str, int] = {}
    with store.open(sent.ref) as stream:
        for row, line in enumerate(line for line in stream if line.strip()):
            rows.setdefault(_read_name(line).custom_id, row)
    return rows


def _renamed(line: bytes, rows: Mapping[str, int], tag: str) -> bytes:
    try:
        parts = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        row = rows.get(msgspec.json.decode(parts["custom_id"], type=str))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return _renamed_loosely(line, rows, tag)
    if row is None:
        return line
    parts["custom_id"] = msgspec.Raw(b'"%b-%d"' % (tag.encode(), row))
    return msgspec.json.encode(parts) + b"\n"


def _renamed_loosely(line: bytes, rows: Mapping[str, int], tag: str) -> bytes:
    """The same of a line that only a lenient reader takes for JSON, if at all."""
    try:
        whole = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return line
    row = rows.get(whole["custom_id"]) if isinstance(whole, dict) and isinstance(whole.get("custom_id"), str) else None
    return line if row is None else json.dumps(whole | {"custom_id": f"{tag}-{row}"}).encode() + b"\n"
