"""Small plans, their shards and made-up result files, for the tests of plan and collect."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nightmill.answers import AnswerCache
from nightmill.collect import Context, Results
from nightmill.collect.results import JobFiles
from nightmill.ledger import NewShard, Shard, StoredFile, Submission, SubmissionState
from nightmill.plan import Bounds, Compiled, Order, Parameters, Plan, Scissors, make_plan
from nightmill.pricing import PriceSheet, price_sheet
from nightmill.providers import Provider
from nightmill.providers.resolve import resolve
from nightmill.sources import open_source
from nightmill.store import Store
from nightmill.tasks import bind, prompt_task, verbatim_task
from nightmill.types import JobState, Lane, ShardState

MODEL = "openai/gpt-4o-mini"
PRICE = {
    "input": "0.15",
    "output": "0.6",
    "batch_input": "0.075",
    "batch_output": "0.3",
    "flex_input": "0.06",
    "flex_output": "0.25",
    "cached_input": "0.075",
}
ROOMY = Bounds(100_000, 0, None)
CAP = 50  # output tokens of a request
AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def provider_of(model: str = MODEL) -> Provider:
    return resolve(
        model, env={"OPENAI_API_KEY": "sk-tests", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, model_paths={}
    )


def sheet_of(lane: Lane = Lane.BATCH, price: Any = None) -> PriceSheet:
    return price_sheet(MODEL, lane, at=AT, overrides={MODEL: {"price": PRICE if price is None else price}})


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    """A JSON lines file with one ``text`` a row."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def order_of(
    path: Path, *, prompt: str | None = "Say {{ text }}", lane: Lane = Lane.BATCH, bounds: Bounds = ROOMY,
    parameters: Parameters | None = None, **more: Any,
) -> Order:  # fmt: skip
    provider = provider_of()
    source = open_source([str(path)], rows="line", key=None, limit=more.pop("limit", None))
    names = list(source.schema.names)
    names = names if "key" in names else ["key", *names]
    bound = bind(verbatim_task(names) if prompt is None else prompt_task(prompt), names, {})
    compiled = Compiled(provider, bound, parameters or Parameters(max_output=CAP))
    return Order(
        source,
        provider,
        compiled,
        lane,
        sheet_of(lane, more.pop("price", None)),
        sheet_of(Lane.LIVE),
        bounds,
        20,
        **more,
    )


def plan_of(home: Path, texts: Sequence[str], job_id: str = "job", **how: Any) -> tuple[Order, Store, Plan]:
    """A plan of one request a text, in a store under ``home``."""
    store = Store(home / "home")
    store.prepare()
    order = order_of(write_rows(home / f"{job_id}.jsonl", texts), **how)
    return order, store, make_plan(order, store, job_id)


def cache_at(home: Path) -> AnswerCache:
    return AnswerCache(home / "answers")


def submission(tag: str, n: int = 1, **more: Any) -> Submission:
    kept: dict[str, Any] = {"hold_nanos": 10**9, "spent_nanos": 0, "unproven_nanos": 0, "batch_id": f"batch-{n}"}
    return Submission(tag, n, SubmissionState.CREATED, "acc", intent_at=0.0, **{**kept, **more})


def shard_of(
    new: NewShard, *, files: Sequence[StoredFile] = (), subs: Sequence[Submission] | None = None,
    state: ShardState = ShardState.COLLECTING, **more: Any,
) -> Shard:  # fmt: skip
    """The ledger's record of a shard that was read twice, so that what is missing is missing."""
    own = tuple(subs) if subs is not None else (() if new.lane is Lane.CACHE else (submission(new.tag),))
    kept: dict[str, Any] = {
        "due": 0.0, "lease_until": 0.0, "lease_was_until": 0.0, "epoch": 1, "submission": own[-1].n if own else 0,
        "looks": 0, "fenced": False, "reads": 2, "reread": False, "refusals": 0, "waits": 0,
        "price": sheet_of(new.lane).to_json(), "reason": None, "job_state": JobState.RUNNING, "cancel_requested": False,
    }  # fmt: skip
    fields = ("tag", "seq", "lane", "attempt", "expiries", "missings", "splits", "first", "last", "count",
              "content_bytes", "cap_tokens", "input_tokens", "file")  # fmt: skip
    record = Shard(job_id=new.tag.rpartition("-")[0], state=state, submissions=own, files=tuple(files),
                   **{name: getattr(new, name) for name in fields}, **kept)  # fmt: skip
    return replace(record, **more)


def context_of(order: Order, store: Store, check: Any = None) -> Context:
    numbers = itertools.count(1000)
    scissors = Scissors(store, order.provider, order.compiled.url, order.sheet, lambda _: next(numbers))
    return Context(store, order.provider, order.sheet, order.list_sheet, check, scissors)


def results_of(order: Order, store: Store, plan: Plan, shards: Sequence[Shard], check: Any = None) -> Results:
    files = {file.kind: file for file in plan.files}
    sheets = {s.tag: order.sheet for s in shards if s.lane is not Lane.CACHE}
    job = JobFiles(files["rows"], files.get("twins"), files.get("bad"), shards, sheets)
    return Results(store, job, order.provider, order.compiled, check)


# -- lines that came back


def answer(custom_id: str, text: str, tokens: tuple[int, int] | None = (10, 5), **body: Any) -> bytes:
    """A line with an answer; ``tokens`` None: the provider gave no usage."""
    said: dict[str, Any] = {"id": "c", "object": "chat.completion", "model": "gpt-4o-mini-2024-07-18"}
    said["choices"] = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    if tokens is not None:
        said["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return _line(custom_id, {"status_code": 200, "request_id": "r", "body": {**said, **body}}, None)


def refusal(custom_id: str, status: int, message: str = "no") -> bytes:
    """A line with an error of that HTTP status."""
    body = {"error": {"message": message, "type": "error", "code": None, "param": None}}
    return _line(custom_id, {"status_code": status, "request_id": "r", "body": body}, None)


def unrun(custom_id: str, code: str = "batch_expired") -> bytes:
    """A line for a request that the batch ended before."""
    return _line(custom_id, None, {"code": code, "message": "This request could not be executed"})


def _line(custom_id: str, response: Any, error: Any) -> bytes:
    whole = {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(whole).encode() + b"\n"


def store_lines(
    store: Store, path: str, lines: Sequence[bytes], kind: str, tag: str, n: int = 1, read: int = 1
) -> StoredFile:
    with store.create(path) as out:
        out.write(b"".join(lines))
    return StoredFile(out.ref, kind, tag, n, read)
