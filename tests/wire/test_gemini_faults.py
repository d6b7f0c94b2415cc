"""Every fault that can exist in Gemini's format, one by one: each does what it says, and bills what was run."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from gemini_kit import (
    MODEL,
    ask,
    content,
    create,
    generate,
    lines,
    listed,
    poll,
    request,
    results,
    run,
    send,
    start_upload,
    state,
    until,
    upload,
)
from simulator_kit import call, fast, invoice, log, set_faults

from nightmill.simulator import in_thread
from nightmill.simulator.faults import KNOWN
from nightmill.simulator.gemini.shape import SHAPE

DROPPED = (http.client.RemoteDisconnected, ConnectionResetError)
ROWS = 20
SCHEMA = {"type": "OBJECT", "properties": {"mood": {"type": "STRING"}}, "required": ["mood"]}
JSON = {"responseMimeType": "application/json", "responseSchema": SCHEMA}


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
    return int(invoice(url)["batches"][batch["name"]]["executed"])


def _keys(items: list[dict[str, Any]]) -> list[str]:
    return [item["key"] for item in items]


def _text(item: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in item["response"]["candidates"][0]["content"].get("parts", []))


def _run_with(url: str, *faults: dict[str, Any], **config: Any) -> dict[str, Any]:
    set_faults(url, *faults)
    return run(url, lines(ROWS, **config))


# --- create ---


def test_create_accepted_then_timeout(base: str) -> None:
    """The batch exists and runs, and its caller never hears of it; its display name finds it."""
    set_faults(base, {"fault": "create_accepted_then_timeout", "delay_s": 0.01, "times": 1})
    known = listed(base)
    with pytest.raises(DROPPED):
        create(base, lines(2), displayName="lost.1")
    (lost,) = [name for name in listed(base) if name not in known]
    assert until(base, lost, "SUCCEEDED")["metadata"]["displayName"] == "lost.1"
    event = log(base)[-1]
    assert (event["event"], event["batch_id"], event["dropped"], event["status"]) == ("create", lost, True, None)


def test_create_accepted_then_500(base: str) -> None:
    """A 500 after the commit: the batch is in the list."""
    set_faults(base, {"fault": "create_accepted_then_500", "times": 1})
    known = listed(base)
    answer = create(base, lines(2))
    assert (answer.status, answer.json()["error"]["status"]) == (500, "INTERNAL")
    assert len(listed(base)) == len(known) + 1


def test_create_repeated(base: str) -> None:
    """Two batches of one create, alike in all but their names."""
    set_faults(base, {"fault": "create_repeated", "times": 1})
    known = listed(base)
    assert create(base, lines(2), displayName="twin.1").status == 500
    made = [name for name in listed(base) if name not in known]
    assert [until(base, one, "SUCCEEDED")["metadata"]["displayName"] for one in made] == ["twin.1"] * 2
    assert {event["batch_id"] for event in log(base)[-2:]} == set(made)


@pytest.mark.parametrize("name", ["create_dropped_before", "create_500_before"])
def test_create_lost_before(base: str, name: str) -> None:
    """Nothing is committed by a create that never got through."""
    set_faults(base, {"fault": name, "times": 1})
    known = listed(base)
    if name == "create_dropped_before":
        with pytest.raises(DROPPED):
            create(base, lines(2))
    else:
        assert create(base, lines(2)).status == 500
    assert listed(base) == known
    assert (log(base)[-1]["event"], log(base)[-1]["batch_id"]) == ("create", None)


def test_late_listing(base: str) -> None:
    """A late batch can be got by its name, and shows in the list only after the lag."""
    set_faults(base, {"fault": "late_listing", "lag_s": 1_000_000})
    hidden = create(base, lines(1)).json()["name"]
    assert poll(base, hidden)["name"] == hidden
    assert hidden not in listed(base)


def test_enqueued_limit_now(base: str) -> None:
    """The enqueued-token limit is a 429 at create that says when to come back."""
    set_faults(base, {"fault": "enqueued_limit_now", "limit": 90_000, "times": 1})
    answer = create(base, lines(1))
    told = answer.json()["error"]
    assert (answer.status, told["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "90000" in told["message"]
    assert any(item["@type"].endswith("RetryInfo") for item in told["details"])
    assert create(base, lines(1)).status == 200


@pytest.mark.parametrize("commit", [False, True])
def test_non_json_create(base: str, commit: bool) -> None:
    """A gateway's page for a create hides whether the batch was committed; the fault chooses."""
    set_faults(base, {"fault": "non_json_bodies", "on": ["create"], "commit": commit, "times": 1})
    known = listed(base)
    assert create(base, lines(1)).status == 502
    assert len(listed(base)) == len(known) + commit


# --- what a batch brings back ---


def test_missing_lines(base: str) -> None:
    """Missing rows were run, counted and billed; only their lines are not there."""
    batch = _run_with(base, {"fault": "missing_lines", "fraction": 0.25})
    assert len(results(base, batch)) == ROWS - 5
    assert batch["metadata"]["batchStats"] == {"requestCount": "20", "successfulRequestCount": "20"}
    assert _billed(base, batch) == ROWS


@pytest.mark.parametrize(("differ", "texts", "billed"), [(False, 1, ROWS), (True, 2, ROWS + 3)])
def test_duplicate_lines(base: str, differ: bool, texts: int, billed: int) -> None:
    """A line comes twice; with another text the second one was run and is billed too."""
    batch = _run_with(base, {"fault": "duplicate_lines", "count": 3, "differ": differ})
    items = results(base, batch)
    twice = {key for key in _keys(items) if _keys(items).count(key) == 2}
    assert (len(items), len(twice)) == (ROWS + 3, 3)
    assert {len({_text(item) for item in items if item["key"] == key}) for key in twice} == {texts}
    assert _billed(base, batch) == billed


def test_unknown_lines(base: str) -> None:
    """Lines with keys nobody sent come beside all the others."""
    items = results(base, _run_with(base, {"fault": "unknown_lines", "count": 2}))
    assert len(set(_keys(items)) - {f"shard-{i}" for i in range(ROWS)}) == 2
    assert len(items) == ROWS + 2


def test_shuffled_rows(base: str) -> None:
    """All the lines, in another order."""
    items = results(base, _run_with(base, {"fault": "shuffled_rows"}))
    assert sorted(_keys(items)) == sorted(f"shard-{i}" for i in range(ROWS))
    assert _keys(items) != [f"shard-{i}" for i in range(ROWS)]


@pytest.mark.parametrize(("status", "code"), [(400, 3), (429, 8), (500, 13), (0, 2)])
def test_row_errors(base: str, status: int, code: int) -> None:
    """Rows fail with a google.rpc code, in the same file as the others, and are free."""
    batch = _run_with(base, {"fault": "row_errors", "fraction": 0.5, "status": status})
    failed = [item for item in results(base, batch) if "error" in item]
    assert {item["error"]["code"] for item in failed} == {code}
    assert all("response" not in item for item in failed)
    assert (len(failed), _billed(base, batch)) == (10, 10)
    assert batch["metadata"]["batchStats"]["failedRequestCount"] == "10"


def test_row_errors_inline(base: str) -> None:
    """Where requests came inline, their errors come inline, too."""
    set_faults(base, {"fault": "row_errors", "count": 1})
    rows = [{"request": request(f"{i}"), "metadata": {"key": f"k{i}"}} for i in range(3)]
    asked = {"batch": {"display_name": "i", "input_config": {"requests": {"requests": rows}}}}
    made = ask(base, "POST", f"/v1/models/{MODEL}:batchGenerateContent", asked).json()
    ended = until(base, made["name"], "SUCCEEDED")
    items = ended["response"]["inlinedResponses"]["inlinedResponses"]
    assert items == ended["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert [item["metadata"]["key"] for item in items] == ["k0", "k1", "k2"]
    assert sorted("error" in item for item in items) == [False, False, True]


def test_late_output_file(base: str) -> None:
    """Succeeded, and where the results are shows in neither place until the clock is put forward by the lag."""
    batch = _run_with(base, {"fault": "late_output_file", "lag_s": 1_000_000})
    assert state(batch) == "SUCCEEDED"
    assert "response" not in batch
    assert "output" not in batch["metadata"]
    assert call(base, "POST", "/simulator/forward", 1_000_000.0).status == 200
    shown = poll(base, batch["name"])
    assert shown["response"]["responsesFile"] == shown["metadata"]["output"]["responsesFile"]
    assert len(results(base, shown)) == ROWS


def test_expire_at(base: str) -> None:
    """Expires with no results at all, whatever was done by then; nothing is billed."""
    batch = _run_with(base, {"fault": "expire_at", "fraction": 0.8})
    assert (state(batch), batch["done"]) == ("EXPIRED", True)
    assert "response" not in batch
    assert "output" not in batch["metadata"]
    assert _billed(base, batch) == 0


def test_a_batch_expires_after_48_hours() -> None:
    """A batch that would take longer than its two days ends as expired."""
    with in_thread(fast(speed=1_000_000.0, batch_s=200_000.0)) as url:
        assert state(run(url, lines(2))) == "EXPIRED"
    with in_thread(fast(speed=1_000_000.0, batch_s=100_000.0)) as url:
        assert state(run(url, lines(2))) == "SUCCEEDED"


def test_empty_file_ids(base: str) -> None:
    """A file that does not exist is "" in both places; one that does keeps its name."""
    there = _run_with(base, {"fault": "empty_file_ids"})
    assert there["response"]["responsesFile"].startswith("files/batch-")
    gone = _run_with(base, {"fault": "empty_file_ids"}, {"fault": "expire_at"})
    assert gone["metadata"]["output"] == {"responsesFile": ""}
    assert gone["response"]["responsesFile"] == ""


def test_cancel_reverting_counts() -> None:
    """Rows shown as successful after the cancel was asked for are gone once cancelled."""
    with in_thread(fast(batch_s=1_000_000.0, window_s=1e9, cancel_s=300.0)) as url:
        set_faults(url, {"fault": "cancel_reverting_counts"})
        name = create(url, lines(5)).json()["name"]
        until(url, name, "RUNNING")
        assert ask(url, "POST", f"/v1beta/{name}:cancel", {}).json() == {}
        assert poll(url, name)["metadata"]["batchStats"] == {
            "requestCount": "5",
            "successfulRequestCount": "1",
            "pendingRequestCount": "4",
        }
        batch = until(url, name, "CANCELLED")
        assert batch["metadata"]["batchStats"] == {"requestCount": "5", "pendingRequestCount": "5"}
        assert (batch["done"], batch["error"]["code"]) == (True, 13)
        assert "response" not in batch


def test_null_counts(base: str) -> None:
    """There may be no counts at all."""
    assert "batchStats" not in _run_with(base, {"fault": "null_counts"})["metadata"]


def test_status_unknown_word(base: str) -> None:
    """A state nobody documented is shown for as long as it runs, then a known one."""
    set_faults(base, {"fault": "status_unknown_word", "word": "pondering"}, {"fault": "never_finishes"})
    name = create(base, lines(ROWS)).json()["name"]
    assert "done" not in until(base, name, "PONDERING")
    ask(base, "POST", f"/v1beta/{name}:cancel", {})
    until(base, name, "CANCELLED")


def test_batch_failed_unexplained(base: str) -> None:
    """Failed, and not a word why."""
    batch = _run_with(base, {"fault": "batch_failed_unexplained"})
    assert (state(batch), batch["done"]) == ("FAILED", True)
    assert "error" not in batch


def test_batch_failed_line(base: str) -> None:
    """Failed because of one line, which is named; nothing was run."""
    batch = _run_with(base, {"fault": "batch_failed_line", "line": 7, "message": "no"})
    assert (state(batch), batch["error"]["code"]) == ("FAILED", 3)
    assert "line 7" in batch["error"]["message"]
    assert "response" not in batch


def test_enqueued_limit_later(base: str) -> None:
    """What Google says at create, said only after a 200."""
    batch = _run_with(base, {"fault": "enqueued_limit_later", "limit": 90_000})
    assert (state(batch), batch["error"]["code"]) == ("FAILED", 8)
    assert "90000" in batch["error"]["message"]


def test_never_finishes(base: str) -> None:
    """It stays running with all its rows done, until someone cancels."""
    set_faults(base, {"fault": "never_finishes"})
    name = create(base, lines(ROWS)).json()["name"]
    while poll(base, name)["metadata"]["batchStats"].get("successfulRequestCount") != "20":
        time.sleep(0.02)
    assert state(poll(base, name)) == "RUNNING"
    ask(base, "POST", f"/v1beta/{name}:cancel", {})
    until(base, name, "CANCELLED")


def test_fail_at(base: str) -> None:
    """Failed while it ran, with nothing to show for it."""
    batch = _run_with(base, {"fault": "fail_at"})
    assert (state(batch), batch["done"]) == ("FAILED", True)
    assert "response" not in batch
    assert _billed(base, batch) == 0


def test_slow_batches_and_cancels(base: str) -> None:
    """One that was made later overtakes it; asked to be cancelled it goes on running."""
    set_faults(
        base, {"fault": "slow_batch", "lag_s": 80_000.0, "times": 1}, {"fault": "slow_cancel", "lag_s": 80_000.0}
    )
    slow, quick = (create(base, lines(ROWS)).json()["name"] for _ in range(2))
    until(base, quick, "SUCCEEDED")
    ask(base, "POST", f"/v1beta/{slow}:cancel", {})
    assert "done" not in poll(base, slow)


# --- files on the way down ---


@pytest.fixture
def finished(base: str) -> dict[str, Any]:
    return run(base, lines(ROWS))


def test_truncated_last_line(base: str, finished: dict[str, Any]) -> None:
    """The file ends inside its last line, and its length agrees; the next read is whole."""
    whole = content(base, finished)
    set_faults(base, {"fault": "truncated_last_line", "times": 1})
    cut = content(base, finished)
    assert whole.startswith(cut)
    assert (cut.count(b"\n"), cut.endswith(b"\n")) == (ROWS - 1, False)
    assert content(base, finished) == whole


def test_short_body(base: str, finished: dict[str, Any]) -> None:
    """Fewer bytes than promised arrive, then the connection ends."""
    set_faults(base, {"fault": "short_body", "times": 1})
    with pytest.raises(http.client.IncompleteRead):
        content(base, finished)


def test_slow_bodies(base: str, finished: dict[str, Any]) -> None:
    """A dripping body arrives whole."""
    whole = content(base, finished)
    set_faults(base, {"fault": "slow_bodies", "pieces": 7, "delay_s": 0.001})
    assert content(base, finished) == whole


def test_retention_404(base: str, finished: dict[str, Any]) -> None:
    """The results are gone."""
    set_faults(base, {"fault": "retention_404"})
    path = f"/download/v1beta/{finished['response']['responsesFile']}:download?alt=media"
    answer = ask(base, "GET", path)
    assert (answer.status, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


# --- polls, lists, uploads ---


def test_poll_faults(base: str, finished: dict[str, Any]) -> None:
    """A poll can answer 500 or, once, 404."""
    path = f"/v1beta/{finished['name']}"
    set_faults(base, {"fault": "poll_500", "times": 1, "after": 1}, {"fault": "poll_404_once"})
    assert [ask(base, "GET", path).status for _ in range(4)] == [404, 500, 200, 200]


def test_list_faults(base: str, finished: dict[str, Any]) -> None:
    """A page of the list can answer 500 or break off."""
    set_faults(base, {"fault": "list_page_500", "times": 1})
    assert [ask(base, "GET", "/v1beta/batches").status for _ in range(2)] == [500, 200]
    set_faults(base, {"fault": "list_page_cut", "times": 1})
    with pytest.raises(http.client.IncompleteRead):
        ask(base, "GET", "/v1beta/batches")


def test_upload_500(base: str) -> None:
    """An upload that fails at its end leaves no file, and the same chunk may be sent again."""
    set_faults(base, {"fault": "upload_500", "times": 1})
    address = start_upload(base, 3, name="files/failing").headers["X-Goog-Upload-URL"]
    failed = send(address, b"{}\n", 0)
    assert (failed.status, failed.headers["X-Goog-Upload-Status"]) == (500, None)
    assert ask(base, "GET", "/v1beta/files/failing").status == 403
    assert send(address, b"{}\n", 0).json()["file"]["name"] == "files/failing"


def test_a_server_without_a_call_to_delete(base: str) -> None:
    """It refuses, and the file is still there."""
    name = upload(base, b"{}\n").json()["file"]["name"]
    set_faults(base, {"fault": "delete_405", "times": 1})
    assert ask(base, "DELETE", f"/v1beta/{name}").status == 405
    assert ask(base, "GET", f"/v1beta/{name}").status == 200
    assert ask(base, "DELETE", f"/v1beta/{name}").status == 200


# --- live ---


def test_live_429(base: str) -> None:
    """A storm of 429s of the asked length, each with its wait, free of charge."""
    set_faults(base, {"fault": "live_429", "count": 2, "retry_after_ms": 2500})
    before = invoice(base)["live_calls"]
    answers = [generate(base) for _ in range(3)]
    assert [answer.status for answer in answers] == [429, 429, 200]
    assert {"retryDelay": "2.5s"}.items() <= answers[0].json()["error"]["details"][-1].items()
    assert invoice(base)["live_calls"] == before + 1


def test_live_500(base: str) -> None:
    """A fraction of calls fails, evenly spread."""
    set_faults(base, {"fault": "live_500", "fraction": 0.25, "status": 503})
    assert [generate(base).status for _ in range(4)] == [200, 200, 200, 503]


def test_live_timeout_is_billed(base: str) -> None:
    """An answer that never comes was run and is billed."""
    set_faults(base, {"fault": "live_timeout", "count": 1, "delay_s": 0.01})
    before = invoice(base)["live_calls"]
    with pytest.raises(DROPPED):
        generate(base)
    assert invoice(base)["live_calls"] == before + 1


def test_live_close_before_is_free(base: str) -> None:
    """A connection closed before processing costs nothing."""
    set_faults(base, {"fault": "live_close_before", "count": 1})
    before = invoice(base)["live_calls"]
    with pytest.raises(DROPPED):
        generate(base)
    assert invoice(base)["live_calls"] == before


def test_pretty_printed_bodies(base: str) -> None:
    """Live bodies run over many lines; in files they stay one line, meaning the same."""
    plain_live, plain = generate(base, "ü"), results(base, run(base, lines(3)))
    set_faults(base, {"fault": "pretty_printed_bodies"})
    pretty = generate(base, "ü")
    assert pretty.body.count(b"\n") > 15
    assert pretty.json()["candidates"] == plain_live.json()["candidates"]
    batch = run(base, lines(3))
    assert content(base, batch).count(b"\n") == 3
    assert b'"candidates" : ' in content(base, batch)
    assert [_text(item) for item in results(base, batch)] == [_text(item) for item in plain]


def test_non_json_bodies(base: str) -> None:
    """An HTML page in place of an answer; nothing was run."""
    set_faults(base, {"fault": "non_json_bodies", "status": 200, "times": 1})
    before = invoice(base)["live_calls"]
    answer = generate(base)
    assert (answer.status, answer.headers["Content-Type"][:9]) == (200, "text/html")
    assert invoice(base)["live_calls"] == before


# --- answers, in both lanes ---


def _first(url: str, fault: dict[str, Any], **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer body of one row under a fault: live, and in a batch."""
    set_faults(url, fault)
    live = generate(url, "row number 0", **config)
    assert live.status == 200
    return live.json(), results(url, run(url, lines(1, **config)))[0]["response"]


def test_truncated_answers(base: str) -> None:
    """Cut before the end, within the cap, and said so."""
    for body in _first(base, {"fault": "truncated_answers"}, maxOutputTokens=30):
        assert body["candidates"][0]["finishReason"] == "MAX_TOKENS"
        assert 1 <= body["usageMetadata"]["candidatesTokenCount"] <= 30


def test_empty_answers(base: str) -> None:
    """Nothing said, everything thought: the thoughts are the bill."""
    before = invoice(base)["total_nanos"]
    for body in _first(base, {"fault": "empty_answers"}, maxOutputTokens=30):
        assert _text({"response": body}) == ""
        usage = body["usageMetadata"]
        assert "candidatesTokenCount" not in usage
        assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["thoughtsTokenCount"]
    assert invoice(base)["total_nanos"] > before


def test_refusal_answers(base: str) -> None:
    """A blocked prompt: no candidates, a reason, and its prompt in the usage."""
    for body in _first(base, {"fault": "refusal_answers"}):
        assert "candidates" not in body
        assert body["promptFeedback"]["blockReason"] == "SAFETY"
        assert body["usageMetadata"]["promptTokenCount"] > 0


def test_answers_that_are_not_what_the_schema_says(base: str) -> None:
    """Answers that are no JSON, or JSON of another shape, where a schema was asked for."""
    for body in _first(base, {"fault": "invalid_json_answers"}, **JSON):
        with pytest.raises(json.JSONDecodeError):
            json.loads(_text({"response": body}))
    for body in _first(base, {"fault": "wrong_schema_answers"}, **JSON):
        assert not isinstance(json.loads(_text({"response": body})), dict)


def test_usage_missing(base: str) -> None:
    """No usage in the answer, billed all the same."""
    before = invoice(base)["executed_rows"]
    assert ["usageMetadata" in body for body in _first(base, {"fault": "usage_missing"})] == [False, False]
    assert invoice(base)["executed_rows"] == before + 2


def test_model_snapshot_changes(base: str) -> None:
    """Rows are answered by dated snapshots, not always the same one."""
    batch = _run_with(base, {"fault": "model_snapshot_changes"})
    models = {item["response"]["modelVersion"] for item in results(base, batch)}
    assert len(models) == 2
    assert all(model.startswith(MODEL + "-") for model in models)


# --- keys ---


def test_key_revoked(base: str) -> None:
    """From one of its operations on no call passes with a key: Google's word for it is a bad argument."""
    set_faults(base, {"fault": "key_revoked", "key": "sk-old", "on": "live", "after": 1})
    path = f"/v1beta/models/{MODEL}:generateContent"
    said = [ask(base, "POST", path, request("x"), key=key) for key in ("sk-old", "sk-new", "sk-old", "sk-new")]
    assert [answer.status for answer in said] == [200, 200, 400, 200]
    assert said[2].json()["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_quota_used_up(base: str) -> None:
    """What costs money is refused until another day; to look is free, and another account sees nothing of it."""
    created = create(base, lines(1)).json()["name"]
    set_faults(base, {"fault": "quota_used_up", "key": "sk-dry"})
    refused = ask(base, "POST", f"/v1beta/models/{MODEL}:generateContent", request("x"), key="sk-dry")
    assert (refused.status, refused.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    seen = [ask(base, "GET", f"/v1beta/{created}", key=key).status for key in ("sk-dry", "sk-dry@red")]
    assert seen == [200, 404]


# --- the book ---


_OF_FLEX = ("flex_downgraded", "resource_unavailable")  # the tier of one provider, tested with it


def test_every_fault_is_tested_here() -> None:
    """No fault is known that no test names, but for those that cannot exist in this format."""
    with open(__file__) as source:
        text = source.read()
    assert [name for name in KNOWN.keys() - SHAPE.impossible if f'"{name}"' not in text] == []
    assert KNOWN.keys() >= SHAPE.impossible


def test_faults_that_cannot_exist_here_do_nothing(base: str) -> None:
    """They leave a batch as it would be without them."""
    batch = _run_with(base, *({"fault": name} for name in sorted(SHAPE.impossible)))
    assert (state(batch), len(results(base, batch))) == ("SUCCEEDED", ROWS)
