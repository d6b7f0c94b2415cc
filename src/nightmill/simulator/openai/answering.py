"""Answers in OpenAI's shapes: a chat, responses or embeddings body in, a response body out."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from nightmill.simulator.answering import (
    MESSAGE_TOKENS,
    NO_TWIST,
    Ask,
    Model,
    Said,
    digest_of,
    number_of,
    snapshot,
    text_tokens,
    unit_vector,
)
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.formats import Reply, encode
from nightmill.simulator.instances import Unsatisfiable
from nightmill.simulator.media import Find, Kind, Sights, no_files
from nightmill.simulator.openai import responses, strict
from nightmill.simulator.openai.caching import Cached, cached
from nightmill.simulator.openai.media import Eye
from nightmill.simulator.openai.wire import CHAT_URL, RESPONSES_URL, ApiError, unknown_model
from nightmill.simulator.prefixes import Prefixes

FLEX = "flex"  # the tier that may keep a call waiting
_REGULAR = "default"
_MEDIA = ("image_url", "input_audio", "file")
_PARTS = ("text", *_MEDIA, "refusal", "audio")
_MAX_CHOICES = 128
_MAX_INPUTS = 2048  # of one embeddings request
_MAX_INPUT_TOKENS = 8192  # of each of them, whatever the model
_MAX_TOKENS_TOGETHER = 300_000
_MAX_DIMENSIONS = 3072


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None
    refusal: str | None = None
    image_url: dict[str, Any] | None = None
    file: dict[str, Any] | None = None
    input_audio: dict[str, Any] | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


_ABSENT = msgspec.Raw()


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    response_format: msgspec.Raw = _ABSENT  # a union with None would take no objects
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    service_tier: str | None = None


class _Embeddings(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: str | None = None


class _Format(msgspec.Struct):
    type: str = "text"
    json_schema: dict[str, Any] | None = None


_decode_format = msgspec.json.Decoder(_Format | None).decode
_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode


def prompt_tokens(url: str, body: bytes, find: Find = no_files) -> int:
    """Tokens the prompt of a request body counts for.

    Raises:
        ApiError: the body is no request for this endpoint.
    """
    if url == CHAT_URL:
        chat: _Chat = _parsed(_decode_chat, body)
        return _chat_tokens(chat) + _look(chat, find).sights.tokens.total()
    if url == RESPONSES_URL:
        asked: responses.Asked = _parsed(responses.decode_asked, body)
        return _response_tokens(asked) + responses.look(asked, find).sights.tokens.total()
    return sum(_input_tokens(item) for item in _inputs(_parsed(_decode_embeddings, body)))


def count_inputs(body: bytes) -> int:
    """How many inputs an embeddings body holds; 1 for one that cannot be read (it fails as a row)."""
    try:
        return len(_inputs(_parsed(_decode_embeddings, body)))
    except ApiError:
        return 1


def _parsed(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.ValidationError as bad:
        raise _invalid(str(bad)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(400, "We could not parse the JSON body of your request.") from None


def _invalid(message: str) -> ApiError:
    """msgspec's ``Object missing required field `x` - at `$.y` `` as OpenAI would put it."""
    what, _, where = message.partition(" - at ")
    param = where.strip("`").removeprefix("$").lstrip(".").replace("[...]", "[0]")
    if what.startswith("Object missing required field"):
        param = f"{param}.{what.split('`')[1]}" if param else what.split("`")[1]
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    return ApiError(400, f"Invalid type for '{param}': {what}.", param=param or None, code="invalid_type")


def _chat_tokens(chat: _Chat) -> int:
    total = 0
    for message in chat.messages:
        content = message.content
        if isinstance(content, str):
            total += text_tokens(content)
        elif content:
            total += sum(text_tokens(part.text or part.refusal or "") for part in content)
        total += MESSAGE_TOKENS
    return total


def _text_of(message: _Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text or part.refusal or "" for part in content)


def _look(chat: _Chat, find: Find) -> Eye:
    """What the media of a chat are. Raises ApiError for one that is not taken."""
    eye = Eye(chat.model, find)
    for number, message in enumerate(chat.messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
            where = f"messages[{number}].content[{place}]"
            if part.type not in _PARTS:
                said = ", ".join(f"'{word}'" for word in _PARTS)
                text = f"Invalid value: '{part.type}'. Supported values are: {said}."
                raise ApiError(400, text, param=f"{where}.type", code="invalid_value")
            if part.type not in _MEDIA:
                continue
            if message.role != "user":
                text = f"'{part.type}' is only allowed for messages with role 'user', not '{message.role}'."
                raise ApiError(
                    400, f"Invalid 'messages[{number}]'. {text}", param=f"messages[{number}]", code="invalid_value"
                )
            given = getattr(part, part.type)
            if given is None:
                missing = f"{where}.{part.type}"
                text = f"Missing required parameter: '{missing}'."
                raise ApiError(400, text, param=missing, code="missing_required_parameter")
            if part.type == "image_url":
                eye.image(given.get("url"), None, given.get("detail"), where)
            elif part.type == "file":
                eye.file(given, f"{where}.file")
            else:
                eye.audio(given, where)
    eye.refuse_silence()
    return eye


def _inputs(body: _Embeddings) -> list[str | list[int]]:
    given = body.input
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [[item for item in given if isinstance(item, int)]]
    if any(isinstance(item, int) for item in given):
        raise ApiError(400, "'input' mixes tokens with texts.", param="input", code="invalid_type")
    return [item for item in given if not isinstance(item, int)]


def _input_tokens(item: str | list[int]) -> int:
    return text_tokens(item) if isinstance(item, str) else len(item)


def _tokens_within(inputs: Sequence[str | list[int]]) -> int:
    """The tokens of the inputs of an embeddings request; the bounds are those of OpenAI's document. Raises ApiError."""
    if not inputs or any(len(item) == 0 for item in inputs):
        raise ApiError(400, "'input' must not be empty.", param="input", code="invalid_value")
    if len(inputs) > _MAX_INPUTS:
        message = f"'input' holds {len(inputs)} items; the most is {_MAX_INPUTS}."
        raise ApiError(400, message, param="input", code="array_above_max_length")
    each = [_input_tokens(item) for item in inputs]
    if (longest := max(each)) > _MAX_INPUT_TOKENS:
        message = f"This model's maximum context length is {_MAX_INPUT_TOKENS} tokens, you requested {longest}."
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    if sum(each) > _MAX_TOKENS_TOGETHER:
        message = f"Requested {sum(each)} tokens, max {_MAX_TOKENS_TOGETHER} tokens per request"
        raise ApiError(400, message, param="input", code="max_tokens_per_request")
    return sum(each)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and in which lane."""

    account: str = ""
    batch: bool = False


NOBODY = Caller()


class Answers:
    """Answers requests. Thread-safe; remembers nothing of them but what ``prefixes``, where given, keep of prompts."""

    def __init__(self, model: Model, catalogue: Catalogue, prefixes: Prefixes | None = None) -> None:
        self._model, self._catalogue, self._prefixes = model, catalogue, prefixes

    def answer(
        self,
        url: str,
        body: bytes,
        *,
        created: int,
        find: Find = no_files,
        caller: Caller = NOBODY,
        twists: frozenset[str] = NO_TWIST,
        salt: int = 0,
    ) -> Reply:
        """The response to ``body`` at ``url``.

        Args:
            url: one of `wire.SERVED`.
            created: unix seconds for the response.
            find: an uploaded file by its id.
            caller: whose caches it may read and write.
            twists: names from `faults.ANSWER_FAULTS` to apply.
            salt: another answer to the same body for another salt.

        Returns:
            a 200, or a 4xx with an error body and no tokens; raises nothing.
        """
        digest = digest_of(_without_tier(body))
        try:
            if url == CHAT_URL:
                chat = _parsed(_decode_chat, body)
                tier = self._tier(caller, chat.model, chat.service_tier, twists)
                return self._chat(chat, find, caller, digest, created, twists, salt, tier)
            if url == RESPONSES_URL:
                asked = _parsed(responses.decode_asked, body)
                tier = self._tier(caller, asked.model, asked.service_tier, twists)
                return self._response(asked, find, caller, digest, created, twists, salt, tier)
            return self._embeddings(_parsed(_decode_embeddings, body), digest, twists)
        except Unsatisfiable as why:
            message = f"Invalid schema for response_format: {why}"
            refusal = ApiError(400, message, param="response_format", code="invalid_json_schema")
        except ApiError as wrong:
            refusal = wrong
        return Reply(refusal.status, refusal.body(), digest=digest)

    def _cached(
        self, caller: Caller, model: str, declared: Any, texts: Iterable[str], sights: Sights, digest: bytes
    ) -> Cached:
        """What of a prompt was cached; nothing of one with media, whose place among the texts is not told apart."""
        if self._prefixes is None or sights.tokens.total():
            return Cached()
        luck = int.from_bytes(digest[8:12], "big")
        said = encode(declared)
        return cached(self._prefixes, caller.account, model, said, texts, batch=caller.batch, luck=luck)

    def _tier(self, caller: Caller, model: str, asked: str | None, twists: frozenset[str]) -> str:
        """The tier that a call is answered in; of those that are asked for, flex alone is simulated, and live alone."""
        if caller.batch or asked != FLEX or not self._catalogue.knows(model):
            return _REGULAR
        if not self._catalogue.has_tier(model, FLEX):
            message = f"Invalid service_tier argument: the model `{model}` has no flex processing."
            raise ApiError(400, message, param="service_tier", code="invalid_value")
        return _REGULAR if "flex_downgraded" in twists else FLEX

    def _chat(
        self, chat: _Chat, find: Find, caller: Caller, digest: bytes, created: int, twists: frozenset[str], salt: int,
        tier: str,
    ) -> Reply:  # fmt: skip
        self._check_chat(chat)
        sights = _look(chat, find).sights
        cap = chat.max_completion_tokens or chat.max_tokens
        given = bytes(chat.response_format)
        schema = _schema(given) if given else None
        ask = Ask(cap, schema, _forced_tool(chat.tools, chat.tool_choice), sights.told())
        choices = [self._model.say(ask, number_of(digest, salt, turn), twists) for turn in range(chat.n or 1)]
        input_tokens = self._fitting(chat.model, _chat_tokens(chat), sights)
        output_tokens = sum(choice.tokens for choice in choices)
        model = snapshot(chat.model, digest) if "model_snapshot_changes" in twists else chat.model
        kept = self._cached(caller, chat.model, [chat.tools, schema], map(_text_of, chat.messages), sights, digest)
        usage = (
            _chat_usage(input_tokens, kept, sights, choices, output_tokens) if "usage_missing" not in twists else b""
        )
        body = b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[%b]%b,' % (
            digest.hex().encode(),
            created,
            encode(model),
            b",".join(_choice_json(i, choice) for i, choice in enumerate(choices)),
            usage,
        )
        body += b'"service_tier":%b,"system_fingerprint":"fp_simulator"}' % encode(tier)
        if "pretty_printed_bodies" in twists:
            body = _pretty(body)
        return Reply(
            200, body, chat.model, input_tokens, output_tokens, digest=digest, tier=_billed(tier),
            cached_tokens=kept.read, written_tokens=kept.written,
            audio_tokens=sights.tokens[Kind.AUDIO], image_tokens=sights.tokens[Kind.IMAGE],
        )  # fmt: skip

    def _response(
        self, asked: responses.Asked, find: Find, caller: Caller, digest: bytes, created: int, twists: frozenset[str],
        salt: int, tier: str,
    ) -> Reply:  # fmt: skip
        if not self._catalogue.knows(asked.model):
            raise unknown_model(asked.model)
        responses.check(asked)
        _within("max_output_tokens", asked.max_output_tokens, 1, None)
        _within("temperature", asked.temperature, 0, 2)
        _within("top_p", asked.top_p, 0, 1)
        given = responses.schema_of(asked)
        tool = _forced_tool(asked.tools, asked.tool_choice)
        sights = responses.look(asked, find).sights
        ask = Ask(asked.max_output_tokens, _schema(given) if given else None, tool, sights.told())
        choice = self._model.say(ask, number_of(digest, salt), twists)
        if choice.call:
            output = [responses.call(digest, *choice.call)]
        else:
            is_cut = choice.finish == "length"
            output = [responses.message(digest, choice.content, choice.refusal, is_cut=is_cut)]
        tokens = self._fitting(asked.model, _response_tokens(asked), sights)
        kept = self._cached(caller, asked.model, [asked.tools, given], responses.texts_of(asked), sights, digest)
        model = snapshot(asked.model, digest) if "model_snapshot_changes" in twists else asked.model
        made = responses.body_of(
            asked, number=digest, created=created, model=model, output=output, is_cut=choice.finish == "length",
            usage=None if "usage_missing" in twists else responses.usage(
                tokens, choice.tokens, choice.reasoning, cached=kept.read, written=kept.written
            ),
            tier=tier,
        )  # fmt: skip
        if "pretty_printed_bodies" in twists:
            made = _pretty(made)
        return Reply(
            200, made, asked.model, tokens, choice.tokens, digest=digest, image_tokens=sights.tokens[Kind.IMAGE],
            cached_tokens=kept.read, written_tokens=kept.written, tier=_billed(tier),
        )  # fmt: skip

    def _fitting(self, model: str, text_tokens: int, sights: Sights) -> int:
        """Tokens of a prompt. Raises ApiError: media make it more than the model can hold."""
        tokens, most = text_tokens + sights.tokens.total(), self._catalogue.context(model)
        if sights.media and 0 < most < tokens:
            message = (
                f"This model's maximum context length is {most} tokens. However, your messages resulted in {tokens} "
                "tokens. Please reduce the length of the messages."
            )
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        return tokens

    def _check_chat(self, chat: _Chat) -> None:
        if not self._catalogue.knows(chat.model):
            raise unknown_model(chat.model)
        if not chat.messages:
            message = "Invalid 'messages': empty array. Expected an array with minimum length 1."
            raise ApiError(400, message, param="messages", code="empty_array")
        if chat.max_tokens is not None and chat.max_completion_tokens is not None:
            message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
            raise ApiError(400, message, param="max_tokens", code="invalid_parameter_combination")
        _within("max_completion_tokens", chat.max_completion_tokens, 1, None)
        _within("max_tokens", chat.max_tokens, 1, None)
        _within("n", chat.n, 1, _MAX_CHOICES)
        _within("temperature", chat.temperature, 0, 2)
        _within("top_p", chat.top_p, 0, 1)

    def _embeddings(self, body: _Embeddings, digest: bytes, twists: frozenset[str]) -> Reply:
        if not self._catalogue.knows(body.model):
            raise unknown_model(body.model)
        inputs = _inputs(body)
        tokens = _tokens_within(inputs)
        _within("dimensions", body.dimensions, 1, _MAX_DIMENSIONS)
        if body.encoding_format not in (None, "float", "base64"):
            raise ApiError(400, "'encoding_format' is float or base64.", param="encoding_format", code="invalid_value")
        size = body.dimensions or self._model.dimensions
        packed = body.encoding_format == "base64"
        items = (
            b'{"object":"embedding","index":%d,"embedding":%b}' % (i, _vector(item, size, packed))
            for i, item in enumerate(inputs)
        )
        usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
        if "usage_missing" in twists:
            usage = b""
        made = b'{"object":"list","data":[%b],"model":%b%b}' % (b",".join(items), encode(body.model), usage)
        if "pretty_printed_bodies" in twists:
            made = _pretty(made)
        return Reply(200, made, body.model, tokens, 0, digest=digest)


def _billed(tier: str) -> str:
    return tier if tier == FLEX else ""


def _without_tier(body: bytes) -> bytes:
    """The request whatever tier it asks for: asked in another one, it is the same request again."""
    return re.sub(rb'"service_tier": ?"flex",', b"", body, count=1)


def _response_tokens(asked: responses.Asked) -> int:
    return sum(text_tokens(text) + MESSAGE_TOKENS for text in responses.texts_of(asked))


def _forced_tool(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None
) -> tuple[str, dict[str, Any]] | None:
    """Name and parameters of the tool that the caller insists on; left alone, this model calls none."""
    functions = [tool.get("function", tool) for tool in tools or () if tool.get("type") == "function"]
    if isinstance(choice, dict):
        wanted = choice.get("function", choice).get("name")
        functions = [each for each in functions if each.get("name") == wanted]
    elif choice != "required":
        return None
    if not functions:
        raise ApiError(400, "Invalid 'tool_choice': no such tool.", param="tool_choice", code="invalid_value")
    return str(functions[0].get("name")), functions[0].get("parameters") or {"type": "object"}


def _within(name: str, value: float | None, least: float, most: float | None) -> None:
    if value is None or (value >= least and (most is None or value <= most)):
        return
    side, bound, word = ("below_min", least, "minimum") if value < least else ("above_max", most, "maximum")
    kind = "integer" if isinstance(value, int) else "decimal"
    message = (
        f"Invalid '{name}': {kind} {side.replace('_', ' ')} value. "
        f"Expected a value with {word} {bound}, but got {value} instead."
    )
    raise ApiError(400, message, param=name, code=f"{kind}_{side}_value")


def _chat_usage(input_tokens: int, kept: Cached, sights: Sights, choices: list[Said], output_tokens: int) -> bytes:
    reasoning = sum(choice.reasoning for choice in choices)
    image = sights.tokens[Kind.IMAGE]
    more = b',"image_tokens":%d' % image if image else b""
    more += b',"cache_write_tokens":%d' % kept.written if kept.written else b""
    return (
        b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":%d%b},'
        b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,'
        b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
    ) % (
        input_tokens, output_tokens, input_tokens + output_tokens, kept.read, sights.tokens[Kind.AUDIO], more,
        reasoning,
    )  # fmt: skip


_FINISH = {"stop": b"stop", "length": b"length", "tool": b"tool_calls"}


def _choice_json(index: int, choice: Said) -> bytes:
    calls = b""
    if choice.call is not None:
        name, arguments = choice.call
        function = {"name": name, "arguments": arguments}
        calls = b',"tool_calls":' + encode([{"id": f"call_{index}", "type": "function", "function": function}])
    return (
        b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":%b,"annotations":[]%b},'
        b'"logprobs":null,"finish_reason":"%b"}'
    ) % (index, encode(choice.content), encode(choice.refusal), calls, _FINISH[choice.finish])


def _pretty(body: bytes) -> bytes:
    """The same JSON over many lines."""
    return msgspec.json.format(body, indent=2)


@lru_cache(maxsize=64)
def _schema(raw: bytes) -> dict[str, Any] | None:
    """The schema a ``response_format`` asks for; None when plain text will do."""
    form: _Format | None = _parsed(_decode_format, raw)
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    if form.type != "json_schema":
        raise ApiError(400, f"Invalid value: '{form.type}'.", param="response_format.type", code="invalid_value")
    if form.json_schema is None or not form.json_schema.get("name"):
        where = "response_format.json_schema" + ("" if form.json_schema is None else ".name")
        raise ApiError(400, f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
    schema = form.json_schema.get("schema")
    if form.json_schema.get("strict") is True:
        strict.check(schema)
    return schema if isinstance(schema, dict) else {"type": "object"}


def _vector(item: str | list[int], size: int, packed: bool) -> bytes:
    """A unit vector of ``size`` dimensions, as a JSON array or as base64 of little-endian float32."""
    source = item.encode() if isinstance(item, str) else struct.pack(f"<{len(item)}q", *item)
    unit = unit_vector(source, size)
    if packed:
        return encode(base64.b64encode(struct.pack(f"<{size}f", *unit)).decode())
    return encode([round(value, 8) for value in unit])
