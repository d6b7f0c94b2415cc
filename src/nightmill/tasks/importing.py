"""What a user names as ``module:name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from nightmill.errors import NightmillError, TaskError


def import_name(spec: str, what: str) -> object:
    """The object that ``module:name`` names, on the import path with the working folder first.

    Raises:
        TaskError: it cannot be imported; ``what`` says what it was to be.
    """
    module_name, _, name = spec.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(module_name)
        for step in name.split("."):
            found = getattr(found, step)
    except NightmillError:
        raise
    except Exception as error:  # importing runs the user's code: anything can come out of it
        raise TaskError(
            f"{spec}: the {what} cannot be imported",
            why=f"{type(error).__name__}: {error}",
            fix=f"write module:{'Class' if what.endswith('class') else 'function'}, "
            "for a module in the working folder or on the import path",
        ) from error
    finally:
        sys.path.remove(folder)
    return found
