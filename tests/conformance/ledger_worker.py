"""A worker in a process of its own, for tests of what happens between processes and after their death."""

from __future__ import annotations

import sys

from ledger_kit import LEASE_S, claim, connect, done, intend

from nightmill.ledger import Denied, Ledger
from nightmill.types import Lane


def claim_one(ledger: Ledger, *_: str) -> None:
    print(claim(ledger).tag, flush=True)
    sys.stdin.readline()


def plan_one(ledger: Ledger, job_id: str) -> None:
    ledger.begin_plan(job_id, model="m", lane=Lane.BATCH)
    print("planning", flush=True)
    sys.stdin.readline()


def hammer(ledger: Ledger, nanos: str) -> None:
    """Hold for every shard there is, as fast as can be; settle every third of those granted."""
    print("ready", flush=True)
    sys.stdin.readline()
    granted = denied = 0
    while shards := ledger.claim_due(lane=Lane.LIVE, limit=2, lease_s=LEASE_S):
        for shard in shards:
            ready = intend(ledger, shard, int(nanos))
            if isinstance(ready, Denied):
                denied += 1
                ledger.release(shard, due_in_s=1e6)
                continue
            granted += 1
            if granted % 3 == 0:
                collecting = ledger.note_sent_all(ready)
                ledger.settle(collecting, done(collecting, int(nanos)))
    print(granted, denied, flush=True)


if __name__ == "__main__":
    what = {"claim": claim_one, "plan": plan_one, "hammer": hammer}[sys.argv[2]]
    what(connect(sys.argv[1]), *sys.argv[3:])
