"""Objects as Google's JSON shows them: protobuf's rules, so what is zero or empty is not there at all."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nightmill.simulator.files import FileRecord
from nightmill.simulator.gemini.errors import invalid
from nightmill.simulator.media import Kind

GENERATE, EMBED = "GenerateContentBatch", "EmbedContentBatch"


def stamp(unix_s: float) -> str:
    """A time (unix seconds) as protobuf's JSON writes it: UTC, microseconds, Z."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def file(base: str, record: FileRecord) -> dict[str, Any]:
    """A File. Only one that was made here, the results of a batch, can be downloaded.

    Args:
        base: where this API is, with its version: ``http://HOST:PORT/v1beta``.
    """
    made: dict[str, Any] = {
        "name": f"files/{record.id}",
        "displayName": record.filename,
        "mimeType": record.facts["mime_type"],
        "sizeBytes": str(record.size_bytes),
        "createTime": stamp(record.created_at),
        "updateTime": stamp(record.created_at),
        "expirationTime": "" if record.expires_at is None else stamp(record.expires_at),
        # The hex digits of the digest in base64, which is how Google sends its bytes.
        "sha256Hash": base64.b64encode(record.facts["digest"].hex().encode()).decode(),
        "uri": f"{base}/files/{record.id}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    return {name: value for name, value in made.items() if value}


def stats(total: int, successful: int, failed: int) -> dict[str, str]:
    """batchStats: counts are strings, a count of zero is left out, and what is neither is pending."""
    counts = {
        "requestCount": total,
        "successfulRequestCount": successful,
        "failedRequestCount": failed,
        "pendingRequestCount": total - successful - failed,
    }
    return {name: str(count) for name, count in counts.items() if count}


def details(tokens: Mapping[Kind, int]) -> list[dict[str, Any]]:
    """Tokens by what they are of."""
    return [{"modality": kind.upper(), "tokenCount": number} for kind, number in sorted(tokens.items()) if number]


def usage(
    prompt: int,
    candidates: int,
    *,
    thoughts: int = 0,
    cached: Mapping[Kind, int] | None = None,
    tier: str | None = None,
    media: Mapping[Kind, int] | None = None,
) -> dict[str, Any]:
    """usageMetadata: the prompt includes media and what was cached, the candidates do not include the thoughts."""
    made: dict[str, Any] = {"promptTokenCount": prompt}
    if cached and any(cached.values()):
        made["cachedContentTokenCount"] = sum(cached.values())
        made["cacheTokensDetails"] = details(cached)
    if candidates:
        made["candidatesTokenCount"] = candidates
    if thoughts:
        made["thoughtsTokenCount"] = thoughts
    made["totalTokenCount"] = prompt + candidates + thoughts
    other: dict[Kind, int] = {kind: number for kind, number in (media or {}).items() if kind is not Kind.TEXT}
    by_kind: dict[Kind, int] = {Kind.TEXT: prompt - sum(other.values())}
    made["promptTokensDetails"] = details(by_kind | other)
    if tier is not None:
        made["serviceTier"] = tier
    return made


def model(name: str, *, embeds: bool) -> dict[str, Any]:
    """A Model."""
    methods = (
        ["embedContent", "countTokens", "asyncBatchEmbedContent"]
        if embeds
        else ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
    )
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 2048 if embeds else 1_048_576,
        "outputTokenLimit": 1 if embeds else 65_536,
        "supportedGenerationMethods": methods,
    }


def page(
    items: Sequence[Any], ids: Iterable[str], *, size: str | None, token: str | None, default: int, most: int
) -> tuple[list[Any], str | None]:
    """A page of ``items``, and the token of the next.

    Args:
        ids: of the items, in their order; a token names the last one shown, so what is added in front moves nothing.
        size, token: pageSize and pageToken as the query has them.

    Raises:
        GeminiError: 400, for a size or a token that is none.
    """
    known = list(ids)
    if size is not None and not size.isdecimal():
        raise invalid(f"Invalid value at 'page_size' (TYPE_INT32), \"{size}\"")
    limit = min(int(size or 0) or default, most)
    start = 0
    if token:
        start = _after(known, token)
    shown = list(items[start : start + limit])
    more = start + limit < len(known)
    return shown, base64.urlsafe_b64encode(msgspec.json.encode(known[start + limit - 1])).decode() if more else None


def _after(known: Sequence[str], token: str) -> int:
    """The place after the item a token names."""
    try:
        return known.index(msgspec.json.decode(base64.urlsafe_b64decode(token), type=str)) + 1
    except (ValueError, msgspec.DecodeError):
        raise invalid("Page token is not valid.") from None
