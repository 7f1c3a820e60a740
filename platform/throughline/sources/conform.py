"""Conversion of a source's rows to their declared types, with instants in UTC and the two columns of every table.

Owns: parsing of texts (numbers, truth values, ISO 8601), the time zone of timestamps without an offset: of a local hour
that occurs twice the later, so that no row counts as known too early. Does not own: rules for values (`validation/`).
"""

from __future__ import annotations

import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.table import INSTANT
from throughline.usecase import CONTRACT, Column, Expectations
from throughline.usecase.feeds import Feed

TYPES: dict[str, pl.DataType] = {
    "string": pl.String(), "integer": pl.Int64(), "number": pl.Float64(), "boolean": pl.Boolean(), "timestamp": INSTANT
}  # fmt: skip
_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_ISO = r"^\s*(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?)?\s*(Z|[+-]\d{2}(?::?\d{2})?)?\s*$"


def as_declared(rows: pl.DataFrame, feed: Feed, expects: Expectations | None, where: str) -> pl.DataFrame:
    """The declared columns converted, other columns unchanged, then `event_time` and `available_at`.

    Without a column for it in the feed, `rows` hold `available_at`. where: file or table, for messages. Raises
    `ThroughlineError` naming column, row and value.
    """
    sources = {"event_time": feed.event_time, "available_at": feed.available_at or "available_at"}
    if missing := [name for name in sources.values() if name not in rows.columns]:
        raise ThroughlineError(
            f"{where} has no column {missing[0]} (it has {', '.join(rows.columns)}): correct it, or "
            "`event_time` and `available_at` under `from`."
        )
    declared = expects.columns if expects else {}
    contract = [
        _converted(_complete(rows[source], where), CONTRACT[name], feed.timezone, where).alias(name)
        for name, source in sources.items()
    ]
    typed = [(rows[name], column) for name, column in declared.items() if name in rows.columns]
    columns = [_converted(values, column, feed.timezone, where) for values, column in typed]
    others = [rows[name] for name in rows.columns if name not in (*declared, *sources.values(), *CONTRACT)]
    return pl.DataFrame([*columns, *others, *contract])


def empty(expects: Expectations) -> pl.DataFrame:
    """A frame without rows, of the declared columns and types."""
    return pl.DataFrame(schema={name: TYPES[column.type] for name, column in {**expects.columns, **CONTRACT}.items()})


def _complete(values: pl.Series, where: str) -> pl.Series:
    if values.null_count():
        row = values.is_null().arg_true()[0]
        raise ThroughlineError(f"{where}, row {row + 1}: {values.name} is missing: every row needs one; correct it.")
    return values


def _converted(values: pl.Series, column: Column, zone: str | None, where: str) -> pl.Series:
    if column.type == "timestamp" and (naive := _without_offset(values)) is not None and zone is None:
        raise ThroughlineError(
            f"{where}: {values.name} {naive} has no time zone: send an offset, or declare `timezone` under `from`."
        )
    converted = values.to_frame().select(_converter(values, column.type, zone)).to_series()
    if converted.null_count() > values.null_count():
        row = (converted.is_null() & values.is_not_null()).arg_true()[0]
        raise ThroughlineError(
            f"{where}, row {row + 1}: {values.name} {str(values[row])[:60]!r} is not of type {column.type}"
            f"{f' of {zone}' if zone and column.type == 'timestamp' else ''}: correct it, or what `expects` declares."
        )
    return converted.rename(values.name)


def _converter(values: pl.Series, declared: str, zone: str | None) -> pl.Expr:
    """An expression that gives null for a value that is not of the declared type."""
    value, kind = pl.col(values.name), values.dtype
    if kind.is_nested():
        return _none(declared)
    if kind == pl.Null or kind == TYPES[declared]:
        return value.cast(TYPES[declared])
    if declared == "string":
        return value.cast(pl.String, strict=False)
    if declared == "timestamp":
        if kind == pl.String:
            return _parsed(value, zone)
        if isinstance(kind, pl.Datetime):
            return _located(value, zone) if kind.time_zone is None else value.cast(INSTANT)
        return _located(value.cast(pl.Datetime("us")), zone) if kind == pl.Date else _none(declared)
    if declared == "boolean":
        text = value.cast(pl.String, strict=False).str.strip_chars().str.to_lowercase()
        return text.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)
    if not (kind == pl.String or kind.is_numeric()):
        return _none(declared)
    number = (value.str.strip_chars() if kind == pl.String else value).cast(TYPES[declared], strict=False)
    if declared == "integer" and (kind.is_float() or kind.is_decimal()):
        return pl.when(number == value).then(number)
    return number


def _none(declared: str) -> pl.Expr:
    return pl.repeat(None, pl.len(), dtype=TYPES[declared])


def _located(naive: pl.Expr, zone: str | None) -> pl.Expr:
    local = naive.cast(pl.Datetime("us")).dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
    return local.dt.convert_time_zone("UTC") if zone else naive.cast(INSTANT)


def _parsed(text: pl.Expr, zone: str | None) -> pl.Expr:
    day, minute, second, offset = (text.str.extract(_ISO, group) for group in range(1, 5))
    local = pl.concat_str(day, pl.lit("T"), minute.fill_null("00:00"), second.fill_null(":00"))
    naive = local.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    sign = pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)
    digits = offset.str.replace_all(r"\D", "").str.pad_end(4, "0")
    minutes = digits.str.head(2).cast(pl.Int64, strict=False) * 60 + digits.str.tail(2).cast(pl.Int64, strict=False)
    absolute = (naive - pl.duration(minutes=sign * minutes)).dt.replace_time_zone("UTC")
    return pl.when(offset.is_null()).then(_located(naive, zone)).otherwise(absolute).cast(INSTANT)


def _without_offset(values: pl.Series) -> str | None:
    """The first timestamp without a time zone."""
    if values.dtype == pl.String:
        parts = values.drop_nulls().str.extract(_ISO, 1), values.drop_nulls().str.extract(_ISO, 4)
        bare = values.drop_nulls().filter(parts[0].is_not_null() & parts[1].is_null())
    elif values.dtype == pl.Date or (isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is None):
        bare = values.drop_nulls()
    else:
        return None
    return str(bare[0]) if len(bare) else None
