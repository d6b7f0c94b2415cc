"""Planning: the bytes that rendering gives, every row once, within every bound, the same for the same rows."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_kit import CAP, ROOMY, answer, cache_at, order_of, plan_of, provider_of, shard_of, sheet_of, write_rows

from nightmill.answers import digest, salt
from nightmill.errors import InputError, TaskError, UsageError
from nightmill.ledger import NewShard
from nightmill.plan import Bounds, Compiled, Order, Parameters, Plan, Scissors, bounds, make_plan, with_waves
from nightmill.plan.cutting import LIVE_BYTES
from nightmill.providers import Limits
from nightmill.sources import JSON_MARK, open_source
from nightmill.store import Store
from nightmill.tasks import Task, bind, prompt_task
from nightmill.types import Lane
from nightmill.wire import ROWS, TWINS, body_of, shard_lines, split_lines

quick = settings(max_examples=60, deadline=None)
texts = st.text(min_size=1, max_size=30).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
literals = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}#%"), max_size=12)
numbers = st.integers(-(2**53), 2**53) | st.booleans() | st.none()
nested = st.lists(numbers | literals, max_size=3) | st.dictionaries(literals, numbers | literals, max_size=3)
holes = st.sampled_from(["{{ a }}", "{{b}}", "{{ key }}"])


def compiled(prompt: str, **parameters: Any) -> Compiled:
    bound = bind(prompt_task(prompt), ["key", "a", "b"], {})
    return Compiled(provider_of(), bound, Parameters(**parameters))


def sent(plan: Plan, store: Store) -> dict[int, dict[str, Any]]:
    """Bodies by row, as the shard files have them."""
    bodies: dict[int, dict[str, Any]] = {}
    for new in plan.shards:
        if new.lane is Lane.CACHE:
            continue
        for index, line in shard_lines(store, shard_of(new)):
            assert index not in bodies
            whole = json.loads(line)
            assert whole["custom_id"] == f"{new.tag}-{index}"
            assert json.loads(body_of(line)) == whole["body"]
            bodies[index] = whole["body"]
    return bodies


# -- compiling


@quick
@given(
    parts=st.lists(st.one_of(literals, holes), min_size=1, max_size=6),
    rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5),
)
def test_joined_bodies_are_the_bytes_that_rendering_gives(parts: list[str], rows: list[tuple[str, ...]]) -> None:
    """Whatever the template says around its columns and whatever the values hold."""
    prompt = "{{ a }}" + "".join(parts)
    fast = compiled(prompt, max_output=CAP)
    assert fast.is_spliced
    batch = pa.record_batch({name: [row[i] for row in rows] for i, name in enumerate(("key", "a", "b"))})
    bodies = fast.bodies(batch, range(batch.num_rows))
    fast.check(batch, 0, bodies)  # against full rendering, byte by byte
    said = [json.loads(body)["messages"][-1]["content"] for body in bodies]
    assert said == fast.prompts(batch).to_pylist()


@quick
@given(st.lists(nested, min_size=1, max_size=4))
def test_nested_values_are_json_on_both_paths(values: list[Any]) -> None:
    """A JSON column stands in the prompt as its JSON, with the same bytes whether joined or rendered."""
    fast, slow = compiled("{{ a }}"), compiled("{% if true %}{{ a }}{% endif %}")
    assert (fast.is_spliced, slow.is_spliced) == (True, False)
    fields = [pa.field("key", pa.string()), pa.field("a", pa.string(), metadata=JSON_MARK), pa.field("b", pa.string())]
    cells = [msgspec.json.encode(value).decode() for value in values]
    batch = pa.record_batch([["k"] * len(cells), cells, ["b"] * len(cells)], schema=pa.schema(fields))
    bodies = fast.bodies(batch, range(batch.num_rows))
    fast.check(batch, 0, bodies)
    assert bodies == slow.bodies(batch, range(batch.num_rows))
    said = [json.loads(body)["messages"][-1]["content"] for body in bodies]
    assert said == fast.prompts(batch).to_pylist() == slow.prompts(batch).to_pylist()
    assert [json.loads(text) for text in said] == values


def test_examples_stand_before_the_row_on_both_paths() -> None:
    """A task with examples is joined from pieces as well, and its bytes are those of full rendering."""
    example = {"input": {"a": "x"}, "output": {"y": [1]}}
    task = Task("t", system="{{ b }}", prompt="Say {{ a }}", examples=[example])
    fast = Compiled(provider_of(), bind(task, ["key", "a", "b"], {}), Parameters())
    assert fast.is_spliced
    batch = pa.record_batch({"key": ["k"], "a": ['"'], "b": ["s"]})
    (body,) = fast.bodies(batch, [0])
    fast.check(batch, 0, [body])
    said = [(m["role"], m["content"]) for m in json.loads(body)["messages"]]
    assert said == [("system", "s"), ("user", "Say x"), ("assistant", '{"y":[1]}'), ("user", 'Say "')]
    assert fast.prompts(batch).to_pylist() == ['Say "']


@pytest.mark.parametrize("prompt", ["{{ a | upper }}", "{% if a %}{{ b }}{% endif %}{{ a }}", "{{ a }}{{ b ~ a }}"])
def test_a_template_that_is_more_than_columns_is_rendered(prompt: str) -> None:
    """Filters, conditions and expressions take the slow path, and say what they always say."""
    slow = compiled(prompt, max_output=CAP)
    assert not slow.is_spliced
    batch = pa.record_batch({"key": ["k"], "a": ["ab"], "b": ['c"d\\']})
    (body,) = slow.bodies(batch, range(batch.num_rows))
    assert json.loads(body)["messages"][-1]["content"] == slow.prompts(batch)[0].as_py()


def test_bytes_that_differ_from_rendering_stop_the_plan() -> None:
    """The first rows are compared with full rendering: the fast path is not believed."""
    fast = compiled("Say {{ a }}", max_output=CAP)
    batch = pa.record_batch({"key": ["k"], "a": ["x"], "b": ["y"]})
    (body,) = fast.bodies(batch, range(batch.num_rows))
    with pytest.raises(TaskError, match="other bytes"):
        fast.check(batch, 0, [body.replace(b"Say", b"say")])


def test_rows_without_a_value_are_named_by_file_and_line(tmp_path: Path) -> None:
    """An empty value is refused before anything is spent: the first five by file and line, the others counted."""
    with pytest.raises(InputError, match="without a value") as refused:
        plan_of(tmp_path, ["a", "", *["b"] * 6_000, *[""] * 6])
    name = tmp_path / "job.jsonl"
    assert refused.value.why == "; ".join([f"{name}:2: no text", *(f"{name}:{n}: no text" for n in range(6003, 6007))]
                                          ) + "; and 2 more"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "bad", "prompt", "places"),
    [
        ("a.csv", "id,text\n1,x\n", 'id,text\n1,"two\nlines"\n\n2,\n3,"x"\n4,\n', "{{ text }}",
         ["5: no text", "7: no text"]),
        ("a.jsonl", '{"a": "x", "b": 1}\n', '{"a": "x", "b": 1}\n\n{"a": "", "b": null}\n{"b": 2}\n', "{{ a }} {{ b }}",
         ["3: no a, b", "4: no a"]),
        ("a.jsonl", '{"a": "x"}\n{"a": 5}\n',
         '{"a": ""}\n{"a": [1]}\n{"a": 5}\n{"a": ""}\n', "{{ a }}", ["1: no a", "4: no a"]),
        ("a.csv", "n\n5\n", "n\n5\n0\n", "{{ 5 // (n | int) }}", ["3: ZeroDivisionError"]),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', '{"messages": ["x"]}\n', None, ["1: it must be"]),
        ("a.txt", "x\n", "# x\nshort\n\n" + "long " * 200 + "\n", "{{ text }}", ["4: its request has"]),
    ],
    ids=["csv", "jsonl", "of many kinds", "template", "chat", "too large"],
)  # fmt: skip
def test_whatever_is_wrong_with_a_row_its_line_is_named(
    tmp_path: Path, name: str, good: str, bad: str, prompt: str | None, places: list[str]
) -> None:
    """No value, a template that fails, no chat, too large: told with the file and the line where the row begins."""
    paths = [tmp_path / f"good-{name}", tmp_path / name]
    for path, data in zip(paths, (good, bad), strict=True):
        path.write_text(data)
    store = Store(tmp_path / "home")
    store.prepare()
    order = order_of(paths[0], prompt=prompt, bounds=replace(ROOMY, request_bytes=1_000))
    with pytest.raises(UsageError) as refused:
        make_plan(replace(order, source=open_source(paths)), store, "job")
    told = refused.value.why.split("; ")[: len(places)]
    assert all(each.startswith(f"{paths[1]}:{place}") for each, place in zip(told, places, strict=True)), told


def test_every_request_has_a_cap(tmp_path: Path) -> None:
    """No request leaves without an output cap, which the hold counts on."""
    _, store, plan = plan_of(tmp_path, ["a", "b"])
    assert {body["max_completion_tokens"] for body in sent(plan, store).values()} == {CAP}
    assert plan.shards[0].cap_tokens == 2 * CAP


# -- cutting


@quick
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    most=st.integers(1, 12),
    room=st.sampled_from([0, 700, 1500]),
    hold=st.sampled_from([None, 1, 40_000, 90_000]),
    lane=st.sampled_from([Lane.BATCH, Lane.LIVE]),
)
def test_every_shard_keeps_within_its_bounds(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int, room: int, hold: int | None, lane: Lane
) -> None:
    """Requests, bytes on disk and hold are within bounds, rows contiguous, none lost or doubled."""
    home = tmp_path_factory.mktemp("cut")
    within = Bounds(most, room, hold)
    rows = [f"{i:04d}" + "x" * size for i, size in enumerate(sizes)]
    order, store, plan = plan_of(home, rows, bounds=within, lane=lane)
    check_bounds(order, store, plan, within)
    assert [sent(plan, store)[i]["messages"][-1]["content"] for i in range(len(rows))] == [f"Say {t}" for t in rows]


def check_bounds(order: Order, store: Store, plan: Plan, within: Bounds) -> None:
    expected = 0
    for new in plan.shards:
        on_disk = store.path(new.file.path).read_bytes()
        store.verify(new.file)
        lines = on_disk.splitlines()
        assert (new.count, new.file.size_bytes, new.lane) == (len(lines), len(on_disk), order.lane)
        assert new.content_bytes == sum(len(body_of(line + b"\n")) for line in lines)
        assert (new.first, new.last) == (expected, expected + new.count - 1)
        expected = new.last + 1
        assert new.count <= within.requests
        assert not within.size_bytes or len(on_disk) <= within.size_bytes or new.count == 1
        held = order.sheet.worst(new.content_bytes, new.count, new.cap_tokens)
        assert within.hold_nanos is None or held <= within.hold_nanos or new.count == 1
        assert new.cap_tokens == new.count * CAP
    assert expected == plan.rows


def test_shards_are_as_few_as_may_be(tmp_path: Path) -> None:
    """Nothing is cut that need not be, and what is cut is cut full."""
    _, _, plan = plan_of(tmp_path, ["x"] * 9 + ["y"], bounds=Bounds(4, 0, None), dedupe=False)
    assert [s.count for s in plan.shards] == [4, 4, 2]


def test_a_request_too_large_to_send_is_refused_by_name(tmp_path: Path) -> None:
    """What no shard can hold is an error before anything is sent."""
    with pytest.raises(InputError, match="row 1 is too large"):
        plan_of(tmp_path, ["a", "b" * 900], bounds=Bounds(9, 0, None, request_bytes=800))


@pytest.mark.parametrize(
    ("lane", "limits", "size", "embeddings", "expected"),
    [
        (Lane.LIVE, Limits(request_bytes=9), None, False, Bounds(256, LIVE_BYTES, 5, 9)),
        (Lane.LIVE, Limits(), 10, False, Bounds(10, LIVE_BYTES, 5, 0)),
        (Lane.BATCH, Limits(batch_requests=50, batch_bytes=1000), None, False, Bounds(50, 1000, 5, 1000)),
        (Lane.BATCH, Limits(batch_requests=50, batch_bytes=1000, request_bytes=70), 20, False, Bounds(20, 1000, 5, 70)),
        (Lane.BATCH, Limits(batch_requests=50, batch_inputs=30), None, True, Bounds(50, 0, 5, 0, 30)),
    ],
)
def test_bounds_come_from_the_provider_and_the_user(
    lane: Lane, limits: Limits, size: int | None, embeddings: bool, expected: Bounds
) -> None:
    """Whichever is tighter counts."""
    assert bounds(lane, limits, batch_size=size, hold_nanos=5, embeddings=embeddings) == expected


def test_what_goes_out_again_is_cut_from_what_was_sent(tmp_path: Path) -> None:
    """New shards hold the same bodies under new tags, with the history of the old one, in pieces if asked."""
    order, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(9)])
    numbers = iter(range(50, 99))
    scissors = Scissors(store, order.provider, order.compiled.url, order.sheet, lambda _: next(numbers))
    old = shard_of(replace(plan.shards[0], attempt=2, expiries=1, missings=1, splits=1))
    bodies = sent(plan, store)
    made = scissors.again(old, {1, 4, 5, 8}, most=3)
    assert [(s.tag, s.first, s.last, s.count) for s in made] == [("job-50", 1, 5, 3), ("job-51", 8, 8, 1)]
    assert {(s.attempt, s.expiries, s.missings, s.splits) for s in made} == {(2, 1, 1, 1)}
    again = sent(replace(plan, shards=tuple(made)), store)
    assert again == {i: bodies[i] for i in (1, 4, 5, 8)}
    for new in made:
        check = order.sheet.worst(new.content_bytes, new.count, new.cap_tokens)
        assert 0 < check < order.sheet.worst(old.content_bytes, old.count, old.cap_tokens)


# -- duplicates and the cache


def twins_of(plan: Plan, store: Store) -> dict[int, int]:
    for file in plan.files:
        if file.kind == TWINS:
            with store.open(file.ref) as stream:
                numbers = memoryview(stream.read()).cast("q").tolist()
            return dict(zip(numbers[::2], numbers[1::2], strict=True))
    return {}


@quick
@given(rows=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), most=st.integers(1, 9))
def test_equal_rows_are_sent_once(tmp_path_factory: pytest.TempPathFactory, rows: list[str], most: int) -> None:
    """The first of equal rows is sent; the others share its answer, wherever the cuts fall."""
    _, store, plan = plan_of(tmp_path_factory.mktemp("twins"), rows, bounds=Bounds(most, 0, None))
    firsts = {row: rows.index(row) for row in rows}
    assert sorted(sent(plan, store)) == sorted(firsts.values())
    assert twins_of(plan, store) == {i: firsts[row] for i, row in enumerate(rows) if firsts[row] != i}
    assert plan.duplicates == len(rows) - len(firsts)
    assert plan.quote.requests == len(firsts)
    assert all(new.count <= most for new in plan.shards)


def test_duplicates_can_be_kept_apart(tmp_path: Path) -> None:
    """Without folding every row is sent."""
    _, store, plan = plan_of(tmp_path, ["a", "a", "b"], dedupe=False)
    assert (sorted(sent(plan, store)), plan.duplicates, twins_of(plan, store)) == ([0, 1, 2], 0, {})


def test_cached_rows_are_not_sent_and_their_answers_are_the_jobs_own(tmp_path: Path) -> None:
    """What was answered before is copied into the job, under the rows that ask for it now."""
    order, store, _ = plan_of(tmp_path, ["a", "b"], "first")
    key = salt(order.provider.name, order.provider.model, order.provider.account.host)
    body = sent(plan_of(tmp_path, ["b"], "other")[2], store)[0]
    cache = cache_at(tmp_path)
    cache.put_many([(digest(key, body_of_text(order, "b")), answer("old-1-7", 'said "old-1-7"').strip())])
    assert body["messages"][0]["content"] == "Say b"
    _, store, plan = plan_of(tmp_path, ["a", "b", "c", "b"], "second", cache=cache)
    assert sorted(sent(plan, store)) == [0, 2]
    (cached,) = [s for s in plan.shards if s.lane is Lane.CACHE]
    assert (cached.count, cached.first, plan.cached, plan.duplicates) == (1, 1, 1, 1)
    for folder in (tmp_path / "answers").iterdir():
        folder.unlink()
    with store.open(cached.file) as stream:
        (line,) = stream
    decoded = order.provider.decode(line)
    assert decoded.custom_id == f"{cached.tag}-1"
    assert decoded.outcome.text == 'said "old-1-7"'
    assert plan.quote.requests == 2


def test_a_cached_answer_may_name_its_request_in_escapes(tmp_path: Path) -> None:
    """JSON may write any letter as an escape, and an answer is taken from the cache all the same."""
    order, _, _ = plan_of(tmp_path, ["a"], "first")
    key = salt(order.provider.name, order.provider.model, order.provider.account.host)
    cache = cache_at(tmp_path)
    kept = answer("x-0-0", "said").strip().replace(b'"x-0-0"', rb'"x\u002d0-0"')
    cache.put_many([(digest(key, body_of_text(order, "a")), kept)])
    _, store, plan = plan_of(tmp_path, ["a"], "second", cache=cache)
    (cached,) = plan.shards
    with store.open(cached.file) as stream:
        (line,) = stream
    decoded = order.provider.decode(line)
    assert (decoded.custom_id, decoded.outcome.text) == (f"{cached.tag}-0", "said")


def body_of_text(order: Order, text: str) -> bytes:
    return order.compiled.bodies(pa.record_batch({"key": ["k"], "text": [text]}), [0])[0]


def test_an_answer_lost_from_the_cache_is_sent_for(tmp_path: Path) -> None:
    """Losing the cache costs money, never truth."""
    order, _, _ = plan_of(tmp_path, ["a"], "first")
    key = salt(order.provider.name, order.provider.model, order.provider.account.host)
    cache = cache_at(tmp_path)
    cache.put_many([(digest(key, body_of_text(order, "a")), answer("x-0-0", "y").strip())])
    data = next((tmp_path / "answers").glob("*.jsonl"))
    data.write_bytes(data.read_bytes().replace(b'"y"', b'"z"'))  # no longer what was put
    _, store, plan = plan_of(tmp_path, ["a", "b"], "second", cache=cache)
    assert sorted(sent(plan, store)) == [0, 1]
    assert plan.cached == 0


# -- fingerprints, quotes, traces


def fingerprint(home: Path, rows: list[str], name: str = "f", **how: Any) -> str:
    return plan_of(home, rows, name, **how)[2].fingerprint


def test_a_fingerprint_stands_for_all_that_makes_the_job(tmp_path: Path) -> None:
    """Equal rows and options give the same, whatever the cuts and folds; any change gives another."""
    rows = ["a", "b", "a"]
    same = fingerprint(tmp_path, rows)
    assert same == fingerprint(tmp_path, rows, "g", bounds=Bounds(1, 0, None), dedupe=False, lane=Lane.LIVE)
    others = [
        fingerprint(tmp_path, ["a", "b", "b"]),
        fingerprint(tmp_path, ["b", "a", "a"]),
        fingerprint(tmp_path, ["a", "b"]),
        fingerprint(tmp_path, ["ab", "a"]),
        fingerprint(tmp_path, rows, prompt="Say it: {{ text }}"),
        fingerprint(tmp_path, rows, parameters=Parameters(max_output=CAP + 1)),
        fingerprint(tmp_path, rows, parameters=Parameters(max_output=CAP, temperature=0.5)),
        fingerprint(tmp_path, rows, parameters=Parameters(max_output=CAP, schema={"type": "object"})),
        fingerprint(tmp_path, rows, fingerprint_extra=("limit=3",)),
    ]
    assert len({same, *others}) == len(others) + 1


class _Chunks:
    """A source whose rows come as they are given."""

    def __init__(self, order: Order, batches: list[pa.RecordBatch]) -> None:
        self._inner, self._batches = order.source, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def batches(self) -> Iterator[pa.RecordBatch]:
        return iter(self._batches)


def test_where_rows_lie_in_memory_does_not_show(tmp_path: Path) -> None:
    """Sliced, offset or freshly read, the same rows have the same fingerprint."""
    order = order_of(write_rows(tmp_path / "in.jsonl", ["one", "twö", "three"]))
    (batch,) = order.source.batches()
    padded = pa.concat_batches([batch.slice(1, 1), batch, batch.slice(0, 2)]).slice(1, 3)
    assert padded.equals(batch)
    prints = set()
    for i, same in enumerate((batch, padded)):
        store = Store(tmp_path / f"home{i}")
        prints.add(make_plan(replace(order, source=_Chunks(order, [same])), store, "job").fingerprint)  # type: ignore[arg-type]
    assert len(prints) == 1


def test_values_do_not_flow_into_each_other(tmp_path: Path) -> None:
    """Where one value ends and the next begins is part of the rows."""
    path, prints = tmp_path / "in.jsonl", set()
    for n, rows in enumerate(({"text": "ab", "b": "c"}, {"text": "a", "b": "bc"}, {"text": "a", "c": "bc"})):
        path.write_text(json.dumps(rows) + "\n")
        prints.add(make_plan(order_of(path), Store(tmp_path / str(n)), "job").fingerprint)
    assert len(prints) == 3


def test_a_quote_is_the_sum_of_its_shards(tmp_path: Path) -> None:
    """The worst case is what will be held; the expected cost is below it; waves are the rounds the budget forces."""
    order, _, plan = plan_of(tmp_path, [f"row {i}" for i in range(20)], bounds=Bounds(7, 0, None))
    quote = plan.quote
    assert quote.at_most_nanos == sum(order.sheet.worst(s.content_bytes, s.count, s.cap_tokens) for s in plan.shards)
    assert 0 < quote.expected_nanos < quote.at_most_nanos
    assert quote.list_price_nanos == 2 * quote.expected_nanos
    assert (quote.requests, quote.output_tokens, quote.waves) == (20, 20 * 20, 1)
    assert with_waves(quote, quote.at_most_nanos).waves == 1
    assert with_waves(quote, quote.at_most_nanos // 3).waves in (3, 4)
    assert with_waves(quote, None).waves == 1
    assert with_waves(quote, 1).waves == 20  # a wave has one request at least


def test_what_is_free_is_not_cut_by_money(tmp_path: Path) -> None:
    """A price of nothing holds nothing, whatever the budget."""
    _, _, plan = plan_of(tmp_path, ["a", "b", "c"], bounds=Bounds(9, 0, 1), price="free")
    assert [s.count for s in plan.shards] == [3]
    assert plan.quote.at_most_nanos == 0


def test_a_plan_that_fails_leaves_no_half_file(tmp_path: Path) -> None:
    """An error in the middle of the rows leaves no shard and no rows file behind."""
    with pytest.raises(InputError):
        plan_of(tmp_path, ["good"] * 6000 + [""], bounds=Bounds(1000, 0, None), dedupe=False)
    left = [path.name for path in (tmp_path / "home/jobs/job").rglob("*") if path.is_file()]
    assert all(name.startswith("job-") for name in left)  # whole shards, which the caller drops
    assert "rows.parquet" not in left


def test_the_rows_are_kept_as_they_were_taken(tmp_path: Path) -> None:
    """rows.parquet has every row in order with its key; nothing of planning stays beside it."""
    _, store, plan = plan_of(tmp_path, [f"row {i}" for i in range(12_000)] + ["row 0"])
    import pyarrow.parquet as pq

    (rows,) = [file for file in plan.files if file.kind == ROWS]
    table = pq.read_table(store.path(rows.ref.path))
    assert table.column("text").to_pylist()[-2:] == ["row 11999", "row 0"]
    assert (rows.first, rows.last, plan.rows) == (0, 12_000, 12_001)
    assert pq.ParquetFile(store.path(rows.ref.path)).num_row_groups == 3
    assert not store.path("jobs/job/folding").exists()
    on_disk = {p.relative_to(store.home).as_posix() for p in store.path("jobs").rglob("*") if p.is_file()}
    assert on_disk == {f.ref.path for f in plan.files} | {s.file.path for s in plan.shards}


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Four times the rows, the same memory: a job of any size can be planned."""
    plan_of(tmp_path, ["warm"] * 3, "warm")

    def peak(rows: int) -> int:
        path = write_rows(tmp_path / "big.jsonl", [f"row {i} " + "x" * 200 for i in range(rows)])
        order = order_of(path, bounds=Bounds(5_000, 0, None))
        tracemalloc.start()
        make_plan(order, Store(tmp_path / "big"), f"job{rows}")
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(40_000) < 1.6 * peak(10_000) + 2**20


def test_shard_names_sort_and_are_the_plans_own(tmp_path: Path) -> None:
    """Tags carry the job's id and rise with the rows."""
    _, _, plan = plan_of(tmp_path, [f"{i}" for i in range(5)], bounds=replace(ROOMY, requests=2))
    assert [s.tag for s in plan.shards] == ["job-0", "job-1", "job-2"]
    assert [s.seq for s in plan.shards] == [0, 1, 2]
    assert isinstance(plan.shards[0], NewShard)
    assert plan.first_request.startswith(b'{"custom_id":"job-0-0"')
    assert msgspec.json.decode(plan.first_request)["url"] == "/v1/chat/completions"
    assert sheet_of().batch_known


def words(lot: random.Random, count: int) -> str:
    return " ".join(lot.choice(("lorem", "ipsum", "amet", "12,3", "elit")) for _ in range(count))


@pytest.mark.parametrize(
    "row",
    [
        lambda lot, i: words(lot, 20),
        lambda lot, i: words(lot, 5 if i % 1_700 else 20_000),
        lambda lot, i: words(lot, 60_000 if i == 777 else 5),
        lambda lot, i: words(lot, 5_000 if lot.random() < 0.01 else 5),
        lambda lot, i: words(lot, 500 if lot.random() < 0.1 else 5),
        lambda lot, i: words(lot, 1 + int(lot.lognormvariate(3, 1.5))),
        lambda lot, i: "你好世界" * lot.randint(1, 400) if i % 2 else words(lot, 20),
    ],
    ids=["alike", "few of length", "one has most", "1 % of length", "10 % of length", "lognormal", "two scripts"],
)
def test_tokens_are_told_by_a_few_rows_whatever_their_lengths(
    tmp_path: Path, row: Callable[[random.Random, int], str]
) -> None:
    """What a plan expects is within a twentieth of what a look at every request gives."""
    lot = random.Random(11)
    order, store, plan = plan_of(tmp_path, [row(lot, i) for i in range(5_000)], bounds=Bounds(10**6, 0, None))
    (shard,) = plan.shards
    with store.open(shard.file) as stream:
        bodies = [body_of(line) for _, line in split_lines(stream, shard.tag)]
    looked_at = sum(sum(order.compiled.about_tokens(body)) for body in bodies)
    assert plan.quote.input_tokens == pytest.approx(looked_at, rel=0.05)
