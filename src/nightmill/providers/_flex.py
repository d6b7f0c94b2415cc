"""OpenAI's flex tier: live calls at the price of batches, which may have to wait or be refused for want of room."""

from __future__ import annotations

from typing import Any

from nightmill.errors import CannotCarry
from nightmill.providers import LiveReply
from nightmill.providers._json import load_json
from nightmill.providers._openai_requests import json_line
from nightmill.providers._openai_shape import facts, own_error

_FIELD, _TIER = "service_tier", "flex"
_NO_ROOM = "resource_unavailable"


class Flexes:
    """The part of a provider that makes a live call one of the flex tier: a `FlexProvider`."""

    def in_flex(self, url: str, body: bytes) -> bytes:
        """See `FlexProvider.in_flex`."""
        if url.endswith("/embeddings"):
            raise CannotCarry("embeddings have no flex tier", why="chat and responses have", fix="use another lane")
        if b'"%b"' % _FIELD.encode() in body:
            asked: dict[str, Any] = load_json(body)
            if asked.get(_FIELD) == _TIER:
                return body
            if asked.pop(_FIELD, None) is not None:
                why = "the flex lane asks for flex, and each request itself for something else"
                raise CannotCarry(f"the request says {_FIELD}", why=why, fix=f"leave {_FIELD} out of it")
            body = json_line(asked)
        return b'{"%b":"%b",%b' % (_FIELD.encode(), _TIER.encode(), body[1:])

    def has_no_room(self, reply: LiveReply) -> bool:
        """See `FlexProvider.has_no_room`."""
        return reply.status == 429 and facts(own_error(reply.body))[0] == _NO_ROOM
