"""The worker under test: one command over one home, made to be killed and started again as it was.

    python worker.py FOLDER '{"lane": "batch", ...}'

Exit 0: the job is finished; 3: the same, with failed rows; 4: stopped by a budget, or paused;
2: another worker did the same job while this one still planned it;
anything else is a defect.

    python worker.py --nest

forks such workers on request, each a process of its own that begins with everything imported: a
start costs a tenth of a second of CPU then instead of a whole one, and there are hundreds.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import faulthandler
import gc
import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nightmill import killpoints
from nightmill.cli import main as cli
from nightmill.config import load_settings
from nightmill.engine import Stop
from nightmill.errors import Conflict, LeaseLost, OverBudget, ProviderError, StoreError, UsageError
from nightmill.ledger import Job, Shard
from nightmill.mill import Mill, RunOptions
from nightmill.pricing import price_sheet
from nightmill.types import UNFINISHED, JobState, Lane, ShardState

_LOOK_S = 0.02
_BATCH_S = 0.5  # more than a batch of the simulator takes
_MONTH_S = 30 * 86_400.0
_PROMPT = "Say something of {{ text }}"
_MODEL = "openai/gpt-4o-mini"
_PROVIDERS = ("anthropic", "gemini", "openai")
_OPTIONS = (
    "lane", "by", "batch_size", "budget_nanos", "concurrency", "canary", "min_valid", "schema", "repair", "reask",
    "media",
)  # fmt: skip


def options_of(folder: Path, asked: dict[str, Any]) -> RunOptions:
    """What the command line would be."""
    said = {name: asked[name] for name in _OPTIONS if name in asked}
    prompt = asked.get("prompt", _PROMPT)
    return RunOptions((str(folder / "in.csv"),), prompt=prompt, model=asked["model"], max_output=400, **said)


def begin(mill: Mill, folder: Path, asked: dict[str, Any]) -> Job:
    """What `nightmill run` does first; with ``once`` a job that is there already is gone on with."""
    if asked.get("command") == "adopt":
        return asyncio.run(mill.adopt("openai/" + (folder / "elsewhere").read_text())).job
    there = mill.ledger.jobs()
    if asked.get("once") and there:
        return there[-1]
    prepared = mill.prepare(options_of(folder, asked))
    if asked.get("just_enough"):  # money for the first ask, and for no step after it
        prepared = replace(prepared, options=replace(prepared.options, budget_nanos=prepared.quote.at_most_nanos))
    return mill.submit(prepared)


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


def nightmill_run(folder: Path, asked: dict[str, Any]) -> int:
    """The command itself, with an output to write."""
    os.chdir(folder)
    flags = {"--prompt": _PROMPT, "--model": asked["model"], "--lane": asked["lane"], "--max-output": "400",
             "--out": "out.jsonl", "--progress": "none"}  # fmt: skip
    flags |= {f"--{k.replace('_', '-')}": str(asked[k]) for k in ("batch_size", "concurrency") if k in asked}
    return cli(["run", "in.csv", "--yes", *(word for flag in flags.items() for word in flag)])


# -- the commands a person gives on the way; each may be given again after a crash --------------------


async def plain(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run"""
    await work(mill, job)


async def resume(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run; where it pauses, agree and go on"""
    if (await work(mill, job)).state is JobState.PAUSED:
        mill.resume(mill.job(job.id))
        await work(mill, job)


async def insist(mill: Mill, job: Job, asked: dict[str, Any]) -> None:
    """run; where the first rows stop it, give the same command again, which stops again, and then go on all the same"""
    if (await work(mill, job)).state is JobState.PAUSED:
        mill.submit(mill.prepare(options_of(mill.settings.home.parent, asked)))
        await work(mill, job)
        await resume(mill, job, asked)


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


async def late(mill: Mill, job: Job, asked: dict[str, Any]) -> None:
    """run, then come back when all that the provider held back is there"""
    done = await work(mill, job)
    if done.finished_at is not None:
        await asyncio.to_thread(_call, asked["simulator"] + "/forward", "POST", b"1e9")
        try:
            came = await mill.look_again(done)
        except ProviderError as error:  # it stood still for longer than a call may take
            print(error, file=sys.stderr)
            return
        if came:
            await work(mill, done)


async def reconcile(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run, then let the provider's own totals prove what the answers could not"""
    await work(mill, job)
    await mill.reconcile()


async def poor(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run with too little money until it pauses, then raise the budget and resume"""
    running = mill.desk.scopes()
    mill.ledger.set_budget("total", 1_000, running_scopes=running)
    if (await work(mill, job)).state is JobState.PAUSED:
        mill.ledger.set_budget("total", 1_000_000_000, running_scopes=running)
        mill.resume(job)
        await work(mill, job)


async def tight(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run with a budget that the holds fill to the last cent; where it pauses, agree to as much again"""
    assert job.quote is not None
    running, most = mill.desk.scopes(), job.quote.at_most_nanos
    if all(limit.cap_nanos is None for limit in mill.ledger.limits()):
        mill.ledger.set_budget("total", most, running_scopes=running)
    if (await work(mill, job)).state is JobState.PAUSED:
        mill.ledger.set_budget("total", 2 * most, running_scopes=running)
        mill.resume(mill.job(job.id))
        await work(mill, job)


async def delete(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run, then delete the job"""
    done = await work(mill, job)
    if done.finished_at is not None:
        mill.delete(done)


async def sweep(mill: Mill, job: Job, _: dict[str, Any]) -> None:
    """run, then remove what may go, long after"""
    done = await work(mill, job)
    if done.finished_at is not None:
        await mill.sweep(older_than_s=_MONTH_S, now=time.time() + 3 * _MONTH_S)


async def resolve(mill: Mill, job: Job, asked: dict[str, Any]) -> None:
    """run until a person is asked about a shard in doubt, then end its doubt by hand"""
    stop = Stop()
    working = asyncio.create_task(mill.run([job.id], stop))
    await either(working, lambda: any(_asked(mill, job)))
    stop.gently.set()
    await working
    for shard in _asked_about(mill, job):
        decision = await asyncio.to_thread(_decision, shard, asked)
        while _asked_about(mill, job):
            try:
                await mill.resolve(shard, **decision)
                break
            except (LeaseLost, Conflict):  # another works on it, or has ended the doubt: look again in a while
                await asyncio.sleep(_LOOK_S)
    await asyncio.to_thread(_call, asked["simulator"] + "/faults", "DELETE")
    await work(mill, job)


async def unnamed(mill: Mill, job: Job, asked: dict[str, Any]) -> None:
    """run where batches carry no name: a person who knows which are whose ends what nobody else can, and looks again"""
    while mill.job(job.id).state in UNFINISHED:
        stop = Stop()
        working = asyncio.create_task(mill.run([job.id], stop))
        if asked.get("twin"):
            await either(working, lambda: in_state(mill, job, ShardState.IN_DOUBT))
            for shard in mill.ledger.shards_of(job.id, ShardState.IN_DOUBT)[:1]:
                await asyncio.to_thread(_twin, mill, shard.count, asked)
        await either(working, lambda: bool(_asked_about(mill, job)))
        stop.gently.set()
        await working
        for shard in _asked_about(mill, job):
            try:
                await mill.resolve(shard, **await asyncio.to_thread(_whose, mill, shard, asked))
            except (LeaseLost, Conflict, UsageError):  # it was found out meanwhile
                await asyncio.sleep(_LOOK_S)
    await asyncio.sleep(_BATCH_S)  # what a stopped worker made at last has ended then
    if await mill.look_again(mill.job(job.id)):
        await work(mill, job)


def _twin(mill: Mill, count: int, asked: dict[str, Any]) -> None:
    """Somebody else with the same key makes a batch as large, once, of requests that cost nothing."""
    marker = mill.settings.home / "twin"
    if marker.exists():
        return
    requests = [{"custom_id": f"theirs-{i}", "params": {"model": "no-such-model", "max_tokens": 1, "messages": []}}
                for i in range(count)]  # fmt: skip
    headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01",
               "content-type": "application/json"}  # fmt: skip
    url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages/batches"
    body = json.dumps({"requests": requests}).encode()
    with contextlib.suppress(urllib.error.HTTPError):  # the fault that was meant for ours
        urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers)).close()
    made = [e["batch_id"] for e in _call(asked["simulator"] + "/log")[asked["since"] :] if e["event"] == "create"]
    marker.write_text(made[-1] or "")


def _whose(mill: Mill, shard: Shard, asked: dict[str, Any]) -> dict[str, Any]:
    """What a person says who knows what others made: what is left of that size is the shard's.

    Killed before it noted the other batch, a worker makes one more; of these two their results tell.
    """
    marker = mill.settings.home / "twin"
    theirs = marker.read_text() if marker.exists() else ""
    events = _call(asked["simulator"] + "/log")[asked["since"] :]
    made = {e["batch_id"] for e in events if e["event"] == "create" and e["batch_id"]
            and e["requests"] == shard.count} - {theirs, *shard.current.not_ours}  # fmt: skip
    left = sorted(made - mill.ledger.taken(made).keys())
    return {"adopt": left[0]} if left else {"resend": True}


def _asked(mill: Mill, job: Job) -> list[str | None]:
    """The tags of all shards about which a person was ever asked."""
    return [tag for kind, tag, _ in mill.ledger.alerts_of(job.id) if kind in ("in_doubt", "not_ours")]


def _asked_about(mill: Mill, job: Job) -> list[Shard]:
    tags = _asked(mill, job)
    return [s for s in mill.ledger.shards_of(job.id, ShardState.IN_DOUBT) if s.tag in tags]


def _decision(shard: Shard, asked: dict[str, Any]) -> dict[str, Any]:
    """What a person says who sees the provider's own page; what is not there is sent again."""
    creates = [e for e in _call(asked["simulator"] + "/log") if e["event"] == "create" and e["batch_id"]]
    there = [e["batch_id"] for e in creates if shard.current.name in (e.get("metadata") or {}).values()]
    if not there or asked["decision"] == "resend":
        return {"resend": True}
    return {"adopt": there[0]} if asked["decision"] == "adopt" else {}


def _call(url: str, method: str = "GET", body: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method=method)) as answer:
        return json.load(answer)


COMMANDS = {
    "run": plain, "resume": resume, "cancel": cancel, "retry": retry, "late": late, "poor": poor, "tight": tight,
    "resolve": resolve, "delete": delete, "sweep": sweep, "adopt": plain, "reconcile": reconcile,
    "unnamed": unnamed, "insist": insist,
}  # fmt: skip


REMOVING = ("delete", "sweep")


def main(folder: Path, asked: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    if asked.get("command") == "nightmill run":
        return nightmill_run(folder, asked)
    mill = Mill(load_settings(folder, os.environ))
    if asked.get("command") == "delete" and mill.ledger.deletions():
        mill.finish_deletion("@last")
        return 0
    try:
        job = begin(mill, folder, asked)
        asyncio.run(COMMANDS[asked.get("command", "run")](mill, job, asked))
    except (OverBudget, ProviderError):  # the latter: a person is told, and gives the command again
        return 4
    except Conflict as overtaken:  # another worker did it while this one stood still
        print(overtaken, file=sys.stderr)
        return 2
    except StoreError as gone:  # and then removed what this one still held for its own
        if asked.get("command") not in REMOVING:
            raise
        print(gone, file=sys.stderr)
        return 2
    if asked.get("command") == "delete" and mill.ledger.deletions():
        return 0
    state = mill.job(job.id).state
    mill.close()
    return 4 if state is JobState.PAUSED else int(state in UNFINISHED)


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
    """Load what every worker would, without beginning a thread: threads do not live through a fork.

    pyarrow loads pandas, where it is installed, with the first array it makes.
    """
    ours = ("cli.run", "cli.present", "sources.delimited", *(f"providers.{name}" for name in _PROVIDERS))
    theirs = ("aiohttp", "encodings.utf_8_sig", "jinja2", "pandas", "pyarrow.csv", "pyarrow.pandas_compat",
              "pyarrow.parquet")  # fmt: skip
    for name in (*theirs, *(f"nightmill.{name}" for name in ours)):
        importlib.import_module(name)
    price_sheet(_MODEL, Lane.BATCH, at=dt.datetime.now(dt.UTC), overrides={})
    gc.freeze()  # else every fork walks, and so copies, all that was imported


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
        faulthandler.register(signal.SIGUSR1)  # whoever hangs can be asked where
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
