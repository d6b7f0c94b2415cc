"""The simulator as a process, as a thread, and with a whole batch's worth of rows."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from simulator_kit import CHAT, call, chat_body, chat_lines, fast, invoice, jsonl, results, run

from nightmill.simulator import SimulatorConfig, in_thread
from nightmill.simulator.__main__ import main


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nightmill.simulator", "--port", "0", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_where_it_listens_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """One line on stdout once it listens; a signal ends it with 0 and nothing on stderr."""
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"fault": "upload_500", "times": 1}]))
    with _start("--speed", "1000", "--faults", str(faults), "--dir", str(tmp_path / "d")) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("simulator http://127.0.0.1:")
        assert first.endswith("/v1\n")
        url = first.split()[1]
        assert call(url, "POST", CHAT, chat_body("x")).status == 200
        assert call(url, "GET", "/simulator/faults").json()[0]["fault"] == "upload_500"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_signal_ends_it_while_a_caller_is_kept_waiting(tmp_path: Path) -> None:
    """A held connection does not hold up the end."""
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"fault": "live_timeout"}]))
    with _start("--faults", str(faults)) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        where = urllib.parse.urlsplit(url)
        asked = json.dumps(chat_body("x")).encode()
        caller = http.client.HTTPConnection(where.hostname or "", where.port, timeout=0.5)
        caller.request("POST", CHAT, asked, {"Authorization": "Bearer k"})
        with pytest.raises(TimeoutError):
            caller.getresponse()
        caller.close()
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_bad_usage_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown fault or a missing file is told on stderr, not in a traceback."""
    faults = tmp_path / "faults.json"
    faults.write_text('[{"fault": "typo"}]')
    assert main(["--faults", str(faults)]) == 2
    assert main(["--faults", str(tmp_path / "none.json")]) == 1
    assert main(["--speed", "0"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("error: ")) == ("", 3)
    assert "unknown fault 'typo'" in err


def test_contents_lie_in_the_folder_and_a_temporary_one_goes_away(tmp_path: Path) -> None:
    """With `dir` the files stay there; a wrong configuration raises where the simulator was asked for."""
    with in_thread(fast(dir=tmp_path)) as url:
        batch = run(url, chat_lines(3))
        assert len(results(url, batch)) == 3
    kept = {path.name for path in (tmp_path / "files" / "openai").iterdir()}
    assert kept == {batch["input_file_id"], batch["output_file_id"]}
    slip = {"fault": "live_429", "cuont": 1}
    with pytest.raises(ValueError, match="unknown field 'cuont'"), in_thread(SimulatorConfig(faults=[slip])):
        pass
    with pytest.raises(ValueError, match="unknown fault"), in_thread(SimulatorConfig(faults=[{"fault": "x"}])):
        pass


def test_a_full_batch() -> None:
    """50,000 rows: every row answered once, and the invoice is the sum over the rows' own usage."""
    with in_thread(fast(answer_tokens=10)) as url:
        batch = run(url, jsonl(chat_lines(50_000)))
        assert batch["request_counts"] == {"total": 50_000, "completed": 50_000, "failed": 0}
        items = results(url, batch)
        seen = invoice(url)
    assert len({item["custom_id"] for item in items}) == 50_000
    used = [item["response"]["body"]["usage"] for item in items]
    # gpt-4o-mini in a batch: 75 nano-dollars a token in, 300 out.
    assert seen["total_nanos"] == sum(75 * u["prompt_tokens"] + 300 * u["completion_tokens"] for u in used)
    assert (seen["executed_rows"], seen["distinct_rows"]) == (50_000, 50_000)
