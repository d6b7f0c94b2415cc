"""Media in requests, known by their bytes: what they are, how large, and a digest that an answer can name.

Nothing is drawn, played or fetched. The size of an image and the seconds of WAV, MP4 and M4A are read from their
headers, the pages of a PDF are counted. What its bytes do not tell without decoding them has a fixed figure:

* compressed audio: 16,000 bytes a second (128 kbit/s);
* video that has no header of ISO media: 125,000 bytes a second (1 Mbit/s);
* HEIC images: 4032 x 3024 pixels;
* what stands at an address: by the digest of the address an image of one of `ADDRESSED_PIXELS`, a PDF of 1 to 8
  pages with 400 bytes of text each, 1 to 60 seconds of audio or video.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

ADDRESSED_PIXELS = ((512, 512), (1024, 768), (1920, 1080), (4032, 3024))
PAGE_PIXELS = (1700, 2200)  # the image of a PDF's page: letter paper at 200 dots an inch
_ADDRESSED_PAGES, _ADDRESSED_PAGE_BYTES, _ADDRESSED_SECONDS = 8, 400, 60
_AUDIO_BYTES_A_SECOND = 16_000
_VIDEO_BYTES_A_SECOND = 125_000
_HEIC_PIXELS = (4032, 3024)
_PCM = 1  # the form of WAV that is not compressed
_INFLATED_BYTES = 1 << 22  # of one stream of a PDF: what comes after is not read
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/heif": "image/heic",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/mpeg": "audio/mp3",
    "audio/mpga": "audio/mp3",
    "audio/x-m4a": "audio/m4a",
    "audio/mp4": "audio/m4a",
    "audio/x-aac": "audio/aac",
    "audio/x-flac": "audio/flac",
    "audio/x-aiff": "audio/aiff",
    "video/mov": "video/quicktime",
    "video/mpg": "video/mpeg",
    "video/mpegps": "video/mpeg",
    "video/avi": "video/x-msvideo",
    "video/flv": "video/x-flv",
}


UNKNOWN_TYPE = "application/octet-stream"


class Kind(StrEnum):
    """What providers tell apart in their usage."""

    TEXT = "text"
    IMAGE = "image"
    PDF = "document"
    AUDIO = "audio"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class Media:
    """One piece of media; what does not belong to its kind is 0."""

    type: str  # such as image/png, by its bytes where those can be told
    size_bytes: int  # 0: it stands at an address
    digest: str  # of its bytes, or of its address
    width: int = 0
    height: int = 0
    pages: int = 0
    text_bytes: int = 0  # of the pages
    seconds: float = 0.0
    is_locked: bool = False  # a PDF with a password

    @property
    def kind(self) -> Kind:
        """What it is."""
        if self.type == "application/pdf":
            return Kind.PDF
        word = self.type.partition("/")[0]
        return Kind(word) if word in ("image", "audio", "video") else Kind.TEXT


Find = Callable[[str], Media | None]  # an uploaded file by its id; None: it is not there


def no_files(_: str) -> Media | None:
    """Finds none."""
    return None


@dataclass(slots=True)
class Sights:
    """The media of one request, in their order, and the tokens they count for."""

    media: list[Media] = field(default_factory=list)
    tokens: Counter[Kind] = field(default_factory=Counter)

    def add(self, media: Media, **tokens: int) -> None:
        """One more, with its tokens by the name of their kind: ``image=258``."""
        self.media.append(media)
        for name, number in tokens.items():
            self.tokens[Kind[name.upper()]] += number

    def told(self) -> str:
        """What an answer says of them; empty where there are none."""
        return told(self.media)


def told(media: Iterable[Media]) -> str:
    """What an answer says of media that arrived: ``[image/png 68 bytes sha256:0123456789abcdef]`` for each."""
    return " ".join(f"[{each.type} {each.size_bytes} bytes sha256:{each.digest}]" for each in media)


def decoded(data: str) -> bytes:
    """The bytes behind base64, in either alphabet, padded or not.

    Raises:
        ValueError: it is none, or there is nothing.
    """
    plain = data.encode().translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    made = binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    if not made:
        raise ValueError("empty")
    return made


def digest_of(data: bytes) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def plain_type(told_type: str) -> str:
    """A media type without its parameters, under the name that `looked_at` has for it."""
    word = told_type.partition(";")[0].strip().lower()
    return _ALIASES.get(word, word)


def addressed(url: str, media_type: str) -> Media:
    """What is taken to stand at an address: nothing is fetched."""
    digest = digest_of(url.encode())
    number = int(digest, 16)
    made = Media(media_type, 0, digest)
    match made.kind:
        case Kind.IMAGE:
            width, height = ADDRESSED_PIXELS[number % len(ADDRESSED_PIXELS)]
            return Media(media_type, 0, digest, width=width, height=height)
        case Kind.PDF:
            pages = 1 + number % _ADDRESSED_PAGES
            return Media(media_type, 0, digest, pages=pages, text_bytes=pages * _ADDRESSED_PAGE_BYTES)
        case Kind.AUDIO | Kind.VIDEO:
            return Media(media_type, 0, digest, seconds=1 + number % _ADDRESSED_SECONDS)
    return Media(media_type, 0, digest, text_bytes=_ADDRESSED_PAGE_BYTES)


def looked_at(data: bytes) -> Media | None:
    """What some bytes are; None for what is neither media that is known nor UTF-8."""
    media_type = _type_of(data)
    size, digest = len(data), digest_of(data)
    if media_type is None:
        return None
    if media_type == "application/pdf":
        pages, text_bytes = _pdf(data)
        return Media(media_type, size, digest, pages=pages, text_bytes=text_bytes, is_locked=b"/Encrypt" in data)
    if media_type.startswith("image/"):
        width, height = _PIXELS[media_type](data) or (0, 0)
        return Media(media_type, size, digest, width=width, height=height) if width and height else None
    if media_type.startswith(("audio/", "video/")):
        rate = _AUDIO_BYTES_A_SECOND if media_type.startswith("audio/") else _VIDEO_BYTES_A_SECOND
        seconds = _wav_seconds(data) if media_type == "audio/wav" else _box_seconds(data) or size / rate
        return None if seconds is None else Media(media_type, size, digest, seconds=seconds)
    return Media(media_type, size, digest, text_bytes=size)


_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"ID3", "audio/mp3"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
    (b"\x00\x00\x01\xba", "video/mpeg"),
    (b"\x00\x00\x01\xb3", "video/mpeg"),
    (b"FLV\x01", "video/x-flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-wmv"),
)
_RIFFS = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = (
    ((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "image/heic"),
    ((b"M4A ", b"M4B "), "audio/m4a"),
    ((b"qt  ",), "video/quicktime"),
    ((b"3gp4", b"3gp5", b"3gp6"), "video/3gpp"),
)


def _type_of(data: bytes) -> str | None:
    found = next((name for start, name in _STARTS if data.startswith(start)), None)
    if found is not None:
        return found
    if data[:4] == b"RIFF":
        return _RIFFS.get(data[8:12])
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    if data[4:8] == b"ftyp":
        return next((name for brands, name in _BRANDS if data[8:12] in brands), "video/mp4")
    if b"%PDF-" in data[:1024]:
        return "application/pdf"
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # the sync word of MPEG audio
        return "audio/aac" if data[1] & 0xF6 == 0xF0 else "audio/mp3"
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    return None if b"\x00" in data else "text/plain"


def _png(data: bytes) -> tuple[int, int] | None:
    return struct.unpack(">II", data[16:24]) if data[12:16] == b"IHDR" and len(data) >= 24 else None


def _gif(data: bytes) -> tuple[int, int] | None:
    return struct.unpack("<HH", data[6:10]) if len(data) >= 10 else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """From the frame header, which stands behind segments of any number."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _heic(data: bytes) -> tuple[int, int] | None:
    return _HEIC_PIXELS if data else None


_PIXELS = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
    "image/heic": _heic,
}


def _wav_seconds(data: bytes) -> float | None:
    """The length of the samples over what a second of them takes."""
    at, rate = 12, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt " and at + 24 <= len(data):
            form, channels, samples, told_rate, _, bits = struct.unpack("<HHIIHH", data[at + 8 : at + 24])
            rate = channels * samples * bits // 8 if form == _PCM else told_rate
        if name == b"data":
            return min(size, len(data) - at - 8) / rate if rate else None
        at += 8 + size + size % 2
    return None


def _box_seconds(data: bytes) -> float | None:
    """The length that the movie header of MP4, M4A and their kin tells; None for one that has none."""
    at = data.find(b"mvhd") + 4
    if at < 4 or len(data) < at + (32 if any(data[at : at + 1]) else 20):
        return None
    scale, length = (
        struct.unpack(">IQ", data[at + 20 : at + 32]) if data[at] else struct.unpack(">II", data[at + 12 : at + 20])
    )
    return length / scale if scale and length else None


_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_COUNT = re.compile(rb"/Count\s+(\d{1,7})")
_SHOWN = re.compile(rb"\(((?:\\.|[^()\\])*)\)|<([0-9A-Fa-f\s]+)>", re.DOTALL)


def _pdf(data: bytes) -> tuple[int, int]:
    """Pages, and bytes of the text they show.

    Pages are counted by their objects, in the open or in object streams; where none is seen, the largest count that a
    page tree claims holds, else it is one page.
    """
    pages, text_bytes = len(_PAGE.findall(data)), 0
    for stream in _streams(data):
        pages += len(_PAGE.findall(stream))
        if b"BT" in stream:
            text_bytes += sum(len(plain) or len(digits) // 2 for plain, digits in _SHOWN.findall(stream))
    claimed = [int(count) for count in _COUNT.findall(data)]
    return pages or max([1, *claimed]), text_bytes


def _streams(data: bytes) -> Iterator[bytes]:
    """What lies in a PDF's streams, but for images; those that stand there as they are were seen before."""
    at = data.find(b"stream")
    while at >= 0:
        end = data.find(b"endstream", at)
        if end < 0:
            return
        head, body = data[max(0, at - 400) : at].rpartition(b"obj")[2], data[at + 6 : end].lstrip(b"\r\n")
        at = data.find(b"stream", end + 9)
        if b"/Image" in head:
            continue
        try:
            yield zlib.decompressobj().decompress(body, _INFLATED_BYTES)
        except zlib.error:
            if b"BT" in body:
                yield _PAGE.sub(b"", body)
