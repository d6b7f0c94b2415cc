"""A ledger that an older nightmill made gets what is new: tables and columns; nothing is changed or dropped."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from nightmill.ledger import schema


class _AddColumn(ExecutableDDLElement):
    """A column for a table that is there."""

    def __init__(self, column: Column[Any]) -> None:
        self.column = column


@compiles(_AddColumn)
def _add_column(element: _AddColumn, compiler: DDLCompiler, **_: Any) -> str:
    table = compiler.preparer.format_table(element.column.table)
    return f"ALTER TABLE {table} ADD COLUMN {compiler.process(CreateColumn(element.column))}"


def add_columns(connection: Connection) -> None:
    """Columns that tables lack. Each is empty or has a default, so that old rows are whole at once."""
    seen = inspect(connection)
    for table in schema.metadata.sorted_tables:
        there = {column["name"] for column in seen.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                connection.execute(_AddColumn(column))
