"""Modules of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from types import ModuleType


def import_here(name: str) -> ModuleType:
    """The module of that name, on the import path with the working folder first.

    Raises whatever it raises as it is imported, SystemExit among it: it is a user's program.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        with contextlib.suppress(ValueError):  # the module may have changed the path
            sys.path.remove(folder)
