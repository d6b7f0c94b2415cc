"""What the terminal shows: pure functions from plain data to lines of text.

Money is nano-dollars, times are seconds. Whatever came from outside (names, answers, provider
errors) passes `show` on its way; with ``unicode=False`` the result is pure ASCII. No line is wider
than ``width`` cells, except commands, which are there to be copied whole.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nightmill.errors import NightmillError
from nightmill.types import NANOS_PER_USD

_WIDEST = 100  # lines longer than this are hard to read, however wide the window
_NARROW = 79  # in narrower windows some things move from the bar's line to those under it
_LEAST_ITEM = 12  # cells
_TROUBLE_LINES = 3
_JOB_LINES = 10
_FIX = "  fix: "
_SEP = " · "

# -- untrusted text

_MARKS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_MARKS |= {
    code: f"<{code:02X}>" if code < 0x100 else f"<U+{code:04X}>"
    for code in (
        *range(0x80, 0xA0),  # C1: a terminal may take 0x9B for ESC [
        *(
            0x061C,
            0x200E,
            0x200F,
            *range(0x202A, 0x202F),
            *range(0x2066, 0x206A),
        ),  # bidi: text that lies about its order
        *(0x2028, 0x2029),  # line ends that are not "\n"
        *(0xAD, 0x115F, 0x1160, 0x180E, 0x200B, *range(0x2060, 0x2065), *range(0x206A, 0x2070), 0x3164, 0xFEFF, 0xFFA0),
        *(*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)),  # nothing to see, yet it makes two names differ
        *range(0xD800, 0xE000),  # lone surrogates cannot be written at all
    )
}
_PLAIN = {"·": "|", "≈": "~", "→": "->", "…": "...", "–": "-", "≠": "!=", "◀": "<-"}
_PLAIN |= {"✓": "+", "◆": "*", "◑": ">", "○": "o", "‖": "=", "✗": "x", "␡": "^?"}
_PLAIN |= {chr(0x2400 + code): "^" + chr(0x40 + code) for code in range(0x20)}
_ASCII = str.maketrans(_PLAIN)
# Some terminals draw what these join as one, others apart, and flags in four widths. More marks on a letter than four
# are no writing.
_JOINERS: dict[int, str | None] = dict.fromkeys((0x200C, 0x200D, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
_JOINERS |= {0x1F1E6 + n: chr(ord("A") + n) for n in range(26)}
_MARK = r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_HEAP = re.compile(f"({_MARK}{{4}}){_MARK}+")


_BYTES = ("B", "kB", "MB", "GB", "TB")


def show(text: str) -> str:
    """``text`` with everything a terminal might obey replaced by a visible mark.

    The one place that makes untrusted text harmless: C0 and C1 controls except newline and tab,
    DEL, bidirectional controls, odd line ends and lone surrogates.
    """
    return text.translate(_MARKS)


def one_line(text: str) -> str:
    """Untrusted text on one line, made harmless, and as wide on every terminal: nothing that joins or heaps letters."""
    line = " ".join(show(text).split())
    return line if line.isascii() else _HEAP.sub(r"\1", unicodedata.normalize("NFC", line.translate(_JOINERS)))


def _inked(text: str, unicode: bool) -> str:
    """Our marks as they are, or everything in ASCII."""
    return text if unicode else text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


# -- numbers


def money(nanos: int, *, toward: Literal["nearest", "up", "down"] = "nearest") -> str:
    """Dollars and cents; under a cent up to six decimals, and never $0.00 for something.

    Limits that must not be understated round ``up``, money that is free rounds ``down``.
    """
    if nanos < 0:
        opposite: dict[str, Literal["nearest", "up", "down"]] = {"up": "down", "down": "up"}
        return "-" + money(-nanos, toward=opposite.get(toward, "nearest"))
    unit = 10_000_000 if nanos >= 10_000_000 or nanos == 0 else 1_000
    units, rest = divmod(nanos, unit)
    if toward == "up":
        units += rest > 0
    elif toward == "nearest":
        units += 2 * rest >= unit
    if nanos and not units:
        return "<$0.000001"
    dollars, fraction = divmod(units, NANOS_PER_USD // unit)
    if unit == 1_000:
        return f"${dollars}.{fraction:06d}".rstrip("0").ljust(len("$0.00"), "0")
    return f"${dollars:,}.{fraction:02d}"


def count(number: int) -> str:
    """``9,988``."""
    return f"{number:,}"


def some(number: int, noun: str) -> str:
    """``1 row``, ``9,988 rows``."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def tokens(number: int) -> str:
    """``1.9 M``; exact below 100,000."""
    if number < 100_000:
        return count(number)
    if number < 999_500:
        return f"{number / 1e3:.0f} k"
    if number < 999_950_000:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e9:,.1f} G"


def size(number: int) -> str:
    """Bytes as ``3.4 MB``; exact below 1,000."""
    value, unit = float(number), 0
    while value >= 999.95 and unit < len(_BYTES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:,.1f} {_BYTES[unit]}" if unit else some(number, "byte")


def percent(part: int, whole: int) -> str:
    """``61 %``, rounded down so that 100 % means all; ``–`` of nothing."""
    return f"{part * 100 // whole} %" if whole else "–"


def duration(seconds: float | None, *, clock: bool = False) -> str:
    """``3 h 04 min``, or ``3:04:10`` as a running clock; ``–`` when unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    whole = int(seconds)
    minutes, secs = divmod(whole, 60)
    hours, mins = divmod(minutes, 60)
    if clock:
        return f"{hours}:{mins:02d}:{secs:02d}"
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {mins:02d} min"
    if minutes:
        return f"{minutes} min {secs:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 and seconds != whole else f"{whole} s"


# -- layout


def cells_of(text: str) -> int:
    """How many terminal cells ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_cell(char) for char in text)


def _cell(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _head(text: str, width: int) -> str:
    """As much of ``text`` as ``width`` cells hold."""
    used = 0
    for at, char in enumerate(text):
        used += _cell(char)
        if used > width:
            return text[:at]
    return text


def _cut(text: str, width: int, *, unicode: bool = True) -> str:
    """``text`` in at most ``width`` cells, with an ellipsis if something is missing."""
    if cells_of(text) <= width:
        return text
    ellipsis = "…" if unicode else "..."
    return _head(text, width - len(ellipsis)) + ellipsis if width > len(ellipsis) else ellipsis[:width]


def _pad(text: str, width: int, *, right: bool = False) -> str:
    gap = " " * (width - cells_of(text))
    return gap + text if right else text + gap


def _wrap(text: str, width: int) -> list[str]:
    """``text`` by words into lines of at most ``width`` cells; a longer word is split."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if cells_of(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while cells_of(word) > width:
            part = _head(word, width) or word[0]
            lines.append(part)
            word = word[len(part) :]  # noqa: PLW2901  the rest of the word is the next word
        line = word
    return [*lines, line] if line else lines


def _flow(pieces: Iterable[str], width: int, sep: str) -> list[str]:
    """Pieces joined by ``sep``, as many to a line as fit."""
    lines: list[str] = []
    line = ""
    for piece in pieces:
        joined = f"{line}{sep}{piece}" if line else piece
        if line and cells_of(joined) > width:
            lines += _wrap(line, width)
            joined = piece
        line = joined
    return lines + _wrap(line, width)


def _wrapped(text: str, width: int, *, unicode: bool) -> list[str]:
    """Untrusted text by words into lines, indented by a space."""
    return [f" {line}" for line in _wrap(_inked(one_line(text), unicode), width)]


def _paragraph(pieces: Iterable[str], width: int, *, unicode: bool, indent: str = "") -> list[str]:
    """`_flow` of our own pieces, indented and inked."""
    inked = [_inked(piece, unicode) for piece in pieces]
    return [indent + line for line in _flow(inked, max(1, width - len(indent)), _inked(_SEP, unicode))]


# -- before: the quote


@dataclass(frozen=True, slots=True)
class LaneView:
    """One way to get the job done, and what it would cost."""

    lane: str
    expected_nanos: int
    at_most_nanos: int
    chosen: bool = False
    done_by: str = ""  # such as "≈ 03:40 (p90 09:10)"
    model: str = ""
    about: tuple[str, ...] = ()  # what is known of the model


@dataclass(frozen=True, slots=True)
class QuoteView:
    """What a plan would cost. Exactly one of ``lanes`` is chosen; those of one model are side by side."""

    name: str  # the input, as the user called it
    model: str
    rows: int
    requests: int  # to send: without rows that are done, cached or duplicates
    lanes: tuple[LaneView, ...]
    list_price_nanos: int  # expected, at the regular price
    input_tokens: int  # expected
    output_tokens: int  # expected
    price_source: str  # with its date
    row_mode: str = ""  # "line" or "file", where the input could be read either way
    duplicates: int = 0
    cached: int = 0
    invalid: int = 0
    done: int = 0  # rows answered before, in the job that goes on or by earlier ones
    waves: int = 1
    budget_nanos: int | None = None  # the tightest limit; None = there is none
    free_nanos: int | None = None
    notes: tuple[str, ...] = ()
    deadline: str = ""  # when it has to be done, where live calls finish what batches do not
    next_nanos: int = 0  # most that further steps for answers that do not fit may cost, beyond the lane's

    @property
    def chosen(self) -> LaneView:
        return next(lane for lane in self.lanes if lane.chosen)


def quote_panel(q: QuoteView, *, width: int = 80, unicode: bool = True) -> str:
    """The panel a user reads before paying: what is sent, what it costs, what it costs at most."""
    inner = min(width, _WIDEST) - 4
    lines = [_inked(line, unicode) for line in _lane_lines(q.lanes, inner)]
    for pieces in (_deadline_pieces(q), _cost_pieces(q), _token_pieces(q), _budget_pieces(q), _source_pieces(q)):
        lines += _paragraph(pieces, inner, unicode=unicode)
    for note in q.notes:
        lines += _wrap(_inked(f"note: {one_line(note)}", unicode), inner)
    head = _paragraph(_input_pieces(q), min(width, _WIDEST), unicode=unicode)
    return "\n".join([*head, *_frame("Quote", lines, unicode)])


def question(q: QuoteView) -> str:
    """What is asked before money is spent; the default is no."""
    most, told = q.chosen.at_most_nanos, ""
    if q.next_nanos:
        told = f", and {money(q.next_nanos, toward='up')} for answers that do not fit"
    if q.free_nanos is not None and q.free_nanos < most + q.next_nanos:  # no budget is ever crossed
        most, told = q.free_nanos, ", what the budget has free"
    return f"Send {some(q.requests, 'request')}, at most {money(most, toward='up')}{told}? [y/N] "


def _input_pieces(q: QuoteView) -> list[str]:
    pieces = [
        one_line(q.name),
        one_line(q.model),
        some(q.rows, "row") + (f", one a {q.row_mode}" if q.row_mode else ""),
    ]
    pieces += [f"{count(q.invalid)} invalid"] if q.invalid else []
    return [*pieces, some(q.duplicates, "duplicate"), f"{count(q.cached)} cached", f"{count(q.requests)} to send"]


_LATEST = " at the latest"


def _lane_lines(lanes: Sequence[LaneView], width: int) -> list[str]:
    says_when, several = any(lane.done_by for lane in lanes), len({lane.model for lane in lanes}) > 1
    table = [["lane", "expected", "at most", *["done by"] * says_when, ""]]
    for lane in lanes:
        costs = [money(lane.expected_nanos), money(lane.at_most_nanos, toward="up")]
        mark = "◀ chosen" if lane.chosen else ""
        table.append([lane.lane, *costs, *[lane.done_by] * says_when, mark])
    head, *lines = _aligned(table, width - 2 * several)
    if not several:
        return [head, *lines]
    found = [f"  {head}"]
    for at, (lane, line) in enumerate(zip(lanes, lines, strict=True)):
        if not at or lane.model != lanes[at - 1].model:
            found += _flow([one_line(lane.model), *lane.about], width, _SEP)
        found.append(f"  {line}")
    return found


def _aligned(table: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows in columns; where they are too wide, without the words that matter least."""
    widths = [max(cells_of(row[at]) for row in table) for at in range(len(table[0]))]
    if sum(widths) + 2 * (len(widths) - 1) > width and any(_LATEST in cell for row in table for cell in row):
        return _aligned([[cell.replace(_LATEST, "") for cell in row] for row in table], width)
    return [
        _cut("  ".join(_pad(cell, widths[at], right=at in (1, 2)) for at, cell in enumerate(row)).rstrip(), width)
        for row in table
    ]


def _deadline_pieces(q: QuoteView) -> list[str]:
    if not q.deadline:
        return []
    if q.chosen.lane != "batch":
        return [f"by {q.deadline}"]
    most = money(q.chosen.at_most_nanos, toward="up")
    return [f"by {q.deadline}: what batches have not answered in time runs live, all of it for {most} at most"]


def _cost_pieces(q: QuoteView) -> list[str]:
    pieces = [f"regular cost {money(q.list_price_nanos)}", f"{q.chosen.lane} cost {money(q.chosen.expected_nanos)}"]
    saved = q.list_price_nanos - q.chosen.expected_nanos
    if saved > 0:
        return [*pieces, f"saves ≈ {money(saved)} ({percent(saved, q.list_price_nanos)})"]
    return [*pieces, "saves nothing" if not saved else f"costs ≈ {money(-saved)} more"]


def _token_pieces(q: QuoteView) -> list[str]:
    pieces = [f"tokens ≈ {tokens(q.input_tokens)} in, {tokens(q.output_tokens)} out"]
    if q.waves > 1:
        pieces.append(f"{count(q.waves)} waves: each is sent when the one before has freed its money")
    return pieces


def _budget_pieces(q: QuoteView) -> list[str]:
    if q.budget_nanos is None or q.free_nanos is None:
        return ["no budget limit"]
    free = money(q.free_nanos, toward="down")
    left = q.free_nanos - q.chosen.at_most_nanos
    if left >= 0:
        return [f"budget {money(q.budget_nanos)}", f"free {free} → {money(left, toward='down')} after the hold"]
    return [f"budget {money(q.budget_nanos)}", f"free {free}, less than this can cost at most"]


def _source_pieces(q: QuoteView) -> list[str]:
    done = f"done before {count(q.done)}{_SEP}remaining {count(q.requests)}"
    return [done, f"prices: {one_line(q.price_source)}"]


def _frame(title: str, lines: Sequence[str], unicode: bool) -> list[str]:
    tl, tr, bl, br, h, v = "┌┐└┘─│" if unicode else "++++-|"
    inner = max(cells_of(line) for line in lines)
    top = f"{tl}{h} {title} {h * (inner - len(title) - 1)}{tr}"
    return [top, *(f"{v} {_pad(line, inner)} {v}" for line in lines), f"{bl}{h * (inner + 2)}{br}"]


# -- while running


@dataclass(frozen=True, slots=True)
class ProgressView:
    """A job at one moment. What is processed is the sum of its outcomes, so the numbers add up."""

    phase: str  # "sending", "waiting at the provider", "collecting"
    total: int
    ok: int = 0
    failed: int = 0
    missing: int = 0
    expired: int = 0
    cancelled: int = 0
    kinds: tuple[tuple[str, int], ...] = ()  # of the failed ones
    tokens_in: int = 0
    tokens_out: int = 0
    spent_nanos: int = 0
    held_nanos: int = 0
    rescued: int = 0  # requests that went live for a deadline
    rescued_nanos: int = 0  # ... and their part of what was spent, as far as it is settled
    list_nanos: int = 0  # what the same would have cost at the regular price
    saved_nanos: int = 0
    elapsed_s: float = 0.0
    per_minute: float | None = None
    eta_s: float | None = None
    item: str = ""  # the row that was answered last
    job_id: str = ""
    outside: tuple[int, int] | None = None  # rows that the provider says are done, of those in its batches
    trouble: str = ""  # why it does not go on at the moment, in the words of whoever said so
    leave: tuple[str, ...] = ()  # what Ctrl-C does now, and how to come back
    name: str = ""
    jobs: tuple[ProgressView, ...] = ()  # where this is the sum of several

    @property
    def processed(self) -> int:
        return self.ok + self.failed + self.missing + self.expired + self.cancelled


def bar(p: ProgressView, cells: int, *, unicode: bool = True) -> tuple[str, str]:
    """The filled and the empty part of a bar ``cells`` wide; full only when all is processed."""
    done = cells * p.processed // p.total if p.total else cells
    return ("━" * done, "─" * (cells - done)) if unicode else ("#" * done, "-" * (cells - done))


def bar_line(
    p: ProgressView, *, width: int = 80, unicode: bool = True, paint: Callable[[str], str] = lambda filled: filled
) -> str:
    """Phase, bar, percent, count, elapsed and ETA on one line, and the item where there is room.

    ``paint`` may colour the filled part of the bar; it must not add cells.
    """
    phase = _cut(_inked(one_line(p.phase), unicode), max(10, width // 3), unicode=unicode)
    share = percent(p.processed, p.total) if p.total else "100 %"
    numbers = [f"{share:>5}", f"{count(p.processed)}/{count(p.total)}", duration(p.elapsed_s, clock=True)]
    numbers.append(f"ETA {duration(p.eta_s, clock=True)}")
    if width < _NARROW:
        del numbers[2]  # elapsed is in the table below; a bar that can be seen is worth more
    text = _inked("  ".join(numbers), unicode)
    room = width - cells_of(phase) - len(text) - 3
    if room < 6:
        return _cut(f"{phase} {text.strip()}", width, unicode=unicode)
    ends = ("", "") if unicode else ("[", "]")
    item = ""
    if p.item and width >= _NARROW:
        item = "  " + _cut(_inked(one_line(p.item), unicode), max(_LEAST_ITEM, room - 36), unicode=unicode)
    filled, empty = bar(p, max(0, min(30, room - len(ends[0] + ends[1]) - cells_of(item))), unicode=unicode)
    return f"{phase} {ends[0]}{paint(filled)}{empty}{ends[1]}  {text}{item}"


def status_table(p: ProgressView, *, width: int = 80, unicode: bool = True) -> str:
    """Counts, pace, tokens and money of a running job, in as few lines as fit."""
    failed = f"failed {count(p.failed)}"
    if p.kinds:
        failed += f" ({', '.join(f'{kind} {count(number)}' for kind, number in p.kinds)})"
    counts = [f"total {count(p.total)}", f"processed {count(p.processed)}", f"ok {count(p.ok)}", failed]
    others = (("missing", p.missing), ("expired", p.expired), ("cancelled", p.cancelled))
    counts += [f"{word} {count(number)}" for word, number in others if number]
    counts.append(f"success {percent(p.ok, p.processed)}")
    pace = [f"{_pace(p.per_minute)} a minute", f"elapsed {duration(p.elapsed_s, clock=True)}"]
    pace += [f"ETA {duration(p.eta_s, clock=True)}", f"tokens {tokens(p.tokens_in)} in, {tokens(p.tokens_out)} out"]
    if p.item and width < _NARROW:
        pace.append(f"last {_cut(one_line(p.item), width // 3, unicode=unicode)}")
    if p.outside is not None:
        counts.append(f"done at the provider {count(p.outside[0])} of {count(p.outside[1])}")
    amounts = (("spent", p.spent_nanos), ("held", p.held_nanos), ("list", p.list_nanos), ("saved", p.saved_nanos))
    cost = [f"{word} {money(nanos)}" for word, nanos in amounts]
    if p.rescued:
        cost.append(f"{some(p.rescued, 'row')} live for the deadline: {money(p.rescued_nanos)}")
    wide = min(width, _WIDEST)
    blocks = [_paragraph(pieces, wide, unicode=unicode, indent=" ") for pieces in (counts, pace, cost, p.leave)]
    if p.trouble:
        waits = _wrapped(f"waits: {p.trouble}", wide - 1, unicode=unicode)
        last = _cut("".join(waits[_TROUBLE_LINES - 1 : _TROUBLE_LINES + 1]), wide, unicode=unicode)
        blocks.insert(3, [*waits[: _TROUBLE_LINES - 1], *([last] if last else [])])
    if p.jobs:
        blocks.insert(-1, _job_lines(p.jobs, wide, unicode))
    return "\n".join(line for block in blocks for line in block)


def _job_lines(jobs: Sequence[ProgressView], width: int, unicode: bool) -> list[str]:
    """Each job on a line, those that go on first; what has no room there is left out whole."""
    ordered = sorted(jobs, key=lambda job: job.total == job.processed)
    cells = [
        [f" {job.job_id}", percent(job.processed, job.total), f"{count(job.processed)}/{count(job.total)}",
         one_line(job.phase), money(job.spent_nanos), one_line(job.name)]
        for job in ordered[:_JOB_LINES]
    ]  # fmt: skip
    cells = [[_cut(_inked(cell, unicode), 30, unicode=unicode) for cell in row] for row in cells]
    widths = [max(cells_of(row[at]) for row in cells) for at in range(len(cells[0]))]
    while sum(widths) + 2 * (len(widths) - 1) > width and len(widths) > 1:
        widths.pop()
    lines = [
        "  ".join(_pad(row[at], wide, right=at in (1, 2, 4)) for at, wide in enumerate(widths)).rstrip()
        for row in cells
    ]
    more = len(jobs) - len(lines)
    return lines + ([f" and {some(more, 'more job')}: nightmill jobs"] if more else [])


def plain_line(p: ProgressView, *, unicode: bool = True) -> str:
    """The same on one line, for logs."""
    pieces = [one_line(p.phase), percent(p.processed, p.total) if p.total else "100 %"]
    pieces += [f"{count(p.processed)}/{count(p.total)}", f"ok {count(p.ok)}", f"failed {count(p.failed)}"]
    others = (("missing", p.missing), ("expired", p.expired), ("cancelled", p.cancelled))
    pieces += [f"{word} {count(number)}" for word, number in others if number]
    pieces += [f"spent {money(p.spent_nanos)}", f"elapsed {duration(p.elapsed_s, clock=True)}"]
    pieces += [f"ETA {duration(p.eta_s, clock=True)}"]
    pieces += [f"done at the provider {count(p.outside[0])}"] if p.outside is not None else []
    pieces += [f"waits: {one_line(p.trouble)}"] if p.trouble else []
    return _inked("  ".join(pieces), unicode)


def _pace(per_minute: float | None) -> str:
    if per_minute is None or not math.isfinite(per_minute):
        return "–"
    return f"{per_minute:.1f}" if 0 < per_minute < 10 else count(round(per_minute))


# -- afterwards


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Rows that failed alike."""

    kind: str
    count: int
    message: str  # one of theirs, as the provider put it
    row: int  # one of them


@dataclass(frozen=True, slots=True)
class EndView:
    """A job when the command returns; counts are rows."""

    state: str  # the job's state
    rows: int
    ok: int
    failed: int = 0
    missing: int = 0
    expired: int = 0
    cancelled: int = 0
    invalid: int = 0
    pending: int = 0
    stopped: str = ""  # why it stopped early, in words
    sent: int = 0
    cached: int = 0
    duplicates: int = 0
    extra_answers: int = 0
    unknown_ids: int = 0
    spent_nanos: int = 0
    unproven_nanos: int = 0  # part of spent
    estimated_nanos: int = 0  # part of spent
    list_nanos: int = 0
    saved_nanos: int = 0
    duration_s: float = 0.0
    failures: tuple[FailureGroup, ...] = ()
    rescued: int = 0  # requests that went live for a deadline
    rescued_nanos: int = 0
    tokens_cached: int = 0  # read from providers' caches of prompts
    tokens_written: int = 0  # ... and written to them
    caching_nanos: int = 0  # what that saved
    deadline: str = ""  # when it had to be done
    kept: str = ""  # how that went; empty while it is open
    next: tuple[str, ...] = ()  # commands that make sense now


def end_report(e: EndView, *, width: int = 80, unicode: bool = True) -> str:
    """How it ended: counts that add up, money, why rows failed, and what to do next."""
    wide = min(width, _WIDEST)
    lines = _paragraph([*_end_title(e), duration(e.duration_s)], wide, unicode=unicode)
    lines += _paragraph(_accounting(e), wide, unicode=unicode, indent="  ")
    lines += _paragraph(_bill(e), wide, unicode=unicode, indent="  ")
    lines += _paragraph(_caching(e), wide, unicode=unicode, indent="  ")
    lines += _paragraph(_hurry(e), wide, unicode=unicode, indent="  ")
    lines += _failure_lines(e.failures, wide, unicode)
    return "\n".join(lines + next_lines(e.next, unicode=unicode))


def next_lines(commands: Sequence[str], *, unicode: bool = True) -> list[str]:
    """What to do now, a command a line."""
    heads = ("  next: ", *[" " * 8] * len(commands))
    return [_inked(head + one_line(command), unicode) for head, command in zip(heads, commands, strict=False)]


def _end_title(e: EndView) -> list[str]:
    unanswered = e.rows - e.ok
    if e.stopped:
        title = f"‖ stopped: {one_line(e.stopped)}"
    elif e.state == "completed":
        title = "◆ finished with failures" if unanswered else "✓ completed"
    else:
        mark = {"failed": "✗", "cancelled": "–", "running": "◑", "pending": "○"}.get(e.state, "‖")
        title = f"{mark} {e.state}"
    return [title, f"{count(e.ok)} of {count(e.rows)} ok"]


def _accounting(e: EndView) -> list[str]:
    terms = [("ok", e.ok), ("failed", e.failed), ("missing", e.missing), ("expired", e.expired)]
    terms += [("cancelled", e.cancelled), ("invalid", e.invalid), ("open", e.pending)]
    total = " + ".join(f"{word} {count(number)}" for word, number in terms if number or word == "ok")
    same = sum(number for _, number in terms) == e.rows
    pieces = [f"rows {count(e.rows)} {'=' if same else '≠'} {total}"]
    if not same:
        pieces.append("these counts do not add up: please report it")
    pieces.append(f"sent {count(e.sent)}")
    beside = [("cached", e.cached), ("duplicates", e.duplicates), ("extra answers", e.extra_answers)]
    beside.append(("unknown ids", e.unknown_ids))
    return pieces + [f"{word} {count(number)}" for word, number in beside if number]


def _bill(e: EndView) -> list[str]:
    parts = [("unproven", e.unproven_nanos), ("est.", e.estimated_nanos)]
    inside = ", ".join(f"{word} {money(nanos)}" for word, nanos in parts if nanos)
    spent = f"spent {money(e.spent_nanos)}" + (f" ({inside})" if inside else "")
    saved = f"saved {money(e.saved_nanos)}" + (f" ({percent(e.saved_nanos, e.list_nanos)})" if e.list_nanos else "")
    return [spent, f"list {money(e.list_nanos)}", saved]


def _caching(e: EndView) -> list[str]:
    """What providers had cached of prompts, and whether that was worth it."""
    if not (e.tokens_cached or e.tokens_written):
        return []
    did = f"saved {money(e.caching_nanos)}" if e.caching_nanos >= 0 else f"cost {money(-e.caching_nanos)}"
    return [f"prompt cache: {count(e.tokens_cached)} tokens read, {count(e.tokens_written)} written", did]


def _hurry(e: EndView) -> list[str]:
    """What was done for the deadline, and whether it was kept."""
    pieces = [f"by {e.deadline}" + (f": {e.kept}" if e.kept else "")] if e.deadline else []
    return pieces + ([f"{some(e.rescued, 'row')} went live for it: {money(e.rescued_nanos)}"] if e.rescued else [])


def _failure_lines(groups: Sequence[FailureGroup], width: int, unicode: bool) -> list[str]:
    if not groups:
        return []
    numbers = max(len(count(group.count)) for group in groups)
    kinds = max(len(group.kind) for group in groups)
    tails = max(len(f"  e.g. row {count(group.row)}") for group in groups)
    room = max(0, width - numbers - kinds - tails - 6)
    messages = [_cut(_inked(one_line(group.message), unicode), room, unicode=unicode) for group in groups]
    wide = max(cells_of(message) for message in messages)
    lines = []
    for group, message in zip(groups, messages, strict=True):
        head = f"  {count(group.count):>{numbers}}  {group.kind:<{kinds}}  {_pad(message, wide)}"
        lines.append(_cut(f"{head}  e.g. row {count(group.row)}", width, unicode=unicode))
    return lines


# -- lists


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job in the list of jobs."""

    id: str
    name: str
    state: str
    ok: int
    rows: int
    failed: int
    lane: str
    model: str
    spent_nanos: int
    saved_nanos: int
    age_s: float


# Heading, right-aligned, narrowest useful width (None: never cut), and in which order columns go
# when there is no room for all (None: never).
_JOB_COLUMNS: tuple[tuple[str, bool, int | None, int | None], ...] = (
    ("ID", False, None, None),
    ("NAME", False, 12, None),
    ("STATE", False, None, None),
    ("OK/ROWS", True, None, None),
    ("FAILED", True, None, 4),
    ("LANE", False, None, 1),
    ("MODEL", False, 12, 3),
    ("SPENT", True, None, None),
    ("SAVED", True, None, 2),
    ("AGE", True, None, 5),
)


def jobs_table(rows: Sequence[JobRow], *, width: int = 100, unicode: bool = True) -> str:
    """The jobs, one a line; narrow windows cut names first and then leave columns out."""
    if not rows:
        return "No jobs yet. Try: nightmill run words.txt --task define --dry-run"
    table = [[heading for heading, *_ in _JOB_COLUMNS], *([_inked(c, unicode) for c in _job_cells(r)] for r in rows)]
    natural = [max(cells_of(line[at]) for line in table) for at in range(len(_JOB_COLUMNS))]
    widths = _fit(natural, width)
    lines = []
    for line in table:
        cells = [
            _pad(_cut(line[at], cells, unicode=unicode), cells, right=_JOB_COLUMNS[at][1])
            for at, cells in widths.items()
        ]
        lines.append(_cut("  ".join(cells).rstrip(), width, unicode=unicode))
    return "\n".join(lines)


def _job_cells(r: JobRow) -> list[str]:
    done = f"{count(r.ok)}/{count(r.rows)}"
    money_cells = [money(r.spent_nanos), money(r.saved_nanos)]
    names = [one_line(r.lane), one_line(r.model)]
    return [one_line(r.id), one_line(r.name), r.state, done, count(r.failed), *names, *money_cells, _age(r.age_s)]


def _age(seconds: float) -> str:
    """``3 h``: one unit is enough for how long ago something was."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return duration(int(seconds))


def _fit(natural: Sequence[int], width: int) -> dict[int, int]:
    """Column number to width, for the columns that fit into ``width``."""
    kept = dict(enumerate(natural))
    leaving = sorted((order, at) for at, (*_, order) in enumerate(_JOB_COLUMNS) if order is not None)
    while _shrink(kept, width) > width and leaving:
        del kept[leaving.pop(0)[1]]
        kept = {at: natural[at] for at in kept}
    return kept


def _shrink(kept: dict[int, int], width: int) -> int:
    """Narrow what may be cut until ``kept`` fits or cannot shrink; the width it then has."""
    used = sum(kept.values()) + 2 * (len(kept) - 1)
    for at in sorted(kept, key=lambda at: -kept[at]):
        least = _JOB_COLUMNS[at][2]
        if least is not None and used > width and kept[at] > least:
            cut = min(used - width, kept[at] - least)
            kept[at] -= cut
            used -= cut
    return used


def table(
    rows: Sequence[Sequence[str]], *, width: int = 100, unicode: bool = True, right: Sequence[int] = ()
) -> list[str]:
    """Rows under their headings, columns aligned. What of a row is too wide stands below it, with its headings."""
    inked = [[_inked(one_line(cell), unicode) for cell in row] for row in rows]
    widths = [min(width, max(cells_of(row[at]) for row in inked)) for at in range(len(rows[0]))]
    lines = []
    for row in inked:
        padded = [_pad(cell, widths[at], right=at in right) for at, cell in enumerate(row)]
        fits = len(row)
        while fits > 1 and cells_of("  ".join(padded[:fits]).rstrip()) > width:
            fits -= 1
        first = "  ".join(padded[:fits]).rstrip()
        lines += [first] if cells_of(first) <= width else _wrap(first, width)
        if row is not inked[0]:
            named = zip(rows[0][fits:], row[fits:], strict=True)
            below = [f"{heading.lower()} {cell}".strip() for heading, cell in named if cell]
            lines += [f"  {line}" for line in _flow(below, max(1, width - 2), _inked(_SEP, unicode))]
    return lines


def answers_table(rows: Sequence[tuple[str, str, str]], *, width: int = 80, unicode: bool = True) -> list[str]:
    """Row, key and answer or error, a line each: long ones are cut. The last column stays free."""
    inked = [[_inked(one_line(cell), unicode) for cell in row] for row in rows]
    keys = [_cut(key, width // 3, unicode=unicode) for _, key, _ in inked]
    taken = max(3, *(len(row) for row, *_ in inked)) + max(3, *map(cells_of, keys)) + 4
    answers = [_cut(answer, max(10, width - taken - 1), unicode=unicode) for *_, answer in inked]
    found = zip((row for row, *_ in inked), keys, answers, strict=True)
    return table([("ROW", "KEY", "ANSWER"), *found], width=width, unicode=unicode, right=(0,))


def fitted(text: str, *, width: int = 80, unicode: bool = True, hanging: int = 0) -> str:
    """Untrusted text by words into lines that fit, the later ones ``hanging`` cells deeper than the first."""
    indent = " " * (len(text) - len(text.lstrip()))
    room = max(20, min(width, _WIDEST) - len(indent) - hanging)
    first, *later = _wrap(_inked(one_line(text), unicode), room) or [""]
    return "\n".join([indent + first, *(indent + " " * hanging + line for line in later)])


# -- errors


def error_text(error: Exception, *, width: int | None = None) -> str:
    """``error:``, ``why:`` and ``fix:`` lines, with every line of each; in lines that fit where ``width`` is given."""
    if not isinstance(error, NightmillError):
        return _labelled("error: ", f"{type(error).__name__}: {error}", width)
    parts = (("error: ", error.what), ("  why: ", error.why), (_FIX, error.fix))
    return "\n".join(_labelled(label, text, width) for label, text in parts if text)


def _labelled(label: str, text: str, width: int | None) -> str:
    lines = show(text).split("\n")
    if width is not None:
        lines = [part for line in lines for part in _broken(line, max(20, width - len(label)), label)]
    return "\n".join(((label if at == 0 else " " * len(label)) + line).rstrip() for at, line in enumerate(lines))


def _broken(line: str, width: int, label: str) -> list[str]:
    """``line`` by words where it is too wide; a command stays whole, to be copied."""
    if cells_of(line) <= width or (label == _FIX and "nightmill " in line):
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return [indent + part for part in _wrap(line, width - len(indent))]
