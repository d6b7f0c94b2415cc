"""Result lines as OpenAI, its imitators and our own live journal write them."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from nightmill.providers import LiveReply
from nightmill.providers._openai_requests import decode_request
from nightmill.providers._openai_shape import decode_line, decode_plain, reply_line
from nightmill.providers._openai_talk import duration_s
from nightmill.providers.openai import OpenAI
from nightmill.types import Answer, Failed, FailureKind, Succeeded, Usage

WIRE = Path(__file__).parents[1] / "data" / "wire"
USAGE = {"prompt_tokens": 22, "completion_tokens": 2, "total_tokens": 24}


def chat(content="pong", finish="stop", usage=USAGE, **message):
    message = {"role": "assistant", "content": content, **message}
    return {"model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def line(body, status=200, error=None, **more) -> bytes:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": "r-1", "response": response, "error": error, **more}).encode()


def outcome(body, status=200, **more):
    return decode_line(line(body, status, **more)).outcome


def test_the_documented_output_file_is_read():
    """Chat, response and embedding lines of the sample file all succeed, with text, usage and model."""
    answers = [decode_line(raw) for raw in (WIRE / "openai_output_file.jsonl").read_bytes().splitlines()]
    usage = Usage(22, 2)
    assert answers == [
        Answer("r-2", Succeeded("pong", usage, "stop", "gpt-6-luna")),
        Answer("r-1", Succeeded("pong", usage, "stop", "gpt-6-luna")),
        Answer("r-3", Succeeded("[[0.1, 0.2]]", Usage(3, 0), None, "text-embedding-3-small")),
    ]


def test_the_documented_error_file_is_read():
    """A refused row, an expired one, a cancelled one and status 0 are four different things."""
    answers = [decode_line(raw) for raw in (WIRE / "openai_error_file.jsonl").read_bytes().splitlines()]
    kinds = [answer.outcome.kind for answer in answers]
    assert kinds == [
        FailureKind.BAD_REQUEST,
        FailureKind.EXPIRED,
        FailureKind.CANCELLED,
        FailureKind.SERVER_ERROR,
    ]
    assert answers[0].outcome.message == "decimal_above_max_value: Invalid 'temperature'"
    assert all(answer.outcome.usage is None for answer in answers)


def test_the_text_is_what_the_official_sdk_reads():
    """Our reading of an answer and the SDK's agree on text, finish and tokens."""
    raw = (WIRE / "openai_output_file.jsonl").read_bytes().splitlines()[0]
    official = ChatCompletion.model_validate(json.loads(raw)["response"]["body"])
    ours = decode_line(raw).outcome
    assert ours.text == official.choices[0].message.content
    assert ours.finish_reason == official.choices[0].finish_reason
    assert ours.usage.input_tokens == official.usage.prompt_tokens


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (chat("half an", finish="length"), FailureKind.TRUNCATED, "half an"),
        (chat("", finish="length"), FailureKind.TRUNCATED, None),
        (chat(""), FailureKind.EMPTY, None),
        (chat(None), FailureKind.EMPTY, None),
        (chat(" \n"), FailureKind.EMPTY, " \n"),
        ({"choices": [], "usage": USAGE}, FailureKind.EMPTY, None),
        (chat(None, refusal="I cannot."), FailureKind.CONTENT_FILTER, "I cannot."),
        (chat("Well,", refusal="I cannot."), FailureKind.CONTENT_FILTER, "I cannot."),
        (chat("so far", finish="content_filter"), FailureKind.CONTENT_FILTER, "so far"),
        (chat([{"type": "refusal", "refusal": "No."}]), FailureKind.CONTENT_FILTER, "No."),
    ],
)
def test_paid_failures_keep_their_text_and_usage(body, kind, text):
    """Truncated, empty and withheld answers were paid for: what they said and cost is kept."""
    got = outcome(body)
    assert (got.kind, got.text, got.usage) == (kind, text, Usage(22, 2))


def test_the_first_text_of_several_choices_counts():
    """With n > 1 an empty first choice does not hide the answer."""
    body = chat("")
    body["choices"].append(chat("second")["choices"][0])
    assert outcome(body).text == "second"


def test_content_in_parts_is_joined():
    """Text parts make one text."""
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert outcome(chat(parts)).text == "ab"


def test_tool_calls_without_text_are_the_answer():
    """A model that answers by calling a tool has answered: the calls are the text, as JSON."""
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"é":1}'}}]
    got = outcome(chat(None, finish="tool_calls", tool_calls=calls))
    assert isinstance(got, Succeeded)
    assert json.loads(got.text) == calls


def test_usage_is_read_with_its_parts():
    """Cached and cache-write tokens are known; nulls count as nothing."""
    details = {"cached_tokens": 10, "cache_write_tokens": 5, "audio_tokens": None}
    assert outcome(chat(usage={**USAGE, "prompt_tokens_details": details})).usage == Usage(22, 2, 10, 5)
    nulls = {"cached_tokens": None, "cache_write_tokens": None}
    assert outcome(chat(usage={**USAGE, "prompt_tokens_details": nulls})).usage == Usage(22, 2)
    assert outcome(chat(usage={**USAGE, "completion_tokens": None})).usage == Usage(22, 2)  # by the total
    assert outcome(chat(usage=None)).usage is None
    assert outcome(chat(usage={"prompt_tokens": None})).usage is None


@pytest.mark.parametrize("number", [-5, True, 1.5, "7", 2**70])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_numbers_of_tokens_that_cannot_be_are_none(name, number):
    """Fewer tokens than none, or no whole number: the usage is unstated, and money is never given back."""
    text = line(chat(usage={**USAGE, name: number}))
    assert decode_line(text).outcome.usage is None
    assert decode_plain([text]) is None


def test_embeddings_come_in_index_order():
    """Vectors are put in the order of their inputs; their numbers are not rewritten."""
    data = [{"index": 1, "embedding": [2.50, 1e-9]}, {"index": 0, "embedding": [0.1]}]
    got = outcome({"object": "list", "model": "e", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    assert json.loads(got.text) == [[0.1], [2.5, 1e-9]]
    assert got.usage == Usage(3, 0)
    as_text = [{"index": 0, "embedding": "AAAA"}]
    assert json.loads(outcome({"data": as_text}).text) == ["AAAA"]


@pytest.mark.parametrize("vector", [None, [], "", 7])
def test_a_missing_vector_is_no_success(vector):
    """An embedding that is not there is not passed off as an answer."""
    data = [{"index": 0, "embedding": [0.1]}, {"index": 1, "embedding": vector}]
    assert isinstance(outcome({"data": data, "usage": USAGE}), Failed)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (0, None, FailureKind.SERVER_ERROR),
        (408, None, FailureKind.SERVER_ERROR),
        (409, None, FailureKind.SERVER_ERROR),
        (429, "rate_limit_exceeded", FailureKind.RATE_LIMIT),
        (500, None, FailureKind.SERVER_ERROR),
        (503, "overloaded", FailureKind.SERVER_ERROR),
        (302, None, FailureKind.SERVER_ERROR),
        (500, "model_error", FailureKind.MODEL_ERROR),
        (400, "invalid_value", FailureKind.BAD_REQUEST),
        (400, "content_filter", FailureKind.CONTENT_FILTER),
        (404, "model_not_found", FailureKind.BAD_REQUEST),
        (422, None, FailureKind.BAD_REQUEST),
    ],
)
def test_a_status_says_whether_to_try_again(status, code, kind):
    """What may pass later and what never will are told apart by status."""
    got = outcome({"error": {"message": "why\x1b it\nfailed", "type": "t", "code": code}}, status)
    assert got.kind == kind
    assert got.message == f"{code or 't'}: why it failed"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("batch_expired", FailureKind.EXPIRED),
        ("batch_cancelled", FailureKind.CANCELLED),
        ("internal_error", FailureKind.SERVER_ERROR),
        ("something_new", FailureKind.SERVER_ERROR),
        ("invalid_request", FailureKind.BAD_REQUEST),
    ],
)
def test_a_row_that_never_ran_says_why(code, kind):
    """The line's own error decides by its code; an unknown one may pass later."""
    raw = json.dumps({"custom_id": "r-1", "response": None, "error": {"code": code, "message": "m"}}).encode()
    assert decode_line(raw).outcome == Failed(kind, f"{code}: m")


@pytest.mark.parametrize("body", ["<html>busy</html>", None, 7, [], {}, "", {"choices": 3}, {"data": None}])
def test_a_success_without_an_answer_is_no_success(body):
    """A 200 from something that is not the model is a failure to try again, and was billed nobody knows how much."""
    got = outcome(body)
    assert (got.kind, got.usage) == (FailureKind.SERVER_ERROR, Usage(0, 0, estimated=True))


@pytest.mark.parametrize("error", ["plain words", {"message": None}, {"code": 5}, [1]])
def test_errors_of_odd_shapes_are_failures(error):
    """Whatever stands under error, the row failed and the line is read."""
    raw = json.dumps({"custom_id": "r-1", "response": None, "error": error}).encode()
    assert isinstance(decode_line(raw).outcome, Failed)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"custom_id": 5, "response": null, "error": null}',
        b'{"response": {"status_code": 200, "body": {}}, "error": null}',
        line(chat())[:-20],
        b"[" * 100_000,
    ],
)
def test_what_is_no_result_line_is_a_value_error(raw):
    """A cut or foreign line is never taken for an answer."""
    with pytest.raises(ValueError):  # noqa: PT011 - the promise is the type
        decode_line(raw)


def test_answers_in_almost_json_are_kept():
    """NaN, lone surrogates and stray bytes in a paid answer do not lose it."""
    raw = line(chat("MARK")).replace(b'"MARK"', b'"a\\ud83d b"').replace(b'"index": 0', b'"index": NaN')
    assert decode_line(raw).outcome.text == "a\ufffd b"
    assert decode_line(line(chat("MARK")).replace(b"MARK", b"a\xff")).outcome.text == "a\ufffd"


def test_an_answer_does_not_keep_its_line_alive():
    """Decoding a large line leaves only what was taken from it in memory."""
    data = [{"index": 0, "embedding": [0.5] * 1000}]
    raw = bytearray(line({"data": data}))
    answer = decode_line(bytes(raw))
    gc.collect()
    assert answer.outcome.text.startswith("[[0.5")
    whole = bytes(raw)
    before = sys.getrefcount(whole)
    kept = [decode_line(whole) for _ in range(10)]
    assert sys.getrefcount(whole) == before
    assert len(kept) == 10


# -- our own lines -----------------------------------------------------------------------------


def test_a_reply_becomes_a_line_that_is_read_back():
    """The body goes in as it came, and status, request id and duration with it."""
    body = json.dumps(chat("ünï"), ensure_ascii=False, indent=2).replace("\n", "\r\n").encode()
    raw = reply_line("s-1", LiveReply(200, body, request_id="req_9"), 1.25)
    assert raw.count(b"\n") == 1
    assert b"\r" not in raw
    assert decode_line(raw) == Answer("s-1", Succeeded("ünï", Usage(22, 2), "stop", "m-1"), 1.25)
    envelope = json.loads(raw)
    assert list(envelope) == ["id", "custom_id", "response", "error", "duration_s"]
    assert envelope["response"]["request_id"] == "req_9"


def test_an_error_we_had_to_write_ourselves_is_read_back():
    """A row refused outside a response gets an error body that fails it for good, with its reason."""
    provider = OpenAI("m", key="k")
    raw = provider.reply_line("s-1", LiveReply(400, provider.error_body("line 3: no url\ud800")), 0.0)
    assert provider.decode(raw).outcome == Failed(
        FailureKind.BAD_REQUEST, "invalid_request_error: line 3: no url\ufffd"
    )


def test_a_body_cannot_break_out_of_its_line():
    """Text that would close the envelope early stays inside it."""
    body = b'{}},"error":{"code":"batch_expired"},"x":{"y":{'
    answer = decode_line(reply_line("s-1", LiveReply(200, body), 0.0))
    assert answer.outcome.kind == FailureKind.SERVER_ERROR


def test_a_paid_answer_in_almost_json_survives_the_journal():
    """A body that is no strict JSON is kept as a string, the line stays strict, and the answer is read from it."""
    for damage, text in ((b'"a\\udc00"', "a\ufffd"), (b'"a\xff"', "a\ufffd"), (b'"a", "logprobs": NaN', "a")):
        body = json.dumps(chat("MARK")).encode().replace(b'"MARK"', damage)
        raw = reply_line("s-1", LiveReply(200, body), 0.5)
        msgspec.json.decode(raw)
        assert decode_line(raw).outcome.text == text
    with_mark = b"\xef\xbb\xbf" + json.dumps(chat("a")).encode()
    assert decode_line(reply_line("s-1", LiveReply(200, with_mark), 0.5)).outcome.text == "a"


def test_a_number_that_no_float_holds_stays_where_it_was():
    """Such a body is JSON all the same: it goes in as it came, and its answer is read."""
    body = json.dumps(chat("MARK")).encode().replace(b'"MARK"', b'"a", "logprobs": 1e999')
    raw = reply_line("s-1", LiveReply(200, body), 0.5)
    assert json.loads(raw)["response"]["body"] == json.loads(body)
    assert decode_line(raw).outcome.text == "a"


@given(text=st.text(min_size=1), duration=st.floats(min_value=0, max_value=1e6), custom_id=st.text(max_size=64))
def test_any_text_survives_the_journal(text, duration, custom_id):
    """Every text a model can say comes back the same, pretty-printed or not, escaped or not."""
    custom_id = custom_id.encode("utf-8", "replace").decode()
    for options in ({}, {"indent": 1}, {"ensure_ascii": False}):
        body = json.dumps(chat(text), **options).encode("utf-8", "surrogatepass")
        raw = reply_line(custom_id, LiveReply(200, body), duration)
        assert raw.count(b"\n") == 1
        answer = decode_line(raw)
        assert (answer.custom_id, answer.duration_s) == (custom_id, duration)
        if not any("\ud800" <= character <= "\udfff" for character in text) and not text.isspace():
            assert answer.outcome.text == text


@given(body=st.binary(max_size=200), status=st.sampled_from([0, 200, 204, 400, 429, 500]))
def test_any_bytes_survive_the_journal(body, status):
    """No answer, however broken, makes a line that cannot be read."""
    raw = reply_line("s-1", LiveReply(status, body), 0.0)
    assert raw.count(b"\n") == 1
    msgspec.json.decode(raw)
    assert decode_line(raw).custom_id == "s-1"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "message", "content", "usage", "error", "data", "embedding", "output", "status", "index",
             "prompt_tokens", "refusal", "finish_reason", "model", "code", "tool_calls", "prompt_tokens_details"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


odd_numbers = st.sampled_from([-1, 10**400, float("inf"), float("nan"), True, "\ud800"])


@given(
    response=json_like,
    body=json_like,
    error=json_like,
    status=st.integers(0, 599) | st.none() | odd_numbers,
    took=odd_numbers,
)
def test_no_shape_of_line_crashes_the_decoder(response, body, error, status, took):
    """Known keys with values of any shape always give an outcome."""
    for inner in (response, {"status_code": status, "body": body}):
        raw = json.dumps({"custom_id": "c", "response": inner, "error": error, "duration_s": took}).encode()
        answer = decode_line(raw)
        msgspec.json.encode(answer)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8.64s", 8.64), ("14ms", 0.014), ("6m0s", 360.0), ("1h2m3s", 3723.0), ("1d", 86400.0), ("20", 20.0)]
    + [(text, None) for text in ("", None, "soon", "-1s", "5 s", "1e9")],
)
def test_durations_of_rate_headers_are_read(text, seconds):
    """The provider's short durations become seconds; nonsense becomes nothing."""
    assert duration_s(text) == seconds


def response(*output, status="completed", **more):
    usage = {"input_tokens": 9, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}
    return {"object": "response", "model": "m-1", "status": status, "output": list(output), "usage": usage, **more}


def message(text):
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


CALL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}


def test_a_response_is_what_its_messages_say():
    """Reasoning, summaries and other items are no part of the answer; usage comes with its cached part."""
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    got = outcome(response(thought, message("po"), message("ng")))
    assert got == Succeeded("pong", Usage(9, 5, 4), "stop", "m-1")


@pytest.mark.parametrize(
    ("body", "kind", "billed"),
    [
        (response(message("po"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
         FailureKind.TRUNCATED, True),
        (response(status="incomplete", incomplete_details={"reason": "content_filter"}), FailureKind.CONTENT_FILTER,
         True),
        (response({"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}), FailureKind.CONTENT_FILTER,
         True),
        (response(), FailureKind.EMPTY, True),
        ({**response(status="failed", error={"code": "server_error", "message": "x"}), "usage": None},
         FailureKind.SERVER_ERROR, False),
        (response(status="in_progress"), FailureKind.SERVER_ERROR, True),
    ],
)  # fmt: skip
def test_a_response_that_is_no_whole_answer_is_a_failure_of_its_kind(body, kind, billed):
    """Cut, filtered, refused, empty, failed or not done yet: none is a success, and what was billed is known."""
    got = outcome(body)
    assert isinstance(got, Failed)
    assert (got.kind, got.usage is not None) == (kind, billed)


def test_tools_that_are_called_are_an_answer_and_are_kept_beside_a_text():
    """Calls alone are the text, as JSON; beside a text they are kept under parsed, alike in chats and responses."""
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    alone = outcome(response(CALL))
    assert (json.loads(alone.text), alone.finish_reason) == (calls, "tool_calls")
    beside = outcome(response(message("calling"), CALL))
    assert (beside.text, json.loads(beside.parsed)) == ("calling", calls)
    own = {"type": "custom_tool_call", "call_id": "c", "id": "i", "name": "f", "input": "x"}
    assert json.loads(outcome(response(own)).text) == [
        {"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}
    ]
    older = {"name": "f", "arguments": "{}"}
    assert json.loads(outcome(chat(None, function_call=older)).text) == [{"type": "function", "function": older}]
    chatted = outcome(chat("calling", tool_calls=calls))  # finish_reason "stop": the tool was asked for by name
    assert (chatted.text, json.loads(chatted.parsed)) == ("calling", calls)
    assert outcome(chat("pong", tool_calls=[])).parsed is None


def test_of_several_choices_the_first_whole_one_counts_and_all_are_kept():
    """A cut choice hides no complete one, and every text is under parsed."""
    body = chat("cut o", finish="length")
    body["choices"] += [chat("second")["choices"][0], chat("third")["choices"][0]]
    got = outcome(body)
    assert (got.text, json.loads(got.parsed)) == ("second", ["cut o", "second", "third"])
    body = chat("cut o", finish="length")
    body["choices"] += body["choices"]
    assert outcome(body).kind is FailureKind.TRUNCATED


def asked(body, url="/v1/chat/completions", custom_id="a b/ä") -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


@pytest.mark.parametrize(
    ("body", "url", "prompt", "cap"),
    [
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Say"}]}, "chat/completions",
         "Say", None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "A"}]}], "max_tokens": 5, "n": 2},
         "chat/completions", "A", 10),
        ({"input": "Say", "max_output_tokens": 7}, "responses", "Say", 7),
        ({"input": ["a", "b"]}, "embeddings", '{"input":["a","b"]}', 0),
    ],
)  # fmt: skip
def test_a_request_made_elsewhere_is_read(body, url, prompt, cap):
    """Name, model, question and cap of a line of any endpoint; its body stays as it is."""
    request = decode_request(asked({"model": "m", **body}, f"/v1/{url}"))
    assert (request.custom_id, request.url, request.model) == ("a b/ä", f"/v1/{url}", "m")
    assert (request.prompt, request.cap_tokens) == (prompt, cap)
    assert json.loads(request.body) == {"model": "m", **body}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", asked({}), asked({"model": 1}), asked({"model": "m"}, "")])
def test_what_is_no_request_is_a_value_error(raw):
    """A line that names no model, no endpoint or nothing at all."""
    with pytest.raises(ValueError, match=r"."):
        decode_request(raw)
