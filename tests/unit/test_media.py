"""Media by their bytes: their kind, size and length, and the most that each provider may count them as."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from anthropic.types import MessageParam
from genai_prices import data_snapshot
from google.genai.types import Content
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import TypeAdapter

from nightmill.errors import CannotCarry
from nightmill.media import image_size, kind_of, most_seconds
from nightmill.providers import Provider, UploadsMedia
from nightmill.providers._media import TAKES
from nightmill.providers.resolve import resolve

sides = st.integers(1, 20_000)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """Its header and no pixels: nothing here looks at them."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def jpeg(width: int, height: int) -> bytes:
    exif = b"\xff\xe1" + struct.pack(">H", 302) + bytes(300)
    return b"\xff\xd8" + exif + b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + bytes(3)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3)


def webp(width: int, height: int) -> bytes:
    large = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + large


def wav(seconds: float, rate: int = 8_000) -> bytes:
    data = bytes(int(seconds * rate) * 2)
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    body = b"WAVE" + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def box(name: bytes, *inside: bytes) -> bytes:
    content = b"".join(inside)
    return struct.pack(">I", 8 + len(content)) + name + content


def header(name: bytes, seconds: float, scale: int = 1_000) -> bytes:
    """Of a film, or of a track."""
    return box(name, struct.pack(">IIIII", 0, 0, 0, scale, round(seconds * scale)))


def mp4(seconds: float, track_s: float | None = None, table: bytes = b"", cuts: bytes = b"") -> bytes:
    """A film of so many seconds by its own header, and by that of its track."""
    about = header(b"mdhd", seconds if track_s is None else track_s, 90_000)
    media = box(b"mdia", about, box(b"minf", box(b"stbl", table)))
    film = box(b"moov", header(b"mvhd", seconds), box(b"trak", box(b"edts", cuts), media))
    return box(b"ftyp", b"isom", bytes(4)) + film


def mp3(size: int, rate: int = 0x90) -> bytes:
    return (b"\xff\xfb" + bytes((rate, 0x64))).ljust(size, b"\0")


@pytest.mark.parametrize(
    ("data", "kind", "mime"),
    [
        (png(1, 1), "image", "image/png"),
        (jpeg(1, 1), "image", "image/jpeg"),
        (gif(1, 1), "image", "image/gif"),
        (webp(1, 1), "image", "image/webp"),
        (b"%PDF-1.7\n", "pdf", "application/pdf"),
        (wav(1), "audio", "audio/wav"),
        (b"ID3\x04", "audio", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio", "audio/mpeg"),
        (b"fLaC", "audio", "audio/flac"),
        (mp4(1), "video", "video/mp4"),
        (b"\x1aE\xdf\xa3", "video", "video/webm"),
    ],
)
def test_a_file_is_what_its_first_bytes_are(data: bytes, kind: str, mime: str) -> None:
    """Whatever it is called."""
    assert kind_of(data) == (kind, mime)


@given(sides, sides)
def test_an_image_says_how_large_it_is(width: int, height: int) -> None:
    """In every format that models read, and behind what cameras write before it."""
    for made in (png, jpeg, gif, webp):
        assert image_size(made(width, height)) == (width, height)


@given(st.binary(max_size=200), st.sampled_from((b"", png(9, 9)[:20], jpeg(9, 9)[:30], webp(9, 9)[:20], mp4(3)[:40])))
def test_no_bytes_break_a_reader(data: bytes, before: bytes) -> None:
    """What is cut or made up has no size rather than a wrong one, or an exception."""
    size = image_size(before + data)
    assert size is None or min(size) > 0
    for mime in ("audio/wav", "audio/mpeg", "video/mp4", "x/y"):
        seconds = most_seconds(before + data, mime)
        assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


def test_how_long_a_sound_or_a_film_can_be() -> None:
    """By its header; of an MP3, which has none, by its bytes at the lowest rate there is; else nobody knows."""
    assert most_seconds(wav(3), "audio/wav") == pytest.approx(3, abs=0.1)
    assert most_seconds(mp3(16_000), "audio/mpeg") == 16
    assert most_seconds(b"ID3\4\0\0" + bytes(3) + b"\x09" + bytes(9) + mp3(15_981), "audio/mpeg") == 16
    assert most_seconds(mp4(7, 90), "video/mp4") == 90
    assert most_seconds(mp4(7) + box(b"mdat", bytes(99)), "video/mp4") == 7
    assert most_seconds(b"OggS", "audio/ogg") is None


def test_a_header_that_cannot_know_how_long_it_is_says_nothing() -> None:
    """A film in pieces has zero seconds in its header, and compressed sound another rate than its header tells."""
    assert most_seconds(mp4(0), "video/mp4") is None
    assert most_seconds(mp4(1) + box(b"moof"), "video/mp4") is None
    compressed = wav(3).replace(b"fmt " + struct.pack("<IH", 16, 1), b"fmt " + struct.pack("<IH", 16, 0x55))
    assert most_seconds(compressed, "audio/wav") is None
    assert most_seconds(mp4(0.0, 2), "video/mp4") is None
    assert most_seconds(b"ID3\4\0\0" + bytes(4) + b"fLaC" + bytes(900), "audio/mpeg") is None


def test_a_header_that_contradicts_itself_is_held_by_the_longest_that_it_may_mean() -> None:
    """A WAV file with another format in a chunk before its own, or whose rates do not agree, is no cheaper for it."""
    honest = wav(60)
    lie = b"LIST" + struct.pack("<I", 24) + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 2, 192_000, 768_000, 4, 16)[:20]
    for made in (
        honest[:12] + lie + honest[12:],
        honest.replace(struct.pack("<IHH", 16_000, 2, 16), struct.pack("<IHH", 16_000, 2, 32)),
        honest.replace(struct.pack("<IHH", 16_000, 2, 16), struct.pack("<IHH", 768_000, 2, 16)),
        honest.replace(struct.pack("<IHH", 16_000, 2, 16), struct.pack("<IHH", 16_000, 8, 16)),
    ):
        assert made != honest
        seconds = most_seconds(made, "audio/wav")
        assert seconds is None or seconds >= 60
    crawling = honest.replace(struct.pack("<IHH", 16_000, 2, 16), struct.pack("<IHH", 1, 2, 16))
    assert most_seconds(crawling, "audio/wav") is None or most_seconds(crawling, "audio/wav") > 900_000


def test_a_film_is_as_long_as_the_longest_that_any_of_its_parts_says() -> None:
    """Headers that say less than the times of samples or cuts, all ones for an unknown length, tables cut short."""
    table = box(b"stts", struct.pack(">IIII", 0, 1, 500, 90_000))
    assert most_seconds(mp4(1, table=table), "video/mp4") == 500
    assert most_seconds(mp4(1, cuts=box(b"elst", struct.pack(">IIIiI", 0, 1, 70_000, 0, 0))), "video/mp4") == 70
    unknown = header(b"mvhd", 0xFFFF_FFFF / 1e9, 10**9)
    assert most_seconds(mp4(1).replace(header(b"mvhd", 1), unknown), "video/mp4") is None
    assert most_seconds(mp4(1, table=table[:-4] + b"\0"), "video/mp4") is None
    two = header(b"mdhd", 1, 90_000)
    assert most_seconds(mp4(1, table=table).replace(two, two + header(b"mdhd", 1, 10**9)), "video/mp4") is None
    deep = b""
    for _ in range(3_000):
        deep = box(b"moov", deep)
    assert most_seconds(box(b"ftyp", b"isom") + deep, "video/mp4") is None


def test_a_sound_is_not_shorter_than_it_says_by_a_trick() -> None:
    """A second format where nobody looks, numbers that disagree, a codec behind the extension, no MP3 behind tags."""
    true = wav(60)
    fake = b"JUNK" + struct.pack("<I", 24) + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 64, 192_000, 0, 0, 64)
    hidden = true[:12] + fake + true[12:]
    assert most_seconds(hidden, "audio/wav") == pytest.approx(60, abs=0.1)
    shown = true[:12] + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 64, 192_000, 98_304_000, 512, 64) + true[12:]
    assert most_seconds(shown, "audio/wav") == pytest.approx(60, abs=0.1)
    odd = true.replace(
        struct.pack("<HHIIHH", 1, 1, 8_000, 16_000, 2, 16), struct.pack("<HHIIHH", 1, 1, 8_000, 16_000, 2, 0x7FFF)
    )
    assert odd != true
    assert most_seconds(odd, "audio/wav") == pytest.approx(60, abs=0.1)
    wide = struct.pack("<HHIIHHHHIH", 0xFFFE, 1, 8_000, 16_000, 2, 16, 22, 16, 0, 2) + bytes(14)
    adpcm = b"RIFF" + bytes(4) + b"WAVE" + b"fmt " + struct.pack("<I", len(wide)) + wide + true[36:]
    assert most_seconds(adpcm, "audio/wav") is None
    assert most_seconds(adpcm.replace(wide, wide[:24] + b"\1\0" + wide[26:]), "audio/wav") is not None
    tag = b"ID3\4\0\0" + bytes((0, 0, 1, 0)) + bytes(128)
    assert most_seconds(tag + mp3(8_000), "audio/mpeg") == pytest.approx(8.138)
    assert most_seconds(tag + b"fLaC" + bytes(8_000), "audio/mpeg") is None
    assert most_seconds(mp3(8_000, rate=0x00), "audio/mpeg") is None


# -- in requests -----------------------------------------------------------------------------------


def provider(model: str) -> Provider:
    keys = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "GEMINI_API_KEY": "k"}
    return resolve(model, env=keys)


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def said(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, *parts]}]}


def image(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, mime)}}


def pdf(data: bytes = b"%PDF-1.7\n") -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "a.pdf", "file_data": data_url(data, "application/pdf")}}


def sound(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def film(data: bytes) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/mp4")}}


SEES = ("openai/gpt-5-mini", "openai/gpt-4o", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash")


@pytest.mark.parametrize("model", SEES)
@settings(max_examples=20, deadline=None)
@given(sides, sides, st.integers(0, 3))
def test_an_image_weighs_what_it_may_be_billed_as_and_not_its_bytes(
    model: str, width: int, height: int, count: int
) -> None:
    """The text counts by its bytes, each image by its tokens, however many bytes it has."""
    asked = provider(model)
    plain = len(asked.encode(said()).body)
    small, large = png(width, height), png(width, height) + bytes(50_000)
    weights = [asked.weigh(asked.encode(said(*[image(data)] * count)).body) for data in (small, large)]
    assert weights[0] == weights[1]
    assert weights[0].most - plain >= count * 258
    assert weights[0].beside <= weights[0].most
    each = TAKES[asked.name].tokens(asked.model, _medium(small)).most
    assert 0 <= weights[0].most - plain - count * each <= 200 * max(1, count)  # JSON around it


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(sides, sides, st.integers(0, 60_000)), min_size=1, max_size=6))
def test_what_a_request_cannot_hold_is_named_in_it_and_weighs_the_same(images: list[tuple[int, int, int]]) -> None:
    """The largest first, and no more than needed; names are such as Gemini takes, and tell what is behind them."""
    media = [png(width, height) + bytes(more) for width, height, more in images]
    request = said(*map(image, media))
    whole = resolve("gemini/gemini-2.5-flash", env={"GEMINI_API_KEY": "k"})
    tight = resolve("gemini/gemini-2.5-flash", env={"GEMINI_API_KEY": "k"})
    tight.limits = replace(tight.limits, request_bytes=50_000)
    plain, named = whole.encode(request), tight.encode(request)
    assert isinstance(tight, UploadsMedia)
    uploads = tight.uploads(named.body)
    assert not plain.apart
    assert {upload.digest for upload in uploads} == named.apart.keys()
    assert len(named.body) <= 50_000
    assert all(hashlib.sha256(data).hexdigest().startswith(digest) for digest, data in named.apart.items())
    assert all(re.fullmatch("[a-z0-9][a-z0-9-]{0,38}[a-z0-9]", upload.id) for upload in uploads)
    assert min(map(len, named.apart.values()), default=1 << 40) >= max(
        [len(data) for data in media if hashlib.sha256(data).hexdigest()[:24] not in named.apart], default=0
    )
    inside, outside = whole.weigh(plain.body), tight.weigh(named.body)
    assert inside.beside == outside.beside
    assert abs(inside.most - outside.most) <= 150 * len(media)  # addresses in place of nothing
    assert bool(named.apart) == (len(plain.body) > 50_000) or len(plain.body) > 48_000


def test_what_only_looks_like_a_named_medium_is_not_asked_for() -> None:
    """Words of a prompt, or the example of a tool: only a part of a message names one."""
    part = {"fileData": {"mimeType": "image/png", "fileUri": f"https://x.example/files/nm-{'0' * 24}-1-1"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "examples": [part]}}}
    asked = provider("gemini/gemini-2.5-flash")
    body = asked.encode({**said(), "messages": [{"role": "user", "content": json.dumps(part)}], "tools": [tool]}).body
    assert b'"fileData"' in body
    assert isinstance(asked, UploadsMedia)
    assert asked.uploads(body) == []


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"])
def test_an_address_that_looks_like_a_name_of_ours_weighs_what_any_does(model: str) -> None:
    """Whoever writes a row writes its addresses: they do not say how little is held."""
    asked = provider(model)
    plain, named = ({"type": "image_url", "image_url": {"url": f"https://x.example/{name}"}}
                    for name in ("a" * 31, f"nm-{'0' * 24}-1-1"))  # fmt: skip
    assert asked.weigh(asked.encode(said(named)).body) == asked.weigh(asked.encode(said(plain)).body)


def _medium(data: bytes) -> Any:
    from nightmill.media import Medium

    found = kind_of(data)
    assert found is not None
    return Medium(found[0], found[1], data)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("anthropic/claude-haiku-4-5", pdf()),
        ("openai/gpt-5-mini", pdf()),
        ("gemini/gemini-2.5-flash", pdf()),
        ("gemini/gemini-2.5-flash", film(b"\x00\x00\x00\x10ftypisom" + bytes(4))),
        ("openai/gpt-audio", sound(b"RIFF\x00\x00\x00\x00WAVE")),
    ],
)
def test_what_cannot_be_measured_weighs_as_much_as_the_model_takes_at_all(model: str, part: dict[str, Any]) -> None:
    """Pages and seconds that nobody can count safely: no request has more tokens than its model's context."""
    asked = provider(model)
    assert asked.weigh(asked.encode(said(part)).body).most >= 128_000


def test_text_that_looks_like_a_medium_is_text() -> None:
    """Only a part of a message is one; a prompt about such parts counts by its bytes."""
    asked = provider("openai/gpt-5-mini")
    body = asked.encode({"messages": [{"role": "user", "content": '{"type":"image_url","image_url":{"url":"data:"}}'}]})
    assert asked.weigh(body.body) == (len(body.body), 0)


@pytest.mark.parametrize("model", SEES)
def test_what_looks_like_a_medium_in_a_tool_or_a_schema_is_text(model: str) -> None:
    """Only parts of messages are seen as media; whatever else has their shape is billed by its letters."""
    bulk = base64.b64encode(png(30, 20) + bytes(30_000)).decode()
    shapes = [image(png(30, 20) + bytes(30_000)), {"inlineData": {"mimeType": "image/png", "data": bulk}},
              {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": bulk}}]  # fmt: skip
    call = {"name": "look", "arguments": msgspec.json.encode({"at": shapes}).decode()}
    schema = {"type": "object", "properties": {}, "examples": shapes}
    turns = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    asked = provider(model)
    body = asked.encode({"messages": turns, "tools": [
        {"type": "function", "function": {"name": "look", "parameters": schema}}]}).body  # fmt: skip
    assert len(body) > 200_000
    assert asked.weigh(body).most == len(body)
    assert asked.weigh(body).beside <= 1_000


@pytest.mark.parametrize(
    ("model", "part", "says"),
    [
        ("openai/gpt-5-mini", sound(wav(1)), "no audio"),
        ("openai/gpt-5-mini", film(mp4(1)), "no video"),
        ("openai/gpt-audio", image(png(9, 9)), "no images"),
        ("openai/o3-mini", image(png(9, 9)), "no images"),
        ("anthropic/claude-haiku-4-5", sound(wav(1)), "no audio"),
        ("anthropic/claude-haiku-4-5", image(png(9, 9) + bytes(8_000_000)), "too large"),
        ("gemini/gemini-2.5-flash", pdf(b"%PDF-1.7\n" + bytes(50_000_000)), "too large"),
        (
            "gemini/gemini-2.5-flash",
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            "addresses",
        ),
        ("openai/gpt-5-mini", {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}, "not carried"),
        ("openai/gpt-5-mini", image(b"no image"), "not carried"),
        ("openai/gpt-5-mini", {"type": "file", "file": {"file_id": "file-1"}}, "not carried"),
        ("anthropic/claude-haiku-4-5", image(b"%PDF-1.7", "image/png"), "not carried"),
        ("local/smollm2-135m", image(png(9, 9)), "no images"),
    ],
)
def test_what_a_model_does_not_take_is_refused_with_a_reason(model: str, part: dict[str, Any], says: str) -> None:
    """Before anything is sent."""
    with pytest.raises(CannotCarry, match=says):
        provider(model).encode(said(part))


def test_each_provider_gets_a_medium_in_its_own_words() -> None:
    """The same bytes, as each documents it."""
    data = png(30, 20)
    text = base64.b64encode(data).decode()
    bodies = {m: msgspec.json.decode(provider(m).encode(said(image(data))).body) for m in SEES}
    assert bodies[SEES[0]]["messages"][0]["content"][1] == image(data)
    source = {"type": "base64", "media_type": "image/png", "data": text}
    assert bodies[SEES[2]]["messages"][0]["content"][1] == {"type": "image", "source": source}
    assert bodies[SEES[3]]["contents"][0]["parts"][1] == {"inlineData": {"mimeType": "image/png", "data": text}}
    document = msgspec.json.decode(provider(SEES[2]).encode(said(pdf())).body)["messages"][0]["content"][1]
    assert (document["type"], document["source"]["media_type"]) == ("document", "application/pdf")
    away = {"type": "image_url", "image_url": {"url": "HTTPS://a.example/b.png"}}
    linked = msgspec.json.decode(provider(SEES[2]).encode(said(away)).body)["messages"][0]["content"][1]
    assert linked == {"type": "image", "source": {"type": "url", "url": "HTTPS://a.example/b.png"}}


@pytest.mark.parametrize("part", [image(png(30, 20)), pdf(b"%PDF-1.7\n")])
def test_the_official_clients_know_what_is_sent(part: dict[str, Any]) -> None:
    """Each takes our body for one of its own requests."""
    made = [msgspec.json.decode(provider(model).encode(said(part)).body) for model in (SEES[0], SEES[2], SEES[3])]
    for kind, messages in (
        (ChatCompletionUserMessageParam, made[0]["messages"]),
        (MessageParam, made[1]["messages"]),
        (Content, made[2]["contents"]),
    ):
        TypeAdapter(kind, config=None).validate_python(messages[0], strict=False)
    assert Content.model_validate(made[2]["contents"][0]).parts[1].inline_data.data.startswith((b"\x89PNG", b"%PDF"))


def test_sound_is_held_as_so_much_more_text_as_it_may_cost_more() -> None:
    """No model in the catalogue asks more for sound, beside its text, than holds count."""
    from nightmill.providers import _media

    most = {"openai": _media._OPENAI_SOUND, "google": _media._GEMINI_SOUND}
    for catalogue in data_snapshot.get_snapshot().providers:
        for model in catalogue.models if catalogue.id in most else ():
            of_gemini = model.id.startswith("gemini-") and "live" not in model.id and "embedding" not in model.id
            if not (of_gemini or model.id.startswith("gpt-audio")):
                continue
            prices = model.prices if isinstance(model.prices, list) else []
            for price in [each.prices for each in prices] or [model.prices]:
                if getattr(price, "input_audio_mtok", None) is None:
                    continue
                text, heard = (_least(getattr(price, name)) for name in ("input_mtok", "input_audio_mtok"))
                assert heard / text <= most[catalogue.id], model.id


def _least(price: Any) -> float:
    return float(getattr(price, "base", price))
