"""The OpenAI provider against a scripted server: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import jsonschema_rs
import pytest
from openai.types import Batch
from openai_loopback import Api, serving

from nightmill.errors import Limited, NeverSent, Refused, Uncertain
from nightmill.providers import RateHint
from nightmill.providers._json import load_json
from nightmill.providers._openai_talk import batch_view
from nightmill.providers.openai import OpenAI, connect
from nightmill.types import Usage

KEY = "sk-test-key"
WIRE = Path(__file__).parents[1] / "data" / "wire"
STATES = json.loads((WIRE / "openai_batch_states.json").read_text())
CHAT = "/v1/chat/completions"
OWN_404 = (404, {"error": {"message": "No such File object: file-x", "type": "invalid_request_error", "code": None}})


def batch(id_="batch_1", created=1000, **more):
    return {"id": id_, "object": "batch", "status": "in_progress", "created_at": created, **more}


def error(message="why", code=None, **more):
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code, **more}}


def with_api(api: Api, use):
    """Run ``use(provider)`` against ``api``."""

    async def run():
        async with serving(api.handle) as base:
            provider = OpenAI("gpt-4o-mini", key=KEY, base_url=base + "/v1/", organization="org-1", project="proj-1")
            try:
                return await use(provider)
            finally:
                await provider.close()

    return asyncio.run(run())


def api_for(route: str, *answers) -> Api:
    api = Api()
    api.on(route, *answers)
    return api


# -- creating ----------------------------------------------------------------------------------


def test_a_create_carries_the_submission_and_satisfies_the_schema():
    """The batch can be found again by its metadata, and OpenAI's own schema accepts the body."""
    api = api_for("POST /v1/batches", STATES["validating"])
    view = with_api(api, lambda p: p.create("file-in", Path("unread"), url=CHAT, submission="t-1.1"))
    assert (view.id, view.phase, view.input_file) == ("batch_1", "running", "file-in")
    _, headers, raw = api.seen[0]
    body = json.loads(raw)
    document = json.loads((WIRE / "openai_schemas.json").read_text())
    jsonschema_rs.validator_for({**document, "$ref": "#/components/schemas/CreateBatchRequest"}).validate(body)
    assert body["metadata"] == {"nightmill": "t-1.1"}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")


REFUSALS = [
    (400, error(code="invalid_request"), "shard"),
    (400, error("The model is unknown", "model_not_found"), "job"),
    (400, error(param="model"), "job"),
    (400, error(code="billing_hard_limit_reached"), "account"),
    (401, error("Incorrect API key", "invalid_api_key"), "account"),
    (403, error("Country not supported"), "account"),
    (404, error("Invalid URL (POST /v1/batchez)"), "job"),
    (404, OWN_404[1], "shard"),
    (413, error("larger than the 209715200 maximum"), "shard"),
    (422, error(), "shard"),
    (429, error("You exceeded your current quota", "insufficient_quota"), "account"),
]


@pytest.mark.parametrize(("status", "body", "scope"), REFUSALS)
def test_a_refusal_in_the_providers_words_says_whom_it_concerns(status, body, scope):
    """Nothing ran, and the scope tells a bad key from a bad model from a bad file."""
    api = api_for("POST /v1/batches", (status, body))
    with pytest.raises(Refused) as caught:
        with_api(api, lambda p: p.create("file-x", Path("unread"), url=CHAT, submission="t.1"))
    assert (caught.value.scope, caught.value.status) == (scope, status)
    assert caught.value.why == body["error"]["message"]
    assert len(api.seen) == 1


DOUBTS = [
    (408, error()),
    (409, error()),
    (500, error("internal", "server_error")),
    (502, b"<html>bad gateway</html>"),
    (503, b""),
    (418, error()),
    (307, b""),
    (400, b"<html>proxy says no</html>"),
    (401, b'{"detail": "not our shape"}'),
    (404, b"404 page not found"),
    (400, b'{"error": "a plain text"}'),
    (200, b"<html>login please</html>"),
    (200, b"null"),
    (200, {"status": "validating"}),
    (200, {"id": "", "status": "validating"}),
    (200, {"id": "batch_1"}),
    (200, b""),
]


@pytest.mark.parametrize(("status", "body"), DOUBTS)
def test_any_other_answer_to_a_create_is_in_doubt(status, body):
    """Only the provider's own words prove that no batch was made; nothing is sent again to find out."""
    api = api_for("POST /v1/batches", (status, body))
    with pytest.raises(Uncertain):
        with_api(api, lambda p: p.create("file-x", Path("unread"), url=CHAT, submission="t.1"))
    assert len(api.seen) == 1


def test_limits_are_told_from_refusals():
    """A 429 says how long to wait; the enqueued-token limit is known by code or words, with its cap."""
    api = Api()
    enqueued = "Enqueued token limit reached for gpt-x in organization org. Limit: 2,000,000 enqueued tokens. Later."
    answers = [
        (429, error("slow down", "rate_limit_exceeded"), {"Retry-After": "12"}),
        (429, b"<html>too many</html>", {"Retry-After-Ms": "500"}),
        (400, error(enqueued, "token_limit_exceeded")),
        (429, error(enqueued)),
    ]
    api.on("POST /v1/batches", *answers)

    async def four(provider):
        caught = []
        for _ in answers:
            with pytest.raises(Limited) as one:
                await provider.create("file-x", Path("unread"), url=CHAT, submission="t.1")
            caught.append((one.value.after_s, one.value.enqueued_tokens_cap))
        return caught

    assert with_api(api, four) == [(12.0, None), (0.5, None), (None, 2_000_000), (None, 2_000_000)]


def test_an_error_body_cannot_reach_the_terminal_raw():
    """Long and hostile error texts are cut, cleaned, and lose the key if they echo it."""
    api = api_for("POST /v1/batches", (400, error(f"bad key {KEY} \x1b[31m" + "x" * 5000)))
    with pytest.raises(Refused) as caught:
        with_api(api, lambda p: p.create("file-x", Path("unread"), url=CHAT, submission="t.1"))
    assert KEY not in caught.value.why
    assert "\x1b" not in caught.value.why
    assert len(caught.value.why) <= 500


# -- uploading ---------------------------------------------------------------------------------


def test_an_upload_gives_the_file_id(tmp_path):
    """The shard goes up under its submission's name, for the purpose batch."""
    (tmp_path / "s").write_bytes(b'{"custom_id":"a"}\n')
    api = api_for("POST /v1/files", {"id": "file-9", "object": "file"})
    assert with_api(api, lambda p: p.upload(tmp_path / "s", name="t-1.1")) == "file-9"
    assert b'filename="t-1.1.jsonl"' in api.seen[0][2]
    assert b'{"custom_id":"a"}\n' in api.seen[0][2]


@pytest.mark.parametrize(("status", "body"), [*DOUBTS[:8], (200, b"<html>"), (200, {"object": "file"})])
def test_an_upload_that_fails_never_leaves_a_doubt(tmp_path, status, body):
    """A file alone runs nothing: whatever happened to it, the shard may be tried again."""
    (tmp_path / "s").write_bytes(b"{}\n")
    with pytest.raises(NeverSent):
        with_api(api_for("POST /v1/files", (status, body)), lambda p: p.upload(tmp_path / "s", name="t"))


@pytest.mark.parametrize(("status", "kind"), [(413, Refused), (401, Refused), (429, Limited)])
def test_an_upload_that_is_refused_says_so(tmp_path, status, kind):
    """A file that is too large, a bad key and a limit are not taken for a broken line."""
    (tmp_path / "s").write_bytes(b"{}\n")
    with pytest.raises(kind):
        with_api(api_for("POST /v1/files", (status, error())), lambda p: p.upload(tmp_path / "s", name="t"))


# -- looking -----------------------------------------------------------------------------------


def page(*items, more=False):
    return {"object": "list", "data": list(items), "has_more": more, "first_id": None, "last_id": None}


def find(api, since=0.0):
    return with_api(api, lambda p: p.find(frozenset({"t.1"}), frozenset({"file-t"}), since=since))


def test_a_batch_is_found_by_tag_or_by_file_on_any_page():
    """Every page is read, and both marks count."""
    api = Api()
    api.on("GET /v1/batches?limit=100", page(batch("b1", 30), batch("b2", 20, metadata=None), more=True))
    api.on("GET /v1/batches?limit=100&after=b2", page(batch("b3", 15, metadata={"nightmill": "t.1"}), more=True))
    api.on("GET /v1/batches?limit=100&after=b3", page(batch("b4", 10, input_file_id="file-t")))
    found = find(api)
    assert [(view.id, view.submission, view.input_file) for view in found] == [
        ("b3", "t.1", None),
        ("b4", None, "file-t"),
    ]


def test_nothing_on_any_page_is_an_answer():
    """An empty account is a complete look with nothing found."""
    assert find(api_for("GET /v1/batches", page())) == []


def test_a_look_ends_early_only_in_a_list_seen_newest_first():
    """Old pages are skipped where the order holds; one batch out of order, and all of them are read."""
    ordered = Api()
    ordered.on("GET /v1/batches?limit=100", page(batch("b1", 9000), batch("b2", 100), more=True))
    assert find(ordered, since=8000.0) == []
    assert len(ordered.seen) == 1
    shuffled = Api()
    shuffled.on("GET /v1/batches?limit=100", page(batch("b1", 50), batch("b2", 9000), batch("b3", 60), more=True))
    late = batch("b4", 9100, metadata={"nightmill": "t.1"})
    shuffled.on("GET /v1/batches?limit=100&after=b3", page(late))
    assert [view.id for view in find(shuffled, since=8000.0)] == ["b4"]


def test_every_batch_is_listed_with_its_window_and_the_providers_own_totals():
    """All pages in the order of the provider, whoever made them; what it tells of tokens is kept."""
    totals = {
        "input_tokens": 90, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 97,
    }  # fmt: skip
    api = Api()
    told = batch("b1", 30, usage=totals, expires_at=86_430, endpoint=CHAT)
    api.on("GET /v1/batches?limit=100", page(told, more=True))
    api.on("GET /v1/batches?limit=100&after=b1", page(batch("b2", 20)))

    async def every(provider):
        return [view async for view in provider.batches()]

    first, second = with_api(api, every)
    assert (first.id, first.url, first.expires_at, first.usage) == ("b1", CHAT, 86_430.0, Usage(90, 7, 40))
    assert (second.id, second.usage) == ("b2", None)


BAD_PAGES = [
    (500, error()),
    (401, error()),
    (403, error()),
    (404, error()),
    (429, error()),
    (200, b"<html>"),
    (200, {}),
    (200, {"data": []}),
    (200, {"data": None, "has_more": False}),
    (200, {"data": [{"no": "id"}], "has_more": False}),
    (200, {"data": [{"id": "b9"}], "has_more": False}),
    (206, {"data": [], "has_more": False}),
    (200, {"data": [], "has_more": True}),
    (200, {"data": [batch("b1", 1)], "has_more": True}),
    (302, b""),
]


@pytest.mark.parametrize("bad", BAD_PAGES)
def test_a_look_with_a_bad_page_is_no_look(bad):
    """Absence is only ever concluded from a list that was read cleanly to its end."""
    api = Api()
    api.on("GET /v1/batches?limit=100", page(batch("b1", 1), more=True))
    api.on("GET /v1/batches?limit=100&after=b1", bad)
    with pytest.raises((Refused, Limited, Uncertain)):
        find(api)


def test_uploaded_files_are_found_by_name():
    """A file whose id was lost in a crash is found again under the name it was given."""
    files = [{"id": "file-1", "filename": "t.1.jsonl"}, {"id": "file-2", "filename": "t.10.jsonl"}, {"id": "file-3"}]
    api = api_for("GET /v1/files", page(*files))
    assert with_api(api, lambda p: p.find_files("t.1")) == ["file-1"]
    assert "purpose=batch" in api.seen[0][0]


# -- the batch object --------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_every_documented_state_is_understood(state):
    """Each sample that OpenAI's own type reads gets a phase, and no file id is ever an empty text."""
    official = Batch.model_validate(STATES[state])
    view = with_api(api_for("GET /v1/batches/batch_1", STATES[state]), lambda p: p.poll("batch_1"))
    phases = {"cancelling": "cancelling", "completed": "ended", "expired": "ended", "cancelled": "ended"}
    phases |= {"failed": "failed"}
    assert view.phase == phases.get(official.status, "running")
    assert view.output_file == (official.output_file_id or None)
    assert view.error_file == (official.error_file_id or None)
    assert (view.total, view.completed, view.created_at) == (
        official.request_counts.total,
        official.request_counts.completed,
        official.created_at,
    )
    assert (view.refusal is not None) == (view.phase == "failed")


def test_a_status_never_heard_of_is_running_with_a_warning(caplog):
    """A new word of the provider's loses no batch."""
    with caplog.at_level(logging.WARNING):
        view = batch_view({"id": "batch_7", "status": "simmering"})
    assert (view.phase, view.status) == ("running", "simmering")
    assert "batch batch_7 has an unknown status" in caplog.text


def test_a_batch_object_may_lack_everything():
    """Null counts are unknown, not zero."""
    view = batch_view({"id": "b", "status": "completed", "request_counts": None, "metadata": None, "errors": None})
    assert (view.total, view.output_file, view.error_file, view.submission) == (None, None, None, None)


@pytest.mark.parametrize("number", [-1, 10**400, float("inf"), float("nan"), "3"])
def test_numbers_in_a_batch_object_that_cannot_be_are_unknown(number):
    """What no ledger could keep is not kept, and does not end the job."""
    counts = dict.fromkeys(("total", "completed", "failed"), number)
    view = batch_view({"id": "b", "status": "completed", "request_counts": counts, "created_at": number})
    assert (view.total, view.completed, view.failed, view.created_at) == (None, None, None, 0.0)


def test_an_id_that_is_no_text_of_unicode_is_kept_as_one():
    """A lone surrogate in what the server says becomes a character that a ledger can hold."""
    assert load_json(rb'{"id": "b\ud800", "n": NaN}')["id"] == "b\ufffd"


def failed(*errors, **more):
    return batch_view({"id": "b", "status": "failed", "errors": {"object": "list", "data": list(errors)}, **more})


def test_a_failed_batch_says_what_it_is_about():
    """The enqueued limit waits, a named line is that line's fault, and a model, a key or nothing are told apart."""
    limit = batch_view(STATES["failed_enqueued_limit"]).refusal
    assert isinstance(limit, Limited)
    assert limit.enqueued_tokens_cap == 2_000_000
    named = batch_view(STATES["failed_validation"]).refusal
    assert (named.scope, named.line, named.provider_code) == ("line", 2, "duplicate_custom_id")
    scopes = {
        code: failed({"code": code, "message": "m", "line": 1}).refusal.scope
        for code in ("model_not_found", "mismatched_model", "invalid_url", "invalid_api_key", "billing_not_active")
    }
    assert list(scopes.values()) == ["job", "job", "job", "account", "account"]
    assert failed({"code": "invalid_request", "message": "m", "line": None}).refusal.scope == "shard"
    assert failed().refusal.scope == "shard"
    assert batch_view({"id": "b", "status": "failed"}).refusal.scope == "shard"


def test_a_failed_batch_that_ran_is_collected():
    """What was answered before the failure was paid for: it counts as ended."""
    assert failed(output_file_id="file-o").phase == "ended"
    assert failed(request_counts={"total": 3, "completed": 1, "failed": 0}).phase == "ended"


def test_a_cancel_that_comes_too_late_shows_the_batch():
    """A batch that is done already is not an error."""
    for status in (400, 404, 409):
        api = api_for("POST /v1/batches/batch_1/cancel", (status, error("Cannot cancel")))
        api.on("GET /v1/batches/batch_1", STATES["completed_mixed"])
        assert with_api(api, lambda p: p.cancel("batch_1")).phase == "ended"
    api = api_for("POST /v1/batches/batch_1/cancel", STATES["cancelling"])
    assert with_api(api, lambda p: p.cancel("batch_1")).phase == "cancelling"


# -- files -------------------------------------------------------------------------------------


def test_a_result_file_is_fetched_byte_by_byte(tmp_path):
    """What lies on disk is what the provider holds."""
    content = (WIRE / "openai_output_file.jsonl").read_bytes()
    api = api_for("GET /v1/files/file-o/content", (200, content))
    assert with_api(api, lambda p: p.fetch("file-o", tmp_path / "o"))
    assert (tmp_path / "o").read_bytes() == content


def test_only_the_provider_can_say_that_a_file_is_gone(tmp_path):
    """Its own 404 is False; a proxy's 404 or an error is no reason to give results up."""
    api = api_for("GET /v1/files/file-x/content", OWN_404)
    assert with_api(api, lambda p: p.fetch("file-x", tmp_path / "o")) is False
    for status, body in ((404, b"404 page not found"), (500, error()), (503, b"")):
        api = api_for("GET /v1/files/file-x/content", (status, body))
        with pytest.raises(Uncertain):
            with_api(api, lambda p: p.fetch("file-x", tmp_path / "o"))
    assert list(tmp_path.iterdir()) == []


def test_deleting_a_file_twice_is_fine():
    """One that is gone already is deleted, in whatever words that is told."""
    api = api_for("DELETE /v1/files/file-x", {"id": "file-x", "deleted": True}, OWN_404)
    api.on("GET /v1/files/file-x", OWN_404)

    async def twice(provider):
        return await provider.delete_file("file-x"), await provider.delete_file("file-x")

    assert with_api(api, twice) == (True, True)


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("file", [{"id": "file-x", "object": "file"}, (404, b"not found"), (405, b"")])
def test_a_server_that_deletes_nothing_says_so(status, file):
    """No such call is no deletion: only in the server's own words, that there is no such file, it is gone."""
    api = api_for("DELETE /v1/files/file-x", (status, b"not here"))
    api.on("GET /v1/files/file-x", file)
    assert with_api(api, lambda p: p.delete_file("file-x")) is False


def test_ids_cannot_lead_to_another_path():
    """An id from a strange server is one path segment, whatever is in it."""
    api = api_for("GET /v1/batches/..%2Ffiles%3Fx", STATES["validating"])
    assert with_api(api, lambda p: p.poll("../files?x")).id == "batch_1"


# -- the live lane -----------------------------------------------------------------------------


def send(*answers):
    api = api_for("POST /v1/chat/completions", *answers)
    reply = with_api(api, lambda p: p.send(CHAT, b'{"model":"m"}', timeout_s=5.0))
    assert api.seen[0][2] == b'{"model":"m"}'
    return reply


def test_a_live_answer_comes_with_what_its_headers_teach():
    """The quota headers become a hint, in seconds and whole numbers."""
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-remaining-tokens": "199000",
        "x-ratelimit-reset-requests": "8.64s",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-request-id": "req_7",
    }
    reply = send((200, b'{"a":1}', headers))
    assert reply.hint == RateHint(500, 200_000, 499, 199_000, 8.64, 360.0, None)
    assert (reply.status, reply.body, reply.request_id, reply.stop) == (200, b'{"a":1}', "req_7", False)
    assert send({}).hint is None


@pytest.mark.parametrize(
    ("status", "body", "stop"),
    [
        (429, error("slow down", "rate_limit_exceeded"), False),
        (429, error("no quota", "insufficient_quota"), True),
        (400, error("limit", "billing_hard_limit_reached"), True),
        (429, error("spent", "enforced_spend_limit_reached"), True),
        (429, b"<html>", False),
        (401, error("key"), True),
        (403, b"<html>", True),
        (404, error("no such model", "model_not_found"), True),
        (404, b"404 page not found", True),
        (400, error("bad"), False),
        (500, error("insufficient_quota is mentioned"), False),
    ],
)
def test_every_status_is_a_reply_and_money_troubles_stop(status, body, stop):
    """A row's error is a value; only what no later call can pass stops the job."""
    reply = send((status, body))
    assert (reply.status, reply.stop) == (status, stop)


def test_the_key_is_not_kept_with_an_error():
    """A server that echoes the key in an error does not get it into our files."""
    assert KEY.encode() not in send((401, error(f"Incorrect API key provided: {KEY}"))).body


def test_the_answer_to_a_live_call_is_read_back_from_its_line():
    """send, reply_line and decode fit together."""
    body = json.loads((WIRE / "openai_output_file.jsonl").read_text().splitlines()[0])["response"]["body"]
    provider = OpenAI("m", key="k")
    answer = provider.decode(provider.reply_line("s-7", send(body), 0.5))
    assert (answer.custom_id, answer.outcome.text, answer.duration_s) == ("s-7", "pong", 0.5)


def test_a_base_url_from_the_environment_is_used():
    """OPENAI_BASE_URL leads to another server, slash or not; its account is another one."""
    provider = connect("m", {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1/"})
    assert provider.account.base_url == "http://127.0.0.1:9/v1"
    assert provider.account.host == "127.0.0.1:9"
    assert provider.clock_skew_s() == 0.0
