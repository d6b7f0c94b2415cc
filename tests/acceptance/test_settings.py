"""Settings as a user gives them: variables, a .env file, the defaults that go without saying, what is usable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Place
from servers_kit import BatchServer, Call, Said, chat, serving

SECRET = "sk-very-secret"


def answer(body: dict[str, Any]) -> dict[str, Any]:
    return chat(body["messages"][-1]["content"].upper(), model=body["model"])


@pytest.mark.req("B6", "A8")
def test_a_key_and_the_interval_in_dotenv_are_enough(tmp_path: Path) -> None:
    """With OPENAI_API_KEY in .env a batch goes out with temperature 0.3, 2,000 output tokens and a window of 24 hours,
    and BATCH_CHECK_INTERVAL says when it is looked at, whatever the settings file says."""
    openai = BatchServer("/v1", answer)
    with serving(openai) as server:
        place = Place(tmp_path)
        (tmp_path / "nightmill.toml").write_text("[timing]\npoll_s = 3600\npoll_max_s = 3600\n")
        (tmp_path / ".env").write_text(
            f"OPENAI_API_KEY={SECRET}\nOPENAI_BASE_URL={server.url}/v1\nBATCH_CHECK_INTERVAL=0.05\n"
        )
        done = place.run("run", place.rows(12), "--prompt", "{{ text }}", "--model", "openai/gpt-4o-mini", "--yes",
                         "--out", "r.jsonl", "--json")  # fmt: skip
        assert (done.code, done.json["succeeded"], done.json["lane"]) == (0, 12, "batch"), done.err
        assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {SECRET}"}
        (created,) = (call.body for call in server.to("/v1/batches") if call.method == "POST")
    assert (created["completion_window"], created["endpoint"]) == ("24h", "/v1/chat/completions")
    (upload,) = (call.raw for call in server.to("/v1/files") if call.method == "POST")
    bodies = [json.loads(line)["body"] for line in upload.splitlines() if line.startswith(b'{"custom_id"')]
    assert len(bodies) == 12
    assert {(body["temperature"], body["max_completion_tokens"]) for body in bodies} == {(0.3, 2000)}
    assert SECRET not in done.out + done.err


@pytest.mark.req("B6")
def test_defaults_are_left_out_where_a_model_does_not_take_them(tmp_path: Path) -> None:
    """A reasoning model gets no temperature and room to think, the quote says so, and one that was asked for is
    refused before anything is sent."""

    def openai(call: Call) -> Said:
        return answer(call.body)

    with serving(openai) as server:
        place = Place(tmp_path, server.url + "/v1")
        rows = ("run", place.rows(1), "--prompt", "{{ text }}", "--model", "openai/gpt-5-mini", "--yes")
        done = place.run(*rows)
        assert done.code == 0, done.err
        (call,) = server.calls
        assert "temperature" not in call.body
        assert call.body["max_completion_tokens"] == 8000
        assert "temperature 0.3 left out" in " ".join(done.err.split())
        refused = place.run(*rows, "--temperature", "0.3", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (2, "cannot_carry")
        assert len(server.calls) == 1


@pytest.mark.req("A8", "D2")
def test_what_is_usable_is_listed_without_a_word_of_any_key(tmp_path: Path) -> None:
    """`models` names each key's variable, whether it is set, lanes, price and date; servers of one's own, too."""
    toml = (
        '[providers.acme]\nbase_url = "https://api.acme.example/v1"\napi_key_env = "ACME_KEY"\nbatch = true\n'
        "price = { input = 1, output = 2, batch_input = 0.5, batch_output = 1 }\n"
        '[models."acme/large"]\nprice = { input = 3, output = 6 }\n'
    )
    place = Place(tmp_path, toml=toml)
    (tmp_path / ".env").write_text(f"ACME_KEY={SECRET}\n")
    listed = place.run("models", "--json")
    assert listed.code == 0, listed.err
    found = {each["provider"]: each for each in listed.json["models"]}
    acme = found["acme"]
    assert (acme["model"], acme["usable"], acme["lanes"]) == ("acme/large", True, ["batch", "live"])
    assert acme["key"] == {"needed": True, "variables": ["ACME_KEY"], "set": "ACME_KEY"}
    assert (acme["prices"]["live"]["input_usd"], acme["prices"]["live"]["output_usd"]) == (3, 6)
    assert found["openai"]["usable"] is False
    assert found["openai"]["lacks"] == "set OPENAI_API_KEY"
    assert found["openai"]["prices"]["batch"]["input_usd"] * 2 == found["openai"]["prices"]["live"]["input_usd"]
    assert found["ollama"]["prices"]["live"] | {"date": ""} == {
        "input_usd": 0, "output_usd": 0, "cached_input_usd": 0, "cache_write_usd": 0, "longer_requests": [],
        "known": True, "source": "runs here, free unless priced", "date": "",
    }  # fmt: skip
    shown = place.run("models")
    assert "ACME_KEY is set" in shown.out
    assert "USD per million tokens" in shown.err
    assert SECRET not in listed.out + shown.out + listed.err + shown.err
    place.rows(1)
    asked = place.run("run", "in.txt", "--prompt", "{{ text }}")
    assert asked.code == 2
    said = " ".join(asked.err.split())
    assert "acme: ACME_KEY is set" in said
    assert "nightmill models" in said


@pytest.mark.req("D2")
def test_any_server_can_be_added_with_its_ways(tmp_path: Path) -> None:
    """Its key goes into its own header beside others, the cap under its own name, the schema into the prompt, and its
    price counts for all its models; without a price it is refused, on this machine too."""

    def acme(call: Call) -> Said:
        return chat('{"n": 1}', model="big")

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    with serving(acme) as server:
        table = f'[providers.acme]\nbase_url = "{server.url}/api"\napi_key_env = "ACME_KEY"\nkey_header = "x-api-key"\n'
        table += 'headers = { "X-Team" = "night" }\nmax_tokens_field = "max_tokens"\nschema = "none"\n'
        table += "limits = { context = 1000 }\n"
        place = Place(tmp_path, toml=table)
        place.env["ACME_KEY"] = SECRET
        rows = ("run", place.rows(1), "--prompt", "{{ text }}", "--model", "acme/big", "--schema", "schema.json",
                "--json", "--yes")  # fmt: skip
        unpriced = place.run(*rows)
        assert (unpriced.code, unpriced.json["error"]["code"], server.calls) == (2, "unknown_price", [])
        Place(tmp_path, toml=table + "price = { input = 1, output = 2 }\n")
        done = place.run(*rows)
    assert done.code == 0, done.err
    assert done.json["spent_usd"] == pytest.approx((100 * 1 + 20 * 2) / 1e6)
    (call,) = server.calls
    assert (call.path, call.headers["x-api-key"], call.headers["x-team"]) == ("/api/chat/completions", SECRET, "night")
    assert (call.body["max_tokens"], call.body["model"], "response_format" in call.body) == (500, "big", False)
    assert json.dumps(schema) in call.body["messages"][0]["content"]
    assert "authorization" not in call.headers


@pytest.mark.req("D2")
def test_a_server_without_batches_is_asked_live(tmp_path: Path) -> None:
    """With `batch = false` what stands at OpenAI's address is asked live, however many rows there are."""

    def proxy(call: Call) -> Said:
        return answer(call.body)

    with serving(proxy) as server:
        place = Place(tmp_path, server.url + "/v1", toml="[providers.openai]\nbatch = false\n")
        place.env["OPENAI_ORG_ID"] = "org-1"
        rows = ("run", place.rows(12), "--prompt", "{{ text }}", "--model", "openai/gpt-4o-mini", "--yes", "--json")
        done = place.run(*rows)
        assert (done.code, done.json["lane"], done.json["succeeded"]) == (0, "live", 12), done.err
        assert {call.headers["openai-organization"] for call in server.calls} == {"org-1"}
        refused = place.run(*rows, "--lane", "batch", "--new")
    assert (refused.code, "no batch lane" in refused.err) == (2, True)
