"""Claims: a live request costs little more CPU than a bare aiohttp loop's, and goes ten times as fast as the SDK's.

All three post the same bodies with the same number in flight to nginx, which always answers the same
completion, so that the server is nobody's bottleneck. Ours is the live lane whole: claims and leases,
a mark on disk before each request, the answer on disk after it, the throttle, and every shard sealed,
accounted and settled in the ledger.

Not in the figures, since the others have nothing like it: planning, and what closes a job that is
settled (the result files, kept answers, packing; `scale.py` counts these for a row of any lane). The
notes tell both figures with the closing included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _kit import MODEL, PROMPT, Figure, Skipped, answer_line, arguments, race, report, words, write_rows

from nightmill.config import load_settings
from nightmill.engine import Engine, JobKit
from nightmill.ledger import Job
from nightmill.mill import Mill, RunOptions

IN_FLIGHT = 64
CLAIMS = ("client CPU of a live request, beside bare aiohttp", "rate of live requests, beside AsyncOpenAI")
CONFIG = """
daemon off;
worker_processes 1;
error_log stderr crit;
pid {folder}/nginx.pid;
{user}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  default_type application/json;
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 '{answer}'; }}
  }}
}}
"""


def main() -> int:
    given = arguments(__doc__, rows=8_000, rounds=17)
    nginx = shutil.which("nginx")
    if nginx is None:
        return report(
            [Skipped(claim, "there is no nginx here to be the server") for claim in CLAIMS], as_json=given.json
        )
    folder = Path(tempfile.mkdtemp(prefix="bench-live-"))
    try:
        with served(nginx, folder) as url:
            return report(measure(folder, url, given.rows, given.rounds), as_json=given.json)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, url: str, rows: int, rounds: int) -> list[Figure]:
    write_rows(folder / "rows.jsonl", rows)
    walls: dict[str, list[float]] = {"ours": [], "aiohttp": [], "sdk": []}
    closing: list[Closing] = []
    prepared = [ready(folder, url, n) for n in range(rounds)]
    bodies = shard_bodies(folder, rows)
    few = bodies[: max(IN_FLIGHT, rows // 8)]  # the SDK's calls cost the same, few or many
    asked = {"ours": rows, "aiohttp": rows, "sdk": len(few)}

    def timed(name: str, work: object) -> None:
        started = time.perf_counter()
        asyncio.run(work)  # type: ignore[arg-type]
        walls[name].append(time.perf_counter() - started)

    def ours() -> None:
        mill, job_id = prepared.pop()
        with Closing.watched() as watch:
            timed("ours", mill.run([job_id]))
        closing.append(watch)
        walls["ours"][-1] -= watch.wall_s
        assert mill.tally(mill.job(job_id)).counts.succeeded == rows
        mill.close()

    contenders = {
        "ours": ours,
        "aiohttp": lambda: timed("aiohttp", bare(url, bodies)),
        "sdk": lambda: timed("sdk", official(url, few)),
    }
    seconds = race(contenders, rounds)
    whole_us = median(seconds["ours"]) / rows * 1e6
    whole_rate = rows / median(spent + watch.wall_s for spent, watch in zip(walls["ours"], closing, strict=True))
    seconds["ours"] = [spent - watch.cpu_s for spent, watch in zip(seconds["ours"], closing, strict=True)]
    cpu = {name: median(times) / asked[name] * 1e6 for name, times in seconds.items()}
    rate = {name: asked[name] / median(times) for name, times in walls.items()}
    ratios = [mine / theirs for mine, theirs in zip(seconds["ours"], seconds["aiohttp"], strict=True)]
    costs = ", ".join(f"{name} {us:.0f} us" for name, us in cpu.items())
    rates = ", ".join(f"{name} {per_s:,.0f}/s" for name, per_s in rate.items())
    return [
        Figure(CLAIMS[0], median(ratios), 1.5, at_most=True,
               note=f"{costs}; with the closing of the job {whole_us:.0f} us"),
        Figure(CLAIMS[1], rate["ours"] / rate["sdk"], 10,
               note=f"{rates}; with the closing of the job {whole_rate:,.0f}/s"),
    ]  # fmt: skip


@dataclass
class Closing:
    """What closing jobs took while this was watched: after the last shard is settled nothing else runs."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def watched(cls) -> Iterator[Closing]:
        watch, finish = cls(), Engine._finish

        async def timed(engine: Engine, kit: JobKit, job: Job) -> None:
            cpu, wall = time.process_time(), time.perf_counter()
            await finish(engine, kit, job)
            watch.cpu_s += time.process_time() - cpu
            watch.wall_s += time.perf_counter() - wall

        Engine._finish = timed  # type: ignore[method-assign]
        try:
            yield watch
        finally:
            Engine._finish = finish  # type: ignore[method-assign]


def ready(folder: Path, url: str, n: int) -> tuple[Mill, str]:
    """A job of all rows in a home of its own, planned and not begun."""
    home = folder / f"home-{n}"
    home.mkdir()
    environ = {"OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": url, "NIGHTMILL_HOME": str(home)}
    mill = Mill(load_settings(folder, environ))
    options = RunOptions(
        (str(folder / "rows.jsonl"),), prompt=PROMPT, model=MODEL, lane="live", concurrency=IN_FLIGHT,
        max_output=60, budget_nanos=None, cache=False,
    )  # fmt: skip
    return mill, mill.submit(mill.prepare(options)).id


def shard_bodies(folder: Path, rows: int) -> list[bytes]:
    """The very bodies that the live lane sends."""
    lines = [line for file in sorted((folder / "home-0").rglob("shards/*.jsonl")) for line in file.open("rb")]
    assert len(lines) == rows
    return [line[line.index(b'"body":') + 7 : -2] for line in lines]


async def bare(url: str, bodies: list[bytes]) -> None:
    """What anyone would write: a pool of tasks that post and read."""
    import aiohttp

    headers = {"Authorization": "Bearer sk-bench", "Content-Type": "application/json"}
    todo = iter(bodies)
    answers = 0

    async def hand(session: aiohttp.ClientSession) -> None:
        nonlocal answers
        for body in todo:
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                await response.read()
                answers += response.status == 200

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(hand(session) for _ in range(IN_FLIGHT)))
    assert answers == len(bodies)


async def official(url: str, bodies: list[bytes]) -> None:
    from openai import AsyncOpenAI

    todo = iter([json.loads(body) for body in bodies])
    answers = 0

    async def hand(client: AsyncOpenAI) -> None:
        nonlocal answers
        for body in todo:
            answer = await client.chat.completions.create(**body)
            answers += answer.choices[0].message.content is not None

    async with AsyncOpenAI(api_key="sk-bench", base_url=url) as client:
        await asyncio.gather(*(hand(client) for _ in range(IN_FLIGHT)))
    assert answers == len(bodies)


@contextlib.contextmanager
def served(nginx: str, folder: Path) -> Iterator[str]:
    """nginx on a free port of the loopback, with everything it writes in ``folder``."""
    line = json.loads(answer_line("x", words(random.Random(1), 160).replace("'", ""), 90, 1))
    answer = json.dumps(line["response"]["body"]).replace("'", "").replace("$", "")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    user = "user root;" if hasattr(os, "geteuid") and os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, user=user, answer=answer.replace("\\", "\\\\")))
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(config)], stderr=subprocess.PIPE)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        else:
            raise SystemExit("nginx did not come up")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
