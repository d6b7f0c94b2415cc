"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

import datetime as dt
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from nightmill.config import Environment, Settings, Timing, exact_usd, find_file, load_settings, parse_by, parse_usd
from nightmill.errors import UsageError
from nightmill.providers import Limits

SECRET = "sk-very-secret"


def load(folder: Path, toml: str | None = None, dotenv: str | None = None, **environ: str) -> Settings:
    if toml is not None:
        (folder / "nightmill.toml").write_text(toml, encoding="utf-8")
    if dotenv is not None:
        (folder / ".env").write_text(dotenv, encoding="utf-8")
    return load_settings(folder, {"HOME": str(folder / "me"), **environ})


def refusal(folder: Path, toml: str | None = None, **environ: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder, toml, **environ)
    return caught.value


def test_defaults_without_any_file(tmp_path: Path) -> None:
    """With nothing configured, every setting has its documented default."""
    settings = load(tmp_path)
    assert settings.home == tmp_path / "me/.nightmill"
    assert settings.file is None
    assert settings.timing == Timing()
    assert (settings.default_lane, settings.zone, settings.log_level) == ("auto", "UTC", "INFO")
    assert settings.budget_total_nanos is None
    assert settings.default_temperature is None


def test_a_full_file_is_read(tmp_path: Path) -> None:
    """Every documented table and key arrives, paths relative to the file, prices exact."""
    settings = load(
        tmp_path,
        """
        [budget]
        total = 5
        day = 0.1
        month = "12.345678901"
        zone = "Europe/Berlin"
        [defaults]
        model = "acme/fast"
        lane = "batch"
        temperature = 0
        max_output = 300
        [models."acme/fast"]
        price = { input = 0.1, output = 2 }
        path = "fast.gguf"
        [models."python:mine.grade"]
        price = "free"
        [providers.acme]
        base_url = "http://127.0.0.1:9/v1"
        api_key_env = "ACME_KEY"
        limits = { concurrency = 8, rpm = 60 }
        [tasks]
        folders = ["tasks", "~/mine"]
        [timing]
        poll_s = 0.5
        looks_s = [0, 1]
        """,
    )
    nanos = (settings.budget_total_nanos, settings.budget_day_nanos, settings.budget_month_nanos)
    assert nanos == (5_000_000_000, 100_000_000, 12_345_678_901)
    assert settings.zone == "Europe/Berlin"
    assert (settings.default_model, settings.default_lane) == ("acme/fast", "batch")
    assert (settings.default_temperature, settings.default_max_output) == (0.0, 300)
    model = settings.models["acme/fast"]
    assert str(model["price"]["input"]) == "0.1"  # type: ignore[index]
    assert model["path"] == str(tmp_path / "fast.gguf")
    assert settings.models["python:mine.grade"] == {"price": "free"}
    limits = {"concurrency": 8, "rpm": 60}
    acme = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "ACME_KEY", "limits": limits}
    assert settings.providers["acme"] == acme
    assert settings.task_folders == (tmp_path / "tasks", tmp_path / "me/mine")
    assert (settings.timing.poll_s, settings.timing.looks_s) == (0.5, (0.0, 1.0))


def test_every_limit_of_a_provider_can_be_set(tmp_path: Path) -> None:
    """A limit that providers know is never an unknown key."""
    lines = "\n".join(f"{name} = 7" for name in Limits.__slots__)
    settings = load(tmp_path, f"[providers.acme.limits]\n{lines}\n")
    assert settings.providers["acme"]["limits"] == dict.fromkeys(Limits.__slots__, 7)


def test_the_environment_wins_over_dotenv_and_dotenv_over_the_file(tmp_path: Path) -> None:
    """Precedence is file < .env < environment."""
    toml = "[timing]\npoll_s = 10\n"
    assert load(tmp_path, toml).timing.poll_s == 10
    assert load(tmp_path, toml, "BATCH_CHECK_INTERVAL=20\n").timing.poll_s == 20
    assert load(tmp_path, toml, "BATCH_CHECK_INTERVAL=20\n", BATCH_CHECK_INTERVAL="30").timing.poll_s == 30


def test_a_poll_interval_from_the_environment_does_not_grow(tmp_path: Path) -> None:
    """BATCH_CHECK_INTERVAL says exactly how often a provider is asked."""
    timing = load(tmp_path, BATCH_CHECK_INTERVAL="900").timing
    assert (timing.poll_s, timing.poll_max_s) == (900, 900)


def test_a_long_poll_in_the_file_lifts_its_own_ceiling(tmp_path: Path) -> None:
    """poll_s above the default poll_max_s needs no second key."""
    assert load(tmp_path, "[timing]\npoll_s = 1200\n").timing.poll_max_s == 1200


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_senseless_poll_interval_is_refused_by_name(tmp_path: Path, text: str) -> None:
    """The refusal names the variable, as typed."""
    assert f"BATCH_CHECK_INTERVAL={text}" in refusal(tmp_path, BATCH_CHECK_INTERVAL=text).what


def test_the_nearest_file_upward_counts_then_the_home(tmp_path: Path) -> None:
    """nightmill.toml is searched from the working folder upward, then in the home."""
    home, inner = tmp_path / "home", tmp_path / "project/deep/er"
    for folder in (home, inner):
        folder.mkdir(parents=True)
    assert find_file(inner, home) is None
    (home / "nightmill.toml").touch()
    assert find_file(inner, home) == home / "nightmill.toml"
    (tmp_path / "project/nightmill.toml").touch()
    assert find_file(inner, home) == tmp_path / "project/nightmill.toml"


def test_home_is_absolute_and_may_come_from_dotenv(tmp_path: Path) -> None:
    """A relative NIGHTMILL_HOME is taken from the working folder, wherever it was set."""
    assert load(tmp_path, NIGHTMILL_HOME=".demo").home == tmp_path / ".demo"
    assert load(tmp_path, dotenv="NIGHTMILL_HOME=~/mill\n").home == tmp_path / "me/mill"


def test_keys_never_show(tmp_path: Path) -> None:
    """No repr shows a value of the environment."""
    settings = load(tmp_path, dotenv=f"A_KEY={SECRET}\n", B_KEY=SECRET)
    assert settings.env["A_KEY"] == settings.env["B_KEY"] == SECRET
    assert SECRET not in f"{settings!r} {settings.env!r} {settings.env}"


def test_a_database_is_refused_while_it_would_be_ignored(tmp_path: Path) -> None:
    """Whoever names a database is not left with a SQLite file, and its password is not repeated."""
    with pytest.raises(UsageError) as caught:
        load(tmp_path, NIGHTMILL_DB=f"postgresql://me:{SECRET}@127.0.0.1/mill")
    error = caught.value
    assert "NIGHTMILL_DB" in error.what
    assert error.why
    assert "unset NIGHTMILL_DB" in error.fix
    assert SECRET not in f"{error.what} {error.why} {error.fix}"


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ('models."a/b"', 'aliases = ["fast"]'),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(tmp_path: Path, table: str, line: str) -> None:
    """What has no effect yet is refused by file, table and name, whatever its value."""
    error, key = refusal(tmp_path, f"[{table}]\n{line}\n"), line.split()[0]
    assert error.what == f"{tmp_path / 'nightmill.toml'} [{table}]: {key} is not supported yet"
    assert error.why
    assert error.fix == f"remove {key}"


def test_settings_can_be_sent_to_a_worker_process(tmp_path: Path) -> None:
    """Settings survive pickling, keys included."""
    settings = load(tmp_path, "[models.'a/b']\nprice = { input = 0.25, output = 1 }\n", A_KEY=SECRET)
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert again.env["A_KEY"] == SECRET


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """The refusal gives the file, the table, the key and what was probably meant."""
    error = refusal(tmp_path, "[timing]\npol_s = 3\n")
    assert f"{tmp_path / 'nightmill.toml'} [timing]: unknown key pol_s" in error.what
    assert error.fix == "did you mean poll_s?"


@pytest.mark.parametrize(
    ("toml", "said", "meant"),
    [
        ("[budgets]\ntotal = 1\n", "unknown table [budgets]", "budget"),
        ("[models.'a/b']\nprce = 1\n", 'models."a/b"]: unknown key prce', "price"),
        ("[models.'a/b'.price]\ninput=1\noutput=1\ncache_input = 1\n", "unknown key cache_input", "cached_input"),
        ("[providers.acme.limits]\nrqm = 1\n", "[providers.acme.limits]: unknown key rqm", "rpm"),
    ],
)
def test_unknown_names_are_refused_at_every_depth(tmp_path: Path, toml: str, said: str, meant: str) -> None:
    """A misspelt table, model key or limit never passes silently."""
    error = refusal(tmp_path, toml)
    assert said in error.what
    assert meant in error.fix


@pytest.mark.parametrize(
    "toml",
    [
        "[timing]\npoll_s = 'often'\n",
        "[timing]\npoll_s = true\n",
        "[timing]\npoll_s = 0\n",
        "[timing]\npoll_s = inf\n",
        "[timing]\nlooks_s = [30, 0]\n",
        "[timing]\nlooks_s = []\n",
        "[timing]\nlooks_s = 30\n",
        "[timing]\nbackoff_first_s = 90\n",
        "[timing]\nlease_s = 150\n",
        "[budget]\ntotal = -1\n",
        "[budget]\ntotal = 0.0000000001\n",
        "[budget]\ntotal = true\n",
        "[budget]\ntotal = [1]\n",
        "[budget]\nzone = 'Mars/Olympus'\n",
        "[budget]\nzone = '../etc'\n",
        "[defaults]\nlane = 'fast'\n",
        "[defaults]\ntemperature = -0.1\n",
        "[defaults]\nmax_output = 2.5\n",
        "[defaults]\nmodel = ''\n",
        "[models.'a/b']\nprice = 'cheap'\n",
        "[models.'a/b']\nprice = 0.5\n",
        "[models.'a/b']\nprice = { input = 1 }\n",
        "[models.'a/b'.price]\noutput = 1\ninput = -1\n",
        "[models.'a/b']\nprice = {}\n",
        "[models.'a/b'.price]\noutput = 1\ninput = nan\n",
        "[models.'a/b']\npath = ''\n",
        "[models]\n'a/b' = 3\n",
        "[models.plain]\nprice = 'free'\n",
        "[providers.acme]\nbase_url = 1\n",
        "[providers.acme]\nlimits = 5\n",
        "[providers.acme.limits]\nrpm = 0\n",
        "[tasks]\nfolders = 'tasks'\n",
        "budget = 5\n",
    ],
)
def test_wrong_values_are_refused_naming_file_and_key(tmp_path: Path, toml: str) -> None:
    """Whatever has the wrong type or range is refused, with the file and the last name in it."""
    error = refusal(tmp_path, toml)
    assert str(tmp_path / "nightmill.toml") in error.what
    key = toml.strip().splitlines()[-1].split("=")[0].strip(" '")
    assert key in error.what or "plain" in error.what
    assert error.fix


def test_bad_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    """A syntax error names the file and the line."""
    error = refusal(tmp_path, "[budget]\ntotal = = 5\n")
    assert str(tmp_path / "nightmill.toml") in error.what
    assert "line 2" in error.why


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    """Neither settings file may be in another encoding, and the message says which one is."""
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    assert ".env" in refusal(tmp_path).what
    (tmp_path / ".env").unlink()
    (tmp_path / "nightmill.toml").write_bytes(b"# \xff\n")
    assert "nightmill.toml" in refusal(tmp_path).what


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """Files saved by editors that add a BOM are read like any other."""
    assert load(tmp_path, "\ufeff[budget]\ntotal = 1\n").budget_total_nanos == 1_000_000_000


@pytest.mark.parametrize(("text", "level"), [("debug", "DEBUG"), ("warn", "WARNING"), ("", "INFO")])
def test_log_level_is_taken_from_the_environment(tmp_path: Path, text: str, level: str) -> None:
    """LOG_LEVEL may be written in any case."""
    assert load(tmp_path, LOG_LEVEL=text).log_level == level


def test_an_unknown_log_level_is_refused(tmp_path: Path) -> None:
    """The refusal lists the levels there are."""
    error = refusal(tmp_path, LOG_LEVEL="loud")
    assert "LOG_LEVEL=loud" in error.what
    assert "WARNING" in error.fix


def test_a_lease_too_short_to_send_under_is_refused() -> None:
    """lease_s must leave room for the longest call and the margin; the boundary itself does not."""
    with pytest.raises(UsageError, match="lease_s"):
        Timing(lease_s=150)
    assert Timing(lease_s=150.5).lease_s == 150.5
    with pytest.raises(UsageError, match="lease_s"):
        replace(Timing(), create_timeout_s=170)


def test_an_environment_reads_like_a_mapping() -> None:
    """Providers look keys up in it as in any mapping."""
    env = Environment({"A": "1"})
    assert (dict(env), env.get("B"), len(env), "A" in env) == ({"A": "1"}, None, 1, True)
    assert env == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("5", 5_000_000_000),
        (" $2.50 ", 2_500_000_000),
        ("0", 0),
        ("0.000000001", 1),
        ("0.1000000000000", 100_000_000),
        ("1e-9", 1),
        ("9000000000", 9_000_000_000_000_000_000),
        ("12345678.123456789", 12_345_678_123_456_789),
    ],
)
def test_dollars_become_nanos_exactly(text: str, nanos: int) -> None:
    """No binary fraction comes between what was typed and what is booked."""
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    ("nanos", "text"), [(0, "$0.00"), (1_500_000_000, "$1.50"), (-832_375, "-$0.000832375"), (-2_000_000_000, "-$2.00")]
)
def test_nanos_are_said_exactly(nanos: int, text: str) -> None:
    """A limit that was set below what is spent has less than nothing free, and as much less as is said."""
    assert exact_usd(nanos) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a number"),
        ("five", "not a number"),
        ("1,50", "not a number"),
        ("nan", "finite"),
        ("sNaN", "finite"),
        ("inf", "finite"),
        ("-1", "negative"),
        ("0.0000000001", "9 decimals"),
        ("1.0000000005", "9 decimals"),
        ("1e-400000", "9 decimals"),
        ("9000000001", "more than"),
        ("1e400000", "more than"),
    ],
)
def test_what_is_no_amount_is_refused_with_the_reason(text: str, why: str) -> None:
    """Typing errors in money are never rounded away."""
    with pytest.raises(UsageError) as caught:
        parse_usd(text)
    assert why in caught.value.why


NOON = dt.datetime(2027, 1, 31, 12, 0).timestamp()  # noqa: DTZ001 (by the clock of the machine that runs this)


@pytest.mark.req("X3")
@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("6h", NOON + 6 * 3600),
        ("90m", NOON + 5400),
        ("90min", NOON + 5400),
        ("1d12h", NOON + 1.5 * 86_400),
        ("0.5h", NOON + 1800),
        ("20s", NOON + 20),
        (" 13:00 ", NOON + 3600),
        ("8:00", NOON + 20 * 3600),  # of the next morning
        ("12:00", NOON + 86_400),
        ("2027-02-01T08:00", NOON + 20 * 3600),
        ("2027-02-01 08:00", NOON + 20 * 3600),
        ("2027-03-01T00:00:00+00:00", dt.datetime(2027, 3, 1, tzinfo=dt.UTC).timestamp()),
        ("2027-03-01T00:00Z", dt.datetime(2027, 3, 1, tzinfo=dt.UTC).timestamp()),
    ],
)
def test_deadlines_are_times_of_day_dates_and_spans(text: str, at: float) -> None:
    """A time of day is the next time that it is so late here, a span counts from now, a date is taken at its word."""
    assert parse_by(text, NOON) == at


@pytest.mark.req("X3")
@pytest.mark.parametrize(
    "text",
    ["", "soon", "24:00", "12:60", "6", "h", "6 h", "6x", "-1h", "1e3h", "2027-02-01", "2027-01-31T11:59", "0s", "0h0m",
     "12:00:00:00", "400d", "9999-12-31T23:59", "0001-01-01T00:00", "\uff11h", "6h\n7h", "nan", "inf"],
)  # fmt: skip
def test_what_is_no_deadline_is_refused_with_a_way_out(text: str) -> None:
    """Nobody's typing error becomes a deadline at some other time."""
    with pytest.raises(UsageError) as caught:
        parse_by(text, NOON)
    assert caught.value.fix
    assert caught.value.why
