"""Servers as data: what sets each of them apart. Nearly all of them speak the OpenAI wire format.

`SERVERS` are those that need no settings beyond a key; ``[providers.NAME]`` of the settings file changes one of
them or adds another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from nightmill.errors import UsageError
from nightmill.media import Kind
from nightmill.providers import Limits
from nightmill.providers._env import is_nearby, no_key, sendable

_MB = 1024 * 1024
_USUAL_BATCH = {"batch_requests": 50_000, "batch_bytes": 100 * _MB}  # where nobody says what a batch may hold
_INLINE_BYTES = 256_000_000 - 1024  # of a create with all its requests: nobody says which MB are meant
_TOOL_PROMPT_TOKENS = 804  # before the tools of a request: the most of Anthropic's table of them, 290 to 804 by model
_OPENAI_ONLY = frozenset({"key_header", "max_tokens_field", "media", "schema", "responses", "window"})
_NO_FENCE = (
    "where the server deletes no files, a batch whose create was not answered stays in doubt if it is not listed: "
    "nightmill resolve settles it"
)
_UP_TO_THE_ACCOUNT = "prompt tokens waiting in batches are capped by model and account: what is over waits its turn"
_GPT = r"(o[134]|gpt-[56])(?![0-9])"


@dataclass(frozen=True, slots=True)
class Server:
    """One server. What is empty is as at OpenAI, or not there."""

    base_url: str = ""  # with the version where the format has it there, without a slash at the end
    base_url_env: str = ""  # a variable that goes before ``base_url``
    base_url_path: str = ""  # what an address in that variable leaves out
    keys: tuple[str, ...] = ()  # variables that may hold the key, any one of which will do; none: it takes no key
    key_optional: bool = False
    each_key: bool = False  # is used, one after the other, rather than the first that is set
    same_account: bool = False  # all keys are of one account: they see each other's batches and share its limits
    key_header: str = "Authorization"  # with "Bearer" before the key; any other header holds the bare key
    headers: Mapping[str, str] = field(default_factory=dict)  # sent with every call
    max_tokens_field: str = "max_completion_tokens"
    schema: str = "json_schema"  # how an answer is bound to a schema: that, or "json_object", or "none"
    base64: bool = False  # whether embeddings come as base64 where that is asked for: fewer than half the bytes
    strict: bool = False  # whether that binds answers as closely as OpenAI's rules let it
    responses: bool = False  # whether it has "/responses" beside "/chat/completions"
    flex: bool = False  # whether it has a cheaper tier for live calls that may wait
    batch_url: str = "/v1"  # what the lines of a batch file have before "/chat/completions"
    window: str = "24h"  # how long a batch may take, in hours or days
    lists_whole: bool = False  # its lists have no pages, and do not say so
    media: str | tuple[Kind, ...] = ""  # whose models it has, see `_media.TAKES`, or what they are said to take
    thinks_first: str = ""  # how models that reason are called, as a pattern: no sampling, a higher cap
    limits: Limits = field(default_factory=Limits)  # no batch lane where ``batch_requests`` is 0
    runs_models: bool = False  # itself, so that on the user's own hardware they cost nothing
    hidden_tokens: int = 0  # most input tokens that it adds to a request by itself, and bills
    passes_on: str = ""  # how models are called that it has answered elsewhere, as a pattern
    keeps_days: int = 0  # how long the results of a batch are kept; 0: nobody says
    caveats: tuple[str, ...] = ()  # what to know of its models before one is chosen
    batch_caveats: tuple[str, ...] = (_NO_FENCE,)  # ... and of its batches
    example: str = "MODEL"
    wire: str = "openai"  # the format it speaks

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    def key_variables(self, env: Mapping[str, str]) -> tuple[str, ...]:
        """The variables whose keys are used, in order; of those that hold the same key the first."""
        held = {env[name].strip(): name for name in reversed(self.keys) if env.get(name, "").strip()}
        variables = tuple(name for name in self.keys if name in held.values())
        return variables if self.each_key else variables[:1]

    def key_variable(self, env: Mapping[str, str]) -> str | None:
        """The variable that holds a key, of those that may."""
        return next((name for name in self.keys if env.get(name, "").strip()), None)

    def lacks_key(self, env: Mapping[str, str]) -> bool:
        """Whether it takes no call without a key, and there is none."""
        return bool(self.keys) and not self.key_optional and self.key_variable(env) is None

    def runs_here(self, model: str, base_url: str) -> bool:
        """Whether ``model`` runs on hardware of the user's own."""
        elsewhere = bool(self.passes_on) and re.search(self.passes_on, model) is not None
        return self.runs_models and is_nearby(base_url) and not elsewhere


SERVERS: Mapping[str, Server] = MappingProxyType(
    {
        "openai": Server(
            "https://api.openai.com/v1", "OPENAI_BASE_URL", keys=("OPENAI_API_KEY",), thinks_first=_GPT,
            responses=True, base64=True, strict=True, flex=True, media="openai",
            limits=Limits(batch_requests=50_000, batch_bytes=200 * _MB, batch_inputs=50_000),
            keeps_days=30, batch_caveats=(_UP_TO_THE_ACCOUNT,), example="gpt-5-mini",
        ),
        "anthropic": Server(
            "https://api.anthropic.com", "ANTHROPIC_BASE_URL", keys=("ANTHROPIC_API_KEY",), key_header="x-api-key",
            wire="anthropic", media="anthropic", limits=Limits(batch_requests=100_000, batch_bytes=_INLINE_BYTES),
            hidden_tokens=_TOOL_PROMPT_TOKENS, keeps_days=29, example="claude-haiku-4-5",
            batch_caveats=(
                "a batch carries no name: if its create is not answered, it is held until its results, or you, tell",
                "a batch says how many rows it has answered only when it has ended",
            ),
        ),
        "gemini": Server(
            "https://generativelanguage.googleapis.com", "GEMINI_BASE_URL", keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            key_header="x-goog-api-key", wire="gemini", media="gemini", example="gemini-2.5-flash", keeps_days=42,
            batch_caveats=(
                "a batch that expires or is cancelled hands nothing back, and its rows go out again",
                "100 batches at a time, and prompt tokens waiting in them are capped by model: what is over waits",
            ),
            limits=Limits(
                batch_requests=100_000, batch_usual=1_000, batch_bytes=2_000 * _MB, window_s=172_800
            ),
        ),
        "azure": Server(
            "", "AZURE_OPENAI_ENDPOINT", "/openai/v1", keys=("AZURE_OPENAI_API_KEY",), key_header="api-key",
            batch_url="", thinks_first=_GPT, responses=True, base64=True,
            limits=Limits(batch_requests=100_000, batch_bytes=200 * _MB),
            batch_caveats=(_UP_TO_THE_ACCOUNT, "a batch may take longer than its window: it does not expire"),
            example="DEPLOYMENT",
        ),
        "groq": Server(
            "https://api.groq.com/openai/v1", keys=("GROQ_API_KEY",),
            limits=Limits(batch_requests=50_000, batch_bytes=100 * _MB), lists_whole=True,
            batch_caveats=("batches need a paid plan", "cached input costs no less in a batch"),
            example="openai/gpt-oss-20b",
        ),
        "openrouter": Server(
            "https://openrouter.ai/api/v1", keys=("OPENROUTER_API_KEY",), max_tokens_field="max_tokens",
            thinks_first="openai/" + _GPT, example="openai/gpt-5-mini",
        ),
        "deepseek": Server(
            "https://api.deepseek.com/v1", keys=("DEEPSEEK_API_KEY",), max_tokens_field="max_tokens",
            schema="json_object", thinks_first="deepseek-reasoner", example="deepseek-chat",
        ),
        "vllm": Server(
            "http://127.0.0.1:8000/v1", keys=("VLLM_API_KEY",), key_optional=True, responses=True, runs_models=True,
        ),
        "llamacpp": Server(
            "http://127.0.0.1:8080/v1", keys=("LLAMA_API_KEY",), key_optional=True, max_tokens_field="max_tokens",
            runs_models=True,
        ),
        # It ignores max_completion_tokens without a word.
        "ollama": Server(
            "http://127.0.0.1:11434/v1", max_tokens_field="max_tokens", responses=True, runs_models=True,
            passes_on=r"[:-]cloud$", example="llama3.2",
            caveats=("models whose names end in cloud are answered elsewhere, and billed there",),
        ),
        "lmstudio": Server(
            "http://127.0.0.1:1234/v1", max_tokens_field="max_tokens", responses=True, runs_models=True,
        ),
    }
)  # fmt: skip


def configured(name: str, table: Mapping[str, Any]) -> Server:
    """The server that ``name`` is called by, as ``[providers.NAME]`` has it.

    Raises:
        UsageError: it is one that nobody knows, and the table gives no address.
    """
    like = table.get("like", name)
    known = SERVERS.get(like)
    if known is None and like != name:
        raise UsageError(
            f"[providers.{name}]: like = {like!r} is no server",
            why=f"there are {', '.join(SERVERS)}",
            fix="choose one of these, or leave like out",
        )
    server = known or Server()
    said = {key: table[key] for key in ("headers", "same_account", *_OPENAI_ONLY) if key in table}
    if server.wire != "openai" and (vain := said.keys() & _OPENAI_ONLY):
        raise UsageError(
            f"[providers.{name}]: {' and '.join(sorted(vain))} would have no effect",
            why=f"it speaks the {server.wire} format, where this is fixed",
            fix=f"remove {' and '.join(sorted(vain))}",
        )
    if "api_key_env" in table:
        names = table["api_key_env"]
        keys = (names,) if isinstance(names, str) else tuple(names)
        said |= {"keys": keys, "key_optional": False, "each_key": len(keys) > 1}
    if "base_url" in table:
        said |= {"base_url": _checked(name, table["base_url"])}
        if server.base_url and server.wire == "openai":  # what is known of that server says nothing of another
            said |= {"keeps_days": 0, "batch_caveats": (_NO_FENCE,)}
    elif known is None:
        raise UsageError(
            f"[providers.{name}] gives no base_url",
            why=f"{name} is none of those that are known: {', '.join(SERVERS)}",
            fix=f'add its address, such as base_url = "http://127.0.0.1:8000/v1", or correct the name {name}',
        )
    limits = server.limits
    batch = table.get("batch")
    if batch is False:
        limits = Limits()
    elif batch and not limits.batch_requests:
        limits = replace(limits, **_USUAL_BATCH)
    if "window" in table:
        limits = replace(limits, window_s=int(table["window"][:-1]) * (3_600 if table["window"][-1] == "h" else 86_400))
    return replace(server, limits=limits, **said)


def key_of(name: str, server: Server, env: Mapping[str, str]) -> str:
    """The key for ``server``; empty where it needs none. Raises UsageError where one is missing."""
    variable = server.key_variable(env)
    if variable is not None:
        return sendable(variable, env[variable].strip())
    if server.lacks_key(env):
        raise no_key(name, " or ".join(server.keys))
    return ""


def address(name: str, server: Server, env: Mapping[str, str]) -> str:
    """Where ``server`` is. Raises UsageError where nobody says."""
    given = env.get(server.base_url_env, "").strip().rstrip("/") if server.base_url_env else ""
    if not given and not server.base_url:
        raise UsageError(
            f"no address for {name}",
            why=f"{server.base_url_env} is not set",
            fix=f"set {server.base_url_env} in the environment or in .env, or base_url in [providers.{name}]",
        )
    if given and not given.endswith(server.base_url_path):
        given += server.base_url_path
    return sendable(server.base_url_env, given) if given else server.base_url


def _checked(name: str, base_url: str) -> str:
    if re.fullmatch(r"https?://[!-~]+", base_url):
        return base_url
    raise UsageError(
        f"[providers.{name}]: base_url = {base_url!r} is no address",
        why="it begins with http:// or https:// and has no spaces",
        fix='for example "http://127.0.0.1:8000/v1"',
    )
