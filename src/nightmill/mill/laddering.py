"""The ladder of a job: what is tried until an answer fits the schema, what that may cost, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nightmill.errors import UsageError
from nightmill.ledger import Job, NewShard
from nightmill.mill.home import Home, compiled_from, dearer
from nightmill.plan import Ladder, Order, Parameters
from nightmill.pricing import PriceSheet
from nightmill.tasks import Task, require_repair
from nightmill.types import Lane, usd

if TYPE_CHECKING:
    from nightmill.mill.planning import RunOptions

_BYTES_A_TOKEN = 4  # of an answer that is shown again, about


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a ladder, in rows and nano-dollars."""

    name: str  # "first ask", "local repair", "re-ask 1", or the model that is asked
    rows: int  # that came to it
    valid: int  # that it answered by the schema
    spent_nanos: int
    asks: bool = True  # a model, and may cost; repair does not


def asked(home: Home, options: RunOptions, task: Task, parameters: Parameters) -> dict[str, Any]:
    """What a job's record says of its ladder: nothing where answers are held to no schema.

    Raises:
        UsageError: there is no schema, or what repairs is not installed.
    """
    repair = bool(options.repair if options.repair is not None else task.repair)
    reask = (options.reask if options.reask is not None else task.reask) or 0
    if parameters.schema is None:
        if repair or reask:
            name = "--repair" if repair else "--reask"
            raise UsageError(
                f"{name} without a schema", why="nothing says which answers are wrong", fix="give --schema, or leave it"
            )
        return {}
    if repair:
        require_repair()
    return {"ladder": {"repair": repair, "reask": reask, "escalate": task.escalate is not False}}


def next_prices(home: Home, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Today's prices of the models further up a ladder, in each lane they may be asked in."""
    found: dict[str, Any] = {}
    for step in Ladder.of(spec).rungs:
        if step.model != spec["model"]:
            provider = home.provider(step.model, sends=False)
            lanes = {home.rung_lane(Lane(spec["lane"]), step.model, provider), Lane.LIVE}
            found[step.model] = {lane.value: home.sheet(step.model, lane).to_json() for lane in sorted(lanes)}
    return {"next_prices": found} if found else {}


def is_dearer(home: Home, job: Job) -> bool:
    """Whether a model further up is dearer today than when its prices were shown."""
    said: dict[str, dict[str, str]] = job.spec.get("next_prices", {})
    pairs = ((home.sheet(model, Lane(lane)), text) for model, by in said.items() for lane, text in by.items())
    return any(now.dearer_than(PriceSheet.from_json(then)) for now, then in pairs)


def check(home: Home, spec: Mapping[str, Any]) -> None:
    """Raises UsageError (CannotCarry, UnknownModel): a model further up cannot be asked this, or lacks its key."""
    for model in dict.fromkeys(step.model for step in Ladder.of(spec).rungs if step.model != spec["model"]):
        compiled_from(spec, home.provider(model))


def marked(order: Order, spec: Mapping[str, Any]) -> Order:
    """The order with what of the ladder makes one job another, and with the steps of which cached answers count."""
    said, steps = spec.get("ladder", {}), Ladder.of(spec).kept_steps(spec["parameters"].get("schema"))
    marks = (f"repair={said['repair']}", f"reask={said['reask']}") if said.get("repair") or said.get("reask") else ()
    return replace(order, fingerprint_extra=(*order.fingerprint_extra, *marks), steps=tuple(steps.values()))


def next_at_most(home: Home, spec: Mapping[str, Any], shards: Sequence[NewShard]) -> dict[str, int]:
    """The worst case of all further steps, in nano-dollars, as a job's record says it."""
    most = most_nanos(home, spec, shards)
    return {"next_at_most_nanos": most} if most else {}


def notes(spec: Mapping[str, Any]) -> list[str]:
    """What to know of the ladder before agreeing to a price."""
    ladder = Ladder.of(spec)
    if not ladder:
        return []
    reasks = sum(step.is_reask for step in ladder.rungs)
    steps = ["put right here where that can be"] if ladder.repair else []
    steps += [f"asked again, {'once' if reasks == 1 else f'up to {reasks} times'}"] if reasks else []
    steps += [f"put to {step.model}" for step in ladder.rungs if not step.is_reask]
    most = spec.get("next_at_most_nanos", 0)
    cost = f"; at most ${usd(most):.6f} more, held as it is needed" if most else ""
    return [f"answers that do not fit the schema are {', then '.join(steps)}{cost}"]


def most_nanos(home: Home, spec: Mapping[str, Any], shards: Sequence[NewShard]) -> int:
    """The worst case of all further steps: every row takes every one, with answers as long as their cap."""
    total, sent = 0, [shard for shard in shards if shard.lane is not Lane.CACHE]
    for step in Ladder.of(spec).rungs:
        lane = Lane(spec["lane"])
        if step.model != spec["model"]:
            lane = home.rung_lane(lane, step.model, home.provider(step.model, sends=False))
        sheet = home.sheet(step.model, lane)
        live = dearer(sheet, home.sheet(step.model, Lane.LIVE))
        for shard in sent:
            goes_live = shard.lane is Lane.LIVE or spec.get("deadline") is not None  # or it may have to, to be in time
            shown = _BYTES_A_TOKEN * shard.cap_tokens if step.is_reask else 0
            held = live if goes_live else sheet
            total += held.worst(shard.content_bytes + shown, shard.count, shard.cap_tokens)
    return total


def steps(home: Home, job: Job) -> list[Step]:
    """How the rows of a job fared on its ladder, step by step; nothing where it has none."""
    ladder = Ladder.of(job.spec)
    if not ladder:
        return []
    found: list[Step] = []
    for tally in home.ledger.steps_of(job.id):
        name = step_name(ladder, tally.rung)
        found.append(Step(name, tally.rows, tally.valid - tally.repaired, tally.spent_nanos))
        if ladder.repair:
            left = tally.rows - tally.open - (tally.valid - tally.repaired)
            if left:
                found.append(Step("local repair", left, tally.repaired, 0, asks=False))
    return found


def step_name(ladder: Ladder, rung: int) -> str:
    """What a rung is called on screens."""
    step = ladder.at(rung)
    if step is None:
        return "first ask"
    return f"re-ask {rung}" if step.is_reask else step.model


def told(found: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps for ``--json`` and Python."""
    return [{"step": s.name, "rows": s.rows, "valid": s.valid, "spent_usd": usd(s.spent_nanos)} for s in found]
