"""Anthropic's own client judges the simulator, and every fault that can be in its format does what it says."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from genai_prices import Usage, calc_price
from simulator_kit import Answer, call, fast, invoice, set_faults

from nightmill.simulator import SimulatorConfig, in_thread
from nightmill.simulator.app import FORMATS
from nightmill.simulator.faults import ANSWER_FAULTS, BATCH_FAULTS, KNOWN

MODEL = "claude-haiku-4-5"
BATCHES = "/v1/messages/batches"
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to.md"
DROPPED = (http.client.RemoteDisconnected, ConnectionResetError)
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"type": "string"}},
    "required": ["mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def base(shared: str) -> Iterator[str]:
    """A simulator with no fault in force, before and after."""
    yield shared
    call(shared, "DELETE", "/simulator/faults")
    while _CLIENTS:
        _CLIENTS.pop().close()


_CLIENTS: list[anthropic.Anthropic] = []  # to be closed after each test


def client(base: str, key: str = "sk-ant-test") -> anthropic.Anthropic:
    _CLIENTS.append(anthropic.Anthropic(api_key=key, base_url=base, max_retries=0))
    return _CLIENTS[-1]


def params(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": text}], **more}


def requests(count: int, **more: Any) -> list[Any]:
    return [{"custom_id": f"shard-{i}", "params": params(f"row number {i}", **more)} for i in range(count)]


def raw(base: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    return call(base, method, path, body, **{"anthropic-version": "2023-06-01", **headers})


def made(base: str, count: int = 6, **more: Any) -> str:
    """The id of a new batch."""
    return str(raw(base, "POST", BATCHES, {"requests": requests(count, **more)}).json()["id"])


def ended(base: str, batch_id: str) -> dict[str, Any]:
    """The batch once it has ended; gives up after ten seconds."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        seen: dict[str, Any] = raw(base, "GET", f"{BATCHES}/{batch_id}").json()
        if seen["processing_status"] == "ended":
            return seen
    raise AssertionError("the batch does not end")


def lines(base: str, batch_id: str) -> list[dict[str, Any]]:
    body = raw(base, "GET", f"{BATCHES}/{batch_id}/results").body
    return [json.loads(line) for line in body.split(b"\n") if line]


def run(base: str, count: int = 6, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    batch = ended(base, made(base, count, **more))
    return batch, lines(base, batch["id"])


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [line["result"]["type"] for line in found]


def billed(base: str, batch_id: str) -> dict[str, int]:
    bill: dict[str, int] = invoice(base)["providers"]["anthropic"]["batches"][batch_id]
    return bill


def price(usage: dict[str, Any], *, batch: bool) -> int:
    """Nano-dollars of one answer, from what its usage says."""
    made = usage["cache_creation"]
    read = usage["cache_read_input_tokens"]
    total = usage["input_tokens"] + usage["cache_creation_input_tokens"] + read
    told = Usage(
        input_tokens=total,
        output_tokens=usage["output_tokens"],
        cache_read_tokens=read,
        cache_write_tokens=usage["cache_creation_input_tokens"],
        cache_write_1h_tokens=made["ephemeral_1h_input_tokens"],
    )
    context = {"processing": "batch"} if batch else None
    return round(calc_price(told, model_ref=MODEL, provider_id="anthropic", price_context=context).total_price * 10**9)


def test_a_batch_from_create_to_delete_through_the_official_client(base: str) -> None:
    """The client creates, polls, reads results and deletes; every object is what its types say."""
    api = client(base)
    batch = api.messages.batches.create(requests=requests(5))
    assert batch.processing_status == "in_progress"
    assert batch.request_counts.model_dump() == {
        "processing": 5, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0
    }  # fmt: skip
    assert batch.expires_at - batch.created_at == dt.timedelta(days=1)
    done = anthropic.types.messages.MessageBatch.model_validate(ended(base, batch.id))
    assert (done.request_counts.processing, done.request_counts.succeeded) == (0, 5)
    assert done.ended_at is not None
    assert done.ended_at >= done.created_at
    found = list(api.messages.batches.results(batch.id))
    assert sorted(line.custom_id for line in found) == [f"shard-{i}" for i in range(5)]
    for line in found:
        assert line.result.type == "succeeded"
        assert line.result.message.usage.service_tier == "batch"
        assert line.result.message.stop_reason == "end_turn"
        anthropic.types.Message.model_validate(line.result.message.model_dump(), strict=False)
    assert api.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        api.messages.batches.retrieve(batch.id)


def test_results_are_not_there_before_the_end(base: str) -> None:
    """Results and their address come with the end; nothing is counted and nothing can be deleted before."""
    set_faults(base, {"fault": "never_finishes"})
    api, batch_id = client(base), made(base)
    seen = api.messages.batches.retrieve(batch_id)
    assert (seen.results_url, seen.request_counts.processing, seen.request_counts.succeeded) == (None, 6, 0)
    assert raw(base, "GET", f"{BATCHES}/{batch_id}/results").status == 404
    with pytest.raises(anthropic.BadRequestError):
        api.messages.batches.delete(batch_id)


def test_slow_batches_and_cancels(base: str) -> None:
    """One that was made later overtakes it; asked to be cancelled it is canceling for long."""
    set_faults(
        base, {"fault": "slow_batch", "lag_s": 80_000.0, "times": 1}, {"fault": "slow_cancel", "lag_s": 80_000.0}
    )
    slow, quick = made(base), made(base)
    ended(base, quick)
    api = client(base)
    assert api.messages.batches.retrieve(slow).processing_status == "in_progress"
    api.messages.batches.cancel(slow)
    assert api.messages.batches.retrieve(slow).processing_status == "canceling"


def test_a_cancelled_batch_keeps_what_it_had_done(base: str) -> None:
    """Canceling is told at once; afterwards each row is there, and only those that ran are billed."""
    set_faults(base, {"fault": "never_finishes"})
    api, batch_id = client(base), made(base)
    seen = api.messages.batches.cancel(batch_id)
    assert seen.processing_status in ("canceling", "ended")
    assert seen.cancel_initiated_at is not None
    batch = ended(base, batch_id)
    found = lines(base, batch_id)
    assert len(found) == 6
    counts = batch["request_counts"]
    assert counts["canceled"] == kinds(found).count("canceled")
    assert counts["canceled"] + counts["succeeded"] == 6
    assert billed(base, batch_id)["executed"] == counts["succeeded"]
    with pytest.raises(anthropic.ConflictError):
        api.messages.batches.cancel(batch_id)


def test_pages_go_both_ways(base: str) -> None:
    """The client's pages reach every batch, newest first, and before_id leads back."""
    api = client(base)
    ids = [made(base, 1) for _ in range(5)]
    listed = [batch.id for batch in api.messages.batches.list(limit=2)]
    assert listed[:5] == ids[::-1]
    assert [b.id for b in api.messages.batches.list(limit=2, before_id=ids[0]).data] == [ids[2], ids[1]]
    page = api.messages.batches.list(limit=2, after_id=ids[4])
    assert (page.first_id, page.last_id, page.data[0].id) == (ids[3], ids[2], ids[3])
    assert raw(base, "GET", f"{BATCHES}?limit=1001").status == 400


def test_workspaces_see_their_own(base: str) -> None:
    """A batch belongs to the workspace that made it."""
    batch_id = made(base, 1)
    other = {"anthropic-workspace-id": "wrkspc_other"}
    assert raw(base, "GET", f"{BATCHES}/{batch_id}", **other).status == 404
    assert raw(base, "GET", BATCHES, **other).json()["data"] == []


def test_bad_rows_fail_when_they_run_and_cost_nothing(base: str) -> None:
    """A create takes bad params; each comes back errored, with its error in the error's own object."""
    asked = requests(5)
    asked[0]["params"]["max_tokens"] = 0
    asked[1]["params"]["model"] = "claude-nobody"
    asked[2]["params"]["max_completion_tokens"] = 5
    asked[3]["params"]["stream"] = True
    batch_id = raw(base, "POST", BATCHES, {"requests": asked}).json()["id"]
    assert ended(base, batch_id)["request_counts"]["errored"] == 4
    found = list(client(base).messages.batches.results(batch_id))
    errors = [line.result.error.error for line in found if line.result.type == "errored"]
    assert [error.type for error in errors] == [
        "invalid_request_error", "not_found_error", "invalid_request_error", "invalid_request_error"
    ]  # fmt: skip
    assert "max_completion_tokens: Extra inputs" in errors[2].message
    assert billed(base, batch_id)["executed"] == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "at least 1"),
        ([{"custom_id": "a b", "params": {}}], "pattern"),
        ([{"custom_id": "x" * 65, "params": {}}], "pattern"),
        ([{"custom_id": "a", "params": {}}, {"custom_id": "a", "params": {}}], "unique"),
        ([{"custom_id": "a"}], "params"),
    ],
    ids=["empty", "charset", "length", "twice", "no params"],
)
def test_a_create_refuses_ids_that_break_the_rules(base: str, asked: list[Any], said: str) -> None:
    """Ids are looked at when a batch is created; nothing is made of one that is refused."""
    with pytest.raises(anthropic.BadRequestError, match=said):
        client(base).messages.batches.create(requests=asked)


def test_sizes_have_limits() -> None:
    """Too large a body is 413, too many requests are 400; requests over many lines are kept whole."""
    with in_thread(fast(max_bytes=3_000, max_rows=8)) as url:
        base = url.removesuffix("/v1")
        with client(base) as api, pytest.raises(anthropic.RequestTooLargeError):
            api.messages.batches.create(requests=requests(8, system="x" * 1_000))
        assert raw(base, "POST", BATCHES, {"requests": requests(9)}).status == 400
        pretty = json.dumps({"requests": requests(3)}, indent=2).encode()
        assert (
            kinds(lines(base, ended(base, raw(base, "POST", BATCHES, pretty).json()["id"])["id"])) == ["succeeded"] * 3
        )


def test_a_live_message_and_what_is_said_about_the_quota(base: str) -> None:
    """A message has content, usage and a request id; the rate headers are there."""
    before = invoice(base)["providers"]["anthropic"]["live_nanos"]
    answer = client(base).messages.with_raw_response.create(**params("Say something."))
    message = answer.parse()
    assert message.content[0].type == "text"
    assert message.usage.service_tier == "standard"
    assert answer.headers["request-id"].startswith("req_")
    for word in ("requests", "tokens", "input-tokens", "output-tokens"):
        assert int(answer.headers[f"anthropic-ratelimit-{word}-remaining"]) > 0
        dt.datetime.fromisoformat(answer.headers[f"anthropic-ratelimit-{word}-reset"])
    cost = invoice(base)["providers"]["anthropic"]["live_nanos"] - before
    assert cost == price(message.usage.model_dump(), batch=False)
    assert (
        client(base).messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "x" * 40}]).input_tokens
        == 13
    )


def test_schemas_tools_thinking_and_caps_are_obeyed(base: str) -> None:
    """JSON fits the schema, a forced tool is called, thoughts have a block, a cap cuts."""
    api = client(base)
    fitting = api.messages.create(**params("a"), output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert set(json.loads(fitting.content[0].text)) == {"mood"}
    tool: Any = {"name": "note", "input_schema": SCHEMA}
    called = api.messages.create(**params("a"), tools=[tool], tool_choice={"type": "tool", "name": "note"})
    assert called.stop_reason == "tool_use"
    assert set(called.content[0].input) == {"mood"}
    with pytest.raises(anthropic.BadRequestError, match="'other' not found"):
        api.messages.create(**params("a"), tools=[tool], tool_choice={"type": "tool", "name": "other"})
    thought = api.messages.create(**params("a"), thinking={"type": "adaptive"})
    assert [block.type for block in thought.content] == ["thinking", "text"]
    cut = api.messages.create(**{**params("a"), "max_tokens": 3})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_caches_are_billed_as_the_usage_tells(base: str, ttl: str) -> None:
    """Input, cache writes of both lengths and cache reads add up to the invoice, at half price in a batch."""
    system = [{"type": "text", "text": "word " * 4_000, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
    batch, found = run(base, 12, system=system)
    used = [line["result"]["message"]["usage"] for line in found]
    assert any(each["cache_read_input_tokens"] for each in used)
    assert any(each["cache_creation_input_tokens"] for each in used)
    assert billed(base, batch["id"])["nanos"] == sum(price(each, batch=True) for each in used)


def used(base: str, *marks: dict[str, Any] | None, key: str = "sk-ant-test", words: int = 4_000) -> list[int]:
    """Fresh, written for five minutes and for an hour, and read tokens of a call with a block for each of ``marks``."""
    system: list[Any] = [
        {"type": "text", "text": f"{i} " + "word " * words} | ({"cache_control": mark} if mark else {})
        for i, mark in enumerate(marks)
    ]
    said = client(base, key).messages.create(**params("a", system=system)).usage
    assert said.cache_creation is not None
    made = said.cache_creation
    assert said.cache_creation_input_tokens == made.ephemeral_5m_input_tokens + made.ephemeral_1h_input_tokens
    found = (said.input_tokens, made.ephemeral_5m_input_tokens, made.ephemeral_1h_input_tokens)
    return [*found, said.cache_read_input_tokens or 0]


SHORT, LONG = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}


def test_what_was_marked_is_read_by_the_next_call() -> None:
    """Written once, read while it lives, by the same account alone, up to the last mark; too short a text never is."""
    with in_thread(SimulatorConfig()) as url:
        base = url.removesuffix("/v1")
        rest, written, _, _ = used(base, SHORT)
        assert written > 4_096 > rest
        assert used(base, SHORT) == [rest, 0, 0, written]
        fresh, more, _, read = used(base, SHORT, SHORT)
        assert (fresh, read) == (rest, written)
        assert used(base, None, SHORT) == [rest, 0, 0, written + more]
        assert used(base, SHORT, None) == [rest + more, 0, 0, written]
        assert used(base, SHORT, key="sk-ant-other@elsewhere") == [rest, written, 0, 0]
        assert used(base, SHORT, words=1_000)[1:] == [0, 0, 0]
        call(base, "POST", "/simulator/forward", 301.0)
        assert used(base, LONG, SHORT) == [rest, more, written, 0]


def test_more_marks_than_there_may_be_are_refused(base: str) -> None:
    """Four at most, and what lives an hour stands before what lives five minutes."""
    for marks in ([SHORT] * 5, [SHORT, LONG]):
        with pytest.raises(anthropic.BadRequestError, match="cache_control"):
            used(base, *marks)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("sk-wrong", anthropic.AuthenticationError),
        ("sk-noquota", anthropic.APIStatusError),
        ("sk-spent", anthropic.RateLimitError),
    ],
)
def test_keys_that_do_not_open(base: str, key: str, kind: type[anthropic.APIStatusError]) -> None:
    """A wrong key, an account without credit and one at its limit are refused in the client's classes."""
    with pytest.raises(kind) as refused:
        client(base, key).messages.create(**params("a"))
    with pytest.raises(kind):
        client(base, key).messages.batches.create(requests=requests(1))
    body: Any = refused.value.body
    assert body["request_id"] == refused.value.response.headers["request-id"]
    if key == "sk-spent":
        assert body["error"]["details"] == {"error_code": "enforced_spend_limit_reached"}
        assert "retry-after" not in refused.value.response.headers


def test_key_and_version_headers(base: str) -> None:
    """Either header carries the key; both versions are spoken, none or another is refused; so are other addresses."""
    body = params("a")
    assert raw(base, "POST", "/v1/messages", body).status == 200
    assert raw(base, "POST", "/v1/messages", body, **{"anthropic-version": "2026-10-21"}).status == 200
    assert call(base, "POST", "/v1/messages", body).json()["error"]["type"] == "invalid_request_error"
    assert call(base, "POST", "/v1/messages", body, **{"anthropic-version": "2020-01-01"}).status == 400
    bare = {"anthropic-version": "2023-06-01"}
    assert call(base, "POST", "/v1/messages", body, key=None, **bare).json()["error"]["type"] == "authentication_error"
    assert call(base, "POST", "/v1/messages", body, key=None, **bare, **{"x-api-key": "sk"}).status == 200
    assert raw(base, "GET", "/v1/nothing").json()["error"]["type"] == "not_found_error"
    names = [model.id for model in client(base).models.list(limit=1000)]
    assert MODEL in names
    assert client(base).models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"fault": "live_429", "retry_after": 7}, anthropic.RateLimitError),
        ({"fault": "live_500"}, anthropic.InternalServerError),
        ({"fault": "live_500", "status": 529}, anthropic.InternalServerError),
        ({"fault": "live_500", "status": 504}, anthropic.InternalServerError),
        ({"fault": "live_close_before"}, anthropic.APIConnectionError),
        ({"fault": "live_timeout", "delay_s": 0}, anthropic.APIConnectionError),
        ({"fault": "non_json_bodies", "status": 502}, anthropic.InternalServerError),
    ],
    ids=lambda value: f"{value['fault']}-{value.get('status', '')}" if isinstance(value, dict) else "",
)
def test_live_trouble_raises_the_clients_classes(base: str, fault: dict[str, Any], kind: type[Exception]) -> None:
    """What goes wrong live is what the official client calls it; only what ran is billed."""
    calls = invoice(base)["live_calls"]
    set_faults(base, fault)
    with pytest.raises(kind) as refused:
        client(base).messages.create(**params("a"))
    assert invoice(base)["live_calls"] - calls == (fault["fault"] == "live_timeout")
    if fault.get("status") == 529:
        assert isinstance(refused.value, anthropic.APIStatusError)
        assert "overloaded_error" in refused.value.response.text
    if "retry_after" in fault:
        assert isinstance(refused.value, anthropic.APIStatusError)
        assert refused.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("fault", "status", "committed"),
    [
        ({"fault": "create_accepted_then_timeout", "delay_s": 0}, None, 1),
        ({"fault": "create_accepted_then_500"}, 500, 1),
        ({"fault": "create_repeated"}, 500, 2),
        ({"fault": "create_dropped_before"}, None, 0),
        ({"fault": "create_500_before"}, 500, 0),
        ({"fault": "create_500_before", "status": 529}, 529, 0),
        ({"fault": "enqueued_limit_now"}, 429, 0),
        ({"fault": "non_json_bodies", "on": ["create"], "commit": True}, 502, 1),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) else "",
)
def test_creates_go_wrong_before_and_after_they_count(
    base: str, fault: dict[str, Any], status: int | None, committed: int
) -> None:
    """An answer that is lost or a lie leaves the batches it says it does not, each with all its requests."""
    known = {batch["id"] for batch in raw(base, "GET", f"{BATCHES}?limit=1000").json()["data"]}
    set_faults(base, {**fault, "times": 1})
    if status is None:
        with pytest.raises(DROPPED):
            raw(base, "POST", BATCHES, {"requests": requests(3)})
    else:
        assert raw(base, "POST", BATCHES, {"requests": requests(3)}).status == status
    new = [b["id"] for b in raw(base, "GET", f"{BATCHES}?limit=1000").json()["data"] if b["id"] not in known]
    assert len(new) == committed
    for batch_id in new:
        ended(base, batch_id)
        assert kinds(lines(base, batch_id)) == ["succeeded"] * 3


@pytest.mark.parametrize(
    ("fault", "found", "executed"),
    [
        ({"fault": "missing_lines", "count": 2}, {"succeeded": 8}, 10),
        ({"fault": "duplicate_lines", "count": 2, "differ": True}, {"succeeded": 12}, 12),
        ({"fault": "unknown_lines", "count": 1}, {"succeeded": 10, "errored": 1}, 10),
        ({"fault": "shuffled_rows"}, {"succeeded": 10}, 10),
        ({"fault": "row_errors", "count": 3, "status": 529}, {"succeeded": 7, "errored": 3}, 7),
        ({"fault": "row_errors", "count": 3, "status": 0}, {"succeeded": 7, "errored": 3}, 7),
        ({"fault": "expire_at", "fraction": 0.5}, {"succeeded": 5, "expired": 5}, 5),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) and "fault" in value else "",
)
def test_results_go_wrong_and_the_bill_says_what_ran(
    base: str, fault: dict[str, Any], found: dict[str, int], executed: int
) -> None:
    """Rows that are lost, doubled, made up, mixed, failed or expired; failed and expired ones are free."""
    set_faults(base, fault)
    batch, rows = run(base, 10)
    assert {kind: kinds(rows).count(kind) for kind in kinds(rows)} == found
    assert billed(base, batch["id"])["executed"] == executed
    counts = batch["request_counts"]
    assert sum(counts.values()) == 10
    assert counts["expired"] == found.get("expired", 0)
    in_order = [line["custom_id"] for line in rows] == [f"shard-{i}" for i in range(10)]
    if fault["fault"] == "shuffled_rows":
        assert not in_order


@pytest.mark.parametrize("fault", ["truncated_last_line", "short_body", "slow_bodies", "retention_404"])
def test_contents_go_wrong(base: str, fault: str) -> None:
    """Results that are cut, drip or are gone."""
    batch, whole = run(base, 4)
    path = f"{BATCHES}/{batch['id']}/results"
    size = len(raw(base, "GET", path).body)
    set_faults(base, {"fault": fault, "delay_s": 0})
    if fault == "short_body":
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            raw(base, "GET", path)
        return
    answer = raw(base, "GET", path)
    assert answer.status == (404 if fault == "retention_404" else 200)
    if fault == "slow_bodies":
        assert lines(base, batch["id"]) == whole
    elif fault == "truncated_last_line":
        assert len(answer.body) < size
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer.body.split(b"\n")[-1])


@pytest.mark.parametrize(
    ("fault", "stop"),
    [
        ("truncated_answers", "max_tokens"),
        ("empty_answers", "end_turn"),
        ("refusal_answers", "refusal"),
        ("invalid_json_answers", "end_turn"),
        ("wrong_schema_answers", "end_turn"),
        ("model_snapshot_changes", "end_turn"),
        ("usage_missing", "end_turn"),
        ("pretty_printed_bodies", "end_turn"),
    ],
)
def test_answers_go_wrong(base: str, fault: str, stop: str) -> None:
    """An answer that is no good is billed all the same, live and in a batch."""
    before = invoice(base)["executed_rows"]
    set_faults(base, {"fault": fault})
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    live = raw(base, "POST", "/v1/messages", params("a", output_config=form))
    _, rows = run(base, 1, output_config=form)
    for message in (live.json(), rows[0]["result"]["message"]):
        assert message["stop_reason"] == stop
        text = "".join(block["text"] for block in message["content"])
        assert bool(text) == (fault not in ("empty_answers", "refusal_answers"))
        assert ("usage" in message) == (fault != "usage_missing")
        assert (message["model"] == MODEL) == (fault != "model_snapshot_changes")
    assert (b"\n" in live.body) == (fault == "pretty_printed_bodies")
    assert invoice(base)["executed_rows"] == before + 2


def test_lists_and_polls_go_wrong(base: str) -> None:
    """A list that lags, breaks or is cut; a poll that fails or forgets; a word nobody knows; results that are late."""
    set_faults(
        base,
        {"fault": "late_listing", "lag_s": 1e9},
        {"fault": "late_output_file", "lag_s": 1e9},
        {"fault": "poll_500", "after": 1, "times": 1},
        {"fault": "poll_404_once"},
    )
    batch_id = made(base, 1)
    assert raw(base, "GET", f"{BATCHES}/{batch_id}").status == 404
    assert raw(base, "GET", f"{BATCHES}/{batch_id}").status == 500
    assert ended(base, batch_id)["results_url"] is None
    assert raw(base, "GET", f"{BATCHES}/{batch_id}/results").status == 404
    assert batch_id not in [b["id"] for b in raw(base, "GET", BATCHES).json()["data"]]
    call(base, "POST", "/simulator/forward", 2e9)
    assert ended(base, batch_id)["archived_at"] is not None  # so much later that all is over
    assert batch_id in [b["id"] for b in raw(base, "GET", BATCHES).json()["data"]]
    set_faults(base, {"fault": "list_page_500", "times": 1}, {"fault": "list_page_cut"})
    assert raw(base, "GET", BATCHES).status == 500
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        raw(base, "GET", BATCHES)
    set_faults(base, {"fault": "status_unknown_word"}, {"fault": "never_finishes"}, {"fault": "empty_file_ids"})
    seen = raw(base, "GET", f"{BATCHES}/{made(base, 1)}").json()
    assert (seen["processing_status"], seen["results_url"]) == ("queued", "")
    set_faults(base, {"fault": "never_finishes"}, {"fault": "absent_file_ids"})
    assert "results_url" not in raw(base, "GET", f"{BATCHES}/{made(base, 1)}").json()


_OF_FLEX = ("flex_downgraded", "resource_unavailable")  # the tier of one provider, tested with it


def test_faults_that_cannot_be_here_change_nothing(base: str) -> None:
    """A batch that carries a fault of another format runs as if there were none; every other fault is tested here."""
    wire = next(each for each in FORMATS if each.name == "anthropic")
    assert wire.impossible <= KNOWN.keys()
    told = HOW_TO.read_text()
    assert [name for name in sorted(wire.impossible) if f"`{name}`" not in told] == []
    set_faults(base, *({"fault": name} for name in sorted(wire.impossible)))
    batch, rows = run(base, 3)
    assert batch["request_counts"]["succeeded"] == len(rows) == 3
    with open(__file__) as source:
        text = source.read()
    assert [
        name for name in (*BATCH_FAULTS, *ANSWER_FAULTS) if name not in wire.impossible and f'"{name}"' not in text
    ] == []
