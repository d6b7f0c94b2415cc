"""The OpenAI wire shape of requests: what of one can be carried, how it is written, what it may cost at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nightmill.errors import CannotCarry
from nightmill.providers import Request, SentRequest, endpoint_of
from nightmill.providers._http import shorten
from nightmill.providers._json import count, load_json
from nightmill.providers._openai_shape import parts_of


def carried(name: str, model: str, request: Request, user_set: frozenset[str]) -> dict[str, Any]:
    """The request as a body for ``model``.

    ``max_tokens`` becomes ``max_completion_tokens``; our defaults that are None are not sent.

    Raises:
        CannotCarry: it streams, names another model, or caps its output twice.
    """
    if request.get("stream"):
        raise CannotCarry("stream is not carried", why="answers are kept whole", fix="leave stream out")
    asked = request.get("model")
    if "model" in user_set and asked not in (None, model, f"{name}/{model}"):
        raise CannotCarry(
            f"the request names the model {asked}",
            why=f"all requests of a job go to {name}/{model}",
            fix="leave model out of the rows, or run them as a job of their own",
        )
    kept = {key: value for key, value in request.items() if value is not None or key in user_set}
    body: dict[str, Any] = {**kept, "model": model}
    body.pop("stream", None)
    body.pop("stream_options", None)
    old = body.pop("max_tokens", None)
    if old is not None:
        if "max_tokens" in user_set and "max_completion_tokens" not in user_set:
            body["max_completion_tokens"] = old
        elif body.setdefault("max_completion_tokens", old) != old and "max_tokens" in user_set:
            why = "max_tokens and max_completion_tokens say different numbers"
            raise CannotCarry("the request has two output caps", why=why, fix="leave max_tokens out")
    return body


def refuse_responses(model: str, request: Request) -> None:
    """For a model that has no responses endpoint. Raises CannotCarry."""
    if endpoint_of(request) == "responses":
        why = "nobody knows that it has this endpoint; it answers chat completions"
        raise CannotCarry(f"{model} has no /v1/responses", why=why, fix="write the requests with messages")


def json_line(body: Any) -> bytes:
    """``body`` as JSON on one line.

    Raises:
        CannotCarry: it holds what JSON in UTF-8 cannot say.
    """
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as exc:
        why = shorten(str(exc), 200)
        raise CannotCarry("the request cannot be written as JSON", why=why, fix="correct the row or the task") from exc


def cap_of(body: Mapping[str, Any]) -> int:
    """Most output tokens that ``body`` can be billed for: its cap and what it predicts, for every choice it asks for.

    Raises:
        CannotCarry: one of these numbers is none.
    """
    cap = whole_of(body, "max_completion_tokens", 0) or whole_of(body, "max_output_tokens", 0)
    if predicted := body.get("prediction"):  # what was predicted wrongly is billed as output
        cap += len(json_line(predicted))
    return cap * max(whole_of(body, "n", 1), whole_of(body, "best_of", 1))


def whole_of(body: Mapping[str, Any], name: str, usual: int) -> int:
    """A number above 0 that a body says, or what is usual. Raises CannotCarry."""
    value = body.get(name)
    if value is None:
        return usual
    if type(value) is not int or value < 1:
        raise CannotCarry(f"{name} is {value!r}", why="it must be a whole number above 0", fix=f"correct {name}")
    return value


def inputs_of(body: Mapping[str, Any]) -> int:
    """How many texts ``body`` asks to embed."""
    given = body["input"]
    return len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1


def decode_request(line: bytes) -> SentRequest:
    """One line of an input file, whoever wrote it. Raises ValueError: it is no request."""
    asked = load_json(line)
    body = asked.get("body") if isinstance(asked, dict) else None
    texts = [asked.get(name) for name in ("custom_id", "url")] if isinstance(asked, dict) else []
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(model, str) or not all(isinstance(t, str) and t for t in texts):
        raise ValueError("it lacks a custom_id, a url, or a body that names a model")
    cap: int | None = 0
    if not str(texts[1]).endswith("/embeddings"):
        caps = [body.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
        cap = next((cap * max(1, count(body.get("n"))) for cap in caps if isinstance(cap, int)), None)
    return SentRequest(str(texts[0]), str(texts[1]), json_line(body), model, _asked(body), cap)


def _asked(body: Mapping[str, Any]) -> str:
    """The text that a body asks about: that of its last message, or its input."""
    said = body.get("messages", body.get("input"))
    if isinstance(said, list) and said and isinstance(said[-1], dict):
        said = parts_of(said[-1].get("content"))[0]
    return said if isinstance(said, str) else json_line({"input": said}).decode() if said else ""
