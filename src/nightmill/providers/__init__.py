"""Providers: one module per wire format, and the promises they all keep.

A provider knows one wire format and decides nothing: lanes decide. Each is made by `resolve`
for a model reference such as ``openai/gpt-5-mini``; what it can do shows in which protocol it
satisfies (`BatchProvider`, `LiveProvider`), how much in its `Limits`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from nightmill.types import Answer, Endpoint, FailureKind, Usage

Request = Mapping[str, Any]  # canonical: an OpenAI chat-completions, embeddings or responses body


OWN_SCHEMA = "schema"  # in ``user_set``: the schema of answers is no row's own, so that each provider has its say of it


def endpoint_of(request: Request) -> Endpoint:
    """What a canonical request is for. One to the responses endpoint always has ``max_output_tokens``."""
    if "messages" in request or "input" not in request:
        return "chat"
    return "responses" if "max_output_tokens" in request else "embeddings"


@dataclass(frozen=True, slots=True)
class Key:
    """Which key is sent: by its variable and a fingerprint, never itself. Both are empty where none is."""

    variable: str = ""
    fingerprint: str = ""  # first 12 hex digits of blake2b(key)

    def __str__(self) -> str:
        return f"{self.variable} ({fingerprint_shown(self.fingerprint)})" if self.fingerprint else "no key"


def fingerprint_shown(fingerprint: str) -> str:
    """The last digits of a key's fingerprint, as people see them: enough to tell one's keys apart."""
    return f"*{fingerprint[-4:]}" if fingerprint else "no key"


@dataclass(frozen=True, slots=True)
class Account:
    """Whose batches, limits and money these are. The key itself is never part of it."""

    provider: str  # "openai"
    base_url: str
    organization: str = ""
    project: str = ""
    key_fingerprint: str = ""  # of its only key; empty where several keys are of one account
    key: Key = field(default=Key(), compare=False)  # the one that calls are made with

    @property
    def id(self) -> str:
        return "|".join((self.provider, self.base_url, self.organization, self.project, self.key_fingerprint))

    @property
    def host(self) -> str:
        """The host of the base URL, for digests and fingerprints."""
        return self.base_url.split("//", 1)[-1].split("/", 1)[0]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch, and one live account, can take. Numbers, not flags."""

    batch_requests: int = 0  # most requests in a batch; 0 = no batch lane
    batch_bytes: int = 0  # most bytes in a batch file, newlines included
    batch_inputs: int = 0  # most embedding inputs in a batch, summed over rows; 0 = no such limit
    request_bytes: int = 0  # most bytes in one request; 0 = unknown
    concurrency: int = 256  # most live requests in flight
    window_s: int = 86_400  # how long a batch may take
    context: int = 0  # most tokens of a prompt and its answer together; 0 = unknown
    batch_usual: int = 0  # requests in a batch where nobody says how many; 0 = as many as it takes


@dataclass(frozen=True, slots=True)
class RateHint:
    """What an answer's headers teach about the live quota. Unknown is None."""

    limit_requests: int | None = None
    limit_tokens: int | None = None
    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    reset_requests_s: float | None = None
    reset_tokens_s: float | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class LiveReply:
    """What one live call brought back."""

    status: int  # HTTP status, or its equal for models without HTTP
    body: bytes  # untouched
    hint: RateHint | None = None
    request_id: str = ""
    stop: bool = False  # no call passes until someone acts: key, quota, money, model

    @property
    def shuts_key(self) -> bool:
        """Whether it stops the key alone: another one may have the right, or the money. A 404 is about the model."""
        return self.stop and self.status != 404


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch as the provider describes it at one moment."""

    id: str
    status: str  # the provider's own word
    phase: str  # "running", "cancelling", "ended" or "failed" (validation failed: nothing ran)
    created_at: float  # unix seconds, provider's clock
    total: int | None = None  # the provider's own counts; None = it does not say
    completed: int | None = None
    failed: int | None = None
    output_file: str | None = None
    error_file: str | None = None
    submission: str | None = None  # our "<shard tag>.<n>", where it could be attached
    input_file: str | None = None
    refusal: Exception | None = None  # for phase "failed": errors.Limited or errors.Refused
    model: str | None = None
    url: str | None = None  # the endpoint of its requests
    expires_at: float | None = None  # unix seconds; when its window closes
    ended_at: float | None = None  # unix seconds, provider's clock
    usage: Usage | None = None  # the provider's own totals, all requests together; None = it does not say


@dataclass(frozen=True, slots=True)
class SentRequest:
    """One request of a batch that somebody else made."""

    custom_id: str
    url: str
    body: bytes  # JSON
    model: str
    prompt: str  # what it asks, as text; empty where it asks for something else
    cap_tokens: int | None  # most output tokens; None: it names no cap


@dataclass(frozen=True, slots=True)
class Encoded:
    """A canonical request in the provider's own words."""

    url: str  # the endpoint as the lines of a batch have it, "/v1/chat/completions"
    body: bytes  # JSON, one line
    notes: tuple[str, ...] = field(default=())  # defaults that were left out, and why
    cap_tokens: int = 0  # most output tokens that can be billed for it
    inputs: int = 0  # texts to embed; 0 = it asks for no embeddings
    apart: Mapping[str, bytes] = field(default_factory=dict)  # media that ``body`` only names, by `Upload.digest`


@dataclass(frozen=True, slots=True)
class Upload:
    """A medium that a request names and does not hold: it has to be at the provider before the request is."""

    id: str  # what it is called there
    digest: str  # the first 24 hex digits of the SHA-256 of its bytes
    mime: str


class Weight(NamedTuple):
    """How many input tokens a body may be billed for, framing aside."""

    most: int  # its bytes, those of media replaced by the most tokens that these may be
    beside: int = 0  # about as many tokens it has beside its texts: of media, and of what the provider adds by itself


@dataclass(frozen=True, slots=True)
class PlainAnswers:
    """Result lines that are all complete answers with their usage, column by column: nearly all lines."""

    custom_ids: list[str]
    texts: list[str]
    models: list[str | None]
    finish_reasons: list[str | None]
    durations_s: list[float | None]
    input_tokens: list[int]
    output_tokens: list[int]
    cached_tokens: list[int]
    cache_write_tokens: list[int]


class Provider(Protocol):
    """What planning and collecting need."""

    name: str
    model: str
    account: Account
    limits: Limits
    self_hosted: bool  # a server on hardware of the user's own: it has no quota, too many calls only wait in its queue

    def encode(self, request: Request, user_set: frozenset[str] = frozenset()) -> Encoded:
        """The body for ``request``.

        Keys of ``request`` that are not in ``user_set`` and not essential are our defaults and
        are left out, with a note, where the model does not take them.

        Raises:
            CannotCarry: the model or endpoint cannot carry something the user asked for.
        """
        ...

    def weigh(self, body: bytes) -> Weight:
        """What ``body``, one of `encode`'s, weighs."""
        ...

    def line_pieces(self, url: str) -> tuple[bytes, bytes, bytes]:
        """``(before, between, after)``: a shard line is before + JSON custom_id + between + body + after."""
        ...

    def decode(self, line: bytes) -> Answer:
        """One line of an output or error file.

        A failure that was billed though the line does not say how much has a usage that is ``estimated``
        and empty; one that cost nothing has none.

        Raises:
            ValueError: it is not a result line (malformed, truncated, no custom_id).
        """
        ...

    def decode_plain(self, lines: Sequence[bytes]) -> PlainAnswers | None:
        """What `decode` says of each of ``lines``, together; None where a line is anything but a plain answer."""
        ...

    def reply_line(self, custom_id: str, reply: LiveReply, duration_s: float) -> bytes:
        """``reply`` in the shape of this provider's result line plus ``duration_s``, newline included.

        The body goes in as it came when it is JSON (CR and LF outside strings turned to spaces),
        else as a JSON string; `decode` reads the line back.
        """
        ...

    def error_body(self, message: str) -> bytes:
        """An error response body in this provider's shape, for a request it refused outside a response."""
        ...

    async def close(self) -> None: ...


class Marked(NamedTuple):
    """A body with a mark at the end of what it shares with others, and the text of all that is shared."""

    body: bytes
    text: str  # empty: it shares nothing that can be marked, and the body is as it was


@runtime_checkable
class CachesPrefixes(Provider, Protocol):
    """A provider that caches the beginning of prompts only where a request marks its end, and bills what it keeps.

    A mark changes what a request costs and nothing of its answer.
    """

    least_cached: int  # tokens of a beginning; a shorter one is neither cached nor billed otherwise

    def marked(self, body: bytes, turns: int | None) -> Marked:
        """``body``, made by `encode`, with one mark: behind its first ``turns`` turns, its system text or its tools.

        All requests share their tools; None: nothing else.
        """
        ...

    def unmarked(self, body: bytes) -> bytes:
        """What `marked` was given, to the byte; a body without a mark as it is."""
        ...


@runtime_checkable
class UploadsMedia(Provider, Protocol):
    """A provider that takes media too large for a request as files of their own, under names that we choose."""

    def uploads(self, body: bytes) -> list[Upload]:
        """The media that ``body``, one of `encode`'s, only names."""
        ...

    async def provide(self, upload: Upload, file: Path, *, lasting_s: float) -> None:
        """See to it that ``file`` is at the provider as ``upload``, and stays there for ``lasting_s`` where it can.

        It may be called again and again: what is there is not sent twice.

        Raises NeverSent, Limited, Refused, StoreError.
        """
        ...


@runtime_checkable
class KeyCheck(Protocol):
    """A provider that can be asked for nothing whether it takes our key."""

    async def count_models(self) -> int:
        """How many models it says there are for this key. Raises NeverSent, Limited, Refused, Uncertain."""
        ...


@runtime_checkable
class BatchProvider(Provider, Protocol):
    """What the batch lane needs. Every call is made once: nothing here retries.

    Where no errors are named, a call may raise any ProviderError.
    """

    hands_back_partial: bool  # whether a batch that is cancelled gives the answers that it had by then

    async def upload(self, file: Path, *, name: str) -> str:
        """Upload a shard file; the provider's file id, or ``name`` where nothing is uploaded before the create.

        Raises NeverSent, Limited, Refused.
        """
        ...

    async def create(self, file_id: str, file: Path, *, url: str, submission: str) -> BatchView:
        """Create the batch of what was uploaded as ``file_id``; of ``file`` itself where requests travel in the create.

        Raises NeverSent, Limited, Refused, Uncertain.
        """
        ...

    async def find(self, submissions: frozenset[str], files: frozenset[str], *, since: float) -> list[BatchView]:
        """Every batch of this account, made at or after ``since`` (unix seconds, provider's
        clock), that carries one of ``submissions`` or was made from one of ``files``.

        Reads every page; any page that is not a clean 200 raises, so a return is a complete look.
        Raises ProviderError (any kind): this was no answer.
        """
        ...

    async def find_files(self, name: str) -> list[str]:
        """Ids of uploaded files with this name."""
        ...

    async def poll(self, batch_id: str) -> BatchView: ...

    async def cancel(self, batch_id: str) -> BatchView: ...

    async def fetch(self, file_id: str, to: Path) -> bool:
        """Stream a result file to ``to``. False: the provider no longer has it (404)."""
        ...

    async def delete_file(self, file_id: str) -> bool:
        """Delete an uploaded file; one that is gone already is fine. False: this server deletes none."""
        ...

    def unanswered(self, status: str) -> FailureKind:
        """What a request is that has no line once its batch has ended with ``status``, the provider's own word.

        MISSING, unless such a batch hands nothing back: then EXPIRED or CANCELLED. It says nothing of money.
        """
        ...

    def clock_skew_s(self) -> float:
        """Provider's clock minus ours, from the last ``Date`` header; 0.0 before any answer."""
        ...


@runtime_checkable
class ListsBatches(BatchProvider, Protocol):
    """A provider that shows every batch of an account, whoever made it."""

    def batches(self) -> AsyncIterator[BatchView]:
        """Every batch of this account, newest first, all pages.

        Raises ProviderError (any kind): what came before was not all.
        """
        ...


@runtime_checkable
class OpenBatches(ListsBatches, Protocol):
    """One that also gives back what was sent in a batch, so that one made elsewhere can be taken in."""

    def decode_request(self, line: bytes) -> SentRequest:
        """One line of a batch's input file. Raises ValueError: it is no request."""
        ...


@runtime_checkable
class UntaggedBatches(BatchProvider, Protocol):
    """A provider that lets nothing of ours be attached to a batch: one is known by its time and its size alone.

    What proves whose it is are the ids in its results. `find` and `find_files` find nothing here.
    """

    async def made_between(self, since: float, until: float) -> list[BatchView]:
        """Every batch of this account created at or after ``since`` and at or before ``until``, oldest first.

        Both are unix seconds of the provider's clock; ``BatchView.total`` is how many requests a batch has.
        Any page that is not a clean 200 raises, so a return is a complete look.
        Raises ProviderError (any kind): this was no answer.
        """
        ...


@runtime_checkable
class LiveProvider(Provider, Protocol):
    """What the live lane needs."""

    async def send(self, url: str, body: bytes, *, timeout_s: float) -> LiveReply:
        """One request, one try. Raises NeverSent, Uncertain; every HTTP status is a reply."""
        ...

    def is_own(self, reply: LiveReply) -> bool:
        """Whether the body is the provider's own: an answer with a 2xx status, its error shape with any other.

        Where it is not, something between us and the provider spoke, and the call may have run.
        """
        ...


@runtime_checkable
class FlexProvider(LiveProvider, Protocol):
    """A live provider with a cheaper tier for calls that may have to wait. Its answers say which tier they are of."""

    def in_flex(self, url: str, body: bytes) -> bytes:
        """``body`` as a call of that tier.

        Raises:
            CannotCarry: the endpoint has no such tier, or the body asks for another one.
        """
        ...

    def has_no_room(self, reply: LiveReply) -> bool:
        """Whether the tier is full for now: nothing was done, and nothing is billed."""
        ...


@runtime_checkable
class JoiningProvider(LiveProvider, Protocol):
    """A live provider that embeds the texts of several requests in one call."""

    most_joined: int  # requests in a call

    def joined(self, url: str, bodies: Sequence[bytes]) -> tuple[str, bytes]:
        """Where to send, and what, for ``bodies`` together: each asks for one embedding, all of them alike."""
        ...

    def parted(self, reply: LiveReply, weights: Sequence[int]) -> list[LiveReply] | None:
        """The answer to several requests as one for each, in their order; None: it has not one for each.

        The tokens it tells are shared out by ``weights``, to the last one.
        """
        ...
