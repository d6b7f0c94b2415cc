"""Every fault that the simulator knows comes up in a job here, and the job's books are right all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults_kit import House, house, truth

from nightmill.ledger import Job
from nightmill.simulator import faults as simulator_faults

_IN_DOUBT = {"fault": "create_accepted_then_500", "times": 1}  # makes the list be asked for
_NOT_THERE = {"fault": "create_500_before", "times": 1}  # ... and a file be deleted
_LIVE = {"non_json_bodies", *(name for name in simulator_faults.KNOWN if name.startswith("live_"))}
_PARAMS: dict[str, dict[str, Any]] = {
    "late_listing": {"lag_s": 1},
    "late_output_file": {"lag_s": 1},
    "late_error_file": {"lag_s": 1},
    "live_timeout": {"delay_s": 1.0},
    "enqueued_limit_later": {"limit": 5},
    "key_revoked": {"key": "sk-x"},
    "quota_used_up": {"key": "sk-x"},
}


_FLEX = {"resource_unavailable"}  # met in test_flex_faults


@pytest.mark.parametrize("name", [name for name in simulator_faults.KNOWN if name not in _FLEX])
def test_every_fault_comes_up(tmp_path: Path, name: str) -> None:
    """A fault that the simulator learns is one that a job meets; met once, the sums still hold."""
    fault = {"fault": name, "times": 1, **_PARAMS.get(name, {})}
    beside = [_IN_DOUBT] if name.startswith("list") else [_NOT_THERE] if name.startswith("delete") else []

    def met(h: House, job: Job) -> bool:
        return h.fired()[name] > 0

    with house(tmp_path, fault, *beside) as h:
        job = h.run(h.submit(4, "live" if name in _LIVE else "batch"), until=met)
        assert h.fired()[name] == 1
        truth(h, job, settled=False)
