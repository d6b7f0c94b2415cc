"""``/v1/batches``"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nightmill.simulator.batch import Batch, new_id
from nightmill.simulator.creating import Intent, create
from nightmill.simulator.files import THIRTY_DAYS_S
from nightmill.simulator.http import PROVIDER, json_reply, send_short
from nightmill.simulator.openai.http_common import json_object, refuse_without_quota, scope_of, whole_number
from nightmill.simulator.openai.shown import view, word_of
from nightmill.simulator.openai.validation import model_of
from nightmill.simulator.openai.wire import SERVED, ApiError, no_batch, page, server_error
from nightmill.simulator.provider import Provider

_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512


async def create_batch(request: web.Request) -> web.StreamResponse:
    """POST /v1/batches"""
    return await create(request, _read)


async def _read(request: web.Request, facts: dict[str, Any]) -> Intent:
    provider, scope = request[PROVIDER], scope_of(request)
    refuse_without_quota(request)
    asked = await json_object(request)
    facts.update(metadata=asked.get("metadata"), input_file_id=asked.get("input_file_id"))
    source = provider.files.find(str(asked.get("input_file_id")), scope)
    facts["filename"] = source.filename if source else None
    return Intent(
        make=lambda: _batch(asked, provider, scope),
        show=lambda batch: _view(provider, batch),
        model=lambda: model_of(source.path) if source else None,
    )


def _batch(asked: dict[str, Any], provider: Provider, scope: str) -> Batch:
    """The batch a create asks for, not yet started, or 400."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(asked.get(name), str) or not asked[name]:
            code = "missing_required_parameter" if asked.get(name) is None else "invalid_type"
            raise ApiError(400, f"Missing required parameter: '{name}'.", param=name, code=code)
    if asked["endpoint"] not in SERVED:
        message = f"Invalid value: '{asked['endpoint']}'. Supported values are: {' and '.join(map(repr, SERVED))}."
        raise ApiError(400, message, param="endpoint", code="invalid_value")
    if asked["completion_window"] != "24h":
        message = f"Invalid value: '{asked['completion_window']}'. Supported values are: '24h'."
        raise ApiError(400, message, param="completion_window", code="invalid_value")
    facts = {name: asked[name] for name in ("endpoint", "input_file_id")}
    return Batch(
        id=new_id("batch_"),
        scope=scope,
        created_at=provider.clock.unix(),
        created_elapsed=provider.clock.elapsed(),
        facts={**facts, "metadata": _metadata(asked.get("metadata"))},
        keep_s=_keep_s(asked.get("output_expires_after")),
    )


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ApiError(400, "Invalid type for 'metadata': expected an object.", param="metadata", code="invalid_type")
    if len(given) > _MOST_PAIRS:
        message = f"Invalid 'metadata': too many properties. Expected at most {_MOST_PAIRS}, but got {len(given)}."
        raise ApiError(400, message, param="metadata", code="object_above_max_properties")
    for key, value in given.items():
        if len(key) > _MOST_KEY:
            message = f"Invalid 'metadata': property name too long. Expected at most {_MOST_KEY} characters."
            raise ApiError(400, message, param="metadata", code="property_name_above_max_length")
        where = f"metadata.{key}"
        if not isinstance(value, str):
            message = f"Invalid type for '{where}': expected a string."
            raise ApiError(400, message, param=where, code="invalid_type")
        if len(value) > _MOST_VALUE:
            message = f"Invalid '{where}': string too long. Expected at most {_MOST_VALUE} characters."
            raise ApiError(400, message, param=where, code="string_above_max_length")
    return given


def _keep_s(given: Any) -> int:
    if given is None:
        return THIRTY_DAYS_S
    seconds = given.get("seconds") if isinstance(given, Mapping) else None
    if seconds is None or given.get("anchor") != "created_at":
        raise ApiError(400, "Invalid 'output_expires_after'.", param="output_expires_after", code="invalid_value")
    if not isinstance(seconds, int) or not 3600 <= seconds <= THIRTY_DAYS_S:
        message = f"'output_expires_after.seconds' must be between 3600 and {THIRTY_DAYS_S}."
        raise ApiError(400, message, param="output_expires_after.seconds", code="invalid_value")
    return seconds


def _view(provider: Provider, batch: Batch) -> dict[str, Any]:
    return view(batch, provider.clock.elapsed(), provider.config.batch_s)


async def list_batches(request: web.Request) -> web.StreamResponse:
    """GET /v1/batches, newest first."""
    provider = request[PROVIDER]
    if provider.faults.take("list_page_500", "list") is not None:
        raise server_error()
    limit = whole_number(request, "limit", 20, 100)
    batches = provider.batches.listed(scope_of(request))
    start = 0
    after = request.query.get("after")
    if after is not None:
        anchor = provider.batches.find(after, scope_of(request))
        if anchor is None or anchor not in batches:
            raise no_batch(after)
        start = batches.index(anchor) + 1
    shown = [_view(provider, batch) for batch in batches[start : start + limit]]
    answer = json_reply(page(shown, start + limit < len(batches)))
    if provider.faults.take("list_page_cut", "list") is not None:
        await send_short(request, answer)
    return answer


def _find(request: web.Request) -> Batch:
    batch_id = request.match_info["batch_id"]
    batch = request[PROVIDER].batches.find(batch_id, scope_of(request))
    if batch is None:
        raise no_batch(batch_id)
    return batch


async def get_batch(request: web.Request) -> web.StreamResponse:
    """GET /v1/batches/{id}"""
    provider, batch = request[PROVIDER], _find(request)
    if provider.faults.take("poll_500", "poll") is not None:
        raise server_error()
    if provider.faults.take("poll_404_once", "poll") is not None:
        raise no_batch(batch.id)
    return json_reply(_view(provider, batch))


async def cancel_batch(request: web.Request) -> web.StreamResponse:
    """POST /v1/batches/{id}/cancel"""
    provider, batch_id = request[PROVIDER], request.match_info["batch_id"]
    try:
        batch = _find(request)
        if not provider.batches.cancel(batch):
            raise ApiError(409, f"Cannot cancel a batch with status '{word_of(batch)}'.")
    except ApiError as refusal:
        provider.note("cancel", refusal.status, batch_id=batch_id)
        raise
    provider.note("cancel", 200, batch_id=batch_id)
    return json_reply(_view(provider, batch))
