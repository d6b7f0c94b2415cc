"""What the scripts here share: rows and answers to work on, stopwatches, and figures with floors.

Contenders run one after the other, round by round, in one process, and are compared by the CPU time
of that process: what else the machine does then falls on both. A figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

MODEL = "openai/gpt-4o-mini"
PROMPT = "Say in one word whether this review is positive, negative or mixed.\n\n{{ text }}"

_WORDS = [
    "the",
    "food",
    "was",
    "late",
    "and",
    "cold",
    "but",
    "staff",
    "were",
    "kind",
    "we",
    "came",
    "back",
    "twice",
    "for",
    "dessert",
    "nobody",
    "asked",
    "how",
    "it",
    "tasted",
    "portions",
    "small",
    "price",
    "fair",
    "table",
    "by",
    "window",
    "quiet",
    "evening",
    "my",
    "friend's",
    "soup",
    "had",
    "'no'",
    "salt",
    "again",
    '"fine"',
    "dining",
    "naïve",
    "café",
    "über",
    "schön",
    "año",
    "東京",
    "вкусно",
    "100%",
    "$12.50",
    "waiter",
    "smiled",
    "children",
    "loved",
    "it",
]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and what it must not fall below, or with ``at_most`` not exceed."""

    claim: str
    measured: float
    floor: float
    unit: str = "x"
    at_most: bool = False
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.measured <= self.floor if self.at_most else self.measured >= self.floor

    def line(self) -> str:
        """``claim, measured, floor, verdict``."""
        bound = "<=" if self.at_most else ">="
        verdict = "ok" if self.holds else "MISSED"
        said = f"{self.claim}, {self.measured:.3g} {self.unit}, {bound} {self.floor:g} {self.unit}, {verdict}"
        return f"{said} ({self.note})" if self.note else said


@dataclass(frozen=True, slots=True)
class Skipped:
    """A claim that could not be put to the test here, and why."""

    claim: str
    why: str

    def line(self) -> str:
        return f"{self.claim}, -, -, SKIPPED: {self.why}"


def race(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds by ``clock`` for each contender and round: CPU of this process, threads included, unless told.

    The order turns around from round to round, so that no one always follows the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for n in range(rounds):
        names = list(contenders)
        for name in names if n % 2 == 0 else reversed(names):
            started = clock()
            contenders[name]()
            seconds[name].append(clock() - started)
    return seconds


def speedup(ours: Sequence[float], rival: Sequence[float]) -> float:
    """How many times our rate the rival's is beaten by: the median of the rounds' ratios."""
    return median(theirs / mine for mine, theirs in zip(ours, rival, strict=True))


def per_row(seconds: Mapping[str, Sequence[float]], rows: int) -> str:
    """Median microseconds a row of each contender, for a note."""
    return ", ".join(f"{name} {median(times) / rows * 1e6:.2f} us" for name, times in seconds.items())


# -- material ------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: int, seed: int = 7) -> Path:
    """``rows`` JSON lines ``{"id", "text"}``, texts of 200 to 400 bytes, each another."""
    chance = random.Random(seed)
    phrases = [words(chance, 60) for _ in range(2_000)]
    with path.open("w", encoding="utf-8") as out:
        for i in range(rows):
            text = f"{i} {' '.join(chance.choices(phrases, k=chance.randint(3, 6)))}"
            out.write(json.dumps({"id": f"r{i}", "text": text}, ensure_ascii=False) + "\n")
    return path


def words(chance: random.Random, size_bytes: int) -> str:
    """A text of about so many bytes, with a line end now and then."""
    said: list[str] = []
    while size_bytes > 0:
        word = chance.choice(_WORDS)
        said.append(word + ("\n" if chance.random() < 0.02 else ""))
        size_bytes -= len(word.encode()) + 1
    return " ".join(said)


def answer_line(custom_id: str, text: str, tokens_in: int, number: int) -> bytes:
    """A line as the Batch API's output files have it, all its fields included."""
    tokens_out = max(1, len(text) // 4)
    body = {
        "id": f"chatcmpl-{number:024x}", "object": "chat.completion", "created": 1_760_000_000 + number,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
            "logprobs": None, "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                                          "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        },
        "service_tier": "default", "system_fingerprint": "fp_560af6e559",
    }  # fmt: skip
    response = {"status_code": 200, "request_id": f"{number:032x}", "body": body}
    line = {"id": f"batch_req_{number:024x}", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def order_for(path: Path) -> Any:
    """A plan's order for the rows of ``path`` and `PROMPT`: OpenAI, batch lane, listed prices, default sizes."""
    from nightmill.plan import Compiled, Order, Parameters, bounds
    from nightmill.pricing import price_sheet
    from nightmill.providers.openai import OpenAI
    from nightmill.sources import open_source
    from nightmill.tasks import bind, prompt_task
    from nightmill.types import Lane

    provider = OpenAI(MODEL.partition("/")[2], key="none", base_url="http://127.0.0.1:9/v1")
    source = open_source([path])
    compiled = Compiled(provider, bind(prompt_task(PROMPT), ["key", *source.schema.names], {}), Parameters())
    now = datetime.now(UTC)
    sheets = [price_sheet(MODEL, lane, at=now, overrides={}) for lane in (Lane.BATCH, Lane.LIVE)]
    limits = bounds(Lane.BATCH, provider.limits, batch_size=None, hold_nanos=None, embeddings=False)
    return Order(source, provider, compiled, Lane.BATCH, *sheets, limits, 40)


# -- running -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The conditions that numbers were taken under."""
    return {
        "cpus": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 2), "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def arguments(about: str | None, **defaults: int) -> argparse.Namespace:
    """``--json`` and one whole number for each of ``defaults``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print figures and conditions as JSON")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value:,}")
    return parser.parse_args()


def report(results: Sequence[Figure | Skipped], *, as_json: bool) -> int:
    """Print the results; 1 when a figure misses its floor, else 0."""
    if as_json:
        figures = [asdict(r) | {"holds": r.holds} for r in results if isinstance(r, Figure)]
        skipped = [asdict(r) for r in results if isinstance(r, Skipped)]
        json.dump({"figures": figures, "skipped": skipped, "machine": machine()}, sys.stdout)
        print()
    else:
        print(*(result.line() for result in results), sep="\n")
    return int(any(isinstance(r, Figure) and not r.holds for r in results))
