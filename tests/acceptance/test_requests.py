"""Rows that are whole requests: chat completions, responses and embeddings, live and in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import MODEL, Place

from nightmill.simulator import SimulatorConfig, in_thread

NAME = MODEL.partition("/")[2]
EMBEDDER = "text-embedding-3-small"
TOOL = {"type": "function", "function": {"name": "book", "parameters": {
    "type": "object", "properties": {"seats": {"type": "integer"}}, "required": ["seats"]}}}  # fmt: skip
ASKED: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "é"}], "max_tokens": 60, "logprobs": True, "brand_new": {"a": None}},
        {"messages": [{"role": "user", "content": "two"}], "n": 3, "max_completion_tokens": 300},
        {"messages": [{"role": "user", "content": "book"}], "tools": [TOOL], "tool_choice": "required"},
    ],
    "/v1/responses": [
        {"input": "one", "max_output_tokens": 300, "metadata": {"a": "b"}, "brand_new": 1},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "two"}]}], "instructions": "short"},
        {"input": "book", "tools": [{"type": "function", **TOOL["function"]}], "tool_choice": "required"},
    ],
    "/v1/embeddings": [{"input": "one", "dimensions": 3}, {"input": ["two", "three"]}, {"input": [[1, 2], [3]]}],
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0)) as url:
        yield Place(tmp_path, url)


def _lines(place: Place, url: str, model: str) -> list[dict[str, Any]]:
    rows = [{"custom_id": f"c{i}", "method": "POST", "url": url, "body": {"model": model, **body}}
            for i, body in enumerate(ASKED[url])]  # fmt: skip
    (place.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _sent(place: Place) -> list[dict[str, Any]]:
    shards = sorted(place.home.glob("jobs/*/shards/*.jsonl"))
    return [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]


def _run(place: Place, *more: str, model: str = MODEL) -> list[dict[str, Any]]:
    done = place.run("run", "in.jsonl", "--model", model, "--yes", "--json", "--out", "o.jsonl", *more)
    assert done.code == 0, done.err
    told = done.json
    assert round(told["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
    assert told["spent_usd"] <= told["at_most_usd"]
    return place.results("o.jsonl")


@pytest.mark.req("X13")
@pytest.mark.parametrize("lane", ["batch", "live"])
@pytest.mark.parametrize("url", ASKED)
def test_lines_of_a_batch_file_run_as_they_are(place: Place, url: str, lane: str) -> None:
    """Each line's body is sent untouched but for the output cap that every request has, at its url, under its name."""
    rows = _lines(place, url, EMBEDDER if "embed" in url else NAME)
    results = _run(place, "--lane", lane, model="openai/" + rows[0]["body"]["model"])
    assert [row["key"] for row in results] == ["c0", "c1", "c2"]
    assert all(row["success"] and row["response"] for row in results)
    assert {line["url"] for line in _sent(place)} == {url}
    caps = {"max_tokens", "max_completion_tokens", "max_output_tokens"}
    for line, row in zip(_sent(place), rows, strict=True):
        sent, given = line["body"], row["body"]
        assert {k: v for k, v in sent.items() if k not in caps} == {k: v for k, v in given.items() if k not in caps}
        said = [given[name] for name in caps & given.keys()]
        usual = [] if "embed" in url else [2000]
        assert [sent[name] for name in caps & sent.keys()] == (said or usual)


@pytest.mark.req("X13")
def test_tools_and_several_choices_are_answers(place: Place) -> None:
    """A called tool is an answer, as JSON; of three choices the first is shown and all are kept."""
    _lines(place, "/v1/chat/completions", NAME)
    plain, several, called = _run(place)
    assert plain["parsed"] is None
    assert (len(several["parsed"]), several["parsed"][0]) == (3, several["response"])
    (call,) = json.loads(called["response"])
    assert (call["function"]["name"], called["parsed"], called["finish_reason"]) == ("book", [call], "tool_calls")


@pytest.mark.req("X13")
def test_bodies_alone_run_too(place: Place) -> None:
    """Lines that are bodies without an envelope: each row has what it says itself, and nothing of other rows."""
    bodies = [{"model": NAME, "input": "one", "temperature": 0.5}, {"model": NAME, "input": "two", "temperature": 1},
              {"model": NAME, "input": "three", "max_output_tokens": 200}]  # fmt: skip
    (place.folder / "in.jsonl").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    results = _run(place)
    assert [row["prompt"] for row in results] == ["one", "two", "three"]
    assert [line["body"] for line in _sent(place)] == [body | {"max_output_tokens": cap} for body, cap in
                                                       zip(bodies, (2000, 2000, 200), strict=True)]  # fmt: skip


@pytest.mark.req("X13", "X2")
def test_the_hold_counts_every_choice(place: Place) -> None:
    """A request for five choices is held at five times its cap, and one that nobody can bound is refused."""
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 10_000}

    def at_most(more: dict[str, Any], *, code: int = 0) -> Any:
        (place.folder / "in.jsonl").write_text(json.dumps({"custom_id": "a", "body": {**body, **more}}) + "\n")
        done = place.run("run", "in.jsonl", "--model", MODEL, "--lane", "live", "--dry-run", "--json")
        assert done.code == code, done.err
        return done.json

    once = at_most({})["at_most_usd"]
    assert at_most({"n": 5})["at_most_usd"] == pytest.approx(5 * once, rel=0.01)
    for boundless in ({"web_search_options": {}}, {"service_tier": "ultrafast"}, {"n": "many"}, {"model": "gpt-4o"}):
        error = at_most(boundless, code=2)["error"]
        assert "in.jsonl:1" in error["why"]


@pytest.mark.req("X13", "X2")
@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}], "search_parameters": {"mode": "on"}}),
        ("responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_image", "image_url": "https://example.org/a.png"}]}]}),
        ("responses", {"input": "hi", "max_tokens": 9}),
        ("responses", {"input": "hi", "max_completion_tokens": 9}),
    ],
)  # fmt: skip
def test_what_its_bytes_and_its_cap_do_not_bound_is_refused(place: Place, url: str, body: dict[str, Any]) -> None:
    """A search, a picture that a tool gave back, or a cap that is none at its endpoint: no hold would cover it."""
    (place.folder / "in.jsonl").write_text(json.dumps({"custom_id": "a", "url": f"/v1/{url}", "body": body}) + "\n")
    done = place.run("run", "in.jsonl", "--model", MODEL, "--yes", "--json")
    assert (done.code, done.json["error"]["code"], place.invoice()["total_nanos"]) == (2, "cannot_carry", 0)


@pytest.mark.req("X13")
@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([{"custom_id": "a", "url": "/v1/audio/speech", "body": {"input": "x"}}], "/v1/audio/speech"),
        ([{"custom_id": "a", "url": "/v1/responses", "body": {"input": "x"}},
          {"custom_id": "b", "url": "/v1/embeddings", "body": {"input": "x"}}], "in.jsonl:2"),
        ([{"custom_id": "a", "url": "/v1/responses", "body": {"messages": []}}], "it has no input"),
        ([{"custom_id": "a", "body": "hello"}], "no JSON"),
        ([{"custom_id": "a", "url": "/v1/responses", "body": {"input": "x", "previous_response_id": "r"}}], "known"),
        ([{"custom_id": "a", "url": "/v1/responses", "body": {"input": "x", "tools": [{"type": "web_search"}]}}],
         "known"),
    ],
)  # fmt: skip
def test_rows_that_are_no_requests_are_told(place: Place, lines: list[Any], why: str) -> None:
    """What cannot be sent, or priced, is refused by its line before anything is spent."""
    (place.folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = place.run("run", "in.jsonl", "--model", MODEL, "--yes", "--json")
    assert done.code == 2
    assert why in done.err
    assert place.invoice()["total_nanos"] == 0
