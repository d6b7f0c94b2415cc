"""A task, compiled for one provider and model: rows of values in, encoded bodies out.

Requests of a job differ only in the row's values. So the provider encodes one request with salted
markers in place of the values, the body is cut at the markers, and per row only the values are
JSON-escaped and joined. Templates that are more than text and ``{{ name }}`` are rendered in full.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from nightmill.errors import InputError, TaskError, UsageError
from nightmill.plan.attaching import Pack, said_with
from nightmill.pricing import estimate_tokens
from nightmill.providers import OWN_SCHEMA, CachesPrefixes, Encoded, Provider
from nightmill.sources import decode_row_values, is_json
from nightmill.tasks import ASKS, MEDIA, BoundTask, Column, Task, Template, as_text, request_parts
from nightmill.types import Endpoint

DEFAULT_TEMPERATURE = 0.3
DEFAULT_MAX_OUTPUT = 2_000
# What the texts of a request are called, and what else of it the model reads, in every shape that requests have.
_SAID = frozenset(("content", "text", "input", "system", "instructions"))
_DECLARED = frozenset(("tools", "response_format", "format", "responseJsonSchema"))
# Of a task; an older program's digest is without them, and so is ours where none is used.
_LATER = frozenset(("choices", "escalate", "parallel_tool_calls", "reask", "repair", "tool_choice", "tools"))
_AGAIN = "Answer once more, with nothing but JSON that fits this schema: "


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is asked of the model beside the prompt. None: not said by the user or the task.

    What is ``suggested`` only, by a task of ours, gives way where a model does not take it, as our defaults do.
    """

    temperature: float | None = None
    max_output: int | None = None  # tokens
    schema: dict[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # further keys of the canonical request
    suggested: Sequence[str] = ()  # of "temperature" and "max_output", those that no user said

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "max_output": self.max_output, "schema": self.schema,
                "extra": dict(self.extra), "suggested": list(self.suggested)}  # fmt: skip

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Parameters:
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Said:
    """What a model answered, and what is wrong with it."""

    text: str
    fault: str


class Compiled:
    """What turns record batches into request bodies, all of them the same way.

    ``cap_tokens`` is the output cap of every request (0 for embeddings), ``inputs`` the texts it asks
    to embed; where each row says these itself they are the most of the rows that were encoded last. ``digest_text``
    stands for everything but the rows in a job's fingerprint, ``notes`` are the defaults left out.
    """

    def __init__(self, provider: Provider, task: BoundTask, parameters: Parameters) -> None:
        self.pack: Pack | None = None  # where media of its rows lie
        self._provider, self._task, self._parameters = provider, task, parameters
        self._caches = provider if isinstance(provider, CachesPrefixes) else None
        self._marks = False
        self.columns = task.columns
        probe = self._probe(dict.fromkeys(range(len(task.templates)), "x"))
        self.url, self.notes = probe.url, probe.notes
        self.cap_tokens, self.inputs, self.is_embeddings = probe.cap_tokens, probe.inputs, probe.inputs > 0
        if task.task.bodies:
            self.cap_tokens = self.inputs = 0
        self._pieces: list[bytes] | None = None
        self._order: tuple[str, ...] = ()
        if self._is_plain():
            self._pieces, self._order = self._cut()
        self._encoder = msgspec.json.Encoder()

    def weigh(self, body: bytes) -> int:
        """How many input tokens ``body`` is at most."""
        return self._provider.weigh(body).most

    @property
    def weighs(self) -> Callable[[bytes], int]:
        """`weigh`, or what is quicker where no body has media."""
        return len if self.is_spliced else self.weigh

    def about_tokens(self, body: bytes) -> tuple[int, int]:
        """About as many input tokens as ``body`` has: of its texts, and beside them."""
        return estimate_tokens(content_of(body)), self._provider.weigh(body).beside

    @property
    def embeds(self) -> bool:
        """Whether each row is one text that becomes one vector."""
        return self._task.task.embeds

    @property
    def is_spliced(self) -> bool:
        """Whether rows are joined from pieces rather than rendered in full."""
        return self._pieces is not None

    def shared_tokens(self) -> int:
        """About how many tokens all prompts begin with, counted low; 0 where the provider caches no such beginning."""
        task = self._task
        if self._caches is None or task.task.bodies or task.task.messages_column is not None or self.is_embeddings:
            return 0
        probe = self._probe(dict.fromkeys(range(len(task.templates)), "x") | self._said_alike())
        tokens = estimate_tokens(self._caches.marked(probe.body, self._shared_turns()).text) * 9 // 10
        return tokens if tokens >= self._caches.least_cached else 0

    def cache_prefix(self) -> None:
        """Let every request have the beginning cached that all of them share; see `shared_tokens`."""
        self._marks = True
        if self._pieces is not None:
            self._pieces, self._order = self._cut()

    def unmarked(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """What the requests ask, whatever of them is to be cached: what digests stand for."""
        return bodies if self._caches is None else list(map(self._caches.unmarked, bodies))

    def _said_alike(self) -> dict[int, str]:
        """The templates that say the same in every row, by number."""
        return {
            i: "".join(map(str, template.parts))
            for i, (_, template) in enumerate(self._task.templates)
            if template.parts is not None and not template.columns
        }

    def _shared_turns(self) -> int | None:
        """How many turns of a prompt are the same in every row; None: what stands before the turns is not."""
        alike = self._said_alike()
        before = range(len(self._task.templates) - 1)
        return len(self._task.shots) if all(i in alike for i in before) else None

    @property
    def digest(self) -> str:
        """Stands for the task and its parameters: everything of a request but the rows and the model."""
        return hashlib.blake2b(self.digest_text, digest_size=16).hexdigest()

    @property
    def digest_text(self) -> bytes:
        asked = self._asked_for()
        if not self._gives_way():
            del asked["parameters"]["suggested"], asked["task"]["built_in"]
        return msgspec.json.encode(asked | {"url": self.url}, order="deterministic")

    @property
    def asked_text(self) -> bytes:
        """`digest_text` without what depends on the provider: the same for every model that may do the job."""
        return msgspec.json.encode(self._asked_for(), order="deterministic")

    def _asked_for(self) -> dict[str, Any]:
        """Without what older programs did not know and is at its default: the same command has the digest it had."""
        task = self._task.task.to_dict()
        plain = Task(task["name"])
        said = {name: value for name, value in task.items() if name not in _LATER or value != getattr(plain, name)}
        return {"task": said, "parameters": self._parameters.to_dict()}

    def _gives_way(self) -> bool:
        """Whether requests would be others, or none, if the task's own numbers had been the user's."""
        if not self._parameters.suggested:
            return False
        insisting = copy(self)
        insisting._parameters = replace(self._parameters, suggested=())
        texts = dict.fromkeys(range(len(self._task.templates)), "x")
        try:
            return insisting._probe(texts).body != self._probe(texts).body
        except UsageError:
            return True

    def bodies(
        self, batch: pa.RecordBatch, indexes: Sequence[int], texts: Mapping[str, Sequence[str | None]] | None = None,
        bad: dict[int, str] | None = None,
    ) -> list[bytes]:  # fmt: skip
        """The encoded body of every row; ``indexes`` are those of the batch's rows.

        ``texts`` are the values of text columns where they are at hand. A row of which no request can
        be made has an empty body and its reason in ``bad``, where that is given.

        Raises:
            InputError, TaskError, CannotCarry: of a ``row`` no request can be made.
        """
        values = self._values(batch, texts)
        if self._pieces is None:
            return self._encode_each(_dicts(values, batch.num_rows), indexes, bad)
        quoted = {name: self._quoted(values[name]) for name in set(self._order)}
        return self._joined([quoted[name] for name in self._order], batch.num_rows)

    def asked_again(
        self, batch: pa.RecordBatch, indexes: Sequence[int], said: Mapping[int, Said], bad: dict[int, str]
    ) -> list[bytes]:
        """The encoded body of every row with the answer that it got, and a request for one that fits the schema.

        As with `bodies`, a row of which none can be made has an empty body and its reason in ``bad``.
        """
        turns = [self._turns(said[index]) for index in indexes]
        return self._encode_each(_dicts(self._values(batch), batch.num_rows), indexes, bad, turns)

    def _turns(self, said: Said) -> list[dict[str, Any]]:
        schema = msgspec.json.encode(self._parameters.schema).decode()
        fault = f"Your answer cannot be used: {said.fault}." if said.text else "Your answer was empty."
        again = {"role": "user", "content": f"{fault} {_AGAIN}{schema}"}
        return [{"role": "assistant", "content": said.text}, again] if said.text else [again]

    def blanks(self, batch: pa.RecordBatch) -> dict[int, list[str]]:
        """Rows of the batch that lack a value the task needs: in which columns. Such rows are not for `bodies`."""
        found: dict[int, list[str]] = {}
        for name in self.columns:
            column = batch.column(name)
            empty = '""' if is_json(batch.schema.field(name)) else ""
            if column.null_count or _has_blank(column, len(empty)):
                for i, value in enumerate(column.to_pylist()):
                    if value is None or value == empty:
                        found.setdefault(i, []).append(name)
        return dict(sorted(found.items()))

    def _encode_each(
        self, rows: Sequence[Mapping[str, Any]], indexes: Sequence[int], bad: dict[int, str] | None,
        turns: Sequence[Sequence[dict[str, Any]]] = (),
    ) -> list[bytes]:  # fmt: skip
        """``turns``: what is said after each row's own part."""
        bodies: list[bytes] = []
        self.cap_tokens = self.inputs = 0
        for index, row, more in zip(indexes, rows, turns or [()] * len(rows), strict=True):
            try:
                encoded = self._encode(row, more=more)
                if encoded.apart:
                    self._packed().keep_apart(encoded.apart)
                self.cap_tokens = max(self.cap_tokens, encoded.cap_tokens)
                self.inputs = max(self.inputs, encoded.inputs)
                bodies.append(encoded.body)
            except UsageError as error:
                if bad is None:
                    error.row = index
                    raise
                bad[index] = f"{error.what}: {error.why}" if error.why else error.what
                bodies.append(b"")
        return bodies

    def prompts(self, batch: pa.RecordBatch) -> pa.Array:
        """What each row asks, as text: the rendered user prompt, or the last message of a chat."""
        if self._task.task.bodies:
            return pa.array(map(self._asked, _dicts(self._values(batch), batch.num_rows)), pa.string())
        column = self._task.task.messages_column
        if column is not None:
            return pa.array(map(_last_text, self._values(batch)[column]), pa.string())
        template = next(t for role, t in self._task.templates if role == "user")
        if template.parts is None:
            rows = _dicts(self._values(batch), batch.num_rows)
            return pa.array(map(template.render, rows), pa.string())
        if not template.columns:
            return pa.repeat("".join(map(str, template.parts)), batch.num_rows)
        return pc.binary_join_element_wise(*(self._part(part, batch) for part in template.parts), "")

    def _part(self, part: str | Column, batch: pa.RecordBatch) -> Any:
        """A literal, or the values of a column as text."""
        if isinstance(part, str):
            return part
        column, field = batch.column(part.name), batch.schema.field(part.name)
        if pa.types.is_string(column.type) and not is_json(field):
            return column
        return pa.array(map(as_text, decode_row_values(column, field)), pa.string())

    def check(self, batch: pa.RecordBatch, first: int, bodies: Sequence[bytes], rows: int = 20) -> None:
        """Compare the first rows with full rendering. Raises TaskError where a byte differs."""
        values = self._values(batch)
        for i, row in enumerate(_dicts(values, min(rows, batch.num_rows))):
            if bodies[i] != self._encode(row).body:
                raise TaskError(
                    f"row {first + i} was compiled to other bytes than rendering gives",
                    why="the fast path and the template engine disagree; nothing was sent",
                    fix="report this with the template; a filter such as {{ text | string }} takes the slow path",
                )

    # -- how

    def _is_plain(self) -> bool:
        plain = all(t.parts is not None for _, t in self._task.templates)
        whole = self._task.task.messages_column is not None or self._task.task.bodies
        return plain and not whole and not self._task.task.media

    def _probe(self, texts: Mapping[int, str]) -> Encoded:
        """One request with ``texts`` in place of the rendered templates."""
        chat = [{"role": "user", "content": "x"}]
        if self._task.task.bodies:
            asked = {"messages": chat} if self._task.task.endpoint == "chat" else {"input": "x"}
            return self._encode({"body": asked} if "body" in self.columns else asked)
        return self._encode({**dict.fromkeys(self.columns, chat), MEDIA: []}, texts)

    def _encode(
        self, row: Mapping[str, Any], texts: Mapping[int, str] | None = None, more: Sequence[dict[str, Any]] = ()
    ) -> Encoded:
        task, p = self._task.task, self._parameters
        request: dict[str, Any] = {"model": self._provider.model}
        user_set = set(p.extra)
        if task.bodies:
            said_itself = self._body(row)
            request |= said_itself
            user_set |= said_itself.keys()
        elif task.messages_column is not None:
            request["messages"] = _chat(row[task.messages_column])
        else:
            said = [(role, (texts or {}).get(i) or t.render(row)) for i, (role, t) in enumerate(self._task.templates)]
            if task.endpoint == "embeddings":
                request |= {"input": said[-1][1], "encoding_format": "base64"}
            else:
                chat = [*said[:-1], *self._task.shots, said[-1]]
                request[ASKS[task.endpoint]] = [{"role": role, "content": text} for role, text in chat]
        if media := row.get(MEDIA):
            request[ASKS[task.endpoint]] = self._with_media(request[ASKS[task.endpoint]], media)
        asked = request_parts(task)
        request |= asked
        user_set |= asked.keys()
        if task.endpoint != "embeddings":
            self._add_sampling(request, user_set)
        request |= p.extra
        if more:
            asks = ASKS[task.endpoint]
            asked = request[asks]
            request[asks] = [*([{"role": "user", "content": asked}] if isinstance(asked, str) else asked), *more]
        encoded = self._provider.encode(request, frozenset(user_set))
        if self._caches is None or not self._marks:
            return encoded
        return replace(encoded, body=self._caches.marked(encoded.body, self._shared_turns()).body)

    def _with_media(self, asked: Any, media: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        is_responses = self._task.task.endpoint == "responses"
        return said_with(asked, self._packed().parts(media, is_responses=is_responses), is_responses=is_responses)

    def _packed(self) -> Pack:
        if self.pack is None:
            raise ValueError("rows have media, and nobody said where these lie")
        return self.pack

    def _body(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The request that a row holds, whole.

        Raises:
            InputError: it holds none, or one for another endpoint than the job's.
        """
        endpoint, asks = self._task.task.endpoint, ASKS[self._task.task.endpoint]
        body = row["body"] if "body" in self.columns else _gathered(row)
        url = row.get("url") if "body" in self.columns else None
        if isinstance(body, str):
            try:
                body = msgspec.json.decode(body)
            except msgspec.DecodeError as error:
                raise _no_request(f"its body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise _no_request(f"its body is {str(body)[:80]!r}, not an object")
        if url is not None and endpoint_at(str(url)) != endpoint:
            raise _no_request(f"it is for {url}, and the job asks {endpoint}; a job asks one endpoint")
        if body.get(asks) in (None, "", []):
            raise _no_request(f"it has no {asks}, and that is what {endpoint} answers to")
        return body

    def _asked(self, row: Mapping[str, Any]) -> str:
        body = self._body(row)
        return _last_text(body[ASKS[self._task.task.endpoint]])

    def _add_sampling(self, request: dict[str, Any], user_set: set[str]) -> None:
        """What the user says holds for every row; our defaults only where a row has no body of its own."""
        p, is_responses = self._parameters, self._task.task.endpoint == "responses"
        cap = "max_output_tokens" if is_responses else "max_completion_tokens"
        if p.temperature is not None or not self._task.task.bodies:
            request["temperature"] = DEFAULT_TEMPERATURE if p.temperature is None else p.temperature
        if p.max_output is not None:
            request.pop("max_tokens", None)
            request[cap] = p.max_output
            if "max_output" not in p.suggested:
                user_set.add(cap)
        elif is_responses or "max_tokens" not in request:  # every request has a cap
            request.setdefault(cap, DEFAULT_MAX_OUTPUT)
        if p.temperature is not None and "temperature" not in p.suggested:
            user_set.add("temperature")
        if p.schema is not None:
            name = "text" if is_responses else "response_format"
            user_set |= {name, OWN_SCHEMA}
            request[name] = _format(p.schema, is_responses=is_responses)

    def _cut(self) -> tuple[list[bytes], tuple[str, ...]]:
        """Encode one request with markers for the values and cut it at them."""
        salt = secrets.token_hex(16)
        names: list[str] = []

        def marked(template: Template) -> str:
            text = []
            for part in template.parts or ():
                if isinstance(part, Column):
                    text.append(f"<{salt}:{len(names)}>")
                    names.append(part.name)
                else:
                    text.append(part)
            return "".join(text)

        texts = {i: marked(t) for i, (_, t) in enumerate(self._task.templates)}
        body = self._probe(texts).body
        cuts = re.split(rb"<" + salt.encode() + rb":(\d+)>", body)
        return cuts[::2], tuple(names[int(i)] for i in cuts[1::2])

    def _quoted(self, values: Sequence[Any]) -> list[bytes]:
        """Each value as the inside of a JSON string, escaped."""
        texts = [v if type(v) is str else as_text(v) for v in values]
        return [line[1:-1] for line in map(self._encoder.encode, texts)]

    def _joined(self, columns: list[list[bytes]], count: int) -> list[bytes]:
        pieces = self._pieces or []
        if len(columns) == 1:
            before, after = pieces
            return [before + value + after for value in columns[0]]
        strips: list[Sequence[bytes]] = [[pieces[0]] * count]
        for column, piece in zip(columns, pieces[1:], strict=True):
            strips += [column, [piece] * count]
        return list(map(b"".join, zip(*strips, strict=True)))

    def _values(
        self, batch: pa.RecordBatch, texts: Mapping[str, Sequence[str | None]] | None = None
    ) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {}
        for name in (*self.columns, *self._task.optional):
            known = texts.get(name) if texts else None
            field = batch.schema.field(name)
            values[name] = decode_row_values(batch.column(name), field) if known is None else known
        return values


def content_of(body: bytes) -> str:
    """The texts inside a body, whatever its shape, roughly: what a token estimate needs."""
    texts: list[str] = []
    declared: list[str] = []
    _gather(msgspec.json.decode(body), "", texts, declared)
    return "\n".join(texts) + "".join(declared)


def _gather(value: Any, name: str, texts: list[str], declared: list[str]) -> None:
    """What is said, and what is declared, in ``value``, which is called ``name``."""
    if isinstance(value, str) and name in _SAID:
        texts.append(value)
    elif isinstance(value, dict | list) and name in _DECLARED:
        declared.append(msgspec.json.encode(value).decode())
    elif isinstance(value, dict):
        for key, each in value.items():
            _gather(each, key, texts, declared)
    elif isinstance(value, list):
        for each in value:
            _gather(each, name, texts, declared)


def endpoint_at(url: str) -> Endpoint | None:
    """What is asked at that address; None for what we do not ask."""
    ends: dict[str, Endpoint] = {"/chat/completions": "chat", "/embeddings": "embeddings", "/responses": "responses"}
    return next((endpoint for end, endpoint in ends.items() if url.rstrip("/").endswith(end)), None)


def endpoint_of_body(body: Any, model: str) -> Endpoint:
    """What a body, or the JSON of one, is for whose line does not say it."""
    with suppress(msgspec.DecodeError):
        body = msgspec.json.decode(body) if isinstance(body, str) else body
    if not isinstance(body, dict) or body.get("input") is None:
        return "chat"
    return "embeddings" if "embed" in str(body.get("model") or model).lower() else "responses"


def _gathered(row: Mapping[str, Any]) -> dict[str, Any]:
    """The body whose keys are columns. What other rows say is null here."""
    return {name: value for name, value in row.items() if value is not None}


def _no_request(why: str) -> InputError:
    return InputError("a row is no request", why=why, fix="correct the row or take it out; nothing was sent")


def _format(schema: Mapping[str, Any], *, is_responses: bool) -> dict[str, Any]:
    """What tells the model to answer by ``schema``."""
    named = {"name": _schema_name(schema), "schema": schema}
    if is_responses:
        return {"format": {"type": "json_schema", **named}}
    return {"type": "json_schema", "json_schema": named}


def _dicts(values: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    return [{name: column[i] for name, column in values.items()} for i in range(count)]


def _has_blank(column: pa.Array, length: int) -> bool:
    """Whether one is as short as ``length``, that of an empty text as the column holds it."""
    if not pa.types.is_string(column.type):
        return False
    shortest = pc.min(pc.binary_length(column)).as_py()
    return shortest is not None and shortest <= length


def _chat(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) and "role" in m for m in value):
        raise InputError(
            "a messages column does not hold a chat",
            why=f"it must be a list of objects with role and content, not {str(value)[:80]!r}",
            fix="correct the row; nothing was sent",
        )
    return value


def _last_text(chat: Any) -> str:
    last = chat[-1] if isinstance(chat, list) and chat else None
    content = last.get("content", chat) if isinstance(last, dict) else chat
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def _schema_name(schema: Mapping[str, Any]) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", str(schema.get("title", "answer")))[:64] or "answer"
