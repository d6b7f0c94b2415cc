"""Again: the failed rows of a finished job go out once more, in new shards at the top of the lanes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from nightmill.errors import Conflict
from nightmill.ledger import OUTCOMES, Job, NewShard, Shard
from nightmill.mill import laddering, reading
from nightmill.mill.home import Home, compiled_from, quarter
from nightmill.mill.planning import DEADLINE
from nightmill.plan import Cutter, bounds, cut_rows, four_bytes_a_token
from nightmill.types import FailureKind
from nightmill.wire import ROWS


@dataclass(frozen=True, slots=True)
class Again:
    """Failed rows of a finished job, cut anew; nothing is promised yet."""

    job: Job
    rows: int
    shards: tuple[NewShard, ...]
    spec: dict[str, Any]
    at_most_nanos: int  # with every further step of its ladder


def prepare(home: Home, job: Job, *, max_output: int | None = None, temperature: float | None = None) -> Again:
    """Cut the failed rows of a finished job into new shards, with a fresh three attempts.

    Rows that succeeded are not touched; duplicates of a failed row share the new answer. The
    caller submits what comes back or discards it.

    Raises:
        Conflict: the job is unfinished, was adopted, or its answers as they came were removed.
    """
    if job.finished_at is None:
        raise Conflict(
            f"job {job.id} is not finished", why=f"it is {job.state}", fix=f"nightmill resume {job.id}, then retry"
        )
    if "adopted" in job.spec:
        raise Conflict(
            f"job {job.id} is a batch that was made elsewhere",
            why="nightmill knows what was sent in it, but not on whose word it may be sent again",
            fix=f"nightmill results {job.id} --failed names the rows; send them where the batch was made",
        )
    if job.spec.get("wire"):
        raise Conflict(
            f"job {job.id} cannot be gone on with", why="its answers as they came were removed by wire_days",
            fix=f"take what failed with: nightmill results {job.id} --failed --out failed.jsonl, and run that",
        )  # fmt: skip
    failed = _failed_rows(home, job)
    sheet = home.sheet(job.model, job.lane)
    kinds = {index: kind for index, (kind, _) in failed.items()}
    spec = {name: value for name, value in job.spec.items() if name not in DEADLINE}  # that was for the first time
    spec |= {"price": sheet.to_json(), "min_valid": None, "again": _counted_again(job.spec.get("again", {}), kinds)}
    spec |= laddering.next_prices(home, spec)
    given = {"max_output": max_output, "temperature": temperature}
    spec["parameters"] = _with(spec["parameters"], {name: v for name, v in given.items() if v is not None})
    shards_before = {shard.tag: shard for shard in home.ledger.shards_of(job.id)}
    before = [index for index, (kind, tag) in failed.items() if _was_sent(kind, shards_before.get(tag or ""))]
    never = sorted(failed.keys() - set(before))
    # Those that went out before are counted as sent already: their shards are parts of the earlier ones.
    shards = (*(replace(s, splits=1) for s in _cut_rows(home, job, spec, before)), *_cut_rows(home, job, spec, never))
    at_most = sum(sheet.worst(s.content_bytes, s.count, s.cap_tokens) for s in shards)
    at_most += laddering.most_nanos(home, spec, shards)
    return Again(job, len(failed), shards, spec, at_most)


def submit(home: Home, again: Again) -> None:
    """The rows go out with the next `run`. Raises Conflict when the job changed meanwhile."""
    if again.shards:
        home.ledger.extend(again.job, again.shards, [], spec=again.spec)


def discard(home: Home, again: Again) -> None:
    """The user said no: no trace stays."""
    for shard in again.shards:
        home.store.path(shard.file.path).unlink(missing_ok=True)


def _failed_rows(home: Home, job: Job) -> dict[int, tuple[str, str | None]]:
    """Row to failure kind and newest shard, without duplicates of other rows."""
    results = reading.open_results(home, job)
    failed: dict[int, tuple[str, str | None]] = {}
    for low, high in results.ranges():
        twins = results.twins(low, high)
        for batch in reading.results(home, job, low, high):
            bad = batch.filter(pc.invert(batch.column("success")))
            rows = zip(*(bad.column(name).to_pylist() for name in ("index", "error_kind", "shard")), strict=True)
            failed.update(
                (index, (kind or "failed", tag))
                for index, kind, tag in rows
                if index not in twins and kind != FailureKind.INVALID_INPUT
            )
    return failed


def _was_sent(kind: str, shard: Shard | None) -> bool:
    """Whether a row that failed so in its newest shard ever went out; one shard of a live job may be sent in part."""
    if shard is None or (shard.lane.is_live and kind == FailureKind.CANCELLED and not shard.is_part):
        return False
    return shard.was_sent


def _cut_rows(home: Home, job: Job, spec: dict[str, Any], indexes: list[int]) -> list[NewShard]:
    """Shards for some rows of a job, encoded anew from the rows as they were taken."""
    if not indexes:
        return []
    provider = home.provider(job.model)
    compiled, wanted = compiled_from(spec, provider), set(indexes)
    limits = bounds(
        job.lane,
        provider.limits,
        batch_size=spec["batch_size"],
        hold_nanos=quarter(home.tightest()),
        embeddings=compiled.is_embeddings,
    )
    cutter = Cutter(
        home.store, home.store.job_folder(job.id), job.lane, limits, home.sheet(job.model, job.lane),
        compiled.cap_tokens, provider.line_pieces(compiled.url),
        lambda: f"{job.id}-{home.ledger.take_seqs(job.id, 1)}", four_bytes_a_token,
        weigh=compiled.weigh,
    )  # fmt: skip
    rows = home.ledger.files_of(job.id, ROWS)[0]
    cut_rows(home.store, rows, wanted, compiled, lambda batch, some, _: compiled.bodies(batch, some), cutter)
    return cutter.close()


def _with(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a job's record has them, with what the user says now."""
    return {**parameters, **given, "suggested": [name for name in parameters.get("suggested", ()) if name not in given]}


def _counted_again(before: Mapping[str, Any], failed: Mapping[int, str]) -> dict[str, Any]:
    """How many rows ended in which way before a retry sent them anew, all retries of the job together."""
    counts: dict[str, Any] = {name: before.get(name, 0) for name in OUTCOMES}
    kinds = dict(before.get("failures", {}))
    for kind in failed.values():
        name = kind if kind in ("missing", "expired", "cancelled") else "failed"
        counts[name] += 1
        if name == "failed":
            kinds[kind] = kinds.get(kind, 0) + 1
    return counts | {"failures": kinds}
