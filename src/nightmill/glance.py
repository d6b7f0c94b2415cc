"""What jobs there are, at a glance: for a shell that asks at every TAB, and waits for the answer.

The ledger itself takes half a second to load. This reads the same file with what Python brings along, and says
nothing rather than fail.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

_FILE = "nightmill.db"
_MOST = 100
_PATIENCE_S = 0.2
_NEWEST = (
    "SELECT id, name, state, model FROM jobs WHERE state <> 'planning' "
    "AND (substr(id, 1, length(?1)) = ?1 OR substr(name, 1, length(?1)) = ?1) ORDER BY id DESC LIMIT ?2"
)


def jobs_like(home: Path, begins: str) -> list[tuple[str, str]]:
    """Ids and names of jobs that begin so, newest first, each with a few words about the job."""
    file = f"file:{quote(str(home / _FILE))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(file, uri=True, timeout=_PATIENCE_S)) as ledger:
            rows = ledger.execute(_NEWEST, (begins, _MOST)).fetchall()
    except sqlite3.Error:  # there is none yet, or somebody writes to it: then nothing is offered
        return []
    about = {text: f"{state}, {model}" for id_, name, state, model in reversed(rows) for text in (name, id_) if text}
    return [(text, about[text]) for text in reversed(about) if text.startswith(begins)]
