"""Jobs that ask for embeddings: what an answer has to be, and how long the vectors of a job are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from nightmill.errors import UsageError
from nightmill.plan import Compiled, Parameters
from nightmill.providers import JoiningProvider, Provider
from nightmill.sinks.vectors import FLOAT_BYTES, Vectors, packed, size_in
from nightmill.tasks import Task, check_answer

DIMENSIONS = "dimensions"  # as a request says it

Check = Callable[[str], tuple[object, str | None]]


def answer_check(spec: Mapping[str, Any]) -> Check | None:
    """What the answers of a job are held to, as its record says; None: nothing."""
    parameters = Parameters.from_dict(spec["parameters"])
    if parameters.schema:
        return check_answer(parameters.schema)
    if Task.from_dict(spec["task"]).embeds:
        return partial(_check_vector, parameters.extra.get(DIMENSIONS))
    return None


def most_together(provider: Provider, compiled: Compiled) -> int:
    """How many rows may go in one live call."""
    return provider.most_joined if compiled.embeds and isinstance(provider, JoiningProvider) else 1


def _check_vector(size: int | None, text: str) -> tuple[object, str | None]:
    """An answer is one vector, as long as it was asked for."""
    try:
        found = len(packed(text)) // FLOAT_BYTES
    except ValueError as error:
        return None, str(error)
    if size is not None and found != size:
        return None, f"the vector has {found:,} numbers, and {size:,} were asked for"
    return None, None


def vectors_of(spec: Mapping[str, Any], results: Callable[[], Iterable[pa.RecordBatch]]) -> Vectors | None:
    """What the vectors of a job are like, by the first there is; None: it asks for none."""
    if not Task.from_dict(spec["task"]).embeds:
        return None
    return Vectors(Parameters.from_dict(spec["parameters"]).extra.get(DIMENSIONS) or size_in(results()))


def asked(task: Task, dimensions: int | None, **of_text: bool) -> dict[str, int]:
    """What a request says of the size of its vectors. ``of_text``: what else was said, which only texts have.

    Raises:
        UsageError: it is no request for embeddings, or something else was said.
    """
    vain = [name for name, is_said in of_text.items() if is_said and task.endpoint == "embeddings"]
    if vain:
        name = vain[0].replace("_", "-")
        why = f"the answers to {task.name} are vectors, not texts"
        raise UsageError(f"--{name}: not for embeddings", why=why, fix=f"leave --{name} out")
    if dimensions is None:
        return {}
    if not task.embeds:
        raise UsageError(
            f"--dimensions {dimensions}: no embeddings are asked for",
            why="it is how many numbers a vector has" if not task.bodies else "each row is a whole request already",
            fix="add --task embed, or leave it out",
        )
    return {DIMENSIONS: dimensions}
