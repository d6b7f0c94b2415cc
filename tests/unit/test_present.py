"""What the terminal shows: numbers, panels, reports, progress; nothing untrusted gets through."""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from dataclasses import replace

import pyte
import pytest

from nightmill.cli.present import (
    EndView,
    FailureGroup,
    JobRow,
    LaneView,
    ProgressView,
    QuoteView,
    answers_table,
    bar,
    bar_line,
    count,
    duration,
    end_report,
    error_text,
    fitted,
    jobs_table,
    money,
    percent,
    plain_line,
    question,
    quote_panel,
    show,
    status_table,
    table,
    tokens,
)
from nightmill.cli.progress import Mode, Progress, chosen_mode
from nightmill.errors import OverBudget

USD = 1_000_000_000
EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp.exe\u2069\x7f\ud800"
WIDTHS = pytest.mark.parametrize("width", [60, 100, 200])
INKS = pytest.mark.parametrize("unicode", [True, False])

QUOTE = QuoteView(
    name="words.txt",
    model="acme/fast",
    rows=10_000,
    requests=9_988,
    lanes=(
        LaneView("batch", 460_000_000, 1_200_000_001, chosen=True),
        LaneView("live", 920_000_000, 2_400_000_000),
    ),
    list_price_nanos=920_000_000,
    input_tokens=1_234_567,
    output_tokens=600_000,
    price_source="price list 0.2.3, 2026-11-21",
    row_mode="line",
    duplicates=12,
    budget_nanos=5 * USD,
    free_nanos=3_089_999_999,
    notes=("temperature is left out: this model takes none, whatever a user might wish for in a long sentence",),
)
RUNNING = ProgressView(
    phase="waiting at acme",
    total=9_988,
    ok=6_081,
    failed=12,
    kinds=(("rate_limit", 9), ("invalid_output", 3)),
    tokens_in=1_900_000,
    tokens_out=600_000,
    spent_nanos=280_000_000,
    held_nanos=470_000_000,
    list_nanos=560_000_000,
    saved_nanos=280_000_000,
    elapsed_s=6_730,
    per_minute=54.2,
    eta_s=4_320,
    item="aardvark",
)
ENDED = EndView(
    state="completed",
    rows=9_990,
    ok=9_976,
    failed=12,
    invalid=2,
    sent=9_988,
    spent_nanos=460_000_000,
    unproven_nanos=10_000_000,
    list_nanos=920_000_000,
    saved_nanos=460_000_000,
    duration_s=11_040,
    failures=(FailureGroup("rate_limit", 9, "429 tokens per min " * 9, 812), FailureGroup("empty", 3, "no text", 77)),
    next=("nightmill retry 01K9ZC7QX --failed",),
)
JOBS = (
    JobRow("01K9ZC7QX", "reviews-eu-with-a-long-name", "completed", 9_976, 9_988, 12, "batch", "acme/fast-2026-11-01",
           461_000_000, 461_000_000, 11_040),
    JobRow("01K9ZC7AA", "日本語の名前", "running", 76, 9_988, 0, "live", "acme/f", 1_000, 0, 30),
)  # fmt: skip


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def test_show_marks_whatever_a_terminal_would_obey() -> None:
    """No control, no bidi override and no lone surrogate survives; each leaves a visible mark."""
    shown = show(EVIL)
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Cs")]
    assert shown == "␛]0;owned␇␛[2J␍<9B>31m<U+202E>gnp.exe<U+2069>␡<U+D800>"


def test_show_covers_every_control_and_bidi_character() -> None:
    """By category and bidi class, not by our own list, nothing is forgotten."""
    every = "".join(map(chr, range(0x110000)))
    left = set(show(every))
    controls = {c for c in every if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} - set("\n\t")
    bidi = {
        c
        for c in every
        if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    } | set("\u200e\u200f\u061c")
    assert not left & (controls | bidi)


def test_show_leaves_text_alone() -> None:
    """Letters of any script, emoji with joiners, newline and tab stay as they are."""
    text = "Grüße, 日本語, שלום, 👩\u200d💻\n\tnext"
    assert show(text) == text


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (1, "<$0.000001"),
        (1_500, "$0.000002"),
        (2_000_000, "$0.002"),
        (9_999_999, "$0.01"),
        (10_000_000, "$0.01"),
        (4_999_999, "$0.005"),
        (460_000_000, "$0.46"),
        (1_995_000_000, "$2.00"),
        (1_234_567_891_000_000, "$1,234,567.89"),
        (-460_000_000, "-$0.46"),
    ],
)
def test_money_is_cents_or_finer_and_never_hides_a_cost(nanos: int, text: str) -> None:
    """$0.00 means nothing was spent; amounts under a cent show up to six decimals."""
    assert money(nanos) == text


def test_money_rounds_the_safe_way_when_told() -> None:
    """A worst case is never understated and free money never overstated."""
    assert (money(1_200_000_001, toward="up"), money(1_209_999_999, toward="down")) == ("$1.21", "$1.20")
    assert (money(1, toward="up"), money(1_999, toward="down")) == ("$0.000001", "$0.000001")
    assert (money(-1_200_000_001, toward="up"), money(-1_200_000_001, toward="down")) == ("-$1.20", "-$1.21")


def test_counts_and_tokens_are_readable() -> None:
    """Thousands are separated; large token counts are short."""
    assert count(9_988_000) == "9,988,000"
    assert [tokens(n) for n in (99_999, 100_000, 999_499, 999_500, 1_900_000, 999_949_999, 2_100_000_000)] == [
        "99,999", "100 k", "999 k", "1.0 M", "1.9 M", "999.9 M", "2.1 G",
    ]  # fmt: skip


def test_percent_reaches_100_only_when_all_is_done() -> None:
    """Rounding is down, and nothing of nothing is no percentage."""
    assert [percent(*pair) for pair in ((9_999, 10_000), (10_000, 10_000), (0, 5), (0, 0))] == [
        "99 %", "100 %", "0 %", "–",
    ]  # fmt: skip


def test_durations_in_words_and_as_a_clock() -> None:
    """Units grow with the time; unknown is a dash."""
    words = [duration(s) for s in (0, 4.13, 45.9, 185, 11_040, 180_000, None, float("inf"), -1)]
    assert words == ["0 s", "4.1 s", "45 s", "3 min 05 s", "3 h 04 min", "2 d 02 h", "–", "–", "–"]
    assert [duration(s, clock=True) for s in (6_730, 59.9, 360_000, None)] == ["1:52:10", "0:00:59", "100:00:00", "–"]


@WIDTHS
def test_the_quote_says_everything_needed_to_decide(width: int) -> None:
    """Regular and batch cost, saving and percent, tokens, at most, done, remaining, budget, price source."""
    panel = quote_panel(QUOTE, width=width)
    for part in (
        "words.txt", "10,000 rows, one a line", "12 duplicates", "9,988 to send", "regular cost $0.92",
        "batch cost $0.46", "saves ≈ $0.46 (50 %)", "tokens ≈ 1.2 M in, 600 k out", "$1.21", "◀ chosen",
        "done before 0", "remaining 9,988", "budget $5.00", "free $3.08 → $1.88 after the hold",
        "prices: price list 0.2.3, 2026-11-21",
    ):  # fmt: skip
        assert part in panel
    assert "waves" not in panel
    assert "after the hold" not in quote_panel(replace(QUOTE, free_nanos=USD), width=width)
    assert "3 waves" in quote_panel(replace(QUOTE, waves=3), width=width)


@WIDTHS
@INKS
def test_the_quote_is_a_closed_box_that_fits(width: int, unicode: bool) -> None:
    """No line is wider than the window, and the frame is straight."""
    lines = quote_panel(QUOTE, width=width, unicode=unicode).splitlines()
    assert max(map(cells, lines)) <= width
    top = next(at for at, line in enumerate(lines) if " Quote " in line)
    assert len(set(map(cells, lines[top:]))) == 1


def test_no_saving_is_said_and_a_dearer_lane_too() -> None:
    """A user is never told of a saving that is none."""
    live = replace(QUOTE, lanes=(LaneView("live", 920_000_000, USD, chosen=True),))
    assert "saves nothing" in quote_panel(live)
    assert "costs ≈ $0.42 more" in quote_panel(replace(live, list_price_nanos=500_000_000))


def test_the_question_names_requests_and_worst_case_and_defaults_to_no() -> None:
    """What is asked is what can be spent, rounded up."""
    assert question(QUOTE) == "Send 9,988 requests, at most $1.21? [y/N] "
    assert question(replace(QUOTE, requests=1)).startswith("Send 1 request,")
    tight = replace(QUOTE, budget_nanos=USD, free_nanos=USD)
    assert question(tight) == "Send 9,988 requests, at most $1.00, what the budget has free? [y/N] "
    further = replace(QUOTE, next_nanos=250_000_000)
    assert question(further) == "Send 9,988 requests, at most $1.21, and $0.25 for answers that do not fit? [y/N] "
    tight = replace(further, free_nanos=1_300_000_000)
    assert question(tight) == "Send 9,988 requests, at most $1.30, what the budget has free? [y/N] "


@WIDTHS
def test_the_status_table_has_every_number(width: int) -> None:
    """Counts with kinds, success rate, pace, tokens, money, elapsed and ETA."""
    table = status_table(RUNNING, width=width)
    for part in (
        "total 9,988", "processed 6,093", "ok 6,081", "failed 12 (rate_limit 9, invalid_output 3)", "success 99 %",
        "54 a minute", "tokens 1.9 M in, 600 k out", "spent $0.28", "held $0.47", "list $0.56", "saved $0.28",
        "elapsed 1:52:10", "ETA 1:12:00",
    ):  # fmt: skip
        assert part in table
    assert "missing" not in table
    assert "missing 3" in status_table(replace(RUNNING, missing=3), width=width)
    assert max(map(cells, table.splitlines())) <= width


def test_before_anything_is_known_nothing_is_invented() -> None:
    """Unknown pace, ETA and success rate are dashes, not zeros."""
    table = status_table(ProgressView("sending", 5))
    assert "success –" in table
    assert "– a minute" in table
    assert "ETA –" in table


@pytest.mark.parametrize("width", [20, 40, 60, 100, 200])
@INKS
def test_the_bar_line_fits_and_says_how_far(width: int, unicode: bool) -> None:
    """Phase, count and percent are there at any usable width, the bar and the item where there is room."""
    line = bar_line(replace(RUNNING, phase="waiting at a provider with a long name"), width=width, unicode=unicode)
    assert cells(line) <= width
    if width >= 60:
        assert "61 %" in line
        assert "6,093/9,988" in line
        assert ("━" in line) if unicode else ("[#" in line)
    if width == 200:
        assert line.endswith("aardvark")


def test_the_bar_is_full_only_when_all_is_done() -> None:
    """One open row leaves one empty cell."""
    assert bar(ProgressView("x", 1_000, ok=999), 10)[1] == "─"
    assert bar(ProgressView("x", 1_000, ok=999, expired=1), 10) == ("━" * 10, "")
    assert bar(ProgressView("x", 0), 4) == ("━" * 4, "")


@WIDTHS
@INKS
def test_the_end_report_adds_up_and_points_on(width: int, unicode: bool) -> None:
    """Counts sum to the rows, money is split, failures have kind, reason and example, next is a command."""
    report = end_report(ENDED, width=width, unicode=unicode)
    for part in (
        "finished with failures", "9,976 of 9,990 ok", "3 h 04 min", "rows 9,990 = ok 9,976 + failed 12 + invalid 2",
        "spent $0.46 (unproven $0.01)", "list $0.92", "saved $0.46 (50 %)", "rate_limit", "e.g. row 812",
        "next: nightmill retry 01K9ZC7QX --failed",
    ):  # fmt: skip
        assert part in report
    assert max(map(cells, report.splitlines())) <= width


def test_counts_that_do_not_add_up_are_not_hidden() -> None:
    """If a row were lost, the report would say so."""
    assert "do not add up" not in end_report(ENDED)
    assert "≠" in (wrong := end_report(replace(ENDED, rows=9_991)))
    assert "do not add up" in wrong


@pytest.mark.parametrize(
    ("end", "title"),
    [
        (EndView("completed", 3, 3), "✓ completed"),
        (EndView("completed", 3, 2, missing=1), "◆ finished with failures"),
        (EndView("failed", 3, 0, failed=3), "✗ failed"),
        (EndView("cancelled", 3, 1, cancelled=2), "– cancelled"),
        (
            EndView("paused", 3, 1, pending=2, stopped="the budget of $5.00 is used up"),
            "‖ stopped: the budget of $5.00",
        ),
        (EndView("running", 3, 1, pending=2), "◑ running"),
    ],
)
def test_the_end_is_named_for_what_happened(end: EndView, title: str) -> None:
    """A job with failures is never called completed, and a stop says why."""
    assert end_report(end).startswith(title)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@INKS
def test_the_jobs_table_fits_and_keeps_what_matters(width: int, unicode: bool) -> None:
    """Ids, states, counts and money are whole at any width; names are cut first."""
    lines = jobs_table(JOBS, width=width, unicode=unicode).splitlines()
    assert len(lines) == 3
    assert max(map(cells, lines)) <= width
    for part in ("01K9ZC7QX", "completed", "9,976/9,988", "$0.46"):
        assert part in lines[1]
    if width == 200:
        assert " ".join(lines[0].split()) == "ID NAME STATE OK/ROWS FAILED LANE MODEL SPENT SAVED AGE"
        assert "reviews-eu-with-a-long-name" in lines[1]
        assert lines[1].endswith("3 h")


def test_columns_stay_aligned_behind_wide_characters() -> None:
    """A name in a script of double width moves no column."""
    lines = jobs_table(JOBS, width=200).splitlines()
    at = cells(lines[1][: lines[1].index("completed")])
    assert cells(lines[2][: lines[2].index("running")]) == at


def test_no_jobs_says_how_to_begin() -> None:
    """An empty list is one sentence and a command."""
    assert "nightmill run" in jobs_table(())


def test_ascii_screens_are_ascii() -> None:
    """Where the terminal is not UTF-8, nothing but ASCII is printed, foreign names included."""
    screens = [
        quote_panel(replace(QUOTE, name="日本"), unicode=False),
        status_table(ProgressView("läuft", 5), unicode=False),
        bar_line(ProgressView("läuft", 5, ok=2, item="日本"), width=150, unicode=False),
        plain_line(ProgressView("läuft", 5), unicode=False),
        end_report(replace(ENDED, stopped="ü"), unicode=False),
        jobs_table(JOBS, unicode=False),
    ]
    assert all(screen.isascii() for screen in screens)
    assert re.search(r" \[#+-+\] ", bar_line(ProgressView("x", 11, ok=4), width=47, unicode=False))


def test_no_screen_lets_untrusted_text_through() -> None:
    """File names, answers and provider errors cannot reach the terminal unmarked, nor break a line."""
    evil = EVIL + "\nsecond line"
    view = replace(RUNNING, phase=evil, item=evil)
    group = FailureGroup("server_error", 1, evil, 1)
    screens = [
        quote_panel(replace(QUOTE, name=evil, model=evil, price_source=evil, notes=(evil,)), width=200),
        bar_line(view, width=400),
        plain_line(view),
        end_report(replace(ENDED, stopped=evil, failures=(group,), next=(evil,)), width=200),
        jobs_table([replace(JOBS[0], id=evil, name=evil, model=evil, lane=evil)], width=900),
        error_text(OverBudget(evil, why=evil, fix=evil)),
        error_text(ValueError(evil)),
    ]
    for screen in screens:
        assert not [c for c in screen if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
        assert not re.search("^second line", screen, re.MULTILINE)
    assert "\n" not in bar_line(view, width=400) + plain_line(view)


def test_errors_say_what_why_and_how_to_fix() -> None:
    """Every part has its label, further lines are indented under it, empty parts are left out."""
    error = OverBudget("the job needs at most $24.60", why="the budget has $3.08 free", fix="lower it\nor raise it")
    assert error_text(error) == (
        "error: the job needs at most $24.60\n  why: the budget has $3.08 free\n  fix: lower it\n       or raise it"
    )
    assert error_text(OverBudget("no")) == "error: no"
    assert error_text(ValueError("odd")) == "error: ValueError: odd"


@WIDTHS
def test_errors_fit_and_their_commands_stay_whole(width: int) -> None:
    """What and why go by words into lines that fit, each under its label; a command is one line, to be copied."""
    words = " ".join(f"word{n}" for n in range(40))
    fix = f"nightmill run {words}"
    told = error_text(OverBudget(words, why=f"{words}\n  {words}", fix=fix), width=width).split("\n")
    assert told[-1] == f"  fix: {fix}"
    either = error_text(OverBudget("no", fix=f"{words}\n{fix}"), width=width).split("\n")
    assert either[-1] == f"       {fix}"
    assert all(cells(line) <= width for line in either[:-1])
    assert all(cells(line) <= width for line in told[:-1])
    assert " ".join(" ".join(told[:-1]).split()) == f"error: {words} why: {words} {words}"
    assert all(line.startswith(("error: ", "  why: ", "       word", "         word")) for line in told[:-1])


@INKS
@WIDTHS
def test_a_table_loses_nothing_in_a_narrow_window(width: int, unicode: bool) -> None:
    """What of a row has no room stands below it under its heading's name; other rows stay on a line, aligned."""
    rows = [["BATCH", "STATUS", "DONE", "COST", ""],
            ["acme/" + "b" * 40, "in_progress", "7/40", "$0.000611", "words " * 9],
            ["acme/b", "done", "40/40", "$0.50", ""], ["c" * 230, "日本語", "1/1", "$1.00", "end"]]  # fmt: skip
    lines = table(rows, width=width, unicode=unicode, right=(2, 3))
    assert all(cells(line) <= width for line in lines)
    told = "".join("".join(lines).split())
    for row in rows[1:]:
        for cell in row:
            assert "".join(cell.split()) in (told if unicode else told.replace("\\u65e5\\u672c\\u8a9e", "日本語"))
    if width == 60:
        assert "  status in_progress " + ("·" if unicode else "|") + " done 7/40" in "\n".join(lines)


def test_the_table_of_what_fits_is_aligned() -> None:
    """Where there is room a row is a line, and numbers end under each other."""
    assert table([["A", "N", "WHY"], ["x", "7", "so"], ["yyy", "1,200", ""]], right=(1,)) == [
        "A        N  WHY", "x        7  so", "yyy  1,200",
    ]  # fmt: skip


@WIDTHS
def test_later_lines_of_a_check_are_indented(width: int) -> None:
    """What goes on stands under its text, not where the next check begins; nothing is lost, and it fits."""
    text = "  ✗ key: " + "word " * 60
    lines = fitted(text, width=width, hanging=4).split("\n")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert all(cells(line) <= width for line in lines)
    assert lines[0].startswith("  ✗ key:")
    assert all(line.startswith("      word") for line in lines[1:])
    assert fitted("", hanging=4) == ""


@INKS
@WIDTHS
def test_answers_are_a_line_each(width: int, unicode: bool) -> None:
    """Row, key and answer, each on one line that ends before the window does, as wide on every terminal."""
    rows = [("0", "k", "short"), ("1,000", "key " * 60, "a\nb " * 90), ("2", "👩\u200d👧 🇩🇪", "e" + "\u0301" * 90)]
    lines = answers_table(rows, width=width, unicode=unicode)
    assert len(lines) == 4
    assert all(cells(line) < width + 4 * line.count("\u0301") for line in lines)
    assert [line.split()[0] for line in lines] == ["ROW", "0", "1,000", "2"]
    if unicode:
        assert lines[3].split()[1:3] == ["👩👧", "DE"]


@INKS
@WIDTHS
def test_several_jobs_are_a_line_each(width: int, unicode: bool) -> None:
    """Below their sum each job says how far it is, those that go on first; of too many the rest is counted."""
    jobs = tuple(
        replace(RUNNING, phase="done", ok=9_988, failed=0, job_id=f"01K9ZC7Q{n:02d}", name="名" * 50) for n in range(12)
    )
    view = replace(
        RUNNING, jobs=(*jobs, replace(RUNNING, job_id="01K9ZC7QOPEN", name="spring")), leave=("Ctrl-C stops",)
    )
    lines = status_table(view, width=width, unicode=unicode).split("\n")
    assert all(len(line.encode()) <= width if not unicode else cells(line) <= width for line in lines)
    of_jobs = [line for line in lines if line.startswith(" 01K9")]
    assert len(of_jobs) == 10
    assert of_jobs[0].startswith(" 01K9ZC7QOPEN   61 %  6,093/9,988  waiting at acme")
    assert "  $0.28" in of_jobs[0]
    assert ("spring" in of_jobs[0]) is (width > 60)
    assert lines[-2:] == [" and 3 more jobs: nightmill jobs", " Ctrl-C stops"]


# -- progress


class Terminal(io.StringIO):
    """A stream that claims to be a terminal, and can be looked at as one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines a person sees."""
        screen = pyte.Screen(100, 40)
        screen.set_mode(pyte.modes.LNM)
        pyte.Stream(screen).feed(self.getvalue())
        return [line.rstrip() for line in screen.display]


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def at(ok: int, phase: str = "sending") -> ProgressView:
    return ProgressView(phase, 100, ok=ok)


def drawn(mode: Mode, stream: io.StringIO, clock: Clock, **env: str) -> Progress:
    return Progress(mode, stream, env, clock=clock, size=lambda: os.terminal_size((100, 24)))


@pytest.mark.parametrize(
    ("mode", "env", "on_terminal", "in_pipe"),
    [
        ("auto", {}, "bar", "plain"),
        ("auto", {"TERM": "dumb"}, "plain", "plain"),
        ("auto", {"CI": "true"}, "plain", "plain"),
        ("auto", {"CI": "false"}, "bar", "plain"),
        ("bar", {"CI": "true"}, "bar", "plain"),
        ("bar", {"TERM": "dumb"}, "plain", "plain"),
        ("auto", {"FORCE_COLOR": "1"}, "bar", "plain"),
        ("plain", {}, "plain", "plain"),
        ("json", {}, "json", "json"),
        ("none", {}, "none", "none"),
    ],
)
def test_the_renderer_fits_the_place(mode: Mode, env: dict[str, str], on_terminal: str, in_pipe: str) -> None:
    """Cursor codes go to terminals that a person watches, and nowhere else."""
    assert chosen_mode(mode, Terminal(), env) == on_terminal
    assert chosen_mode(mode, io.StringIO(), env) == in_pipe


def test_the_bar_is_redrawn_in_place() -> None:
    """After many updates and a note, one panel with the last numbers is on the screen, the note above it."""
    stream, clock = Terminal(), Clock()
    with drawn("bar", stream, clock) as progress:
        for ok in range(0, 100, 10):
            progress.update(replace(at(ok), missing=ok // 50))
            clock.now += 1
            if ok == 50:
                progress.note("stopping: 8 in hand\x1b[2J")
        progress.update(at(100, "collecting"))
    screen = stream.screen()
    assert screen[0] == "stopping: 8 in hand␛[2J"
    assert [line for line in screen if "100/100" in line] == [screen[1]]
    assert sum("processed" in line for line in screen) == 1
    assert "processed 100" in screen[2]


def test_the_cursor_is_never_lost() -> None:
    """However it ends, also by a kill that nobody hears of, the cursor is visible and below the panel."""
    stream = Terminal()
    progress = drawn("bar", stream, Clock())

    def interrupted() -> None:
        with progress:
            progress.update(at(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    progress.close()
    assert "\x1b[?25l" not in stream.getvalue()
    assert stream.getvalue().endswith("\n\x1b[J")


@pytest.mark.parametrize("reflows", [True, False])
def test_a_narrower_window_keeps_one_panel(reflows: bool) -> None:
    """Where the terminal breaks old lines anew, the panel's beginning is so many lines further up; else it is not."""
    stream, clock, columns = Terminal(), Clock(), [100]
    env = {} if reflows else {"XTERM_VERSION": "XTerm(390)"}
    progress = Progress("bar", stream, env, clock=clock, size=lambda: os.terminal_size((columns[0], 24)))
    progress.update(RUNNING)
    drawn_lines = stream.getvalue().split("\n")[:-1]
    clock.now += 1
    columns[0] = 60
    before = len(stream.getvalue())
    progress.update(RUNNING)
    up = re.match(r"\x1b\[(\d+)F", stream.getvalue()[before:])
    assert up is not None
    seen = [re.sub(r"\x1b\[\d*[A-Za-z]", "", line) for line in drawn_lines]
    assert int(up[1]) == (sum(-(-len(line) // 60) for line in seen) if reflows else len(seen))
    assert max(cells(line) for line in seen) > 60


def test_a_low_window_is_not_scrolled() -> None:
    """In a window of four lines the panel has three, and is drawn over like any other."""
    stream, clock = Terminal(), Clock()
    with Progress("bar", stream, {}, clock=clock, size=lambda: os.terminal_size((60, 4))) as progress:
        for ok in (1, 2, 3):
            progress.update(at(ok))
            clock.now += 1
    screen = [line for line in stream.screen() if line]
    assert len(screen) == 3
    assert "3/100" in screen[0]


def test_what_keeps_a_job_is_told_once() -> None:
    """Trouble is told at once and in its own words; one that comes and goes fills no log."""
    stream, clock = io.StringIO(), Clock()
    with drawn("plain", stream, clock) as progress:
        for trouble in ("", "no network\x1b[2J", "", "no network\x1b[2J", "no money", ""):
            progress.update(replace(at(1), trouble=trouble))
    lines = stream.getvalue().splitlines()
    assert [line.partition("waits: ")[2] for line in lines] == ["", "no network␛[2J", "no money", ""]
    panel = status_table(replace(RUNNING, trouble="word " * 100, leave=("Ctrl-C stops",)), width=60).split("\n")
    assert sum("word" in line for line in panel) == 3
    assert [line[-1] for line in panel if "word" in line][-1] == "…"
    assert panel[-1] == " Ctrl-C stops"


def test_the_bar_draws_at_most_ten_times_a_second_but_always_the_last() -> None:
    """A thousand updates at one moment are two drawings."""
    stream = Terminal()
    with drawn("bar", stream, Clock()) as progress:
        for ok in range(100):
            progress.update(at(ok))
    assert stream.getvalue().count("sending") == 2
    assert "99/100" in stream.getvalue()


def test_no_color_means_none() -> None:
    """NO_COLOR leaves cursor movement and takes every colour away."""
    for env, coloured in (({"NO_COLOR": "1"}, False), ({}, True)):
        stream = Terminal()
        with drawn("bar", stream, Clock(), **env) as progress:
            progress.update(at(50))
        assert bool(re.search(r"\x1b\[\d*m", stream.getvalue())) is coloured


def test_plain_lines_come_now_and_then() -> None:
    """One at the start, at tenths, after a minute, at a change of phase, and at the end; no cursor codes."""
    stream, clock = io.StringIO(), Clock()
    with drawn("plain", stream, clock) as progress:
        for ok in (0, 1, 9, 10, 11, 25):  # lines: 0 (start), 10 and 25 (tenths)
            progress.update(at(ok))
        clock.now += 59
        progress.update(at(26))
        clock.now += 1
        progress.update(at(27))  # a minute after the last line
        progress.update(at(27, "collecting"))
        progress.update(at(28, "collecting"))  # the end
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [re.findall(r"(\d+)/100", line)[0] for line in lines] == ["0", "10", "25", "27", "27", "28"]
    assert lines[4].startswith("collecting")
    assert "\x1b" not in stream.getvalue()


def test_json_progress_is_one_object_a_line() -> None:
    """Every line parses strictly, at most one a second and one at each change, the last one complete."""
    stream, clock = io.StringIO(), Clock()
    with drawn("json", stream, clock) as progress:
        for ok in (1, 2):
            progress.update(at(ok))
        clock.now += 1
        progress.update(at(3))
        progress.note("paused: \x1b no money")
        progress.update(replace(RUNNING, phase="collecting", eta_s=float("inf")))
        progress.update(replace(RUNNING, phase="collecting", job_id="01K9", eta_s=None))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    objects = [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]
    assert [item["event"] for item in objects] == ["progress", "progress", "note", "progress", "progress"]
    assert [item.get("processed") for item in objects] == [1, 3, None, 6_093, 6_093]
    last = objects[-1]
    assert (last["job_id"], last["succeeded"], last["failures"]) == (
        "01K9",
        6_081,
        {"rate_limit": 9, "invalid_output": 3},
    )
    assert (last["spent_usd"], last["held_usd"], last["eta_s"]) == (0.28, 0.47, None)


def test_none_is_silent() -> None:
    """--progress none writes nothing at all."""
    stream = Terminal()
    with drawn("none", stream, Clock()) as progress:
        progress.update(at(1))
        progress.note("quiet")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("mode", ["bar", "plain", "json"])
def test_a_stream_that_goes_away_stops_no_run(mode: Mode) -> None:
    """A closed terminal silences progress; the paid work goes on."""

    class Gone(Terminal):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise BrokenPipeError

    for stream in (Gone(), Terminal()):
        with drawn(mode, stream, Clock()) as progress:
            if not isinstance(stream, Gone):
                stream.close()
            progress.update(at(1))
            progress.update(at(2, "collecting"))
        assert getattr(stream, "tries", 1) == 1


def test_a_stream_of_another_encoding_gets_what_it_can_carry() -> None:
    """Where UTF-8 is not spoken, the bar is ASCII and notes are escaped, never an error."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1", newline="\n")
    with Progress("plain", stream, {}, clock=Clock()) as progress:
        progress.update(at(1, "wartet auf 日本"))
        progress.note("日本")
    assert rb"wartet auf \u65e5\u672c" in raw.getvalue()
    assert raw.getvalue().endswith(b"\\u65e5\\u672c\n")
