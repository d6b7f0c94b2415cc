"""nightmill from Python: `run` rows, get a `Job`; `Mill` for everything else. A second caller of the mill.

loops      blocking forms, Ctrl-C, gentle ends
rows       what rows may be, and their way into a file
options    what can be said about a job
values     results, progress, quotes, as a caller sees them
job, mill  the two handles
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Unpack

from nightmill.api.job import Job, Stream
from nightmill.api.mill import Callback, Mill, quoted
from nightmill.api.options import Options
from nightmill.api.rows import Source
from nightmill.api.values import Handed, Progress, Quote, Result
from nightmill.config import load_settings
from nightmill.mill import opened

__all__ = [
    "Callback",
    "Handed",
    "Job",
    "Mill",
    "Options",
    "Progress",
    "Quote",
    "Result",
    "Source",
    "Stream",
    "arun",
    "quote",
    "run",
]

_lock = threading.Lock()
_last: dict[int, Mill] = {}  # by process: the mill of the last call


def run(source: Source, *, progress: Callback | None = None, **options: Unpack[Options]) -> Job:
    """Ask a model about every row; wait for the answers.

    ``source`` is a file, a folder or a pattern by name, or rows: texts, dicts, a generator of either, a
    DataFrame of pandas or polars, anything that speaks Arrow. Rows are taken down once: the same rows
    with the same options go on with the job that they began.

    Options are those of the command line: ``prompt`` or ``task``, ``model`` (by name, or any callable
    ``f(messages, **params)``), ``schema`` (a Pydantic class, a JSON Schema), ``budget`` in dollars, ``lane``,
    ``on_error``, ``limit``, ``name``, … (`Options` has all). Nobody is asked before money is spent: ``budget``
    and the ledger's limits are what holds it, and `quote` tells the price first.

    ``progress`` is called with a `Progress` some times a second when something changed, and at the end.

    Failed rows are results like others. What keeps the job from its natural end is raised, and calling
    again goes on from there:

    Raises:
        UsageError (InputError, TaskError, UnknownModel, UnknownPrice, CannotCarry): nothing was begun.
        OverBudget: it would cost more than is free, or a budget ended it on the way.
        Paused, StoppedByErrors, StoppedByAnswers, WasCancelled: it did not come to its end, for another reason.
        KeyboardInterrupt: after a Ctrl-C, when what was in hand has ended.
    """
    return _current().run(source, progress=progress, **options)


async def arun(source: Source, *, progress: Callback | None = None, **options: Unpack[Options]) -> Job:
    """`run`, in the caller's loop. Cancelled, it first finishes what is in hand."""
    return await _current().arun(source, progress=progress, **options)


def quote(source: Source, *, save_requests: str | os.PathLike[str] | None = None, **options: Unpack[Options]) -> Quote:
    """What `run` would cost; nothing is sent, spent or kept, no home is made (``save_requests``: see `Mill.quote`)."""
    with opened(load_settings(Path.cwd(), os.environ), create=False) as mill:
        return quoted(mill, source, save_requests, options)


def _current() -> Mill:
    """The mill of the settings that hold here and now."""
    settings = load_settings(Path.cwd(), os.environ)
    with _lock:
        mill = _last.get(os.getpid())  # a fork must not use its parent's connections
        if mill is None or mill.settings != settings:
            mill = _last[os.getpid()] = Mill(settings)
        return mill
