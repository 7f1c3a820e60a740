"""The content of rows and tables, whatever their versions: fingerprints, the net change between two versions.

Owns: what counts (values, nulls, NaN, types, column names) and what does not (order of rows and columns, chunks, how
a text is stored, the run that wrote a row). A fingerprint is a hex SHA-256, the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import date

import numpy as np
import polars as pl
from deltalake.exceptions import DeltaError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import RULES
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.delta import Location
from throughline.lakehouse.table import DAY, RUN_ID, open_table, read

_PLACE = "\0place"  # no column is called so
_FEED = ("_change_type", "_commit_version", "_commit_timestamp")
_SIGN = {"insert": 1, "update_postimage": 1, "delete": -1, "update_preimage": -1}


def day_fingerprints(settings: Settings, pinned: TableReference, days: Iterable[date]) -> dict[date, str]:
    """The fingerprint of each of `days` of a table partitioned by day; of a day without rows, that of no rows."""
    rows = read(settings, pinned).filter(pl.col(DAY).is_in(sorted(days))).collect()
    parts = {day: part for (day,), part in rows.partition_by(DAY, as_dict=True).items()}
    return {day: fingerprint_frame(parts.get(day, rows.clear()), [], exclude=[RUN_ID]) for day in sorted(days)}


def net_changes(location: Location, after: int, until: int) -> pl.DataFrame | None:
    """The rows whose number differs between version `after` and the later `until`; `net`: by how many.

    Rows rewritten unchanged, by a retry or a compaction, do not count. None when it is unknown: a version is gone, the
    columns changed, or the table has no change data feed.
    """
    try:
        table = open_table(location, until)
        if open_table(location, after).schema() != table.schema():
            return None
        reader = table.load_cdf(starting_version=after + 1, ending_version=until)
    except (DeltaError, OSError, ThroughlineError):
        return None
    try:
        feed = pl.DataFrame(reader.read_all())
    except Exception as error:
        if type(error) is not Exception:  # the type that the reader raises for a file that was vacuumed
            raise
        return None
    content = [name for name in feed.columns if name not in (*_FEED, RUN_ID)]
    sign = pl.col(_FEED[0]).replace_strict(_SIGN, return_dtype=pl.Int64)
    return feed.group_by(content).agg(sign.sum().alias("net")).filter(pl.col("net") != 0)


def fingerprint_frame(frame: pl.DataFrame | pl.LazyFrame, keys: list[str], exclude: Iterable[str] = ()) -> str:
    """Digest of the rows, ordered by `keys`; `exclude` names columns that are not content (run ids, ...).

    -0.0 is 0.0; every NaN is the same NaN and differs from null. When the keys of a lazy frame are unique, only one
    other column is in memory at a time. Raises `ThroughlineError` for a missing key or a type without a stable form.
    """
    excluded = set(exclude)
    schema = frame.lazy().collect_schema()
    if missing := [key for key in keys if key not in schema or key in excluded]:
        raise ThroughlineError(f"Fingerprint keys {', '.join(missing)} are no columns of the table: correct the keys.")
    columns = sorted(name for name in schema if name not in excluded)
    rows = frame.lazy().select(columns)
    keyed = rows.select(keys or columns).collect()
    if not keys or keyed.is_duplicated().any():
        # rows with equal keys are ordered by their other columns
        rows = rows.with_columns(pl.col(pl.Float32, pl.Float64) + 0.0).collect().lazy()
        keyed = rows.select(*keys, *(name for name in columns if name not in keys)).collect()
    order = keyed.with_row_index(_PLACE).sort(keyed.columns, nulls_last=True)[_PLACE]
    digest = hashlib.sha256(f"{RULES}\n{order.len()}\n".encode())
    for name in columns:
        digest.update(f"{json.dumps(name)} {schema[name]}\n".encode())
        for part in _content(rows.select(name).collect().to_series().gather(order)):
            digest.update(part)
    return digest.hexdigest()


def _content(column: pl.Series) -> Iterator[bytes]:
    """A column as bytes of its logical content only: where the nulls are, then the values."""
    yield np.packbits(column.is_null().to_numpy()).tobytes()
    kind = column.dtype
    if isinstance(kind, pl.Categorical | pl.Enum):
        yield from _texts(column.cast(pl.String))
    elif kind == pl.String:
        yield from _texts(column)
    elif kind == pl.Binary:
        values = column.fill_null(b"")
        yield values.bin.size().cast(pl.UInt64).to_numpy().astype("<u8").tobytes()
        yield b"".join(values)
    elif kind.is_float():
        values = column.fill_null(0.0).to_numpy() + 0.0
        yield np.where(np.isnan(values), np.nan, values).astype(values.dtype.newbyteorder("<")).tobytes()
    elif kind.is_integer() and kind not in (pl.Int128, getattr(pl, "UInt128", None)):
        values = column.fill_null(0).to_numpy()
        yield values.astype(values.dtype.newbyteorder("<")).tobytes()
    elif kind == pl.Boolean:
        yield np.packbits(column.fill_null(False).to_numpy()).tobytes()
    elif kind.is_temporal():
        yield column.to_physical().fill_null(0).cast(pl.Int64).to_numpy().astype("<i8").tobytes()
    elif isinstance(kind, pl.Array):
        yield from _content(column.arr.to_list())
    elif isinstance(kind, pl.List):
        yield column.list.len().fill_null(0).cast(pl.UInt64).to_numpy().astype("<u8").tobytes()
        yield from _content(column.filter(column.list.len() > 0).explode())
    elif isinstance(kind, pl.Struct):
        for field in kind.fields:
            yield f"{json.dumps(field.name)}\n".encode()
            yield from _content(column.struct.field(field.name))
    elif kind == pl.Null:
        return
    elif isinstance(kind, pl.Decimal) or kind.is_integer():
        yield from _texts(column.cast(pl.String))
    else:
        raise ThroughlineError(f"Column {column.name} of type {kind} has no stable form: leave it out or cast it.")


def _texts(column: pl.Series) -> Iterator[bytes]:
    values = column.fill_null("")
    yield values.str.len_bytes().cast(pl.UInt64).to_numpy().astype("<u8").tobytes()
    yield (values.str.join("").item() if len(values) else "").encode()
