"""Result files: the fullest reading counts, torn ends do not, marks say what may have been billed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_kit import store_lines

from nightmill import wire
from nightmill.ledger import StoredFile
from nightmill.store import Store
from nightmill.types import FileRef
from nightmill.wire import (
    CACHED,
    ERROR,
    FOREIGN,
    JOURNAL,
    OUTPUT,
    RESULTS,
    ROWS,
    body_of,
    chosen,
    is_mark,
    lines,
    lost_mark,
    named_as_ours,
    read_mark,
    sent_mark,
    split_lines,
    unsent_mark,
)


def file(kind: str, n: int = 1, read: int = 1, size: int = 10, path: str = "") -> StoredFile:
    return StoredFile(FileRef(path or f"{kind}.{n}.{read}", size, ""), kind, "t", n, read)


def test_of_two_readings_the_fuller_counts() -> None:
    """A file that came back longer the second time replaces the first; a shorter one does not."""
    first, second, shorter = file(OUTPUT), file(OUTPUT, read=2, size=12), file(OUTPUT, read=3, size=11)
    assert chosen([first, second, shorter]) == [second]
    assert chosen([shorter, second, first]) == [second]


@given(st.permutations([file(OUTPUT), file(ERROR), file(OUTPUT, n=2), file(ERROR, n=2), file(JOURNAL, path="j1"),
                        file(JOURNAL, path="j2"), file(CACHED), file(ROWS), file(RESULTS)]))  # fmt: skip
def test_files_are_accounted_in_one_order(stored: list[StoredFile]) -> None:
    """By submission, output before error, every journal; what is no wire file is left out."""
    found = [(f.n, f.kind, f.ref.path) for f in chosen(stored)]
    assert [(n, kind) for n, kind, _ in found] == [
        (1, OUTPUT), (1, ERROR), (1, JOURNAL), (1, JOURNAL), (1, CACHED), (2, OUTPUT), (2, ERROR)]  # fmt: skip
    assert [path for _, kind, path in found if kind == JOURNAL] == ["j1", "j2"]


@given(st.lists(st.tuples(st.sampled_from(["sent", "unsent", "lost"]), st.integers(0, 3)), max_size=12))
def test_marks_say_what_is_on_its_way_and_what_is_lost(marks: list[tuple[str, int]]) -> None:
    """Sent opens, unsent and lost close; each lost send counts once."""
    make = {"sent": sent_mark, "unsent": unsent_mark, "lost": lost_mark}
    pending: set[str] = set()
    lost: list[str] = []
    on_its_way: set[str] = set()
    for kind, row in marks:
        assert read_mark(make[kind](f"tag-{row}"), pending, lost)
        (on_its_way.add if kind == "sent" else on_its_way.discard)(f"tag-{row}")
    assert pending == on_its_way
    assert lost == [f"tag-{row}" for kind, row in marks if kind == "lost"]
    assert not read_mark(b'{"id":"x","custom_id":"tag-1"}\n', pending, lost)


def test_a_journal_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    """What a crash tore is not there; a result file's last line counts without its newline."""
    store = Store(tmp_path)
    torn = [b"one\n", b"two\n", b"thr"]
    assert list(lines(store, store_lines(store, "o", torn, OUTPUT, "t"))) == torn
    assert [*lines(store, store_lines(store, "j", torn, JOURNAL, "t"))] == torn[:2]
    missing = StoredFile(FileRef("never", 0, ""), JOURNAL, "t", 1)
    assert list(lines(store, missing)) == []


def test_a_line_that_is_written_while_it_is_read_ends_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its first half nor its second is a line, and nothing after it is read."""

    class Growing(io.BytesIO):
        """Its end is met in the middle of a mark, the rest of which comes a moment later."""

        came = iter(([b"one\n", b'{"lost":"ta', b'g-1"}\n'], [b"more\n"], []))

        def readlines(self, _: int | None = -1, /) -> list[bytes]:
            return next(self.came)

    monkeypatch.setattr(wire, "open_wire", lambda *_: Growing())
    journal = StoredFile(FileRef("j", 0, ""), JOURNAL, "t", 1)
    assert list(lines(Store(tmp_path), journal)) == [b"one\n"]


def test_rows_are_found_whatever_stands_before_them() -> None:
    """Cached answers come from lines of different layouts; each names its row all the same."""
    stream = [
        b'{"custom_id":"t-1-5","x":"t-1-9"}\n',
        b'{"id":"abc","custom_id": "t-1-66"}\n',
        b'{"custom_id":"t-1-7"}\n',
    ]
    assert [index for index, _ in split_lines(stream, "t-1")] == [5, 66, 7]
    with pytest.raises(ValueError, match="not found"):
        list(split_lines([b"{}\n"], "t-1"))


def test_a_body_is_found_whatever_its_key() -> None:
    """A shard line ends in its body, which providers call differently; a key of that name inside is no other body."""
    body = b'{"body":{"x":"{\\"y\\":1}"},"params":{},"custom_id":"{"}'
    for between in (b',"method":"POST","url":"/v1/chat/completions","body":', b',"params":', b',"request":'):
        assert body_of(b'{"custom_id":"t-1-5"' + between + body + b"}\n") == body


def test_a_result_line_is_no_mark_however_early_it_names_its_request() -> None:
    """In a journal marks are known by their first word, so that an answer that begins with its key is read as one."""
    assert all(is_mark(mark("t-1-5")) for mark in (sent_mark, unsent_mark, lost_mark))
    assert not is_mark(b'{"key":"t-1-5","response":{}}\n')


def test_answers_to_foreign_names_get_ours_and_nothing_else_changes(tmp_path: Path) -> None:
    """By its custom_id each line finds its row, however it is written; what names no row, or is no line, stays."""
    store = Store(tmp_path)
    names = ["id", 'quo"te', "ä", "id"]  # of equal names the first row counts
    sent = store_lines(
        store, "sent", [json.dumps({"custom_id": name, "body": {}}).encode() + b"\n" for name in names], FOREIGN, "t"
    )
    shard = SimpleNamespace(tag="t", files=(sent,))
    came = [
        b'{"id":"x","custom_id":"id","response":{"body":{"a": 1.50,"custom_id":"id"}}}\n',
        json.dumps({"custom_id": 'quo"te', "n": 1}).encode() + b"\n",
        b'{"custom_id":"\\u00e4","n":NaN}\n',
        b'{"custom_id":"nobody"}\n',
        b"cut off",
    ]
    (tmp_path / "came").write_bytes(b"".join(came))
    ref = named_as_ours(store, shard, "came", "named")
    with store.open(ref) as stream:
        got = stream.read().splitlines(keepends=True)
    assert got[0] == b'{"id":"x","custom_id":"t-0","response":{"body":{"a": 1.50,"custom_id":"id"}}}\n'
    assert json.loads(got[1]) == {"custom_id": "t-1", "n": 1}
    assert json.loads(got[2])["custom_id"] == "t-2"
    assert got[3:] == came[3:]
    assert not (tmp_path / "came").exists()
