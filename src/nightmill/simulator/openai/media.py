"""Images, files and audio in OpenAI's requests: what is taken, what is refused, how many tokens it counts for.

Sources: OpenAI's guides to images and vision, file inputs and audio, as of September 2026, and the words of its
refusals. Of a PDF a model gets the text and an image of each page, taken as one of `PAGE_PIXELS`. Audio of a user is a
token for each tenth of a second. OpenAI is not known to refuse a data URL that names another of the image types it
takes than its bytes are; the simulator does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nightmill.simulator.media import PAGE_PIXELS, Find, Kind, Media, Sights, addressed, decoded, looked_at, plain_type
from nightmill.simulator.openai.wire import ApiError

_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_FORMATS = {"wav": "audio/wav", "mp3": "audio/mp3"}
_DETAILS = ("auto", "low", "high", "original")
_MOST_IMAGES = 1500
_MOST_FILE_BYTES = 50 * 1024 * 1024  # of all files of one request
_AUDIO_TOKENS_A_SECOND = 10
_LOW_EDGE = 512
_PATCH = 32
_MOST_PATCHES = 30_000  # of an image that is not made smaller; one with more is refused
_BLIND = re.compile(
    r"gpt-3\.5|gpt-4($|-32k|-0|-1106|-\d{4}$)|o1-(mini|preview)|o3-mini|gpt-oss|text-|davinci|babbage|curie|ada$|"
    r"whisper|tts|moderation|omni-moderation"
)
_HEARING = re.compile(r"gpt-audio|gpt-4o(-mini)?-audio")


@dataclass(frozen=True, slots=True)
class _Tiles:
    """An image fits into 2048 px, its short side into 768 px, and is cut into tiles of 512 px."""

    base: int  # which is all that low detail costs
    tile: int

    def tokens(self, width: int, height: int, detail: str) -> int:
        if detail == "low":
            return self.base
        scale = min(1.0, 2048 / max(width, height))
        scale = min(scale, 768 / min(width, height))
        across, down = (math.ceil(round(side * scale, 6) / 512) for side in (width, height))
        return self.base + self.tile * across * down


@dataclass(frozen=True, slots=True)
class _Patches:
    """An image is made small enough for a budget of patches of 32 px, and each patch costs some hundredths."""

    hundredths: int
    high: tuple[int, int] = (1536, 2048)  # most patches, longest side
    original: tuple[int | None, int] | None = (
        None  # the same, None patches: never smaller; None: there is no such detail
    )
    auto: str = "high"

    def tokens(self, width: int, height: int, detail: str) -> int:
        wanted = self.auto if detail == "auto" else detail
        if wanted == "low":
            scale = min(1.0, _LOW_EDGE / max(width, height))
            patches = _patches(width, height, scale)
        else:
            limits = self.original if wanted == "original" else None
            patches = _fitting(width, height, *(limits or self.high))
        return -(-patches * self.hundredths // 100)


def _patches(width: int, height: int, scale: float) -> int:
    """Patches that cover an image of whole pixels, made smaller."""
    wide, high = (max(1, math.floor(side * scale + 1e-6)) for side in (width, height))
    return -(-wide // _PATCH) * -(-high // _PATCH)


def _fitting(width: int, height: int, budget: int | None, edge: int) -> int:
    """Patches of an image once it is small enough."""
    scale = min(1.0, edge / max(width, height))
    count = _patches(width, height, scale)
    if budget is None or count <= budget:
        return count
    shrink = math.sqrt(_PATCH**2 * budget / (width * height))
    whole = (max(1, math.floor(side * shrink / _PATCH)) / (side * shrink / _PATCH) for side in (width, height))
    shrink *= min(1.0, *whole)
    return min(budget, _patches(width, height, shrink))


_LARGE = (10_000, 6000)
_RULES: tuple[tuple[str, _Tiles | _Patches], ...] = (  # by how a model's name begins, the first that fits
    (r"gpt-4o-mini", _Tiles(2833, 5667)),
    (r"computer-use", _Tiles(65, 129)),
    (r"o4-mini", _Patches(172)),
    (r"o[13]", _Tiles(75, 150)),
    (r"gpt-(4\.1|5|5\.1-codex|5\.4)-mini", _Patches(162)),
    (r"gpt-(4\.1|5|5\.4)-nano", _Patches(246)),
    (r"chatgpt-4o|gpt-4", _Tiles(85, 170)),
    (r"gpt-5(\.1)?($|-)", _Tiles(70, 140)),
    (r"gpt-5\.[23]", _Patches(120)),
    (r"gpt-5\.4", _Patches(120, (2500, 2048), _LARGE)),
    (r"gpt-5\.5", _Patches(120, (2500, 2048), _LARGE, auto="original")),
    (r"gpt-5\.6", _Patches(120, (2500, 2048), (None, 65_535), auto="original")),
    (r"", _Patches(120, (2500, 65_535), (None, 65_535), auto="original")),
)


def image_tokens(model: str, width: int, height: int, detail: str) -> int:
    """What an image costs a model, as tokens of its prompt. ``detail`` is one that the model has."""
    return _rule(model).tokens(width, height, detail)


def _rule(model: str) -> _Tiles | _Patches:
    name = model.removeprefix("ft:")
    return next(rule for start, rule in _RULES if re.match(start, name))


def _bad(message: str, param: str | None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


class Eye:
    """Looks at the media of one request to one model."""

    def __init__(self, model: str, find: Find) -> None:
        self.sights = Sights()
        self._model, self._name, self._find = model, model.removeprefix("ft:"), find
        self._images = self._file_bytes = 0

    def image(self, url: str | None, file_id: str | None, detail: str | None, where: str) -> None:
        """An image, as a data URL, at an address or as a file. Raises ApiError."""
        if _HEARING.match(self._name):
            raise _bad("This model does not support image_url content.", where.rpartition("[")[0] or where)
        if _BLIND.match(self._name):
            message = "Invalid content type. image_url is only supported by certain models."
            raise _bad(message, f"{where}.type", None)
        wanted = self._detail(detail, where)
        if file_id:
            media = self._file_of(file_id, where)
        elif url:
            media = self._pictured(url, where)
        else:
            raise _bad(
                f"Missing required parameter: '{where}.image_url'.", f"{where}.image_url", "missing_required_parameter"
            )
        if media.type not in _IMAGE_TYPES:
            raise _unsupported_image()
        self._images += 1
        if self._images > _MOST_IMAGES:
            raise _bad(f"Too many images in request. The most is {_MOST_IMAGES}.", None)
        self.sights.add(media, image=self._weighed(media.width, media.height, wanted, where))

    def _weighed(self, width: int, height: int, detail: str, where: str) -> int:
        rule = _rule(self._model)
        tokens = rule.tokens(width, height, detail)
        unbounded = isinstance(rule, _Patches) and rule.original is not None and rule.original[0] is None
        if unbounded and tokens * 100 > _MOST_PATCHES * rule.hundredths:  # type: ignore[union-attr]
            message = f"The image needs more than the {_MOST_PATCHES} patches that are supported. Resize it."
            raise _bad(message, where, "image_too_large")
        return tokens

    def _detail(self, detail: str | None, where: str) -> str:
        rule = _rule(self._model)
        known = [word for word in _DETAILS if word != "original" or getattr(rule, "original", None) is not None]
        if detail is not None and detail not in known:
            said = ", ".join(f"'{word}'" for word in known)
            raise _bad(f"Invalid value: '{detail}'. Supported values are: {said}.", f"{where}.detail")
        return detail or "auto"

    def _pictured(self, url: str, where: str) -> Media:
        if url.startswith(("http://", "https://")):
            return addressed(url, "image/jpeg")
        if not url.startswith("data:"):
            message = f"Invalid '{where}'. Expected a valid URL, but got a value with an invalid format."
            raise _bad(message, where)
        media_type, data = _data_url(url)
        if not media_type.startswith("image/"):
            raise _bad("Invalid MIME type. Only image types are supported.", None, "invalid_image_format")
        try:
            media = looked_at(decoded(data))
        except ValueError:
            raise _bad("Invalid base64 image_url.", where, "invalid_base64") from None
        if media is None or plain_type(media_type) != media.type:
            raise _unsupported_image()
        return media

    def file(self, given: Mapping[str, Any], where: str) -> None:
        """A PDF, or where addresses are taken a text: as base64, at an address or as a file. Raises ApiError."""
        if _HEARING.match(self._name) or _BLIND.match(self._name):
            raise _bad("This model does not support file content types.", where)
        data, file_id, url = given.get("file_data"), given.get("file_id"), given.get("file_url")
        if sum(bool(each) for each in (data, file_id, url)) > 1:
            raise _bad(f"Mutually exclusive parameters: '{where}' takes one of file_data, file_id, file_url.", where)
        if file_id:
            media = self._file_of(str(file_id), where)
        elif url:
            media = addressed(str(url), "application/pdf")
        elif data:
            media = self._inline(str(data), given.get("filename"), where)
        else:
            missing = f"{where}.file_id"
            raise _bad(f"Missing required parameter: '{missing}'.", missing, "missing_required_parameter")
        self._file_bytes += media.size_bytes
        if self._file_bytes > _MOST_FILE_BYTES:
            raise _bad(
                f"The files of a request may have up to {_MOST_FILE_BYTES} bytes together.", where, "file_too_large"
            )
        self._read(media, str(given.get("detail") or "auto"), where)

    def _read(self, media: Media, detail: str, where: str) -> None:
        if media.kind is Kind.TEXT:
            self.sights.add(media, text=-(-media.text_bytes // 4))
            return
        if media.kind is not Kind.PDF or media.is_locked:
            why = "it has a password" if media.is_locked else f"it is {media.type}"
            raise _bad(f"The file could not be read: {why}.", where, "unsupported_file")
        if detail not in ("auto", "low", "high"):
            raise _bad(f"Invalid value: '{detail}'. Supported values are: 'auto', 'low', 'high'.", f"{where}.detail")
        page = image_tokens(self._model, *PAGE_PIXELS, detail)
        self.sights.add(media, image=media.pages * page, text=-(-media.text_bytes // 4))

    def _inline(self, data: str, filename: Any, where: str) -> Media:
        param = f"{where}.file_data"
        expected = "Expected a base64-encoded data URL with an application/pdf MIME type"
        if not filename:
            raise _bad(
                f"Missing required parameter: '{where}.filename'.", f"{where}.filename", "missing_required_parameter"
            )
        if not data.startswith("data:"):
            raise _bad(f"Invalid '{param}'. {expected}, but got a value without the 'data:' prefix.", param)
        media_type, raw = _data_url(data)
        try:
            media = looked_at(decoded(raw))
        except ValueError:
            raise _bad(f"Invalid '{param}'. {expected}, but the data is no base64.", param) from None
        named = plain_type(media_type)
        is_text = media is not None and media.kind is Kind.TEXT and named.startswith("text/")
        if media is None or (named != media.type and not is_text):
            raise _bad(f"Invalid '{param}'. {expected}, but got '{media_type}' whose bytes are something else.", param)
        return media

    def _file_of(self, file_id: str, where: str) -> Media:
        found = self._find(file_id)
        if found is None:
            raise ApiError(404, f"No such File object: {file_id}", param=f"{where}.file_id")
        return found

    def audio(self, given: Mapping[str, Any], where: str) -> None:
        """Audio as base64. Raises ApiError."""
        if not _HEARING.match(self._name):
            message = where.partition(".")[0]
            text = f"Invalid '{message}'. Content blocks are expected to be either text or image_url type."
            raise _bad(text, message)
        form = str(given.get("format"))
        if form not in _FORMATS:
            raise _bad(
                f"Invalid value: '{form}'. Supported values are: 'wav' and 'mp3'.", f"{where}.input_audio.format"
            )
        param = f"{where}.input_audio.data"
        try:
            media = looked_at(decoded(str(given.get("data") or "")))
        except ValueError:
            raise _bad(f"Invalid '{param}'. Expected base64-encoded audio.", param) from None
        if media is None or media.type != _FORMATS[form]:
            raise _bad(f"The data provided for '{param}' is not of valid {form} format.", param)
        self.sights.add(media, audio=math.ceil(media.seconds * _AUDIO_TOKENS_A_SECOND))

    def refuse_silence(self) -> None:
        """Models that hear want to. Raises ApiError."""
        if _HEARING.match(self._name) and not self.sights.tokens[Kind.AUDIO]:
            raise _bad("This model requires that either input content or output modality contain audio.", "model")


def _unsupported_image() -> ApiError:
    message = (
        "You uploaded an unsupported image. Please make sure your image has of one the following formats: "
        "['png', 'jpeg', 'gif', 'webp']."
    )
    return _bad(message, None, "invalid_image_format")


def _data_url(url: str) -> tuple[str, str]:
    """Media type and base64 of a data URL; one that is not base64 has empty ones."""
    head, comma, data = url.removeprefix("data:").partition(",")
    media_type, _, coding = head.rpartition(";")
    return (media_type, data) if comma and coding == "base64" else ("", "")
