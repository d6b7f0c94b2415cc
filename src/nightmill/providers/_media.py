"""Media in requests: which models take which kinds, and how many input tokens one is at most, and usually.

A hold counts the bytes of a body, since a token is a byte at least. Base64 would make that absurdly dear, so here the
bytes of a medium are replaced by the most tokens that its provider documents for it; where nothing is documented, by
the most that a model takes at all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from nightmill.errors import CannotCarry
from nightmill.media import Kind, Medium, image_size, kind_of, kind_of_mime, most_seconds
from nightmill.providers import Upload, Weight

PARTS = ("image_url", "file", "input_audio", "video_url", "input_image", "input_file")  # what they are called

_MARKS = tuple(b'"%b"' % name.encode() for name in (*PARTS, "source", "inlineData", "fileData"))
_SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg"}


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many input tokens a medium is."""

    usual: int
    most: int


@dataclass(frozen=True, slots=True)
class Takes:
    """What the models of one provider take, and how it counts."""

    kinds: Callable[[str], frozenset[Kind]]  # by model
    tokens: Callable[[str, Medium], Tokens]  # by model
    urls: frozenset[Kind] = frozenset()  # kinds that it fetches by itself
    mimes: frozenset[str] = frozenset()  # all that it reads
    most_bytes: Mapping[Kind, int] | None = None  # of one medium
    request_bytes: int = 0  # of a request with media; 0: there is no such limit
    apart: bool = False  # what is too large is uploaded, under a name of ours


# -- what stands in a request --------------------------------------------------------------------


def medium_of(part: Mapping[str, Any]) -> Medium | None:
    """The medium that a part of a canonical message is; None for any other part.

    Raises:
        CannotCarry: it is called one, and is none that can be read.
    """
    kind = part.get("type")
    if kind not in PARTS:
        return None
    inner = part.get(kind, part)
    if kind == "input_image":
        inner = {"url": part.get("image_url")}
    if not isinstance(inner, Mapping):
        raise _unreadable(kind, "it is no object")
    if kind == "input_audio":
        return _of_base64(kind, str(inner.get("data", "")), _SOUNDS.get(str(inner.get("format")), ""))
    given = inner.get("file_data") if kind in ("file", "input_file") else inner.get("url")
    if not isinstance(given, str) or not given:
        raise _unreadable(kind, "only what stands in the request, or at a web address, has a size that is known")
    name = str(inner.get("filename") or "")
    if given[:5].lower() == "data:":
        head, _, data = given[5:].partition(",")
        return _of_base64(kind, data, head.partition(";")[0], name)
    if re.match("https?://", given, re.IGNORECASE):
        of: dict[str, Kind] = {"image_url": "image", "input_image": "image", "video_url": "video"}
        return Medium(of.get(kind, "pdf"), "", None, given, name)
    raise _unreadable(kind, f"{given[:60]!r} is neither a data: URL nor a web address")


def _of_base64(part: str, text: str, mime: str, name: str = "") -> Medium:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unreadable(part, "its data is no base64") from error
    found = kind_of(data)
    if found is None:
        raise _unreadable(part, "its bytes are no image, PDF, sound or film that is known")
    if mime and kind_of_mime(mime) not in (None, found[0]):
        raise _unreadable(part, f"it is called {mime}, and its bytes are {found[1]}")
    return Medium(found[0], found[1], data, name=name)


def _unreadable(part: str, why: str) -> CannotCarry:
    return CannotCarry(f"the part {part} is not carried", why=why, fix="correct the row or take it out")


def admit(takes: Takes, model: str, medium: Medium) -> Medium:
    """The medium, where ``model`` takes it. Raises CannotCarry."""
    kinds = takes.kinds(model)
    if medium.kind not in kinds:
        can = f"it takes {', '.join(sorted(kinds))}" if kinds else "nobody knows that it takes any"
        fix = "choose a model that does, or leave them out"
        raise CannotCarry(f"{model} is sent no {_PLURAL[medium.kind]}", why=can, fix=fix)
    if medium.data is None:
        if medium.kind not in takes.urls:
            why = "it fetches none by itself"
            fix = "download them, and give the paths"
            raise CannotCarry(f"{model} is sent no web addresses of {_PLURAL[medium.kind]}", why=why, fix=fix)
        return medium
    if medium.mime not in takes.mimes:
        why = f"it reads {', '.join(sorted(m for m in takes.mimes if kind_of_mime(m) == medium.kind))}"
        raise CannotCarry(f"{model} does not read {medium.mime}", why=why, fix="convert the file")
    most = (takes.most_bytes or {}).get(medium.kind)
    if most is not None and len(medium.data) > most:
        why = f"it has {len(medium.data):,} bytes, and {most:,} are taken at most"
        raise CannotCarry(f"the {medium.kind} is too large for {model}", why=why, fix="make it smaller")
    return medium


def check_media(takes: Takes, model: str, asked: Any) -> None:
    """Raises CannotCarry: a message has a medium that ``model`` does not take."""
    for message in asked if isinstance(asked, list | tuple) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            medium = medium_of(part) if isinstance(part, Mapping) else None
            if medium is not None:
                admit(takes, model, medium)


def fit_size(takes: Takes, model: str, body: bytes, most: int = 0) -> bytes:
    """``body``, where the provider takes one so large, or it has ``most`` bytes at most. Raises CannotCarry."""
    if 0 < (most := most or takes.request_bytes) < len(body):
        why = f"it has {len(body):,} bytes with its media, and {most:,} are taken at most"
        raise CannotCarry(f"the request is too large for {model}", why=why, fix="send smaller files, or fewer in a row")
    return body


_PLURAL: Mapping[Kind, str] = {"image": "images", "pdf": "PDFs", "audio": "audio", "video": "video"}


def base64_of(medium: Medium) -> str:
    return base64.b64encode(medium.data or b"").decode()


# -- what a body weighs ----------------------------------------------------------------------------


def weigh(takes: Takes, model: str, body: bytes) -> Weight:
    """See `Provider.weigh`."""
    if not any(mark in body for mark in _MARKS):
        return Weight(len(body), 0)
    most, usual = len(body), 0
    for medium, payload in _media_in(msgspec.json.decode(body)):
        told = _told_by_name(medium.url) if takes.apart else None  # any other address is its author's word
        tokens = told or takes.tokens(model, medium)
        most, usual = most - payload + tokens.most, usual + tokens.usual
    return Weight(most, usual)


def _media_in(body: Any) -> Iterator[tuple[Medium, int]]:
    """Every medium in an encoded body with the bytes that its data takes there.

    Only parts of messages are media. What looks like one elsewhere, in the arguments of a tool or in a schema, is
    read, and billed, as text.
    """
    for messages, parts in (("messages", "content"), ("input", "content"), ("contents", "parts")):
        told = body.get(messages) if isinstance(body, dict) else None
        for message in told if isinstance(told, list) else ():
            inside = message.get(parts) if isinstance(message, dict) else None
            for part in inside if isinstance(inside, list) else ():
                found = _encoded_medium(part) if isinstance(part, dict) else None
                if found is not None:
                    yield found


def _encoded_medium(part: dict[str, Any]) -> tuple[Medium, int] | None:
    try:
        if "inlineData" in part:
            return _known(part["inlineData"]["data"])
        if "fileData" in part:
            mime = str(part["fileData"].get("mimeType", ""))
            return Medium(kind_of_mime(mime) or "pdf", mime, None, part["fileData"]["fileUri"]), 0
        if part.get("type") in ("image", "document") and "source" in part:
            source = part["source"]
            if source.get("type") == "base64":
                return _known(source["data"])
            return Medium("image" if part["type"] == "image" else "pdf", "", None, str(source.get("url"))), 0
        medium = medium_of(part)
    except (KeyError, TypeError, AttributeError, CannotCarry):
        return None
    if medium is None:
        return None
    return medium, 0 if medium.data is None else 4 * -(-len(medium.data) // 3)


def _known(text: str) -> tuple[Medium, int]:
    medium = _of_base64("", text, "")
    return medium, len(text)


# -- media apart -----------------------------------------------------------------------------------

_APART = re.compile(r"/(?P<name>nm-(?P<digest>[0-9a-f]{24})-(?P<most>[0-9a-z]+)-(?P<usual>[0-9a-z]+))$")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def name_apart(medium: Medium, tokens: Tokens) -> tuple[str, str]:
    """A name for a medium that its request will not hold, up to 40 lowercase letters, digits and dashes; its digest.

    The name tells what it weighs, so that this can be said of the request alone wherever it is read again.
    """
    digest = hashlib.sha256(medium.data or b"").hexdigest()[:24]
    return f"nm-{digest}-{_base36(tokens.most)}-{_base36(tokens.usual)}", digest


def uploads_in(body: bytes) -> list[Upload]:
    """See `UploadsMedia.uploads`."""
    if b'"fileData"' not in body:
        return []
    named = ((_APART.search(medium.url), medium.mime) for medium, _ in _media_in(msgspec.json.decode(body)))
    return [Upload(found["name"], found["digest"], mime) for found, mime in named if found]


def _told_by_name(url: str) -> Tokens | None:
    found = _APART.search(url)
    return Tokens(int(found["usual"], 36), int(found["most"], 36)) if found else None


def _base36(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits


def largest_apart(lengths: Sequence[int], room: int) -> list[int]:
    """Which of some parts, the largest first, have to go so that the others have ``room``; by their numbers."""
    gone, left = list[int](), sum(lengths)
    for number in sorted(range(len(lengths)), key=lambda each: lengths[each], reverse=True):
        if left <= room:
            break
        gone.append(number)
        left -= lengths[number]
    return gone


# -- OpenAI ------------------------------------------------------------------------------------------

_NO_KINDS: frozenset[Kind] = frozenset()
_SEES: frozenset[Kind] = frozenset(("image", "pdf"))
_HEARS: frozenset[Kind] = frozenset(("audio",))
_OPENAI_HEARS = re.compile(r"gpt-(4o-(mini-)?audio|audio)")
_OPENAI_SEES = re.compile(r"(chatgpt-4o|gpt-(4o|4\.1|4\.5|[5-9])|o[134](?!-(mini|preview))|o[4-9]-mini)")
# Images are counted in tiles of 512 px, at most eight, or in patches of 32 px, at most 1,536, by family.
_TILES = (
    ("gpt-4o-mini", 2_833, 5_667), ("gpt-4o|chatgpt-4o|gpt-4\\.1(?!-(mini|nano))|gpt-4\\.5", 85, 170),
    ("o[13](?!-)|o[13]-pro", 75, 150), ("gpt-5(-chat|-pro|-codex)?(-20\\d\\d.*|-latest)?$", 70, 140),
)  # fmt: skip
_PATCHES = (("gpt-4\\.1-mini|gpt-5-mini", 1.62), ("gpt-4\\.1-nano|gpt-5-nano", 2.46), ("o4-mini", 1.72))
_MOST_TILES, _MOST_PATCHES = 8, 1_536
# Times the tokens of its context that a PDF may be billed as: pages are images, too, and some families count those so
# many times over. Nobody says whether they do so before or after they look whether it fits.
_PAGES = (("gpt-4o-mini", 34), ("gpt-4o|chatgpt-4o|gpt-4\\.[15]|o[13]|gpt-5(?![.\\d])", 1))
_MOST_OF_A_PAGE = 2.5  # of a family that is not listed
_DEAREST_IMAGE = 2_833 + 5_667 * _MOST_TILES  # the most of any model that is documented
_OPENAI_CONTEXTS = (("gpt-4o|chatgpt-4o|gpt-audio|gpt-4\\.5", 128_000), ("o\\d", 200_000), ("gpt-5(?![.\\d])", 400_000))
_MOST_CONTEXT = 1_050_000  # of any model
_OPENAI_SOUND = 17  # times what text costs, at most: so many tokens of text one of sound is held as


def _by_name(table: Any, model: str) -> Any:
    base = model.removeprefix("ft:").split(":", 1)[0]
    return next((row[1:] for row in table if re.match(row[0], base)), None)


def _openai_kinds(model: str) -> frozenset[Kind]:
    base = model.removeprefix("ft:").split(":", 1)[0]
    if _OPENAI_HEARS.match(base):
        return _HEARS
    return _SEES if _OPENAI_SEES.match(base) and "search" not in base else _NO_KINDS


def _openai_tokens(model: str, medium: Medium) -> Tokens:
    if medium.kind == "image":
        return _openai_image(model, medium)
    context = (_by_name(_OPENAI_CONTEXTS, model) or (_MOST_CONTEXT,))[0]
    seconds = most_seconds(medium.data or b"", medium.mime) if medium.kind == "audio" else None
    if medium.kind == "audio":  # ten tokens a second
        most = context if seconds is None else min(context, 20 * math.ceil(seconds) + 20)
        return Tokens(math.ceil(10 * (seconds or 60)), _OPENAI_SOUND * most)
    pages = _by_name(_PATCHES, model) or _by_name(_PAGES, model) or (_MOST_OF_A_PAGE,)
    return Tokens(min(context, _usual_pdf(medium)), math.ceil(context * pages[0]))


def _openai_image(model: str, medium: Medium) -> Tokens:
    size = image_size(medium.data or b"") or (2_048, 2_048)
    if tiles := _by_name(_TILES, model):
        base, each = tiles
        return Tokens(base + each * _tiles(*size), base + each * _MOST_TILES)
    if patches := _by_name(_PATCHES, model):
        count = min(_MOST_PATCHES, math.ceil(size[0] / 32) * math.ceil(size[1] / 32))
        return Tokens(math.ceil(count * patches[0]), math.ceil(_MOST_PATCHES * patches[0]))
    return Tokens(min(_MOST_PATCHES, math.ceil(size[0] / 32) * math.ceil(size[1] / 32)), _DEAREST_IMAGE)


def _tiles(width: int, height: int) -> int:
    """Of 512 px, once the image is shrunk into 2,048 px, and its shorter side to 768 px."""
    shrink = min(1.0, 2_048 / max(width, height))
    shrink *= min(1.0, 768 / (min(width, height) * shrink))
    return math.ceil(width * shrink / 512) * math.ceil(height * shrink / 512)


def _usual_pdf(medium: Medium) -> int:
    """About as many tokens as pages with text and a picture of each have, by the bytes of the file."""
    pages = max(1, len(re.findall(rb"/Type\s*/Page\b(?!s)", medium.data or b"")), len(medium.data or b"") // 200_000)
    return 2_500 * pages


OPENAI = Takes(
    _openai_kinds, _openai_tokens, urls=frozenset(("image",)),
    mimes=frozenset(
        ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf", "audio/wav", "audio/mpeg")
    ),
    request_bytes=50_000_000,
)  # fmt: skip


# -- Anthropic ---------------------------------------------------------------------------------------

_ANTHROPIC_OLD = re.compile(r"claude-(3|(opus|sonnet|haiku)-4(-[0-6])?([-@]20\d\d.*|-latest)?$)")
_TEXT_ONLY = re.compile(r"claude-(instant|v?[12](?![0-9])|3-5-haiku)")


def _anthropic_kinds(model: str) -> frozenset[Kind]:
    return _SEES if model.startswith("claude-") and not _TEXT_ONLY.match(model) else _NO_KINDS


def _anthropic_tokens(model: str, medium: Medium) -> Tokens:
    """A pixel in 750, shrunk to 1,568 px (later families: 2,576 px) and some 1,600 (4,784) tokens."""
    is_old = _ANTHROPIC_OLD.match(model) is not None
    longest, most = (1_568, 1_600) if is_old else (2_576, 4_784)
    if medium.kind == "image":
        width, height = image_size(medium.data or b"") or (longest, longest)
        shrink = min(1.0, longest / max(width, height))
        return Tokens(min(most, math.ceil(width * height * shrink * shrink / 750)), most)
    context = 200_000 if re.match("claude-(3|[a-z]+-4(?!-[6-9]))", model) else 1_000_000
    return Tokens(min(context, _usual_pdf(medium)), context)


ANTHROPIC = Takes(
    _anthropic_kinds, _anthropic_tokens, urls=_SEES,
    mimes=frozenset(("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")),
    most_bytes={"image": 10_485_760 * 3 // 4}, request_bytes=32_000_000,  # 10 MB as base64
)  # fmt: skip


# -- Gemini ------------------------------------------------------------------------------------------

_GEMINI_CONTEXT = 1_048_576
_GEMINI_SOUND = 7  # see _OPENAI_SOUND
_TILE = 258  # tokens
_BIG_IMAGE = 2_240  # of later models, at the highest resolution there is
_EVERY: frozenset[Kind] = frozenset(("image", "pdf", "audio", "video"))


def _gemini_kinds(model: str) -> frozenset[Kind]:
    return _EVERY if model.rpartition("/")[2].startswith("gemini-") else _NO_KINDS


def _gemini_tokens(model: str, medium: Medium) -> Tokens:
    data = medium.data or b""
    match medium.kind:
        case "image":
            size = image_size(data)
            if size is None:
                return Tokens(_TILE * 6, _GEMINI_CONTEXT)
            tiles = _gemini_tiles(*size)
            return Tokens(_TILE * tiles, max(_BIG_IMAGE, _TILE * tiles))
        case "pdf":
            pages = max(1, _usual_pdf(medium) // 2_500)
            return Tokens(_TILE * pages, _GEMINI_CONTEXT)
        case kind:
            seconds = most_seconds(data, medium.mime)
            usual, most = (32, 32) if kind == "audio" else (263, 300)  # a second
            if seconds is None:
                return Tokens(usual * max(1, len(data) // 100_000), _GEMINI_SOUND * _GEMINI_CONTEXT)
            most = min(_GEMINI_CONTEXT, most * math.ceil(seconds + 1))
            return Tokens(math.ceil(usual * seconds), _GEMINI_SOUND * most)  # a film may be billed as sound in part


def _gemini_tiles(width: int, height: int) -> int:
    """One up to 384 px, else squares of two thirds of the shorter side, of 256 to 768 px; the most of two readings."""
    if max(width, height) <= 384:
        return 1
    unit = max(256, min(768, int(min(width, height) / 1.5)))
    return max(math.ceil(width / unit) * math.ceil(height / unit), math.ceil(width / 768) * math.ceil(height / 768))


GEMINI = Takes(
    _gemini_kinds, _gemini_tokens,
    mimes=frozenset((
        "image/png", "image/jpeg", "image/webp", "image/heic", "application/pdf", "audio/wav", "audio/mpeg",
        "audio/aac", "audio/ogg", "audio/flac", "audio/mp4", "video/mp4", "video/quicktime", "video/webm",
        "video/x-msvideo",
    )),
    most_bytes={"pdf": 50_000_000}, request_bytes=20_000_000, apart=True,
)  # fmt: skip

_NOTHING = Takes(lambda _: _NO_KINDS, lambda _, __: Tokens(0, 0))

TAKES: Mapping[str, Takes] = {"": _NOTHING, "openai": OPENAI, "anthropic": ANTHROPIC, "gemini": GEMINI}
"""By whose models they are; of a server of which nobody says what it takes: nothing."""


@cache
def takes_of(whose: str | tuple[Kind, ...], context: int = 0) -> Takes:
    """What a server's models take: by whose they are, or the kinds that somebody says they do.

    How the latter count nobody says: each is held as ``context`` tokens, the most that its model takes, 0 where that is
    unknown.
    """
    if isinstance(whose, str):
        return TAKES[whose]
    return Takes(
        lambda _: frozenset(whose),
        lambda _, medium: Tokens(min(context or _MOST_CONTEXT, _usual(medium)), context or _MOST_CONTEXT),
        mimes=OPENAI.mimes | GEMINI.mimes,
    )


def _usual(medium: Medium) -> int:
    match medium.kind:
        case "image":
            return _openai_image("", medium).usual
        case "pdf":
            return _usual_pdf(medium)
        case _:
            return math.ceil(32 * (most_seconds(medium.data or b"", medium.mime) or 60))
