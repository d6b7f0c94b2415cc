"""What providers read from the environment, checked before it can do harm."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from nightmill.errors import UsageError

_PRIVATE_NAMES = (".localhost", ".local", ".lan", ".internal", ".home.arpa")


class NoKey(UsageError):
    code = "no_key"


def no_key(provider: str, variable: str) -> NoKey:
    """The error for a key that is not set; it names the variable and the way without a key."""
    return NoKey(
        f"no key for {provider}",
        why=f"{variable} is not set",
        fix=f"set {variable} in the environment or in .env; local/ models and python: functions need no key",
    )


def sendable(variable: str, value: str) -> str:
    """``value`` if it can go into a header or a URL as it is.

    Raises:
        UsageError: it holds white space or characters outside ASCII. The value is not repeated.
    """
    if all("!" <= character <= "~" for character in value):
        return value
    raise UsageError(
        f"{variable} holds a character that cannot be sent",
        why="white space, a line break or a character outside ASCII",
        fix=f"set {variable} again, without quotes or line breaks",
    )


def without_login(base_url: str) -> str:
    """The address as it may be shown: a name and password in it are nobody else's to read."""
    scheme, mark, rest = base_url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def is_nearby(base_url: str) -> bool:
    """Whether the server is on this machine or in a network of the user's own, by its address or its name."""
    try:
        host = (urlsplit(base_url).hostname or "").rstrip(".")
    except ValueError:  # no URL: whoever sends to it says so
        return False
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_NAMES)
