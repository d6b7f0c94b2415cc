"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nightmill

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/nightmill"
MODULES = sorted(SOURCE.rglob("*.py"))
MOST_FUNCTION_LINES = 60
MOST_MODULE_LINES = 900
HEAVY = {"sqlalchemy", "alembic", "pyarrow", "aiohttp", "pydantic", "rich", "jinja2", "genai_prices", "zstandard"}
HEAVY |= {"jsonschema_rs", "dotenv", "asyncio", "xllamacpp"}
PROVIDER_NAME = re.compile("openai|anthropic|gemini", re.IGNORECASE)
MADE_OF_TYPES = ("decode", "convert", "Decoder")
# Layers that must not know whom they talk to.
NAMELESS = ("lanes", "engine", "plan", "collect", "ledger", "mill", "cli")
BEHIND_THE_MILL = ("ledger", "store", "desk")


def name(module: Path) -> str:
    return module.relative_to(SOURCE).as_posix()


every_module = pytest.mark.parametrize("module", MODULES, ids=name)


def test_the_command_line_starts_light() -> None:
    """Importing the command line loads nothing heavy, so `nightmill --help` answers at once."""
    code = "import sys, nightmill.cli, nightmill.config; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    assert "nightmill" in loaded
    assert loaded & HEAVY == set()


@every_module
def test_functions_and_modules_stay_short(module: Path) -> None:
    """No function is longer than 60 lines, no module longer than 900."""
    text = module.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_MODULE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > MOST_FUNCTION_LINES]
    assert long == []


@every_module
def test_every_module_says_what_it_is(module: Path) -> None:
    """The first thing in a module is a docstring."""
    assert ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))


@every_module
def test_decoders_of_our_types_are_made_at_import(module: Path) -> None:
    """Two threads that have msgspec look at a type for the first time at once end the process: no function makes it."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    ours |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module for a in n.names
             if n.module.startswith("nightmill") and a.name[:1].isupper()} | {"cls"}  # fmt: skip
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    calls = [n for function in functions for n in ast.walk(function) if isinstance(n, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in MADE_OF_TYPES]
    told = [(call.lineno, node.id) for call in made for given in (*call.args, *(k.value for k in call.keywords))
            for node in ast.walk(given) if isinstance(node, ast.Name) and node.id in ours]  # fmt: skip
    assert told == []


@pytest.mark.parametrize(
    "module", [m for m in MODULES if name(m).split("/")[0].removesuffix(".py") in NAMELESS], ids=name
)
def test_no_provider_is_named_outside_the_providers(module: Path) -> None:
    """What decides and what shows treats all providers alike; not even a comment names one."""
    lines = module.read_text(encoding="utf-8").splitlines()
    assert [f"{at}: {line.strip()}" for at, line in enumerate(lines, 1) if PROVIDER_NAME.search(line)] == []


@pytest.mark.parametrize("module", sorted((SOURCE / "cli").glob("*.py")), ids=name)
def test_commands_ask_the_mill_only(module: Path) -> None:
    """No command reaches past the mill's verbs into the ledger, the files or the desk."""
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    reached = [f"{n.lineno}: .{n.attr}" for n in nodes if isinstance(n, ast.Attribute) and n.attr in BEHIND_THE_MILL]
    assert reached == []


def test_the_public_names_are_listed_sorted_and_real() -> None:
    """``nightmill.__all__`` is sorted, each of its names can be had, and nothing public is left out of it."""
    listed = list(getattr(nightmill, "__all__", []))
    assert listed == sorted(set(listed))
    for public in listed:
        assert getattr(nightmill, public) is not None
    here = {n for n, value in vars(nightmill).items() if not n.startswith("_") and not isinstance(value, ModuleType)}
    assert here - set(listed) - {"annotations"} == set()
    assert listed or not hasattr(nightmill, "__getattr__"), "lazy names need an __all__"


@pytest.fixture
def reqs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reqs", ROOT / "scripts/reqs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mark_names_a_requirement(reqs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """No test claims a requirement that does not exist."""
    status = reqs.main(ROOT / "tests")
    assert capsys.readouterr().err == ""
    assert status == 0


def test_what_is_met_keeps_a_test(reqs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list fails when a requirement that is met has no test left, and says which."""
    tests = tmp_path / "tests"
    tests.mkdir()
    marks = ", ".join(repr(requirement) for requirement in reqs.MET if requirement != "X2")
    (tests / "test_some.py").write_text(f"import pytest\npytestmark = pytest.mark.req({marks})\n")
    assert reqs.main(tests) == 1
    assert capsys.readouterr().err == "X2 (a budget that cannot be crossed) has no test any more\n"
    (tests / "test_other.py").write_text("import pytest\npytestmark = pytest.mark.req('X2')\n")
    assert reqs.main(tests) == 0


def test_marks_are_found_wherever_they_stand(
    reqs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function, a class and a whole module can claim requirements; an unknown one fails the list."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.req('A1')]\n"
        "@pytest.mark.req('B2', 'X13')\n"
        "class TestIt:\n"
        "    @pytest.mark.req('Z9')\n"
        "    async def test_that(self): ...\n"
    )
    assert reqs.main(tests) == 1
    shown = capsys.readouterr()
    assert re.search(r"^A1 .*\n +tests/test_some.py$", shown.out, re.MULTILINE)
    assert re.search(r"^X13 .*\n +tests/test_some.py::TestIt$", shown.out, re.MULTILINE)
    assert "3 of 54" in shown.out
    assert "tests/test_some.py::TestIt::test_that (line 5): no requirement is called 'Z9'" in shown.err


def test_settings_of_the_tools_are_the_promised_ones() -> None:
    """Types are strict, warnings are errors, and the import contract leaves no module out."""
    import tomllib

    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["mypy"]["strict"] is True
    assert tools["pytest"]["ini_options"]["filterwarnings"] == ["error"]
    layers = next(c for c in tools["importlinter"]["contracts"] if c["type"] == "layers")
    assert layers["exhaustive"] is True


def test_parquet_behind_a_stream_of_ours_is_read_by_the_thread_that_asks() -> None:
    """Arrow's own threads would let go of it as the interpreter ends, now and then, and that aborts the process."""
    reads = re.compile(r"\.(?:read_row_groups?|iter_batches)\([^\n]*(?:\n[^\n]*){0,4}")
    for path in sorted((ROOT / "src/nightmill").rglob("*.py")):
        if path.parts[-2:] == ("sources", "columnar.py"):  # reads files by their path
            continue
        for call in reads.findall(path.read_text(encoding="utf-8")):
            assert "use_threads=False" in call, f"{path}: {call}"
