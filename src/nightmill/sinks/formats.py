"""One writer a format: takes batches of `RESULT_SCHEMA`, writes to an open binary file."""

from __future__ import annotations

import csv
import io
from typing import Any, BinaryIO, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from nightmill.files import GROUP_ROWS
from nightmill.sinks import columns
from nightmill.sinks.about import About
from nightmill.sinks.vectors import EMBEDDING, as_json

# Few distinct values, where a dictionary pays; on prompts and answers it only costs.
_REPETITIVE = ("error_kind", "finish_reason", "model", "provider", "lane", "shard", "batch_id")
_FORMULA = r"^[=+\-@\t\r]"
_NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\z"


class Writer(Protocol):
    def write(self, batch: pa.RecordBatch) -> None: ...
    def close(self) -> None:
        """Write what is still held; the file itself stays open."""
        ...

    def abandon(self) -> None:
        """Leave the file as it is: something went wrong, and it will be removed."""
        ...


class RowLines:
    """Results as JSON, one object a line; ``parsed`` is the JSON value itself, an embedding a list."""

    def __init__(self, about: About) -> None:
        self._embeds = about.vectors is not None
        names = columns.output_names(embeds=self._embeds)
        self._row = msgspec.defstruct("Row", [(name, Any) for name in names], gc=False)
        self._encode = msgspec.json.Encoder().encode_lines

    def encoded(self, batch: pa.RecordBatch) -> bytes:
        """A line for each row; nothing inside one is a line end."""
        values: list[list[Any]] = []
        for name in columns.RESULT_SCHEMA.names:
            column = batch.column(name)
            if name == columns.COST:
                values.append(columns.usd_column(column).to_pylist())
            elif name == columns.PARSED:
                values.append([_raw_json(text) for text in column.to_pylist()])
            elif name == EMBEDDING:
                values += [[text and msgspec.Raw(text) for text in as_json(column).to_pylist()]] * self._embeds
            else:
                values.append(column.to_pylist())
        row = self._row
        return self._encode([row(*each) for each in zip(*values, strict=True)])


class JsonlWriter:
    """One object a line."""

    def __init__(self, file: BinaryIO, about: About, *, csv_raw: bool) -> None:
        self._file, self._rows = file, RowLines(about)

    def write(self, batch: pa.RecordBatch) -> None:
        self._file.write(self._rows.encoded(batch))

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class CsvWriter:
    """RFC 4180 with ``\\n``; null is an empty field, an empty text is ``""``.

    Unless ``csv_raw``, text that a spreadsheet would take for a formula gets a leading ``'``.
    """

    def __init__(self, file: BinaryIO, about: About, *, csv_raw: bool) -> None:
        self._shown = columns.properties(about.schema)
        self._embeds = about.vectors is not None
        self._schema = _with_json(columns.table_schema(self._shown, about.vectors))
        self._raw = csv_raw
        names = self._schema.names if csv_raw else _guard(pa.array(self._schema.names, pa.string())).to_pylist()
        file.write(_header(names))
        options = arrow_csv.WriteOptions(include_header=False, batch_size=GROUP_ROWS)
        self._writer = arrow_csv.CSVWriter(file, self._schema, write_options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        table = self._table(batch)
        if not self._raw:
            guarded = [_guard(column) if pa.types.is_string(column.type) else column for column in table.columns]
            table = pa.record_batch(guarded, schema=self._schema)
        self._writer.write_batch(table)

    def _table(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A cell holds text: embeddings are the JSON of a list."""
        if not self._embeds:
            return columns.as_table(batch, self._shown, self._schema)
        plain = columns.as_table(batch, self._shown, columns.table_schema(self._shown))
        found = {**dict(zip(plain.schema.names, plain.columns, strict=True)), EMBEDDING: as_json(batch[EMBEDDING])}
        return pa.record_batch([found[name] for name in self._schema.names], schema=self._schema)

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        pass


class ParquetWriter:
    """Row groups of 5,000 rows, whatever the batches are; properties of the schema are typed."""

    def __init__(self, file: BinaryIO, about: About, *, csv_raw: bool) -> None:
        self._shown = columns.properties(about.schema)
        self._vectors = about.vectors
        self._schema = columns.table_schema(self._shown, self._vectors)
        self._writer = pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=list(_REPETITIVE), write_statistics=["index"]
        )
        self._held: list[pa.RecordBatch] = []
        self._count = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(columns.as_table(batch, self._shown, self._schema, self._vectors))
        self._count += batch.num_rows
        if self._count >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        if self._count:
            self._flush()
        self._writer.close()

    def abandon(self) -> None:
        self._writer.is_open = False  # else it writes its footer when collected, to a closed file

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._held, self._schema), row_group_size=GROUP_ROWS)
        self._held, self._count = [], 0


def _with_json(schema: pa.Schema) -> pa.Schema:
    """With text where there are vectors."""
    at = schema.get_field_index(EMBEDDING)
    return schema if at < 0 else schema.set(at, pa.field(EMBEDDING, pa.string()))


def _raw_json(text: str | None) -> msgspec.Raw | None:
    if text is None:
        return None
    # A line end can stand between the tokens of JSON, and would end our line.
    return msgspec.Raw(text.replace("\n", " ").replace("\r", " "))


def _guard(column: pa.Array) -> pa.Array:
    formula = pc.match_substring_regex(column, _FORMULA)
    if not pc.any(formula).as_py():
        return column
    formula = pc.and_not(formula, pc.match_substring_regex(column, _NUMBER))
    return pc.if_else(formula, pc.binary_join_element_wise("'", column, ""), column)


def _header(names: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(names)
    return line.getvalue().encode()
