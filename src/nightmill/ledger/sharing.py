"""What workers share: a provider's limits, as far as they were learned, and how many workers there are."""

from __future__ import annotations

from sqlalchemy import and_, case, delete, insert, select, update

from nightmill.ledger._database import Database
from nightmill.ledger.schema import quotas, workers


class SharingVerbs(Database):
    """Learned caps, cool-downs, and the workers among whom limits are divided."""

    def learn_enqueued_cap(self, account: str, model: str, cap: int) -> None:
        """The provider named its limit on enqueued tokens."""
        with self._write("learn_enqueued_cap") as connection:
            this = and_(quotas.c.account == account, quotas.c.model == model)
            if connection.execute(
                update(quotas).where(this).values(enqueued_cap=cap).returning(quotas.c.account)
            ).first():
                return
            connection.execute(insert(quotas).values(account=account, model=model, enqueued_cap=cap))

    def heartbeat(self, seen_for_s: float) -> int:
        """Say that this worker lives; how many workers share the limits now, this one included."""
        now = self.moment()
        with self._write("heartbeat") as connection:
            known = connection.execute(select(workers.c.owner, workers.c.seen_until)).all()
            gone = [o for o, until in known if until <= now or (o != self.me and self.is_dead(o))]
            if gone:
                connection.execute(delete(workers).where(workers.c.owner.in_(gone)))
            mine = update(workers).where(workers.c.owner == self.me).values(seen_until=now + seen_for_s)
            if connection.execute(mine.returning(workers.c.owner)).first() is None:
                connection.execute(insert(workers).values(owner=self.me, seen_until=now + seen_for_s))
            alive = {o for o, _ in known} - set(gone) | {self.me}
        return len(alive)

    def leave(self) -> None:
        """This worker stops: its share of the limits is free for the others."""
        with self._write("leave") as connection:
            connection.execute(delete(workers).where(workers.c.owner == self.me))

    def cool_down(self, account: str, model: str, until: float) -> None:
        """No new live call of this quota before the moment ``until``, in any worker."""
        with self._write("cool_down") as connection:
            this = and_(quotas.c.account == account, quotas.c.model == model)
            later = (
                update(quotas)
                .where(this)
                .values(cool_until=case((quotas.c.cool_until > until, quotas.c.cool_until), else_=until))
            )
            if connection.execute(later.returning(quotas.c.account)).first() is None:
                connection.execute(insert(quotas).values(account=account, model=model, cool_until=until))

    def cooling_until(self, account: str, model: str) -> float:
        """The moment until which live calls of this quota wait; 0.0 = no wait."""
        with self._read() as connection:
            this = and_(quotas.c.account == account, quotas.c.model == model)
            return float(connection.execute(select(quotas.c.cool_until).where(this)).scalar() or 0.0)
