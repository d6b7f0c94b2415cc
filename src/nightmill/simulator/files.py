"""The provider's file store: records in memory, contents in a folder."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightmill.simulator.media import UNKNOWN_TYPE, Find, Media, digest_of, looked_at

THIRTY_DAYS_S = 30 * 86_400
_FLUSH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One stored file. ``scope`` is the organisation and project it belongs to."""

    id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: int
    expires_at: int | None
    path: Path
    scope: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # what its format remembers of it
    over_elapsed: float | None = None  # provider seconds at which it expires


class FileStore:
    """Every file of the provider, oldest first."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        """``elapsed`` tells provider seconds."""
        self._folder, self._elapsed = Path(), elapsed
        self._records: dict[str, FileRecord] = {}
        self._media: dict[str, Media] = {}

    def open(self, folder: Path) -> None:
        """Keep contents in ``folder``, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def scratch(self) -> Path:
        """A path for a file that `add` may take over; nothing is there yet."""
        return self._folder / f"new-{secrets.token_hex(16)}"

    def add(
        self,
        source: Path,
        *,
        filename: str,
        purpose: str,
        created_at: int,
        keep_s: int | None,
        scope: str,
        file_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> FileRecord:
        """Make the file at ``source`` one of the store's; it is moved. ``file_id`` is one a caller chose."""
        file_id = file_id or f"file-{secrets.token_hex(16)}"
        path = source.rename(self._folder / file_id)
        record = FileRecord(
            id=file_id,
            filename=filename,
            purpose=purpose,
            size_bytes=path.stat().st_size,
            created_at=created_at,
            expires_at=None if keep_s is None else created_at + keep_s,
            path=path,
            scope=scope,
            facts=facts or {},
            over_elapsed=None if keep_s is None else self._elapsed() + keep_s,
        )
        self._records[file_id] = record
        return record

    def hold(self, record: FileRecord) -> Path:
        """A second path to a file's content, which outlives its deletion; the caller unlinks it."""
        return self.link(record.path)

    def link(self, content: Path) -> Path:
        """A second path to what lies at ``content``; the caller unlinks it."""
        path = self.scratch()
        path.hardlink_to(content)
        return path

    def find(self, file_id: str, scope: str) -> FileRecord | None:
        """The file, if it exists and is this account's."""
        record = self._records.get(file_id)
        return record if record is not None and record.scope == scope else None

    def finder(self, scope: str) -> Find:
        """Says what this account's files are that requests name, as long as they are kept. Any thread may ask."""
        return lambda file_id: self._seen(file_id, scope)

    def _seen(self, file_id: str, scope: str) -> Media | None:
        record = self.find(file_id, scope)
        if record is None or (record.over_elapsed is not None and self._elapsed() >= record.over_elapsed):
            return None
        found = self._media.get(file_id)
        if found is None:
            try:
                data = record.path.read_bytes()
            except FileNotFoundError:  # deleted meanwhile
                return None
            found = self._media[file_id] = looked_at(data) or Media(UNKNOWN_TYPE, len(data), digest_of(data))
        return found

    def drop(self, file_id: str) -> None:
        """Forget a file and its content, if they are there."""
        record = self._records.pop(file_id, None)
        self._media.pop(file_id, None)
        if record is not None:
            record.path.unlink(missing_ok=True)

    def all(self, scope: str, purpose: str | None) -> list[FileRecord]:
        """This account's files, oldest first."""
        return [r for r in self._records.values() if r.scope == scope and purpose in (None, r.purpose)]


async def spool(chunks: AsyncIterator[bytes], to: Path, max_bytes: int) -> int:
    """Write a stream to ``to``; how many bytes came. What is beyond ``max_bytes`` is read and not kept."""
    size, pending = 0, bytearray()
    with await asyncio.to_thread(to.open, "wb") as out:
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                pending.clear()
                continue
            pending += chunk
            if len(pending) >= _FLUSH_BYTES:
                await asyncio.to_thread(out.write, bytes(pending))
                pending.clear()
        out.write(pending)
    return size
