"""`Mill`: submit, run, watch, cancel, retry, resolve. Async inside; the command line is one caller.

A `Mill` has one home, with its settings, ledger and files. `prepare` plans and prices without
promising anything; `submit` makes the plan a job; `run` works until it is done. What a verb does
is in the room that is named after it:

    home         settings, ledger and files of one home; what a model costs, what a job needs
    planning     what a user asks for becomes a plan with a price
    deadlines    when a plan would be done, and what has no time for a batch
    submitting   a plan becomes a job
    attending    working on jobs where nobody else does
    laddering    what is tried until an answer fits the schema, and how that went
    following    where jobs stand, asked several times a second
    arrivals     results as they come
    reading      results in input order, and writing them to files
    checkpoint   where a job stands, word by word, in a file that is kept up to date
    again        failed rows once more
    detaching    hand over, and leave the rest to whoever comes back
    doubt        what a person says became of a shard
    late         what came for a job that had ended
    listing      what is usable here, and what it costs
    adopting     a batch that was made elsewhere becomes a job
    surveying    every batch at a provider, and what of it is ours
    reconciling  our books against a provider's own totals
    ending       what a job's end means to whoever waited for it
    housekeeping finished jobs deleted, and what nobody needs removed
    templates    what was asked for, kept under a name to be asked again
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from nightmill.config import Settings
from nightmill.engine import Engine, JobKit, Stop
from nightmill.errors import Conflict
from nightmill.ledger import LEDGER_NAME, Event, Job, Limit, Saved, Shard, Standing, Tally
from nightmill.mill import (
    adopting,
    again,
    attending,
    comparing,
    detaching,
    doubt,
    following,
    housekeeping,
    laddering,
    lapsing,
    late,
    planning,
    reading,
    reconciling,
    submitting,
    surveying,
)
from nightmill.mill.adopting import Adopted
from nightmill.mill.again import Again
from nightmill.mill.arrivals import Arrivals
from nightmill.mill.checkpoint import Checkpoint
from nightmill.mill.comparing import Candidate, LaneCost
from nightmill.mill.detaching import Handed
from nightmill.mill.ending import ending_error, paused
from nightmill.mill.firstrows import told as canary_told
from nightmill.mill.following import Follower, Look
from nightmill.mill.home import Home
from nightmill.mill.housekeeping import Swept
from nightmill.mill.laddering import Step
from nightmill.mill.laddering import told as steps_told
from nightmill.mill.planning import Prepared, RunOptions
from nightmill.mill.reading import Group
from nightmill.mill.reconciling import Compared, Match, Reconciled
from nightmill.mill.submitting import check_affordable
from nightmill.mill.surveying import ListedBatch, Listing
from nightmill.plan import Ladder
from nightmill.pricing import PriceSheet
from nightmill.sinks import About, Format, Origin, Target, check_fit
from nightmill.sinks.exports import check_outside, check_targets
from nightmill.sinks.vectors import Vectors
from nightmill.sources import folders_taken
from nightmill.types import UNFINISHED, JobState, Lane


@dataclass(frozen=True, slots=True)
class Alert:
    """Something about a job that a person should look at."""

    kind: str
    shard: str | None
    text: str


@contextmanager
def opened(settings: Settings, *, create: bool = True) -> Iterator[Mill]:
    """A `Mill` for as long as the block lasts.

    Without ``create`` a home that has no ledger yet stays as it is: an empty one in a folder that
    is gone afterwards takes its place.
    """
    if create or (settings.home / LEDGER_NAME).exists():
        mill = Mill(settings)
        try:
            yield mill
        finally:
            mill.close()
        return
    with (
        tempfile.TemporaryDirectory(prefix="nightmill-") as folder,
        opened(replace(settings, home=Path(folder))) as mill,
    ):
        yield mill


class Mill:
    """All that can be done in one home. ``settings``, ``store``, ``ledger`` and ``desk`` are the home's.

    Raises:
        StoreError: the home cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        self.home = home = Home(settings)
        self.settings, self.store, self.ledger, self.desk = settings, home.store, home.ledger, home.desk

    def close(self) -> None:
        self.home.close()

    # -- planning ------------------------------------------------------------------------------

    def prepare(self, options: RunOptions) -> Prepared:
        """Read the input, plan and price it. The caller submits the plan or discards it.

        Raises:
            UsageError (InputError, TaskError, UnknownModel, UnknownPrice, CannotCarry), StoreError:
                nothing of it is left.
        """
        return planning.prepare(self.home, options)

    def rehearse(self, options: RunOptions, save_to: Path | None = None) -> Prepared:
        """`prepare` in a folder that is gone afterwards: nothing is written to the home.

        With ``save_to`` the requests are kept in that new folder, a file for each shard, as a provider takes it.
        """
        return planning.rehearse(self.home, options, save_to)

    def compare(self, prepared: Prepared) -> tuple[Candidate, ...]:
        """What the plan would cost in each lane of each model that was asked for; why not, where one cannot do it."""
        return comparing.compare(self.home, prepared)

    def submit(self, prepared: Prepared) -> Job:
        """Make the plan a job; if the same command began one that is unfinished, that one.

        Raises:
            OverBudget: it would probably cost more than is free.
            Conflict: its name is another unfinished job's.
        """
        return submitting.submit(self.home, prepared)

    def discard(self, prepared: Prepared) -> None:
        """The user said no: no trace stays."""
        planning.drop(self.home, prepared.plan.job_id)

    def check_outputs(self, targets: Sequence[Target], prepared: Prepared, *, force: bool) -> None:
        """Refuse outputs that could not or must not be written; what the same command wrote before is fine.

        Raises UsageError.
        """
        before = prepared.resumes or self.ended_like(prepared)
        folder = self.folder(before) if before else None
        about = About(schema=prepared.schema, vectors=prepared.vectors, origin=Origin.of(prepared.spec))
        names = prepared.source.names
        check_outside(targets, folders_taken(prepared.options.inputs))
        check_targets(targets, about, names=names[: prepared.plan.rows], inputs=names, folder=folder, force=force)

    def check_files(self, targets: Sequence[Target], job: Job, *, force: bool) -> None:
        """The same for a job that exists."""
        names = list(reading.file_names(self.home, job)) if any(each.format == "files" for each in targets) else []
        about = reading.about(self.home, job)
        check_targets(targets, about, names=names, folder=self.folder(job), force=force)

    def check_format(self, form: Format, job: Job) -> None:
        """Raises UsageError when the job's input lacks that by which such results are laid out."""
        check_fit(form, Origin.of(job.spec), f"--format {form}")

    # -- working -------------------------------------------------------------------------------

    async def run(
        self, job_ids: Sequence[str], stop: Stop | None = None, on_change: Callable[[str], None] | None = None
    ) -> None:
        """Work on jobs until they are done or paused; of a paused one only what may have cost money is brought in."""
        await Engine(self.desk, self.open_kit, stop or Stop(), on_change).run(job_ids)

    async def attend(
        self, job_ids: Sequence[str], stop: Stop | None = None, on_turn: Callable[[bool], None] | None = None
    ) -> None:
        """Look on while others work on jobs, and work on what nobody works on, until they are done or paused.

        ``on_turn`` is told True when this worker begins to work itself, False when it only looks on.
        """
        await attending.attend(self.home, job_ids, self.run, stop or Stop(), on_turn or (lambda _: None))

    async def hand_over(
        self, job_ids: Sequence[str], stop: Stop | None = None, on_change: Callable[[str], None] | None = None
    ) -> None:
        """Work on jobs only until all of them that can go out now is out; a later `run` brings the answers."""
        await detaching.hand_over(self.home, job_ids, stop or Stop(), on_change)

    def handed(self, job: Job) -> Handed:
        """What of a job is at the provider, and until when it has to be collected. Asks nobody."""
        return detaching.handed(self.home, job)

    def resume(self, job: Job) -> None:
        """Let a paused job go on, at today's price; a later `run` works on it."""
        submitting.resume(self.home, job)

    def pause(self, job: Job) -> Job:
        """Send nothing new of an unfinished job until `resume`; what is at the provider stays there. The job as it is.

        A process that works on it hears that within seconds. Raises Conflict: the job has ended, or is being cancelled.
        """
        return submitting.pause(self.home, job)

    def is_dearer(self, job: Job) -> bool:
        """Whether today's price is above the one that was confirmed for this job."""
        confirmed = {job.lane: job.spec["price"]}
        if live := job.spec.get("live_price"):
            confirmed[Lane.LIVE] = live
        sheets = ((self.home.sheet(job.model, lane), PriceSheet.from_json(text)) for lane, text in confirmed.items())
        return any(now.dearer_than(then) for now, then in sheets) or laddering.is_dearer(self.home, job)

    def attended(self, job: Job) -> bool:
        """Whether another process works on the job, so that this one need not."""
        return attending.attended(self.home, job.id)

    def cancel(self, job: Job) -> None:
        """Claim nothing more; what is at the provider is cancelled and collected by the next `run`."""
        self.ledger.request_cancel(job.id)

    def open_kit(self, job_id: str) -> JobKit:
        """Everything a job's record only names, made ready to work with."""
        return self.home.open_kit(job_id)

    # -- housekeeping --------------------------------------------------------------------------

    def delete(self, job: Job) -> int:
        """Delete a finished job and its files; how many bytes that freed. Money history and the cache stay.

        Raises:
            Conflict: it is not finished, or somebody went on with it meanwhile.
            StoreError: its files cannot be removed; `finish_deletion` goes on with them.
        """
        return housekeeping.delete(self.home, job)

    def finish_deletion(self, text: str) -> str | None:
        """Complete a deletion that was interrupted, of the job that goes by ``text``; its id, None: there is none."""
        return housekeeping.finish_deletion(self.home, text)

    def expects_late(self, job: Job) -> bool:
        """Whether answers may still come to a finished job."""
        return housekeeping.expects_late(self.home, job)

    async def sweep(self, *, older_than_s: float, dry_run: bool = False, now: float | None = None) -> Swept:
        """Remove what nothing names and what the retention rules let go; never what is unsettled. Raises StoreError."""
        return await housekeeping.sweep(self.home, older_than_s=older_than_s, dry_run=dry_run, now=now)

    # -- asking --------------------------------------------------------------------------------

    def job(self, text: str) -> Job:
        """By id, prefix, name or ``@last``. Raises Conflict."""
        return self.home.job(text)

    def jobs(self, *, states: Collection[JobState] | None = None, limit: int | None = None) -> list[Job]:
        """All jobs, or those in these states, newest first; no more than ``limit``."""
        return self.ledger.jobs(states=states, limit=limit)

    def unfinished(self) -> list[Job]:
        """Jobs that can go on, newest first."""
        return self.ledger.jobs(states=UNFINISHED)

    def shard(self, tag: str) -> Shard:
        """By its tag. Raises Conflict."""
        found = self.ledger.shard(tag)
        if found is None:
            raise Conflict(
                f"no shard is called {tag!r}", why="a tag is JOB-NUMBER", fix="nightmill show JOB lists them"
            )
        return found

    def shards(self, job: Job) -> list[Shard]:
        """All shards of a job, in the order of their making."""
        return self.ledger.shards_of(job.id)

    def key_names(self, shards: Sequence[Shard]) -> dict[str, str]:
        """By account, how the keys are called that these shards were sent with."""
        accounts = {sub.account for shard in shards for sub in shard.submissions if sub.account}
        return self.home.key_names(accounts)

    def alerts(self, job: Job) -> list[Alert]:
        """What a person should look at, oldest first; last, what has to be collected before its provider drops it."""
        found = [Alert(*each) for each in self.ledger.alerts_of(job.id)]
        soon = self.lapsing(job)
        return [*found, Alert("lapsing", None, soon)] if soon else found

    def lapsing(self, job: Job) -> str:
        """What to tell of batches whose results are kept for less than a week more; empty where none are."""
        return lapsing.alert(self.home, job)

    def history(self, job: Job) -> list[Event]:
        """What happened to the job, oldest first."""
        return self.ledger.history_of(job.id)

    def tries(self, job: Job, row: int) -> list[Shard]:
        """The shards that a row was or is in, oldest first; none where it shares another row's answer. StoreError."""
        return reading.tries(self.home, job, row)

    def budget(self, *scopes: str) -> list[Limit]:
        """The limits that a hold made now is in, and those of ``scopes`` beside them."""
        running = [scope for scope in self.desk.scopes() if scope not in scopes]
        return self.ledger.limits([*scopes, *reversed(running)])

    def set_budget(self, scope: str, cap_nanos: int | None) -> None:
        """Set a limit: ``total``, ``day``, ``month`` or ``job:ID``; None lifts it. Holds already made stay."""
        self.ledger.set_budget(scope, cap_nanos, running_scopes=self.desk.scopes())

    def calls(self) -> int:
        """How many calls of a model were accounted for, all jobs together."""
        return self.ledger.calls()

    def tally(self, job: Job) -> Tally:
        """The job's settled rows and money, as the ledger has them."""
        return self.ledger.tally(job.id)

    def standing(self, job: Job) -> Standing:
        """The job in rows and money, answers that are not settled yet included."""
        return following.standing(self.home, job)

    def steps(self, job: Job) -> list[Step]:
        """How the rows of a job fared on its ladder, step by step; nothing where it has none."""
        return laddering.steps(self.home, job)

    def step_name(self, job: Job, shard: Shard) -> str:
        """Which step of the job's ladder a shard belongs to, in a word or two."""
        return laddering.step_name(Ladder.of(job.spec), shard.rung)

    def saved(self, job: Job | None = None) -> dict[str, Saved]:
        """What every job, or one, saved against live calls at the list price, by its id; newest first."""
        return self.ledger.saved(job.id if job else None)

    def saved_by_deleted(self) -> Saved:
        """What the jobs saved, all together, that were deleted since."""
        return self.ledger.saved_by_deleted()

    def follow(self, job_ids: Sequence[str]) -> Follower:
        """Where jobs stand, as often as one asks."""
        return Follower(self.home, job_ids)

    def checkpoint(self, job: Job, path: Path) -> Checkpoint:
        """The file at ``path`` as the job's checkpoint: `Checkpoint.keep` while it runs, `Checkpoint.finish` then."""
        return Checkpoint(self.home, job.id, path)

    def arrivals(self, job: Job) -> Arrivals:
        """The job's results as they come, each once."""
        return Arrivals(self.home, job)

    def folder(self, job: Job) -> Path:
        """Where the job's files lie."""
        return self.home.folder(job)

    # -- results -------------------------------------------------------------------------------

    def results(self, job: Job, first: int = 0, end: int | None = None) -> Iterator[pa.RecordBatch]:
        """Results of rows ``first`` to ``end`` in input order; rows that are still open are left out."""
        return reading.results(self.home, job, first, end)

    def selected(
        self, job: Job, *, span: tuple[int, int] | None = None, failed: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Results of some rows: those from ``span[0]`` up to ``span[1]``, those that failed."""
        return reading.selected(self.home, job, span=span, failed=failed)

    def failures(self, job: Job) -> tuple[list[Group], int]:
        """Failed rows grouped by kind, most frequent first, and the nanos that rest on estimated usage."""
        return reading.failures(self.home, job)

    def export(
        self,
        job: Job,
        targets: Sequence[Target],
        *,
        csv_raw: bool = False,
        span: tuple[int, int] | None = None,
        failed: bool = False,
    ) -> int:
        """Write what results there are to every target, whole or not at all; how many rows. Raises StoreError."""
        return reading.export(self.home, job, targets, csv_raw=csv_raw, span=span, failed=failed)

    def pour(
        self,
        job: Job,
        file: BinaryIO,
        form: Format,
        *,
        csv_raw: bool = False,
        span: tuple[int, int] | None = None,
        failed: bool = False,
    ) -> int:
        """Write what results there are to an open file, as they are read; how many rows. Raises OSError."""
        return reading.pour(self.home, job, file, form, csv_raw=csv_raw, span=span, failed=failed)

    def refresh(self, job: Job) -> list[Path]:
        """Write again what earlier commands wrote for this job and nobody changed since. Raises StoreError."""
        return reading.refresh(self.home, job)

    def schema(self, job: Job) -> Mapping[str, Any] | None:
        """The JSON Schema that the job's answers are held to, if there is one."""
        return reading.schema_of(job)

    def vectors(self, job: Job) -> Vectors | None:
        """What the job's embeddings are like, by the first there is; None where it asks for none."""
        return reading.vectors_of(self.home, job)

    # -- again, and in doubt -------------------------------------------------------------------

    def retry(self, job: Job, *, max_output: int | None = None, temperature: float | None = None) -> int:
        """`prepare_retry` and `submit_retry` at once; how many rows go out again."""
        prepared = self.prepare_retry(job, max_output=max_output, temperature=temperature)
        self.submit_retry(prepared)
        return prepared.rows

    def prepare_retry(self, job: Job, *, max_output: int | None = None, temperature: float | None = None) -> Again:
        """Cut the failed rows of a finished job into new shards, with a fresh three attempts.

        Rows that succeeded are not touched; duplicates of a failed row share the new answer. The
        caller submits what comes back or discards it.

        Raises:
            Conflict: the job is unfinished, was adopted, or its answers as they came were removed.
        """
        return again.prepare(self.home, job, max_output=max_output, temperature=temperature)

    def submit_retry(self, prepared: Again) -> None:
        """The rows go out with the next `run`. Raises Conflict when the job changed meanwhile."""
        again.submit(self.home, prepared)

    def discard_retry(self, prepared: Again) -> None:
        """The user said no: no trace stays."""
        again.discard(self.home, prepared)

    def ended_like(self, prepared: Prepared) -> Job | None:
        """The finished job that the same command began last, where this one would begin another."""
        is_other = prepared.resumes is not None or prepared.options.new
        return None if is_other else self.ledger.find_ended(prepared.plan.fingerprint)

    async def look_again(self, job: Job) -> bool:
        """Look once for answers that came after a finished job's shards had settled; a later `run` takes them in.

        Whether there are any: the job is running again then. Nothing is sent because of it.

        Raises:
            ProviderError, UsageError: the provider could not tell, or cannot be asked; nothing was changed.
            Conflict: something came, but an unfinished job has the job's name or fingerprint.
        """
        return await late.look_again(self.home, job)

    async def list_batches(self, provider: str | None = None) -> list[Listing]:
        """All batches at a provider, or at each there is a key for, newest first; one that fails hides no other.

        Raises UsageError: no such provider, or no key for any.
        """
        return await surveying.list_batches(self.home, provider)

    async def reconcile(self, provider: str | None = None) -> list[Reconciled]:
        """Hold our books against a provider's own totals, batch by batch; unproven money that they prove is booked.

        Raises UsageError: no such provider, or no key for any.
        """
        return await reconciling.reconcile(self.home, provider)

    async def adopt(self, reference: str, *, name: str | None = None) -> Adopted:
        """Make the batch ``PROVIDER/BATCH_ID``, made elsewhere, a job; a later `run` waits for it and brings answers.

        Twice is the same job. What it may cost is held, and no limit refuses that: the money is committed already.

        Raises:
            UsageError (UnknownPrice), ProviderError: nothing of it is left.
            Conflict: it is the batch of a job that was sent from here.
        """
        return await adopting.adopt(self.home, reference, name=name)

    async def resolve(self, shard: Shard, *, adopt: str | None = None, resend: bool = False) -> str:
        """End a shard's doubt by a person's word: adopt a batch, send again, or write it off; what was done.

        Raises:
            Conflict: the shard is not in doubt, or the batch is another shard's.
        """
        return await doubt.resolve(self.home, shard, adopt=adopt, resend=resend)


__all__ = [
    "Adopted",
    "Again",
    "Alert",
    "Arrivals",
    "Candidate",
    "Checkpoint",
    "Compared",
    "Event",
    "Follower",
    "Group",
    "Handed",
    "Job",
    "LaneCost",
    "Limit",
    "ListedBatch",
    "Listing",
    "Look",
    "Match",
    "Mill",
    "Prepared",
    "Reconciled",
    "RunOptions",
    "Saved",
    "Shard",
    "Standing",
    "Step",
    "Swept",
    "canary_told",
    "check_affordable",
    "ending_error",
    "opened",
    "paused",
    "steps_told",
]
