"""The vocabulary that three or more modules share: states, outcomes, usage, and nothing that acts.

Money is an ``int`` of nano-dollars (1e-9 USD) and ends in ``_nanos``; sizes end in ``_bytes``;
waits in ``_s``. A *moment* is a ``float`` of seconds on the ledger's own clock, which a jump of
the wall clock does not move; a *time* is an aware UTC ``datetime``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

NANOS_PER_USD = 1_000_000_000

Endpoint = Literal["chat", "embeddings", "responses"]
"""What a request is for: chat completions, embeddings, or OpenAI's responses."""


class Lane(StrEnum):
    """A way to get a shard done. Fixed when the shard is born."""

    BATCH = "batch"  # one file to the provider's Batch API, answers within its window
    LIVE = "live"  # one call a request, or one for several that ask for embeddings
    FLEX = "flex"  # the same calls in a cheaper tier: they may have to wait, and a provider without room refuses them
    CACHE = "cache"  # nothing is sent: the answers were paid for by an earlier job

    @property
    def is_live(self) -> bool:
        """Whether requests are sent one by one, each answered by its own call."""
        return self in LIVE_LANES


LIVE_LANES = (Lane.LIVE, Lane.FLEX)


class JobState(StrEnum):
    PLANNING = "planning"  # not visible as work yet; dies with its planner
    PENDING = "pending"  # planned; nothing was promised to anyone
    RUNNING = "running"  # money may be held or spent
    PAUSED = "paused"  # nothing new is sent; what is in flight is still collected
    COMPLETED = "completed"  # every row has its final outcome
    FAILED = "failed"  # ended with no row answered
    CANCELLED = "cancelled"  # ended on request; what was paid for is kept


UNFINISHED = frozenset({JobState.PENDING, JobState.RUNNING, JobState.PAUSED})


class ShardState(StrEnum):
    PLANNED = "planned"  # written to the store, promised to nobody
    SUBMITTING = "submitting"  # money is held; a create may be on its way
    IN_DOUBT = "in_doubt"  # a create may have been accepted: look before sending again
    WAITING = "waiting"  # the provider gave a batch id
    SENDING = "sending"  # live: requests go out one by one, each marked first
    COLLECTING = "collecting"  # the provider is done; what came back is being accounted
    SETTLED = "settled"  # every request has an outcome, every cent is booked


SHARD_MOVES: dict[ShardState, frozenset[ShardState]] = {
    ShardState.PLANNED: frozenset(
        {ShardState.SUBMITTING, ShardState.SENDING, ShardState.SETTLED, ShardState.WAITING}  # found after all
    ),
    ShardState.SUBMITTING: frozenset({ShardState.PLANNED, ShardState.IN_DOUBT, ShardState.WAITING}),
    ShardState.IN_DOUBT: frozenset({ShardState.PLANNED, ShardState.WAITING, ShardState.SETTLED}),
    ShardState.WAITING: frozenset({ShardState.PLANNED, ShardState.COLLECTING, ShardState.SETTLED}),
    ShardState.SENDING: frozenset({ShardState.COLLECTING, ShardState.PLANNED}),
    ShardState.COLLECTING: frozenset(
        {ShardState.SETTLED, ShardState.WAITING, ShardState.IN_DOUBT}  # its batch proved to be another's
    ),
    ShardState.SETTLED: frozenset(),  # by no step of its own: `LateVerbs.reopen` opens it when something came late
}


class FailureKind(StrEnum):
    """Why a request has no usable answer."""

    BAD_REQUEST = "bad_request"  # refused for what it says; the same again is refused again
    RATE_LIMIT = "rate_limit"
    SERVER_ERROR = "server_error"  # 408, 409, 5xx, and the status 0 that batches sometimes show
    TIMEOUT = "timeout"  # live only: sent, no answer in time; may have been billed
    EXPIRED = "expired"  # the batch window closed before it ran; not billed
    CANCELLED = "cancelled"  # not run because someone cancelled; not billed
    MISSING = "missing"  # the provider ended without a line for it
    TRUNCATED = "truncated"  # paid; cut at the output cap
    EMPTY = "empty"  # paid; no text at all
    INVALID_OUTPUT = "invalid_output"  # paid; does not fit the schema
    CONTENT_FILTER = "content_filter"  # withheld by the provider's filter
    INVALID_INPUT = "invalid_input"  # no request could be made of the row; counted as invalid, never sent
    MODEL_ERROR = "model_error"  # a Python callable raised, or a local model failed


ATTEMPTS = 3  # completed exchanges of a row, in either lane; waits for a limit are none

RETRYABLE = frozenset(
    {
        FailureKind.RATE_LIMIT,
        FailureKind.SERVER_ERROR,
        FailureKind.TIMEOUT,
        FailureKind.EXPIRED,
        FailureKind.MODEL_ERROR,
    }
)


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request, in one convention for all providers.

    ``input_tokens`` counts the whole prompt, cached part included; ``output_tokens`` counts all
    that is billed as output, reasoning included. ``cached_tokens`` and ``cache_write_tokens``
    are parts of ``input_tokens``, and so are ``audio_tokens``, which may cost otherwise than text;
    ``cached_audio_tokens`` are part of both of these and the cached ones.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    estimated: bool = False  # the provider gave none; see collect.accounting
    audio_tokens: int = 0
    cached_audio_tokens: int = 0
    flex: bool = False  # it says that it was answered in that tier; what says nothing was not, as far as money goes

    @property
    def fresh(self) -> Usage:
        """The same tokens, had no cache been asked."""
        if not self.cached_tokens and not self.cache_write_tokens:
            return self
        return msgspec.structs.replace(self, cached_tokens=0, cache_write_tokens=0, cached_audio_tokens=0)


class Succeeded(msgspec.Struct, frozen=True, gc=False):
    text: str  # the answer; for embeddings the JSON array of vectors
    usage: Usage | None
    finish_reason: str | None
    model: str | None  # the model snapshot that answered
    parsed: str | None = None  # JSON of what ``text`` alone does not say: tool calls, or every choice of several


class Failed(msgspec.Struct, frozen=True, gc=False):
    kind: FailureKind
    message: str
    usage: Usage | None = None  # present when it was paid for
    text: str | None = None  # what a truncated or invalid answer said
    finish_reason: str | None = None
    model: str | None = None


Outcome = Succeeded | Failed


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One line of a result file, decoded: which request it names and what became of it."""

    custom_id: str
    outcome: Outcome
    duration_s: float | None = None  # live only


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file that exists: the ledger holds this, and readers trust nothing else."""

    path: str  # relative to the store's root, with forward slashes
    size_bytes: int
    digest: str  # of its bytes, 32 hex digits: `store.new_digest`


@dataclass(frozen=True, slots=True)
class Quote:
    """What a plan would cost. All amounts in nano-dollars."""

    lane: Lane
    requests: int  # distinct requests to send
    input_tokens: int  # expected
    output_tokens: int  # expected
    expected_nanos: int
    at_most_nanos: int  # the sum of all holds: the worst case
    list_price_nanos: int  # expected, at the live standard price
    waves: int  # rounds of holding and settling that the free budget forces
    price_source: str  # e.g. "genai-prices 0.2.3, 2026-11-21"
    notes: tuple[str, ...] = ()  # caveats a user should read before paying

    @property
    def saved_nanos(self) -> int:
        """Expected saving against the live standard price."""
        return self.list_price_nanos - self.expected_nanos


def usd(nanos: int) -> float:
    """Nano-dollars as a JSON number of dollars; for display and output only, never for sums."""
    return nanos / NANOS_PER_USD
