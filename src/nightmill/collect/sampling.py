"""What rows of a few shards took, and why some have no valid answer, in the words of whoever refused them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nightmill import wire
from nightmill.collect.accounting import Check, index_of
from nightmill.ledger import Shard
from nightmill.providers import Provider
from nightmill.store import Store
from nightmill.types import Answer, Failed, FailureKind, Outcome

_NO_ANSWER = FailureKind.MISSING.value


class RowUse(NamedTuple):
    """What one row took on one step of a ladder, all its answers together."""

    size: int  # bytes that went out, those of media as the most tokens that these may be
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What some rows came to."""

    why: dict[str, int]  # rows without a valid answer by kind and message, most frequent first
    by_rung: dict[int, list[RowUse]]


def sample(
    store: Store, provider_of: Callable[[Shard], Provider], check: Check | None, shards: Iterable[Shard]
) -> Sample:
    """What the rows of ``shards``, which are settled and in order, came to."""
    why: dict[int, str | None] = {}  # by row; None: it is answered
    used: defaultdict[int, dict[int, RowUse]] = defaultdict(dict)
    for shard in shards:
        provider, of_rung = provider_of(shard), used[shard.rung]
        for index, line in wire.shard_lines(store, shard):
            why.setdefault(index, _NO_ANSWER)
            of_rung.setdefault(index, RowUse(provider.weigh(wire.body_of(line)).most, 0, 0))
        for answer in _answers(store, provider, shard):
            row = index_of(answer.custom_id, shard)
            if row is None or row not in of_rung:
                continue
            if why[row] is not None:
                why[row] = _said(answer.outcome, check)
            if (usage := answer.outcome.usage) is not None:
                size, tokens_in, tokens_out = of_rung[row]
                of_rung[row] = RowUse(size, tokens_in + usage.input_tokens, tokens_out + usage.output_tokens)
    named = Counter(text for text in why.values() if text is not None).most_common()
    return Sample(dict(named), {rung: list(rows.values()) for rung, rows in used.items()})


def _answers(store: Store, provider: Provider, shard: Shard) -> Iterator[Answer]:
    for file in wire.chosen(shard.files):
        for line in wire.lines(store, file):
            if wire.read_mark(line, set(), []):
                continue
            try:
                answer = provider.decode(line)
            except ValueError:
                continue
            yield answer


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
