"""The resumable upload of the simulator's Gemini format, call by call, and whose keys open what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gemini_kit import MODEL, ask, content, generate, lines, request, run, send, start_upload, upload
from simulator_kit import call, fast, jsonl

from nightmill.simulator import in_thread


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url


def test_an_upload_goes_on_where_it_stopped(base: str) -> None:
    """After a lost chunk, a query says how much is there, and the rest follows from that place."""
    content = jsonl(lines(6))
    address = start_upload(base, len(content), display_name="d", mime_type="jsonl").headers["X-Goog-Upload-URL"]
    first = send(address, content[:100], 0, "upload")
    assert (first.status, first.headers["X-Goog-Upload-Status"]) == (200, "active")
    asked = send(address, b"", 0, "query")
    assert asked.headers["X-Goog-Upload-Size-Received"] == "100"
    assert send(address, content[50:], 50).status == 400
    last = send(address, content[100:], 100)
    assert last.headers["X-Goog-Upload-Status"] == "final"
    file = last.json()["file"]
    assert (file["displayName"], file["mimeType"], file["sizeBytes"]) == ("d", "jsonl", str(len(content)))
    asked_for = {"batch": {"input_config": {"file_name": file["name"]}}}
    assert ask(base, "POST", f"/v1beta/models/{MODEL}:batchGenerateContent", asked_for).status == 200
    assert send(address, b"", len(content), "query").status == 404


def test_an_upload_may_be_finalized_by_itself(base: str) -> None:
    """The last chunk need not be the call that ends the upload."""
    address = start_upload(base, 3).headers["X-Goog-Upload-URL"]
    assert send(address, b"{}\n", 0, "upload").status == 200
    assert send(address, b"", 3, "finalize").json()["file"]["sizeBytes"] == "3"


def test_what_is_not_as_announced_is_no_file(base: str) -> None:
    """Too few bytes, an own name that breaks the rules, another protocol, a cancelled upload."""
    address = start_upload(base, 5, name="files/short").headers["X-Goog-Upload-URL"]
    assert send(address, b"{}\n", 0).status == 400
    assert send(address, b"", 0, "cancel").headers["X-Goog-Upload-Status"] == "cancelled"
    assert ask(base, "GET", "/v1beta/files/short").status == 403
    assert start_upload(base, 5, name="files/Not-Allowed").status == 400
    assert ask(base, "POST", "/upload/v1beta/files", {"file": {}}).status == 400
    assert send(address, b"", 0, "sing").status == 404


def test_files_are_listed_newest_first(base: str) -> None:
    """In pages, and without those of others' formats."""
    with in_thread(fast()) as own:
        made = [upload(own, b"{}\n").json()["file"]["name"] for _ in range(3)]
        page = ask(own, "GET", "/v1beta/files?pageSize=2").json()
        rest = ask(own, "GET", f"/v1beta/files?pageSize=2&pageToken={page['nextPageToken']}").json()
        assert [file["name"] for file in page["files"] + rest["files"]] == made[::-1]
        assert "nextPageToken" not in rest
        assert call(own, "GET", "/v1/files").json()["data"] == []
        assert [file["name"] for file in ask(own, "GET", "/v1/files").json()["files"]] == made[::-1]


@pytest.mark.parametrize(("key", "status", "word"), [
    ("sk-wrong", 400, "INVALID_ARGUMENT"), ("sk-noquota", 429, "RESOURCE_EXHAUSTED"), (None, 403, "PERMISSION_DENIED"),
])  # fmt: skip
def test_keys(base: str, key: str | None, status: int, word: str) -> None:
    """No key, a wrong one, and that of a project without money are told apart."""
    answer = ask(base, "POST", f"/v1beta/models/{MODEL}:generateContent", request("x"), key=key)
    assert (answer.status, answer.json()["error"]["status"]) == (status, word)


def test_a_key_may_travel_in_three_ways(base: str) -> None:
    """In its header, in the query, and as a bearer."""
    path = f"/v1/models/{MODEL}:generateContent"
    assert generate(base).status == 200
    assert ask(base, "POST", f"{path}?key=k", request("x"), key=None).status == 200
    assert ask(base, "POST", path, request("x"), key=None, Authorization="Bearer k").status == 200


def test_results_have_an_id_that_only_the_download_takes(base: str) -> None:
    """As with Google, getting the File of a batch's results refuses the length of its id."""
    batch = run(base, lines(1))
    assert ask(base, "GET", f"/v1beta/{batch['response']['responsesFile']}").status == 400
    assert content(base, batch).count(b"\n") == 1


def test_an_unknown_call_is_refused_in_googles_shape(base: str) -> None:
    """Clients that look for an error's fields find them."""
    answer = ask(base, "POST", f"/v1beta/models/{MODEL}:sing", {})
    assert (answer.status, answer.json()["error"]["status"]) == (404, "NOT_FOUND")
