"""A user's program as a type checker sees it: `make check` fails when it is not typed any more, or a mistake unseen."""

from collections.abc import Iterator
from typing import assert_type

import pandas as pd
import polars as pl
import pydantic

import nightmill as nm


class Sentiment(pydantic.BaseModel):
    label: str


def answer(messages: list[dict[str, str]], temperature: float = 0.0) -> str:
    return messages[-1]["content"]


def rows() -> Iterator[dict[str, object]]:
    yield {"text": "one", "n": 1}


def script() -> None:
    job = nm.run("reviews.csv", prompt="{{ text }}", model="local/smollm2-135m", schema=Sentiment, budget=2.00)
    assert_type(job, nm.Job)
    nm.run(rows(), model=answer, on_error="stop", progress=print, lane="live")
    nm.run(["one", "two"], model=lambda messages: "yes")
    nm.run(pl.DataFrame({"text": ["one"]}), model=answer)
    nm.run(pd.DataFrame({"text": ["one"]}), model=answer)
    assert_type(job.polars(), pl.DataFrame)
    assert_type(job.counts, dict[str, int])
    for result in job.results(failed=True):
        assert_type(result, nm.Result)
        assert_type(result.response, str | None)
    for answer_ in job.objects(Sentiment):
        assert_type(answer_, Sentiment | None)
    for result in job.stream():
        assert_type(result.cost_usd, float)
    with nm.Mill() as mill:
        assert_type(mill.jobs(unfinished=True), list[nm.Job])
        assert_type(mill.submit(["one"], model=answer).watch(), nm.Job)
        assert_type(mill.adopt("openai/batch_1").hand_over(), nm.Handed)
        assert_type(mill.quote(["one"], model=answer).at_most_usd, float)


async def program() -> None:
    job = await nm.arun(["one"], model=answer)
    assert_type(job, nm.Job)
    async for result in job.stream():
        assert_type(result, nm.Result)
    assert_type(await job.aretry(max_output=100), nm.Job)


def mistakes() -> None:
    nm.run(["one"], promt="{{ text }}")  # type: ignore[call-arg]
    nm.run(["one"], lane="fast")  # type: ignore[arg-type]
    nm.run(5, model=answer)  # type: ignore[arg-type]
    nm.run(["one"], limit="ten")  # type: ignore[arg-type]
    nm.Mill().job("@last").tabel()  # type: ignore[attr-defined]
