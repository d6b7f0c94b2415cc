"""The worker under test: one command over one home, made to be killed and started again as it was.

    python worker.py FOLDER '{"lane": "batch", ...}'

Exit 0: every job of the home is finished; 4: one is paused; anything else is a defect.

    python worker.py --nest

forks such workers on request, each a process of its own that begins with everything imported: a
start costs a tenth of a second of CPU then instead of a whole one, and there are hundreds.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import json
import logging
import os
import sys
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightmill import killpoints
from nightmill.config import load_settings
from nightmill.engine import Stop
from nightmill.errors import LeaseLost, Uncertain
from nightmill.ledger import Job, Shard
from nightmill.mill import Mill, RunOptions
from nightmill.pricing import price_sheet
from nightmill.providers import BatchView
from nightmill.providers.openai import OpenAI
from nightmill.types import UNFINISHED, JobState, Lane, ShardState

_LOOK_S = 0.02


def options_of(folder: Path, asked: dict[str, Any]) -> RunOptions:
    """What the command line would be."""
    plain = {k: v for k, v in asked.items() if k in ("lane", "batch_size", "budget_nanos", "concurrency", "dedupe")}
    source = str(folder / "in.csv")
    return RunOptions(
        (source,), prompt="Say something of {{ text }}", model="openai/gpt-4o-mini", max_output=400, **plain
    )


def begin(mill: Mill, folder: Path, asked: dict[str, Any]) -> Job:
    """What `nightmill run` does first; with ``once`` a job that is there already is gone on with."""
    there = mill.ledger.jobs()
    if asked.get("once") and there:
        return there[-1]
    return mill.submit(mill.prepare(options_of(folder, asked)))


async def work(mill: Mill, job: Job) -> Job:
    """What `nightmill run` does then."""
    await mill.run([job.id])
    return mill.job(job.id)


async def either(working: asyncio.Task[None], ready: Callable[[], bool]) -> None:
    """Wait until the work is over or ``ready``."""
    while not (working.done() or ready()):  # noqa: ASYNC110 (what is waited for is in the ledger)
        await asyncio.sleep(_LOOK_S)


def in_state(mill: Mill, job: Job, *states: ShardState) -> bool:
    return bool(mill.ledger.shards_of(job.id, *states))


# -- the commands a person gives on the way; each may be given again after a crash --------------------


async def plain(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run"""
    await work(mill, job)


async def cancel(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run, and cancel once something is at the provider"""
    working = asyncio.create_task(mill.run([job.id]))
    await either(working, lambda: in_state(mill, job, ShardState.WAITING, ShardState.SENDING))
    mill.cancel(job)
    await working


async def retry(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run, then retry what failed"""
    done = await work(mill, job)
    if done.finished_at is not None and mill.retry(done):
        await work(mill, done)


async def poor(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run with too little money until it pauses, then raise the budget and resume"""
    running = mill.desk.scopes(job.id, False)
    mill.ledger.set_budget("total", 1_000, running_scopes=running)
    if (await work(mill, job)).state is JobState.PAUSED:
        mill.ledger.set_budget("total", 1_000_000_000, running_scopes=running)
        mill.resume(job)
        await work(mill, job)


async def resolve(mill: Mill, job: Job, asked: dict[str, Any]) -> None:
    """run until a person is asked about a shard in doubt, then end its doubt by hand"""
    stop = Stop()
    working = asyncio.create_task(mill.run([job.id], stop))
    await either(working, lambda: bool(_asked_about(mill, job)))
    stop.gently.set()
    await working
    for shard in _asked_about(mill, job):
        decision = await asyncio.to_thread(_decision, shard, asked)
        while _asked_about(mill, job):
            try:
                await mill.resolve(shard, **decision)
                break
            except LeaseLost:  # "is being worked on: try again in a while"
                await asyncio.sleep(_LOOK_S)
    await asyncio.to_thread(_call, asked["simulator"] + "/faults", "DELETE")
    await work(mill, job)


def _asked_about(mill: Mill, job: Job) -> list[Shard]:
    tags = {tag for kind, tag, _ in mill.ledger.alerts_of(job.id) if kind == "in_doubt"}
    return [s for s in mill.ledger.shards_of(job.id, ShardState.IN_DOUBT) if s.tag in tags]


def _decision(shard: Shard, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["decision"] != "adopt":
        return {"resend": asked["decision"] == "resend"}
    creates = [e for e in _call(asked["simulator"] + "/log") if e["event"] == "create" and e["batch_id"]]
    return {"adopt": next(e["batch_id"] for e in creates if shard.current.name in e["metadata"].values())}


def _call(url: str, method: str = "GET") -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
        return json.load(answer)


COMMANDS = {"run": plain, "cancel": cancel, "retry": retry, "poor": poor, "resolve": resolve}


def create_twice() -> None:
    """A client that repeats a create on its own and hears no answer: two batches carry the same name."""
    once = OpenAI.create

    async def twice(self: OpenAI, file_id: str, *, url: str, submission: str) -> BatchView:
        await once(self, file_id, url=url, submission=submission)
        await once(self, file_id, url=url, submission=submission)
        raise Uncertain("the answer to the second try was lost")

    OpenAI.create = twice  # type: ignore[method-assign]


def main(folder: Path, asked: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    if asked.get("create_twice"):
        create_twice()
    mill = Mill(load_settings(folder, os.environ))
    job = begin(mill, folder, asked)
    asyncio.run(COMMANDS[asked.get("command", "run")](mill, job, asked))
    states = {j.state for j in mill.ledger.jobs()}
    mill.close()
    if JobState.PAUSED in states:
        return 4
    return 1 if states & UNFINISHED else 0


# -- many workers, quickly ---------------------------------------------------------------------------


def nest() -> None:
    """Answer requests, a JSON line each: ``{"start": ...}`` with a pid, ``{"poll": pid}`` with an exit code or null."""
    warm()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: int | None = hatch(request["start"])
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def warm() -> None:
    """Load what every worker would, without beginning a thread: threads do not live through a fork."""
    for name in ("aiohttp", "jinja2", "pyarrow.csv", "pyarrow.parquet", "nightmill.sources.delimited"):
        importlib.import_module(name)
    price_sheet("openai/gpt-4o-mini", Lane.BATCH, at=dt.datetime.now(dt.UTC), overrides={})


def hatch(request: dict[str, Any]) -> int:
    """Fork one worker; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.environ.clear()
        os.environ.update(request["env"])
        importlib.reload(killpoints)  # reads the environment anew
        code = main(Path(request["folder"]), request["asked"])
    except BaseException:  # a fork must never go back into the loop of its nest
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--nest":
        nest()
    else:
        sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
