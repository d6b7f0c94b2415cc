"""From a model reference to a provider, or to a message that helps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nightmill.errors import UnknownModel, UsageError
from nightmill.providers.resolve import available, offers, parse_model, resolve


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("openai/gpt-5-mini", ("openai", "gpt-5-mini")),
        ("local//models/a.gguf", ("local", "/models/a.gguf")),
        ("router/openai/gpt-5", ("router", "openai/gpt-5")),
        ("python:pkg.module.function", ("python", "pkg.module.function")),
    ],
)
def test_a_reference_has_a_provider_and_a_model(ref, parts):
    """The first slash parts them, so that models and paths may have slashes."""
    assert parse_model(ref) == parts


@pytest.mark.parametrize("ref", ["", "gpt-5-mini", "openai/", "/gpt", "python:"])
def test_what_is_no_reference_is_refused_with_an_example(ref):
    """The message shows what one looks like."""
    with pytest.raises(UnknownModel) as caught:
        parse_model(ref)
    assert "openai/gpt-5-mini" in caught.value.fix


def test_an_openai_model_is_resolved_with_a_key():
    """With a key in the environment the provider is there, and nothing was sent."""
    provider = resolve("openai/gpt-5-mini", env={"OPENAI_API_KEY": "sk-1", "OPENAI_ORG_ID": "org"})
    assert (provider.name, provider.model, provider.account.organization) == ("openai", "gpt-5-mini", "org")
    assert provider.account.base_url == "https://api.openai.com/v1"


@pytest.mark.parametrize("env", [{}, {"OPENAI_API_KEY": ""}, {"OPENAI_API_KEY": "  "}])
def test_a_missing_key_is_named(env):
    """The message says which variable, and that local models need none."""
    with pytest.raises(UsageError) as caught:
        resolve("openai/gpt-5-mini", env=env)
    assert caught.value.code == "no_key"
    assert "OPENAI_API_KEY" in caught.value.why
    assert "local/" in caught.value.fix


def test_the_settings_file_names_the_key_and_the_address():
    """`api_key_env` is where the key is, and `base_url` counts until the environment gives one."""
    tables = {"openai": {"api_key_env": "TEAM_KEY", "base_url": "http://127.0.0.1:9/v1"}}
    env = {"OPENAI_API_KEY": "sk-own", "TEAM_KEY": "sk-team"}
    made = resolve("openai/gpt-5-mini", env=env, tables=tables).account
    plain = resolve("openai/gpt-5-mini", env={"OPENAI_API_KEY": "sk-team"}).account
    assert made.base_url == "http://127.0.0.1:9/v1"
    assert made.key_fingerprint == plain.key_fingerprint
    told = {**env, "OPENAI_BASE_URL": "http://127.0.0.1:8/v1"}
    assert resolve("openai/gpt-5-mini", env=told, tables=tables).account.base_url == "http://127.0.0.1:8/v1"
    offer = offers(env, tables)[0]
    assert (offer.name, offer.key, offer.base_url) == ("openai", "TEAM_KEY", "http://127.0.0.1:9/v1")


def test_a_missing_key_is_named_as_the_settings_file_names_it():
    """With `api_key_env` no other variable is taken, or asked for."""
    tables = {"openai": {"api_key_env": "TEAM_KEY"}}
    with pytest.raises(UsageError) as caught:
        resolve("openai/gpt-5-mini", env={"OPENAI_API_KEY": "sk-own"}, tables=tables)
    assert caught.value.code == "no_key"
    assert "TEAM_KEY" in caught.value.why
    assert any("set TEAM_KEY" in line for line in available({"OPENAI_API_KEY": "sk-own"}, tables))


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"local": {"base_url": "http://127.0.0.1:9/v1"}}, "base_url"),
        ({"python": {"api_key_env": "KEY"}}, "api_key_env"),
    ],
)
def test_a_provider_table_without_effect_is_refused(tables, said):
    """Nobody believes that a server is used which is not: the table is refused, with the remedy."""
    with pytest.raises(UsageError) as caught:
        resolve("openai/gpt-5-mini", env={"OPENAI_API_KEY": "sk-1"}, tables=tables)
    assert said in caught.value.what
    assert caught.value.why
    assert "remove" in caught.value.fix


def test_a_key_that_cannot_be_sent_is_refused_without_being_shown():
    """A key with a line break in it is found before it breaks a header."""
    with pytest.raises(UsageError) as caught:
        resolve("openai/gpt-5-mini", env={"OPENAI_API_KEY": "sk-se\ncret"})
    assert "cret" not in f"{caught.value} {caught.value.why} {caught.value.fix}"


def test_an_unknown_provider_is_told_what_there_is():
    """What is usable is named, keys by their variable's name only."""
    with pytest.raises(UnknownModel) as caught:
        resolve("nobody/x", env={"OPENAI_API_KEY": "sk-secret"})
    assert "OPENAI_API_KEY is set" in caught.value.why
    assert "sk-secret" not in caught.value.why
    assert "local" in caught.value.why


def test_a_password_in_an_address_is_not_shown():
    """What is listed has the address without the login that is in it."""
    tables = {"gate": {"base_url": "http://bob:hunter2@127.0.0.1:9/v1"}}
    (found,) = [offer for offer in offers({}, tables) if offer.name == "gate"]
    assert found.base_url == "http://127.0.0.1:9/v1"
    assert "hunter2" not in "".join(available({}, tables))


def test_what_is_available_is_said_in_lines():
    """Each way to get answers has one line, also those that lack something."""
    lines = available({})
    assert "openai (set OPENAI_API_KEY)" in lines[-1]
    assert any(line.startswith("local: ") for line in lines)
    assert any(line.startswith("python: ") for line in lines)


def test_resolving_loads_nothing_heavy():
    """Planning with a provider does not pay for an HTTP client, a model or a validator."""
    code = (
        "import sys; from nightmill.providers.resolve import available, resolve;"
        "resolve('openai/gpt-5-mini', env={'OPENAI_API_KEY': 'k'}); available({});"
        "print([m for m in ('aiohttp', 'xllamacpp', 'pydantic', 'pyarrow', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("base_url", "nearby"),
    [
        ("", False),  # the provider's own
        ("https://8.8.8.8/v1", False),
        ("https://models.example.com/v1", False),
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://gpu-box:8000/v1", True),
        ("http://models.default.svc.cluster.local/v1", True),
        ("http://[no-address/v1", False),
    ],
)
def test_a_server_of_the_users_own_is_known_by_its_address(base_url: str, nearby: bool) -> None:
    """Where no quota says how many calls are too many, it has to be found out; elsewhere the quota says it."""
    env = {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": base_url}
    assert resolve("openai/gpt-5-mini", env=env).self_hosted is nearby
