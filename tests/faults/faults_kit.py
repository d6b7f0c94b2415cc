"""A mill and a simulator in one process with every wait tiny, and what must be true however a job ended.

`truth` judges by what the simulator itself says it ran, billed and delivered, never by our own sums.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sqlite3
import urllib.parse
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightmill.config import Timing, load_settings
from nightmill.engine import Stop
from nightmill.ledger import Job, Shard, Tally
from nightmill.mill import Mill, RunOptions
from nightmill.simulator import SimulatorConfig, in_thread

FAST = {"speed": 1000.0, "batch_s": 12.0, "validating_s": 2.0, "finalizing_s": 1.0, "cancel_s": 2.0}
SOON: dict[str, Any] = {
    "lease_s": 20.0, "margin_s": 1.0, "create_timeout_s": 5.0, "request_timeout_s": 5.0, "upload_timeout_s": 10.0,
    "poll_s": 0.01, "poll_max_s": 0.03, "list_lag_s": 0.03, "looks_s": [0.0, 0.02, 0.05], "reread_s": 0.03,
    "backoff_first_s": 0.002, "backoff_cap_s": 0.02, "limit_wait_s": 0.02,
}  # fmt: skip
PATIENCE_S = 40.0  # a run that takes longer hangs
MODEL = "openai/gpt-4o-mini"
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
UNDELIVERED = {"retention_404", "truncated_last_line"}  # hide answers that the simulator has on file
# What the simulator has on file and may show only after the row was sent again: a missing row to everyone else.
HELD_BACK = {"late_output_file": "answered", "late_error_file": "refused"}
_OVER = ("completed", "failed", "expired", "cancelled")


def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """One raw request to the simulator, past everything under test."""
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
    try:
        raw = None if body is None else json.dumps(body).encode()
        connection.request(method, path, raw, {"Authorization": "Bearer sk-judge", "Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclass
class House:
    """A mill with its simulator. ``key`` and ``env`` are what the next `again` opens the mill with."""

    url: str
    folder: Path
    timing: dict[str, Any]
    key: str = "sk-x"
    settings: str = ""  # more of nightmill.toml
    mill: Mill = field(init=False)

    def __post_init__(self) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.timing.items()]
        (self.folder / "nightmill.toml").write_text("[timing]\n" + "\n".join(lines) + "\n" + self.settings)
        self.open()

    def open(self) -> None:
        env = {
            "NIGHTMILL_HOME": str(self.folder / "home"),
            "OPENAI_API_KEY": self.key,
            "OPENAI_BASE_URL": self.url,
        }
        self.mill = Mill(load_settings(self.folder, env))

    def again(self, key: str | None = None) -> None:
        """Close the mill and open it anew, as another process would."""
        self.mill.close()
        self.key = key or self.key
        self.open()

    # -- the simulator's side ------------------------------------------------------------------

    def get(self, path: str) -> Any:
        return json.loads(call(self.url, "GET", path)[1])

    def post(self, path: str, body: dict[str, Any]) -> None:
        """One request of somebody else's with the same account."""
        status, said = call(self.url, "POST", path, body)
        assert status in (200, 500), said

    def faults(self, *faults: dict[str, Any]) -> None:
        status, said = call(self.url, "PUT", "/simulator/faults", list(faults))
        assert status == 200, said

    def forward(self, provider_s: float = 1e6) -> None:
        """What a fault holds back for no longer than that shows now."""
        status, said = call(self.url, "POST", "/simulator/forward", provider_s)
        assert status == 200, said

    def fired(self) -> dict[str, int]:
        return {f["fault"]: f["fired"] for f in self.get("/simulator/faults")}

    def log(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.get("/simulator/log") if e["event"] == event]

    def invoice(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/simulator/invoice")
        return found

    def batches(self) -> list[dict[str, Any]]:
        """Every batch the simulator committed, oldest first, as it is now."""
        ids = list(dict.fromkeys(e["batch_id"] for e in self.log("create") if e["batch_id"]))
        return [self.get(f"/v1/batches/{batch_id}") for batch_id in ids]

    def lines(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Every result line of a batch, output before error, from the simulator itself."""
        found = []
        for name in ("output_file_id", "error_file_id"):
            if file_id := batch.get(name):
                raw = call(self.url, "GET", f"/v1/files/{file_id}/content")[1]
                found += [json.loads(line) for line in raw.split(b"\n") if line]
        return found

    # -- the mill's side -----------------------------------------------------------------------

    def submit(self, rows: int = 8, lane: str = "batch", **options: Any) -> Job:
        path = self.folder / f"in-{rows}.csv"
        path.write_text("id,text\n" + "".join(f"k{i},word number {i}\n" for i in range(rows)))
        if "schema" in options:
            (self.folder / "schema.json").write_text(json.dumps(options["schema"]))
            options["schema"] = str(self.folder / "schema.json")
        given = {"max_output": 400, "prompt": "Say it: {{ text }}", "model": MODEL} | options
        return self.mill.submit(self.mill.prepare(RunOptions((str(path),), lane=lane, **given)))

    def run(self, job: Job, until: Callable[[House, Job], bool] | None = None) -> Job:
        """Work on the job until it ends or pauses, or until ``until`` is true after a step; the job then."""
        stop = Stop()

        def look(_: str) -> None:
            if until is not None and until(self, job):
                stop.gently.set()

        async def work() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await self.mill.run([job.id], stop, look)

        try:
            asyncio.run(work())
        except TimeoutError:
            states = [(s.tag, s.state.value, s.reason) for s in self.shards(job)]
            raise AssertionError(f"the job does not end: {self.mill.job(job.id)}, {states}") from None
        return self.mill.job(job.id)

    def cancel(self, job: Job) -> None:
        self.mill.cancel(job)

    def shards(self, job: Job) -> list[Shard]:
        return self.mill.ledger.shards_of(job.id)

    def tally(self, job: Job) -> Tally:
        return self.mill.tally(job)

    def results(self, job: Job) -> list[dict[str, Any]]:
        return [row for batch in self.mill.results(job) for row in batch.to_pylist()]

    def alerts(self, job: Job) -> list[str]:
        return [kind for kind, _, _ in self.mill.ledger.alerts_of(job.id)]

    def sql(self, query: str, *args: Any) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(self.folder / "home" / "nightmill.db", isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query, args)]


@contextlib.contextmanager
def house(
    folder: Path, *faults: dict[str, Any], sim: dict[str, Any] | None = None, timing: dict[str, Any] | None = None,
    key: str = "sk-x", settings: str = "",
) -> Iterator[House]:  # fmt: skip
    """A mill and a simulator with ``faults`` in force, for as long as the block lasts."""
    with in_thread(SimulatorConfig(**{**FAST, **(sim or {}), "faults": faults})) as url:
        made = House(url, folder, {**SOON, **(timing or {})}, key, settings)
        try:
            yield made
        finally:
            made.mill.close()


# -- what must be true ---------------------------------------------------------------------------


def truth(house: House, job: Job, *, settled: bool = True, fired: Collection[str] | None = None) -> None:
    """The general promises: accounting, money, paid answers kept, nothing sent twice against the rules.

    ``fired``: the faults that came up, where the simulator does not know them any more.
    """
    happened = {name for name, n in house.fired().items() if n} if fired is None else set(fired)
    undelivered = bool(UNDELIVERED & happened)
    repeated = house.fired().get("create_repeated", 0)
    house.faults()
    job = house.mill.job(job.id)
    _sums(house, job, settled)
    _money(house, job, settled, proven="usage_missing" not in happened)
    if job.lane == "batch":
        if not undelivered:
            _kept(house, job)
        hidden = {HELD_BACK[name] for name in HELD_BACK.keys() & happened} | ({"answered"} if undelivered else set())
        _sent_by_the_rules(house, job, hidden, repeated)


def _sums(house: House, job: Job, settled: bool) -> None:
    columns = "succeeded + failed + missing + expired + cancelled AS ended, *"
    for shard in house.sql(f"SELECT {columns} FROM shards WHERE job_id = ?", job.id):
        if shard["state"] == "settled":
            assert shard["ended"] == shard["count"], f"{shard['tag']} does not add up: {shard}"
    if not settled:
        return
    tally = house.tally(job)
    assert tally.open == 0
    assert tally.counts.total == job.rows - job.duplicates, tally
    assert job.counts is not None
    assert sum(job.counts.values()) == job.rows
    results = house.results(job)
    assert [row["index"] for row in results] == list(range(job.rows))
    assert sum(row["success"] for row in results) == job.counts["succeeded"] == tally.counts.succeeded


def _money(house: House, job: Job, settled: bool, proven: bool) -> None:
    tally, billed = house.tally(job), house.invoice()["total_nanos"]
    for limit in house.mill.ledger.limits():
        if limit.cap_nanos is not None:
            assert limit.spent_nanos + limit.held_nanos <= limit.cap_nanos, limit
        if settled:
            assert limit.held_nanos == 0, f"{limit.scope} still holds {limit.held_nanos}"
    if settled:
        total = next(limit for limit in house.mill.ledger.limits() if limit.scope == "total")
        assert total.spent_nanos == tally.spent_nanos
        assert tally.held_nanos == 0
        if proven:  # an estimate of what an answer cost is no proof
            assert tally.spent_nanos - tally.unproven_nanos <= billed <= tally.spent_nanos, (tally, billed)


def _kept(house: House, job: Job) -> None:
    """Every answer the simulator delivered is the answer of its row, or one of several."""
    wanted: dict[int, set[str]] = {}
    for batch in house.batches():
        if batch["status"] not in _OVER:
            continue
        for line in house.lines(batch):
            tag, _, index = line["custom_id"].rpartition("-")
            if not tag.startswith(job.id) or not line["response"] or line["response"]["status_code"] != 200:
                continue
            message = line["response"]["body"]["choices"][0]["message"]
            wanted.setdefault(int(index), set()).add(message["content"] or message.get("refusal") or "")
    settled = {row["tag"] for row in house.sql("SELECT tag FROM shards WHERE state = 'settled'")}
    for row in house.results(job):
        if texts := wanted.get(row["index"]):
            assert row["shard"] in settled
            assert (row["response"] or "") in texts, f"row {row['index']} lost its answer: {row}"


def _sent_by_the_rules(house: House, job: Job, hidden: Collection[str], repeated: int) -> None:
    """No shard runs twice, and no row goes out again after an answer, nor more often than the rules say.

    What the provider had and did not deliver (in time), ``hidden``, is a missing row to everyone else. So many
    creates were ``repeated`` on the way, and perhaps not noticed yet.
    """
    rename = dict.fromkeys(hidden, "missing")
    ran: dict[str, int] = {}
    history: dict[int, list[str]] = {}
    revived = max(repeated, house.alerts(job).count("second_batch"))
    for batch in house.batches():
        tag = (batch["metadata"] or {})["nightmill"].rpartition(".")[0]
        if not tag.startswith(job.id) or (batch["status"] == "failed" and not batch["request_counts"]["completed"]):
            continue
        ran[tag] = ran.get(tag, 0) + 1
        if ran[tag] > 1 and revived:
            continue
        shard = next((s for s in house.shards(job) if s.tag == tag), None)
        assert shard is not None, f"{tag} ran and is unknown"
        mine = [line for line in house.lines(batch) if line["custom_id"].startswith(f"{tag}-")]
        said = {int(line["custom_id"].rpartition("-")[2]): _word(line) for line in mine}
        with house.mill.store.open(shard.file) as stream:
            rows = [int(json.loads(line)["custom_id"].rpartition("-")[2]) for line in stream]
        for row in rows:
            word = said.get(row, "missing")
            history.setdefault(row, []).append(rename.get(word, word))
    twice = {tag: n for tag, n in ran.items() if n > 1}
    assert sum(n - 1 for n in twice.values()) <= revived, f"sent twice: {twice}"
    for row, words in history.items():
        assert "answered" not in words[:-1], f"row {row} was answered and sent again: {words}"
        assert "refused" not in words[:-1], f"row {row} was refused and sent again: {words}"
        for word, most in (("failed", 3), ("missing", 2), ("expired", 3)):
            assert words.count(word) <= most, f"row {row}: {words}"


def _word(line: dict[str, Any]) -> str:
    if line["error"]:
        return "expired" if line["error"]["code"] in ("batch_expired", "batch_cancelled") else "failed"
    status = line["response"]["status_code"]
    if status == 200:
        return "answered"
    return "refused" if 400 <= status < 500 and status not in (408, 409, 429) else "failed"


def exact(house: House, job: Job) -> None:
    """Spent is the invoice to the nano, and nothing is unproven."""
    tally = house.tally(job)
    assert tally.unproven_nanos == 0
    assert tally.spent_nanos == house.invoice()["total_nanos"]


__all__ = ["FAST", "SCHEMA", "SOON", "House", "Timing", "call", "exact", "house", "truth"]
