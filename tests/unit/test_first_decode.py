"""What is read first by several threads at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRIES = 150
# Each try is a process in which nothing of the type was read before; threads take turns as often as they can.
FIRST_READS = """
import os, sys, threading
{setup}
sys.setswitchinterval(1e-6)

def first() -> int:
    together = threading.Barrier(6)

    def go() -> None:
        together.wait()
        read()

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0

ends = set()
for _ in range({tries}):
    pid = os.fork()
    if not pid:
        os._exit(first())
    ends.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(sorted(ends))
"""
QUOTE = """
from types import SimpleNamespace
import msgspec
from nightmill.ledger.jobs import _job
from nightmill.types import Lane, Quote
text = msgspec.json.encode(Quote(Lane.LIVE, 1, 2, 3, 4, 5, 6, 7, "a source")).decode()
row = dict.fromkeys(("id name reason stopped model rows invalid duplicates cached created_at started_at finished_at "
                     "epoch canary_last counts cancel_requested canary fingerprint").split())
row |= {"state": "running", "lane": "batch", "spec": "{}", "quote": text}
read = lambda: _job(SimpleNamespace(_mapping=row))
"""
REQUEST = """
from nightmill.simulator.gemini.reading import Generate
from nightmill.simulator.gemini.reading import read as reading
read = lambda: reading(b'{"contents": [{"parts": [{"text": "x"}]}]}', Generate)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("setup", [QUOTE, REQUEST], ids=["quote", "request"])
def test_threads_that_read_a_type_first_live(setup: str) -> None:
    """Six threads read a record, none of which was read before: no process dies of it."""
    code = FIRST_READS.format(setup=setup, tries=TRIES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("[0]\n", 0), done.stderr[-2000:]
