"""Where a job stands, in rows and money: the numbers every screen and every ``--json`` shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nightmill.ledger.records import Job, Tally

OUTCOMES = ("succeeded", "failed", "missing", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class Standing:
    """``rows = invalid + succeeded + failed + missing + expired + cancelled + pending``, always.

    While a job is open its duplicates are pending; when it has ended they share their twin's
    outcome. ``spent_nanos`` includes ``unproven_nanos``.
    """

    rows: int
    invalid: int
    duplicates: int
    cached: int
    succeeded: int
    failed: int
    missing: int
    expired: int
    cancelled: int
    sent: int  # distinct rows handed to a provider
    extra_answers: int
    unknown_ids: int
    tokens_in: int
    tokens_out: int
    spent_nanos: int
    unproven_nanos: int
    held_nanos: int
    list_nanos: int
    failures: dict[str, int]  # by kind
    states: dict[str, int]  # shards by state
    rescued: int = 0  # requests of a batch job that went live instead, for its deadline
    rescued_nanos: int = 0  # ... and what they cost so far, as far as it is settled
    tokens_cached: int = 0  # of the input, read from providers' caches
    tokens_written: int = 0  # ... and written to them
    caching_nanos: int = 0  # what that saved, as far as it is settled

    @property
    def done(self) -> int:
        """Rows with a final outcome."""
        return self.succeeded + self.failed + self.missing + self.expired + self.cancelled

    @property
    def pending(self) -> int:
        return self.rows - self.invalid - self.done

    @property
    def saved_nanos(self) -> int:
        """Against the live standard price; negative where running cost more than that."""
        return self.list_nanos - self.spent_nanos


def standing_of(job: Job, tally: Tally, *, distinct: bool = False) -> Standing:
    """``job`` in rows, from the sums of its shards.

    With ``distinct`` only distinct requests count, ended or not: what progress is measured in.
    """
    again = job.spec.get("again", {})  # rows that ended once and were sent anew by a retry
    ended = {name: getattr(tally.counts, name) - again.get(name, 0) for name in OUTCOMES}
    failures = {kind: n - again.get("failures", {}).get(kind, 0) for kind, n in tally.failures.items()}
    requests = job.rows - job.invalid - job.duplicates
    if not distinct and job.counts is not None:
        ended = {name: job.counts[name] for name in OUTCOMES}
    return Standing(
        rows=requests if distinct else job.rows,
        invalid=0 if distinct else job.invalid,
        duplicates=job.duplicates,
        cached=job.cached,
        **ended,
        sent=tally.sent,
        extra_answers=tally.extra_answers,
        unknown_ids=tally.unknown_ids,
        tokens_in=tally.tokens_in,
        tokens_out=tally.tokens_out,
        spent_nanos=tally.spent_nanos,
        unproven_nanos=tally.unproven_nanos,
        held_nanos=tally.held_nanos,
        list_nanos=tally.list_nanos,
        failures={kind: n for kind, n in failures.items() if n},
        states=tally.states,
        rescued=tally.rescued,
        rescued_nanos=tally.rescued_nanos,
        tokens_cached=tally.tokens_cached,
        tokens_written=tally.tokens_written,
        caching_nanos=tally.caching_nanos,
    )


def with_answers(
    now: Standing,
    *,
    succeeded: int,
    failures: dict[str, int],
    tokens_in: int,
    tokens_out: int,
    spent_nanos: int,
    list_nanos: int,
    unsent: int,
) -> Standing:
    """``now`` with answers that lie in journals and are not settled yet, and without rows of theirs not sent yet."""
    failed = sum(failures.values())
    both = {kind: now.failures.get(kind, 0) + failures.get(kind, 0) for kind in {*now.failures, *failures}}
    return replace(
        now,
        succeeded=now.succeeded + succeeded,
        failed=now.failed + failed,
        failures=both,
        sent=now.sent - unsent,
        tokens_in=now.tokens_in + tokens_in,
        tokens_out=now.tokens_out + tokens_out,
        spent_nanos=now.spent_nanos + spent_nanos,
        list_nanos=now.list_nanos + list_nanos,
    )
