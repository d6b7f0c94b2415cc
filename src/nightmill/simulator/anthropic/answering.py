"""Answers in Anthropic's shape: a Messages body in, a message out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from nightmill.simulator.answering import (
    MESSAGE_TOKENS,
    Ask,
    Model,
    Said,
    digest_of,
    number_of,
    snapshot,
    text_tokens,
)
from nightmill.simulator.anthropic.caching import Block, Weighed, weigh
from nightmill.simulator.anthropic.media import look, weight
from nightmill.simulator.anthropic.wire import ApiError, unknown_model
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.formats import Reply, encode
from nightmill.simulator.instances import Unsatisfiable
from nightmill.simulator.media import Find, told
from nightmill.simulator.prefixes import Prefixes

_ONLY_LIVE = ("stream", "speed", "store", "previous_thread_event_id", "cache_hint", "context_hint")
_ROLES = ("user", "assistant", "system")  # the last since version 2026-10-21, in the official client's types
_TOOL_PROMPTS = (  # tokens said before the tools of a request: its models, by choice auto or none, by any or a tool
    (r"opus-4-8", 290, 410),
    (r"opus-4-7", 675, 804),
    (r"(opus|sonnet)-4-6", 497, 589),
    (r"(opus|sonnet|haiku)-4-5", 496, 588),
    (r"(opus|sonnet)-4", 313, 315),
    (r"sonnet-5(?!-)", 354, 474),
    (r"3-opus", 530, 281),
    (r"3(-5)?-haiku", 264, 340),
    (r"", 675, 804),  # of the models that nobody has a number for: the most that there is
)
_THOUGHT = "Let me think about this for a moment."


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]]


class _Output(msgspec.Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A Messages body. The real API, too, refuses fields it does not know."""

    model: str
    max_tokens: int
    messages: list[_Message]
    system: str | list[dict[str, Any]] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: _Output | None = None
    output_format: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    store: bool | None = None
    previous_thread_event_id: str | None = None
    cache_hint: Any = None
    context_hint: Any = None
    context_management: dict[str, Any] | None = None
    container: Any = None
    diagnostics: Any = None
    mcp_servers: list[dict[str, Any]] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class Counted(msgspec.Struct):
    """A body to count tokens of."""

    model: str
    messages: list[_Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


_decode_asked = msgspec.json.Decoder(Asked).decode
_decode_counted = msgspec.json.Decoder(Counted).decode


def _parsed(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.ValidationError as bad:
        raise ApiError(400, _worded(str(bad))) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(400, "The request body is not valid JSON") from None


def _worded(message: str) -> str:
    """msgspec's ``Object missing required field `x` - at `$.y` `` as Anthropic would put it."""
    what, _, where = message.partition(" - at ")
    at = where.strip("`").removeprefix("$").lstrip(".").replace("[...]", ".0")
    if what.startswith("Object missing required field"):
        return f"{at + '.' if at else ''}{what.split('`')[1]}: Field required"
    if what.startswith("Object contains unknown field"):
        return f"{at + '.' if at else ''}{what.split('`')[1]}: Extra inputs are not permitted"
    return f"{at}: {what}"


def count(body: bytes, catalogue: Catalogue, find: Find) -> int:
    """Tokens of a prompt that is only to be counted. Raises ApiError."""
    asked: Counted = _parsed(_decode_counted, body)
    if not catalogue.knows(asked.model):
        raise unknown_model(asked.model)
    look(asked.model, [message.content for message in asked.messages], find, catalogue)
    return sum(block.tokens for block in _blocks(asked))


def _blocks(asked: Asked | Counted) -> Iterator[Block]:
    """The pieces of a prompt, in the order in which caches see them."""
    if asked.tools:
        yield Block(_tool_prompt(asked), b"tools")
    for tool in asked.tools or ():
        yield Block(text_tokens(encode(tool).decode()), _said(tool), tool.get("cache_control"))
    if asked.system:
        yield Block(MESSAGE_TOKENS, b"system")
        yield from _content(asked.system)
    for message in asked.messages:
        yield Block(MESSAGE_TOKENS, message.role.encode())
        yield from _content(message.content)


def _said(block: dict[str, Any]) -> bytes:
    return encode({key: value for key, value in block.items() if key != "cache_control"})


def _tool_prompt(asked: Asked | Counted) -> int:
    """Tokens of what models are told about tools before those of the caller.

    Source: Anthropic's table of tool use system prompts, as of the family 5.
    """
    choice = asked.tool_choice if isinstance(asked, Asked) else None
    is_forced = (choice or {}).get("type") in ("any", "tool")
    _, free, forced = next(each for each in _TOOL_PROMPTS if re.search(each[0], asked.model))
    return forced if is_forced else free


def _content(content: str | list[dict[str, Any]]) -> Iterator[Block]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for block in blocks:
        yield Block(weight(block), _said(block), block.get("cache_control"))


class Answers:
    """Answers requests. Thread-safe; remembers nothing of them but what of their prompts is cached."""

    def __init__(self, model: Model, catalogue: Catalogue, prefixes: Prefixes) -> None:
        self._model, self._catalogue, self._prefixes = model, catalogue, prefixes

    def answer(
        self, body: bytes, find: Find, *, account: str, batch: bool, twists: frozenset[str], salt: int = 0
    ) -> Reply:
        """The message that answers ``body``.

        Args:
            find: an uploaded file by its id.
            account: whose caches it may read and write.
            batch: whether it runs in a batch, which allows less.
            twists: names from `faults.ANSWER_FAULTS` to apply.
            salt: another answer to the same body for another salt.

        Raises:
            ApiError: what is wrong with the body.
        """
        asked: Asked = _parsed(_decode_asked, body)
        self._check(asked, batch)
        digest = digest_of(body)
        seen = look(asked.model, [message.content for message in asked.messages], find, self._catalogue)
        ask = Ask(asked.max_tokens, _schema(asked), _forced_tool(asked), told(seen))
        try:
            said = self._model.say(ask, number_of(digest, salt), twists)
        except Unsatisfiable as why:
            raise ApiError(400, f"output_config.format.schema: {why}") from None
        thought = _think(asked, said)
        weighed = self._weigh(asked, account, digest, batch=batch)
        most = self._catalogue.context(asked.model)
        if seen and 0 < most < weighed.total:
            raise ApiError(400, f"prompt is too long: {weighed.total} tokens > {most} maximum")
        made: dict[str, Any] = {
            "id": f"msg_{digest.hex()}",
            "type": "message",
            "role": "assistant",
            "model": snapshot(asked.model, digest) if "model_snapshot_changes" in twists else asked.model,
            "content": _content_of(said, thought, digest),
            "stop_reason": _stop(said),
            "stop_sequence": None,
            "stop_details": _details(said),
        }
        if "usage_missing" not in twists:
            made["usage"] = _usage(said, weighed, batch=batch)
        raw = encode(made)
        if "pretty_printed_bodies" in twists:
            raw = msgspec.json.format(raw, indent=2)
        return Reply(
            200,
            raw,
            asked.model,
            weighed.total,
            said.tokens,
            cached_tokens=weighed.read,
            written_tokens=weighed.written,
            written_long_tokens=weighed.written_long,
            digest=digest,
        )

    def _weigh(self, asked: Asked, account: str, digest: bytes, *, batch: bool) -> Weighed:
        blocks = list(_blocks(asked))
        if asked.cache_control is not None:
            blocks[-1] = replace(blocks[-1], mark=asked.cache_control)
        luck = int.from_bytes(digest[8:12], "big")
        return weigh(self._prefixes, account, asked.model, blocks, batch=batch, luck=luck)

    def _check(self, asked: Asked, batch: bool) -> None:
        if asked.max_tokens < 1:
            raise ApiError(400, "max_tokens: Input should be greater than or equal to 1")
        if not asked.messages:
            raise ApiError(400, "messages: at least one message is required")
        for number, message in enumerate(asked.messages):
            if message.role not in _ROLES:
                raise ApiError(400, f"messages.{number}.role: Input should be one of {', '.join(_ROLES)}")
            if not message.content:
                raise ApiError(400, f"messages.{number}: all messages must have non-empty content")
        if asked.temperature is not None and not 0 <= asked.temperature <= 1:
            raise ApiError(400, "temperature: Input should be between 0 and 1")
        if asked.top_p is not None and not 0 <= asked.top_p <= 1:
            raise ApiError(400, "top_p: Input should be between 0 and 1")
        if batch:
            wrong = next((name for name in _ONLY_LIVE if getattr(asked, name)), None)
            if wrong is not None:
                raise ApiError(400, f"{wrong}: not supported in message batches")
        if asked.stream or asked.speed == "fast" or asked.inference_geo not in (None, "global"):
            raise ApiError(400, "Streams, fast speed and places of inference are not simulated")
        if not self._catalogue.knows(asked.model):
            raise unknown_model(asked.model)


def _schema(asked: Asked) -> dict[str, Any] | None:
    """The schema the answer must fit; None when plain text will do."""
    form = (asked.output_config.format if asked.output_config else None) or asked.output_format
    if form is None:
        return None
    schema = form.get("schema")
    if form.get("type") != "json_schema" or not isinstance(schema, dict):
        raise ApiError(400, "output_config.format: Input should be of type 'json_schema' with a schema")
    return schema


def _forced_tool(asked: Asked) -> tuple[str, dict[str, Any]] | None:
    """Name and input schema of the tool that the caller insists on; left alone, this model calls none."""
    choice = asked.tool_choice or {}
    if choice.get("type") not in ("any", "tool"):
        return None
    is_any, wanted = choice["type"] == "any", choice.get("name")
    tools = [tool for tool in asked.tools or () if is_any or tool.get("name") == wanted]
    if not tools:
        raise ApiError(400, f"tool_choice: Tool '{wanted}' not found in provided tools")
    return str(tools[0].get("name")), tools[0].get("input_schema") or {"type": "object"}


def _think(asked: Asked, said: Said) -> str | None:
    """What stands in the thinking block, where the caller wants one; its tokens go into the answer's."""
    if (asked.thinking or {}).get("type") not in ("enabled", "adaptive"):
        return None
    said.reasoning += text_tokens(_THOUGHT)
    said.tokens += text_tokens(_THOUGHT)
    return _THOUGHT


def _content_of(said: Said, thought: str | None, digest: bytes) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if thought is not None:
        made.append({"type": "thinking", "thinking": thought, "signature": digest.hex()})
    if said.call is not None:
        name, arguments = said.call
        tool = {"id": f"toolu_{digest.hex()}", "name": name, "input": msgspec.json.decode(arguments)}
        made.append({"type": "tool_use", **tool})
    elif said.content:
        made.append({"type": "text", "text": said.content, "citations": None})
    return made


def _stop(said: Said) -> str:
    if said.refusal is not None:
        return "refusal"
    return {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}[said.finish]


def _details(said: Said) -> dict[str, Any] | None:
    return None if said.refusal is None else {"type": "refusal", "category": None, "explanation": said.refusal}


def _usage(said: Said, weighed: Weighed, *, batch: bool) -> dict[str, Any]:
    """Here ``input_tokens`` leaves out what a cache had or got."""
    written = weighed.written + weighed.written_long
    return {
        "input_tokens": weighed.total - weighed.read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": weighed.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": weighed.written,
            "ephemeral_1h_input_tokens": weighed.written_long,
        },
        "output_tokens": said.tokens,
        "output_tokens_details": {"thinking_tokens": said.reasoning},
        "server_tool_use": None,
        "service_tier": "batch" if batch else "standard",
        "inference_geo": "global",
    }
