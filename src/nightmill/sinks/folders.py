"""One file for each input file: its answer under its own name, and beside it what that took.

The answer to ``docs/a/b.txt`` of the input ``docs`` is ``DIR/a/b.txt`` (``b.txt.json`` where answers have a
schema or are embeddings), and ``b.txt.meta.json`` tells of it; a row that failed has only that. It names the job and
holds the digest of the answer's file, so that whose file it is, and whether somebody changed it, can be told from
the folder alone, whenever its writer died.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from nightmill.errors import UsageError
from nightmill.files import sync_folder
from nightmill.killpoints import reach
from nightmill.sinks.about import About, Origin
from nightmill.sinks.columns import COST, input_column
from nightmill.sinks.making import hidden_name, hold
from nightmill.sinks.vectors import EMBEDDING, as_json
from nightmill.types import usd

NEEDS = ("path",)
_META = ".meta.json"
_PACKED = (".gz", ".zst")
_STDIN = "-"
_SYNCS = 16
_TOLD = (
    "model", "provider", "lane", "tokens_in", "tokens_out", "tokens_cached", COST, "cost_estimated", "duration",
    "finish_reason", "error_kind", "error", "index", "key",
)  # fmt: skip


class _Meta(msgspec.Struct):
    """What has to be in a file for it to be one that a job wrote beside an answer."""

    job_id: str
    sha256: str | None


_read_meta = msgspec.json.Decoder(_Meta).decode


@dataclass(frozen=True, slots=True)
class Place:
    """Where the answer to one input file goes, and what tells of it."""

    answer: Path
    meta: Path

    def left_by(self) -> str | None:
        """The job that wrote both files, if they are as it left them."""
        try:
            said = _read_meta(self.meta.read_bytes())
            found = _digest(self.answer.read_bytes()) if os.path.lexists(self.answer) else None
        except (OSError, msgspec.DecodeError):
            return None
        return said.job_id if found in (None, said.sha256) else None

    @property
    def is_taken(self) -> bool:
        return os.path.lexists(self.answer) or os.path.lexists(self.meta)


class Layout:
    """How the files of an input lie in a folder; no name leads out of it."""

    def __init__(self, folder: Path, about: About) -> None:
        self._folder, self._origin = folder, about.origin
        self._suffix = ".json" if about.schema or about.vectors else ""

    def place(self, name: str) -> Place:
        """``name``: as the column ``path`` has it."""
        below = self._folder / f"{_below(self._origin, name)}{self._suffix}"
        return Place(below, below.with_name(below.name.removesuffix(self._suffix) + _META))

    def places(self, names: Iterable[str]) -> Iterator[Place]:
        """One for each. Raises UsageError when two would go into one file."""
        taken: dict[Path, str] = {}
        for name in names:
            place = self.place(name)
            for path in (place.answer, place.meta):
                if path in taken:
                    raise UsageError(
                        f"two inputs would be written to {path}",
                        why=f"they are {taken[path]} and {name}",
                        fix="run them apart, or write a .jsonl file, where each has its own line",
                    )
                taken[path] = name
            yield place


class FolderOutput:
    """Files in the making, in a hidden folder inside the target, until `publish` puts each in its place.

    With ``spares`` what others wrote or changed is left as it is.
    """

    def __init__(self, folder: Path, about: About, *, spares: bool) -> None:
        self._about, self._layout, self._spares = about, Layout(folder, about), spares
        self._staged: list[tuple[str, bool]] = []  # name of the input, and whether it has an answer
        self._box = hidden_name(folder / "nightmill")
        self._box.mkdir(parents=True)
        self._holding = hold(self._box)

    def write(self, batch: pa.RecordBatch) -> None:
        names = batch.column(input_column(NEEDS[0])).to_pylist()
        told = zip(*(batch.column(name).to_pylist() for name in _TOLD), strict=True)
        texts = as_json(batch[EMBEDDING]) if self._about.vectors else batch.column("response")
        answers = zip(batch.column("success").to_pylist(), texts.to_pylist(), strict=True)
        for name, values, (is_good, text) in zip(names, told, answers, strict=True):
            answer = text.encode() if is_good else None
            self._stage(name, answer, dict(zip(_TOLD, values, strict=True)))

    def _stage(self, name: str, answer: bytes | None, told: dict[str, Any]) -> None:
        here = self._box / str(len(self._staged))
        told["cost_usd"] = usd(told.pop(COST) or 0)
        head = {"path": name, "status": "failed" if answer is None else "completed"}
        tail = {"job_id": self._about.job_id, "sha256": None if answer is None else _digest(answer)}
        meta = msgspec.json.format(msgspec.json.encode(head | told | tail), indent=2) + b"\n"
        if answer is not None:
            here.write_bytes(answer)
        here.with_suffix(_META).write_bytes(meta)
        self._staged.append((name, answer is not None))

    def finish(self) -> None:
        """Everything is on the disk after this. Many at once: a disk is asked for hundreds in the time of a few."""
        with ThreadPoolExecutor(_SYNCS) as pool:
            list(pool.map(_sync, self._box.iterdir()))

    def stamp(self) -> None:
        """Its files tell themselves whose they are."""

    def replaces(self) -> frozenset[str]:
        """The jobs that left the files which are there now."""
        places = (self._layout.place(name) for name, _ in self._staged)
        return frozenset(job for place in places if place.is_taken and (job := place.left_by()) is not None)

    def publish(self) -> None:
        """Put every file in its place; an answer that is none any more goes, if it is as a job left it.

        An answer comes after what tells of it, and goes before: whenever this is killed, whose files they are can be
        told.
        """
        folders = set[Path]()
        for number, (name, is_good) in enumerate(self._staged):
            here, place = self._box / str(number), self._layout.place(name)
            is_ours = place.is_taken and place.left_by() is not None
            if self._spares and place.is_taken and not is_ours:
                continue
            place.answer.parent.mkdir(parents=True, exist_ok=True)
            if is_good or is_ours:
                place.answer.unlink(missing_ok=True)
            here.with_suffix(_META).replace(place.meta)
            reach("sinks.published")
            if is_good:
                here.replace(place.answer)
            folders.add(place.meta.parent)
        for folder in folders:
            sync_folder(folder)

    def discard(self) -> None:
        """Nothing of what is not in its place stays."""
        shutil.rmtree(self._box, ignore_errors=True)
        self._holding.close()


def _below(origin: Origin, name: str) -> str:
    """Where a file lies below the root of the input; one outside of it has only its name."""
    path = os.path.normpath(os.path.join(origin.folder, "stdin" if name == _STDIN else name))
    stem, suffix = os.path.splitext(os.path.relpath(path, origin.root))
    below = stem if suffix.lower() in _PACKED else stem + suffix
    return os.path.basename(below) if below.split(os.sep)[0] == os.pardir else below


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
