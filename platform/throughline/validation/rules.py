"""The rules for rows: which of them each row breaks; pure.

Owns: what breaks a rule, and the text of a reason. Does not own: what follows for the row or its day (`judge.py`).
"""

from __future__ import annotations

import polars as pl
from polars.exceptions import ComputeError

from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.table import DAY
from throughline.usecase import Column, Expectations

_NAMES = {"string": "text", "integer": "a whole number", "number": "a floating-point number", "boolean": "a boolean"}
_REASONS = "__reasons"


def declared_type(kind: pl.DataType) -> str | None:
    """The type that a declaration names for a column; None for one that cannot be declared."""
    if kind == pl.String:
        return "string"
    if kind == pl.Boolean:
        return "boolean"
    if kind.is_integer():
        return "integer"
    if kind.is_float():
        return "number"
    return "timestamp" if isinstance(kind, pl.Datetime) and kind.time_zone == "UTC" else None


def schema_problems(schema: pl.Schema, expects: Expectations) -> list[str]:
    """Columns that are missing, undeclared, or of another type than declared."""
    declared = expects.all_columns
    return [
        *(f"{name} is missing" for name in declared if name not in schema),
        *(f"{name} ({kind}) is not declared" for name, kind in schema.items() if name not in declared),
        *(
            f"{name} is {schema[name]} instead of {_NAMES.get(column.type, 'an instant in UTC')}"
            for name, column in declared.items()
            if name in schema and declared_type(schema[name]) != column.type
        ),
    ]


def row_reasons(rows: pl.DataFrame, expects: Expectations, key: list[str]) -> pl.Series:
    """For each row, its columns as declared, the list of rules it breaks. Of otherwise good rows of a day with the same
    key, all but the first break one."""
    rules = [rule for name, column in expects.all_columns.items() for rule in _column_rules(name, column)]
    broken = pl.concat_list(pl.when(breaks).then(pl.lit(reason)) for breaks, reason in rules).list.drop_nulls()
    try:
        judged = rows.with_columns(broken.alias(_REASONS))
    except ComputeError as error:
        reason = str(error).splitlines()[0]
        raise ThroughlineError(f"A pattern under `expects` cannot be used ({reason}): correct it.") from error
    clean = pl.col(_REASONS).list.len() == 0
    again = clean & ~pl.struct(clean, DAY, *key).is_first_distinct()
    repeated = pl.lit([f"key: {', '.join(key)} repeats an earlier row"])
    return judged.select(pl.when(again).then(repeated).otherwise(_REASONS).alias("reasons")).to_series()


def _column_rules(name: str, column: Column) -> list[tuple[pl.Expr, str]]:
    """Conditions that break a rule, each with its reason. A null breaks the rule about nulls only."""
    value = pl.col(name)
    rules = []
    if column.nulls is None:
        rules.append((value.is_null(), f"{name}: missing"))
    if column.type == "number":
        rules.append((~value.is_finite(), f"{name}: not a finite number"))
        value = pl.when(value.is_finite()).then(value)
    if column.at_least is not None:
        rules.append((value < column.at_least, f"{name}: below {column.at_least:g}"))
    if column.at_most is not None:
        rules.append((value > column.at_most, f"{name}: above {column.at_most:g}"))
    if column.values is not None:
        rules.append((~value.is_in(column.values), f"{name}: not an allowed value"))
    if column.pattern is not None:
        rules.append((~value.str.contains(f"^(?:{column.pattern})$"), f"{name}: does not match {column.pattern}"))
    return rules
