"""Media of rows: read from where their cells say, kept with the job, and found again by the column that says where.

A job keeps its media in one file beside its rows, each content once, so that whatever is cut later (a retry, the next
step of a ladder) sends the same bytes as its plan, whoever changed the files since.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import msgspec
import pyarrow as pa

from nightmill.errors import StoreError
from nightmill.media import Kind, kind_of
from nightmill.sources import JSON_MARK, Taken, decode_row_values
from nightmill.store import Store, Writer, apart
from nightmill.tasks import MEDIA

PACK = "media.bin"  # beside the rows of a job

_APART_BYTES = 4 << 20  # a medium of so many bytes has a file of its own, from which it can be uploaded
_TOGETHER_BYTES = 16 << 20  # of media, whose rows are encoded together
_MOST_BYTES = 512 << 20  # of one medium: no provider takes more in a request
_SUFFIXES: Mapping[str, Kind] = {".pdf": "pdf", ".mp4": "video", ".mov": "video", ".webm": "video"}
_FORMATS = {"audio/wav": "wav", "audio/mpeg": "mp3"}


class _Unusable(Exception):
    """What a cell holds is no medium; says why."""


class Packer:
    """Keeps the media of a job's rows while it is planned. ``shown`` are columns that prompts have as text, too."""

    def __init__(self, columns: Sequence[str], shown: Sequence[str], folder: str, out: Writer, pack: Pack) -> None:
        self._columns, self._folder, self._out, self._pack = columns, folder, out, pack
        self._packed_only = frozenset(columns).difference(shown)
        self._known: dict[str, int | None] = {}  # where the content with that digest lies

    def attached(self, taken: Iterator[Taken]) -> Iterator[Taken]:
        """The rows with one column more; where a medium of a row cannot be had, the row is bad and says why."""
        for some in taken:
            yield self._attached(some)

    def _attached(self, some: Taken) -> Taken:
        bad = dict(some.bad)
        fields = [field for field in some.batch.schema if field.name != MEDIA]
        cells = {n: decode_row_values(some.batch.column(n), some.batch.schema.field(n)) for n in self._columns}
        found: list[str | None] = [None] * some.batch.num_rows
        for row in range(some.batch.num_rows):
            if row in bad:
                continue
            try:
                media = [ref for name in self._columns for ref in self._of_cell(name, cells[name][row])]
                found[row] = msgspec.json.encode(media).decode()
            except _Unusable as error:
                bad[row] = str(error)
        self._out.flush()  # they are read again as the rows are encoded
        columns = [self._kept(some.batch, field) for field in fields]
        schema = pa.schema([*fields, pa.field(MEDIA, pa.string(), metadata=JSON_MARK)])
        texts = {name: values for name, values in some.texts.items() if name not in self._packed_only}
        return Taken(pa.record_batch([*columns, pa.array(found, pa.string())], schema=schema), texts, bad)

    def _kept(self, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        """The column as it is kept with the rows: what lies in the pack already is not kept twice."""
        column = batch.column(field.name)
        if field.name not in self._packed_only or not pa.types.is_string(column.type):
            return column
        return pa.array([text if text is None or len(text) < 4_096 else "" for text in column.to_pylist()], pa.string())

    def _of_cell(self, column: str, cell: Any) -> Iterator[dict[str, Any]]:
        if cell is None or cell == "":
            return
        if isinstance(cell, list):
            for each in cell:
                yield from self._of_cell(column, each)
        elif isinstance(cell, dict) and not {"bytes", "path"}.isdisjoint(cell):  # as data sets of images are written
            name = str(cell.get("path") or "")
            if written := cell.get("bytes"):
                yield self._packed(_decoded(written), name)
            elif name:
                yield self._of_text(column, name)
        elif isinstance(cell, str):
            yield self._of_text(column, cell)
        else:
            raise _Unusable(f"{column} holds {str(cell)[:60]!r}, and a path, an address or bytes are wanted")

    def _of_text(self, column: str, text: str) -> dict[str, Any]:
        if re.match("https?://", text, re.IGNORECASE):
            kind = _SUFFIXES.get(Path(text.partition("?")[0]).suffix.lower(), "image")
            return {"kind": kind, "url": text}
        if text[:5].lower() == "data:":
            head, _, said = text.partition(",")
            is_base64 = head.lower().endswith(";base64")
            return self._packed(_decoded(unquote(said)) if is_base64 else unquote_to_bytes(said), "")
        path = Path(self._folder, os.path.expanduser(text))
        if not os.path.lexists(path) and os.path.lexists(text):  # as it was named: from the working folder
            path = Path(text)
        try:
            data = _read_file(path, text)
        except (OSError, ValueError) as error:
            if (written := _bytes_written_as(text)) is not None:
                return self._packed(written, "")
            why = getattr(error, "strerror", None) or str(error)
            raise _Unusable(f"{column} {text[:200]!r} cannot be read: {why}, in {self._folder}") from error
        return self._packed(data, text)

    def _packed(self, data: bytes, name: str) -> dict[str, Any]:
        found = kind_of(data)
        if found is None:
            what = f"{name} is" if name else "its bytes are"
            raise _Unusable(f"{what} no image, PDF, sound or film that is known")
        digest = hashlib.sha256(data).hexdigest()[:32]
        if digest not in self._known:
            self._known[digest] = self._keep(digest, data)
        kind, mime = found
        return {
            "kind": kind,
            "mime": mime,
            "name": Path(name).name,
            "at": self._known[digest],  # None: apart
            "size": len(data),
            "digest": digest,
        }

    def _keep(self, digest: str, data: bytes) -> int | None:
        if len(data) >= _APART_BYTES:
            self._pack.keep_apart({digest: data})
            return None
        at = self._out.tell()
        self._out.write(data)
        return at


def _read_file(path: Path, text: str) -> bytes:
    """The bytes of a file, or of as much of one as is taken. Raises OSError, ValueError, _Unusable."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a pipe waits, a device may never end
        raise _Unusable(f"{text} is a pipe or a device, and a file is wanted")
    if stat.S_ISREG(found.st_mode) and not found.st_size:  # one of the kernel's may wait, too
        raise _Unusable(f"{text} is empty")
    if found.st_size > _MOST_BYTES:
        raise _Unusable(f"{text} has {found.st_size:,} bytes, and no model takes so many")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _Unusable(f"{text} has more than {_MOST_BYTES:,} bytes, and no model takes so many")
    return data


def _bytes_written_as(text: str) -> bytes | None:
    """What a column of bytes held, which sources give as base64; None: that is no medium."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if kind_of(data) else None


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise _Unusable(f"its bytes are {str(text)[:60]!r}, and base64 is wanted")
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # it may be broken into lines
    except ValueError as error:
        raise _Unusable("its bytes are no base64") from error


def portions(indexes: Sequence[int], rows: Taken) -> Iterator[tuple[Sequence[int], Taken]]:
    """The rows in portions whose media fit into memory together: all at once where they have none."""
    if MEDIA not in rows.batch.schema.names:
        yield indexes, rows
        return
    field = rows.batch.schema.field(MEDIA)
    start = size = 0
    for row, media in enumerate(decode_row_values(rows.batch.column(MEDIA), field)):
        more = sum(medium.get("size", 0) for medium in media)
        if row > start and size + more > _TOGETHER_BYTES:
            yield indexes[start:row], _slice(rows, start, row)
            start, size = row, 0
        size += more
    yield indexes[start:], _slice(rows, start, rows.batch.num_rows)


def _slice(rows: Taken, start: int, end: int) -> Taken:
    texts = {name: values[start:end] for name, values in rows.texts.items()}
    return Taken(rows.batch.slice(start, end - start), texts)


class Pack:
    """The media of a job, as its plan kept them, in a folder of the store."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def keep_apart(self, media: Mapping[str, bytes]) -> None:
        """Give each of these, by the digest it is called by, a file of its own. Raises StoreError."""
        for digest, data in media.items():
            self._store.put(apart(self._folder, digest), data)

    def parts(self, media: Sequence[Mapping[str, Any]], *, is_responses: bool) -> list[dict[str, Any]]:
        """The parts of a canonical message that say ``media``. Raises StoreError."""
        return [self._part(medium, is_responses=is_responses) for medium in media]

    def _part(self, medium: Mapping[str, Any], *, is_responses: bool) -> dict[str, Any]:
        kind, url = medium["kind"], medium.get("url")
        if kind == "audio" and url is None:
            data = base64.b64encode(self._read(medium)).decode()
            sound = {"data": data, "format": _FORMATS.get(medium["mime"], medium["mime"].partition("/")[2])}
            return {"type": "input_audio", "input_audio": sound}
        if url is None:
            url = f"data:{medium['mime']};base64,{base64.b64encode(self._read(medium)).decode()}"
        if kind == "pdf":
            given = {"filename": medium.get("name") or "document.pdf", "file_data": url}
            return {"type": "input_file", **given} if is_responses else {"type": "file", "file": given}
        if kind == "video":
            return {"type": "video_url", "video_url": {"url": url}}
        return {"type": "input_image", "image_url": url} if is_responses else _image(url)

    def _read(self, medium: Mapping[str, Any]) -> bytes:
        at, digest = medium["at"], medium["digest"]
        path = self._store.path(f"{self._folder}/{PACK}" if at is not None else apart(self._folder, digest))
        try:
            with path.open("rb") as file:
                file.seek(at or 0)
                data = file.read(medium["size"])
        except OSError as error:
            why = error.strerror or str(error)
            raise StoreError(f"cannot read {path}", why=why, fix="put the home folder back from a backup") from error
        if hashlib.sha256(data).hexdigest()[:32] != digest:
            why = "its digest is not the one in the rows"
            raise StoreError(f"{path} was changed", why=why, fix="put the home folder back from a backup")
        return data


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def said_with(asked: Any, parts: Sequence[dict[str, Any]], *, is_responses: bool) -> list[dict[str, Any]]:
    """Messages with ``parts`` behind the text of the user's last one."""
    chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    text = "input_text" if is_responses else "text"
    last = max((n for n, message in enumerate(chat) if message.get("role") == "user"), default=len(chat) - 1)
    content = chat[last].get("content")
    before = [{"type": text, "text": content}] if isinstance(content, str) and content else list(content or ())
    chat[last] = {**chat[last], "content": [*before, *parts]}
    return chat
