"""`doctor` finds what is broken and says how to mend it; `completion` helps to type."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Done, Place

from nightmill.simulator import SimulatorConfig, in_thread

UPPER = ("--prompt", "{{ text }}", "--model", "python:funcs.upper", "--yes")


def checks(done: Done) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in done.json["checks"]}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_key_is_tried_with_a_call_that_costs_nothing(tmp_path: Path) -> None:
    """A key that the provider takes is told by name, one that it refuses is broken, with its fix; nothing is billed."""
    with in_thread(SimulatorConfig()) as url:
        place = Place(tmp_path, url)
        done = place.run("doctor", "--json")
        assert done.code == 0, done.out
        assert checks(done)["openai key"]["state"] == "ok"
        assert place.invoice()["total_nanos"] == 0
        assert "sk-test" not in done.out
        place.env["OPENAI_API_KEY"] = "sk-wrong"
        refused = place.run("doctor", "--json")
        assert (refused.code, checks(refused)["openai key"]["state"]) == (1, "bad")
        assert "OPENAI_API_KEY" in checks(refused)["openai key"]["fix"]
        assert "wrong" not in refused.out


def test_a_healthy_home_is_told_in_full(place: Place) -> None:
    """Prices and their age, home, disk, ledger and work are each well, and the exit code is 0."""
    assert place.run("run", place.rows(2), *UPPER).code == 0
    done = place.run("doctor", "--json")
    assert done.code == 0, done.out
    found = checks(done)
    assert {name: found[name]["state"] for name in ("prices", "home", "disk", "ledger", "work")} == dict.fromkeys(
        ("prices", "home", "disk", "ledger", "work"), "ok"
    )
    assert re.search(r"its newest price began 20\d\d-\d\d-\d\d, ", found["prices"]["text"])
    assert "sound; 1 job, " in found["ledger"]["text"]


@pytest.mark.req("X12")
def test_a_home_that_others_can_read_is_broken(place: Place) -> None:
    """A home becomes its owner's only, an empty folder that was there too; one that was opened since is told."""
    place.home.mkdir(mode=0o755)
    assert place.run("run", place.rows(2), *UPPER).code == 0
    assert place.home.stat().st_mode & 0o077 == 0
    place.home.chmod(0o755)
    done = place.run("doctor", "--json")
    assert (done.code, checks(done)["home"]["state"]) == (1, "bad")
    assert checks(done)["home"]["fix"] == f"chmod 700 {place.home}"


def test_a_damaged_ledger_is_broken(place: Place) -> None:
    """Pages that hold nonsense are found before they cost anything, exit 1, and the file is left as it is."""
    assert place.run("run", place.rows(2), *UPPER).code == 0
    path = place.home / "nightmill.db"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096
    path.write_bytes(data)
    done = place.run("doctor", "--json")
    assert done.code == 1
    assert checks(done)["ledger"]["state"] == "bad"
    assert "backup" in checks(done)["ledger"]["fix"]
    assert path.read_bytes()[-4096:] == b"\xff" * 4096


def test_a_job_that_was_left_alone_is_told(place: Place) -> None:
    """A job whose process died is named with the command that goes on with it; that is no defect."""
    place.env["NIGHTMILL_KILL_AT"] = "ledger.note_intent.committed"
    assert place.run("run", place.rows(2), *UPPER).code < 0
    del place.env["NIGHTMILL_KILL_AT"]
    job = place.run("jobs", "--json").json["jobs"][0]["job_id"]
    done = place.run("doctor", "--json")
    assert (done.code, checks(done)["work"]["state"]) == (0, "note"), done.out
    assert job in checks(done)["work"]["text"]
    assert "nightmill resume" in checks(done)["work"]["fix"]


def asked(place: Place, words: str) -> tuple[list[str], set[str]]:
    """What a shell is offered for ``words``, and which modules were loaded to say it."""
    code = "import sys; from nightmill.cli import main\ntry: main([])\nfinally: print(*sys.modules, file=sys.stderr)"
    env = place.env | {
        "_NIGHTMILL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=place.folder, env=env, capture_output=True, text=True, timeout=60
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()], set(done.stderr.split())


def test_a_shell_completes_commands_and_jobs_at_once(place: Place) -> None:
    """Commands, and jobs by id and name, are offered without loading the ledger or anything else that is heavy."""
    for name in ("nightly", "other"):
        assert place.run("run", place.rows(2, name + " {}"), *UPPER, "--name", name).code == 0
    jobs = {job["name"]: job["job_id"] for job in place.run("jobs", "--json").json["jobs"]}
    assert "resume" in asked(place, "nightmill re")[0]
    offered, loaded = asked(place, "nightmill show ")
    assert offered == [jobs["other"], "other", jobs["nightly"], "nightly", "@last"]
    assert not {"sqlalchemy", "pyarrow", "rich", "aiohttp"} & loaded
    assert asked(place, "nightmill delete ni")[0] == ["nightly"]
    assert asked(place, "nightmill cancel --yes ni")[0] == ["nightly"]
    assert "--row" in asked(place, "nightmill show --")[0]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(place: Place, shell: str) -> None:
    """`completion SHELL` prints a script for that shell, and nothing else on stdout."""
    done = place.run("completion", shell)
    assert done.code == 0, done.err
    assert f"_NIGHTMILL_COMPLETE={shell}_complete" in done.out
    if shell == "bash":
        said = subprocess.run(["bash", "-c", done.out + "\ncomplete -p nightmill"], check=True, capture_output=True)
        assert b"_nightmill_completion nightmill" in said.stdout
    assert place.run("completion", "tcsh").code == 2
