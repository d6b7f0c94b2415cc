"""``/v1/batches``"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nightmill.simulator.batches import Batch, view
from nightmill.simulator.files import THIRTY_DAYS_S
from nightmill.simulator.http_common import (
    PROVIDER,
    Dropped,
    hang_up,
    hold_s,
    html_page,
    json_object,
    json_reply,
    refuse_without_quota,
    scope_of,
    send_short,
    whole_number,
)
from nightmill.simulator.provider import Provider
from nightmill.simulator.validation import model_of
from nightmill.simulator.wire import SERVED, ApiError, enqueued_limit_text, page, server_error

_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512


async def create_batch(request: web.Request) -> web.StreamResponse:
    """POST /v1/batches; whatever happens goes into the log."""
    provider = request.app[PROVIDER]
    facts: dict[str, Any] = {"batch_id": None}
    try:
        answer = await _create(request, provider, facts)
    except ApiError as refusal:
        provider.note("create", refusal.status, **facts)
        raise
    except Dropped:
        raise  # logged when it was decided: the caller may be gone before this runs
    provider.note("create", answer.status, **facts)
    return answer


async def _create(request: web.Request, provider: Provider, facts: dict[str, Any]) -> web.StreamResponse:
    faults = provider.faults
    refuse_without_quota(request)
    asked = await json_object(request)
    facts.update(metadata=asked.get("metadata"), input_file_id=asked.get("input_file_id"))
    source = provider.files.find(str(asked.get("input_file_id")), scope_of(request))
    facts["filename"] = source.filename if source else None
    if faults.take("create_dropped_before", "create") is not None:
        provider.note("create", None, dropped=True, **facts)
        await hang_up(request)
    if faults.take("create_500_before", "create") is not None:
        raise server_error()
    told = faults.take("enqueued_limit_now", "create")
    if told is not None:
        model = model_of(source.path) if source else None
        message = enqueued_limit_text(model or "this model", int(told.get("limit", 2_000_000)))
        raise ApiError(429, message, code="token_limit_exceeded")
    batch = _batch(asked, provider, scope_of(request))
    page_fault = faults.take("non_json_bodies", "create")
    if page_fault is not None and not page_fault.get("commit"):
        return html_page(page_fault)
    batch.faults = faults.take_for_batch()
    provider.batches.start(batch)
    facts["batch_id"] = batch.id
    if page_fault is not None:
        return html_page(page_fault)
    held = faults.take("create_accepted_then_timeout", "create")
    if held is not None:
        provider.note("create", None, dropped=True, **facts)
        await hang_up(request, hold_s(held))
    if faults.take("create_repeated", "create") is not None:
        again = _batch(asked, provider, scope_of(request))
        provider.batches.start(again)
        provider.note("create", 500, **{**facts, "batch_id": again.id})
        raise server_error()
    if faults.take("create_accepted_then_500", "create") is not None:
        raise server_error()
    return json_reply(_view(provider, batch))


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
    return Batch(
        endpoint=asked["endpoint"],
        input_file_id=asked["input_file_id"],
        metadata=_metadata(asked.get("metadata")),
        scope=scope,
        created_at=provider.clock.stamp(),
        created_elapsed=provider.clock.elapsed(),
        faults={},
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
    provider = request.app[PROVIDER]
    if provider.faults.take("list_page_500", "list") is not None:
        raise server_error()
    limit = whole_number(request, "limit", 20, 100)
    batches = provider.batches.listed(scope_of(request))
    start = 0
    after = request.query.get("after")
    if after is not None:
        anchor = provider.batches.get(after, scope_of(request))
        if anchor not in batches:
            raise ApiError(404, f"No batch found with id '{after}'.")
        start = batches.index(anchor) + 1
    shown = [_view(provider, batch) for batch in batches[start : start + limit]]
    answer = json_reply(page(shown, start + limit < len(batches)))
    if provider.faults.take("list_page_cut", "list") is not None:
        await send_short(request, answer)
    return answer


async def get_batch(request: web.Request) -> web.StreamResponse:
    """GET /v1/batches/{id}"""
    provider = request.app[PROVIDER]
    batch = provider.batches.get(request.match_info["batch_id"], scope_of(request))
    if provider.faults.take("poll_500", "poll") is not None:
        raise server_error()
    if provider.faults.take("poll_404_once", "poll") is not None:
        raise ApiError(404, f"No batch found with id '{batch.id}'.")
    return json_reply(_view(provider, batch))


async def cancel_batch(request: web.Request) -> web.StreamResponse:
    """POST /v1/batches/{id}/cancel"""
    provider, batch_id = request.app[PROVIDER], request.match_info["batch_id"]
    try:
        batch = provider.batches.get(batch_id, scope_of(request))
        provider.batches.cancel(batch)
    except ApiError as refusal:
        provider.note("cancel", refusal.status, batch_id=batch_id)
        raise
    provider.note("cancel", 200, batch_id=batch_id)
    return json_reply(_view(provider, batch))
