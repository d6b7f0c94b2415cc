"""Which keys a provider refuses, and how much of a job hangs on one: level-triggered, hence for every worker alike."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import and_, delete, func, insert, not_, or_, select, true

from nightmill.ledger._database import Database, wall
from nightmill.ledger._rows import raise_alerts
from nightmill.ledger.records import RefusedKey, SubmissionState
from nightmill.ledger.schema import refused_keys, shards, submissions
from nightmill.types import Lane, ShardState

# What is being submitted may yet be refused, and go out with another key.
_AT_PROVIDER = (ShardState.IN_DOUBT, ShardState.WAITING, ShardState.COLLECTING)


class KeyVerbs(Database):
    """Keys that were refused, until a person resumes; what waits for the account of one."""

    def refuse_key(self, provider: str, key: RefusedKey, *, job_id: str, alert: str = "") -> None:
        """The provider takes no call with this key any more; the newest reason counts.

        ``alert``: what the job that first meets this tells, if anything.
        """
        with self._write("refuse_key") as connection:
            this = and_(refused_keys.c.provider == provider, refused_keys.c.fingerprint == key.fingerprint)
            is_known = connection.execute(delete(refused_keys).where(this)).rowcount > 0
            if alert and not is_known:
                raise_alerts(connection, job_id, None, [("key_refused", alert)])
            connection.execute(
                insert(refused_keys).values(
                    provider=provider, fingerprint=key.fingerprint, variable=key.variable, reason=key.reason, at=wall()
                )
            )

    def refused_keys(self, provider: str) -> list[RefusedKey]:
        """The keys of a provider that it refused since a person last resumed, oldest first."""
        columns = (refused_keys.c.variable, refused_keys.c.fingerprint, refused_keys.c.reason)
        this = refused_keys.c.provider == provider
        with self._read() as connection:
            rows = connection.execute(select(*columns).where(this).order_by(refused_keys.c.at)).all()
        return [RefusedKey(*row) for row in rows]

    def forgive_keys(self, provider: str) -> None:
        """A person goes on: every key of the provider is tried again."""
        if self.refused_keys(provider):
            with self._write("forgive_keys") as connection:
                connection.execute(delete(refused_keys).where(refused_keys.c.provider == provider))

    def tied(self, job_id: str, *, but: Collection[str] = (), is_locked: bool = False) -> tuple[dict[str, int], int]:
        """How much of a job that is not settled can go on with no account but its own.

        Shards by account, without the accounts ``but``; and how many shards are left that are tied to none of these.
        ``is_locked``: no other batch can be made, so that shards that are planned for one do not count.
        """
        may_run = and_(
            submissions.c.tag == shards.c.tag,
            or_(
                and_(submissions.c.n == shards.c.submission, shards.c.state.in_(_AT_PROVIDER)),
                and_(submissions.c.state == SubmissionState.ABSENT, shards.c.state == ShardState.PLANNED),
            ),
        )
        open_ = and_(shards.c.job_id == job_id, shards.c.state != ShardState.SETTLED)
        elsewhere = and_(open_, shards.c.lane == Lane.BATCH, submissions.c.account.not_in(["", *but]))
        counts = select(submissions.c.account, func.count(shards.c.tag.distinct())).join(shards, may_run)
        tied = select(submissions.c.tag).join(shards, may_run).where(elsewhere)  # one may be so to several
        goes_on = not_(and_(shards.c.lane == Lane.BATCH, shards.c.state == ShardState.PLANNED)) if is_locked else true()
        with self._read() as connection:
            by_account = counts.where(elsewhere).group_by(submissions.c.account)
            found = {str(account): int(count) for account, count in connection.execute(by_account)}
            free = and_(open_, goes_on, shards.c.tag.not_in(tied))
            others: int = connection.execute(select(func.count()).select_from(shards).where(free)).scalar_one()
        return found, others
