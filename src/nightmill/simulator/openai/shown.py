"""The batch object of OpenAI's wire."""

from __future__ import annotations

from typing import Any

from nightmill.simulator.batch import Batch, State, find_progress
from nightmill.simulator.billing import Tally

_DAY_S = 86_400
_WORDS = {State.RUNNING: "in_progress", State.FINISHING: "finalizing", State.ENDED: "completed"}
_STAMPED = (
    State.RUNNING,
    State.FINISHING,
    State.ENDED,
    State.FAILED,
    State.EXPIRED,
    State.CANCELLING,
    State.CANCELLED,
)


def word_of(batch: Batch) -> str:
    """The status a batch is in, as OpenAI calls it."""
    return _WORDS.get(batch.state, str(batch.state))


def view(batch: Batch, elapsed: float, batch_s: float) -> dict[str, Any]:
    """The batch object of the wire, as it looks at ``elapsed`` provider seconds."""
    faults = batch.faults
    shown = word_of(batch)
    if batch.state is State.RUNNING and "status_unknown_word" in faults:
        shown = str(faults["status_unknown_word"].get("word", "queued"))
    created = int(batch.created_at)
    made: dict[str, Any] = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.facts["endpoint"],
        "model": batch.model,
        "errors": _errors(batch),
        "input_file_id": batch.facts["input_file_id"],
        "completion_window": "24h",
        "status": shown,
        "output_file_id": None if batch.late("late_output_file", elapsed) else batch.output_file_id,
        "error_file_id": None if batch.late("late_error_file", elapsed) else batch.error_file_id,
        "created_at": created,
        "expires_at": created + _DAY_S,
        **{f"{_WORDS.get(state, str(state))}_at": _whole(batch.stamps.get(state)) for state in _STAMPED},
        "request_counts": _counts(batch, elapsed, batch_s),
        "usage": _usage(batch.tally),
        "metadata": batch.facts["metadata"],
    }
    for key in ("output_file_id", "error_file_id"):
        if made[key] is None and "absent_file_ids" in faults:
            del made[key]
        elif made[key] is None and "empty_file_ids" in faults:
            made[key] = ""
    return made


def _whole(stamp: float | None) -> int | None:
    return None if stamp is None else int(stamp)


def _errors(batch: Batch) -> dict[str, Any] | None:
    error = batch.error
    if error is None:
        return None
    item = {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
    return {"object": "list", "data": [item]}


def _counts(batch: Batch, elapsed: float, batch_s: float) -> dict[str, int | None]:
    tally, total = batch.tally, batch.total
    if batch.state is State.CANCELLING and "cancel_reverting_counts" in batch.faults:
        return {"total": total, "completed": min(total, max(1, batch.stopped_at or 0)), "failed": 0}
    if tally is None:
        done, failed = find_progress(batch, elapsed, batch_s), 0
    else:
        done, failed = tally.completed, tally.failed
    if batch.state is State.EXPIRED:
        failed = total - done
    if "null_counts" in batch.faults:
        return {"total": total, "completed": None, "failed": None}
    return {"total": total, "completed": done, "failed": failed}


def _usage(tally: Tally | None) -> dict[str, Any] | None:
    if tally is None:
        return None
    return {
        "input_tokens": tally.input_tokens,
        "input_tokens_details": {"cached_tokens": tally.cached_tokens},
        "output_tokens": tally.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tally.input_tokens + tally.output_tokens,
    }
