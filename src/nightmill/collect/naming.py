"""Why rows of a few shards have no valid answer, in the words of whoever refused them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from nightmill import wire
from nightmill.collect.accounting import Check, index_of
from nightmill.ledger import Shard
from nightmill.providers import Provider
from nightmill.store import Store
from nightmill.types import Failed, FailureKind, Outcome

_NO_ANSWER = FailureKind.MISSING.value


def named_failures(
    store: Store, provider_of: Callable[[Shard], Provider], check: Check | None, shards: Iterable[Shard]
) -> dict[str, int]:
    """Rows without a valid answer by kind and message, most frequent first. ``shards`` are settled, and in order."""
    why: dict[int, str | None] = {}  # by row; None: it is answered
    for shard in shards:
        why |= {index: why.get(index, _NO_ANSWER) for index, _ in wire.shard_lines(store, shard)}
        for file in wire.chosen(shard.files):
            for line in wire.lines(store, file):
                if wire.read_mark(line, set(), []):
                    continue
                try:
                    answer = provider_of(shard).decode(line)
                except ValueError:
                    continue
                index = index_of(answer.custom_id, shard)
                if index is not None and why.get(index, "") is not None:
                    why[index] = _said(answer.outcome, check)
    return dict(Counter(text for text in why.values() if text is not None).most_common())


def _said(outcome: Outcome, check: Check | None) -> str | None:
    if isinstance(outcome, Failed):
        kind, said = outcome.kind.value, outcome.message
    else:
        refused = check(outcome.text)[1] if check is not None else None
        if refused is None:
            return None
        kind, said = FailureKind.INVALID_OUTPUT.value, refused
    message = " ".join(said.split()).removeprefix(f"{kind}: ")
    return f"{kind}: {message}" if message else kind
