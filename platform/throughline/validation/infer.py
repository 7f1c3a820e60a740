"""A draft of the expectations of a table, learnt from its rows, pure.

Owns: how far beyond what was seen a bound is put. Does not own: whether what was seen is right. A draft is to be read
by a person before it is pasted into a declaration; `suspicions` say where to look first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import polars as pl

from throughline.lakehouse.table import DAY
from throughline.usecase import CONTRACT, Expectations

# Columns that the platform adds to what a source delivers.
PLATFORM = (DAY, "ingestion_run_id")

MANY_VALUES = 20
ROWS_PER_VALUE = 20
_ALPHABETS = ("[0-9]", "[A-Z]", "[a-z]", "[A-Z0-9]", "[A-Za-z]", "[A-Za-z0-9]", "[A-Za-z0-9._:-]")


def draft(rows: pl.DataFrame) -> dict[str, Any]:
    """The `expects` section that accepts these rows, with room: valid for `Expectations`, without its defaults.

    `rows` as a raw table holds them; with a `day`, volumes and shares are learnt per day. Raises `ValueError` when
    there is no row, or no column to learn from.
    """
    if rows.is_empty():
        raise ValueError("it has no rows")
    by_day = [DAY] if DAY in rows.columns else []
    columns = {
        name: _column(rows.select(name, *by_day), name, kind)
        for name, kind in rows.schema.items()
        if name not in (*PLATFORM, *CONTRACT) and _type(kind)
    }
    comparable = [name for name, rule in columns.items() if "values" in rule or rule["type"] == "number"]
    expects: dict[str, Any] = {"rows": _volume(rows), "columns": columns}
    if comparable:
        expects["drift"] = {"columns": comparable}
    Expectations.model_validate(expects)
    return expects


def suspicions(rows: pl.DataFrame) -> list[str]:
    """Values that may be errors, which a draft takes for granted: those very far beyond all others."""
    found = []
    for name, kind in rows.schema.items():
        if name in PLATFORM or not kind.is_numeric():
            continue
        values = rows[name].cast(pl.Float64).fill_nan(None).drop_nulls()
        low, middle, high = (values.quantile(p) for p in (0.001, 0.5, 0.999))
        if middle is None:
            continue
        for extreme, edge, word in ((values.min(), low, "smallest"), (values.max(), high, "largest")):
            if abs(extreme - middle) > 5 * abs(edge - middle) > 0:
                found.append(f"{name}: the {word} value is {extreme:g}, all but one in a thousand end at {edge:g}")
    return found


def _type(kind: pl.DataType) -> str | None:
    """The declared word for a column's type; None for what cannot be declared."""
    if kind == pl.String:
        return "string"
    if kind == pl.Boolean:
        return "boolean"
    if kind.is_integer():
        return "integer"
    if kind.is_float():
        return "number"
    return "timestamp" if isinstance(kind, pl.Datetime) and kind.time_zone == "UTC" else None


def _column(rows: pl.DataFrame, name: str, kind: pl.DataType) -> dict[str, Any]:
    rule: dict[str, Any] = {"type": _type(kind)}
    share = pl.col(name).is_null().mean()
    nulls = (rows.group_by(DAY).agg(share) if DAY in rows.columns else rows.select(share))[name].max()
    if nulls:
        rule["nulls"] = min(1.0, math.ceil(nulls * 150 + 1) / 100)
    values = rows[name].drop_nulls()
    if values.is_empty():
        return rule
    if rule["type"] in {"integer", "number"}:
        rule.update(_range(values, whole=rule["type"] == "integer"))
    elif rule["type"] == "string":
        distinct = values.unique().sort()
        if distinct.len() <= MANY_VALUES and values.len() >= ROWS_PER_VALUE * distinct.len():
            rule["values"] = distinct.to_list()
        elif pattern := _pattern(values):
            rule["pattern"] = pattern
    return rule


def _range(values: pl.Series, whole: bool) -> dict[str, float]:
    """What was seen and a tenth more on either side; what was never negative stays so."""
    values = values.cast(pl.Float64)
    values = values.filter(values.is_finite())
    if values.is_empty():
        return {}
    low, high = values.min(), values.max()
    room = (high - low) / 10 or abs(high) / 10 or 1.0
    below, above = _rounded(low - room, math.floor, whole), _rounded(high + room, math.ceil, whole)
    return {"at_least": max(below, 0) if low >= 0 else below, "at_most": min(above, 0) if high <= 0 else above}


def _rounded(value: float, outwards: Callable[[float], int], whole: bool) -> float:
    """Two significant digits, and no fraction when `whole`; never inwards."""
    if value == 0:
        return 0
    digits = 1 - math.floor(math.log10(abs(value)))
    step = Fraction(10) ** -(min(digits, 0) if whole else digits)
    rounded = float(outwards(Fraction(value) / step) * step)
    return int(rounded) if rounded.is_integer() else rounded


def _pattern(values: pl.Series) -> str | None:
    """The narrowest alphabet that all texts are written in, with their lengths; None when there is none."""
    lengths = values.str.len_chars()
    low, high = lengths.min(), lengths.max()
    for alphabet in _ALPHABETS:
        pattern = f"{alphabet}{{{low}}}" if low == high else f"{alphabet}{{{low},{high}}}"
        if values.str.contains(f"^{pattern}$").all():
            return pattern
    return None


def _volume(rows: pl.DataFrame) -> dict[str, Any]:
    """Half to twice as many rows as on any day but the first, which also holds earlier deliveries."""
    if DAY not in rows.columns:
        return {"at_least": max(1, rows.height // 2), "at_most": rows.height * 2}
    counts = rows[DAY].value_counts().sort(DAY)["count"]
    usual = counts[1:] if len(counts) > 1 else counts
    return {"at_least": max(1, counts.min() // 2), "at_most": usual.max() * 2}
