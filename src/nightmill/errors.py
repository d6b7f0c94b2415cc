"""Every error nightmill raises on purpose.

    NightmillError                 exit 1
    ├── UsageError                 exit 2  a flag, a file or a setting is wrong
    │   ├── InputError             exit 2  the rows are wrong
    │   ├── TaskError              exit 2  the task or its template is wrong
    │   ├── UnknownModel           exit 2
    │   ├── UnknownPrice           exit 2  refuse rather than guess with money
    │   └── CannotCarry            exit 2  the provider cannot carry what was asked
    ├── OverBudget                 exit 4
    ├── Paused                     exit 1  a job is not done; it can go on
    ├── StoppedByErrors            exit 5  a job ended early, since too many of its rows failed
    ├── WasCancelled               exit 1  a job was ended on request
    ├── Conflict                   exit 2  the ledger holds something that contradicts the call
    ├── LeaseLost                          another worker has the shard now; stop, touch nothing
    ├── StoreError                 exit 1  disk full, folder unwritable, file not as the ledger says
    └── ProviderError              exit 1
        ├── NeverSent                      no connection was made: safe to repeat
        ├── Uncertain                      sent, and no answer that can be trusted
        ├── Limited                        asked to wait: 429, enqueued tokens
        └── Refused                        the provider's own refusal, in its own error shape

Each carries what went wrong, why, and what to do next, and a stable ``code`` for programs. What a
person is told may quote a prompt, an answer or a provider; a log takes only what ``logged`` gives.
A failure of a single request is never an exception: it is a `types.Failed` value.
"""

from __future__ import annotations

import re


class NightmillError(Exception):
    """Something a user can be told: ``what`` happened, ``why``, and how to ``fix`` it.

    ``job_id``: the job whose end it tells, where it tells one's.
    """

    code = "error"
    exit_code = 1
    job_id: str | None = None

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix
        self.__notes__ = self._notes()

    @property
    def logged(self) -> str:
        """What may stand in a log: nothing that was typed, sent or answered."""
        return f"{self.code}: {self.what}"

    def _notes(self) -> list[str]:
        """What a traceback shows below ``what``, in a script or a notebook."""
        return [f"  {name}: {text}" for name, text in (("why", self.why), ("fix", self.fix)) if text]


class UsageError(NightmillError):
    """``row``: the index of the row it is about, where it is about one."""

    code = "usage"
    exit_code = 2
    row: int | None = None

    def at(self, place: str) -> None:
        """Say where its row is: the file and line, or the element of a list."""
        self.why = f"{place}: {self.why}"
        self.__notes__ = self._notes()

    @property
    def logged(self) -> str:
        return self.code if self.row is None else f"{self.code}: row {self.row}"


class InputError(UsageError):
    code = "bad_input"


class TaskError(UsageError):
    code = "bad_task"


class UnknownModel(UsageError):
    code = "unknown_model"


class UnknownPrice(UsageError):
    code = "unknown_price"


class CannotCarry(UsageError):
    code = "cannot_carry"


class OverBudget(NightmillError):
    code = "over_budget"
    exit_code = 4


class Paused(NightmillError):
    code = "paused"


class StoppedByErrors(NightmillError):
    code = "on_error"
    exit_code = 5


class StoppedByAnswers(NightmillError):
    """Too few of a job's answers are valid: it is paused."""

    code = "bad_answers"
    exit_code = 5


class WasCancelled(NightmillError):
    code = "cancelled"


class Conflict(NightmillError):
    code = "conflict"
    exit_code = 2


class LeaseLost(NightmillError):
    code = "lease_lost"


class StoreError(NightmillError):
    code = "store"


class ProviderError(NightmillError):
    code = "provider"


class NeverSent(ProviderError):
    """No connection was made, or the upload failed: nothing can have run."""

    code = "never_sent"


class Uncertain(ProviderError):
    """The request left us and no trustworthy answer came back: it may have been processed."""

    code = "uncertain"


class Limited(ProviderError):
    """The provider asks to wait. ``after_s`` is its own word on how long, if it gave one."""

    code = "limited"

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        after_s: float | None = None,
        enqueued_tokens_cap: int | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.after_s, self.enqueued_tokens_cap = after_s, enqueued_tokens_cap


class Refused(ProviderError):
    """The provider refused, in its own error shape; nothing ran.

    ``scope`` says what the refusal is about: ``"account"`` (key, quota, permission: no call of
    this account will pass), ``"job"`` (model, endpoint), ``"line"`` (``line`` is 1-based),
    ``"shard"`` (this file as a whole: too large, unexplained).
    """

    code = "refused"

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        status: int = 0,
        provider_code: str = "",
        scope: str = "shard",
        line: int | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.status, self.provider_code, self.scope, self.line = status, provider_code, scope, line

    @property
    def logged(self) -> str:
        """Its status, and the provider's code where that is a plain word: anything else may quote a request."""
        word = self.provider_code if re.fullmatch("[a-z_]{1,40}", self.provider_code) else ""
        return " ".join(filter(None, (f"{self.code}: status {self.status}", word)))


def name_and_text(error: BaseException) -> str:
    """The type of an exception of a user's program and what it says, where it can say anything."""
    try:
        text = str(error)
    except Exception:  # that runs the user's code, too
        text = ""
    return f"{type(error).__name__}: {text}".rstrip(": ")
