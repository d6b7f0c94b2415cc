"""Tasks that are functions: what they make of rows, as one more column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from nightmill.sources import JSON_MARK, Taken, decode_row_values
from nightmill.tasks import MESSAGES, NoRequest, TaskFunction


def asked(taken: Iterable[Taken], function: TaskFunction) -> Iterator[Taken]:
    """The rows with the chat that ``function`` makes of each; where it makes none, the row is bad and says why."""
    for some in taken:
        yield _asked(some, function)


def _asked(some: Taken, function: TaskFunction) -> Taken:
    fields = [field for field in some.batch.schema if field.name != MESSAGES]
    values = {field.name: decode_row_values(some.batch.column(field.name), field) for field in fields}
    chats: list[str | None] = [None] * some.batch.num_rows
    bad = dict(some.bad)
    for i in range(some.batch.num_rows):
        if i in bad:
            continue
        try:
            chats[i] = function.ask({name: column[i] for name, column in values.items()})
        except NoRequest as error:
            bad[i] = str(error)
    columns = [*(some.batch.column(field.name) for field in fields), pa.array(chats, pa.string())]
    schema = pa.schema([*fields, pa.field(MESSAGES, pa.string(), metadata=JSON_MARK)])
    return Taken(pa.record_batch(columns, schema=schema), some.texts, bad)
