"""What Gemini says beside its answers: refusals, limits, files, batches as long-running operations."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from nightmill.errors import Limited, ProviderError, Refused
from nightmill.providers import BatchView, RateHint
from nightmill.providers._api import REFUSALS, refused, untrusted
from nightmill.providers._gemini_shape import own_error, word_of
from nightmill.providers._http import Reply, retry_after_s, shorten
from nightmill.providers._openai_talk import duration_s
from nightmill.types import FailureKind

log = logging.getLogger(__name__)

WINDOW_S = 172_800
_GONE = re.compile(r"may not exist|does not exist|not found", re.IGNORECASE)
_A_FILE = re.compile(r"\bfiles?\b", re.IGNORECASE)
_KEY_REASONS = ("API_KEY", "ACCESS_TOKEN", "SERVICE_DISABLED", "BILLING", "CONSUMER", "USER_PROJECT", "ACCOUNT_STATE")
_ABOUT_ACCOUNT = re.compile(r"api key|billing|user location|free tier is not|suspended", re.IGNORECASE)
_OUT_OF_MONEY = re.compile(r"prepay|depleted|spend(ing)? (cap|limit)", re.IGNORECASE)  # any 429 speaks of billing
_FIXES = {
    "account": "check the key, its project and its billing",
    "job": "check the model's name and the base URL",
}


class Fault(NamedTuple):
    """An error of Gemini's, taken apart."""

    word: str = ""  # "RESOURCE_EXHAUSTED"
    message: str = ""
    reason: str = ""  # of its ErrorInfo: "API_KEY_INVALID"
    retry_s: float | None = None
    quotas: tuple[Mapping[str, Any], ...] = ()  # the violations of its QuotaFailure

    @property
    def is_about_account(self) -> bool:
        """Whether no call of this key will pass until a person acts, or a day has gone by."""
        if self.reason.startswith(_KEY_REASONS):
            return True
        if self.word == "RESOURCE_EXHAUSTED":
            a_day = any("perday" in str(quota.get("quotaId", "")).lower() for quota in self.quotas)
            return a_day or _OUT_OF_MONEY.search(self.message) is not None
        words = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED")
        return self.word in words and _ABOUT_ACCOUNT.search(self.message) is not None

    @property
    def enqueued_cap(self) -> int | None:
        """The tokens that may wait in batches, where this is about them and says how many."""
        for quota in self.quotas:
            value = str(quota.get("quotaValue", ""))
            if re.search("enqueued.*token|batch.*token", str(quota.get("quotaId", "")), re.I) and value.isdigit():
                return int(value[:15])
        return None


def fault_in(body: bytes) -> Fault | None:
    """The error in a body; None where it is not Gemini's own."""
    error = own_error(body)
    return None if error is None else fault_of(error)


def fault_of(error: Mapping[str, Any]) -> Fault:
    given = error.get("details")
    details = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    reasons = [str(each["reason"]) for each in details if isinstance(each.get("reason"), str)]
    waits = [duration_s(each["retryDelay"]) for each in details if isinstance(each.get("retryDelay"), str)]
    lists = [each["violations"] for each in details if isinstance(each.get("violations"), list)]
    quotas = tuple(each for violations in lists for each in violations if isinstance(each, dict))
    message = shorten(str(error.get("message") or ""), 500)
    return Fault(word_of(error), message, next(iter(reasons), ""), next(iter(waits), None), quotas)


def failure(op: str, reply: Reply, now: float) -> ProviderError:
    """What an answer that is no clean success means; to be raised by the caller.

    `Refused` and `Limited` only on the provider's own word; everything else is `Uncertain`.
    """
    fault, status = fault_in(reply.body), reply.status
    if fault is not None and status in (400, 401, 402, 403, 429) and fault.is_about_account:
        return _refused(op, status, fault, "account")
    if status == 429:
        told = fault or Fault()
        after = retry_after_s(reply.headers, now) if told.retry_s is None else told.retry_s
        why = told.message or "status 429"
        return Limited(f"{op}: asked to wait", why=why, after_s=after, enqueued_tokens_cap=told.enqueued_cap)
    if fault is not None and status in REFUSALS:
        return _refused(op, status, fault, _scope(status, fault))
    return untrusted(op, reply, fault.message if fault else "")


def _scope(status: int, fault: Fault) -> str:
    if status in (403, 404) and _A_FILE.search(fault.message):  # the input file: one that is gone is answered with 403
        return "shard"
    if status in (401, 402, 403):
        return "account"
    return "job" if status == 404 else "shard"


def _refused(op: str, status: int, fault: Fault, scope: str) -> Refused:
    return refused(op, status, (fault.reason or fault.word).lower(), fault.message, scope, _FIXES)


def is_gone(problem: ProviderError) -> bool:
    """Whether a refusal is Gemini's word that the file it is about is not there: a 404, or a 403 that says so."""
    if not isinstance(problem, Refused):
        return False
    return problem.status == 404 or (problem.status == 403 and _GONE.search(problem.why) is not None)


def rate_hint(reply: Reply, now: float) -> RateHint | None:
    """How long to wait, from an answer that asks to; Gemini says nothing else of its quota."""
    if reply.status != 429:
        return None
    fault = fault_in(reply.body) or Fault()
    after = retry_after_s(reply.headers, now) if fault.retry_s is None else fault.retry_s
    return None if after is None else RateHint(retry_after_s=after)


def misses_file(reply: Reply) -> bool:
    """Whether a request was refused for a file that it names, which is not there, or not ours."""
    fault = fault_in(reply.body) if reply.status in (400, 403, 404) else None
    return fault is not None and _A_FILE.search(fault.message) is not None and _GONE.search(fault.message) is not None


def must_stop(status: int, body: bytes) -> bool:
    """True when no call of this job will pass until someone acts: key, quota of a day, money, model."""
    if status in (401, 402, 403, 404):
        return not misses_file(Reply(status, {}, body))
    fault = fault_in(body) if status in (400, 429) else None
    return fault is not None and fault.is_about_account


# -- files ---------------------------------------------------------------------------------------


def file_name(submission: str) -> str:
    """The id under which a submission's file lies: its own, and of the alphabet and length that ids may have."""
    return f"files/nm-{hashlib.blake2b(submission.encode(), digest_size=16).hexdigest()}"


def is_same_file(told: Mapping[str, Any], file: Path) -> bool:
    """Whether a file at the provider has the bytes of ``file``, by its SHA-256, raw or in hexadecimal in base64."""
    said = told.get("sha256Hash")
    if not isinstance(said, str) or not said:
        return False
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    known = (digest.digest(), digest.hexdigest().encode())
    return said == digest.hexdigest() or said in {base64.b64encode(each).decode() for each in known}


# -- batches -------------------------------------------------------------------------------------

_PHASES = {
    "UNSPECIFIED": "running",
    "QUEUED": "running",
    "PENDING": "running",
    "RUNNING": "running",
    "CANCELLING": "cancelling",
    "SUCCEEDED": "ended",
    "PARTIALLY_SUCCEEDED": "ended",
    "CANCELLED": "ended",
    "EXPIRED": "ended",
    "FAILED": "failed",
}
_REFUSALS = frozenset(
    ("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
     "UNAUTHENTICATED")
)  # fmt: skip


def word_of_status(status: str) -> str:
    """``EXPIRED`` of ``BATCH_STATE_EXPIRED`` and ``JOB_STATE_EXPIRED``."""
    return status.rpartition("STATE_")[2]


def unanswered(status: str) -> FailureKind:
    """What a request without a line is: a batch that expired, or was cancelled, gives nothing of it back."""
    kinds = {"EXPIRED": FailureKind.EXPIRED, "CANCELLED": FailureKind.CANCELLED}
    return kinds.get(word_of_status(status), FailureKind.MISSING)


def batch_view(operation: Mapping[str, Any]) -> BatchView:
    """A batch, which is a long-running operation. Its ``name`` must be a text; anything else may be missing."""
    about = _object(operation.get("metadata"))
    status = _status(operation, about)
    phase = _PHASES.get(word_of_status(status))
    if phase is None:
        log.warning("batch %s has an unknown state; taken as running", operation["name"])
        phase = "running"
    given = _object(about.get("inputConfig"))
    counts = _Counts.of(_object(about.get("batchStats")))
    output = _text(_object(about.get("output")).get("responsesFile"))
    output = output or _text(_object(operation.get("response")).get("responsesFile"))
    fault = fault_of(_object(operation.get("error")))
    if phase == "failed" and (output or not counts.says_nothing_ran(fault)):
        phase = "ended"  # what of it ran was paid for: it is accounted for like any other
    created_at = moment(about.get("createTime"))
    proven = output is not None or phase not in ("ended", "failed") or counts.add_up
    return BatchView(
        id=operation["name"],
        status=status,
        phase=phase,
        created_at=created_at,
        total=counts.total,
        completed=counts.completed if proven else None,
        failed=counts.failed if proven else None,
        output_file=output,
        submission=_text(about.get("displayName")),
        input_file=_text(given.get("fileName", given.get("file_name"))),
        refusal=_why_failed(fault) if phase == "failed" else None,
        model=(_text(about.get("model")) or "").removeprefix("models/") or None,
        expires_at=created_at + WINDOW_S if created_at else None,
        ended_at=moment(about.get("endTime", about.get("updateTime"))) or None if phase == "ended" else None,
    )


def _status(operation: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    state = _text(about.get("state"))
    if state is not None:
        return state
    if operation.get("done") is not True:
        return "BATCH_STATE_UNSPECIFIED"
    error = _object(operation.get("error"))
    if not error:
        return "BATCH_STATE_SUCCEEDED"
    return "BATCH_STATE_CANCELLED" if word_of(error) == "CANCELLED" else "BATCH_STATE_FAILED"


class _Counts(NamedTuple):
    """The provider's own counts of a batch's requests; all None where it gives none."""

    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    pending: int | None = None

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> _Counts:
        """Numbers are texts here, and a number of zero is left out."""
        total = _whole(stats.get("requestCount"))
        if not total:
            return cls()
        named = ("successfulRequestCount", "failedRequestCount", "pendingRequestCount")
        return cls(total, *(_whole(stats.get(name, 0)) for name in named))

    @property
    def add_up(self) -> bool:
        """Whether they tell of every request: then what is not counted as completed did not run."""
        parts = (self.completed, self.failed, self.pending)
        return self.total is not None and sum(part or 0 for part in parts) == self.total and None not in parts

    def says_nothing_ran(self, fault: Fault) -> bool:
        if self.total is None:
            return fault.word in _REFUSALS
        return self.add_up and not self.completed and not self.failed


def _why_failed(fault: Fault) -> Limited | Refused:
    if fault.word == "RESOURCE_EXHAUSTED" and not fault.is_about_account:
        cap = fault.enqueued_cap
        return Limited("the batch was not taken in", why=fault.message, after_s=fault.retry_s, enqueued_tokens_cap=cap)
    about_account = fault.is_about_account or fault.word in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    return _refused("batch", 0, fault, "account" if about_account else "shard")


def moment(text: Any) -> float:
    """Unix seconds of a time such as ``2026-11-21T10:00:00Z``; 0.0 where it is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else 0.0
    except (ValueError, OverflowError, OSError):
        return 0.0


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    """A count, which travels as a text of digits."""
    text = str(value) if type(value) in (int, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
