"""`/v1/responses` of the simulator, judged by OpenAI's client and document, and read by our own decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from simulator_kit import MODEL, fast, jsonl, judge, line

from nightmill.providers._openai_shape import decode_line
from nightmill.simulator import in_thread
from nightmill.types import Failed, FailureKind, Succeeded, Usage

RESPONSES = "/v1/responses"
SEATS = {"type": "object", "properties": {"seats": {"type": "integer"}}, "required": ["seats"]}
TOOL = {"type": "function", "name": "book", "strict": True, "parameters": SEATS}


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base, api_key="sk-test", max_retries=0) as made:
        yield made


def _ours(response: Any) -> Any:
    """What our decoder makes of a response object in a result line."""
    body = response.model_dump(mode="json", exclude_unset=True)
    raw = {"id": "b", "custom_id": "r-1", "response": {"status_code": 200, "request_id": "r", "body": body}}
    return decode_line(json.dumps(raw).encode()).outcome


@pytest.mark.req("X13", "X11")
def test_the_official_client_reads_what_is_simulated_as_we_do(client: openai.OpenAI) -> None:
    """Text, usage, a cut answer and tool calls mean the same to OpenAI's client, its document and our decoder."""
    asked: Any = [{"role": "developer", "content": "be short"}, {"role": "user", "content": "what is a mill?"}]
    whole = client.responses.create(model=MODEL, input=asked, instructions="in prose")
    assert judge("Response", whole.model_dump(mode="json", exclude_unset=True)) == []
    assert whole.usage is not None
    assert _ours(whole) == Succeeded(
        whole.output_text, Usage(whole.usage.input_tokens, whole.usage.output_tokens), "stop", MODEL
    )
    cut = client.responses.create(model=MODEL, input="what is a mill?", max_output_tokens=2)
    assert judge("Response", cut.model_dump(mode="json", exclude_unset=True)) == []
    assert (cut.status, _ours(cut).kind, _ours(cut).text) == ("incomplete", FailureKind.TRUNCATED, cut.output_text)
    called = client.responses.create(model=MODEL, input="two seats", tools=[TOOL], tool_choice="required")  # type: ignore[list-item]
    assert judge("Response", called.model_dump(mode="json", exclude_unset=True)) == []
    made = json.loads(_ours(called).text)[0]["function"]
    assert (made["name"], list(json.loads(made["arguments"]))) == ("book", ["seats"])
    assert made["arguments"] == called.output[0].arguments  # type: ignore[union-attr]


def test_a_format_is_kept_to(client: openai.OpenAI) -> None:
    """A JSON schema under text.format is answered by JSON that fits it."""
    form: Any = {"format": {"type": "json_schema", "name": "seats", "schema": TOOL["parameters"]}}
    made = client.responses.create(model=MODEL, input="how many?", text=form)
    assert isinstance(json.loads(made.output_text)["seats"], int)


def test_batches_of_responses_are_served(client: openai.OpenAI) -> None:
    """The Batch API takes the endpoint, and its lines hold response objects."""
    rows = jsonl(line(f"r-{i}", {"model": MODEL, "input": f"row {i}"}, RESPONSES) for i in range(3))
    file = client.files.create(file=("in.jsonl", rows), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    while batch.status not in ("completed", "failed"):
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    lines = client.files.content(batch.output_file_id or "").read().splitlines()
    assert {decode_line(raw).custom_id for raw in lines} == {"r-0", "r-1", "r-2"}
    assert all(judge("Response", json.loads(raw)["response"]["body"]) == [] for raw in lines)


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"input": "x", "stream": True}, "not.*streams|Neither streams"), ({"input": "x", "background": True}, "Neither"),
     ({"input": "x", "tools": [{"type": "web_search"}]}, "web_search"), ({}, "input")],
)  # fmt: skip
def test_what_is_not_simulated_is_refused(base: str, asked: dict[str, Any], why: str) -> None:
    """A request that the simulator cannot answer as OpenAI would is refused, not answered some other way."""
    with (
        openai.OpenAI(base_url=base, api_key="sk-test", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match=why),
    ):
        client.post("/responses", body={"model": MODEL, **asked}, cast_to=object)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("truncated_answers", FailureKind.TRUNCATED), ("refusal_answers", FailureKind.CONTENT_FILTER),
     ("empty_answers", FailureKind.EMPTY)],
)  # fmt: skip
def test_faults_of_answers_hit_responses_too(fault: str, kind: FailureKind) -> None:
    """Cut, refused and empty answers come here as they do from chat completions."""
    with in_thread(fast(faults=({"fault": fault},))) as url, openai.OpenAI(base_url=url, api_key="sk-test") as client:
        got = _ours(client.responses.create(model=MODEL, input="a question"))
    assert isinstance(got, Failed)
    assert got.kind is kind
    assert got.usage is not None
