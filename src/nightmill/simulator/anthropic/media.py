"""Images and documents in Messages: what is taken, what is refused, how many tokens it counts for.

Source: Anthropic's pages on vision, coordinates and PDF support, as of September 2026, and the words of its refusals.
An image costs a token for each patch of 28 px after it was made small enough for its model; of a PDF a model gets the
text and an image of each page, taken as one of `PAGE_PIXELS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nightmill.simulator.answering import text_tokens
from nightmill.simulator.anthropic.wire import ApiError
from nightmill.simulator.billing import Catalogue
from nightmill.simulator.formats import encode
from nightmill.simulator.media import PAGE_PIXELS, Find, Kind, Media, addressed, decoded, looked_at

_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_PATCH = 28
_TIERS = {False: (1568, 1568), True: (2576, 4784)}  # longest side and most patches, of high resolution or not
_STANDARD = re.compile(r"claude-(v?[0-3]|instant)|(opus|sonnet|haiku)-4(-[0-6])?(-\d{8}|-latest|$)|-4-[0-6](-|$)")
_MOST_ENCODED = 10 * 1024 * 1024  # bytes of base64, of an image
_MOST_SIDE, _MOST_SIDE_OF_MANY, _MANY = 8000, 2000, 20
_MOST, _MOST_OF_SMALL, _SMALL_CONTEXT = 600, 100, 200_000  # images, and pages, of one request
_SEEN = "tokens seen"  # no field of the wire: what `look` leaves in a block


def weight(block: dict[str, Any]) -> int:
    """Tokens of a block of content that was looked at."""
    if _SEEN in block:
        return int(block[_SEEN])
    if block.get("type") == "text":
        return text_tokens(str(block.get("text") or ""))
    inner = _inner(block)
    if isinstance(inner, list):
        bare = {name: value for name, value in block.items() if name not in ("content", "source")}
        return text_tokens(encode(bare).decode()) + sum(weight(each) for each in inner)
    return text_tokens(encode(block).decode())


def _inner(block: dict[str, Any]) -> Any:
    """The blocks inside a block, where it has any."""
    source = block.get("source")
    if block.get("type") == "document" and isinstance(source, dict) and source.get("type") == "content":
        return source.get("content")
    return block.get("content") if block.get("type") == "tool_result" else None


def look(model: str, contents: list[Any], find: Find, catalogue: Catalogue) -> list[Media]:
    """What the images and documents of a request are, in their order; each block is left its tokens for `weight`.

    Raises:
        ApiError: one of them is not taken, or they are too many.
    """
    seen, large = [], []
    images = pages = 0
    found = [each for number, content in enumerate(contents) for each in _blocks(content, f"messages.{number}.content")]
    for where, block in found:
        media = _image(block, where, find) if block["type"] == "image" else _document(block, where, find)
        seen.append(media)
        block[_SEEN] = _tokens(model, media)
        if media.kind is Kind.IMAGE:
            images += 1
            large.append((where, max(media.width, media.height)))
            _refuse_oversized(model, block, media, where)
        pages += media.pages
    context = catalogue.context(model)
    most = _MOST_OF_SMALL if 0 < context <= _SMALL_CONTEXT else _MOST
    if images > most:
        raise ApiError(400, f"Too many images: {images} > {most}")
    if pages > most:
        raise ApiError(400, f"A maximum of {most} PDF pages may be provided")
    _refuse_large(large)
    return seen


def _blocks(content: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Images and documents, with where they stand; those inside others, such as the results of tools, too."""
    for number, block in enumerate(content if isinstance(content, list) else ()):
        at, inner = f"{where}.{number}", _inner(block)
        if inner is not None:
            yield from _blocks(inner, f"{at}.{block['type']}.content")
        elif block.get("type") in ("image", "document"):
            yield at, block


def _refuse_large(sides: list[tuple[str, int]]) -> None:
    """Raise what images get whose sides are too long; of many images, less is taken."""
    is_many = len(sides) > _MANY
    most = _MOST_SIDE_OF_MANY if is_many else _MOST_SIDE
    paths = [where for where, side in sides if side > most]
    if not paths:
        return
    what = "max allowed size for many-image requests" if is_many else "max allowed size"
    message = f"{paths[0]}.image.source.base64.data: At least one of the image dimensions exceed {what}: {most} pixels"
    details = {"error_code": "image_dimensions_too_large", "max_side_length_pixels": most, "paths": paths}
    raise ApiError(400, message, details=details)


def _refuse_oversized(model: str, block: dict[str, Any], media: Media, where: str) -> None:
    """Raise what an image gets that would have to be made smaller, where the caller wants none of that."""
    how = (block.get("transformations") or {}).get("oversized_image", "downsize")
    if how not in ("downsize", "error"):
        raise ApiError(400, f"{where}.image.transformations.oversized_image: Input should be 'downsize' or 'error'")
    width, height = _fitted(model, media.width, media.height)
    if how == "error" and (width, height) != (media.width, media.height):
        size = f"{media.width}x{media.height} pixels; the largest that fits is {width}x{height}"
        raise ApiError(400, f"{where}.image: image is oversized: {size}")


def _tokens(model: str, media: Media) -> int:
    if media.kind is Kind.IMAGE:
        return image_tokens(model, media.width, media.height)
    return -(-media.text_bytes // 4) + media.pages * image_tokens(model, *PAGE_PIXELS)


def image_tokens(model: str, width: int, height: int) -> int:
    """What an image costs a model."""
    return _patches(*_fitted(model, width, height))


def _patches(width: int, height: int) -> int:
    return -(-width // _PATCH) * -(-height // _PATCH)


def _fitted(model: str, width: int, height: int) -> tuple[int, int]:
    """The largest size of the same shape that a model takes."""
    edge, most = _TIERS[_STANDARD.search(model) is None]

    def fits(w: int, h: int) -> bool:
        return max(-(-w // _PATCH), -(-h // _PATCH)) * _PATCH <= edge and _patches(w, h) <= most

    def short(long: int) -> int:
        return max(1, round(long * min(width, height) / max(width, height)))

    if fits(width, height):
        return width, height
    low, high = 1, max(width, height)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle, short(middle)) else (low, middle)
    return (low, short(low)) if width >= height else (short(low), low)


def _source(block: dict[str, Any], where: str) -> dict[str, Any]:
    source = block.get("source")
    if not isinstance(source, dict) or "type" not in source:
        raise ApiError(400, f"{where}.{block['type']}.source: Field required")
    return source


def _image(block: dict[str, Any], where: str, find: Find) -> Media:
    source = _source(block, where)
    at = f"{where}.image.source.{source['type']}"
    match source["type"]:
        case "base64":
            declared = source.get("media_type")
            if declared not in _TYPES:
                said = "'image/jpeg', 'image/png', 'image/gif' or 'image/webp'"
                raise ApiError(400, f"{at}.media_type: Input should be {said}")
            encoded = str(source.get("data") or "")
            if len(encoded) > _MOST_ENCODED:
                raise ApiError(400, f"{at}: image exceeds 10 MB maximum: {len(encoded)} bytes > {_MOST_ENCODED} bytes")
            media = _decoded(encoded, at)
            if media is None or media.kind is not Kind.IMAGE:
                raise ApiError(400, "Could not process image")
            if media.type != declared:
                but = f"but the image appears to be a {media.type} image"
                raise ApiError(400, f"{at}: The image was specified using the {declared} media type, {but}")
        case "url":
            media = addressed(_url(source, at), "image/jpeg")
        case "file":
            media = _file(source, at, find)
        case other:
            raise _unknown(f"{where}.image", other, "'base64', 'file', 'url'")
    if media.type not in _TYPES:
        raise ApiError(400, "Could not process image")
    return media


def _document(block: dict[str, Any], where: str, find: Find) -> Media:
    source = _source(block, where)
    at = f"{where}.document.source.{source['type']}"
    match source["type"]:
        case "base64":
            if source.get("media_type") != "application/pdf":
                raise ApiError(400, f"{at}.media_type: Input should be 'application/pdf'")
            media = _decoded(str(source.get("data") or ""), at)
            if media is None or media.kind is not Kind.PDF:
                raise ApiError(400, f"{at}.data: The PDF specified was not valid.")
        case "text":
            data = str(source.get("data") or "").encode()
            media = looked_at(data) or Media("text/plain", len(data), "", text_bytes=len(data))
        case "url":
            media = addressed(_url(source, at), "application/pdf")
        case "file":
            media = _file(source, at, find)
        case other:
            raise _unknown(f"{where}.document", other, "'base64', 'content', 'file', 'text', 'url'")
    if media.is_locked:
        raise ApiError(400, f"{at}.data: The PDF specified is password protected.")
    if media.kind not in (Kind.PDF, Kind.TEXT):
        raise ApiError(400, f"{at}: The document specified was not valid.")
    return media


def _unknown(where: str, word: str, known: str) -> ApiError:
    what = f"Input tag '{word}' found using 'type' does not match any of the expected tags: {known}"
    return ApiError(400, f"{where}.source: {what}")


def _decoded(encoded: str, at: str) -> Media | None:
    try:
        return looked_at(decoded(encoded))
    except ValueError:
        raise ApiError(400, f"{at}.data: Invalid base64 data") from None


def _url(source: dict[str, Any], at: str) -> str:
    url = str(source.get("url") or "")
    if not url.startswith("https://"):
        raise ApiError(400, f"{at}.url: Only HTTPS URLs are supported.")
    return url


def _file(source: dict[str, Any], at: str, find: Find) -> Media:
    file_id = str(source.get("file_id") or "")
    found = find(file_id)
    if found is None:
        raise ApiError(404, f"File not found: {file_id}")
    return found
