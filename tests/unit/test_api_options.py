"""What a caller of Python may say about a job."""

from __future__ import annotations

from typing import Any

import pytest

from nightmill.api.options import _TAKES, Options, check_options
from nightmill.errors import UsageError


@pytest.mark.req("A8")
@pytest.mark.parametrize("name", sorted(Options.__annotations__))
def test_every_option_is_checked(name: str) -> None:
    """A value of another kind is told where it is said, not met deep inside, or taken for something else."""
    assert name in _TAKES
    wrong: Any = object()
    with pytest.raises(UsageError, match=f"^{name} = "):
        check_options({name: wrong})


@pytest.mark.parametrize(
    "given",
    [{"skip_bad": "no"}, {"cache": "no"}, {"dedupe": 0}, {"new": 1}, {"name": 5}, {"name": ""}, {"key": 0}],
)
def test_values_that_python_would_take(given: dict[str, Any]) -> None:
    """A text or a number is no switch, and a number is no name."""
    with pytest.raises(UsageError):
        check_options(given)
