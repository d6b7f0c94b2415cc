"""One SQL for both databases: nothing outside one file is SQLite's own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ledger_kit import _compiled, bring, compile_for_postgres, done, publish
from sqlalchemy import insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

import nightmill.ledger
from nightmill.ledger import Ledger, schema
from nightmill.types import ShardState

FOLDER = Path(nightmill.ledger.__file__).parent
SHARED = [path for path in sorted(FOLDER.glob("*.py")) if not path.name.startswith(("_sqlite", "_postgres"))]


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=lambda table: table.name)
def test_every_table_is_one_of_postgres_too(table: schema.Table) -> None:
    """Tables and indexes are written down in words that Postgres has."""
    text = str(CreateTable(table).compile(dialect=postgresql.dialect()))
    assert f"CREATE TABLE {table.name}" in text
    for column in table.columns:
        assert column.name in text
    for index in table.indexes:
        made = str(CreateIndex(index).compile(dialect=postgresql.dialect()))
        if index.unique:  # one unfinished job per fingerprint and name: a partial index there too
            assert "WHERE state IN" in made


@pytest.mark.parametrize("module", SHARED, ids=lambda path: path.name)
def test_shared_modules_speak_no_dialect(module: Path) -> None:
    """No SQL as text, no driver, no dialect: only what SQLAlchemy writes for either database."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    called = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    assert not called & {"exec_driver_sql", "prefix_with", "suffix_with", "op", "with_hint", "executescript"}
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert not [name for name in imported if name.startswith(("sqlite3", "sqlalchemy.dialects", "psycopg"))]
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "text"]
    assert not texts or module.name == "schema.py"  # defaults and partial indexes, compiled above


def test_every_statement_is_compiled_for_postgres(ledger: Ledger) -> None:
    """Whatever these tests make the ledger run is compiled for Postgres on the way."""
    _compiled.clear()
    publish(ledger)
    shard = bring(ledger, ShardState.COLLECTING)
    ledger.settle(shard, done(shard))
    assert len(_compiled) > 20


def test_what_only_sqlite_understands_is_caught() -> None:
    """The check would see a statement that Postgres cannot run."""
    compile_for_postgres(select(schema.jobs))
    with pytest.raises(AssertionError):
        compile_for_postgres(insert(schema.meta).prefix_with("OR REPLACE"))
