"""Small media that are what they say, made on the spot, and their digests as answers name them."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import wave
import zlib

# One pixel each.
JPEG = bytes.fromhex(
    "ffd8ffdb004300030202020202030202020303030304060404040404080606050609080a0a090809090a0c0f0c0a0b0e0b09090d110d0e0f"
    "101011100a0c12131210130f101010ffc9000b080001000101011100ffcc000600101005ffda0008010100003f00d2cf20ffd9"
)
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
WEBP = base64.b64decode("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA")
WEBP_LOSSLESS = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")
MP3 = b"\xff\xfb\x90\x00" + bytes(31_996)  # 32,000 bytes: two seconds at 128 kbit/s
MP4 = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(374_976)  # 375,000 bytes: three seconds at 1 Mbit/s


def png(width: int, height: int, shade: int = 0) -> bytes:
    """A grey image."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = (b"\x00" + bytes([shade % 256]) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    note = chunk(b"tEXt", b"shade\x00" + str(shade).encode())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + note + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def pdf(*texts: str, packed: bool = False, head: bytes = b"") -> bytes:
    """A document with a page for each text; ``packed`` puts pages into an object stream and deflates what they show."""
    kids = " ".join(f"{10 + 2 * i} 0 R" for i in range(len(texts)))
    plain = [
        "1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj",
        f"2 0 obj <</Type /Pages /Kids [{kids}] /Count {len(texts)}>> endobj",
    ]
    made = b"%PDF-1.5\n" + head + "\n".join(plain).encode() + b"\n"
    pages = [
        f"<</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {11 + 2 * i} 0 R>>" for i in range(len(texts))
    ]
    if packed:
        made += _stream(3, "/Type /ObjStm", " ".join(pages).encode(), deflate=True)
    else:
        made += "".join(f"{10 + 2 * i} 0 obj {page} endobj\n" for i, page in enumerate(pages)).encode()
    for i, text in enumerate(texts):
        made += _stream(11 + 2 * i, "", f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode(), deflate=packed)
    return made + b"trailer <</Root 1 0 R>>\n%%EOF\n"


def _stream(number: int, kind: str, body: bytes, *, deflate: bool) -> bytes:
    raw = zlib.compress(body) if deflate else body
    coding = " /Filter /FlateDecode" if deflate else ""
    return f"{number} 0 obj <<{kind}{coding} /Length {len(raw)}>> stream\n".encode() + raw + b"\nendstream endobj\n"


def wav(seconds: float) -> bytes:
    """Silence, 8,000 samples a second of one byte."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * int(8000 * seconds))
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{b64(data)}"


def told(media_type: str, data: bytes) -> str:
    """What an answer says of media that arrived as they were sent."""
    return f"[{media_type} {len(data)} bytes sha256:{hashlib.sha256(data).hexdigest()[:16]}]"
