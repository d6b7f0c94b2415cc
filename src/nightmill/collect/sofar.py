"""Answers of live shards that are still being sent: read from their journals, on from the last look.

For showing progress only. What counts is what `settle_shard` finds when the shard is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nightmill import wire
from nightmill.collect.accounting import Check, estimated, is_unstated
from nightmill.ledger import Shard
from nightmill.plan import CLIMBS, Ladder
from nightmill.pricing import PriceSheet
from nightmill.providers import Provider
from nightmill.store import Store
from nightmill.types import ATTEMPTS, RETRYABLE, Failed, FailureKind, Succeeded


@dataclass(slots=True)
class Answers:
    """What the journals of one or more shards hold."""

    succeeded: int = 0
    failures: dict[str, int] = field(default_factory=dict)  # final ones, by kind
    tokens_in: int = 0
    tokens_out: int = 0
    spent_nanos: int = 0
    list_nanos: int = 0
    in_hand: int = 0  # sent, and neither answered nor given up
    unsent: int = 0  # rows that were never sent, in these shards or before
    last_row: int | None = None  # the row answered last

    def add(self, other: Answers) -> None:
        for kind, n in other.failures.items():
            self.failures[kind] = self.failures.get(kind, 0) + n
        for name in ("succeeded", "tokens_in", "tokens_out", "spent_nanos", "list_nanos", "in_hand", "unsent"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_row = self.last_row if other.last_row is None else other.last_row


@dataclass(slots=True)
class _Seen:
    """How far one shard's journals were read, and what they said."""

    sheet: PriceSheet | None
    input_tokens: int  # of a typical row, where an answer does not say
    cap_tokens: int
    climbs: bool  # what does not fit the schema is put right, or asked again
    offsets: dict[str, int] = field(default_factory=dict)
    pending: dict[str, set[str]] = field(default_factory=dict)  # by journal
    tries: dict[int, int] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)  # by custom_id, that were answered or lost
    answers: Answers = field(default_factory=Answers)


class SoFar:
    """Follows the journals of one job's live shards."""

    def __init__(
        self, store: Store, provider: Provider, list_sheet: PriceSheet, check: Check | None, ladder: Ladder
    ) -> None:
        self._store, self._provider, self._list, self._check = store, provider, list_sheet, check
        self._ladder = ladder
        self._seen: dict[str, _Seen] = {}

    def look(self, shards: Sequence[Shard]) -> Answers:
        """What the journals of these unsettled shards say by now; other shards are forgotten."""
        total = Answers()
        for gone in self._seen.keys() - {shard.tag for shard in shards}:
            del self._seen[gone]
        for shard in shards:
            seen = self._seen.get(shard.tag)
            if seen is None:
                sheet = PriceSheet.from_json(shard.price) if shard.price else None
                climbs = self._ladder.repair or self._ladder.at(shard.rung + 1) is not None
                seen = self._seen[shard.tag] = _Seen(
                    sheet, shard.input_tokens // shard.count, shard.cap_tokens // shard.count, climbs
                )
            journals = [file.ref.path for file in wire.chosen(shard.files) if file.kind == wire.JOURNAL]
            for path in journals:
                self._read_on(seen, path)
            # A journal has one writer ever: what an older one left open is in nobody's hand.
            seen.answers.in_hand = len(seen.pending.get(journals[-1], ())) if journals else 0
            out = seen.rows.union(*seen.pending.values())
            seen.answers.unsent = 0 if shard.is_part else shard.count - len(out)
            total.add(seen.answers)
        return total

    def _read_on(self, seen: _Seen, path: str) -> None:
        target = self._store.path(path)
        if not target.exists():
            return
        pending = seen.pending.setdefault(path, set())
        with target.open("rb") as stream:
            stream.seek(seen.offsets.get(path, 0))
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                seen.offsets[path] = seen.offsets.get(path, 0) + len(line)
                lost: list[str] = []
                if not wire.read_mark(line, pending, lost):
                    self._take(seen, line, pending)
                seen.rows.update(lost)
                for custom_id in lost:
                    self._tried(seen, int(custom_id.rpartition("-")[2]), FailureKind.TIMEOUT)

    def _take(self, seen: _Seen, line: bytes, pending: set[str]) -> None:
        try:
            answer = self._provider.decode(line)
        except ValueError:
            return
        pending.discard(answer.custom_id)
        seen.rows.add(answer.custom_id)
        index, outcome, answers = int(answer.custom_id.rpartition("-")[2]), answer.outcome, seen.answers
        usage = outcome.usage
        if is_unstated(outcome):
            usage = estimated(outcome, seen.input_tokens, seen.cap_tokens)
        if usage is not None:
            answers.tokens_in += usage.input_tokens
            answers.tokens_out += usage.output_tokens
            answers.spent_nanos += seen.sheet.cost(usage) if seen.sheet else 0
            answers.list_nanos += self._list.cost(usage.fresh)
        if isinstance(outcome, Failed):
            self._tried(seen, index, outcome.kind)
        elif self._check is not None and self._check(outcome.text)[1] is not None:
            self._tried(seen, index, FailureKind.INVALID_OUTPUT)
        else:
            answers.succeeded += isinstance(outcome, Succeeded)
            answers.last_row = index

    def _tried(self, seen: _Seen, index: int, kind: FailureKind) -> None:
        if seen.climbs and kind in CLIMBS:
            return
        seen.tries[index] = seen.tries.get(index, 0) + 1
        if kind not in RETRYABLE or seen.tries[index] >= ATTEMPTS:
            seen.answers.failures[kind.value] = seen.answers.failures.get(kind.value, 0) + 1
            seen.answers.last_row = index
