"""What servers of the OpenAI shape say beside their answers: refusals, limits, rate headers, batch objects."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nightmill.errors import Limited, ProviderError, Refused
from nightmill.providers import BatchView, RateHint
from nightmill.providers._api import REFUSALS, refused, said, untrusted
from nightmill.providers._http import Reply, retry_after_s
from nightmill.providers._json import count, is_count, seconds
from nightmill.providers._openai_shape import ABOUT_JOB, FILTERED, facts, own_error, status_in, usage_of

log = logging.getLogger(__name__)

METADATA_KEY = "nightmill"
OUT_OF_MONEY = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "enforced_spend_limit_reached",
        "spend_limit_reached",
        "spending_limit_reached",
    }
)
_ABOUT_ACCOUNT = ("api_key", "auth", "permission", "quota", "billing", "account", "organization", "spend_limit")
_CAP = re.compile(r"limit:?\s*([\d][\d,_.]*)\s*enqueued", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|d|h|m|s)")
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

# -- refusals and limits -----------------------------------------------------------------------


def failure(op: str, reply: Reply, now: float) -> ProviderError:
    """What an answer that is no clean success means; to be raised by the caller.

    `Refused` and `Limited` only on the provider's own word; everything else is `Uncertain`.
    """
    error = own_error(reply.body)
    code, message = facts(error)
    status = reply.status
    if code in OUT_OF_MONEY:
        return refused(op, status, code, message, "account", _FIXES)
    if code == "token_limit_exceeded" or "nqueued token limit" in message:
        return _enqueued_limit(code, message)
    if status == 429:
        after = retry_after_s(reply.headers, now)
        return Limited(f"{op}: asked to wait", why=message or "status 429", after_s=after)
    if error is not None and status in REFUSALS:
        return refused(op, status, code, message, _scope(status, error), _FIXES)
    if op == "upload" and status in (404, 405, 501):  # whoever says so: an upload runs nothing
        why = f"there is no such call (status {status}: {said(reply, message)})"
        return Refused(f"{op}: refused", why=why, fix=_NO_BATCHES, status=status, provider_code=code)
    return untrusted(op, reply, message)


def _scope(status: int, error: Mapping[str, Any]) -> str:
    code = str(error.get("code") or "")
    if status in (401, 402, 403) or any(word in code for word in _ABOUT_ACCOUNT):
        return "account"
    if code in ABOUT_JOB or error.get("param") == "model":
        return "job"
    if status == 404:
        gone = re.search(r"no (such |)(file|batch)", str(error["message"]), re.IGNORECASE)
        return "shard" if gone else "job"
    return "shard"


_FIXES = {
    "account": "check the key, its project and its billing",
    "job": "check the model's name and the base URL",
}
_NO_BATCHES = "check the base URL; a server without batches takes --lane live"


def _enqueued_limit(code: str, message: str) -> Limited:
    found = _CAP.search(message)
    digits = re.sub(r"\D", "", found[1]) if found else None
    return Limited(
        "the enqueued-token limit is reached",
        why=message or code,
        fix="it is tried again when open batches have ended",
        enqueued_tokens_cap=_whole(digits),
    )


# -- rate headers ------------------------------------------------------------------------------


def rate_hint(headers: Mapping[str, str], now: float) -> RateHint | None:
    """What the headers of an answer say about the quota; None if nothing."""
    if _HINTS.isdisjoint(headers):
        return None
    hint = RateHint(
        limit_requests=_whole(headers.get("x-ratelimit-limit-requests")),
        limit_tokens=_whole(headers.get("x-ratelimit-limit-tokens")),
        remaining_requests=_whole(headers.get("x-ratelimit-remaining-requests")),
        remaining_tokens=_whole(headers.get("x-ratelimit-remaining-tokens")),
        reset_requests_s=duration_s(headers.get("x-ratelimit-reset-requests")),
        reset_tokens_s=duration_s(headers.get("x-ratelimit-reset-tokens")),
        retry_after_s=retry_after_s(headers, now),
    )
    return None if hint == _NO_HINT else hint


_NO_HINT = RateHint()
_HINTS = frozenset(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
) | {"retry-after", "retry-after-ms"}


@lru_cache(maxsize=1024)  # asked with every answer, and mostly the same few
def duration_s(text: str | None) -> float | None:
    """Seconds of a duration such as ``8.64s``, ``14ms``, ``6m0s`` or a plain number; None if it is none."""
    if not text:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else None


def _whole(text: str | None) -> int | None:
    return int(text) if text and len(text) <= 15 and text.isascii() and text.isdigit() else None


def must_stop(status: int, body: bytes) -> bool:
    """True when no call of this job will pass until someone acts: key, quota, money, model or endpoint."""
    if status in (401, 402, 404):
        return True
    code = facts(own_error(body))[0]
    if status == 403:
        return code not in FILTERED  # that would be about one row
    return 400 <= status < 500 and code in OUT_OF_MONEY


def true_status(status: int, body: bytes, *, plain: bool) -> int:
    """The status that an error within a success would have had: some servers can only tell it there.

    With ``plain`` a text for an error, and no answer, is what a server says of an address that it does not have.
    """
    if b'"error"' not in body or b'"choices"' in body or b'"data"' in body:
        return status
    if error := own_error(body):
        return status_in(error) or status
    return 404 if plain and own_error(body, plain=True) else status


# -- batch objects -----------------------------------------------------------------------------

_PHASES = {
    "validating": "running",
    "in_progress": "running",
    "finalizing": "running",
    "cancelling": "cancelling",
    "completed": "ended",
    "expired": "ended",
    "cancelled": "ended",
    "failed": "failed",
}


def batch_view(batch: Mapping[str, Any]) -> BatchView:
    """A batch object. Its ``id`` and ``status`` must be texts; anything else may be missing."""
    status = batch["status"]
    phase = _PHASES.get(status)
    if phase is None:
        log.warning("batch %s has an unknown status; taken as running", batch["id"])
        phase = "running"
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    output, ran = _text(batch.get("output_file_id")), count(counts.get("completed"))
    if phase == "failed" and (output or ran):
        phase = "ended"  # something ran after all: what there is was paid for and is collected
    metadata = batch.get("metadata")
    return BatchView(
        id=batch["id"],
        status=status,
        phase=phase,
        created_at=_moment(batch.get("created_at")),
        total=_count_or_none(counts.get("total")),
        completed=_count_or_none(counts.get("completed")),
        failed=_count_or_none(counts.get("failed")),
        output_file=output,
        error_file=_text(batch.get("error_file_id")),
        submission=_text(metadata.get(METADATA_KEY)) if isinstance(metadata, dict) else None,
        input_file=_text(batch.get("input_file_id")),
        refusal=_why_failed(batch.get("errors")) if phase == "failed" else None,
        model=_text(batch.get("model")),
        url=_text(batch.get("endpoint")),
        expires_at=_moment(batch.get("expires_at")) or None,
        ended_at=_moment(batch.get(f"{status}_at")) or None if phase == "ended" else None,
        usage=usage_of(batch),
    )


def _why_failed(errors: Any) -> Limited | Refused:
    data = errors.get("data") if isinstance(errors, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    first = entries[0] if entries else {}
    code, message = facts(first)
    if code == "token_limit_exceeded" or "nqueued token limit" in message:
        return _enqueued_limit(code, message)
    line = first.get("line")
    line = line if isinstance(line, int) and line > 0 else None
    scope = _scope(0, {**first, "message": message})
    if scope == "shard" and line is not None:
        scope = "line"
    return refused("validation", 0, code, message or "no reason given", scope, _FIXES, line=line)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _moment(value: Any) -> float:
    return seconds(value) or 0.0


def _count_or_none(value: Any) -> int | None:
    return value if is_count(value) else None
