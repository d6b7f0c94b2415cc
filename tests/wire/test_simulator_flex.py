"""The flex tier of the simulator, judged by OpenAI's client and document, and by the catalogue's own prices."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import genai_prices
import openai
import pytest
from simulator_kit import fast, judge

from nightmill.errors import CannotCarry
from nightmill.providers import FlexProvider
from nightmill.providers.openai import OpenAI
from nightmill.simulator import in_thread

FLEX, NO_FLEX = "gpt-5-mini", "gpt-4o-mini"
CHAT: Any = [{"role": "user", "content": "what is a mill?"}]


def invoiced(url: str) -> int:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/simulator/invoice") as answer:
        nanos: int = json.load(answer)["total_nanos"]
        return nanos


def priced(usage: Any, tier: str) -> int:
    """Nanos by the catalogue; chat and responses count in different words."""
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    sent, written = tokens if tokens[0] is not None else (usage.input_tokens, usage.output_tokens)
    price = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=sent, output_tokens=written), FLEX, provider_id="openai",
        price_context={"service_tier": tier},
    )  # fmt: skip
    return round(price.total_price * 10**9)


@pytest.mark.req("X13")
def test_the_official_client_is_answered_and_billed_in_the_tier_it_asks_for() -> None:
    """Chat and responses say the tier, in the document's shape, and cost what the catalogue says of it."""
    with in_thread(fast()) as url, openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        chat = client.chat.completions.create(model=FLEX, messages=CHAT, service_tier="flex")
        assert judge("CreateChatCompletionResponse", chat.model_dump(mode="json", exclude_unset=True)) == []
        response = client.responses.create(model=FLEX, input="what is a mill?", service_tier="flex")
        assert judge("Response", response.model_dump(mode="json", exclude_unset=True)) == []
        assert (chat.service_tier, response.service_tier) == ("flex", "flex")
        flex = priced(chat.usage, "flex") + priced(response.usage, "flex")
        assert invoiced(url) == flex
        plain = client.chat.completions.create(model=FLEX, messages=CHAT)
        assert plain.service_tier == "default"
        assert invoiced(url) == flex + priced(plain.usage, "default") > 2 * flex - 10


def test_a_model_without_the_tier_and_a_tier_without_room_are_refused_and_free() -> None:
    """400 for the one and 429 for the other, as the client knows them; where it downgrades a call it says so."""
    faults = ({"fault": "resource_unavailable", "times": 1}, {"fault": "flex_downgraded", "times": 2})
    with in_thread(fast(faults=faults)) as url, openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(model=FLEX, messages=CHAT, service_tier="flex")
        assert full.value.code == "resource_unavailable"
        with pytest.raises(openai.BadRequestError) as lacking:
            client.chat.completions.create(model=NO_FLEX, messages=CHAT, service_tier="flex")
        assert lacking.value.param == "service_tier"
        assert invoiced(url) == 0
        other = client.chat.completions.create(model=FLEX, messages=CHAT, service_tier="flex")
        assert other.service_tier == "default"
        assert invoiced(url) == priced(other.usage, "default")


def test_a_body_becomes_a_flex_call_that_the_document_takes() -> None:
    """The tier goes in, the rest stays; what asks for another tier, or for embeddings, is refused."""
    provider = OpenAI(FLEX, key="k")
    assert isinstance(provider, FlexProvider)
    body = provider.encode({"messages": CHAT, "max_completion_tokens": 9}, frozenset({"max_completion_tokens"})).body
    made = provider.in_flex("/v1/chat/completions", body)
    assert judge("CreateChatCompletionRequest", json.loads(made)) == []
    assert json.loads(made) == json.loads(body) | {"service_tier": "flex"}
    assert provider.in_flex("/v1/chat/completions", made) == made
    null = body[:-1] + b',"service_tier":null}'
    assert json.loads(provider.in_flex("/v1/responses", null)) == json.loads(made)
    said = json.dumps(
        json.loads(body) | {"messages": [{"role": "user", "content": 'the word "service_tier"'}]}
    ).encode()
    assert json.loads(provider.in_flex("/v1/chat/completions", said))["service_tier"] == "flex"
    for url, other in (("/v1/chat/completions", body[:-1] + b',"service_tier":"auto"}'), ("/v1/embeddings", body)):
        with pytest.raises(CannotCarry):
            provider.in_flex(url, other)
