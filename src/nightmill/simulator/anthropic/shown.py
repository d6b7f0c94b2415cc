"""The batch object of Anthropic's wire."""

from __future__ import annotations

from typing import Any

from nightmill.simulator.anthropic.wire import moment
from nightmill.simulator.batch import TERMINAL, Batch, State

_DAY_S = 86_400
KEPT_S = 29 * _DAY_S  # results, from the creation of their batch
_ENDINGS = {State.EXPIRED: "expired", State.CANCELLED: "canceled"}


def is_archived(batch: Batch, elapsed: float) -> bool:
    """Whether the results are gone by ``elapsed`` provider seconds."""
    return batch.state in TERMINAL and elapsed >= batch.created_elapsed + KEPT_S


def has_results(batch: Batch, elapsed: float) -> bool:
    """Whether the results can be had at ``elapsed`` provider seconds."""
    is_there = batch.output_file_id is not None and not batch.late("late_output_file", elapsed)
    return is_there and not is_archived(batch, elapsed)


def view(batch: Batch, elapsed: float, origin: str) -> dict[str, Any]:
    """The batch object as it looks at ``elapsed`` provider seconds to one who calls ``origin``."""
    faults, has_ended = batch.faults, batch.state in TERMINAL
    shown = "ended" if has_ended else "canceling" if batch.state is State.CANCELLING else "in_progress"
    if shown == "in_progress" and "status_unknown_word" in faults:
        shown = str(faults["status_unknown_word"].get("word", "queued"))
    url = f"{origin}/v1/messages/batches/{batch.id}/results" if has_results(batch, elapsed) else None
    made: dict[str, Any] = {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": shown,
        "request_counts": _counts(batch),
        "ended_at": moment(batch.stamps[batch.state]) if has_ended else None,
        "created_at": moment(batch.created_at),
        "expires_at": moment(batch.created_at + _DAY_S),
        "archived_at": moment(batch.created_at + KEPT_S) if is_archived(batch, elapsed) else None,
        "cancel_initiated_at": moment(batch.stamps.get(State.CANCELLING)),
        "results_url": url,
    }
    if url is None and "absent_file_ids" in faults:
        del made["results_url"]
    elif url is None and "empty_file_ids" in faults:
        made["results_url"] = ""
    return made


def _counts(batch: Batch) -> dict[str, int]:
    """All but ``processing`` stay 0 until the batch has ended; their sum is the number of requests, always."""
    made = {"processing": batch.total, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    tally = batch.tally
    if batch.state not in TERMINAL or tally is None:
        return made
    made.update(processing=0, succeeded=tally.completed, errored=tally.failed)
    if tally.not_run:
        made[_ENDINGS[batch.state]] = tally.not_run
    return made
