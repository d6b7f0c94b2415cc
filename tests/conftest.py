"""In which order the suite runs."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file goes first, so that nobody waits for it alone at the end."""
    items.sort(key=lambda item: "crash" not in item.path.parts)
