"""Holds, settlements and limits: a budget is moved only here, and only inside a verb's transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, insert, or_, select, update

from nightmill.ledger._database import Database, wall
from nightmill.ledger.records import Denied, Limit
from nightmill.ledger.schema import entries, limits, meta, submissions

TOTAL, DAY, MONTH = "total", "day", "month"
DELETED = "deleted"  # the kind of the line that a deleted job leaves in the audit trail
_SAID = "budget."  # of a scope: the cap that the settings gave last, in the table of facts

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
    line = {"at": wall(), "job_id": job_id, "tag": tag, "n": n, "kind": kind, "nanos": nanos}
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


def _has(connection: Connection, scope: str) -> bool:
    return connection.execute(select(limits.c.scope).where(limits.c.scope == scope)).first() is not None


def _set_cap(connection: Connection, scope: str, cap_nanos: int | None, running_scopes: Sequence[str]) -> None:
    for name in (scope, *(s for s in running_scopes if s.partition(":")[0] == scope)):
        _ensure(connection, [name])
        connection.execute(update(limits).where(limits.c.scope == name).values(cap_nanos=cap_nanos))


class MoneyVerbs(Database):
    """Budgets as people set and read them."""

    def ensure_budget(
        self,
        total_nanos: int | None,
        day_nanos: int | None,
        month_nanos: int | None,
        *,
        default_nanos: int | None = None,
        running_scopes: Sequence[str] = (),
    ) -> None:
        """The limits that the settings give; None: they say nothing, and what there is stays.

        A value counts when it is new to this ledger, so that what `set_budget` set since then stays
        while the settings stay. A new ledger's total begins at ``default_nanos``.
        """
        said = {TOTAL: total_nanos, DAY: day_nanos, MONTH: month_nanos}
        with self._read() as connection:
            have = set(connection.execute(select(limits.c.scope)).scalars())
            known = dict(connection.execute(select(meta.c.key, meta.c.value)).all())
        if have >= said.keys() and all(v is None or known.get(_SAID + s) == str(v) for s, v in said.items()):
            return
        with self._write("ensure_budget") as connection:
            for scope, nanos in said.items():
                if nanos is not None:
                    self._apply_said(connection, scope, nanos, running_scopes)
                elif not _has(connection, scope):
                    cap = default_nanos if scope == TOTAL else None
                    connection.execute(insert(limits).values(scope=scope, cap_nanos=cap))

    def _apply_said(self, connection: Connection, scope: str, nanos: int, running_scopes: Sequence[str]) -> None:
        key, value = _SAID + scope, str(nanos)
        known = connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar()
        if known == value:
            return
        _set_cap(connection, scope, nanos, running_scopes)
        if known is None:
            connection.execute(insert(meta).values(key=key, value=value))
        else:
            connection.execute(update(meta).where(meta.c.key == key).values(value=value))

    def set_budget(self, scope: str, cap_nanos: int | None, *, running_scopes: Sequence[str] = ()) -> None:
        """Set the cap of ``scope``; a cap below what is spent and held refuses new holds only.

        ``running_scopes`` are the day and month under way, which follow their kind at once.
        """
        with self._write("set_budget") as connection:
            _set_cap(connection, scope, cap_nanos, running_scopes)

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
