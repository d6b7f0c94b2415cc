"""With which key a shard goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nightmill.lanes.keys import account_of, choose, owner
from nightmill.ledger import Shard, Submission, SubmissionState
from nightmill.providers import Key, Provider, fingerprint_shown
from nightmill.providers.resolve import resolve_keys
from nightmill.types import FileRef, JobState, Lane, ShardState

ENV = {"A": "sk-a", "B": "sk-b", "C": "sk-a", "D": ""}


def keyed(*names: str, **more: Any) -> list[Provider]:
    return resolve_keys("openai/gpt-4o-mini", env=ENV, tables={"openai": {"api_key_env": names, **more}})


FIRST, SECOND = keyed("A", "B")


def shard(
    state: ShardState, *tries: tuple[SubmissionState, Provider | None], lane: Lane = Lane.BATCH, cancelled: bool = False
) -> Shard:
    """One with these submissions; None: nobody knows, or knows any more, whose account it was."""
    account = {None: "", FIRST: FIRST.account.id, SECOND: SECOND.account.id}
    return Shard(
        tag="j-0", job_id="j", seq=0, lane=lane, state=state, attempt=1, expiries=0, missings=0, splits=0, first=0,
        last=0, count=1, content_bytes=1, cap_tokens=1, input_tokens=1, file=FileRef("", 0, ""), due=0.0,
        lease_until=0.0, lease_was_until=0.0, epoch=1, submission=len(tries), looks=0, fenced=False, reads=0,
        reread=False, refusals=0, waits=0, price=None, reason=None, job_state=JobState.RUNNING,
        cancel_requested=cancelled,
        submissions=tuple(submission(n, was, account[whose]) for n, (was, whose) in enumerate(tries, 1)),
    )  # fmt: skip


def submission(n: int, state: SubmissionState, account: str) -> Submission:
    return Submission("j-0", n, state, account, 0, 0, 0, 0.0)


def refused(*providers: Provider) -> set[str]:
    return {provider.account.key.fingerprint for provider in providers}


def test_each_key_is_an_account_and_equal_ones_are_one() -> None:
    """Of variables that hold the same key the first counts; with same_account all have one account between them."""
    assert [provider.account.key.variable for provider in keyed("A", "D", "B", "C")] == ["A", "B"]
    assert FIRST.account.id != SECOND.account.id
    assert FIRST.account.key != SECOND.account.key
    one, other = keyed("A", "B", same_account=True)
    assert one.account == other.account
    assert one.account.key != other.account.key


def test_a_key_is_shown_by_its_variable_and_the_end_of_its_fingerprint() -> None:
    """Nothing that is shown holds the key or the whole fingerprint."""
    key = FIRST.account.key
    assert str(key) == f"A (*{key.fingerprint[-4:]})"
    assert (str(Key()), fingerprint_shown("")) == ("no key", "no key")


def test_what_is_at_no_provider_goes_out_with_the_first_key_that_is_taken() -> None:
    """None is left when all are refused; what was proven not sent binds nothing."""
    for planned in (shard(ShardState.PLANNED), shard(ShardState.PLANNED, (SubmissionState.GONE, FIRST))):
        assert account_of(planned) is None
        assert choose([FIRST, SECOND], planned, ()) is FIRST
        assert choose([FIRST, SECOND], planned, refused(FIRST)) is SECOND
        assert choose([FIRST, SECOND], planned, refused(FIRST, SECOND)) is None


@pytest.mark.parametrize(
    "state", [ShardState.SUBMITTING, ShardState.IN_DOUBT, ShardState.WAITING, ShardState.COLLECTING]
)
def test_what_may_be_at_a_provider_stays_with_its_account(state: ShardState) -> None:
    """Its own key is asked also where it was refused; where it is not here any more, one that is."""
    waits = shard(state, (SubmissionState.GONE, FIRST), (SubmissionState.CREATED, SECOND))
    assert choose([FIRST, SECOND], waits, ()) is SECOND
    assert choose([FIRST, SECOND], waits, refused(SECOND)) is SECOND
    assert choose([FIRST], waits, ()) is FIRST
    assert choose([FIRST], waits, refused(FIRST)) is FIRST


def test_what_was_sought_in_vain_waits_for_a_last_look_with_its_own_key() -> None:
    """It may turn up yet, at that account; after that look, or for a cancelled one's, nothing stands in the way."""
    sought = shard(ShardState.PLANNED, (SubmissionState.ABSENT, FIRST))
    assert choose([FIRST, SECOND], sought, ()) is FIRST
    assert choose([FIRST, SECOND], sought, refused(FIRST)) is None
    assert owner([FIRST, SECOND], sought) is FIRST
    assert owner([SECOND], sought) is None
    looked_for = shard(ShardState.PLANNED, (SubmissionState.LOST, FIRST))
    assert choose([FIRST, SECOND], looked_for, refused(FIRST)) is SECOND
    let_go = shard(ShardState.PLANNED, (SubmissionState.ABSENT, FIRST), cancelled=True)
    assert choose([FIRST, SECOND], let_go, refused(FIRST)) is FIRST


def test_a_key_of_the_same_account_stands_in() -> None:
    """A batch made with a key that is refused now is asked for with another of its account."""
    one, other = keyed("A", "B", same_account=True)
    waits = replace(shard(ShardState.WAITING), submissions=(
        submission(1, SubmissionState.CREATED, one.account.id),
    ))  # fmt: skip
    assert choose([one, other], waits, refused(one)) is other


def test_open_rows_of_a_live_shard_go_on_with_any_key() -> None:
    """Between its calls nothing of it is at a provider."""
    half = shard(ShardState.SENDING, (SubmissionState.CREATED, FIRST), lane=Lane.LIVE)
    assert choose([FIRST, SECOND], half, refused(FIRST)) is SECOND
    assert choose([FIRST, SECOND], half, refused(FIRST, SECOND)) is None
    answered = shard(ShardState.COLLECTING, (SubmissionState.CREATED, FIRST), lane=Lane.LIVE)
    assert choose([FIRST, SECOND], answered, refused(FIRST, SECOND)) is FIRST
