"""Servers of the OpenAI shape, each answering in its own way: the names it has for things, its errors, its extras."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place, adds_up
from servers_kit import BatchServer, Call, Said, chat, serving

from nightmill.providers import local

pytestmark = pytest.mark.req("D2")

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object", "properties": {"mood": {"type": "string", "maxLength": 20}}, "required": ["mood"],
    "additionalProperties": False,
}  # fmt: skip


def place_at(folder: Path, name: str, url: str, *lines: str, more: str = "", **env: str) -> Place:
    """A place whose settings say where the server ``name`` is; ``lines`` are further ones of its table."""
    table = "\n".join([f"[providers.{name}]", f'base_url = "{url}"', *lines, more])
    place = Place(folder, toml=table + "\n")
    place.env |= env
    return place


def run(place: Place, model: str, *arguments: str) -> Done:
    return place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", model, "--out", "r.jsonl", "--json", "--yes",
                     "--max-output", "50", "--force", *arguments)  # fmt: skip


def texts(place: Place) -> list[str | None]:
    return [row["response"] for row in place.results("r.jsonl")]


def kinds(place: Place) -> list[str | None]:
    return [row["error_kind"] for row in place.results("r.jsonl")]


# -- on hardware of one's own ----------------------------------------------------------------------


def vllm(call: Call) -> Said:
    def refused(status: int, kind: str, message: str) -> Said:
        return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}

    if call.body["model"] != "qwen":
        return refused(404, "NotFoundError", f"The model `{call.body['model']}` does not exist.")
    if "long" in call.asked:
        return refused(400, "BadRequestError", "This model's maximum context length is 4096 tokens.")
    text = json.dumps({"mood": "calm"}) if "response_format" in call.body else call.asked.upper()
    usage = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": None}
    extra = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": [],
             "reasoning": "I think it over"}  # fmt: skip
    choice = {"logprobs": None, "stop_reason": None, "token_ids": None}
    return chat(text, model="qwen", usage=usage, message=extra, choice=choice, prompt_logprobs=None,
                prompt_token_ids=None, kv_transfer_params=None, service_tier=None, system_fingerprint=None)  # fmt: skip


def test_vllm(tmp_path: Path) -> None:
    """Answers, one row that is too long, schemas and a wrong model; no key, and nothing is billed."""
    with serving(vllm) as server:
        place = place_at(tmp_path, "vllm", server.url + "/v1")
        (tmp_path / "in.txt").write_text("one\nlong two\nthree\n")
        done = run(place, "vllm/qwen")
        assert (done.code, done.json["spent_usd"]) == (3, 0), done.err
        assert adds_up(done.json)
        assert (texts(place), kinds(place)) == (["ONE", None, "THREE"], [None, "bad_request", None])
        assert "maximum context length is 4096" in place.results("r.jsonl")[1]["error"]
        assert [row["tokens_out"] for row in place.results("r.jsonl")] == [3, None, 3]
        assert all(c.body["max_completion_tokens"] == 50 and "authorization" not in c.headers for c in server.calls)
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        bound = run(place, "vllm/qwen", "--schema", "schema.json", "--limit", "1")
        assert bound.code == 0, bound.err
        assert server.calls[-1].body["response_format"]["json_schema"]["schema"] == SCHEMA
        wrong = run(place, "vllm/other", "--limit", "1")
    assert (wrong.code, wrong.json["status"]) == (1, "paused")
    assert "The model `other` does not exist" in wrong.err


def test_llama_cpp(tmp_path: Path) -> None:
    """While it loads its model rows wait, and none is lost; a prompt too long for its context fails alone."""
    loading = iter(range(2))

    def llama(call: Call) -> Said:
        if next(loading, None) is not None:
            return 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        if "long" in call.asked:
            message = "request (9412 tokens) exceeds the available context size (4096 tokens), try increasing it"
            return 400, {"error": {"code": 400, "message": message, "type": "exceed_context_size_error",
                                   "n_prompt_tokens": 9412, "n_ctx": 4096}}  # fmt: skip
        timings = {"prompt_n": 9, "predicted_n": 3, "predicted_per_second": 41.5}
        return chat(call.asked.upper(), model="/models/some.gguf", timings=timings, system_fingerprint="b6000-abc")

    with serving(llama) as server:
        place = place_at(tmp_path, "llamacpp", server.url + "/v1", "limits = { context = 4096 }")
        (tmp_path / "in.txt").write_text("one\nlong two\nthree\n")
        done = run(place, "llamacpp/any")
        assert (done.code, done.json["spent_usd"], done.json["unproven_usd"]) == (3, 0, 0), done.err
        assert (texts(place), kinds(place)) == (["ONE", None, "THREE"], [None, "bad_request", None])
        assert len(server.calls) == 5
        assert all(call.body["max_tokens"] == 50 for call in server.calls)


def ollama(call: Call) -> Said:
    """It takes max_tokens only, and writes on and on where it is not given."""
    if call.body["model"] == "absent":
        message = 'model "absent" not found, try pulling it first'
        return 404, {"error": {"message": message, "type": "not_found_error", "param": None, "code": None}}
    cap = call.body.get("max_tokens", 9_999)
    usage = {"prompt_tokens": 26, "completion_tokens": min(cap, 400), "total_tokens": 26 + min(cap, 400)}
    if "think" in call.asked:
        return chat("", model="llama3.2", finish="length", usage=usage, message={"reasoning": "hm, let me see"})
    return chat(call.asked.upper(), model="llama3.2", usage=usage, system_fingerprint="fp_ollama")


def test_ollama(tmp_path: Path) -> None:
    """The cap reaches it under the one name it knows; what was only thought is a truncated answer; no model, no job."""
    with serving(ollama) as server:
        place = place_at(tmp_path, "ollama", server.url + "/v1")
        (tmp_path / "in.txt").write_text("one\nthink two\n")
        done = run(place, "ollama/llama3.2")
        assert (done.code, done.json["spent_usd"]) == (3, 0), done.err
        assert (texts(place)[0], kinds(place)) == ("ONE", [None, "truncated"])
        assert done.json["tokens_out"] == 100
        absent = run(place, "ollama/absent")
    assert (absent.code, absent.json["status"]) == (1, "paused")
    assert "try pulling it first" in absent.err


def test_what_ollama_passes_on_is_not_taken_for_free(tmp_path: Path) -> None:
    """A model of its cloud costs somebody something: without a price from the user it is refused."""
    place = place_at(tmp_path, "ollama", "http://127.0.0.1:9/v1")
    place.rows(1)
    done = run(place, "ollama/gpt-oss:120b-cloud")
    assert (done.code, done.json["error"]["code"]) == (2, "unknown_price")


def test_lm_studio(tmp_path: Path) -> None:
    """Its errors are plain texts, and an address that it does not have succeeds with one: the job says so and stops."""

    def lm_studio(call: Call) -> Said:
        if call.path != CHAT:
            return {"error": f"Unexpected endpoint or method. ({call.method} {call.path})"}
        if call.body.get("response_format", {}).get("type") not in (None, "text", "json_schema"):
            return 400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}
        if "crash" in call.asked and len(server.to(CHAT)) < 4:
            return 500, {"error": "The model has crashed without additional information. (Exit code: null)"}
        text = json.dumps({"mood": call.asked}) if "response_format" in call.body else call.asked
        return chat(text, model="gemma", stats={}, system_fingerprint="gemma", choice={"logprobs": None})

    with serving(lm_studio) as server:
        place = place_at(tmp_path, "lmstudio", server.url + "/v1")
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        (tmp_path / "in.txt").write_text("calm\ncrash\n")
        done = run(place, "lmstudio/gemma", "--schema", "schema.json")
        assert (done.code, done.json["unproven_usd"]) == (0, 0), done.err
        assert [row["parsed"]["mood"] for row in place.results("r.jsonl")] == ["calm", "crash"]
        lost = place_at(tmp_path, "lmstudio", server.url)
        wrong = run(lost, "lmstudio/gemma", "--new", "--no-cache")
    assert (wrong.code, wrong.json["status"]) == (1, "paused")
    assert "Unexpected endpoint or method. (POST /chat/completions)" in wrong.err


# -- hosted ----------------------------------------------------------------------------------------


def test_openrouter(tmp_path: Path) -> None:
    """A flagged prompt fails alone, an error inside a success is tried again, and no credit stops the job."""
    broken = iter(range(1))

    def router(call: Call) -> Said:
        assert call.headers["authorization"] == "Bearer sk-or"
        if "broke" in call.asked:
            return 402, {"error": {"message": "Insufficient credits. Add more using the site.", "code": 402}}
        if "bad" in call.asked:
            told = {"reasons": ["violence"], "flagged_input": "bad", "provider_name": "OpenAI", "model_slug": "m"}
            return 403, {"error": {"code": 403, "message": "The input was flagged", "metadata": told}, "user_id": "u"}
        if "late" in call.asked and next(broken, None) is not None:
            return {"error": {"message": "Provider returned error", "code": 502, "metadata": {"provider_name": "X"}}}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cost": 0.00021,
                 "is_byok": False, "cost_details": {"upstream_inference_cost": None},
                 "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                 "completion_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
        message = {"refusal": None, "reasoning": None}
        return chat(call.asked.upper(), model="openai/gpt-4o-mini", usage=usage, message=message, provider="OpenAI",
                    choice={"native_finish_reason": "stop", "logprobs": None})  # fmt: skip

    with serving(router) as server:
        place = place_at(tmp_path, "openrouter", server.url + "/api/v1", OPENROUTER_API_KEY="sk-or")
        (tmp_path / "in.txt").write_text("one\nbad two\nlate three\n")
        done = run(place, "openrouter/openai/gpt-4o-mini")
        assert done.code == 3, done.err
        assert (texts(place), kinds(place)) == (["ONE", None, "LATE THREE"], [None, "content_filter", None])
        assert done.json["spent_usd"] == pytest.approx(0.00042)  # two answers at 0.15 and 0.60 a million
        assert {call.body["model"] for call in server.calls} == {"openai/gpt-4o-mini"}
        assert all(call.body["max_tokens"] == 50 for call in server.calls)
        (tmp_path / "in.txt").write_text("broke\n")
        stopped = run(place, "openrouter/openai/gpt-4o-mini")
    assert (stopped.code, stopped.json["status"]) == (1, "paused")
    assert "Insufficient credits" in stopped.err


def deepseek(call: Call) -> Said:
    assert call.headers["authorization"] == "Bearer sk-deep"
    if call.body.get("response_format", {}).get("type") == "json_schema":
        message = "This response_format type is unavailable now"
        return 400, {"error": {"message": message, "type": "invalid_request_error", "param": None,
                               "code": "invalid_request_error"}}  # fmt: skip
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
             "prompt_cache_hit_tokens": 600, "prompt_cache_miss_tokens": 400}  # fmt: skip
    text = json.dumps({"mood": call.asked}) if "response_format" in call.body else call.asked.upper()
    whole = chat(
        text, model="deepseek-chat", usage=usage, message={"reasoning_content": "so"}, choice={"logprobs": None}
    )
    return b"\n\n\n" + json.dumps(whole).encode()  # blank lines, while one waits


def test_deepseek(tmp_path: Path) -> None:
    """It is told the schema in words, since it cannot be bound to one; what it read from its cache costs less."""
    with serving(deepseek) as server:
        price = '[models."deepseek/deepseek-chat"]\nprice = { input = 1, cached_input = 0.1, output = 2 }'
        place = place_at(tmp_path, "deepseek", server.url + "/v1", more=price, DEEPSEEK_API_KEY="sk-deep")
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        (tmp_path / "in.txt").write_text("calm\n")
        done = run(place, "deepseek/deepseek-chat", "--schema", "schema.json")
        assert done.code == 0, done.err
        assert place.results("r.jsonl")[0]["parsed"] == {"mood": "calm"}
        assert done.json["spent_usd"] == pytest.approx((400 * 1 + 600 * 0.1 + 100 * 2) / 1e6)
        (call,) = server.calls
    assert (call.body["max_tokens"], call.body["response_format"]) == (50, {"type": "json_object"})
    assert json.dumps(SCHEMA) in call.body["messages"][0]["content"]


def test_deepseek_that_runs_out_of_machines_or_money(tmp_path: Path) -> None:
    """An answer that was broken off for want of machines is a failure to retry; without balance the job pauses."""
    short = iter(range(1))

    def answers(call: Call) -> Said:
        if "poor" in call.asked:
            return 402, {"error": {"message": "Insufficient Balance", "type": "unknown_error", "param": None,
                                   "code": "invalid_request_error"}}  # fmt: skip
        if next(short, None) is not None:
            return chat("ON", finish="insufficient_system_resource")
        return deepseek(call)

    with serving(answers) as server:
        place = place_at(tmp_path, "deepseek", server.url + "/v1", 'price = "free"', DEEPSEEK_API_KEY="sk-deep")
        (tmp_path / "in.txt").write_text("one\n")
        done = run(place, "deepseek/deepseek-chat")
        assert (done.code, texts(place), kinds(place)) == (3, ["ON"], ["server_error"]), done.err
        again = place.run("retry", done.json["job_id"], "--json")
        assert (again.code, texts(place)) == (0, ["ONE"]), again.err
        (tmp_path / "in.txt").write_text("poor\n")
        stopped = run(place, "deepseek/deepseek-chat")
    assert (stopped.code, stopped.json["status"]) == (1, "paused")
    assert "Insufficient Balance" in stopped.err


def groq_answer(body: dict[str, Any]) -> dict[str, Any]:
    usage = {"queue_time": 0.03, "prompt_tokens": 1000, "prompt_time": 0.01, "completion_tokens": 100,
             "completion_time": 0.2, "total_tokens": 1100, "total_time": 0.24}  # fmt: skip
    return chat(body["messages"][-1]["content"].upper(), model=body["model"], usage=usage, x_groq={"id": "req_01"},
                message={"reasoning": "short"}, choice={"logprobs": None}, system_fingerprint="fp_1",
                service_tier="on_demand", usage_breakdown=None)  # fmt: skip


def test_groq_live(tmp_path: Path) -> None:
    """It is waited for as long as it asks, its daily limit is none of a minute, and its extras hurt nobody."""
    told = iter(range(1))
    limits = {"x-ratelimit-limit-requests": "14400", "x-ratelimit-remaining-requests": "14370",
              "x-ratelimit-reset-requests": "2m59.56s", "x-ratelimit-limit-tokens": "18000",
              "x-ratelimit-remaining-tokens": "17997", "x-ratelimit-reset-tokens": "7.66ms"}  # fmt: skip

    def groq(call: Call) -> Said:
        if next(told, None) is not None:
            message = (
                "Rate limit reached for model `m` on tokens per minute (TPM): Limit 6000. Please try again in 1ms."
            )
            error = {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}
            return 429, {"error": error}, {"retry-after": "0"}
        if "huge" in call.asked:
            error = {"message": "Request too large for model `m`", "type": "tokens", "code": "rate_limit_exceeded"}
            return 413, {"error": error}
        return 200, groq_answer(call.body), limits

    with serving(groq) as server:
        place = place_at(tmp_path, "groq", server.url + "/openai/v1", GROQ_API_KEY="gsk")
        (tmp_path / "in.txt").write_text("one\nhuge two\nthree\n")
        done = run(place, "groq/openai/gpt-oss-20b")
    assert done.code == 3, done.err
    assert (texts(place), kinds(place)) == (["ONE", None, "THREE"], [None, "bad_request", None])
    assert done.json["spent_usd"] == pytest.approx(2 * (1000 * 0.075 + 100 * 0.3) / 1e6)
    assert done.json["sent"] == 3


class Groq(BatchServer):
    """Its lists have no pages and do not say so. The first batch is made, and the answer to that is lost."""

    def created(self, batch: dict[str, Any]) -> Said:
        return None if len(self.batches) == 1 else super().created(batch)

    def listed(self, data: list[dict[str, Any]]) -> Said:
        return {"object": "list", "data": data}


def test_groq_in_batches(tmp_path: Path) -> None:
    """A batch whose creation was never answered is found in its list and adopted: half the price, paid once."""
    groq = Groq("/openai/v1", groq_answer)
    with serving(groq) as server:
        place = place_at(tmp_path, "groq", server.url + "/openai/v1", 'window = "7d"', GROQ_API_KEY="gsk")
        place.rows(12)
        done = run(place, "groq/openai/gpt-oss-20b")
    assert (done.code, done.json["lane"], done.json["succeeded"]) == (0, "batch", 12), done.err
    assert len(groq.batches) == 1
    assert groq.batches["batch_0"]["completion_window"] == "7d"
    assert done.json["spent_usd"] == pytest.approx(12 * (1000 * 0.0375 + 100 * 0.15) / 1e6)


class Azure(BatchServer):
    """A file is read only after its upload; counts are null; a success has an error file too, an empty one."""

    looked = waited = 0

    def __call__(self, call: Call) -> Said:
        assert (call.headers["api-key"], "authorization" in call.headers) == ("az", False)
        if call.path.endswith("/chat/completions"):
            return self.live(call)
        return super().__call__(call)

    def live(self, call: Call) -> Said:
        if call.body["model"] != "my-mini":
            error = {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}
            return 404, {"error": error}
        if "bad" in call.asked:
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": SAFE}
            return 400, {"error": {"message": "The response was filtered", "type": None, "param": "prompt",
                                   "code": "content_filter", "status": 400, "innererror": inner}}  # fmt: skip
        if "busy" in call.asked and not self.waited:
            self.waited += 1
            error = {"code": "429", "message": "Requests have exceeded the call rate limit. Retry after 1 second."}
            return 429, {"error": error}, {"retry-after-ms": "1"}
        return azure_answer(call.body)

    def upload(self, call: Call) -> Said:
        return super().upload(call) | {"status": "pending"}

    def file(self, file_id: str, status: str) -> dict[str, Any]:
        self.looked += 1
        return super().file(file_id, "pending" if self.looked < 3 else status)

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self.looked >= 3
        assert asked["endpoint"] == "/chat/completions"
        batch = super().create(asked)
        batch |= {"error_file_id": batch["id"].replace("batch_", "err-"), "output_expires_at": None}
        batch["request_counts"] = {"total": None, "completed": None, "failed": None}
        return batch


SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


def azure_answer(body: dict[str, Any]) -> dict[str, Any]:
    filters = [{"prompt_index": 0, "content_filter_results": SAFE}]
    return chat(body["messages"][-1]["content"].upper(), model="gpt-4o-mini-2024-07-18", prompt_filter_results=filters,
                choice={"content_filter_results": SAFE, "logprobs": None}, message={"refusal": None})  # fmt: skip


PRICED = '[models."azure/my-mini"]\nprice = { input = 1, output = 2, batch_input = 0.5, batch_output = 1 }'


def test_azure_live(tmp_path: Path) -> None:
    """The resource's address and its key are all it takes; a filtered row fails alone, a wrong deployment stops."""
    with serving(Azure("/openai/v1", azure_answer)) as server:
        place = Place(tmp_path, toml=PRICED + "\n")
        place.env |= {"AZURE_OPENAI_ENDPOINT": server.url + "/", "AZURE_OPENAI_API_KEY": "az"}
        (tmp_path / "in.txt").write_text("one\nbad two\nbusy three\n")
        done = run(place, "azure/my-mini")
        assert done.code == 3, done.err
        assert (texts(place), kinds(place)) == (["ONE", None, "BUSY THREE"], [None, "content_filter", None])
        assert done.json["spent_usd"] == pytest.approx(2 * (100 * 1 + 20 * 2) / 1e6)
        assert server.to("/openai/v1/chat/completions")
        unpriced = run(place, "azure/other")
        assert (unpriced.code, unpriced.json["error"]["code"]) == (2, "unknown_price")
        (tmp_path / "nightmill.toml").write_text('[models."azure/other"]\nprice = "free"\n')
        wrong = run(place, "azure/other")
    assert (wrong.code, wrong.json["status"]) == (1, "paused")
    assert "DeploymentNotFound" in wrong.err


def test_azure_in_batches(tmp_path: Path) -> None:
    """The batch waits until the file is read; an empty error file and counts of null take nothing away."""
    azure = Azure("/openai/v1", azure_answer)
    with serving(azure) as server:
        place = Place(tmp_path, toml=PRICED + "\n")
        place.env |= {"AZURE_OPENAI_ENDPOINT": server.url, "AZURE_OPENAI_API_KEY": "az"}
        place.rows(12)
        done = run(place, "azure/my-mini")
    assert (done.code, done.json["lane"], done.json["succeeded"]) == (0, "batch", 12), done.err
    assert done.json["spent_usd"] == pytest.approx(12 * (100 * 0.5 + 20 * 1) / 1e6)
    assert texts(place)[11] == "ROW 11"


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_without_batches_pauses_the_job(tmp_path: Path, status: int) -> None:
    """It has no such call, and says so as any web server does: nobody waits for it for ever, and nothing is held."""
    with serving(lambda call: (status, {"detail": "Not Found"})) as server:
        place = place_at(tmp_path, "lab", server.url + "/v1", "batch = true", "price = { input = 1, output = 1 }")
        place.rows(12)
        done = run(place, "lab/m")
    assert (done.code, done.json["status"]) == (1, "paused"), done.err
    assert "--lane live" in done.json["error"]["why"]
    assert place.run("budget", "--json").json["held"] == 0


# -- the real thing --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_server_of_llama_cpp(tmp_path: Path) -> None:
    """The server itself, with a real model: it is bound to a schema, keeps the cap, and refuses in the way we read."""
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(local.connect(local.DEMO_MODEL, {})._file)
    params.verbosity, params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 0, 2, 2048, 1
    params.warmup, params.cache_ram_mib, params.api_keys, params.ui = False, 0, ["sk-llama"], False
    server = llama.Server(params)
    place = place_at(tmp_path, "llamacpp", server.listening_address + "/v1", LLAMA_API_KEY="sk-llama")
    calm = {**SCHEMA, "properties": {"mood": {"enum": ["calm"]}}}
    (tmp_path / "schema.json").write_text(json.dumps(calm))
    (tmp_path / "in.txt").write_text("Name a mood.\n" + "word " * 3000 + "\n")
    bound = run(place, "llamacpp/any", "--schema", "schema.json")
    assert (bound.code, kinds(place)) == (3, [None, "bad_request"]), bound.err
    first, second = place.results("r.jsonl")
    assert first["parsed"] == {"mood": "calm"}
    assert min(first["tokens_in"], first["tokens_out"]) > 0
    assert "context" in second["error"]
    cut = run(place, "llamacpp/any", "--limit", "1", "--max-output", "3")
    assert (cut.code, cut.json["tokens_out"], kinds(place)) == (3, 3, ["truncated"]), cut.err
    place.env["LLAMA_API_KEY"] = "wrong"
    refused = run(place, "llamacpp/any", "--limit", "1", "--no-cache", "--new")
    assert (refused.code, refused.json["status"]) == (1, "paused")
    assert "HTTP 401" in refused.err
