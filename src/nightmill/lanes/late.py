"""What comes late: batches that are listed, and result files that appear, after their shard had settled.

A settled shard is looked at again when its job ends, and whenever a person comes back to the job. What
is found opens the shard again, and the batch lane brings it in. Nothing is ever sent because of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

from nightmill import wire
from nightmill.errors import ProviderError, Refused
from nightmill.killpoints import reach
from nightmill.lanes import Desk, keys, untagged
from nightmill.lanes.batch import KEPT_S, facts, find_batches, is_of, kept, ran_nothing, view_of
from nightmill.ledger import CAME_LATE, Job, Late, LateBatch, Shard, StoredFile, Submission, SubmissionState
from nightmill.providers import BatchProvider, Provider, UntaggedBatches
from nightmill.types import Lane, ShardState


def doubtful(desk: Desk, shards: Sequence[Shard], *, settled_for_s: float = 0.0) -> list[Shard]:
    """The settled batch shards of which something may still turn up, and that settled at least so long ago."""
    now = desk.wall()
    oldest = now - KEPT_S  # of what is older nothing is kept
    return [
        shard
        for shard in shards
        if shard.lane is Lane.BATCH
        and shard.state is ShardState.SETTLED
        and now - (shard.settled_at or 0.0) >= settled_for_s
        and any(sub.intent_at > oldest for sub in shard.submissions)
        and (_unseen(shard) or _unread(shard))
    ]


def _unseen(shard: Shard) -> list[Submission]:
    """Submissions of which a batch may exist that nobody has seen."""
    return [s for s in shard.submissions if _is_lost(s) or (shard.looks > 0 and s.n == shard.submission)]


def _is_lost(sub: Submission) -> bool:
    """Looked for in vain, or written off."""
    given_up = sub.state is SubmissionState.BOOKED and sub.batch_id is None and sub.unproven_nanos > 0
    return given_up or sub.state in (SubmissionState.ABSENT, SubmissionState.LOST)


def _unread(shard: Shard) -> list[Submission]:
    """Submissions whose batch may have answers that were not there when they were read."""
    booked = [s for s in shard.submissions if s.state is SubmissionState.BOOKED and s.batch_id]
    return [s for s in booked if s.unproven_nanos or shard.missing]


async def reopen(
    desk: Desk, providers: Sequence[Provider], job: Job, shards: Sequence[Shard], *, settled_for_s: float = 0.0
) -> bool:
    """Look once for what came late of these shards of ``job``, and open those of which something did; whether any did.

    ``providers``: one for each key; each account is asked for what was handed over to it.

    Raises:
        ProviderError: this was no complete look; nothing was changed.
        Conflict: something came, but an unfinished job has the name or fingerprint of this one.
    """
    found: list[Late] = []
    failed: ProviderError | None = None
    doubted, accounts = doubtful(desk, shards, settled_for_s=settled_for_s), keys.one_each(providers)
    known = {each.account.id for each in accounts}
    for provider in accounts:
        mine = [_of_account(shard, provider, known, is_first=provider is accounts[0]) for shard in doubted]
        try:
            came = await _came(desk, provider, [shard for shard in mine if shard.submissions])
        except ProviderError as error:  # what another account has is taken all the same
            failed = error
        else:
            known_tags = {
                late.shard.tag for late in found
            }  # of two accounts one is opened now, and one by the next look
            whole = {shard.tag: shard for shard in doubted}
            found += [replace(each, shard=whole[each.shard.tag]) for each in came if each.shard.tag not in known_tags]
    if failed is not None and not found:
        raise failed
    return bool(found) and await desk.book(desk.ledger.reopen, job, found)


def _of_account(shard: Shard, provider: Provider, known: Collection[str], *, is_first: bool) -> Shard:
    """The shard with what was handed over to the provider's account; the first has all of which none is here, too."""
    is_its = [s.account == provider.account.id or (is_first and s.account not in known) for s in shard.submissions]
    return replace(shard, submissions=tuple(compress(shard.submissions, is_its)))


async def _came(desk: Desk, provider: BatchProvider, shards: Sequence[Shard]) -> list[Late]:
    """What came late of shards of one account. Raises ProviderError: this was no complete look."""
    batches = await _listed(desk, provider, shards)
    found = []
    for shard in shards:
        files, seen = await _appeared(desk, provider, shard)
        if files or seen or batches.get(shard.tag):
            found.append(Late(shard, tuple(batches.get(shard.tag, ())), tuple(files), tuple(seen)))
    return found


async def _listed(desk: Desk, provider: BatchProvider, shards: Sequence[Shard]) -> dict[str, list[LateBatch]]:
    """By shard, batches that the provider lists now and that the ledger does not know."""
    if answered := {shard.tag: batches for shard in shards if (batches := _answered(shard))}:
        return answered  # what may be beside these is found by the next look
    if isinstance(provider, UntaggedBatches):
        return await _proven(desk, provider, shards)
    subs = [sub for shard in shards for sub in _unseen(shard)]
    found: dict[str, list[LateBatch]] = {}
    taken: set[str] = set()
    for view in await find_batches(provider, subs) if subs else []:
        sub = next((s for s in subs if is_of(view, s)), None)
        known = await desk.book(desk.ledger.submission_of, view.id)
        if sub is None or known is not None or ran_nothing(view):
            continue
        own = _is_lost(sub) and sub.name not in taken
        taken.add(sub.name)
        late = LateBatch(view.id, view.status, provider.account.id, sub.n if own else None)
        found.setdefault(sub.tag, []).append(late)
    return found


def _answered(shard: Shard) -> list[LateBatch]:
    """Batches whose create was answered only after they had been given up."""
    lost = [s for s in shard.submissions if s.state is SubmissionState.LOST and s.batch_id]
    return [LateBatch(s.batch_id or "", s.status or "", s.account, s.n) for s in lost]


async def _proven(desk: Desk, provider: UntaggedBatches, shards: Sequence[Shard]) -> dict[str, list[LateBatch]]:
    """The same where only results tell whose a batch is: those that have ended since."""
    found: dict[str, list[LateBatch]] = {}
    for shard in shards:
        there: dict[str, LateBatch] = {}
        own: set[int] = set()
        for sub in _unseen(shard):
            for view in (await untagged.candidates(desk, provider, shard, sub, late=_is_lost(sub))).ours:
                if view.id not in there:
                    is_its = _is_lost(sub) and sub.n not in own
                    own |= {sub.n} if is_its else set()
                    there[view.id] = LateBatch(view.id, view.status, provider.account.id, sub.n if is_its else None)
        if there:
            found[shard.tag] = list(there.values())
    return found


async def _appeared(
    desk: Desk, provider: BatchProvider, shard: Shard
) -> tuple[list[StoredFile], list[tuple[int, dict[str, Any]]]]:
    """Result files that were not there before, fetched, and totals that prove more than they did."""
    files: list[StoredFile] = []
    seen: list[tuple[int, dict[str, Any]]] = []
    for sub in _unread(shard):
        try:
            view = await view_of(desk, provider, sub, sub.batch_id or "")
        except Refused as error:
            if error.status != 404:
                raise
            continue  # deleted there: what the other batches have is paid for all the same
        if view is None:
            continue
        here = {f.kind for f in shard.files if f.n == sub.n}
        offered = {wire.OUTPUT: view.output_file, wire.ERROR: view.error_file}
        new = [
            await _fetched(desk, provider, shard, sub, kind, file_id)
            for kind, file_id in offered.items()
            if file_id and kind not in here
        ]
        came = [file for file in new if file is not None]
        files += came
        told = facts(view, sub, over=True)
        if came or (sub.unproven_nanos and told["completed"] != sub.completed):
            seen.append((sub.n, told))
    return files, seen


async def _fetched(
    desk: Desk, provider: BatchProvider, shard: Shard, sub: Submission, kind: str, file_id: str
) -> StoredFile | None:
    """A late result file in the store; None: the provider does not have it (any more)."""
    job_id = sub.tag.rpartition("-")[0]
    path = f"{desk.store.job_folder(job_id)}/wire/{sub.name}.late.{secrets.token_hex(4)}.{kind}.jsonl"
    to = desk.store.path(path)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not await provider.fetch(file_id, to):
            return None
    except ProviderError:  # the next look has a name of its own
        to.unlink(missing_ok=True)
        raise
    ref = await asyncio.to_thread(kept, desk, shard, path)
    reach("late.fetched")
    return StoredFile(ref, kind, sub.tag, sub.n, CAME_LATE)
