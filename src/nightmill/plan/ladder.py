"""The ladder: what is tried, step by step, until an answer fits its schema, and the requests of its next step.

A step that asks a model is a *rung*: 0 is the first ask; then come the re-asks, in which the same model sees its answer
and what is wrong with it; then each next model, asked as if for the first time. Rows climb together: those of a settled
shard that fit nothing become new shards of the next rung.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from nightmill.files import GROUP_ROWS
from nightmill.ledger import NewShard, Shard, StoredFile
from nightmill.plan.attaching import Pack, portions
from nightmill.plan.compiling import Compiled, Said
from nightmill.plan.cutting import Bounds, Cutter, four_bytes_a_token
from nightmill.pricing import PriceSheet
from nightmill.providers import Provider
from nightmill.sources import Taken
from nightmill.store import Store
from nightmill.types import FailureKind, Lane

CLIMBS = frozenset({FailureKind.INVALID_OUTPUT, FailureKind.EMPTY})
"""Paid answers of no use that another step may do better."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One more ask of a row that was answered, and not by its schema."""

    model: str
    is_reask: bool  # the answer and its fault are shown; else it is asked as for the first time

    @property
    def name(self) -> str:
        return "re-ask" if self.is_reask else self.model


@dataclass(frozen=True, slots=True)
class Ladder:
    """The steps that a job's rows may take."""

    repair: bool = False  # on this machine, before anybody is asked again
    rungs: tuple[Rung, ...] = ()  # beyond the first ask

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Ladder:
        """What a job's record says of it; jobs without a schema have none."""
        said = spec.get("ladder", {})
        reasks = [Rung(spec["model"], True)] * said.get("reask", 0)
        models = spec.get("next_models", []) if said.get("escalate") else []
        return cls(said.get("repair", False), (*reasks, *(Rung(model, False) for model in models)))

    def __bool__(self) -> bool:
        return self.repair or bool(self.rungs)

    def kept_steps(self, schema: Mapping[str, Any] | None) -> dict[int, bytes]:
        """By rung, what sets apart in the cache the answers that only there came to fit ``schema``; 0: put right here.

        Those of the next models are not kept: to the first one's provider their lines say nothing.
        """
        held = msgspec.json.encode([schema, self.repair])
        rungs = ([0] if self.repair else []) + [n for n, step in enumerate(self.rungs, 1) if step.is_reask]
        return {rung: b"%d %b" % (rung, held) for rung in rungs}

    def at(self, rung: int) -> Rung | None:
        """That rung; None for the first ask, and for one that this ladder does not have."""
        return self.rungs[rung - 1] if 0 < rung <= len(self.rungs) else None


@dataclass(frozen=True, slots=True)
class Climb:
    """Makes the requests of one rung from a job's rows as they were taken."""

    rung: int
    is_reask: bool
    lane: Lane
    store: Store
    rows: StoredFile
    provider: Provider
    compiled: Compiled
    sheet: PriceSheet  # by which its holds are counted
    bounds: Bounds
    take_seqs: Callable[[int], int]  # reserves shard numbers in the ledger; the first of them

    def shards(self, shard: Shard, said: Mapping[int, Said]) -> tuple[list[NewShard], set[int]]:
        """New shards for those rows of ``shard``, which answered ``said``, of which this rung can make a request.

        Also which rows these are: the model of this rung may not take every one.
        """

        compiled = copy.copy(self.compiled)  # it notes the cap of what it encoded last, and others encode beside

        def encode(batch: pa.RecordBatch, indexes: list[int], bad: dict[int, str]) -> list[bytes]:
            if self.is_reask:
                bodies = compiled.asked_again(batch, indexes, said, bad)
            else:
                bodies = compiled.bodies(batch, indexes, bad=bad)
            bad.update(cutter.too_large(indexes, bodies))
            return bodies

        cutter = Cutter(
            self.store, self.store.job_folder(shard.job_id), self.lane, self.bounds, self.sheet,
            compiled.cap_tokens, self.provider.line_pieces(compiled.url),
            lambda: f"{shard.job_id}-{self.take_seqs(1)}", four_bytes_a_token, weigh=compiled.weigh,
        )  # fmt: skip
        taken = cut_rows(self.store, self.rows, said, compiled, encode, cutter)
        return [replace(new, rung=self.rung) for new in cutter.close()], taken


def cut_rows(
    store: Store, rows: StoredFile, wanted: Collection[int], compiled: Compiled,
    encode: Callable[[pa.RecordBatch, list[int], dict[int, str]], list[bytes]], cutter: Cutter,
) -> set[int]:  # fmt: skip
    """Give ``cutter`` the requests of some rows of a job, encoded anew from the rows as they were taken.

    The rows that it took: those that ``encode`` notes as bad are none of them.
    """
    taken: set[int] = set()
    compiled.pack = Pack(store, rows.ref.path.rpartition("/")[0])
    with store.open(rows.ref) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False)
        for group in sorted({row // GROUP_ROWS for row in wanted}):
            first = group * GROUP_ROWS
            batch = file.read_row_group(group, use_threads=False).combine_chunks().to_batches()[0]
            indexes = [first + row for row in range(batch.num_rows) if first + row in wanted]
            those = Taken(batch.take(pa.array([i - first for i in indexes], pa.int64())))
            for portion, rows_of_it in portions(indexes, those):
                bad: dict[int, str] = {}
                bodies = encode(rows_of_it.batch, list(portion), bad)
                good = [(index, body) for index, body in zip(portion, bodies, strict=True) if index not in bad]
                if good:
                    some, fit = [index for index, _ in good], [body for _, body in good]
                    cutter.add(some, fit, cap_tokens=compiled.cap_tokens, inputs=compiled.inputs)
                    taken.update(some)
    return taken
