"""One campaign for the whole session, and its table at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from campaign import Campaign

_TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Campaign]:
    made = Campaign(tmp_path_factory.mktemp("crash"))
    made.open()
    yield made
    made.close()
    request.config.stash[_TABLE] = made.table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_TABLE, []):
        terminalreporter.section("crash tests")
        for line in lines:
            terminalreporter.write_line(line)
