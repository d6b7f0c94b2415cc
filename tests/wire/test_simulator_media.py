"""Media in requests, judged by the three official clients: what arrives, what is refused, and what it costs."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import anthropic
import openai
import pytest
from gemini_kit import create, root
from genai_prices import Usage, calc_price
from google import genai
from google.genai import errors, types
from hypothesis import example, given
from hypothesis import strategies as st
from media_kit import GIF, JPEG, MP3, MP4, WEBP, WEBP_LOSSLESS, b64, data_url, pdf, png, told, wav
from simulator_kit import call, fast, invoice, jsonl, judge, line

from nightmill.simulator import in_thread
from nightmill.simulator.anthropic import media as anthropic_media
from nightmill.simulator.media import Kind, addressed, looked_at
from nightmill.simulator.openai.media import image_tokens

_MOST_S = 20.0


@pytest.fixture
def base() -> Iterator[str]:
    with in_thread(fast()) as url:
        yield url


@pytest.fixture
def chatgpt(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="sk-test", base_url=base, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(base: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="sk-ant-test", base_url=root(base), max_retries=0) as client:
        yield client


@pytest.fixture
def gemini(base: str) -> Iterator[genai.Client]:
    with genai.Client(api_key="gm-test", http_options=types.HttpOptions(base_url=root(base))) as client:
        yield client


def nanos(provider: str, model: str, *, batch: bool, **usage: int) -> int:
    """The price list's own price of one request."""
    context = {"processing": "batch"} if batch else None
    price = calc_price(Usage(**usage), model_ref=model, provider_id=provider, price_context=context)
    return int(Fraction(price.total_price) * 10**9 + Fraction(1, 2))


def patiently(done: Any, again: Any) -> Any:
    """What ``again`` gives once ``done`` says so of it."""
    give_up = time.monotonic() + _MOST_S
    while time.monotonic() < give_up:
        seen = again()
        if done(seen):
            return seen
    raise AssertionError("it does not end")


# What bytes are


@pytest.mark.parametrize(
    ("data", "media_type", "size"),
    [
        (png(300, 20), "image/png", (300, 20)),
        (JPEG, "image/jpeg", (1, 1)),
        (GIF, "image/gif", (1, 1)),
        (WEBP, "image/webp", (1, 1)),
        (WEBP_LOSSLESS, "image/webp", (1, 1)),
    ],
)
def test_images_are_known_by_their_headers(data: bytes, media_type: str, size: tuple[int, int]) -> None:
    """Type, width and height, whatever anybody says of them; what is cut off is none."""
    seen = looked_at(data)
    assert seen is not None
    assert (seen.type, (seen.width, seen.height), seen.size_bytes) == (media_type, size, len(data))
    assert looked_at(data[:9]) is None


@pytest.mark.parametrize("packed", [False, True])
def test_pages_are_counted(packed: bool) -> None:
    """In the open as in compressed objects, and so is the text they show."""
    seen = looked_at(pdf("one", "two and", "three", packed=packed))
    assert seen is not None
    assert (seen.type, seen.pages, seen.text_bytes) == ("application/pdf", 3, 15)


def test_a_pdf_that_hides_its_pages_has_as_many_as_it_claims() -> None:
    """And one that claims none has one."""
    hidden, bare = looked_at(b"%PDF-1.7\n<</Type /Pages /Count 7>>"), looked_at(b"%PDF-1.7\n")
    assert hidden is not None
    assert bare is not None
    assert (hidden.pages, bare.pages) == (7, 1)


def test_seconds() -> None:
    """By the header where there is one, else by a fixed rate."""
    header = b"mvhd" + struct.pack(">IIIII", 0, 0, 0, 600, 4200)
    found = [looked_at(data) for data in (wav(2.5), MP3, MP4, MP4[:24] + header + bytes(100))]
    assert [each and (each.type, each.seconds) for each in found] == [
        ("audio/wav", 2.5),
        ("audio/mp3", 2.0),
        ("video/mp4", 3.0),
        ("video/mp4", 7.0),
    ]


_HEADS = (png(9, 9)[:24], JPEG[:60], GIF[:8], WEBP[:26], wav(1)[:40], MP4[:24] + b"mvhd", b"%PDF-1.4 stream\nBT")


@given(st.sampled_from(_HEADS), st.binary(max_size=80), st.integers(0, 60))
@example(b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2mvhd", b"\x02" + bytes(19), 28)
def test_whatever_comes_is_looked_at(head: bytes, rest: bytes, kept: int) -> None:
    """Broken bytes are none of a medium, or one with a size; they break nothing."""
    seen = looked_at(head[:kept] + rest)
    assert seen is None or seen.kind is not Kind.IMAGE or (seen.width > 0 and seen.height > 0)
    assert seen is None or (seen.seconds >= 0 and seen.size_bytes == len(head[:kept] + rest))


def test_an_address_is_always_the_same_and_never_visited() -> None:
    """Its figures come from its letters alone."""
    assert addressed("https://nowhere.invalid/a.png", "image/png") == addressed(
        "https://nowhere.invalid/a.png", "image/png"
    )
    sizes = {addressed(f"https://nowhere.invalid/{i}.png", "image/png").width for i in range(50)}
    assert sizes == {512, 1024, 1920, 4032}


# What they cost, by the figures that the providers publish


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", (1024, 1024), "high", 765),
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4o", (512, 512), "auto", 255),
        ("gpt-4o-mini", (1024, 1024), "high", 2833 + 4 * 5667),
        ("o3", (1024, 1024), "high", 75 + 4 * 150),
        ("gpt-5", (1024, 1024), "high", 70 + 4 * 140),
        ("gpt-4.1-mini", (1024, 1024), "high", 1659),  # 1024 x 1.62
        ("gpt-4.1-mini", (1800, 2400), "high", 2353),  # 1452 x 1.62
        ("gpt-5-nano", (1800, 2400), "high", 3572),  # 1452 x 2.46
        ("o4-mini", (1024, 1024), "high", 1762),  # 1024 x 1.72
        ("gpt-6-astra", (640, 480), "high", 360),
        ("gpt-6-astra", (640, 480), "low", 231),
        ("gpt-6-astra", (3200, 960), "original", 3600),
        ("gpt-6-astra", (3200, 960), "auto", 3600),
        ("gpt-6-astra", (3200, 960), "high", 2916),
        ("gpt-5.6-sol", (2496, 1664), "high", 2880),
        ("gpt-5.6-sol", (2496, 1664), "original", 4868),
    ],
)
def test_images_cost_what_openai_says(model: str, size: tuple[int, int], detail: str, tokens: int) -> None:
    """Tiles or patches, by the family of the model."""
    assert image_tokens(model, *size, detail) == tokens


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("claude-haiku-4-5", (1075, 1520), 33 * 47),  # made 924 x 1307
        ("claude-opus-4-8", (1075, 1520), 39 * 55),
        ("claude-sonnet-5-5", (2576, 1456), 4784),
        ("claude-haiku-4-5", (28, 28), 1),
        ("claude-haiku-4-5", (29, 28), 2),
    ],
)
def test_images_cost_what_anthropic_says(model: str, size: tuple[int, int], tokens: int) -> None:
    """A token for each patch of 28 px of what is left of them."""
    assert anthropic_media.image_tokens(model, *size) == tokens


def test_no_image_costs_more_than_its_model_allows() -> None:
    """However large it is and whatever its shape."""
    for size in ((8000, 8000), (8000, 10), (3, 7999), (1569, 1569), (2577, 2000)):
        assert anthropic_media.image_tokens("claude-haiku-4-5", *size) <= 1568
        assert anthropic_media.image_tokens("claude-opus-5-5", *size) <= 4784
        assert image_tokens("gpt-5-mini", *size, "high") <= 2489  # 1536 x 1.62
        assert image_tokens("gpt-5.4", *size, "original") <= 12_000


# OpenAI


def picture(data: bytes, media_type: str = "image/png", **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(media_type, data), **more}}


def paper(**file: str) -> dict[str, Any]:
    return {"type": "file", "file": file}


def asked(*parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "what"}, *parts]}]


def test_a_chat_with_an_image(base: str, chatgpt: openai.OpenAI) -> None:
    """The answer names it, the usage counts it, the invoice is the price list's."""
    data = png(1024, 1024, 7)
    made = chatgpt.chat.completions.create(model="gpt-4o", messages=asked(picture(data, detail="high")))
    assert (made.choices[0].message.content or "").startswith(told("image/png", data))
    assert made.usage is not None
    assert made.usage.prompt_tokens_details is not None
    assert made.usage.prompt_tokens == 1 + 3 + 765
    assert made.usage.prompt_tokens_details.image_tokens == 765
    assert judge("CreateChatCompletionResponse", made.model_dump(mode="json", exclude_unset=True)) == []
    out = made.usage.completion_tokens
    by_hand = 769 * 2500 + out * 10_000
    assert invoice(base)["total_nanos"] == by_hand
    assert by_hand == nanos("openai", "gpt-4o", batch=False, input_tokens=769, output_tokens=out)


def test_a_chat_with_audio_pays_the_rate_of_audio(base: str, chatgpt: openai.OpenAI) -> None:
    """A token a tenth of a second, told apart from the text."""
    part = {"type": "input_audio", "input_audio": {"data": b64(wav(2.5)), "format": "wav"}}
    made = chatgpt.chat.completions.create(model="gpt-audio", messages=asked(part))
    assert told("audio/wav", wav(2.5)) in (made.choices[0].message.content or "")
    assert made.usage is not None
    assert made.usage.prompt_tokens_details is not None
    assert (made.usage.prompt_tokens, made.usage.prompt_tokens_details.audio_tokens) == (29, 25)
    out = made.usage.completion_tokens
    by_hand = 4 * 2500 + 25 * 32_000 + out * 10_000
    assert invoice(base)["total_nanos"] == by_hand
    priced = nanos("openai", "gpt-audio", batch=False, input_tokens=29, input_audio_tokens=25, output_tokens=out)
    assert by_hand == priced


@pytest.mark.parametrize("by_file", [False, True])
def test_a_chat_with_a_pdf(chatgpt: openai.OpenAI, by_file: bool) -> None:
    """Each page counts as its text and an image of it, sent along or uploaded before."""
    data = pdf("first page here", "second")
    given: dict[str, Any] = {"file_data": data_url("application/pdf", data), "filename": "a.pdf"}
    if by_file:
        given = {"file_id": chatgpt.files.create(file=("a.pdf", data), purpose="user_data").id}
    made = chatgpt.chat.completions.create(model="gpt-4o", messages=asked({"type": "file", "file": given}))
    assert told("application/pdf", data) in (made.choices[0].message.content or "")
    assert made.usage is not None
    assert made.usage.prompt_tokens == 4 + 6 + 2 * 765  # 21 bytes of text, two pages


def test_a_response_with_media(chatgpt: openai.OpenAI) -> None:
    """The other endpoint has other words for the same."""
    image, paper = png(1024, 1024), pdf("one")
    content: list[Any] = [
        {"type": "input_text", "text": "what"},
        {"type": "input_image", "image_url": data_url("image/png", image), "detail": "low"},
        {"type": "input_file", "file_data": data_url("application/pdf", paper), "filename": "p.pdf"},
        {"type": "input_image", "image_url": "https://example.com/cat.jpg", "detail": "low"},
    ]
    made = chatgpt.responses.create(model="gpt-4.1", input=[{"role": "user", "content": content}])
    assert told("image/png", image) in made.output_text
    assert told("application/pdf", paper) in made.output_text
    assert made.usage is not None
    assert made.usage.input_tokens == 4 + 85 + (1 + 765) + 85


def test_a_batch_of_images(base: str, chatgpt: openai.OpenAI) -> None:
    """Each row sees its own, a bad one fails alone, and the bill is the price list's."""
    images = [png(100 + i, 80, i) for i in range(6)]
    rows = [line(f"row-{i}", {"model": "gpt-4o", "messages": asked(picture(data))}) for i, data in enumerate(images)]
    rows.append(line("bad", {"model": "gpt-4o", "messages": asked(picture(b"no image", "image/png"))}))
    file = chatgpt.files.create(file=("in.jsonl", jsonl(rows)), purpose="batch")
    batch = chatgpt.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = patiently(lambda seen: seen.status == "completed", lambda: chatgpt.batches.retrieve(batch.id))
    answers = [json.loads(raw) for raw in chatgpt.files.content(str(batch.output_file_id)).text.splitlines()]
    total = 0
    for answer in answers:
        body, data = answer["response"]["body"], images[int(answer["custom_id"][4:])]
        assert body["choices"][0]["message"]["content"].startswith(told("image/png", data))
        assert body["usage"]["prompt_tokens"] == 4 + 255
        total += 259 * 1250 + body["usage"]["completion_tokens"] * 5000
    assert len(answers) == 6
    failed = json.loads(chatgpt.files.content(str(batch.error_file_id)).text)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("bad", 400)
    assert failed["response"]["body"]["error"]["code"] == "invalid_image_format"
    assert invoice(base)["total_nanos"] == total


_PNG = png(8, 8)


@pytest.mark.parametrize(
    ("model", "part", "code"),
    [
        ("gpt-4o", picture(JPEG, "image/png"), "invalid_image_format"),
        ("gpt-4o", {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@@"}}, "invalid_base64"),
        ("gpt-4o", {"type": "image_url", "image_url": {"url": "cat.png"}}, "invalid_value"),
        ("gpt-4o", picture(_PNG, detail="vast"), "invalid_value"),
        ("gpt-4o", picture(_PNG, detail="original"), "invalid_value"),
        ("gpt-4o", {"type": "video", "video": {}}, "invalid_value"),
        ("gpt-4o", {"type": "input_audio", "input_audio": {"data": b64(wav(1)), "format": "wav"}}, "invalid_value"),
        ("gpt-audio", {"type": "input_audio", "input_audio": {"data": b64(MP3), "format": "wav"}}, "invalid_value"),
        ("gpt-audio", {"type": "input_audio", "input_audio": {"data": b64(MP3), "format": "ogg"}}, "invalid_value"),
        ("gpt-audio", picture(_PNG), "invalid_value"),
        ("gpt-3.5-turbo", picture(_PNG), None),
        ("gpt-4o", paper(file_data=b64(pdf("x")), filename="a.pdf"), "invalid_value"),
        ("gpt-4o", paper(file_data=data_url("application/pdf", _PNG), filename="a.pdf"), "invalid_value"),
        ("gpt-4o", paper(file_data=data_url("application/pdf", pdf("x"))), "missing_required_parameter"),
        ("gpt-6-sol", picture(png(32 * 200, 32 * 151)), "image_too_large"),
    ],
)  # fmt: skip
def test_what_openai_does_not_take(
    base: str, chatgpt: openai.OpenAI, model: str, part: dict[str, Any], code: str | None
) -> None:
    """A 400 in its own shape, and no cent."""
    with pytest.raises(openai.BadRequestError) as refused:
        chatgpt.chat.completions.create(model=model, messages=asked(part))
    assert refused.value.code == code
    assert judge("ErrorResponse", {"error": refused.value.body}) == []
    assert invoice(base)["total_nanos"] == 0


def test_a_file_that_is_not_there(chatgpt: openai.OpenAI) -> None:
    """Or another account's, or deleted."""
    part: dict[str, Any] = {"type": "file", "file": {"file_id": "file-none"}}
    with pytest.raises(openai.NotFoundError):
        chatgpt.chat.completions.create(model="gpt-4o", messages=asked(part))


# Anthropic


def block(data: bytes, media_type: str = "image/png", kind: str = "image") -> dict[str, Any]:
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": b64(data)}}


def said(*blocks: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": "what"}]}]


def test_a_message_with_an_image_and_a_pdf(base: str, claude: anthropic.Anthropic) -> None:
    """Both are named, counted and billed as input."""
    image, paper = png(280, 280), pdf("eight by", "two")
    content = said(block(image), block(paper, "application/pdf", "document"))
    made = claude.messages.create(model="claude-opus-5-5", max_tokens=500, messages=content)
    text = next(each.text for each in made.content if each.type == "text")
    assert text.startswith(f"{told('image/png', image)} {told('application/pdf', paper)}")
    page = anthropic_media.image_tokens("claude-opus-5-5", 1700, 2200)
    assert 4600 < page <= 4784
    assert made.usage.input_tokens == 100 + (3 + 2 * page) + 1 + 3
    counted = claude.messages.count_tokens(model="claude-opus-5-5", messages=content)
    assert counted.input_tokens == made.usage.input_tokens
    by_hand = made.usage.input_tokens * 4000 + made.usage.output_tokens * 20_000
    assert invoice(base)["total_nanos"] == by_hand


def test_a_message_with_an_uploaded_file(base: str, claude: anthropic.Anthropic) -> None:
    """As good as one that is sent along; once it is deleted, a 404."""
    data = png(280, 280, 9)
    file = claude.files.upload(file=("photo.png", data, "image/png"))
    assert (file.filename, file.mime_type, file.size_bytes) == ("photo.png", "image/png", len(data))
    assert [each.id for each in claude.files.list()] == [file.id]
    content = said({"type": "image", "source": {"type": "file", "file_id": file.id}})
    made = claude.messages.create(model="claude-opus-5-5", max_tokens=500, messages=content)
    assert told("image/png", data) in next(each.text for each in made.content if each.type == "text")
    assert made.usage.input_tokens == 100 + 1 + 3
    claude.files.delete(file.id)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude-opus-5-5", max_tokens=500, messages=content)


def test_uploads_are_listed_page_by_page(claude: anthropic.Anthropic) -> None:
    """Newest first, each once, and nobody else's."""
    made = [claude.files.upload(file=(f"{i}.txt", b"x")).id for i in range(5)]
    assert [each.id for each in claude.files.list(limit=2)] == made[::-1]
    assert not list(claude.with_options(api_key="sk-ant-1@other").files.list())


def test_a_message_batch_of_images(base: str, claude: anthropic.Anthropic) -> None:
    """Each row sees its own, and a bad one is an errored row."""
    images = [png(56, 28, i) for i in range(5)]
    wanted = [*images, JPEG]
    requests: list[Any] = [
        {
            "custom_id": f"row-{i}",
            "params": {"model": "claude-haiku-4-5", "max_tokens": 300, "messages": said(block(data))},
        }
        for i, data in enumerate(wanted)
    ]
    batch = claude.messages.batches.create(requests=requests)
    patiently(lambda seen: seen.processing_status == "ended", lambda: claude.messages.batches.retrieve(batch.id))
    total = 0
    for row in claude.messages.batches.results(batch.id):
        number, result = int(row.custom_id[4:]), row.result
        if number == 5:
            assert result.type == "errored"
            assert "appears to be a image/jpeg image" in result.error.error.message
            continue
        assert result.type == "succeeded"
        text = next(each.text for each in result.message.content if each.type == "text")
        assert text.startswith(told("image/png", images[number]))
        assert result.message.usage.input_tokens == 2 + 1 + 3
        total += 6 * 500 + result.message.usage.output_tokens * 2500
    assert invoice(base)["total_nanos"] == total > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            block(JPEG),
            "messages.0.content.0.image.source.base64: The image was specified using the image/png media type",
        ),
        (block(b"no image at all"), "Could not process image"),
        (
            block(_PNG, "image/tiff"),
            "media_type: Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'",
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "@@"}},
            "Invalid base64 data",
        ),
        (block(_PNG + bytes(8 << 20)), "image exceeds 10 MB maximum"),
        (block(png(8001, 1)), "At least one of the image dimensions exceed max allowed size: 8000 pixels"),
        (block(_PNG, "application/pdf", "document"), "The PDF specified was not valid"),
        (block(pdf("x", head=b"<</Encrypt 9 0 R>>"), "application/pdf", "document"), "password protected"),
        (block(pdf(*["x"] * 101), "application/pdf", "document"), "A maximum of 100 PDF pages may be provided"),
        ({"type": "image", "source": {"type": "url", "url": "ftp://a/b.png"}}, "Only HTTPS URLs are supported"),
        ({"type": "image", "source": {"type": "gopher"}}, "does not match any of the expected tags"),
    ],
)
def test_what_anthropic_does_not_take(
    base: str, claude: anthropic.Anthropic, given: dict[str, Any], words: str
) -> None:
    """A 400 that says where and why, and no cent."""
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=said(given))
    assert words in refused.value.message
    assert invoice(base)["total_nanos"] == 0


def test_many_images_must_be_smaller(claude: anthropic.Anthropic) -> None:
    """More than 20 have 2,000 px at most, and 200 k of context take 100."""
    with pytest.raises(anthropic.BadRequestError, match="many-image requests: 2000 pixels"):
        claude.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=said(*[block(png(2001, 1))] * 21))
    with pytest.raises(anthropic.BadRequestError, match="Too many images"):
        claude.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=said(*[block(_PNG)] * 101))
    claude.messages.create(model="claude-opus-5-5", max_tokens=9, messages=said(*[block(_PNG)] * 101))


def test_a_live_request_has_32_mb(claude: anthropic.Anthropic) -> None:
    """However it is filled."""
    with pytest.raises(anthropic.APIStatusError) as refused:
        claude.messages.create(
            model="claude-opus-5-5", max_tokens=9, messages=said(*[block(_PNG + bytes(7 << 20))] * 4)
        )
    assert refused.value.status_code == 413


# Gemini

_OLD, _NEW = "gemini-2.5-flash", "gemini-3.8-flash"


def modalities(usage: Any) -> dict[str, int]:
    return {each.modality.value: each.token_count for each in usage.prompt_tokens_details}


@pytest.mark.parametrize(
    ("model", "data", "media_type", "tokens"),
    [
        (_OLD, png(300, 384), "image/png", {"IMAGE": 258}),
        (_OLD, png(960, 540), "image/png", {"IMAGE": 6 * 258}),
        (_NEW, png(960, 540), "image/png", {"IMAGE": 1120}),
        (_OLD, pdf("a", "b", "c"), "application/pdf", {"DOCUMENT": 3 * 258}),
        (_NEW, pdf("a", "b", "c"), "application/pdf", {"IMAGE": 3 * 560}),
        (_OLD, wav(2.5), "audio/wav", {"AUDIO": 80}),
        (_NEW, wav(2.5), "audio/wav", {"AUDIO": 63}),
        (_OLD, MP4, "video/mp4", {"VIDEO": 3 * 263}),
        (_NEW, MP4, "video/mp4", {"VIDEO": 3 * 70, "AUDIO": 75}),
    ],
)
def test_media_inside_a_request(
    base: str, gemini: genai.Client, model: str, data: bytes, media_type: str, tokens: dict[str, int]
) -> None:
    """Named in the answer, counted by modality, and billed as the price list has it, sound at its own rate."""
    parts = [types.Part.from_bytes(data=data, mime_type=media_type), types.Part.from_text(text="what")]
    made = gemini.models.generate_content(model=model, contents=types.Content(role="user", parts=parts))
    assert (made.text or "").startswith(told(media_type, data))
    usage = made.usage_metadata
    assert usage is not None
    assert modalities(usage) == {"TEXT": 4, **tokens}
    assert usage.prompt_token_count == 4 + sum(tokens.values())
    counted = gemini.models.count_tokens(model=model, contents=types.Content(role="user", parts=parts))
    assert counted.total_tokens == usage.prompt_token_count
    priced = nanos(
        "google", model, batch=False, input_tokens=usage.prompt_token_count,
        input_audio_tokens=tokens.get("AUDIO", 0), output_tokens=usage.candidates_token_count or 0,
    )  # fmt: skip
    assert invoice(base)["total_nanos"] == priced
    if model == _OLD and "AUDIO" in tokens:
        assert priced == 4 * 300 + 80 * 1000 + (usage.candidates_token_count or 0) * 2500


def test_a_batch_of_uploaded_audio(base: str, gemini: genai.Client, tmp_path: Any) -> None:
    """Rows name uploaded files; each sees its own, at the batch rate of audio; one that names none fails alone."""
    sounds = [wav(1 + i / 2) for i in range(4)]
    rows = []
    for number, data in enumerate(sounds):
        (tmp_path / f"{number}.wav").write_bytes(data)
        file = gemini.files.upload(file=tmp_path / f"{number}.wav")
        part = {"fileData": {"fileUri": file.uri, "mimeType": "audio/wav"}}
        rows.append(
            {"key": f"row-{number}", "request": {"contents": [{"role": "user", "parts": [part, {"text": "what"}]}]}}
        )
    gone = {"fileData": {"fileUri": f"{root(base)}/v1beta/files/none", "mimeType": "audio/wav"}}
    rows.append({"key": "gone", "request": {"contents": [{"role": "user", "parts": [gone]}]}})
    (tmp_path / "in.jsonl").write_bytes(jsonl(rows))
    source = gemini.files.upload(file=tmp_path / "in.jsonl", config=types.UploadFileConfig(mime_type="jsonl"))
    job = gemini.batches.create(model=_OLD, src=source.name or "")
    job = patiently(lambda seen: seen.dest is not None, lambda: gemini.batches.get(name=job.name or ""))
    assert job.dest is not None
    answers = [json.loads(raw) for raw in gemini.files.download(file=job.dest.file_name or "").splitlines()]
    total = 0
    for number, answer in enumerate(answers[:4]):
        response = types.GenerateContentResponse.model_validate(answer["response"])
        assert (response.text or "").startswith(told("audio/wav", sounds[number]))
        usage = response.usage_metadata
        assert usage is not None
        assert modalities(usage) == {"TEXT": 4, "AUDIO": 32 + 16 * number}
        total += 4 * 150 + (32 + 16 * number) * 500 + (usage.candidates_token_count or 0) * 1250
    assert answers[4]["key"] == "gone"
    assert "permission to access the File none" in answers[4]["error"]["message"]
    assert invoice(base)["total_nanos"] == total


def test_an_uploaded_file_is_gone_after_48_hours(base: str, gemini: genai.Client, tmp_path: Any) -> None:
    """A request that names it then is refused like one that names a file that never was."""
    (tmp_path / "a.png").write_bytes(_PNG)
    file = gemini.files.upload(file=tmp_path / "a.png")
    assert told("image/png", _PNG) in (gemini.models.generate_content(model=_NEW, contents=[file, "what"]).text or "")
    call(root(base), "POST", "/simulator/forward", 48 * 3600)
    with pytest.raises(errors.ClientError) as refused:
        gemini.models.generate_content(model=_NEW, contents=[file, "what"])
    assert (refused.value.code, refused.value.status) == (403, "PERMISSION_DENIED")


def test_resolution_and_part_of_a_video(gemini: genai.Client) -> None:
    """What a request asks of them changes what they cost."""

    def tokens(model: str, part: types.Part, **config: Any) -> dict[str, int]:
        made = gemini.models.generate_content(
            model=model, contents=types.Content(role="user", parts=[part]), config=types.GenerateContentConfig(**config)
        )
        return modalities(made.usage_metadata)

    image = types.Part.from_bytes(data=png(960, 540), mime_type="image/png")
    assert tokens(_NEW, image, media_resolution="MEDIA_RESOLUTION_LOW")["IMAGE"] == 280
    assert tokens(_OLD, image, media_resolution="MEDIA_RESOLUTION_LOW")["IMAGE"] == 64
    blob = types.Blob(data=MP4, mime_type="video/mp4")
    clip = types.Part(inline_data=blob, video_metadata=types.VideoMetadata(start_offset="1s", end_offset="2s", fps=2))
    assert tokens(_OLD, clip)["VIDEO"] == 2 * 263


@pytest.mark.parametrize(
    ("data", "media_type", "words"),
    [
        (_PNG, "image/jpg", "Unsupported MIME type: image/jpg"),
        (_PNG, "application/zip", "Unsupported MIME type: application/zip"),
        (_PNG, "image/jpeg", "Unable to process input image"),
        (b"\x00\x01\x02\xff", "image/png", "Unable to process input image"),
        (pdf("x", head=b"<</Encrypt 9 0 R>>"), "application/pdf", "The document has no pages"),
    ],
)
def test_what_gemini_does_not_take(base: str, gemini: genai.Client, data: bytes, media_type: str, words: str) -> None:
    """A 400 INVALID_ARGUMENT, and no cent."""
    with pytest.raises(errors.ClientError) as refused:
        gemini.models.generate_content(model=_NEW, contents=types.Part.from_bytes(data=data, mime_type=media_type))
    assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")
    assert words in str(refused.value)
    assert invoice(base)["total_nanos"] == 0


def test_bytes_that_are_no_base64_fail_the_create(base: str) -> None:
    """They cannot be read as a message, so that no row of the batch runs."""
    part = {"inlineData": {"mimeType": "image/png", "data": "@@@"}}
    refused = create(base, [{"key": "a", "request": {"contents": [{"role": "user", "parts": [part]}]}}], model=_NEW)
    assert refused.status == 400
    assert "Base64 decoding failed" in refused.json()["error"]["message"]


def test_media_do_not_go_beyond_what_a_model_holds(
    base: str, chatgpt: openai.OpenAI, claude: anthropic.Anthropic, gemini: genai.Client
) -> None:
    """Each format says so in its own words, and nothing is billed."""
    document = paper(file_data=data_url("application/pdf", pdf(*["x"] * 6)), filename="a.pdf")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 128000 tokens") as refused:
        chatgpt.chat.completions.create(model="gpt-4o-mini", messages=asked(document))  # 6 pages of 25,501
    assert refused.value.code == "context_length_exceeded"
    document = block(pdf(*["x"] * 250), "application/pdf", "document")
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 11\d+ tokens > 1000000 maximum"):
        claude.messages.create(model="claude-opus-5-5", max_tokens=9, messages=said(document))
    part = types.Part.from_bytes(data=pdf(*["x"] * 1000), mime_type="application/pdf")
    config = types.GenerateContentConfig(media_resolution=types.MediaResolution.MEDIA_RESOLUTION_HIGH)
    with pytest.raises(errors.ClientError, match="exceeds the maximum number of tokens allowed"):
        gemini.models.generate_content(model=_NEW, contents=part, config=config)
    assert invoice(base)["total_nanos"] == 0


def test_a_request_holds_20_mb(gemini: genai.Client) -> None:
    """What is larger is to be uploaded."""
    part = types.Part.from_bytes(data=_PNG + bytes(16 << 20), mime_type="image/png")
    with pytest.raises(errors.ClientError, match="payload size exceeds the limit"):
        gemini.models.generate_content(model=_NEW, contents=part)


def test_models_that_embed_take_no_media(base: str, chatgpt: openai.OpenAI, gemini: genai.Client) -> None:
    """Neither in one format nor in the other."""
    content = types.Content(parts=[types.Part.from_bytes(data=_PNG, mime_type="image/png")])
    with pytest.raises(errors.ClientError, match="only text is taken"):
        gemini.models.embed_content(model="gemini-embedding-001", contents=content)
    body = {"model": "text-embedding-3-small", "input": [picture(_PNG)]}
    assert call(base, "POST", "/v1/embeddings", body).status == 400


def test_answers_by_schema_name_what_came_too(chatgpt: openai.OpenAI) -> None:
    """In the first property that takes any text."""
    schema = {
        "type": "object", "required": ["kind", "label"], "additionalProperties": False,
        "properties": {"kind": {"type": "string", "enum": ["a", "b"]}, "label": {"type": "string"}},
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    made = chatgpt.chat.completions.create(model="gpt-4o", messages=asked(picture(_PNG)), response_format=form)
    answer = json.loads(made.choices[0].message.content or "")
    assert (answer["kind"] in "ab", answer["label"]) == (True, told("image/png", _PNG))
