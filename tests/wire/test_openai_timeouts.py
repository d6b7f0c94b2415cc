"""A server that hears and never answers: each call gives up after the wait that the settings name for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from openai_loopback import serving

from nightmill.config import Timing
from nightmill.errors import NeverSent, Uncertain
from nightmill.providers.openai import OpenAI
from nightmill.providers.resolve import resolve

CALLS: dict[str, tuple[str, Callable[[OpenAI, Path], Awaitable[Any]]]] = {
    "create": ("create_timeout_s", lambda p, f: p.create("file-1", f, url="/v1/chat/completions", submission="t.1")),
    "upload": ("upload_timeout_s", lambda p, file: p.upload(file, name="t.1")),
    "fetch": ("upload_timeout_s", lambda p, file: p.fetch("file-1", file.with_name("result"))),
    "poll": ("request_timeout_s", lambda p, _: p.poll("batch_1")),
    "cancel": ("request_timeout_s", lambda p, _: p.cancel("batch_1")),
    "find": ("request_timeout_s", lambda p, _: p.find(frozenset({"t.1"}), frozenset(), since=0.0)),
    "find_files": ("request_timeout_s", lambda p, _: p.find_files("t.1")),
    "delete_file": ("request_timeout_s", lambda p, _: p.delete_file("file-1")),
}


async def hear_only(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass


@pytest.mark.parametrize("name", CALLS)
def test_each_call_takes_as_long_as_its_setting_says(tmp_path: Path, name: str) -> None:
    """The wait that [timing] names for a call is the one it keeps to, and the message tells it."""
    setting, use = CALLS[name]
    waits = {"create_timeout_s": 30.0, "upload_timeout_s": 30.0, "request_timeout_s": 30.0, setting: 0.07}
    (tmp_path / "shard").write_bytes(b"{}\n")

    async def run() -> None:
        async with serving(hear_only) as base, asyncio.timeout(10):
            env = {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": base + "/v1"}
            provider = resolve("openai/gpt-4o-mini", env=env, timing=Timing(**waits))
            assert isinstance(provider, OpenAI)
            try:
                await use(provider, tmp_path / "shard")
            finally:
                await provider.close()

    with pytest.raises((Uncertain, NeverSent)) as caught:
        asyncio.run(run())
    assert "the limit was 0.07 s" in caught.value.why


def test_a_mill_gives_its_own_waits_to_its_provider(tmp_path: Path) -> None:
    """What nightmill.toml says under [timing] reaches the provider of a job."""
    from nightmill.config import load_settings
    from nightmill.mill import Mill

    (tmp_path / "nightmill.toml").write_text("[timing]\nlease_s = 2000\nrequest_timeout_s = 1234\n")
    mill = Mill(load_settings(tmp_path, {"NIGHTMILL_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "sk-1"}))
    try:
        provider = mill.home.provider("openai/gpt-4o-mini")
    finally:
        mill.close()
    assert isinstance(provider, OpenAI)
    assert provider._api.timing.request_timeout_s == 1234
