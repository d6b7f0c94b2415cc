"""Keys that occur again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightmill.plan.keys import KeyWatch


@given(st.lists(st.lists(st.text(max_size=3), max_size=30), max_size=5))
def test_keys_that_occur_again_are_counted_across_batches(batches: list[list[str]]) -> None:
    """As many rows are counted as have a key of an earlier row, in whichever batch that was."""
    watch = KeyWatch()
    for batch in batches:
        watch.add(batch)
    keys = [key for batch in batches for key in batch]
    assert watch.repeated() == len(keys) - len(set(keys))
