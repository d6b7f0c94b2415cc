"""Python callables as models."""

from __future__ import annotations

import asyncio
import json
import sys
import threading

import pytest

from nightmill.errors import CannotCarry, Uncertain, UsageError
from nightmill.providers import BatchProvider, LiveProvider
from nightmill.providers.function import Function
from nightmill.providers.resolve import resolve
from nightmill.types import Failed, FailureKind, Succeeded

MESSAGES = [{"role": "user", "content": "ping"}]


def ask(call, request=None, user_set=frozenset(), timeout_s=10.0):
    provider = Function("m.f", call)
    encoded = provider.encode(request or {"messages": MESSAGES}, user_set)
    reply = asyncio.run(provider.send(encoded.url, encoded.body, timeout_s=timeout_s))
    return provider.decode(provider.reply_line("s-1", reply, 0.25)).outcome


def test_a_function_is_live_only():
    """A callable has no Batch API and says so by what it can do."""
    provider = Function("m.f", len)
    assert isinstance(provider, LiveProvider)
    assert not isinstance(provider, BatchProvider)
    assert provider.limits.batch_requests == 0
    assert provider.account.base_url == "python:m.f"


def test_a_text_is_an_answer():
    """What a function returns is the answer, and nobody invents tokens for it."""
    assert ask(lambda messages: messages[0]["content"] + "!") == Succeeded("ping!", None, "stop", "m.f")
    assert ask(lambda messages: "a\ud800b").text == "a\ufffdb"


def test_an_async_function_is_awaited():
    """Async functions, and functions that hand back something to await, work alike."""

    async def f(messages):
        await asyncio.sleep(0)
        return "async"

    assert ask(f).text == "async"

    def hands_back(messages):
        return f(messages)

    assert ask(hands_back).text == "async"


def test_sync_functions_do_not_block_the_loop():
    """Two calls that wait for each other both finish: each has a thread of its own."""
    meet = threading.Barrier(2, timeout=10)

    def f(messages):
        meet.wait()
        return "met"

    async def both():
        provider = Function("m.f", f)
        body = provider.encode({"messages": MESSAGES}).body
        return await asyncio.gather(*(provider.send("", body, timeout_s=10) for _ in range(2)))

    assert [reply.status for reply in asyncio.run(both())] == [200, 200]


def test_an_openai_shaped_answer_is_taken_as_it_is():
    """A mapping or an SDK object with choices keeps its usage."""
    answer = {
        "model": "inner",
        "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }

    class Dumps:
        def model_dump(self):
            return answer

    for value in (answer, Dumps()):
        outcome = ask(lambda messages, value=value: value)
        assert (outcome.text, outcome.model, outcome.usage.output_tokens) == ("hi", "inner", 2)


def test_parameters_are_those_the_function_has():
    """Named parameters get theirs, **kwargs gets all but the model, and defaults nobody takes stay out."""
    request = {"messages": MESSAGES, "temperature": 0.3, "max_completion_tokens": 9, "response_format": {"type": "x"}}
    some = ask(
        lambda messages, *, temperature, response_format=None: json.dumps([temperature, response_format]), request
    )
    assert json.loads(some.text) == [0.3, {"type": "x"}]
    every = ask(lambda messages, **params: json.dumps(params), request)
    assert json.loads(every.text) == {key: request[key] for key in request if key != "messages"}
    notes = Function("m.f", lambda messages: "").encode(request).notes
    assert len(notes) == 3


def test_what_the_user_set_is_refused_when_the_function_cannot_take_it():
    """A parameter asked for is never dropped."""
    with pytest.raises(CannotCarry, match="takes no seed"):
        ask(lambda messages: "", {"messages": MESSAGES, "seed": 1}, frozenset({"seed"}))
    with pytest.raises(CannotCarry):
        Function("m.f", len).encode({"input": "x"})


class Speechless(Exception):
    """As those of some libraries: even to say what is wrong goes wrong."""

    def __str__(self):
        raise AttributeError("response")


@pytest.mark.parametrize(
    "error", [ValueError("bad\nrow"), SystemExit(3), StopIteration(), TimeoutError("mine"), Speechless()]
)
def test_what_a_function_raises_fails_its_row_alone(error):
    """The row fails with the error's name; the run goes on."""

    def f(messages):
        raise error

    outcome = ask(f)
    assert outcome.kind == FailureKind.MODEL_ERROR
    assert type(error).__name__ in outcome.message


@pytest.mark.parametrize("value", [None, 5, {"no": "choices"}, b"bytes"])
def test_what_is_no_answer_fails_its_row(value):
    """A function that returns something else is told what is needed."""
    outcome = ask(lambda messages: value)
    assert isinstance(outcome, Failed)
    assert "OpenAI-shaped" in outcome.message


def test_a_function_that_takes_too_long_is_uncertain():
    """No answer in time may still have cost something."""
    release = threading.Event()
    with pytest.raises(Uncertain):
        ask(lambda messages: release.wait(10), timeout_s=0.05)
    release.set()


def test_a_function_is_found_in_the_working_folder(tmp_path, monkeypatch):
    """The working folder comes first on the import path, and only while importing."""
    (tmp_path / "my_model_of_today.py").write_text("def f(messages):\n    return 'found'\nx = 5\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    provider = resolve("python:my_model_of_today.f", env={})
    assert sys.path == before
    body = provider.encode({"messages": MESSAGES}).body
    assert b"found" in asyncio.run(provider.send("", body, timeout_s=5)).body
    with pytest.raises(UsageError, match="has no g"):
        resolve("python:my_model_of_today.g", env={})
    with pytest.raises(UsageError, match="not callable"):
        resolve("python:my_model_of_today.x", env={})


def test_a_module_that_cannot_be_imported_is_a_usage_error(tmp_path, monkeypatch):
    """Missing, broken or a script that ends the process, the message names the module and the reason."""
    (tmp_path / "broken_model_of_today.py").write_text("raise RuntimeError('no weights')\n")
    (tmp_path / "leaving_model_of_today.py").write_text("import sys\nsys.path = sys.path[1:]\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UsageError, match="no_such_module_of_ours"):
        resolve("python:no_such_module_of_ours.f", env={})
    with pytest.raises(UsageError) as caught:
        resolve("python:broken_model_of_today.f", env={})
    assert "no weights" in caught.value.why
    with pytest.raises(UsageError) as caught:
        resolve("python:leaving_model_of_today.f", env={})
    assert caught.value.why == "SystemExit: 0"
    with pytest.raises(UsageError, match="names no function"):
        resolve("python:nodot", env={})
