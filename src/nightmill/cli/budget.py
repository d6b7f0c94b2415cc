"""``budget``: what may be spent, and what was."""

from __future__ import annotations

from typing import Any

import click

from nightmill.cli import flags, present
from nightmill.cli.edge import Edge
from nightmill.errors import UsageError
from nightmill.mill import Limit
from nightmill.types import usd


@click.group(short_help="Show or set what may be spent.", invoke_without_command=True)
@flags.common
def budget(edge: Edge) -> int:
    """Show or set what may be spent; alone it shows."""
    return _show_all(edge) if click.get_current_context().invoked_subcommand is None else 0


@budget.command()
@flags.common
def show(edge: Edge) -> int:
    """What is spent, held and free in every limit."""
    return _show_all(edge)


def _show_all(edge: Edge) -> int:
    with edge.mill(create=False) as mill:
        limits, calls = mill.budget(), mill.calls()
    total = next(limit for limit in limits if limit.scope == "total")
    _show(edge, limits, calls)
    free = None if total.free_nanos is None else usd(total.free_nanos)
    edge.answer(
        {
            "spent": usd(total.spent_nanos), "calls": calls, "held": usd(total.held_nanos), "free": free,
            "limits": [_object(limit) for limit in limits],
        }
    )  # fmt: skip
    return 0


@budget.command("set")
@click.argument("amount", metavar="[USD]", type=flags.USD_OR_NONE, required=False)
@click.option("--day", type=flags.USD_OR_NONE, help="Most a day.")
@click.option("--month", type=flags.USD_OR_NONE, help="Most a month.")
@click.option("--job", metavar="JOB", help="Let USD be the limit of this job.")
@flags.common
def set_(edge: Edge, amount: int | str | None, day: int | str | None, month: int | str | None, job: str | None) -> int:
    """Set the limit of everything, a day, a month or a job; `none` lifts it."""
    if amount is None and (job or (day is None and month is None)):
        raise UsageError("no amount", why="there is nothing to set", fix="for example: nightmill budget set 20")
    with edge.mill() as mill:
        scope = f"job:{mill.job(job).id}" if job else "total"
        given = {scope: amount, "day": day, "month": month}
        for name, value in given.items():
            if value is not None:
                mill.set_budget(name, None if value == "none" else int(value))
        limits, calls = mill.budget(scope), mill.calls()
    _show(edge, limits, calls)
    edge.answer({"limits": [_object(limit) for limit in limits]})
    return 0


def _show(edge: Edge, limits: list[Limit], calls: int) -> None:
    table = [["LIMIT", "MOST", "SPENT", "HELD", "FREE"]]
    for limit in limits:
        cap = "none" if limit.cap_nanos is None else present.money(limit.cap_nanos)
        free = "" if limit.free_nanos is None else present.money(limit.free_nanos, toward="down")
        table.append([limit.scope, cap, present.money(limit.spent_nanos), present.money(limit.held_nanos), free])
    edge.put("\n".join(present.table(table, width=edge.table_width, unicode=edge.unicode, right=(1, 2, 3, 4))))
    edge.put(f"{present.some(calls, 'call')} costed")


def _object(limit: Limit) -> dict[str, Any]:
    return {
        "scope": limit.scope,
        "cap_usd": None if limit.cap_nanos is None else usd(limit.cap_nanos),
        "spent_usd": usd(limit.spent_nanos),
        "held_usd": usd(limit.held_nanos),
        "free_usd": None if limit.free_nanos is None else usd(limit.free_nanos),
    }
