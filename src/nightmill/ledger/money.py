"""Holds, settlements and limits: a budget is moved only here, and only inside a verb's transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from sqlalchemy import Connection, func, insert, or_, select, update

from nightmill.ledger._database import Database
from nightmill.ledger.records import Denied, Limit
from nightmill.ledger.schema import entries, limits, submissions

TOTAL, DAY, MONTH = "total", "day", "month"


def hold(connection: Connection, scopes: Sequence[str], nanos: int) -> Denied | None:
    """Reserve ``nanos`` in every scope or in none; zero is always granted.

    One conditional update a limit, in the given order. A denial leaves the caller to roll back.
    """
    for scope in scopes:
        _ensure(connection, scope)
        fits = or_(
            limits.c.cap_nanos.is_(None),
            limits.c.spent_nanos + limits.c.held_nanos + nanos <= limits.c.cap_nanos,
        )
        granted = update(limits).where(limits.c.scope == scope).values(held_nanos=limits.c.held_nanos + nanos)
        if nanos:
            granted = granted.where(fits)
        if connection.execute(granted.returning(limits.c.scope)).first() is None:
            free = connection.execute(
                select(limits.c.cap_nanos - limits.c.spent_nanos - limits.c.held_nanos).where(limits.c.scope == scope)
            ).scalar_one()
            return Denied(scope, nanos, max(0, free))
    return None


def hold_anyway(connection: Connection, scopes: Sequence[str], nanos: int) -> None:
    """Reserve for what is out already: refusing it would not bring it back."""
    for scope in scopes:
        _ensure(connection, scope)
    move(connection, scopes, held=nanos)


def move(connection: Connection, scopes: Sequence[str], *, held: int = 0, spent: int = 0) -> None:
    """Change what is held and spent in every scope by signed amounts; never refused."""
    if held or spent:
        connection.execute(
            update(limits)
            .where(limits.c.scope.in_(scopes))
            .values(held_nanos=limits.c.held_nanos + held, spent_nanos=limits.c.spent_nanos + spent)
        )


def record(
    connection: Connection,
    kind: str,
    nanos: int,
    *,
    job_id: str,
    tag: str,
    n: int,
    calls: int = 0,
    note: str | None = None,
) -> None:
    """One line of the audit trail."""
    line = {"at": time.time(), "job_id": job_id, "tag": tag, "n": n, "kind": kind, "nanos": nanos}
    connection.execute(insert(entries).values(calls=calls, note=note, **line))


def scopes_of(connection: Connection, tag: str, n: int) -> list[str]:
    """The limits that a submission's hold is in."""
    where = (submissions.c.tag == tag) & (submissions.c.n == n)
    found: list[str] = json.loads(connection.execute(select(submissions.c.scopes).where(where)).scalar_one())
    return found


def _ensure(connection: Connection, scope: str) -> None:
    """Days and months come into being when first used, with the cap of their kind."""
    known = select(limits.c.scope).where(limits.c.scope == scope)
    if connection.execute(known).first() is None:
        kind = scope.partition(":")[0]
        cap = connection.execute(select(limits.c.cap_nanos).where(limits.c.scope == kind)).scalar()
        connection.execute(insert(limits).values(scope=scope, cap_nanos=cap))


class MoneyVerbs(Database):
    """Budgets as people set and read them."""

    def ensure_budget(self, total_nanos: int, day_nanos: int | None, month_nanos: int | None) -> None:
        """The limits a ledger begins with; what was set before stays."""
        with self._read() as connection:
            have = set(connection.execute(select(limits.c.scope)).scalars())
        first = {TOTAL: total_nanos, DAY: day_nanos, MONTH: month_nanos}
        if missing := [{"scope": s, "cap_nanos": cap} for s, cap in first.items() if s not in have]:
            with self._write("ensure_budget") as connection:
                for row in missing:
                    if connection.execute(select(limits).where(limits.c.scope == row["scope"])).first() is None:
                        connection.execute(insert(limits).values(row))

    def set_budget(self, scope: str, cap_nanos: int | None, *, running_scopes: Sequence[str] = ()) -> None:
        """Set the cap of ``scope``; a cap below what is spent and held refuses new holds only.

        ``running_scopes`` are the day and month under way, which follow their kind at once.
        """
        with self._write("set_budget") as connection:
            for name in (scope, *(s for s in running_scopes if s.partition(":")[0] == scope)):
                _ensure(connection, name)
                connection.execute(update(limits).where(limits.c.scope == name).values(cap_nanos=cap_nanos))

    def limits(self, scopes: Sequence[str] | None = None) -> list[Limit]:
        """Every limit, or those named (a day or month not yet used shows the cap of its kind)."""
        with self._read() as connection:
            rows = connection.execute(select(limits.c.scope, limits.c.cap_nanos, limits.c.spent_nanos,
                                             limits.c.held_nanos).order_by(limits.c.scope))  # fmt: skip
            have = {row[0]: Limit(*row) for row in rows}
        if scopes is None:
            return list(have.values())
        unused = {s: have.get(s.partition(":")[0]) for s in scopes if s not in have}
        return [
            have[s] if s in have else Limit(s, kind.cap_nanos if kind else None, 0, 0)
            for s, kind in ((s, unused.get(s)) for s in scopes)
        ]

    def calls(self) -> int:
        """Requests costed so far, over all jobs."""
        with self._read() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(entries.c.calls), 0))).scalar_one())
