"""Running the rows of one batch: its input file in, an output file and an error file out, one row at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from nightmill.simulator.answering import NO_TWIST, Model, Reply
from nightmill.simulator.billing import RateCard, Tally
from nightmill.simulator.faults import ANSWER_FAULTS, Params, Share
from nightmill.simulator.validation import decode_row, lines_of
from nightmill.simulator.wire import encode

NOT_RUN = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed because the batch was cancelled.",
}
_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class RowJob:
    """All that running a batch's rows depends on."""

    input: Path
    output: Path
    errors: Path
    endpoint: str
    total: int
    done: int  # rows that ran before the batch ended; the rest get `rest`
    rest: str  # a key of `NOT_RUN`
    created: int  # unix seconds, for the bodies
    card: RateCard
    faults: Mapping[str, Params]
    keep_keys: bool  # whether to remember who each row was


class _Plan:
    """The row faults of one batch, resolved to the rows they hit."""

    def __init__(self, faults: Mapping[str, Params], total: int) -> None:
        def share(name: str, default: int | None) -> Share | None:
            return Share.of(name, faults[name], total, default) if name in faults else None

        self.missing = share("missing_lines", 1)
        self.duplicate = share("duplicate_lines", 1)
        self.differ = bool(faults.get("duplicate_lines", {}).get("differ"))
        self.errors = share("row_errors", None)
        self.status = int(faults.get("row_errors", {}).get("status", 500))
        self.unknown = int(faults["unknown_lines"].get("count", 1)) if "unknown_lines" in faults else 0
        self.spaced = "pretty_printed_bodies" in faults
        self._twists = [(n, Share.of(n, faults[n], total)) for n in ANSWER_FAULTS if n in faults]

    def twists(self, row: int) -> frozenset[str]:
        if not self._twists:
            return NO_TWIST
        return frozenset(name for name, share in self._twists if row in share and name != "pretty_printed_bodies")


def run_rows(job: RowJob, model: Model) -> Tally:
    """Write both result files; what was run and what it costs.

    Blocking: meant for a thread. Memory is flat but for 32 bytes a row while rows are told apart.
    """
    tally = Tally()
    plan = _Plan(job.faults, job.total)
    with (
        job.input.open("rb", _BUFFER_BYTES) as source,
        job.output.open("wb", _BUFFER_BYTES) as out,
        job.errors.open("wb", _BUFFER_BYTES) as err,
    ):
        for row, raw in enumerate(lines_of(source)):
            line = decode_row(raw)
            if row >= job.done:
                err.write(_not_run_line(line.custom_id, job.rest, row))
            elif plan.errors is not None and row in plan.errors:
                tally.failed += 1
                err.write(_failed_line(line.custom_id, plan.status, row))
            else:
                _run_row(job, model, plan, row, line.custom_id, bytes(line.body), out, err, tally)
        for number in range(plan.unknown):
            out.write(_unknown_line(number))
    if "shuffled_rows" in job.faults:
        _shuffle(job.output)
    return tally


def _run_row(
    job: RowJob,
    model: Model,
    plan: _Plan,
    row: int,
    custom_id: str,
    body: bytes,
    out: BinaryIO,
    err: BinaryIO,
    tally: Tally,
) -> None:
    twists = plan.twists(row)
    reply = model.answer(job.endpoint, body, created=job.created, twists=twists)
    line = _line(custom_id, reply, plan.spaced)
    if reply.status != 200:
        tally.failed += 1
        err.write(line)
        return
    tally.completed += 1
    _bill(job, tally, reply)
    if job.keep_keys:
        tally.keys.append(custom_id.rpartition("-")[2].encode()[:16] + reply.digest)
    if plan.missing is not None and row in plan.missing:
        return
    out.write(line)
    if plan.duplicate is not None and row in plan.duplicate:
        if plan.differ:
            again = model.answer(job.endpoint, body, created=job.created, twists=twists, salt=1)
            _bill(job, tally, again)
            line = _line(custom_id, again, plan.spaced)
        out.write(line)


def _bill(job: RowJob, tally: Tally, reply: Reply) -> None:
    tally.executed += 1
    tally.nanos += job.card.nanos(reply.input_tokens, reply.output_tokens)
    tally.input_tokens += reply.input_tokens
    tally.output_tokens += reply.output_tokens


def _line(custom_id: str, reply: Reply, spaced: bool) -> bytes:
    tag = reply.digest.hex().encode()
    body = _spaced(reply.body) if spaced else reply.body
    return (
        b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":"req_%b","body":%b},'
        b'"error":null}\n'
    ) % (tag, encode(custom_id), reply.status, tag, body)


def _spaced(body: bytes) -> bytes:
    """The same JSON in one line, as a careless but correct writer would put it."""
    import json

    return json.dumps(msgspec.json.decode(body), ensure_ascii=True, separators=(" , ", " : ")).encode()


def _failed_line(custom_id: str, status: int, row: int) -> bytes:
    response: dict[str, Any]
    if status == 0:
        response = {"status_code": 0, "request_id": "", "body": None}
    else:
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        code = {429: "rate_limit_exceeded", 400: "invalid_value"}.get(status)
        error = {"message": f"The request failed with status {status}.", "type": kind, "param": None, "code": code}
        response = {"status_code": status, "request_id": f"req_{row:032x}", "body": {"error": error}}
    return _envelope(custom_id, row, response, None)


def _not_run_line(custom_id: str, code: str, row: int) -> bytes:
    return _envelope(custom_id, row, None, {"code": code, "message": NOT_RUN[code]})


def _unknown_line(number: int) -> bytes:
    body = {"object": "chat.completion", "choices": [], "model": "unknown"}
    response = {"status_code": 200, "request_id": f"req_{number:032x}", "body": body}
    return _envelope(f"nobody-sent-this-{number}", number, response, None)


def _envelope(custom_id: str, row: int, response: Any, error: Any) -> bytes:
    made = {"id": f"batch_req_{row:032x}", "custom_id": custom_id, "response": response, "error": error}
    return encode(made) + b"\n"


def _shuffle(path: Path) -> None:
    """Rewrite a file with its lines in another, fixed order."""
    lines = [line + b"\n" for line in path.read_bytes().split(b"\n") if line]
    random.Random(len(lines)).shuffle(lines)  # noqa: S311 (no secret: the same disorder every time)
    path.write_bytes(b"".join(lines))
