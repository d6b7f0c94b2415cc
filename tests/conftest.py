"""In which order the suite runs, and in how many processes."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# What a test asks for itself counts; of the others, fewer examples each time, and many in the long runs.
settings.register_profile("quick", max_examples=30)
settings.register_profile("thorough", max_examples=500)
settings.load_profile("quick")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: much of a test is waiting."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file goes first, so that nobody waits for it alone at the end."""
    items.sort(key=lambda item: "crash" not in item.path.parts)
