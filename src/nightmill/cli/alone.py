"""``nightmill`` alone: a short help, and where things stand."""

from __future__ import annotations

from nightmill.cli import present
from nightmill.cli.edge import Edge
from nightmill.types import UNFINISHED, JobState


def tell(edge: Edge, help_text: str) -> None:
    """Say what there is to type, what runs, and what may yet be spent."""
    edge.put(help_text)
    with edge.mill(create=False) as mill:
        jobs = mill.jobs()
        free = [limit.free_nanos for limit in mill.budget() if limit.free_nanos is not None]
    paused = sum(job.state is JobState.PAUSED for job in jobs)
    running = sum(job.state in UNFINISHED for job in jobs) - paused
    parts = [f"{present.some(running, 'job')} running"] if running or not paused else []
    parts += [f"{paused:,} paused"] if paused else []
    parts += [f"{present.money(min(free), toward='down')} free" if free else "no limit on what may be spent"]
    edge.put(", ".join(parts) + ("; nightmill --help tells all" if jobs else "; no jobs yet: nightmill run INPUT"))
