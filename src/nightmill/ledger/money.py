"""Holds, settlements and limits: a budget is moved only here, and only inside a verb's transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, insert, or_, select, update

from nightmill.ledger._database import Database
from nightmill.ledger.records import Denied, Limit
from nightmill.ledger.schema import entries, limits, submissions

TOTAL, DAY, MONTH = "total", "day", "month"

# Put together once: that takes longer than the database does.
_NANOS = bindparam("nanos", type_=BigInteger)
_THESE: Any = bindparam("scopes", expanding=True)
_TOUCH = (
    update(limits)
    .where(limits.c.scope == bindparam("of"))
    .values(held_nanos=limits.c.held_nanos + _NANOS)
    .returning(limits.c.scope)
)
_HOLD = _TOUCH.where(
    or_(limits.c.cap_nanos.is_(None), limits.c.spent_nanos + limits.c.held_nanos + _NANOS <= limits.c.cap_nanos)
)
_MOVE = (
    update(limits)
    .where(limits.c.scope.in_(_THESE))
    .values(
        held_nanos=limits.c.held_nanos + bindparam("held", type_=BigInteger),
        spent_nanos=limits.c.spent_nanos + bindparam("spent", type_=BigInteger),
    )
)
_KNOWN = select(limits.c.scope).where(limits.c.scope.in_(_THESE))
_RECORD = insert(entries)
_SCOPES = select(submissions.c.scopes).where(
    submissions.c.tag == bindparam("of"), submissions.c.n == bindparam("number")
)


def hold(connection: Connection, scopes: Sequence[str], nanos: int) -> Denied | None:
    """Reserve ``nanos`` in every scope or in none; zero is always granted.

    One conditional update a limit, in the given order. A denial leaves the caller to roll back.
    """
    _ensure(connection, scopes)
    for scope in scopes:
        granted = _HOLD if nanos else _TOUCH
        if connection.execute(granted, {"of": scope, "nanos": nanos}).first() is None:
            free = connection.execute(
                select(limits.c.cap_nanos - limits.c.spent_nanos - limits.c.held_nanos).where(limits.c.scope == scope)
            ).scalar_one()
            return Denied(scope, nanos, max(0, free))
    return None


def hold_anyway(connection: Connection, scopes: Sequence[str], nanos: int) -> None:
    """Reserve for what is out already: refusing it would not bring it back."""
    _ensure(connection, scopes)
    move(connection, scopes, held=nanos)


def move(connection: Connection, scopes: Sequence[str], *, held: int = 0, spent: int = 0) -> None:
    """Change what is held and spent in every scope by signed amounts; never refused."""
    if held or spent:
        connection.execute(_MOVE, {"scopes": list(scopes), "held": held, "spent": spent})


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
    connection.execute(_RECORD, line | {"calls": calls, "note": note})


def scopes_of(connection: Connection, tag: str, n: int) -> list[str]:
    """The limits that a submission's hold is in."""
    found: list[str] = json.loads(connection.execute(_SCOPES, {"of": tag, "number": n}).scalar_one())
    return found


def _ensure(connection: Connection, scopes: Sequence[str]) -> None:
    """Days and months come into being when first used, with the cap of their kind."""
    known = set(connection.execute(_KNOWN, {"scopes": list(scopes)}).scalars())
    for scope in scopes:
        if scope not in known:
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
                _ensure(connection, [name])
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
