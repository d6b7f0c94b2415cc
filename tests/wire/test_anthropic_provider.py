"""The Anthropic provider against a scripted server: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from anthropic.types.messages import MessageBatch
from openai_loopback import Api, serving

from nightmill.config import Timing
from nightmill.errors import Limited, NeverSent, Refused, StoreError, Uncertain
from nightmill.providers import LiveReply, RateHint
from nightmill.providers._anthropic_talk import batch_view, rate_hint
from nightmill.providers.resolve import resolve
from nightmill.types import Succeeded, Usage

KEY = "sk-ant-test-key"
WIRE = Path(__file__).parents[1] / "data" / "wire"
STATES = json.loads((WIRE / "anthropic_batch_states.json").read_text())
BATCHES = "/v1/messages/batches"
MESSAGES = "/v1/messages"
LINE = b'{"custom_id":"t-1-%d","params":{"model":"m","messages":[{"role":"user","content":"a\\nb"}]}}\n'


def batch(id_="msgbatch_1", created="2026-11-21T10:00:00Z", requests=4, **more):
    counts = {"processing": requests, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    return {**STATES["in_progress"], "id": id_, "created_at": created, "request_counts": counts, **more}


def error(kind="invalid_request_error", message="why", **more):
    return {"type": "error", "error": {"type": kind, "message": message, **more}, "request_id": "req_1"}


def with_api(api: Api, use, timing=None):
    """Run ``use(provider)`` against ``api``."""

    async def run():
        async with serving(api.handle) as base:
            env = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": base + "/"}
            provider = resolve("anthropic/claude-haiku-4-5", env=env, timing=timing or Timing())
            try:
                return await use(provider)
            finally:
                await provider.close()

    return asyncio.run(run())


def api_for(route: str, *answers) -> Api:
    api = Api()
    api.on(route, *answers)
    return api


@pytest.fixture
def shard(tmp_path):
    file = tmp_path / "t-1.jsonl"
    file.write_bytes(b"".join(LINE % n for n in range(3)))
    return file


def create(api, shard, timing=None):
    return with_api(api, lambda p: p.create("t-1.1", shard, url=MESSAGES, submission="t-1.1"), timing)


# -- creating ----------------------------------------------------------------------------------


def test_the_requests_travel_in_the_create(shard):
    """The lines of the shard are the items of the list, byte by byte, with their length told; nothing is uploaded."""
    api = api_for(f"POST {BATCHES}", STATES["in_progress"])
    assert with_api(api, lambda p: p.upload(shard, name="t-1.1")) == "t-1.1"
    assert api.seen == []
    view = create(api, shard)
    assert (view.id, view.phase, view.total, view.submission) == ("msgbatch_01", "running", 4, None)
    _, headers, raw = api.seen[0]
    assert raw == b'{"requests":[' + b",".join(shard.read_bytes().splitlines()) + b"]}"
    assert [request["custom_id"] for request in json.loads(raw)["requests"]] == ["t-1-0", "t-1-1", "t-1-2"]
    assert headers["x-api-key"] == KEY
    assert headers["anthropic-version"] == "2023-06-01"
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(raw)
    assert "transfer-encoding" not in headers


def test_a_large_shard_is_never_held_whole(tmp_path):
    """Lines that span many pieces come out as they went in."""
    file = tmp_path / "large"
    line = b'{"custom_id":"t-1-%d","params":{"x":"' + b"y" * 300_000 + b'"}}\n'
    file.write_bytes(b"".join(line % n for n in range(5)))
    api = api_for(f"POST {BATCHES}", STATES["in_progress"])
    create(api, file)
    assert api.seen[0][2] == b'{"requests":[' + file.read_bytes()[:-1].replace(b"\n", b",") + b"]}"


REFUSALS = [
    (400, error(), "shard"),
    (400, error(message="Your credit balance is too low to access the API."), "account"),
    (400, error(message="You have reached your specified API usage limits."), "account"),
    (401, error("authentication_error"), "account"),
    (402, error("billing_error"), "account"),
    (403, error("permission_error"), "account"),
    (404, error("not_found_error"), "job"),
    (413, error("request_too_large"), "shard"),
    (413, b"<html>too large</html>", "shard"),
    (429, error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}), "account"),
]


@pytest.mark.parametrize(("status", "body", "scope"), REFUSALS)
def test_a_refusal_in_the_providers_words_says_whom_it_concerns(shard, status, body, scope):
    """Nothing ran; money and keys are told from an address and from a shard, and a 413 whoever says it."""
    api = api_for(f"POST {BATCHES}", (status, body))
    with pytest.raises(Refused) as caught:
        create(api, shard)
    assert (caught.value.scope, caught.value.status) == (scope, status)
    assert caught.value.why
    assert len(api.seen) == 1


DOUBTS = [
    (408, error("timeout_error")),
    (409, error("conflict_error")),
    (500, error("api_error")),
    (504, error("timeout_error")),
    (529, error("overloaded_error")),
    (502, b"<html>bad gateway</html>"),
    (503, b""),
    (307, b""),
    (400, b"<html>proxy says no</html>"),
    (401, {"error": {"message": "not its shape", "type": "invalid_api_key"}}),
    (404, b"404 page not found"),
    (200, b"<html>login please</html>"),
    (200, b"null"),
    (200, {"processing_status": "in_progress"}),
    (200, {"id": "msgbatch_1"}),
    (200, b""),
]


@pytest.mark.parametrize(("status", "body"), DOUBTS)
def test_any_other_answer_to_a_create_is_in_doubt(shard, status, body):
    """Only the provider's own words prove that no batch was made; nothing is sent again to find out."""
    api = api_for(f"POST {BATCHES}", (status, body))
    with pytest.raises(Uncertain):
        create(api, shard)
    assert len(api.seen) == 1


@pytest.mark.parametrize("body", [error("rate_limit_error"), b"<html>too many</html>"])
def test_a_limit_says_how_long_to_wait(shard, body):
    """A 429 is a limit, whoever says so, unless it is about money."""
    with pytest.raises(Limited) as caught:
        create(api_for(f"POST {BATCHES}", (429, body, {"Retry-After": "12"})), shard)
    assert caught.value.after_s == 12


def test_a_create_that_breaks_before_its_end_was_never_sent(tmp_path):
    """Less than all of a list is no JSON that anybody could act on: the shard may go out again."""
    file = tmp_path / "large"
    file.write_bytes(b'{"custom_id":"t-1-0","params":"' + b"y" * 60_000_000 + b'"}\n')
    heard = []

    async def deaf(reader, writer):
        heard.append(await reader.read(10_000))
        writer.transport.abort()

    async def run():
        async with serving(deaf) as base:
            provider = resolve("anthropic/m", env={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": base})
            try:
                await provider.create("t-1.1", file, url=MESSAGES, submission="t-1.1")
            finally:
                await provider.close()

    with pytest.raises(NeverSent, match="not all of it left"):
        asyncio.run(run())
    assert heard[0].startswith(f"POST {BATCHES}".encode())


def test_a_create_that_is_not_answered_is_in_doubt(shard):
    """Once its last byte left, silence proves nothing."""

    async def silent(reader, writer):
        await reader.readuntil(b"]}")
        writer.transport.abort()

    async def run():
        async with serving(silent) as base:
            provider = resolve("anthropic/m", env={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": base})
            try:
                await provider.create("t-1.1", shard, url=MESSAGES, submission="t-1.1")
            finally:
                await provider.close()

    with pytest.raises(Uncertain):
        asyncio.run(run())


@pytest.mark.parametrize("content", [None, b"", b'{"custom_id":"t-1-0"'])
def test_a_shard_file_that_is_cut_is_not_sent(tmp_path, content):
    """Missing, empty or torn: it is told before anything leaves."""
    if content is not None:
        (tmp_path / "s").write_bytes(content)
    api = Api()
    with pytest.raises(StoreError):
        create(api, tmp_path / "s")
    assert api.connections == 0


def test_an_error_body_cannot_reach_the_terminal_raw(shard):
    """Long and hostile error texts are cut, cleaned, and lose the key if they echo it."""
    said = error(message=f"bad key {KEY} \x1b[31m" + "x" * 5000)
    with pytest.raises(Refused) as caught:
        create(api_for(f"POST {BATCHES}", (400, said)), shard)
    assert KEY not in caught.value.why
    assert "\x1b" not in caught.value.why
    assert len(caught.value.why) <= 500


# -- looking -----------------------------------------------------------------------------------


def page(*items, more=False):
    return {"data": list(items), "has_more": more, "first_id": None, "last_id": None}


def at(hour):
    return f"2026-11-21T{hour:02}:00:00.000001Z"


def moment(hour):
    return 1_795_219_200.0 + 3600 * hour


def test_batches_of_a_time_are_found_on_any_page():
    """Every page back to before that time is read, by the largest size there is; each says how many requests it has."""
    api = Api()
    api.on(f"GET {BATCHES}?limit=1000", page(batch("b5", at(5)), batch("b4", at(4), 7), more=True))
    api.on(f"GET {BATCHES}?limit=1000&after_id=b4", page(batch("b3", at(3)), batch("b1", at(1)), more=True))
    found = with_api(api, lambda p: p.made_between(moment(2), moment(4.5)))
    assert [(view.id, view.total) for view in found] == [("b3", 4), ("b4", 7)]
    assert found[0].created_at == pytest.approx(moment(3), abs=1e-3)
    assert len(api.seen) == 2


def test_a_list_that_is_in_no_order_is_read_to_its_end():
    """A look ends early only where the list was seen to go back in time."""
    api = Api()
    api.on(f"GET {BATCHES}?limit=1000", page(batch("b1", at(1)), batch("b5", at(5)), batch("b0", at(0)), more=True))
    api.on(f"GET {BATCHES}?limit=1000&after_id=b0", page(batch("b3", at(3))))
    assert [v.id for v in with_api(api, lambda p: p.made_between(moment(2), moment(6)))] == ["b3", "b5"]


BAD_PAGES = [
    (500, error("api_error")),
    (401, error("authentication_error")),
    (404, error("not_found_error")),
    (200, b"<html>login please</html>"),
    (200, {"data": []}),
    (200, {"has_more": False}),
    (200, {"data": [{"id": "x"}], "has_more": False}),
    (200, page({**batch(), "created_at": "yesterday"})),
    (200, page({**batch(), "request_counts": None})),
    (200, page({**batch(), "request_counts": {"processing": "many"}})),
    (200, page(more=True)),
    (202, page()),
]


@pytest.mark.parametrize("bad", BAD_PAGES)
def test_a_look_with_a_bad_page_is_no_look(bad):
    """What cannot be compared in time and size is no answer, on whichever page it is."""
    api = Api()
    api.on(f"GET {BATCHES}?limit=1000", page(batch("b5", at(5)), more=True))
    api.on(f"GET {BATCHES}?limit=1000&after_id=b5", bad)
    with pytest.raises((Refused, Uncertain)):
        with_api(api, lambda p: p.made_between(0.0, moment(9)))


def test_a_list_that_leads_back_does_not_go_on_for_ever():
    """A page that names an earlier one ends the look as no look."""
    api = api_for(f"GET {BATCHES}", page(batch("b5", at(5)), more=True))
    with pytest.raises(Uncertain, match="does not end"):
        with_api(api, lambda p: p.made_between(0.0, moment(9)))


def test_nothing_is_known_by_a_tag():
    """No batch and no file carries anything of ours, and nobody is asked in vain."""
    api = Api()

    async def ask(provider):
        found = await provider.find(frozenset({"t.1"}), frozenset({"t.1"}), since=0.0)
        return found, await provider.find_files("t.1"), await provider.delete_file("t-1.1")

    assert with_api(api, ask) == ([], [], False)
    assert api.connections == 0


def test_every_batch_is_listed():
    """Whoever made it, newest first."""
    api = api_for(f"GET {BATCHES}", page(batch("b2", at(2)), {**STATES["ended"], "id": "b1"}))

    async def ids(provider):
        return [(view.id, view.phase) async for view in provider.batches()]

    assert with_api(api, ids) == [("b2", "running"), ("b1", "ended")]


# -- batch objects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "phase", "counts", "output"),
    [
        ("in_progress", "running", (4, None, None), None),
        ("canceling", "cancelling", (4, None, None), None),
        ("ended", "ended", (4, 1, 3), "msgbatch_01/results"),
        ("archived", "ended", (4, None, None), None),
    ],
)
def test_every_documented_state_is_understood(state, phase, counts, output):
    """What is done is told only after the end; results are there until they are archived."""
    MessageBatch.model_validate(STATES[state])
    view = batch_view(STATES[state])
    assert (view.phase, view.output_file, view.error_file) == (phase, output, None)
    assert (view.total, view.completed, view.failed) == counts
    assert (view.ended_at is None) is (phase != "ended")
    assert view.expires_at is not None
    assert view.expires_at - view.created_at == pytest.approx(86_400)


def test_a_status_never_heard_of_is_running_with_a_warning(caplog):
    """It is polled on, and never taken for an end."""
    with caplog.at_level(logging.WARNING):
        assert batch_view(batch(processing_status="pondering")).phase == "running"
    assert "unknown status" in caplog.text


def test_a_batch_object_may_lack_everything():
    """Only its id and its status are needed."""
    view = batch_view({"id": "b", "processing_status": "ended"})
    assert (view.created_at, view.total, view.completed, view.expires_at) == (0.0, None, None, None)
    assert view.output_file == "b/results"


# -- results -----------------------------------------------------------------------------------


def test_results_are_fetched_from_an_address_made_of_the_batchs_id(tmp_path):
    """The absolute address in the batch is never followed: it might lead anywhere, with the key."""
    ended = {**STATES["ended"], "results_url": "http://127.0.0.1:1/elsewhere"}
    raw = (WIRE / "anthropic_results.jsonl").read_bytes()
    api = Api()
    api.on(f"GET {BATCHES}/msgbatch_01", ended)
    api.on(f"GET {BATCHES}/msgbatch_01/results", (200, raw))

    async def fetch(provider):
        view = await provider.poll("msgbatch_01")
        return await provider.fetch(view.output_file, tmp_path / "out")

    assert with_api(api, fetch) is True
    assert (tmp_path / "out").read_bytes() == raw
    assert api.seen[-1][1]["x-api-key"] == KEY


def test_only_the_provider_can_say_that_results_are_gone(tmp_path):
    """Its own 404 is an answer; a stranger's says nothing, and a page in place of the file is no file."""
    route = f"GET {BATCHES}/b/results"

    def fetch(answer):
        return with_api(api_for(route, answer), lambda p: p.fetch("b/results", tmp_path / "out"))

    assert fetch((404, error("not_found_error"))) is False
    for bad in ((404, b"nothing here"), (200, b"<html>"), (500, error("api_error"))):
        with pytest.raises(Uncertain):
            fetch(bad)
    assert not (tmp_path / "out").exists()


def test_results_are_deleted_with_their_batch():
    """One that is gone already is fine; ids cannot lead to another path."""
    api = Api()
    api.on(f"DELETE {BATCHES}/b1", {"id": "b1", "type": "message_batch_deleted"})
    api.on(f"DELETE {BATCHES}/b2", (404, error("not_found_error")))
    api.on(f"DELETE {BATCHES}/..%2F..%2Fb3", (404, b"no such page"))

    async def delete(provider):
        assert await provider.delete_file("b1/results")
        assert await provider.delete_file("b2/results")
        await provider.delete_file("../../b3/results")

    with pytest.raises(Uncertain):
        with_api(api, delete)
    assert len(api.seen) == 3


def test_a_cancel_that_comes_too_late_shows_the_batch():
    """Whether it was cancelled or had ended, its state is what counts."""
    api = api_for(f"POST {BATCHES}/b/cancel", STATES["canceling"], (400, error()))
    api.on(f"GET {BATCHES}/b", STATES["ended"])
    assert with_api(api, lambda p: p.cancel("b")).phase == "cancelling"
    assert with_api(api, lambda p: p.cancel("b")).phase == "ended"


# -- live --------------------------------------------------------------------------------------

ANSWER = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "pong"}], "usage": {"input_tokens": 5, "output_tokens": 2},
}  # fmt: skip
HEADERS = {
    "Date": "Sat, 21 Nov 2026 10:00:00 GMT", "request-id": "req_9", "retry-after": "7",
    "anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-11-21T10:00:02Z", "anthropic-ratelimit-tokens-limit": "80000",
    "anthropic-ratelimit-tokens-remaining": "1000", "anthropic-ratelimit-tokens-reset": "2026-11-21T10:01:00.5Z",
}  # fmt: skip


def send(api):
    return with_api(api, lambda p: p.send(MESSAGES, b'{"model":"m"}', timeout_s=5.0))


def test_a_live_answer_comes_with_what_its_headers_teach():
    """The body goes out as it is; limits, and when they are over by the provider's own clock, come back."""
    api = api_for(f"POST {MESSAGES}", (200, ANSWER, HEADERS))
    reply = send(api)
    assert api.seen[0][2] == b'{"model":"m"}'
    assert api.seen[0][1]["x-api-key"] == KEY
    assert (reply.status, reply.request_id, reply.stop) == (200, "req_9", False)
    assert reply.hint == RateHint(50, 80_000, 49, 1_000, 2.0, 60.5, 7.0)


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({}, None),
        ({"retry-after": "3"}, RateHint(retry_after_s=3.0)),
        ({"anthropic-ratelimit-requests-limit": "many"}, None),
        ({"anthropic-ratelimit-requests-limit": "5", "anthropic-ratelimit-input-tokens-limit": "9",
          "anthropic-ratelimit-input-tokens-reset": "1970-01-01T00:00:00Z"},
         RateHint(limit_requests=5, limit_tokens=9, reset_tokens_s=0.0)),
        ({"anthropic-ratelimit-tokens-limit": "9", "anthropic-ratelimit-tokens-reset": "soon"},
         RateHint(limit_tokens=9)),
    ],
)  # fmt: skip
def test_headers_that_say_less_teach_less(headers, hint):
    """What is missing or odd is unknown; a reset that is past is now."""
    assert rate_hint(headers, 1000.0) == hint


STATUSES = [
    (400, error(), False),
    (400, error(message="Your credit balance is too low to access the API."), True),
    (400, error(message="messages: your credit balance"), False),
    (401, error("authentication_error"), True),
    (403, error("permission_error"), True),
    (404, error("not_found_error"), True),
    (413, error("request_too_large"), False),
    (429, error("rate_limit_error"), False),
    (429, error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}), True),
    (529, error("overloaded_error"), False),
    (502, b"<html>", False),
]


@pytest.mark.parametrize(("status", "body", "stop"), STATUSES)
def test_every_status_is_a_reply_and_money_troubles_stop(status, body, stop):
    """Key, permission, money and a wrong model end the job; one row's refusal and a limit do not."""
    reply = send(api_for(f"POST {MESSAGES}", (status, body)))
    assert (reply.status, reply.stop) == (status, stop)


def test_the_key_is_not_kept_with_an_error():
    """What is written to the journal never holds it."""
    reply = send(api_for(f"POST {MESSAGES}", (401, error(message=f"bad {KEY}"))))
    assert KEY.encode() not in reply.body


def test_the_answer_to_a_live_call_is_read_back_from_its_line():
    """In the shape of a batch's result line, with the time it took."""
    api = api_for(f"POST {MESSAGES}", ANSWER)

    async def both(provider):
        reply = await provider.send(MESSAGES, b"{}", timeout_s=5.0)
        return provider.decode(provider.reply_line("t-1-0", reply, 1.5))

    answer = with_api(api, both)
    assert (answer.custom_id, answer.duration_s) == ("t-1-0", 1.5)
    assert answer.outcome == Succeeded("pong", Usage(5, 2), "end_turn", "claude-x")


def test_the_key_is_tried_for_nothing():
    """The list of models says whether it is taken."""
    api = api_for("GET /v1/models?limit=1000", {"data": [{"id": "a"}, {"id": "b"}], "has_more": False})
    assert with_api(api, lambda p: p.count_models()) == 2
    with pytest.raises(Refused) as caught:
        with_api(api_for("GET /v1/models", (401, error("authentication_error"))), lambda p: p.count_models())
    assert caught.value.scope == "account"


def test_a_gateway_takes_the_key_and_headers_of_the_settings():
    """`like` and `headers` of the settings file reach it, beside the version."""
    tables = {"gate": {"like": "anthropic", "base_url": "http://127.0.0.1:9", "headers": {"anthropic-beta": "x"}}}
    made = resolve("gate/claude-haiku-4-5", env={"ANTHROPIC_API_KEY": KEY}, tables=tables)
    assert (made.name, made.account.base_url) == ("gate", "http://127.0.0.1:9")
    assert made._api.headers == {"anthropic-version": "2023-06-01", "anthropic-beta": "x", "x-api-key": KEY}
    assert made.is_own(LiveReply(200, json.dumps(ANSWER).encode()))
