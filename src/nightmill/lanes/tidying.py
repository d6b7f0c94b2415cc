"""Tidying: files that the provider keeps of settled shards, once nothing of them can be needed again.

A result file is needed to collect it, to read it once more, and for a month where answers may still come or
money is unproven; an input file tells a look whose batch it was made for. What is certain needs none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from nightmill.lanes import Desk
from nightmill.lanes.late import doubtful
from nightmill.ledger import Shard, Submission
from nightmill.providers import BatchProvider
from nightmill.types import Lane, ShardState


def spare(desk: Desk, shards: Sequence[Shard]) -> list[Submission]:
    """The submissions whose files at the provider nobody will ask for again."""
    certain = [s for s in shards if s.lane is Lane.BATCH and s.state is ShardState.SETTLED and not doubtful(desk, [s])]
    return [sub for shard in certain for sub in shard.submissions if files_of(sub)]


def files_of(sub: Submission) -> list[str]:
    """The provider's ids of what it keeps of a submission, as far as is known."""
    return [file for file in (sub.output_file, sub.error_file, sub.file_id) if file]


async def delete_files(desk: Desk, provider: BatchProvider, shards: Sequence[Shard]) -> int:
    """Delete what `spare` finds and this account may delete; how many files. Raises ProviderError."""
    count = 0
    for sub in spare(desk, shards):
        if sub.account != provider.account.id:
            continue
        deleted = [await provider.delete_file(file) for file in files_of(sub)]
        count += sum(deleted)
        if all(deleted):
            await desk.book(desk.ledger.note_files_gone, sub.tag, sub.n)
    return count
