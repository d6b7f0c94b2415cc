"""A batch as the long-running operation that it is on Gemini's wire."""

from __future__ import annotations

from typing import Any

from nightmill.simulator.batch import TERMINAL, Batch, State, find_progress
from nightmill.simulator.gemini.errors import RPC_CODES
from nightmill.simulator.gemini.showing import stamp, stats
from nightmill.simulator.provider import Provider

_TYPES = "type.googleapis.com/google.ai.generativelanguage.v1main."
_STATES = {
    State.VALIDATING: "PENDING",
    State.RUNNING: "RUNNING",
    State.FINISHING: "RUNNING",
    State.CANCELLING: "RUNNING",  # there is no word for it
    State.ENDED: "SUCCEEDED",
    State.EXPIRED: "EXPIRED",
    State.CANCELLED: "CANCELLED",
    State.FAILED: "FAILED",
}


def view(batch: Batch, provider: Provider, inline: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The operation, as it looks now.

    Args:
        inline: the results, where requests came inside the create. Results are shown twice, as metadata and response.
    """
    facts, elapsed = batch.facts, provider.clock.elapsed()
    is_over = batch.state in TERMINAL
    updated_at = batch.stamps.get(batch.state, batch.created_at)
    output = _output(batch, elapsed, inline) if is_over else None
    metadata: dict[str, Any] = {
        "@type": _TYPES + facts["kind"],
        "model": f"models/{facts['model']}",
        "state": f"BATCH_STATE_{_word(batch)}",
        "createTime": stamp(batch.created_at),
        "updateTime": stamp(updated_at),
        "name": batch.id,
    }
    optional = {
        "displayName": facts["display_name"],
        "endTime": stamp(updated_at) if is_over else None,
        "inputConfig": {"fileName": f"files/{facts['input_file']}"} if facts["input_file"] else None,
        "batchStats": None if "null_counts" in batch.faults else _stats(batch, elapsed, provider.config.batch_s),
        "priority": str(facts["priority"]) if facts["priority"] else None,
        "output": output,
    }
    metadata.update((name, value) for name, value in optional.items() if value)
    made: dict[str, Any] = {"name": batch.id, "metadata": metadata}
    if is_over:
        made["done"] = True
    error = _error(batch)
    if error is not None:
        made["error"] = error
    elif output is not None:
        made["response"] = {"@type": f"{_TYPES}{facts['kind']}Output", **output}
    return made


def _word(batch: Batch) -> str:
    if batch.state is State.RUNNING and "status_unknown_word" in batch.faults:
        return str(batch.faults["status_unknown_word"].get("word", "queued")).upper()
    return _STATES[batch.state]


def _stats(batch: Batch, elapsed: float, batch_s: float) -> dict[str, str]:
    if batch.state is State.CANCELLING and "cancel_reverting_counts" in batch.faults:
        return stats(batch.total, min(batch.total, max(1, batch.stopped_at or 0)), 0)
    if batch.tally is not None:
        return stats(batch.total, batch.tally.completed, batch.tally.failed)
    return stats(batch.total, 0 if batch.state in TERMINAL else find_progress(batch, elapsed, batch_s), 0)


def _output(batch: Batch, elapsed: float, inline: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    if batch.late("late_output_file", elapsed):
        return None
    if inline is not None:
        return {"inlinedResponses": {"inlinedResponses": inline}}
    if batch.output_file_id is not None:
        return {"responsesFile": f"files/{batch.output_file_id}"}
    return {"responsesFile": ""} if "empty_file_ids" in batch.faults else None


def _error(batch: Batch) -> dict[str, Any] | None:
    """What an operation that failed or was cancelled says of it."""
    if batch.state is State.CANCELLED:
        return {"code": RPC_CODES["INTERNAL"], "message": "The batch was cancelled."}
    if batch.error is None:
        return None
    where = "" if batch.error.line is None else f"Failed to parse line {batch.error.line} of the input: "
    word = "RESOURCE_EXHAUSTED" if batch.error.code == "token_limit_exceeded" else "INVALID_ARGUMENT"
    return {"code": RPC_CODES[word], "message": where + batch.error.message}
