"""Beside results, columns of the rows that they answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightmill.files import GROUP_ROWS
from nightmill.ledger import StoredFile
from nightmill.sinks.columns import input_column
from nightmill.store import Store


def with_input(
    store: Store, rows: StoredFile, results: Iterable[pa.RecordBatch], names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The same results, in input order, with columns ``names`` of ``rows`` under the names of `input_column`."""
    with store.open(rows.ref) as stream:
        source = pq.ParquetFile(stream, pre_buffer=False)
        for batch in results:
            if not batch.num_rows:
                continue
            index = batch.column("index")
            first, last = (index[at].as_py() // GROUP_ROWS for at in (0, -1))
            groups = source.read_row_groups(list(range(first, last + 1)), columns=list(names), use_threads=False)
            beside = groups.take(pc.subtract(index, first * GROUP_ROWS)).combine_chunks()
            yield pa.record_batch(
                [*batch.columns, *(beside.column(name).combine_chunks() for name in names)],
                names=[*batch.schema.names, *map(input_column, names)],
            )
