"""What Anthropic says beside its answers: refusals, limits, rate headers, batch objects."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from nightmill.errors import Limited, ProviderError
from nightmill.providers import BatchView, RateHint
from nightmill.providers._anthropic_shape import facts, own_error
from nightmill.providers._api import REFUSALS, refused, untrusted
from nightmill.providers._http import Reply, retry_after_s
from nightmill.providers._json import count, is_count

log = logging.getLogger(__name__)

RESULTS = "/results"  # a result file is named by its batch and this: it has no id of its own

_ABOUT_ACCOUNT = frozenset({"authentication_error", "billing_error", "permission_error"})
# Spend limits come as several types, in a limit's place too; the code in the details is not always there.
_OUT_OF_MONEY = re.compile("spend_limit|billing|on_hold")
_SAYS_SO = re.compile("your credit balance|you have reached your [^.]{0,40}(usage|spend) limit", re.IGNORECASE)

# -- refusals and limits -----------------------------------------------------------------------


def failure(op: str, reply: Reply, now: float) -> ProviderError:
    """What an answer that is no clean success means; to be raised by the caller.

    `Refused` and `Limited` only on the provider's own word; everything else is `Uncertain`. A body that is too
    large is refused before it is read, whoever says so.
    """
    error, status = own_error(reply.body), reply.status
    kind, message, code = facts(error)
    if error is not None and is_out_of_money(status, error):
        return refused(op, status, code or kind, message, "account", _FIXES)
    if status == 429:
        after = retry_after_s(reply.headers, now)
        return Limited(f"{op}: asked to wait", why=message or "status 429", after_s=after)
    if status == 413 or (error is not None and status in REFUSALS):
        why = message or "status 413: the request is too large"
        return refused(op, status, code or kind, why, _scope(op, kind), _FIXES)
    return untrusted(op, reply, message)


def is_out_of_money(status: int, error: Mapping[str, Any]) -> bool:
    """Whether a refusal is about money: it ends when somebody pays, or with the month."""
    kind, message, code = facts(error)
    said = kind == "billing_error" or _OUT_OF_MONEY.search(code) or _SAYS_SO.match(message)
    return 400 <= status < 500 and bool(said)


def _scope(op: str, kind: str) -> str:
    if kind in _ABOUT_ACCOUNT:
        return "account"
    return "job" if op == "create" and kind == "not_found_error" else "shard"


_FIXES = {
    "account": "check the key, its workspace and its billing",
    "job": "check the base URL; it has no version in it",
}


def must_stop(status: int, body: bytes) -> bool:
    """True when no call of this job will pass until someone acts: key, permission, money, model or endpoint."""
    if status in (401, 402, 403, 404):
        return True
    error = own_error(body) if 400 <= status < 500 else None
    return error is not None and is_out_of_money(status, error)


# -- rate headers ------------------------------------------------------------------------------

_PREFIX = "anthropic-ratelimit-"
_NO_HINT = RateHint()


def rate_hint(headers: Mapping[str, str], now: float) -> RateHint | None:
    """What the headers of an answer say about the quota; None if nothing. Resets are counted from its own ``Date``."""
    if f"{_PREFIX}requests-limit" not in headers and f"{_PREFIX}tokens-limit" not in headers:
        after = retry_after_s(headers, now)
        return None if after is None else RateHint(retry_after_s=after)
    at = _date(headers.get("date", "")) or now
    tokens = "tokens" if f"{_PREFIX}tokens-limit" in headers else "input-tokens"
    hint = RateHint(
        limit_requests=_whole(headers.get(f"{_PREFIX}requests-limit")),
        limit_tokens=_whole(headers.get(f"{_PREFIX}{tokens}-limit")),
        remaining_requests=_whole(headers.get(f"{_PREFIX}requests-remaining")),
        remaining_tokens=_whole(headers.get(f"{_PREFIX}{tokens}-remaining")),
        reset_requests_s=_until(headers.get(f"{_PREFIX}requests-reset", ""), at),
        reset_tokens_s=_until(headers.get(f"{_PREFIX}{tokens}-reset", ""), at),
        retry_after_s=retry_after_s(headers, now),
    )
    return None if hint == _NO_HINT else hint


def _until(text: str, at: float) -> float | None:
    moment = moment_of(text)
    return None if moment is None else max(0.0, moment - at)


@lru_cache(maxsize=64)
def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


@lru_cache(maxsize=1024)  # asked with every answer, and mostly the same few
def moment_of(text: Any) -> float | None:
    """Unix seconds of an RFC 3339 time; None for what is none."""
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and len(text) <= 15 and text.isascii() and text.isdigit() else None


# -- batch objects -----------------------------------------------------------------------------

_PHASES = {"in_progress": "running", "canceling": "cancelling", "ended": "ended"}


def batch_view(batch: Mapping[str, Any]) -> BatchView:
    """A batch object. Its ``id`` and ``processing_status`` must be texts; anything else may be missing.

    All requests count as ``processing`` until the batch has ended: what is done of it is not said before.
    """
    status = batch["processing_status"]
    phase = _PHASES.get(status)
    if phase is None:
        log.warning("batch %s has an unknown status; taken as running", batch["id"])
        phase = "running"
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    told = [count(number) for number in counts.values()]
    is_told = phase == "ended" and bool(counts) and not counts.get("processing")
    is_kept = phase == "ended" and (batch.get("results_url") or not batch.get("archived_at"))
    return BatchView(
        id=batch["id"],
        status=status,
        phase=phase,
        created_at=moment_of(batch.get("created_at")) or 0.0,
        total=sum(told) if counts and all(map(is_count, counts.values())) else None,
        completed=count(counts.get("succeeded")) if is_told else None,
        failed=sum(told) - count(counts.get("succeeded")) if is_told else None,
        output_file=f"{batch['id']}{RESULTS}" if is_kept else None,
        url="/v1/messages",
        expires_at=moment_of(batch.get("expires_at")),
        ended_at=moment_of(batch.get("ended_at")) if phase == "ended" else None,
    )
