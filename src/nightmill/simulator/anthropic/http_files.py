"""``/v1/files``"""

from __future__ import annotations

import mimetypes
import secrets
from typing import Any

from aiohttp import web

from nightmill.simulator.anthropic.http_common import scope_of, whole_number
from nightmill.simulator.anthropic.wire import ApiError, moment
from nightmill.simulator.files import FileRecord
from nightmill.simulator.formats import Trouble, Why
from nightmill.simulator.http import FORMAT, PROVIDER, json_reply, read_form

_MOST_BYTES = 500 * 1024 * 1024
_UPLOADED = "uploaded"
_SHORTEST_S, _LONGEST_S = 3600, 90 * 86_400  # that a file may be asked to be kept


def _view(record: FileRecord) -> dict[str, Any]:
    """The file's metadata on the wire."""
    return {
        "id": record.id,
        "type": "file",
        "filename": record.filename,
        "mime_type": mimetypes.guess_type(record.filename)[0] or "application/octet-stream",
        "size_bytes": record.size_bytes,
        "created_at": moment(record.created_at),
        "downloadable": False,
        "expires_at": moment(record.expires_at),
    }


async def upload(request: web.Request) -> web.StreamResponse:
    """POST /v1/files"""
    provider = request[PROVIDER]
    if not request.content_type.startswith("multipart/"):
        raise ApiError(400, "Content-Type: must be multipart/form-data")
    scratch = provider.files.scratch()
    try:
        fields, filename, size = await read_form(request, scratch, _MOST_BYTES)
        if filename is None:
            raise ApiError(400, "file: Field required")
        if size > _MOST_BYTES:
            raise request[FORMAT].refusal(Trouble(Why.TOO_LARGE))
        record = provider.files.add(
            scratch,
            filename=filename or "upload",
            purpose=_UPLOADED,
            created_at=provider.clock.stamp(),
            keep_s=_keep_s(fields),
            scope=scope_of(request),
            file_id=f"file_{secrets.token_hex(12)}",
        )
    except ValueError as broken:
        raise ApiError(400, f"The multipart form cannot be read: {broken}") from None
    finally:
        scratch.unlink(missing_ok=True)
    provider.note("upload", 200, file_id=record.id, filename=record.filename, size_bytes=record.size_bytes)
    return json_reply(_view(record))


def _keep_s(fields: dict[str, str]) -> int | None:
    given = fields.get("expires_in_seconds")
    if given is None:
        return None
    if not given.isdigit() or not _SHORTEST_S <= int(given) <= _LONGEST_S:
        raise ApiError(400, f"expires_in_seconds: Input should be from {_SHORTEST_S} to {_LONGEST_S}")
    return int(given)


async def list_files(request: web.Request) -> web.StreamResponse:
    """GET /v1/files, newest first."""
    records = request[PROVIDER].files.all(scope_of(request), _UPLOADED)[::-1]
    limit = whole_number(request, "limit", 20, 1000)
    page = request.query.get("page")
    ids = [record.id for record in records]
    if page is not None and page.removeprefix("page_") not in ids:
        raise ApiError(400, "page: Invalid cursor")
    start = 0 if page is None else ids.index(page.removeprefix("page_"))
    rest = records[start + limit :]
    following = f"page_{rest[0].id}" if rest else None
    return json_reply({"data": [_view(each) for each in records[start : start + limit]], "next_page": following})


def _record(request: web.Request) -> FileRecord:
    file_id = request.match_info["file_id"]
    record = request[PROVIDER].files.find(file_id, scope_of(request))
    if record is None or record.purpose != _UPLOADED:
        raise ApiError(404, f"File not found: {file_id}")
    return record


async def get_file(request: web.Request) -> web.StreamResponse:
    """GET /v1/files/{id}"""
    return json_reply(_view(_record(request)))


async def delete_file(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/files/{id}"""
    record = _record(request)
    request[PROVIDER].files.drop(record.id)
    request[PROVIDER].note("delete", 200, file_id=record.id)
    return json_reply({"id": record.id, "type": "file_deleted"})
