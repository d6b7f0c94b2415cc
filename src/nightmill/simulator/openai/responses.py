"""``/v1/responses``: what its requests say, and the shape of its answers."""

from __future__ import annotations

from typing import Any

import msgspec

from nightmill.simulator.formats import encode
from nightmill.simulator.media import Find
from nightmill.simulator.openai.media import Eye
from nightmill.simulator.openai.wire import ApiError

_OWN_TOOLS = ("function", "custom")
_PARTS = ("input_text", "input_image", "output_text", "refusal", "input_file", "summary_text", "reasoning_text")


class Part(msgspec.Struct):
    type: str = "input_text"
    text: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None


class Item(msgspec.Struct):
    role: str | None = None
    content: str | list[Part] | None = None
    type: str = "message"
    arguments: str | None = None  # of a call in the history
    output: str | None = None  # of a tool in the history


class Text(msgspec.Struct):
    format: dict[str, Any] | None = None


class Asked(msgspec.Struct):
    """A request, as far as it matters here."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    background: bool | None = None
    service_tier: str | None = None


decode_asked = msgspec.json.Decoder(Asked).decode


def texts_of(asked: Asked) -> list[str]:
    """Every text of the prompt, one an item."""
    found = [asked.instructions] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*found, asked.input]
    for item in asked.input:
        content = item.content if isinstance(item.content, list) else []
        whole = item.content if isinstance(item.content, str) else "".join(part.text or "" for part in content)
        found.append(whole + (item.arguments or "") + (item.output or ""))
    return found


def look(asked: Asked, find: Find) -> Eye:
    """What the media of a request are. Raises ApiError for one that is not taken."""
    eye = Eye(asked.model, find)
    for number, item in enumerate(asked.input if isinstance(asked.input, list) else ()):
        for place, part in enumerate(item.content if isinstance(item.content, list) else ()):
            where = f"input[{number}].content[{place}]"
            if part.type not in _PARTS:
                said = ", ".join(f"'{word}'" for word in _PARTS)
                text = f"Invalid value: '{part.type}'. Supported values are: {said}."
                raise ApiError(400, text, param=f"{where}.type", code="invalid_value")
            if part.type == "input_image":
                eye.image(part.image_url, part.file_id, part.detail, where)
            elif part.type == "input_file":
                eye.file(msgspec.structs.asdict(part), where)
    return eye


def check(asked: Asked) -> None:
    """Raises ApiError for what is not simulated."""
    if asked.stream or asked.background:
        raise ApiError(400, "Neither streams nor background responses are simulated.", code="unsupported_value")
    for tool in asked.tools or ():
        if tool.get("type") not in _OWN_TOOLS:
            message = f"The tool '{tool.get('type')}' is not simulated."
            raise ApiError(400, message, param="tools", code="unsupported_value")


def schema_of(asked: Asked) -> bytes:
    """The format that the answer must have, in the words of a chat's ``response_format``; empty when any will do."""
    form = asked.text.format if asked.text else None
    if not form or form.get("type") != "json_schema":
        return encode(form) if form else b""
    rest = {key: value for key, value in form.items() if key != "type"}
    return encode({"type": "json_schema", "json_schema": rest})


def body_of(
    asked: Asked, *, number: bytes, created: int, model: str, output: list[dict[str, Any]], is_cut: bool,
    usage: dict[str, Any] | None, tier: str,
) -> bytes:  # fmt: skip
    """A response object."""
    made: dict[str, Any] = {
        "id": f"resp_{number.hex()}", "object": "response", "created_at": created, "completed_at": created,
        "status": "incomplete" if is_cut else "completed", "background": False, "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens, "max_tool_calls": None,
        "metadata": asked.metadata or {}, "model": model, "output": output, "parallel_tool_calls": True,
        "previous_response_id": None, "prompt_cache_key": None, "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None, "service_tier": tier, "store": True,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": {"format": (asked.text.format if asked.text else None) or {"type": "text"}},
        "tool_choice": asked.tool_choice or "auto", "tools": asked.tools or [], "top_logprobs": 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p, "truncation": "disabled",
    }  # fmt: skip
    if usage is not None:
        made["usage"] = usage
    return encode(made)


def message(number: bytes, text: str | None, refusal: str | None, *, is_cut: bool) -> dict[str, Any]:
    """The output item with what the model says."""
    part: dict[str, Any] = {"type": "output_text", "text": text or "", "annotations": [], "logprobs": []}
    if refusal is not None:
        part = {"type": "refusal", "refusal": refusal}
    status = "incomplete" if is_cut else "completed"
    return {"id": f"msg_{number.hex()}", "type": "message", "status": status, "role": "assistant", "content": [part]}


def call(number: bytes, name: str, arguments: str) -> dict[str, Any]:
    """The output item of a tool that is called."""
    tag = number.hex()
    return {"id": f"fc_{tag}", "type": "function_call", "status": "completed", "call_id": f"call_{tag}",
            "name": name, "arguments": arguments}  # fmt: skip


def usage(
    input_tokens: int, output_tokens: int, reasoning: int, *, cached: int = 0, written: int = 0
) -> dict[str, Any]:
    """The usage block."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }
