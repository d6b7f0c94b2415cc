"""A batch's life in the simulator: validation, states, limits, and the invoice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from simulator_kit import (
    CHAT,
    EMBEDDINGS,
    MODEL,
    call,
    chat_body,
    chat_lines,
    create,
    fast,
    invoice,
    jsonl,
    judge,
    line,
    log,
    poll,
    results,
    run,
    until,
    upload,
)

from nightmill.simulator import in_thread


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with in_thread(fast(max_rows=40, max_bytes=20_000, max_inputs=6)) as url:
        yield url


GOOD = line("r-0", chat_body("good"))


@pytest.mark.parametrize(
    ("lines", "code", "param", "number"),
    [
        ([GOOD, b"{not json"], "invalid_json_line", None, 2),
        ([GOOD, b"[1]"], "invalid_json_line", None, 2),
        ([GOOD, b'{"custom_id": "\xff"}'], "invalid_json_line", None, 2),
        ([GOOD, b""], "invalid_json_line", None, 2),
        ([GOOD, line("r-0", chat_body("other"))], "duplicate_custom_id", "custom_id", 2),
        ([GOOD, {**line("r-1", chat_body("x")), "custom_id": None}], "missing_required_parameter", "custom_id", 2),
        ([{k: v for k, v in GOOD.items() if k != "custom_id"}], "missing_required_parameter", "custom_id", 1),
        ([{k: v for k, v in GOOD.items() if k != "method"}], "missing_required_parameter", "method", 1),
        ([{k: v for k, v in GOOD.items() if k != "body"}], "missing_required_parameter", "body", 1),
        ([GOOD, line("r-1", chat_body("x", model="gpt-4o"))], "mismatched_model", "body.model", 2),
        ([GOOD, line("r-1", chat_body("x"), "/v1/embeddings")], "invalid_url", "url", 2),
        ([line("r-1", chat_body("x", model="gpt-none"))], "model_not_found", "body.model", 1),
        ([line("r-1", {"messages": []})], "invalid_request", "body.model", 1),
        ([GOOD, line("r-1", chat_body("x", stream=True))], "streaming_unsupported", "body.stream", 2),
        ([], "empty_file", None, None),
        (chat_lines(41), "too_many_tasks", None, None),
    ],
)
def test_a_bad_line_fails_the_whole_batch(
    base: str, lines: list[Any], code: str, param: str | None, number: int | None
) -> None:
    """The first bad line fails the batch with its code, parameter and 1-based number; nothing runs or costs."""
    before = invoice(base)["total_nanos"]
    raw = b"".join(item + b"\n" if isinstance(item, bytes) else jsonl([item]) for item in lines)
    batch = run(base, raw)
    assert batch["status"] == "failed"
    (error,) = batch["errors"]["data"]
    assert (error["code"], error["param"], error["line"]) == (code, param, number)
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert (batch["output_file_id"], batch["error_file_id"], batch["usage"]) == (None, None, None)
    assert batch["failed_at"] is not None
    assert judge("Batch", batch) == []
    assert invoice(base)["total_nanos"] == before


def test_embedding_inputs_are_counted(base: str) -> None:
    """Embedding inputs are summed over rows: one above the limit fails the batch, the limit itself does not."""
    body = {"model": "text-embedding-3-small", "input": ["a", "b", "c"]}
    rows = [line(f"r-{i}", body, EMBEDDINGS) for i in range(2)]
    assert run(base, rows, EMBEDDINGS)["status"] == "completed"
    one_more = line("r-2", {"model": "text-embedding-3-small", "input": "d"}, EMBEDDINGS)
    failed = run(base, [*rows, one_more], EMBEDDINGS)
    assert (failed["status"], failed["errors"]["data"][0]["line"]) == ("failed", 3)


def test_an_upload_above_the_limit_is_refused(base: str) -> None:
    """A batch file above the byte limit is a 413 at upload; one of exactly that size is taken."""
    assert upload(base, b"x" * 20_000).status == 200
    answer = upload(base, b"x" * 20_001)
    assert answer.status == 413
    assert judge("ErrorResponse", answer.json()) == []
    assert [event["status"] for event in log(base) if event["event"] == "upload"][-2:] == [200, 413]


def test_a_file_that_is_not_there_fails_the_batch(base: str) -> None:
    """A create names its file freely; the batch fails for a file that is missing, deleted, or no input."""
    asked = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    other = upload(base, jsonl([GOOD]), purpose="user_data").json()["id"]
    for file_id in ("file-none", other):
        made = call(base, "POST", "/v1/batches", {**asked, "input_file_id": file_id})
        assert made.status == 200
        assert until(base, made.json()["id"], "failed")["errors"]["data"][0]["code"] == "invalid_request"


def test_a_running_batch_outlives_its_input_file() -> None:
    """Deleting the input stops a batch that was not validated yet, and no other."""
    with in_thread(fast(validating_s=500.0, batch_s=200.0)) as url:
        early, late = create(url, chat_lines(3)).json(), create(url, chat_lines(3)).json()
        call(url, "DELETE", f"/v1/files/{early['input_file_id']}")
        until(url, late["id"], "in_progress")
        call(url, "DELETE", f"/v1/files/{late['input_file_id']}")
        assert until(url, early["id"], "failed", "completed")["status"] == "failed"
        assert until(url, late["id"], "failed", "completed")["request_counts"]["completed"] == 3


def test_rows_fail_by_themselves(base: str) -> None:
    """A row that is valid as a line but not as a request fails alone, with its 400 in the error file, free."""
    rows = [line("r-0", chat_body("fine")), line("r-1", {"model": MODEL, "messages": []})]
    batch = run(base, rows)
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    (bad,) = results(base, batch, "error_file_id")
    assert (bad["custom_id"], bad["response"]["status_code"], bad["error"]) == ("r-1", 400, None)
    assert judge("ErrorResponse", bad["response"]["body"]) == []
    assert invoice(base)["batches"][batch["id"]]["executed"] == 1


def test_a_batch_in_which_all_fails_is_completed(base: str) -> None:
    """Completed does not mean success: with every row failed there is an error file and no output file."""
    batch = run(base, [line("r-0", {"model": MODEL, "messages": []})])
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert len(results(base, batch, "error_file_id")) == 1


def test_any_custom_id_comes_back() -> None:
    """Ids are free UTF-8 and come back exactly."""
    ids = ["with space", "ünï/çode", 'quote"back\\slash', "x" * 200]
    with in_thread(fast()) as url:
        batch = run(url, [line(custom_id, chat_body("x")) for custom_id in ids])
        assert [item["custom_id"] for item in results(url, batch)] == ids


def test_live_and_batch_give_the_same_answer(base: str) -> None:
    """The same body bytes give the same text in both lanes, at half the price in the batch."""
    body = chat_body("one body")
    batch = run(base, [line("r-0", body)])
    before = invoice(base)["live_nanos"]
    live = call(base, "POST", CHAT, body).json()
    (item,) = results(base, batch)
    assert item["response"]["body"]["choices"] == live["choices"]
    assert invoice(base)["batches"][batch["id"]]["nanos"] * 2 == invoice(base)["live_nanos"] - before


def test_tokens_stay_under_the_bytes(base: str) -> None:
    """Prompt tokens never pass the prompt's UTF-8 bytes plus three a message, nor output its cap."""
    texts = ["", "a", "日本語のテキスト", "x" * 999, "ünï" * 50]
    batch = run(base, [line(f"r-{i}", chat_body(text, max_completion_tokens=7)) for i, text in enumerate(texts)])
    for item in results(base, batch):
        usage, text = item["response"]["body"]["usage"], texts[int(item["custom_id"][2:])]
        assert usage["prompt_tokens"] <= len(text.encode()) + 3
        assert usage["completion_tokens"] <= 7
        assert item["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_enqueued_tokens_are_limited_until_a_batch_ends() -> None:
    """A batch above the model's queue fails with token_limit_exceeded; once the queue is free it passes."""
    with in_thread(fast(enqueued_tokens=50, batch_s=1_000_000.0, window_s=1e9)) as url:
        first = create(url, chat_lines(5)).json()
        until(url, first["id"], "in_progress")
        second = until(url, create(url, chat_lines(5)).json()["id"], "failed")
        (error,) = second["errors"]["data"]
        assert error["code"] == "token_limit_exceeded"
        assert f"Enqueued token limit reached for {MODEL} in organization" in error["message"]
        assert "Limit: 50 enqueued tokens." in error["message"]
        call(url, "POST", f"/v1/batches/{first['id']}/cancel")
        until(url, first["id"], "cancelled")
        again = {"input_file_id": second["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        retried = call(url, "POST", "/v1/batches", again).json()
        assert until(url, retried["id"], "in_progress", "failed")["status"] == "in_progress"


def test_a_batch_that_takes_too_long_expires() -> None:
    """What was done within the window is answered and billed; the rest is batch_expired and free."""
    with in_thread(fast(batch_s=100.0, window_s=25.0)) as url:
        batch = run(url, chat_lines(20))
        assert batch["status"] == "expired"
        assert batch["expired_at"] is not None
        assert batch["request_counts"] == {"total": 20, "completed": 5, "failed": 15}
        assert len(results(url, batch)) == 5
        assert {item["error"]["code"] for item in results(url, batch, "error_file_id")} == {"batch_expired"}
        assert invoice(url)["batches"][batch["id"]]["executed"] == 5


def test_a_cancelled_batch_keeps_what_was_done() -> None:
    """Cancelling bills and returns exactly the rows done by then."""
    with in_thread(fast(batch_s=3000.0)) as url:
        made = create(url, chat_lines(1000)).json()
        while poll(url, made["id"])["request_counts"]["completed"] < 100:
            time.sleep(0.02)
        seen = call(url, "POST", f"/v1/batches/{made['id']}/cancel")
        assert seen.json()["status"] == "cancelling"
        batch = until(url, made["id"], "cancelled")
        done = batch["request_counts"]["completed"]
        assert 100 <= done < 1000
        assert seen.json()["request_counts"]["completed"] == done
        assert len(results(url, batch)) == done
        assert len(results(url, batch, "error_file_id")) == 1000 - done
        assert invoice(url)["executed_rows"] == done
        assert judge("Batch", batch) == []


def test_a_batch_cancelled_before_it_runs_costs_nothing() -> None:
    """Cancelled while validating: no row runs."""
    with in_thread(fast(validating_s=10_000.0)) as url:
        made = create(url, chat_lines(4)).json()
        assert call(url, "POST", f"/v1/batches/{made['id']}/cancel").json()["status"] == "cancelling"
        batch = until(url, made["id"], "cancelled")
        assert len(results(url, batch, "error_file_id")) == 4
        assert invoice(url)["total_nanos"] == 0


def test_the_invoice_tells_rows_apart() -> None:
    """A row run in two batches, or a body sent live twice, counts as executed more than once."""
    with in_thread(fast()) as url:
        run(url, chat_lines(10))
        run(url, chat_lines(4))
        for text in ("a", "b", "a"):
            call(url, "POST", CHAT, chat_body(text))
        seen = invoice(url)
    assert (seen["executed_rows"], seen["distinct_rows"], seen["executed_more_than_once"]) == (17, 12, 5)
    assert seen["live_calls"] == 3
    assert seen["total_nanos"] == seen["live_nanos"] + sum(batch["nanos"] for batch in seen["batches"].values())


def test_the_invoice_stops_telling_rows_apart_when_there_are_too_many() -> None:
    """Above `count_rows` distinct rows memory is let go and the counts are null; the sums go on."""
    with in_thread(fast(count_rows=5)) as url:
        run(url, chat_lines(6))
        seen = invoice(url)
    assert (seen["executed_rows"], seen["distinct_rows"], seen["executed_more_than_once"]) == (6, None, None)
    assert seen["total_nanos"] > 0


def test_the_log_tells_what_was_asked(base: str) -> None:
    """Uploads, creates, cancels and deletes are logged with their ids, metadata and status."""
    made = create(base, chat_lines(1), metadata={"submission": "s.1"}).json()
    call(base, "POST", "/v1/batches/batch_none/cancel")
    call(base, "DELETE", f"/v1/files/{made['input_file_id']}")
    uploaded, created, cancelled, deleted = log(base)[-4:]
    assert (uploaded["event"], uploaded["filename"], uploaded["status"]) == ("upload", "in.jsonl", 200)
    assert (created["event"], created["batch_id"], created["metadata"], created["dropped"]) == (
        "create",
        made["id"],
        {"submission": "s.1"},
        False,
    )
    assert (cancelled["event"], cancelled["status"]) == ("cancel", 404)
    assert (deleted["event"], deleted["file_id"]) == ("delete", made["input_file_id"])


def test_live_limits_are_kept() -> None:
    """With an rpm limit, calls beyond it get 429 rate_limit_exceeded with a wait, and cost nothing."""
    with in_thread(fast(rpm=3, speed=0.001)) as url:
        answers = [call(url, "POST", CHAT, chat_body(str(i))) for i in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answers[3].headers["retry-after"]) >= 1
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        assert invoice(url)["live_calls"] == 3


def test_the_input_is_json_lines_not_unicode_lines() -> None:
    """U+2028 and U+0085 inside a text end no line, and a missing last newline loses none."""
    rows = [line("r-0", chat_body("a\u2028b\u0085c")), line("r-1", chat_body("last"))]
    raw = b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows)
    with in_thread(fast()) as url:
        assert run(url, raw)["request_counts"]["completed"] == 2
