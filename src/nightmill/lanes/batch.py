"""The batch lane: hand a shard over once, find out what became of it, bring back its files.

`next_action` is a pure function of the shard's record; `step` obeys it. A create is the only act
that cannot be repeated blindly: it is sent once, under a fresh lease, after its intent and its
uploaded file are in the ledger; whatever leaves it without an id is looked for, never guessed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, TypeVar

from nightmill import wire
from nightmill.errors import LeaseLost, Limited, NeverSent, ProviderError, Refused
from nightmill.lanes import (
    Desk,
    Work,
    can_be_cut,
    halve,
    handle_denied,
    hold_nanos,
    keys,
    price_rose,
    rescue,
    untagged,
    uploading,
)
from nightmill.ledger import (
    CAME_LATE,
    Booking,
    Counts,
    Denied,
    Settlement,
    Shard,
    StoredFile,
    Submission,
    SubmissionState,
)
from nightmill.providers import BatchProvider, BatchView, LiveReply, UntaggedBatches
from nightmill.types import FailureKind, FileRef, ShardState

log = logging.getLogger(__name__)

T = TypeVar("T")

UNEXPLAINED_TRIES = 3
LINE_SPLITS = 3  # refusals that name a line, before the rest goes out in halves
_LATE = 1.5  # windows after which a batch that has not ended is told of
KEPT_S = 30 * 86_400.0  # a batch of which nothing is heard for so long is gone, and its results with it
_UNRESOLVED = "in doubt"  # how the reasons begin of which a person was told
_PAST_WINDOW = "far past its window"


class Action(Enum):
    SUBMIT = "submit"
    DOUBT = "doubt"  # whoever was submitting is gone
    LOOK = "look"
    POLL = "poll"
    COLLECT = "collect"
    LAST_LOOK = "last look"  # for what was not found, before a cancelled shard is let go
    NOTHING = "nothing"


def next_action(shard: Shard) -> Action:
    """What to do with a shard that was just claimed."""
    match shard.state:
        case ShardState.PLANNED if not shard.cancel_requested:
            return Action.SUBMIT
        case ShardState.PLANNED if not_found(shard):
            return Action.LAST_LOOK
        case ShardState.SUBMITTING:
            return Action.DOUBT
        case ShardState.IN_DOUBT:
            return Action.LOOK
        case ShardState.WAITING:
            return Action.POLL
        case ShardState.COLLECTING:
            return Action.COLLECT
        case _:
            return Action.NOTHING


async def step(desk: Desk, work: Work, provider: BatchProvider, shard: Shard) -> None:
    """Do what `next_action` says, COLLECT excepted, and write down what was seen.

    Raises:
        LeaseLost: another worker has the shard; nothing was written.
        Refused: the account is refused whatever is asked (`is_shut_out`); the lease is still ours.
    """
    match next_action(shard):
        case Action.SUBMIT:
            await _submit(desk, work, provider, shard)
        case Action.DOUBT:
            await _doubt(desk, shard)
        case Action.LOOK:
            await _look(desk, work, provider, shard)
        case Action.POLL:
            await _poll(desk, work, provider, shard)
        case Action.LAST_LOOK:
            await _let_go(desk, provider, shard)
        case _:
            await desk.book(desk.ledger.release, shard, due_in_s=desk.timing.poll_s)


# -- handing over ----------------------------------------------------------------------------------


async def _submit(desk: Desk, work: Work, provider: BatchProvider, shard: Shard) -> None:
    if await price_rose(desk, work, shard):
        return
    await asyncio.to_thread(desk.store.verify, shard.file)
    ready = await desk.book(
        desk.ledger.note_intent,
        shard,
        to=ShardState.SUBMITTING,
        account=provider.account.id,
        model=provider.model,
        price=work.sheet.to_json(),
        hold_nanos=hold_nanos(work, shard),
        scopes=desk.scopes(work.job_id),
        intent_at=desk.wall() + provider.clock_skew_s(),
        alone=isinstance(provider, UntaggedBatches),
    )
    if isinstance(ready, Denied):
        await handle_denied(desk, work, shard, ready)
        return
    sub, before = ready.current, list[str]()
    try:
        await uploading.for_shard(desk, provider, ready)
        async with asyncio.timeout(desk.timing.upload_timeout_s):
            if not shard.fenced:  # a person said so, and a stopped worker may still hold its create
                for earlier in not_found(shard):
                    await _fence(provider, earlier)
            if isinstance(provider, UntaggedBatches):
                before = await untagged.there_before(desk, provider, shard)
            file_id = await provider.upload(desk.store.path(shard.file.path), name=sub.name)
    except (ProviderError, TimeoutError) as error:  # an upload alone runs nothing
        await _not_sent(desk, work, ready, sub, _as_provider_error(error))
        return
    seen_at = desk.wall() + provider.clock_skew_s()  # the upload's own Date: no jump of our clock is in it
    await desk.book(desk.ledger.note_upload, ready, sub.n, file_id, at=seen_at, not_ours=before)
    await renew_for_create(desk, ready)
    await _create(desk, work, provider, ready, file_id)


async def renew_for_create(desk: Desk, shard: Shard) -> None:
    """A lease that outlasts a create, also where this worker was held up on the way to it. Raises LeaseLost."""
    timing, left_s = desk.timing, 0.0
    while left_s <= timing.create_timeout_s + timing.margin_s:
        began = desk.ledger.moment()
        if not await desk.book(desk.ledger.renew, [shard], timing.lease_s):
            raise LeaseLost(f"shard {shard.tag} is another worker's now")
        left_s = timing.lease_s - (desk.ledger.moment() - began)


async def _create(desk: Desk, work: Work, provider: BatchProvider, shard: Shard, file_id: str) -> None:
    sub = shard.current
    try:
        async with asyncio.timeout(desk.timing.create_timeout_s):
            file = desk.store.path(shard.file.path)
            view = await provider.create(file_id, file, url=work.url, submission=sub.name)
    except (NeverSent, Limited, Refused) as error:
        await _not_sent(desk, work, shard, sub, error)
    except (ProviderError, TimeoutError) as error:
        log.warning("shard %s: in doubt: %s", shard.tag, _logged(error))
        due = desk.ledger.moment() + desk.timing.looks_s[0]
        await desk.book(desk.ledger.note_doubt, shard, due=due, reason=str(error) or "no answer to the create in time")
    else:
        due_in_s = desk.timing.poll_s
        try:
            await desk.book(desk.ledger.note_created, shard, sub.n, view.id, status=view.status, due_in_s=due_in_s)
        except LeaseLost:  # whoever has it looks for what only this answer tells
            await desk.book(desk.ledger.note_answered, shard.tag, sub.n, view.id, status=view.status)
            raise
        log.info("shard %s: batch %s is created", shard.tag, view.id)


def _logged(error: ProviderError | TimeoutError) -> str:
    return error.logged if isinstance(error, ProviderError) else "no answer in time"


def _as_provider_error(error: ProviderError | TimeoutError) -> ProviderError:
    return error if isinstance(error, ProviderError) else NeverSent("the upload took too long")


async def _not_sent(desk: Desk, work: Work, shard: Shard, sub: Submission, error: ProviderError) -> None:
    """Proven not to be at the provider: the hold goes back, and the error says what comes next."""
    log.warning("shard %s: not sent: %s", shard.tag, error.logged)
    due_in_s, pause, refused = desk.backoff_s(shard.waits), None, False
    cap = error.enqueued_tokens_cap if isinstance(error, Limited) else None
    if isinstance(error, Limited):
        due_in_s = error.after_s or max(due_in_s, desk.timing.limit_wait_s)
        if cap:
            await desk.book(desk.ledger.learn_enqueued_cap, sub.account, sub.batch_model or "", cap)
    elif isinstance(error, Refused):
        refused = True
        due_in_s = desk.backoff_s(shard.refusals)
        if is_shut_out(error):
            pause = await keys.none_left(desk, work, said(error))
            due_in_s, refused = 0.0, pause is not None
        elif error.scope == "job" or shard.refusals + 1 >= UNEXPLAINED_TRIES:
            pause = said(error)
    if pause:
        log.warning("job %s: paused", work.job_id)
    too_large = cap and shard.count > 1 and await _too_large(desk, work, shard, cap)
    await desk.book(
        desk.ledger.note_not_sent, shard, sub.n, due_in_s=due_in_s, reason=said(error), refused=refused, pause=pause
    )
    if is_shut_out(error):
        await keys.remember(desk, work, said(error))
    if too_large:
        again = await desk.book(desk.ledger.claim_one, shard.tag, desk.timing.lease_s)
        await halve(desk, work, again)


async def _too_large(desk: Desk, work: Work, shard: Shard, cap: int) -> bool:
    """Whether the enqueued-token limit refused a shard that nothing of its job stood beside.

    It would be refused for ever. Tokens are estimates, hence the factor; below it others use the limit up.
    """
    beside = await desk.book(desk.ledger.in_flight, work.job_id) - 1
    return beside <= 0 and 2 * shard.input_tokens > cap and can_be_cut(shard)


def is_shut_out(error: ProviderError) -> bool:
    """Whether no call will pass until a person puts the key, or its account, right."""
    return isinstance(error, Refused) and error.scope == "account"


def said(error: ProviderError) -> str:
    return "; ".join(filter(None, (error.what, error.why, error.fix)))


# -- in doubt --------------------------------------------------------------------------------------


async def _doubt(desk: Desk, shard: Shard) -> None:
    """The worker that was submitting is gone, or its lease ran out."""
    sub = shard.current
    if sub.file_id is None:  # a create is sent only after the upload is in the ledger
        reason = "the worker ended before anything was created"
        await desk.book(desk.ledger.note_not_sent, shard, sub.n, due_in_s=0.0, reason=reason)
        return
    quiet = desk.timing.create_timeout_s + desk.timing.list_lag_s
    due = max(desk.ledger.moment(), shard.lease_was_until + quiet)
    await desk.book(desk.ledger.note_doubt, shard, due=due, reason="the worker ended while the batch was being created")


async def _look(desk: Desk, work: Work, provider: BatchProvider, shard: Shard) -> None:
    """One complete look for the submission in doubt; adopt it, look again later, or fence and conclude."""
    sub, timing, fence = shard.current, desk.timing, True
    if sub.batch_id is not None:  # the create was answered after its worker had lost the shard
        await desk.book(
            desk.ledger.note_created, shard, sub.n, sub.batch_id, status=sub.status or "", due_in_s=0.0,
            looks=shard.looks,
        )  # fmt: skip
        return
    if isinstance(provider, UntaggedBatches):
        await _look_untagged(desk, work, provider, shard)
        return
    ours = sub.account in ("", provider.account.id)
    try:
        provider, found = await _find(work, provider, sub)
        if not found and ours and shard.looks + 1 >= len(timing.looks_s) and not shard.fenced:
            fence = all([await _asked(provider, each, _fence(each, sub)) for each in _whose(work, provider, sub)])
    except ProviderError as error:
        await _no_look(desk, shard, error)
        return
    if found:
        if not sub.account:  # handed over after the backup that this ledger was restored from
            await note_terms(desk, work, provider, shard)
        await _adopt(desk, provider, shard, found)
    elif not ours:
        other = keys.fingerprint_of(sub.account)
        what = f"it was sent with another key ({other}), so that not finding it proves nothing"
        await _look_failed(desk, shard, ProviderError(what, fix="give that key back"), overdue=True)
    elif not fence:
        what = "it is not listed, but this server deletes no files, so that a create on its way could still make it"
        await _look_failed(desk, shard, ProviderError(what), overdue=True)
    elif shard.fenced:
        reason = "looked for at the provider, and not there"
        # the last look follows when the next batch has ended; of a cancelled job no batch follows
        due_in_s = max(timing.list_lag_s, timing.looks_s[-1]) if shard.cancel_requested else 0.0
        await desk.book(desk.ledger.note_not_sent, shard, sub.n, due_in_s=due_in_s, reason=reason, sure=False)
    else:
        await _look_again(desk, shard)


def _whose(work: Work, provider: BatchProvider, sub: Submission) -> list[BatchProvider]:
    """Where a submission may be: with its own key, or, after a restore, with any, this one first."""
    every = [each for each in work.keys if isinstance(each, BatchProvider)]
    return [provider] if sub.account or provider not in every else sorted(every, key=lambda each: each is not provider)


async def _asked(provider: BatchProvider, each: BatchProvider, look: Awaitable[T]) -> T:
    """What a look with one of several keys brings. Where another than the step's own is refused, the error says so."""
    try:
        return await look
    except ProviderError as error:
        if each is provider or not is_shut_out(error):
            raise
        raise keys.unseen(each, error) from error


async def _find(work: Work, provider: BatchProvider, sub: Submission) -> tuple[BatchProvider, list[BatchView]]:
    """The batches of a submission, and with which key they are seen."""
    for each in _whose(work, provider, sub):
        if found := await _asked(provider, each, find_batches(each, [sub])):
            return each, found
    return provider, []


async def _candidates(
    desk: Desk, work: Work, provider: UntaggedBatches, shard: Shard
) -> tuple[UntaggedBatches, untagged.Candidates]:
    """Batches that may be that of the submission in doubt, and with which key they are seen."""
    likely: list[tuple[UntaggedBatches, untagged.Candidates]] = []
    for each in _whose(work, provider, shard.current):
        if isinstance(each, UntaggedBatches):
            found = await _asked(provider, each, untagged.candidates(desk, each, shard, shard.current))
            if found.ours:
                return each, found
            likely += [(each, found)] if found.likely else []
    if len(likely) == 1:
        return likely[0]
    return provider, untagged.Candidates((), tuple(view for _, found in likely for view in found.likely))


async def _look_untagged(desk: Desk, work: Work, provider: UntaggedBatches, shard: Shard) -> None:
    """One complete look where only results prove whose a batch is: adopt it, look again later, or leave it in doubt."""
    sub, first = shard.current, shard.current.sought_until is None
    try:
        provider, found = await _candidates(desk, work, provider, shard)
        earlier, _ = await _turned_up(desk, provider, shard, not_found(shard))
    except (ProviderError, TimeoutError) as error:
        await _no_look(desk, shard, _as_provider_error(error))
        return
    if ours := [*found.ours, *(view for view in earlier if view not in found.ours)]:
        if not sub.account:
            await note_terms(desk, work, provider, shard)
        await _adopt(desk, provider, shard, ours)
    elif first and shard.looks + 1 < len(desk.timing.looks_s):
        is_next_last = shard.looks + 2 == len(desk.timing.looks_s)
        await _look_again(desk, shard, at_least_s=desk.timing.list_lag_s if is_next_last else 0.0)
    elif first and len(found.likely) == 1 and sub.account in ("", provider.account.id):
        await _adopt_likely(desk, work, provider, shard, found.likely[0])
    else:
        until = desk.wall() + provider.clock_skew_s() if first else None
        what = untagged.what_is_known(shard, found.likely)
        if sub.account not in ("", provider.account.id):
            what = f"it was sent with another key, so that not finding it proves nothing; {what}"
        seldom_s = 0.0 if first else _seldom_s(desk, provider, sub)
        await _look_failed(desk, shard, ProviderError(what), overdue=True, sought_until=until, at_least_s=seldom_s)


async def _adopt_likely(desk: Desk, work: Work, provider: BatchProvider, shard: Shard, view: BatchView) -> None:
    """The one batch of the right time and size is taken for the shard's until its results prove whose it is."""
    if not shard.current.account:
        await note_terms(desk, work, provider, shard)
    log.info("shard %s: batch %s may be it, it is adopted unconfirmed", shard.tag, view.id)
    taken = await desk.book(
        desk.ledger.note_created, shard, shard.submission, view.id, status=view.status, due_in_s=0.0,
        looks=shard.looks + 1, likely=unproven(view.id),
        sought_until=desk.wall() + provider.clock_skew_s(),
    )  # fmt: skip
    if not taken:  # it is known meanwhile whose it is
        await desk.book(desk.ledger.release, shard, due_in_s=desk.timing.poll_s, reason=shard.reason)


def unproven(batch_id: str) -> str:
    """What is said of a shard whose batch is not proven yet."""
    return f"batch {batch_id} is taken for this shard's: its results will prove it, and until then it is not cancelled"


async def note_terms(desk: Desk, work: Work, provider: BatchProvider, shard: Shard) -> None:
    """Price and hold of a submission that exists though its ledger was restored from before it."""
    await desk.book(
        desk.ledger.note_terms, shard, account=provider.account.id, model=provider.model, price=work.sheet.to_json(),
        hold_nanos=hold_nanos(work, shard), scopes=desk.scopes(work.job_id),
    )  # fmt: skip


def _is_overdue(desk: Desk, sub: Submission) -> bool:
    return desk.wall() - sub.intent_at > desk.timing.doubt_alert_s


async def _look_again(desk: Desk, shard: Shard, *, at_least_s: float = 0.0) -> None:
    looks, timing, now = shard.looks + 1, desk.timing, desk.ledger.moment()
    if looks < len(timing.looks_s):
        due = now + max(at_least_s, timing.looks_s[looks] - timing.looks_s[looks - 1])
        await desk.book(desk.ledger.note_look, shard, looks=looks, fenced=False, due=due, reason=shard.reason)
    else:  # the fence is up; what was created just before it shows within the list's lag
        due = now + timing.list_lag_s
        await desk.book(desk.ledger.note_look, shard, looks=looks, fenced=True, due=due, reason=shard.reason)


async def _fence(provider: BatchProvider, sub: Submission) -> bool:
    """Without its input file no create of this submission can succeed any more. False: it could not be deleted."""
    files = [sub.file_id] if sub.file_id else await provider.find_files(f"{sub.name}.jsonl")
    return all([await provider.delete_file(file_id) for file_id in files])


def is_of(view: BatchView, sub: Submission) -> bool:
    """Whether a batch carries the name of the submission, or was made from its file."""
    return view.submission == sub.name or (sub.file_id is not None and view.input_file == sub.file_id)


async def find_batches(provider: BatchProvider, subs: Sequence[Submission]) -> list[BatchView]:
    names = frozenset(s.name for s in subs)
    files = frozenset(s.file_id for s in subs if s.file_id)
    since = min(s.intent_at for s in subs) - untagged.SKEW_S
    found = await provider.find(names, files, since=since)
    return sorted(found, key=lambda view: (view.created_at, view.id))


async def _adopt(desk: Desk, provider: BatchProvider, shard: Shard, found: list[BatchView]) -> None:
    """The oldest is ours; any other is cancelled, collected and booked beside it."""
    known = {s.batch_id for s in shard.submissions}
    oldest, *others = [view for view in found if view.id not in known] or found
    log.info("shard %s: batch %s is found, it is adopted", shard.tag, oldest.id)
    for view in others:
        await desk.book(desk.ledger.note_stray, shard, view.id, status=view.status, account=provider.account.id)
    await desk.book(
        desk.ledger.note_created, shard, shard.submission, oldest.id,
        status=oldest.status, due_in_s=0.0, looks=shard.looks + 1,
    )  # fmt: skip


async def _no_look(desk: Desk, shard: Shard, error: ProviderError) -> None:
    """A look that was not complete. Raises Refused: it is the shard's key that is refused."""
    is_another = isinstance(error, keys.KeyGone)  # nobody but a person can put that right
    if is_shut_out(error) and not is_another:
        raise error
    await _look_failed(desk, shard, error, overdue=is_another or _is_overdue(desk, shard.current))


async def _look_failed(
    desk: Desk, shard: Shard, error: ProviderError, *, overdue: bool, sought_until: float | None = None,
    at_least_s: float = 0.0,
) -> None:  # fmt: skip
    """This was no answer: nothing is concluded. ``overdue``: a person should know, and can end it.

    ``sought_until``: it was the last look before which no other batch may be created. ``at_least_s``: until the next.
    """
    ledger, alert = desk.ledger, None
    if overdue and not (shard.reason or "").startswith(_UNRESOLVED):
        alert = f"shard {shard.tag} is in doubt: {said(error)}; {_how_to_resolve(shard)}"
    reason = _unresolved(shard, said(error)) if overdue else f"no complete look yet: {said(error)}"
    due = ledger.moment() + max(
        at_least_s, desk.timing.limit_wait_s if overdue else 0.0, desk.backoff_s(shard.looks + 3)
    )
    await desk.book(
        ledger.note_look, shard, looks=shard.looks, fenced=shard.fenced, due=due, reason=reason,
        sought_until=sought_until, alert=alert,
    )  # fmt: skip


def _how_to_resolve(shard: Shard) -> str:
    return f"nightmill resolve {shard.tag} --adopt BATCH_ID | --resend | --write-off"


def _unresolved(shard: Shard, why: str) -> str:
    """The reason of a shard in doubt of which a person was told."""
    return f"{_UNRESOLVED}; {_how_to_resolve(shard)}: {why}"


# -- waiting ---------------------------------------------------------------------------------------


async def _poll(desk: Desk, work: Work, provider: BatchProvider, shard: Shard) -> None:
    age_s = _age_s(desk, provider, shard.current)
    await _cancel_unwanted(desk, provider, shard)
    seen: list[tuple[int, dict[str, Any]]] = []
    ended = True
    try:
        for sub in shard.submissions:
            if sub.batch_id is None or sub.ended:
                continue
            view = await view_of(desk, provider, sub, sub.batch_id)
            if view is None:  # its results are gone with it: what is held becomes unproven spend
                seen.append((sub.n, {"ended": 1}))
                continue
            if ran_nothing(view) and _is_alone(shard, sub) and not sub.unconfirmed:
                await _refused_whole(desk, work, shard, sub, view)
                return
            over = view.phase in ("ended", "failed")
            ended = ended and over
            seen.append((sub.n, facts(view, sub, over)))
    except ProviderError as error:
        if is_shut_out(error):
            raise
        if isinstance(error, Refused) and keys.is_elsewhere(provider, shard.current):
            raise keys.gone(provider, shard.current, error) from error
        await _come_back(desk, provider, shard, age_s, said(error))
        return
    if not ended and age_s > _LATE * provider.limits.window_s and not _was_told(shard):
        await _come_back(desk, provider, shard, age_s, "")
        return
    wait, reason = min(desk.timing.poll_max_s, max(desk.timing.poll_s, age_s * 0.02)), None
    if shard.current.unconfirmed:  # nor for a deadline: nobody knows whose it is
        reason = unproven(shard.current.batch_id or "")
    elif not ended and work.deadline is not None and not (shard.cancel_requested or shard.settled_before):
        at_most, reason = await rescue.mind(desk, work, provider, shard, _answered(shard, seen))
        wait = min(wait, at_most)
    due_in_s = 0.0 if ended else wait
    await desk.book(desk.ledger.note_polled, shard, seen, due_in_s=due_in_s, done=ended, reason=reason)
    if ended:
        log.info("shard %s: batch %s has ended", shard.tag, shard.current.batch_id)


def _answered(shard: Shard, seen: Sequence[tuple[int, dict[str, Any]]]) -> int | None:
    """Requests of a shard's own batch that have an answer, good or bad, by the provider's counts; None: it has none."""
    told = next((values for n, values in seen if n == shard.submission), {})
    counts = [told.get(name) for name in ("completed", "failed")]
    return None if counts == [None, None] else sum(count or 0 for count in counts)


def _age_s(desk: Desk, provider: BatchProvider, sub: Submission) -> float:
    return desk.wall() + provider.clock_skew_s() - sub.intent_at


async def view_of(desk: Desk, provider: BatchProvider, sub: Submission, batch_id: str) -> BatchView | None:
    """The batch as it is now; None when it is unknown, and too old to be kept, or not proven to be ours."""
    try:
        return await provider.poll(batch_id)
    except Refused as error:
        if error.status == 404 and (sub.unconfirmed or _age_s(desk, provider, sub) > provider.limits.window_s + KEPT_S):
            return None
        raise


async def _come_back(desk: Desk, provider: BatchProvider, shard: Shard, age_s: float, reason: str) -> None:
    """Poll again later. A batch that should have ended long ago is told of, once."""
    if _was_told(shard) or age_s > _LATE * provider.limits.window_s:
        if not _was_told(shard):
            text = f"batch {shard.current.batch_id} is {age_s / 3600:.0f} h old and has not ended"
            await desk.book(desk.ledger.alert, shard.job_id, shard.tag, "late_batch", text)
        reason = "; ".join(filter(None, (_PAST_WINDOW, reason)))
    due_in_s = max(desk.timing.poll_s, desk.backoff_s(3))
    await desk.book(desk.ledger.release, shard, due_in_s=due_in_s, reason=reason)


def _was_told(shard: Shard) -> bool:
    return (shard.reason or "").startswith(_PAST_WINDOW)


def _is_alone(shard: Shard, sub: Submission) -> bool:
    """Nothing but this submission can have run any of the shard: then it may be sent again."""
    return not shard.settled_before and all(s.n == sub.n or s.state is SubmissionState.GONE for s in shard.submissions)


async def _cancel_unwanted(desk: Desk, provider: BatchProvider, shard: Shard) -> None:
    """A cancelled job's batches, and any batch beside the shard's own. What cannot be asked now is asked again.

    So are those of a job whose answers turned bad: what they have not done goes out again when it is resumed.

    A batch that may be somebody else's runs to its end.
    """
    asked = []
    for sub in shard.submissions:
        unwanted = shard.cancel_requested or shard.job_stopped == "min_valid" or sub.n != shard.submission
        if sub.batch_id and not sub.ended and unwanted and not sub.cancel_heard and not sub.unconfirmed:
            try:
                await provider.cancel(sub.batch_id)
            except ProviderError as error:
                log.warning("shard %s: batch %s is not cancelled yet: %s", shard.tag, sub.batch_id, error.logged)
                continue
            asked.append(sub.n)
    if asked:
        at = desk.wall() + provider.clock_skew_s()
        await desk.book(desk.ledger.note_cancel_asked, shard, asked, at=at)


def has_answers(view: BatchView) -> bool:
    return bool(view.output_file or view.error_file or view.completed)


def ran_nothing(view: BatchView) -> bool:
    """Whether the provider refused the batch as a whole."""
    return view.phase == "failed" and not has_answers(view)


def facts(view: BatchView, sub: Submission, over: bool) -> dict[str, Any]:
    """What the ledger keeps of a batch; its highest count of answered rows, since a cancel may take some back.

    A count from before the end is no total: of a batch that ends without one nobody knows how many were answered, but
    where it was refused as a whole, none were.
    """
    completed, failed = view.completed, view.failed
    if ran_nothing(view):
        completed, failed = sub.completed or 0, failed or 0
    elif completed is None:
        completed = sub.completed if sub.ended or not over else None
    elif sub.completed is not None:
        completed = max(sub.completed, completed)
    return {
        "status": view.status, "ended": int(over), "total": view.total, "completed": completed, "failed": failed,
        "output_file": view.output_file, "error_file": view.error_file, "ended_at": view.ended_at,
    }  # fmt: skip


async def _refused_whole(desk: Desk, work: Work, shard: Shard, sub: Submission, view: BatchView) -> None:
    """The provider took the batch and refused it as a whole: nothing ran."""
    error = view.refusal if isinstance(view.refusal, ProviderError) else Refused("the batch failed without a reason")
    log.warning("shard %s: batch %s failed: %s", shard.tag, view.id, error.logged)
    if wire.is_foreign(shard):  # made elsewhere: it is not ours to send again
        await _fail_rows(desk, work, shard, sub, await asyncio.to_thread(_line_ids, desk, shard), error)
        return
    row = None
    if isinstance(error, Refused) and error.scope == "line" and error.line:
        lines = list(await asyncio.to_thread(_line_ids, desk, shard))
        row = lines[error.line - 1] if error.line <= len(lines) else None
    if row is None:
        await _not_sent(desk, work, shard, sub, _named(view, error))
    else:
        await _fail_rows(desk, work, shard, sub, [row], error)


def _named(view: BatchView, error: ProviderError) -> ProviderError:
    """A refusal that says which batch it is about."""
    if not isinstance(error, Refused):
        return error
    fix = error.fix or "the provider's own page of the batch may say more"
    return Refused(
        f"batch {view.id} failed: {error.what}", why=error.why, fix=fix, status=error.status,
        provider_code=error.provider_code, scope=error.scope, line=error.line,
    )  # fmt: skip


def _line_ids(desk: Desk, shard: Shard) -> list[int]:
    return [index for index, _ in wire.shard_lines(desk.store, shard)]


async def _fail_rows(
    desk: Desk, work: Work, shard: Shard, sub: Submission, rows: Sequence[int], error: ProviderError
) -> None:
    """These rows fail, with the provider's words; the rest goes into new shards."""

    def cut() -> tuple[StoredFile, list[Any]]:
        reply = LiveReply(400, work.provider.error_body(said(error)))
        path = f"{desk.store.job_folder(shard.job_id)}/wire/{sub.name}.{shard.epoch}.refused.jsonl"
        with desk.store.create(path) as out:
            for row in rows:
                out.write(work.provider.reply_line(f"{shard.tag}-{row}", reply, 0.0))
        rest = {index for index in _line_ids(desk, shard) if index not in rows} if len(rows) < shard.count else set()
        most = -(-len(rest) // 2) if shard.splits + 1 >= LINE_SPLITS else 0
        new = work.scissors.again(shard, rest, most=most) if rest else []
        return StoredFile(out.ref, wire.ERROR, shard.tag, sub.n), [replace(s, splits=s.splits + 1) for s in new]

    file, leftovers = await asyncio.to_thread(cut)
    settlement = Settlement(
        counts=Counts(failed=shard.count), bookings=(Booking(sub.n, 0, 0, 0),),
        resent=Counts(failed=shard.count - len(rows)), failures={FailureKind.BAD_REQUEST.value: len(rows)},
        leftovers=tuple(leftovers), files=(file,), reason=said(error),
    )  # fmt: skip
    await desk.book(desk.ledger.settle, shard, settlement)


# -- bringing back ---------------------------------------------------------------------------------


async def bring_back(desk: Desk, provider: BatchProvider, shard: Shard) -> Shard | None:
    """Fetch every result file there is, unless it was done; the shard with its files.

    None: it cannot be accounted for yet; the ledger says when to come back. Raises LeaseLost and Refused as `step`.
    """
    lost = not_found(shard)
    try:
        if lost and await _revived(desk, provider, shard, lost):
            return None
        if any(s.batch_id and not s.ended for s in shard.submissions):  # revived just before a crash
            await desk.book(desk.ledger.back_to_waiting, shard)
            return None
        if shard.reads and not shard.reread and not any(s.unconfirmed for s in shard.submissions):
            return shard
        return await _fetch(desk, provider, shard)
    except (ProviderError, TimeoutError) as error:
        if isinstance(error, ProviderError) and is_shut_out(error):
            raise
        if isinstance(error, Refused) and keys.is_elsewhere(provider, shard.current):
            raise keys.gone(provider, shard.current, error) from error
        reason = said(error) if isinstance(error, ProviderError) else "fetching the results took too long"
        await desk.book(desk.ledger.release, shard, due_in_s=max(desk.timing.poll_s, desk.backoff_s(2)), reason=reason)
        return None


def not_found(shard: Shard) -> list[Submission]:
    """Submissions that were looked for in vain: looked for once more before the shard settles."""
    return [s for s in shard.submissions if s.state is SubmissionState.ABSENT]


async def _let_go(desk: Desk, provider: BatchProvider, shard: Shard) -> None:
    """A cancelled job's shard that is at no provider, if the last look agrees."""
    try:
        if await _revived(desk, provider, shard, not_found(shard)):
            return
    except ProviderError as error:
        if is_shut_out(error):
            raise
        due_in_s = max(desk.timing.poll_s, desk.backoff_s(2))
        await desk.book(desk.ledger.release, shard, due_in_s=due_in_s, reason=said(error))
        return
    await desk.book(desk.ledger.release, shard)
    await desk.book(desk.ledger.drop_planned, shard.job_id)


async def look_once_more(desk: Desk, provider: BatchProvider, shard: Shard) -> None:
    """The last look for what was sought in vain, before the shard goes out with another key.

    Raises LeaseLost; ProviderError: this was no complete look, and the lease is still ours.
    """
    if not await _revived(desk, provider, shard, not_found(shard)):
        await desk.book(desk.ledger.release, shard, reason=shard.reason)


async def _revived(desk: Desk, provider: BatchProvider, shard: Shard, lost: list[Submission]) -> bool:
    """The last look for submissions that were thought absent; True: the shard is not to settle now."""
    left = list(lost)
    known = {s.batch_id for s in shard.submissions}
    strays, likely = await _turned_up(desk, provider, shard, lost)
    strays = [view for view in strays if view.id not in known]
    answered = [s for s in lost if s.batch_id]  # the answer to its create came after it was given up
    for sub in answered:
        left.remove(sub)
        await desk.book(desk.ledger.revive, shard, sub.n, sub.batch_id or "", status=sub.status or "")
    if not strays and not answered:
        if likely:
            reason = (
                f"waits for batch {likely[0].id} to end: its results tell whether it is an earlier try of this shard"
            )
            await desk.book(desk.ledger.release, shard, due_in_s=_seldom_s(desk, provider, lost[0]), reason=reason)
            return True
        await desk.book(desk.ledger.confirm_absent, shard, [s.n for s in lost])
        return False
    tags = not isinstance(provider, UntaggedBatches)
    for view in strays:
        found = next((s for s in left if not tags or is_of(view, s)), None)
        if found is None:  # the second batch of one submission
            account = provider.account.id
            await desk.book(desk.ledger.note_stray, shard, view.id, status=view.status, account=account)
        else:
            left.remove(found)
            await desk.book(desk.ledger.revive, shard, found.n, view.id, status=view.status)
    await desk.book(desk.ledger.back_to_waiting, shard)
    return True


async def _turned_up(
    desk: Desk, provider: BatchProvider, shard: Shard, subs: Sequence[Submission]
) -> tuple[list[BatchView], list[BatchView]]:
    """Batches that are certainly those of ``subs``, and batches of which nobody can tell yet."""
    if not isinstance(provider, UntaggedBatches):
        return await find_batches(provider, subs), []
    ours, likely = dict[str, BatchView](), dict[str, BatchView]()
    for sub in subs:
        found = await untagged.candidates(desk, provider, shard, sub)
        ours |= {view.id: view for view in found.ours}
        likely |= {view.id: view for view in found.likely}
    return list(ours.values()), list(likely.values())


def _seldom_s(desk: Desk, provider: BatchProvider, sub: Submission) -> float:
    """How long to wait where only the end of somebody's batch brings news."""
    return min(desk.timing.poll_max_s, max(desk.timing.poll_s, _age_s(desk, provider, sub) * 0.02))


async def _fetch(desk: Desk, provider: BatchProvider, shard: Shard) -> Shard | None:
    read = shard.reads + 1
    folder = f"{desk.store.job_folder(shard.job_id)}/wire"
    desk.store.path(folder).mkdir(parents=True, exist_ok=True)
    stored: list[StoredFile] = []
    seen: list[tuple[int, dict[str, Any]]] = []
    for sub in shard.submissions:
        wanted, read_as = _to_read(shard, sub, read)
        if sub.batch_id is None or not wanted:
            continue
        files = {wire.OUTPUT: sub.output_file, wire.ERROR: sub.error_file}
        if shard.reread:  # an error file may come late
            view = await view_of(desk, provider, sub, sub.batch_id)
            if view is not None and sub.unconfirmed and view.phase not in ("ended", "failed"):  # it was not to be seen
                now = [(sub.n, facts(view, sub, over=False))]
                due_in_s, reason = desk.timing.poll_s, unproven(view.id)
                await desk.book(desk.ledger.note_polled, shard, now, due_in_s=due_in_s, done=False, reason=reason)
                return None
            if view is not None:
                files = {wire.OUTPUT: view.output_file, wire.ERROR: view.error_file}
                seen.append((sub.n, facts(view, sub, over=True)))
        came = {kind: f"{folder}/{sub.name}.{shard.epoch}.{read}.{kind}.jsonl" for kind in files if kind in wanted}
        came = {k: p for k, p in came.items() if (file := files[k]) and await _brought(desk, provider, sub, file, p)}
        if sub.unconfirmed:
            if not await _is_proven(desk, provider, shard, list(came.values())):
                return None
            seen.append((sub.n, {"unconfirmed": 0}))
        for kind, path in came.items():
            ref = await asyncio.to_thread(kept, desk, shard, path)
            stored.append(StoredFile(ref, kind, shard.tag, sub.n, read_as))
    return await desk.book(desk.ledger.note_fetched, shard, read, stored, seen)


async def _brought(desk: Desk, provider: BatchProvider, sub: Submission, file_id: str, path: str) -> bool:
    """Whether a result file is there, and now here. To a key of another account it may only not be shown."""
    if await provider.fetch(file_id, desk.store.path(path)):
        return True
    if keys.is_elsewhere(provider, sub):
        raise keys.gone(provider, sub, Refused("fetch: refused", why=f"there is no file {file_id}", status=404))
    return False


async def _is_proven(desk: Desk, provider: BatchProvider, shard: Shard, came: Sequence[str]) -> bool:
    """Whether these result files are of the shard. If not they go, and it is in doubt again, or read once more."""
    files = [desk.store.path(path) for path in came]
    said = await asyncio.to_thread(untagged.names_shard, provider, shard.tag, files)
    if said:
        log.info("shard %s: batch %s is proven to be its own", shard.tag, shard.current.batch_id)
        return True
    for file in files:  # somebody else's answers
        file.unlink(missing_ok=True)
    if said is None and not shard.reread:
        await desk.book(desk.ledger.note_reread, shard, due_in_s=desk.timing.reread_s)
        return False
    batch_id = shard.current.batch_id
    why = f"batch {batch_id} was taken for its, and has no results any more that could prove it"
    if said is False:
        why = f"batch {batch_id} was taken for its, and is another's: its results name no request of the shard"
    log.warning("shard %s: batch %s is not proven, in doubt again", shard.tag, batch_id)
    alert = f"shard {shard.tag} is in doubt again: {why}; {_how_to_resolve(shard)}"
    due = desk.ledger.moment() + desk.timing.poll_s
    await desk.book(desk.ledger.back_to_doubt, shard, due=due, reason=_unresolved(shard, why), alert=alert)
    return False


def kept(desk: Desk, shard: Shard, path: str) -> FileRef:
    """A result file that was just fetched to ``path``, as the ledger is to hold it."""
    if wire.is_foreign(shard):
        return wire.named_as_ours(desk.store, shard, path, f"{path.removesuffix('.jsonl')}.named.jsonl")
    return desk.store.seal(path)


def _to_read(shard: Shard, sub: Submission, read: int) -> tuple[set[str], int]:
    """Kinds of a submission's result files to fetch now, and as which reading. What is booked is read no more."""
    if sub.state is SubmissionState.GONE:
        return set(), read
    if sub.state is SubmissionState.BOOKED:
        return {f.kind for f in shard.files if f.n == sub.n and f.read == CAME_LATE}, CAME_LATE
    return {wire.OUTPUT, wire.ERROR}, read
