"""Doubt: what a person says became of a shard that nobody can prove or disprove was sent."""

from __future__ import annotations

from nightmill.errors import Conflict, ProviderError, Refused, UsageError
from nightmill.lanes import keys
from nightmill.lanes.batch import is_shut_out, not_found, note_terms, said, unproven
from nightmill.ledger import Shard
from nightmill.mill.home import Home, model_of
from nightmill.providers import BatchProvider, BatchView, UntaggedBatches
from nightmill.types import ShardState, usd


async def resolve(home: Home, shard: Shard, *, adopt: str | None = None, resend: bool = False) -> str:
    """End a shard's doubt by a person's word: adopt a batch, send again, or write it off."""
    if shard.state is not ShardState.IN_DOUBT:
        raise Conflict(f"shard {shard.tag} is not in doubt", why=f"it is {shard.state}", fix="nightmill show JOB")
    if shard.current.batch_id and adopt != shard.current.batch_id:  # its create was answered, late
        fix = f"nightmill resume {shard.job_id}"
        raise Conflict(
            f"batch {shard.current.batch_id} is that of shard {shard.tag}", why="the provider said so", fix=fix
        )
    provider, view = await _seen(home, shard, adopt) if adopt else (None, None)
    if view and isinstance(provider, UntaggedBatches):
        _refuse_other(shard, view)
    claimed = _claim_doubtful(home, shard, adopt)
    if provider and adopt and view:
        return await _adopted(home, provider, claimed, view)
    if resend:
        reason = "sent again on the user's word"
        home.ledger.note_not_sent(claimed, claimed.submission, due_in_s=0.0, reason=reason, sure=False)
        return f"{shard.tag} is planned again"
    home.ledger.write_off(claimed)
    return f"{shard.tag} is written off: ${usd(claimed.current.hold_nanos):.6f} counts as spent, its rows as missing"


async def _adopted(home: Home, provider: BatchProvider, shard: Shard, view: BatchView) -> str:
    """Take a batch for the shard's; where nothing of ours is attached to it, only until its results say otherwise."""
    if not shard.current.account:
        await note_terms(home.desk, home.open_kit(shard.job_id).at(shard.rung).work, provider, shard)
    is_sure = view.id == shard.current.batch_id or not isinstance(provider, UntaggedBatches)
    likely = None if is_sure else unproven(view.id)
    if not home.ledger.note_created(
        shard, shard.submission, view.id, status=view.status, due_in_s=0.0,
        looks=shard.looks + 1,  # the person's counts: a second batch of it may still turn up
        likely=likely,
    ):  # fmt: skip
        home.ledger.release(shard, reason=shard.reason)
        raise Conflict(
            f"batch {view.id} is another shard's since a moment ago", why="one batch answers one shard",
            fix="give the id of another batch, or --resend or --write-off",
        )  # fmt: skip
    return f"{shard.tag} waits for {view.id} now" + ("; its results will prove that it is the shard's" * bool(likely))


def _refuse_other(shard: Shard, view: BatchView) -> None:
    """Raises UsageError: the batch is certainly not that of the shard."""
    why = ""
    if all(view.id in sub.not_ours for sub in (shard.current, *not_found(shard))):
        why = "it was there before the shard was sent, or its results name none of the shard's requests"
    elif view.total is not None and view.total != shard.count:
        why = f"it has {view.total:,} requests, the shard {shard.count:,}"
    if why:
        fix = "give the id of another batch, or --resend or --write-off"
        raise UsageError(f"batch {view.id} is not that of shard {shard.tag}", why=why, fix=fix)


def _claim_doubtful(home: Home, shard: Shard, adopt: str | None) -> Shard:
    """The shard under a lease, still in doubt, and ``adopt`` nobody's batch yet; as it was before a Conflict."""
    ledger = home.ledger
    claimed = ledger.claim_one(shard.tag, home.settings.timing.lease_s)
    other = ledger.submission_of(adopt) if adopt else None
    if claimed.state is ShardState.IN_DOUBT and other in (None, claimed.current.name):
        return claimed
    ledger.release(claimed, due_in_s=claimed.due - ledger.moment(), reason=claimed.reason)
    if claimed.state is ShardState.IN_DOUBT:
        raise Conflict(
            f"batch {adopt} is that of {other} already", why="one batch answers one shard",
            fix="give the id of another batch, or --resend or --write-off",
        )  # fmt: skip
    raise Conflict(
        f"shard {shard.tag} is not in doubt any more",
        why=f"a worker found out meanwhile: it is {claimed.state}",
        fix=f"nightmill show {shard.job_id}",
    )


async def _seen(home: Home, shard: Shard, batch_id: str) -> tuple[BatchProvider, BatchView]:
    """A batch, and with which key it is seen: that of the shard's account or, where nobody knows that, any."""
    keyed = home.providers(model_of(home.job(shard.job_id), shard))
    own = keys.owner(keyed, shard)
    accounts = keys.one_each([own] if own else keyed)
    if not accounts:
        raise UsageError(f"{keyed[0].name} has no batches", why="only a batch can be adopted", fix="use --resend")
    said: list[ProviderError | UsageError] = []
    for provider in accounts:
        try:
            return provider, await _poll_once(provider, batch_id)
        except (ProviderError, UsageError) as trouble:
            said.append(trouble)
    # that one account does not know it says nothing of another that could not be asked
    raise next((trouble for trouble in said if isinstance(trouble, ProviderError)), said[-1])


async def _poll_once(provider: BatchProvider, batch_id: str) -> BatchView:
    try:
        return await provider.poll(batch_id)
    except Refused as error:
        if is_shut_out(error):
            raise
        fix = "give the id of a batch that the provider lists, or --resend or --write-off"
        raise UsageError(f"{batch_id} cannot be adopted", why=said(error), fix=fix) from error
    finally:
        await provider.close()
