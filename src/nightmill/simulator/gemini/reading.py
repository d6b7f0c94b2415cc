"""Requests as they come: Google's JSON read as protobuf reads it, where a field has two spellings.

Every field may be camelCase or snake_case, a 64-bit integer may be a string, and a null is an absent field.
A name that no message has is refused, as Google does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec

from nightmill.simulator.gemini.errors import invalid

# What lies under these is the caller's own data (or a schema, whose property names are), never field names.
_OPAQUE = frozenset(
    ("responseSchema", "responseJsonSchema", "parameters", "parametersJsonSchema", "args", "response")
) | frozenset(("metadata", "partMetadata", "userMetadata", "labels"))
_MOST_CANDIDATES = 8
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}").fullmatch
_Read = TypeVar("_Read", bound="_Message")


class _Message(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A protobuf message: unknown names are refused."""


class Part(_Message):
    """A piece of content; exactly one kind of data is set."""

    text: str | None = None
    inline_data: dict[str, Any] | None = None
    file_data: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None
    function_response: dict[str, Any] | None = None
    executable_code: dict[str, Any] | None = None
    code_execution_result: dict[str, Any] | None = None
    tool_call: dict[str, Any] | None = None
    tool_response: dict[str, Any] | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    video_metadata: dict[str, Any] | None = None
    media_resolution: dict[str, Any] | None = None
    part_metadata: dict[str, Any] | None = None


class Content(_Message):
    """One turn of a conversation."""

    parts: list[Part] = []
    role: str | None = None


class Thinking(_Message):
    """How much a model may think."""

    include_thoughts: bool | None = None
    thinking_budget: int | None = None  # tokens; 0 = not at all, -1 = as it likes
    thinking_level: str | None = None


class Generation(_Message):
    """generationConfig"""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    candidate_count: int | None = None
    stop_sequences: list[str] | None = None
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: Any = None
    response_modalities: list[str] | None = None
    response_format: Any = None
    thinking_config: Thinking | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_logprobs: bool | None = None
    logprobs: int | None = None
    media_resolution: str | None = None
    speech_config: dict[str, Any] | None = None
    image_config: dict[str, Any] | None = None
    enable_enhanced_civic_answers: bool | None = None
    audio_transcription_config: dict[str, Any] | None = None
    translation_config: dict[str, Any] | None = None
    continuation_token: str | None = None


class Generate(_Message):
    """GenerateContentRequest"""

    contents: list[Content] = []
    model: str | None = None
    system_instruction: Content | None = None
    generation_config: Generation | None = None
    tools: list[dict[str, Any]] | None = None
    tool_config: dict[str, Any] | None = None
    safety_settings: list[dict[str, Any]] | None = None
    cached_content: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    labels: dict[str, str] | None = None


class Embed(_Message):
    """EmbedContentRequest"""

    content: Content | None = None
    model: str | None = None
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None


class EmbedMany(_Message):
    """BatchEmbedContentsRequest"""

    requests: list[Embed] = []


class Count(_Message):
    """CountTokensRequest: contents, or a whole request"""

    contents: list[Content] = []
    generate_content_request: Generate | None = None
    model: str | None = None


class Line(_Message):
    """One line of an input file."""

    key: str | None = None
    request: msgspec.Raw = msgspec.Raw()
    metadata: dict[str, Any] | None = None


class InlineRequest(_Message):
    """One request inside a create."""

    request: msgspec.Raw = msgspec.Raw()
    metadata: dict[str, Any] | None = None


class InlineRequests(_Message):
    """requests.requests"""

    requests: list[InlineRequest] = []


class InputConfig(_Message):
    """Where a batch's requests are: a file, or here."""

    file_name: str | None = None
    requests: InlineRequests | None = None


class Wanted(_Message):
    """The batch a create describes."""

    display_name: str | None = None
    input_config: InputConfig | None = None
    priority: int | None = None
    webhook_config: dict[str, Any] | None = None
    model: str | None = None
    name: str | None = None


class Create(_Message):
    """BatchGenerateContentRequest, and AsyncBatchEmbedContentRequest"""

    batch: Wanted | None = None


class FileWanted(_Message):
    """What the start of an upload says of the file to come."""

    name: str | None = None
    display_name: str | None = None
    mime_type: str | None = None
    size_bytes: int | None = None


class StartUpload(_Message):
    """CreateFileRequest"""

    file: FileWanted | None = None


# Made here: threads that first meet a type together would find it half known to msgspec, and that ends the process.
_DECODE = {message: msgspec.json.Decoder(message).decode for message in _Message.__subclasses__()}


def read(raw: bytes, message: type[_Read], where: str = "") -> _Read:
    """``raw`` as a message.

    Args:
        where: a path to put before the field that is wrong, such as ``requests[3].request``.

    Raises:
        GeminiError: 400 for what is no JSON or no such message.
    """
    try:
        return cast(_Read, _DECODE[message](raw))
    except msgspec.ValidationError:
        pass  # perhaps only spelt in the other way
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        raise invalid(f"Invalid JSON payload received. {broken}") from None
    try:
        return msgspec.convert(_camel(msgspec.json.decode(raw)), message, strict=False)
    except msgspec.ValidationError as wrong:
        raise invalid(_told(str(wrong), where)) from None


def _told(message: str, where: str) -> str:
    """msgspec's ``... - at `$.a.b``` in Google's words."""
    what, _, path = message.partition(" - at ")
    path = ".".join(part for part in (where, path.strip("`").removeprefix("$").lstrip(".")) if part)
    if what.startswith("Object contains unknown field"):
        name = what.split("`")[1]
        at = f" at '{path}'" if path else ""
        return f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
    return f"Invalid value at '{path}': {what}"


def _camel(node: Any) -> Any:
    """Field names in camelCase, and no nulls; what is opaque stays as it is."""
    if isinstance(node, list):
        return [_camel(item) for item in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for name, value in node.items():
        if value is None:
            continue
        spelt = _spelt(name)
        made[spelt] = value if spelt in _OPAQUE else _raw(value) if spelt == "request" else _camel(value)
    return made


def _raw(value: Any) -> Any:
    """A request inside another message is read later, by itself."""
    return msgspec.Raw(msgspec.json.encode(value)) if isinstance(value, dict) else value


@lru_cache(maxsize=1024)
def _spelt(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest) if first else name


def check(asked: Generate, where: str = "") -> None:
    """Refuse what no model can answer.

    Raises:
        GeminiError: 400, saying what is wrong.
    """
    name = f"{where}." if where else ""
    if not asked.contents:
        raise invalid(f"* GenerateContentRequest.{name}contents: contents is not specified")
    for number, content in enumerate(asked.contents):
        _check_content(content, f"{name}contents[{number}]")
    if asked.system_instruction is not None and not asked.system_instruction.parts:
        raise invalid(f"* GenerateContentRequest.{name}system_instruction.parts: must not be empty")
    if asked.cached_content is not None:
        raise invalid(f"CachedContent not found (or permission denied): {asked.cached_content}")
    if asked.generation_config is not None:
        _check_config(asked.generation_config, f"{name}generation_config")


def _check_content(content: Content, where: str) -> None:
    if content.role not in (None, "user", "model", "function"):
        raise invalid("Please use a valid role: user, model.")
    if not content.parts:
        raise invalid(f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.")
    for number, part in enumerate(content.parts):
        data = (part.text, part.inline_data, part.file_data, part.function_call, part.function_response)
        others = (part.executable_code, part.code_execution_result, part.tool_call, part.tool_response)
        if sum(item is not None for item in data + others) != 1:
            raise invalid(
                f"* GenerateContentRequest.{where}.parts[{number}].data: required oneof field 'data' must have"
                " one initialized field"
            )
        if part.inline_data is not None:
            _check_bytes(either(part.inline_data, "data"), f"{where}.parts[{number}].inline_data.data")


def _check_bytes(data: Any, where: str) -> None:
    """Refuse what is no base64, as reading the message would."""
    if not isinstance(data, str) or _BASE64(data) is None:
        raise invalid(f"Invalid value at '{where}' (TYPE_BYTES), Base64 decoding failed for \"{str(data)[:40]}\"")


def _check_config(config: Generation, where: str) -> None:
    def within(field: str, value: float | None, least: float, most: float) -> None:
        if value is not None and not least <= value <= most:
            raise invalid(f"* GenerateContentRequest.{where}.{field}: {field} must be in the range [{least}, {most}].")

    within("temperature", config.temperature, 0, 2)
    within("top_p", config.top_p, 0, 1)
    within("candidate_count", config.candidate_count, 1, _MOST_CANDIDATES)
    if config.max_output_tokens is not None and config.max_output_tokens < 1:
        raise invalid(f"* GenerateContentRequest.{where}.max_output_tokens: max_output_tokens must be positive.")
    if config.response_schema is not None and config.response_json_schema is not None:
        raise invalid("response_schema and response_json_schema cannot be set at the same time.")
    has_schema = config.response_schema is not None or config.response_json_schema is not None
    if has_schema and config.response_mime_type in (None, "text/plain"):
        raise invalid("A response schema needs response_mime_type application/json (or text/x.enum).")
    if config.response_mime_type not in (None, "text/plain", "application/json", "text/x.enum"):
        raise invalid(
            f"* GenerateContentRequest.{where}.response_mime_type: allowed mimetypes are `text/plain`,"
            " `application/json` and `text/x.enum`."
        )


def texts_of(asked: Generate) -> list[list[str]]:
    """The prompt as texts, one list for each turn; media are none."""
    turns = [] if asked.system_instruction is None else [asked.system_instruction]
    return [[_text(part) for part in turn.parts] for turn in (*turns, *asked.contents)]


def _text(part: Part) -> str:
    if part.text is not None:
        return part.text
    called = part.function_call or part.function_response
    return msgspec.json.encode(called).decode() if called is not None else ""


def schema_of(config: Generation | None) -> dict[str, Any] | None:
    """The JSON schema an answer has to fit; None where plain text will do."""
    if config is None or config.response_mime_type in (None, "text/plain"):
        return None
    if isinstance(config.response_json_schema, Mapping):
        return dict(config.response_json_schema)
    if config.response_schema is not None:
        return plain_schema(config.response_schema)
    return {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Google's Schema message (types in capitals, ``nullable``, integers as strings) as JSON Schema."""
    made: dict[str, Any] = {}
    for name, value in schema.items():
        word = {"ref": "$ref", "defs": "$defs"}.get(name, _spelt(name))
        if word in ("nullable", "propertyOrdering", "example", "title", "description", "default") or value is None:
            continue
        if word == "type":
            made[word] = str(value).lower()
        elif word in ("properties", "$defs"):
            made[word] = {key: plain_schema(part) for key, part in value.items()}
        elif word in ("items", "additionalProperties") and isinstance(value, Mapping):
            made[word] = plain_schema(value)
        elif word == "anyOf":
            made[word] = [plain_schema(part) for part in value]
        elif word.startswith(("min", "max")) and isinstance(value, str):
            made[word] = int(value)
        elif word != "format" or value in ("date-time", "date", "time", "duration"):
            made[word] = value
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def called_tool(asked: Generate) -> tuple[str, dict[str, Any]] | None:
    """Name and parameters of the function the caller insists on (mode ANY); None where there is none.

    Raises:
        GeminiError: 400, where it insists and declares none.
    """
    calling = either(asked.tool_config or {}, "functionCallingConfig") or {}
    if str(calling.get("mode", "")).upper() != "ANY":
        return None
    allowed = either(calling, "allowedFunctionNames") or ()
    for tool in asked.tools or ():
        for function in either(tool, "functionDeclarations") or ():
            if not allowed or function.get("name") in allowed:
                schema = either(function, "parametersJsonSchema")
                declared = function.get("parameters")
                made = schema if schema is not None else plain_schema(declared) if declared else {"type": "object"}
                return str(function.get("name")), made
    raise invalid("Function calling mode ANY needs at least one function declaration.")


def either(node: Mapping[str, Any], name: str) -> Any:
    """A field under either spelling, for messages kept as they came."""
    if name in node:
        return node[name]
    return next((value for key, value in node.items() if _spelt(key) == name), None)
