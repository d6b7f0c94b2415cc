"""Answers in Gemini's shape. What is said comes from the pretended model that every format shares."""

from __future__ import annotations

from typing import Any

import msgspec

from nightmill.simulator.answering import (
    NO_TWIST,
    Ask,
    Model,
    Said,
    digest_of,
    number_of,
    prompt_tokens,
    snapshot,
    text_tokens,
    unit_vector,
)
from nightmill.simulator.formats import Reply, encode
from nightmill.simulator.gemini import reading, showing
from nightmill.simulator.gemini.errors import GeminiError, invalid
from nightmill.simulator.gemini.media import look
from nightmill.simulator.instances import Unsatisfiable
from nightmill.simulator.media import Find, Kind, Sights

_LEAST_CACHED_TOKENS = 1024  # what a shared beginning needs before it is cached
_MOST_DIMENSIONS = 3072
_MOST_TOKENS = 1_048_576  # of a prompt; looked at where it has media


def count(asked: reading.Generate) -> int:
    """Tokens of a prompt."""
    return prompt_tokens("".join(texts) for texts in reading.texts_of(asked))


def generate(
    mind: Model, raw: bytes, model: str, find: Find, *, twists: frozenset[str] = NO_TWIST, salt: int = 0
) -> Reply:
    """The response to a GenerateContentRequest; one that has none gets a 400. Raises nothing."""
    digest = digest_of(raw)
    try:
        asked = reading.read(raw, reading.Generate)
        reading.check(asked)
        return _generated(mind, asked, look(asked, model, find), digest, model, twists, salt)
    except GeminiError as refused:
        return Reply(refused.status, refused.body(), digest=digest)


def _generated(
    mind: Model,
    asked: reading.Generate,
    sights: Sights,
    digest: bytes,
    model: str,
    twists: frozenset[str],
    salt: int,
) -> Reply:
    config = asked.generation_config or reading.Generation()
    prompt = count(asked) + sights.tokens.total()
    if sights.media and prompt > _MOST_TOKENS:
        message = f"The input token count ({prompt}) exceeds the maximum number of tokens allowed ({_MOST_TOKENS})."
        raise invalid(message)
    told_before, heard_before = _cached(asked, digest), _heard_before(sights, digest)
    cached, thoughts = told_before + heard_before, _thoughts(config, digest)
    cap = None if config.max_output_tokens is None else max(1, config.max_output_tokens - thoughts)
    ask = Ask(cap=cap, schema=reading.schema_of(config), tool=reading.called_tool(asked), seen=sights.told())
    try:
        said = [mind.say(ask, number_of(digest, salt, i), twists) for i in range(config.candidate_count or 1)]
    except Unsatisfiable as why:
        raise invalid(f"* GenerateContentRequest.generation_config.response_schema: {why}") from None
    made: dict[str, Any] = {}
    is_blocked = any(one.refusal is not None for one in said)
    if is_blocked:
        made["promptFeedback"] = {"blockReason": "SAFETY"}
        candidates = thoughts = 0
    else:
        made["candidates"] = [_candidate(i, one) for i, one in enumerate(said)]
        candidates = sum(one.tokens - one.reasoning for one in said)
        thoughts += sum(one.reasoning for one in said)
    if "usage_missing" not in twists:
        before = {Kind.TEXT: told_before, Kind.AUDIO: heard_before}
        made["usageMetadata"] = showing.usage(prompt, candidates, thoughts=thoughts, cached=before, media=sights.tokens)
    made["modelVersion"] = snapshot(model, digest) if "model_snapshot_changes" in twists else model
    made["responseId"] = digest.hex()
    return Reply(
        200, encode(made), model,
        input_tokens=prompt, output_tokens=candidates + thoughts, cached_tokens=cached, digest=digest,
        audio_tokens=sights.tokens[Kind.AUDIO], cached_audio_tokens=heard_before,
        image_tokens=sights.tokens[Kind.IMAGE], video_tokens=sights.tokens[Kind.VIDEO],
    )  # fmt: skip


def embed(mind: Model, raw: bytes, model: str, *, twists: frozenset[str] = NO_TWIST) -> Reply:
    """The response to one EmbedContentRequest, as a batch has it: the vector, and the tokens of its text."""
    digest = digest_of(raw)
    try:
        asked = reading.read(raw, reading.Embed)
        vector, tokens = _embedded(mind, asked)
    except GeminiError as refused:
        return Reply(refused.status, refused.body(), digest=digest)
    made: dict[str, Any] = {"embedding": {"values": vector}}
    if "usage_missing" not in twists:
        made["tokenCount"] = tokens
    return Reply(200, encode(made), model, input_tokens=tokens, digest=digest)


def embed_live(
    mind: Model, raw: bytes, asked: list[reading.Embed], model: str, *, many: bool, twists: frozenset[str]
) -> Reply:
    """The response to a call that embeds ``asked``, with one usage for all; a 400 for one that has none."""
    digest = digest_of(raw)
    try:
        found = [_embedded(mind, one) for one in asked]
    except GeminiError as refused:
        return Reply(refused.status, refused.body(), digest=digest)
    vectors = [{"values": vector} for vector, _ in found]
    tokens = sum(tokens for _, tokens in found)
    made: dict[str, Any] = {"embeddings": vectors} if many else {"embedding": vectors[0]}
    if "usage_missing" not in twists:
        made["usageMetadata"] = showing.usage(tokens, 0)
    return Reply(200, encode(made), model, input_tokens=tokens, digest=digest)


def _embedded(mind: Model, asked: reading.Embed) -> tuple[list[float], int]:
    """A vector of length 1, and the tokens of what it stands for."""
    text = embedded_text(asked)
    size = mind.dimensions if asked.output_dimensionality is None else asked.output_dimensionality
    if not 1 <= size <= _MOST_DIMENSIONS:
        raise invalid(f"* EmbedContentRequest.output_dimensionality: must be between 1 and {_MOST_DIMENSIONS}.")
    return [round(value, 8) for value in unit_vector(text.encode(), size)], text_tokens(text)


def embedded_text(asked: reading.Embed) -> str:
    """The text to embed, or a 400."""
    parts = asked.content.parts if asked.content is not None else []
    if any(part.inline_data is not None or part.file_data is not None for part in parts):
        raise invalid("* EmbedContentRequest.content: only text is taken by this model.")
    text = "".join(part.text or "" for part in parts)
    if not text:
        raise invalid("* EmbedContentRequest.content: contents is empty.")
    return text


def _thoughts(config: reading.Generation, digest: bytes) -> int:
    """Tokens spent on thinking, which count against the cap: none, unless the request asks for thoughts."""
    asked = config.thinking_config
    if asked is None or asked.thinking_budget == 0 or (asked.thinking_budget is None and asked.thinking_level is None):
        return 0
    wanted = 16 + digest[0] % 48
    if asked.thinking_budget is not None and asked.thinking_budget > 0:
        wanted = min(wanted, asked.thinking_budget)
    return wanted if config.max_output_tokens is None else min(wanted, config.max_output_tokens // 2)


def _cached(asked: reading.Generate, digest: bytes) -> int:
    """Tokens of the prompt that were in the cache: a long system instruction is, for three requests of four."""
    if asked.system_instruction is None or digest[1] % 4 == 0:
        return 0
    tokens = sum(text_tokens(part.text or "") for part in asked.system_instruction.parts)
    return tokens if tokens >= _LEAST_CACHED_TOKENS else 0


def _heard_before(sights: Sights, digest: bytes) -> int:
    """Tokens of sound that were in the cache: long sound is, for two requests of four."""
    tokens = sights.tokens[Kind.AUDIO]
    return tokens if tokens >= _LEAST_CACHED_TOKENS and digest[2] % 2 else 0


def _candidate(index: int, said: Said) -> dict[str, Any]:
    content: dict[str, Any] = {"role": "model"}
    if said.call is not None:
        content["parts"] = [{"functionCall": {"name": said.call[0], "args": msgspec.json.decode(said.call[1])}}]
    elif said.content:
        content["parts"] = [{"text": said.content}]
    return {"content": content, "finishReason": "MAX_TOKENS" if said.finish == "length" else "STOP", "index": index}
