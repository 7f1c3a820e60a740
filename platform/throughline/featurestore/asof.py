"""The point-in-time join, pure: which feature row may a prediction at time t use?

The answer, here and nowhere else: of the rows of its entity with event time at or before t (and not older than the
ttl), the newest; of several with that same event time, the one created last.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from throughline.errors import ThroughlineError

_ORDER = "__spine_order"


def join_asof(
    spine: pl.DataFrame,
    rows: pl.LazyFrame,
    *,
    keys: list[str],
    spine_time: str,
    row_time: str,
    columns: dict[str, str],
    created: str | None = None,
    ttl: timedelta | None = None,
) -> pl.DataFrame:
    """Add to each spine row the columns of the feature row it may use; null where there is none.

    spine:   any number of rows, with `keys` and `spine_time` (timezone-aware); its rows and order are kept.
    rows:    with `keys`, `row_time` and, when given, `created`; rows with a null key are never matched.
    columns: name in `rows` -> name in the result. `ttl` None or zero means that values do not expire.
    Keys are compared in the type they have in `rows`. Raises when the spine already has a column of the result.
    """
    if taken := sorted(set(columns.values()) & set(spine.columns)):
        raise ThroughlineError(f"The spine already has {', '.join(taken)}: drop or rename before the join.")
    time_type, key_types = spine.schema[spine_time], rows.collect_schema()
    matched = [f"__key_{key}" for key in keys]
    newest = [row_time, created] if created else [row_time]
    right = (
        rows.select(*keys, *dict.fromkeys([row_time, *([created] if created else []), *columns]))
        .drop_nulls([*keys, row_time])
        .with_columns(pl.col(row_time).dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC")))
        .sort(newest, nulls_last=False, maintain_order=True)
        .unique(subset=[*keys, row_time], keep="last", maintain_order=True)
        .select(
            *(pl.col(key).alias(match) for key, match in zip(keys, matched, strict=True)),
            pl.col(row_time).alias("__row_time"),
            *(pl.col(a).alias(b) for a, b in columns.items()),
        )
    )
    left = (
        spine.lazy()
        .with_row_index(_ORDER)
        .with_columns(
            pl.col(spine_time).dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC")),
            *(pl.col(key).cast(key_types[key]).alias(match) for key, match in zip(keys, matched, strict=True)),
        )
        .sort(spine_time)
    )
    joined = left.join_asof(
        right.sort("__row_time"),
        left_on=spine_time,
        right_on="__row_time",
        by=matched or None,
        strategy="backward",
        tolerance=ttl or None,
        coalesce=False,
        check_sortedness=False,
    )
    result = joined.sort(_ORDER).drop(_ORDER, "__row_time", *matched)
    return result.with_columns(pl.col(spine_time).cast(time_type)).collect()
