"""Results as one JSON document: the job with its results and their sum, or answers by section."""

from __future__ import annotations

from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from nightmill.sinks.about import About
from nightmill.sinks.columns import input_column
from nightmill.sinks.formats import RowLines
from nightmill.sinks.vectors import EMBEDDING, as_json

_encode = msgspec.json.Encoder().encode


class JsonWriter:
    """``{"job", "results", "summary"}``: a result a line, as in JSON lines; the summary counts the results here."""

    def __init__(self, file: BinaryIO, about: About, *, csv_raw: bool) -> None:
        self._file, self._rows = file, RowLines(about)
        self._total = self._completed = 0
        file.write(b'{"job":' + _encode(about.job) + b',"results":[')

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        lines = self._rows.encoded(batch).removesuffix(b"\n")
        self._file.write((b",\n" if self._total else b"\n") + lines.replace(b"\n", b",\n"))
        self._total += batch.num_rows
        self._completed += pc.sum(batch.column("success")).as_py()

    def close(self) -> None:
        total, completed = self._total, self._completed
        summary = {
            "total": total,
            "completed": completed,
            "failed": total - completed,
            "success_rate": completed / total if total else None,
        }
        self._file.write(b'\n],"summary":' + _encode(summary) + b"}\n")

    def abandon(self) -> None:
        pass


class SectionsWriter:
    """``{"total_results", "results_by_section": {SECTION: {NAME: answer}}, "timestamp"}``, held until it is whole.

    A row that failed has an ``error`` in its entry; the second of two prompts of one name is called ``NAME (2)``.
    """

    NEEDS = ("section", "name")

    def __init__(self, file: BinaryIO, about: About, *, csv_raw: bool) -> None:
        self._file, self._at, self._embeds = file, about.written_at, about.vectors is not None
        self._sections: dict[str, dict[str, msgspec.Raw]] = {}
        self._numbers: dict[tuple[str, str], int] = {}  # of prompts by section and name, where there are several
        self._total = 0

    def write(self, batch: pa.RecordBatch) -> None:
        labels = [batch.column(input_column(name)).cast(pa.string()).to_pylist() for name in self.NEEDS]
        names = ("response", "tokens_in", "tokens_out", "model", "success", "error")
        values = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        vectors = as_json(batch[EMBEDDING]).to_pylist() if self._embeds else [None] * batch.num_rows
        for section, name, row, vector in zip(*labels, values, vectors, strict=True):
            prompts = self._sections.setdefault(section or "", {})
            entry = _entry(*row) | ({EMBEDDING: vector and msgspec.Raw(vector)} if self._embeds else {})
            prompts[self._free(section or "", name or "")] = msgspec.Raw(_encode(entry))
            self._total += 1

    def _free(self, section: str, name: str) -> str:
        """``name``, or with a number behind it the first that nobody has yet."""
        free, number = name, self._numbers.get((section, name), 1)
        while free in self._sections[section]:
            number += 1
            free = f"{name} ({number})"
        if free != name:
            self._numbers[section, name] = number
        return free

    def close(self) -> None:
        document = {"total_results": self._total, "results_by_section": self._sections, "timestamp": self._at}
        self._file.write(msgspec.json.format(_encode(document), indent=2) + b"\n")

    def abandon(self) -> None:
        pass


def _entry(
    response: str | None, tokens_in: int | None, tokens_out: int | None, model: str | None,
    success: bool, error: str | None,
) -> dict[str, Any]:  # fmt: skip
    usage = None
    if tokens_in is not None and tokens_out is not None:
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    entry: dict[str, Any] = {"response": response, "usage": usage, "model": model}
    return entry if success else entry | {"error": error}
