"""Images, PDFs, audio and video: columns of rows, sent along with prompts, billed by the token, within the hold."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import Done, Place

from nightmill.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.req("X9")

MODELS = ("openai/gpt-5-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash")
ASKED = ("--prompt", "What is in {{ id }}?", "--media", "photo", "--out", "r.jsonl", "--yes", "--force", "--json")


def png(width: int, height: int, colour: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes((colour, 90, 200)) * width) * height
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wav(seconds: float) -> bytes:
    data = bytes(int(seconds * 8_000) * 2)
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16)
    return b"RIFF" + struct.pack("<I", len(data) + 36) + head + b"data" + struct.pack("<I", len(data)) + data


def pdf(pages: int) -> bytes:
    kids = " ".join(f"{3 + n} 0 R" for n in range(pages))
    made = [f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>"] + ["<< /Type /Page /Parent 2 0 R >>"] * pages
    objects = "".join(f"{2 + n} 0 obj\n{text}\nendobj\n" for n, text in enumerate(made))
    whole = f"1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n{objects}trailer\n<< /Root 1 0 R >>"
    return f"%PDF-1.4\n{whole}\n%%EOF\n".encode()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with in_thread(SimulatorConfig(speed=200.0, batch_s=10.0)) as url:
        made, base = Place(tmp_path, url), url.removesuffix("/v1")
        made.env |= {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": base}
        made.env |= {"GEMINI_API_KEY": "sk-test", "GEMINI_BASE_URL": base}
        yield made


def photos(place: Place, count: int, *, name: str = "photos.csv", folder: str = "pics") -> list[bytes]:
    """A table of images, each in a file of its own beside it; their bytes."""
    (place.folder / folder).mkdir(exist_ok=True)
    made = [png(40 + 7 * n, 30 + 5 * n, n) for n in range(count)]
    with (place.folder / name).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "photo"])
        for n, data in enumerate(made):
            (place.folder / folder / f"{n}.png").write_bytes(data)
            table.writerow([f"photo {n}", f"{folder}/{n}.png"])
    return made


def came(data: bytes) -> str:
    """How the provider that is simulated names the bytes that reached it."""
    return f"{len(data)} bytes sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def is_paid(place: Place, done: Done) -> bool:
    """Whether what was booked is what is billed, no row ran twice, and no hold was too small."""
    bill = place.invoice()
    return not bill["executed_more_than_once"] and round(done.json["spent_usd"] * 1e9) == bill["total_nanos"]


@pytest.mark.parametrize("lane", ["live", "batch"])
@pytest.mark.parametrize("model", MODELS)
def test_each_row_is_sent_with_its_own_image(place: Place, model: str, lane: str) -> None:
    """The right bytes with the right row; spent is what is billed; less than was held."""
    made = photos(place, 6)
    done = place.run("run", "photos.csv", *ASKED, "--model", model, "--lane", lane)
    assert (done.code, done.json["succeeded"]) == (0, 6), done.err
    rows = place.results("r.jsonl")
    assert all(came(data) in row["response"] for data, row in zip(made, rows, strict=True))
    assert is_paid(place, done)
    assert done.json["spent_usd"] <= done.json["at_most_usd"]
    assert [row["prompt"] for row in rows] == [f"What is in photo {n}?" for n in range(6)]


def test_an_image_is_priced_by_its_size_and_not_by_its_bytes(place: Place) -> None:
    """What base64 makes of it does not count: the quote expects about what is billed, and holds little more."""
    photos(place, 12)
    done = place.run("run", "photos.csv", *ASKED, "--model", MODELS[1], "--lane", "live", "--max-output", "50")
    tokens = done.json["tokens_in"]
    assert done.json["spent_usd"] / 3 <= done.json["estimated_usd"] <= done.json["at_most_usd"]
    assert 12 * 10 < tokens < 12 * 200, tokens


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("openai/gpt-5-mini", ("pdf", "image")),
        ("anthropic/claude-haiku-4-5", ("pdf", "image")),
        ("gemini/gemini-2.5-flash", ("pdf", "image", "audio", "video")),
        ("openai/gpt-audio", ("audio",)),
    ],
)
def test_what_a_model_takes_arrives_and_what_it_does_not_is_refused(
    place: Place, model: str, kinds: tuple[str, ...]
) -> None:
    """PDFs, sound and films, at the rate that each is billed at; nothing is sent where a row has what is not taken."""
    film = struct.pack(">I8sI", 16, b"ftypisom", 0) + struct.pack(">I4s5I", 28, b"mvhd", 0, 0, 0, 1_000, 9_000)
    every = {"pdf": pdf(3), "image": png(300, 200), "audio": wav(2), "video": film + bytes(200_000)}
    for kind, data in every.items():
        (place.folder / f"a.{kind}").write_bytes(data)
        (place.folder / f"{kind}.csv").write_text(f"id,photo\nx,a.{kind}\n")
        done = place.run("run", f"{kind}.csv", *ASKED, "--model", model, "--lane", "live", "--budget", "3")
        if kind not in kinds:
            assert done.code == 2, done.err
            assert done.json["error"]["code"], done.json
            assert f"{kind}.csv:2" in done.json["error"]["why"]
            continue
        assert done.code == 0, done.err
        assert came(data) in place.results("r.jsonl")[0]["response"]
        assert done.json["spent_usd"] <= done.json["at_most_usd"]
    spent = json.loads(place.run("budget", "show", "--json").out)["spent"]
    assert round(spent * 1e9) == place.invoice()["total_nanos"]


def test_media_come_as_bytes_data_addresses_and_several_at_once(place: Place) -> None:
    """Whatever a table has in its column; a row without any is a prompt alone."""
    one, two = png(20, 10, 1), png(10, 20, 2)
    (place.folder / "two.png").write_bytes(two)
    cells: list[Any] = [
        ["two.png"],
        [f"data:image/png;base64,{base64.b64encode(one).decode()}", "two.png"],
        [],
        None,
        ["https://example.com/a.png"],
    ]
    lines = [json.dumps({"id": n, "photo": cell}) for n, cell in enumerate(cells)]
    (place.folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    done = place.run("run", "rows.jsonl", *ASKED, "--model", MODELS[0], "--lane", "live")
    assert (done.code, done.json["succeeded"]) == (0, 5), done.err
    rows = [row["response"] for row in place.results("r.jsonl")]
    assert [came(one) in row for row in rows] == [False, True, False, False, False]
    assert [came(two) in row for row in rows] == [True, True, False, False, False]
    assert "sha256" in rows[4]
    assert is_paid(place, done)
    table = pa.table({"id": ["x", "y"], "photo": pa.array([one, two], pa.binary())})
    pq.write_table(table, place.folder / "rows.parquet")
    done = place.run("run", "rows.parquet", *ASKED, "--model", MODELS[2], "--lane", "batch")
    assert (done.code, done.json["succeeded"]) == (0, 2), done.err
    assert [came(data) in row["response"] for data, row in zip((one, two), place.results("r.jsonl"), strict=True)]


def test_a_job_keeps_its_media_whoever_changes_the_files(place: Place) -> None:
    """A retry sends what was planned; the same command with another image is another job, and pays for that alone."""
    made = photos(place, 3)
    first = place.run("run", "photos.csv", *ASKED, "--model", MODELS[0], "--lane", "live", "--max-output", "2")
    assert (first.code, first.json["failed"]) == (3, 3), first.err
    for file in (place.folder / "pics").iterdir():
        file.unlink()
    again = place.run("retry", "@last", "--max-output", "500", "--yes", "--json")
    assert (again.code, again.json["succeeded"]) == (0, 3), again.err
    assert all(came(data) in row["response"] for data, row in zip(made, place.results("r.jsonl"), strict=True))
    photos(place, 3)
    (place.folder / "pics/1.png").write_bytes(png(9, 9))
    other = place.run("run", "photos.csv", *ASKED, "--model", MODELS[0], "--lane", "live", "--max-output", "500")
    assert (other.code, other.json["job_id"] != first.json["job_id"]) == (0, True), other.err
    assert other.json["cached"] == 2
    assert came(png(9, 9)) in place.results("r.jsonl")[1]["response"]


def test_media_that_cannot_be_had_are_bad_rows(place: Place) -> None:
    """Missing, unreadable or of no kind: told by file and line before anything is sent, or counted and left out."""
    photos(place, 3)
    with (place.folder / "photos.csv").open("a") as file:
        file.write("gone,pics/none.png\nhere,photos.csv\n")
    done = place.run("run", "photos.csv", *ASKED, "--model", MODELS[0])
    assert done.code == 2
    assert "photos.csv:5: photo 'pics/none.png' cannot be read: No such file" in done.json["error"]["why"]
    assert "photos.csv:6: photos.csv is no image, PDF, sound or film" in done.json["error"]["why"]
    assert place.invoice()["total_nanos"] == 0
    done = place.run("run", "photos.csv", *ASKED, "--model", MODELS[0], "--skip-bad")
    assert (done.json["succeeded"], done.json["invalid"]) == (3, 2), done.err
    done = place.run("run", "photos.csv", *ASKED[:2], "--media", "foto", "--model", MODELS[0], "--json")
    assert (done.code, "photo" in done.json["error"]["fix"]) == (2, True)


def test_a_folder_of_images_is_an_input(place: Place) -> None:
    """Each file is a row, and a medium; files of text in a folder come first, as ever."""
    made = photos(place, 3)
    done = place.run("run", "pics", "--prompt", "What is {{ name }}?", *ASKED[4:], "--model", MODELS[2])
    assert (done.code, done.json["succeeded"]) == (0, 3), done.err
    rows = place.results("r.jsonl")
    assert [row["key"] for row in rows] == [f"pics/{n}.png" for n in range(3)]
    assert all(came(data) in row["response"] for data, row in zip(made, rows, strict=True))
    assert [row["prompt"] for row in rows] == [f"What is {n}?" for n in range(3)]
    (place.folder / "pics/note.txt").write_text("a text")
    text = place.run("run", "pics", "--prompt", "{{ text }}", *ASKED[4:], "--model", MODELS[2])
    assert (text.code, text.json["rows"]) == (0, 1), text.err


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_what_has_no_end_or_is_no_text_is_a_bad_row(place: Place) -> None:
    """A pipe is not waited for, a device not read for ever, and bytes that are a number are told as such."""
    os.mkfifo(place.folder / "pipe")
    (place.folder / "a.png").write_bytes(png(9, 9))
    cells: list[Any] = ["pipe", "/dev/zero", {"bytes": 5}, {"bytes": [137, 80]}, "a.png"]
    lines = [json.dumps({"id": n, "photo": cell}) for n, cell in enumerate(cells)]
    (place.folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    done = place.run("run", "rows.jsonl", *ASKED, "--model", MODELS[0], "--lane", "live", "--skip-bad", seconds=30)
    assert (done.code, done.json["succeeded"], done.json["invalid"]) == (3, 1, 4), done.err
    told = [row["error"] for row in place.results("r.jsonl")]
    assert "pipe is a pipe or a device" in told[0]
    assert "/dev/zero is a pipe or a device" in told[1]
    assert "its bytes are '5', and base64 is wanted" in told[2]


@pytest.mark.req("A4")
def test_of_several_models_one_that_sees_is_chosen(place: Place) -> None:
    """However cheap another is: one that takes no images cannot do the job, and the quote says so."""
    photos(place, 3)
    models = "openai/o3-mini,openai/gpt-5-nano,anthropic/claude-haiku-4-5"
    done = place.run("run", "photos.csv", *ASKED, "--model", models, "--lane", "live")
    assert (done.code, done.json["model"]) == (0, "openai/gpt-5-nano"), done.err
    assert "o3-mini is left out: o3-mini is sent no images" in " ".join(done.err.split()).replace("│ ", "")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_many_large_images_take_little_memory(place: Place) -> None:
    """Requests of megabytes are encoded and cut a few at a time, however many there are."""
    few, many = (_peak_mb(place, count) for count in (45, 75))
    assert many < few + 40, (few, many)  # thirty more have 80 MB as base64


def _peak_mb(place: Place, count: int) -> float:
    (place.folder / "pics").mkdir(exist_ok=True)
    noise = png(4, 4) + bytes(range(256)) * 8_000  # two megabytes behind an image
    lines = ["id,photo"]
    for n in range(count):
        (place.folder / f"pics/{n}.png").write_bytes(noise + n.to_bytes(2, "big"))
        lines.append(f"{n},pics/{n}.png")
    (place.folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return place.peak_mb("run", "photos.csv", *ASKED[:-1], "--dry-run", "--model", MODELS[2], "--lane", "batch")


GEMINI = ("--model", "gemini/gemini-2.5-flash")


def test_what_is_shown_in_the_prompt_is_sent_as_it_was_written(place: Place) -> None:
    """A column of media may be one of the prompt's, too, however long its cells: they are no missing values."""
    long = [f"data:image/png;base64,{base64.b64encode(png(9, 9, n) + bytes(9_000)).decode()}" for n in range(2)]
    (place.folder / "in.jsonl").write_text("\n".join(json.dumps({"id": n, "photo": t}) for n, t in enumerate(long)))
    asked = ("--prompt", "This is {{ photo }}", *ASKED[2:], "--model", MODELS[0], "--lane", "live")
    first = place.run("run", "in.jsonl", *asked, "--max-output", "2")
    assert (first.code, first.json["failed"]) == (3, 2), first.err
    again = place.run("retry", "@last", "--max-output", "500", "--yes", "--json")
    assert (again.code, again.json["succeeded"]) == (0, 2), again.err
    assert [row["prompt"] for row in place.results("r.jsonl")] == [f"This is {text}" for text in long]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes that are called as files")
def test_odd_cells_are_media_or_bad_rows_and_nobody_waits_for_them(place: Place) -> None:
    """Devices, pipes and endless files are not read; bytes that are none are told; what data URLs may be is taken."""
    os.mkfifo(place.folder / "pipe.png")
    (place.folder / "empty.png").touch()
    text = base64.b64encode(png(9, 9)).decode()
    bad: list[Any] = ["/dev/zero", "pipe.png", "empty.png", {"bytes": 5}, {"bytes": [1, 2]}, "data:image/png,%00"]
    good: list[Any] = [
        f"DATA:image/png;name=a.png;base64,{quote(text, safe='')}",
        f"data:image/png,{quote(png(9, 9))}",
        f"data:image/png;base64,{text[:40]}\n{text[40:]}",
        {"bytes": text, "path": None},
    ]
    cells = [*bad, *good, {"bytes": None, "path": None}]
    (place.folder / "in.jsonl").write_text("\n".join(json.dumps({"id": n, "photo": c}) for n, c in enumerate(cells)))
    done = place.run("run", "in.jsonl", *ASKED, "--model", MODELS[0], "--lane", "live", "--skip-bad")
    assert (done.json["succeeded"], done.json["invalid"]) == (5, 6), done.err
    rows = place.results("r.jsonl")
    shown = [came(png(9, 9)) in (row["response"] or "") for row in rows]
    assert shown == [False] * 6 + [True] * 4 + [False]
    said = [row["error"] for row in rows[:6]]
    assert all("a pipe or a device" in text for text in said[:2])
    assert "is empty" in said[2]
    assert is_paid(place, done)


@pytest.mark.parametrize("lane", [pytest.param("live", marks=pytest.mark.again), "batch"])
def test_what_no_request_holds_is_uploaded_once_and_only_named(place: Place, lane: str) -> None:
    """A large image goes ahead as a file of its own, once for all rows and jobs that show it; small ones go inside."""
    large = [png(300, 200, n) + bytes(16_000_000 + n) for n in range(2)]
    small = png(9, 9)
    for n, data in enumerate([*large, small]):
        (place.folder / f"{n}.png").write_bytes(data)
    shown = [["0.png", "2.png"], ["1.png"], ["2.png"], ["0.png", "1.png"]]
    lines = [json.dumps({"id": n, "photo": each}) for n, each in enumerate(shown)]
    (place.folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    done = place.run("run", "in.jsonl", *ASKED, *GEMINI, "--lane", lane, "--batch-size", "2")
    assert (done.code, done.json["succeeded"]) == (0, 4), done.err
    for each, row in zip(shown, place.results("r.jsonl"), strict=True):
        told = [came([*large, small][int(name[0])]) for name in each]
        assert all(text in row["response"] for text in told), row
    assert is_paid(place, done)
    uploaded = [event["size_bytes"] for event in place.log() if event["event"] == "upload"]
    assert sorted(size for size in uploaded if size > 15_000_000) == sorted(map(len, large))
    again = place.run("run", "in.jsonl", *ASKED, *GEMINI, "--lane", lane, "--new", "--no-cache", "--batch-size", "4")
    assert (again.code, again.json["succeeded"]) == (0, 4), again.err
    later = [event["size_bytes"] for event in place.log() if event["event"] == "upload"][len(uploaded) :]
    assert all(size < 1_000_000 for size in later)


def test_an_uploaded_medium_weighs_what_it_weighed_inside(place: Place) -> None:
    """Quote, hold and bill are those of the same image inside its request."""
    (place.folder / "a.png").write_bytes(png(900, 700) + bytes(30_000))
    (place.folder / "in.csv").write_text("id,photo\n1,a.png\n")
    inside = place.run("run", "in.csv", *ASKED, *GEMINI, "--lane", "live", "--no-cache")
    (place.folder / "nightmill.toml").write_text("[providers.gemini.limits]\nrequest_bytes = 4000\n")
    apart = place.run("run", "in.csv", *ASKED, *GEMINI, "--lane", "live", "--no-cache", "--new")
    assert [event["event"] for event in place.log()].count("upload") == 1, apart.err
    assert inside.json["tokens_in"] == apart.json["tokens_in"]
    assert apart.json["at_most_usd"] >= apart.json["spent_usd"]
    assert inside.json["at_most_usd"] == pytest.approx(apart.json["at_most_usd"], rel=0.2)


@pytest.mark.parametrize("lane", ["live", "batch"])
def test_sound_that_was_heard_before_is_booked_at_its_own_price(place: Place, lane: str) -> None:
    """What the provider had of it in its cache costs neither what sound costs, nor what cached text does."""
    for n in range(8):
        (place.folder / f"{n}.wav").write_bytes(wav(40 + n))
    done = place.run("run", *(f"{n}.wav" for n in range(8)), "--prompt", "Write {{ name }} down.", *GEMINI,
                     "--lane", lane, *ASKED[4:])  # fmt: skip
    assert (done.code, done.json["succeeded"]) == (0, 8), done.err
    assert done.json["saved_usd"] > 0
    assert is_paid(place, done)


def test_a_server_of_ones_own_is_sent_what_its_settings_say(place: Place) -> None:
    """Images reach it in the usual form, held by the context of the model; what it is not said to take is refused."""
    made = photos(place, 3)
    mine = f'base_url = "{place.url}"\napi_key_env = "OPENAI_API_KEY"\nprice = {{ input = 0.25, output = 2.0 }}\n'
    settings = (place.folder / "nightmill.toml").read_text()
    told = '[providers.mine]\nmedia = ["image"]\n' + mine + "limits = { context = 30000 }\n" + settings
    (place.folder / "nightmill.toml").write_text(told)
    mine_too = ("--model", "mine/gpt-5-mini", "--lane", "live")
    done = place.run("run", "photos.csv", *ASKED, *mine_too)
    assert (done.code, done.json["succeeded"]) == (0, 3), done.err
    assert all(came(data) in row["response"] for data, row in zip(made, place.results("r.jsonl"), strict=True))
    assert is_paid(place, done)
    assert 3 * 30_000 * 0.25e-6 <= done.json["at_most_usd"] <= 3 * 40_000 * 0.25e-6 + 3 * 8_000 * 2e-6
    (place.folder / "a.wav").write_bytes(wav(1))
    refused = place.run("run", "a.wav", "--prompt", "What is it?", *mine_too, *ASKED[4:])
    assert refused.code == 2
    assert "it takes image" in refused.err
    assert "image" in place.run("models", "mine/gpt-5-mini").out
    (place.folder / "nightmill.toml").write_text(told.replace('["image"]', '["photo"]'))
    wrong = place.run("models")
    assert wrong.code == 2
    assert "image, pdf, audio, video" in wrong.err
