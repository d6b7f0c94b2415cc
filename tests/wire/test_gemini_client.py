"""Google's own client judges the simulator's Gemini format."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemini_kit import EMBEDDER, MODEL, lines, request, root
from google import genai
from google.genai import errors, types
from simulator_kit import fast, jsonl, set_faults

from nightmill.simulator import in_thread

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*experimental:Warning"
)  # what the client says of embeddings in batches

_OVER = frozenset(("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"))


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url


def _client(url: str, version: str | None = None, key: str = "gm-test") -> genai.Client:
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=root(url), api_version=version))


@pytest.fixture(params=[None, "v1beta"])
def client(base: str, request: pytest.FixtureRequest) -> Iterator[genai.Client]:
    """As it comes (v1), and at v1beta."""
    with _client(base, request.param) as made:
        yield made


def _sent(client: genai.Client, content: bytes, **config: Any) -> types.File:
    return client.files.upload(
        file=io.BytesIO(content), config=types.UploadFileConfig(mime_type="application/jsonl", **config)
    )


def _finished(client: genai.Client, name: str | None) -> types.BatchJob:
    for _ in range(5000):
        job = client.batches.get(name=name or "")
        if job.state is not None and job.state.name in _OVER:
            return job
    raise AssertionError("the batch never ended")


def _state(job: types.BatchJob) -> str:
    assert job.state is not None
    return job.state.name


@pytest.mark.req("X11")
def test_a_batch_from_upload_to_download(client: genai.Client, tmp_path: Path) -> None:
    """The client can upload a file, create, poll to the end, and read one line for each request."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(lines(30)))
    file = client.files.upload(file=source, config={"mime_type": "application/jsonl", "display_name": "abc.1"})
    assert (file.size_bytes, file.display_name) == (source.stat().st_size, "abc.1")
    job = client.batches.create(model=MODEL, src=file.name or "", config={"display_name": "abc.1"})
    assert (_state(job), job.display_name, job.model) == ("JOB_STATE_PENDING", "abc.1", f"models/{MODEL}")
    ended = _finished(client, job.name)
    assert _state(ended) == "JOB_STATE_SUCCEEDED"
    assert ended.dest is not None
    assert ended.end_time is not None
    assert ended.create_time is not None
    assert ended.create_time <= ended.end_time
    raw = client.files.download(file=ended.dest.file_name or "")
    found = [json.loads(line) for line in raw.splitlines()]
    assert [line["key"] for line in found] == [f"shard-{i}" for i in range(30)]
    answers = [types.GenerateContentResponse.model_validate(line["response"]) for line in found]
    assert all(answer.text for answer in answers)
    assert {answer.model_version for answer in answers} == {MODEL}
    for answer in answers:
        usage = answer.usage_metadata
        assert usage is not None
        assert usage.total_token_count == (usage.prompt_token_count or 0) + (usage.candidates_token_count or 0)


def test_a_file_has_the_name_its_owner_gave_it(client: genai.Client) -> None:
    """An own name is kept, found again with the digest of its bytes, taken for others, and free once deleted."""
    content, name = b"{}\n" * 7, f"files/own-{hashlib.sha256(repr(client).encode()).hexdigest()[:8]}"
    file = _sent(client, content, name=name)
    assert file.name == name
    again = client.files.get(name=name)
    assert again.sha256_hash == base64.b64encode(hashlib.sha256(content).hexdigest().encode()).decode()
    assert again.expiration_time is not None
    assert again.create_time is not None
    assert (again.expiration_time - again.create_time).total_seconds() == 48 * 3600
    with pytest.raises(errors.ClientError) as taken:
        _sent(client, content, name=name)
    assert (taken.value.code, taken.value.status) == (409, "ALREADY_EXISTS")
    with pytest.raises(ValueError, match="uploaded files can't be downloaded"):
        client.files.download(file=again)
    client.files.delete(name=name)
    with pytest.raises(errors.ClientError) as gone:
        client.files.delete(name=name)
    assert gone.value.code == 403
    assert _sent(client, content, name=name).name == name
    client.files.delete(name=name)


def test_an_upload_of_several_chunks_keeps_its_bytes(base: str) -> None:
    """The client sends 8 MiB at a time; what is used as a batch afterwards is the whole of it."""
    padding = "x" * 1_000_000
    content = jsonl([{"key": str(i), "request": request(padding)} for i in range(9)])
    with _client(base) as client:
        file = _sent(client, content)
        assert file.size_bytes == len(content) > 8 * 1024 * 1024
        ended = _finished(client, client.batches.create(model=MODEL, src=file.name or "").name)
        assert ended.dest is not None
        assert client.files.download(file=ended.dest.file_name or "").count(b"\n") == 9


def test_a_batch_without_a_file(client: genai.Client) -> None:
    """Inline requests are answered inline, in their order, with their metadata."""
    asked = [
        types.InlinedRequest(
            contents=f"question {i}",
            metadata={"key": f"row-{i}"},
            config=types.GenerateContentConfig(system_instruction="be brief", max_output_tokens=5),
        )
        for i in range(4)
    ]
    ended = _finished(client, client.batches.create(model=MODEL, src=asked, config={"display_name": "inline"}).name)
    assert ended.dest is not None
    answers = ended.dest.inlined_responses or []
    assert [(answer.metadata or {})["key"] for answer in answers] == [f"row-{i}" for i in range(4)]
    for answer in answers:
        assert answer.response is not None
        assert answer.response.usage_metadata is not None
        assert answer.response.usage_metadata.candidates_token_count == 5
        assert answer.response.candidates is not None
        assert answer.response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


def test_a_cancelled_batch_has_no_results(client: genai.Client) -> None:
    """A cancel ends the batch, nothing of it comes back, and a cancel of what has ended is refused."""
    with in_thread(fast(batch_s=10_000.0)) as slow, _client(slow) as other:
        name = other.batches.create(model=MODEL, src=_sent(other, jsonl(lines(10))).name or "").name or ""
        other.batches.cancel(name=name)
        ended = _finished(other, name)
        assert _state(ended) == "JOB_STATE_CANCELLED"
        assert ended.dest is None
        with pytest.raises(errors.ClientError) as refused:
            other.batches.cancel(name=name)
        assert refused.value.status == "FAILED_PRECONDITION"


def test_batches_are_listed_page_by_page_and_can_be_deleted(base: str) -> None:
    """Pages show every batch once, the newest first; a deleted batch and its results are gone."""
    with in_thread(fast()) as own, _client(own) as client:
        source = _sent(client, jsonl(lines(1))).name or ""
        made = [
            client.batches.create(model=MODEL, src=source, config={"display_name": f"n{i}"}).name or ""
            for i in range(5)
        ]
        seen = list(client.batches.list(config={"page_size": 2}))
        assert [(job.name, job.display_name) for job in seen] == [(name, f"n{i}") for i, name in enumerate(made)][::-1]
        ended = _finished(client, made[0])
        client.batches.delete(name=made[0])
        assert [job.name for job in client.batches.list()] == made[:0:-1]
        with pytest.raises(errors.ClientError) as gone:
            client.batches.get(name=made[0])
        assert gone.value.code == 404
        assert ended.dest is not None
        with pytest.raises(errors.ClientError):
            client.files.download(file=ended.dest.file_name or "")


@pytest.mark.req("X11")
def test_live_answers(client: genai.Client) -> None:
    """An answer is the same for the same request, honours its cap, and gives as many candidates as asked."""
    first = client.models.generate_content(model=MODEL, contents="grüezi")
    assert first.text == client.models.generate_content(model=MODEL, contents="grüezi").text
    cut = client.models.generate_content(
        model=MODEL,
        contents="grüezi",
        config=types.GenerateContentConfig(max_output_tokens=5, candidate_count=3, temperature=0.3),
    )
    assert [each.finish_reason for each in cut.candidates or ()] == [types.FinishReason.MAX_TOKENS] * 3
    assert cut.usage_metadata is not None
    assert cut.usage_metadata.candidates_token_count == 15


def test_thoughts_are_counted_apart_from_the_candidates(client: genai.Client) -> None:
    """A model that thinks says so in the usage, beside the candidates and in the total, within the cap."""
    config = types.GenerateContentConfig(
        max_output_tokens=40, thinking_config=types.ThinkingConfig(thinking_budget=1024)
    )
    usage = client.models.generate_content(model=MODEL, contents="think", config=config).usage_metadata
    assert usage is not None
    prompt, said, thought = usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count
    assert prompt
    assert said
    assert thought
    assert said + thought <= 40
    assert usage.total_token_count == prompt + said + thought


@pytest.mark.parametrize("field", ["response_schema", "response_json_schema"])
def test_answers_fit_a_schema(client: genai.Client, field: str) -> None:
    """Either way of giving a schema makes an answer of that shape."""
    schema = {
        "type": "object",
        "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}, "score": {"type": "integer", "maximum": 5}},
        "required": ["mood", "score"],
    }
    config = types.GenerateContentConfig.model_validate({"response_mime_type": "application/json", field: schema})
    said = json.loads(client.models.generate_content(model=MODEL, contents="rate", config=config).text or "")
    assert said["mood"] in ("good", "bad")
    assert said["score"] <= 5


def test_a_forced_function_call(client: genai.Client) -> None:
    """A function the caller insists on is called with arguments that fit."""
    declared = types.FunctionDeclaration(
        name="note",
        parameters=types.Schema(type=types.Type.OBJECT, properties={"word": {"type": "STRING"}}, required=["word"]),
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config={"function_calling_config": {"mode": "ANY"}},
    )
    calls = client.models.generate_content(model=MODEL, contents="go", config=config).function_calls or []
    assert [call.name for call in calls] == ["note"]
    assert isinstance((calls[0].args or {})["word"], str)


def test_live_embeddings(client: genai.Client) -> None:
    """Each text gets its vector, of the length asked for."""
    made = client.models.embed_content(
        model=EMBEDDER, contents=["a", "b"], config=types.EmbedContentConfig(output_dimensionality=12)
    )
    vectors = [item.values or [] for item in made.embeddings or ()]
    assert [len(vector) for vector in vectors] == [12, 12]
    assert vectors[0] != vectors[1]
    assert math.isclose(math.hypot(*vectors[0]), 1, abs_tol=1e-5)


@pytest.mark.parametrize("inline", [False, True])
def test_embeddings_in_a_batch(client: genai.Client, inline: bool) -> None:
    """Embeddings come from a file into a file, and from inline requests inline, by position."""
    if inline:
        source = types.EmbeddingsBatchJobSource(
            inlined_requests=types.EmbedContentBatch(contents=["a", "b"], config={"output_dimensionality": 6})
        )
    else:
        asked = [
            {"key": word, "request": {"content": {"parts": [{"text": word}]}, "output_dimensionality": 6}}
            for word in "ab"
        ]
        source = types.EmbeddingsBatchJobSource(file_name=_sent(client, jsonl(asked)).name)
    ended = _finished(client, client.batches.create_embeddings(model=EMBEDDER, src=source).name)
    assert _state(ended) == "JOB_STATE_SUCCEEDED"
    assert ended.dest is not None
    if inline:
        found = [item.response.embedding.values for item in ended.dest.inlined_embed_content_responses or ()]  # type: ignore[union-attr]
    else:
        raw = client.files.download(file=ended.dest.file_name or "")
        answers = {line["key"]: line["response"] for line in map(json.loads, raw.splitlines())}
        found = [types.SingleEmbedContentResponse.model_validate(answers[key]).embedding.values for key in "ab"]  # type: ignore[union-attr]
    live = client.models.embed_content(model=EMBEDDER, contents=["a", "b"], config={"output_dimensionality": 6})
    assert found == [item.values for item in live.embeddings or ()]


def test_tokens_are_counted(client: genai.Client) -> None:
    """A count agrees with what an answer to the same prompt says."""
    counted = client.models.count_tokens(model=MODEL, contents="how many are these")
    usage = client.models.generate_content(model=MODEL, contents="how many are these").usage_metadata
    assert usage is not None
    assert counted.total_tokens == usage.prompt_token_count


def test_models_can_be_listed(client: genai.Client) -> None:
    """Every page of the list, and a single model."""
    names = [model.name for model in client.models.list(config={"page_size": 7})]
    assert f"models/{MODEL}" in names
    assert len(set(names)) == len(names) > 7
    assert client.models.get(model=MODEL).name == f"models/{MODEL}"


# --- refusals, as the client's error classes tell them ---


def test_a_bad_key_is_a_400(base: str) -> None:
    """Not a 401: the reason is in the details."""
    with _client(base, key="sk-wrong") as client, pytest.raises(errors.ClientError) as bad:
        client.models.generate_content(model=MODEL, contents="x")
    assert (bad.value.code, bad.value.status) == (400, "INVALID_ARGUMENT")
    assert bad.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_an_unknown_model_is_a_404(client: genai.Client) -> None:
    """Live and in a create."""
    with pytest.raises(errors.ClientError) as live:
        client.models.generate_content(model="gemini-none", contents="x")
    source = _sent(client, jsonl(lines(1))).name or ""
    with pytest.raises(errors.ClientError) as batch:
        client.batches.create(model="gemini-none", src=source)
    assert [(each.value.code, each.value.status) for each in (live, batch)] == [(404, "NOT_FOUND")] * 2


def test_a_malformed_row_fails_the_create(base: str) -> None:
    """Nothing runs and nothing is listed."""
    with in_thread(fast()) as own, _client(own) as client:
        for bad in ({"key": "b", "request": {"contents": []}}, {"key": "b", "request": {"prompt": "x"}}, "no object"):
            source = _sent(client, jsonl([*lines(2), bad])).name or ""
            with pytest.raises(errors.ClientError) as refused:
                client.batches.create(model=MODEL, src=source)
            assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")
        assert list(client.batches.list()) == []


def test_enqueued_tokens_are_refused_at_once(base: str) -> None:
    """A create beyond the queue of its model answers 429, and fits once another batch has ended."""
    with in_thread(fast(enqueued_tokens=100, batch_s=10_000.0)) as own, _client(own) as client:
        source = _sent(client, jsonl(lines(10))).name or ""
        first = client.batches.create(model=MODEL, src=source)
        with pytest.raises(errors.ClientError) as full:
            client.batches.create(model=MODEL, src=source)
        assert (full.value.code, full.value.status) == (429, "RESOURCE_EXHAUSTED")
        client.batches.cancel(name=first.name or "")
        _finished(client, first.name)
        assert client.batches.create(model=MODEL, src=source).name


def test_a_429_says_how_long_to_wait(base: str) -> None:
    """RetryInfo is in its details; a server's error is another class."""
    with _client(base) as client:
        set_faults(base, {"fault": "live_429", "count": 1, "retry_after": 37})
        with pytest.raises(errors.ClientError) as wait:
            client.models.generate_content(model=MODEL, contents="x")
        told = {item["@type"].rpartition(".")[2]: item for item in wait.value.details["error"]["details"]}
        assert told["RetryInfo"]["retryDelay"] == "37s"
        set_faults(base, {"fault": "live_500", "count": 1, "status": 503})
        with pytest.raises(errors.ServerError) as down:
            client.models.generate_content(model=MODEL, contents="x")
        assert (down.value.code, down.value.status) == (503, "UNAVAILABLE")
        set_faults(base)


def test_a_blocked_prompt_has_no_candidates(base: str) -> None:
    """A refusal is a 200 whose prompt feedback says why."""
    with _client(base) as client:
        set_faults(base, {"fault": "refusal_answers", "times": 1})
        said = client.models.generate_content(model=MODEL, contents="x")
        assert said.candidates is None
        assert said.prompt_feedback is not None
        assert said.prompt_feedback.block_reason == types.BlockedReason.SAFETY
        set_faults(base)
