"""Every fault the simulator knows, one by one: each does what it says, and bills what was run."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from simulator_kit import (
    CHAT,
    MODEL,
    call,
    chat_body,
    chat_lines,
    content,
    create,
    fast,
    invoice,
    jsonl,
    log,
    poll,
    results,
    run,
    set_faults,
    until,
    upload,
)

from nightmill.simulator import in_thread
from nightmill.simulator.faults import KNOWN, FaultBook, Share

DROPPED = (http.client.RemoteDisconnected, ConnectionResetError)
ROWS = 20
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "mood",
        "schema": {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]},
    },
}


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url


@pytest.fixture
def base(shared: str) -> Iterator[str]:
    """A simulator with no fault in force, before and after."""
    yield shared
    call(shared, "DELETE", "/simulator/faults")


def _billed(url: str, batch: dict[str, Any]) -> int:
    return int(invoice(url)["batches"][batch["id"]]["executed"])


def _ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["custom_id"] for item in items]


def _text(item: dict[str, Any]) -> Any:
    return item["response"]["body"]["choices"][0]["message"]["content"]


def _listed(url: str) -> list[str]:
    return [batch["id"] for batch in call(url, "GET", "/v1/batches?limit=100").json()["data"]]


def _run_with(url: str, *faults: dict[str, Any], **body: Any) -> dict[str, Any]:
    set_faults(url, *faults)
    return run(url, chat_lines(ROWS, **body))


# --- create ---


@pytest.mark.req("X11")
def test_create_accepted_then_timeout(base: str) -> None:
    """The batch exists and runs, and its caller never hears of it."""
    set_faults(base, {"fault": "create_accepted_then_timeout", "delay_s": 0.01, "times": 1})
    known = _listed(base)
    with pytest.raises(DROPPED):
        create(base, chat_lines(2), metadata={"submission": "lost.1"})
    (lost,) = [batch_id for batch_id in _listed(base) if batch_id not in known]
    assert until(base, lost, "completed")["metadata"] == {"submission": "lost.1"}
    event = log(base)[-1]
    assert (event["event"], event["batch_id"], event["dropped"], event["status"]) == ("create", lost, True, None)


def test_create_accepted_then_500(base: str) -> None:
    """A 500 after the commit: the batch is in the list."""
    set_faults(base, {"fault": "create_accepted_then_500", "times": 1})
    known = _listed(base)
    assert create(base, chat_lines(2)).status == 500
    assert len(_listed(base)) == len(known) + 1
    assert log(base)[-1]["status"] == 500
    assert create(base, chat_lines(2)).status == 200


def test_create_repeated(base: str) -> None:
    """Two batches of one create, alike in all but their ids; both are in the list and in the log."""
    set_faults(base, {"fault": "create_repeated", "times": 1})
    known = _listed(base)
    assert create(base, chat_lines(2), metadata={"submission": "twin.1"}).status == 500
    made = [batch_id for batch_id in _listed(base) if batch_id not in known]
    assert [until(base, one, "completed")["metadata"] for one in made] == [{"submission": "twin.1"}] * 2
    assert {(e["batch_id"], e["status"]) for e in log(base)[-2:]} == {(one, 500) for one in made}


@pytest.mark.parametrize("name", ["create_dropped_before", "create_500_before"])
def test_create_lost_before(base: str, name: str) -> None:
    """Nothing is committed by a create that never got through."""
    set_faults(base, {"fault": name, "times": 1})
    known = _listed(base)
    if name == "create_dropped_before":
        with pytest.raises(DROPPED):
            create(base, chat_lines(2))
    else:
        assert create(base, chat_lines(2)).status == 500
    assert _listed(base) == known
    assert (log(base)[-1]["event"], log(base)[-1]["batch_id"]) == ("create", None)


def test_late_listing(base: str) -> None:
    """A late batch can be got by its id, and shows in the list only after the lag."""
    set_faults(base, {"fault": "late_listing", "lag_s": 1_000_000})
    hidden = create(base, chat_lines(1)).json()["id"]
    set_faults(base, {"fault": "late_listing", "lag_s": 0})
    shown = create(base, chat_lines(1)).json()["id"]
    assert poll(base, hidden)["id"] == hidden
    assert shown in _listed(base)
    assert hidden not in _listed(base)


def test_enqueued_limit_now(base: str) -> None:
    """The enqueued-token limit as a 429 at create."""
    set_faults(base, {"fault": "enqueued_limit_now", "limit": 90_000, "times": 1})
    answer = create(base, chat_lines(1))
    assert answer.status == 429
    assert answer.json()["error"]["code"] == "token_limit_exceeded"
    assert f"Enqueued token limit reached for {MODEL}" in answer.json()["error"]["message"]
    assert create(base, chat_lines(1)).status == 200


def test_enqueued_limit_later(base: str) -> None:
    """The same limit as a batch that fails after a 200, in OpenAI's words."""
    batch = _run_with(base, {"fault": "enqueued_limit_later", "limit": 2_000_000})
    assert (batch["status"], batch["request_counts"]["total"]) == ("failed", 0)
    assert batch["errors"]["data"] == [
        {
            "code": "token_limit_exceeded",
            "message": f"Enqueued token limit reached for {MODEL} in organization org-simulator. Limit: 2,000,000 "
            "enqueued tokens. Please try again once some in_progress batches have been completed.",
            "param": None,
            "line": None,
        }
    ]


# --- what a batch brings back ---


def test_missing_lines(base: str) -> None:
    """Missing rows were run, counted and billed; only their lines are not there."""
    batch = _run_with(base, {"fault": "missing_lines", "fraction": 0.25})
    assert len(results(base, batch)) == ROWS - 5
    assert batch["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
    assert _billed(base, batch) == ROWS


@pytest.mark.parametrize(("differ", "texts", "billed"), [(False, 1, ROWS), (True, 2, ROWS + 3)])
def test_duplicate_lines(base: str, differ: bool, texts: int, billed: int) -> None:
    """A line comes twice; with another text the second one was run and is billed too."""
    batch = _run_with(base, {"fault": "duplicate_lines", "count": 3, "differ": differ})
    items = results(base, batch)
    twice = {i for i in _ids(items) if _ids(items).count(i) == 2}
    assert (len(items), len(twice)) == (ROWS + 3, 3)
    assert {len({_text(item) for item in items if item["custom_id"] == i}) for i in twice} == {texts}
    assert _billed(base, batch) == billed


def test_unknown_lines(base: str) -> None:
    """Lines with ids nobody sent come beside all the others."""
    items = results(base, _run_with(base, {"fault": "unknown_lines", "count": 2}))
    assert len(set(_ids(items)) - {f"shard-{i}" for i in range(ROWS)}) == 2
    assert len(items) == ROWS + 2


def test_shuffled_rows(base: str) -> None:
    """All the lines, in another order."""
    items = results(base, _run_with(base, {"fault": "shuffled_rows"}))
    assert sorted(_ids(items)) == sorted(f"shard-{i}" for i in range(ROWS))
    assert _ids(items) != [f"shard-{i}" for i in range(ROWS)]


@pytest.mark.parametrize("status", [400, 429, 500, 0])
def test_row_errors(base: str, status: int) -> None:
    """Rows fail with a status into the error file and are free."""
    batch = _run_with(base, {"fault": "row_errors", "fraction": 0.5, "status": status})
    errors = results(base, batch, "error_file_id")
    assert {item["response"]["status_code"] for item in errors} == {status}
    assert len(errors) == batch["request_counts"]["failed"] == ROWS - _billed(base, batch) == 10
    assert (errors[0]["response"]["body"] is None) == (status == 0)


def test_late_error_file(base: str) -> None:
    """Completed, and the error file's id is null until later."""
    late = {"fault": "late_error_file", "lag_s": 1_000_000}
    failing = {"fault": "row_errors", "count": 2}
    batch = _run_with(base, late, failing)
    assert (batch["status"], batch["error_file_id"], batch["request_counts"]["failed"]) == ("completed", None, 2)
    assert _run_with(base, {**late, "lag_s": 0}, failing)["error_file_id"].startswith("file-")


def test_late_output_file(base: str) -> None:
    """Completed, and the output file's id is null until the clock is put forward by the lag."""
    batch = _run_with(base, {"fault": "late_output_file", "lag_s": 1_000_000})
    assert (batch["status"], batch["output_file_id"], batch["request_counts"]["completed"]) == ("completed", None, ROWS)
    assert call(base, "POST", "/simulator/forward", -1.0).status == 400
    assert call(base, "POST", "/simulator/forward", "soon").status == 400
    assert call(base, "POST", "/simulator/forward", 1_000_000.0).status == 200
    assert poll(base, batch["id"])["output_file_id"].startswith("file-")


def test_empty_and_absent_file_ids(base: str) -> None:
    """A file that does not exist is "" or has no key; one that does keeps its id."""
    empty = _run_with(base, {"fault": "empty_file_ids"})
    assert (empty["error_file_id"], empty["output_file_id"][:5]) == ("", "file-")
    absent = _run_with(base, {"fault": "absent_file_ids"})
    assert "error_file_id" not in absent
    assert absent["output_file_id"].startswith("file-")


def test_expire_at(base: str) -> None:
    """Expires with that share answered; the rest is batch_expired, and free."""
    batch = _run_with(base, {"fault": "expire_at", "fraction": 0.8})
    assert batch["status"] == "expired"
    assert batch["request_counts"] == {"total": ROWS, "completed": 16, "failed": 4}
    assert {item["error"]["code"] for item in results(base, batch, "error_file_id")} == {"batch_expired"}
    assert _billed(base, batch) == len(results(base, batch)) == 16


def test_cancel_reverting_counts() -> None:
    """Rows shown as completed while cancelling are gone once cancelled: only an error file is left."""
    with in_thread(fast(batch_s=1_000_000.0, window_s=1e9, cancel_s=300.0)) as url:
        set_faults(url, {"fault": "cancel_reverting_counts"})
        made = create(url, chat_lines(5)).json()
        until(url, made["id"], "in_progress")
        seen = call(url, "POST", f"/v1/batches/{made['id']}/cancel").json()
        assert seen["request_counts"] == {"total": 5, "completed": 1, "failed": 0}
        batch = until(url, made["id"], "cancelled")
        assert batch["request_counts"] == {"total": 5, "completed": 0, "failed": 0}
        assert (batch["output_file_id"], len(results(url, batch, "error_file_id"))) == (None, 5)


def test_null_counts(base: str) -> None:
    """Completed and failed may be null."""
    assert _run_with(base, {"fault": "null_counts"})["request_counts"] == {
        "total": ROWS,
        "completed": None,
        "failed": None,
    }


def test_status_unknown_word(base: str) -> None:
    """A word nobody documented is shown for as long as it runs, then a known one."""
    set_faults(base, {"fault": "status_unknown_word", "word": "pondering"}, {"fault": "never_finishes"})
    made = create(base, chat_lines(ROWS)).json()
    assert until(base, made["id"], "pondering")["in_progress_at"] is not None
    call(base, "POST", f"/v1/batches/{made['id']}/cancel")
    assert until(base, made["id"], "cancelled")["status"] == "cancelled"


def test_batch_failed_unexplained(base: str) -> None:
    """Failed, and not a word why."""
    batch = _run_with(base, {"fault": "batch_failed_unexplained"})
    assert (batch["status"], batch["errors"]) == ("failed", None)


def test_batch_failed_line(base: str) -> None:
    """Failed because of one line, which is named."""
    batch = _run_with(base, {"fault": "batch_failed_line", "line": 7, "code": "odd", "message": "no"})
    assert batch["errors"]["data"] == [{"code": "odd", "message": "no", "param": None, "line": 7}]


def test_never_finishes(base: str) -> None:
    """It stays in progress with all its rows done, until someone cancels."""
    set_faults(base, {"fault": "never_finishes"})
    made = create(base, chat_lines(ROWS)).json()
    while poll(base, made["id"])["request_counts"]["completed"] < ROWS:
        time.sleep(0.02)
    assert poll(base, made["id"])["status"] == "in_progress"
    call(base, "POST", f"/v1/batches/{made['id']}/cancel")
    assert until(base, made["id"], "cancelled")["request_counts"]["completed"] == ROWS


def test_fail_at(base: str) -> None:
    """Failed while it ran: the answers there are can be had, and of the other rows there is no line."""
    batch = _run_with(base, {"fault": "fail_at", "fraction": 0.5})
    assert (batch["status"], batch["request_counts"]["completed"]) == ("failed", ROWS // 2)
    assert len(_raw(base, batch).splitlines()) == ROWS // 2


def test_slow_cancel(base: str) -> None:
    """Asked to be cancelled, it takes its time."""
    set_faults(base, {"fault": "never_finishes"}, {"fault": "slow_cancel", "lag_s": 1e9})
    made = create(base, chat_lines(ROWS)).json()
    call(base, "POST", f"/v1/batches/{made['id']}/cancel")
    call(base, "POST", "/simulator/forward", 1e8)
    assert poll(base, made["id"])["status"] == "cancelling"


def test_slow_batch(base: str) -> None:
    """It takes its time: one that was made later overtakes it."""
    set_faults(base, {"fault": "slow_batch", "lag_s": 80_000.0, "times": 1})
    slow, quick = (create(base, chat_lines(ROWS)).json()["id"] for _ in range(2))
    until(base, quick, "completed")
    assert poll(base, slow)["status"] in ("validating", "in_progress")


# --- files on the way down ---


@pytest.fixture
def finished(base: str) -> dict[str, Any]:
    return run(base, chat_lines(ROWS))


def _raw(url: str, batch: dict[str, Any]) -> bytes:
    return content(url, batch["output_file_id"])


def test_truncated_last_line(base: str, finished: dict[str, Any]) -> None:
    """The file ends inside its last line, and its length agrees; the next read is whole."""
    whole = _raw(base, finished)
    set_faults(base, {"fault": "truncated_last_line", "times": 1})
    cut = _raw(base, finished)
    assert whole.startswith(cut)
    assert cut.count(b"\n") == ROWS - 1
    assert not cut.endswith(b"\n")
    assert _raw(base, finished) == whole


def test_short_body(base: str, finished: dict[str, Any]) -> None:
    """Fewer bytes than promised arrive, then the connection ends."""
    whole = _raw(base, finished)
    set_faults(base, {"fault": "short_body", "times": 1})
    with pytest.raises(http.client.IncompleteRead) as short:
        _raw(base, finished)
    assert 0 < len(short.value.partial) < len(whole)
    assert len(short.value.partial) + (short.value.expected or 0) == len(whole)


def test_slow_bodies(base: str, finished: dict[str, Any]) -> None:
    """A dripping body arrives whole, and says how long it is from the start."""
    whole = _raw(base, finished)
    set_faults(base, {"fault": "slow_bodies", "pieces": 7, "delay_s": 0.001})
    answer = call(base, "GET", f"/v1/files/{finished['output_file_id']}/content")
    assert answer.body == whole
    assert answer.headers["Content-Length"] == str(len(whole))


def test_retention_404(base: str, finished: dict[str, Any]) -> None:
    """The content is gone."""
    set_faults(base, {"fault": "retention_404"})
    assert call(base, "GET", f"/v1/files/{finished['output_file_id']}/content").status == 404


# --- polls, lists, uploads ---


def test_poll_faults(base: str, finished: dict[str, Any]) -> None:
    """A poll can answer 500 or, once, 404."""
    path = f"/v1/batches/{finished['id']}"
    set_faults(base, {"fault": "poll_500", "times": 1, "after": 1}, {"fault": "poll_404_once"})
    assert [call(base, "GET", path).status for _ in range(4)] == [404, 500, 200, 200]


def test_list_faults(base: str, finished: dict[str, Any]) -> None:
    """A page of the list can answer 500 or break off."""
    set_faults(base, {"fault": "list_page_500", "times": 1, "after": 1})
    assert [call(base, "GET", "/v1/batches").status for _ in range(3)] == [200, 500, 200]
    set_faults(base, {"fault": "list_page_cut", "times": 1})
    with pytest.raises(http.client.IncompleteRead):
        call(base, "GET", "/v1/batches")
    assert call(base, "GET", "/v1/batches").status == 200


def test_upload_500(base: str) -> None:
    """A failed upload leaves no file behind."""
    set_faults(base, {"fault": "upload_500", "times": 1})
    known = call(base, "GET", "/v1/files").json()["data"]
    assert upload(base, b"{}\n").status == 500
    assert call(base, "GET", "/v1/files").json()["data"] == known


def test_a_server_without_a_call_to_delete(base: str) -> None:
    """It refuses, and the file is still there."""
    kept = upload(base, b"{}\n").json()["id"]
    set_faults(base, {"fault": "delete_405", "times": 1})
    assert call(base, "DELETE", f"/v1/files/{kept}").status == 405
    assert call(base, "GET", f"/v1/files/{kept}").status == 200
    assert call(base, "DELETE", f"/v1/files/{kept}").status == 200


# --- live ---


def _live(url: str, text: str = "x", **more: Any) -> Any:
    return call(url, "POST", CHAT, chat_body(text, **more))


def test_live_429(base: str) -> None:
    """A storm of 429s of the asked length and waits, free of charge."""
    set_faults(base, {"fault": "live_429", "count": 2, "retry_after": 3, "retry_after_ms": 2500})
    before = invoice(base)["live_calls"]
    answers = [_live(base) for _ in range(3)]
    assert [answer.status for answer in answers] == [429, 429, 200]
    assert (answers[0].headers["retry-after"], answers[0].headers["retry-after-ms"]) == ("3", "2500")
    assert answers[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert invoice(base)["live_calls"] == before + 1


def test_live_500_by_fraction(base: str) -> None:
    """A fraction of calls fails, evenly spread."""
    set_faults(base, {"fault": "live_500", "fraction": 0.25, "status": 503})
    assert [_live(base).status for _ in range(8)] == [200, 200, 200, 503, 200, 200, 200, 503]


def test_live_timeout_is_billed(base: str) -> None:
    """An answer that never comes was run and is billed."""
    set_faults(base, {"fault": "live_timeout", "count": 1, "delay_s": 0.01})
    before = invoice(base)["live_calls"]
    with pytest.raises(DROPPED):
        _live(base)
    assert invoice(base)["live_calls"] == before + 1


def test_live_close_before_is_free(base: str) -> None:
    """A connection closed before processing costs nothing."""
    set_faults(base, {"fault": "live_close_before", "count": 1})
    before = invoice(base)["live_calls"]
    with pytest.raises(DROPPED):
        _live(base)
    assert invoice(base)["live_calls"] == before
    assert _live(base).status == 200


def test_pretty_printed_bodies(base: str) -> None:
    """Live bodies run over many lines; in files they stay one line, spaced and escaped, meaning the same."""
    plain_live, plain = _live(base, "ü"), results(base, run(base, chat_lines(3)))
    set_faults(base, {"fault": "pretty_printed_bodies"})
    pretty = _live(base, "ü")
    assert pretty.body.count(b"\n") > 20
    assert pretty.json()["choices"] == plain_live.json()["choices"]
    batch = run(base, chat_lines(3))
    raw = _raw(base, batch)
    assert raw.count(b"\n") == 3
    assert b'"object" : "chat.completion"' in raw
    assert [_text(item) for item in results(base, batch)] == [_text(item) for item in plain]


@pytest.mark.parametrize("status", [502, 200])
def test_non_json_bodies(base: str, status: int) -> None:
    """An HTML page in place of an answer, with an error status or a 200; nothing was run."""
    set_faults(base, {"fault": "non_json_bodies", "status": status, "times": 1})
    before = invoice(base)["live_calls"]
    answer = _live(base)
    assert (answer.status, answer.headers["Content-Type"][:9]) == (status, "text/html")
    assert answer.body.startswith(b"<html>")
    assert invoice(base)["live_calls"] == before


@pytest.mark.parametrize("commit", [False, True])
def test_non_json_create(base: str, commit: bool) -> None:
    """A gateway's page for a create hides whether the batch was committed; the fault chooses."""
    set_faults(base, {"fault": "non_json_bodies", "on": ["create"], "commit": commit, "times": 1})
    known = _listed(base)
    assert create(base, chat_lines(1)).status == 502
    assert len(_listed(base)) == len(known) + commit


# --- answers, in both lanes ---


def _first(url: str, fault: dict[str, Any], **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer body of one row under a fault: live, and in a batch."""
    set_faults(url, fault)
    live = _live(url, "row number 0", **body)
    assert live.status == 200
    return live.json(), results(url, run(url, chat_lines(1, **body)))[0]["response"]["body"]


@pytest.mark.parametrize(
    ("name", "finish"),
    [("empty_answers", "stop"), ("truncated_answers", "length"), ("refusal_answers", "stop")],
)
def test_poor_answers(base: str, name: str, finish: str) -> None:
    """Empty, cut and refused answers are 200s that cost their tokens, within the cap."""
    before = invoice(base)["total_nanos"]
    for body in _first(base, {"fault": name}, max_completion_tokens=30):
        choice = body["choices"][0]
        assert choice["finish_reason"] == finish
        assert 1 <= body["usage"]["completion_tokens"] <= 30
        assert (choice["message"]["content"] in ("", None)) == (name != "truncated_answers")
        assert (choice["message"]["refusal"] is not None) == (name == "refusal_answers")
    assert invoice(base)["total_nanos"] > before


def test_answers_that_are_not_what_the_schema_says(base: str) -> None:
    """Answers that are no JSON, or JSON of another shape, where a schema was asked for."""
    for body in _first(base, {"fault": "invalid_json_answers"}, response_format=SCHEMA):
        with pytest.raises(json.JSONDecodeError):
            json.loads(body["choices"][0]["message"]["content"])
    for body in _first(base, {"fault": "wrong_schema_answers"}, response_format=SCHEMA):
        assert not isinstance(json.loads(body["choices"][0]["message"]["content"]), dict)


def test_usage_missing(base: str) -> None:
    """No usage in the answer, billed all the same."""
    before = invoice(base)["executed_rows"]
    assert ["usage" in body for body in _first(base, {"fault": "usage_missing"})] == [False, False]
    assert invoice(base)["executed_rows"] == before + 2


def test_model_snapshot_changes(base: str) -> None:
    """Rows are answered by dated snapshots, not always the same one."""
    batch = _run_with(base, {"fault": "model_snapshot_changes"})
    models = {item["response"]["body"]["model"] for item in results(base, batch)}
    assert len(models) == 2
    assert all(model.startswith(MODEL + "-") for model in models)
    assert batch["model"] == MODEL


def test_answer_faults_by_count(base: str) -> None:
    """A count picks that many rows, and the same ones each time."""
    one = _run_with(base, {"fault": "empty_answers", "count": 4})
    two = _run_with(base, {"fault": "empty_answers", "count": 4})
    empty = [[item["custom_id"] for item in results(base, batch) if _text(item) == ""] for batch in (one, two)]
    assert len(empty[0]) == 4
    assert empty[0] == empty[1]


# --- keys ---


def test_key_revoked(base: str) -> None:
    """From one of its operations on no call passes with a key, and every other key still opens."""
    set_faults(base, {"fault": "key_revoked", "key": "sk-old", "on": "live", "after": 1})
    body = chat_body("x")
    said = [call(base, "POST", CHAT, body, key=key).status for key in ("sk-old", "sk-new", "sk-old", "sk-new")]
    assert said == [200, 200, 401, 200]
    refused = call(base, "GET", "/v1/models", key="sk-old")
    assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")


def test_quota_used_up(base: str) -> None:
    """What costs money is refused, as when there is none; to look is free."""
    set_faults(base, {"fault": "quota_used_up", "key": "sk-dry"})
    refused = call(base, "POST", CHAT, chat_body("x"), key="sk-dry")
    assert (refused.status, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert call(base, "GET", "/v1/batches", key="sk-dry").status == 200


def test_keys_have_accounts_and_bills(base: str) -> None:
    """Keys of one account see the same batches, others none of them; each key is billed for its own calls."""
    uploaded = upload(base, jsonl(chat_lines(2)), Authorization="Bearer sk-1@blue").json()["id"]
    asked = {"input_file_id": uploaded, "endpoint": CHAT, "completion_window": "24h"}
    batch_id = call(base, "POST", "/v1/batches", asked, key="sk-1@blue").json()["id"]
    seen = [call(base, "GET", f"/v1/batches/{batch_id}", key=key).status for key in ("sk-2@blue", "sk-1@red", "sk-1")]
    assert seen == [200, 404, 404]
    call(base, "POST", CHAT, chat_body("x"), key="sk-2@blue")
    bill = invoice(base)
    assert bill["keys"]["sk-2@blue"]["nanos"] > 0
    assert sum(each["nanos"] for each in bill["keys"].values()) == bill["total_nanos"]


# --- the book ---


def test_after_and_times(base: str) -> None:
    """A fault lets the first ones pass and stops after its times."""
    set_faults(base, {"fault": "batch_failed_unexplained", "after": 1, "times": 1})
    assert [run(base, chat_lines(1))["status"] for _ in range(3)] == ["completed", "failed", "completed"]
    assert call(base, "GET", "/simulator/faults").json()[0]["fired"] == 1


@pytest.mark.parametrize("bad", [[{"fault": "typo"}], [{"fault": "missing_lines", "fraction": "half"}], {"fault": "x"}])
def test_unknown_faults_are_refused(base: str, bad: Any) -> None:
    """A fault that would never fire is an error, not a silent nothing; what was in force stays."""
    set_faults(base, {"fault": "poll_500"})
    assert call(base, "PUT", "/simulator/faults", bad).status == 400
    assert [fault["fault"] for fault in call(base, "GET", "/simulator/faults").json()] == ["poll_500"]


_OF_FLEX = ("flex_downgraded", "resource_unavailable")  # the tier of one provider, tested with it


def test_every_fault_is_tested_here() -> None:
    """No fault is known that no test names."""
    with open(__file__) as source:
        text = source.read()
    assert [name for name in KNOWN if f'"{name}"' not in text] == []


@pytest.mark.parametrize("total", [1, 7, 50])
def test_shares_are_exact(total: int) -> None:
    """A share picks exactly as many rows as it says, wherever its name puts it."""
    for chosen in range(total + 1):
        for name in ("missing_lines", "empty_answers"):
            share = Share.of(name, {"count": chosen}, total)
            assert sum(row in share for row in range(total)) == chosen


def test_faults_narrowed_to_an_operation() -> None:
    """`on` keeps a fault off other operations, and those do not use it up."""
    book = FaultBook([{"fault": "usage_missing", "on": "live", "times": 1}])
    assert book.take_for_batch() == {}
    assert book.take_for_answer() == {"usage_missing"}
    assert book.take_for_answer() == frozenset()


def test_bad_input_is_no_fault_of_the_faults(base: str) -> None:
    """With faults in force a bad line still fails the batch first."""
    set_faults(base, {"fault": "missing_lines"}, {"fault": "expire_at"})
    assert run(base, jsonl(["no object"]))["errors"]["data"][0]["code"] == "invalid_json_line"
