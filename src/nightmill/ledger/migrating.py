"""A ledger that an older nightmill made gets what is new: tables and columns; nothing is changed or dropped."""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text
from sqlalchemy.schema import CreateColumn

from nightmill.ledger import schema


def add_columns(connection: Connection) -> None:
    """Columns that tables lack. Each is empty or has a default, so that old rows are whole at once."""
    seen = inspect(connection)
    for table in schema.metadata.sorted_tables:
        there = {column["name"] for column in seen.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                spec = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {spec}"))
