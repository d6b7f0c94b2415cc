"""Keys that a provider refuses, and what of a job hangs on the account of one."""

from __future__ import annotations

from ledger_kit import LEASE_S, SCOPES, publish

from nightmill.ledger import Ledger, Shard
from nightmill.types import ShardState


def test_a_shard_that_was_sought_on_two_accounts_is_one(ledger: Ledger) -> None:
    """It is tied to both, and the other shards of its job can go on: none of these is counted away with it."""
    publish(ledger, shards=2)
    for account in ("acc", "other"):
        shard = ledger.claim_one("job1-0", LEASE_S)
        ready = ledger.note_intent(shard, to=ShardState.SUBMITTING, account=account, model="m", price="{}",
                                   hold_nanos=1, scopes=SCOPES, intent_at=1000.0)  # fmt: skip
        assert isinstance(ready, Shard)
        ledger.note_not_sent(ready, ready.submission, due_in_s=0.0, reason="not there", sure=False)
    assert ledger.tied("job1") == ({"acc": 1, "other": 1}, 1)
    assert ledger.tied("job1", but=["acc"]) == ({"other": 1}, 1)
    assert ledger.tied("job1", but=["acc", "other"]) == ({}, 2)
    assert ledger.tied("job1", is_locked=True) == ({"acc": 1, "other": 1}, 0)


def test_what_is_being_submitted_is_tied_to_no_account_yet(ledger: Ledger) -> None:
    """Its create may be refused, and then it goes out with another key: no job pauses for want of this one."""
    publish(ledger, shards=2)
    shard = ledger.claim_one("job1-0", LEASE_S)
    ready = ledger.note_intent(shard, to=ShardState.SUBMITTING, account="acc", model="m", price="{}", hold_nanos=1,
                               scopes=SCOPES, intent_at=1000.0)  # fmt: skip
    assert isinstance(ready, Shard)
    assert ledger.tied("job1") == ({}, 2)
    ledger.note_doubt(ready, due=0.0, reason="no answer")
    assert ledger.tied("job1") == ({"acc": 1}, 1)
