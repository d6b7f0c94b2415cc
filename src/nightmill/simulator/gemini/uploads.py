"""Resumable uploads: a start gives an address, chunks go there one after the other, the last one makes a file.

An upload under way is a file of the store whose id no caller can choose; what it has received is its size.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from nightmill.simulator.files import FileRecord, FileStore
from nightmill.simulator.gemini.errors import GeminiError, invalid
from nightmill.simulator.gemini.reading import FileWanted

CHUNK_BYTES = 1 << 18
COMMANDS = frozenset(("upload", "finalize", "query", "cancel"))
UPLOADED, GENERATED, _UNDER_WAY = "uploaded", "batch_output", "under way"  # what a stored file is for
MOST_BYTES = 2 * 1024 * 1024 * 1024
_KEEP_S = 48 * 3600
_GRANULARITY_BYTES = 262_144
_MOST_NAME = 40
_ANYBODYS = ""  # an upload under way: its address is enough


def start(files: FileStore, headers: Mapping[str, str], wanted: FileWanted, now: int, scope: str) -> FileRecord:
    """Open an upload of a file that belongs to ``scope``.

    Raises:
        GeminiError: 400, the start is none, or the file's own name breaks the rules; 409, its name is taken; 413.
    """
    if headers.get("X-Goog-Upload-Protocol", "").lower() != "resumable":
        raise invalid("This upload protocol is not supported; use X-Goog-Upload-Protocol: resumable.")
    if commands_of(headers) != {"start"}:
        raise invalid("An upload begins with X-Goog-Upload-Command: start.")
    announced = headers.get("X-Goog-Upload-Header-Content-Length", "")
    if announced and not announced.isdecimal():
        raise invalid(f"X-Goog-Upload-Header-Content-Length is no number: {announced}")
    if announced and int(announced) > MOST_BYTES:
        raise GeminiError(413, f"A file may have up to {MOST_BYTES} bytes.")
    own_id = None if wanted.name is None else check_name(wanted.name)
    if own_id is not None:
        _refuse_taken(files, own_id, scope)
    told = wanted.mime_type or headers.get("X-Goog-Upload-Header-Content-Type")
    path = files.scratch()
    path.touch()
    return files.add(
        path,
        filename=wanted.display_name or "",
        purpose=_UNDER_WAY,
        created_at=now,
        keep_s=None,
        scope=_ANYBODYS,
        file_id=f"UPLOAD_{secrets.token_hex(16)}",
        facts={
            "scope": scope,
            "own_id": own_id,
            "size_bytes": int(announced) if announced else None,
            "mime_type": told or "application/octet-stream",
        },
    )


def get(files: FileStore, upload_id: str) -> FileRecord:
    """The upload at this address, or a refusal; whoever knows the address may write to it."""
    found = files.find(upload_id, _ANYBODYS)
    if found is None or found.purpose != _UNDER_WAY:
        raise GeminiError(404, "Upload not found: it has ended or never was.")
    return found


def received(upload: FileRecord) -> int:
    """Bytes that are there."""
    return upload.path.stat().st_size


async def take(upload: FileRecord, chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
    """Append what comes to the upload; of a chunk that breaks off, what came is there.

    Raises:
        GeminiError: 400, the chunk is not for here; 413, it is too much.
    """
    size, offset = received(upload), headers.get("X-Goog-Upload-Offset", "")
    if offset != str(size):
        raise invalid(f"The chunk begins at {offset or 'no offset'}, but {size} bytes were received.")
    with await asyncio.to_thread(upload.path.open, "ab", 0) as out:
        async for chunk in chunks:
            size += len(chunk)
            if size > MOST_BYTES:
                raise GeminiError(413, f"A file may have up to {MOST_BYTES} bytes.")
            await asyncio.to_thread(out.write, chunk)


async def finalize(files: FileStore, upload: FileRecord, now: int) -> FileRecord:
    """Make the upload a file.

    Raises:
        GeminiError: 400, it is not as long as was announced; 409, its name was taken meanwhile.
    """
    facts = upload.facts
    if facts["size_bytes"] not in (None, received(upload)):
        raise invalid(f"{facts['size_bytes']} bytes were announced, but {received(upload)} received.")
    digest = await asyncio.to_thread(_digest_of, upload.path)
    file_id = facts["own_id"] or secrets.token_hex(6)
    _refuse_taken(files, file_id, facts["scope"])
    path = upload.path.rename(files.scratch())
    files.drop(upload.id)
    return files.add(
        path,
        filename=upload.filename,
        purpose=UPLOADED,
        created_at=now,
        keep_s=_KEEP_S,
        scope=facts["scope"],
        file_id=file_id,
        facts={"mime_type": facts["mime_type"], "digest": digest},
    )


def _refuse_taken(files: FileStore, file_id: str, scope: str) -> None:
    if files.find(file_id, scope) is not None:
        raise GeminiError(409, f"File files/{file_id} already exists.")


def _digest_of(path: Path) -> bytes:
    """SHA-256 of a file. Blocking."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def commands_of(headers: Mapping[str, str]) -> set[str]:
    """The words of X-Goog-Upload-Command."""
    return {word.strip().lower() for word in headers.get("X-Goog-Upload-Command", "").split(",") if word.strip()}


def check_name(name: str) -> str:
    """The id in a file's own name, ``files/ID``.

    Raises:
        GeminiError: 400, when it is not up to 40 lowercase letters, digits and dashes, with no dash at the ends.
    """
    file_id = name.removeprefix("files/")
    check_length(file_id, "CreateFileRequest.file.name")
    plain = file_id.replace("-", "")
    is_plain = plain.isascii() and plain.isalnum() and plain == plain.lower()
    if not is_plain or file_id != file_id.strip("-"):
        raise invalid(
            "* CreateFileRequest.file.name: File ID (name excluding 'files/') can only contain lowercase alphanumeric"
            " or dash characters, and cannot begin or end with a dash."
        )
    return file_id


def check_length(file_id: str, where: str) -> None:
    """Refuse an id of more than 40 characters with 400."""
    if len(file_id) > _MOST_NAME:
        raise invalid(f"* {where}: File ID (name excluding 'files/') cannot be more than {_MOST_NAME} characters.")


def opened(upload: FileRecord, address: str) -> dict[str, str]:
    """The headers that answer a start at ``address``."""
    own = f"{address}?upload_id={upload.id}&upload_protocol=resumable"
    return {
        "X-Goog-Upload-URL": own,
        "X-Goog-Upload-Control-URL": own,
        "X-Goog-Upload-Status": "active",
        "X-Goog-Upload-Chunk-Granularity": str(_GRANULARITY_BYTES),
    }


def state_headers(status: str, size_bytes: int) -> dict[str, str]:
    """The headers that answer a chunk or a query; the status is ``active``, ``final`` or ``cancelled``."""
    return {"X-Goog-Upload-Status": status, "X-Goog-Upload-Size-Received": str(size_bytes)}
