"""Several keys of a provider: each is an account of its own, and where one is refused the next one goes on."""

from __future__ import annotations

import json
import signal
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place, adds_up

from nightmill.providers.resolve import rehearsal_environment
from nightmill.simulator import SimulatorConfig, in_thread

MODELS = ("openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash")
FAST: dict[str, Any] = {"speed": 1000.0, "batch_s": 20.0, "validating_s": 1.0, "finalizing_s": 1.0, "cancel_s": 1.0}
A, B = "sk-a@one", "sk-b@two"  # of two accounts that see nothing of each other


@contextmanager
def two_keys(folder: Path, model: str, *faults: dict[str, Any], more: str = "", **config: Any) -> Iterator[Place]:
    name = model.partition("/")[0]
    toml = f'[providers.{name}]\napi_key_env = ["KEY_A", "KEY_B"]\n{more}'
    with in_thread(SimulatorConfig(**{**FAST, **config}, faults=list(faults))) as url:
        place = Place(folder, url, toml=toml)
        addresses = {k: v for k, v in rehearsal_environment(url).items() if k.endswith("_BASE_URL")}
        place.env = {k: v for k, v in place.env.items() if not k.endswith("_API_KEY")} | addresses
        place.env |= {"KEY_A": A, "KEY_B": B}
        yield place


def run(place: Place, model: str, lane: str, *more: str) -> Any:
    place.rows(20)
    return place.run("run", "in.txt", "--model", model, "--lane", lane, "--yes", "--json", *more)


def paid_by_key(place: Place) -> dict[str, int]:
    return {key: bill["nanos"] for key, bill in place.invoice()["keys"].items()}


def check_books(place: Place, found: dict[str, Any], rows: int = 20) -> None:
    """Every row once, and what is booked is what both keys are billed."""
    bill = place.invoice()
    assert adds_up(found)
    assert (found["succeeded"], found["unproven_usd"]) == (rows, 0)
    assert (bill["executed_rows"], bill["executed_more_than_once"]) == (rows, 0)
    assert round(found["spent_usd"] * 1e9) == bill["total_nanos"] == sum(paid_by_key(place).values())


@pytest.mark.parametrize("fault", ["key_revoked", "quota_used_up"])
@pytest.mark.parametrize("model", MODELS)
def test_live_rows_go_on_with_the_next_key(tmp_path: Path, model: str, fault: str) -> None:
    """A row that met a refused key was not processed: it goes out with the next one, and counts no attempt."""
    with two_keys(tmp_path, model, {"fault": fault, "key": A, "on": "live", "after": 7}) as place:
        done = run(place, model, "live", "--concurrency", "3", "--out", "out.jsonl")
        assert done.code == 0, done.err
        check_books(place, done.json)
        paid = paid_by_key(place)
        assert paid[A] > 0 < paid[B]
        assert {row["attempt"] for row in place.results("out.jsonl")} == {1}


@pytest.mark.parametrize("fault", ["key_revoked", "quota_used_up"])
@pytest.mark.parametrize("model", MODELS)
def test_batches_go_on_with_the_next_key(tmp_path: Path, model: str, fault: str) -> None:
    """What was not sent goes out with the next key; batches that wait are polled and fetched with their own."""
    after = {"key_revoked": {"on": "create", "after": 0}, "quota_used_up": {"on": "create", "after": 2}}[fault]
    with two_keys(tmp_path, model, {"fault": fault, "key": A, **after}) as place:
        done = run(place, model, "batch", "--batch-size", "5")
        assert done.code == 0, done.err
        check_books(place, done.json)
        paid = paid_by_key(place)
        assert paid[B] > 0
        assert (paid.get(A, 0) > 0) is (fault == "quota_used_up")
        assert done.err.count("alert: KEY_A (*") == 1  # a person hears of it, once


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_waits_for_the_key_it_was_made_with(tmp_path: Path, model: str) -> None:
    """A key that dies while its batch waits: the rest is done with the next, nothing is sent again, resume collects."""
    fault = {"fault": "key_revoked", "key": A, "on": "poll"}
    dry = {"fault": "quota_used_up", "key": A, "on": "create", "after": 1}
    with two_keys(tmp_path, model, dry, fault) as place:
        done = run(place, model, "batch", "--batch-size", "5")
        assert done.code == 1, done.err
        found = done.json
        assert (found["status"], found["succeeded"], found["pending"]) == ("paused", 15, 5)
        assert "1 shard waits for KEY_A (*" in found["error"]["why"]
        assert A not in done.out + done.err
        place.ask("faults", "DELETE")
        done = place.run("resume", found["job_id"], "--json")
        assert done.code == 0, done.err
        check_books(place, done.json)


@pytest.mark.parametrize("lane", ["batch", "live"])
def test_no_key_is_left(tmp_path: Path, lane: str) -> None:
    """The job pauses and says which keys and why; a new key in a variable goes on with what is left."""
    model, on = MODELS[0], {"on": "live" if lane == "live" else "create"}
    faults = ({"fault": "quota_used_up", "key": A, **on, "after": 1}, {"fault": "key_revoked", "key": B, **on})
    with two_keys(tmp_path, model, *faults) as place:
        done = run(place, model, lane, *(["--batch-size", "5"] if lane == "batch" else ["--concurrency", "1"]))
        assert done.code == 1, done.err
        why = done.json["error"]["why"]
        assert done.json["status"] == "paused"
        assert all(part in why for part in ("no key of openai is left", "KEY_A (*", "KEY_B (*", "quota", "revoked"))
        place.env["KEY_B"] = "sk-c@three"
        again = run(place, model, lane, *(["--batch-size", "5"] if lane == "batch" else []))
        assert again.code == 0, again.err
        check_books(place, again.json)
        assert paid_by_key(place).keys() == {A, "sk-c@three"}


def test_a_key_that_is_gone_is_named_by_its_fingerprint(tmp_path: Path) -> None:
    """Its batch is not sent again with another: what is missing is said, and with the key back it is collected."""
    model = MODELS[0]
    with two_keys(tmp_path, model, {"fault": "quota_used_up", "key": A, "after": 2, "on": "create"}) as place:
        place.env["KEY_B"] = ""
        done = run(place, model, "batch", "--batch-size", "5", "--detach")
        assert done.code == 1, done.err
        shown = place.run("show", "@last", "--json").json
        place.env |= {"KEY_A": "", "KEY_B": B}
        done = place.run("resume", "@last", "--json")
        assert done.code == 1, done.err
        why = done.json["error"]["why"]
        assert "2 shards wait for a key that is not set any more (*" in why
        assert done.json["succeeded"] == 10
        assert len([event for event in place.log() if event["event"] == "create" and event["batch_id"]]) == 4
        place.env["KEY_A"] = A
        done = place.run("resume", "@last", "--json")
        assert done.code == 0, done.err
        check_books(place, done.json)
        assert shown["job_id"] == done.json["job_id"]


def test_keys_of_one_account_stand_in_for_each_other(tmp_path: Path) -> None:
    """With same_account a batch made with one key is collected with the other."""
    model = MODELS[0]
    faults = ({"fault": "key_revoked", "key": "sk-a@one", "on": "poll"},)
    with two_keys(tmp_path, model, *faults, more="same_account = true\n") as place:
        place.env["KEY_B"] = "sk-b@one"
        done = run(place, model, "batch", "--batch-size", "10")
        assert done.code == 0, done.err
        check_books(place, done.json)
        assert paid_by_key(place).keys() == {A}


def test_what_is_at_both_accounts_is_listed_and_compared(tmp_path: Path) -> None:
    """`batches`, `reconcile`, `show` and `doctor` name each account by its key's variable, and never show a key."""
    model = MODELS[0]
    with two_keys(tmp_path, model, {"fault": "quota_used_up", "key": A, "after": 1, "on": "create"}) as place:
        assert run(place, model, "batch", "--batch-size", "10").code == 0
        listed, compared = place.run("batches", "openai", "--json"), place.run("reconcile", "openai", "--json")
        assert sorted(batch["key"][:5] for batch in listed.json["batches"]) == ["KEY_A", "KEY_B"]
        assert (compared.code, compared.json["compared"], compared.json["difference_usd"]) == (0, 2, 0)
        shown = place.run("show", "@last", "--json").json
        keys = [shard["submissions"][-1]["key"][:5] for shard in shown["shards"]]
        assert sorted(keys) == ["KEY_A", "KEY_B"]
        table = place.run("show", "@last").out
        assert "KEY_A (*" in table
        checked = place.run("doctor", "--json")
        told = json.dumps(checked.json, ensure_ascii=False)
        assert "KEY_A (*" in told
        assert "KEY_B (*" in told
        assert "sk-a" not in told + table + listed.out + compared.out


def test_a_doubt_that_no_key_can_end_is_told_where_nothing_else_can_be_made(tmp_path: Path) -> None:
    """Where batches carry no name and the key of one in doubt is revoked, the job pauses and says so."""
    model = MODELS[1]
    lost = {"fault": "create_accepted_then_500", "times": 1}
    with two_keys(tmp_path, model, lost, {"fault": "key_revoked", "key": A, "on": "list", "after": 1}) as place:
        done = run(place, model, "batch", "--batch-size", "10")
        assert done.code == 1, done.err
        why = done.json["error"]["why"]
        assert "1 shard waits for KEY_A (*" in why
        assert "no other batch is made" in why
        place.ask("faults", "DELETE")
        done = place.run("resume", "@last", "--json")
        assert done.code == 0, done.err
        check_books(place, done.json)


def test_what_is_in_doubt_stays_with_its_key(tmp_path: Path) -> None:
    """A create that nobody answered, and its key revoked: it is never sent again, and the rest goes on."""
    model = MODELS[0]
    lost = {"fault": "create_accepted_then_500", "times": 1}
    dry = {"fault": "quota_used_up", "key": A, "on": "create", "after": 1}
    with two_keys(tmp_path, model, lost, dry, {"fault": "key_revoked", "key": A, "on": "list"}) as place:
        done = run(place, model, "batch", "--batch-size", "10")
        assert done.code == 1, done.err
        assert (done.json["succeeded"], done.json["pending"]) == (10, 10)
        assert "1 shard waits for KEY_A (*" in done.json["error"]["why"]
        place.ask("faults", "DELETE")
        done = place.run("resume", "@last", "--json")
        assert done.code == 0, done.err
        check_books(place, done.json)


def put_back(place: Place, model: str, keys: dict[str, str] | None) -> None:
    """A job's ledger is put back from a backup of before what was then sent with ``keys`` (None: nothing)."""
    place.rows(20)
    command = ("run", "in.txt", "--model", model, "--lane", "batch", "--yes", "--detach")
    ledger, backup, mine = place.home / "nightmill.db", place.folder / "backup.db", place.env
    place.env = mine | {"NIGHTMILL_KILL_AT": "ledger.publish_plan.committed"}
    assert place.run(*command).code == -9
    with closing(sqlite3.connect(ledger)) as now, closing(sqlite3.connect(backup)) as kept:
        now.backup(kept)
    if keys is not None:
        place.env = mine | keys
        assert place.run(*command).code == 0
    place.env = mine
    for more in ("-wal", "-shm"):
        ledger.with_name(ledger.name + more).unlink(missing_ok=True)
    backup.replace(ledger)


@pytest.mark.parametrize("revoked", [None, A])
@pytest.mark.parametrize("model", MODELS)
def test_after_a_restore_batches_are_found_with_whichever_key_sees_them(
    tmp_path: Path, model: str, revoked: str | None
) -> None:
    """Nobody knows any more with which key they were sent: each is asked, and a refused one keeps no other from it."""
    with two_keys(tmp_path, model) as place:
        put_back(place, model, {"KEY_A": B, "KEY_B": A})
        if revoked:
            place.ask("faults", "PUT", [{"fault": "key_revoked", "key": revoked}])
        done = place.run("resume", "@last", "--json")
        assert done.code == 0, done.err
        check_books(place, done.json)
        assert paid_by_key(place).keys() == {B}


def test_after_a_restore_no_key_is_blamed_for_another(tmp_path: Path) -> None:
    """What may have been sent with a revoked key waits, and is told; the other key is not called refused."""
    model = MODELS[0]
    with two_keys(tmp_path, model) as place:
        put_back(place, model, None)
        place.ask("faults", "PUT", [{"fault": "key_revoked", "key": B}])
        resumed = place.start("resume", "@last")
        resumed.until(lambda event: "it may have been sent with KEY_B (*" in json.dumps(event))
        resumed.signal(signal.SIGINT)
        assert resumed.end().code == 130
        shown = place.run("show", "@last").out
        assert "KEY_A" not in shown
        place.ask("faults", "DELETE")
        done = place.run("resume", "@last", "--json")
        assert done.code == 0, done.err
        check_books(place, done.json)


def test_after_a_restore_a_person_adopts_from_either_account(tmp_path: Path) -> None:
    """`resolve --adopt` finds the batch with whichever key sees it; while that is refused none is said to be gone."""
    model = MODELS[1]
    with two_keys(tmp_path, model) as place:
        put_back(place, model, {"KEY_A": B, "KEY_B": A})
        made = [event["batch_id"] for event in place.log() if event["event"] == "create"]
        tag = place.run("show", "@last", "--json").json["shards"][0]["shard"]
        place.ask("faults", "PUT", [{"fault": "key_revoked", "key": B}])
        hidden = place.run("resolve", tag, "--adopt", made[0])
        assert (hidden.code, "--resend" in hidden.err) == (1, False), hidden.err
        place.ask("faults", "DELETE")
        done = place.run("resolve", tag, "--adopt", made[0])
        assert done.code == 0, done.err


def test_files_are_tidied_away_at_each_account(tmp_path: Path) -> None:
    """With provider_files = "delete" nothing of a finished job is left at any of its accounts."""
    model, dry = MODELS[0], {"fault": "quota_used_up", "key": A, "after": 1, "on": "create"}
    with two_keys(tmp_path, model, dry, more='[retention]\nprovider_files = "delete"\n') as place:
        done = run(place, model, "batch", "--batch-size", "10")
        assert done.code == 0, done.err
        assert paid_by_key(place).keys() == {A, B}
        assert [files_at(place, key) for key in (A, B)] == [[], []]


def test_a_batch_made_elsewhere_is_adopted_with_the_key_that_sees_it(tmp_path: Path) -> None:
    """Each key is asked for it; its job stays with that account."""
    model = MODELS[0]
    with two_keys(tmp_path, model) as place:
        other = place.env | {"KEY_A": B, "KEY_B": "", "NIGHTMILL_HOME": str(tmp_path / "elsewhere")}
        mine, place.env = place.env, other
        assert run(place, model, "batch").code == 0
        batch_id = place.log()[-1].get("batch_id") or next(e["batch_id"] for e in place.log() if e.get("batch_id"))
        place.env = mine
        done = place.run("adopt", f"openai/{batch_id}", "--json")
        assert done.code == 0, done.err
        assert done.json["succeeded"] == 20
        shown = place.run("show", "@last", "--json").json
        assert shown["shards"][0]["submissions"][0]["key"].startswith("KEY_B (*")


def files_at(place: Place, key: str) -> list[str]:
    asked = urllib.request.Request(f"{place.url}/files", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked) as answer:
        return [file["id"] for file in json.load(answer)["data"]]
