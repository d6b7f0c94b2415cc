"""Names that a user gives become files to read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from nightmill.errors import InputError
from nightmill.sources import open_source
from nightmill.sources.inputs import find_inputs


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def texts(*inputs: Path | str, **options: str) -> list[object]:
    source = open_source(inputs, **options)  # type: ignore[arg-type]
    return [row["text"] for batch in source.batches() for row in batch.to_pylist()]


def refused(*inputs: Path | str, **options: str) -> InputError:
    with pytest.raises(InputError) as caught:
        texts(*inputs, **options)
    assert caught.value.why
    assert caught.value.fix
    return caught.value


FILES = {"a.txt": "één\nzwei\n", "a.csv": "text\néén\nzwei\n", "a.jsonl": '{"text":"één"}\n{"text":"zwei"}\n'}


@pytest.mark.req("A1")
def test_a_folder_is_the_files_below_it(tmp_path: Path) -> None:
    """Sorted by path, whatever else lies there; hidden files and folders are left alone."""
    for name in ("b/z.txt", "b/a.txt", "a.txt", ".hidden.txt", ".git/x.txt", "b/.x/y.txt", "b/picture.png"):
        write(tmp_path / name, name.encode())
    assert texts(tmp_path) == ["a.txt", "b/a.txt", "b/z.txt"]
    assert [found.name for found in find_inputs([tmp_path])] == [
        str(tmp_path / n) for n in ("a.txt", "b/a.txt", "b/z.txt")
    ]


@pytest.mark.req("A1")
def test_a_pattern_is_the_files_that_it_matches(tmp_path: Path) -> None:
    """``*`` in one folder, ``**`` in all below; a file whose name holds such a sign is that file."""
    for name in ("b/a.txt", "a.txt", "c.txt", "odd[1].txt"):
        write(tmp_path / name, name.encode())
    assert texts(f"{tmp_path}/[ab].txt") == ["a.txt"]
    assert texts(f"{tmp_path}/**/a.txt") == ["a.txt", "b/a.txt"]
    assert texts(f"{tmp_path}/odd[1].txt") == ["odd[1].txt"]


def test_a_file_named_twice_is_read_twice(tmp_path: Path) -> None:
    """What the user says is done; equal rows are sent once all the same."""
    path = write(tmp_path / "a.txt", b"x")
    assert texts(path, path) == ["x", "x"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_packed_files_are_unpacked(tmp_path: Path, name: str, suffix: str, pack: object) -> None:
    """A packed file has the rows of the file in it, in one piece or in several."""
    data = FILES[name].encode()
    for pieces in ((data,), (data[:9], data[9:])):
        path = write(tmp_path / (name + suffix), b"".join(map(pack, pieces)))  # type: ignore[call-overload]
        assert texts(path) == ["één", "zwei"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "UTF-8"])
def test_other_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    """Text in another encoding is the same text."""
    assert texts(write(tmp_path / name, FILES[name].encode(encoding)), encoding=encoding) == ["één", "zwei"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_broken_pack_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    """Cut short or no pack at all: refused by name."""
    whole = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix](FILES[name].encode() * 100)
    for data in (whole[: len(whole) // 2], b"plain text"):
        error = refused(write(tmp_path / (name + suffix), data))
        assert name + suffix in error.what
        assert "pack" in error.fix


def test_the_wrong_encoding_is_refused(tmp_path: Path) -> None:
    """Bytes that the encoding does not have, and an encoding that is none, are refused."""
    path = write(tmp_path / "a.txt", b"ok\n" * 5_000 + b"\xff")
    assert "ascii" in refused(path, encoding="ascii").what
    assert "latin-1" in refused(path, encoding="klingon").fix


def test_a_format_that_the_name_does_not_say(tmp_path: Path) -> None:
    """``FORMAT:PATH`` says it, for a file and for all files of a folder; a name that is a file's is that file."""
    path = write(tmp_path / "rows.log", FILES["a.jsonl"].encode())
    assert "jsonl:" in refused(path).fix
    assert texts(f"jsonl:{path}") == ["één", "zwei"]
    assert texts(f"jsonl:{tmp_path}") == ["één", "zwei"]


def test_nothing_to_read(tmp_path: Path) -> None:
    """A pattern without a match and a folder without a file that can be read are refused."""
    write(tmp_path / "program.exe", b"x")
    assert "matches no file" in refused(f"{tmp_path}/*.txt").what
    assert "nothing" in refused(tmp_path).what
