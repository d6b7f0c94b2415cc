"""Anthropic from the command line: batches and live calls of its own shape, and every cent of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place, adds_up
from servers_kit import Call, Said, serving

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("D2")

MODEL = "anthropic/claude-haiku-4-5"
BATCHES = "/v1/messages/batches"
SCHEMA = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
LIST = {"input_tokens": 1, "cache_creation_input_tokens": "1.25", "cache_read_input_tokens": "0.1", "output_tokens": 5}


def usage(fresh: int, written: int, cached: int, output: int) -> dict[str, Any]:
    return {
        "input_tokens": fresh, "cache_creation_input_tokens": written, "cache_read_input_tokens": cached,
        "output_tokens": output,
    }  # fmt: skip


def message(text: str | None, *, stop: str = "end_turn", block: dict[str, Any] | None = None) -> dict[str, Any]:
    content = [{"type": "thinking", "thinking": "hm", "signature": "s"}, block or {"type": "text", "text": text}]
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001",
        "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage(11, 3, 2, 7),
    }  # fmt: skip


def said_to(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request: its last words, loud; to a schema by the tool that is forced on it."""
    text = body["messages"][-1]["content"]
    if body.get("tool_choice"):
        block = {"type": "tool_use", "id": "u", "name": body["tool_choice"]["name"], "input": {"mood": text}}
        return message(None, stop="tool_use", block=block)
    return message(text.upper(), stop="max_tokens" if "long" in text else "end_turn")


class Messages:
    """Messages, live and in batches; every batch has ended when it is asked for. What it answered is billed."""

    def __init__(self) -> None:
        self.billed: list[dict[str, int]] = []
        self.batches: dict[str, list[bytes]] = {}
        self.expired: list[str] = []  # each once
        self.loses = 0  # answers to creates that never arrive
        self.refusals: list[Said] = []  # of creates, before they are taken

    def __call__(self, call: Call) -> Said:
        if call.headers.get("x-api-key") != "sk-ant-own" or "anthropic-version" not in call.headers:
            return 401, self.error("authentication_error", "invalid x-api-key")
        parts = call.path.strip("/").split("/")
        match call.method, *parts[1:]:
            case "POST", "messages":
                return self.live(call.body)
            case "POST", "messages", "batches":
                return self.refusals.pop(0) if self.refusals else self.create(call.body)
            case "GET", "messages", "batches":
                data = [self.shown(batch_id, "ended") for batch_id in reversed(self.batches)]
                return {"data": data, "has_more": False, "first_id": None, "last_id": None}
            case "GET", "messages", "batches", batch_id:
                return self.shown(batch_id, "ended")
            case "GET", "messages", "batches", batch_id, "results":
                return b"".join(reversed(self.batches[batch_id]))
            case "GET", "models":
                return {"data": [{"id": "claude-haiku-4-5"}], "has_more": False}
        return 404, self.error("not_found_error", "Not found")

    def error(self, kind: str, text: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_1"}

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        made = said_to(body)
        self.billed.append(made["usage"])
        return made

    def live(self, body: dict[str, Any]) -> Said:
        if "bad" in body["messages"][-1]["content"]:
            return 400, self.error("invalid_request_error", "no such thing")
        return 200, self.answer(body), {"request-id": "req_1", "anthropic-ratelimit-requests-limit": "50"}

    def create(self, asked: dict[str, Any]) -> Said:
        batch_id = f"msgbatch_{len(self.batches)}"
        self.batches[batch_id] = [
            json.dumps({"custom_id": r["custom_id"], "result": self.result(r["params"])}).encode() + b"\n"
            for r in asked["requests"]
        ]
        if self.loses:
            self.loses -= 1
            return None
        return self.shown(batch_id, "in_progress")

    def result(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        if "bad" in text:
            return {"type": "errored", "error": self.error("invalid_request_error", "no such thing")}
        if "slow" in text and text not in self.expired:
            self.expired.append(text)
            return {"type": "expired"}
        return {"type": "succeeded", "message": self.answer(body)}

    def shown(self, batch_id: str, status: str) -> dict[str, Any]:
        kinds = [json.loads(line)["result"]["type"] for line in self.batches[batch_id]]
        counts = {kind: kinds.count(kind) for kind in ("succeeded", "errored", "canceled", "expired")}
        counts = (
            {**counts, "processing": 0} if status == "ended" else {**dict.fromkeys(counts, 0), "processing": len(kinds)}
        )
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {
            "id": batch_id, "type": "message_batch", "processing_status": status, "request_counts": counts,
            "created_at": stamp, "expires_at": stamp, "ended_at": stamp if status == "ended" else None,
            "archived_at": None, "cancel_initiated_at": None,
            "results_url": "http://127.0.0.1:1/nowhere" if status == "ended" else None,
        }  # fmt: skip

    def invoice_usd(self, share: str = "1") -> float:
        """What it bills, by the list prices in USD per million tokens."""
        per_million = sum(used[kind] * Fraction(str(rate)) for used in self.billed for kind, rate in LIST.items())
        return float(per_million * Fraction(share) / 1_000_000)


def place_for(folder: Path, url: str) -> Place:
    place = Place(folder)
    place.env |= {"ANTHROPIC_API_KEY": "sk-ant-own", "ANTHROPIC_BASE_URL": url}
    return place


def run(place: Place, *arguments: str) -> Done:
    return place.run("run", "in.txt", "--prompt", "{{ text }}", "--model", MODEL, "--out", "r.jsonl", "--json", "--yes",
                     "--max-output", "50", "--force", *arguments)  # fmt: skip


def test_a_batch_is_paid_at_half_price(tmp_path: Path) -> None:
    """Answers, a refused row, a cut one, and one whose window closed goes out again; spend is the invoice."""
    server = Messages()
    with serving(server) as loopback:
        place = place_for(tmp_path, loopback.url)
        (tmp_path / "in.txt").write_text("one\nbad\nlong story\nslow\ntwo\n")
        done = run(place, "--lane", "batch")
        assert done.code == 3, done.err
        assert adds_up(done.json)
        rows = place.results("r.jsonl")
        assert [row["response"] for row in rows] == ["ONE", None, "LONG STORY", "SLOW", "TWO"]
        assert [row["error_kind"] for row in rows] == [None, "bad_request", "truncated", None, None]
        assert rows[0]["finish_reason"] == "end_turn"
        assert [rows[0][name] for name in ("tokens_in", "tokens_out", "tokens_cached")] == [16, 7, 2]
        assert server.expired == ["slow"]
        assert done.json["spent_usd"] == pytest.approx(server.invoice_usd("1/2"), abs=1e-12)
        assert done.json["unproven_usd"] == 0
        assert all(call.path != "/v1/files" for call in loopback.calls)
        listed = place.run("batches", "anthropic", "--json").json["batches"]
        assert {each["batch_id"] for each in listed if each["ours"]} == set(server.batches)
        assert {each["shard_state"] for each in listed} == {"settled"}
        refused = place.run("adopt", "anthropic/msgbatch_99", "--json")
        assert refused.code == 2, refused.err
        assert "does not keep what was sent" in refused.err
        assert place.run("reconcile", "--json").code == 0


def test_live_calls_are_paid_at_the_list_price(tmp_path: Path) -> None:
    """The same rows one by one, at twice the price; a refused one is free."""
    server = Messages()
    with serving(server) as loopback:
        place = place_for(tmp_path, loopback.url)
        (tmp_path / "in.txt").write_text("one\nbad\ntwo\n")
        done = run(place, "--lane", "live", "--temperature", "0.5")
        assert done.code == 3, done.err
        assert [row["response"] for row in place.results("r.jsonl")] == ["ONE", None, "TWO"]
        assert done.json["spent_usd"] == pytest.approx(server.invoice_usd(), abs=1e-12)
        assert {call.body["temperature"] for call in loopback.to("/v1/messages")} == {0.5}


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_answers_to_a_schema_come_back_as_columns(tmp_path: Path, lane: str) -> None:
    """A tool is forced on the model, and nobody sees it in the results."""
    with serving(Messages()) as loopback:
        place = place_for(tmp_path, loopback.url)
        (tmp_path / "in.txt").write_text("calm\n")
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        done = run(place, "--lane", lane, "--schema", "schema.json")
        assert done.code == 0, done.err
        (row,) = place.results("r.jsonl")
        assert row["parsed"] == {"mood": "calm"}


def _no_money(server: Messages) -> None:
    said = server.error("billing_error", "Your credit balance is too low")
    server.refusals.append((402, said))


def _no_room(server: Messages) -> None:
    server.refusals.append((429, server.error("rate_limit_error", "too many in the queue"), {"Retry-After": "0.1"}))


@pytest.mark.parametrize(("refuse", "code"), [(_no_money, 1), (_no_room, 0)])
def test_a_create_that_is_refused_holds_no_money(tmp_path: Path, refuse: Callable[[Messages], None], code: int) -> None:
    """Without money the job pauses and says so; a full queue is waited for."""
    server = Messages()
    refuse(server)
    with serving(server) as loopback:
        place = place_for(tmp_path, loopback.url)
        (tmp_path / "in.txt").write_text("one\n")
        done = run(place, "--lane", "batch")
        assert done.code == code, done.err
        assert len(server.batches) == 1 - code
        if code:
            assert "credit balance" in done.err
        again = run(place, "--lane", "batch")
        assert again.code == 0, again.err
        assert again.json["spent_usd"] == pytest.approx(server.invoice_usd("1/2") if code else 0, abs=1e-12)


def test_a_batch_whose_answer_was_lost_is_found_by_the_names_in_its_results(tmp_path: Path) -> None:
    """Nothing is sent twice: it is looked for by time and size, proven by its results, and paid once."""
    server = Messages()
    server.loses = 1
    with serving(server) as loopback:
        place = place_for(tmp_path, loopback.url)
        (tmp_path / "in.txt").write_text("one\ntwo\n")
        done = run(place, "--lane", "batch", "--batch-size", "2")
        assert done.code == 0, done.err
        assert [row["response"] for row in place.results("r.jsonl")] == ["ONE", "TWO"]
        assert len(loopback.to(BATCHES)) > 1
        assert len(server.billed) == 2
        assert done.json["spent_usd"] == pytest.approx(server.invoice_usd("1/2"), abs=1e-12)


def test_doctor_tries_the_key_and_models_tells_the_price(tmp_path: Path) -> None:
    """The key is tried for nothing; a wrong one is said before anything is sent."""
    with serving(Messages()) as loopback:
        place = place_for(tmp_path, loopback.url)
        good = place.run("doctor", "--json").json["checks"]
        assert {"anthropic key": "ok"}.items() <= {check["name"]: check["state"] for check in good}.items()
        place.env["ANTHROPIC_API_KEY"] = "sk-ant-wrong"
        bad = {check["name"]: check["text"] for check in place.run("doctor", "--json").json["checks"]}
        assert "invalid x-api-key" in bad["anthropic key"]
        models = {each["model"]: each for each in place.run("models", "--json").json["models"]}
        assert models[MODEL]["lanes"] == ["batch", "live"]
        assert models[MODEL]["prices"]["batch"]["input_usd"] == 0.5


# -- against the simulator, which bills for itself ---------------------------------------------


@pytest.mark.parametrize(
    ("lane", "model", "bound"),
    [
        ("batch", MODEL, False),
        ("batch", "anthropic/claude-haiku-5-5", True),
        ("live", "anthropic/claude-haiku-5-5", False),
        ("live", MODEL, True),
    ],
)
def test_what_is_spent_is_what_the_simulator_bills(tmp_path: Path, lane: str, model: str, bound: bool) -> None:
    """To the nano, in each lane, for models that think and that do not, bound to a schema or not."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.2)) as url:
        place = place_for(tmp_path, url.removesuffix("/v1"))
        place.url = url
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        done = place.run(
            "run", place.rows(7), "--prompt", "Say {{ text }}", "--model", model, "--lane", lane, "--out", "r.jsonl",
            "--json", "--yes", *(["--schema", "schema.json"] if bound else []),
        )  # fmt: skip
        assert done.code == 0, done.err
        assert (done.json["succeeded"], done.json["unproven_usd"]) == (7, 0)
        assert round(done.json["spent_usd"] * 1e9) == place.invoice()["total_nanos"] > 0
        if bound:
            assert all(isinstance(row["parsed"]["mood"], str) for row in place.results("r.jsonl"))


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "create_accepted_then_500"},
        {"fault": "create_accepted_then_timeout", "delay_s": 0.01},
        {"fault": "expire_at", "fraction": 0.6, "times": 1},
        {"fault": "row_errors", "count": 2, "times": 1},
        {"fault": "missing_lines", "count": 2, "times": 1},
        {"fault": "duplicate_lines", "count": 2},
        {"fault": "unknown_lines", "count": 2},
        {"fault": "truncated_last_line", "times": 1},
        {"fault": "pretty_printed_bodies"},
        {"fault": "shuffled_rows"},
    ],
    ids=lambda fault: fault["fault"],
)
def test_troubles_of_a_batch_cost_no_row_and_no_cent(tmp_path: Path, fault: dict[str, Any]) -> None:
    """Each row is answered in the end, and what was paid is what was billed or held as unproven."""
    with in_thread(SimulatorConfig(speed=1000.0, answer_sigma=0.0, faults=[fault])) as url:
        place = place_for(tmp_path, url.removesuffix("/v1"))
        place.url = url
        done = place.run("run", place.rows(6), "--prompt", "Say {{ text }}", "--model", MODEL, "--lane", "batch",
                         "--out", "r.jsonl", "--json", "--yes", "--batch-size", "6")  # fmt: skip
        assert done.code == 0, done.err
        assert done.json["succeeded"] == 6
        proven = done.json["spent_usd"] - done.json["unproven_usd"]
        billed = place.invoice()["total_nanos"]
        assert round(proven * 1e9) <= billed <= round(done.json["spent_usd"] * 1e9)
