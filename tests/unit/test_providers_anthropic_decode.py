"""Anthropic's result lines: what each says, who paid for it, and the same from one line as from many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.providers import LiveReply
from nightmill.providers._anthropic_shape import ANSWER_TOOL, decode_line, decode_plain, reply_line
from nightmill.types import Answer, Failed, FailureKind, Outcome, Succeeded, Usage

WIRE = Path(__file__).parents[1] / "data" / "wire"
TEXT = {"type": "text", "text": "yes", "citations": None}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
HIDDEN = {"type": "redacted_thinking", "data": "x"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "ü"}}
USAGE = {
    "input_tokens": 5, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0}, "service_tier": "batch",
    "output_tokens_details": {"thinking_tokens": 4},
}  # fmt: skip
READ = Usage(10, 7, cached_tokens=2, cache_write_tokens=3)


def message(*content: dict[str, Any], stop: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(content),
        "stop_reason": stop, "stop_sequence": None, "usage": USAGE, **more,
    }  # fmt: skip


def line(result: Any, custom_id: str = "t-1-0", **more: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "result": result, **more}).encode() + b"\n"


def succeeded(*content: dict[str, Any], **more: Any) -> bytes:
    return line({"type": "succeeded", "message": message(*content, **more)})


def outcome(raw: bytes) -> Outcome:
    return decode_line(raw).outcome


def test_the_documented_results_are_read() -> None:
    """Each of the four result types ends its row, and only the answer was paid for."""
    lines = (WIRE / "anthropic_results.jsonl").read_bytes().splitlines(keepends=True)
    answers = {a.custom_id: a.outcome for a in map(decode_line, lines)}
    assert answers["r-2"] == Succeeded("pong", Usage(11, 5), "end_turn", "claude-sonnet-5")
    kinds = {name: said.kind for name, said in answers.items() if isinstance(said, Failed)}
    assert kinds == {
        "r-1": FailureKind.BAD_REQUEST, "r-3": FailureKind.CANCELLED, "r-4": FailureKind.EXPIRED}  # fmt: skip
    assert all(said.usage is None for said in answers.values() if isinstance(said, Failed))
    assert "max_tokens: Input should be" in answers["r-1"].message


def test_all_input_counts_and_all_output() -> None:
    """Fresh, written and read tokens make up the input, thoughts are in the output, as Anthropic bills them."""
    raw = succeeded(THOUGHT, TEXT)
    assert outcome(raw) == Succeeded("yes", READ, "end_turn", "claude-x")
    said = Message.model_validate(json.loads(raw)["result"]["message"]).usage
    written, cached = said.cache_creation_input_tokens or 0, said.cache_read_input_tokens or 0
    assert (said.input_tokens + written + cached, said.output_tokens) == (READ.input_tokens, READ.output_tokens)


def test_the_text_is_that_of_all_text_blocks() -> None:
    """Thoughts are no part of the answer."""
    said = outcome(succeeded(THOUGHT, TEXT, HIDDEN, {"type": "text", "text": " and no"}))
    assert isinstance(said, Succeeded)
    assert said.text == "yes and no"


def test_the_input_of_our_own_tool_is_the_answer() -> None:
    """What was forced to fit a schema comes back as its JSON, whatever was said before."""
    given_ = {"type": "tool_use", "id": "u", "name": ANSWER_TOOL, "input": {"n": 1, "w": "ü"}}
    for content in ([given_], [TEXT, given_]):
        said = outcome(succeeded(*content, stop="tool_use"))
        assert isinstance(said, Succeeded)
        assert json.loads(said.text) == {"n": 1, "w": "ü"}
        assert said.parsed is None
    cut = outcome(succeeded({**given_, "input": {"n": 1}}, stop="max_tokens"))
    assert isinstance(cut, Failed)
    assert (cut.kind, cut.text) == (FailureKind.TRUNCATED, '{"n":1}')


def test_tools_that_are_called_are_an_answer() -> None:
    """They are told as chat completions tell them, alone or beside a text."""
    calls = [{"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"ü"}'}}]
    alone, beside = outcome(succeeded(CALL, stop="tool_use")), outcome(succeeded(TEXT, CALL, stop="tool_use"))
    assert isinstance(alone, Succeeded)
    assert isinstance(beside, Succeeded)
    assert json.loads(alone.text) == json.loads(alone.parsed or "") == json.loads(beside.parsed or "") == calls
    assert beside.text == "yes"


PAID = [
    ((TEXT,), "max_tokens", FailureKind.TRUNCATED, "yes"),
    ((THOUGHT,), "max_tokens", FailureKind.TRUNCATED, None),
    ((TEXT,), "model_context_window_exceeded", FailureKind.TRUNCATED, "yes"),
    ((TEXT,), "pause_turn", FailureKind.TRUNCATED, "yes"),
    ((), "refusal", FailureKind.CONTENT_FILTER, None),
    ((TEXT,), "refusal", FailureKind.CONTENT_FILTER, "yes"),
    ((), "end_turn", FailureKind.EMPTY, None),
    (({"type": "text", "text": " \n"},), "end_turn", FailureKind.EMPTY, " \n"),
    ((THOUGHT,), "end_turn", FailureKind.EMPTY, None),
]


@pytest.mark.parametrize(("content", "stop", "kind", "text"), PAID)
def test_what_is_no_whole_answer_was_paid_all_the_same(
    content: tuple[dict[str, Any], ...], stop: str, kind: FailureKind, text: str | None
) -> None:
    """Cut, refused or empty: the tokens are booked and what there is of a text is kept."""
    said = outcome(succeeded(*content, stop=stop))
    assert isinstance(said, Failed)
    assert (said.kind, said.text, said.usage, said.finish_reason) == (kind, text, READ, stop)


def test_a_refusal_says_why() -> None:
    """In the provider's own words, where it has any."""
    details = {"type": "refusal", "category": "bio", "explanation": "No."}
    said = outcome(succeeded(stop="refusal", stop_details=details))
    assert isinstance(said, Failed)
    assert said.message == "the model refused: No."


def test_an_answer_without_its_tokens_is_paid_by_nobody_knows_how_much() -> None:
    """A success lacks its usage; a paid failure says that it was billed."""
    bare = {key: value for key, value in message(TEXT).items() if key != "usage"}
    assert outcome(line({"type": "succeeded", "message": bare})) == Succeeded("yes", None, "end_turn", "claude-x")
    said = outcome(line({"type": "succeeded", "message": {**bare, "stop_reason": "max_tokens"}}))
    assert said.usage == Usage(0, 0, estimated=True)
    for slip in (-1, 1 << 60, "7", True, None):
        said = outcome(line({"type": "succeeded", "message": message(TEXT, usage={**USAGE, "input_tokens": slip})}))
        assert said.usage is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("invalid_request_error", FailureKind.BAD_REQUEST), ("authentication_error", FailureKind.BAD_REQUEST),
        ("billing_error", FailureKind.BAD_REQUEST), ("permission_error", FailureKind.BAD_REQUEST),
        ("not_found_error", FailureKind.BAD_REQUEST), ("rate_limit_error", FailureKind.RATE_LIMIT),
        ("timeout_error", FailureKind.SERVER_ERROR), ("api_error", FailureKind.SERVER_ERROR),
        ("overloaded_error", FailureKind.SERVER_ERROR), ("never_heard_of", FailureKind.SERVER_ERROR),
    ],
)  # fmt: skip
def test_an_errored_row_is_free_and_says_whether_to_try_again(kind: str, expected: FailureKind) -> None:
    """By its type, which lies within two errors, or within one."""
    inner = {"type": kind, "message": "why"}
    for error in ({"type": "error", "error": inner, "request_id": None}, inner):
        assert outcome(line({"type": "errored", "error": error})) == Failed(expected, f"{kind}: why")


@pytest.mark.parametrize(
    "result",
    [None, 5, {}, {"type": "new"}, {"type": "succeeded"}, {"type": "succeeded", "message": {"content": "x"}},
     {"type": "errored"}, {"type": "errored", "error": "x"}, {"type": "succeeded", "message": "<html>"}],
)  # fmt: skip
def test_a_result_of_an_odd_shape_is_a_failure(result: Any) -> None:
    """Nothing that a line holds is taken for an answer unless it is one."""
    said = outcome(line(result))
    assert isinstance(said, Failed)
    assert said.kind is FailureKind.SERVER_ERROR


def test_an_answer_in_almost_json_is_kept() -> None:
    """NaN and lone surrogates do not lose what was paid for."""
    raw = succeeded({"type": "text", "text": "yes\ud800"}).replace(b'"claude-x"', b'"claude-x", "x": NaN')
    assert outcome(raw) == Succeeded("yes�", READ, "end_turn", "claude-x")


BLOCKS = st.sampled_from([TEXT, THOUGHT, HIDDEN, {"type": "text", "text": ""}, {"type": "text", "text": " "}, CALL,
                          {"type": "tool_use", "id": "u", "name": ANSWER_TOOL, "input": {"n": 1}},
                          {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}])  # fmt: skip
STOPS = st.sampled_from(["end_turn", "stop_sequence", "tool_use", "max_tokens", "refusal", "new_reason", None])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.lists(BLOCKS, max_size=3), STOPS, st.booleans()), min_size=1, max_size=4),
    st.sampled_from([None, b"{}\n", b"\n", line({"type": "expired"})]),
)
def test_many_lines_say_what_each_says(said: list[tuple[list[dict[str, Any]], Any, bool]], odd: bytes | None) -> None:
    """Decoded at once they are the same answers; what is not plain is left to one by one."""
    lines = [
        line(
            {"type": "succeeded", "message": message(*content, stop=stop)},
            f"t-1-{n}",
            **({"duration_s": 1.5} if live else {}),
        )
        for n, (content, stop, live) in enumerate(said)
    ]
    each = [decode_line(one) for one in lines]
    found = decode_plain(lines if odd is None else [*lines, odd])
    if found is None:
        return
    assert odd is None
    usages = map(Usage, found.input_tokens, found.output_tokens, found.cached_tokens, found.cache_write_tokens)
    outcomes = map(Succeeded, found.texts, usages, found.finish_reasons, found.models)
    assert list(map(Answer, found.custom_ids, outcomes, found.durations_s)) == each


@pytest.mark.parametrize("content", [(TEXT,), (THOUGHT, TEXT), ({**CALL, "name": ANSWER_TOOL},)])
def test_plain_answers_are_decoded_at_once(content: tuple[dict[str, Any], ...]) -> None:
    """Nearly all lines are a text, perhaps after thoughts, or an answer to a schema: these take the fast way."""
    raw = succeeded(*content, stop="end_turn" if content[-1] is TEXT else "tool_use")
    found = decode_plain([raw, raw])
    assert found is not None
    assert (found.input_tokens, found.cached_tokens, found.cache_write_tokens) == ([10, 10], [2, 2], [3, 3])


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=80), status=st.integers(100, 599))
def test_any_bytes_survive_the_journal(body: bytes, status: int) -> None:
    """Whatever a live call brings back is one line that ends its row, and never an answer."""
    raw = reply_line("t-1-0", LiveReply(status, body), 0.5)
    assert raw.count(b"\n") == 1
    answer = decode_line(raw)
    assert (answer.custom_id, answer.duration_s) == ("t-1-0", 0.5)
    assert isinstance(answer.outcome, Failed)


def test_an_error_within_a_success_counts_by_its_type() -> None:
    """A gateway may say 200 to what is none: nothing was billed."""
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
    said = decode_line(reply_line("t-1-0", LiveReply(200, body), 0.5)).outcome
    assert said == Failed(FailureKind.SERVER_ERROR, "overloaded_error: busy")
