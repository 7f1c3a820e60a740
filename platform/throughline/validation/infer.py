"""A draft of the expectations of a table from its rows; pure.

Owns: how far bounds lie beyond the values seen. Does not own: whether those values are right: a person reviews a draft,
beginning with its `suspicions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl

from throughline.lakehouse.table import DAY, RUN_ID
from throughline.usecase import CONTRACT, Expectations
from throughline.validation.rules import declared_type

# Columns that the platform adds to what a source delivers.
PLATFORM = (DAY, RUN_ID)

MANY_VALUES = 20
ROWS_PER_VALUE = 20
PARTS = (0, 0.001, 0.5, 0.999, 1)
_ALPHABETS = ("[0-9]", "[A-Z]", "[a-z]", "[A-Z0-9]", "[A-Za-z]", "[A-Za-z0-9]", "[A-Za-z0-9._:-]")


def draft(rows: pl.DataFrame) -> dict[str, Any]:
    """An `expects` section that accepts these rows of a raw table with some margin; with a `day`, volumes and shares
    are per day. Raises `ValueError` when there is no row, or no column of a type that can be declared."""
    if rows.is_empty():
        raise ValueError("it has no rows")
    by_day = [DAY] if DAY in rows.columns else []
    columns = {
        name: _column(rows.select(name, *by_day), name, kind)
        for name, kind in rows.schema.items()
        if name not in (*PLATFORM, *CONTRACT) and declared_type(kind)
    }
    comparable = [name for name, rule in columns.items() if "values" in rule or rule["type"] == "number"]
    expects: dict[str, Any] = {"rows": _volume(rows), "columns": columns}
    if comparable:
        expects["drift"] = {"columns": comparable}
    Expectations.model_validate(expects)
    return expects


def suspicions(rows: pl.DataFrame) -> list[str]:
    """Values that may be errors although a draft accepts them: those very far from all others."""
    found = []
    for name, kind in rows.schema.items():
        if name in PLATFORM or not kind.is_numeric():
            continue
        values = rows[name].cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
        if not len(values):
            continue
        smallest, low, middle, high, largest = (float(v) for v in np.quantile(values, PARTS, method="nearest"))
        for extreme, edge, word in ((smallest, low, "smallest"), (largest, high, "largest")):
            if abs(extreme - middle) > 5 * abs(edge - middle) > 0:
                found.append(f"{name}: the {word} value is {extreme:g}, all but one in a thousand end at {edge:g}")
    return found


def _column(rows: pl.DataFrame, name: str, kind: pl.DataType) -> dict[str, Any]:
    rule: dict[str, Any] = {"type": declared_type(kind)}
    share = pl.col(name).is_null().mean()
    nulls = max((rows.group_by(DAY).agg(share) if DAY in rows.columns else rows.select(share))[name].to_list())
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
    """The range of the values and a tenth more on either side; it crosses zero only if the values do."""
    numbers = values.cast(pl.Float64).to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return {}
    low, high = float(numbers.min()), float(numbers.max())
    room = (high - low) / 10 or abs(high) / 10 or 1.0
    below, above = _rounded(low - room, math.floor, whole), _rounded(high + room, math.ceil, whole)
    return {"at_least": max(below, 0) if low >= 0 else below, "at_most": min(above, 0) if high <= 0 else above}


def _rounded(value: float, outwards: Callable[[Fraction], int], whole: bool) -> float:
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
    counts = rows[DAY].value_counts().sort(DAY)["count"].to_list()
    return {"at_least": max(1, min(counts) // 2), "at_most": max(counts[1:] or counts) * 2}
