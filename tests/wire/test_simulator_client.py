"""OpenAI's own client, and OpenAI's own document, judge the simulator."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from simulator_kit import CHAT, EMBEDDINGS, MODEL, call, chat_lines, fast, invoice, jsonl, judge, line, openapi

from nightmill.simulator import in_thread

_COMPONENTS = (
    ("POST", r"/v1/files", "OpenAIFile"),
    ("GET", r"/v1/files", "ListFilesResponse"),
    ("GET", r"/v1/files/[^/]+", "OpenAIFile"),
    ("DELETE", r"/v1/files/[^/]+", "DeleteFileResponse"),
    ("POST", r"/v1/batches", "Batch"),
    ("GET", r"/v1/batches", "ListBatchesResponse"),
    ("GET", r"/v1/batches/[^/]+", "Batch"),
    ("POST", r"/v1/batches/[^/]+/cancel", "Batch"),
    ("POST", r"/v1/chat/completions", "CreateChatCompletionResponse"),
    ("POST", r"/v1/embeddings", "CreateEmbeddingResponse"),
    ("GET", r"/v1/models", "ListModelsResponse"),
    ("GET", r"/v1/models/.+", "Model"),
)


class _Judge:
    """Checks every JSON body the client receives."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def __call__(self, response: Any) -> None:
        if not response.headers.get("content-type", "").startswith("application/json"):
            return
        response.read()
        request = response.request
        component = "ErrorResponse"
        if response.status_code < 400:
            component = next(
                name
                for method, path, name in _COMPONENTS
                if method == request.method and re.fullmatch(path, request.url.path)
            )
        self.judged.append(component)
        body = response.json()
        if component == "CreateEmbeddingResponse":  # the document knows no base64, which its own client asks for
            for item in body["data"]:
                item["embedding"] = [0.0] if isinstance(item["embedding"], str) else item["embedding"]
        assert judge(component, body) == [], (request.method, request.url.path)


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url


@pytest.fixture
def seen() -> _Judge:
    return _Judge()


@pytest.fixture
def client(base: str, seen: _Judge) -> Iterator[openai.OpenAI]:
    hooks = {"response": [seen]}
    with openai.OpenAI(
        api_key="sk-test", base_url=base, max_retries=0, http_client=openai.DefaultHttpxClient(event_hooks=hooks)
    ) as made:
        yield made


def _finished(client: openai.OpenAI, batch_id: str) -> Any:
    for _ in range(5000):
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
    raise AssertionError("the batch never ended")


def _submit(client: openai.OpenAI, lines: list[dict[str, Any]], endpoint: str = CHAT, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
        **more,
    )


def test_the_document_needs_nulls_to_accept_its_own_example() -> None:
    """Reading a null as an absent key is what OpenAI's own example asks for, no softening of ours."""
    example = openapi()["batch_example"]
    assert example["errors"] is None
    assert judge("Batch", example) == []
    assert judge("Batch", {**example, "status": "done"}) != []


@pytest.mark.req("X11")
def test_a_batch_from_upload_to_download(client: openai.OpenAI, seen: _Judge) -> None:
    """The official client can upload, create, wait, and read one line for each request."""
    batch = _submit(client, chat_lines(30), metadata={"submission": "abc.1"})
    assert batch.status == "validating"
    assert batch.metadata == {"submission": "abc.1"}
    ended = _finished(client, batch.id)
    assert (ended.status, ended.model, ended.error_file_id) == ("completed", MODEL, None)
    assert ended.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    assert ended.expires_at == ended.created_at + 86_400
    stamps = [ended.created_at, ended.in_progress_at, ended.finalizing_at, ended.completed_at]
    assert stamps == sorted(stamps)
    lines = [json.loads(raw) for raw in client.files.content(ended.output_file_id).text.splitlines()]
    assert [item["custom_id"] for item in lines] == [f"shard-{i}" for i in range(30)]
    bodies = [item["response"]["body"] for item in lines]
    assert [judge("CreateChatCompletionResponse", body) for body in bodies] == [[]] * 30
    assert sum(body["usage"]["total_tokens"] for body in bodies) == ended.usage.total_tokens
    assert client.files.retrieve(ended.output_file_id).purpose == "batch_output"
    assert {"OpenAIFile", "Batch"} <= set(seen.judged)


def test_lists_are_newest_first_and_page(client: openai.OpenAI, seen: _Judge) -> None:
    """Paging by `after` shows every batch once, the newest first."""
    made = [_submit(client, chat_lines(1)).id for _ in range(5)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:5] == made[::-1]
    assert len(set(listed)) == len(listed)
    assert seen.judged.count("ListBatchesResponse") >= 3


def test_files_can_be_listed_found_and_deleted(client: openai.OpenAI, seen: _Judge) -> None:
    """Files page in either order, filter by purpose, and are gone once deleted."""
    made = [client.files.create(file=(f"{i}.jsonl", b"{}\n"), purpose="user_data").id for i in range(3)]
    assert [f.id for f in client.files.list(purpose="user_data", order="asc", limit=1)] == made
    assert [f.id for f in client.files.list(purpose="user_data", limit=2)] == made[::-1]
    assert client.files.delete(made[1]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[1])
    with pytest.raises(openai.NotFoundError):
        client.files.content(made[1])
    assert [f.filename for f in client.files.list(purpose="user_data")] == ["2.jsonl", "0.jsonl"]
    assert {"ListFilesResponse", "DeleteFileResponse", "ErrorResponse"} <= set(seen.judged)


def test_an_upload_keeps_its_bytes_and_its_expiry(client: openai.OpenAI) -> None:
    """Content comes back byte for byte, and expires_after becomes expires_at."""
    raw = "ünïcode\u2028 and \r\n".encode() * 100_000
    file = client.files.create(
        file=("näme.jsonl", raw), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.filename, file.expires_at) == (len(raw), "näme.jsonl", file.created_at + 3600)
    assert client.files.content(file.id).content == raw


def test_a_batch_can_be_cancelled(client: openai.OpenAI, base: str) -> None:
    """A cancelled batch passes through cancelling, and every row is in one of its two files."""
    with in_thread(fast(batch_s=10_000.0)) as slow, openai.OpenAI(api_key="k", base_url=slow, max_retries=0) as other:
        batch = _submit(other, chat_lines(10))
        while other.batches.retrieve(batch.id).status != "in_progress":
            time.sleep(0.02)
        assert other.batches.cancel(batch.id).status == "cancelling"
        ended = _finished(other, batch.id)
        assert ended.status == "cancelled"
        errors = [json.loads(raw) for raw in other.files.content(ended.error_file_id).text.splitlines()]
        assert {item["error"]["code"] for item in errors} == {"batch_cancelled"}
        assert len(errors) + ended.request_counts.completed == 10
        with pytest.raises(openai.ConflictError):
            other.batches.cancel(batch.id)


@pytest.mark.req("X11")
def test_live_chat(client: openai.OpenAI) -> None:
    """A live answer is the same for the same request, honours its cap, and gives as many choices as asked."""
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "grüezi"}]}
    first, again = client.chat.completions.create(**asked), client.chat.completions.create(**asked)
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(**asked, max_completion_tokens=5, n=3)
    assert [choice.finish_reason for choice in cut.choices] == ["length"] * 3
    assert len({choice.message.content for choice in cut.choices}) == 3
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 15


def test_live_answers_stream(client: openai.OpenAI) -> None:
    """A streamed answer comes in pieces, each as the document wants it, and ends with its usage when asked."""
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "stream me"}]}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        body = chunk.model_dump(exclude_unset=True)
        for choice in body["choices"]:  # the document forgets that both are null until the end
            assert choice.pop("logprobs") is None
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        assert judge("CreateChatCompletionStreamResponse", body) == []
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert len(chunks) > 4
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == math.ceil(len(text) / 4)


def test_structured_answers_fit(client: openai.OpenAI) -> None:
    """A json_schema answer parses with the client's own structured-output helper."""
    pydantic = pytest.importorskip("pydantic")
    review = pydantic.create_model("Review", mood=(str, ...), stars=(int, ...))
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "fine"}], response_format=review
    )
    assert isinstance(answer.choices[0].message.parsed, review)


def test_live_embeddings(client: openai.OpenAI) -> None:
    """Vectors have unit length, follow `dimensions`, and are the same as floats and as base64."""
    model = "text-embedding-3-small"
    packed = client.embeddings.create(model=model, input=["a", "b"], dimensions=16)
    plain = client.embeddings.create(model=model, input=["a", "b"], dimensions=16, encoding_format="float")
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)
        assert math.hypot(*ours.embedding) == pytest.approx(1, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert len(client.embeddings.create(model=model, input="a").data[0].embedding) == 8


@pytest.mark.parametrize(
    ("texts", "said"),
    [([], "must not be empty"), (["a", ""], "must not be empty"), (["a"] * 2049, "the most is 2048"),
     (["word " * 20_000], "maximum context length is 8192"), (["word " * 5_000] * 70, "max 300000 tokens per request")],
)  # fmt: skip
def test_more_than_embeddings_take_is_refused(client: openai.OpenAI, texts: list[str], said: str) -> None:
    """The bounds of one text and of all texts of a request are those of OpenAI's document."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="text-embedding-3-small", input=texts)
    assert said in refused.value.message


def test_a_batch_of_embeddings(client: openai.OpenAI) -> None:
    """Embedding batches answer every input of a row in order."""
    body = {"model": "text-embedding-3-small", "input": ["ping", "pong"]}
    ended = _finished(client, _submit(client, [line("r-0", body, EMBEDDINGS)], EMBEDDINGS).id)
    (item,) = [json.loads(raw) for raw in client.files.content(ended.output_file_id).text.splitlines()]
    assert judge("CreateEmbeddingResponse", item["response"]["body"]) == []
    assert [vector["index"] for vector in item["response"]["body"]["data"]] == [0, 1]


def test_models(client: openai.OpenAI) -> None:
    """Models of the price catalogue exist, others answer 404."""
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-none")
    assert missing.value.code == "model_not_found"


@pytest.mark.req("X11")
def test_keys(base: str, seen: _Judge) -> None:
    """No key and a wrong key answer 401; a key without quota answers a 429 that says so, for money only."""
    for key, error, code in (
        ("sk-wrong", openai.AuthenticationError, "invalid_api_key"),
        ("sk-noquota", openai.RateLimitError, "insufficient_quota"),
    ):
        hooks = openai.DefaultHttpxClient(event_hooks={"response": [seen]})
        with openai.OpenAI(api_key=key, base_url=base, max_retries=0, http_client=hooks) as other:
            with pytest.raises(error) as refused:
                other.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
            assert refused.value.code == code
            with pytest.raises(error) as refused:
                other.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
            assert refused.value.code == code
    assert call(base, "GET", "/v1/batches", key=None).status == 401
    assert seen.judged == ["ErrorResponse"] * 4


def test_headers(base: str) -> None:
    """Every answer carries a request id, a Date and a duration; live ones the rate-limit headers."""
    live = call(base, "POST", CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    for answer in (live, call(base, "GET", "/v1/batches"), call(base, "GET", "/v1/nowhere")):
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["openai-processing-ms"].isdigit()
        assert answer.headers["Date"].endswith("GMT")
    for word in ("requests", "tokens"):
        assert int(live.headers[f"x-ratelimit-limit-{word}"]) >= int(live.headers[f"x-ratelimit-remaining-{word}"])
        assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?m?s", live.headers[f"x-ratelimit-reset-{word}"])
    assert call(base, "GET", "/v1/nowhere").status == 404
    assert call(base, "PUT", "/v1/batches").status == 405


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "model"),
        (CHAT, {"model": MODEL}, "messages"),
        (CHAT, {"model": MODEL, "messages": []}, "messages"),
        (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens"),
        (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": 3}, "temperature"),
        (EMBEDDINGS, {"model": "text-embedding-3-small", "input": []}, "input"),
        (EMBEDDINGS, {"model": "text-embedding-3-small", "input": "x", "dimensions": 0}, "dimensions"),
        ("/v1/batches", {"endpoint": CHAT, "completion_window": "24h"}, "input_file_id"),
        ("/v1/batches", {"input_file_id": "f", "endpoint": "/v1/x", "completion_window": "24h"}, "endpoint"),
        ("/v1/batches", {"input_file_id": "f", "endpoint": CHAT, "completion_window": "48h"}, "completion_window"),
    ],
)
def test_bad_requests_name_the_parameter(base: str, path: str, body: dict[str, Any], param: str) -> None:
    """A request that cannot be right is a 400 that says which parameter is wrong, and costs nothing."""
    before = invoice(base)["total_nanos"]
    answer = call(base, "POST", path, body)
    assert answer.status == 400
    assert judge("ErrorResponse", answer.json()) == []
    assert answer.json()["error"]["param"] == param
    assert invoice(base)["total_nanos"] == before


_PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    "form",
    [b"", b"garbage", b"--edge\r\nno header", _PART + b"{}\r\n--edge--\r\n", _PART + b"never ends"],
    ids=["empty", "garbage", "bad header", "no purpose", "no end"],
)
def test_broken_uploads_are_refused(base: str, form: bytes) -> None:
    """A form that cannot be read, or lacks its purpose, is a 400 and leaves no file."""
    known = call(base, "GET", "/v1/files").json()["data"]
    answer = call(base, "POST", "/v1/files", form, **{"Content-Type": "multipart/form-data; boundary=edge"})
    assert answer.status == 400
    assert judge("ErrorResponse", answer.json()) == []
    assert call(base, "GET", "/v1/files").json()["data"] == known


@pytest.mark.parametrize(
    "metadata",
    [{f"k{i}": "v" for i in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}],
    ids=["17 pairs", "long key", "long value", "no text"],
)
def test_metadata_is_limited(base: str, metadata: dict[str, Any]) -> None:
    """Metadata beyond 16 pairs, 64 characters a key and 512 a value is refused; at the limit it is kept."""
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    assert call(base, "POST", "/v1/batches", {**asked, "metadata": metadata}).status == 400
    most = {f"{i:064}": "v" * 512 for i in range(16)}
    assert call(base, "POST", "/v1/batches", {**asked, "metadata": most}).json()["metadata"] == most


def test_accounts_do_not_see_each_other(base: str) -> None:
    """Files and batches belong to an organisation and project: another one finds none of them."""
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    made = call(base, "POST", "/v1/batches", asked, **{"OpenAI-Project": "proj_a"}).json()
    assert call(base, "GET", f"/v1/batches/{made['id']}", **{"OpenAI-Project": "proj_a"}).status == 200
    assert call(base, "GET", f"/v1/batches/{made['id']}").status == 404
    assert made["id"] not in [b["id"] for b in call(base, "GET", "/v1/batches?limit=100").json()["data"]]
