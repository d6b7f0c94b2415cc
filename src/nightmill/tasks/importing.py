"""What a user names as ``module:name``."""

from __future__ import annotations

from nightmill.errors import NightmillError, TaskError, name_and_text
from nightmill.importing import import_here


def import_name(spec: str, what: str) -> object:
    """The object that ``module:name`` names, on the import path with the working folder first.

    Raises:
        TaskError: it cannot be imported; ``what`` says what it was to be.
    """
    module_name, _, name = spec.partition(":")
    try:
        found: object = import_here(module_name)
        for step in name.split("."):
            found = getattr(found, step)
    except NightmillError:
        raise
    except (Exception, SystemExit) as error:  # importing runs the user's code: anything can come out of it
        raise TaskError(
            f"{spec}: the {what} cannot be imported",
            why=name_and_text(error),
            fix=f"write module:{'Class' if what.endswith('class') else 'function'}, "
            "for a module in the working folder or on the import path",
        ) from error
    return found
