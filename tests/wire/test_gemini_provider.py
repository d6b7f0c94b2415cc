"""The Gemini provider against a scripted server: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google import genai
from openai_loopback import Api, serving

from nightmill.errors import Limited, NeverSent, Refused, Uncertain
from nightmill.providers import BatchProvider, KeyCheck, ListsBatches, LiveProvider, RateHint, Upload
from nightmill.providers._gemini_talk import batch_view, file_name
from nightmill.providers.resolve import resolve
from nightmill.types import FailureKind

KEY = "k-test-key"
WIRE = Path(__file__).parents[1] / "data" / "wire"
STATES = json.loads((WIRE / "gemini_operation_states.json").read_text())
MODEL = "/v1beta/models/gemini-2.5-flash"
ASK = MODEL + ":generateContent"
CREATE = f"POST {MODEL}:batchGenerateContent"
START = "POST /upload/v1beta/files"
GONE = "You do not have permission to access the File x or it may not exist."
LINE = b'{"key":"t-1-0","request":{"contents":[]}}\n'


def error(status=400, word="INVALID_ARGUMENT", message="why", *details):
    return status, {"error": {"code": status, "message": message, "status": word, "details": list(details)}}


def reason(word):
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": word, "domain": "googleapis.com"}


def quota(quota_id, value=None):
    about = {"quotaId": quota_id} | ({"quotaValue": value} if value else {})
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [about]}


WAIT = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}
OWN_403, OWN_404 = error(403, "PERMISSION_DENIED", GONE), error(404, "NOT_FOUND", "Requested entity was not found.")
DAY = error(429, "RESOURCE_EXHAUSTED", "quota", quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), WAIT)
USUAL_429 = "You exceeded your current quota, please check your plan and billing details."
MINUTE = error(429, "RESOURCE_EXHAUSTED", USUAL_429, quota("GenerateRequestsPerMinutePerProjectPerModel"), WAIT)
BAD_KEY = error(400, "INVALID_ARGUMENT", "API key not valid.", reason("API_KEY_INVALID"))


def batch(name="batches/b1", created="2026-11-21T10:00:00Z", shown=None, file=None, **more):
    about = {"state": "BATCH_STATE_RUNNING", "createTime": created, "displayName": shown}
    about |= {"inputConfig": {"fileName": file}} if file else {}
    return {"name": name, "metadata": about | more}


def with_api(api: Api, use):
    """Run ``use(provider)`` against ``api``."""

    async def run():
        async with serving(api.handle) as base:
            env = {"GEMINI_API_KEY": KEY, "GEMINI_BASE_URL": base + "/v1beta/"}
            provider = resolve("gemini/gemini-2.5-flash", env=env)
            try:
                return await use(provider)
            finally:
                await provider.close()

    return asyncio.run(run())


def api_for(route: str, *answers) -> Api:
    api = Api()
    api.on(route, *answers)
    return api


def test_gemini_offers_both_lanes_and_a_key_check():
    """It keeps the promises of a batch provider, of a live provider, and of one whose key can be tried."""
    provider = resolve("gemini/gemini-2.5-flash", env={"GOOGLE_API_KEY": "k"})
    assert isinstance(provider, BatchProvider)
    assert isinstance(provider, LiveProvider)
    assert isinstance(provider, KeyCheck)
    assert provider.account.base_url == "https://generativelanguage.googleapis.com"
    live = resolve("gemini/gemini-2.5-flash", env={"GEMINI_API_KEY": "k"}, tables={"gemini": {"batch": False}})
    assert not isinstance(live, BatchProvider)


# -- creating ----------------------------------------------------------------------------------


def create(api, url=ASK):
    return with_api(api, lambda p: p.create("files/nm-1", Path("unread"), url=url, submission="t-1.1"))


def test_a_create_carries_the_submission():
    """The batch can be found again by its display name and by its file; the key travels in its header alone."""
    api = api_for(CREATE, STATES["pending"])
    view = create(api)
    assert (view.id, view.phase, view.model) == ("batches/abc", "running", "gemini-3.8-flash")
    line, headers, raw = api.seen[0]
    assert json.loads(raw) == {"batch": {"displayName": "t-1.1", "inputConfig": {"fileName": "files/nm-1"}}}
    assert headers["x-goog-api-key"] == KEY
    assert KEY not in line


def test_embeddings_have_a_create_of_their_own():
    """What was encoded as an embedding goes where batches of those are made."""
    api = api_for(f"POST {MODEL}:asyncBatchEmbedContent", STATES["pending"])
    assert create(api, MODEL + ":embedContent").id == "batches/abc"


REFUSALS = [
    (error(), "shard"),
    (BAD_KEY, "account"),
    (error(400, "INVALID_ARGUMENT", "API Key not found. Please pass a valid API key."), "account"),
    (error(400, "FAILED_PRECONDITION", "User location is not supported for the API use."), "account"),
    (error(401, "UNAUTHENTICATED"), "account"),
    (error(403, "PERMISSION_DENIED", "no", reason("SERVICE_DISABLED")), "account"),
    (OWN_403, "shard"),
    (error(404, "NOT_FOUND", "models/gemini-0 is not found for API version v1beta"), "job"),
    (error(413, "INVALID_ARGUMENT", "Request payload size exceeds the limit"), "shard"),
    (DAY, "account"),
    (error(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), "account"),
]


@pytest.mark.parametrize(("answer", "scope"), REFUSALS)
def test_a_refusal_in_the_providers_words_says_whom_it_concerns(answer, scope):
    """Nothing ran, and the scope tells a bad key, or a day's quota, from a bad model from a bad file."""
    api = api_for(CREATE, answer)
    with pytest.raises(Refused) as caught:
        create(api)
    assert (caught.value.scope, caught.value.status) == (scope, answer[0])
    assert caught.value.why == answer[1]["error"]["message"]
    assert len(api.seen) == 1


DOUBTS = [
    error(408, "CANCELLED"),
    error(409, "ABORTED"),
    error(500, "INTERNAL"),
    error(503, "UNAVAILABLE"),
    error(504, "DEADLINE_EXCEEDED"),
    (502, b"<html>bad gateway</html>"),
    (503, b""),
    (307, b""),
    (400, b"<html>proxy says no</html>"),
    (400, {"error": {"message": "of another shape", "type": "invalid_request_error"}}),
    (404, b"404 page not found"),
    (200, b"<html>login please</html>"),
    (200, b"null"),
    (200, {"name": ""}),
    (200, {"metadata": {}}),
]


@pytest.mark.parametrize("answer", DOUBTS)
def test_any_other_answer_to_a_create_is_in_doubt(answer):
    """Only the provider's own words prove that no batch was made; nothing is sent again to find out."""
    api = api_for(CREATE, answer)
    with pytest.raises(Uncertain):
        create(api)
    assert len(api.seen) == 1


def test_limits_are_told_from_refusals():
    """A 429 says how long to wait, in its details or its headers; what may be enqueued is learned where it is said."""
    full = error(429, "RESOURCE_EXHAUSTED", "full", quota("BatchEnqueuedTokensPerProjectPerModel", "3000000"))
    answers = [MINUTE, (*full, {"Retry-After": "12"}), (429, b"<html>too many</html>")]
    found = []
    for answer in answers:
        with pytest.raises(Limited) as caught:
            create(api_for(CREATE, answer))
        found.append((caught.value.after_s, caught.value.enqueued_tokens_cap))
    assert found == [(37.0, None), (12.0, 3_000_000), (None, None)]


def test_an_error_body_cannot_reach_the_terminal_raw():
    """Long and hostile error texts are cut, cleaned, and lose the key if they echo it."""
    api = api_for(CREATE, error(400, "INVALID_ARGUMENT", f"bad {KEY} \x1b[31m" + "x" * 5000))
    with pytest.raises(Refused) as caught:
        create(api)
    assert KEY not in caught.value.why
    assert "\x1b" not in caught.value.why
    assert len(caught.value.why) <= 500


# -- uploading ---------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path):
    file = tmp_path / "s.jsonl"
    file.write_bytes(LINE)
    return file


def upload(api, shard, name="T-1.1"):
    return with_api(api, lambda p: p.upload(shard, name=name))


def started(finished, to="https://elsewhere.example/upload/v1beta/files?upload_id=7"):
    api = api_for(START, (200, b"", {"X-Goog-Upload-URL": to}))
    api.on("POST /upload/v1beta/files?upload_id=7", finished)
    return api


def held(file, **more):
    """A file as the provider shows it: its hash is told as base64 of hexadecimal digits."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest().encode()
    told = {"name": file_name("T-1.1"), "sha256Hash": base64.b64encode(digest).decode(), "state": "ACTIVE"}
    return told | more


def test_an_upload_goes_up_under_a_name_of_its_own(shard):
    """Started with its size and our id, sent whole to where the server says, but never to another host."""
    api = started((200, {"file": held(shard)}, {"X-Goog-Upload-Status": "final"}))
    assert upload(api, shard) == file_name("T-1.1")
    (_, head, raw), (_, sent, content) = api.seen
    about = json.loads(raw)["file"]
    assert (about["name"], about["display_name"], about["size_bytes"]) == (file_name("T-1.1"), "T-1.1", len(LINE))
    assert head["x-goog-upload-command"] == "start"
    assert head["x-goog-upload-header-content-length"] == str(len(LINE))
    assert (sent["x-goog-upload-command"], sent["x-goog-upload-offset"]) == ("upload, finalize", "0")
    assert (sent["content-length"], content) == (str(len(LINE)), LINE)


@pytest.mark.parametrize("name", ["T-1.1", "t-1.1", "01JD" * 30 + ".7", "é"])
def test_a_file_id_keeps_to_the_alphabet(name):
    """At most 40 of a-z, 0-9 and dashes, no dash at the ends, and another one for every submission."""
    kind, own = file_name(name).split("/")
    assert kind == "files"
    assert len(own) <= 40
    assert set(own) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert own == own.strip("-")
    assert file_name(name) != file_name(name + "1")


def test_a_file_that_is_being_read_is_waited_for(shard):
    """No batch is made of a file that the provider has not taken in."""
    api = started((200, {"file": held(shard, state="PROCESSING")}))
    api.on(f"GET /v1beta/{file_name('T-1.1')}", held(shard, state="PROCESSING"), held(shard))
    assert upload(api, shard) == file_name("T-1.1")
    assert len(api.seen) == 4


def test_a_file_that_is_there_already_is_ours_if_its_bytes_are(shard):
    """After an upload whose answer was lost nothing is sent twice; another file of that name is not taken for it."""
    taken = error(409, "ALREADY_EXISTS", "Requested entity already exists")
    api = api_for(START, taken)
    raw = base64.b64encode(hashlib.sha256(LINE).digest()).decode()
    for same in (held(shard), held(shard, sha256Hash=raw)):
        api.on(f"GET /v1beta/{file_name('T-1.1')}", same)
        assert upload(api, shard) == file_name("T-1.1")
    for other in (held(shard, sha256Hash="b3RoZXI="), {"name": "files/x", "state": "ACTIVE"}):
        api.on(f"GET /v1beta/{file_name('T-1.1')}", other)
        with pytest.raises(NeverSent):
            upload(api, shard)


@pytest.mark.parametrize(
    "api",
    [
        *(api_for(START, answer) for answer in DOUBTS[:11]),
        api_for(START, (200, b"{}")),
        *(started(answer) for answer in (*DOUBTS[:6], (200, {}), (200, {"file": {}}))),
        started((200, {"file": {"name": "files/x"}}, {"X-Goog-Upload-Status": "active"})),
        started((200, {"file": {"name": "files/x", "state": "FAILED"}})),
    ],
)
def test_an_upload_that_fails_never_leaves_a_doubt(shard, api):
    """A file alone runs nothing: whatever happened to it, the shard may be tried again."""
    with pytest.raises(NeverSent):
        upload(api, shard)


@pytest.mark.parametrize(("answer", "kind"), [(BAD_KEY, Refused), (MINUTE, Limited), (DAY, Refused)])
def test_an_upload_that_is_refused_says_so(shard, answer, kind):
    """A bad key and a limit are not taken for a broken line."""
    for api in (api_for(START, answer), started(answer)):
        with pytest.raises(kind):
            upload(api, shard)


# -- media apart ---------------------------------------------------------------------------------

MEDIUM = Upload(f"nm-{'0' * 24}-5-5", "0" * 24, "image/png")
SHOWN = f"GET /v1beta/files/{MEDIUM.id}"
SENT = "POST /upload/v1beta/files?upload_id=7"


def shown(file, hours=40.0, **more):
    at = datetime.now(UTC) + timedelta(hours=hours)
    return held(file, name=f"files/{MEDIUM.id}", expirationTime=at.isoformat(), **more)


def provide(api, file, times=1, lasting_s=86_400.0):
    async def use(provider):
        for _ in range(times):
            await provider.provide(MEDIUM, file, lasting_s=lasting_s)
        return provider

    return with_api(api, use)


def calls(api):
    return [line.partition(" HTTP")[0] for line, _, _ in api.seen]


def test_a_medium_is_uploaded_once_under_its_name(shard):
    """Looked for first; what was sent is known, and neither sent nor looked for again."""
    api = started((200, {"file": shown(shard, hours=48)}, {"X-Goog-Upload-Status": "final"}))
    api.on(SHOWN, OWN_403)
    provide(api, shard, times=3)
    assert calls(api) == [SHOWN, START, SENT]
    about = json.loads(api.seen[1][2])["file"]
    assert (about["name"], about["mime_type"]) == (f"files/{MEDIUM.id}", "image/png")


def test_a_medium_that_is_there_long_enough_is_not_sent(shard):
    """Whoever uploaded it: another worker, or an earlier job."""
    api = api_for(SHOWN, shown(shard, hours=25))
    taken = error(409, "ALREADY_EXISTS", "Requested entity already exists")
    api.on(START, taken)
    provide(api, shard, times=2)
    assert calls(api) == [SHOWN, START, SHOWN]


@pytest.mark.parametrize("there", ["too soon", "failed", "another"])
def test_a_medium_that_will_not_do_gives_way(shard, there):
    """One that goes before a batch may end, that could not be read, or is something else, is deleted and sent anew."""
    about = {
        "too soon": {"hours": 23.0}, "failed": {"state": "FAILED"}, "another": {"sha256Hash": "b3RoZXI="},
    }[there]  # fmt: skip
    api = started((200, {"file": shown(shard, hours=48)}, {"X-Goog-Upload-Status": "final"}))
    api.on(SHOWN, shown(shard, **about))
    api.on(SHOWN.replace("GET", "DELETE"), (200, {}))
    provide(api, shard)
    assert calls(api) == [SHOWN, SHOWN.replace("GET", "DELETE"), START, SENT]


def test_two_that_upload_one_medium_at_once_share_it(shard):
    """Whose upload ends second is told that the name is taken, and takes what is there."""
    api = started(error(409, "ALREADY_EXISTS", "Requested entity already exists"))
    api.on(SHOWN, OWN_403, shown(shard, hours=48))
    provide(api, shard)
    assert calls(api) == [SHOWN, START, SENT, SHOWN]


def test_a_request_whose_medium_is_gone_stops_no_key_and_looks_anew(shard):
    """It fails by itself; whoever sends it again uploads the medium first."""
    gone = error(
        403, "PERMISSION_DENIED", f"You do not have permission to access the File {MEDIUM.id} or it may not exist."
    )
    api = started((200, {"file": shown(shard, hours=48)}, {"X-Goog-Upload-Status": "final"}))
    api.on(SHOWN, OWN_403)
    api.on("POST " + ASK, gone)

    async def use(provider):
        await provider.provide(MEDIUM, shard, lasting_s=60.0)
        reply = await provider.send(ASK, b"{}", timeout_s=5.0)
        await provider.provide(MEDIUM, shard, lasting_s=60.0)
        return reply

    reply = with_api(api, use)
    assert (reply.status, reply.stop, reply.shuts_key) == (403, False, False)
    assert calls(api).count(SENT) == 2


# -- looking -----------------------------------------------------------------------------------

LIST = "GET /v1beta/batches?pageSize=100"


def page(*items, after=None):
    return ({"operations": list(items)} if items else {}) | ({"nextPageToken": after} if after else {})


def find(api, since=0.0):
    return with_api(api, lambda p: p.find(frozenset({"t.1"}), frozenset({"files/t"}), since=since))


def test_a_batch_is_found_by_name_or_by_file_on_any_page():
    """Every page is read, and both marks count."""
    api = api_for(LIST, page(batch(), batch("batches/b2", shown="t.10"), after="a+b"))
    api.on(f"{LIST}&pageToken=a%2Bb", page(batch("batches/b3", shown="t.1"), after="c"))
    api.on(f"{LIST}&pageToken=c", page(batch("batches/b4", file="files/t")))
    found = [(view.id, view.submission, view.input_file) for view in find(api)]
    assert found == [("batches/b3", "t.1", None), ("batches/b4", None, "files/t")]


def test_every_batch_is_listed_with_its_window():
    """All pages, whoever made them."""
    api = api_for(LIST, page(batch(), after="x"))
    api.on(f"{LIST}&pageToken=x", page(batch("batches/b2")))

    async def every(provider):
        assert isinstance(provider, ListsBatches)
        return [view async for view in provider.batches()]

    first, second = with_api(api, every)
    assert (first.id, second.id, first.expires_at) == ("batches/b1", "batches/b2", first.created_at + 48 * 3_600)


def test_nothing_on_any_page_is_an_answer():
    """An empty list is an empty object here, and still a complete look with nothing found."""
    assert find(api_for(LIST, {})) == []
    api = api_for(LIST, page(batch(), after="x"))
    api.on(f"{LIST}&pageToken=x", {})
    assert find(api) == []


def test_a_look_ends_early_only_in_a_list_seen_newest_first():
    """Old pages are skipped where the order holds; one batch out of order, and all of them are read."""
    new, old = "2026-11-21T10:00:00.123456789Z", "2026-11-20T10:00:00+00:00"
    since = batch_view(batch(created=new)).created_at - 60
    ordered = api_for(LIST, page(batch(created=new), batch(created=old), after="x"))
    assert find(ordered, since) == []
    assert len(ordered.seen) == 1
    shuffled = api_for(LIST, page(batch(created=old), batch(created=new), batch(created=old), after="x"))
    shuffled.on(f"{LIST}&pageToken=x", page(batch("batches/b4", new, "t.1")))
    assert [view.id for view in find(shuffled, since)] == ["batches/b4"]


BAD_PAGES = [
    error(500, "INTERNAL"),
    BAD_KEY,
    OWN_403,
    OWN_404,
    MINUTE,
    (200, b"<html>"),
    (200, {"data": []}),
    (200, {"operations": None}),
    (200, {"operations": [{"metadata": {}}]}),
    (200, {"operations": [{"name": "batches/b9"}]}),
    (200, {"operations": [], "nextPageToken": 5}),
    (206, {}),
    (200, page(batch(), after="x")),
    (302, b""),
]


@pytest.mark.parametrize("bad", BAD_PAGES)
def test_a_look_with_a_bad_page_is_no_look(bad):
    """Absence is only ever concluded from a list that was read cleanly to its end."""
    api = api_for(LIST, page(batch(), after="x"))
    api.on(f"{LIST}&pageToken=x", bad)
    with pytest.raises((Refused, Limited, Uncertain)):
        find(api)


def test_an_uploaded_file_is_found_by_the_name_of_its_submission():
    """Its id follows from the name; one that may not exist is not there, and another refusal is no answer."""
    route = f"GET /v1beta/{file_name('t.1')}"
    asked = [with_api(api_for(route, said), lambda p: p.find_files("t.1.jsonl")) for said in (
        {"name": file_name("t.1")}, OWN_403, OWN_404)]  # fmt: skip
    assert asked == [[file_name("t.1")], [], []]
    with pytest.raises(Refused):
        with_api(api_for(route, error(403, "PERMISSION_DENIED", "no", reason("API_KEY_SERVICE_BLOCKED"))),
                 lambda p: p.find_files("t.1.jsonl"))  # fmt: skip


# -- the batch object --------------------------------------------------------------------------


def official(state):
    """What Google's own client makes of a batch."""

    async def run():
        async with serving(api_for("GET /v1beta/batches/abc", STATES[state]).handle) as base:
            client = genai.Client(api_key=KEY, http_options={"base_url": base, "api_version": "v1beta"})
            return await asyncio.to_thread(lambda: client.batches.get(name="batches/abc"))

    return asyncio.run(run())


PHASES = {"JOB_STATE_FAILED": "failed", "JOB_STATE_PENDING": "running", "JOB_STATE_RUNNING": "running"}


@pytest.mark.parametrize("state", sorted(STATES))
def test_every_documented_state_is_understood(state):
    """Each sample is what Google's own client takes it for, and its counts, texts of digits, are numbers."""
    job = official(state)
    view = with_api(api_for("GET /v1beta/batches/abc", STATES[state]), lambda p: p.poll("batches/abc"))
    assert view.phase == PHASES.get(job.state.value, "ended")
    assert (view.id, view.submission, view.created_at) == (job.name, job.display_name, job.create_time.timestamp())
    assert view.output_file == (job.dest.file_name if job.dest else None)
    assert (view.ended_at is not None) == (view.phase == "ended")
    ran = state.startswith("succeeded")
    assert (view.total, view.completed, view.failed) == (2, int(ran), int(ran))
    assert (view.refusal is not None) == (view.phase == "failed")


def test_the_results_lie_in_either_place():
    """The file is named in the metadata and in the response: one of them will do, under either prefix of the state."""
    for place in ("metadata", "response"):
        whole = {key: dict(value) if isinstance(value, dict) else value for key, value in
                 STATES["succeeded_file"].items()}  # fmt: skip
        whole["metadata"]["state"] = "JOB_STATE_SUCCEEDED"
        whole[place].pop("output" if place == "metadata" else "responsesFile")
        assert (batch_view(whole).output_file, batch_view(whole).phase) == ("files/batch-abc", "ended")


def test_what_a_request_without_a_line_is_depends_on_how_its_batch_ended():
    """Expired and cancelled batches give nothing back; of any other a line is missing."""
    provider = resolve("gemini/gemini-2.5-flash", env={"GEMINI_API_KEY": "k"})
    for prefix in ("BATCH_STATE", "JOB_STATE"):
        assert provider.unanswered(f"{prefix}_EXPIRED") is FailureKind.EXPIRED
        assert provider.unanswered(f"{prefix}_CANCELLED") is FailureKind.CANCELLED
        assert provider.unanswered(f"{prefix}_SUCCEEDED") is FailureKind.MISSING
    assert provider.unanswered("") is FailureKind.MISSING


@pytest.mark.parametrize("state", ["EXPIRED", "CANCELLED", "FAILED"])
@pytest.mark.parametrize(
    ("stats", "completed"),
    [
        ({"requestCount": "5", "pendingRequestCount": "5"}, 0),
        ({"requestCount": "5", "successfulRequestCount": "3", "pendingRequestCount": "2"}, 3),
        ({"requestCount": "5", "successfulRequestCount": "1", "pendingRequestCount": "1"}, None),
        ({"requestCount": "5"}, None),
        ({}, None),
    ],
)
def test_counts_of_a_batch_without_results_prove_something_only_if_they_add_up(state, stats, completed):
    """Else nobody knows how much of it ran."""
    view = batch_view(batch(state=f"BATCH_STATE_{state}", batchStats=stats) | {"error": {"code": 13, "message": "x"}})
    assert view.completed == completed
    assert (view.phase == "failed") == (state == "FAILED" and completed == 0)


@pytest.mark.parametrize(
    ("code", "kind", "scope"),
    [(3, Refused, "shard"), (5, Refused, "shard"), (7, Refused, "account"), (8, Limited, None)],
)
def test_a_failed_batch_says_why(code, kind, scope):
    """A refusal ran nothing: a bad file, a bad key and a limit are told apart."""
    view = batch_view(batch(state="BATCH_STATE_FAILED") | {"done": True, "error": {"code": code, "message": "why"}})
    assert view.phase == "failed"
    assert type(view.refusal) is kind
    assert getattr(view.refusal, "scope", None) == scope


def test_a_state_never_heard_of_is_running_with_a_warning(caplog):
    """A new word of the provider's loses no batch; one without any word goes by what else it says."""
    with caplog.at_level(logging.WARNING):
        assert batch_view(batch(state="BATCH_STATE_SIMMERING")).phase == "running"
    assert "batch batches/b1 has an unknown state" in caplog.text
    bare = {"name": "batches/b"}
    assert batch_view(bare).phase == "running"
    assert batch_view({**bare, "done": True, "response": {}}).phase == "ended"
    assert batch_view({**bare, "done": True, "error": {"code": 1, "message": "m"}}).status == "BATCH_STATE_CANCELLED"
    assert batch_view({**bare, "done": True, "error": {"code": 13, "message": "m"}}).phase == "ended"


@pytest.mark.parametrize("number", [-1, 10**400, float("nan"), "-3", "x", None, [1]])
def test_numbers_and_times_that_cannot_be_are_unknown(number):
    """What no ledger could keep is not kept, and does not end the job."""
    stats = dict.fromkeys(("requestCount", "successfulRequestCount"), number)
    view = batch_view(batch(created=number, batchStats=stats))
    assert (view.total, view.completed, view.created_at, view.expires_at) == (None, None, 0.0, None)


def test_a_cancel_answers_with_the_batch_as_it_is_then():
    """The call itself says nothing; one that comes too late is no error."""
    for said in ({}, OWN_404, error(400, "FAILED_PRECONDITION")):
        api = api_for("POST /v1beta/batches/abc:cancel", said)
        api.on("GET /v1beta/batches/abc", STATES["cancelled"])
        assert with_api(api, lambda p: p.cancel("batches/abc")).phase == "ended"
    with pytest.raises(Limited):
        with_api(api_for("POST /v1beta/batches/abc:cancel", MINUTE), lambda p: p.cancel("batches/abc"))


def test_an_unknown_batch_is_a_refusal_with_its_status():
    """By its 404 the lane knows a batch that is gone."""
    with pytest.raises(Refused) as caught:
        with_api(api_for("GET /v1beta/batches/abc", OWN_404), lambda p: p.poll("abc"))
    assert caught.value.status == 404


# -- files -------------------------------------------------------------------------------------

RESULT = "GET /download/v1beta/files/batch-o:download?alt=media"
AS_THE_CLIENT_ASKS = "GET /v1beta/files/batch-o:download?alt=media"


def fetch(api, to):
    return with_api(api, lambda p: p.fetch("files/batch-o", to))


def test_a_result_file_is_fetched_byte_by_byte(tmp_path):
    """What lies on disk is what the provider holds."""
    content = (WIRE / "gemini_output.jsonl").read_bytes()
    assert fetch(api_for(RESULT, (200, content)), tmp_path / "o")
    assert (tmp_path / "o").read_bytes() == content


def test_a_result_file_may_lie_where_only_the_official_client_asks_for_it(tmp_path):
    """The documentation asks below /download, the client does not: one of them gives it."""
    content = (WIRE / "gemini_output.jsonl").read_bytes()
    for elsewhere in ((404, b'{"detail":"Not Found"}'), OWN_404):
        api = api_for(RESULT, elsewhere)
        api.on(AS_THE_CLIENT_ASKS, (200, content))
        assert fetch(api, tmp_path / "o")
        assert (tmp_path / "o").read_bytes() == content


def test_only_the_provider_can_say_that_a_file_is_gone(tmp_path):
    """A 404 of its own, or a 403 that says it may not exist; any other refusal, and a stranger's, gives nothing up."""
    for said in (OWN_403, OWN_404):
        assert fetch(api_for(RESULT, said), tmp_path / "o") is False
    for said in ((404, b"not found"), error(500, "INTERNAL"), error(403, "PERMISSION_DENIED", "no"), (200, b"<html>")):
        with pytest.raises((Uncertain, Refused)):
            fetch(api_for(RESULT, said), tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


def test_deleting_a_file_twice_is_fine():
    """One that is gone already is deleted, though it is told with a 403; a bad key has deleted nothing."""
    api = api_for("DELETE /v1beta/files/nm-1", {}, OWN_403, OWN_404)

    async def thrice(provider):
        return [await provider.delete_file("files/nm-1") for _ in range(3)]

    assert with_api(api, thrice) == [True, True, True]
    for said in (BAD_KEY, (404, b"not found"), error(403, "PERMISSION_DENIED", "no"), error(500, "INTERNAL")):
        with pytest.raises((Uncertain, Refused)):
            with_api(api_for("DELETE /v1beta/files/nm-1", said), lambda p: p.delete_file("files/nm-1"))


def test_ids_cannot_lead_to_another_path():
    """An id from a strange server is one path segment, whatever is in it."""
    api = api_for("GET /v1beta/batches/..%2Ffiles%3Fx", STATES["pending"])
    assert with_api(api, lambda p: p.poll("../files?x")).id == "batches/abc"


# -- live ----------------------------------------------------------------------------------------


def send(answer):
    api = api_for(f"POST {ASK}", answer)
    return with_api(api, lambda p: p.send(ASK, b'{"contents":[]}', timeout_s=5)), api


def test_a_live_call_is_the_body_with_the_key_beside_it():
    """What was encoded is what is sent."""
    reply, api = send({"candidates": []})
    assert (reply.status, reply.body, reply.hint, reply.stop) == (200, b'{"candidates": []}', None, False)
    assert (api.seen[0][1]["x-goog-api-key"], api.seen[0][2]) == (KEY, b'{"contents":[]}')


@pytest.mark.parametrize(
    ("answer", "stop", "wait_s"),
    [
        (MINUTE, False, 37.0),
        ((429, b"<html>", {"Retry-After": "3"}), False, 3.0),
        (DAY, True, 37.0),
        (BAD_KEY, True, None),
        (error(400), False, None),
        (OWN_404, True, None),
        (error(403, "PERMISSION_DENIED"), True, None),
        (error(503, "UNAVAILABLE"), False, None),
    ],
)
def test_a_live_refusal_says_whether_to_wait_or_to_stop(answer, stop, wait_s):
    """A minute's quota is waited for; a day's, a bad key and an unknown model stop the job."""
    reply, _ = send(answer)
    assert reply.stop is stop
    assert reply.hint == (None if wait_s is None else RateHint(retry_after_s=wait_s))


def test_a_key_is_tried_by_counting_models():
    """All pages of them, for nothing."""
    api = api_for("GET /v1beta/models?pageSize=1000", {"models": [{"name": "models/a"}], "nextPageToken": "n"})
    api.on("GET /v1beta/models?pageSize=1000&pageToken=n", {"models": [{"name": "models/b"}, {"name": "models/c"}]})
    assert with_api(api, lambda p: p.count_models()) == 3
    with pytest.raises(Refused) as caught:
        with_api(api_for("GET /v1beta/models", BAD_KEY), lambda p: p.count_models())
    assert (caught.value.scope, caught.value.provider_code) == ("account", "api_key_invalid")
