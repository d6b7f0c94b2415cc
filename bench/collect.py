"""Claims: accounting for answers costs little more than decoding them, and results much less than with the SDK.

Account: `account` on OpenAI output files against a loop of msgspec with typed structs, usage included.
Results: `account` and `Results.write`, to Parquet in input order, against the official SDK's own models,
which make the same table of the same lines.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from _kit import Figure, answer_line, arguments, order_for, per_row, race, report, speedup, words, write_rows

from nightmill import wire
from nightmill.collect.accounting import account
from nightmill.collect.results import JobFiles, Results
from nightmill.ledger import NewShard, Shard, StoredFile, Submission, SubmissionState
from nightmill.plan import Order, Plan, make_plan
from nightmill.sinks.columns import RESULT_SCHEMA
from nightmill.store import Store
from nightmill.types import JobState, ShardState

JOB = "0123456789abcd"


class Details(msgspec.Struct):
    cached_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: Details


class Message(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None


class Body(msgspec.Struct):
    model: str
    choices: list[Choice]
    usage: Usage


class Response(msgspec.Struct):
    status_code: int
    body: Body


class Line(msgspec.Struct):
    custom_id: str
    response: Response


def main() -> int:
    given = arguments(__doc__, rows=50_000, rounds=5)
    folder = Path(tempfile.mkdtemp(prefix="bench-collect-"))
    try:
        return report(measure(Collecting(folder, given.rows), given.rounds), as_json=given.json)
    finally:
        shutil.rmtree(folder)


def measure(work: Collecting, rounds: int) -> list[Figure]:
    short = {"account": work.account, "msgspec": work.bare}  # so short that they need more rounds
    pairs = race(short, 5 * rounds)
    seconds = race({"account": work.account, "results": work.results, "sdk": work.sdk}, rounds)
    work.compare()
    note = per_row(seconds | pairs, work.plan.rows)
    both = [a + b for a, b in zip(seconds["account"], seconds["results"], strict=True)]
    return [
        Figure("decoding and accounting, beside a bare msgspec loop",
               speedup(pairs["account"], pairs["msgspec"]), 0.6, note=note),
        Figure("accounting and Parquet in input order, beside the official SDK's models",
               speedup(both, seconds["sdk"]), 3, note=note),
    ]  # fmt: skip


@dataclass(init=False)
class Collecting:
    """A plan of ``rows`` rows whose shards were all answered, in no order, as batches are."""

    order: Order
    store: Store
    plan: Plan
    shards: list[Shard]

    def __init__(self, folder: Path, rows: int) -> None:
        self.order, self.store = order_for(write_rows(folder / "rows.jsonl", rows)), Store(folder)
        self.plan = make_plan(self.order, self.store, JOB)
        self.shards = [self._answered(shard) for shard in self.plan.shards]

    def _answered(self, new: NewShard) -> Shard:
        chance = random.Random(new.seq)
        lines = [answer_line(f"{new.tag}-{i}", words(chance, chance.randint(60, 260)), 90, i)
                 for i in range(new.first, new.last + 1)]  # fmt: skip
        chance.shuffle(lines)
        with self.store.create(f"jobs/{JOB}/wire/{new.tag}.1.output.jsonl") as out:
            out.write(b"".join(lines))
        batch = Submission(
            new.tag, 1, SubmissionState.CREATED, "a", 1, 0, 0, 0.0, batch_id="batch_1", completed=new.count
        )
        return Shard(
            tag=new.tag, job_id=JOB, seq=new.seq, lane=new.lane, state=ShardState.SETTLED, attempt=1, expiries=0,
            missings=0, splits=0, first=new.first, last=new.last, count=new.count, content_bytes=new.content_bytes,
            cap_tokens=new.cap_tokens, input_tokens=new.input_tokens, file=new.file, due=0.0, lease_until=0.0,
            lease_was_until=0.0, epoch=1, submission=1, looks=0, fenced=False, reads=1, reread=False, refusals=0,
            waits=0, price=self.order.sheet.to_json(), reason=None, job_state=JobState.RUNNING, cancel_requested=False,
            submissions=(batch,), files=(StoredFile(out.ref, wire.OUTPUT, new.tag, 1, 1),),
        )  # fmt: skip

    def account(self) -> None:
        order = self.order
        sums = [account(self.store, s, order.provider, order.sheet, order.list_sheet, None) for s in self.shards]
        assert sum(acc.succeeded for acc in sums) == self.plan.rows

    def bare(self) -> None:
        decode = msgspec.json.Decoder(Line).decode
        tokens = answers = 0
        for shard in self.shards:
            with self.store.open(shard.files[0].ref) as lines:
                for line in lines:
                    usage = decode(line).response.body.usage
                    tokens += usage.prompt_tokens + usage.completion_tokens
                    answers += 1
        assert answers == self.plan.rows

    def results(self) -> None:
        order, rows = self.order, self.plan.files[0]
        sheets = {shard.tag: order.sheet for shard in self.shards}
        made = Results(
            self.store, JobFiles(rows, None, None, self.shards, sheets), order.provider, order.compiled, None
        )
        for n, (first, end) in enumerate(made.ranges()):
            self.store.path(f"jobs/{JOB}/results/{first}.0.parquet").unlink(missing_ok=True)
            made.write(f"jobs/{JOB}", first, end, 0)
            assert n == first // 50_000
        assert made.counts.succeeded == self.plan.rows

    def sdk(self) -> None:
        """The same table by the official SDK: parse, validate, sort by row, join to the rows, write."""
        from openai.types.chat import ChatCompletion

        found: dict[int, tuple[Shard, ChatCompletion]] = {}
        for shard in self.shards:
            with self.store.open(shard.files[0].ref) as lines:
                for line in lines:
                    said = json.loads(line)
                    answer = ChatCompletion.model_validate(said["response"]["body"])
                    found[int(said["custom_id"].rpartition("-")[2])] = (shard, answer)
        with self.store.open(self.plan.files[0].ref) as stream, pq.ParquetWriter(
            self.store.path("sdk.parquet"), RESULT_SCHEMA, compression="zstd"
        ) as writer:  # fmt: skip
            first = 0
            for batch in pq.ParquetFile(stream).iter_batches(5_000):
                rows = [self._row(first + i, row, *found[first + i]) for i, row in enumerate(batch.to_pylist())]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=RESULT_SCHEMA))
                first += len(rows)

    def _row(self, index: int, row: dict[str, Any], shard: Shard, answer: Any) -> dict[str, Any]:
        usage, choice = answer.usage, answer.choices[0]
        cached = usage.prompt_tokens_details.cached_tokens or 0
        # gpt-4o-mini in a batch: 75, 37.5 and 300 nano-dollars a token.
        cost = (75 * (usage.prompt_tokens - cached)) + round(37.5 * cached) + 300 * usage.completion_tokens
        return {
            "index": index, "key": row["key"], "prompt": PROMPT_BEFORE + row["text"],
            "response": choice.message.content, "success": True, "tokens_in": usage.prompt_tokens,
            "tokens_out": usage.completion_tokens, "duration": None, "error": None, "error_kind": None,
            "finish_reason": choice.finish_reason, "parsed": None, "model": answer.model, "provider": "openai",
            "lane": "batch", "tokens_cached": cached, "cost_nanos": cost, "cost_estimated": False, "attempt": 1,
            "shard": shard.tag, "batch_id": "batch_1",
        }  # fmt: skip

    def compare(self) -> None:
        """Both made the same table, or the race means nothing."""
        ours = pa.concat_tables(
            pq.read_table(self.store.path(f"jobs/{JOB}/results/{first}.0.parquet"))
            for first in range(0, self.plan.rows, 50_000)
        )
        theirs = pq.read_table(self.store.path("sdk.parquet"))
        for name in RESULT_SCHEMA.names:
            mine, other = ours.column(name).combine_chunks(), theirs.column(name).combine_chunks()
            assert mine.equals(other), f"column {name} differs"


PROMPT_BEFORE = "Say in one word whether this review is positive, negative or mixed.\n\n"


if __name__ == "__main__":
    sys.exit(main())
