"""Equal rows are sent once, answered requests not at all, and nothing wrong ever comes from the cache."""

from __future__ import annotations

import fcntl
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill import answers
from nightmill.answers import AnswerCache, CacheHit, Deduper, Folding, digest, later, salt

SALT = salt("provider", "model", "host.example")


def key(number: int) -> bytes:
    return digest(SALT, b"%d" % number)


def answer(number: int) -> bytes:
    return b'{"text":"%s"}' % (b"%d " % number * (number % 7 + 1))


def near(number: int) -> bytes:
    """A digest in partition 0 or 1, so that few digests share many partitions' worth of work."""
    return bytes([number % 2]) + key(number)[1:]


def readable(cache: AnswerCache) -> dict[bytes, bytes]:
    """Everything in the cache that a job would be served."""
    found = {}
    for partition in range(answers.PARTITIONS):
        for name, hit in cache.lookup(partition).items():
            text = cache.read(hit)
            if text is not None:
                found[name] = text
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder per example: hypothesis runs many in one test."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# -- digests


def test_a_digest_tells_bodies_models_and_hosts_apart() -> None:
    """Equal words for another model, provider or host are another request."""
    who = [("p", "m", "h"), ("q", "m", "h"), ("p", "n", "h"), ("p", "m", "i"), ("pm", "", "h"), ("", "pm", "h")]
    found = {digest(salt(*names), body) for names in who for body in (b"a", b"b", b"")}
    assert len(found) == len(who) * 3
    assert {len(one) for one in found} == {16}
    assert digest(salt("p", "m", "h"), b"a") == digest(salt("p", "m", "h"), b"a")


# -- folding


STEPS = (b"repair", b"re-ask")


def fold(folder: Path, rows: Sequence[int | None], step: int, cache: AnswerCache | None, dedupe: bool) -> Folding:
    """Rows of request numbers (None: a row without a request), added ``step`` at a time."""
    deduper = Deduper(folder)
    start = 0
    while start < len(rows):
        some: list[bytes] = []
        while start + len(some) < len(rows) and len(some) < step:
            number = rows[start + len(some)]
            if number is None:
                break
            some.append(near(number))
        deduper.add_many(range(start, start + len(some)), some)
        start += len(some) or 1
    return deduper.finish(cache, dedupe=dedupe, steps=STEPS)


def naive(
    rows: Sequence[int | None], cached: Mapping[int, bytes], dedupe: bool
) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]:
    """The promise in a few lines: a dict of everything."""
    first: dict[int, int] = {}
    pairs, hits = [], []
    for row, number in enumerate(rows):
        if number is None:
            continue
        if dedupe and first.setdefault(number, row) != row:
            pairs.append((row, first[number]))
        elif number in cached:
            hits.append((row, cached[number]))
    return pairs, hits


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.none() | st.integers(0, 12), max_size=60),
    cached=st.sets(st.integers(0, 15), max_size=8),
    kept=st.lists(st.tuples(st.integers(0, 15), st.sampled_from([*STEPS, b"of others"])), max_size=8),
    step=st.integers(1, 20),
    spill=st.sampled_from([1, 24 * 7, 1 << 20]),
    span=st.sampled_from([1, 5, 1 << 16]),
    dedupe=st.booleans(),
)
def test_folding_equals_a_dict_of_everything(
    rows: list[int | None],
    cached: set[int],
    kept: list[tuple[int, bytes]],
    step: int,
    spill: int,
    span: int,
    dedupe: bool,
) -> None:
    """Files, spills and spans change nothing: the first of equal rows is sent, or was answered before, at some step."""
    with scratch() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_SPILL_BYTES", spill)
        patch.setattr(answers, "_SPAN_ROWS", span)
        cache = AnswerCache(folder / "answers")
        cache.put_many((near(number), answer(number)) for number in cached)
        cache.put_many((later(near(number), when), b"%d %b" % (number, when)) for number, when in kept)
        folding = fold(folder / "fold", rows, step, cache, dedupe)
        there = {number: b"%d %b" % (number, when) for when in STEPS[::-1] for number, at in kept if at == when}
        pairs, hits = naive(rows, there | {number: answer(number) for number in cached}, dedupe)
        assert list(folding.duplicate_pairs()) == pairs
        assert [(row, cache.read(hit)) for row, hit in folding.cached_hits()] == hits
        assert (folding.duplicates, folding.cached) == (len(pairs), len(hits))
        skipped = {row for row, _ in pairs} | {row for row, _ in hits}
        answered = [row for row, number in enumerate(rows) if number is not None]
        assert {row for row in answered if folding.skips(row)} == skipped
        assert sum(byte.bit_count() for byte in folding.skip) == len(skipped)
        folding.close()
        assert not list((folder / "fold").iterdir())


def test_the_twin_is_the_first_row_whatever_the_order_of_adding(tmp_path: Path) -> None:
    """Rows may be digested out of order; the smallest index is still the one that is sent."""
    deduper = Deduper(tmp_path)
    deduper.add_many([10, 11], [key(1), key(2)])
    deduper.add_many([0, 1, 2], [key(2), key(1), key(3)])
    folding = deduper.finish(None)
    assert list(folding.duplicate_pairs()) == [(10, 1), (11, 0)]
    assert folding.cached == 0


def test_no_rows_fold_to_nothing(tmp_path: Path) -> None:
    """An empty job has no bits and no pairs."""
    folding = Deduper(tmp_path).finish(AnswerCache(tmp_path / "answers"))
    assert folding.skip == bytearray()
    assert not list(folding.duplicate_pairs())
    assert not list(folding.cached_hits())


def test_leftovers_of_a_killed_planner_do_not_count(tmp_path: Path) -> None:
    """A planner killed half-way leaves files; the next one in that folder starts from nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_SPILL_BYTES", 1)
        killed = Deduper(tmp_path)
        killed.add_many([0, 1], [key(1), key(1)])
        Deduper(tmp_path).finish(None)
        again = Deduper(tmp_path)
        again.add_many([0, 1], [key(1), key(2)])
        assert again.finish(None).duplicates == 0


def test_a_cached_answer_that_is_damaged_is_sent_again(tmp_path: Path) -> None:
    """The fold looks at the answer itself, so that a row is never skipped for a ruin."""
    cache = AnswerCache(tmp_path / "answers")
    cache.put_many([(near(0), answer(0)), (near(2), answer(2))])
    damage(tmp_path / "answers" / "00.jsonl", 3)
    folding = fold(tmp_path / "fold", [0, 2, 0], 9, cache, True)
    assert [row for row, _ in folding.cached_hits()] == [1]
    assert list(folding.duplicate_pairs()) == [(2, 0)]
    assert not folding.skips(0)


# -- the cache


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x55
    path.write_bytes(data)


def test_what_was_put_is_read_as_it_was(tmp_path: Path) -> None:
    """Every answer comes back byte for byte, also through another cache object."""
    items = {key(number): answer(number) for number in range(500)}
    assert AnswerCache(tmp_path).put_many(items.items()) == 500
    assert readable(AnswerCache(tmp_path)) == items


def test_the_first_answer_stays(tmp_path: Path) -> None:
    """A later answer to the same request changes nothing, within one call or across."""
    cache = AnswerCache(tmp_path)
    assert cache.put_many([(key(1), b"first"), (key(1), b"second")]) == 1
    assert cache.put_many([(key(1), b"third"), (key(2), b"other")]) == 1
    assert readable(cache) == {key(1): b"first", key(2): b"other"}


def test_a_large_put_goes_out_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by what waits, not by how much is put; the count is of all."""
    monkeypatch.setattr(answers, "_PUT_BYTES", 200)
    items = {key(number): answer(number) for number in range(100)}
    assert AnswerCache(tmp_path).put_many([*items.items(), *items.items()]) == 100
    assert readable(AnswerCache(tmp_path)) == items


@pytest.mark.parametrize("bad", [b"", b"two\nlines", b"line\n"])
def test_an_answer_is_one_line(tmp_path: Path, bad: bytes) -> None:
    """What could not be read back whole is refused at once."""
    with pytest.raises(ValueError, match="one line"):
        AnswerCache(tmp_path).put_many([(key(1), bad)])


def test_lookup_brings_only_what_is_wanted(tmp_path: Path) -> None:
    """A job pays memory for its own digests, not for all that were ever answered."""
    cache = AnswerCache(tmp_path)
    cache.put_many((near(number), answer(number)) for number in range(0, 40, 2))
    assert set(cache.lookup(0, {near(4), near(6), near(1)})) == {near(4), near(6)}
    assert len(cache.lookup(0)) == 20
    assert cache.lookup(1) == {}


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_torn_anywhere_the_cache_gives_only_whole_answers(data: st.DataObject) -> None:
    """Cut both files at any byte: what is read is right, what is lost can be put again."""
    with scratch() as folder:
        cache = AnswerCache(folder)
        for start in (0, 6):
            cache.put_many((near(n * 2), answer(n * 2)) for n in range(start, start + 6))
        items = {near(n * 2): answer(n * 2) for n in range(12)}
        for name in ("00.jsonl", "00.idx"):
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        left = readable(cache)
        assert left.items() <= items.items()
        # The lost ones come back with other lengths, so that old entries would point into the new lines.
        fresh = {name: left.get(name, text + b"!") for name, text in items.items()}
        extra = {near(100): answer(100)}
        assert cache.put_many([*fresh.items(), *extra.items()]) == len(fresh) - len(left) + 1
        assert readable(AnswerCache(folder)) == fresh | extra


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    """The next writer closes what was cut, so that each answer put has a line of its own."""
    cache = AnswerCache(tmp_path)
    cache.put_many([(near(0), b"kept"), (near(2), b"cut off")])
    file = tmp_path / "00.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    cache.put_many([(near(2), b"again"), (near(4), b"more")])
    assert file.read_bytes().splitlines() == [b"kept", b"cut o", b"again", b"more"]


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(["00.jsonl", "00.idx"]), st.data())
def test_a_damaged_byte_never_gives_a_wrong_answer(name: str, data: st.DataObject) -> None:
    """A flipped byte in either file is a miss for one answer, and an error for none."""
    with scratch() as folder:
        cache = AnswerCache(folder)
        items = {near(n * 2): answer(n * 2) for n in range(6)}
        cache.put_many(items.items())
        damage(folder / name, data.draw(st.integers(0, (folder / name).stat().st_size - 1)))
        left = readable(cache)
        assert len(left.keys() & items.keys()) >= len(items) - 2
        assert all(items[name] == text for name, text in left.items() if name in items)
        cache.put_many(items.items())
        assert readable(cache).items() >= items.items()


@pytest.mark.parametrize("name", ["00.jsonl", "00.idx"])
def test_a_lost_file_is_a_miss(tmp_path: Path, name: str) -> None:
    """Half a cache is an empty cache, and grows again."""
    cache = AnswerCache(tmp_path)
    cache.put_many([(near(0), answer(0))])
    hit = cache.lookup(0)[near(0)]
    (tmp_path / name).unlink()
    assert readable(cache) == {}
    if name.endswith("jsonl"):
        assert cache.read(hit) is None
    assert cache.put_many([(near(0), answer(0))]) == 1
    assert readable(cache) == {near(0): answer(0)}


def test_a_place_that_is_nowhere_is_a_miss(tmp_path: Path) -> None:
    """Reading beyond the end, or in a partition that does not exist, gives None among the rest."""
    cache = AnswerCache(tmp_path)
    cache.put_many([(near(0), b"whole"), (near(2), b"other")])
    good = cache.lookup(0)[near(2)]
    beyond, elsewhere = good._replace(offset=10**6), good._replace(partition=200)
    shifted = CacheHit(0, good.offset + 1, good.length, good.check)
    assert cache.read_many([beyond, good, elsewhere, shifted, good]) == [None, b"other", None, None, b"other"]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the folder should be: nothing is kept, a warning says so, the job goes on."""
    (tmp_path / "answers").write_text("in the way")
    cache = AnswerCache(tmp_path / "answers")
    with caplog.at_level(logging.WARNING):
        assert cache.put_many([(key(1), b"answer")]) == 0
    assert "not cached" in caplog.text
    assert cache.lookup(key(1)[0]) == {}


def test_a_writer_that_stands_still_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a frozen process has one partition's lock, the answers of the others are kept, and a warning tells."""
    monkeypatch.setattr(answers, "_LOCK_S", 0.0)
    cache = AnswerCache(tmp_path)
    one, other = key(1), key(2)
    assert one[0] != other[0]
    cache.put_many([(one, b"answer")])
    with open(tmp_path / f"{one[0]:02x}.idx", "rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert cache.put_many([(bytes([one[0]]) + other[1:], b"late"), (other, b"kept")]) == 1
    assert "not cached" in caplog.text
    assert cache.put_many([(bytes([one[0]]) + other[1:], b"late")]) == 1


WRITER = """
import sys
from pathlib import Path
from nightmill.answers import AnswerCache, digest
folder, who, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cache = AnswerCache(folder)
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, rounds * 20, 20):
    keys = [bytes([n % 2]) + digest(b"k", b"%d" % n)[1:] for n in range(start, start + 20)]
    cache.put_many((name, b"%s %d " % (who.encode(), n) * 50) for n, name in enumerate(keys, start))
    print(start, flush=True)
"""


def writer(folder: Path, who: str, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), who, str(rounds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def written(number: int, who: str) -> tuple[bytes, bytes]:
    name = bytes([number % 2]) + digest(b"k", b"%d" % number)[1:]
    return name, b"%s %d " % (who.encode(), number) * 50


def test_two_processes_that_put_at_once_lose_nothing(tmp_path: Path) -> None:
    """Every answer of either is there, whole, once, and from one of them."""
    writers = [writer(tmp_path, who, 60) for who in "ab"]
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    found = readable(AnswerCache(tmp_path))
    assert len(found) == 1200
    for number in range(1200):
        (name, from_a), (_, from_b) = written(number, "a"), written(number, "b")
        assert found[name] in (from_a, from_b)
    entries = sum(path.stat().st_size for path in tmp_path.glob("*.idx")) / answers._ENTRY.size
    assert entries == 1200


def test_kill_9_while_putting_leaves_only_whole_answers(tmp_path: Path) -> None:
    """What a killed writer had put is kept, nothing half is served, and the next one goes on."""
    for rounds in (1, 4, 9):
        process = writer(tmp_path, "a", 10_000)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        done = [int(process.stdout.readline()) for _ in range(rounds)][-1] + 20
        process.kill()
        process.communicate()
        found = readable(AnswerCache(tmp_path))
        expected = dict(written(number, "a") for number in range(done))
        assert expected.items() <= found.items()
        assert found.items() <= dict(written(number, "a") for number in range(done + 20_000)).items()
