"""Whose a request is: its format, its key, its version."""

from __future__ import annotations

from aiohttp import web

from nightmill.simulator.formats import account_in
from nightmill.simulator.gemini.errors import bad_key, no_key, no_quota

_WRONG_KEY, _POOR_KEY = "sk-wrong", "sk-noquota"
_VERBS = frozenset(
    ("generateContent", "batchGenerateContent", "embedContent", "batchEmbedContents", "asyncBatchEmbedContent")
) | frozenset(("countTokens", "cancel", "download"))


def speaks(request: web.Request) -> bool:
    """Whether a request is one of this format: by its path, or where paths are shared by how its key travels."""
    path = request.path
    if path.startswith(("/v1beta/", "/upload/", "/download/")):
        return True
    is_own = "x-goog-api-key" in request.headers or "key" in request.query
    return path.startswith("/v1/") and (is_own or path.rpartition(":")[2] in _VERBS)


def scope_of(request: web.Request) -> str:
    """The project that a key opens; without a key, at the address of an upload, whoever knows it."""
    return f"project@{account_in(key_of(request))}"


def key_of(request: web.Request) -> str:
    """The key, from its header, the query or a bearer; empty for none."""
    kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
    given = request.headers.get("x-goog-api-key") or request.query.get("key")
    return (given or (bearer if kind.lower() == "bearer" else "")).strip()


def check_key(request: web.Request) -> str:
    """The key.

    Raises:
        GeminiError: 403 for none, 400 for a wrong one.
    """
    key = key_of(request)
    if not key:
        raise no_key()
    if key == _WRONG_KEY:
        raise bad_key()
    return key


def admit(request: web.Request) -> None:
    """Look at the key. Whoever knows the address of an upload may write to it without one."""
    if not (request.path.startswith("/upload/") and "upload_id" in request.query):
        check_key(request)


def refuse_without_quota(request: web.Request) -> None:
    """Raise the 429 of a project that has no money left, for the key ``sk-noquota``."""
    if check_key(request) == _POOR_KEY:
        raise no_quota()


def version_of(request: web.Request) -> str:
    """The version of the API a request is for, from its path."""
    first, _, rest = request.path.lstrip("/").partition("/")
    return rest.partition("/")[0] if first in ("upload", "download") else first


def base_of(request: web.Request) -> str:
    """This API's own address with the version the caller uses."""
    return f"{request.scheme}://{request.host}/{version_of(request)}"
