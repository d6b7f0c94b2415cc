"""How files are written wherever they are written: so many rows at a time, and made to last."""

from __future__ import annotations

import os
from pathlib import Path

GROUP_ROWS = 5_000  # rows that are held at once: a batch of a source, a row group of a Parquet file


def sync_folder(folder: Path) -> None:
    """Make names given in ``folder`` outlast a power cut, where folders can be synced.

    Raises:
        OSError: it cannot be read, or the disk refuses.
    """
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
