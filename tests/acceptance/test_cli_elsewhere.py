"""Batches that were made elsewhere: listed beside our own, and adopted as jobs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from cli_kit import MODEL, Place, adds_up

from nightmill.simulator import SimulatorConfig, in_thread

ROWS = 5


def simulator(*faults: dict[str, Any], **more: Any) -> SimulatorConfig:
    return SimulatorConfig(**{"speed": 1000.0, "answer_sigma": 0.0, "faults": list(faults), **more})


def made_elsewhere(place: Place, *, rows: int = ROWS, cap: int | None = 50, model: str = "gpt-4o-mini") -> str:
    """The id of a batch that the official client made, with custom_ids of its own; two look like other parts."""
    names = ["id", "custom_id", *(f"Frage {i}/ä" for i in range(rows - 2))]
    with openai.OpenAI(base_url=place.url, api_key="sk-test", max_retries=0) as client:
        bodies = [{"model": model, "messages": [{"role": "user", "content": f"Say {i}"}]} for i in range(rows)]
        capped = [body | ({"max_tokens": cap} if cap else {}) for body in bodies]
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
            for name, body in zip(names, capped, strict=True)
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        sent = client.files.create(file=("theirs.jsonl", io.BytesIO(text.encode())), purpose="batch")
        batch = client.batches.create(
            input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"who": "they"}
        )
    return batch.id


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with in_thread(simulator()) as url:
        yield Place(tmp_path, url)


def creates(place: Place) -> int:
    return sum(event["event"] == "create" for event in place.log())


@pytest.mark.req("B2")
def test_a_batch_made_elsewhere_is_adopted_and_collected(place: Place) -> None:
    """Its custom_ids are the keys, its answers the results, its bill our spending; twice is the same job."""
    batch = made_elsewhere(place)
    done = place.run("adopt", f"openai/{batch}", "--out", "r.jsonl", "--json")
    assert done.code == 0, done.err
    assert (done.json["rows"], done.json["succeeded"], done.json["model"]) == (ROWS, ROWS, MODEL)
    assert adds_up(done.json)
    rows = place.results("r.jsonl")
    assert [row["key"] for row in rows] == ["id", "custom_id", *(f"Frage {i}/ä" for i in range(ROWS - 2))]
    assert [row["prompt"] for row in rows] == [f"Say {i}" for i in range(ROWS)]
    assert all(row["response"] and row["batch_id"] == batch for row in rows)
    assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]
    assert place.run("budget", "--json").json["spent"] == done.json["spent_usd"]
    again = place.run("adopt", f"openai/{batch}", "--json")
    assert (again.code, again.json["job_id"], again.json["spent_usd"]) == (
        0,
        done.json["job_id"],
        done.json["spent_usd"],
    )
    assert place.run("results", done.json["job_id"]).out.count("\n") == ROWS
    assert creates(place) == 1


@pytest.mark.req("B2")
def test_a_batch_made_elsewhere_is_never_sent_again(tmp_path: Path) -> None:
    """Rows that failed or expired there stay so: whoever made the batch decides, and nothing is paid beside it."""
    with in_thread(simulator({"fault": "expire_at", "fraction": 0.6}, {"fault": "row_errors", "count": 1})) as url:
        place = Place(tmp_path, url)
        batch = made_elsewhere(place)
        done = place.run("adopt", f"openai/{batch}", "--json")
        assert done.code == 3, done.err
        assert (done.json["succeeded"], done.json["failed"], done.json["expired"]) == (2, 1, 2)
        assert adds_up(done.json)
        refused = place.run("retry", "@last", "--yes", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (2, "conflict")
        assert creates(place) == 1
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"]


def test_no_budget_refuses_what_is_committed_already(place: Place) -> None:
    """A budget that is used up does not keep the answers of a batch that runs anyway; it counts, and new jobs stop."""
    assert place.run("budget", "set", "0.000001").code == 0
    done = place.run("adopt", f"openai/{made_elsewhere(place, cap=None)}", "--json")
    assert (done.code, done.json["succeeded"]) == (0, ROWS), done.err
    total = place.run("budget", "--json").json
    assert (total["spent"], total["held"]) == (done.json["spent_usd"], 0.0)
    refused = place.run("run", place.rows(2), "--prompt", "{{ text }}", "--model", MODEL, "--yes")
    assert refused.code == 4, refused.err


def test_our_own_batches_are_not_adopted(place: Place) -> None:
    """A batch that nightmill sent is refused, with its job."""
    ours = place.run("run", place.rows(3), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch", "--yes",
                     "--json").json  # fmt: skip
    (shard,) = place.run("show", ours["job_id"], "--json").json["shards"]
    refused = place.run("adopt", f"openai/{shard['submissions'][0]['batch_id']}", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (2, "conflict")
    assert ours["job_id"] in refused.json["error"]["message"]


def test_what_others_made_is_theirs_to_delete(place: Place) -> None:
    """Settings that tidy our own files at the provider spare an adopted batch; its bill outlives its job."""
    settings = place.folder / "nightmill.toml"
    settings.write_text('[retention]\nprovider_files = "delete"\n' + settings.read_text())
    batch = made_elsewhere(place)
    done = place.run("adopt", f"openai/{batch}", "--json").json
    assert done["succeeded"] == ROWS
    assert place.run("gc", "--yes", "--json").json["provider_files"] == 0
    assert [event for event in place.log() if event["event"] == "delete"] == []
    assert place.run("delete", done["job_id"], "--yes").code == 0
    again = place.run("adopt", f"openai/{batch}", "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "conflict")
    assert place.run("budget", "--json").json["spent"] == done["spent_usd"]


@pytest.mark.parametrize("batch", ["openai", "openai/batch_none", "nobody/batch_1", "local/x"])
def test_what_is_no_batch_is_refused(place: Place, batch: str) -> None:
    """A mistyped batch or provider: what, why and what to do; no job comes of it."""
    refused = place.run("adopt", batch, "--json")
    assert refused.code == 2, refused.err
    assert refused.json["error"]["fix"]
    assert place.run("jobs", "--json").json["jobs"] == []


def test_a_batch_that_fails_while_it_is_waited_for_is_told(tmp_path: Path) -> None:
    """The provider refuses the whole batch after it was adopted: every row fails with its words, nothing is paid."""
    told = {"fault": "batch_failed_line", "line": 2, "message": "This request is odd."}
    with in_thread(simulator(told, validating_s=400.0)) as url:
        place = Place(tmp_path, url)
        done = place.run("adopt", f"openai/{made_elsewhere(place)}", "--json")
        assert (done.code, done.json["failed"], done.json["spent_usd"]) == (3, ROWS, 0.0), done.err
        assert "This request is odd." in place.run("show", "@last", "--failures").out
        assert creates(place) == 1


@pytest.mark.req("B2")
def test_batches_at_the_provider_are_listed_ours_or_not(place: Place) -> None:
    """Every page, newest first; ours with job, shard and state here; all others as what they are."""
    ours = place.run("run", place.rows(3), "--prompt", "{{ text }}", "--model", MODEL, "--lane", "batch", "--yes",
                     "--json").json  # fmt: skip
    with openai.OpenAI(base_url=place.url, api_key="sk-test", max_retries=0) as client:
        sent = client.files.create(file=("x.jsonl", io.BytesIO(b"{}")), purpose="batch")
        theirs = [
            client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h").id
            for _ in range(101)  # one more than a page holds, beside ours
        ]
    listed = place.run("batches", "openai", "--json").json
    assert listed["errors"] == []
    assert [batch["batch_id"] for batch in listed["batches"][:-1]] == theirs[::-1]
    mine = listed["batches"][-1]
    assert (mine["ours"], mine["job_id"], mine["shard_state"]) == (True, ours["job_id"], "settled")
    assert (mine["status"], mine["completed"], mine["total"], mine["failed"]) == ("completed", 3, 3, 0)
    assert mine["input_file"]
    assert mine["output_file"]
    assert {batch["ours"] for batch in listed["batches"][:-1]} == {False}
    shown = [line for line in place.run("batches").out.splitlines() if line.startswith("openai/")]
    assert len(shown) == 102
    assert "not ours" in shown[0]
    assert f"{mine['shard']} settled" in shown[-1]


def test_a_list_that_breaks_off_shows_what_came_and_says_so(tmp_path: Path) -> None:
    """A page that cannot be read is no silent end: what is there is told with the error, and the code is not 0."""
    with in_thread(simulator({"fault": "list_page_500"})) as url:
        broken = Place(tmp_path, url).run("batches", "--json")
        assert broken.code == 1, broken.err
        (error,) = broken.json["errors"]
        assert (error["provider"], broken.json["batches"]) == ("openai", [])
    with in_thread(simulator()) as url:
        assert Place(tmp_path, url).run("batches").out == "no batch is listed\n"
    keyless = Place(tmp_path).run("batches", "--json")
    assert (keyless.code, keyless.json["error"]["code"]) == (2, "usage")
    assert "OPENAI_API_KEY" in keyless.json["error"]["why"]
