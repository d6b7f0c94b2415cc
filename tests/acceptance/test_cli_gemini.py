"""Gemini as a user meets it: live, in batches, in batches that hand nothing back; what is booked is what is billed."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place, adds_up
from servers_kit import Call, Said, serving

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("D2")

MODEL = "gemini/gemini-2.5-flash"
PATH = "/v1beta/models/gemini-2.5-flash"
USAGE = {"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 10, "totalTokenCount": 130}
BATCH_NANOS, LIVE_NANOS = 100 * 150 + 30 * 1_250, 100 * 300 + 30 * 2_500  # a row, at the list price


def error(status: int, word: str, message: str) -> Said:
    return status, {"error": {"code": status, "message": message, "status": word}}


class GeminiServer:
    """Files and batches; a batch has ended when it is asked for, as ``ends`` says, succeeded if it does not."""

    def __init__(self, ends: Callable[[int], dict[str, Any] | None] = lambda _: None, drop_create: int = -1) -> None:
        self.ends, self.drop_create = ends, drop_create
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    def __call__(self, call: Call) -> Said:
        match call.method, *call.path.strip("/").split("/"):
            case "POST", "v1beta", "models", ask if ask.endswith(":generateContent"):
                return self.answer(call.body)
            case "POST", "upload", "v1beta", "files":
                to = f"https://unreachable.invalid/upload/v1beta/{call.body['file']['name']}?upload_id=1"
                return 200, b"", {"X-Goog-Upload-URL": to}
            case "POST", "upload", "v1beta", "files", name:
                self.files[f"files/{name}"] = call.raw
                told = {"file": {"name": f"files/{name}", "state": "ACTIVE"}}
                return 200, told, {"X-Goog-Upload-Status": "final"}
            case "POST", "v1beta", "models", ask if ask.endswith(":batchGenerateContent"):
                return self.create(call.body["batch"])
            case "GET", "v1beta", "batches":
                return {"operations": list(self.batches.values())} if self.batches else {}
            case "GET", "v1beta", "batches", name:
                return self.batches[f"batches/{name}"]
            case "DELETE", "v1beta", "files", name:
                gone = self.files.pop(f"files/{name}", None) is None
                return error(403, "PERMISSION_DENIED", "You do not ... or it may not exist.") if gone else {}
            case "GET", "download", "v1beta", "files", name:
                return self.files[f"files/{name.removesuffix(':download')}"]
        return error(404, "NOT_FOUND", "there is no such call")

    def answer(self, body: dict[str, Any]) -> Said:
        asked = body["contents"][-1]["parts"][0]["text"]
        if "blocked" in asked:
            return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 100}}
        if "refused" in asked:
            return error(400, "INVALID_ARGUMENT", "Request contains an invalid argument.")
        content = {"role": "model", "parts": [{"text": asked.upper()}]}
        return {"candidates": [{"content": content, "finishReason": "STOP"}], "usageMetadata": USAGE,
                "modelVersion": "gemini-2.5-flash"}  # fmt: skip

    def create(self, asked: dict[str, Any]) -> Said:
        number, lines = len(self.batches), self.files[asked["inputConfig"]["fileName"]].splitlines()
        about = {
            **asked, "createTime": dt.datetime.now(dt.UTC).isoformat(), "model": "models/gemini-2.5-flash",
            "state": "BATCH_STATE_SUCCEEDED",
        }  # fmt: skip
        rows = [self.row(json.loads(line)) for line in lines]
        failed = sum("error" in row for row in rows)
        stats = {"requestCount": len(rows), "successfulRequestCount": len(rows) - failed, "failedRequestCount": failed}
        about["batchStats"] = {name: str(count) for name, count in stats.items() if count}
        if other := self.ends(number):
            about |= other
        else:
            self.files[f"files/batch-{number}"] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            about["output"] = {"responsesFile": f"files/batch-{number}"}
        batch = {"name": f"batches/b{number}", "metadata": about, "done": True}
        self.batches[batch["name"]] = batch
        if number == self.drop_create:
            return None
        return {"name": batch["name"], "metadata": {**about, "state": "BATCH_STATE_PENDING"}}

    def row(self, line: dict[str, Any]) -> dict[str, Any]:
        said = self.answer(line["request"])
        return {"key": line["key"]} | ({"error": said[1]["error"]} if isinstance(said, tuple) else {"response": said})


@contextmanager
def gemini(folder: Path, server: GeminiServer) -> Iterator[Place]:
    with serving(server) as listening:
        place = Place(folder)
        place.env |= {"GOOGLE_API_KEY": "k-secret", "GEMINI_BASE_URL": listening.url}
        yield place


def run(place: Place, rows: int, *arguments: str, text: str = "row {}") -> Done:
    name = place.rows(rows, text)
    return place.run("run", name, "--prompt", "{{ text }}", "--model", MODEL, "--out", "r.jsonl", "--json", "--yes",
                     "--max-output", "50", "--force", *arguments)  # fmt: skip


def spent(done: Done) -> int:
    return round(done.json["spent_usd"] * 1e9)


@pytest.mark.parametrize(("lane", "nanos"), [("batch", BATCH_NANOS), ("live", LIVE_NANOS)])
def test_what_is_asked_is_answered_and_billed_to_the_nano(tmp_path: Path, lane: str, nanos: int) -> None:
    """In either lane, thoughts included; again it is the cache that answers, for nothing."""
    with gemini(tmp_path, GeminiServer()) as place:
        done = run(place, 12, "--lane", lane, "--batch-size", "5")
        assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, 12, True), done.err
        assert (spent(done), done.json["unproven_usd"]) == (12 * nanos, 0)
        results = place.results("r.jsonl")
        assert [row["response"] for row in results] == [f"ROW {i}" for i in range(12)]
        assert {(row["model"], row["finish_reason"], row["tokens_out"]) for row in results} == {
            ("gemini-2.5-flash", "STOP", 30)
        }
        again = run(place, 12, "--new", "--lane", lane)
        assert (again.json["cached"], spent(again)) == (12, 0), again.err
        assert [row["response"] for row in place.results("r.jsonl")] == [f"ROW {i}" for i in range(12)]


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_a_blocked_prompt_and_a_refused_one_fail_alone(tmp_path: Path, lane: str) -> None:
    """Each with its kind; the blocked one's prompt was paid for, the refused one's was not."""
    with gemini(tmp_path, GeminiServer()) as place:
        (tmp_path / "in.txt").write_text("good\nblocked\nrefused\n")
        done = place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", MODEL, "--lane", lane, "--json", "--yes",
                         "--out", "r.jsonl")  # fmt: skip
        assert (done.code, done.json["succeeded"], done.json["failed"]) == (3, 1, 2), done.err
        assert [row["error_kind"] for row in place.results("r.jsonl")] == [None, "content_filter", "bad_request"]
        whole, prompt = (BATCH_NANOS, 100 * 150) if lane == "batch" else (LIVE_NANOS, 100 * 300)
        assert spent(done) == whole + prompt


NOTHING_RAN = {"requestCount": "5", "pendingRequestCount": "5"}


@pytest.mark.parametrize("state", ["EXPIRED", pytest.param("CANCELLED", marks=pytest.mark.again)])
@pytest.mark.parametrize("stats", [NOTHING_RAN, {}])
def test_what_a_batch_does_not_hand_back_is_sent_again(tmp_path: Path, state: str, stats: dict[str, str]) -> None:
    """Every row is answered; what the lost batch may have cost stays in the books until its own counts prove it."""
    lost = {"state": f"BATCH_STATE_{state}", "batchStats": stats}
    with gemini(tmp_path, GeminiServer(lambda number: lost if number == 0 else None)) as place:
        done = run(place, 12, "--lane", "batch", "--batch-size", "5")
        assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, 12, True), done.err
        unproven = round(done.json["unproven_usd"] * 1e9)
        assert spent(done) - unproven == 12 * BATCH_NANOS
        assert (unproven > 0) is (not stats)


def test_a_batch_that_always_expires_leaves_expired_rows(tmp_path: Path) -> None:
    """After three batches a row is final, and is told as what it is."""
    lost = {"state": "BATCH_STATE_EXPIRED", "batchStats": {"requestCount": "3", "pendingRequestCount": "3"}}
    with gemini(tmp_path, GeminiServer(lambda _: lost)) as place:
        done = run(place, 3, "--lane", "batch")
        assert (done.code, done.json["expired"], done.json["missing"]) == (3, 3, 0), done.err
        assert (spent(done), {row["error_kind"] for row in place.results("r.jsonl")}) == (0, {"expired"})
        assert "hands nothing back" in place.results("r.jsonl")[0]["error"]


def test_a_create_without_an_answer_is_found_again(tmp_path: Path) -> None:
    """The batch was made though nobody said so: it is known by its name, adopted, and nothing is sent twice."""
    server = GeminiServer(drop_create=0)
    with gemini(tmp_path, server) as place:
        done = run(place, 3, "--lane", "batch")
        assert (done.code, done.json["succeeded"], spent(done)) == (0, 3, 3 * BATCH_NANOS), done.err
        assert len(server.batches) == 1
        listed = place.run("batches", "gemini", "--json")
        assert listed.code == 0, listed.err
        assert "batches/b0" in listed.out


# -- against the simulated provider, which writes a bill of its own ---------------------------------


def rehearse(folder: Path, lane: str, *faults: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a job of twelve rows says of itself, and the provider's bill."""
    with in_thread(SimulatorConfig(speed=1000.0, faults=list(faults))) as url:
        place = Place(folder, url)
        place.env |= {"GEMINI_API_KEY": "k-simulated", "GEMINI_BASE_URL": url.removesuffix("/v1")}
        done = run(place, 12, "--lane", lane, "--batch-size", "5", "--max-output", "2000")
        assert (done.code, done.json["succeeded"], adds_up(done.json)) == (0, 12, True), done.err
        return done.json, place.invoice()


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_spend_is_the_invoice(tmp_path: Path, lane: str) -> None:
    """Every row succeeds, runs once, and costs what the provider's bill says."""
    found, bill = rehearse(tmp_path, lane)
    assert bill["providers"]["gemini"]["executed_rows"] == 12 == bill["executed_rows"]
    assert bill["executed_more_than_once"] == 0
    assert (round(found["spent_usd"] * 1e9), found["unproven_usd"]) == (bill["total_nanos"], 0)


@pytest.mark.parametrize(
    "faults",
    [
        [{"fault": "create_accepted_then_timeout", "times": 1, "delay_s": 0}],
        [{"fault": "create_accepted_then_500", "times": 1}],
        [{"fault": "shuffled_rows"}, {"fault": "unknown_lines"}, {"fault": "duplicate_lines", "differ": True}],
        [{"fault": "truncated_last_line", "times": 1}, {"fault": "short_body", "after": 1, "times": 1}],
        [{"fault": "status_unknown_word"}, {"fault": "poll_500", "times": 2}, {"fault": "absent_file_ids"}],
    ],
    ids=lambda faults: faults[0]["fault"],
)
def test_batches_come_through_trouble(tmp_path: Path, faults: list[dict[str, Any]]) -> None:
    """Lost answers are looked for, what is transient is done again, and not a cent is lost sight of."""
    found, bill = rehearse(tmp_path, "batch", *faults)
    assert round(found["spent_usd"] * 1e9) == bill["total_nanos"]


def test_a_batch_that_expires_is_sent_again(tmp_path: Path) -> None:
    """It hands nothing back, so that its rows go out anew; the books hold no less than the bill."""
    found, bill = rehearse(tmp_path, "batch", {"fault": "expire_at", "fraction": 0.5, "times": 1})
    spent_nanos, unproven = (round(found[name] * 1e9) for name in ("spent_usd", "unproven_usd"))
    assert spent_nanos >= bill["total_nanos"] >= spent_nanos - unproven
    assert len(bill["batches"]) == 4
