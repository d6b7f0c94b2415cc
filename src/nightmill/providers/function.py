"""Any Python callable as a model: ``python:module.function``, sync or async."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import inspect
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from types import CodeType, FunctionType, ModuleType
from typing import Any

import msgspec

from nightmill.errors import CannotCarry, Uncertain, UsageError, name_and_text
from nightmill.importing import import_here
from nightmill.providers import Account, Encoded, Limits, LiveReply, Request, Weight
from nightmill.providers._json import scrub
from nightmill.providers._openai_requests import cap_of, carried, json_line, refuse_responses
from nightmill.providers._openai_shape import MODEL_ERROR, OpenAILines, error_body

CHAT_URL = "/v1/chat/completions"
_ALWAYS = frozenset({"model", "messages"})
_given: dict[str, Callable[..., Any]] = {}  # by name, callables that this process was given as objects


class Function(OpenAILines):
    """A callable ``f(messages, **params)``; a `LiveProvider`.

    ``messages`` is the list of OpenAI-shaped messages. ``params`` are the other keys of the request
    that the callable has parameters for, or all of them if it takes ``**kwargs``. It returns the
    text, or an OpenAI-shaped answer as a mapping or an object with ``model_dump``.
    """

    name = "python"
    limits = Limits(concurrency=32)

    def __init__(self, model: str, call: Callable[..., Any]) -> None:
        self.model = model
        self.account = Account(self.name, f"python:{model}")
        self._call = call
        self._takes = _parameters(call)

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. What the callable has no parameter for stays in the body, unused."""
        body = carried(self.name, self.model, request, user_set)
        refuse_responses(self.model, body)
        notes: list[str] = []
        if not isinstance(body.get("messages"), list | tuple) or not body["messages"]:
            why = f"{self.model} is called with messages"
            raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")
        for key in sorted(body.keys() - _ALWAYS):
            if self._passes(key):
                continue
            if key in user_set:
                raise CannotCarry(
                    f"{self.model} takes no {key}",
                    why="it has neither a parameter of that name nor **kwargs",
                    fix=f"give {self.model} a parameter {key}, or leave it out",
                )
            notes.append(f"{key} is not passed on: {self.model} has no such parameter")
        return Encoded(CHAT_URL, json_line(body), tuple(notes), cap_of(body))

    def weigh(self, body: bytes) -> Weight:
        return Weight(len(body))

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        """Call the function once. What it raises is an answer of status 500.

        Raises:
            Uncertain: no answer in time; a function that runs in a thread goes on unheard.
        """
        request = msgspec.json.decode(body)
        messages = request.pop("messages")
        params = {key: value for key, value in request.items() if self._passes(key)}
        try:
            async with asyncio.timeout(timeout_s) as limit:
                answer = await self._answer(messages, params)
        except TimeoutError as exc:
            if limit.expired():
                raise Uncertain(f"{self.model}: no answer", why=f"the limit was {timeout_s:g} s") from exc
            return _raised(exc)
        except (Exception, SystemExit) as exc:  # whatever users' code raises is this row's failure
            return _raised(exc)
        return _reply(self.model, answer)

    async def close(self) -> None:
        """Nothing is open."""

    def _passes(self, key: str) -> bool:
        if self._takes is None:
            return key != "model"
        return key in self._takes

    async def _answer(self, messages: Any, params: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self._call):
            return await self._call(messages, **params)
        answer = await _in_thread(lambda: self._call(messages, **params))
        return await answer if inspect.isawaitable(answer) else answer


def name_of(call: Callable[..., Any]) -> str:
    """What `connect` finds a callable by: ``package.module.function`` if another process can import it so.

    Any other one has ``NAME@MARK``, by which it is found in this process, and in another one only once
    that was given it, too. The mark of a function that holds no values of its own is the same wherever
    it is written the same; what it calls is not looked at.
    """
    module, name = getattr(call, "__module__", None), getattr(call, "__qualname__", type(call).__qualname__)
    if module and module != "__main__" and getattr(sys.modules.get(module), name, None) is call:
        return f"{module}.{name}"
    short = re.sub(r"\W", "", name.rpartition(".")[2])
    marked = f"{short}@{_mark(call)}"
    _given[marked] = call
    return marked


def is_importable(name: str) -> bool:
    """Whether a callable of this name can be had in any process that finds its module."""
    return "@" not in name


def _mark(call: Callable[..., Any]) -> str:
    if not isinstance(call, FunctionType) or call.__closure__:
        known = (mark for mark, other in list(_given.items()) if other is call)
        return next(known, "").rpartition("@")[2] or uuid.uuid4().hex[:8]
    digest = hashlib.blake2b(digest_size=4)
    for part in _written(call.__code__):
        digest.update(part.encode())
    digest.update(repr((call.__defaults__, call.__kwdefaults__)).encode())
    return digest.hexdigest()


def _written(code: CodeType) -> Iterator[str]:
    """What a function's code says, apart from where it stands."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _written(value)
        else:
            yield repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def connect(model: str) -> Function:
    """The callable that ``model``, ``package.module.function``, names; the working folder comes first.

    Raises:
        UsageError: no such module or attribute, or it is not callable.
    """
    if not is_importable(model):
        if model not in _given:
            raise UsageError(
                f"the function {model.partition('@')[0]} is not here",
                why="it was given to Python as an object, and it is in no module that another process could import",
                fix="run the program that has it again, or put it into a module",
            )
        return Function(model, _given[model])
    module_name, _, attribute = model.rpartition(".")
    if not module_name:
        raise UsageError(
            f"python:{model} names no function", why="a module and a function are needed", fix="python:module.function"
        )
    module = _module(module_name)
    call = getattr(module, attribute, None)
    if call is None:
        there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(attribute, there, n=1)
        raise UsageError(
            f"module {module_name} has no {attribute}",
            why=f"{getattr(module, '__file__', None) or module_name} defines no such name",
            fix=f"did you mean python:{module_name}.{near[0]}?" if near else "check the name after the last dot",
        )
    if not callable(call):
        why = f"it is a {type(call).__name__}"
        raise UsageError(f"python:{model} is not callable", why=why, fix="name a function")
    return Function(model, call)


def _module(name: str) -> ModuleType:
    try:
        return import_here(name)
    except (Exception, SystemExit) as exc:  # importing runs users' code, which may raise anything
        raise UsageError(
            f"cannot import {name}",
            why=name_and_text(exc),
            fix="start in the folder that holds the module, or install it",
        ) from exc


def _parameters(call: Callable[..., Any]) -> frozenset[str] | None:
    """Names that may be passed by keyword besides the messages; None = any."""
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return frozenset()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters[1:] if p.kind in by_name)


async def _in_thread(work: Callable[[], Any]) -> Any:
    # A daemon thread, not the default pool: a call that never returns must not keep us from exiting.
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except StopIteration as exc:
            error = RuntimeError(f"StopIteration: {exc}")  # a future cannot carry it
        except BaseException as exc:  # carried to the caller, whatever it is
            error = exc
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    context = copy_context()
    threading.Thread(target=context.run, args=(run,), name="nightmill-function", daemon=True).start()
    return await done


def _raised(exc: BaseException) -> LiveReply:
    return LiveReply(500, error_body(name_and_text(exc), kind="exception", code=MODEL_ERROR))


def _reply(model: str, answer: Any) -> LiveReply:
    if isinstance(answer, str):
        return LiveReply(200, _chat_body(model, answer))
    try:
        dump = getattr(answer, "model_dump", None)
        whole = dump() if callable(dump) else answer
        if isinstance(whole, Mapping) and isinstance(whole.get("choices"), list | tuple):
            return LiveReply(200, msgspec.json.encode(dict(whole), enc_hook=str))
    except Exception as exc:  # the answer, its model_dump and the encoder run users' code
        return _raised(exc)
    message = f"the function returned {type(answer).__name__}: a text or an OpenAI-shaped answer is needed"
    return LiveReply(500, error_body(message, kind="exception", code=MODEL_ERROR))


def _chat_body(model: str, text: str) -> bytes:
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": scrub(text)},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
        }
    )
