"""`Job`: a job in the caller's hand. It holds nothing but its id: what it tells is asked for anew each time."""

from __future__ import annotations

import html
import os
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nightmill.api.loops import blocking_iterator
from nightmill.api.objects import T, objects_in
from nightmill.api.values import Handed, Result, results_in
from nightmill.errors import NightmillError, UsageError
from nightmill.mill import Group, canary_told, paused, steps_told
from nightmill.providers.function import is_importable
from nightmill.sinks import parse_target
from nightmill.sinks.columns import as_table, properties, table_schema
from nightmill.sinks.vectors import EMBEDDING, Vectors, matrix, sizes_in
from nightmill.types import UNFINISHED, JobState, usd

if TYPE_CHECKING:
    import numpy
    import pandas
    import polars

    from nightmill.api.mill import Callback, Mill
    from nightmill.mill import Job as Record

_COUNTS = (
    "rows", "invalid", "succeeded", "failed", "missing", "expired", "cancelled", "pending", "sent", "cached",
    "duplicates",
)  # fmt: skip


class Stream:
    """Results as they come; see `Job.stream`. For ``async for``, and for ``for`` where no loop is wanted."""

    def __init__(self, mill: Mill, job_id: str) -> None:
        self._mill, self._id = mill, job_id

    def __aiter__(self) -> AsyncIterator[Result]:
        return self._mill._stream(self._id)

    def __iter__(self) -> Iterator[Result]:
        return blocking_iterator(self.__aiter__)


class Job:
    """A job and its results, as they stand when asked.

    Working methods (`hand_over`, `watch`, `resume`, `retry`, `cancel`) block; each has an async form with an ``a``
    in front. They are those of `Mill`.
    """

    def __init__(self, mill: Mill, job_id: str) -> None:
        self._mill, self.id = mill, job_id

    # -- where it stands -----------------------------------------------------------------------

    @property
    def _record(self) -> Record:
        return self._mill._house.job(self.id)

    @property
    def name(self) -> str | None:
        return self._record.name

    @property
    def model(self) -> str:
        return self._record.model

    @property
    def lane(self) -> str:
        """``batch`` or ``live``."""
        return self._record.lane.value

    @property
    def state(self) -> str:
        """pending, running, paused, completed, failed or cancelled."""
        return self._record.state.value

    @property
    def resumable(self) -> bool:
        """Whether something is left to do, and any process could do it: a model that is an object lives in its own."""
        record = self._record
        return record.state in UNFINISHED and is_importable(record.model.partition(":")[2])

    @property
    def counts(self) -> dict[str, int]:
        """``rows = invalid + succeeded + failed + missing + expired + cancelled + pending``, and ``sent``."""
        now = self._mill._house.standing(self._record)
        return {name: getattr(now, name) for name in _COUNTS}

    @property
    def spent(self) -> float:
        """Dollars, including what nobody can prove was not billed."""
        return usd(self._mill._house.standing(self._record).spent_nanos)

    @property
    def canary(self) -> dict[str, Any] | None:
        """What the first rows showed, in the words of ``--json``; None: there are none, or they are not done yet."""
        return canary_told(self._record)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """How its rows fared on its ladder, step by step, in the words of ``--json``; empty where it has none."""
        return steps_told(self._mill._house.steps(self._record))

    # -- results -------------------------------------------------------------------------------

    def table(self) -> pa.Table:
        """The results there are, in input order, one column a property of the schema.

        The columns are those of every output: `index`, `key`, `prompt`, `response`, `success`, ….
        """
        record = self._record
        shown, vectors = properties(self._mill._house.schema(record)), self._mill._house.vectors(record)
        batches = list(self._mill._house.results(record))
        if vectors and sizes_in(batches) - {vectors.size}:
            vectors = Vectors()
        columns = table_schema(shown, vectors)
        return pa.Table.from_batches([as_table(batch, shown, columns, vectors) for batch in batches], schema=columns)

    def embeddings(self) -> numpy.ndarray:
        """The vectors of all rows as an array of 32-bit floats, (rows there are, numbers of a vector), in input order.

        A row without one is NaN. Where every row has one, they lie as in `table`: nothing is copied once more.

        Raises:
            UsageError: NumPy is not installed, the job asks for no embeddings, or they differ in size.
        """
        _need("numpy")
        table = self.table()
        if EMBEDDING not in table.schema.names:
            fix = 'run it with task="embed", or read table()'
            raise UsageError("no embeddings", why="the job asks for texts", fix=fix)
        found = table.column(EMBEDDING).combine_chunks()
        if not pa.types.is_fixed_size_list(found.type):
            fix = "read table(), where each is a list"
            raise UsageError("no matrix", why="there is no vector, or they differ in size", fix=fix)
        return matrix(found)

    def pandas(self) -> pandas.DataFrame:
        """`table` as a DataFrame of pandas. Raises UsageError where that is not installed."""
        _need("pandas")
        return self.table().to_pandas()

    def polars(self) -> polars.DataFrame:
        """`table` as a DataFrame of polars. Raises UsageError where that is not installed."""
        _need("polars")
        import polars

        return polars.DataFrame(self.table())

    def results(self, *, failed: bool = False) -> Iterator[Result]:
        """The results there are, in input order, read as you go; ``failed``: only of rows that failed."""
        return results_in(self._mill._house.selected(self._record, failed=failed))

    def objects(self, kind: type[T]) -> Iterator[T | None]:
        """The answers there are as objects of ``kind``, mostly the class that was the schema, in input order.

        None stands for a row without an answer that fits the schema. ``kind`` is a Pydantic model, a dataclass, a
        TypedDict or a msgspec Struct.

        Raises:
            UsageError: an answer is no ``kind``, where that asks for more than the schema did.
        """
        return objects_in(self.results(), kind)

    def stream(self) -> Stream:
        """Each result once, as it becomes final: first those there are, then the others as they come.

        Works on the job meanwhile, where nobody else does, and ends with it. To leave the loop stops
        that work like Ctrl-C; a new stream begins with all results there are again.

        Raises:
            what `watch` raises, after the last result.
        """
        return Stream(self._mill, self.id)

    def failures(self) -> list[Group]:
        """Failed rows by kind, most frequent first: ``kind, count, message, row`` of one of them."""
        return self._mill._house.failures(self._record)[0]

    def export(
        self, *paths: str | os.PathLike[str], failed: bool = False, csv_raw: bool = False, force: bool = False
    ) -> int:
        """Write the results there are to files, each whole or not at all; how many rows.

        The suffix says the format (.jsonl, .csv, .parquet, .json), or ``"csv:PATH"`` does; ``DIR/`` is a file for
        each file of the input.

        Raises:
            UsageError: no such format, or a file that this job did not write and ``force`` is not said.
            StoreError: it cannot be written.
        """
        record, targets = self._record, [parse_target(os.fspath(path)) for path in paths]
        self._mill._house.check_files(targets, record, force=force)
        return self._mill._house.export(record, targets, csv_raw=csv_raw, failed=failed)

    # -- work ----------------------------------------------------------------------------------

    def hand_over(self) -> Handed:
        return self._mill.hand_over(self)

    async def ahand_over(self) -> Handed:
        return await self._mill.ahand_over(self)

    def watch(self, *, progress: Callback | None = None) -> Job:
        return self._mill.watch(self, progress=progress)

    async def awatch(self, *, progress: Callback | None = None) -> Job:
        return await self._mill.awatch(self, progress=progress)

    def resume(self, *, progress: Callback | None = None) -> Job:
        return self._mill.resume(self, progress=progress)

    async def aresume(self, *, progress: Callback | None = None) -> Job:
        return await self._mill.aresume(self, progress=progress)

    def retry(
        self, *, max_output: int | None = None, temperature: float | None = None, progress: Callback | None = None
    ) -> Job:
        return self._mill.retry(self, max_output=max_output, temperature=temperature, progress=progress)

    async def aretry(
        self, *, max_output: int | None = None, temperature: float | None = None, progress: Callback | None = None
    ) -> Job:
        return await self._mill.aretry(self, max_output=max_output, temperature=temperature, progress=progress)

    def cancel(self) -> Job:
        return self._mill.cancel(self)

    async def acancel(self) -> Job:
        return await self._mill.acancel(self)

    def pause(self) -> Job:
        return self._mill.pause(self)

    # -- shown ---------------------------------------------------------------------------------

    def show(self) -> None:
        """Print how the job stands: rows, money, failures, what to do next."""
        print("\n".join(f"{name:<9} {text}" for name, text in self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        record = self._record
        facts = [("job", f"{self.id} {record.name or ''}".strip()), ("state", record.state.value)]
        facts += [("model", f"{record.model}, {record.lane.value}"), ("rows", self._rows())]
        facts.append(("spent", f"${self.spent:.6f}"))
        if record.finished_at is not None:
            facts += [("failed", f"{group.count:,} {group.kind}: {group.message}") for group in self.failures()]
        if record.state is JobState.PAUSED:
            error = paused(record)
            facts += [("why", error.why), ("fix", error.fix)]
        elif record.state in UNFINISHED and not self.resumable:
            facts.append(("note", "its model is an object of Python: only a process that has it can go on"))
        return [(name, "".join(c if c.isprintable() else " " for c in text)) for name, text in facts]

    def _rows(self) -> str:
        counts = self.counts
        ends = ("failed", "missing", "expired", "cancelled", "invalid", "pending")
        others = [f"{counts[name]:,} {name}" for name in ends if counts[name]]
        return ", ".join([f"{counts['succeeded']:,} of {counts['rows']:,} ok", *others])

    def __repr__(self) -> str:
        try:
            return f"<Job {self.id}: {self.state}, {self._rows()}, ${self.spent:.6f}>"
        except NightmillError as error:  # a repr is asked for in tracebacks, too
            return f"<Job {self.id}: {error}>"

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in self._facts())
        return f"<table>{''.join(rows)}</table>"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Job) and (self.id, self._mill.settings.home) == (other.id, other._mill.settings.home)

    def __hash__(self) -> int:
        return hash(self.id)


def _need(library: str) -> None:
    if find_spec(library) is None:
        raise UsageError(
            f"{library} is not installed",
            why="nightmill does not need it, and does not bring it",
            fix=f"pip install {library}, or use table(), which is Arrow",
        )
