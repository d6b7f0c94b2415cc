"""Where a command meets the world: settings, home, log, streams, the question, errors."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from nightmill.cli import present
from nightmill.cli.logs import start_log
from nightmill.errors import NightmillError, StoreError, UsageError

if TYPE_CHECKING:
    from nightmill.config import Settings
    from nightmill.mill import Mill

log = logging.getLogger("nightmill.cli")
_SIGNALS = 64  # read at once, a byte each
_UNBOUNDED = 1_000_000  # cells


@dataclass(slots=True)
class Edge:
    """One command's surroundings. ``known`` is what an error's JSON tells beside the error."""

    json: bool = False
    debug: bool = False
    known: dict[str, Any] = field(default_factory=dict)
    log_file: Path | None = None
    beside: Callable[[str], None] | None = None  # says a line without disturbing the progress that is shown

    def settings(self) -> Settings:
        from nightmill.config import load_settings

        return load_settings(Path.cwd(), os.environ)

    @contextmanager
    def mill(self, *, create: bool = True) -> Iterator[Mill]:
        """The mill of this home. Without ``create`` nothing comes into being, not even a log."""
        from nightmill.mill import opened

        settings = self.settings()
        with opened(settings, create=create) as mill:
            if create:
                self.keep_log(settings)
            yield mill

    def keep_log(self, settings: Settings) -> None:
        """From here on what happens is logged into the home."""
        console = self.say_beside if settings.env.get("LOG_LEVEL", "").strip() else None
        self.log_file = start_log(settings.home, settings.log_level, settings.env, console)

    # -- streams -------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Cells of the terminal, whichever stream shows on one; 80 where none does."""
        for stream in (sys.stderr, sys.stdout):
            if stream.isatty() and "COLUMNS" not in os.environ:
                return os.get_terminal_size(stream.fileno()).columns or 80
        return shutil.get_terminal_size((80, 24)).columns

    @property
    def table_width(self) -> int:
        """Cells for a table on stdout: nothing is cut off in what a program or a file takes."""
        return self.width if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNBOUNDED

    @property
    def unicode(self) -> bool:
        return (sys.stderr.encoding or "utf-8").lower().replace("-", "").startswith("utf")

    def say(self, text: str) -> None:
        """Narration, on stderr; whatever is quoted in it is made harmless."""
        _write(sys.stderr, present.show(text))

    def say_beside(self, line: str) -> None:
        """The same, also while progress is shown."""
        (self.beside or self.say)(line)

    def put(self, text: str) -> None:
        """Data, on stdout, made harmless where that is a terminal; with ``--json`` only `answer` writes there."""
        if not self.json:
            _write(sys.stdout, present.show(text) if sys.stdout.isatty() else text)

    @property
    def data(self) -> BinaryIO:
        """stdout as a file of UTF-8: to the byte what is written, except on a terminal."""
        return cast("BinaryIO", _Harmless()) if sys.stdout.isatty() else sys.stdout.buffer

    def answer(self, data: Mapping[str, Any]) -> None:
        """The one object of ``--json``."""
        if self.json:
            _write(sys.stdout, json.dumps(data))

    def ask(self, question: str, yes: Collection[str] = ("y", "yes")) -> bool:
        """A question that only ``yes`` answers with yes; no is the default.

        Raises:
            UsageError: there is nobody to ask.
        """
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here", why="stdin is no terminal", fix="add --yes")
        with _signals_heard() as heard:
            sys.stderr.write(present.fitted(question, width=self.width, unicode=self.unicode) + " ")
            sys.stderr.flush()
            heard()
            return sys.stdin.readline().strip().lower() in yes

    @contextmanager
    def piped(self, inputs: Sequence[str]) -> Iterator[dict[str, Path]]:
        """``-`` and a file with what comes in by stdin, while the block lasts, where one of ``inputs`` asks for it."""
        if not any(name.rpartition(":")[2] == "-" for name in inputs):
            yield {}
            return
        typed = sys.stdin.isatty()
        if typed:
            self.say("type the rows, one a line; Ctrl-D on a line of its own ends them, Ctrl-C drops them")
        with tempfile.NamedTemporaryFile(prefix="nightmill-stdin-", suffix=".txt" if typed else "") as file:
            try:
                if typed:  # line by line: any other way to read wants a second Ctrl-D
                    file.writelines(iter(sys.stdin.buffer.readline, b""))
                else:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                file.flush()
            except OSError as error:
                why = f"{tempfile.gettempdir()}: {error.strerror or error}"
                raise StoreError("stdin cannot be kept", why=why, fix="free some space, or set TMPDIR") from error
            yield {"-": Path(file.name)}

    def restore_signals(self) -> None:
        """SIGTERM is like Ctrl-C where no work is under way."""
        signal.signal(signal.SIGTERM, _interrupt)

    # -- errors --------------------------------------------------------------------------------

    def tell(self, error: NightmillError) -> None:
        """What went wrong, why, and how to mend it, in words; by words into lines where somebody reads them."""
        self.say(present.error_text(error, width=self.width if sys.stderr.isatty() else None))

    def fail(self, error: NightmillError) -> int:
        """Tell what went wrong, in words and as JSON; the exit code."""
        self.tell(error)
        if self.debug:
            _traceback(error)
        if self.log_file is not None:
            log.error("ends with exit %d: %s", error.exit_code, error.logged)
        self.answer({**self.known, "error": error_object(error)})
        return error.exit_code

    def interrupted(self) -> int:
        """Ctrl-C or SIGTERM where nothing was under way, or where nothing more was to be waited for."""
        from nightmill.types import UNFINISHED

        self.say("")
        job = self.known.get("job_id") if self.known.get("status") in UNFINISHED else None
        return self.fail(Interrupted("interrupted", fix=f"nightmill resume {job}" if job else ""))

    def fail_unexpectedly(self, error: Exception) -> int:
        """A bug: one line for the user, the traceback in the log."""
        fix = "please report it; --debug shows where it happened"
        if self.log_file is not None:
            log.error("unexpected", exc_info=error)
            fix += f", and so does {self.log_file}"
        return self.fail(Unexpected(f"unexpected {type(error).__name__}", why=str(error), fix=fix).of(error))


class _Harmless(io.RawIOBase):
    """A terminal to which text goes that came from anywhere."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        _write(sys.stdout, present.show(bytes(data).decode("utf-8", "replace")), end="")
        return len(data)


class Declined(NightmillError):
    """The answer to a question was no."""

    code = "declined"


class PipeClosed(Exception):
    """Whoever read a stream has seen enough. No OSError: click would make an exit code of its own of that."""


class Interrupted(NightmillError):
    code = "interrupted"
    exit_code = 130


class Unexpected(NightmillError):
    code = "internal"

    def of(self, error: Exception) -> Unexpected:
        self.__cause__ = error
        return self


def error_object(error: NightmillError) -> dict[str, str]:
    return {"code": error.code, "message": error.what, "why": error.why, "fix": error.fix}


@contextmanager
def _signals_heard() -> Iterator[Callable[[], object]]:
    """A wait for stdin that Ctrl-C and SIGTERM end: one that came just before a plain read would wait for the next key.

    By the number that the interpreter notes at once, not by the exception of its handler: raised in a finalizer
    that happens to run, that one is lost.
    """
    if sys.platform == "win32":
        yield lambda: None
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell)

    def wait() -> None:
        while True:
            ready, _, _ = select.select([sys.stdin, told], [], [])
            if told in ready and {signal.SIGINT, signal.SIGTERM} & set(os.read(told, _SIGNALS)):
                raise KeyboardInterrupt
            if sys.stdin in ready:
                return

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(before)
        os.close(told)
        os.close(tell)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _write(stream: Any, text: str, end: str = "\n") -> None:
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
        stream.flush()
    except BrokenPipeError as error:
        raise PipeClosed from error


def _traceback(error: BaseException) -> None:
    import traceback

    sys.stderr.write(present.show("".join(traceback.format_exception(error))))
