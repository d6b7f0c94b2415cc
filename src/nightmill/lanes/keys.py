"""Keys: with which of a provider's keys a step is made, and what follows where one is refused.

Each key is an account of its own, unless the user says that they share one. What may be at a provider stays with the
account it was handed over to; whatever is not there goes out with the first key that is not refused.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from nightmill.errors import ProviderError, Refused
from nightmill.lanes import Desk, Work
from nightmill.ledger import RefusedKey, Shard, Submission, SubmissionState
from nightmill.providers import Account, BatchProvider, Provider, UntaggedBatches, fingerprint_shown
from nightmill.types import Lane, ShardState

_MAY_RUN = (SubmissionState.OPEN, SubmissionState.CREATED, SubmissionState.ABSENT)
_TO_SEND = (ShardState.PLANNED, ShardState.SENDING)


class KeyGone(Refused):
    """What was sent with a key that is not here any more cannot be seen with those that are."""


def account_of(shard: Shard) -> str | None:
    """The account that may have batches of a shard; None: none has, or nobody knows which.

    Of a shard that is over it is the one that had the last.
    """
    if shard.lane is not Lane.BATCH:
        return None
    known = [sub for sub in shard.submissions if sub.account and sub.state is not SubmissionState.GONE]
    open_ = [sub for sub in known if sub.state in _MAY_RUN]
    last = open_ or ([] if shard.state is ShardState.PLANNED else known)
    return last[-1].account if last else None


def owner(providers: Sequence[Provider], shard: Shard) -> Provider | None:
    """The provider with a key of the shard's own account, whether it is refused or not; None: none is here."""
    account = account_of(shard)
    return next((provider for provider in providers if provider.account.id == account), None)


def choose(providers: Sequence[Provider], shard: Shard, refused: Container[str]) -> Provider | None:
    """The provider, each with a key of its own, that the next step of a shard is made with.

    A batch's own account is asked also where its key was ``refused`` (fingerprints): it may be taken again. None:
    the shard is to be sent, and no key is left that it may be sent with.
    """
    account = account_of(shard)
    own = [provider for provider in providers if provider.account.id == account]
    usable = [provider for provider in own or providers if provider.account.key.fingerprint not in refused]
    if usable:
        return usable[0]
    is_sent = shard.lane is not Lane.CACHE and shard.state in _TO_SEND and not shard.cancel_requested
    return None if is_sent else (own or providers)[0]


def one_each(providers: Sequence[Provider]) -> list[BatchProvider]:
    """The providers with batches, one for each account."""
    found = {each.account.id: each for each in reversed(providers) if isinstance(each, BatchProvider)}
    return list(found.values())[::-1]


def is_elsewhere(provider: Provider, sub: Submission) -> bool:
    """Whether a submission was handed over to another account than the provider's."""
    return sub.account not in ("", provider.account.id)


def gone(provider: Provider, sub: Submission, error: ProviderError) -> KeyGone:
    """What to raise where a batch could not be seen, and was made with a key that is not here."""
    return KeyGone(
        f"it was sent with a key that is not set any more ({fingerprint_of(sub.account)})",
        why=f"with {provider.account.key} the provider says: {error.why or error.what}",
        fix="set that key again",
        scope="account",
    )


def unseen(provider: Provider, error: ProviderError) -> KeyGone:
    """What to raise where nobody knows with which key a batch was made, and this one is refused."""
    return KeyGone(
        f"it may have been sent with {provider.account.key}",
        why=f"with that the provider says: {error.why or error.what}", fix="have that key taken again", scope="account",
    )  # fmt: skip


def fingerprint_of(account: str) -> str:
    """The key of an account, as people see it."""
    return fingerprint_shown(account.rpartition("|")[2])


async def none_left(desk: Desk, work: Work, why: str) -> str | None:
    """Why a job has to pause whose key was refused, with what the provider said; None: another key is left.

    `remember` comes after this.
    """
    known = await _refused(desk, work, why)
    return _named(work, why) if len(work.keys) == 1 else _all_refused(work, known)


async def why_to_pause(desk: Desk, work: Work, shard: Shard, why: str | None) -> str | None:
    """Why a job cannot go on at all, of which ``shard`` cannot; None: others of it can, with another key.

    ``why``: what the provider said to the key of ``work``; None: the key is not the matter.
    """
    if why and len(work.keys) == 1:
        return _named(work, why)
    known = await _refused(desk, work, why)
    if reason := _all_refused(work, known):
        return reason
    usable = [key.account.id for key in work.keys if key.account.key.fingerprint not in known]
    is_locked = isinstance(work.provider, UntaggedBatches) and shard.holds_create_lock
    tied, others = await desk.book(desk.ledger.tied, work.job_id, but=usable, is_locked=is_locked)
    if not tied or others > 0:
        return None
    here = {provider.account.id: provider.account for provider in work.keys}
    told = "; ".join(_tied(count, here.get(account), account, known) for account, count in tied.items())
    told += "; until it was looked for no other batch is made" * is_locked
    return f"{told}; nothing of that is sent again; when its key is taken again: nightmill resume {work.job_id}"


def _named(work: Work, why: str) -> str:
    """What was said to the only key there is, with the name of its variable."""
    variable = work.provider.account.key.variable
    return f"{variable}: {why}" if variable else why


async def _refused(desk: Desk, work: Work, why: str | None) -> dict[str, RefusedKey]:
    """The keys that are refused, by fingerprint; that of ``work`` among them where there is a reason."""
    known = {each.fingerprint: each for each in await desk.book(desk.ledger.refused_keys, work.provider.name)}
    now = work.provider.account.key
    return known | ({now.fingerprint: RefusedKey(now.variable, now.fingerprint, why)} if why else {})


def _all_refused(work: Work, known: Mapping[str, RefusedKey]) -> str | None:
    keys = [provider.account.key for provider in work.keys]
    if any(key.fingerprint not in known for key in keys):
        return None
    said = "; ".join(f"{key}: {known[key.fingerprint].reason}" for key in keys)
    return f"no key of {work.provider.name} is left: {said}; when one is taken: nightmill resume {work.job_id}"


def _tied(count: int, account: Account | None, name: str, known: Mapping[str, RefusedKey]) -> str:
    shards = f"{count:,} shards wait" if count > 1 else "1 shard waits"
    if account is None:
        return f"{shards} for a key that is not set any more ({fingerprint_of(name)})"
    refusal = known.get(account.key.fingerprint)
    return f"{shards} for {account.key}" + (f": {refusal.reason}" if refusal else "")


async def remember(desk: Desk, work: Work, why: str) -> None:
    """The key of ``work`` is left alone from now on, by every worker, until a person resumes."""
    key = work.provider.account.key
    refused = RefusedKey(key.variable, key.fingerprint, why)
    told = f"{key} is refused: {why}; what is not sent goes out with another, if one is left"
    alert = told if len(work.keys) > 1 else ""
    await desk.book(desk.ledger.refuse_key, work.provider.name, refused, job_id=work.job_id, alert=alert)
