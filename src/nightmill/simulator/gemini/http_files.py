"""``/upload/{version}/files``, ``/{version}/files`` and ``/download/{version}/files``"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nightmill.simulator.files import FileRecord
from nightmill.simulator.gemini import reading, showing, uploads
from nightmill.simulator.gemini.errors import GeminiError, internal, invalid, no_such_file
from nightmill.simulator.gemini.keys import base_of, scope_of
from nightmill.simulator.http import PROVIDER, json_reply, send_file


async def upload(request: web.Request) -> web.StreamResponse:
    """POST /upload/{version}/files: the start of an upload, or one of its chunks."""
    upload_id = request.query.get("upload_id")
    if upload_id is None:
        return await _start(request)
    provider = request[PROVIDER]
    found = uploads.get(provider.files, upload_id)
    commands = uploads.commands_of(request.headers)
    if not commands or not commands <= uploads.COMMANDS:
        raise invalid(f"X-Goog-Upload-Command is one of {', '.join(sorted(uploads.COMMANDS))}.")
    if "cancel" in commands:
        provider.files.drop(found.id)
        return web.Response(headers=uploads.state_headers("cancelled", 0))
    if "finalize" in commands and provider.faults.take("upload_500", "upload") is not None:
        provider.note("upload", 500)
        raise internal()
    if "upload" in commands:
        await uploads.take(found, request.content.iter_chunked(uploads.CHUNK_BYTES), request.headers)
    if "finalize" not in commands:
        return web.Response(headers=uploads.state_headers("active", uploads.received(found)))
    made = await uploads.finalize(provider.files, found, provider.clock.stamp())
    provider.note("upload", 200, file_id=f"files/{made.id}", filename=made.filename, size_bytes=made.size_bytes)
    answer = json_reply({"file": showing.file(base_of(request), made)})
    answer.headers.update(uploads.state_headers("final", made.size_bytes))
    return answer


async def _start(request: web.Request) -> web.StreamResponse:
    provider, raw = request[PROVIDER], await request.read()
    asked = reading.read(raw, reading.StartUpload) if raw.strip() else reading.StartUpload()
    wanted = asked.file or reading.FileWanted()
    made = uploads.start(provider.files, request.headers, wanted, provider.clock.stamp(), scope_of(request))
    return web.Response(headers=uploads.opened(made, f"{request.scheme}://{request.host}{request.path}"))


def find(request: web.Request, file_id: str) -> FileRecord:
    """The file, or the 403 of the wire."""
    found = request[PROVIDER].files.find(file_id, scope_of(request))
    if found is None or found.purpose not in (uploads.UPLOADED, uploads.GENERATED):
        raise no_such_file(file_id)
    return found


async def list_files(request: web.Request) -> web.StreamResponse:
    """GET /{version}/files: those that were uploaded, newest first."""
    files, query = request[PROVIDER].files.all(scope_of(request), uploads.UPLOADED)[::-1], request.query
    ids = [file.id for file in files]
    size, token = query.get("pageSize"), query.get("pageToken")
    shown, more = showing.page(files, ids, size=size, token=token, default=10, most=100)
    body: dict[str, Any] = {"files": [showing.file(base_of(request), file) for file in shown], "nextPageToken": more}
    return json_reply({name: value for name, value in body.items() if value})


async def get_file(request: web.Request) -> web.StreamResponse:
    """GET /{version}/files/{id}; the results of a batch have ids that are too long for this call."""
    file_id = request.match_info["file_id"]
    uploads.check_length(file_id, "GetFileRequest.name")
    return json_reply(showing.file(base_of(request), find(request, file_id)))


async def delete_file(request: web.Request) -> web.StreamResponse:
    """DELETE /{version}/files/{id}"""
    provider, file_id = request[PROVIDER], request.match_info["file_id"]
    if provider.faults.take("delete_405", "delete") is not None:
        raise GeminiError(405, "This method is not allowed here.", word="UNIMPLEMENTED")
    try:
        provider.files.drop(find(request, file_id).id)
    except GeminiError as refusal:
        provider.note("delete", refusal.status, file_id=f"files/{file_id}")
        raise
    provider.note("delete", 200, file_id=f"files/{file_id}")
    return json_reply({})


async def download(request: web.Request) -> web.StreamResponse:
    """GET /download/{version}/files/{id}:download?alt=media, with or without /download"""
    provider, found = request[PROVIDER], find(request, request.match_info["file_id"])
    if request.query.get("alt") != "media":
        raise invalid("The content of a file is asked for with alt=media.")
    if found.purpose != uploads.GENERATED:
        raise invalid(f"The file files/{found.id} was uploaded; only generated files can be downloaded.")
    if provider.faults.take("retention_404", "content") is not None:
        raise GeminiError(404, "Requested entity was not found.")
    return await send_file(request, found.path, {"Content-Type": "application/jsonl"})
