"""Tidying: files that the provider keeps of settled shards, once nothing of them can be needed again.

A result file is needed to collect it, to read it once more, and for a month where answers may still come or
money is unproven; an input file tells a look whose batch it was made for. What is certain needs none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from nightmill.errors import ProviderError
from nightmill.lanes import Desk, keys
from nightmill.lanes.late import doubtful
from nightmill.ledger import Shard, Submission
from nightmill.providers import BatchProvider, Provider
from nightmill.types import Lane, ShardState


def spare(desk: Desk, shards: Sequence[Shard]) -> list[Submission]:
    """The submissions whose files at the provider nobody will ask for again."""
    certain = [s for s in shards if s.lane is Lane.BATCH and s.state is ShardState.SETTLED and not doubtful(desk, [s])]
    return [sub for shard in certain for sub in shard.submissions if files_of(sub)]


def files_of(sub: Submission) -> list[str]:
    """The provider's ids of what it keeps of a submission, as far as is known."""
    return [file for file in (sub.output_file, sub.error_file, sub.file_id) if file]


async def delete_files(
    desk: Desk, providers: Sequence[Provider], shards: Sequence[Shard]
) -> tuple[int, list[ProviderError]]:
    """Delete what `spare` finds, each file with the key of its account; how many files, and what went wrong."""
    count, failed = 0, list[ProviderError]()
    accounts = {provider.account.id: provider for provider in keys.one_each(providers)}
    for account, mine in groupby(sorted(spare(desk, shards), key=_account), _account):
        try:
            if account in accounts:
                count += await _delete(desk, accounts[account], list(mine))
        except ProviderError as error:
            failed.append(error)
    return count, failed


def _account(sub: Submission) -> str:
    return sub.account


async def _delete(desk: Desk, provider: BatchProvider, subs: Sequence[Submission]) -> int:
    count = 0
    for sub in subs:
        deleted = [await provider.delete_file(file) for file in files_of(sub)]
        count += sum(deleted)
        if all(deleted):
            await desk.book(desk.ledger.note_files_gone, sub.tag, sub.n)
    return count
