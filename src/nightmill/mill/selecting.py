"""Which of several models does a job: the cheapest that can.

Every candidate is drafted: its lane, its price and its form of a request show whether it can do the job at all. The
first rows say which is probably the cheapest. The plan is made for that one, and what was measured on the way - bytes,
requests, the longest row - prices the others; only where another proves cheaper, or this one cannot after all, is
the input read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nightmill.config import Settings
from nightmill.errors import CannotCarry, InputError, StoreError, TaskError, UnknownModel, UsageError
from nightmill.mill.comparing import Judged, context_of, quality_of, requests_of, usage_of
from nightmill.mill.home import Home
from nightmill.plan import Order, first_bodies
from nightmill.pricing import FRAMING_TOKENS
from nightmill.providers.resolve import available, parse_models, schema_support
from nightmill.types import Usage

if TYPE_CHECKING:
    from nightmill.mill.planning import Draft, Prepared

_LOOKED_AT = 20  # of the first rows, for the first guess
_ANY = 1 << 40  # tokens: more than any cap
_USUAL_TOKENS = 500  # of a request whose rows cannot be looked at beforehand


def candidates(settings: Settings, asked: str | None) -> list[str]:
    """The models that may do a job, as the user names them: one, or several with commas between.

    Raises:
        UsageError (UnknownModel): there is none, one is named twice, or one is no model reference.
    """
    text = asked or settings.default_model
    if not text:
        raise UsageError(
            "no model",
            why="usable here: " + "; ".join(available(settings.env, settings.providers)),
            fix="name one with --model, or set [defaults] model in nightmill.toml\nnightmill models tells more",
        )
    return parse_models(text)


def fingerprint_of(home: Home, models: Sequence[str]) -> tuple[str, ...]:
    """What several candidates add to a job's fingerprint: their names and where they are. Nothing, where one is."""
    if len(models) < 2:
        return ()
    return tuple(f"{model} at {_host(home, model)}" for model in models)


def _host(home: Home, model: str) -> str:
    try:
        return home.provider(model, sends=False).account.host
    except UsageError:  # it cannot be had here, for which it is left out
        return ""


@dataclass(slots=True)
class Choice:
    """One choice among ``models``; ``draft`` and ``plan`` make those of one of them, ``drop`` forgets a plan."""

    home: Home
    models: Sequence[str]
    least_quality: float | None
    draft: Callable[[str], Draft]
    plan: Callable[[str], Prepared]
    drop: Callable[[Prepared], None]
    _drafts: dict[str, Draft] = field(default_factory=dict)
    _why_not: dict[str, UsageError] = field(default_factory=dict)
    _plans: dict[str, Prepared] = field(default_factory=dict)

    def make(self) -> Prepared:
        """The plan for the cheapest model that can do the job, and what was made of the others.

        Raises:
            UsageError: none of them can; InputError, TaskError, UnknownModel: it has nothing to do with which.
            StoreError: the plan cannot be written.
        """
        for model in self.models:
            self._look_at(model)
        self._keep_one_kind()
        try:
            return self._finished(self._cheapest())
        except BaseException:
            for other in self._plans.values():
                self.drop(other)
            raise

    # -- before anything is planned

    def _look_at(self, model: str) -> None:
        """Draft it and note why it cannot do the job, if anything shows that."""
        settings = self.home.settings
        try:
            draft = self._drafts[model] = self.draft(model)
            if self.least_quality is not None:
                _check_quality(quality_of(settings, model), self.least_quality)
            if draft.schema is not None and schema_support(model, settings.providers) == "none":
                why = "an answer that does not fit is paid for all the same"
                raise CannotCarry("its server binds no answer to a schema", why=why, fix="name another model")
        except (InputError, TaskError, UnknownModel):
            raise
        except UsageError as error:
            self._why_not[model] = error

    def _keep_one_kind(self) -> None:
        """Of several models that write and that embed, leave out those whose work is not asked for."""
        embeds = {model: self._drafts[model].order.compiled.is_embeddings for model in self._viable()}
        if len(self.models) > 1 and all(embeds.values()):
            for model in embeds:
                if any(tier.output for tier in self._drafts[model].order.sheet.tiers):
                    why = "what it writes has a price, and an embedding has nothing written"
                    self._why_not[model] = CannotCarry("it makes no embeddings", why=why, fix="name another model")
        elif any(embeds.values()):  # a bare prompt would be another job for these
            for model in (model for model, does in embeds.items() if does):
                why = "the other models are asked to write"
                fix = "give --task embed, or name models of one kind"
                self._why_not[model] = CannotCarry("it makes embeddings", why=why, fix=fix)

    def _guess(self, model: str) -> int:
        """What one of the first rows would cost; the model is out where it cannot carry one of them."""
        order = self._drafts[model].order
        try:
            tokens = _first_tokens(order)
        except CannotCarry as error:
            self._why_not[model] = error
            return 0
        return order.sheet.cost(Usage(tokens, order.expect_tokens, flex=True))

    # -- the plan, and what it says of the others

    def _viable(self) -> list[str]:
        return [model for model in self.models if model not in self._why_not]

    def _cheapest(self) -> Prepared:
        """Plan until the cheapest of those that can is one that was planned; no model is planned twice."""
        guesses = {model: self._guess(model) for model in self._viable()}
        while left := self._viable():
            last = next(reversed(self._plans.values()), None)
            costs = guesses if last is None else {model: self._cost(model, last) for model in left}
            best = min(left, key=costs.__getitem__)
            if best in self._plans:
                return self._plans[best]
            try:
                self._plans[best] = self.plan(best)
            except CannotCarry as error:
                self._why_not[best] = error
                continue
            self._hold_against(self._plans[best])
        raise self._none()

    def _cost(self, model: str, measured: Prepared) -> int:
        """Expected, for the whole job; of one that was planned, without what it has answered before."""
        planned, order = self._plans.get(model), self._drafts[model].order
        requests = planned.quote.requests if planned is not None else requests_of(measured)
        each = usage_of(planned or measured, order.expect_tokens, order.compiled.cap_tokens)
        return order.sheet.cost(each) * requests

    def _hold_against(self, measured: Prepared) -> None:
        """Whether the longest row fits into each model."""
        longest = measured.plan.longest_tokens
        for model in self._viable():
            order = self._drafts[model].order
            room = context_of(self.home.settings, model, order.provider.limits)
            cap = order.compiled.cap_tokens or usage_of(measured, _ANY, 0).output_tokens
            needs = longest + FRAMING_TOKENS + cap
            if room and longest and needs > room:
                self._why_not[model] = UsageError(
                    f"its context is {room:,} tokens, and the longest row needs about {needs:,}, its answer included",
                    why="a prompt and its answer share the context",
                    fix="name a model with more, or lower --max-output",
                )

    def _finished(self, best: Prepared) -> Prepared:
        """Without the other plans, and with all that was found."""
        best = self._as_begun(best)
        for other in self._plans.values():
            if other is not best:
                self.drop(other)
        judged = tuple(self._judged(model) for model in self.models)
        following = [model for model in self._viable() if model != best.model]
        notes = [f"{each.model} is left out: {each.why_not}" for each in judged if each.why_not]
        quote = replace(best.quote, notes=(*best.quote.notes, *notes))
        spec = best.spec | {"next_models": following}
        return replace(best, plan=replace(best.plan, quote=quote), spec=spec, judged=judged)

    def _as_begun(self, best: Prepared) -> Prepared:
        """A job that was begun with another of them goes on with that one. Raises what kept it from being drafted."""
        begun = best.resumes.model if best.resumes is not None else best.model
        if begun == best.model:
            return best
        if begun not in self._drafts:
            raise self._why_not[begun]
        if begun not in self._plans:
            self._plans[begun] = self.plan(begun)
        self._why_not.pop(begun, None)
        return self._plans[begun]

    def _judged(self, model: str) -> Judged:
        draft = self._drafts.get(model)
        why_not = _told(self._why_not[model]) if model in self._why_not else ""
        if draft is None:
            return Judged(model, why_not)
        return Judged(model, why_not, draft.order.lane, draft.order.expect_tokens, draft.order.compiled.cap_tokens)

    def _none(self) -> UsageError:
        reasons = [(model, self._why_not[model]) for model in self.models]
        if len(reasons) == 1 or len({(error.what, error.why, error.fix) for _, error in reasons}) == 1:
            return reasons[0][1]  # it is not about the model
        return UsageError(
            "none of these models can do the job",
            why="\n".join(f"{model}: {_told(error)}" for model, error in reasons),
            fix="name another with --model, or ask for less; nightmill models tells what each can do",
        )


def _check_quality(quality: float | None, least: float) -> None:
    if quality is None:
        raise UsageError(
            "nobody says how good it is",
            why=f"--min-quality asks for {least:g}",
            fix='give it one, from 0 to 100: [models."PROVIDER/MODEL"] quality = 70',
        )
    if quality < least:
        raise UsageError(
            f"its quality is {quality:g}",
            why=f"--min-quality asks for {least:g}",
            fix="name another model, or lower --min-quality",
        )


def _told(error: UsageError) -> str:
    """In one line."""
    return f"{error.what}: {error.why}" if error.why else error.what


def _first_tokens(order: Order) -> int:
    """Input tokens of a typical request, by the first rows. Raises CannotCarry where one of these cannot be asked."""
    if order.function is not None:  # it is the user's, and called once a row
        return _USUAL_TOKENS
    rows = next(order.source.batches()).slice(0, _LOOKED_AT)
    try:
        bodies = first_bodies(order, rows)
    except (InputError, TaskError, StoreError):  # the plan names the row, and why
        return _USUAL_TOKENS
    tokens = [sum(order.compiled.about_tokens(body)) for body in bodies if body]
    return -(-sum(tokens) // len(tokens)) if tokens else _USUAL_TOKENS
