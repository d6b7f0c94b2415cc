"""Embeddings: a vector a row, in tables as 32-bit floats of one size, elsewhere as lists; the bill is the spend."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import Done, Place, adds_up
from servers_kit import Call, Said, serving

import nightmill as nm
from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X9")

SMALL = "openai/text-embedding-3-small"
GEMINI = "gemini/gemini-embedding-001"
FLOATS = pa.float32()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with in_thread(SimulatorConfig(speed=1000.0, batch_s=20.0)) as url:
        place = Place(tmp_path, url)
        place.env |= {"GEMINI_API_KEY": "gm-test", "GEMINI_BASE_URL": url.removesuffix("/v1")}
        yield place


def _texts(place: Place, *texts: str) -> str:
    (place.folder / "texts.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts))
    return "texts.csv"


def _embed(place: Place, *more: str, model: str = SMALL) -> Done:
    return place.run("run", "texts.csv", "--task", "embed", "--model", model, "--yes", "--json", *more)


def _good(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    assert adds_up(done.json)
    return done.json


@pytest.mark.parametrize(("model", "lane"), [(SMALL, "batch"), (SMALL, "live"), (GEMINI, "batch"), (GEMINI, "live")])
def test_each_format_has_the_vectors_and_the_spend_is_the_invoice(place: Place, model: str, lane: str) -> None:
    """Parquet holds float32 of the size that was asked for, the other formats the same numbers; no cent is off."""
    _texts(place, *(f"text {i}" for i in range(30)))
    names = ("v.parquet", "v.jsonl", "v.csv", "v.json")
    outs = [part for name in names for part in ("--out", name)]
    told = _good(_embed(place, "--lane", lane, "--dimensions", "6", *outs, model=model))
    assert (told["succeeded"], told["lane"]) == (30, lane)
    assert round(told["spent_usd"] * 1e9) == place.invoice()["total_nanos"] > 0
    table = pq.read_table(place.folder / "v.parquet")
    assert table.schema.field("embedding").type == pa.list_(FLOATS, 6)
    kept = table.column("embedding").to_pylist()
    assert len(kept) == len({tuple(vector) for vector in kept}) == 30
    lines = place.results("v.jsonl")
    assert [numpy.float32(line["embedding"]).tolist() for line in lines] == kept
    assert all(line["response"] is None and line["success"] and line["tokens_in"] > 0 for line in lines)
    whole = json.loads((place.folder / "v.json").read_text())["results"]
    assert [row["embedding"] for row in whole] == [line["embedding"] for line in lines]
    first = (place.folder / "v.csv").read_text().splitlines()[1]
    assert json.dumps(lines[0]["embedding"], separators=(",", ":")) in first


def test_failed_rows_have_no_vector_and_those_with_one_keep_theirs(tmp_path: Path) -> None:
    """A null among vectors: the column stays one of a fixed size, and no other row's numbers move."""

    def answer(call: Call) -> Said:
        text = call.body["input"]
        if text == "bad":
            return 400, {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "x"}}
        return _vectors([float(text), 0.5, -1.0])

    with serving(answer) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, "bad", "1", "bad", "3")
        done = _embed(place, "--lane", "live", "--out", "v.parquet", "--no-dedupe")
    assert (done.code, done.json["succeeded"], done.json["failed"]) == (3, 2, 2)
    column = pq.read_table(place.folder / "v.parquet").column("embedding")
    assert column.type == pa.list_(FLOATS, 3)
    assert column.to_pylist() == [None, [1.0, 0.5, -1.0], None, [3.0, 0.5, -1.0]]


def _vectors(*vectors: list[float]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def test_vectors_of_different_sizes_are_lists_and_that_is_said(tmp_path: Path) -> None:
    """A server that answers with vectors of several sizes: none is lost, and what became of the column is said."""
    with serving(lambda call: _vectors([1.0] * int(call.body["input"]))) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, "2", "3", "1")
        done = _embed(place, "--lane", "live", "--out", "v.parquet")
    assert done.code == 0, done.err
    column = pq.read_table(place.folder / "v.parquet").column("embedding")
    assert column.type == pa.list_(FLOATS)
    assert column.to_pylist() == [[1.0] * 2, [1.0] * 3, [1.0]]
    assert "differ in size" in done.err


def test_a_vector_of_another_size_than_asked_for_is_an_invalid_answer(tmp_path: Path) -> None:
    """A server that does not know of dimensions: its vectors are paid, and are no results."""
    with serving(lambda _: _vectors([1.0, 2.0])) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, "a")
        done = _embed(place, "--lane", "live", "--dimensions", "3", "--out", "v.jsonl")
    (row,) = place.results("v.jsonl")
    assert (done.code, row["error_kind"], row["embedding"]) == (3, "invalid_output", None)
    assert row["error"] == "the vector has 2 numbers, and 3 were asked for"


def test_empty_texts_are_refused_before_anything_is_spent(place: Place) -> None:
    """A row without a text ends the command, and nothing was sent."""
    _texts(place, "a", '""', "c")
    done = _embed(place)
    assert done.code == 2
    assert "texts.csv" in done.err
    assert place.invoice()["total_nanos"] == 0


def test_what_only_texts_have_is_refused(place: Place) -> None:
    """Options that would have no effect on a vector are told, not dropped; so is a size where there is no vector."""
    _texts(place, "a")
    for option in (("--temperature", "0"), ("--max-output", "5")):
        done = _embed(place, *option)
        assert (done.code, f"{option[0]}: not for embeddings" in done.err) == (2, True)
    done = place.run("run", "texts.csv", "--prompt", "{{ text }}", "--model", "openai/gpt-4o-mini", "--dimensions", "3")
    assert (done.code, "no embeddings are asked for" in done.err) == (2, True)
    done = _embed(place, "--dimensions", "3", model="openai/text-embedding-ada-002")
    assert (done.code, "takes no dimensions" in done.err) == (2, True)


def test_rows_alike_are_sent_once_and_a_second_run_costs_nothing(place: Place) -> None:
    """Dedupe and cache hold for vectors: each of the rows has its own, whoever paid for it."""
    _texts(place, "a", "b", "a", "a")
    told = _good(_embed(place, "--out", "one.parquet"))
    assert (told["sent"], told["duplicates"]) == (2, 2)
    again = _good(_embed(place, "--out", "two.parquet"))
    assert (again["sent"], again["spent_usd"], again["cached"]) == (0, 0, 2)
    one, two = (pq.read_table(place.folder / name).column("embedding") for name in ("one.parquet", "two.parquet"))
    assert one.to_pylist() == two.to_pylist()
    assert one[0] == one[2] == one[3] != one[1]


def test_python_has_the_vectors_as_one_array(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """`embeddings` is rows by numbers and the memory of the table itself; a result's own is a view."""
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.folder)
    job = nm.run([{"text": f"t{i}"} for i in range(4)], task="embed", model=SMALL, dimensions=5)
    found = job.embeddings()
    assert (found.shape, found.dtype, found.base is not None) == ((4, 5), numpy.float32, True)
    assert found.tolist() == job.table().column("embedding").to_pylist()
    first = next(job.results()).embedding
    assert first is not None
    assert numpy.asarray(first).tolist() == found[0].tolist()


def test_files_in_a_folder_get_a_vector_each(place: Place) -> None:
    """Into a folder goes a JSON list for each file of the input."""
    (place.folder / "docs").mkdir()
    (place.folder / "docs" / "a.txt").write_text("some words")
    done = place.run(
        "run", "docs", "--rows", "file", "--task", "embed", "--model", SMALL, "--yes", "--json", "--dimensions", "4",
        "--out", "vectors/",
    )  # fmt: skip
    assert _good(done)["succeeded"] == 1
    assert len(json.loads((place.folder / "vectors" / "a.txt.json").read_text())) == 4


def _asked(server: Any) -> list[list[str]]:
    """What each call to embeddings asked for."""
    return [_input(call) for call in server.to("/v1/embeddings")]


def _input(call: Call) -> list[str]:
    given = call.body["input"]
    return [given] if isinstance(given, str) else given


def _of(texts: list[str]) -> Said:
    """A vector a text, in another order than asked; ``bad`` is refused, and all that is asked with it."""
    if "bad" in texts:
        return 400, {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "x"}}
    made = _vectors(*([float(text), 1.0] for text in texts))
    made["data"].reverse()
    return made | {"usage": {"prompt_tokens": 7 * len(texts) + 1, "total_tokens": 7 * len(texts) + 1}}


def test_live_rows_share_calls_and_their_cost_to_the_last_token(tmp_path: Path) -> None:
    """150 rows go in three calls; each has its own vector, and their tokens add up to those of the calls."""
    with serving(lambda call: _of(_input(call))) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, *map(str, range(150)))
        told = _good(_embed(place, "--lane", "live", "--out", "v.jsonl"))
    asked = _asked(server)
    assert sorted(len(texts) for texts in asked) == [22, 64, 64]
    rows = place.results("v.jsonl")
    assert [row["embedding"] for row in rows] == [[i, 1] for i in range(150)]
    assert sum(row["tokens_in"] for row in rows) == told["tokens_in"] == 150 * 7 + 3
    assert round(told["spent_usd"] * 1e9) == (150 * 7 + 3) * 20


def test_a_bad_row_is_found_by_halves_and_fails_alone(tmp_path: Path) -> None:
    """What a call refuses for one row is asked again without it: nobody else fails, and nothing is paid twice."""
    with serving(lambda call: _of(_input(call))) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, *("bad" if i == 11 else str(i) for i in range(60)))
        done = _embed(place, "--lane", "live", "--out", "v.jsonl")
    assert (done.code, done.json["succeeded"], done.json["failed"]) == (3, 59, 1)
    rows = place.results("v.jsonl")
    assert [row["embedding"] for row in rows] == [None if i == 11 else [i, 1] for i in range(60)]
    assert (rows[11]["error_kind"], rows[11]["attempt"]) == ("bad_request", 1)
    answered = [texts for texts in _asked(server) if "bad" not in texts]
    assert sorted(text for texts in answered for text in texts) == sorted(str(i) for i in range(60) if i != 11)
    assert len(_asked(server)) <= 13
    assert round(done.json["spent_usd"] * 1e9) == sum(7 * len(texts) + 1 for texts in answered) * 20


@pytest.mark.parametrize("trouble", ["error", "short", "nothing"])
def test_rows_of_a_call_that_failed_are_asked_again_by_themselves(tmp_path: Path, trouble: str) -> None:
    """A server error, an answer with a vector too few, none at all: each row has its next try alone."""

    def answer(call: Call) -> Said:
        texts = call.body["input"]
        if isinstance(texts, str):
            return _of([texts])
        if trouble == "error":
            return 500, {"error": {"message": "oh", "type": "server_error", "param": None, "code": None}}
        return _of(texts[1:]) if trouble == "short" else None

    with serving(answer) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, *map(str, range(5)))
        told = _good(_embed(place, "--lane", "live", "--out", "v.jsonl"))
    assert [len(texts) for texts in _asked(server)] == [5, 1, 1, 1, 1, 1]
    rows = place.results("v.jsonl")
    assert [(row["embedding"], row["attempt"]) for row in rows] == [
        ([i, 1], 2 if trouble == "error" else 1) for i in range(5)
    ]
    assert (told["unproven_usd"] > 0) == (trouble != "error")


@pytest.mark.parametrize(
    ("point", "repeated"),
    [
        ("live.marked:2", 0),
        ("http.send.answered:2", 64),
        pytest.param("live.journaled:2", 0, marks=pytest.mark.again),
        pytest.param("live.synced", 0, marks=pytest.mark.again),
    ],
)
def test_killed_between_calls_at_most_the_rows_of_one_are_asked_again(
    tmp_path: Path, point: str, repeated: int
) -> None:
    """kill -9 at any step of a call for many rows: no row is lost, and no bill is larger than what was booked."""
    with serving(lambda call: _of(_input(call))) as server:
        place = Place(tmp_path, f"{server.url}/v1")
        _texts(place, *map(str, range(200)))
        command = (
            "run", "texts.csv", "--task", "embed", "--model", SMALL, "--yes", "--json", "--lane", "live",
            "--concurrency", "1", "--out", "v.jsonl",
        )  # fmt: skip
        place.env["NIGHTMILL_KILL_AT"] = point
        assert place.run(*command).code == -signal.SIGKILL
        place.env["NIGHTMILL_KILL_AT"] = ""
        told = _good(place.run(*command))
    rows = place.results("v.jsonl")
    assert [row["embedding"] for row in rows] == [[i, 1] for i in range(200)]
    asked = _asked(server)
    assert sum(map(len, asked)) - 200 == repeated
    billed = sum(7 * len(texts) + 1 for texts in asked) * 20
    assert billed <= round(told["spent_usd"] * 1e9)
    proven = round((told["spent_usd"] - told["unproven_usd"]) * 1e9)
    assert proven == sum(row["tokens_in"] for row in rows) * 20 == billed - (7 * 64 + 1) * 20 * (repeated > 0)
