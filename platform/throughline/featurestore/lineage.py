"""Column lineage of a feature table: the source columns that each column is computed from, by its compiled SQL; pure.

What decides a value counts: its expression, the keys and order of its windows, both sides of a joined key. What only
selects rows (filters, join conditions) does not. Does not own: compiling (dbt), or how lineage is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from throughline.foundation.errors import ThroughlineError
from throughline.usecase import SourceTable, UseCase

# What `ingestion/ingest.py` adds to the declared columns; a static table has no `day`.
_PLATFORM_COLUMNS = {"ingestion_run_id": "string", "day": "date"}


class Upstream(NamedTuple):
    """A column that the SQL reads; the table without its schema."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


def column_lineage(sql: str, schema: str, tables: Mapping[str, Mapping[str, str]]) -> dict[str, list[Upstream]]:
    """Column of the query, in its order -> what it is computed from, sorted; an empty list for a constant.

    sql:    one SELECT in Spark's dialect, as compiled by dbt.
    tables: columns and types of the tables of `schema`; those of a table that is missing follow from its use.
    Raises `ThroughlineError` when the SQL cannot be parsed or names an unknown column.
    """
    from sqlglot import exp, parse_one  # postpones sqlglot (0.5 s)
    from sqlglot.errors import OptimizeError, ParseError, SqlglotError
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    try:
        known = {name: dict(columns) for name, columns in tables.items() if columns}
        schemas = {schema: known} if known else None
        query = qualify(parse_one(sql, dialect="spark"), dialect="spark", schema=schemas, infer_schema=True)
        scope = build_scope(query)
        if scope is None or not isinstance(query, exp.Query):
            raise ParseError("it is no SELECT")
        if any(part.expression.is_star for part in scope.traverse()):
            raise OptimizeError("it selects * from a table of undeclared columns")
        found = {}
        for column in query.named_selects:
            leaves = lineage(column, query, scope=scope, dialect="spark", copy=False, trim_selects=False).walk()
            read = (leaf for leaf in leaves if isinstance(leaf.expression, exp.Table))
            found[column] = sorted({Upstream(leaf.expression.name, exp.to_column(leaf.name).name) for leaf in read})
    except SqlglotError as error:
        reason = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:160]
        raise ThroughlineError(
            f"Column lineage of the SQL is unknown ({reason}): correct the model, or declare the columns it reads "
            "under `expects`."
        ) from error
    return found


def raw_columns(usecase: UseCase) -> dict[str, dict[str, str]]:
    """The columns of each raw table as declared, with Spark's types; none for a table without `expects`."""
    return {name: _columns(table) for name, table in usecase.sources.tables.items()}


def _columns(table: SourceTable) -> dict[str, str]:
    if table.expects is None:
        return {}
    types = {"integer": "bigint", "number": "double"}
    declared = {name: types.get(column.type, column.type) for name, column in table.expects.all_columns.items()}
    platform = {name: kind for name, kind in _PLATFORM_COLUMNS.items() if name != "day" or not table.static}
    return declared | platform
