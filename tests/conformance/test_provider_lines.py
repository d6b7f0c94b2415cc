"""What every provider promises of requests and answers, whichever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialects import MAKERS, Dialect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.errors import CannotCarry
from nightmill.plan import content_of
from nightmill.providers import BatchProvider, LiveProvider, LiveReply, Provider
from nightmill.types import Answer, Failed, FailureKind, Succeeded, Usage
from nightmill.wire import body_of

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=40).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
custom_ids = st.from_regex(r"[a-zA-Z0-9_-]{1,60}-[0-9]{1,3}", fullmatch=True)


@pytest.fixture(params=sorted(MAKERS))
def provider(request: pytest.FixtureRequest) -> Provider:
    return MAKERS[request.param][0]()


@pytest.fixture
def dialect(provider: Provider) -> Dialect:
    return MAKERS[provider.name][1]


def chat(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_completion_tokens": 9}


USAGE = Usage(7, 3, cached_tokens=2)  # of every answer that has one


def test_a_provider_says_what_it_can_by_what_it_is(provider: Provider) -> None:
    """One that can batch has room in its limits for a batch, and each can do something."""
    assert isinstance(provider, BatchProvider | LiveProvider)
    assert isinstance(provider, BatchProvider) == (provider.limits.batch_requests > 0)
    assert provider.limits.concurrency > 0


def test_an_account_never_holds_the_key(provider: Provider) -> None:
    """Whose money it is can be written anywhere."""
    assert "sk-secret" not in provider.account.id
    assert provider.account.id.startswith(provider.name + "|")
    assert provider.account == MAKERS[provider.name][0]().account


@quick
@given(text=texts)
def test_a_body_is_one_line_that_says_what_was_asked(provider: Provider, dialect: Dialect, text: str) -> None:
    """Any text comes out as it went in, the cap is explicit, and equal requests give equal bytes."""
    encoded = provider.encode(chat(text))
    assert b"\n" not in encoded.body
    assert b"\r" not in encoded.body
    assert dialect.asked(json.loads(encoded.body)) == (text, encoded.cap_tokens)
    assert provider.encode(chat(text)) == encoded


@quick
@given(system=texts, text=texts)
def test_an_estimate_sees_all_that_is_asked(provider: Provider, system: str, text: str) -> None:
    """Whatever the shape of a body, what it says and the schema it is bound to are counted before it is priced."""
    schema = {"type": "object", "properties": {"a_long_name_of_a_property": {"type": "string"}}}
    asked = {**chat(text), "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    asked["messages"].insert(0, {"role": "system", "content": f"s{system}"})
    said = content_of(provider.encode(asked).body)
    assert text in said
    assert f"s{system}" in said
    assert "a_long_name_of_a_property" in said


@pytest.mark.parametrize("request_", [{"model": "m"}, {"model": "m", "messages": []}])
def test_a_request_that_asks_nothing_is_refused(provider: Provider, request_: dict[str, Any]) -> None:
    """Before it costs anything, and with a reason."""
    with pytest.raises(CannotCarry) as refused:
        provider.encode(request_)
    assert refused.value.what


@quick
@given(custom_id=custom_ids, text=texts)
def test_a_shard_line_is_made_of_pieces(provider: Provider, dialect: Dialect, custom_id: str, text: str) -> None:
    """before + id + between + body + after is one JSON line that names the request and holds its body."""
    encoded = provider.encode(chat(text))
    before, between, after = provider.line_pieces(encoded.url)
    line = before + json.dumps(custom_id).encode() + between + encoded.body + after
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert dialect.sent(json.loads(line)) == (custom_id, json.loads(encoded.body))
    assert body_of(line) == encoded.body


@quick
@given(custom_id=custom_ids, text=texts.filter(str.strip), spaced=st.booleans(), took=st.floats(0, 1e4))
def test_an_answer_is_read_back_as_it_came(
    provider: Provider, dialect: Dialect, custom_id: str, text: str, spaced: bool, took: float
) -> None:
    """Pretty-printed or not, the line is one line and decodes to the same words, tokens and model."""
    body = json.dumps(dialect.answer(text, "stop", True), indent=2 if spaced else None).encode()
    if spaced:
        body = body.replace(b"\n", b"\r\n")
    line = provider.reply_line(custom_id, LiveReply(200, body), took)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    answer = provider.decode(line)
    assert answer.custom_id == custom_id
    assert answer.outcome == Succeeded(text, USAGE, dialect.stop, "snapshot")
    assert answer.duration_s == pytest.approx(took, abs=1e-3)


def _body(provider: Provider, dialect: Dialect, said: tuple[str, str, bool] | None) -> bytes:
    return provider.error_body("m") if said is None else json.dumps(dialect.answer(*said)).encode()


LINES = st.sampled_from(
    [
        (200, ("yes", "stop", True)),
        (200, ("no usage", "stop", False)),
        (200, ("cut", "length", True)),
        (200, (" ", "stop", True)),
        (500, None),
    ]
)


@quick
@given(
    st.lists(LINES, min_size=1, max_size=4),
    st.sampled_from([None, b"", b"\n", b"{}\n", b'{"custom_id":"t-9"', b'{"key":"t-9"', b"x\n"]),
)
def test_lines_together_say_what_each_says(
    provider: Provider, dialect: Dialect, replies: list[tuple[int, tuple[str, str, bool] | None]], odd: bytes | None
) -> None:
    """Decoded at once or one by one, plain answers are the same; anything else among them is left to one by one."""
    lines = [
        provider.reply_line(f"t-{n}", LiveReply(status, _body(provider, dialect, said)), 0.5)
        for n, (status, said) in enumerate(replies)
    ]
    each = [provider.decode(line) for line in lines]
    if odd is not None:
        lines = [odd, *lines]
    found = provider.decode_plain(lines)
    is_plain = all(isinstance(a.outcome, Succeeded) and a.outcome.usage for a in each) and odd is None
    assert (found is not None) == is_plain
    if found is not None:
        tokens = zip(
            found.input_tokens, found.output_tokens, found.cached_tokens, found.cache_write_tokens, strict=True
        )
        usages = [Usage(*numbers) for numbers in tokens]
        outcomes = map(Succeeded, found.texts, usages, found.finish_reasons, found.models)
        assert [Answer(*all_) for all_ in zip(found.custom_ids, outcomes, found.durations_s, strict=True)] == each


@quick
@given(body=st.binary(max_size=60), status=st.sampled_from([200, 400, 404, 429, 500, 502, 503]))
def test_whatever_comes_back_is_kept_and_ends_the_row(provider: Provider, body: bytes, status: int) -> None:
    """No body breaks the journal: it is one line, and decoding says failure, never raises, never invents an answer."""
    line = provider.reply_line("t-1", LiveReply(status, body), 0.5)
    assert line.count(b"\n") == 1
    answer = provider.decode(line)
    assert answer.custom_id == "t-1"
    assert isinstance(answer.outcome, Failed)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FailureKind.BAD_REQUEST),
        (429, FailureKind.RATE_LIMIT),
        (408, FailureKind.SERVER_ERROR),
        (409, FailureKind.SERVER_ERROR),
        (500, FailureKind.SERVER_ERROR),
        (503, FailureKind.SERVER_ERROR),
        (0, FailureKind.SERVER_ERROR),
    ],
)
def test_an_error_body_is_in_the_providers_own_shape(provider: Provider, status: int, kind: FailureKind) -> None:
    """What we write in a provider's place is read back with its words, and its kind is that of its status."""
    body = provider.error_body('it said "no"\n<at line 3>')
    outcome = provider.decode(provider.reply_line("t-1", LiveReply(status, body), 0.0)).outcome
    assert isinstance(outcome, Failed)
    assert 'it said "no"' in outcome.message
    assert outcome.kind is kind
    assert outcome.usage is None


@pytest.mark.parametrize(
    ("text", "finish", "kind"),
    [("half an ans", "length", FailureKind.TRUNCATED), ("", "stop", FailureKind.EMPTY),
     ("", "content_filter", FailureKind.CONTENT_FILTER)],
)  # fmt: skip
def test_a_paid_answer_that_is_none_is_a_paid_failure(
    provider: Provider, dialect: Dialect, text: str, finish: str, kind: FailureKind
) -> None:
    """Cut, empty or withheld: the text is kept, the tokens are paid."""
    body = json.dumps(dialect.answer(text, finish, True)).encode()
    outcome = provider.decode(provider.reply_line("t-1", LiveReply(200, body), 0.0)).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.usage, outcome.text or "") == (kind, USAGE, text)


@quick
@given(cut=st.integers(1, 80))
def test_a_torn_line_is_no_result(provider: Provider, dialect: Dialect, cut: int) -> None:
    """Half a line is never taken for an answer."""
    line = provider.reply_line("t-1", LiveReply(200, json.dumps(dialect.answer("yes", "stop", True)).encode()), 0.0)
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        provider.decode(line[: -1 - cut])


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"null\n", b"[]\n", b"{}\n", b'"text"\n', b'{"custom_id":5}\n', b'{"key":5}\n', b"\xff\n"],
)
def test_what_names_no_request_is_no_result_line(provider: Provider, line: bytes) -> None:
    """A line without a custom_id is an error of the file, not of a row."""
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        provider.decode(line)


NOBODYS = (
    (200, b"{}", False),
    (200, b"[]", False),
    (504, b'{"message": "Endpoint request timed out"}', False),
    (502, b'{"error": "bad gateway"}', False),
    (500, b"", False),
)


@pytest.mark.parametrize(
    ("name", "status", "body", "own"),
    [(name, *said) for name, (_, dialect) in MAKERS.items() for said in (*dialect.own, *NOBODYS)],
)
def test_a_provider_knows_its_own_words(name: str, status: int, body: bytes, own: bool) -> None:
    """An answer in its shape, or its own error: anything else was said by something in between."""
    provider = MAKERS[name][0]()
    assert isinstance(provider, LiveProvider)
    assert provider.is_own(LiveReply(status, body)) is own


def test_an_own_error_is_a_providers_own_words(provider: Provider) -> None:
    """What a provider writes for a request it refused it takes for its own."""
    assert isinstance(provider, LiveProvider)
    assert provider.is_own(LiveReply(500, provider.error_body("it broke")))
