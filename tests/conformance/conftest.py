"""One suite for every backend of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_kit import Backend

from nightmill.ledger import Ledger


@pytest.fixture(params=["sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty ledger that workers may open."""
    return Backend(f"{request.param}:{tmp_path / 'ledger.db'}")


@pytest.fixture
def ledger(backend: Backend) -> Iterator[Ledger]:
    """The ledger as this process opens it, with a budget of 1,000 nanos in all."""
    opened = backend.open()
    opened.ensure_budget(1_000, None, None)
    yield opened
    opened.close()
