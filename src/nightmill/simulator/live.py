"""Answering one live request, with everything that can go wrong before, while and after it runs."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from nightmill.simulator.formats import Format, Operation, Reply, Trouble, Why
from nightmill.simulator.http import FORMAT, KEY, PROVIDER, hang_up, hold_s, json_reply
from nightmill.simulator.provider import Provider


async def run(request: web.Request, answer: Callable[[frozenset[str]], Reply]) -> Reply:
    """The reply to a live request, billed, after the time it takes.

    Args:
        answer: runs the request with these faults of answers.

    Raises:
        Refusal: what the caller is told instead.
        Dropped: the connection was closed.
    """
    provider, wire = request[PROVIDER], request[FORMAT]
    await _faults_before(request, provider, wire)
    _admit(provider, wire)
    held = provider.faults.take("live_timeout", Operation.LIVE)
    reply = answer(provider.faults.take_for_answer())
    if reply.status == 200:
        provider.invoice.book_live(provider.catalogue.nanos(reply, batch=False), reply.digest, request[KEY])
        provider.tokens.spend(reply.input_tokens + reply.output_tokens)
    if held is not None:
        provider.note("live", None, dropped=True, digest=reply.digest.hex())
        await hang_up(request, hold_s(held))
    latency_s, waits_s = provider.config.latency_s, provider.config.flex_latency_s
    if reply.tier == "flex" and waits_s is not None:
        latency_s = waits_s
    if latency_s > 0:
        await provider.clock.sleep(latency_s)
    return reply


def show(request: web.Request, reply: Reply) -> web.Response:
    """A reply as it is sent, with what the provider says about the quota."""
    answer = json_reply(reply.body, reply.status)
    answer.headers.update(request[FORMAT].rate_headers(request[PROVIDER]))
    return answer


async def _faults_before(request: web.Request, provider: Provider, wire: Format) -> None:
    """What goes wrong before anything is run or billed."""
    faults = provider.faults
    if faults.take("live_close_before", Operation.LIVE) is not None:
        await hang_up(request)
    told = faults.take("live_429", Operation.LIVE)
    if told is not None:
        headers = {"retry-after": str(told["retry_after"])} if "retry_after" in told else {}
        if "retry_after_ms" in told:
            headers["retry-after-ms"] = str(told["retry_after_ms"])
        facts = {"retry_after_s": float(told["retry_after"])} if "retry_after" in told else {}
        raise wire.refusal(Trouble(Why.RATE, facts=facts, headers=wire.rate_headers(provider) | headers))
    told = faults.take("live_500", Operation.LIVE)
    if told is not None:
        headers = wire.rate_headers(provider)
        raise wire.refusal(Trouble(Why.BROKEN, int(told.get("status", 500)), headers=headers))


def _admit(provider: Provider, wire: Format) -> None:
    """Spend one request of the quota, or answer 429."""
    wait_s = max(provider.requests.wait_s(1), provider.tokens.wait_s(1))
    if wait_s > 0:
        real_s = provider.clock.real_s(wait_s)
        told = {"retry-after": str(max(1, round(real_s))), "retry-after-ms": str(max(1, round(real_s * 1000)))}
        headers = wire.rate_headers(provider) | told
        raise wire.refusal(Trouble(Why.RATE, facts={"retry_after_s": real_s}, headers=headers))
    provider.requests.spend(1)
