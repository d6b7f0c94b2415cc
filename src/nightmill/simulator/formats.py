"""What a wire format is to the simulator: everything that one kind of client sees, and nothing that happens behind it.

A format is one package beside this module. It brings a `Format` (its routes, its keys, its refusals, its limits) and
`Rows` (a batch's lines read, run and written). Files, the life of batches, rows in threads, faults, clock and bill are
the core's, which says neither a field's name nor a status of any wire. ``app.FORMATS`` lists the formats.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from nightmill.simulator.answering import Model
    from nightmill.simulator.batch import Batch
    from nightmill.simulator.billing import Catalogue
    from nightmill.simulator.files import FileStore
    from nightmill.simulator.prefixes import Prefixes
    from nightmill.simulator.provider import Provider

COSTLY = frozenset({"create", "live"})  # operations that cost money


def account_in(key: str) -> str:
    """Whose a key is: what stands behind its ``@``. Keys of one account see the same files and batches."""
    return key.partition("@")[2]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
encode = msgspec.json.encode


class Operation(StrEnum):
    """The words faults know a request by."""

    UPLOAD = "upload"
    FILES = "files"
    FILE = "file"
    DELETE_FILE = "file_delete"
    CONTENT = "content"  # of a result, and of any other file
    CREATE = "create"
    LIST = "list"
    POLL = "poll"
    CANCEL = "cancel"
    DELETE = "delete"  # of a batch
    LIVE = "live"
    MODELS = "models"
    COUNT = "count"  # of tokens


@dataclass(frozen=True, slots=True)
class Route:
    """One call of a format; ``path`` as aiohttp writes patterns."""

    operation: Operation
    method: str
    path: str
    handler: Handler


class Refusal(Exception):
    """An answer that is no success, in a format's own words."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def body(self) -> bytes:
        """What is sent; a format's refusals have their own."""
        return encode({"error": {"message": self.message}})


class Why(StrEnum):
    """What the core refuses, for a format to put into words."""

    BROKEN = "broken"  # not the caller's fault; ``status`` 500, or what a fault says
    KEY_REVOKED = "key_revoked"
    NO_MONEY = "no_money"
    RATE = "rate"  # too many live requests; ``retry_after_s``, where that is told
    QUEUE_FULL = "queue_full"  # ``model``, ``limit``; ``retry_after_s``: real seconds, where the format tells any
    TOO_LARGE = "too_large"
    NO_SUCH_CALL = "no_such_call"  # ``status`` 404 or 405


@dataclass(frozen=True, slots=True)
class Trouble:
    """A refusal before it has words."""

    why: Why
    status: int | None = None  # None: what the format has for it
    facts: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request: a body in the shape of its format, and what it weighs."""

    status: int
    body: bytes
    model: str = ""
    input_tokens: int = 0  # of the whole prompt, cached or not
    output_tokens: int = 0  # thoughts included
    cached_tokens: int = 0  # of the input, read from a cache
    written_tokens: int = 0  # of the input, written to a short-lived cache
    written_long_tokens: int = 0  # of the input, written to a long-lived one
    audio_tokens: int = 0  # of the input; it, images and video may have prices of their own
    cached_audio_tokens: int = 0  # of the audio ones
    image_tokens: int = 0
    video_tokens: int = 0
    digest: bytes = b""  # 16 bytes, of the request body
    tier: str = ""  # in which it was answered, and is billed, in the catalogue's word; empty: the regular one


class BatchRefused(Exception):
    """The batch fails validation as a whole; ``line`` counts from 1."""

    def __init__(self, code: str, message: str, *, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.line = code, message, param, line


@dataclass(frozen=True, slots=True)
class Checked:
    """What validation learned of a good batch."""

    rows: int
    model: str  # "" where requests of one batch may name several
    tokens: int  # of all prompts; 0 unless asked for


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits a batch is held to."""

    max_rows: int
    max_inputs: int
    count_tokens: bool  # only worth its time where enqueued tokens are limited


class Rows(Protocol):
    """The lines of a format's batches. Called in a thread; remembers nothing."""

    two_files: bool  # rows that failed, or never ran, lie in a file of their own

    def check(self, path: Path, batch: Batch, rules: Rules) -> Checked:
        """Read the whole input once. Raises BatchRefused with the first thing that is wrong."""

    def read(self, raw: bytes) -> tuple[str, bytes]:
        """Id and body of one line of the input."""

    def answer(self, batch: Batch, body: bytes, *, created: int, twists: frozenset[str], salt: int = 0) -> Reply:
        """The response to one body. Raises nothing: a body that is no request has a status other than 200."""

    def line(self, custom_id: str, reply: Reply, *, spaced: bool) -> bytes:
        """The result line of a request that was answered, newline included."""

    def failed_line(self, custom_id: str, status: int, row: int) -> bytes:
        """The result line of a request that the provider failed with ``status``."""

    def not_run_line(self, custom_id: str, ending: str, row: int) -> bytes | None:
        """The result line of a request that did not run before the batch was ``expired`` or ``cancelled``."""

    def unknown_line(self, number: int) -> bytes:
        """A result nobody asked for."""


class Format(Protocol):
    """One wire shape, and the provider who speaks it."""

    name: str  # of its part of the invoice
    prices: str  # what genai-prices calls the provider
    routes: tuple[Route, ...]
    max_rows: int  # of a batch
    max_bytes: int  # of a batch's input
    window_s: float  # after which a batch expires
    keeps_partial: bool  # a batch that expired or was cancelled still has what it had done
    kept_headers: tuple[str, ...]  # prefixes, in small letters, of headers that bodies which go wrong keep
    impossible: frozenset[str]  # faults of batches that cannot be in this shape

    def claims(self, request: web.Request) -> bool:
        """Whether a request is in this shape; asked in the order of ``app.FORMATS``, the last takes the rest."""

    def admit(self, request: web.Request) -> None:
        """Look at the key. Raises Refusal for none or a wrong one."""

    def key_of(self, request: web.Request) -> str:
        """The key of a request that was admitted; empty where it needed none."""

    def take_input(self, batch: Batch, files: FileStore) -> Path:
        """A path of its own to the input of a batch that was created without one. Raises BatchRefused."""

    def file_id(self, batch: Batch, word: str) -> str | None:
        """The id of the results of a batch (``word`` is output or error); None for one like any other's."""

    def rows(self, model: Model, catalogue: Catalogue, files: FileStore, prefixes: Prefixes) -> Rows:
        """How the lines of batches are read, run and written.

        ``files`` are those that requests may name, ``prefixes`` what the provider keeps of prompts.
        """

    def refusal(self, trouble: Trouble) -> Refusal:
        """Trouble in this format's words."""

    def sign(self, headers: Any, took_s: float) -> None:
        """Add what stands on every answer."""

    def rate_headers(self, provider: Provider) -> dict[str, str]:
        """What live answers say about the quota."""
