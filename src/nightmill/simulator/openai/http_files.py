"""``/v1/files``"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nightmill.simulator.files import THIRTY_DAYS_S, FileRecord
from nightmill.simulator.http import PROVIDER, json_reply, read_form, send_file
from nightmill.simulator.openai.http_common import scope_of, whole_number
from nightmill.simulator.openai.wire import ApiError, page, server_error

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_GENERAL_BYTES = 512 * 1024 * 1024


def view(record: FileRecord) -> dict[str, Any]:
    """The file object of the wire."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.size_bytes,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


async def upload(request: web.Request) -> web.StreamResponse:
    """POST /v1/files"""
    provider = request[PROVIDER]
    if not request.content_type.startswith("multipart/"):
        raise ApiError(400, "Could not parse multipart form. Send the file as multipart/form-data.")
    scratch = provider.files.scratch()
    try:
        fields, filename, size = await read_form(request, scratch, max(provider.max_bytes, _GENERAL_BYTES))
        _check_upload(fields, filename, size, provider.max_bytes)
        if provider.faults.take("upload_500", "upload") is not None:
            raise server_error()
        record = provider.files.add(
            scratch,
            filename=filename or "upload",
            purpose=fields["purpose"],
            created_at=provider.clock.stamp(),
            keep_s=_keep_s(fields),
            scope=scope_of(request),
        )
    except ApiError as refusal:
        provider.note("upload", refusal.status)
        raise
    except ValueError as broken:
        provider.note("upload", 400)
        raise ApiError(400, f"Could not parse multipart form: {broken}") from None
    finally:
        scratch.unlink(missing_ok=True)
    provider.note("upload", 200, file_id=record.id, filename=record.filename, size_bytes=record.size_bytes)
    return json_reply(view(record))


def _check_upload(fields: dict[str, str], filename: str | None, size: int, max_bytes: int) -> None:
    if filename is None:
        raise ApiError(400, "'file' is a required property", param="file")
    purpose = fields.get("purpose")
    if purpose is None:
        raise ApiError(400, "'purpose' is a required property", param="purpose")
    if purpose not in PURPOSES:
        message = f"'{purpose}' is not one of {list(PURPOSES)!r} - 'purpose'"
        raise ApiError(400, message, param="purpose")
    if purpose == "batch" and size > max_bytes:
        raise ApiError(413, f"The batch input file is larger than the {max_bytes} maximum for the Batch API.")
    if size > max(max_bytes, _GENERAL_BYTES):
        raise ApiError(413, f"The file is larger than the {_GENERAL_BYTES} maximum.")


def _keep_s(fields: dict[str, str]) -> int | None:
    given = fields.get("expires_after[seconds]")
    if given is None:
        return THIRTY_DAYS_S if fields["purpose"] == "batch" else None
    if fields.get("expires_after[anchor]") != "created_at":
        raise ApiError(400, "'expires_after.anchor' must be 'created_at'.", param="expires_after.anchor")
    if not given.isdigit() or not 3600 <= int(given) <= THIRTY_DAYS_S:
        message = f"'expires_after.seconds' must be between 3600 and {THIRTY_DAYS_S}."
        raise ApiError(400, message, param="expires_after.seconds")
    return int(given)


async def list_files(request: web.Request) -> web.StreamResponse:
    """GET /v1/files"""
    provider = request[PROVIDER]
    limit = whole_number(request, "limit", 10_000, 10_000)
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'.", param="order")
    records = provider.files.all(scope_of(request), request.query.get("purpose"))
    if order == "desc":
        records.reverse()
    after = request.query.get("after")
    return json_reply(_page_after([view(record) for record in records], after, limit))


def _page_after(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    start = 0
    if after is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, f"No such File object: {after}", param="after")
        start = places[0] + 1
    return page(items[start : start + limit], start + limit < len(items))


def _record(request: web.Request) -> FileRecord:
    file_id = request.match_info["file_id"]
    record = request[PROVIDER].files.find(file_id, scope_of(request))
    if record is None:
        raise ApiError(404, f"No such File object: {file_id}", param="id")
    return record


async def get_file(request: web.Request) -> web.StreamResponse:
    """GET /v1/files/{id}"""
    return json_reply(view(_record(request)))


async def delete_file(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/files/{id}"""
    provider, file_id = request[PROVIDER], request.match_info["file_id"]
    if provider.faults.take("delete_405", "delete") is not None:
        raise ApiError(405, "Not allowed to DELETE on /v1/files/{file_id}")
    try:
        provider.files.drop(_record(request).id)
    except ApiError as refusal:
        provider.note("delete", refusal.status, file_id=file_id)
        raise
    provider.note("delete", 200, file_id=file_id)
    return json_reply({"id": file_id, "object": "file", "deleted": True})


async def get_content(request: web.Request) -> web.StreamResponse:
    """GET /v1/files/{id}/content"""
    provider = request[PROVIDER]
    record = _record(request)
    if provider.faults.take("retention_404", "content") is not None:
        raise ApiError(404, f"No such File object: {record.id}", param="id")
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'attachment; filename="{record.id}.jsonl"',
    }
    return await send_file(request, record.path, headers)
