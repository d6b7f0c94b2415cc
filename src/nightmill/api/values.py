"""What a caller gets to see: results, progress, quotes. Money is in dollars here, to look at, not to add up."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import pyarrow as pa

from nightmill import mill as house
from nightmill.mill import Look, Prepared
from nightmill.types import usd


@dataclass(frozen=True, slots=True)
class Result:
    """How one row ended. ``index`` counts from 0 in input order; None: not known, or it does not apply."""

    index: int
    key: str
    prompt: str | None
    response: str | None
    success: bool
    tokens_in: int | None
    tokens_out: int | None
    duration: float | None  # seconds; live calls only
    error: str | None
    error_kind: str | None
    finish_reason: str | None
    parsed: Any  # the answer as the schema has it, where there is one
    embedding: memoryview | None  # of 32-bit floats, for list() or numpy.asarray() to take as they lie
    model: str | None
    provider: str
    lane: str | None
    tokens_cached: int | None
    cost_usd: float
    cost_estimated: bool
    attempt: int
    shard: str | None
    batch_id: str | None


def results_in(batches: Iterable[pa.RecordBatch]) -> Iterator[Result]:
    """The rows of batches of `RESULT_SCHEMA`."""
    decode = msgspec.json.Decoder().decode
    for batch in batches:
        for row in batch.to_pylist():
            row["cost_usd"] = usd(row.pop("cost_nanos") or 0)
            row["parsed"] = None if row["parsed"] is None else decode(row["parsed"])
            row["embedding"] = None if row["embedding"] is None else memoryview(row["embedding"]).cast("f")
            yield Result(**row)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands, counted in distinct requests; as text, one line."""

    job_id: str
    state: str
    total: int
    done: int  # with a final outcome
    succeeded: int
    failed: int
    in_hand: int  # live calls under way
    spent_usd: float

    @classmethod
    def of(cls, look: Look) -> Self:
        job, now = look.job, look.now
        failed = now.failed + now.missing + now.expired
        return cls(
            job.id, job.state.value, now.rows, now.done, now.succeeded, failed, look.in_hand, usd(now.spent_nanos)
        )

    def __str__(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,} of {self.total:,} done{failed}, ${self.spent_usd:.4f}"


@dataclass(frozen=True, slots=True)
class Handed:
    """What of a job is at the provider, and until when. Times are None where nothing is there."""

    batches: tuple[str, ...]  # their ids
    rows: int
    rows_left: int  # not handed over: they wait for money or for the provider's limits
    rows_in_doubt: int  # handed over, and whether the provider has them is to be looked for
    done_by: dt.datetime | None  # when the last of the batches has ended at the latest
    collect_by: dt.datetime | None  # from when on results of the first may be gone; None also where nobody says
    back_by: dt.datetime | None = (
        None  # with a deadline: from then on what is late has to run live, by whoever is there
    )

    @classmethod
    def of(cls, there: house.Handed) -> Self:
        return cls(
            there.batches, there.rows, there.rows_left, there.rows_in_doubt, _moment(there.done_by),
            _moment(there.collect_by), _moment(there.back_by),
        )  # fmt: skip


def _moment(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


@dataclass(frozen=True, slots=True)
class LaneQuote:
    """What a run would cost in one lane of one model, in dollars."""

    lane: str  # "batch", "live" or "flex"
    expected_usd: float
    at_most_usd: float

    @classmethod
    def of(cls, cost: house.LaneCost) -> Self:
        return cls(cost.lane.value, usd(cost.expected_nanos), usd(cost.at_most_nanos))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the models that were asked for, beside the others."""

    model: str
    chosen: bool
    why_not: str | None  # it cannot do the job: in words
    lane: str | None  # the one it would do it in
    expected_usd: float | None  # in that lane; None where it cannot do the job
    quality: float | None  # 0 to 100, as the settings grade it
    context: int | None  # most tokens of a prompt and its answer together, where that is known
    lacks: str | None  # the variable that has to hold a key before anything is sent
    lanes: tuple[LaneQuote, ...]

    @classmethod
    def of(cls, each: house.Candidate) -> Self:
        lane = each.lane.value if each.lane else None
        return cls(
            each.model, each.chosen, each.why_not or None, lane, usd(each.cost.expected_nanos) if each.cost else None,
            each.quality, each.context or None, each.lacks or None, tuple(map(LaneQuote.of, each.costs)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quote:
    """What a run would cost, in dollars. Nothing of it was sent, spent or kept."""

    model: str
    lane: str
    rows: int
    invalid: int
    duplicates: int
    cached: int  # rows whose answers were paid for already
    requests: int  # distinct ones that would be sent
    expected_usd: float
    at_most_usd: float
    list_price_usd: float
    saved_usd: float
    waves: int  # rounds of holding and settling that the budget forces
    price_source: str
    notes: tuple[str, ...]
    first_request: Any  # its body, as it would be sent; None where nothing would be
    candidates: tuple[Candidate, ...]  # every model that was asked for, in the order it was

    @classmethod
    def of(cls, prepared: Prepared, compared: Iterable[house.Candidate]) -> Self:
        plan, quote = prepared.plan, prepared.quote
        first = msgspec.json.decode(plan.first_request) if plan.first_request else None
        return cls(
            prepared.model, prepared.lane.value, plan.rows, plan.invalid, plan.duplicates, plan.cached, quote.requests,
            usd(quote.expected_nanos), usd(quote.at_most_nanos), usd(quote.list_price_nanos), usd(quote.saved_nanos),
            quote.waves, quote.price_source, quote.notes, first,
            tuple(map(Candidate.of, compared)),
        )  # fmt: skip
