"""Claim: after the ladder nearly all of a small model's answers fit the schema; each step's share and cost are told.

The model that comes along, 135 million parameters, sorts reviews, first with nothing that binds it to the schema.
What does not fit is put right here where that can be, then asked for again with what is wrong, and then put to the same
model bound by the schema's grammar, which stands for a dearer one. Both are priced, as if they were not run here.
Greedy; yet what is answered beside other rows may come out a little otherwise each time.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from _kit import Figure, Skipped, arguments, report

import nightmill as nm
from nightmill.config import Settings, load_settings
from nightmill.providers.local import CHAT_URL, DEMO_MODEL, Local, connect, is_available

CLAIM = "valid answers after every step of the ladder"
BOUND = f"local/{DEMO_MODEL}"
MODELS = f"python:ladder.unbound,{BOUND}"
PRICES = f"""
[models."python:ladder.unbound"]
price = {{ input = 0.10, output = 0.40 }}
[models."{BOUND}"]
price = {{ input = 1.00, output = 4.00 }}
"""
CAP = 60  # tokens of an answer; one that fits has 20, and so small a model may not find an end
PATIENT_S = 120.0
PROMPT = (
    "%s like {\"label\": \"negative\", \"topic\": \"price\"}; "
    "label is positive, negative or mixed; topic is food, staff, price or place.\nReview: {{ text }}"
)  # fmt: skip
ASKED = {"prose allowed": "Sort the review, then give JSON", "JSON only": "Sort the review. Answer with JSON only,"}
SCHEMA: dict[str, Any] = {
    "type": "object", "required": ["label", "topic"], "additionalProperties": False,
    "properties": {
        "label": {"enum": ["positive", "negative", "mixed"]},
        "topic": {"enum": ["food", "staff", "price", "place"]},
    },
}  # fmt: skip
WHO = ["the soup", "our waiter", "the bill", "the terrace", "dessert", "the cook", "the wine", "the music"]
HOW = ["was cold", "was a joy", "was fair", "was too loud", "made us smile", "took an hour", "was not bad", "was dear"]


@cache
def small() -> Local:
    """The model, loaded once."""
    return connect(DEMO_MODEL, {})


async def unbound(
    messages: list[dict[str, Any]], *, max_completion_tokens: int, temperature: float, response_format: object
) -> Mapping[str, Any]:
    """The small model as a function that is given the schema and does not pass it on."""
    del response_format
    asked = {"messages": messages, "max_completion_tokens": max_completion_tokens, "temperature": temperature}
    reply = await small().send(CHAT_URL, json.dumps(asked).encode(), timeout_s=PATIENT_S)
    found: dict[str, Any] = json.loads(reply.body)
    return found


def reviews(rows: int) -> list[str]:
    """``rows`` texts, each another."""
    pairs = [f"{who.capitalize()} {how}, and {other} {so}." for who in WHO for how in HOW
             for other in WHO if other != who for so in HOW]  # fmt: skip
    return random.Random(7).sample(pairs, rows)


def climbed(settings: Settings, rows: int, asked: str) -> Figure:
    """The share of valid answers once every step was taken; after each of them, and what it cost, in the note."""
    with nm.Mill(settings) as mill:
        job = mill.run(reviews(rows), prompt=PROMPT % ASKED[asked], schema=SCHEMA, max_output=CAP, repair=True, reask=1,
                       model=MODELS, temperature=0)  # fmt: skip
        valid, said = 0, []
        for step in job.steps:
            valid += step["valid"]
            said.append(f"{step['step']} of {step['rows']}: {100 * valid / rows:.0f} %, ${step['spent_usd']:.6f}")
        return Figure(f"{CLAIM}, {asked}", 100 * valid / rows, 95, "%", note="; ".join(said))


def figures(rows: int) -> list[Figure | Skipped]:
    if not is_available():
        return [Skipped(CLAIM, f"{BOUND} is not installed")]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nightmill.toml").write_text(PRICES, encoding="utf-8")
        settings = load_settings(Path(folder), {**os.environ, "NIGHTMILL_HOME": f"{folder}/home"})
        return [climbed(settings, rows, asked) for asked in ASKED]


def main() -> int:
    given = arguments(__doc__, rows=20)
    sys.path.insert(0, str(Path(__file__).parent))
    return report(figures(given.rows), as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
