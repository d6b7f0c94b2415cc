"""Where batches carry nothing of ours: one create at a time on an account, and no two of a size in doubt."""

from __future__ import annotations

import pytest
from ledger_kit import SCOPES, bring, check_money, claim, everything, money, publish

from nightmill.errors import LeaseLost
from nightmill.ledger import CREATE_LOCK, SAME_SIZE, Denied, Ledger, Shard, SubmissionState
from nightmill.types import ShardState

ACCOUNT, SAME_WORKSPACE, ELSEWHERE = "p|https://x||a|key1", "p|https://x||a|key2", "p|https://y||a|key1"


def create(ledger: Ledger, shard: Shard, account: str = ACCOUNT) -> Shard | Denied:
    return ledger.note_intent(
        shard, to=ShardState.SUBMITTING, account=account, model="m", price="{}", hold_nanos=100, scopes=SCOPES,
        intent_at=1000.0, alone=True,
    )  # fmt: skip


def created(ledger: Ledger, account: str = ACCOUNT) -> Shard:
    ready = create(ledger, claim(ledger), account)
    assert isinstance(ready, Shard), ready
    return ready


def in_doubt(ledger: Ledger, *, sought_until: float | None = None) -> Shard:
    """The next shard, in doubt; after its last look where ``sought_until`` says when that was."""
    shard = created(ledger)
    ledger.note_doubt(shard, due=0.0, reason="r")
    shard = ledger.claim_one(shard.tag, 600.0)
    if sought_until is not None:
        ledger.note_look(shard, looks=3, fenced=False, due=1e12, sought_until=sought_until, alert="look")
    return shard


def taken_for(ledger: Ledger, batch_id: str = "b1") -> Shard:
    """The next shard, with a batch that nothing proves yet, held under a lease."""
    shard = in_doubt(ledger)
    assert ledger.note_created(shard, 1, batch_id, status="x", due_in_s=0.0, likely="by its size", sought_until=5.0)
    return ledger.claim_one(shard.tag, 600.0)


@pytest.mark.parametrize("account", [ACCOUNT, SAME_WORKSPACE])
def test_a_create_waits_for_another_of_the_account(ledger: Ledger, account: str) -> None:
    """While one is submitting, or in doubt before its last look, whatever the key; a denial changes nothing."""
    publish(ledger, shards=3)
    first = created(ledger)
    second = claim(ledger)
    before = everything(ledger)
    assert create(ledger, second, account) == Denied(CREATE_LOCK, 0, 0, by=first.tag)
    assert everything(ledger) == before
    ledger.note_doubt(first, due=1e12, reason="r")
    assert create(ledger, second, account) == Denied(CREATE_LOCK, 0, 0, by=first.tag)
    check_money(ledger)


def test_other_accounts_and_tagged_batches_wait_for_nobody(ledger: Ledger) -> None:
    """The lock is of one account, and only for those that ask for it."""
    publish(ledger, shards=3)
    created(ledger)
    assert isinstance(create(ledger, claim(ledger), ELSEWHERE), Shard)
    bring(ledger, ShardState.SUBMITTING)


def test_the_lock_ends_with_the_answer(ledger: Ledger) -> None:
    """An id, or the proof that nothing was sent: the next may go out, and as large."""
    publish(ledger, shards=3)
    first = created(ledger)
    ledger.note_created(first, 1, "b1", status="x", due_in_s=1e9)
    second = created(ledger)
    ledger.note_not_sent(second, 1, due_in_s=1e9, reason="no connection")
    created(ledger)


def test_after_the_last_look_only_the_size_is_kept_free(ledger: Ledger) -> None:
    """Another size goes out, the same does not, as long as the doubt lasts."""
    publish(ledger, "small", shards=1, count=4)
    publish(ledger, "large", shards=2, count=9)
    doubtful = in_doubt(ledger, sought_until=2000.0)
    (alert,) = ledger.alerts_of("small")
    assert alert[0] == "in_doubt"
    ledger.note_created(created(ledger), 1, "b1", status="x", due_in_s=1e9)
    publish(ledger, "again", shards=1, count=4)
    large, small = claim(ledger), claim(ledger)
    assert create(ledger, small) == Denied(SAME_SIZE, 0, 0, by=doubtful.tag)
    assert isinstance(create(ledger, large), Shard)


def test_a_batch_that_is_not_proven_keeps_its_size_free(ledger: Ledger) -> None:
    """It may be another's, and ours still come: none as large goes out before it is proven."""
    publish(ledger, shards=2)
    waiting = taken_for(ledger)
    assert waiting.current.unconfirmed
    assert create(ledger, claim(ledger)) == Denied(SAME_SIZE, 0, 0, by=waiting.tag)


def test_a_batch_is_taken_for_one_shard_only(ledger: Ledger) -> None:
    """Of two shards in doubt one may have it; the other is told, and nothing of it changes."""
    publish(ledger, shards=1, count=4)
    publish(ledger, "two", shards=1)
    taken_for(ledger)
    other = in_doubt(ledger)
    before = everything(ledger)
    assert not ledger.note_created(other, 1, "b1", status="x", due_in_s=0.0, likely="by its size")
    assert everything(ledger) == before
    assert ledger.taken(["b1", "b2"]) == {"b1": "job1-0.1"}


def test_what_is_disproven_goes_back_to_doubt_with_its_hold(ledger: Ledger) -> None:
    """The id is excluded for ever, the money stays held, and nothing of the stranger's batch is left."""
    publish(ledger)
    shard = taken_for(ledger)
    ledger.exclude(shard.tag, 1, ["b0"])
    ledger.note_polled(shard, [(1, {"ended": 1, "status": "ended", "completed": 10})], due_in_s=0.0, done=True)
    shard = claim(ledger)
    ledger.back_to_doubt(shard, due=0.0, reason="not its", alert="not its")
    with pytest.raises(LeaseLost):
        ledger.release(shard)
    shard = claim(ledger)
    sub = shard.current
    assert (shard.state, sub.state, sub.batch_id, sub.unconfirmed) == (
        ShardState.IN_DOUBT, SubmissionState.OPEN, None, False,
    )  # fmt: skip
    assert (sub.not_ours, sub.hold_nanos, sub.ended, sub.completed) == (("b0", "b1"), 100, False, None)
    assert money(ledger) == (0, 100)
    check_money(ledger)


def test_an_answer_that_came_late_is_known_to_whoever_has_the_shard_now(ledger: Ledger) -> None:
    """Written without a lease, once; who looks meanwhile loses the shard and begins anew with the id."""
    publish(ledger)
    looking = in_doubt(ledger)
    assert ledger.note_answered(looking.tag, 1, "b1", status="x")
    assert not ledger.note_answered(looking.tag, 1, "b2", status="x")
    with pytest.raises(LeaseLost):
        ledger.note_look(looking, looks=1, fenced=False, due=0.0)
    assert claim(ledger).current.batch_id == "b1"
