"""Claim: ``nightmill --help`` loads nothing heavy, so that it is there at once.

Beside the list of modules, the wall time of the command is set against an interpreter that does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from _kit import Figure, arguments, report

HEAVY = frozenset(
    {"aiohttp", "alembic", "asyncio", "genai_prices", "jinja2", "jsonschema_rs", "openai", "pyarrow", "pydantic",
     "rich", "sqlalchemy", "xllamacpp"}
)  # fmt: skip
NOTHING = [sys.executable, "-c", "pass"]
FACTOR = 15.0  # an interpreter that does nothing takes about 15 ms; beyond 15 times that a person waits
LIST = """
import sys
from nightmill.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def main() -> int:
    given = arguments(__doc__, rounds=9)
    loaded = modules()
    heavy = sorted(HEAVY & set(loaded))
    help_s, nothing_s = [], []
    for _ in range(given.rounds):
        help_s.append(wall_s([sys.executable, "-c", "from nightmill.cli import main; main(['--help'])"]))
        nothing_s.append(wall_s(NOTHING))
    ratio = median(ours / rival for ours, rival in zip(help_s, nothing_s, strict=True))
    outside = [name for name in loaded if name not in sys.stdlib_module_names]
    return report(
        [
            Figure("heavy modules that nightmill --help loads", len(heavy), 0, "modules", at_most=True,
                   note="; ".join(filter(None, (", ".join(heavy), "of other people's: " + ", ".join(outside))))),
            Figure("wall time of nightmill --help, beside python -c pass", ratio, FACTOR, at_most=True,
                   note=f"{median(help_s) * 1e3:.0f} ms beside {median(nothing_s) * 1e3:.0f} ms"),
        ],
        as_json=given.json,
    )  # fmt: skip


def modules() -> list[str]:
    """The top-level modules that are loaded once the help has been shown."""
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


def wall_s(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
