"""Media in Gemini's contents: what is taken, what is refused, how many tokens of which modality it counts for.

Sources: Google's pages on tokens, image understanding and media resolution, as of September 2026, and the words of its
refusals. Models before Gemini 3 pay 258 tokens for a tile of an image and for a page, 32 for a second of audio, 263
for one of video; since then an image, a page and a frame have a fixed price for each resolution, and the sound of a
video is counted by itself. The text of a PDF costs nothing. Google is not known to refuse bytes that are another
medium of the same kind than they are said to be; the simulator does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from nightmill.simulator.gemini.errors import GeminiError, invalid, no_such_file
from nightmill.simulator.gemini.reading import Generate, Part, either
from nightmill.simulator.media import UNKNOWN_TYPE, Find, Kind, Media, Sights, addressed, decoded, looked_at, plain_type

_MOST_BYTES = 20 * 1024 * 1024  # of a request with what is inside it
_MOST_PAGES = 1000  # of a PDF
_TYPES = frozenset(
    {
        *("image/png", "image/jpeg", "image/webp", "image/heic", "application/pdf"),
        *("audio/wav", "audio/mp3", "audio/aiff", "audio/aac", "audio/ogg", "audio/flac", "audio/m4a"),
        *("video/mp4", "video/mpeg", "video/quicktime", "video/x-msvideo", "video/x-flv", "video/webm"),
        *("video/x-ms-wmv", "video/3gpp"),
    }
)
_FILE = re.compile(r"(?:^|/v1(?:beta)?/|^https?://[^/]+/)files/([^/?#:]+)$").search
_IS_OLD = re.compile(r"gemini-(1|2|live-2|flash-1|pro-1|pro$)").match
_IS_SMALL = re.compile(r"gemma-").match  # models that see images, and nothing else
_LOW, _MEDIUM, _HIGH, _HIGHEST = (f"MEDIA_RESOLUTION_{word}" for word in ("LOW", "MEDIUM", "HIGH", "ULTRA_HIGH"))
_TILE, _LOW_TILE, _SMALL_SIDE, _LARGEST_TILE = 258, 64, 384, 768
_OLD_AUDIO, _OLD_VIDEO, _OLD_LOW_VIDEO = 32, 263, 69  # a second
_AUDIO, _IMAGE = 25, {_LOW: 280, _MEDIUM: 560, _HIGHEST: 2240}
_DEFAULT_IMAGE, _PAGE, _DEFAULT_PAGE = 1120, {_LOW: 280, _HIGH: 1120}, 560
_FRAME, _HIGH_FRAME = 70, 280
_UNREADABLE = "Unable to process input image. Please retry or report in https://developers.generativeai.google/guide/troubleshooting"


def refuse_too_long(request: bytes) -> None:
    """Raise what a request gets that is larger than one may be with what is inside it."""
    if len(request) > _MOST_BYTES:
        raise invalid(f"Request payload size exceeds the limit: {_MOST_BYTES} bytes. Please upload your files.")


def look(asked: Generate, model: str, find: Find) -> Sights:
    """What the media of a request are.

    Raises:
        GeminiError: one of them is not taken.
    """
    config = asked.generation_config
    resolution = config.media_resolution if config is not None else None
    sights = Sights()
    for content in asked.contents:
        for part in content.parts:
            media = _media(part, find)
            if media is not None:
                _add(sights, media, model, part, resolution)
    return sights


def _media(part: Part, find: Find) -> Media | None:
    """What a part holds; None for one that holds no media."""
    if part.inline_data is not None:
        declared = _declared(part.inline_data)
        return _checked(looked_at(decoded(str(either(part.inline_data, "data")))), declared)
    if part.file_data is None:
        return None
    uri, declared = str(either(part.file_data, "fileUri") or ""), _declared(part.file_data, is_needed=False)
    named = _FILE(uri)
    if named is not None:
        found = find(named[1])
        if found is None:
            raise no_such_file(named[1])
        return _checked(found, declared)
    if not uri.startswith(("https://", "http://")):
        raise invalid(f"Invalid or unsupported file uri: {uri}")
    return addressed(uri, declared or "video/mp4")  # without a type, a video of a public site


def _declared(data: Mapping[str, Any], *, is_needed: bool = True) -> str:
    told = str(either(data, "mimeType") or "")
    if not told and is_needed:
        raise invalid("* GenerateContentRequest.contents.parts.inline_data.mime_type: must not be empty.")
    plain = plain_type(told)
    if told and (told == "image/jpg" or (plain not in _TYPES and not plain.startswith("text/"))):
        raise invalid(f"Unsupported MIME type: {told}")
    return plain


def _checked(media: Media | None, declared: str) -> Media:
    if media is None or media.type == UNKNOWN_TYPE:
        raise invalid(_UNREADABLE)
    is_text = declared.startswith("text/") and media.kind is Kind.TEXT
    if declared and not is_text and declared != media.type:
        raise invalid(_UNREADABLE if declared.startswith("image/") else f"The file is {media.type}, not {declared}.")
    if media.type not in _TYPES and media.kind is not Kind.TEXT:
        raise invalid(f"Unsupported MIME type: {media.type}")
    if media.is_locked:
        raise invalid("The document has no pages.")
    if media.pages > _MOST_PAGES:
        raise invalid(
            f"The document contains {media.pages} pages which exceeds the supported page limit of {_MOST_PAGES}."
        )
    return media


def _add(sights: Sights, media: Media, model: str, part: Part, resolution: str | None) -> None:
    """Count one; its own resolution goes before that of the request."""
    if _IS_SMALL(model) and media.kind not in (Kind.IMAGE, Kind.TEXT):
        raise GeminiError(400, f"{media.kind.capitalize()} input modality is not enabled for models/{model}")
    own = (part.media_resolution or {}).get("level")
    level = str(own or resolution or "")
    if own and _IS_OLD(model):
        raise invalid("Media resolution of a part is not supported by this model.")
    match media.kind:
        case Kind.TEXT:
            sights.add(media, text=-(-media.text_bytes // 4))
        case Kind.IMAGE:
            sights.add(media, image=_image(model, media, level))
        case Kind.AUDIO:
            rate = _OLD_AUDIO if _IS_OLD(model) else _AUDIO
            sights.add(media, audio=math.ceil(media.seconds * rate))
        case Kind.VIDEO:
            _add_video(sights, media, model, part, level)
        case Kind.PDF if _IS_OLD(model):
            sights.add(media, pdf=media.pages * (_LOW_TILE if level == _LOW else _TILE))
        case Kind.PDF:
            sights.add(media, image=media.pages * _PAGE.get(level, _DEFAULT_PAGE))


def _image(model: str, media: Media, level: str) -> int:
    if not (_IS_OLD(model) or _IS_SMALL(model)):
        return _IMAGE.get(level, _DEFAULT_IMAGE)
    if level == _LOW:
        return _LOW_TILE
    if level == _MEDIUM or max(media.width, media.height) <= _SMALL_SIDE:
        return _TILE
    side = min(max(min(media.width, media.height) * 2 // 3, 256), _LARGEST_TILE)
    return _TILE * -(-media.width // side) * -(-media.height // side)


def _add_video(sights: Sights, media: Media, model: str, part: Part, level: str) -> None:
    """Frames, one a second unless it says otherwise, of the part that is wanted."""
    wanted = part.video_metadata or {}
    start, end = (_seconds(either(wanted, name)) for name in ("startOffset", "endOffset"))
    seconds = max(0.0, min(media.seconds, end or media.seconds) - start)
    rate = either(wanted, "fps") or 1.0
    if not isinstance(rate, int | float) or not 0 < rate <= 24:
        raise invalid("* video_metadata.fps: must be in the range (0.0, 24.0].")
    frames = math.ceil(seconds * rate)
    if _IS_OLD(model):
        sights.add(media, video=frames * (_OLD_LOW_VIDEO if level == _LOW else _OLD_VIDEO))
    else:
        sights.add(media, video=frames * (_HIGH_FRAME if level == _HIGH else _FRAME), audio=math.ceil(seconds * _AUDIO))


def _seconds(offset: Any) -> float:
    """A duration as protobuf's JSON writes it, such as ``12.5s``; 0 for none."""
    if offset is None:
        return 0.0
    try:
        return float(str(offset).removesuffix("s"))
    except ValueError:
        raise invalid(f"Invalid value at 'video_metadata' (TYPE_DURATION): {offset}") from None
