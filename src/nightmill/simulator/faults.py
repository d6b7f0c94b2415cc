"""Faults on demand: what goes wrong, when, and for which rows.

A fault is a JSON object ``{"fault": NAME, "times": n | null, "after": k, ...}``: it fires at most
``times`` times (null or absent: always), after letting the first ``after`` matching operations pass.
`KNOWN` lists the names with their own parameters. ``"on": [...]`` narrows a fault to operations:
``upload files file file_delete content create list poll cancel delete live models count``, and for faults of
answers ``batch`` and ``live``. A format's `Format.impossible` names those that cannot be in its shape.
Waits named ``lag_s`` are provider seconds; ``delay_s`` are real ones, because they
play against a client's real timeouts.

``"from_row": n`` of a fault of answers lets the first n requests alone that the provider is given, calls and requests
of batches counted together: a model that turns bad.

Faults that shape a batch are taken when it is created, so ``after`` and ``times`` count creates.
Where rows or calls are chosen by ``fraction`` or ``count``, they lie evenly spread and are the same
every time.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Params = Mapping[str, Any]

# Shape the batch they hit; taken at create.
BATCH_FAULTS: dict[str, str] = {
    "late_listing": "lag_s: not in the list until then; get by id works",
    "missing_lines": "fraction or count (1): run and billed, but no line comes back",
    "duplicate_lines": "fraction or count (1), differ (false): the line comes twice; with differ the"
    " second has another text and is billed too",
    "unknown_lines": "count (1): lines with ids nobody sent",
    "late_output_file": "lag_s: completed, but output_file_id stays null until then",
    "late_error_file": "lag_s: completed, but error_file_id stays null until then",
    "empty_file_ids": 'a file that does not exist is "" instead of null',
    "absent_file_ids": "a file that does not exist has no key at all",
    "shuffled_rows": "the output file in another order",
    "enqueued_limit_later": "limit: created, then failed with token_limit_exceeded",
    "expire_at": "fraction (0.8): expires with that share done",
    "fail_at": "fraction (0.5): fails with that share done; what was done is there, of the rest not a word",
    "cancel_reverting_counts": "completed counts shown while cancelling are gone once cancelled",
    "row_errors": "fraction or count, status (500; 0 too): rows that fail into the error file",
    "null_counts": "request_counts.completed and .failed are null",
    "status_unknown_word": 'word ("queued"): shown instead of in_progress',
    "batch_failed_unexplained": "failed, and no errors",
    "batch_failed_line": "line (1), code, message, param: failed, naming a line",
    "never_finishes": "stays in_progress until cancelled",
    "slow_batch": "lag_s: so long until its rows are done",
    "slow_cancel": "lag_s: so long from asking to cancel it until it is cancelled",
}
# Change answers, in batches and live.
ANSWER_FAULTS: dict[str, str] = {
    "pretty_printed_bodies": "live: many-line JSON; in result lines: spaced and escaped, still one line",
    "usage_missing": "fraction or count: no usage in the answer (billed all the same)",
    "empty_answers": "fraction or count: the text is empty, the tokens are billed",
    "truncated_answers": "fraction or count: cut, finish_reason length",
    "invalid_json_answers": "fraction or count: text that is not JSON",
    "wrong_schema_answers": "fraction or count: JSON that does not fit the schema",
    "refusal_answers": "fraction or count: content null and a refusal",
    "flex_downgraded": "live, fraction or count: a call of the flex tier is answered, and billed, in the regular one",
    "model_snapshot_changes": "fraction or count: answered by a dated snapshot, not always the same",
}
# Hit single operations.
CALL_FAULTS: dict[str, str] = {
    "create_accepted_then_timeout": "delay_s (600): committed, never answered, connection closed after that",
    "create_accepted_then_500": "committed, answered with 500",
    "create_repeated": "something on the way repeats it: committed twice, answered with 500",
    "create_dropped_before": "connection closed, nothing committed",
    "create_500_before": "status (500): answered with that, nothing committed",
    "enqueued_limit_now": "limit, retry_after: create answers 429 with the enqueued-token text",
    "live_429": "fraction or count, retry_after or retry_after_ms",
    "resource_unavailable": "fraction or count: no room in the flex tier, 429, nothing run or billed",
    "live_500": "fraction or count, status (500)",
    "live_timeout": "fraction or count, delay_s (600): run and billed, never answered",
    "live_close_before": "fraction or count: connection closed, nothing run",
    "non_json_bodies": "status (502), commit (false), on (live): an HTML page instead; with commit, after the work",
    "slow_bodies": "pieces (10), delay_s (0.05), on (content): the body drips",
    "short_body": "on (content): fewer bytes than Content-Length says, then the connection is cut",
    "truncated_last_line": "content cut inside its last line, Content-Length agreeing",
    "retention_404": "content is gone",
    "list_page_500": "a page of the batch list answers 500",
    "list_page_cut": "a page of the batch list is cut",
    "upload_500": "the upload answers 500, no file is kept",
    "delete_405": "there is no call to delete a file",
    "poll_500": "getting a batch answers 500",
    "poll_404_once": "getting a batch answers 404 (once, unless times says more)",
}
# Befall a key, and last; ``on`` and ``after`` say which of its operations is the first.
KEY_FAULTS: dict[str, str] = {
    "key_revoked": "key (any): no call passes with it from then on",
    "quota_used_up": "key (any): what costs money is refused from then on",
}
KNOWN = BATCH_FAULTS | ANSWER_FAULTS | CALL_FAULTS | KEY_FAULTS
PARAMETERS = (
    *("fault", "times", "after", "on", "from_row", "fraction", "count", "key", "status", "lag_s", "delay_s", "limit"),
    *("retry_after", "retry_after_ms", "differ", "word", "line", "code", "message", "param", "commit", "pieces"),
)
_ONCE = frozenset({"poll_404_once"})
_ON = {"non_json_bodies": ("live",), "slow_bodies": ("content",), "short_body": ("content",)}
_LIVE_COUNTED = (
    frozenset({"live_429", "live_500", "live_overloaded", "live_timeout", "live_close_before", "resource_unavailable"})
    | ANSWER_FAULTS.keys()
)


@dataclass(slots=True)
class _Fault:
    name: str
    params: Params
    times: int | None
    after: int
    on: tuple[str, ...]  # empty = every operation the name can hit
    seen: int = 0
    fired: int = 0

    def fires(self, operation: str, asked: int = 0) -> bool:
        if (self.on and operation not in self.on) or asked < int(self.params.get("from_row", 0)):
            return False
        number = self.seen - self.after
        self.seen += 1
        limit = self.times
        if limit is None and operation == "live" and self.name in _LIVE_COUNTED and "count" in self.params:
            limit = int(self.params["count"])
        if number < 0 or (limit is not None and self.fired >= limit):
            return False
        if operation == "live" and "fraction" in self.params and not _nth(number, float(self.params["fraction"])):
            return False
        self.fired += 1
        return True


def _nth(number: int, fraction: float) -> bool:
    """Whether call ``number`` (from 0) is among an evenly spread ``fraction`` of calls."""
    return int((number + 1) * fraction + 1e-9) > int(number * fraction + 1e-9)


class FaultBook:
    """The faults in force, and how often each has fired."""

    def __init__(self, specs: Iterable[Params] = ()) -> None:
        self._faults: list[_Fault] = []
        self._asked = 0  # requests since then
        self.replace(specs)

    def count(self, requests: int) -> int:
        """So many requests are given to the provider; how many there were before."""
        before, self._asked = self._asked, self._asked + requests
        return before

    def replace(self, specs: Iterable[Params]) -> None:
        """Put these faults in force instead of the present ones.

        Raises:
            ValueError: a name or a field is unknown, or a number is not one.
        """
        self._faults = [_parse(spec) for spec in specs]
        self._asked = 0

    def take(self, name: str, operation: str, asked: int = 0) -> Params | None:
        """The parameters of fault ``name`` if it hits this operation now, which uses it up once.

        ``asked``: how many requests came before.
        """
        hit: Params | None = None
        for fault in self._faults:
            if fault.name == name and fault.fires(operation, asked) and hit is None:
                hit = fault.params
        return hit

    def befalls(self, name: str, operation: str, key: str) -> bool:
        """Whether fault ``name`` has befallen a key, by this operation of it or by an earlier one."""
        of_key = [fault for fault in self._faults if fault.name == name and fault.params.get("key", key) == key]
        return any(fault.fired > 0 or fault.fires(operation) for fault in of_key)

    def take_for_batch(self) -> dict[str, Params]:
        """Every fault that the batch being created will carry."""
        if not self._faults:
            return {}
        every = sys.maxsize  # which of its rows are hit is seen when they run
        taken = {name: self.take(name, "batch", every) for name in (*BATCH_FAULTS, *ANSWER_FAULTS)}
        return {name: params for name, params in taken.items() if params is not None}

    def take_for_answer(self) -> frozenset[str]:
        """The faults that change the live answer being made."""
        asked = self.count(1)
        if not self._faults:
            return frozenset()
        return frozenset(name for name in ANSWER_FAULTS if self.take(name, "live", asked) is not None)

    def concerns(self, names: Iterable[str], operation: str) -> bool:
        """Whether any fault of these names might hit the operation; uses nothing up."""
        wanted = set(names)
        return any(
            fault.name in wanted
            and (not fault.on or operation in fault.on)
            and (fault.times is None or fault.fired < fault.times)
            for fault in self._faults
        )

    def view(self) -> list[dict[str, Any]]:
        """The faults as given, each with ``fired``."""
        return [{**fault.params, "fault": fault.name, "fired": fault.fired} for fault in self._faults]


def _parse(spec: Params) -> _Fault:
    name = str(spec.get("fault", ""))
    if name not in KNOWN:
        raise ValueError(f"unknown fault {name!r}; known are {', '.join(sorted(KNOWN))}")
    if unknown := next((field for field in spec if field not in PARAMETERS), None):
        raise ValueError(f"{name}: unknown field {unknown!r}; there are {', '.join(PARAMETERS)}")
    times = spec.get("times", 1 if name in _ONCE else None)
    for number in ("fraction", "count", "from_row", "lag_s", "delay_s"):
        if number in spec and not isinstance(spec[number], int | float):
            raise ValueError(f"{name}: {number} must be a number, got {spec[number]!r}")
    on = spec.get("on", _ON.get(name, ()))
    return _Fault(
        name=name,
        params=dict(spec),
        times=None if times is None else int(times),
        after=int(spec.get("after", 0)),
        on=(on,) if isinstance(on, str) else tuple(on),
    )


@dataclass(frozen=True, slots=True)
class Share:
    """An evenly spread, fixed choice of ``chosen`` among ``total`` rows."""

    chosen: int
    total: int
    offset: int = 0

    @classmethod
    def of(cls, name: str, params: Params, total: int, default: int | None = None) -> Share:
        """The rows fault ``name`` hits; without fraction or count ``default`` of them, or all."""
        if "count" in params:
            chosen = int(params["count"])
        elif "fraction" in params:
            chosen = round(float(params["fraction"]) * total)
        else:
            chosen = total if default is None else default
        # An offset by name keeps two faults of equal size off the same rows.
        return cls(max(0, min(chosen, total)), max(total, 1), zlib.crc32(name.encode()) % max(total, 1))

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and (row * self.chosen + self.offset) % self.total >= self.total - self.chosen
