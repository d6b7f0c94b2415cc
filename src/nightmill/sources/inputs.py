"""What the user named, as files to read.

A folder stands for the files below it, a pattern for those that it matches, ``-`` for what came in by
the standard input. ``FORMAT:PATH`` says how a file is written where its suffix does not. A file may be
packed (``.gz``, ``.zst``), and text in another encoding: `Input.open` gives its bytes unpacked, as UTF-8.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal, cast, get_args

import msgspec
import pyarrow as pa

from nightmill.errors import InputError
from nightmill.sources.arrays import ArrayLines

Format = Literal["csv", "jsonl", "txt", "json", "parquet", "arrow", "media"]
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt", ".json": "json", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
_MEDIA = frozenset(
    (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", ".pdf", ".wav", ".mp3", ".m4a", ".flac", ".ogg", ".mp4",
     ".mov", ".webm")
)  # fmt: skip
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = "*?["
_BUFFER_BYTES = 1 << 20
UTF8 = "utf-8"
OR_SKIP_ROWS = "--skip-bad counts such rows as invalid, and sends the rest"
_NONE: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read."""

    path: Path
    name: str  # as the user wrote it, or below the folder that they named
    format: Format
    packing: str = ""  # .gz, .zst, or none
    encoding: str = UTF8
    data: bytes | None = None  # what to read in place of the file
    is_array: bool = False  # of JSON, and `open` gives its elements as lines
    base: str = ""  # the folder that was named, or that of the file or the pattern

    @property
    def stem(self) -> str:
        """Its name without folder and suffixes."""
        return (self.path.with_suffix("") if self.packing else self.path).stem

    @property
    def is_plain(self) -> bool:
        """Whether `open` gives the file's own bytes."""
        return self.data is None and not self.packing and self.encoding == UTF8 and not self.is_array

    def open(self) -> BinaryIO:
        """The bytes, unpacked and as UTF-8. What goes wrong while they are read is for `explained`."""
        if self.is_plain:
            return self.path.open("rb")
        if self.is_array:
            lines = ArrayLines(replace(self, is_array=False).open(), self.name)
            return BufferedReader(lines, _BUFFER_BYTES)
        if self.data is not None:
            return BytesIO(self.data)
        stream: pa.NativeFile = pa.OSFile(str(self.path))
        if self.packing:  # Arrow's: unlike others it tells a file that was cut short from one that ends
            stream = pa.CompressedInputStream(stream, _PACKED[self.packing])
        if self.encoding != UTF8:
            stream = pa.transcoding_input_stream(stream, self.encoding, UTF8)
        return BufferedReader(stream, _BUFFER_BYTES)

    def check_has_bytes(self) -> None:
        """Raises InputError."""
        with self.explained(), self.open() as file:
            if not file.read(1):
                raise InputError(
                    f"{self.name} is empty", why="it holds no bytes, so no rows", fix="check what wrote it"
                )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What goes wrong while the file is read becomes an InputError."""
        try:
            yield
        except UnicodeDecodeError as error:
            if self.encoding == UTF8:
                raise
            raise InputError(
                f"{self.name} is not {self.encoding}", why=str(error), fix="name another one with --encoding"
            ) from error
        except OSError as error:
            why = error.strerror or str(error)
            fix = (
                "pack it anew"
                if self.packing and error.errno is None
                else "check the file, its permissions and its disk"
            )
            raise InputError(f"{self.name} cannot be read", why=why, fix=fix) from error


def find_inputs(
    names: Sequence[str | os.PathLike[str]], *, encoding: str | None = None, given: Mapping[str, Path] = _NONE
) -> list[Input]:
    """The files behind ``names``, in order; those of a folder or a pattern sorted by path.

    ``given``: inputs that lie in a file of another name, such as ``-``, what came in by the standard input; the
    suffix of that file, if any, says how it is written.

    Raises:
        InputError: one is missing, of no known format, or matches nothing; no such encoding.
    """
    if not names:
        raise InputError("no input", why="a run needs rows", fix="name a file: " + " ".join(_SUFFIXES))
    encoding = _known(encoding)
    found = [each for name in names for each in _files(os.fspath(name), given)]
    return [_input(path, shown, format_, encoding, base) for path, shown, format_, base in found]


def folders_taken(names: Sequence[str]) -> list[str]:
    """Folders in which a file that comes to be is read, too, when ``names`` are next."""
    patterns = [name.partition("**")[0] or "." for name in names if "**" in name]
    plain = [name.removeprefix(f"{format_}:") for name in names for format_ in ("", *get_args(Format))]
    return [*filter(os.path.isdir, dict.fromkeys(plain)), *patterns]


def _known(encoding: str | None) -> str:
    try:
        return codecs.lookup(encoding or UTF8).name
    except LookupError:
        raise InputError(
            f"no encoding {encoding}",
            why="Python knows none of that name",
            fix="such as latin-1, cp1252, utf-16, shift_jis",
        ) from None


def _files(name: str, given: Mapping[str, Path]) -> Iterator[tuple[Path, str, Format | None, str]]:
    """Path, name to tell, format where it was said, and the folder of what was named."""
    said, colon, rest = name.partition(":")
    format_: Format | None = None
    if colon and rest and said in get_args(Format) and not os.path.exists(name):
        format_, name = cast(Format, said), rest
    path = Path(name)
    if name in given:
        yield given[name], name, format_ or _SUFFIXES.get(given[name].suffix) or _sniffed(given[name]), ""
    elif path.is_dir():
        below = [other for other in sorted(path.rglob("*")) if _is_meant(other, path, format_)]
        below = below or [other for other in sorted(path.rglob("*")) if _is_meant(other, path, format_, _MEDIA)]
        if not below:
            raise InputError(
                f"{name} holds nothing that can be read",
                why="no file below it ends in " + " ".join((*_SUFFIXES, *sorted(_MEDIA))),
                fix="name another folder, or say how its files are written: FORMAT:" + name,
            )
        yield from ((other, str(other), format_, name) for other in below)
    elif any(sign in name for sign in _MAGIC) and not path.exists():
        matched = [other for other in sorted(glob.glob(name, recursive=True)) if os.path.isfile(other)]
        if not matched:
            raise InputError(f"{name} matches no file", why="nothing is called like that", fix="check the pattern")
        base = os.path.dirname(name[: min(name.find(sign) for sign in _MAGIC if sign in name)])
        yield from ((Path(other), other, format_, base) for other in matched)
    else:
        yield path, name, format_, os.path.dirname(name)


def _is_meant(path: Path, folder: Path, format_: Format | None, suffixes: Container[str] = _SUFFIXES) -> bool:
    """Whether a folder's input is this one too: no hidden file, and one that we can read."""
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and path.is_file() and (format_ is not None or _suffix(path) in suffixes)


def _sniffed(path: Path) -> Format:
    """How a file without a name is written; lines of text, unless it is plainly something else."""
    with path.open("rb") as file:
        head = file.read(_BUFFER_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"["):
        return "json"
    if not head.startswith(b"{"):
        return "txt"
    try:
        msgspec.json.decode(head.partition(b"\n")[0])
    except msgspec.DecodeError:
        return "json"  # an object over several lines
    return "jsonl"


def _suffix(path: Path) -> str:
    """The suffix that says the format, whatever the file is packed with."""
    return (path.with_suffix("") if path.suffix.lower() in _PACKED else path).suffix.lower()


def _input(path: Path, name: str, format_: Format | None, encoding: str, base: str) -> Input:
    if not path.exists():
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path and the working folder"
        raise InputError(f"{name}: no such file", why=f"there is no {path.absolute()}", fix=hint)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        told = os.fsencode(path).decode(errors="replace")
        raise InputError(
            f"{told}: its name is not UTF-8", why="names of files are keys of rows, and those are text", fix="rename it"
        ) from None
    known = format_ or _SUFFIXES.get(_suffix(path)) or ("media" if path.suffix.lower() in _MEDIA else None)
    if known is None:
        raise InputError(
            f"{name}: {path.suffix or 'a file without a suffix'} is not supported",
            why="the suffix says how a file is written",
            fix=f"use one of {' '.join(_SUFFIXES)}, or say it: {' or '.join(f'{f}:{name}' for f in get_args(Format))}",
        )
    packing = path.suffix.lower() if path.suffix.lower() in _PACKED else ""
    return Input(path, name, known, packing, encoding, base=base)


def _siblings(path: Path) -> list[str]:
    try:
        return [other.name for other in path.parent.iterdir()]
    except OSError:
        return []
