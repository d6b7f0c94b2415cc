"""Several rows in one live call: put together, taken apart, and paid for to the last token."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.providers import LiveReply
from nightmill.providers._joining import JoinsGemini, JoinsOpenAI, shares
from nightmill.providers._openai_shape import decode_line, reply_line

pytestmark = pytest.mark.req("X9")


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.lists(st.integers(1, 10**6), min_size=1, max_size=70))
def test_shares_are_in_proportion_and_none_is_lost(total: int, weights: list[int]) -> None:
    """The parts add up to the whole, and each is within one of its exact part."""
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part * sum(weights) - total * weight) < sum(weights) for part, weight in zip(parts, weights, strict=True)
    )


def test_openai_texts_go_in_one_input_and_come_back_each_alone() -> None:
    """What all requests say is said once; an answer's order is that of its indexes."""
    joins = JoinsOpenAI()
    bodies = [json.dumps({"model": "m", "input": text, "dimensions": 2}).encode() for text in ("a", 'ü"')]
    url, body = joins.joined("/v1/embeddings", bodies)
    assert (url, json.loads(body)) == ("/v1/embeddings", {"model": "m", "input": ["a", 'ü"'], "dimensions": 2})
    data = [{"object": "embedding", "index": i, "embedding": [i, 0.5]} for i in (1, 0)]
    told = {"object": "list", "data": data, "model": "m-1", "usage": {"prompt_tokens": 4, "total_tokens": 5}}
    parts = joins.parted(LiveReply(200, json.dumps(told).encode()), [1, 3])
    assert parts is not None
    answers = [decode_line(reply_line("x-0", part, 1.0)).outcome for part in parts]
    assert [json.loads(answer.text or "") for answer in answers] == [[[0, 0.5]], [[1, 0.5]]]
    usages = [answer.usage for answer in answers]
    assert [(u.input_tokens, u.output_tokens) for u in usages if u] == [(1, 0), (3, 1)]
    assert {answer.model for answer in answers} == {"m-1"}


@pytest.mark.parametrize(
    "body",
    [
        b"no",
        b"{}",
        b'{"data":[{"index":0,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[2]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":2,"embedding":[2]}]}',
        b'{"embeddings":[{"values":[1]}]}',
    ],
)
def test_an_answer_that_has_not_one_vector_for_each_is_not_taken_apart(body: bytes) -> None:
    """Whose a vector is must be certain."""
    assert JoinsOpenAI().parted(LiveReply(200, body), [1, 1]) is None
    assert JoinsGemini().parted(LiveReply(200, body), [1, 1]) is None


def test_gemini_requests_each_name_their_model() -> None:
    """They go to batchEmbedContents as they are, and answers without a usage leave it to be estimated."""
    joins = JoinsGemini()
    one = {"content": {"parts": [{"text": "a"}]}}
    url, body = joins.joined("/v1beta/models/gemini-embedding-001:embedContent", [json.dumps(one).encode()] * 2)
    assert url == "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    assert json.loads(body) == {"requests": [{"model": "models/gemini-embedding-001", **one}] * 2}
    parts = joins.parted(LiveReply(200, b'{"embeddings":[{"values":[1]},{"values":[2]}]}'), [1, 1])
    assert parts is not None
    assert [json.loads(part.body) for part in parts] == [{"embedding": {"values": [1]}}, {"embedding": {"values": [2]}}]
