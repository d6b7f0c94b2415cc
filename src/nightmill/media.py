"""Images, PDFs, audio and video as bytes: what kind they are, how large, how long. Nothing here trusts a file's name.

What cannot be told safely is None, never a guess: money is held by these numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["image", "pdf", "audio", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LONGEST_S = 10 * 86_400.0  # what claims to be longer is not believed
_LEAST_MP3_BITS = 8_000  # a second, the lowest rate there is
_UNCOMPRESSED = (1, 3)  # in a WAV file: whole numbers or floats; of others no byte tells the time
_WAV_EXTENSIBLE = 0xFFFE  # which of them it is comes later
_HOLDS_BOXES = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"))  # in a film
_PIECES = frozenset((b"moof", b"mvex", b"cmov"))
_TIMED = frozenset((b"mvhd", b"mdhd"))
_DEEPEST = 8  # box in a box
_MOST_ENTRIES = 1 << 20  # of a table in one


@dataclass(frozen=True, slots=True)
class Medium:
    """One image, PDF, sound or film in a request: its bytes, or where they lie."""

    kind: Kind
    mime: str
    data: bytes | None = None  # None: it lies at ``url``
    url: str = ""
    name: str = ""  # of its file, where it had one


def kind_of(data: bytes) -> tuple[Kind, str] | None:
    """What ``data`` is, by its first bytes: its kind and MIME type; None for what no model takes."""
    for signature, offset, kind, mime in _SIGNATURES:
        if data.startswith(signature, offset):
            return kind, mime
    if data[:4] == b"RIFF":
        return _IN_RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return ("audio", "audio/mp4") if data[8:11] in (b"M4A", b"M4B") else _film(data[8:12])
    if len(data) > 3 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return ("audio", "audio/aac") if data[1] & 0x06 == 0 else ("audio", "audio/mpeg")
    return None


def kind_of_mime(mime: str) -> Kind | None:
    """The kind that a MIME type names."""
    if mime == "application/pdf":
        return "pdf"
    head = mime.partition("/")[0]
    return next((kind for kind in KINDS if kind == head), None)


_SIGNATURES: tuple[tuple[bytes, int, Kind, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "image", "image/png"),
    (b"\xff\xd8\xff", 0, "image", "image/jpeg"),
    (b"GIF87a", 0, "image", "image/gif"),
    (b"GIF89a", 0, "image", "image/gif"),
    (b"%PDF-", 0, "pdf", "application/pdf"),
    (b"ID3", 0, "audio", "audio/mpeg"),
    (b"fLaC", 0, "audio", "audio/flac"),
    (b"OggS", 0, "audio", "audio/ogg"),
    (b"\x1aE\xdf\xa3", 0, "video", "video/webm"),
)
_IN_RIFF: dict[bytes, tuple[Kind, str]] = {
    b"WEBP": ("image", "image/webp"),
    b"WAVE": ("audio", "audio/wav"),
    b"AVI ": ("video", "video/x-msvideo"),
}


def _film(brand: bytes) -> tuple[Kind, str]:
    if brand in (b"heic", b"heix", b"mif1"):
        return "image", "image/heic"
    if brand == b"avif":
        return "image", "image/avif"
    return ("video", "video/quicktime") if brand == b"qt  " else ("video", "video/mp4")


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels, from the header of a PNG, JPEG, GIF or WebP."""
    found = kind_of(data)
    reader = _SIZES.get(found[1]) if found else None
    try:
        size = reader(data) if reader else None
    except (struct.error, IndexError):
        return None
    return size if size and all(0 < side < 1 << 20 for side in size) else None


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            bits = struct.unpack_from("<I", data, 21)[0]
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


_SIZES: dict[str, Callable[[bytes], tuple[int, int] | None]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
}


def most_seconds(data: bytes, mime: str) -> float | None:
    """As long as a sound or film can be: its header's word, or of an MP3 its bytes at the lowest rate there is."""
    match mime:
        case "audio/wav":
            seconds = _wav_seconds(data)
        case "audio/mpeg":
            seconds = len(data) * 8 / _LEAST_MP3_BITS if _is_mp3(data) else None
        case "video/mp4" | "video/quicktime" | "audio/mp4":
            seconds = _mp4_seconds(data)
        case _:
            return None
    return seconds if seconds is not None and 0 <= seconds < _LONGEST_S else None


def _is_mp3(data: bytes) -> bool:
    """Whether frames of MP3 stand behind its ID3 tag: what else may stand there can be far smaller for its time."""
    at = 0
    while data[at : at + 3] == b"ID3" and at + 10 <= len(data):
        high, mid, low, lowest = data[at + 6 : at + 10]
        at += 10 + (high << 21 | mid << 14 | low << 7 | lowest) + (10 if data[at + 5] & 0x10 else 0)
    is_frame = len(data) > at + 2 and data[at] == 0xFF and data[at + 1] & 0xE6 in (0xE2, 0xE4, 0xE6)
    return is_frame and data[at + 2] >> 4 > 0  # else it has a rate of its own, which may be any


def _wav_seconds(data: bytes) -> float | None:
    """All of its bytes at the lowest rate that any of its formats tells, in any of three ways: they may not agree."""
    rates, at = list[int](), 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"fmt " and at + 24 <= len(data):
            coding, channels, rate, each_s, block, bits = struct.unpack_from("<HHIIHH", data, at + 8)
            if coding == _WAV_EXTENSIBLE and at + 34 <= len(data):
                coding = struct.unpack_from("<H", data, at + 32)[0]
            if coding not in _UNCOMPRESSED:
                return None
            rates += each_s, rate * block, channels * rate * bits // 8
        at += 8 + size + size % 2
    return len(data) / min(rates) if rates and all(rates) else None


def _mp4_seconds(data: bytes) -> float | None:
    """By the header of the film, those of its tracks, their cuts and the times of their samples: the longest of them.

    In pieces, or packed, its headers know nothing of how long it is.
    """
    movie_scale = scale = 0
    longest = 0.0
    try:
        for name, at, end in _boxes(data, 0, len(data)):
            if name in _PIECES or (name == b"mvhd" and movie_scale) or (name == b"mdhd" and scale):
                return None
            if name == b"trak":
                scale = 0
            elif name in _TIMED:
                scale, units = _header_times(data, at)
                if not units:
                    return None
                movie_scale = scale if name == b"mvhd" else movie_scale
                longest = max(longest, units / scale)
                scale = 0 if name == b"mvhd" else scale
            elif name == b"elst":
                longest = max(longest, _cut_units(data, at, end) / movie_scale)
            elif name == b"stts":
                longest = max(longest, _sample_units(data, at, end) / scale)
    except (struct.error, IndexError, ZeroDivisionError):
        return None
    return longest or None


def _boxes(data: bytes, at: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """The name of every box, and where its content begins and ends. Raises struct.error."""
    while at < end:
        size, name = struct.unpack_from(">I4s", data, at)
        head = 16 if size == 1 else 8
        size = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else size or end - at
        if size < head or at + size > end or depth > _DEEPEST:
            raise struct.error("a box ends outside of what it is in")
        yield name, at + head, at + size
        if name in _HOLDS_BOXES:
            yield from _boxes(data, at + head, at + size, depth + 1)
        at += size


def _header_times(data: bytes, at: int) -> tuple[int, int]:
    """Units of time in a second, and how many of these it lasts. Raises struct.error: that is not known."""
    scale, units = struct.unpack_from(">IQ" if data[at] else ">II", data, at + (20 if data[at] else 12))
    if units == (0xFFFF_FFFF_FFFF_FFFF if data[at] else 0xFFFF_FFFF):
        raise struct.error("nobody knows")
    return scale, units


def _cut_units(data: bytes, at: int, end: int) -> int:
    form = ">QqI" if data[at] else ">IiI"
    return sum(cut[0] for cut in _entries(form, data, at, end))


def _sample_units(data: bytes, at: int, end: int) -> int:
    return sum(count * each for count, each in _entries(">II", data, at, end))


def _entries(form: str, data: bytes, at: int, end: int) -> Iterator[tuple[int, ...]]:
    count = struct.unpack_from(">I", data, at + 4)[0]
    size = struct.calcsize(form) * count
    if count > _MOST_ENTRIES or at + 8 + size > end:
        raise struct.error("it has not so many")
    return struct.iter_unpack(form, data[at + 8 : at + 8 + size])
