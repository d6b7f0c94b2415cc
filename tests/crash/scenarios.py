"""What is run while it is killed: the plain ways, and each way in which a provider or a person makes it harder."""

from __future__ import annotations

from kit import Scenario

from nightmill.types import JobState

_ONCE = {"times": 1}
_TWO_SHARDS = {"batch_size": 3}


def _fault(name: str, **parameters: object) -> dict[str, object]:
    return {"fault": name, **parameters}


_SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
_MODELS = "openai/gpt-4o-mini,openai/gpt-4o"
_LADDER = {"schema": _SCHEMA, "repair": True, "reask": 1, "once": True}  # what a next model answered is in no cache
_ACCEPTED = _fault("create_accepted_then_500", **_ONCE)
_NO_LIST = _fault("list_page_500")

_TWO_KEYS = '[providers.openai]\napi_key_env = ["OPENAI_API_KEY", "OPENAI_KEY_2"]\n'

BATCH = (
    Scenario("batch", "batch", asked={"command": "nightmill run", **_TWO_SHARDS}),
    Scenario("batch-again", "batch", asked=_TWO_SHARDS, before="killed while waiting"),
    Scenario("batch-restored", "batch", asked=_TWO_SHARDS, before="restored after a create"),
    Scenario("batch-restored-early", "batch", asked=_TWO_SHARDS, before="restored after an upload"),
    Scenario("batch-dearer", "batch", asked={"command": "resume", "once": True}, before="dearer"),
    Scenario("batch-accepted", "batch", asked=_TWO_SHARDS, faults=(_ACCEPTED,)),
    Scenario("batch-dropped", "batch", asked=_TWO_SHARDS, faults=(_fault("create_dropped_before", **_ONCE),)),
    Scenario(
        "batch-listed-late", "batch", asked={"batch_size": 6}, twice=6,
        # a second of ours; polling the second submission fails for longer than that
        faults=(_ACCEPTED, _fault("late_listing", lag_s=600, times=1), _fault("poll_500", times=25)),
    ),
    Scenario(
        "batch-limited", "batch", asked=_TWO_SHARDS, faults=(_fault("enqueued_limit_now", limit=2_000_000, **_ONCE),)
    ),
    Scenario(
        "batch-missing-rows", "batch", asked=_TWO_SHARDS, twice=1, unproven=True,
        faults=(_fault("missing_lines", count=1, **_ONCE),),
    ),
    Scenario("batch-failing-rows", "batch", asked=_TWO_SHARDS, faults=(_fault("row_errors", count=1, **_ONCE),)),
    Scenario(
        "batch-refused-line", "batch", asked=_TWO_SHARDS, failed=1,
        faults=(_fault("batch_failed_line", line=2, **_ONCE),),
    ),
    Scenario(
        "batch-cancelled", "batch", asked={"command": "cancel", "once": True}, failed=6, ends=JobState.CANCELLED,
        faults=(_fault("never_finishes"),),
    ),
    Scenario(
        "batch-retried", "batch", asked={"command": "retry", "once": True},
        faults=(_fault("row_errors", count=2, status=400, **_ONCE),),
    ),
    Scenario(
        "batch-late", "batch", asked={"command": "late", "once": True, **_TWO_SHARDS}, twice=6,
        # one batch is not listed, the next has no output, until the job is over
        faults=(
            _ACCEPTED,
            _fault("late_listing", lag_s=1e7, times=1),
            _fault("late_output_file", lag_s=1e7, after=1, times=1),
        ),
    ),
    Scenario("batch-adopted", "batch", asked={"command": "adopt"}, before="made elsewhere"),
    Scenario(
        "batch-reconciled", "batch", asked={"command": "reconcile", "once": True, **_TWO_SHARDS}, twice=1,
        faults=(_fault("missing_lines", count=1, **_ONCE),),
    ),
    Scenario("batch-deleted", "batch", asked={"command": "delete", "once": True}, deleted=True),
    Scenario(
        "batch-swept", "batch", asked={"command": "sweep", "once": True, **_TWO_SHARDS},
        toml='[retention]\nwire_days = 30\nprovider_files = "delete"\n',
    ),
    # the first key has money for one batch; the other shard goes out with the second, or was looked for with the first
    Scenario(
        "batch-key-dry", "batch", asked=_TWO_SHARDS, toml=_TWO_KEYS,
        faults=(_ACCEPTED, _fault("quota_used_up", key="sk-crash", on="create", after=1)),
    ),
    Scenario("batch-ladder", "batch", model=_MODELS, asked=_LADDER,
             faults=(_fault("wrong_schema_answers", on=["batch"], times=2, fraction=0.5),)),
    Scenario(
        "batch-ladder-poor", "batch", rows=1, failed=1,
        asked={"schema": _SCHEMA, "reask": 1, "just_enough": True, "once": True},
        faults=(_fault("wrong_schema_answers", on=["batch"]),),
    ),
    Scenario("batch-media", "batch", asked={"media": ["photo"], **_TWO_SHARDS}, faults=(_ACCEPTED,)),
    Scenario("batch-poor", "batch", asked={"command": "poor", "once": True}),
    Scenario("batch-created-twice", "batch", twice=6, faults=(_fault("create_repeated", **_ONCE),)),
    *(
        Scenario(
            f"batch-{decision}", "batch", faults=(_ACCEPTED, _NO_LIST), failed=failed, unproven=bool(failed),
            twice=0 if decision == "adopt" else 6,
            asked={"command": "resolve", "decision": decision, "once": True, **_TWO_SHARDS},
        )
        # killed between a create and its record, both shards come to be in doubt
        for decision, failed in (("adopt", 0), ("resend", 0), ("write-off", 6))
    ),
    Scenario(
        "batch-deadline", "batch", asked={"by": "12s", "concurrency": 4, **_TWO_SHARDS}, twice=4, unproven=True,
        # some seconds after it was begun what its batches have not done is taken back; two rows of each go live, late
        faults=(
            _fault("never_finishes"), _fault("null_counts"), _fault("row_errors", count=2),
            _fault("slow_cancel", lag_s=2700),
        ),
        toml="cancel_s = 2.0\ncollect_s = 0.1\n",
    ),
)  # fmt: skip

# Where batches carry no name. A stopped worker's create may come through after a person had the shard sent again: all
# the rows of one shard then run twice.
_UNNAMED = {"command": "unnamed", "once": True, "batch_size": 3}
UNNAMED = tuple(
    Scenario(f"ant-{name}", "batch", model="anthropic/claude-haiku-4-5", asked={**_UNNAMED, **more}, faults=faults,
             twice=6 if name == "one-shard" else 3)
    for name, more, faults in (
        ("plain", {}, ()),
        ("accepted", {}, (_ACCEPTED,)),
        ("accepted-then-silence", {}, (_fault("create_accepted_then_timeout", delay_s=0.2, **_ONCE),)),
        ("dropped", {}, (_fault("create_dropped_before", **_ONCE),)),
        ("twin", {"twin": True}, (_ACCEPTED,)),
        ("only-a-twin", {"twin": True}, (_fault("create_500_before", **_ONCE),)),
        # it still runs when it is taken for ours
        (
            "a-twin-that-runs", {"twin": True},
            (_fault("create_500_before", **_ONCE), _fault("slow_batch", lag_s=600, times=1)),
        ),
        ("one-shard", {"batch_size": 6}, (_ACCEPTED,)),
        ("listed-late", {}, (_ACCEPTED, _fault("late_listing", lag_s=600, times=1))),  # a second of ours
    )
)  # fmt: skip

# The first rows go first; nobody waits for more of them than there are.
CANARY = (
    Scenario("canary-batch", "batch", asked={"canary": 2, **_TWO_SHARDS}),
    Scenario(  # killed between a mark and its answer, a live row is sent again
        "canary-live", "batch", rows=12, twice=2, unproven=True,
        asked={"lane": "auto", "canary": 2, "batch_size": 5},
    ),
    Scenario(
        "canary-bad", "live", rows=8, failed=8, asked={"command": "insist", "once": True, "canary": 2},
        faults=(_fault("empty_answers", count=2),),
    ),
    Scenario(
        "turned-bad", "live", rows=40, failed=40,
        asked={"command": "resume", "once": True, "canary": 0, "min_valid": 0.9, "concurrency": 4},
        faults=(_fault("empty_answers", from_row=10),),
    ),
)  # fmt: skip

LIVE = (
    Scenario("live", "live", rows=8, asked={"command": "nightmill run", "concurrency": 3}),
    Scenario("live-ladder", "live", asked={**_LADDER, "concurrency": 2},
             faults=(_fault("wrong_schema_answers", on=["live"], times=6),)),
    Scenario("live-again", "live", rows=8, asked={"concurrency": 3}, before="killed while sending"),
    Scenario("live-torn", "live", rows=8, asked={"concurrency": 3}, before="torn"),
    Scenario(
        "live-faults", "live", rows=8, asked={"concurrency": 3}, failed=1, unproven=True,  # a row is tried three times
        faults=(
            _fault("live_429", count=1, after=1),
            _fault("live_500", count=1, after=2),
            _fault("live_timeout", count=1, after=3, delay_s=0.3),
            _fault("live_close_before", count=1, after=4),
        ),
    ),
    Scenario(
        "live-tight", "live", rows=8, failed=1, unproven=True,
        asked={"command": "tight", "once": True, "concurrency": 3},
        faults=(_fault("live_timeout", count=2, after=3, delay_s=0.3),),  # sent again from what answers left of holds
    ),
    Scenario(
        "live-key-revoked", "live", rows=8, asked={"concurrency": 3}, toml=_TWO_KEYS,
        faults=(_fault("key_revoked", key="sk-crash", on="live", after=3),),
    ),
    Scenario("live-media", "live", asked={"media": ["photo"], "concurrency": 2}),
    Scenario("live-poor", "live", asked={"command": "poor", "once": True, "concurrency": 3}),
    Scenario(
        "live-cancelled", "live", rows=12, failed=12, ends=JobState.CANCELLED,
        asked={"command": "cancel", "once": True, "concurrency": 2},
        faults=(_fault("slow_bodies", on=["live"], pieces=4, delay_s=0.05),),
    ),
)  # fmt: skip

# In the cheaper tier: no room for some, others answered in the regular one; late for a deadline, the rest goes live.
_FLEX = "openai/gpt-5-mini"
_NO_ROOM = _fault("resource_unavailable", after=2, times=6)
_FLEX_WAITS = "flex_timeout_s = 2.0\ncollect_s = 0.1\n"
FLEX = (
    Scenario("flex", "flex", model=_FLEX, rows=8, asked={"concurrency": 3}, faults=(_NO_ROOM,), toml=_FLEX_WAITS),
    Scenario(
        "flex-faults", "flex", model=_FLEX, rows=8, asked={"concurrency": 3}, failed=1, unproven=True, toml=_FLEX_WAITS,
        faults=(
            _NO_ROOM, _fault("flex_downgraded", count=3), _fault("live_429", count=1, after=1),
            _fault("live_500", count=1, after=2), _fault("live_timeout", count=1, after=3, delay_s=0.3),
        ),
    ),
    Scenario(  # three calls find room; some seconds after it was begun, the others go live
        "flex-deadline", "flex", model=_FLEX, rows=8, failed=1, unproven=True, toml=_FLEX_WAITS,
        asked={"by": "14s", "concurrency": 2, "batch_size": 5},
        faults=(_fault("resource_unavailable", after=3), _fault("live_500", count=1, after=1)),
    ),
)  # fmt: skip

# Found again by the name that a batch shows, its file by one of its own; what ends early hands back nothing.
_GEMINI = "gemini/gemini-2.5-flash-lite"
GEMINI = tuple(
    Scenario(
        f"gem-{name}",
        "batch",
        model=_GEMINI,
        asked={**_TWO_SHARDS, **more},
        faults=faults,
        twice=twice,
        unproven=name == "expired",
    )  # rows that it counted as answered before it took them back
    for name, more, faults, twice in (
        ("plain", {}, (), 0),
        ("accepted", {}, (_ACCEPTED,), 0),
        ("accepted-then-silence", {}, (_fault("create_accepted_then_timeout", delay_s=0.2, **_ONCE),), 0),
        ("dropped", {}, (_fault("create_dropped_before", **_ONCE),), 0),
        ("upload-lost", {}, (_fault("upload_500", **_ONCE),), 0),
        (
            "listed-late",
            {"batch_size": 6},
            (_ACCEPTED, _fault("late_listing", lag_s=600, times=1), _fault("poll_500", times=25)),
            6,
        ),
        ("limited", {}, (_fault("enqueued_limit_later", limit=5, **_ONCE),), 0),
        ("expired", {}, (_fault("expire_at", fraction=0.5, **_ONCE),), 0),
        ("failing-rows", {}, (_fault("row_errors", count=1, **_ONCE),), 0),
    )
)
# An image that no request holds is uploaded before what names it; both shards name the same one.
_SMALL_REQUESTS = "[providers.gemini.limits]\nrequest_bytes = 2_000\n"
GEMINI += (
    Scenario(
        "gem-uploads", "batch", model=_GEMINI, asked={"media": ["photo"], **_TWO_SHARDS}, toml=_SMALL_REQUESTS,
        faults=(_fault("upload_500", **_ONCE), _ACCEPTED),
    ),
)  # fmt: skip
LIVE_ELSEWHERE = (
    *(
        Scenario(
            f"{name}-live", "live", model=model, rows=8, failed=1, unproven=True, asked={"concurrency": 3},
            faults=(
                _fault("live_429", count=1, after=1, retry_after=0.1), _fault("live_500", count=1, after=2),
                _fault("live_timeout", count=1, after=3, delay_s=0.3),
            ),
        )
        for name, model in (("gem", _GEMINI), ("ant", "anthropic/claude-haiku-4-5"))
    ),
    Scenario(
        "gem-uploads-live", "live", model=_GEMINI, asked={"media": ["photo"], "concurrency": 2}, toml=_SMALL_REQUESTS,
        faults=(_fault("upload_500", **_ONCE),),
    ),
)  # fmt: skip

ALL = BATCH + UNNAMED + GEMINI + CANARY + LIVE + FLEX + LIVE_ELSEWHERE
