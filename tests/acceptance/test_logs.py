"""The log tells what happened in lines that several processes share, and nothing that is private."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cli_kit import MODEL, Place

from nightmill.cli import logs
from nightmill.simulator import SimulatorConfig, in_thread

PROMPT, ANSWER, KEY = "zebra secret prompt", "ZEBRA SECRET PROMPT", "sk-very-secret-key-0815"
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \d+ (DEBUG|INFO|WARNING|ERROR) nightmill\.[a-z_.]+ [^\x00-\x1f]+"
)
TALKATIVE = """
def repeats(messages, **params):
    text = messages[-1]["content"]
    if "2" in text:
        raise ValueError(f"cannot do {text}")
    return text.upper()
"""


class _Repeats(BaseHTTPRequestHandler):
    """A provider whose refusals quote the request and the key."""

    status = 400

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        quoted = f"{asked} for {self.headers['Authorization']}\nsecond line"
        error = {"message": quoted, "code": quoted, "type": quoted, "param": quoted}
        body = json.dumps({"error": error}).encode() if self.status != 502 else quoted.encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def repeating() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Repeats)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def logged(place: Place) -> str:
    """Every byte in the folder of logs; each line is one event."""
    text = "".join(file.read_bytes().decode() for file in (place.home / "logs").iterdir())
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    return text


def private(text: str) -> list[str]:
    """What must be in no log, and is in this one."""
    return [secret for secret in (PROMPT, ANSWER, KEY, PROMPT[:12], ANSWER[:12]) if secret in text]


@pytest.mark.req("B9")
@pytest.mark.parametrize("lane", ["batch", "live"])
def test_the_log_tells_of_job_and_shards_and_of_nothing_private(tmp_path: Path, lane: str) -> None:
    """At DEBUG every step of a job is in the log with its ids in UTC; no prompt, answer or key is in any byte of it."""
    faults = [{"fault": "row_errors", "count": 2, "times": 1}, {"fault": "live_500", "count": 2}]
    with in_thread(SimulatorConfig(speed=1000.0, faults=faults)) as url:
        place = Place(tmp_path, url)
        place.env |= {"LOG_LEVEL": "DEBUG", "OPENAI_API_KEY": KEY}
        command = ("run", place.rows(3, PROMPT + " {}"), "--prompt", PROMPT + " {{ text }}", "--model", MODEL)
        done = place.run(*command, "--lane", lane, "--yes", "--json")
        answer = place.run("show", "@last", "--row", "0", "--json").json["response"]
    assert done.code == 0, done.err
    text = logged(place)
    assert f"INFO nightmill.engine job {done.json['job_id']}: completed: 3 succeeded" in text
    assert re.search(rf"INFO nightmill\.engine shard {done.json['job_id']}-\d+: settled: ", text)
    assert f"DEBUG nightmill.lanes shard {done.json['job_id']}-" in text
    assert private(text) == []
    assert answer[:20] not in text


@pytest.mark.req("B9")
@pytest.mark.parametrize("status", [400, 401, 429, 502])
def test_what_a_provider_says_stays_out_of_the_log(tmp_path: Path, repeating: str, status: int) -> None:
    """Error bodies may quote the request and the key: the person is told, the log is not."""
    _Repeats.status = status
    place = Place(tmp_path, repeating)
    place.env |= {"LOG_LEVEL": "DEBUG", "OPENAI_API_KEY": KEY}
    command = ("run", place.rows(1, PROMPT + " {}"), "--prompt", "{{ text }}", "--model", MODEL, "--yes", "--new")
    for lane in ("live", "batch"):
        if status == 429 or (status == 502 and lane == "batch"):  # tried again until somebody stops it
            running = place.start(*command, "--lane", lane)
            running.until(lambda event: re.search("asks to wait|not sent", event.get("text", "")) is not None)
            running.signal(signal.SIGINT)
            assert running.end().code == 130
        else:
            done = place.run(*command, "--lane", lane)
            assert done.code in (1, 3), done.err
    assert private(logged(place)) == []


@pytest.mark.req("B9")
def test_what_a_function_raises_and_what_is_typed_stay_out_of_the_log(tmp_path: Path) -> None:
    """An exception that quotes a row, a prompt that does not parse, a row that is broken: none of it is logged."""
    place = Place(tmp_path)
    (tmp_path / "talk.py").write_text(TALKATIVE)
    place.env["LOG_LEVEL"] = "DEBUG"
    function = ("--model", "python:talk.repeats")
    assert place.run("run", place.rows(3, PROMPT + " {}"), "--prompt", "{{ text }}", *function).code == 3
    assert place.run("run", "in.txt", "--prompt", PROMPT + " {{ text", *function).code == 2
    assert place.run("run", "in.txt", "--prompt", "@" + PROMPT, *function).code == 2
    (tmp_path / "bad.jsonl").write_text(f'{{"text": "{PROMPT}"}}\n{{"text": "{PROMPT}"\n')
    assert place.run("run", "bad.jsonl", "--prompt", "{{ text }}", *function).code == 2
    text = logged(place)
    assert private(text) == []
    assert "ERROR nightmill.cli ends with exit 2: bad_input" in text


@pytest.mark.req("B9", "B6")
def test_log_level_puts_the_log_on_the_screen_too(tmp_path: Path) -> None:
    """LOG_LEVEL shows lines of that level on stderr, as notes where progress is JSON; without it the screen is ours."""
    place = Place(tmp_path)
    command = ("run", place.rows(2), "--prompt", "{{ text }}", "--model", "python:funcs.upper", "--json")
    quiet = place.run(*command)
    assert not any(LINE.fullmatch(line) for line in quiet.err.splitlines())
    assert "INFO nightmill.engine job " in logged(place)
    place.env["LOG_LEVEL"] = "info"
    loud = place.run(*command, "--new")
    assert any(LINE.fullmatch(line) for line in loud.err.splitlines())
    assert loud.json["succeeded"] == 2
    notes = place.run(*command, "--new", "--progress", "json").err.splitlines()
    told = [json.loads(line)["text"] for line in notes if line.startswith('{"event": "note"')]
    assert any(LINE.fullmatch(line) for line in told)
    place.env["LOG_LEVEL"] = "error"
    size = len(logged(place))
    assert not any(LINE.fullmatch(line) for line in place.run(*command, "--new").err.splitlines())
    assert len(logged(place)) == size


_WRITER = """
import logging, sys, time
from pathlib import Path
from nightmill.cli import logs
move_aside = logs._Shared._move_aside
def move_aside_late(*args):
    time.sleep(0.002)  # others see the same full file meanwhile
    move_aside(*args)
logs._Shared._move_aside = move_aside_late
logs._FILE_BYTES = 20_000
logs.start_log(Path(sys.argv[1]), "INFO", {})
log = logging.getLogger("nightmill.test")
for n in range(300):
    log.info("%s-%d %s", sys.argv[2], n, "x" * 20)
"""


@pytest.mark.req("B9")
def test_who_came_too_late_to_move_a_log_aside_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that found the file full just after another moved it goes on, and even if idle stops no later move."""
    monkeypatch.setattr(logs, "_FILE_BYTES", 1_000)
    late, other = logs._Shared(tmp_path / "x.log"), logs._Shared(tmp_path / "x.log")
    late._move_aside(10)
    assert [file.name for file in tmp_path.iterdir()] == ["x.log"]
    for n in range(100):
        other.emit(logging.LogRecord("x", logging.INFO, "", 0, f"{n} {'x' * 40}", None, None))
    late.close()
    other.close()
    assert max(file.stat().st_size for file in tmp_path.iterdir()) <= 1_000


@pytest.mark.req("B9")
def test_processes_share_a_log_that_keeps_its_size(tmp_path: Path) -> None:
    """Four processes that fill it at once lose and tear no line; files are moved aside, and the oldest go."""
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    for turn in range(2):
        writers = [subprocess.Popen([*command, f"{turn}.{n}"]) for n in range(4)]
        assert [writer.wait(60) for writer in writers] == [0] * 4
        files = sorted((tmp_path / "logs").iterdir())
        lines = [line for file in files for line in file.read_text().splitlines()]
        told = [line.split(" ")[4] for line in lines]
        assert [line for line in lines if not LINE.fullmatch(line)] == []
        assert len(told) == len(set(told))
        assert len(files) <= 6
        assert max(file.stat().st_size for file in files) < 60_000  # all of a turn: 100,000; one may be slow to move it
        if not turn:
            assert set(told) == {f"0.{n}-{i}" for n in range(4) for i in range(300)}
    assert [file.name for file in files] == ["nightmill.log", *(f"nightmill.log.{n}" for n in range(1, 6))]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
